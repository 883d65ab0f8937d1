//! Conversations: their list and messages, asking in them, following an answer, stopping it, asking again, feedback.
//!
//! Everything is of the caller: other users of the tenant get 404. What is wrong with a message is told before anything is
//! written; what goes wrong later is the event `error` of its stream, and the reason of a partial answer.

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
use va_catalog::store::{
    Conversation, Feedback, MessageRole, MessageState, Owner, Page, Principal, StoredMessage,
};
use va_catalog::{CollectionName, Filter};

use super::collections::scoped;
use super::problem::{Body, Params};
use super::rag::writer;
use super::withheld::withhold;
use super::{App, Problem, RequestId};
use crate::conversations::{Begun, ContextStrategy, Live, Mode, Work, begin, title_of};
use crate::rag::{Mode as RagMode, RagRequest, Turn, check};

/// The largest body of these routes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
const MESSAGE_CHARS_MAX: usize = 8_000;
/// Messages that are looked at for the context.
const LOOKED_AT: u32 = 200;
/// How often a stream without events shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// What the title or a message must hold.
    q: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(search): Params<Search>,
) -> Result<Json<Value>, Problem> {
    let page = Page {
        cursor: search.cursor,
        ..Page::first(search.limit.unwrap_or(100))
    };
    let wanted = search.q.as_deref().filter(|q| !q.is_empty());
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let listing = catalog.conversations(&owner, wanted, &page).await?;
    Ok(Json(
        json!({"items": listing.items, "cursor": listing.next}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    #[serde(default)]
    title: String,
    collection: Option<CollectionName>,
}

pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(create): Body<Create>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let catalog = &app.platform.catalog;
    if let Some(collection) = &create.collection {
        let collection = scoped(&principal, collection.as_str())?;
        catalog.collection(&collection).await?;
    }
    let owner = Owner::from(&principal);
    let made = catalog
        .create_conversation(&owner, &create.title, create.collection.as_ref())
        .await?;
    app.platform.conversations.tell();
    Ok((StatusCode::CREATED, Json(json!(made))))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    let conversation = app.platform.catalog.conversation(&owner, &id).await?;
    Ok(Json(json!(conversation)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    title: String,
}

pub async fn update(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(update): Body<Update>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let conversation = catalog
        .rename_conversation(&owner, &id, &update.title)
        .await?;
    Ok(Json(json!(conversation)))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let owner = Owner::from(&principal);
    app.platform.conversations.stop(&owner, &id);
    let catalog = &app.platform.catalog;
    catalog.delete_conversation(&owner, &id).await?;
    app.platform.conversations.tell();
    Ok(StatusCode::NO_CONTENT)
}

pub async fn messages(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Params(paging): Params<super::collections::Paging>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let mut listing = catalog.messages(&owner, &id, &paging.page()).await?;
    withhold(&app, &principal, &mut listing.items).await?;
    Ok(Json(
        json!({"items": listing.items, "cursor": listing.next}),
    ))
}

/// Stops the answers that this process writes in the conversation.
pub async fn stop(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    app.platform.catalog.conversation(&owner, &id).await?;
    let stopped = app.platform.conversations.stop(&owner, &id);
    Ok(Json(json!({"stopped": stopped})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    feedback: Feedback,
    comment: Option<String>,
}

pub async fn feedback(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((id, message)): Path<(String, String)>,
    Body(said): Body<Said>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    let catalog = &app.platform.catalog;
    let comment = said.comment.as_deref();
    let mut message = catalog
        .set_feedback(&owner, &id, &message, said.feedback, comment)
        .await?;
    app.platform.conversations.tell();
    withhold(&app, &principal, std::slice::from_mut(&mut message)).await?;
    Ok(Json(json!(message)))
}

/// How an answer is to be made.
struct How {
    mode: Option<Mode>,
    model: Option<String>,
    context: ContextStrategy,
}

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
    let earlier = match &known {
        Some(known) => {
            refuse_second(&app, &owner, &known.id)?;
            let mut earlier = catalog.last_messages(&owner, &known.id, LOOKED_AT).await?;
            withhold(&app, &principal, &mut earlier).await?;
            earlier
        }
        None => Vec::new(),
    };
    let how = How {
        mode: chat.mode,
        model: chat.model,
        context: chat.context.unwrap_or_default(),
    };
    let collection_name = collection.clone();
    let (mode, work, degraded) =
        plan(&app, &principal, &id, &how, &question, collection, &earlier).await?;
    let room = room(&app).await?;
    let conversation = match known {
        Some(known) => known.id,
        None => {
            let title = title_of(&question);
            catalog
                .create_conversation(&owner, &title, collection_name.as_ref())
                .await?
                .id
        }
    };
    let begun = begin(
        &app.platform,
        room,
        owner.clone(),
        &conversation,
        Some(&question),
        mode,
        degraded,
        work,
    )
    .await?;
    reply(
        &app,
        &owner,
        &conversation,
        begun,
        chat.stream || wants_stream(&headers),
    )
    .await
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
        .rposition(|message| message.role == MessageRole::User);
    let Some(last) = last else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "nothing has been asked in this conversation: send a message to /api/v1/chat first",
        ));
    };
    let question = earlier[last].content.clone();
    earlier.truncate(last);
    let how = How {
        mode: again.mode,
        model: again.model,
        context: again.context.unwrap_or_default(),
    };
    let collection = collection_of(&known)?;
    let (mode, work, degraded) =
        plan(&app, &principal, &id, &how, &question, collection, &earlier).await?;
    let room = room(&app).await?;
    let begun = begin(
        &app.platform,
        room,
        owner.clone(),
        &known.id,
        None,
        mode,
        degraded,
        work,
    )
    .await?;
    reply(
        &app,
        &owner,
        &known.id,
        begun,
        again.stream || wants_stream(&headers),
    )
    .await
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

/// How the question is answered, and why that is not quite what was asked for.
async fn plan(
    app: &App,
    principal: &Principal,
    id: &RequestId,
    how: &How,
    question: &str,
    collection: Option<CollectionName>,
    earlier: &[StoredMessage],
) -> Result<(Mode, Work, Vec<Value>), Problem> {
    let context = how.context.check().map_err(Problem::invalid)?;
    let history = context.history(earlier);
    let wanted = how
        .mode
        .unwrap_or_else(|| Mode::choose(question, collection.is_some()));
    let mut degraded = Vec::new();
    if wanted == Mode::Agent {
        degraded.push(json!({
            "retriever": "agent",
            "reason": "there are no agents yet: it is answered from documents, or else by a model alone",
        }));
    }
    match collection {
        Some(collection) if wanted != Mode::Chat => {
            let work =
                from_documents(app, principal, id, how, question, collection, history).await?;
            Ok((Mode::Rag, work, degraded))
        }
        _ => {
            if wanted == Mode::Rag {
                degraded.push(json!({
                    "retriever": "collection",
                    "reason": "no `collection` is named to search in: a model answers by itself",
                }));
            }
            let gateway = &app.platform.gateway;
            let model = how.model.as_deref().or(gateway.default_model());
            let Some(model) = model.filter(|_| gateway.is_configured()) else {
                return Err(Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no_provider",
                    "no model provider is configured, or none is named in `model` or `llm.default_model` \
                     (docs/gateway.md); name a `collection` to be answered with sentences of its documents",
                ));
            };
            let work = Work::Chat {
                caller: Box::new(gateway.caller(principal, &id.0)),
                model: model.to_owned(),
                history,
                question: question.to_owned(),
            };
            Ok((Mode::Chat, work, degraded))
        }
    }
}

async fn from_documents(
    app: &App,
    principal: &Principal,
    id: &RequestId,
    how: &How,
    question: &str,
    collection: CollectionName,
    history: Vec<Turn>,
) -> Result<Work, Problem> {
    let request = RagRequest {
        question: question.to_owned(),
        collection,
        k: None,
        filter: Filter::default(),
        history,
        context_tokens: None,
        min_freshness: None,
        freshness_timeout_ms: None,
        allow_stale: false,
        stream: true,
        explain: false,
        mode: RagMode::Auto,
        model: how.model.clone(),
    };
    let ask = request
        .check(principal.viewer())
        .map_err(Problem::invalid)?;
    check(&app.platform, &principal.tenant, &ask).await?;
    let writer = writer(app, principal, id, &ask)?;
    Ok(Work::Rag {
        ask: Box::new(ask),
        writer,
    })
}

/// The answer as events, or when it has ended as one object.
async fn reply(
    app: &App,
    owner: &Owner,
    conversation: &str,
    begun: Begun,
    stream: bool,
) -> Result<Response, Problem> {
    if stream {
        return Ok(streamed(begun.live, 0));
    }
    let mut reply = json!({
        "conversation_id": conversation,
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
        .message(owner, conversation, &begun.answer.id)
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
