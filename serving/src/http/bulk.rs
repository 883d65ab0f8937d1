//! Documents by the hundred, for those who keep a folder and a collection alike: check, upload, states, listing by URI,
//! removal. Each call is bounded and costs a few disk syncs, whatever number of documents it is about.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::multipart::{Field, MultipartRejection};
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::{Extension, Json};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{DocumentState, Page, Principal};
use va_catalog::{ContentHash, DocumentId, Readers};

use super::collections::scoped;
use super::documents::{drain, shown_state};
use super::problem::{Body, Params};
use super::{App, Problem, readers};
use crate::ingest::{self, NewDocument, outcome_word};

/// Items of one check, and ids of one call.
pub const ITEMS_MAX: usize = 1_000;
/// Files of one bulk upload.
pub const BULK_FILES_MAX: usize = 200;
/// Bytes of all files of one bulk upload; all of them are in memory at once.
pub const BULK_BYTES_MAX: usize = 32 << 20;
/// Bytes of the list of items: 200 of them with long names and metadata.
const BULK_LIST_BYTES_MAX: usize = 2 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    items: Vec<CheckItem>,
    /// Who is to read them: a document that others may read is changed. Left out, it does not matter.
    readers: Option<Readers>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckItem {
    uri: String,
    hash: ContentHash,
}

/// Which of these the collection holds already with the same content, and which with another.
pub async fn check(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Body(check): Body<Check>,
) -> Result<Json<Value>, Problem> {
    bounded("items", check.items.len())?;
    let collection = scoped(&principal, &collection)?;
    app.platform.catalog.collection(&collection).await?;
    let uris: Vec<&str> = check.items.iter().map(|item| item.uri.as_str()).collect();
    let held = app
        .platform
        .catalog
        .live_contents(&collection, &uris)
        .await?;
    // Of what the caller may not read, it hears nothing; handing it in is refused.
    let viewer = principal.viewer();
    let held = held
        .into_iter()
        .map(|held| held.filter(|held| viewer.sees(&held.readers)));
    let as_wanted = |readers: &Readers| check.readers.as_ref().is_none_or(|r| r == readers);
    let (mut unchanged, mut changed) = (Vec::new(), Vec::new());
    for (item, held) in check.items.iter().zip(held) {
        match held {
            // One that never reached the log must be handed in again.
            Some(held)
                if held.content_hash == item.hash && held.state == DocumentState::Uploading => {}
            Some(held) if held.content_hash == item.hash && as_wanted(&held.readers) => {
                unchanged.push(json!({
                    "uri": item.uri, "id": held.id, "version": held.version, "state": held.state,
                }));
            }
            Some(_) => changed.push(&item.uri),
            None => {}
        }
    }
    Ok(Json(json!({
        "unchanged": unchanged,
        "changed": changed,
        "upload_bytes_max": app.platform.settings.limits.upload_bytes_max,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BulkItem {
    uri: String,
    name: String,
    content_type: Option<String>,
    #[serde(default)]
    meta: BTreeMap<String, String>,
    /// `user:ID` and `role:NAME`.
    readers: Option<Readers>,
}

/// Takes up to [`BULK_FILES_MAX`] files. Each has an outcome of its own, in the order of the list.
pub async fn upload(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let collection = scoped(&principal, &collection)?;
    app.platform.catalog.collection(&collection).await?;
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|rejection: MultipartRejection| Problem::invalid(rejection.body_text()))?;
    let documents = read_bulk(&mut parts).await;
    if documents.is_err() {
        for _ in 0..=BULK_FILES_MAX {
            let Ok(Some(field)) = parts.next_field().await else {
                break;
            };
            drain(futures::TryStreamExt::map_err(field, std::io::Error::other)).await;
        }
    }
    let documents = documents?;
    let wanted: BTreeSet<&Readers> = documents
        .iter()
        .filter_map(|(document, _)| document.readers.as_ref())
        .collect();
    for wanted in wanted {
        readers::check(&app, &principal, Some(wanted)).await?;
    }
    let viewer = principal.viewer();
    let outcomes = ingest::upload_many(&app.platform, &collection, &viewer, documents).await?;
    let items: Vec<Value> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(begun) => json!({
                "id": begun.id,
                "version": begun.version,
                "state": shown_state(begun.state),
                "outcome": outcome_word(begun.outcome),
            }),
            Err(error) => json!({"error": Problem::from(error).detail()}),
        })
        .collect();
    Ok(Json(json!({"items": items})))
}

async fn read_bulk(parts: &mut Multipart) -> Result<Vec<(NewDocument, Bytes)>, Problem> {
    let list = next_part(parts, "items").await?.ok_or_else(|| {
        Problem::invalid("the first part must be `items`: a JSON list of {uri, name}")
    })?;
    let list = read_part(list, BULK_LIST_BYTES_MAX, &|| {
        format!("the part `items` may have at most {BULK_LIST_BYTES_MAX} bytes; send fewer at once")
    })
    .await?;
    let items: Vec<BulkItem> = serde_json::from_slice(&list)
        .map_err(|error| Problem::invalid(format!("the part `items`: {error}")))?;
    if items.len() > BULK_FILES_MAX {
        return Err(Problem::invalid(format!(
            "{} items; upload at most {BULK_FILES_MAX} at once",
            items.len()
        )));
    }
    let mut left = BULK_BYTES_MAX;
    let mut documents = Vec::with_capacity(items.len());
    let count = items.len();
    for item in items {
        let part = next_part(parts, "file").await?.ok_or_else(|| {
            Problem::invalid(format!(
                "{count} items but {} parts `file`: send one for each, in the same order",
                documents.len()
            ))
        })?;
        let bytes = read_part(part, left, &|| {
            format!(
                "the files of one bulk upload may have at most {BULK_BYTES_MAX} bytes together; send fewer, or large \
                 ones each alone"
            )
        })
        .await?;
        left -= bytes.len();
        let document = NewDocument {
            name: item.name,
            uri: item.uri,
            content_type: item.content_type,
            metadata: item.meta,
            readers: item.readers,
        };
        documents.push((document, bytes));
    }
    if next_part(parts, "file").await?.is_some() {
        return Err(Problem::invalid(format!(
            "more parts `file` than the {count} items: send one for each, in the same order"
        )));
    }
    Ok(documents)
}

async fn next_part<'a>(parts: &'a mut Multipart, name: &str) -> Result<Option<Field<'a>>, Problem> {
    let part = parts
        .next_field()
        .await
        .map_err(|error| Problem::invalid(error.body_text()))?;
    match part {
        Some(part) if part.name() != Some(name) => Err(Problem::invalid(format!(
            "expected a part `{name}`, found `{}`",
            part.name().unwrap_or_default()
        ))),
        other => Ok(other),
    }
}

