//! The language models of this process: a request of the gateway to a prompt, the reply to its events.
//!
//! A reply is made on a blocking thread, so many at a time as the settings say; others wait in a bounded queue. What the
//! models cannot do (pictures, JSON by force, calls by force, probabilities) is refused rather than left out, so that another
//! deployment can be asked. A caller that goes away ends its reply at the next token.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use va_catalog::settings::llm::LocalModelSettings;
use va_llm::{
    Call, ChatRequest, ErrorKind, Event, EventStream, FinishReason, LlmError, Message, Part,
    ResponseFormat, Role, ToolChoice, Usage,
};
use va_models::{
    Ending, GenerateOptions, Generated, GeneratorOptions, Generators, ModelError, ModelStore, Piece,
};

use super::failed;

/// Events that wait for a slow reader. As a reply seldom has more, one reader does not hold up the next one's reply.
const EVENTS: usize = 2_048;

/// The language models of this process.
#[derive(Debug)]
pub(super) struct Chats {
    generators: Arc<Generators>,
    /// One for each reply that is being made.
    running: Arc<Semaphore>,
    /// One for each call that is here, those that wait among them.
    places: Arc<Semaphore>,
}

/// What goes to the model.
struct Asked {
    messages: Vec<Value>,
    tools: Vec<Value>,
    options: GenerateOptions,
    /// Whether the reply may call several functions.
    many_calls: bool,
}

impl Chats {
    pub(super) fn new(store: ModelStore, settings: &LocalModelSettings) -> Self {
        let size = |n: u32| usize::try_from(n).unwrap_or(Semaphore::MAX_PERMITS / 2);
        let running = size(settings.concurrency.get());
        let options = GeneratorOptions {
            context_tokens: size(settings.context_tokens.get()),
            conversations: size(settings.conversations.get()),
        };
        let places = running.saturating_add(size(settings.queue_max));
        Self {
            generators: Arc::new(Generators::new(store, options)),
            running: Arc::new(Semaphore::new(running.min(Semaphore::MAX_PERMITS))),
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
        }
    }

    pub(super) fn generators(&self) -> &Generators {
        &self.generators
    }

