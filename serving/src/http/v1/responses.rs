//! `POST /v1/responses`: OpenAI's newer endpoint: texts, pictures, functions, JSON, streaming. Nothing is stored, so a
//! request brings the whole conversation and `previous_response_id` is refused.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::{
    ChatReply, ChatRequest, Event, FinishReason, LlmError, Message, Part, Role, ToolCall, Usage,
};

use super::read::{self, Object, count, flag, take, text, wrong};
use super::stream::{Writer, named};
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
    let shown = Shown::of(&body);
    let mut request = request(&mut body)?;
    let cache = cache_wish(&headers, &mut request)?;
    let gateway = &app.platform.gateway;
    let caller = caller(&app, &principal, &headers);
    let model = super::chat::named(gateway.default_model(), &request);
    let shown = Shown { model, ..shown };
    if request.stream {
        let stream = gateway.chat_or_kept(&caller, &request, cache).await?;
        return Ok(super::stream::response(stream, Items::new(shown)));
    }
    let kept = gateway.complete_or_kept(&caller, &request, cache);
    let (reply, info) = kept.await?;
    let reply = shown.response(ended(reply.finish), output(&reply), Some(&reply.usage));
    Ok(told(Json(reply).into_response(), &info))
}

fn request(body: &mut Object) -> Result<ChatRequest, Problem> {
    for field in ["previous_response_id", "conversation", "prompt"] {
        if take(body, field).is_some() {
            return Err(wrong(
                field,
                "is not supported, since nothing is stored: send the whole conversation in `input`",
            ));
        }
    }
    if flag(body, "background")?.unwrap_or_default() {
        return Err(wrong("background", "is not supported: use `stream`"));
    }
    let mut messages = Vec::new();
    if let Some(instructions) = text(body, "instructions")? {
        messages.push(Message::text(Role::System, instructions));
    }
    match take(body, "input") {
        Some(Value::String(text)) => messages.push(Message::text(Role::User, text)),
        Some(Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                read_item(item, &format!("input[{at}]"), &mut messages)?;
            }
        }
        _ => return Err(wrong("input", "must be a string or a list of items")),
    }
    if messages.is_empty() {
        return Err(wrong("input", "must not be empty"));
    }
    let format = match take(body, "text") {
        Some(Value::Object(mut text)) => take(&mut text, "format"),
        _ => None,
    };
    if let Some(format) = format {
        body.insert("response_format".to_owned(), format);
    }
    let max_tokens = count(body, "max_output_tokens")?;
    // Of the chat protocol it is called otherwise.
    if let Some(effort) = take(body, "reasoning").and_then(|mut r| {
        let effort = r.as_object_mut().and_then(|r| take(r, "effort"));
        effort.filter(Value::is_string)
    }) {
        body.insert("reasoning_effort".to_owned(), effort);
    }
    for field in [
        "store",
        "include",
        "truncation",
        "metadata",
        "service_tier",
        "max_tool_calls",
        "stream_options",
    ] {
        body.remove(field);
    }
    let (mut request, _) = read::options(body)?;
    request.messages = messages;
    request.max_tokens = max_tokens;
    body.retain(|_, value| !value.is_null());
    request.extra = std::mem::take(body);
    Ok(request)
}

fn read_item(item: &Value, place: &str, messages: &mut Vec<Message>) -> Result<(), Problem> {
    let field = |field: &str| {
        item[field]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| wrong(&format!("{place}.{field}"), "is missing"))
    };
    match item["type"].as_str() {
        None | Some("message") => {
            let role = match item["role"].as_str() {
                Some("system" | "developer") => Role::System,
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                other => {
                    return Err(wrong(
                        &format!("{place}.role"),
                        format!("{other:?} is none of system, developer, user, assistant"),
                    ));
                }
            };
            let content = match &item["content"] {
                Value::String(text) => vec![Part::text(text.as_str())],
                Value::Array(parts) => parts
                    .iter()
                    .enumerate()
                    .map(|(at, value)| part(value, &format!("{place}.content[{at}]")))
                    .collect::<Result<_, _>>()?,
                _ => {
                    return Err(wrong(
                        &format!("{place}.content"),
                        "must be a string or a list of parts",
                    ));
                }
            };
            messages.push(Message {
                content,
                ..Message::text(role, "")
            });
        }
        Some("function_call") => {
            let call = ToolCall {
                id: field("call_id")?,
                name: field("name")?,
                arguments: field("arguments")?,
            };
            // Calls of one turn belong to one message, with what was said before them.
            match messages.last_mut() {
                Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
                _ => messages.push(Message {
                    content: Vec::new(),
                    tool_calls: vec![call],
                    ..Message::text(Role::Assistant, "")
                }),
            }
        }
        Some("function_call_output") => {
            let output = match &item["output"] {
                Value::String(text) => text.clone(),
                Value::Array(parts) => parts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .collect(),
                _ => {
                    return Err(wrong(
                        &format!("{place}.output"),
                        "must be a string or a list of parts",
                    ));
                }
            };
            messages.push(Message {
                tool_call_id: Some(field("call_id")?),
                ..Message::text(Role::Tool, output)
            });
        }
        // What a model thought in an earlier turn is not needed for the next one.
        Some("reasoning") => {}
        Some(other) => {
            return Err(wrong(
                &format!("{place}.type"),
                format!("`{other}` is none of message, function_call, function_call_output"),
            ));
        }
    }
    Ok(())
}

