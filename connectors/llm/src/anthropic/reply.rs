//! A reply in Anthropic's words, in one piece or as a stream.

use std::collections::{BTreeMap, VecDeque};

use futures::stream::{BoxStream, StreamExt};
use serde_json::Value;

use super::JSON_FUNCTION;
use crate::error::{ErrorKind, LlmError};
use crate::http::in_band;
use crate::provider::EventStream;
use crate::sse::Frame;
use crate::types::{Event, FinishReason, Usage};

/// The events of a stream, which ends at `message_stop`.
pub(super) fn events(
    frames: BoxStream<'static, Result<Frame, LlmError>>,
    as_json: bool,
) -> EventStream {
    struct Reader {
        frames: BoxStream<'static, Result<Frame, LlmError>>,
        decoder: Decoder,
        ready: VecDeque<Event>,
    }
    let reader = Reader {
        frames,
        decoder: Decoder {
            as_json,
            ..Decoder::default()
        },
        ready: VecDeque::new(),
    };
    futures::stream::unfold(reader, |mut reader| async move {
        loop {
            if let Some(event) = reader.ready.pop_front() {
                return Some((Ok(event), reader));
            }
            if reader.decoder.over {
                return None;
            }
            let result = match reader.frames.next().await {
                Some(Ok(frame)) => reader.decoder.read(&frame.data, &mut reader.ready),
                Some(Err(error)) => Err(error),
                None if reader.decoder.finished => {
                    reader.decoder.over = true;
                    Ok(())
                }
                None => Err(LlmError::new(
                    ErrorKind::StreamBroken,
                    "the provider ended the stream before the reply was complete",
                )),
            };
            if let Err(error) = result {
                reader.decoder.over = true;
                reader.ready.clear();
                return Some((Err(error), reader));
            }
        }
    })
    .boxed()
}

#[derive(Default)]
struct Decoder {
    as_json: bool,
    finished: bool,
    over: bool,
    /// Which call a block is, for blocks that are calls.
    calls: BTreeMap<u64, u32>,
    usage: Usage,
}

impl Decoder {
    fn read(&mut self, data: &str, events: &mut VecDeque<Event>) -> Result<(), LlmError> {
        if data.trim().is_empty() || data.trim() == "[DONE]" {
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|error| {
            LlmError::new(
                ErrorKind::StreamBroken,
                format!("the provider's reply cannot be understood: an event is not JSON: {error}"),
            )
        })?;
        if let Some(error) = in_band(&event) {
            return Err(error);
        }
        let block = event["index"].as_u64().unwrap_or_default();
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => {
                let message = &event["message"];
                let text = |field: &str| message[field].as_str().map(str::to_owned);
                events.push_back(Event::Start {
                    id: text("id"),
                    model: text("model"),
                });
                self.count(&message["usage"], events);
            }
            "content_block_start" => self.block(block, &event["content_block"], events),
            "content_block_delta" => self.delta(block, &event["delta"], events),
            "message_delta" => {
                self.count(&event["usage"], events);
                if let Some(reason) = event["delta"]["stop_reason"].as_str() {
                    self.finished = true;
                    events.push_back(finish(reason, &event["delta"], self.as_json));
                }
            }
            "message_stop" => self.over = true,
            // Pings, ends of blocks, and what will be added.
            _ => {}
        }
        Ok(())
    }

    fn block(&mut self, index: u64, block: &Value, events: &mut VecDeque<Event>) {
        match block["type"].as_str().unwrap_or_default() {
            "tool_use" => {
                let call = u32::try_from(self.calls.len()).unwrap_or(u32::MAX);
                self.calls.insert(index, call);
                if !(self.as_json && block["name"] == JSON_FUNCTION) {
                    events.push_back(Event::ToolCall {
                        index: call,
                        id: block["id"].as_str().map(str::to_owned),
                        name: block["name"].as_str().map(str::to_owned),
                        arguments: String::new(),
                    });
                }
            }
            "text" => events.extend(text(block["text"].as_str())),
            _ => {}
        }
    }

    fn delta(&mut self, index: u64, delta: &Value, events: &mut VecDeque<Event>) {
        match delta["type"].as_str().unwrap_or_default() {
            "text_delta" => events.extend(text(delta["text"].as_str())),
            "input_json_delta" => {
                let piece = delta["partial_json"].as_str().unwrap_or_default();
                if self.as_json {
                    events.extend(text(Some(piece)));
                } else if !piece.is_empty() {
                    events.push_back(Event::ToolCall {
                        index: self.calls.get(&index).copied().unwrap_or_default(),
                        id: None,
                        name: None,
                        arguments: piece.to_owned(),
                    });
                }
            }
            "thinking_delta" => events.push_back(Event::Reasoning {
                text: delta["thinking"].as_str().unwrap_or_default().to_owned(),
                signature: None,
            }),
            "signature_delta" => events.push_back(Event::Reasoning {
                text: String::new(),
                signature: delta["signature"].as_str().map(str::to_owned),
            }),
            _ => {}
        }
    }

    /// Input is told in front, output at the end; a later number stands for the earlier one.
    fn count(&mut self, counted: &Value, events: &mut VecDeque<Event>) {
        if counted.is_object() {
            self.usage = usage(counted, self.usage);
            events.push_back(Event::Usage(self.usage));
        }
    }
}

