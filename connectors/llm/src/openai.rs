//! OpenAI's protocol: OpenAI itself, Azure, Qwen and ERNIE in their compatible modes, and any server that speaks it.
//!
//! What differs between them is in [`Habits`]; requests are written in `request`, replies read in `reply`, both of voices in
//! `audio`. Errors inside a good stream, usage only at the end, a missing `[DONE]` and heartbeats are what providers do, not
//! faults.

mod audio;
mod reply;
mod request;

use async_trait::async_trait;
use futures::StreamExt;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::audio::{SpeakReply, SpeakRequest, TranscribeReply, TranscribeRequest};
use crate::error::{ErrorKind, LlmError};
use crate::http;
use crate::provider::{Call, EventStream, Provider};
use crate::types::{
    ChatRequest, EmbedReply, EmbedRequest, InputType, Ranked, RerankReply, RerankRequest, Usage,
};

/// How a server differs from the protocol.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Habits {
    /// What the limit of the reply's length is called.
    pub max_tokens: String,
    /// The highest temperature.
    pub temperature_max: f64,
    /// Whether it knows `tool_choice: required`; else it gets `auto`.
    pub tool_choice_required: bool,
    /// Whether it knows `seed`.
    pub seed: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            max_tokens: "max_tokens".to_owned(),
            temperature_max: 2.0,
            tool_choice_required: true,
            seed: true,
        }
    }
}

/// How calls are addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// `BASE/chat/completions`.
    Plain,
    /// `BASE/openai/deployments/MODEL/chat/completions?api-version=VERSION`, as Azure has it.
    ByDeployment { version: String },
}

/// A server that speaks OpenAI's protocol.
#[derive(Debug)]
pub(crate) struct OpenAi {
    pub http: reqwest::Client,
    /// Without a slash at its end.
    pub base_url: String,
    pub addresses: Addresses,
    pub headers: HeaderMap,
    pub habits: Habits,
}

impl OpenAi {
    fn url(&self, model: &str, path: &str) -> String {
        match &self.addresses {
            Addresses::Plain => format!("{}/{path}", self.base_url),
            Addresses::ByDeployment { version } => format!(
                "{}/openai/deployments/{model}/{path}?api-version={version}",
                self.base_url
            ),
        }
    }