fn part(value: &Value, place: &str) -> Result<Part, Problem> {
    match (value["type"].as_str(), value["text"].as_str()) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(Part::text(text)),
        (Some("refusal"), _) => Ok(Part::text(value["refusal"].as_str().unwrap_or_default())),
        (Some("input_image"), _) => match value["image_url"].as_str() {
            Some(url) => Ok(Part::Image {
                url: url.to_owned(),
                detail: value["detail"].as_str().map(str::to_owned),
                cache_control: None,
            }),
            None => Err(wrong(&format!("{place}.image_url"), "is missing")),
        },
        (other, _) => Err(wrong(
            &format!("{place}.type"),
            format!("{other:?} is none of input_text, output_text, input_image with their content"),
        )),
    }
}

/// What a response repeats of its request.
struct Shown {
    id: String,
    created_at: i64,
    model: String,
    request: Value,
}

impl Shown {
    fn of(body: &Object) -> Self {
        let field = |field: &str, default: Value| body.get(field).cloned().unwrap_or(default);
        Self {
            id: new_id("resp_"),
            created_at: created(),
            model: String::new(),
            request: json!({
                "instructions": field("instructions", Value::Null),
                "max_output_tokens": field("max_output_tokens", Value::Null),
                "metadata": field("metadata", json!({})),
                "parallel_tool_calls": field("parallel_tool_calls", true.into()),
                "temperature": field("temperature", json!(1.0)),
                "tool_choice": field("tool_choice", "auto".into()),
                "tools": field("tools", json!([])),
                "top_p": field("top_p", json!(1.0)),
                "text": field("text", json!({"format": {"type": "text"}})),
            }),
        }
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Option<&Usage>) -> Value {
        let incomplete = match status {
            "incomplete" => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": null,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "usage": usage.map(|usage| json!({
                "input_tokens": usage.input,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.input + usage.output,
            })),
        });
        if let (Some(response), Some(request)) =
            (response.as_object_mut(), self.request.as_object())
        {
            response.extend(request.clone());
        }
        response
    }
}

fn ended(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::Length) => "incomplete",
        _ => "completed",
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message_item(id: &str, status: &str, content: Vec<Value>) -> Value {
    json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
}

fn call_item(id: &str, status: &str, call: &ToolCall) -> Value {
    json!({"id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
        "arguments": call.arguments})
}

fn output(reply: &ChatReply) -> Vec<Value> {
    let mut items = Vec::new();
    let text = [reply.text.as_str(), reply.refusal.as_str()].concat();
    if !text.is_empty() {
        items.push(message_item(
            &new_id("msg_"),
            "completed",
            vec![text_part(&text)],
        ));
    }
    for call in &reply.tool_calls {
        items.push(call_item(&new_id("fc_"), "completed", call));
    }
    items
}

/// The item that is being written.
enum Open {
    Text {
        id: String,
        text: String,
    },
    Call {
        id: String,
        index: u32,
        call: ToolCall,
    },
}

/// Writes a reply as items.
struct Items {
    shown: Shown,
    number: u64,
    open: Option<Open>,
    done: Vec<Value>,
    finish: Option<FinishReason>,
    usage: Usage,
}

impl Items {
    fn new(shown: Shown) -> Self {
        Self {
            shown,
            number: 0,
            open: None,
            done: Vec::new(),
            finish: None,
            usage: Usage::default(),
        }
    }

    fn write(&mut self, mut event: Value, out: &mut String) {
        event["sequence_number"] = self.number.into();
        self.number += 1;
        named(&event, out);
    }

    fn begin(&mut self, out: &mut String) {
        if self.number > 0 {
            return;
        }
        for kind in ["response.created", "response.in_progress"] {
            let response = self.shown.response("in_progress", Vec::new(), None);
            self.write(json!({"type": kind, "response": response}), out);
        }
    }

