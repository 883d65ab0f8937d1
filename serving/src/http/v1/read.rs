//! Requests in OpenAI's words into what the gateway takes.
//!
//! What is wrong is told with the place (`param`); what is not known here is handed on to providers of the same protocol.

use serde_json::{Map, Value};
use va_llm::{
    ChatRequest, Dialect, Message, Part, ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};

use crate::http::Problem;

pub(super) type Object = Map<String, Value>;

/// A request that is wrong at a place.
pub(super) fn wrong(param: &str, why: impl std::fmt::Display) -> Problem {
    Problem::invalid(format!("`{param}`: {why}")).with("param", param.into())
}

/// A field that is there and not null.
pub(super) fn take(object: &mut Object, field: &str) -> Option<Value> {
    object.remove(field).filter(|value| !value.is_null())
}

pub(super) fn text(object: &mut Object, field: &str) -> Result<Option<String>, Problem> {
    match take(object, field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong(field, "must be a string")),
    }
}

pub(super) fn flag(object: &mut Object, field: &str) -> Result<Option<bool>, Problem> {
    match take(object, field) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(_) => Err(wrong(field, "must be true or false")),
    }
}

pub(super) fn number(object: &mut Object, field: &str) -> Result<Option<f64>, Problem> {
    match take(object, field) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| wrong(field, "must be a number")),
    }
}

/// A number from 1 on.
pub(super) fn count(object: &mut Object, field: &str) -> Result<Option<u32>, Problem> {
    match take(object, field) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number > 0)
            .map(Some)
            .ok_or_else(|| wrong(field, "must be a whole number from 1 on")),
    }
}

pub(super) fn list(object: &mut Object, field: &str) -> Result<Vec<Value>, Problem> {
    match take(object, field) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(wrong(field, "must be a list")),
    }
}

/// Temperature within 0 and `most`.
pub(super) fn temperature(object: &mut Object, most: f64) -> Result<Option<f64>, Problem> {
    match number(object, "temperature")? {
        Some(value) if !(0.0..=most).contains(&value) => Err(wrong(
            "temperature",
            format!("{value} is not within 0 and {most}"),
        )),
        value => Ok(value),
    }
}

/// One text or several.
pub(super) fn stop(object: &mut Object, field: &str) -> Result<Vec<String>, Problem> {
    match take(object, field) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|text| match text {
                Value::String(text) => Ok(text),
                _ => Err(wrong(field, "must be strings")),
            })
            .collect(),
        Some(_) => Err(wrong(field, "must be a string or a list of strings")),
    }
}

/// What a chat request asks of the reply's form, beside the request itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wishes {
    pub include_usage: bool,
}

/// Everything but the messages, which are already taken.
pub(super) fn options(object: &mut Object) -> Result<(ChatRequest, Wishes), Problem> {
    if let Some(n) = take(object, "n")
        && n != 1
    {
        return Err(wrong(
            "n",
            "only 1 reply at a time is given: ask again for more",
        ));
    }
    for (old, new) in [("functions", "tools"), ("function_call", "tool_choice")] {
        if take(object, old).is_some() {
            return Err(wrong(
                old,
                format!("is not supported any more: use `{new}`"),
            ));
        }
    }
    let wishes = match take(object, "stream_options") {
        Some(Value::Object(mut options)) => Wishes {
            include_usage: flag(&mut options, "include_usage")?.unwrap_or_default(),
        },
        Some(_) => return Err(wrong("stream_options", "must be an object")),
        None => Wishes::default(),
    };
    let completion = count(object, "max_completion_tokens")?;
    let max_tokens = completion.or(count(object, "max_tokens")?);
    let request = ChatRequest {
        model: text(object, "model")?.unwrap_or_default(),
        messages: Vec::new(),
        tools: tools(list(object, "tools")?)?,
        tool_choice: take(object, "tool_choice").map(tool_choice).transpose()?,
        parallel_tool_calls: flag(object, "parallel_tool_calls")?,
        response_format: take(object, "response_format")
            .map(response_format)
            .transpose()?,
        temperature: temperature(object, 2.0)?,
        top_p: number(object, "top_p")?,
        max_tokens,
        stop: stop(object, "stop")?,
        seed: number(object, "seed")?.map(|seed| seed as i64),
        user: text(object, "user")?,
        stream: flag(object, "stream")?.unwrap_or_default(),
        dialect: Dialect::OpenAi,
        extra: Map::new(),
    };
    Ok((request, wishes))
}

