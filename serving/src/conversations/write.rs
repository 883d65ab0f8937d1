//! One answer, from its first row in the catalog to its last, as a task of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::Instrument;
use va_catalog::CollectionName;
use va_catalog::store::{CatalogError, FinishedAnswer, NewConversation, Owner, StoredMessage};
use va_llm::{Caller, ChatRequest, FinishReason, LlmError, Message, Role, Usage};

use super::{ANSWER_TIME_MAX, Live, Mode, Understood, lock};
use crate::http::Problem;
use crate::platform::Platform;
use crate::rag::{Asked, Event, HistoryRole, Turn, Writer, run};

/// Events between the writer and the task that keeps them.
const EVENTS: usize = 16;
/// Longest answer; more ends it.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Tokens of a model's answer at most: a few pages.
const ANSWER_TOKENS_MAX: u32 = 2_000;
/// How often an answer that grows is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often, and after which pause, saving the end is tried.
const SAVES: u32 = 5;
const SAVE_PAUSE: Duration = Duration::from_millis(300);

/// What there is to do for an answer.
pub enum Work {
    /// A model answers by itself.
    Chat {
        caller: Box<Caller>,
        model: String,
        /// What the model is told besides the turns.
        about: Option<String>,
        history: Vec<Turn>,
        question: String,
    },
    /// From documents.
    Rag {
        caller: Box<Caller>,
        asked: Box<Asked>,
        writer: Box<dyn Writer>,
    },
}

/// The conversation that an answer is part of.
pub enum Place {
    Known(String),
    New {
        title: String,
        collection: Option<CollectionName>,
        instructions: Option<String>,
    },
}

/// An answer that is to be begun.
pub struct Beginning {
    pub owner: Owner,
    pub conversation: Place,
    /// The question, where it is a new one.
    pub question: Option<String>,
    /// What the question was taken for.
    pub understood: Understood,
    pub mode: Mode,
    /// Why it is not quite what was asked for.
    pub degraded: Vec<Value>,
}

/// An answer that has begun.
pub struct Begun {
    pub conversation: String,
    pub question: Option<StoredMessage>,
    pub answer: StoredMessage,
    pub live: Arc<Live>,
}

/// Writes down the conversation and the question, where they are new, and begins the answer. Documents are searched
/// meanwhile; no model is asked before both are there.
///
/// # Errors
/// When the conversation is gone or the catalog does not answer; then nothing has begun.
pub async fn begin(
    platform: &Arc<Platform>,
    room: OwnedSemaphorePermit,
    beginning: Beginning,
    work: Work,
) -> Result<Begun, CatalogError> {
    let platform = platform.clone();
    // In a task: a client that goes in between must not leave an answer behind that nobody writes.
    let begin = async move {
        let (stored, is_stored) = oneshot::channel();
        let mut working = Working::begin(platform.clone(), work, is_stored);
        let rows = {
            let rows = rows(&platform, &beginning);
            tokio::pin!(rows);
            loop {
                tokio::select! {
                    biased;
                    rows = &mut rows => break rows?,
                    done = &mut working.future, if working.outcome.is_none() => working.outcome = Some(done),
                }
            }
        };
        // Work that has ended already listens no more.
        let _ = stored.send(());
        Ok::<_, CatalogError>(spawn(platform, room, beginning, working, rows))
    };
    let begun = tokio::spawn(begin.in_current_span());
    begun.await.map_err(|error| CatalogError::Storage {
        action: "begin an answer".to_owned(),
        source: Box::new(error),
    })?
}

/// Writes down what is new; returns the conversation, the question if it is new, and the answer.
async fn rows(
    platform: &Platform,
    beginning: &Beginning,
) -> Result<(String, Option<StoredMessage>, StoredMessage), CatalogError> {
    let catalog = &platform.catalog;
    let owner = &beginning.owner;
    let question = beginning.question.as_deref();
    let question = question.map(|text| beginning.understood.question(text));
    let mode = beginning.mode.as_str();
    match &beginning.conversation {
        Place::Known(id) => {
            let (question, answer) = catalog.begin_answer(owner, id, question, mode).await?;
            Ok((id.clone(), question, answer))
        }
        Place::New {
            title,
            collection,
            instructions,
        } => {
            let new = NewConversation {
                title,
                collection: collection.as_ref(),
                instructions: instructions.as_deref(),
            };
            catalog
                .begin_conversation(owner, &new, question, mode)
                .await
        }
    }
}

/// Goes on with an answer whose rows are there.
fn spawn(
    platform: Arc<Platform>,
    room: OwnedSemaphorePermit,
    beginning: Beginning,
    working: Working,
    (conversation, question, answer): (String, Option<StoredMessage>, StoredMessage),
) -> Begun {
    platform.conversations.tell();
    let live = Arc::new(Live::new(beginning.owner.clone(), &conversation));
    lock(&platform.conversations.running).insert(answer.id.clone(), live.clone());
    let task = Answer {
        platform,
        owner: beginning.owner,
        conversation: conversation.clone(),
        question: question.as_ref().map(|message| message.id.clone()),
        message: answer.id.clone(),
        understood: beginning.understood,
        mode: beginning.mode,
        live: live.clone(),
        content: String::new(),
        citations: Vec::new(),
        usage: Value::Null,
        done: json!({}),
        degraded: beginning.degraded,
        _room: room,
    };
    tokio::spawn(task.run(working).in_current_span());
    Begun {
        conversation,
        question,
        answer,
        live,
    }
}

