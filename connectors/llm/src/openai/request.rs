//! A request in OpenAI's words.

use serde_json::{Map, Value, json};

use super::Habits;
use crate::types::{ChatRequest, Dialect, Message, Part, ResponseFormat, Role, Tool, ToolChoice};

/// The body of `chat/completions`.
pub(super) fn body(model: &str, request: &ChatRequest, habits: &Habits) -> Value {
    let mut body = match request.dialect {
        Dialect::OpenAi => request.extra.clone(),
        // Anthropic's words mean nothing here.
        Dialect::Anthropic => Map::new(),
    };
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    set("model", Some(model.into()));
    let messages: Vec<Value> = request.messages.iter().map(message).collect();
    set("messages", Some(messages.into()));
    let temperature = request
        .temperature
        .map(|temperature| temperature.min(habits.temperature_max));
    set("temperature", temperature.map(Value::from));
    set("top_p", request.top_p.map(Value::from));
    set(&habits.max_tokens, request.max_tokens.map(Value::from));
    if !request.stop.is_empty() {
        set("stop", Some(json!(request.stop)));
    }
    if habits.seed {
        set("seed", request.seed.map(Value::from));
    }
    set("user", request.user.as_deref().map(Value::from));
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request.tools.iter().map(tool).collect();
        set("tools", Some(tools.into()));
        set(
            "tool_choice",
            request
                .tool_choice
                .as_ref()
                .map(|choice| tool_choice(choice, habits)),
        );
        set(
            "parallel_tool_calls",
            request.parallel_tool_calls.map(Value::from),
        );
    }
    set(
        "response_format",
        request.response_format.as_ref().map(|format| match format {
            ResponseFormat::Text => json!({"type": "text"}),
            ResponseFormat::Json => json!({"type": "json_object"}),
            ResponseFormat::JsonSchema(schema) => {
                json!({"type": "json_schema", "json_schema": schema})
            }
        }),
    );
    if request.stream {
        set("stream", Some(true.into()));
        // Always: what a call cost is known only so.
        set("stream_options", Some(json!({"include_usage": true})));
    }
    Value::Object(body)
}

fn message(message: &Message) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut body = Map::new();
    body.insert("role".to_owned(), role.into());
    let parts: Vec<Value> = message.content.iter().filter_map(part).collect();
    let only_text = message
        .content
        .iter()
        .all(|part| matches!(part, Part::Text { .. }));
    let content = match message.content.as_slice() {
        // An assistant that only calls functions has said nothing.
        [] if message.role == Role::Assistant => Value::Null,
        // Plain texts are what every server takes.
        [Part::Text { text, .. }] => text.as_str().into(),
        _ if only_text && message.role != Role::User => message.plain().into(),
        _ => parts.into(),
    };
    body.insert("content".to_owned(), content);
    if let Some(name) = &message.name {
        body.insert("name".to_owned(), name.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls: Vec<Value> = message
            .tool_calls
            .iter()
            .map(|call| {
                json!({"id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}})
            })
            .collect();
        body.insert("tool_calls".to_owned(), calls.into());
    }
    if let Some(id) = &message.tool_call_id {
        body.insert("tool_call_id".to_owned(), id.as_str().into());
    }
    Value::Object(body)
}

/// `None` for what only Anthropic understands.
fn part(part: &Part) -> Option<Value> {
    match part {
        Part::Text { text, .. } => Some(json!({"type": "text", "text": text})),
        Part::Image { url, detail, .. } => {
            let mut image = json!({"url": url});
            if let Some(detail) = detail {
                image["detail"] = detail.as_str().into();
            }
            Some(json!({"type": "image_url", "image_url": image}))
        }
        Part::Other(value) => {
            let kind = value["type"].as_str().unwrap_or_default();
            matches!(kind, "input_audio" | "file" | "refusal" | "video_url").then(|| value.clone())
        }
    }
}

fn tool(tool: &Tool) -> Value {
    let mut function = json!({"name": tool.name, "parameters": tool.parameters});
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    json!({"type": "function", "function": function})
}

fn tool_choice(choice: &ToolChoice, habits: &Habits) -> Value {
    match choice {
        ToolChoice::None => "none".into(),
        ToolChoice::Required if habits.tool_choice_required => "required".into(),
        ToolChoice::Auto | ToolChoice::Required => "auto".into(),
        ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ToolCall;

    #[test]
    fn a_request_is_written_as_servers_read_it() {
        let mut request = ChatRequest {
            messages: vec![
                Message::text(Role::System, "Be short."),
                Message {
                    content: vec![
                        Part::text("What is this?"),
                        Part::Image {
                            url: "data:image/png;base64,AA==".into(),
                            detail: None,
                            cache_control: None,
                        },
                        Part::Other(json!({"type": "thinking", "thinking": "hm"})),
                    ],
                    ..Message::text(Role::User, "")
                },
                Message {
                    content: vec![],
                    tool_calls: vec![ToolCall {
                        id: "c1".into(),
                        name: "look".into(),
                        arguments: "{}".into(),
                    }],
                    ..Message::text(Role::Assistant, "")
                },
                Message {
                    tool_call_id: Some("c1".into()),
                    ..Message::text(Role::Tool, "a cat")
                },
            ],
            tools: vec![Tool {
                name: "look".into(),
                description: None,
                parameters: json!({"type": "object"}),
                strict: None,
                cache_control: None,
            }],
            tool_choice: Some(ToolChoice::Required),
            temperature: Some(1.7),
            max_tokens: Some(9),
            seed: Some(3),
            stream: true,
            ..ChatRequest::default()
        };
        request.extra.insert("logit_bias".into(), json!({"5": 1}));
        let body = body("m", &request, &Habits::default());
        assert_eq!(
            body,
            json!({
                "logit_bias": {"5": 1},
                "model": "m",
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
                    {"role": "assistant", "content": null, "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
                    {"role": "tool", "content": "a cat", "tool_call_id": "c1"},
                ],
                "temperature": 1.7,
                "max_tokens": 9,
                "seed": 3,
                "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
                "tool_choice": "required",
                "stream": true,
                "stream_options": {"include_usage": true},
            })
        );
        let habits = Habits {
            max_tokens: "max_completion_tokens".into(),
            temperature_max: 1.0,
            tool_choice_required: false,
            seed: false,
        };
        let body = super::body("m", &request, &habits);
        assert_eq!(body["temperature"], 1.0);
        assert_eq!(body["max_completion_tokens"], 9);
        assert_eq!(body["tool_choice"], "auto");
        assert_eq!(body["seed"], Value::Null);
    }
}
