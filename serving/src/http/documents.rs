//! Documents: upload, list, get, versions, delete. What is done to many at once is in [`super::bulk`].

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{
    BeginOutcome, CatalogError, DocumentFilter, DocumentInfo, DocumentState, Page, Principal,
};
use va_catalog::{CollectionRef, DocumentId, Readers, Viewer};

use super::collections::scoped;
use super::problem::Params;
use super::{App, Problem, readers};
use crate::ingest::{self, NewDocument, outcome_word};

/// What is read of a body that was refused, so that the sender comes to read the reply.
const DRAIN_BYTES_MAX: usize = 256 << 20;

/// How long `wait=ready` waits; the document goes on being indexed after it.
const WAIT_MAX: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    limit: Option<u32>,
    cursor: Option<String>,
    state: Option<DocumentState>,
    name: Option<String>,
}

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Params(listing): Params<Listing>,
) -> Result<Json<Value>, Problem> {
    let collection = scoped(&principal, &collection)?;
    app.platform.catalog.collection(&collection).await?;
    let page = Page {
        cursor: listing.cursor,
        ..Page::first(listing.limit.unwrap_or(100))
    };
    let filter = DocumentFilter {
        state: listing.state,
        name: listing.name,
        viewer: principal.viewer(),
    };
    let found = app
        .platform
        .catalog
        .documents(&collection, &filter, &page)
        .await?;
    Ok(Json(json!({"items": found.items, "cursor": found.next})))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let (collection, id) = (scoped(&principal, &collection)?, document_id(&id)?);
    Ok(Json(json!(
        readable(&app, &principal, &collection, id).await?
    )))
}

pub async fn versions(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let (collection, id) = (scoped(&principal, &collection)?, document_id(&id)?);
    // Versions stay known after a document is gone, so it is not asked for as a whole.
    if is_hidden(&app, &principal, &collection, id).await? {
        return Err(CatalogError::NotFound {
            kind: "document",
            name: id.to_string(),
        }
        .into());
    }
    let versions = app
        .platform
        .catalog
        .document_versions(&collection, id)
        .await?;
    Ok(Json(json!({"items": versions, "cursor": null})))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (collection, id) = (scoped(&principal, &collection)?, document_id(&id)?);
    if is_hidden(&app, &principal, &collection, id).await? {
        return Err(gone(&collection, id));
    }
    match ingest::delete(&app.platform, &collection, id).await? {
        Some(document) => Ok((StatusCode::ACCEPTED, Json(json!(document)))),
        None => Err(gone(&collection, id)),
    }
}

/// Whether the caller may not read the document, also when it is gone.
async fn is_hidden(
    app: &App,
    principal: &Principal,
    collection: &CollectionRef,
    id: DocumentId,
) -> Result<bool, Problem> {
    let (viewer, catalog) = (principal.viewer(), &app.platform.catalog);
    let hidden = catalog.hidden_among(&viewer, collection, &[id]).await?;
    Ok(!hidden.is_empty())
}

fn gone(collection: &CollectionRef, id: DocumentId) -> Problem {
    Problem::not_found(format!(
        "there is no document `{id}` in `{}`",
        collection.collection
    ))
}

