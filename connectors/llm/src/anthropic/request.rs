//! A request in Anthropic's words.

use serde_json::{Map, Value, json};

use super::JSON_FUNCTION;
use crate::provider::Call;
use crate::types::{ChatRequest, Dialect, Message, Part, ResponseFormat, Role, Tool, ToolChoice};

/// The reply's length where neither request nor deployment say it; the protocol wants one.
const MAX_TOKENS: u32 = 4_096;

/// What counting tokens takes; it refuses other fields.
const COUNTED: &[&str] = &[
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
];

/// Whether the reply's text has to be made of a function's arguments.
pub(super) fn asks_json(request: &ChatRequest) -> bool {
    request.tools.is_empty()
        && matches!(
            request.response_format,
            Some(ResponseFormat::Json | ResponseFormat::JsonSchema(_))
        )
}

/// The body of `/v1/messages`.
pub(super) fn body(call: Call<'_>, request: &ChatRequest) -> Value {
    let mut body = match request.dialect {
        Dialect::Anthropic => request.extra.clone(),
        // OpenAI's words mean nothing here.
        Dialect::OpenAi => Map::new(),
    };
    let mut set = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    set("model", call.model.into());
    let longest = request
        .max_tokens
        .or(call.output_tokens_max)
        .unwrap_or(MAX_TOKENS);
    set("max_tokens", longest.into());
    let system: Vec<Value> = request
        .messages
        .iter()
        .filter(|message| message.role == Role::System)
        .flat_map(|message| message.content.iter().filter_map(part))
        .collect();
    if !system.is_empty() {
        set("system", system.into());
    }
    set("messages", messages(&request.messages).into());
    if let Some(temperature) = request.temperature {
        set("temperature", temperature.min(1.0).into());
    }
    if let Some(top_p) = request.top_p {
        set("top_p", top_p.into());
    }
    if !request.stop.is_empty() {
        set("stop_sequences", json!(request.stop));
    }
    if let Some(user) = &request.user
        && request.dialect == Dialect::OpenAi
    {
        set("metadata", json!({"user_id": user}));
    }
    if asks_json(request) {
        let schema = match &request.response_format {
            Some(ResponseFormat::JsonSchema(format)) => format["schema"].clone(),
            _ => json!({"type": "object"}),
        };
        set(
            "tools",
            json!([{"name": JSON_FUNCTION, "input_schema": schema,
                "description": "Gives the reply. Call it exactly once, with the whole reply."}]),
        );
        set(
            "tool_choice",
            json!({"type": "tool", "name": JSON_FUNCTION}),
        );
    } else if !request.tools.is_empty() {
        let tools: Vec<Value> = request.tools.iter().map(tool).collect();
        set("tools", tools.into());
        if let Some(choice) = tool_choice(request) {
            set("tool_choice", choice);
        }
    }
    if request.stream {
        set("stream", true.into());
    }
    Value::Object(body)
}

/// The body of `/v1/messages/count_tokens`: what of a request has tokens.
pub(super) fn count_body(call: Call<'_>, request: &ChatRequest) -> Value {
    let mut body = body(call, request);
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|name, _| COUNTED.contains(&name.as_str()));
    }
    body
}

/// Messages in turns: results of functions are the user's, and what one side says in a row is one message.
fn messages(messages: &[Message]) -> Vec<Value> {
    let mut turns: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for message in messages {
        let (role, parts) = match message.role {
            Role::System => continue,
            Role::User => ("user", message.content.iter().filter_map(part).collect()),
            Role::Assistant => ("assistant", assistant(message)),
            Role::Tool => ("user", vec![tool_result(message)]),
        };
        match turns.last_mut() {
            Some((last, content)) if *last == role => content.extend(parts),
            _ => turns.push((role, parts)),
        }
    }
    turns
        .into_iter()
        .filter(|(_, content)| !content.is_empty())
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect()
}

fn assistant(message: &Message) -> Vec<Value> {
    let mut parts: Vec<Value> = message.content.iter().filter_map(part).collect();
    for call in &message.tool_calls {
        // What a model wrote as arguments may be no JSON; the protocol takes objects only.
        let input = serde_json::from_str(&call.arguments)
            .ok()
            .filter(Value::is_object)
            .unwrap_or_else(|| json!({}));
        parts.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    if let Some(last) = parts.pop() {
        parts.push(marked(last, message.cache_control.as_ref()));
    }
    parts
}

fn tool_result(message: &Message) -> Value {
    let content: Vec<Value> = message.content.iter().filter_map(part).collect();
    let value =
        json!({"type": "tool_result", "tool_use_id": message.tool_call_id, "content": content});
    marked(value, message.cache_control.as_ref())
}

/// `None` for an empty text, which the protocol refuses, and for what only OpenAI understands.
fn part(part: &Part) -> Option<Value> {
    match part {
        Part::Text { text, .. } if text.is_empty() => None,
        Part::Text {
            text,
            cache_control,
        } => {
            let value = json!({"type": "text", "text": text});
            Some(marked(value, cache_control.as_ref()))
        }
        Part::Image {
            url, cache_control, ..
        } => {
            let value = json!({"type": "image", "source": image(url)});
            Some(marked(value, cache_control.as_ref()))
        }
        Part::Other(value) => {
            let kind = value["type"].as_str().unwrap_or_default();
            (!matches!(kind, "input_audio" | "file" | "refusal" | "video_url"))
                .then(|| value.clone())
        }
    }
}

fn image(url: &str) -> Value {
    let inline = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(";base64,"));
    match inline {
        Some((kind, data)) => json!({"type": "base64", "media_type": kind, "data": data}),
        None => json!({"type": "url", "url": url}),
    }
}