/// Reads a part of at most `limit` bytes; `else_say` is the reason when there are more.
async fn read_part(
    mut part: Field<'_>,
    limit: usize,
    else_say: &(dyn Fn() -> String + Sync),
) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = part
        .chunk()
        .await
        .map_err(|error| Problem::invalid(error.body_text()))?
    {
        if bytes.len() + piece.len() > limit {
            return Err(Problem::too_large(else_say()));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    ids: Vec<DocumentId>,
}

/// How the documents stand; those that are gone are left out.
pub async fn states(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Body(wanted): Body<Ids>,
) -> Result<Json<Value>, Problem> {
    bounded("ids", wanted.ids.len())?;
    let collection = scoped(&principal, &collection)?;
    app.platform.catalog.collection(&collection).await?;
    let documents = app
        .platform
        .catalog
        .documents_by_id(&collection, &wanted.ids)
        .await?;
    let viewer = principal.viewer();
    let items: Vec<Value> = documents
        .into_iter()
        .filter(|document| viewer.sees(&document.readers))
        .map(|document| {
            json!({
                "id": document.id,
                "uri": document.uri,
                "version": document.version,
                "state": document.state,
                "error": document.error,
                "hash": document.content_hash,
            })
        })
        .collect();
    Ok(Json(json!({"items": items})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Under {
    prefix: String,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Ids and URIs of the documents whose URI begins with the prefix, by URI.
pub async fn under(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Params(under): Params<Under>,
) -> Result<Json<Value>, Problem> {
    let collection = scoped(&principal, &collection)?;
    app.platform.catalog.collection(&collection).await?;
    let page = Page {
        cursor: under.cursor,
        ..Page::first(under.limit.unwrap_or(1_000))
    };
    let listing = app
        .platform
        .catalog
        .documents_under(&collection, &principal.viewer(), &under.prefix, &page)
        .await?;
    let items: Vec<Value> = listing
        .items
        .into_iter()
        .map(|(id, uri)| json!({"id": id, "uri": uri}))
        .collect();
    Ok(Json(json!({"items": items, "cursor": listing.next})))
}

/// Removes documents; those that are not there are no error.
pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Body(doomed): Body<Ids>,
) -> Result<Json<Value>, Problem> {
    bounded("ids", doomed.ids.len())?;
    let collection = scoped(&principal, &collection)?;
    let viewer = principal.viewer();
    let hidden = app
        .platform
        .catalog
        .hidden_among(&viewer, &collection, &doomed.ids)
        .await?;
    let mut doomed = doomed.ids;
    doomed.retain(|id| !hidden.contains(id));
    let deleted = ingest::delete_many(&app.platform, &collection, &doomed).await?;
    let ids: Vec<DocumentId> = deleted.into_iter().map(|document| document.id).collect();
    Ok(Json(json!({"deleted": ids})))
}

fn bounded(what: &str, count: usize) -> Result<(), Problem> {
    if count > ITEMS_MAX {
        return Err(Problem::invalid(format!(
            "{count} {what}; send at most {ITEMS_MAX} at once"
        )));
    }
    Ok(())
}