/// The document, if the caller may read it; else it is as if it were not there.
pub(super) async fn readable(
    app: &App,
    principal: &Principal,
    collection: &CollectionRef,
    id: DocumentId,
) -> Result<DocumentInfo, Problem> {
    let viewer = principal.viewer();
    let catalog = &app.platform.catalog;
    Ok(catalog.document_seen_by(&viewer, collection, id).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    name: Option<String>,
    uri: Option<String>,
    content_type: Option<String>,
    /// JSON object of strings.
    meta: Option<String>,
    /// JSON list of `user:ID` and `role:NAME`.
    readers: Option<String>,
    wait: Option<Wait>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Wait {
    Ready,
}

type Part = std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

pub async fn upload(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(collection): Path<String>,
    Params(upload): Params<Upload>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let collection = scoped(&principal, &collection)?;
    let metadata: BTreeMap<String, String> = match &upload.meta {
        Some(meta) => serde_json::from_str(meta).map_err(|error| {
            Problem::invalid(format!("`meta` is not a JSON object of strings: {error}"))
        })?,
        None => BTreeMap::new(),
    };
    let readers = upload.readers.as_deref().map(readers::read).transpose()?;
    readers::check(&app, &principal, readers.as_ref()).await?;
    if let Err(refused) = refuse_announced_size(&app, &request) {
        drain(stream_of(request.into_body())).await;
        return Err(refused);
    }
    let wait = upload.wait == Some(Wait::Ready);
    let begun = if is_multipart(&request) {
        let with = (metadata, readers);
        multipart(
            &app,
            &collection,
            &principal.viewer(),
            upload,
            with,
            request,
        )
        .await?
    } else {
        let name = upload
            .name
            .clone()
            .ok_or_else(|| Problem::invalid("a raw body needs `?name=<file name>`"))?;
        let content_type = upload
            .content_type
            .clone()
            .or_else(|| content_type_of(&request));
        let document = new_document(&upload, name, content_type, (metadata, readers));
        let mut body = stream_of(request.into_body());
        let viewer = principal.viewer();
        let taken = ingest::upload(&app.platform, &collection, &viewer, document, &mut body).await;
        if taken.is_err() {
            drain(body).await;
        }
        taken?
    };
    let mut status = if begun.outcome == BeginOutcome::Unchanged {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut reply = json!({
        "id": begun.id,
        "version": begun.version,
        "state": shown_state(begun.state),
        "outcome": outcome_word(begun.outcome),
        "error": null,
    });
    if wait {
        let done = ingest::wait_until_done(&app.platform, &collection, begun.id, begun.version);
        if let Ok(document) = tokio::time::timeout(WAIT_MAX, done).await {
            let document = document?;
            status = StatusCode::OK;
            reply["state"] = json!(document.state);
            reply["error"] = json!(document.error);
        }
    }
    Ok((status, Json(reply)))
}

/// What a document carries beside its content: metadata and readers.
type Carried = (BTreeMap<String, String>, Option<Readers>);

async fn multipart(
    app: &App,
    collection: &CollectionRef,
    viewer: &Viewer,
    upload: Upload,
    with: Carried,
    request: Request,
) -> Result<va_catalog::store::Begun, Problem> {
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|rejection: MultipartRejection| Problem::invalid(rejection.body_text()))?;
    loop {
        let field = parts
            .next_field()
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?
            .ok_or_else(|| Problem::invalid("the multipart body has no field `file`"))?;
        if field.name() != Some("file") {
            continue;
        }
        let name = upload
            .name
            .clone()
            .or_else(|| field.file_name().map(ToOwned::to_owned))
            .ok_or_else(|| {
                Problem::invalid("the field `file` has no file name; add `filename=` or `?name=`")
            })?;
        let content_type = upload
            .content_type
            .clone()
            .or_else(|| field.content_type().map(ToOwned::to_owned));
        let document = new_document(&upload, name, content_type, with);
        // A field borrows the request, a stored stream must not: the pieces go through a small bounded channel.
        let (pieces_tx, pieces) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
        let body: Part = Box::pin(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let feed = async move {
            let mut field = field.map_err(|error| std::io::Error::other(error.body_text()));
            while let Some(piece) = field.next().await {
                let broken = piece.is_err();
                if pieces_tx.send(piece).await.is_err() {
                    return drain(field).await;
                }
                if broken {
                    return;
                }
            }
        };
        let (begun, ()) = tokio::join!(
            ingest::upload(&app.platform, collection, viewer, document, body),
            feed
        );
        return Ok(begun?);
    }
}

/// The state after an upload: what was begun is in the log by then.
pub(super) fn shown_state(begun: DocumentState) -> DocumentState {
    match begun {
        DocumentState::Uploading => DocumentState::Processing,
        other => other,
    }
}

fn new_document(
    upload: &Upload,
    name: String,
    content_type: Option<String>,
    (metadata, readers): Carried,
) -> NewDocument {
    NewDocument {
        uri: upload.uri.clone().unwrap_or_else(|| name.clone()),
        name,
        content_type,
        metadata,
        readers,
    }
}

/// Reads the rest of an upload away that was refused: its sender may send much, and is known.
pub(super) async fn drain(body: impl Stream<Item = std::io::Result<Bytes>> + Unpin) {
    super::leftover::drain(body, DRAIN_BYTES_MAX).await;
}

fn stream_of(body: RawBody) -> Part {
    Box::pin(body.into_data_stream().map_err(std::io::Error::other))
}

fn is_multipart(request: &Request) -> bool {
    content_type_of(request)
        .is_some_and(|content_type| content_type.starts_with("multipart/form-data"))
}

/// The content type, unless it is what clients send when they do not know.
fn content_type_of(request: &Request) -> Option<String> {
    let value = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    let unknown = [
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ]
    .iter()
    .any(|t| value.starts_with(t));
    (!unknown).then(|| value.to_owned())
}

/// Says no before the body is sent, when its length is announced.
fn refuse_announced_size(app: &App, request: &Request) -> Result<(), Problem> {
    let limit = app.platform.settings.limits.upload_bytes_max;
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    // Multipart adds a little around the file.
    match length {
        Some(length) if length > limit + 16 * 1024 => Err(ingest::IngestError::Objects(
            va_connectors::objects::ObjectError::TooLarge { limit },
        )
        .into()),
        _ => Ok(()),
    }
}

fn document_id(id: &str) -> Result<DocumentId, Problem> {
    Ok(id.parse()?)
}
