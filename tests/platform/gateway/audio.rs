//! Voices: transcriptions and speech through the gateway, with the repetition, fallback and money of every other call.

use serde_json::json;
use tempfile::{TempDir, tempdir};

use super::upstream::{Act, Upstream, failure, reply};
use super::{chat, question, send, serve, until_sql};
use crate::http::RequestBuilder;
use crate::server::Server;

fn world(a: Vec<Act>, b: Vec<Act>) -> (TempDir, Upstream, Upstream, Server) {
    let data = tempdir().unwrap();
    let (a, b) = (Upstream::start(a), Upstream::start(b));
    let llm = format!(
        "  providers:
    a: {{base_url: '{}', api_key: sk-a}}
    b: {{base_url: '{}'}}
    claude: {{kind: anthropic, base_url: '{0}'}}
  models:
    chat: {{deployments: [{{provider: b}}]}}
    whisper: {{use: transcription, deployments: [{{provider: a, model: whisper-1, prices: [{{seconds: 100}}]}}], fallbacks: [ears]}}
    ears: {{use: transcription, deployments: [{{provider: b}}]}}
    tts: {{use: speech, deployments: [{{provider: a, model: tts-1, prices: [{{characters: 15}}]}}]}}
    mute: {{use: speech, deployments: [{{provider: claude}}]}}
  routing: {{retries: 1, backoff_ms: 10}}",
        a.url(),
        b.url()
    );
    let server = serve(data.path(), &llm);
    (data, a, b, server)
}

/// A form with these fields and a recording.
fn form(server: &Server, fields: &[(&str, &str)], file: &[u8]) -> RequestBuilder {
    let boundary = "va-test-boundary-19c4";
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
            .into_bytes(),
        );
    }
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n"
    );
    body.extend(head.into_bytes());
    body.extend(file);
    body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    server
        .post("/v1/audio/transcriptions")
        .header("content-type", &kind)
        .body(body)
}

/// Two and a half seconds of silence.
fn wav() -> Vec<u8> {
    let data = vec![0; 80_000];
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn a_recording_is_transcribed_and_paid_by_the_second() {
    let text = |text: &str| Act::Reply(200, "", json!({"text": text}).to_string());
    let duration = json!({"text": "told", "usage": {"type": "duration", "seconds": 9}}).to_string();
    let script = vec![
        failure(500, "", "hiccup"),
        text("hello"),
        Act::Reply(200, "", duration),
        Act::Bytes("text/plain; charset=utf-8", b"1\n00:00:00,000".to_vec()),
        failure(500, "", "gone"),
    ];
    let (_data, a, b, server) = world(script, vec![text("from b")]);
    let fields = [("model", "whisper"), ("language", "zh"), ("prompt", "退货")];
    let answer = send(form(&server, &fields, &wav()));
    assert_eq!(
        (answer.status, answer.json()["text"].clone()),
        (200, json!("hello")),
        "{}",
        answer.text
    );
    assert_eq!(answer.deployment.as_deref(), Some("whisper/a/whisper-1"));
    let sent = a.requests()[1].as_str().unwrap().to_owned();
    for part in [
        "name=\"model\"\r\n\r\nwhisper-1\r\n",
        "name=\"language\"\r\n\r\nzh\r\n",
        "退货",
        "filename=\"a.wav\"",
        "audio/wav",
    ] {
        assert!(sent.contains(part), "{part} is not in the form");
    }
    let head = &a.heads()[1];
    assert!(
        head.starts_with("POST /v1/audio/transcriptions HTTP/1.1\n"),
        "{head}"
    );
    assert!(head.contains("authorization: Bearer sk-a\n"), "{head}");

    assert_eq!(send(form(&server, &fields, &wav())).json()["text"], "told");
    let srt = send(form(
        &server,
        &[("model", "whisper"), ("response_format", "srt")],
        &wav(),
    ));
    assert_eq!(srt.text, "1\n00:00:00,000");
    assert_eq!(
        srt.content_type.as_deref(),
        Some("text/plain; charset=utf-8")
    );
    // It fails twice, and another model listens.
    let other = send(form(&server, &fields, &wav()));
    assert_eq!(other.json()["text"], "from b", "{}", other.text);
    assert_eq!(b.requests().len(), 1);
    // 3 begun seconds, 9 that were told, 3 again: 0.0001 each.
    until_sql(
        &server,
        "SELECT payload['audio_seconds'], CAST(payload['cost'] AS VARCHAR) FROM topic.\"llm.usage\" \
         WHERE event_type = 'llm.settled' AND payload['provider'] = 'a' ORDER BY _offset",
        &json!([
            [3, "0.000300000000"],
            [9, "0.000900000000"],
            [3, "0.000300000000"]
        ]),
    );
}

#[test]
fn a_text_is_read_aloud_and_paid_by_the_character() {
    let voice: Vec<u8> = (0..200_000u32).map(|n| n as u8 & 0x7f).collect();
    let script = vec![
        failure(503, "", "busy"),
        Act::Bytes("audio/mpeg", voice.clone()),
    ];
    let (_data, a, _, server) = world(script, vec![reply("x", 1, 1)]);
    let body = json!({"model": "tts", "input": "退货。", "voice": "alloy", "speed": 1.5, "response_format": "mp3"});
    let answer = send(server.post("/v1/audio/speech").json(&body));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.content_type.as_deref(), Some("audio/mpeg"));
    assert_eq!(answer.text.as_bytes(), voice);
    let mut expected = body;
    expected["model"] = json!("tts-1");
    assert_eq!(a.requests()[1], expected);
    assert!(a.heads()[1].starts_with("POST /v1/audio/speech "));
    until_sql(
        &server,
        "SELECT payload['characters'], CAST(payload['cost'] AS VARCHAR), payload['outcome'] FROM topic.\"llm.usage\" \
         WHERE event_type = 'llm.settled'",
        &json!([[3, "0.000045000000", "ok"]]),
    );
}

