//! Conversations: their list and messages, stopping an answer, feedback; `answers` is asking in them and following an answer,
//! `plan` who answers and what it is told.
//!
//! Everything is of the caller: other users of the tenant get 404.

mod answers;
mod plan;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::CollectionName;
use va_catalog::store::{ConversationChange, Feedback, Owner, Page, Principal};

use super::collections::scoped;
use super::problem::{Body, Params};
use super::withheld::withhold;
use super::{App, Problem};
use crate::conversations::forget;

pub use answers::{chat, events, regenerate};

/// The largest body of these routes.
pub const BODY_BYTES_MAX: usize = 1 << 20;

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
    /// What is wanted of every answer in it.
    instructions: Option<String>,
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
        .create_conversation(
            &owner,
            &create.title,
            create.collection.as_ref(),
            create.instructions.as_deref(),
        )
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
    title: Option<String>,
    /// An empty text removes them.
    instructions: Option<String>,
}

pub async fn update(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(update): Body<Update>,
) -> Result<Json<Value>, Problem> {
    let owner = Owner::from(&principal);
    if update.title.is_none() && update.instructions.is_none() {
        return Err(Problem::invalid(
            "nothing is to be changed: send `title` or `instructions`",
        ));
    }
    let change = ConversationChange {
        title: update.title.as_deref(),
        instructions: update.instructions.as_deref(),
    };
    let catalog = &app.platform.catalog;
    let conversation = catalog.update_conversation(&owner, &id, &change).await?;
    forget(&app.platform, &owner, &id).await;
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
    forget(&app.platform, &owner, &id).await;
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
