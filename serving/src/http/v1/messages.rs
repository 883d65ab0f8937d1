//! `POST /v1/messages`: Anthropic's protocol, whoever the provider is.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::{
    ChatReply, ChatRequest, Dialect, Event, FinishReason, LlmError, Message, Part, Role, Tool,
    ToolCall, ToolChoice, Usage,
};

use super::read::{self, Object, count, flag, list, mark, number, stop, take, text, wrong};
use super::stream::{Writer, named};
use super::wish::cache_wish;
use super::{caller, errors, new_id, object, told};
use crate::http::{App, Problem};

pub(super) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut request = request(object(&body)?)?;
    if request.max_tokens.is_none() {
        return Err(wrong("max_tokens", "is missing"));
    }
    let cache = cache_wish(&headers, &mut request)?;
    let gateway = &app.platform.gateway;
    let caller = caller(&app, &principal, &headers);
    let model = super::chat::named(gateway.default_model(), &request);
    if request.stream {
        let stream = gateway.chat_or_kept(&caller, &request, cache).await?;
        return Ok(super::stream::response(stream, Blocks::new(model)));
    }
    let kept = gateway.complete_or_kept(&caller, &request, cache);
    let (reply, info) = kept.await?;
    let reply = Json(message(&reply, &model));
    Ok(told(reply.into_response(), &info))
}

/// What is asked for; whether it says how long the reply may be is for those to check who ask for one.
pub(super) fn request(mut body: Object) -> Result<ChatRequest, Problem> {
    let mut messages = match take(&mut body, "system") {
        None => Vec::new(),
        Some(system) => vec![Message {
            content: parts(system, "system")?,
            ..Message::text(Role::System, "")
        }],
    };
    let turns = list(&mut body, "messages")?;
    if turns.is_empty() {
        return Err(wrong("messages", "must hold at least one message"));
    }
    for (at, turn) in turns.into_iter().enumerate() {
        read_turn(turn, &format!("messages[{at}]"), &mut messages)?;
    }
    let choice = take(&mut body, "tool_choice");
    let parallel = choice
        .as_ref()
        .and_then(|choice| choice["disable_parallel_tool_use"].as_bool())
        .map(|disabled| !disabled);
    let user = body
        .get("metadata")
        .and_then(|metadata| metadata["user_id"].as_str())
        .map(str::to_owned);
    let mut request = ChatRequest {
        model: text(&mut body, "model")?.unwrap_or_default(),
        messages,
        tools: list(&mut body, "tools")?
            .into_iter()
            .enumerate()
            .map(|(at, value)| tool(&value, &format!("tools[{at}]")))
            .collect::<Result<_, _>>()?,
        tool_choice: choice.map(|choice| tool_choice(&choice)).transpose()?,
        parallel_tool_calls: parallel,
        response_format: None,
        temperature: read::temperature(&mut body, 1.0)?,
        top_p: number(&mut body, "top_p")?,
        max_tokens: count(&mut body, "max_tokens")?,
        stop: stop(&mut body, "stop_sequences")?,
        seed: None,
        user,
        stream: flag(&mut body, "stream")?.unwrap_or_default(),
        dialect: Dialect::Anthropic,
        extra: Object::new(),
    };
    body.retain(|_, value| !value.is_null());
    request.extra = body;
    Ok(request)
}