    async fn post(
        &self,
        call: Call<'_>,
        path: &str,
        body: &Value,
    ) -> Result<reqwest::Response, LlmError> {
        let request = self
            .http
            .post(self.url(call.model, path))
            .headers(self.headers.clone())
            .json(body);
        http::send(request).await
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn chat(&self, call: Call<'_>, request: &ChatRequest) -> Result<EventStream, LlmError> {
        let body = request::body(call.model, request, &self.habits);
        let response = self.post(call, "chat/completions", &body).await?;
        let is_stream = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        // Some servers answer in one piece although a stream was asked for, others the other way round.
        if is_stream {
            Ok(reply::events(http::frames(response)))
        } else {
            let value = http::json(response).await?;
            let events = reply::whole(&value)?;
            Ok(futures::stream::iter(events.into_iter().map(Ok)).boxed())
        }
    }

    async fn embed(&self, call: Call<'_>, request: &EmbedRequest) -> Result<EmbedReply, LlmError> {
        let mut body =
            json!({"model": call.model, "input": request.texts, "encoding_format": "float"});
        if let Some(dimensions) = request.dimensions {
            body["dimensions"] = dimensions.into();
        }
        if let Some(user) = &request.user {
            body["user"] = user.as_str().into();
        }
        if request.input_type == InputType::Query {
            // Not OpenAI's, but of those that ask for it; the others are not told.
            body["input_type"] = "query".into();
        }
        let value = http::json(self.post(call, "embeddings", &body).await?).await?;
        vectors(&value, request.texts.len())
    }

    async fn rerank(
        &self,
        call: Call<'_>,
        request: &RerankRequest,
    ) -> Result<RerankReply, LlmError> {
        let mut body =
            json!({"model": call.model, "query": request.query, "documents": request.documents});
        if let Some(top_n) = request.top_n {
            body["top_n"] = top_n.into();
        }
        let value = http::json(self.post(call, "rerank", &body).await?).await?;
        ranked(&value, request.documents.len())
    }

    async fn transcribe(
        &self,
        call: Call<'_>,
        request: &TranscribeRequest,
    ) -> Result<TranscribeReply, LlmError> {
        let (body, kind) = audio::form(call.model, request)?;
        let sent = self
            .http
            .post(self.url(call.model, "audio/transcriptions"))
            .headers(self.headers.clone())
            .header(reqwest::header::CONTENT_TYPE, kind)
            .body(body);
        let response = http::send(sent).await?;
        let content_type = audio::content_type(response.headers());
        let body = http::whole(response).await?;
        Ok(TranscribeReply {
            usage: audio::usage(&body, request),
            content_type,
            body,
        })
    }

    async fn speak(&self, call: Call<'_>, request: &SpeakRequest) -> Result<SpeakReply, LlmError> {
        let body = audio::speak_body(call.model, request);
        let response = self.post(call, "audio/speech", &body).await?;
        let content_type = audio::content_type(response.headers());
        if content_type.starts_with("application/json") || content_type.starts_with("text/html") {
            let body = http::whole(response).await?;
            return Err(audio::no_audio(&content_type, &body));
        }
        Ok(SpeakReply {
            content_type,
            audio: http::pieces(response),
        })
    }
}

fn unreadable(what: &str) -> LlmError {
    LlmError::new(
        ErrorKind::StreamBroken,
        format!("the provider's reply cannot be understood: {what}"),
    )
}

fn vectors(value: &Value, texts: usize) -> Result<EmbedReply, LlmError> {
    let data = value["data"]
        .as_array()
        .ok_or_else(|| unreadable("`data` is no list"))?;
    let mut vectors = vec![Vec::new(); texts];
    for (at, item) in data.iter().enumerate() {
        let index = item["index"].as_u64().map_or(at, |index| index as usize);
        let numbers = item["embedding"]
            .as_array()
            .ok_or_else(|| unreadable("`embedding` is no list"))?;
        let vector: Option<Vec<f32>> = numbers
            .iter()
            .map(|number| number.as_f64().map(|number| number as f32))
            .collect();
        *vectors
            .get_mut(index)
            .ok_or_else(|| unreadable("an `index` beyond the texts"))? =
            vector.ok_or_else(|| unreadable("`embedding` holds what is no number"))?;
    }
    if vectors.iter().any(Vec::is_empty) {
        return Err(unreadable(&format!(
            "{} vectors for {texts} texts",
            data.len()
        )));
    }
    Ok(EmbedReply {
        vectors,
        usage: reply::usage(&value["usage"]).unwrap_or_default(),
    })
}

fn ranked(value: &Value, documents: usize) -> Result<RerankReply, LlmError> {
    let results = value["results"]
        .as_array()
        .or_else(|| value["data"].as_array())
        .ok_or_else(|| unreadable("`results` is no list"))?;
    let mut ranked = Vec::with_capacity(results.len());
    for result in results {
        let score = result["relevance_score"]
            .as_f64()
            .or_else(|| result["score"].as_f64());
        match (result["index"].as_u64(), score) {
            (Some(index), Some(score)) if (index as usize) < documents => ranked.push(Ranked {
                index: index as usize,
                score,
            }),
            _ => return Err(unreadable("a result without `index` and `relevance_score`")),
        }
    }
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    let tokens = [
        &value["usage"]["total_tokens"],
        &value["meta"]["tokens"]["input_tokens"],
    ]
    .into_iter()
    .find_map(Value::as_u64);
    let usage = Usage {
        input: tokens.unwrap_or_default(),
        estimated: tokens.is_none(),
        ..Usage::default()
    };
    Ok(RerankReply { ranked, usage })
}

/// Headers from the settings.
pub(crate) fn headers<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name_ok = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("`{name}` is not the name of a header"))?;
        // The value may be a key, so it is not shown.
        let mut value = HeaderValue::from_str(value).map_err(|_| {
            format!("the value of header `{name}` has characters that no header may have")
        })?;
        value.set_sensitive(true);
        headers.insert(name_ok, value);
    }
    Ok(headers)
}
