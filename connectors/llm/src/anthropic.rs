//! The Anthropic Messages API. Requests are written in `request`, replies read in `reply`.
//!
//! JSON by a schema, which the protocol has no word for, is asked for as the arguments of a function that must be called;
//! its arguments are then the reply's text.

mod reply;
mod request;

use async_trait::async_trait;
use futures::StreamExt;
use reqwest::header::HeaderMap;

use crate::error::{ErrorKind, LlmError};
use crate::http;
use crate::provider::{Call, EventStream, Provider};
use crate::types::ChatRequest;

/// The version of the API that this is written for.
pub(crate) const VERSION: &str = "2023-06-01";

/// The function whose arguments are the reply.
const JSON_FUNCTION: &str = "reply_as_json";

/// A server that speaks the Messages API.
#[derive(Debug)]
pub(crate) struct Anthropic {
    pub http: reqwest::Client,
    /// Without a slash at its end, and without `/v1`.
    pub base_url: String,
    pub headers: HeaderMap,
}

#[async_trait]
impl Provider for Anthropic {
    async fn chat(&self, call: Call<'_>, request: &ChatRequest) -> Result<EventStream, LlmError> {
        let body = request::body(call, request);
        let sent = self
            .http
            .post(format!("{}/v1/messages", self.base_url))
            .headers(self.headers.clone())
            .json(&body);
        let response = http::send(sent).await?;
        let as_json = request::asks_json(request);
        if request.stream {
            Ok(reply::events(http::frames(response), as_json))
        } else {
            let value = http::json(response).await?;
            let events = reply::whole(&value, as_json)?;
            Ok(futures::stream::iter(events.into_iter().map(Ok)).boxed())
        }
    }

    async fn count_tokens(&self, call: Call<'_>, request: &ChatRequest) -> Result<u64, LlmError> {
        let sent = self
            .http
            .post(format!("{}/v1/messages/count_tokens", self.base_url))
            .headers(self.headers.clone())
            .json(&request::count_body(call, request));
        let value = http::json(http::send(sent).await?).await?;
        value["input_tokens"].as_u64().ok_or_else(|| {
            LlmError::new(
                ErrorKind::StreamBroken,
                "the provider's reply cannot be understood: it has no `input_tokens`",
            )
        })
    }
}