    /// Begins a reply.
    pub(super) async fn chat(
        &self,
        call: Call<'_>,
        request: &ChatRequest,
    ) -> Result<EventStream, LlmError> {
        let asked = Asked::of(call, request)?;
        let turn = self.turn(call.model).await?;
        let generators = Arc::clone(&self.generators);
        let model = call.model.to_owned();
        let (sender, receiver) = mpsc::channel(EVENTS);
        tokio::task::spawn_blocking(move || {
            reply(&generators, &model, &asked, &sender);
            drop(turn);
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    /// Waits until a reply may be made.
    async fn turn(
        &self,
        model: &str,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), LlmError> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(LlmError::new(
                ErrorKind::RateLimited,
                format!(
                    "the local model `{model}` has as many calls waiting as `llm.local.queue_max` allows; try again later"
                ),
            )
            .after(Some(Duration::from_secs(1))));
        };
        match Arc::clone(&self.running).acquire_owned().await {
            Ok(running) => Ok((running, place)),
            Err(error) => Err(LlmError::new(ErrorKind::Unavailable, error.to_string())),
        }
    }
}

/// Makes a reply and tells its events, the failure as the last one.
fn reply(
    generators: &Generators,
    model: &str,
    asked: &Asked,
    events: &mpsc::Sender<Result<Event, LlmError>>,
) {
    match made(generators, model, asked, events) {
        // Whoever asked has gone.
        Ok(None) => {}
        Ok(Some((finish, usage))) => {
            for event in [finish, Event::Usage(usage)] {
                if events.blocking_send(Ok(event)).is_err() {
                    return;
                }
            }
        }
        Err(error) => {
            let error = failed(&error);
            tracing::debug!(model, %error, "a reply of a local model failed");
            // Nobody is left to be told when this cannot be sent.
            let _ = events.blocking_send(Err(error));
        }
    }
}

fn made(
    generators: &Generators,
    model: &str,
    asked: &Asked,
    events: &mpsc::Sender<Result<Event, LlmError>>,
) -> Result<Option<(Event, Usage)>, ModelError> {
    let generator = generators.get(model)?;
    let prompt = generator.prompt(&asked.messages, &asked.tools)?;
    let start = Event::Start {
        id: None,
        model: Some(model.to_owned()),
    };
    if events.blocking_send(Ok(start)).is_err() {
        return Ok(None);
    }
    let mut calls = 0u32;
    let mut is_enough = false;
    let mut tell = |piece: Option<Piece>| {
        let event = match piece {
            None if events.is_closed() => return ControlFlow::Break(()),
            None => return ControlFlow::Continue(()),
            Some(Piece::Text(text)) => Event::Text {
                text,
                logprobs: None,
            },
            Some(Piece::Call { name, arguments }) => {
                calls += 1;
                is_enough = !asked.many_calls;
                Event::ToolCall {
                    index: calls - 1,
                    id: Some(format!("call_{}", uuid::Uuid::now_v7().simple())),
                    name: Some(name),
                    arguments,
                }
            }
        };
        if events.blocking_send(Ok(event)).is_err() {
            is_enough = false;
            return ControlFlow::Break(());
        }
        if is_enough {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let generated = generator.generate(&prompt, &asked.tools, &asked.options, &mut tell)?;
    let Generated {
        ending,
        input_tokens,
        cached_tokens,
        output_tokens,
    } = generated;
    let (reason, stop) = match ending {
        Ending::Cancelled if !is_enough => return Ok(None),
        Ending::Length => (FinishReason::Length, None),
        _ if calls > 0 => (FinishReason::ToolCalls, None),
        Ending::Stop(stop) => (FinishReason::Stop, Some(stop)),
        Ending::Complete | Ending::Cancelled => (FinishReason::Stop, None),
    };
    let usage = Usage {
        input: input_tokens as u64,
        cached: cached_tokens as u64,
        output: output_tokens as u64,
        ..Usage::default()
    };
    Ok(Some((Event::Finish { reason, stop }, usage)))
}

impl Asked {
    fn of(call: Call<'_>, request: &ChatRequest) -> Result<Self, LlmError> {
        let lacks = |what: &str| {
            Err(LlmError::new(
                ErrorKind::Unsupported,
                format!(
                    "the local model `{}` has no {what}; leave that out or use another model",
                    call.model
                ),
            ))
        };
        // Without a grammar it would be JSON most of the time only.
        if !matches!(request.response_format, None | Some(ResponseFormat::Text)) {
            return lacks("replies that are JSON by force (`response_format`)");
        }
        let offers_tools = match request.tool_choice {
            Some(ToolChoice::Required | ToolChoice::Named(_)) => {
                return lacks("calls of functions by force (`tool_choice`)");
            }
            Some(ToolChoice::None) => false,
            Some(ToolChoice::Auto) | None => true,
        };
        let number = |name: &str| request.extra.get(name).and_then(Value::as_f64);
        for name in ["logit_bias", "logprobs", "top_logprobs"] {
            let is_empty = |value: &Value| match value {
                Value::Null | Value::Bool(false) => true,
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            };
            if request
                .extra
                .get(name)
                .is_some_and(|value| !is_empty(value))
            {
                return lacks(&format!("`{name}`"));
            }
        }
        let mut messages = Vec::new();
        for message in &request.messages {
            let is_text = |part: &Part| matches!(part, Part::Text { .. });
            if !message.content.iter().all(is_text) {
                return lacks("eye for pictures and other parts of messages that are no text");
            }
            messages.push(said(message));
        }
        let tools = request.tools.iter().filter(|_| offers_tools);
        let tools = tools.map(|tool| {
            let mut function = json!({"name": tool.name});
            if let Some(description) = &tool.description {
                function["description"] = description.as_str().into();
            }
            function["parameters"] = tool.parameters.clone();
            json!({"type": "function", "function": function})
        });
        let unasked = GenerateOptions::default();
        let max_tokens = request.max_tokens.or(call.output_tokens_max);
        Ok(Self {
            messages,
            tools: tools.collect(),
            options: GenerateOptions {
                max_tokens: max_tokens.map(|most| most as usize),
                temperature: request
                    .temperature
                    .map_or(unasked.temperature, |value| value as f32),
                top_p: request.top_p.map_or(unasked.top_p, |value| value as f32),
                top_k: number("top_k").map_or(unasked.top_k, |value| value as usize),
                frequency_penalty: number("frequency_penalty").unwrap_or_default() as f32,
                presence_penalty: number("presence_penalty").unwrap_or_default() as f32,
                seed: request.seed.map(i64::cast_unsigned),
                stop: request.stop.clone(),
            },
            many_calls: request.parallel_tool_calls != Some(false),
        })
    }
}

/// A message in the form that chat templates know.
fn said(message: &Message) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut said = json!({"role": role, "content": message.plain()});
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            // What a model once wrote need not be JSON; then its template gets the text.
            let arguments = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| Value::from(call.arguments.as_str()));
            json!({"type": "function", "id": call.id,
                "function": {"name": call.name, "arguments": arguments}})
        });
        said["tool_calls"] = calls.collect();
    }
    said
}