/// The body of `/v1/chat/completions`.
pub(super) fn chat(mut object: Object) -> Result<(ChatRequest, Wishes), Problem> {
    let messages = list(&mut object, "messages")?;
    if messages.is_empty() {
        return Err(wrong("messages", "must hold at least one message"));
    }
    let (mut request, wishes) = options(&mut object)?;
    request.messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, value)| message(value, &format!("messages[{at}]")))
        .collect::<Result<_, _>>()?;
    object.retain(|_, value| !value.is_null());
    request.extra = object;
    Ok((request, wishes))
}

fn message(value: Value, place: &str) -> Result<Message, Problem> {
    let Value::Object(mut value) = value else {
        return Err(wrong(place, "must be an object"));
    };
    let role = match value.remove("role").as_ref().and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        other => {
            return Err(wrong(
                &format!("{place}.role"),
                format!("{other:?} is none of system, developer, user, assistant, tool"),
            ));
        }
    };
    let content = match take(&mut value, "content") {
        None if role == Role::Assistant => Vec::new(),
        None => return Err(wrong(&format!("{place}.content"), "is missing")),
        Some(content) => parts(content, &format!("{place}.content"))?,
    };
    let tool_calls = list(&mut value, "tool_calls")?
        .into_iter()
        .enumerate()
        .map(|(at, call)| tool_call(&call, &format!("{place}.tool_calls[{at}]")))
        .collect::<Result<_, _>>()?;
    let tool_call_id = text(&mut value, "tool_call_id")?;
    if role == Role::Tool && tool_call_id.is_none() {
        return Err(wrong(&format!("{place}.tool_call_id"), "is missing"));
    }
    Ok(Message {
        role,
        content,
        name: text(&mut value, "name")?,
        tool_calls,
        tool_call_id,
        cache_control: take(&mut value, "cache_control").filter(Value::is_object),
    })
}

/// Anthropic's mark of the cache, which its clients set and other programs between send in OpenAI's words too.
pub(super) fn mark(value: &Value) -> Option<Value> {
    Some(value["cache_control"].clone()).filter(Value::is_object)
}

/// A text or a list of parts.
fn parts(content: Value, place: &str) -> Result<Vec<Part>, Problem> {
    match content {
        Value::String(text) => Ok(vec![Part::text(text)]),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(at, value)| part(value, &format!("{place}[{at}]")))
            .collect(),
        _ => Err(wrong(place, "must be a string or a list of parts")),
    }
}

fn part(value: Value, place: &str) -> Result<Part, Problem> {
    match value["type"].as_str() {
        Some("text") => match &value["text"] {
            Value::String(text) => Ok(Part::Text {
                text: text.clone(),
                cache_control: mark(&value),
            }),
            _ => Err(wrong(&format!("{place}.text"), "must be a string")),
        },
        Some("image_url") => {
            let image = &value["image_url"];
            let url = image.as_str().or_else(|| image["url"].as_str());
            let url = url.ok_or_else(|| wrong(&format!("{place}.image_url.url"), "is missing"))?;
            Ok(Part::Image {
                url: url.to_owned(),
                detail: image["detail"].as_str().map(str::to_owned),
                cache_control: mark(&value),
            })
        }
        Some("input_audio" | "file" | "refusal" | "video_url") => Ok(Part::Other(value)),
        other => Err(wrong(
            &format!("{place}.type"),
            format!("{other:?} is none of text, image_url, input_audio, file"),
        )),
    }
}

fn tool_call(call: &Value, place: &str) -> Result<ToolCall, Problem> {
    let part = |value: &Value, name: &str| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| wrong(&format!("{place}.{name}"), "must be a string"))
    };
    Ok(ToolCall {
        id: part(&call["id"], "id")?,
        name: part(&call["function"]["name"], "function.name")?,
        arguments: part(&call["function"]["arguments"], "function.arguments")?,
    })
}

/// Tools, nested as in chat or flat as in responses.
pub(super) fn tools(list: Vec<Value>) -> Result<Vec<Tool>, Problem> {
    let tool = |(at, value): (usize, Value)| {
        let place = format!("tools[{at}]");
        if value["type"] != "function" {
            return Err(wrong(
                &format!("{place}.type"),
                format!("{} is not supported: only `function` is", value["type"]),
            ));
        }
        let function = match &value["function"] {
            Value::Null => &value,
            function => function,
        };
        let name = function["name"]
            .as_str()
            .ok_or_else(|| wrong(&format!("{place}.function.name"), "is missing"))?;
        Ok(Tool {
            name: name.to_owned(),
            description: function["description"].as_str().map(str::to_owned),
            parameters: match &function["parameters"] {
                Value::Null => serde_json::json!({"type": "object", "properties": {}}),
                parameters => parameters.clone(),
            },
            strict: function["strict"].as_bool(),
            cache_control: mark(&value),
        })
    };
    list.into_iter().enumerate().map(tool).collect()
}

