//! Errors in the shapes that clients of OpenAI and Anthropic read.
//!
//! Handlers answer with [`Problem`]s like all others; below `/v1` they are rewritten on the way out, those of the
//! credential and of unreadable bodies included.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use va_llm::{ErrorKind, LlmError};

use crate::http::Problem;

/// Problems are shorter; what is longer is no problem of ours.
const PROBLEM_BYTES_MAX: usize = 1 << 20;

/// Status and code of a failed call.
fn place(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
        ErrorKind::Budget => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota"),
        ErrorKind::ContextWindow => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
        ErrorKind::ContentPolicy => (StatusCode::BAD_REQUEST, "content_filter"),
        ErrorKind::BadRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
        ErrorKind::Unsupported => (StatusCode::BAD_REQUEST, "unsupported"),
        ErrorKind::UnknownModel => (StatusCode::NOT_FOUND, "model_not_found"),
        ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "model_forbidden"),
        // Ours with the provider, not the client's with us.
        ErrorKind::Credentials => (StatusCode::BAD_GATEWAY, "provider_credentials"),
        ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "provider_timeout"),
        ErrorKind::StreamBroken => (StatusCode::BAD_GATEWAY, "provider_stream_broken"),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "provider_unavailable"),
        ErrorKind::NotConfigured => (StatusCode::SERVICE_UNAVAILABLE, "no_provider"),
    }
}

impl From<LlmError> for Problem {
    fn from(error: LlmError) -> Self {
        let (status, code) = place(error.kind);
        Self::new(status, code, error.message).after(error.retry_after)
    }
}

/// Whether clients, which repeat calls by themselves, should leave that.
fn is_lasting(code: &str) -> bool {
    matches!(
        code,
        "no_provider" | "insufficient_quota" | "provider_credentials"
    )
}

/// An error inside a stream, as OpenAI's clients find it.
pub(super) fn openai_event(error: &LlmError) -> Value {
    let (status, code) = place(error.kind);
    openai(status, code, &error.message, &Value::Null)
}

/// An error inside a stream, as Anthropic's clients find it.
pub(super) fn anthropic_event(error: &LlmError) -> Value {
    let (status, _) = place(error.kind);
    anthropic(status, &error.message)
}

fn openai(status: StatusCode, code: &str, message: &str, param: &Value) -> Value {
    let kind = match (status.as_u16(), code) {
        (_, "insufficient_quota") => "insufficient_quota",
        (403, _) => "permission_error",
        (429, _) => "rate_limit_error",
        (500.., _) => "server_error",
        _ => "invalid_request_error",
    };
    let code = if status == StatusCode::UNAUTHORIZED {
        "invalid_api_key"
    } else {
        code
    };
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

fn anthropic(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

/// Rewrites what is a problem.
pub(super) async fn in_their_words(request: Request, next: Next) -> Response {
    let is_anthropic = request.uri().path().starts_with("/v1/messages")
        || request.headers().contains_key("anthropic-version");
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = to_bytes(body, PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = problem["code"].as_str().unwrap_or("invalid_request");
    let message = match problem["detail"].as_str() {
        Some(detail) => detail.to_owned(),
        // Of axum itself: a body that is too large, a method that is not allowed.
        None => String::from_utf8_lossy(&body).into_owned(),
    };
    let shaped = if is_anthropic {
        anthropic(status, &message)
    } else {
        openai(status, code, &message, &problem["param"])
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_TYPE);
    if is_lasting(code) {
        parts
            .headers
            .insert("x-should-retry", HeaderValue::from_static("false"));
    }
    let mut response = (status, Json(shaped)).into_response();
    for (name, value) in &parts.headers {
        response.headers_mut().insert(name, value.clone());
    }
    *response.extensions_mut() = parts.extensions;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_status_and_words() {
        for (kind, status, openai_type, code, anthropic_type) in [
            (
                ErrorKind::RateLimited,
                429,
                "rate_limit_error",
                "rate_limit_exceeded",
                "rate_limit_error",
            ),
            (
                ErrorKind::Budget,
                429,
                "insufficient_quota",
                "insufficient_quota",
                "rate_limit_error",
            ),
            (
                ErrorKind::ContextWindow,
                400,
                "invalid_request_error",
                "context_length_exceeded",
                "invalid_request_error",
            ),
            (
                ErrorKind::UnknownModel,
                404,
                "invalid_request_error",
                "model_not_found",
                "not_found_error",
            ),
            (
                ErrorKind::Forbidden,
                403,
                "permission_error",
                "model_forbidden",
                "permission_error",
            ),
            (
                ErrorKind::Credentials,
                502,
                "server_error",
                "provider_credentials",
                "api_error",
            ),
            (
                ErrorKind::NotConfigured,
                503,
                "server_error",
                "no_provider",
                "overloaded_error",
            ),
        ] {
            let error = LlmError::new(kind, "why");
            let (told, _) = place(kind);
            assert_eq!(told.as_u16(), status, "{kind:?}");
            let value = openai_event(&error);
            assert_eq!(value["error"]["type"], openai_type, "{kind:?}");
            assert_eq!(value["error"]["code"], code, "{kind:?}");
            assert_eq!(
                anthropic_event(&error)["error"]["type"],
                anthropic_type,
                "{kind:?}"
            );
        }
        let value = openai(StatusCode::UNAUTHORIZED, "unauthorized", "no", &Value::Null);
        assert_eq!(value["error"]["code"], "invalid_api_key");
    }
}
