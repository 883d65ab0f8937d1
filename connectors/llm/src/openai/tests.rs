//! Streams as servers send them: files of `tests/data`, or written down here where they are short.

use futures::executor::block_on;
use serde_json::json;

use super::*;
use crate::sse::SseParser;
use crate::types::ChatReply;

/// What is read of a stream: the reply so far, and how it broke off.
fn read(stream: &str) -> (ChatReply, Option<LlmError>) {
    let mut parser = SseParser::default();
    let mut frames = Vec::new();
    parser
        .push(stream.as_bytes(), &mut frames)
        .expect("readable");
    frames.extend(parser.finish().expect("readable"));
    let frames = futures::stream::iter(frames.into_iter().map(Ok)).boxed();
    let mut reply = ChatReply::default();
    let mut error = None;
    for event in block_on(events(frames).collect::<Vec<_>>()) {
        match event {
            Ok(event) => reply.add(&event),
            Err(broken) => error = Some(broken),
        }
    }
    (reply, error)
}

#[test]
fn a_recorded_stream_of_llama_cpp() {
    let (reply, error) = read(include_str!("../../tests/data/llama-cpp.sse"));
    assert_eq!(error, None);
    assert_eq!(reply.text, "I'm glad you're");
    assert_eq!(reply.finish, Some(FinishReason::Length));
    let usage = Usage {
        input: 32,
        cached: 31,
        output: 5,
        ..Usage::default()
    };
    assert_eq!(reply.usage, usage);
    assert!(reply.id.expect("an id").starts_with("chatcmpl-"));
}

#[test]
fn a_call_of_a_function_as_openai_streams_it() {
    let (reply, error) = read(include_str!("../../tests/data/tool-call.sse"));
    assert_eq!(error, None);
    let [call] = &reply.tool_calls[..] else {
        panic!("{reply:?}");
    };
    assert_eq!(call.name, "get_weather");
    let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
    assert!(arguments["city"].is_string(), "{arguments}");
    assert_eq!(reply.finish, Some(FinishReason::ToolCalls));
}

#[test]
fn calls_are_told_apart_however_they_are_numbered() {
    let chunk = |call: Value| {
        format!(
            "data: {}\n\n",
            json!({"choices": [{"delta": {"tool_calls": [call]}}]})
        )
    };
    let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n";
    let piece = |index: Value, id: Value, name: Value, arguments: Value| {
        chunk(json!({"index": index, "id": id, "function": {"name": name, "arguments": arguments}}))
    };
    let (null, zero, one) = (json!(null), json!(0), json!(1));
    let expected = vec![("a", "f", "{\"x\":1}"), ("b", "g", "{}")];
    for (name, stream) in [
        (
            "as OpenAI",
            [
                piece(zero.clone(), json!("a"), json!("f"), json!("")),
                piece(zero.clone(), null.clone(), null.clone(), json!("{\"x\":")),
                piece(zero.clone(), null.clone(), null.clone(), json!("1}")),
                piece(one.clone(), json!("b"), json!("g"), json!("{}")),
            ],
        ),
        (
            "all of them 0, the id in each piece",
            [
                piece(zero.clone(), json!("a"), json!("f"), json!("{\"x\":")),
                piece(zero.clone(), json!("a"), json!("f"), json!("1}")),
                piece(zero.clone(), json!("b"), json!("g"), json!("{}")),
                piece(zero.clone(), json!("b"), json!(""), json!("")),
            ],
        ),
        (
            "no number, an object",
            [
                piece(null.clone(), json!("a"), json!("f"), json!({"x": 1})),
                piece(null.clone(), json!(""), null.clone(), null.clone()),
                piece(null.clone(), json!("b"), json!("g"), json!({})),
                piece(null.clone(), null.clone(), null.clone(), null.clone()),
            ],
        ),
    ] {
        let (reply, error) = read(&(stream.concat() + end));
        assert_eq!(error, None, "{name}");
        let calls: Vec<_> = reply
            .tool_calls
            .iter()
            .map(|call| {
                (
                    call.id.as_str(),
                    call.name.as_str(),
                    call.arguments.as_str(),
                )
            })
            .collect();
        assert_eq!(calls, expected, "{name}");
    }
}

#[test]
fn habits_of_providers_are_no_faults() {
    let text = |text: &str| {
        format!(
            "data: {}\n\n",
            json!({"id": "1", "choices": [{"delta": {"content": text}}]})
        )
    };
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
    for (name, stream, kind, shown) in [
        ("no [DONE]", format!("{}{finish}", text("hi")), None, "hi"),
        (
            "usage behind the end",
            format!("{}{finish}{usage}data: [DONE]\n\n", text("hi")),
            None,
            "hi",
        ),
        (
            "heartbeats",
            format!(": x\n\n{}: x\n\n{finish}", text("hi")),
            None,
            "hi",
        ),
        (
            "Windows",
            format!("{}{finish}data: [DONE]\n\n", text("hi")).replace('\n', "\r\n"),
            None,
            "hi",
        ),
        ("cut off", text("hi"), Some(ErrorKind::StreamBroken), "hi"),
        (
            "[DONE] without an end",
            format!("{}data: [DONE]\n\n", text("hi")),
            Some(ErrorKind::StreamBroken),
            "hi",
        ),
        (
            "garbage",
            format!("{}data: {{\"choices\":[{{\n\n", text("hi")),
            Some(ErrorKind::StreamBroken),
            "hi",
        ),
        (
            "an error in a good stream",
            format!(
                "{}data: {{\"error\":{{\"message\":\"Overloaded\",\"type\":\"overloaded_error\"}}}}\n\n",
                text("hi")
            ),
            Some(ErrorKind::Unavailable),
            "hi",
        ),
        (
            "a bare error",
            "{\"error\":{\"message\":\"slow down\",\"code\":429}}\n".to_owned(),
            Some(ErrorKind::RateLimited),
            "",
        ),
        ("nothing", String::new(), Some(ErrorKind::StreamBroken), ""),
    ] {
        let (reply, error) = read(&stream);
        assert_eq!(error.map(|error| error.kind), kind, "{name}");
        assert_eq!(reply.text, shown, "{name}");
        let counted = if stream.contains("prompt_tokens") {
            (3, 2)
        } else {
            (0, 0)
        };
        assert_eq!((reply.usage.input, reply.usage.output), counted, "{name}");
    }
}

#[test]
fn a_reply_in_one_piece() {
    let value = json!({
        "id": "x", "model": "m",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Let me see.", "reasoning_content": "hm",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 5}},
    });
    let mut reply = ChatReply::default();
    for event in whole(&value).expect("a reply") {
        reply.add(&event);
    }
    assert_eq!(
        (reply.text.as_str(), reply.reasoning.as_str()),
        ("Let me see.", "hm")
    );
    assert_eq!(reply.tool_calls.len(), 1);
    assert_eq!(reply.finish, Some(FinishReason::ToolCalls));
    assert_eq!(
        (
            reply.usage.input,
            reply.usage.cached,
            reply.usage.output,
            reply.usage.reasoning
        ),
        (10, 4, 7, 5)
    );
    assert!(whole(&json!({"object": "list"})).is_err());
}
