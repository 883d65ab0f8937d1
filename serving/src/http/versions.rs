//! Versions of a document: one, its content, the difference between two, going back.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{BeginOutcome, DocumentState, Principal};
use va_catalog::{CollectionRef, DocumentId, Permission, Version};

use super::collections::scoped;
use super::documents::readable;
use super::problem::{Body, Params};
use super::routes::{Access, Routes};
use super::{App, Problem};
use crate::ingest::{self, outcome_word};
use crate::versions::{self, VersionError};

/// How long `wait=ready` waits; the document goes on being indexed after it.
const WAIT_MAX: Duration = Duration::from_secs(120);

pub fn routes() -> Routes {
    let (read, write) = (
        Access::Needs(Permission::DocumentsRead),
        Access::Needs(Permission::DocumentsWrite),
    );
    Routes::new()
        .get(
            "/api/v1/collections/{collection}/documents/{id}/versions/{version}",
            read,
            get,
        )
        .get(
            "/api/v1/collections/{collection}/documents/{id}/versions/{version}/content",
            read,
            content,
        )
        .get(
            "/api/v1/collections/{collection}/documents/{id}/diff",
            read,
            diff,
        )
        .post(
            "/api/v1/collections/{collection}/documents/{id}/rollback",
            write,
            rollback,
        )
}

type Place = Path<(String, String, u32)>;

fn place(
    principal: &Principal,
    collection: &str,
    id: &str,
) -> Result<(CollectionRef, DocumentId), Problem> {
    Ok((scoped(principal, collection)?, id.parse()?))
}

/// What was recorded of one version.
async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id, version)): Place,
) -> Result<Json<Value>, Problem> {
    let (collection, id) = place(&principal, &collection, &id)?;
    readable(&app, &principal, &collection, id).await?;
    let (document, found) =
        versions::find(&app.platform, &collection, id, Version(version)).await?;
    let mut item = json!(found);
    item["id"] = json!(id);
    item["name"] = json!(document.name);
    item["uri"] = json!(document.uri);
    // Of an old version only what was recorded may be left.
    let stored = app.platform.objects.exists(&found.content_hash).await;
    item["content_stored"] = json!(stored.map_err(VersionError::Objects)?);
    Ok(Json(item))
}

/// The bytes as they were uploaded. They are somebody's file, so a browser is told to save them and not to guess or run
/// anything.
async fn content(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id, version)): Place,
) -> Result<Response, Problem> {
    let (collection, id) = place(&principal, &collection, &id)?;
    readable(&app, &principal, &collection, id).await?;
    let (document, found) =
        versions::find(&app.platform, &collection, id, Version(version)).await?;
    let bytes = versions::content(&app.platform, &found).await?;
    let content_type = found
        .content_type
        .as_deref()
        .and_then(|recorded| HeaderValue::from_str(recorded).ok())
        .unwrap_or_else(|| HeaderValue::from_static(type_by_name(&document.name)));
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_DISPOSITION, attachment(&document.name)),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("sandbox; default-src 'none'"),
        ),
    ];
    Ok((headers, bytes).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    from: Option<u32>,
    to: Option<u32>,
}

/// What changed in the text.
async fn diff(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id)): Path<(String, String)>,
    Params(between): Params<Between>,
) -> Result<Json<Value>, Problem> {
    let (collection, id) = place(&principal, &collection, &id)?;
    readable(&app, &principal, &collection, id).await?;
    let (from, to) = (between.from.map(Version), between.to.map(Version));
    let difference = versions::diff(&app.platform, &collection, id, from, to).await?;
    Ok(Json(json!(difference)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    wait: Option<Wait>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Wait {
    Ready,
}

/// Begins a new version with the content of an old one.
async fn rollback(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((collection, id)): Path<(String, String)>,
    Params(waiting): Params<Waiting>,
    Body(rollback): Body<Rollback>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (collection, id) = place(&principal, &collection, &id)?;
    readable(&app, &principal, &collection, id).await?;
    let version = Version(rollback.version);
    let begun = versions::rollback(&app.platform, &collection, id, version).await?;
    let mut status = match begun.outcome {
        BeginOutcome::Unchanged => StatusCode::OK,
        BeginOutcome::New | BeginOutcome::Changed => StatusCode::ACCEPTED,
    };
    let state = match begun.state {
        DocumentState::Uploading => DocumentState::Processing,
        other => other,
    };
    let mut reply = json!({
        "id": id,
        "version": begun.version,
        "state": state,
        "outcome": outcome_word(begun.outcome),
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

/// `Content-Disposition` with the last part of the name: plain for old clients, and exact (RFC 8187).
fn attachment(name: &str) -> HeaderValue {
    let file = name
        .rsplit(['/', '\\'])
        .find(|part| !part.is_empty())
        .unwrap_or("document");
    let plain: String = file
        .chars()
        .map(|c| match c {
            '"' | '\\' | '%' => '_',
            c if c.is_ascii_graphic() || c == ' ' => c,
            _ => '_',
        })
        .collect();
    let exact: String = file
        .bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    HeaderValue::from_str(&format!(
        "attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
    ))
    .unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

/// The media type of a file whose type was not told.
fn type_by_name(name: &str) -> &'static str {
    let ending = name
        .rsplit_once('.')
        .map(|(_, ending)| ending.to_ascii_lowercase())
        .unwrap_or_default();
    match ending.as_str() {
        "csv" => "text/csv; charset=utf-8",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "eml" => "message/rfc822",
        "htm" | "html" => "text/html",
        "json" => "application/json",
        "md" | "markdown" => "text/markdown",
        "pdf" => "application/pdf",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "txt" => "text/plain",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        _ => "application/octet-stream",
    }
}

impl From<VersionError> for Problem {
    fn from(error: VersionError) -> Self {
        match error {
            VersionError::Unknown { .. } => Self::not_found(error.to_string()),
            VersionError::Only | VersionError::First(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
            VersionError::Gone { .. } => Self::new(StatusCode::GONE, "gone", error.to_string()),
            VersionError::Unreadable { .. } => Self::unprocessable("unreadable", error.to_string()),
            VersionError::Catalog(error) => error.into(),
            VersionError::Ingest(error) => error.into(),
            error @ (VersionError::Objects(_) | VersionError::Compare(_)) => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_break_out_of_the_header() {
        for (name, expected) in [
            (
                "手册/冻结.md",
                "attachment; filename=\"__.md\"; filename*=UTF-8''%E5%86%BB%E7%BB%93.md",
            ),
            (
                "a\"; x=\"b\r\nSet-Cookie: c.txt",
                "attachment; filename=\"a_; x=_b__Set-Cookie: c.txt\"; filename*=UTF-8''a%22%3B%20x%3D%22b%0D%0ASet-Cookie%3A%20c.txt",
            ),
            (
                "..\\..\\x.pdf",
                "attachment; filename=\"x.pdf\"; filename*=UTF-8''x.pdf",
            ),
            (
                "/",
                "attachment; filename=\"document\"; filename*=UTF-8''document",
            ),
        ] {
            assert_eq!(attachment(name), expected, "{name}");
        }
    }
}
