//! Pipelines: list, create, start, stop, tap.

use arrow::record_batch::RecordBatch;
use axum::body::Body as RawBody;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use va_catalog::store::{CatalogError, DesiredState, Page, Principal};
use va_catalog::{NodeName, PipelineName};
use va_pipelines::fixture::batch_to_rows;

use super::problem::Params;
use super::{App, Problem};
use crate::platform::is_built_in;

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Json<Value>, Problem> {
    let mut items = Vec::new();
    for (file, _) in va_pipelines::definitions::builtin() {
        let name = PipelineName::new(file.trim_end_matches(".yaml"))?;
        items.push(shown(&app, &principal, &name).await?);
    }
    let listing = app
        .platform
        .catalog
        .pipelines(&principal.tenant, &Page::first(500))
        .await?;
    for pipeline in listing.items {
        items.push(shown(&app, &principal, &pipeline.name).await?);
    }
    Ok(Json(json!({"items": items, "cursor": null})))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = PipelineName::new(name)?;
    let mut item = shown(&app, &principal, &name).await?;
    item["definition"] = json!(definition(&app, &principal, &name).await?);
    Ok(Json(item))
}

#[derive(Deserialize)]
pub struct Create {
    /// Name of the file, for messages.
    file: Option<String>,
}

/// Registers a pipeline (a new version when it is there) and runs it.
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(create): Params<Create>,
    definition: String,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let names = app.platform.names().await?;
    let file = create.file.unwrap_or_else(|| "pipeline.yaml".to_owned());
    let loaded = va_pipelines::load(&file, &definition, names.as_ref()).map_err(|diagnostics| {
        Problem::unprocessable(
            "invalid_pipeline",
            format!("{} problems in `{file}`", diagnostics.0.len()),
        )
        .with("diagnostics", json!(diagnostics.to_string()))
    })?;
    let name = loaded.plan.graph.name.clone();
    refuse_built_in(&name)?;
    if app.platform.runtime.plan(&name).is_some() {
        app.platform.runtime.stop(&name).await?;
    }
    app.platform
        .catalog
        .put_pipeline(&principal.tenant, &name, &definition, Some(&file))
        .await?;
    run(&app, &principal, loaded.plan).await?;
    Ok((
        StatusCode::CREATED,
        Json(shown(&app, &principal, &name).await?),
    ))
}

pub async fn start(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = PipelineName::new(name)?;
    let text = definition(&app, &principal, &name).await?;
    let names = app.platform.names().await?;
    let loaded =
        va_pipelines::load(name.as_str(), &text, names.as_ref()).map_err(|diagnostics| {
            Problem::unprocessable(
                "invalid_pipeline",
                format!("`{name}` is not valid any more"),
            )
            .with("diagnostics", json!(diagnostics.to_string()))
        })?;
    if app.platform.runtime.plan(&name).is_some() {
        // Also a failed pipeline is started anew.
        app.platform.runtime.stop(&name).await?;
    }
    run(&app, &principal, loaded.plan).await?;
    Ok(Json(shown(&app, &principal, &name).await?))
}