/// One turn may be several messages: results of tools are messages of their own.
fn read_turn(turn: Value, place: &str, messages: &mut Vec<Message>) -> Result<(), Problem> {
    let role = match turn["role"].as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        other => {
            return Err(wrong(
                &format!("{place}.role"),
                format!("{other:?} is neither user nor assistant"),
            ));
        }
    };
    let place = format!("{place}.content");
    let blocks = match &turn["content"] {
        Value::String(text) => {
            messages.push(Message::text(role, text.as_str()));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        _ => return Err(wrong(&place, "must be a string or a list of blocks")),
    };
    let mut rest = Message {
        content: Vec::new(),
        ..Message::text(role, "")
    };
    for (at, block) in blocks.iter().enumerate() {
        let place = format!("{place}[{at}]");
        match block["type"].as_str() {
            Some("tool_result") => {
                let id = block["tool_use_id"]
                    .as_str()
                    .ok_or_else(|| wrong(&format!("{place}.tool_use_id"), "is missing"))?;
                let content = match &block["content"] {
                    Value::Null => vec![Part::text("")],
                    content => parts(content.clone(), &format!("{place}.content"))?,
                };
                messages.push(Message {
                    content,
                    tool_call_id: Some(id.to_owned()),
                    cache_control: mark(block),
                    ..Message::text(Role::Tool, "")
                });
            }
            Some("tool_use") => {
                let part = |field: &str| {
                    block[field]
                        .as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| wrong(&format!("{place}.{field}"), "is missing"))
                };
                rest.tool_calls.push(ToolCall {
                    id: part("id")?,
                    name: part("name")?,
                    arguments: block["input"].to_string(),
                });
                rest.cache_control = mark(block).or(rest.cache_control.take());
            }
            _ => rest.content.push(part(block, &place)?),
        }
    }
    if !rest.content.is_empty() || !rest.tool_calls.is_empty() {
        messages.push(rest);
    }
    Ok(())
}

fn parts(content: Value, place: &str) -> Result<Vec<Part>, Problem> {
    match content {
        Value::String(text) => Ok(vec![Part::text(text)]),
        Value::Array(blocks) => blocks
            .iter()
            .enumerate()
            .map(|(at, block)| part(block, &format!("{place}[{at}]")))
            .collect(),
        _ => Err(wrong(place, "must be a string or a list of blocks")),
    }
}

fn part(block: &Value, place: &str) -> Result<Part, Problem> {
    match block["type"].as_str() {
        Some("text") => match &block["text"] {
            Value::String(text) => Ok(Part::Text {
                text: text.clone(),
                cache_control: mark(block),
            }),
            _ => Err(wrong(&format!("{place}.text"), "must be a string")),
        },
        Some("image") => {
            let source = &block["source"];
            let text = |field: &str| source[field].as_str().unwrap_or_default();
            let url = match source["type"].as_str() {
                Some("base64") => format!("data:{};base64,{}", text("media_type"), text("data")),
                Some("url") => text("url").to_owned(),
                other => {
                    return Err(wrong(
                        &format!("{place}.source.type"),
                        format!("{other:?} is neither base64 nor url"),
                    ));
                }
            };
            Ok(Part::Image {
                url,
                detail: None,
                cache_control: mark(block),
            })
        }
        // Thinking that a provider signed, documents and the like: only that provider reads them.
        Some(_) => Ok(Part::Other(block.clone())),
        None => Err(wrong(&format!("{place}.type"), "is missing")),
    }
}

fn tool(value: &Value, place: &str) -> Result<Tool, Problem> {
    if let Some(kind) = value["type"].as_str()
        && kind != "custom"
    {
        return Err(wrong(
            &format!("{place}.type"),
            format!(
                "`{kind}` runs at the provider and is not supported: only tools with an `input_schema` are"
            ),
        ));
    }
    let name = value["name"]
        .as_str()
        .ok_or_else(|| wrong(&format!("{place}.name"), "is missing"))?;
    if !value["input_schema"].is_object() {
        return Err(wrong(&format!("{place}.input_schema"), "must be an object"));
    }
    Ok(Tool {
        name: name.to_owned(),
        description: value["description"].as_str().map(str::to_owned),
        parameters: value["input_schema"].clone(),
        strict: None,
        cache_control: mark(value),
    })
}

fn tool_choice(choice: &Value) -> Result<ToolChoice, Problem> {
    match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("any"), _) => Ok(ToolChoice::Required),
        (Some("tool"), Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
        _ => Err(wrong(
            "tool_choice.type",
            "must be auto, any, none, or tool with a `name`",
        )),
    }
}

