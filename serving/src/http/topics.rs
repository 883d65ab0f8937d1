//! Topics: list, create, describe, delete, produce, consume.

use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use va_catalog::store::{Page, Principal, Topic, check_batch};
use va_catalog::{Offset, Partition, TopicName, TopicPartition};
use va_connectors::log::{FetchLimit, Target, TopicConfig, partition_of};
use va_connectors::schema::{parse_schema, schema_lines};
use va_pipelines::fixture::{batch_to_rows, rows_to_batch};

use super::pipelines::async_stream;
use super::problem::{Body, Params};
use super::{App, Problem};
use crate::platform::new_topic;

/// Largest body of one produce call.
const PRODUCE_BYTES_MAX: usize = 16 << 20;

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Json<Value>, Problem> {
    let listing = app
        .platform
        .catalog
        .topics(&principal.tenant, &Page::first(500))
        .await?;
    let mut items = Vec::with_capacity(listing.items.len());
    for topic in &listing.items {
        items.push(shown(&app, topic).await?);
    }
    Ok(Json(json!({"items": items, "cursor": listing.next})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTopic {
    name: TopicName,
    partitions: Option<u32>,
    schema: Map<String, Value>,
    retention_ms: Option<u64>,
    #[serde(default)]
    description: String,
}

pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(new): Body<NewTopic>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let schema = parse_schema(&new.schema).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Problem::unprocessable("invalid_schema", lines.join("; "))
    })?;
    let mut topic = new_topic(new.name, schema);
    topic.partitions = new.partitions.unwrap_or(topic.partitions);
    if !(1..=1_024).contains(&topic.partitions) {
        return Err(Problem::invalid(format!(
            "`partitions` is {}; use 1 to 1024",
            topic.partitions
        )));
    }
    topic.retention.ms = new.retention_ms.or(topic.retention.ms);
    topic.description = new.description;
    app.platform
        .catalog
        .create_topic(&principal.tenant, &topic)
        .await?;
    let config = TopicConfig {
        partitions: topic.partitions,
        retention_ms: topic.retention.ms,
        retention_bytes: topic.retention.bytes,
    };
    app.platform.log.create_topic(&topic.name, config).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &topic).await?)))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let topic = topic_of(&app, &principal, name).await?;
    let mut item = shown(&app, &topic).await?;
    let mut offsets = Vec::new();
    let mut groups = Vec::new();
    let known = app.platform.log.groups().await?;
    for partition in partitions(&topic) {
        let marks = app.platform.log.watermarks(&partition).await?;
        offsets
            .push(json!({"partition": partition.partition, "low": marks.low, "high": marks.high}));
        for group in &known {
            if let Some(committed) = app.platform.log.committed(group, &partition).await? {
                let lag = app.platform.log.distance(committed, marks.high);
                groups.push(json!({"group": group, "partition": partition.partition, "committed": committed, "lag": lag}));
            }
        }
    }
    item["offsets"] = json!(offsets);
    item["groups"] = json!(groups);
    Ok(Json(item))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let topic = topic_of(&app, &principal, name).await?;
    let user = app.platform.runtime.names().into_iter().find(|pipeline| {
        app.platform
            .runtime
            .plan(pipeline)
            .is_some_and(|plan| plan.topics.iter().any(|(used, _)| used == &topic.name))
    });
    if let Some(pipeline) = user {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "in_use",
            format!(
                "pipeline `{pipeline}` uses topic `{}`; stop and delete it first",
                topic.name
            ),
        ));
    }
    app.platform
        .catalog
        .delete_topic(&principal.tenant, &topic.name)
        .await?;
    app.platform.log.delete_topic(&topic.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Produce {
    /// Column whose value chooses the partition.
    key: Option<String>,
}

/// Appends JSON rows: all of them, in one commit, or none.
pub async fn produce(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Params(produce): Params<Produce>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let topic = topic_of(&app, &principal, name).await?;
    app.platform.backlog.room(topic.name.as_str())?;
    if body.len() > PRODUCE_BYTES_MAX {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("one call may have at most {PRODUCE_BYTES_MAX} bytes; send several"),
        ));
    }
    let schema = topic.schema.clone().ok_or_else(|| {
        Problem::new(
            StatusCode::CONFLICT,
            "no_schema",
            format!("topic `{}` has no schema", topic.name),
        )
    })?;
    let rows = json_rows(&body)?;
    // Row by row first, so that the error can name the line.
    for (line, row) in &rows {
        rows_to_batch(&schema, std::slice::from_ref(row)).map_err(|error| {
            Problem::unprocessable("invalid_row", format!("line {line}: {error}"))
        })?;
    }
    let mut commit = app.platform.log.begin();
    let mut parts: Vec<Vec<Map<String, Value>>> = vec![Vec::new(); topic.partitions as usize];
    for (i, (line, row)) in rows.iter().enumerate() {
        let partition = match &produce.key {
            Some(column) => {
                let value = row.get(column).ok_or_else(|| {
                    Problem::unprocessable("invalid_row", format!("line {line} has no `{column}`"))
                })?;
                let key = value
                    .as_str()
                    .map_or_else(|| value.to_string(), ToOwned::to_owned);
                partition_of(key.as_bytes(), topic.partitions).0 as usize
            }
            None => i % topic.partitions as usize,
        };
        parts[partition].push(row.clone());
    }
    for (partition, part) in parts
        .iter()
        .enumerate()
        .filter(|(_, part)| !part.is_empty())
    {
        let batch = rows_to_batch(&schema, part)
            .map_err(|error| Problem::unprocessable("invalid_row", error))?;
        check_batch(&topic, &batch)
            .map_err(|mismatch| Problem::unprocessable("schema_mismatch", mismatch.to_string()))?;
        commit.append(
            &topic.name,
            Target::Partition(Partition(partition as u32)),
            batch,
        );
    }
    commit.finish().await?;
    Ok(Json(json!({"appended": rows.len()})))
}