/// An answer and what there is of it.
struct Answer {
    platform: Arc<Platform>,
    owner: Owner,
    conversation: String,
    question: Option<String>,
    message: String,
    understood: Understood,
    mode: Mode,
    live: Arc<Live>,
    content: String,
    citations: Vec<Value>,
    usage: Value,
    done: Value,
    /// Why it is not quite what was asked for.
    degraded: Vec<Value>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Answer {
    /// However it ends, nobody waits for more.
    fn drop(&mut self) {
        lock(&self.platform.conversations.running).remove(&self.message);
        self.live.end();
    }
}

/// Why an answer is not whole, if it is not.
type Outcome = Result<Option<String>, Problem>;

/// Work and what it tells.
struct Working {
    future: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    events: mpsc::Receiver<Event>,
    /// Once it has ended.
    outcome: Option<Outcome>,
}

impl Answer {
    async fn run(mut self, working: Working) {
        let Working {
            future: mut working,
            mut events,
            mut outcome,
        } = working;
        let (stopping, stop) = (self.platform.stopping().clone(), self.live.stop.clone());
        let deadline = tokio::time::sleep(ANSWER_TIME_MAX);
        tokio::pin!(deadline);
        let mut saves = tokio::time::interval(SAVE_INTERVAL);
        saves.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut saved = 0;
        let broken_off = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Some("it was stopped".to_owned()),
                () = stopping.cancelled() => break Some("the server was being stopped".to_owned()),
                () = &mut deadline => break Some(format!("it took more than {} s", ANSWER_TIME_MAX.as_secs())),
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    // The sender goes with the work.
                    None => break None,
                },
                done = &mut working, if outcome.is_none() => outcome = Some(done),
                _ = saves.tick() => if self.content.len() > saved {
                    saved = self.content.len();
                    self.save().await;
                },
            }
            if self.content.len() > ANSWER_BYTES_MAX {
                break Some(format!("it is longer than {ANSWER_BYTES_MAX} bytes"));
            }
        };
        // Ends a call of a model that is still under way.
        drop(working);
        let (reason, problem) = match (broken_off, outcome) {
            (Some(reason), _) => (Some(reason), None),
            (None, Some(Ok(reason))) => (reason, None),
            (None, Some(Err(problem))) => (Some(problem.detail().to_owned()), Some(problem)),
            (None, None) => (Some("its task ended early".to_owned()), None),
        };
        self.finish(reason, problem).await;
    }

    /// Keeps an event and passes it on.
    fn take(&mut self, event: Event) {
        let name = event.name();
        let mut data = event.data();
        match event {
            Event::Start(_) => {
                data["conversation_id"] = json!(self.conversation);
                data["message_id"] = json!(self.message);
                data["question_id"] = json!(self.question);
                data["mode"] = json!(self.mode);
                self.understood.tell(&mut data);
            }
            Event::Delta(text) => self.content.push_str(&text),
            Event::Citation(_) => self.citations.push(data.clone()),
            Event::Usage(_) => self.usage = data.clone(),
            Event::Done(_) => {
                // Told when the answer is saved.
                self.done = data;
                return;
            }
            Event::Retrieval(_) => {}
        }
        self.live.tell(name, data);
    }

    async fn save(&self) {
        let saved = self
            .platform
            .catalog
            .save_answer_so_far(
                &self.owner,
                &self.conversation,
                &self.message,
                &self.content,
            )
            .await;
        if let Err(error) = saved {
            tracing::debug!(%error, message = self.message, "save an answer so far; it is tried again");
        }
    }

    /// Saves the end, then tells it.
    async fn finish(mut self, reason: Option<String>, problem: Option<Problem>) {
        let citations = Value::Array(std::mem::take(&mut self.citations));
        let finished = FinishedAnswer {
            content: &self.content,
            reason: reason.as_deref(),
            citations: &citations,
            usage: &self.usage,
        };
        let mut tries = 0;
        let saved = loop {
            tries += 1;
            let catalog = &self.platform.catalog;
            let saved = catalog
                .finish_answer(&self.owner, &self.conversation, &self.message, &finished)
                .await;
            match saved {
                Err(error) if error.is_retriable() && tries < SAVES => {
                    tokio::time::sleep(SAVE_PAUSE).await;
                }
                other => break other,
            }
        };
        let problem = match saved {
            Ok(()) => problem,
            Err(error) => {
                tracing::warn!(%error, message = self.message, "an answer was not saved");
                problem.or(Some(error.into()))
            }
        };
        self.platform.conversations.tell();
        let outcome = if reason.is_some() {
            "partial"
        } else {
            "complete"
        };
        metrics::counter!("va_conversation_answers_total", "mode" => self.mode.as_str(), "outcome" => outcome)
            .increment(1);
        if let Some(problem) = problem {
            return self.live.tell("error", problem.body());
        }
        let mut done = std::mem::take(&mut self.done);
        if let Some(told) = done["degraded"].as_array() {
            self.degraded.extend(told.iter().cloned());
        }
        done["degraded"] = json!(self.degraded);
        let by = done["mode"].take();
        done["answered_by"] = by;
        done["mode"] = json!(self.mode);
        done["state"] = json!(outcome);
        done["reason"] = json!(reason);
        self.understood.tell(&mut done);
        self.live.tell("done", done);
    }
}