fn stop_reason(finish: Option<FinishReason>, stop: Option<&str>) -> &'static str {
    match finish {
        Some(FinishReason::Length) => "max_tokens",
        Some(FinishReason::ToolCalls) => "tool_use",
        Some(FinishReason::ContentFilter) => "refusal",
        Some(FinishReason::Stop) | None if stop.is_some() => "stop_sequence",
        Some(FinishReason::Stop) | None => "end_turn",
    }
}

/// Anthropic's `input_tokens` are those that were neither in the cache nor put there.
fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input.saturating_sub(usage.cached + usage.cache_write),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.cache_write,
        "output_tokens": usage.output,
    })
}

/// Arguments as the object that the protocol wants.
fn input(arguments: &str) -> Value {
    serde_json::from_str(arguments)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}))
}

fn message(reply: &ChatReply, model: &str) -> Value {
    let mut content = Vec::new();
    if !reply.reasoning.is_empty() || reply.signature.is_some() {
        content.push(json!({"type": "thinking", "thinking": reply.reasoning,
            "signature": reply.signature.as_deref().unwrap_or_default()}));
    }
    let text = [reply.text.as_str(), reply.refusal.as_str()].concat();
    if !text.is_empty() {
        content.push(json!({"type": "text", "text": text}));
    }
    for call in &reply.tool_calls {
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input(&call.arguments)}));
    }
    json!({
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(reply.finish, reply.stop.as_deref()),
        "stop_sequence": reply.stop,
        "usage": usage(&reply.usage),
    })
}

/// What kind of block is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    Tool(u32),
}

/// Writes a reply as blocks.
struct Blocks {
    model: String,
    begun: bool,
    open: Option<Block>,
    /// How many have been begun.
    blocks: u32,
    finish: Option<FinishReason>,
    stop: Option<String>,
    usage: Usage,
}

impl Blocks {
    fn new(model: String) -> Self {
        Self {
            model,
            begun: false,
            open: None,
            blocks: 0,
            finish: None,
            stop: None,
            usage: Usage::default(),
        }
    }

