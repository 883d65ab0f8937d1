//! Asking in a conversation, asking again, and following an answer.
//!
//! What is wrong with a message is told before anything is written; what goes wrong later is the event `error` of its stream,
//! and the reason of a partial answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use axum::{Extension, Json};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::CollectionName;
use va_catalog::store::{Conversation, MessageRole, MessageState, Owner, Principal, StoredMessage};

use super::plan::{How, Plan, plan};
use crate::conversations::{
    Beginning, Begun, ContextStrategy, Live, Mode, Place, begin, title_of, understand,
};
use crate::http::problem::Body;
use crate::http::withheld::withhold;
use crate::http::{App, Problem, RequestId};

const MESSAGE_CHARS_MAX: usize = 8_000;
/// Messages among which the last question is looked for.
const LOOKED_AT: u32 = 200;
/// How often a stream without events shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    message: String,
    /// A new one is begun without it.
    conversation: Option<String>,
    /// Where is searched; that of the conversation when left out.
    collection: Option<CollectionName>,
    mode: Option<Mode>,
    model: Option<String>,
    context: Option<ContextStrategy>,
    /// Of a new conversation: what is wanted of every answer in it.
    instructions: Option<String>,
    #[serde(default)]
    stream: bool,
}

pub async fn chat(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    Body(chat): Body<Chat>,
) -> Result<Response, Problem> {
    let question = checked(&chat.message)?;
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let known = match &chat.conversation {
        Some(conversation) => Some(catalog.conversation(&owner, conversation).await?),
        None => None,
    };
    let collection = match (chat.collection, &known) {
        (Some(collection), _) => Some(collection),
        (None, Some(known)) => collection_of(known)?,
        (None, None) => None,
    };
    if let Some(known) = &known {
        refuse_second(&app, &owner, &known.id)?;
        if chat.instructions.is_some() {
            return Err(Problem::invalid(
                "`instructions` are those of a new conversation: change the ones of this one with PATCH \
                 /api/v1/conversations/{conversation}",
            ));
        }
    }
    let how = How {
        mode: chat.mode,
        model: chat.model,
        context: chat.context.unwrap_or_default(),
        collection: collection.clone(),
        instructions: match &known {
            Some(known) => known.instructions.clone(),
            None => chat.instructions.clone(),
        },
    };
    let room = room(&app).await?;
    let understood = understand(&question);
    let told = known.as_ref().map(|known| (known, known.last_seq));
    let Plan {
        mode,
        work,
        degraded,
    } = plan(&app, &principal, &id, &how, &question, &understood, told).await?;
    let conversation = match known {
        Some(known) => Place::Known(known.id),
        None => Place::New {
            title: title_of(&question),
            collection,
            instructions: chat.instructions,
        },
    };
    let beginning = Beginning {
        owner: owner.clone(),
        conversation,
        question: Some(question),
        understood,
        mode,
        degraded,
    };
    let begun = begin(&app.platform, room, beginning, work).await?;
    reply(&app, &owner, begun, chat.stream || wants_stream(&headers)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Again {
    mode: Option<Mode>,
    model: Option<String>,
    context: Option<ContextStrategy>,
    #[serde(default)]
    stream: bool,
}

/// Answers the last question of a conversation once more.
pub async fn regenerate(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Extension(id): Extension<RequestId>,
    Path(conversation): Path<String>,
    headers: HeaderMap,
    Body(again): Body<Again>,
) -> Result<Response, Problem> {
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let known = catalog.conversation(&owner, &conversation).await?;
    refuse_second(&app, &owner, &known.id)?;
    let mut earlier = catalog.last_messages(&owner, &known.id, LOOKED_AT).await?;
    withhold(&app, &principal, &mut earlier).await?;
    let last = earlier
        .iter()
        .rfind(|message| message.role == MessageRole::User);
    let Some(last) = last else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "nothing has been asked in this conversation: send a message to /api/v1/chat first",
        ));
    };
    let question = last.content.clone();
    let how = How {
        mode: again.mode,
        model: again.model,
        context: again.context.unwrap_or_default(),
        collection: collection_of(&known)?,
        instructions: known.instructions.clone(),
    };
    let room = room(&app).await?;
    let understood = understand(&question);
    // With what was said before the question, not with the answers that were not wanted.
    let told = Some((&known, last.seq - 1));
    let Plan {
        mode,
        work,
        degraded,
    } = plan(&app, &principal, &id, &how, &question, &understood, told).await?;
    let beginning = Beginning {
        owner: owner.clone(),
        conversation: Place::Known(known.id),
        question: None,
        understood,
        mode,
        degraded,
    };
    let begun = begin(&app.platform, room, beginning, work).await?;
    reply(&app, &owner, begun, again.stream || wants_stream(&headers)).await
}

