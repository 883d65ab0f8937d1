//! The protocols that clients of models speak: OpenAI's below `/v1`, Anthropic's at `/v1/messages`, ours at `/api/v1/llm`.
//!
//! - `read` requests of OpenAI's chat into what the gateway takes; `chat`, `completions`, `responses`, `messages` one
//!   endpoint each with the way back; `count_tokens`; `embeddings`, `rerank` and `audio`; `models` the list
//! - `wish` what a request wants of the caches of replies
//! - `stream` server-sent events with heartbeats, `errors` the shapes of errors
//!
//! A client's key comes as a bearer token or, as Anthropic's clients send it, in `x-api-key`. Who it belongs to is `auth`'s
//! business, what is done with the request the gateway's.

mod audio;
mod chat;
mod completions;
mod count_tokens;
mod embeddings;
mod errors;
mod messages;
mod models;
mod read;
mod rerank;
mod responses;
mod stream;
mod wish;

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Map, Value};
use va_catalog::Permission;
use va_catalog::store::Principal;
use va_llm::{Caller, RouteInfo};

use super::routes::{Access, Routes};
use super::{App, Problem};

/// The largest request: a long conversation with some pictures in it.
const REQUEST_BYTES_MAX: usize = 64 << 20;
const OVERHEAD: HeaderName = HeaderName::from_static("x-va-overhead-ms");
const DEPLOYMENT: HeaderName = HeaderName::from_static("x-va-deployment");
const CACHE: HeaderName = HeaderName::from_static("x-va-cache");

/// The routes.
#[rustfmt::skip] // One route a line, as the table that it is.
pub fn routes() -> Routes {
    let call = Access::Needs(Permission::ModelsUse);
    Routes::new()
        .post("/api/v1/llm/chat", call, chat::create)
        .post("/api/v1/llm/chat/stream", call, chat::stream)
        .get("/api/v1/llm/usage", Access::Needs(Permission::TenantRead), usage)
        .get("/v1/models", call, models::list)
        .get("/v1/models/{*model}", call, models::get)
        .post("/v1/chat/completions", call, chat::create)
        .post("/v1/completions", call, completions::create)
        .post("/v1/embeddings", call, embeddings::create)
        .post("/v1/rerank", call, rerank::create)
        .post("/v1/messages", call, messages::create)
        .post("/v1/messages/count_tokens", call, count_tokens::create)
        .post("/v1/audio/transcriptions", call, audio::transcribe)
        .post("/v1/audio/speech", call, audio::speak)
        .post("/v1/responses", call, responses::create)
        .bodies_max(REQUEST_BYTES_MAX)
}

/// How much of the time of a request went to others; left in the response for [`around`].
#[derive(Clone, Copy)]
struct Waited(Duration);

/// What every call of a model goes through, those that are refused for their credential included: errors in the words of
/// the client's protocol, and how much of the time was ours. Other requests pass.
pub async fn around(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let (theirs, ours) = (path.starts_with("/v1/"), path.starts_with("/api/v1/llm/"));
    if !theirs && !ours {
        return next.run(request).await;
    }
    let arrived = Instant::now();
    let mut response = if theirs {
        errors::in_their_words(request, next).await
    } else {
        next.run(request).await
    };
    if let Some(Waited(waited)) = response.extensions().get().copied() {
        let ours = arrived.elapsed().saturating_sub(waited);
        metrics::histogram!("va_llm_overhead_seconds").record(ours.as_secs_f64());
        let ms = format!("{:.3}", ours.as_secs_f64() * 1_000.0);
        if let Ok(ms) = HeaderValue::from_str(&ms) {
            response.headers_mut().insert(OVERHEAD, ms);
        }
    }
    response
}

/// Says in the response how it came about.
fn told(mut response: Response, info: &RouteInfo) -> Response {
    response.extensions_mut().insert(Waited(info.waited));
    if let Ok(deployment) = HeaderValue::from_str(&info.deployment) {
        response.headers_mut().insert(DEPLOYMENT, deployment);
    }
    if let Some(cache) = info.cache {
        response
            .headers_mut()
            .insert(CACHE, HeaderValue::from_static(cache));
    }
    response
}

/// The request's body, whatever its content type says.
fn object(body: &Bytes) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::invalid("the request's body must be a JSON object")),
        Err(error) => Err(Problem::invalid(format!(
            "the request's body is not JSON: {error}"
        ))),
    }
}

/// On whose behalf a request is.
fn caller(app: &App, principal: &Principal, headers: &HeaderMap) -> Caller {
    let id = headers
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= 128)
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    app.platform.gateway.caller(principal, &id)
}

/// `GET /api/v1/llm/usage`.
async fn usage(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, Problem> {
    let report = app.platform.gateway.usage(&principal.tenant).await?;
    Ok(Json(report).into_response())
}

/// Seconds since 1970, as OpenAI's `created`.
fn created() -> i64 {
    crate::platform::now_ms() / 1_000
}

/// A new id with a prefix, as `chatcmpl-...`.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}