impl Working {
    /// The work as a future that owns all it needs. No model is asked before it is told that the rows are `stored`.
    fn begin(platform: Arc<Platform>, work: Work, stored: oneshot::Receiver<()>) -> Self {
        // The sender is dropped with the future's end, so that the receiver ends when it is empty.
        let (tell, events) = mpsc::channel(EVENTS);
        let future: Pin<Box<dyn Future<Output = Outcome> + Send>> = match work {
            Work::Rag {
                caller,
                asked,
                writer,
            } => Box::pin(async move {
                let (asked, tell) = (asked.after(stored), tell);
                run(&platform, &caller, asked, &*writer, &tell)
                    .await
                    .map_err(Problem::from)?;
                Ok(None)
            }),
            Work::Chat {
                caller,
                model,
                about,
                history,
                question,
            } => Box::pin(async move {
                let tell = tell;
                if stored.await.is_err() {
                    return Ok(Some("it was not begun".to_owned()));
                }
                chat(&platform, &caller, model, about, history, question, &tell).await
            }),
        };
        Self {
            future,
            events,
            outcome: None,
        }
    }
}

/// A model answers by itself.
async fn chat(
    platform: &Platform,
    caller: &Caller,
    model: String,
    about: Option<String>,
    history: Vec<Turn>,
    question: String,
    events: &mpsc::Sender<Event>,
) -> Result<Option<String>, Problem> {
    let start =
        json!({"id": uuid::Uuid::now_v7().to_string(), "question": question, "model": model});
    tell(events, Event::Start(start)).await?;
    let mut messages: Vec<Message> = Vec::with_capacity(history.len() + 2);
    messages.extend(about.map(|text| Message::text(Role::System, text)));
    messages.extend(history.iter().map(|turn| {
        let role = match turn.role {
            HistoryRole::User => Role::User,
            HistoryRole::Assistant => Role::Assistant,
        };
        Message::text(role, turn.content.as_str())
    }));
    messages.push(Message::text(Role::User, question.as_str()));
    let request = ChatRequest {
        model,
        messages,
        max_tokens: Some(ANSWER_TOKENS_MAX),
        user: caller.user.clone(),
        stream: true,
        ..ChatRequest::default()
    };
    let mut reply = match platform.gateway.chat(caller, &request).await {
        Ok(reply) => reply,
        Err(error) => return instead(platform, &question, error, events).await,
    };
    let mut usage = Usage::default();
    let mut reason = None;
    while let Some(event) = reply.next().await {
        match event? {
            va_llm::Event::Text { text, .. } | va_llm::Event::Refusal(text) if !text.is_empty() => {
                tell(events, Event::Delta(text)).await?;
            }
            va_llm::Event::Finish { reason: end, .. } => {
                reason = match end {
                    FinishReason::Length => Some("the answer is as long as it may be".to_owned()),
                    FinishReason::ContentFilter => Some("the provider ended the answer".to_owned()),
                    FinishReason::Stop | FinishReason::ToolCalls => None,
                };
            }
            va_llm::Event::Usage(told) => usage = told,
            _ => {}
        }
    }
    let usage = json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    });
    tell(events, Event::Usage(usage)).await?;
    tell(
        events,
        Event::Done(json!({"answered": true, "mode": "generated", "degraded": []})),
    )
    .await?;
    Ok(reason)
}

/// What is told when every model fails: the template of the settings, marked as such, or the failure where there is none.
async fn instead(
    platform: &Platform,
    question: &str,
    error: LlmError,
    events: &mpsc::Sender<Event>,
) -> Result<Option<String>, Problem> {
    let Some(text) = platform.gateway.template_reply(question, &error) else {
        return Err(error.into());
    };
    tell(events, Event::Delta(text.to_owned())).await?;
    let usage = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    tell(events, Event::Usage(usage)).await?;
    let degraded = json!([{"retriever": "model", "reason": error.message}]);
    let done = json!({"answered": false, "mode": "template", "degraded": degraded});
    tell(events, Event::Done(done)).await?;
    Ok(Some(format!("no model answered: {}", error.message)))
}

/// Passes an event on, unless nobody keeps the answer any more.
async fn tell(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Problem> {
    events.send(event).await.map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "gone",
            "the answer was ended while it was written",
        )
    })
}