/// The events of an answer behind `Last-Event-ID`; of one that has ended, its text as one event.
pub async fn events(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((id, message)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let owner = Owner::from(&principal);
    let from = match headers.get("last-event-id") {
        None => 0,
        Some(last) => {
            let last = last
                .to_str()
                .ok()
                .and_then(|last| last.trim().parse::<usize>().ok());
            let last = last.ok_or_else(|| {
                Problem::invalid("`Last-Event-ID` is no id of an event: send the last one you got")
            })?;
            last.saturating_add(1)
        }
    };
    // Before the look at the catalog: an answer that ends in between is found there.
    let live = app.platform.conversations.live(&owner, &id, &message);
    let mut stored = app.platform.catalog.message(&owner, &id, &message).await?;
    withhold(&app, &principal, std::slice::from_mut(&mut stored)).await?;
    if stored.role != MessageRole::Assistant {
        return Err(Problem::not_found(format!(
            "answer `{message}` does not exist"
        )));
    }
    if let Some(live) = live {
        return Ok(streamed(live, from));
    }
    if stored.state == MessageState::Writing {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "written_elsewhere",
            "another process writes this answer; ask for its message again in a moment",
        )
        .after(Duration::from_secs(1)));
    }
    // The ids of its stream are gone with it, so all of it is told, whatever the client has.
    let told = stored_events(&id, &stored);
    let told = told.into_iter().map(|(name, data)| {
        Ok::<_, Infallible>(sse::Event::default().event(name).data(data.to_string()))
    });
    let end = stream::once(async { Ok(sse::Event::default().data("[DONE]")) });
    Ok(Sse::new(stream::iter(told).chain(end)).into_response())
}

/// An answer that has ended, as events.
fn stored_events(conversation: &str, message: &StoredMessage) -> Vec<(&'static str, Value)> {
    let mut told = vec![
        (
            "message.start",
            json!({"conversation_id": conversation, "message_id": message.id, "mode": message.mode, "replayed": true}),
        ),
        ("delta", json!({"text": message.content})),
    ];
    for citation in message.citations.as_array().into_iter().flatten() {
        told.push(("citation", citation.clone()));
    }
    told.push(("usage", message.usage.clone()));
    told.push((
        "done",
        json!({"mode": message.mode, "state": message.state, "reason": message.reason}),
    ));
    told
}

/// A message that can be answered.
fn checked(message: &str) -> Result<String, Problem> {
    let message = message.trim();
    if message.is_empty() {
        return Err(Problem::invalid(
            "`message` is empty: say something in words",
        ));
    }
    let chars = message.chars().count();
    if chars > MESSAGE_CHARS_MAX {
        return Err(Problem::invalid(format!(
            "`message` has {chars} characters; use at most {MESSAGE_CHARS_MAX}, and upload long texts as documents"
        )));
    }
    Ok(message.to_owned())
}

fn collection_of(conversation: &Conversation) -> Result<Option<CollectionName>, Problem> {
    let collection = conversation.collection.as_deref();
    Ok(collection.map(CollectionName::new).transpose()?)
}

/// One answer at a time in a conversation, so that each has seen what was said before.
fn refuse_second(app: &App, owner: &Owner, conversation: &str) -> Result<(), Problem> {
    if !app.platform.conversations.is_busy(owner, conversation) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "answer_running",
        format!(
            "an answer is being written in this conversation; wait for it, or end it with POST \
             /api/v1/conversations/{conversation}/stop"
        ),
    ))
}

async fn room(app: &App) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
    app.platform.conversations.room().await.ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "as many answers are being written as this process may write at once; try again in a moment",
        )
        .after(Duration::from_secs(2))
    })
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"))
}

/// The answer as events, or when it has ended as one object.
async fn reply(app: &App, owner: &Owner, begun: Begun, stream: bool) -> Result<Response, Problem> {
    if stream {
        return Ok(streamed(begun.live, 0));
    }
    let mut reply = json!({
        "conversation_id": begun.conversation,
        "message_id": begun.answer.id,
        "question_id": begun.question.map(|question| question.id),
    });
    let mut problem = None;
    let mut at = 0;
    while let Some((name, data)) = begun.live.event(at).await {
        at += 1;
        match (name, data) {
            ("retrieval", data) => reply["retrieval"] = data,
            ("done", Value::Object(fields)) => fields
                .into_iter()
                .for_each(|(name, value)| reply[name] = value),
            ("error", data) => problem = Some(data),
            _ => {}
        }
    }
    let catalog = &app.platform.catalog;
    let saved = catalog
        .message(owner, &begun.conversation, &begun.answer.id)
        .await?;
    reply["answer"] = json!(saved.content);
    reply["citations"] = saved.citations;
    reply["usage"] = saved.usage;
    reply["state"] = json!(saved.state);
    reply["reason"] = json!(saved.reason);
    let Some(problem) = problem else {
        return Ok(Json(reply).into_response());
    };
    // What was produced goes with it; the status is the problem's.
    let status = problem["status"]
        .as_u64()
        .and_then(|status| u16::try_from(status).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut body = problem;
    body["message"] = reply;
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    Ok((status, kind, body.to_string()).into_response())
}

/// What an answer tells from an event on, as server-sent events. The reader may go; the answer is written on.
fn streamed(live: Arc<Live>, from: usize) -> Response {
    let beat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    Sse::new(told(live, from)).keep_alive(beat).into_response()
}

fn told(live: Arc<Live>, from: usize) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send {
    stream::unfold((live, from), |(live, at)| async move {
        let (name, data) = live.event(at).await?;
        let event = sse::Event::default()
            .id(at.to_string())
            .event(name)
            .data(data.to_string());
        Some((event, (live, at + 1)))
    })
    .chain(stream::once(async { sse::Event::default().data("[DONE]") }))
    .map(Ok)
}