/// NDJSON, or one array, as `(line, row)`.
fn json_rows(body: &[u8]) -> Result<Vec<(usize, Map<String, Value>)>, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Problem::invalid(format!("the body is not UTF-8: {error}")))?;
    let not_object = |line: usize| {
        Problem::unprocessable("invalid_row", format!("line {line} is not a JSON object"))
    };
    if text.trim_start().starts_with('[') {
        let rows: Vec<Value> = serde_json::from_str(text)
            .map_err(|error| Problem::unprocessable("invalid_row", error.to_string()))?;
        return rows
            .into_iter()
            .enumerate()
            .map(|(i, row)| match row {
                Value::Object(row) => Ok((i + 1, row)),
                _ => Err(not_object(i + 1)),
            })
            .collect();
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| match serde_json::from_str(line) {
            Ok(Value::Object(row)) => Ok((i + 1, row)),
            Ok(_) => Err(not_object(i + 1)),
            Err(error) => Err(Problem::unprocessable(
                "invalid_row",
                format!("line {}: {error}", i + 1),
            )),
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consume {
    /// `earliest` (default), `latest`, or an offset.
    from: Option<String>,
    partition: Option<u32>,
    limit: Option<u64>,
    #[serde(default)]
    follow: bool,
}

/// Rows of a topic, one JSON object a line, each partition in order; with `follow`, new rows as they come.
pub async fn consume(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Params(consume): Params<Consume>,
) -> Result<Response, Problem> {
    let topic = topic_of(&app, &principal, name).await?;
    let wanted: Vec<TopicPartition> = match consume.partition {
        Some(partition) => vec![TopicPartition {
            topic: topic.name.clone(),
            partition: Partition(partition),
        }],
        None => partitions(&topic).collect(),
    };
    let mut positions = Vec::with_capacity(wanted.len());
    for partition in wanted {
        let marks = app.platform.log.watermarks(&partition).await?;
        let from = match consume.from.as_deref() {
            None | Some("earliest") => marks.low,
            Some("latest") => marks.high,
            Some(offset) => Offset(offset.parse().map_err(|_| {
                Problem::invalid(format!(
                    "`from` is `{offset}`; use earliest, latest or an offset"
                ))
            })?),
        };
        positions.push((partition, from, marks.high));
    }
    let log = app.platform.log.clone();
    let stopping = app.platform.stopping().clone();
    let follow = consume.follow;
    let limit = consume.limit.unwrap_or(u64::MAX);
    Ok(async_stream(move |lines| async move {
        let left = std::sync::Arc::new(tokio::sync::Mutex::new(limit));
        let readers = positions.into_iter().map(|(partition, mut from, high)| {
            let (log, lines, left) = (log.clone(), lines.clone(), left.clone());
            async move {
                while follow || from < high {
                    let wait = if follow {
                        Duration::from_secs(30)
                    } else {
                        Duration::ZERO
                    };
                    let fetched = match log
                        .fetch(&partition, from, FetchLimit::default(), wait)
                        .await
                    {
                        Ok(fetched) => fetched,
                        Err(error) => {
                            let _ = lines
                                .send(Ok(format!("{}\n", json!({"_error": error.to_string()}))))
                                .await;
                            return;
                        }
                    };
                    from = fetched.next;
                    for stored in fetched.batches {
                        let mut left = left.lock().await;
                        let rows = (stored.batch.num_rows() as u64).min(*left) as usize;
                        *left -= rows as u64;
                        let text = numbered(&stored.batch.slice(0, rows), &partition, stored.base);
                        if rows == 0 || lines.send(Ok(text)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        tokio::select! {
            _ = futures::future::join_all(readers) => {}
            () = stopping.cancelled() => {}
            () = lines.closed() => {}
        }
    }))
}

fn numbered(
    batch: &arrow::record_batch::RecordBatch,
    partition: &TopicPartition,
    base: Offset,
) -> String {
    match batch_to_rows(batch) {
        Ok(rows) => rows
            .into_iter()
            .enumerate()
            .map(|(i, mut row)| {
                row.insert("_partition".into(), json!(partition.partition));
                row.insert("_offset".into(), json!(base.0 + i as u64));
                format!("{}\n", Value::Object(row))
            })
            .collect(),
        Err(error) => format!("{}\n", json!({"_error": error})),
    }
}

async fn topic_of(app: &App, principal: &Principal, name: String) -> Result<Topic, Problem> {
    Ok(app
        .platform
        .catalog
        .topic(&principal.tenant, &TopicName::new(name)?)
        .await?)
}

fn partitions(topic: &Topic) -> impl Iterator<Item = TopicPartition> + '_ {
    (0..topic.partitions).map(|partition| TopicPartition {
        topic: topic.name.clone(),
        partition: Partition(partition),
    })
}

async fn shown(app: &App, topic: &Topic) -> Result<Value, Problem> {
    let mut rows = 0;
    for partition in partitions(topic) {
        let marks = app.platform.log.watermarks(&partition).await?;
        rows += app.platform.log.distance(marks.low, marks.high);
    }
    Ok(json!({
        "name": topic.name,
        "description": topic.description,
        "partitions": topic.partitions,
        "rows": rows,
        "schema": topic.schema.as_ref().map(|schema| schema_lines(schema)),
        "retention_ms": topic.retention.ms,
        "retention_bytes": topic.retention.bytes,
        "format": topic.wire_format,
    }))
}
