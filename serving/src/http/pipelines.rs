//! Pipelines: list, create, start, stop, tap.

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::DataType;
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
use va_catalog::{NodeName, PipelineName, TenantScope};
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
    app.platform
        .catalog
        .put_pipeline(&principal.tenant, &name, &definition, Some(&file))
        .await?;
    wish(&app, &principal, &name, DesiredState::Running).await?;
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
    if is_built_in(&name) {
        require_here(&app, &name)?;
        if app.platform.runtime.plan(&name).is_some() {
            // Also a failed pipeline is started anew.
            app.platform.runtime.stop(&name).await?;
        }
        let run = app.platform.run(loaded.plan).await;
        run.map_err(Problem::internal)?;
    } else {
        wish(&app, &principal, &name, DesiredState::Running).await?;
    }
    Ok(Json(shown(&app, &principal, &name).await?))
}

pub async fn stop(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = PipelineName::new(name)?;
    if is_built_in(&name) {
        require_here(&app, &name)?;
        app.platform.runtime.stop(&name).await?;
    } else {
        wish(&app, &principal, &name, DesiredState::Stopped).await?;
    }
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
    app.platform
        .catalog
        .delete_pipeline(&principal.tenant, &name)
        .await?;
    crate::deployment::follow(&app.platform).await?;
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
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Params(tap): Params<Tap>,
) -> Result<Response, Problem> {
    let name = PipelineName::new(name)?;
    require_here(&app, &name)?;
    let mut batches = app.platform.runtime.tap(&name, &tap.node)?;
    let stopping = app.platform.stopping().clone();
    let mut left = tap.limit.unwrap_or(u64::MAX);
    let (tenant, built_in) = (principal.tenant, is_built_in(&name));
    let lines = async_stream(move |lines| async move {
        while left > 0 {
            let batch = tokio::select! {
                batch = batches.recv() => batch,
                () = stopping.cancelled() => return,
                () = lines.closed() => return,
            };
            let text = match batch {
                Ok(batch) => {
                    let batch = match of_tenant(&batch, &tenant, built_in) {
                        Ok(batch) => batch,
                        Err(error) => {
                            let line = format!("{}\n", json!({"_error": error}));
                            let _ = lines.send(Ok(line)).await;
                            return;
                        }
                    };
                    if batch.num_rows() == 0 {
                        continue;
                    }
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

/// The rows of a batch that say they are the tenant's. Of a pipeline of the operators' own, rows may not say whose they are
/// and are shown; the built-in ones carry every tenant's.
fn of_tenant(
    batch: &RecordBatch,
    tenant: &TenantScope,
    built_in: bool,
) -> Result<RecordBatch, String> {
    let owners = batch
        .column_by_name("tenant_id")
        .and_then(|column| arrow::compute::cast(column, &DataType::Utf8).ok());
    let Some(owners) = owners else {
        let shown = if built_in { 0 } else { batch.num_rows() };
        return Ok(batch.slice(0, shown));
    };
    let own: BooleanArray = owners
        .as_string::<i32>()
        .iter()
        .map(|owner| Some(owner == Some(tenant.as_str())))
        .collect();
    arrow::compute::filter_record_batch(batch, &own).map_err(|error| error.to_string())
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

/// Notes in the catalog what the pipeline should be doing, and follows it here; other processes follow by themselves.
async fn wish(
    app: &App,
    principal: &Principal,
    name: &PipelineName,
    state: DesiredState,
) -> Result<(), Problem> {
    let catalog = &app.platform.catalog;
    catalog
        .set_desired_state(&principal.tenant, name, state)
        .await?;
    crate::deployment::follow(&app.platform).await?;
    match app.platform.deployment.problem(name) {
        Some(problem) if state == DesiredState::Running => Err(Problem::internal(problem)),
        _ => Ok(()),
    }
}

/// Some calls concern what runs in this very process.
fn require_here(app: &App, name: &PipelineName) -> Result<(), Problem> {
    if app.platform.role.runs_pipelines() {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "not_here",
        format!(
            "`{name}` does not run in this process but in workers (`va worker`); ask for it where it runs"
        ),
    ))
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
    let processes = crate::processes::alive(&app.platform).await?;
    let mut item = match crate::processes::doing(&processes, name) {
        Some(doing) => doing,
        None => {
            let problem = app.platform.deployment.problem(name);
            let state = if problem.is_some() {
                "failed"
            } else {
                "stopped"
            };
            let nobody = desired == DesiredState::Running && !app.platform.role.runs_pipelines();
            let reason = problem.or_else(|| {
                nobody.then(|| "no process runs pipelines; start one with `va worker`".to_owned())
            });
            json!({"name": name, "state": state, "reason": reason, "nodes": {}})
        }
    };
    // Whoever runs it, how far it is behind is in the log.
    let plan = match app.platform.runtime.plan(name) {
        Some(plan) => Some(plan),
        None => planned(app, principal, name).await?.map(Into::into),
    };
    match plan {
        Some(plan) => {
            let lag = va_pipelines::runtime::lag(app.platform.log.as_ref(), &plan).await?;
            item["lag_rows"] = json!(lag.values().sum::<u64>());
            item["lag"] = json!(lag);
        }
        None => item["lag_rows"] = Value::Null,
    }
    item["version"] = json!(version);
    item["desired_state"] = json!(desired);
    item["built_in"] = json!(built_in);
    Ok(item)
}

/// The plan of a pipeline that does not run here; `None` when its definition is not valid any more.
async fn planned(
    app: &App,
    principal: &Principal,
    name: &PipelineName,
) -> Result<Option<va_pipelines::Plan>, Problem> {
    let text = definition(app, principal, name).await?;
    let names = app.platform.names().await?;
    let Ok(loaded) = va_pipelines::load(name.as_str(), &text, names.as_ref()) else {
        return Ok(None);
    };
    // As it runs: with the topics between its halves.
    let topics = app.platform.log.topics().await?;
    let partitions = |wanted: &va_catalog::TopicName| {
        let found = topics.iter().find(|(topic, _)| topic == wanted);
        found.map(|(_, config)| config.partitions)
    };
    let shuffled = loaded.plan.shuffled(&partitions);
    Ok(Some(shuffled.unwrap_or(loaded.plan)))
}
