//! `POST /v1/messages/count_tokens`: how many tokens a request in Anthropic's words has.
//!
//! `x-va-tokenizer` tells who counted: the deployment whose provider did, or `estimate`.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::json;
use va_catalog::store::Principal;

use super::{caller, messages, object};
use crate::http::{App, Problem};

const TOKENIZER: HeaderName = HeaderName::from_static("x-va-tokenizer");

pub(super) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request = messages::request(object(&body)?)?;
    let caller = caller(&app, &principal, &headers);
    let count = app.platform.gateway.count_tokens(&caller, &request).await?;
    let tokenizer = match (&count.counted_by, &count.trouble) {
        (Some(deployment), _) => deployment.as_str(),
        (None, None) => "estimate",
        // Why is in the log: reasons may hold what no header may.
        (None, Some(_)) => "estimate; the provider failed",
    };
    let mut response = Json(json!({"input_tokens": count.tokens})).into_response();
    let tokenizer = HeaderValue::from_str(tokenizer)
        .unwrap_or_else(|_| HeaderValue::from_static("a deployment whose name no header may hold"));
    response.headers_mut().insert(TOKENIZER, tokenizer);
    Ok(response)
}
