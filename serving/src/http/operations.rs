//! Health, metrics, the OpenAPI document, and what `va doctor` shows.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use va_models::ModelState;
use va_pipelines::runtime::PipelineState;

use super::{App, Problem};
use crate::platform::{Platform, Role, now_ms};

/// When to ask again whether the platform is ready.
const READY_AGAIN: Duration = Duration::from_secs(5);

/// The OpenAPI 3.1 document.
pub const OPENAPI: &str = include_str!("openapi.json");

/// The process is alive.
pub async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// The platform can answer: the catalog reads, and no built-in pipeline has failed. Without its cache it answers, too, with
/// less; then it says `degraded`.
pub async fn readyz(State(app): State<App>) -> Response {
    let checks = checks(&app, false).await;
    let failed: Vec<&Check> = checks
        .iter()
        .filter(|check| check.required && !check.ok)
        .collect();
    if failed.is_empty() {
        let degraded: Vec<String> = checks
            .iter()
            .filter(|check| check.degrades && !check.ok)
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        if degraded.is_empty() {
            return Json(json!({"status": "ok"})).into_response();
        }
        return Json(json!({"status": "degraded", "degraded": degraded})).into_response();
    }
    let reasons: Vec<String> = failed
        .iter()
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not_ready",
        reasons.join("; "),
    )
    .after(READY_AGAIN)
    .into_response()
}

/// Prometheus text.
pub async fn metrics(State(app): State<App>) -> Response {
    // Lag is measured when somebody asks.
    for name in app.platform.runtime.names() {
        let _ = app.platform.runtime.status(&name).await;
    }
    if let Ok(oldest) = app.platform.catalog.oldest_pending_all_tenants().await {
        let age_ms = oldest.map_or(0, |oldest| now_ms() - oldest);
        metrics::gauge!("va_document_oldest_pending_seconds").set(age_ms.max(0) as f64 / 1000.0);
    }
    let text = app
        .metrics
        .as_ref()
        .map(|handle| handle.render())
        .unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(format!(
        "there is nothing at `{}`; the API is described at /openapi.json",
        uri.path()
    ))
}

/// What is configured, reachable, lagging, broken.
pub async fn status(State(app): State<App>) -> Json<Value> {
    let checks: Vec<Value> = checks(&app, true)
        .await
        .into_iter()
        .map(|check| json!({"name": check.name, "ok": check.ok, "detail": check.detail}))
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "data": app.platform.data,
        "started_at": app.platform.started_at_ms,
        "checks": checks,
    }))
}

struct Check {
    name: String,
    ok: bool,
    /// Whether the platform cannot answer without it.
    required: bool,
    /// Whether everybody who waits for the platform is told that it is not there.
    degrades: bool,
    detail: String,
}

/// The check of the cache.
const CACHE: &str = "cache";

