//! One HTTP request to a provider: sending it, classifying what went wrong, reading what came back within bounds.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, Url};
use serde_json::Value;
use va_connectors::http::{self, reasons};
use va_connectors::trace::{self, TRACEPARENT};

use crate::error::{ErrorKind, LlmError};
use crate::sse::{Frame, SseParser};

/// The largest reply in one piece: vectors of a full batch are large.
const REPLY_BYTES_MAX: usize = 128 << 20;
/// How much of an error is read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How much of an error's text is told.
const ERROR_CHARS_MAX: usize = 600;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client for a provider at this URL.
pub(crate) fn client(base_url: &str) -> Result<Client, String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("`{base_url}` as a provider's URL: {error}");
    let url = Url::parse(base_url).map_err(|error| failed(&error))?;
    http::client(&url)
        .connect_timeout(CONNECT_TIMEOUT)
        .build()
        .map_err(|error| failed(&error))
}

/// Sends a request whose reply is to be good, as a part of the trace of the call.
pub(crate) async fn send(request: RequestBuilder) -> Result<Response, LlmError> {
    let request = match trace::current() {
        Some(parent) => request.header(TRACEPARENT, parent),
        None => request,
    };
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = retry_after(response.headers());
    let body = read(response, ERROR_BYTES_MAX).await.unwrap_or_default();
    Err(failure(status.as_u16(), &body, retry_after))
}

/// The whole reply as JSON.
pub(crate) async fn json(response: Response) -> Result<Value, LlmError> {
    let body = read(response, REPLY_BYTES_MAX).await?;
    let value: Value = serde_json::from_slice(&body).map_err(|error| {
        LlmError::new(
            ErrorKind::StreamBroken,
            format!("the provider's reply is not JSON: {error}"),
        )
    })?;
    match in_band(&value) {
        Some(error) => Err(error),
        None => Ok(value),
    }
}

/// The whole reply, whatever it is.
pub(crate) async fn whole(response: Response) -> Result<Bytes, LlmError> {
    read(response, REPLY_BYTES_MAX).await
}

/// The reply's bytes as they come.
pub(crate) fn pieces(response: Response) -> BoxStream<'static, Result<Bytes, LlmError>> {
    let pieces = response.bytes_stream();
    pieces
        .map(|piece| piece.map_err(|error| broken(&error)))
        .boxed()
}

async fn read(response: Response, limit: usize) -> Result<Bytes, LlmError> {
    let mut body = BytesMut::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| broken(&error))?;
        if body.len() + piece.len() > limit {
            return Err(LlmError::new(
                ErrorKind::StreamBroken,
                format!("the provider's reply is larger than {limit} bytes"),
            ));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// The reply's events. The stream ends where the reply ends or cannot be read.
pub(crate) fn frames(response: Response) -> BoxStream<'static, Result<Frame, LlmError>> {
    struct Reader {
        pieces: BoxStream<'static, Result<Bytes, reqwest::Error>>,
        parser: Option<SseParser>,
        ready: std::vec::IntoIter<Frame>,
    }
    let reader = Reader {
        pieces: response.bytes_stream().boxed(),
        parser: Some(SseParser::default()),
        ready: Vec::new().into_iter(),
    };
    futures::stream::unfold(reader, |mut reader| async move {
        loop {
            if let Some(frame) = reader.ready.next() {
                return Some((Ok(frame), reader));
            }
            let parser = reader.parser.as_mut()?;
            let unreadable = |error: crate::sse::SseError| {
                LlmError::new(ErrorKind::StreamBroken, error.to_string())
            };
            match reader.pieces.next().await {
                Some(Ok(piece)) => {
                    let mut frames = Vec::new();
                    let read = parser.push(&piece, &mut frames);
                    reader.ready = frames.into_iter();
                    if let Err(error) = read {
                        reader.parser = None;
                        return Some((Err(unreadable(error)), reader));
                    }
                }
                Some(Err(error)) => {
                    reader.parser = None;
                    return Some((Err(broken(&error)), reader));
                }
                None => {
                    let last = reader.parser.take()?.finish();
                    return match last {
                        Ok(frame) => frame.map(|frame| (Ok(frame), reader)),
                        Err(error) => Some((Err(unreadable(error)), reader)),
                    };
                }
            }
        }
    })
    .boxed()
}

