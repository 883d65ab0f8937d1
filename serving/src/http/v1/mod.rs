//! The protocols that clients of models speak: OpenAI's below `/v1`, Anthropic's at `/v1/messages`, ours at `/api/v1/llm`.
//!
//! - `read` requests of OpenAI's chat into what the gateway takes; `chat`, `completions`, `responses`, `messages` one
//!   endpoint each with the way back; `embeddings` and `rerank`; `models` the list
//! - `stream` server-sent events with heartbeats, `errors` the shapes of errors
//!
//! A client's key comes as a bearer token or, as Anthropic's clients send it, in `x-api-key`. Who it belongs to is `auth`'s
//! business, what is done with the request the gateway's.

mod chat;
mod completions;
mod embeddings;
mod errors;
mod messages;
mod models;
mod read;
mod rerank;
mod responses;
mod stream;

use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde_json::{Map, Value};
use va_catalog::store::Principal;
use va_llm::{Caller, RouteInfo};

use super::{App, Problem, auth};

/// The largest request: a long conversation with some pictures in it.
const REQUEST_BYTES_MAX: usize = 64 << 20;
const OVERHEAD: HeaderName = HeaderName::from_static("x-va-overhead-ms");
const DEPLOYMENT: HeaderName = HeaderName::from_static("x-va-deployment");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The routes, with what each request to them goes through.
pub fn routes(app: &App) -> Router<App> {
    let key = || middleware::from_fn_with_state(app.clone(), auth::require_key);
    let ours = Router::new()
        .route("/api/v1/llm/chat", post(chat::create))
        .route("/api/v1/llm/chat/stream", post(chat::stream))
        .route("/api/v1/llm/usage", get(usage))
        .layer(key());
    let theirs = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::get))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/rerank", post(rerank::create))
        .route("/v1/messages", post(messages::create))
        .route("/v1/responses", post(responses::create))
        .layer(key())
        .layer(middleware::from_fn(errors::in_their_words));
    ours.merge(theirs)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(middleware::from_fn(around))
}

/// How much of the time of a request went to others; left in the response for [`around`].
#[derive(Clone, Copy)]
struct Waited(Duration);

/// Takes the key from where Anthropic's clients put it, and tells how much of the time was ours.
async fn around(mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let headers = request.headers_mut();
    if !headers.contains_key(header::AUTHORIZATION)
        && let Some(key) = headers.get(&API_KEY).and_then(|key| key.to_str().ok())
        && let Ok(mut bearer) = HeaderValue::from_str(&format!("Bearer {key}"))
    {
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
    }
    let mut response = next.run(request).await;
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
