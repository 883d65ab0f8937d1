//! `POST /v1/chat/completions` and `POST /api/v1/llm/chat[/stream]`: OpenAI's chat.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::{ChatReply, ChatRequest, Event, FinishReason, LlmError, Usage};

use super::read::{self, Wishes};
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
    let (request, wishes) = read::chat(object(&body)?)?;
    answer(&app, &principal, &headers, request, wishes).await
}

/// The same, always as a stream.
pub(super) async fn stream(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (mut request, wishes) = read::chat(object(&body)?)?;
    request.stream = true;
    answer(&app, &principal, &headers, request, wishes).await
}

async fn answer(
    app: &App,
    principal: &Principal,
    headers: &HeaderMap,
    mut request: ChatRequest,
    wishes: Wishes,
) -> Result<Response, Problem> {
    let cache = cache_wish(headers, &mut request)?;
    let gateway = &app.platform.gateway;
    let caller = caller(app, principal, headers);
    let model = named(gateway.default_model(), &request);
    if request.stream {
        let stream = gateway.chat_or_kept(&caller, &request, cache).await?;
        let chunks = Chunks::new(new_id("chatcmpl-"), model, wishes.include_usage);
        return Ok(super::stream::response(stream, chunks));
    }
    let kept = gateway.complete_or_kept(&caller, &request, cache);
    let (reply, info) = kept.await?;
    let reply = Json(completion(&reply, &model));
    Ok(told(reply.into_response(), &info))
}

/// What the reply calls the model: as the client did.
pub(super) fn named(default: Option<&str>, request: &ChatRequest) -> String {
    if request.model.is_empty() {
        default.unwrap_or_default().to_owned()
    } else {
        request.model.clone()
    }
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}

pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

fn completion(reply: &ChatReply, model: &str) -> Value {
    let text = |text: &str| match text {
        "" => Value::Null,
        text => text.into(),
    };
    let mut message =
        json!({"role": "assistant", "content": reply.text, "refusal": text(&reply.refusal)});
    if !reply.reasoning.is_empty() {
        message["reasoning_content"] = reply.reasoning.as_str().into();
    }
    if !reply.tool_calls.is_empty() {
        message["content"] = text(&reply.text);
        let calls: Vec<Value> = reply
            .tool_calls
            .iter()
            .map(|call| {
                json!({"id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}})
            })
            .collect();
        message["tool_calls"] = calls.into();
    }
    json!({
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": created(),
        "model": model,
        "choices": [{
            "index": 0,
            "message": message,
            "logprobs": reply.logprobs,
            "finish_reason": finish_reason(reply.finish.unwrap_or(FinishReason::Stop)),
        }],
        "usage": usage(&reply.usage),
    })
}

/// Writes chunks of a chat completion.
struct Chunks {
    id: String,
    model: String,
    created: i64,
    include_usage: bool,
    begun: bool,
    usage: Usage,
}

impl Chunks {
    fn new(id: String, model: String, include_usage: bool) -> Self {
        Self {
            id,
            model,
            created: created(),
            include_usage,
            begun: false,
            usage: Usage::default(),
        }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, delta: Value, logprobs: Option<Value>, finish: Option<FinishReason>) -> Value {
        self.chunk(json!([{
            "index": 0,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish.map(finish_reason),
        }]))
    }
}

impl Writer for Chunks {
    fn event(&mut self, event: Event, out: &mut String) {
        if !std::mem::replace(&mut self.begun, true) {
            let begin = json!({"role": "assistant", "content": "", "refusal": null});
            data(&self.delta(begin, None, None), out);
        }
        let chunk = match event {
            Event::Start { .. } => return,
            Event::Usage(usage) => {
                self.usage = usage;
                return;
            }
            Event::Text { text, logprobs } => self.delta(json!({"content": text}), logprobs, None),
            // Of Anthropic's signature there is no word here.
            Event::Reasoning { text, .. } if text.is_empty() => return,
            Event::Reasoning { text, .. } => {
                self.delta(json!({"reasoning_content": text}), None, None)
            }
            Event::Refusal(text) => self.delta(json!({"refusal": text}), None, None),
            Event::ToolCall {
                index,
                id,
                name,
                arguments,
            } => {
                let mut call = json!({"index": index, "function": {"arguments": arguments}});
                if let Some(name) = name {
                    call["function"]["name"] = name.into();
                }
                if let Some(id) = id {
                    call["id"] = id.into();
                    call["type"] = "function".into();
                }
                self.delta(json!({"tool_calls": [call]}), None, None)
            }
            Event::Finish { reason, .. } => self.delta(json!({}), None, Some(reason)),
        };
        data(&chunk, out);
    }

    fn end(&mut self, out: &mut String) {
        if self.include_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(&self.usage);
            data(&chunk, out);
        }
        out.push_str("data: [DONE]\n\n");
    }

    fn broken(&mut self, error: &LlmError, out: &mut String) {
        data(&errors::openai_event(error), out);
        out.push_str("data: [DONE]\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_as_openais() {
        let mut chunks = Chunks::new("chatcmpl-1".into(), "m".into(), true);
        chunks.created = 5;
        let mut out = String::new();
        for event in [
            Event::Start {
                id: None,
                model: None,
            },
            Event::Text {
                text: "冻".into(),
                logprobs: None,
            },
            Event::ToolCall {
                index: 0,
                id: Some("c".into()),
                name: Some("f".into()),
                arguments: String::new(),
            },
            Event::ToolCall {
                index: 0,
                id: None,
                name: None,
                arguments: "{}".into(),
            },
            Event::Finish {
                reason: FinishReason::ToolCalls,
                stop: None,
            },
            Event::Usage(Usage {
                input: 3,
                output: 2,
                ..Usage::default()
            }),
        ] {
            chunks.event(event, &mut out);
        }
        chunks.end(&mut out);
        let deltas: Vec<Value> = out
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        assert!(
            deltas
                .iter()
                .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["created"] == 5)
        );
        let of = |at: usize| deltas[at]["choices"][0]["delta"].to_string();
        assert_eq!(of(0), r#"{"role":"assistant","content":"","refusal":null}"#);
        assert_eq!(of(1), r#"{"content":"冻"}"#);
        assert_eq!(
            of(2),
            r#"{"tool_calls":[{"index":0,"function":{"arguments":"","name":"f"},"id":"c","type":"function"}]}"#
        );
        assert_eq!(
            of(3),
            r#"{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}"#
        );
        assert_eq!(deltas[4]["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(deltas[3]["usage"], Value::Null);
        assert_eq!(
            (&deltas[5]["choices"], &deltas[5]["usage"]["total_tokens"]),
            (&json!([]), &json!(5))
        );
        assert!(out.ends_with("data: [DONE]\n\n"));
    }
}