pub(super) fn tool_choice(value: Value) -> Result<ToolChoice, Problem> {
    match value.as_str() {
        Some("auto") => return Ok(ToolChoice::Auto),
        Some("none") => return Ok(ToolChoice::None),
        Some("required") => return Ok(ToolChoice::Required),
        _ => {}
    }
    let name = value["function"]["name"]
        .as_str()
        .or_else(|| value["name"].as_str());
    name.map(|name| ToolChoice::Named(name.to_owned()))
        .ok_or_else(|| {
            wrong(
                "tool_choice",
                "must be `auto`, `none`, `required`, or a function with its `name`",
            )
        })
}

/// `response_format` of chat; `text.format` of responses has the schema's fields beside the type.
pub(super) fn response_format(value: Value) -> Result<ResponseFormat, Problem> {
    match value["type"].as_str() {
        Some("text") => Ok(ResponseFormat::Text),
        Some("json_object") => Ok(ResponseFormat::Json),
        Some("json_schema") if value["json_schema"]["schema"].is_object() => {
            Ok(ResponseFormat::JsonSchema(value["json_schema"].clone()))
        }
        Some("json_schema") if value["schema"].is_object() => {
            let mut schema = value;
            if let Some(fields) = schema.as_object_mut() {
                fields.remove("type");
            }
            Ok(ResponseFormat::JsonSchema(schema))
        }
        Some("json_schema") => Err(wrong("response_format.json_schema.schema", "is missing")),
        other => Err(wrong(
            "response_format.type",
            format!("{other:?} is none of text, json_object, json_schema"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ChatRequest, String> {
        let Value::Object(object) = value else {
            panic!("an object");
        };
        chat(object)
            .map(|(request, _)| request)
            .map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn a_request_is_read_and_what_is_unknown_is_kept() {
        let request = read(json!({
            "model": "m",
            "messages": [
                {"role": "developer", "content": "short"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "b"},
            ],
            "stop": "x", "max_completion_tokens": 5, "max_tokens": 9, "seed": 7, "logit_bias": {"1": 2}, "metadata": null,
            "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto",
        }))
        .expect("a request");
        assert_eq!(request.messages.len(), 4);
        assert_eq!(request.messages[0].role, Role::System);
        assert_eq!((request.max_tokens, request.stream), (Some(5), false));
        assert_eq!(request.stop, ["x"]);
        assert_eq!(request.extra.keys().collect::<Vec<_>>(), ["logit_bias"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let user = json!({"role": "user", "content": "x"});
        for (body, part) in [
            (json!({}), "`messages`: must hold"),
            (json!({"messages": "x"}), "`messages`: must be a list"),
            (
                json!({"messages": ["x"]}),
                "`messages[0]`: must be an object",
            ),
            (
                json!({"messages": [{"role": "robot", "content": "x"}]}),
                "`messages[0].role`",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "`messages[0].content`: is missing",
            ),
            (
                json!({"messages": [{"role": "user", "content": 5}]}),
                "`messages[0].content`",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}),
                "`messages[0].content[0].type`",
            ),
            (
                json!({"messages": [{"role": "tool", "content": "x"}]}),
                "`messages[0].tool_call_id`",
            ),
            (json!({"messages": [user], "n": 2}), "`n`"),
            (
                json!({"messages": [user], "temperature": 3}),
                "`temperature`: 3 is not within",
            ),
            (json!({"messages": [user], "max_tokens": 0}), "`max_tokens`"),
            (
                json!({"messages": [user], "max_tokens": -1}),
                "`max_tokens`",
            ),
            (json!({"messages": [user], "stream": "yes"}), "`stream`"),
            (
                json!({"messages": [user], "tools": [{"type": "web_search"}]}),
                "`tools[0].type`",
            ),
            (
                json!({"messages": [user], "tool_choice": "maybe"}),
                "`tool_choice`",
            ),
            (
                json!({"messages": [user], "response_format": {"type": "xml"}}),
                "`response_format.type`",
            ),
            (json!({"messages": [user], "functions": []}), "`functions`"),
        ] {
            let error = read(body.clone()).expect_err("wrong");
            assert!(error.contains(part), "{body}: {error}");
        }
    }
}