    fn begin(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let start = json!({"type": "message_start", "message": {
            "id": new_id("msg_"), "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage(&self.usage)}});
        named(&start, out);
    }

    fn close(&mut self, out: &mut String) {
        if self.open.take().is_some() {
            let index = self.blocks - 1;
            named(&json!({"type": "content_block_stop", "index": index}), out);
        }
    }

    /// Goes on with a block of this kind, or begins one.
    fn block(&mut self, block: Block, content: Value, out: &mut String) {
        if self.open == Some(block) {
            return;
        }
        self.close(out);
        let index = self.blocks;
        named(
            &json!({"type": "content_block_start", "index": index, "content_block": content}),
            out,
        );
        self.open = Some(block);
        self.blocks += 1;
    }

    fn delta(&self, delta: Value, out: &mut String) {
        let index = self.blocks.saturating_sub(1);
        named(
            &json!({"type": "content_block_delta", "index": index, "delta": delta}),
            out,
        );
    }
}

impl Writer for Blocks {
    fn event(&mut self, event: Event, out: &mut String) {
        match event {
            // What is known of the tokens goes into the first event.
            Event::Start { .. } => {}
            Event::Usage(usage) => self.usage = usage,
            Event::Text { text, .. } | Event::Refusal(text) => {
                if text.is_empty() {
                    return;
                }
                self.begin(out);
                self.block(Block::Text, json!({"type": "text", "text": ""}), out);
                self.delta(json!({"type": "text_delta", "text": text}), out);
            }
            Event::Reasoning { text, signature } => {
                self.begin(out);
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.block(Block::Thinking, block, out);
                if !text.is_empty() {
                    self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
                }
                if let Some(signature) = signature {
                    self.delta(
                        json!({"type": "signature_delta", "signature": signature}),
                        out,
                    );
                }
            }
            Event::ToolCall {
                index,
                id,
                name,
                arguments,
            } => {
                self.begin(out);
                let block = json!({"type": "tool_use", "id": id.unwrap_or_else(|| new_id("toolu_")),
                    "name": name.unwrap_or_default(), "input": {}});
                self.block(Block::Tool(index), block, out);
                if !arguments.is_empty() {
                    self.delta(
                        json!({"type": "input_json_delta", "partial_json": arguments}),
                        out,
                    );
                }
            }
            Event::Finish { reason, stop } => {
                self.finish = Some(reason);
                self.stop = stop;
            }
        }
    }

    fn end(&mut self, out: &mut String) {
        self.begin(out);
        self.close(out);
        let delta = json!({"stop_reason": stop_reason(self.finish, self.stop.as_deref()), "stop_sequence": self.stop});
        named(
            &json!({"type": "message_delta", "delta": delta, "usage": usage(&self.usage)}),
            out,
        );
        named(&json!({"type": "message_stop"}), out);
    }

    fn broken(&mut self, error: &LlmError, out: &mut String) {
        self.begin(out);
        named(&errors::anthropic_event(error), out);
    }

    fn heartbeat(&self) -> &'static str {
        "event: ping\ndata: {\"type\": \"ping\"}\n\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_with_tools_is_read() {
        let Value::Object(body) = json!({
            "model": "m", "max_tokens": 50, "system": [{"type": "text", "text": "short", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "content": [{"type": "text", "text": "let me see"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                    {"type": "text", "text": "and tomorrow?"}]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "metadata": {"user_id": "ann"}, "top_k": 5,
        }) else {
            panic!("an object");
        };
        let request = request(body).expect("a request");
        let roles: Vec<_> = request
            .messages
            .iter()
            .map(|message| message.role)
            .collect();
        assert_eq!(
            roles,
            [
                Role::System,
                Role::User,
                Role::Assistant,
                Role::Tool,
                Role::User
            ]
        );
        assert_eq!(
            request.messages[2].tool_calls[0].arguments,
            r#"{"city":"Paris"}"#
        );
        assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("t1"));
        assert_eq!(request.tool_choice, Some(ToolChoice::Required));
        assert_eq!(request.parallel_tool_calls, Some(false));
        assert_eq!(request.user.as_deref(), Some("ann"));
        assert_eq!(
            request.extra.keys().collect::<Vec<_>>(),
            ["metadata", "top_k"]
        );
    }

    #[test]
    fn a_stream_reads_as_anthropics() {
        let mut blocks = Blocks::new("m".into());
        let mut out = String::new();
        for event in [
            Event::Usage(Usage {
                input: 9,
                cached: 4,
                ..Usage::default()
            }),
            Event::Reasoning {
                text: "hm".into(),
                signature: None,
            },
            Event::Text {
                text: "a".into(),
                logprobs: None,
            },
            Event::Text {
                text: "b".into(),
                logprobs: None,
            },
            Event::ToolCall {
                index: 0,
                id: Some("t".into()),
                name: Some("f".into()),
                arguments: String::new(),
            },
            Event::ToolCall {
                index: 0,
                id: None,
                name: None,
                arguments: "{\"x\":1}".into(),
            },
            Event::Finish {
                reason: FinishReason::ToolCalls,
                stop: None,
            },
            Event::Usage(Usage {
                input: 9,
                cached: 4,
                output: 7,
                ..Usage::default()
            }),
        ] {
            blocks.event(event, &mut out);
        }
        blocks.end(&mut out);
        let events: Vec<Value> = out
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let kinds: Vec<_> = events
            .iter()
            .map(|event| event["type"].as_str().expect("a type"))
            .collect();
        assert_eq!(
            kinds,
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "content_block_start",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 5);
        assert_eq!(events[9]["delta"]["partial_json"], "{\"x\":1}");
        assert_eq!(events[9]["index"], 2);
        assert_eq!(events[11]["delta"]["stop_reason"], "tool_use");
        assert_eq!(events[11]["usage"]["output_tokens"], 7);
    }
}