pub async fn stop(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = PipelineName::new(name)?;
    app.platform.runtime.stop(&name).await?;
    remember(&app, &principal, &name, DesiredState::Stopped).await?;
    Ok(Json(shown(&app, &principal, &name).await?))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let name = PipelineName::new(name)?;
    refuse_built_in(&name)?;
    app.platform
        .catalog
        .pipeline(&principal.tenant, &name)
        .await?;
    if app.platform.runtime.plan(&name).is_some() {
        app.platform.runtime.stop(&name).await?;
    }
    app.platform
        .catalog
        .delete_pipeline(&principal.tenant, &name)
        .await?;
    app.platform.runtime.delete_internal_topics(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    node: NodeName,
    limit: Option<u64>,
}

/// Live rows of a node, one JSON object a line.
pub async fn tap(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(tap): Params<Tap>,
) -> Result<Response, Problem> {
    let name = PipelineName::new(name)?;
    let mut batches = app.platform.runtime.tap(&name, &tap.node)?;
    let stopping = app.platform.stopping().clone();
    let mut left = tap.limit.unwrap_or(u64::MAX);
    let lines = async_stream(move |lines| async move {
        while left > 0 {
            let batch = tokio::select! {
                batch = batches.recv() => batch,
                () = stopping.cancelled() => return,
                () = lines.closed() => return,
            };
            let text = match batch {
                Ok(batch) => {
                    let batch = batch.slice(
                        0,
                        batch
                            .num_rows()
                            .min(usize::try_from(left).unwrap_or(usize::MAX)),
                    );
                    left -= batch.num_rows() as u64;
                    ndjson(&batch)
                }
                Err(RecvError::Lagged(missed)) => {
                    format!("{}\n", json!({"_missed_batches": missed}))
                }
                Err(RecvError::Closed) => return,
            };
            if lines.send(Ok(text)).await.is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

/// A reply that is written line by line by a task, which ends when the client goes.
pub fn async_stream<F, Fut>(write: F) -> Response
where
    F: FnOnce(tokio::sync::mpsc::Sender<Result<String, std::convert::Infallible>>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (lines_tx, lines) = tokio::sync::mpsc::channel(8);
    tokio::spawn(write(lines_tx));
    let body = RawBody::from_stream(tokio_stream::wrappers::ReceiverStream::new(lines));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Rows as JSON lines; vectors are left out, they are long and say nothing to a reader.
fn ndjson(batch: &RecordBatch) -> String {
    let kept: Vec<usize> = (0..batch.num_columns())
        .filter(|&i| batch.schema().field(i).name() != "vector")
        .collect();
    let rows = batch
        .project(&kept)
        .map_err(|error| error.to_string())
        .and_then(|batch| batch_to_rows(&batch));
    match rows {
        Ok(rows) => rows
            .into_iter()
            .map(|row| format!("{}\n", Value::Object(row)))
            .collect(),
        Err(error) => format!("{}\n", json!({"_error": error})),
    }
}

async fn run(app: &App, principal: &Principal, plan: va_pipelines::Plan) -> Result<(), Problem> {
    let name = plan.graph.name.clone();
    app.platform.run(plan).await.map_err(Problem::internal)?;
    remember(app, principal, &name, DesiredState::Running).await
}

/// Built-in pipelines run whenever the platform does; only users' pipelines have a wish to remember.
async fn remember(
    app: &App,
    principal: &Principal,
    name: &PipelineName,
    state: DesiredState,
) -> Result<(), Problem> {
    if !is_built_in(name) {
        app.platform
            .catalog
            .set_desired_state(&principal.tenant, name, state)
            .await?;
    }
    Ok(())
}

fn refuse_built_in(name: &PipelineName) -> Result<(), Problem> {
    if is_built_in(name) {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "built_in",
            format!("`{name}` is a built-in pipeline; give yours another name"),
        ));
    }
    Ok(())
}

async fn definition(
    app: &App,
    principal: &Principal,
    name: &PipelineName,
) -> Result<String, Problem> {
    let built_in = va_pipelines::definitions::builtin()
        .into_iter()
        .find(|(file, _)| file.strip_suffix(".yaml") == Some(name.as_str()));
    match built_in {
        Some((_, text)) => Ok(text.to_owned()),
        None => Ok(app
            .platform
            .catalog
            .pipeline(&principal.tenant, name)
            .await?
            .definition),
    }
}

async fn shown(app: &App, principal: &Principal, name: &PipelineName) -> Result<Value, Problem> {
    let built_in = is_built_in(name);
    let (version, desired) = match app.platform.catalog.pipeline(&principal.tenant, name).await {
        Ok(pipeline) => (pipeline.version.0, pipeline.desired_state),
        Err(CatalogError::NotFound { .. }) if built_in => (1, DesiredState::Running),
        Err(error) => return Err(error.into()),
    };
    let mut item = match app.platform.runtime.status(name).await {
        Ok(status) => serde_json::to_value(status).map_err(Problem::internal)?,
        Err(_) => json!({"name": name, "state": "stopped", "lag_rows": null, "nodes": {}}),
    };
    item["version"] = json!(version);
    item["desired_state"] = json!(desired);
    item["built_in"] = json!(built_in);
    Ok(item)
}
