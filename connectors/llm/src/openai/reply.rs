//! A reply in OpenAI's words, in one piece or as a stream.

use std::collections::VecDeque;

use futures::stream::{BoxStream, StreamExt};
use serde_json::Value;

use super::unreadable;
use crate::error::{ErrorKind, LlmError};
use crate::http::in_band;
use crate::provider::EventStream;
use crate::sse::Frame;
use crate::types::{Event, FinishReason, Usage};

/// The events of a stream. It ends at `[DONE]`, or where the server ends it, if the reply had come to its end by then.
pub(super) fn events(frames: BoxStream<'static, Result<Frame, LlmError>>) -> EventStream {
    struct Reader {
        frames: BoxStream<'static, Result<Frame, LlmError>>,
        decoder: Decoder,
        ready: VecDeque<Event>,
        over: bool,
    }
    let reader = Reader {
        frames,
        decoder: Decoder::default(),
        ready: VecDeque::new(),
        over: false,
    };
    futures::stream::unfold(reader, |mut reader| async move {
        loop {
            if let Some(event) = reader.ready.pop_front() {
                return Some((Ok(event), reader));
            }
            if reader.over {
                return None;
            }
            let result = match reader.frames.next().await {
                Some(Ok(frame)) if frame.data.trim() == "[DONE]" => {
                    reader.over = true;
                    reader.decoder.end()
                }
                Some(Ok(frame)) => reader.decoder.read(&frame.data, &mut reader.ready),
                // A connection that breaks behind the reply's end has done its work.
                Some(Err(_)) if reader.decoder.finished => {
                    reader.over = true;
                    Ok(())
                }
                Some(Err(error)) => Err(error),
                None => {
                    reader.over = true;
                    reader.decoder.end()
                }
            };
            if let Err(error) = result {
                reader.over = true;
                // What came with the broken piece was not shown and is not needed.
                reader.ready.clear();
                return Some((Err(error), reader));
            }
        }
    })
    .boxed()
}

/// What is known of a stream so far.
#[derive(Default)]
struct Decoder {
    started: bool,
    finished: bool,
    /// Ids of the calls, by index, for servers that number all of them 0 or none.
    calls: Vec<String>,
    /// Calls whose name has been told, which some servers repeat in each piece.
    named: Vec<usize>,
}

impl Decoder {
    fn read(&mut self, data: &str, events: &mut VecDeque<Event>) -> Result<(), LlmError> {
        if data.trim().is_empty() {
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data)
            .map_err(|error| unreadable(&format!("an event is not JSON: {error}")))?;
        if let Some(error) = in_band(&chunk) {
            return Err(error);
        }
        if !self.started && chunk["id"].is_string() {
            self.started = true;
            events.push_back(start(&chunk));
        }
        let choice = &chunk["choices"][0];
        let delta = match &choice["delta"] {
            Value::Null => &choice["message"],
            delta => delta,
        };
        let text = |field: &str| delta[field].as_str().filter(|text| !text.is_empty());
        // Both names are in use for what a reasoning model thinks.
        if let Some(reasoning) = text("reasoning_content").or_else(|| text("reasoning")) {
            events.push_back(Event::Reasoning {
                text: reasoning.to_owned(),
                signature: None,
            });
        }
        let logprobs = Some(&choice["logprobs"]).filter(|logprobs| !logprobs.is_null());
        if text("content").is_some() || logprobs.is_some() {
            events.push_back(Event::Text {
                text: text("content").unwrap_or_default().to_owned(),
                logprobs: logprobs.cloned(),
            });
        }
        if let Some(refusal) = text("refusal") {
            events.push_back(Event::Refusal(refusal.to_owned()));
        }
        for (at, call) in delta["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let event = self.call(call, at);
            events.push_back(event);
        }
        let reason = choice["finish_reason"].as_str();
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            if !self.finished {
                events.push_back(finish(reason, choice));
            }
            self.finished = true;
        }
        // At the end of the stream, beside the last piece, or (Moonshot, Groq) somewhere in it.
        let counted = [&chunk["usage"], &choice["usage"], &chunk["x_groq"]["usage"]];
        if let Some(usage) = counted.into_iter().find_map(usage) {
            events.push_back(Event::Usage(usage));
        }
        Ok(())
    }

    fn call(&mut self, call: &Value, at: usize) -> Event {
        let text = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let id = text(&call["id"]);
        let told = call["index"].as_u64().map(|index| index as usize);
        let known = id
            .as_ref()
            .and_then(|id| self.calls.iter().position(|known| known == id));
        let index = match (told, &id, known) {
            (_, Some(_), Some(known)) => known,
            // A new id under an old number is a new call.
            (Some(told), Some(_), None) if told >= self.calls.len() => told,
            (_, Some(_), None) => self.calls.len(),
            (Some(told), None, _) => told,
            (None, None, _) => self.calls.len().saturating_sub(1).max(at),
        };
        let is_new = known.is_none();
        if let (Some(id), true) = (&id, is_new) {
            if self.calls.len() <= index {
                self.calls.resize(index.min(1_023) + 1, String::new());
            }
            if let Some(slot) = self.calls.get_mut(index) {
                slot.clone_from(id);
            }
        }
        let function = &call["function"];
        let name = text(&function["name"]).filter(|_| !self.named.contains(&index));
        if name.is_some() {
            self.named.push(index);
        }
        Event::ToolCall {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            id: id.filter(|_| is_new),
            name,
            arguments: arguments(&function["arguments"]),
        }
    }

    fn end(&self) -> Result<(), LlmError> {
        if self.finished {
            Ok(())
        } else {
            Err(LlmError::new(
                ErrorKind::StreamBroken,
                "the provider ended the stream before the reply was complete",
            ))
        }
    }
}