/// `thorough`: also what is asked for by people only, because it takes a while.
async fn checks(app: &App, thorough: bool) -> Vec<Check> {
    let platform = &app.platform;
    let mut checks = Vec::new();
    let mut check = |name: &str, required: bool, result: Result<String, String>| {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        checks.push(Check {
            name: name.to_owned(),
            ok,
            required,
            degrades: name == CACHE,
            detail,
        });
    };
    let catalog = platform.catalog.tenant(&platform.tenant).await;
    check(
        "catalog",
        true,
        catalog
            .map(|_| {
                let shared = platform.catalog.is_shared();
                if shared { "PostgreSQL" } else { "SQLite" }.to_owned()
            })
            .map_err(|e| e.to_string()),
    );
    // SQLite has no such thing, and nobody else at its file.
    if thorough && platform.catalog.is_shared() {
        check("row-level security", false, row_security(platform).await);
    }
    let cache = platform.cache.ping().await;
    let cache = cache
        .map(|()| platform.cache.told())
        .map_err(|error| error.to_string());
    check(CACHE, false, cache);
    check("disk", false, platform.disk.health());
    let logins = match platform.identity.locked() {
        Some(reason) => Err(reason.to_owned()),
        None => Ok("users can log in".to_owned()),
    };
    check("identity", false, logins);
    let topics = platform.log.topics().await;
    check(
        "log",
        true,
        topics
            .map(|t| match &platform.settings.log.brokers {
                Some(brokers) => format!("Kafka at {brokers}, {} topics", t.len()),
                None => format!("embedded, {} topics", t.len()),
            })
            .map_err(|e| e.to_string()),
    );
    let findings = match thorough {
        true => platform.log.diagnose().await,
        false => Ok(Vec::new()),
    };
    match findings {
        Ok(findings) => {
            for finding in findings {
                let said = format!("{}; {}", finding.what, finding.advice);
                check(&format!("log: {}", finding.name), false, Err(said));
            }
        }
        Err(error) => check("log", false, Err(error.to_string())),
    }
    let shared = platform.settings.indexes.shared;
    let vectors = platform.indexes.vectors.collections().await;
    check(
        "vector store",
        false,
        vectors
            .map(|c| {
                format!(
                    "{}, {} collections",
                    if shared { "shared splits" } else { "LanceDB" },
                    c.len()
                )
            })
            .map_err(|e| e.to_string()),
    );
    let texts = platform.indexes.text_collections().await;
    check(
        "full-text index",
        false,
        texts
            .map(|c| {
                format!(
                    "{}, {} collections",
                    if shared { "shared splits" } else { "tantivy" },
                    c.len()
                )
            })
            .map_err(|e| e.to_string()),
    );
    let model = va_models::DEFAULT_EMBEDDER;
    let found = platform
        .embedders
        .store()
        .list()
        .into_iter()
        .find(|info| info.name == model);
    let ready = match found.map(|info| info.state) {
        Some(ModelState::Ready) => Ok(format!("{model} is there")),
        _ => Err(format!(
            "{model} is not there or damaged; run `va model pull {model}`"
        )),
    };
    check("embedding model", false, ready);
    if platform.role != Role::Worker {
        check("model gateway", false, Ok(platform.gateway.told()));
    }
    for (name, result) in platform.folders.checks() {
        check(&name, false, result);
    }
    if !platform.role.runs_pipelines() {
        check("workers", false, workers(platform).await);
    }
    for name in platform.runtime.names() {
        let result = match platform.runtime.status(&name).await {
            Ok(status) => match status.state {
                PipelineState::Running => Ok(format!("running, {} rows behind", status.lag_rows)),
                PipelineState::Stopped => Err("stopped".to_owned()),
                PipelineState::Restarting { reason } => Err(format!("restarting: {reason}")),
                PipelineState::Failed { reason } if crate::disk::is_full(&reason) => Err(format!(
                    "failed, because the disk is full: {reason}; it goes on by itself when there is room again"
                )),
                PipelineState::Failed { reason } => Err(format!(
                    "failed: {reason}; mend the cause, then `va pipeline run {name}`"
                )),
            },
            Err(error) => Err(error.to_string()),
        };
        check(
            &format!("pipeline {name}"),
            crate::platform::is_built_in(&name),
            result,
        );
    }
    checks
}

/// Whether the database keeps tenants apart too, and not only the statements.
async fn row_security(platform: &Platform) -> Result<String, String> {
    match platform.catalog.role_above_row_security().await {
        Ok(None) => Ok("in force".to_owned()),
        Ok(Some((role, hint))) => Err(format!(
            "the server does not hold the role `{role}` to it; {hint}"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether somebody runs the pipelines of this installation.
async fn workers(platform: &Platform) -> Result<String, String> {
    let processes = crate::processes::alive(platform).await;
    let processes = processes.map_err(|error| error.to_string())?;
    let workers: Vec<String> = processes
        .iter()
        .filter(|process| process.role != Role::Serve.as_str())
        .map(|process| format!("{} ({}, {})", process.host, process.pid, process.version))
        .collect();
    if workers.is_empty() {
        Err("none: nothing is indexed; start one with `va worker`".to_owned())
    } else {
        Ok(format!("{}: {}", workers.len(), workers.join(", ")))
    }
}
