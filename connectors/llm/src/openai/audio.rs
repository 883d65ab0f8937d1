//! Voices in OpenAI's words: a form with a file for transcriptions, JSON for speech.

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};

use crate::audio::{SpeakRequest, TranscribeRequest};
use crate::error::{ErrorKind, LlmError};
use crate::types::Usage;

/// The body of `audio/speech`.
pub(super) fn speak_body(model: &str, request: &SpeakRequest) -> Value {
    let mut body = request.extra.clone();
    body.insert("model".to_owned(), model.into());
    body.insert("input".to_owned(), request.input.as_str().into());
    Value::Object(body)
}

/// The form of `audio/transcriptions`, and its content type.
pub(super) fn form(model: &str, request: &TranscribeRequest) -> Result<(Bytes, String), LlmError> {
    let boundary = boundary()?;
    let mut body = BytesMut::with_capacity(request.file.len() + 1_024);
    let fields = request
        .fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in std::iter::once(("model", model)).chain(fields) {
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"{}\"\r\n\r\n{value}\r\n",
            quoted(name)
        );
        body.extend_from_slice(head.as_bytes());
    }
    let kind = request
        .content_type
        .as_deref()
        .filter(|kind| !kind.contains(['\r', '\n']))
        .unwrap_or("application/octet-stream");
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{}\"\r\ncontent-type: {kind}\r\n\r\n",
        quoted(&request.file_name)
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(&request.file);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    Ok((
        body.freeze(),
        format!("multipart/form-data; boundary={boundary}"),
    ))
}

/// A line that is in no file, but by a chance that is none.
fn boundary() -> Result<String, LlmError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| {
        LlmError::new(
            ErrorKind::Unavailable,
            format!("write the form of a transcription: the system gives no randomness: {error}"),
        )
    })?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("va-{random}"))
}

/// As browsers write names in forms.
fn quoted(name: &str) -> String {
    name.replace('"', "%22")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// The content type of a reply.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.unwrap_or("application/octet-stream").to_owned()
}

/// What a transcription took: as the reply tells, or else by the length of the file.
pub(super) fn usage(body: &[u8], request: &TranscribeRequest) -> Usage {
    let reply: Value = serde_json::from_slice(body).unwrap_or_default();
    let counted = &reply["usage"];
    let seconds = [
        &counted["seconds"],
        &reply["duration"],
        &counted["duration"],
    ]
    .into_iter()
    // Some servers write the number as a text.
    .find_map(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()))
    .filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0);
    let tokens = |field: &str| counted[field].as_u64();
    let (input, output) = (tokens("input_tokens"), tokens("output_tokens"));
    let (audio_seconds, estimated) = match seconds {
        Some(seconds) => (seconds.ceil() as u64, false),
        None => request.seconds(),
    };
    Usage {
        input: input.unwrap_or_default(),
        output: output.unwrap_or_default(),
        audio_seconds,
        // Where tokens are counted, it is tokens that are charged.
        estimated: estimated && input.is_none(),
        ..Usage::default()
    }
}

/// The error of a server that answered a voice with something else.
pub(super) fn no_audio(kind: &str, body: &[u8]) -> LlmError {
    let value: Value = serde_json::from_slice(body).unwrap_or_else(|_| json!({}));
    crate::http::in_band(&value).unwrap_or_else(|| {
        LlmError::new(
            ErrorKind::StreamBroken,
            format!("the provider answered with `{kind}` where a voice was asked for"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> TranscribeRequest {
        TranscribeRequest {
            model: "asked".into(),
            file: Bytes::from_static(b"\x00\x01RIFF"),
            file_name: "a \"b\"\r\n.mp3".into(),
            content_type: Some("audio/mpeg".into()),
            fields: vec![("language".into(), "zh".into())],
        }
    }

    #[test]
    fn a_form_holds_fields_and_file() {
        let (body, kind) = form("whisper", &request()).expect("a form");
        let (_, boundary) = kind.split_once("boundary=").expect("a boundary");
        let text = String::from_utf8_lossy(&body).into_owned();
        let parts: Vec<&str> = text.split(&format!("--{boundary}")).collect();
        assert_eq!(parts.len(), 5);
        assert!(parts[1].ends_with("name=\"model\"\r\n\r\nwhisper\r\n"));
        assert!(parts[2].ends_with("name=\"language\"\r\n\r\nzh\r\n"));
        assert!(parts[3].contains("filename=\"a %22b%22%0D%0A.mp3\"\r\ncontent-type: audio/mpeg"));
        assert!(parts[3].ends_with("\r\n\r\n\u{0}\u{1}RIFF\r\n"));
        assert_eq!(parts[4], "--\r\n");
    }

    #[test]
    fn what_a_transcription_took_is_read_or_estimated() {
        for (body, input, seconds, estimated) in [
            (
                r#"{"text":"hi","usage":{"type":"duration","seconds":12}}"#,
                0,
                12,
                false,
            ),
            (r#"{"text":"hi","duration":3.2}"#, 0, 4, false),
            (r#"{"text":"hi","duration":"3.2"}"#, 0, 4, false),
            (
                r#"{"text":"hi","usage":{"type":"tokens","input_tokens":40,"output_tokens":2}}"#,
                40,
                1,
                false,
            ),
            (r#"{"text":"hi"}"#, 0, 1, true),
            ("1\n00:00:00,000 --> 00:00:01,000\nhi\n", 0, 1, true),
        ] {
            let usage = usage(body.as_bytes(), &request());
            assert_eq!(
                (usage.input, usage.audio_seconds, usage.estimated),
                (input, seconds, estimated),
                "{body}"
            );
        }
    }
}
