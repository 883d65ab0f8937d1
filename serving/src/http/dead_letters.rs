//! Dead letters of a pipeline: list, show, retry.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_catalog::{DocumentId, Permission, PipelineName};

use super::problem::{Body, Params};
use super::routes::{Access, Routes};
use super::{App, Problem};
use crate::dead_letters::{self, DeadLetterError, Filter, Letter, LetterId, Wanted};

pub fn routes() -> Routes {
    let (read, retries) = (
        Access::Needs(Permission::DeadLettersRead),
        Access::Needs(Permission::DeadLettersRetry),
    );
    Routes::new()
        .get("/api/v1/pipelines/{pipeline}/dlq", read, list)
        .post("/api/v1/pipelines/{pipeline}/dlq/retry", retries, retry)
        .get("/api/v1/pipelines/{pipeline}/dlq/{id}", read, get)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    limit: Option<u32>,
    cursor: Option<String>,
    /// Part of the reason.
    reason: Option<String>,
    operator: Option<String>,
    /// Also letters that were retried.
    #[serde(default)]
    all: bool,
    /// Counts by operator and reason instead of letters.
    #[serde(default)]
    summary: bool,
}

async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(pipeline): Path<String>,
    Params(listing): Params<Listing>,
) -> Result<Json<Value>, Problem> {
    let pipeline = PipelineName::new(pipeline)?;
    let (platform, tenant) = (&app.platform, &principal.tenant);
    let filter = Filter {
        reason: listing.reason,
        operator: listing.operator,
        retried: listing.all,
        hidden: hidden(&app, &principal).await?,
    };
    if listing.summary {
        let counts = dead_letters::summary(platform, tenant, &pipeline, &filter).await?;
        return Ok(Json(json!({"items": counts, "cursor": null})));
    }
    let limit = listing.limit.unwrap_or(100);
    let cursor = listing.cursor.as_deref();
    let page = dead_letters::list(platform, tenant, &pipeline, &filter, cursor, limit).await?;
    let items: Vec<Value> = page.letters.iter().map(shown).collect();
    Ok(Json(json!({"items": items, "cursor": page.next})))
}

/// Everything about one letter, with the whole failing row: as JSON and as an Arrow IPC stream.
async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path((pipeline, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let pipeline = PipelineName::new(pipeline)?;
    let id: LetterId = id.parse()?;
    let letter = found(&app, &principal, &pipeline, id).await?;
    let row = letter.row().map_err(DeadLetterError::from)?;
    let mut item = shown(&letter);
    item["event_id"] = json!(letter.event_id);
    item["pipeline"] = json!(pipeline);
    item["row"] = Value::Object(row);
    item["row_ipc"] = json!(STANDARD.encode(&letter.row_ipc));
    Ok(Json(item))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    ids: Option<Vec<LetterId>>,
    #[serde(default)]
    all: bool,
    operator: Option<String>,
    /// Part of the reason.
    reason: Option<String>,
}

/// Sends the source rows of letters through the pipeline again, each once.
async fn retry(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(pipeline): Path<String>,
    Body(retry): Body<Retry>,
) -> Result<Json<Value>, Problem> {
    let pipeline = PipelineName::new(pipeline)?;
    let narrowed = retry.operator.is_some() || retry.reason.is_some();
    let wanted = match (retry.ids, retry.all) {
        (Some(ids), false) if !narrowed => {
            if !hidden(&app, &principal).await?.is_empty() {
                for id in &ids {
                    found(&app, &principal, &pipeline, *id).await?;
                }
            }
            Wanted::Ids(ids)
        }
        (None, true) => Wanted::All(Filter {
            reason: retry.reason,
            operator: retry.operator,
            retried: false,
            hidden: hidden(&app, &principal).await?,
        }),
        _ => {
            return Err(Problem::invalid(
                "send either `ids`, a list, or `\"all\": true`, which `operator` and `reason` can narrow",
            ));
        }
    };
    // A task of its own: a client that goes away must not leave a document half way.
    let (platform, tenant) = (app.platform.clone(), principal.tenant);
    let retried =
        tokio::spawn(
            async move { dead_letters::retry(&platform, &tenant, &pipeline, wanted).await },
        );
    let outcome = retried.await.map_err(Problem::internal)??;
    Ok(Json(json!(outcome)))
}

/// The documents whose letters the caller may not see.
async fn hidden(app: &App, principal: &Principal) -> Result<BTreeSet<DocumentId>, Problem> {
    let viewer = principal.viewer();
    let catalog = &app.platform.catalog;
    Ok(catalog.hidden_documents(&viewer, &principal.tenant).await?)
}

/// The letter, unless it is about a document that the caller may not read.
async fn found(
    app: &App,
    principal: &Principal,
    pipeline: &PipelineName,
    id: LetterId,
) -> Result<Letter, Problem> {
    let letter = dead_letters::find(&app.platform, &principal.tenant, pipeline, id).await?;
    let filter = Filter {
        hidden: hidden(app, principal).await?,
        ..Filter::default()
    };
    if filter.hides(&letter) {
        return Err(DeadLetterError::UnknownLetter {
            pipeline: pipeline.to_string(),
            id: id.to_string(),
        }
        .into());
    }
    Ok(letter)
}

fn shown(letter: &Letter) -> Value {
    let document = letter.document.as_ref().map(|document| {
        json!({
            "collection": document.collection,
            "id": document.id,
            "version": document.version,
            "name": document.name,
            "uri": document.uri,
        })
    });
    json!({
        "id": letter.id,
        "failed_at": letter.failed_at_ms,
        "operator": letter.operator,
        "reason": letter.reason,
        "source": letter.source,
        "document": document,
        "row_json": letter.row_json,
        "retried_at": letter.retried_at_ms,
    })
}

impl From<DeadLetterError> for Problem {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::UnknownPipeline(_) | DeadLetterError::UnknownLetter { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string())
            }
            DeadLetterError::Busy(_) => Self::new(StatusCode::CONFLICT, "busy", error.to_string()),
            DeadLetterError::Invalid(message) => Self::invalid(message),
            DeadLetterError::Log(error) => error.into(),
            DeadLetterError::Catalog(error) => error.into(),
            error @ DeadLetterError::Damaged(_) => Self::internal(error),
        }
    }
}