fn text(text: Option<&str>) -> Option<Event> {
    text.filter(|text| !text.is_empty())
        .map(|text| Event::Text {
            text: text.to_owned(),
            logprobs: None,
        })
}

fn finish(reason: &str, value: &Value, as_json: bool) -> Event {
    let reason = match reason {
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" if !as_json => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    };
    Event::Finish {
        reason,
        stop: value["stop_sequence"].as_str().map(str::to_owned),
    }
}

/// `input_tokens` leaves out what came from the cache and what went into it.
fn usage(counted: &Value, before: Usage) -> Usage {
    let number = |field: &str| counted[field].as_u64();
    let cached = number("cache_read_input_tokens").unwrap_or(before.cached);
    let cache_write = number("cache_creation_input_tokens").unwrap_or(before.cache_write);
    let plain = number("input_tokens").unwrap_or(
        before
            .input
            .saturating_sub(before.cached + before.cache_write),
    );
    Usage {
        input: plain + cached + cache_write,
        cached,
        cache_write,
        output: number("output_tokens").unwrap_or(before.output),
        reasoning: counted["output_tokens_details"]["thinking_tokens"]
            .as_u64()
            .unwrap_or(before.reasoning),
        ..Usage::default()
    }
}

/// The events of a reply in one piece.
pub(super) fn whole(value: &Value, as_json: bool) -> Result<Vec<Event>, LlmError> {
    let Some(blocks) = value["content"].as_array() else {
        return Err(LlmError::new(
            ErrorKind::StreamBroken,
            "the provider's reply cannot be understood: it has no `content`",
        ));
    };
    let field = |field: &str| value[field].as_str().map(str::to_owned);
    let mut events = vec![Event::Start {
        id: field("id"),
        model: field("model"),
    }];
    let mut calls = 0;
    for block in blocks {
        match block["type"].as_str().unwrap_or_default() {
            "text" => events.extend(text(block["text"].as_str())),
            "thinking" => events.push(Event::Reasoning {
                text: block["thinking"].as_str().unwrap_or_default().to_owned(),
                signature: block["signature"].as_str().map(str::to_owned),
            }),
            "tool_use" if as_json && block["name"] == JSON_FUNCTION => {
                events.extend(text(Some(&block["input"].to_string())));
            }
            "tool_use" => {
                events.push(Event::ToolCall {
                    index: calls,
                    id: block["id"].as_str().map(str::to_owned),
                    name: block["name"].as_str().map(str::to_owned),
                    arguments: block["input"].to_string(),
                });
                calls += 1;
            }
            _ => {}
        }
    }
    let reason = value["stop_reason"].as_str().unwrap_or("end_turn");
    events.push(finish(reason, value, as_json));
    if value["usage"].is_object() {
        events.push(Event::Usage(usage(&value["usage"], Usage::default())));
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use serde_json::json;

    use super::*;
    use crate::sse::SseParser;
    use crate::types::ChatReply;

    fn read(stream: &str, as_json: bool) -> (ChatReply, Option<LlmError>) {
        let mut parser = SseParser::default();
        let mut frames = Vec::new();
        parser
            .push(stream.as_bytes(), &mut frames)
            .expect("readable");
        frames.extend(parser.finish().expect("readable"));
        let frames = futures::stream::iter(frames.into_iter().map(Ok)).boxed();
        let mut reply = ChatReply::default();
        let mut error = None;
        for event in block_on(events(frames, as_json).collect::<Vec<_>>()) {
            match event {
                Ok(event) => reply.add(&event),
                Err(broken) => error = Some(broken),
            }
        }
        (reply, error)
    }

    #[test]
    fn a_recorded_stream() {
        let stream = include_str!("../../tests/data/llama-cpp-messages.sse");
        let (reply, error) = read(stream, false);
        assert_eq!(error, None);
        assert_eq!(reply.text, "Nice to meet");
        assert_eq!(reply.finish, Some(FinishReason::Length));
        let expected = Usage {
            input: 32,
            cached: 31,
            output: 4,
            ..Usage::default()
        };
        assert_eq!(reply.usage, expected);
        // Without its end it is not whole.
        let (cut, _) = stream.split_once("event: message_delta").expect("an end");
        let (reply, error) = read(cut, false);
        assert_eq!(reply.text, "Nice to meet");
        assert_eq!(error.map(|error| error.kind), Some(ErrorKind::StreamBroken));
    }

    #[test]
    fn thinking_functions_json_and_errors() {
        let stream = |events: &[Value]| -> String {
            events
                .iter()
                .map(|event| {
                    format!(
                        "event: {}\ndata: {event}\n\n",
                        event["type"].as_str().unwrap()
                    )
                })
                .collect()
        };
        let start = json!({"type": "message_start", "message": {"id": "m1", "model": "c",
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 1}}});
        let call = json!({"type": "content_block_start", "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": JSON_FUNCTION, "input": {}}});
        let piece = |text: &str| {
            json!({"type": "content_block_delta", "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": text}})
        };
        let end = json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}});
        let events = [
            start.clone(),
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}}),
            call,
            piece(""),
            piece("{\"a\":"),
            piece("1}"),
            end,
            json!({"type": "message_stop"}),
        ];
        let (reply, error) = read(&stream(&events), false);
        assert_eq!(error, None);
        assert_eq!(
            (reply.reasoning.as_str(), reply.signature.as_deref()),
            ("hm", Some("sig"))
        );
        assert_eq!(reply.tool_calls[0].id, "t1");
        assert_eq!(reply.tool_calls[0].arguments, "{\"a\":1}");
        assert_eq!(reply.finish, Some(FinishReason::ToolCalls));
        let usage = reply.usage;
        assert_eq!(
            (usage.input, usage.cached, usage.cache_write, usage.output),
            (115, 100, 10, 9)
        );

        let (reply, _) = read(&stream(&events), true);
        assert_eq!(reply.text, "{\"a\":1}");
        assert_eq!(
            (reply.tool_calls.len(), reply.finish),
            (0, Some(FinishReason::Stop))
        );

        let broken = [
            start,
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        ];
        let (_, error) = read(&stream(&broken), false);
        assert_eq!(error.map(|error| error.kind), Some(ErrorKind::Unavailable));
    }

    #[test]
    fn a_reply_in_one_piece() {
        let value = json!({"id": "m", "model": "c", "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 3, "output_tokens": 2}});
        let mut reply = ChatReply::default();
        for event in whole(&value, false).expect("a reply") {
            reply.add(&event);
        }
        assert_eq!(reply.text, "Hi");
        assert_eq!(reply.tool_calls[0].arguments, "{\"x\":1}");
        assert_eq!((reply.usage.input, reply.usage.output), (3, 2));
    }
}
