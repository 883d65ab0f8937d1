//! Topics: list, create, describe, delete, produce, consume.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::BinaryArray;
use arrow::datatypes::SchemaRef;
use axum::Extension;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use va_catalog::readers::tells_of_documents;
use va_catalog::store::{CatalogError, Page, Principal, Topic, WireFormat, check_batch};
use va_catalog::{Offset, Partition, TenantScope, TopicName, TopicPartition, Viewer};
use va_connectors::log::records::{self, Records};
use va_connectors::log::{FetchLimit, Log, Target, TopicConfig, partition_of};
use va_connectors::schema::{parse_schema, schema_lines};
use va_formats::source::{RecordsReader, RecordsSpec};
use va_formats::{FormatError, FormatSpec, MetadataColumn};
use va_pipelines::fixture::{batch_to_rows, rows_to_batch};

use super::pipelines::async_stream;
use super::problem::{Body, Params};
use super::{App, Problem};
use crate::platform::new_topic;

/// Says whose a row is.
const TENANT_COLUMN: &str = "tenant_id";
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
    /// Of the messages, when other programs write or read them. Without it the topic holds batches of this platform.
    format: Option<FormatSpec>,
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
    let mut is_there = false;
    if let Some(format) = &new.format {
        topic.wire_format = messages_of(format, &topic)?;
        // A topic of other programs is taken as it is: its retention is theirs to decide.
        let topics = app.platform.log.topics().await?;
        if let Some((_, config)) = topics.iter().find(|(name, _)| *name == topic.name) {
            if new
                .partitions
                .is_some_and(|wanted| wanted != config.partitions)
            {
                return Err(Problem::invalid(format!(
                    "topic `{}` is there already and has {} partitions; leave `partitions` out",
                    topic.name, config.partitions
                )));
            }
            topic.partitions = config.partitions;
            topic.retention.ms = config.retention_ms;
            topic.retention.bytes = config.retention_bytes;
            is_there = true;
        }
    }
    app.platform
        .catalog
        .create_topic(&principal.tenant, &topic)
        .await?;
    if !is_there {
        let config = TopicConfig {
            partitions: topic.partitions,
            retention_ms: topic.retention.ms,
            retention_bytes: topic.retention.bytes,
        };
        app.platform.log.create_topic(&topic.name, config).await?;
    }
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
        if !is_of(row, &principal.tenant) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                format!("line {line}: `{TENANT_COLUMN}` is not your own tenant"),
            ));
        }
        rows_to_batch(&schema, std::slice::from_ref(row)).map_err(|error| {
            let hint = misfit(&schema, row).map_or(error, |column| {
                format!("{column}; send what the topic has, or write the new type under a new name to a topic that has it")
            });
            Problem::unprocessable("invalid_row", format!("line {line}: {hint}"))
        })?;
    }
    let mut commit = app.platform.log.begin();
    let mut encoder = match format_of(&topic)? {
        Some(format) => {
            let mut encoder = format
                .encoder(&schema, &topic.name)
                .map_err(format_problem)?;
            encoder.prepare().await.map_err(format_problem)?;
            Some(encoder)
        }
        None => None,
    };
    let mut parts: Vec<Vec<Map<String, Value>>> = vec![Vec::new(); topic.partitions as usize];
    let mut keys: Vec<Vec<String>> = vec![Vec::new(); topic.partitions as usize];
    for (i, (line, row)) in rows.iter().enumerate() {
        let partition = match &produce.key {
            Some(column) => {
                let value = row.get(column).ok_or_else(|| {
                    Problem::unprocessable("invalid_row", format!("line {line} has no `{column}`"))
                })?;
                let key = value
                    .as_str()
                    .map_or_else(|| value.to_string(), ToOwned::to_owned);
                let partition = partition_of(key.as_bytes(), topic.partitions).0 as usize;
                keys[partition].push(key);
                partition
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
        let batch = match &mut encoder {
            None => batch,
            Some(encoder) => {
                let encoded = encoder.encode(&batch).map_err(format_problem)?;
                let keys = &keys[partition];
                let keys = (encoded.by_row && !keys.is_empty())
                    .then(|| BinaryArray::from_iter_values(keys));
                records::of_payloads(encoded.payloads, keys)
            }
        };
        commit.append(
            &topic.name,
            Target::Partition(Partition(partition as u32)),
            batch,
        );
    }
    commit.finish().await?;
    Ok(Json(json!({"appended": rows.len()})))
}

/// The first column of a row that does not fit the topic by itself, with what is expected and what came.
fn misfit(schema: &SchemaRef, row: &Map<String, Value>) -> Option<String> {
    if let Some(name) = row
        .keys()
        .find(|name| schema.column_with_name(name).is_none())
    {
        return Some(format!("column `{name}` is not in the topic"));
    }
    schema.fields().iter().enumerate().find_map(|(i, field)| {
        let value = row.get(field.name());
        let one: Map<String, Value> = value
            .map(|value| (field.name().clone(), value.clone()))
            .into_iter()
            .collect();
        let alone = Arc::new(schema.project(&[i]).ok()?);
        rows_to_batch(&alone, &[one]).err()?;
        let expected = schema_lines(&alone).concat();
        let got = value.map_or("nothing".to_owned(), Value::to_string);
        Some(format!(
            "column `{}`: the topic has `{expected}`, got {got}",
            field.name()
        ))
    })
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
    let catalog = &app.platform.catalog;
    // Its rows say what is in documents, also in those that only some may read.
    if principal.viewer() != Viewer::Everything
        && tells_of_documents(topic.name.as_str(), topic.schema.as_deref())
        && catalog.has_restricted(&principal.tenant).await?
    {
        return Err(CatalogError::NotFound {
            kind: "topic",
            name: topic.name.to_string(),
        }
        .into());
    }
    let messages = records_of(&topic)?;
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
        let left = Arc::new(tokio::sync::Mutex::new(limit));
        let readers = positions.into_iter().map(|(partition, mut from, high)| {
            let (log, lines, left) = (log.clone(), lines.clone(), left.clone());
            let (messages, tenant) = (messages.clone(), principal.tenant.clone());
            async move {
                let mut messages = match messages.map(|spec| spec.reader()).transpose() {
                    Ok(reader) => reader,
                    Err(error) => {
                        let _ = lines.send(Ok(error_line(&error))).await;
                        return;
                    }
                };
                while follow || from < high {
                    let wait = if follow {
                        Duration::from_secs(30)
                    } else {
                        Duration::ZERO
                    };
                    let at = (&partition, from);
                    let read = match &mut messages {
                        None => batch_lines(log.as_ref(), at, wait, &tenant).await,
                        Some(reader) => {
                            message_lines(log.as_ref(), at, wait, reader, &tenant).await
                        }
                    };
                    let (next, rows) = match read {
                        Ok(read) => read,
                        Err(error) => {
                            let _ = lines.send(Ok(error_line(&error))).await;
                            return;
                        }
                    };
                    from = next;
                    for part in rows.chunks(LINES_MAX) {
                        let mut left = left.lock().await;
                        let count = (part.len() as u64).min(*left) as usize;
                        *left -= count as u64;
                        let text = part[..count].concat();
                        if count == 0 || lines.send(Ok(text)).await.is_err() {
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

/// Lines that are sent at once.
const LINES_MAX: usize = 1_000;

fn error_line(error: &dyn std::fmt::Display) -> String {
    format!("{}\n", json!({"_error": error.to_string()}))
}

type Lines = Result<(Offset, Vec<String>), String>;

/// The next rows of a topic of batches, and where to go on.
async fn batch_lines(
    log: &dyn Log,
    (partition, from): (&TopicPartition, Offset),
    wait: Duration,
    tenant: &TenantScope,
) -> Lines {
    let fetched = log
        .fetch(partition, from, FetchLimit::default(), wait)
        .await
        .map_err(|error| error.to_string())?;
    let mut lines = Vec::new();
    for stored in fetched.batches {
        for (i, row) in batch_to_rows(&stored.batch)?.into_iter().enumerate() {
            let offset = stored.base.0 + i as u64;
            if is_of(&row, tenant) {
                lines.push(numbered(row, partition.partition, offset));
            }
        }
    }
    Ok((fetched.next, lines))
}

/// The next messages of a topic, decoded; one that cannot be read is shown with the reason.
async fn message_lines(
    log: &dyn Log,
    (partition, from): (&TopicPartition, Offset),
    wait: Duration,
    reader: &mut RecordsReader,
    tenant: &TenantScope,
) -> Lines {
    let fetched = log
        .fetch_records(partition, from, FetchLimit::default(), wait)
        .await
        .map_err(|error| error.to_string())?;
    let wrong = |error: FormatError| error.to_string();
    reader.prepare(&fetched.batch).await.map_err(wrong)?;
    let read = reader
        .read(&fetched.batch, partition.partition, &fetched.offsets)
        .map_err(wrong)?;
    let mut lines: Vec<(usize, String)> = Vec::with_capacity(fetched.offsets.len());
    for (i, row) in batch_to_rows(&read.batch)?.into_iter().enumerate() {
        let record = read.records.as_ref().map_or(i, |of| of[i] as usize);
        if is_of(&row, tenant) {
            let line = numbered(row, partition.partition, fetched.offsets[record].0);
            lines.push((record, line));
        }
    }
    let records = Records::of(&fetched.batch).ok_or("the log returned no records")?;
    for failure in read.failures {
        let value = records
            .value(failure.payload)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let row = json!({"_error": failure.reason, "_value": value});
        let Value::Object(row) = row else { continue };
        let offset = fetched.offsets[failure.payload].0;
        lines.push((failure.payload, numbered(row, partition.partition, offset)));
    }
    lines.sort_by_key(|(record, _)| *record);
    let lines = lines.into_iter().map(|(_, line)| line).collect();
    Ok((fetched.next, lines))
}

/// Whether a row is the tenant's: with a column `tenant_id`, what it says; without, it is the operators', who alone come
/// here. SQL has the same rule.
fn is_of(row: &Map<String, Value>, tenant: &TenantScope) -> bool {
    row.get(TENANT_COLUMN)
        .and_then(Value::as_str)
        .is_none_or(|owner| owner == tenant.as_str())
}

fn numbered(mut row: Map<String, Value>, partition: Partition, offset: u64) -> String {
    row.insert("_partition".into(), json!(partition));
    row.insert("_offset".into(), json!(offset));
    format!("{}\n", Value::Object(row))
}

/// The format of the topic's messages; `None` for batches.
fn format_of(topic: &Topic) -> Result<Option<FormatSpec>, Problem> {
    topic
        .wire_format
        .messages()
        .map(|options| serde_json::from_value(options.clone()))
        .transpose()
        .map_err(|error| {
            Problem::unprocessable(
                "invalid_format",
                format!("the format of topic `{}`: {error}", topic.name),
            )
        })
}

/// How the topic's messages are read; `None` for batches.
fn records_of(topic: &Topic) -> Result<Option<RecordsSpec>, Problem> {
    let Some(format) = format_of(topic)? else {
        return Ok(None);
    };
    let columns = topic.schema.clone().ok_or_else(|| {
        Problem::unprocessable("no_schema", format!("topic `{}` has no schema", topic.name))
    })?;
    let metadata = vec![MetadataColumn::Key, MetadataColumn::Timestamp];
    Ok(Some(RecordsSpec {
        format,
        columns,
        metadata,
    }))
}

/// The format as the catalog keeps it, when it can read and write the topic's columns.
fn messages_of(format: &FormatSpec, topic: &Topic) -> Result<WireFormat, Problem> {
    if let Some(schema) = &topic.schema {
        format.decoder(schema).map_err(format_problem)?;
        format
            .encoder(schema, &topic.name)
            .map_err(format_problem)?;
    }
    serde_json::to_value(format)
        .map(WireFormat::Messages)
        .map_err(|error| Problem::invalid(error.to_string()))
}

fn format_problem(error: FormatError) -> Problem {
    match error {
        FormatError::Invalid(message) => Problem::unprocessable("invalid_format", message),
        FormatError::Unavailable(message) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
        }
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
        "format": topic.wire_format.as_str(),
        "format_options": topic.wire_format.messages(),
    }))
}