/// The events of a reply in one piece.
pub(super) fn whole(value: &Value) -> Result<Vec<Event>, LlmError> {
    let choice = &value["choices"][0];
    let message = &choice["message"];
    if !message.is_object() {
        return Err(unreadable("it has no `choices[0].message`"));
    }
    let mut events = vec![start(value)];
    let text = |field: &str| message[field].as_str().filter(|text| !text.is_empty());
    if let Some(reasoning) = text("reasoning_content").or_else(|| text("reasoning")) {
        events.push(Event::Reasoning {
            text: reasoning.to_owned(),
            signature: None,
        });
    }
    let logprobs = Some(&choice["logprobs"]).filter(|logprobs| !logprobs.is_null());
    if text("content").is_some() || logprobs.is_some() {
        events.push(Event::Text {
            text: text("content").unwrap_or_default().to_owned(),
            logprobs: logprobs.cloned(),
        });
    }
    if let Some(refusal) = text("refusal") {
        events.push(Event::Refusal(refusal.to_owned()));
    }
    for (at, call) in message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        events.push(Event::ToolCall {
            index: u32::try_from(at).unwrap_or(u32::MAX),
            id: call["id"].as_str().map(str::to_owned),
            name: call["function"]["name"].as_str().map(str::to_owned),
            arguments: arguments(&call["function"]["arguments"]),
        });
    }
    events.push(finish(
        choice["finish_reason"].as_str().unwrap_or("stop"),
        choice,
    ));
    events.extend(usage(&value["usage"]).map(Event::Usage));
    Ok(events)
}

fn start(value: &Value) -> Event {
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    Event::Start {
        id: text("id"),
        model: text("model"),
    }
}

/// Some servers send an object instead of its text.
fn arguments(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn finish(reason: &str, choice: &Value) -> Event {
    let reason = match reason {
        "length" | "max_tokens" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" | "sensitive" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    };
    let stop = ["stop_reason", "stop_sequence"]
        .iter()
        .find_map(|field| choice[*field].as_str());
    Event::Finish {
        reason,
        stop: stop.map(str::to_owned),
    }
}

/// What was counted, if it was.
pub(super) fn usage(value: &Value) -> Option<Usage> {
    let input = value["prompt_tokens"].as_u64()?;
    let details = &value["prompt_tokens_details"];
    // DeepSeek has a name of its own.
    let cached = details["cached_tokens"]
        .as_u64()
        .or_else(|| value["prompt_cache_hit_tokens"].as_u64());
    let cached = cached.unwrap_or_default().min(input);
    // OpenAI's own cache costs nothing to write; servers that stand before Anthropic's say what it took.
    let written = [
        &details["cache_write_tokens"],
        &details["cache_creation_tokens"],
        &value["cache_creation_input_tokens"],
    ]
    .into_iter()
    .find_map(Value::as_u64);
    Some(Usage {
        input,
        cached,
        cache_write: written.unwrap_or_default().min(input - cached),
        output: value["completion_tokens"].as_u64().unwrap_or_default(),
        reasoning: value["completion_tokens_details"]["reasoning_tokens"]
            .as_u64()
            .unwrap_or_default(),
        ..Usage::default()
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
