//! Who may read a document: as it is given with an upload, and as it is changed later.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{BeginOutcome, Principal};
use va_catalog::{DocumentId, Readers};

use super::collections::scoped;
use super::documents::{readable, shown_state};
use super::problem::{Body, Params};
use super::users::note;
use super::{App, Problem};
use crate::identity::Origin;
use crate::ingest::{self, outcome_word};

/// How long `wait=ready` waits; the change goes on being indexed after it.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Readers out of a query, where they are a JSON list.
pub(super) fn read(list: &str) -> Result<Readers, Problem> {
    serde_json::from_str(list).map_err(|error| {
        Problem::invalid(format!(
            "`readers` is not a JSON list of `user:ID` and `role:NAME`: {error}"
        ))
    })
}

/// Refuses readers that do not exist, and those that would leave the caller out, who could not undo it.
pub(super) async fn check(
    app: &App,
    principal: &Principal,
    readers: Option<&Readers>,
) -> Result<(), Problem> {
    let Some(readers) = readers else {
        return Ok(());
    };
    let catalog = &app.platform.catalog;
    catalog.check_readers(&principal.tenant, readers).await?;
    if principal.viewer().sees(readers) {
        return Ok(());
    }
    Err(Problem::invalid(
        "`readers` leaves you out, so you could not take it back: name yourself or a role of yours too, or let somebody \
         with the permission `documents.manage` do it",
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    readers: Readers,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    wait: Option<Wait>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Wait {
    Ready,
}

/// Says who may read a document from now on. Its content is begun as a new version, which brings the readers into the
/// indexes.
pub async fn replace(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path((collection, id)): Path<(String, String)>,
    Params(waiting): Params<Waiting>,
    Body(change): Body<Change>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let collection = scoped(&principal, &collection)?;
    let id: DocumentId = id.parse()?;
    readable(&app, &principal, &collection, id).await?;
    check(&app, &principal, Some(&change.readers)).await?;
    let begun = ingest::change_readers(&app.platform, &collection, id, &change.readers).await?;
    let target = id.to_string();
    let detail = format!("collection {}", collection.collection);
    note(
        &app,
        &principal,
        &origin,
        "document.readers",
        &target,
        Some(&detail),
    )
    .await;
    let mut status = match begun.outcome {
        BeginOutcome::Unchanged => StatusCode::OK,
        BeginOutcome::New | BeginOutcome::Changed => StatusCode::ACCEPTED,
    };
    let mut reply = json!({
        "id": id,
        "version": begun.version,
        "state": shown_state(begun.state),
        "outcome": outcome_word(begun.outcome),
        "readers": change.readers,
        "error": null,
    });
    if waiting.wait == Some(Wait::Ready) {
        let done = ingest::wait_until_done(&app.platform, &collection, id, begun.version);
        if let Ok(document) = tokio::time::timeout(WAIT_MAX, done).await {
            let document = document?;
            status = StatusCode::OK;
            reply["state"] = json!(document.state);
            reply["error"] = json!(document.error);
        }
    }
    Ok((status, Json(reply)))
}