fn unreachable(error: &reqwest::Error) -> LlmError {
    let kind = if error.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Unavailable
    };
    LlmError::new(kind, format!("reach the provider: {}", reasons(error)))
}

fn broken(error: &reqwest::Error) -> LlmError {
    LlmError::new(
        ErrorKind::StreamBroken,
        format!("the provider's reply broke off: {}", reasons(error)),
    )
}

/// `Retry-After` in seconds, or the more exact `retry-after-ms`. A date is not understood; the usual pauses apply then.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms")
        .map(|ms| ms / 1_000.0)
        .or_else(|| number(RETRY_AFTER.as_str()))?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(86_400.0)))
}

/// What a reply with this status says.
pub(crate) fn failure(status: u16, body: &[u8], retry_after: Option<Duration>) -> LlmError {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let (message, words) = match error_of(&value) {
        Some(error) => error,
        None => {
            let text = String::from_utf8_lossy(body);
            let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let text = if text.is_empty() {
                "no reason given".to_owned()
            } else {
                text
            };
            (text.clone(), text)
        }
    };
    let mut error = LlmError::new(classify(status, &words), shorten(&message)).after(retry_after);
    error.status = Some(status);
    error.message = format!("the provider answered {status}: {}", error.message);
    error
}

/// The error in a reply whose status was good.
pub(crate) fn in_band(value: &Value) -> Option<LlmError> {
    let error = value.get("error").filter(|error| !error.is_null());
    if error.is_none() && value["type"] != "error" {
        return None;
    }
    let (message, words) = error_of(value)?;
    let status = value["error"]["code"]
        .as_u64()
        .or_else(|| value["error"]["status"].as_u64())
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code));
    // Without a number it is the provider that had a fault while it answered, unless it says otherwise.
    let kind = match status {
        Some(status) => classify(status, &words),
        None => match classify(400, &words) {
            ErrorKind::BadRequest => by_type(&words),
            kind => kind,
        },
    };
    let mut error = LlmError::new(
        kind,
        format!("the provider reported: {}", shorten(&message)),
    );
    error.status = status;
    Some(error)
}

/// Message of an error object, and all its words in lower case.
fn error_of(value: &Value) -> Option<(String, String)> {
    // `{"error": {"message"}}`, `{"error": "text"}`, and `{"code", "message"}` as DashScope and Qianfan may have it.
    let error = match &value["error"] {
        Value::Null => value,
        error => error,
    };
    let message = match error {
        Value::String(text) => text.clone(),
        error => [
            &error["message"],
            &error["error_msg"],
            &error["detail"],
            &value["message"],
        ]
        .into_iter()
        .find_map(Value::as_str)?
        .to_owned(),
    };
    let part = |field: &str| match &error[field] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let words = format!(
        "{} {} {} {message}",
        part("type"),
        part("code"),
        error["innererror"]["code"].as_str().unwrap_or_default()
    );
    Some((message, words.to_lowercase()))
}

