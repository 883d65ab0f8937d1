//! `POST /v1/completions`: OpenAI's older endpoint. The prompt is asked as a user's message, since models are chat models.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::{Event, FinishReason, LlmError, Message, Role, Usage};

use super::chat::{finish_reason, named, usage};
use super::read::{self, take, wrong};
use super::stream::{Writer, data};
use super::wish::cache_wish;
use super::{caller, created, errors, new_id, object, told};
use crate::http::{App, Problem};

pub(super) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut body = object(&body)?;
    let prompt = match take(&mut body, "prompt") {
        Some(Value::String(prompt)) => prompt,
        Some(Value::Array(list)) => match &list[..] {
            [Value::String(prompt)] => prompt.clone(),
            _ => return Err(wrong("prompt", "must be one text: ask once for each")),
        },
        _ => return Err(wrong("prompt", "must be a string")),
    };
    for field in ["suffix", "best_of", "echo", "logprobs"] {
        if take(&mut body, field).is_some_and(|value| value != false && value != 1) {
            return Err(wrong(field, "is not supported"));
        }
    }
    let (mut request, wishes) = read::options(&mut body)?;
    request.messages = vec![Message::text(Role::User, prompt)];
    body.retain(|_, value| !value.is_null());
    request.extra = body;
    let cache = cache_wish(&headers, &mut request)?;

    let gateway = &app.platform.gateway;
    let caller = caller(&app, &principal, &headers);
    let model = named(gateway.default_model(), &request);
    let mut texts = Texts {
        id: new_id("cmpl-"),
        model,
        created: created(),
        include_usage: wishes.include_usage,
        usage: Usage::default(),
    };
    if request.stream {
        let stream = gateway.chat_or_kept(&caller, &request, cache).await?;
        return Ok(super::stream::response(stream, texts));
    }
    let kept = gateway.complete_or_kept(&caller, &request, cache);
    let (reply, info) = kept.await?;
    texts.include_usage = true;
    let mut value = texts.text(&reply.text, reply.finish.or(Some(FinishReason::Stop)));
    value["usage"] = usage(&reply.usage);
    Ok(told(Json(value).into_response(), &info))
}

/// Writes pieces of a text completion.
struct Texts {
    id: String,
    model: String,
    created: i64,
    include_usage: bool,
    usage: Usage,
}

impl Texts {
    fn text(&self, text: &str, finish: Option<FinishReason>) -> Value {
        self.value(json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish.map(finish_reason)}]))
    }

    fn value(&self, choices: Value) -> Value {
        let mut value = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            value["usage"] = Value::Null;
        }
        value
    }
}

impl Writer for Texts {
    fn event(&mut self, event: Event, out: &mut String) {
        match event {
            Event::Text { text, .. } | Event::Refusal(text) => data(&self.text(&text, None), out),
            Event::Finish { reason, .. } => data(&self.text("", Some(reason)), out),
            Event::Usage(usage) => self.usage = usage,
            Event::Start { .. } | Event::Reasoning { .. } | Event::ToolCall { .. } => {}
        }
    }

    fn end(&mut self, out: &mut String) {
        if self.include_usage {
            let mut value = self.value(json!([]));
            value["usage"] = usage(&self.usage);
            data(&value, out);
        }
        out.push_str("data: [DONE]\n\n");
    }

    fn broken(&mut self, error: &LlmError, out: &mut String) {
        data(&errors::openai_event(error), out);
        out.push_str("data: [DONE]\n\n");
    }
}