#[test]
fn what_is_no_voice_is_told() {
    let (_data, _a, b, server) = world(
        vec![Act::Reply(
            200,
            "",
            json!({"error": {"message": "no such voice", "type": "invalid_request_error"}})
                .to_string(),
        )],
        vec![reply("x", 1, 1)],
    );
    let speech = |body: serde_json::Value| send(server.post("/v1/audio/speech").json(&body));
    for (body, status, part) in [
        (json!({"model": "tts"}), 400, "`input`"),
        (json!({"input": "hi"}), 400, "`model`"),
        (json!({"model": "tts", "input": " "}), 400, "`input`"),
        (
            json!({"model": "tts", "input": "x".repeat(100_001)}),
            400,
            "100001 characters",
        ),
        (
            json!({"model": "chat", "input": "hi"}),
            400,
            "for another use",
        ),
        (json!({"model": "nothing", "input": "hi"}), 404, "`tts`"),
        (
            json!({"model": "mute", "input": "hi"}),
            400,
            "does not offer speech",
        ),
        (json!({"model": "tts", "input": "hi"}), 400, "no such voice"),
    ] {
        let answer = speech(body.clone());
        assert_eq!(answer.status, status, "{}", answer.text);
        assert!(answer.text.contains(part), "{part}: {}", answer.text);
    }
    for (fields, file, status, part) in [
        (vec![("model", "whisper")], Vec::new(), 400, "`file`"),
        (vec![], wav(), 400, "`model`"),
        (
            vec![("model", "whisper"), ("stream", "true")],
            wav(),
            400,
            "`stream`",
        ),
        (vec![("model", "chat")], wav(), 400, "for another use"),
        (
            vec![("model", "whisper")],
            vec![0; (25 << 20) + 1],
            413,
            "26214400 bytes",
        ),
    ] {
        let answer = send(form(&server, &fields, &file));
        assert_eq!(answer.status, status, "{part}: {}", answer.text);
        assert!(answer.text.contains(part), "{part}: {}", answer.text);
    }
    // A voice's model is for no conversation either.
    let answer = chat(&server, &question("tts", json!({})));
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert_eq!(b.requests().len(), 0);
}