fn classify(status: u16, words: &str) -> ErrorKind {
    let has = |any: &[&str]| any.iter().any(|word| words.contains(word));
    match status {
        400 | 413 | 422
            if has(&[
                "context_length",
                "context length",
                "context window",
                "context size",
                "exceed_context",
                "maximum context",
                "prompt is too long",
                "range of input length",
                "input tokens exceed",
                "prompt too long",
            ]) =>
        {
            ErrorKind::ContextWindow
        }
        400 | 403 | 422
            if has(&[
                "content_filter",
                "content_policy",
                "content policy",
                "content management policy",
                "responsibleaipolicy",
                "data_inspection_failed",
                "datainspectionfailed",
                "data may contain inappropriate",
                "moderation",
            ]) =>
        {
            ErrorKind::ContentPolicy
        }
        404 if has(&["model", "deployment"]) => ErrorKind::UnknownModel,
        401..=403 => ErrorKind::Credentials,
        // An account without money does not get any by waiting.
        429 if has(&["insufficient_quota", "billing", "arrearage"]) => ErrorKind::Credentials,
        429 => ErrorKind::RateLimited,
        408 | 504 => ErrorKind::Timeout,
        // Anthropic's "overloaded" is 529.
        500..=599 | 404 | 409 | 425 => ErrorKind::Unavailable,
        _ => ErrorKind::BadRequest,
    }
}

fn by_type(words: &str) -> ErrorKind {
    let has = |any: &[&str]| any.iter().any(|word| words.contains(word));
    if has(&["invalid_request", "not_found"]) {
        ErrorKind::BadRequest
    } else if has(&[
        "rate_limit",
        "rate limit",
        "too many requests",
        "throttling",
    ]) {
        ErrorKind::RateLimited
    } else if has(&["authentication", "permission", "invalid_api_key"]) {
        ErrorKind::Credentials
    } else {
        ErrorKind::Unavailable
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= ERROR_CHARS_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(ERROR_CHARS_MAX).collect();
    short.push_str("...");
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_classified_by_what_can_be_done() {
        use ErrorKind::*;
        // Bodies as the providers send them.
        for (status, body, kind) in [
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
                ContextWindow,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"request (4031 tokens) exceeds the available context size (1024 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":4031,"n_ctx":1024}}"#,
                ContextWindow,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
                ContextWindow,
            ),
            (
                400,
                r#"{"error":{"code":"content_filter","message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy.","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
                ContentPolicy,
            ),
            (
                400,
                r#"{"error":{"code":"data_inspection_failed","message":"Input data may contain inappropriate content."}}"#,
                ContentPolicy,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"All non-assistant messages must contain 'content'","type":"invalid_request_error"}}"#,
                BadRequest,
            ),
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}"#,
                Credentials,
            ),
            (
                404,
                r#"{"error":{"message":"The model `gpt-9` does not exist","code":"model_not_found"}}"#,
                UnknownModel,
            ),
            (404, "page not found", Unavailable),
            (
                429,
                r#"{"error":{"message":"Rate limit reached","type":"requests"}}"#,
                RateLimited,
            ),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#,
                Credentials,
            ),
            (500, "", Unavailable),
            (503, "<html>busy</html>", Unavailable),
            (504, "", Timeout),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                Unavailable,
            ),
        ] {
            let error = failure(status, body.as_bytes(), None);
            assert_eq!(error.kind, kind, "{status} {body}");
            assert_eq!(error.status, Some(status));
        }
    }

    #[test]
    fn errors_in_a_good_reply_are_found() {
        use ErrorKind::*;
        for (body, kind) in [
            (
                r#"{"error":{"message":"Overloaded","type":"overloaded_error"},"type":"error"}"#,
                Unavailable,
            ),
            (
                r#"{"error":{"message":"slow down","code":429}}"#,
                RateLimited,
            ),
            (
                r#"{"error":{"message":"Rate limit exceeded","type":"rate_limit_error"}}"#,
                RateLimited,
            ),
            (r#"{"error":"something went wrong"}"#, Unavailable),
            (
                r#"{"error":{"message":"bad tool","type":"invalid_request_error"}}"#,
                BadRequest,
            ),
            (
                r#"{"error":{"message":"too much","code":"context_length_exceeded"}}"#,
                ContextWindow,
            ),
        ] {
            let value = serde_json::from_str(body).expect("JSON");
            assert_eq!(
                in_band(&value).map(|error| error.kind),
                Some(kind),
                "{body}"
            );
        }
        let fine = serde_json::json!({"choices": [], "error": null});
        assert_eq!(in_band(&fine), None);
    }
}