fn tool(tool: &Tool) -> Value {
    let mut value = json!({"name": tool.name, "input_schema": tool.parameters});
    if let Some(description) = &tool.description {
        value["description"] = description.as_str().into();
    }
    marked(value, tool.cache_control.as_ref())
}

/// The block with the mark of the cache, if it has one.
fn marked(mut block: Value, cache_control: Option<&Value>) -> Value {
    if let Some(cache_control) = cache_control {
        block["cache_control"] = cache_control.clone();
    }
    block
}

fn tool_choice(request: &ChatRequest) -> Option<Value> {
    let mut choice = match request.tool_choice.as_ref() {
        None if request.parallel_tool_calls == Some(false) => json!({"type": "auto"}),
        None => return None,
        Some(ToolChoice::Auto) => json!({"type": "auto"}),
        Some(ToolChoice::None) => return Some(json!({"type": "none"})),
        Some(ToolChoice::Required) => json!({"type": "any"}),
        Some(ToolChoice::Named(name)) => json!({"type": "tool", "name": name}),
    };
    if request.parallel_tool_calls == Some(false) {
        choice["disable_parallel_tool_use"] = true.into();
    }
    Some(choice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ToolCall;

    const CALL: Call<'static> = Call {
        model: "m",
        output_tokens_max: Some(100),
    };

    #[test]
    fn turns_system_functions_and_pictures() {
        let request = ChatRequest {
            messages: vec![
                Message::text(Role::System, "Be short."),
                Message {
                    content: vec![
                        Part::text("Weather here?"),
                        Part::Image {
                            url: "data:image/png;base64,AA==".into(),
                            detail: None,
                            cache_control: None,
                        },
                    ],
                    ..Message::text(Role::User, "")
                },
                Message {
                    tool_calls: vec![ToolCall {
                        id: "c1".into(),
                        name: "weather".into(),
                        arguments: "{\"city\":\"Paris\"}".into(),
                    }],
                    ..Message::text(Role::Assistant, "")
                },
                Message {
                    tool_call_id: Some("c1".into()),
                    ..Message::text(Role::Tool, "rain")
                },
                Message::text(Role::User, "And tomorrow?"),
            ],
            tools: vec![Tool {
                name: "weather".into(),
                description: Some("of a city".into()),
                parameters: json!({"type": "object"}),
                strict: None,
                cache_control: None,
            }],
            tool_choice: Some(ToolChoice::Required),
            parallel_tool_calls: Some(false),
            temperature: Some(1.5),
            stop: vec!["END".into()],
            user: Some("ann".into()),
            stream: true,
            ..ChatRequest::default()
        };
        assert_eq!(
            body(CALL, &request),
            json!({
                "model": "m",
                "max_tokens": 100,
                "system": [{"type": "text", "text": "Be short."}],
                "messages": [
                    {"role": "user", "content": [
                        {"type": "text", "text": "Weather here?"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]},
                    {"role": "assistant", "content": [
                        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                        {"type": "text", "text": "And tomorrow?"}]},
                ],
                "temperature": 1.0,
                "stop_sequences": ["END"],
                "metadata": {"user_id": "ann"},
                "tools": [{"name": "weather", "input_schema": {"type": "object"}, "description": "of a city"}],
                "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
                "stream": true,
            })
        );
    }

    #[test]
    fn json_is_asked_for_as_a_function() {
        let request = ChatRequest {
            messages: vec![Message::text(Role::User, "Name a city.")],
            response_format: Some(ResponseFormat::JsonSchema(
                json!({"name": "city", "schema": {"type": "object", "required": ["city"]}}),
            )),
            ..ChatRequest::default()
        };
        let body = body(CALL, &request);
        assert_eq!(body["tools"][0]["input_schema"]["required"][0], "city");
        assert_eq!(body["tool_choice"]["name"], JSON_FUNCTION);
    }

    #[test]
    fn marks_of_the_cache_stay_where_they_were() {
        let mark = json!({"type": "ephemeral"});
        let request = ChatRequest {
            messages: vec![
                Message {
                    content: vec![Part::Text {
                        text: "Long rules.".into(),
                        cache_control: Some(mark.clone()),
                    }],
                    ..Message::text(Role::System, "")
                },
                Message {
                    content: vec![Part::Image {
                        url: "https://x/y.png".into(),
                        detail: None,
                        cache_control: Some(mark.clone()),
                    }],
                    ..Message::text(Role::User, "")
                },
                Message {
                    tool_calls: vec![ToolCall {
                        id: "c1".into(),
                        name: "f".into(),
                        arguments: "{}".into(),
                    }],
                    cache_control: Some(mark.clone()),
                    ..Message::text(Role::Assistant, "Let me see.")
                },
                Message {
                    tool_call_id: Some("c1".into()),
                    cache_control: Some(json!({"type": "ephemeral", "ttl": "1h"})),
                    ..Message::text(Role::Tool, "rain")
                },
            ],
            stop: vec!["END".into()],
            stream: true,
            ..ChatRequest::default()
        };
        let written = body(CALL, &request);
        assert_eq!(written["system"][0]["cache_control"], mark);
        let block = |turn: usize, at: usize| &written["messages"][turn]["content"][at];
        assert_eq!(block(0, 0)["cache_control"], mark);
        assert_eq!(block(1, 0)["cache_control"], Value::Null);
        assert_eq!(block(1, 1)["type"], "tool_use");
        assert_eq!(block(1, 1)["cache_control"], mark);
        assert_eq!(block(2, 0)["cache_control"]["ttl"], "1h");

        let counted = count_body(CALL, &request);
        let fields: Vec<&String> = counted.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["model", "system", "messages"]);
    }
}