    fn add(&mut self, item: Value, out: &mut String) {
        let at = self.done.len();
        self.write(
            json!({"type": "response.output_item.added", "output_index": at, "item": item}),
            out,
        );
    }

    /// Ends the item that is being written.
    fn close(&mut self, out: &mut String) {
        let at = self.done.len();
        let item = match self.open.take() {
            None => return,
            Some(Open::Text { id, text }) => {
                let part = text_part(&text);
                self.write(
                    json!({"type": "response.output_text.done", "item_id": id, "output_index": at,
                    "content_index": 0, "text": text, "logprobs": []}),
                    out,
                );
                self.write(
                    json!({"type": "response.content_part.done", "item_id": id, "output_index": at,
                    "content_index": 0, "part": part}),
                    out,
                );
                message_item(&id, "completed", vec![part])
            }
            Some(Open::Call { id, call, .. }) => {
                self.write(json!({"type": "response.function_call_arguments.done", "item_id": id, "output_index": at,
                    "name": call.name, "arguments": call.arguments}), out);
                call_item(&id, "completed", &call)
            }
        };
        self.write(
            json!({"type": "response.output_item.done", "output_index": at, "item": item}),
            out,
        );
        self.done.push(item);
    }

    fn text(&mut self, piece: &str, out: &mut String) {
        if !matches!(self.open, Some(Open::Text { .. })) {
            self.close(out);
            let (id, at) = (new_id("msg_"), self.done.len());
            self.add(message_item(&id, "in_progress", Vec::new()), out);
            self.write(
                json!({"type": "response.content_part.added", "item_id": id, "output_index": at,
                "content_index": 0, "part": text_part("")}),
                out,
            );
            self.open = Some(Open::Text {
                id,
                text: String::new(),
            });
        }
        let at = self.done.len();
        if let Some(Open::Text { id, text }) = &mut self.open {
            text.push_str(piece);
            let event = json!({"type": "response.output_text.delta", "item_id": id, "output_index": at,
                "content_index": 0, "delta": piece, "logprobs": []});
            self.write(event, out);
        }
    }

    fn call(
        &mut self,
        number: u32,
        id: Option<String>,
        name: Option<String>,
        piece: &str,
        out: &mut String,
    ) {
        if !matches!(&self.open, Some(Open::Call { index, .. }) if *index == number) {
            self.close(out);
            let call = ToolCall {
                id: id.unwrap_or_else(|| new_id("call_")),
                name: name.unwrap_or_default(),
                arguments: String::new(),
            };
            let id = new_id("fc_");
            self.add(call_item(&id, "in_progress", &call), out);
            self.open = Some(Open::Call {
                id,
                index: number,
                call,
            });
        }
        let at = self.done.len();
        if let Some(Open::Call { id, call, .. }) = &mut self.open
            && !piece.is_empty()
        {
            call.arguments.push_str(piece);
            let event = json!({"type": "response.function_call_arguments.delta", "item_id": id, "output_index": at,
                "delta": piece});
            self.write(event, out);
        }
    }
}

impl Writer for Items {
    fn event(&mut self, event: Event, out: &mut String) {
        self.begin(out);
        match event {
            Event::Text { text, .. } | Event::Refusal(text) if !text.is_empty() => {
                self.text(&text, out)
            }
            Event::ToolCall {
                index,
                id,
                name,
                arguments,
            } => self.call(index, id, name, &arguments, out),
            Event::Finish { reason, .. } => self.finish = Some(reason),
            Event::Usage(usage) => self.usage = usage,
            Event::Start { .. }
            | Event::Reasoning { .. }
            | Event::Text { .. }
            | Event::Refusal(_) => {}
        }
    }

    fn end(&mut self, out: &mut String) {
        self.begin(out);
        self.close(out);
        let status = ended(self.finish);
        let done = std::mem::take(&mut self.done);
        let response = self.shown.response(status, done, Some(&self.usage));
        self.write(
            json!({"type": format!("response.{status}"), "response": response}),
            out,
        );
    }

    fn broken(&mut self, error: &LlmError, out: &mut String) {
        self.begin(out);
        self.close(out);
        let done = std::mem::take(&mut self.done);
        let mut response = self.shown.response("failed", done, Some(&self.usage));
        let told = errors::openai_event(error);
        response["error"] =
            json!({"code": told["error"]["code"], "message": told["error"]["message"]});
        self.write(
            json!({"type": "response.failed", "response": response}),
            out,
        );
    }
}