#[cfg(test)]
mod tests {
    use va_llm::{Tool, ToolCall};

    use super::*;

    fn call() -> Call<'static> {
        Call {
            model: "small",
            output_tokens_max: Some(7),
        }
    }

    fn request() -> ChatRequest {
        ChatRequest {
            messages: vec![Message::text(Role::User, "你好")],
            ..ChatRequest::default()
        }
    }

    #[test]
    fn a_request_goes_to_the_model_as_its_template_wants_it() {
        let mut request = request();
        let mut answer = Message::text(Role::Assistant, "");
        answer.tool_calls = vec![ToolCall {
            id: "c".to_owned(),
            name: "find".to_owned(),
            arguments: "{\"q\": 1}".to_owned(),
        }];
        request.messages.push(answer);
        request.tools = vec![Tool {
            name: "find".to_owned(),
            description: None,
            parameters: json!({"type": "object"}),
            strict: None,
            cache_control: None,
        }];
        request.seed = Some(-1);
        request.extra.insert("top_k".to_owned(), json!(3));
        let asked = Asked::of(call(), &request).unwrap();
        assert_eq!(
            asked.messages[0],
            json!({"role": "user", "content": "你好"})
        );
        assert_eq!(
            asked.messages[1]["tool_calls"][0]["function"],
            json!({"name": "find", "arguments": {"q": 1}})
        );
        assert_eq!(
            asked.tools,
            [
                json!({"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}})
            ]
        );
        assert_eq!(asked.options.seed, Some(u64::MAX));
        assert_eq!(
            (asked.options.top_k, asked.options.max_tokens),
            (3, Some(7))
        );
        request.tool_choice = Some(ToolChoice::None);
        assert!(Asked::of(call(), &request).unwrap().tools.is_empty());
    }

    #[test]
    fn what_the_models_cannot_do_is_refused() {
        let refused = |change: fn(&mut ChatRequest), what: &str| {
            let mut request = request();
            change(&mut request);
            let Err(error) = Asked::of(call(), &request) else {
                panic!("{what} is not refused")
            };
            assert_eq!(error.kind, ErrorKind::Unsupported);
            assert!(error.message.contains(what), "{error}");
        };
        refused(
            |request| request.response_format = Some(ResponseFormat::Json),
            "response_format",
        );
        refused(
            |request| request.tool_choice = Some(ToolChoice::Required),
            "tool_choice",
        );
        refused(
            |request| {
                request.extra.insert("logprobs".to_owned(), json!(true));
            },
            "logprobs",
        );
        refused(
            |request| {
                request.messages[0].content.push(Part::Image {
                    url: "data:".to_owned(),
                    detail: None,
                    cache_control: None,
                });
            },
            "pictures",
        );
    }
}
