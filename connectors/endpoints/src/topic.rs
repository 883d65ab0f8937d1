//! `topic`: reading from and appending to the log.
//!
//! As a sink it writes nothing itself: its rows become part of the checkpoint's commit, which is what makes pipelines
//! between topics exactly-once.
//!
//! Without `format` a topic holds this platform's own batches. With it, it holds what other programs write and read, one
//! message a row; what the bytes mean is `va-formats`' business, and the rest is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use va_catalog::store::{SchemaChange, evolve};
use va_catalog::{Partition, TopicName};
use va_connectors::flow::{Append, CheckpointId, FlowError, Names, Prepared, Problem, Sink};
use va_connectors::log::records::{self, headers_type};
use va_connectors::log::{Log, Target, partition_of};
use va_connectors::schema::parse_schema;
use va_formats::source::RecordsSpec;
use va_formats::{
    Encoder, FormatError, FormatSpec, MetadataColumn, check_columns, payload_columns,
};

use crate::endpoint::{Resources, SinkPlan, SinkSpec, SourcePlan, SourceSpec, StartAt};

/// Reads the rows of a topic, each partition in order.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicSource {
    /// Name of the topic.
    pub topic: String,
    /// Columns and their types, for a topic that the catalog does not know yet, e.g. `{id: string!, price: float64}`.
    #[serde(default)]
    pub schema: Option<Map<String, Value>>,
    /// Where to begin when this pipeline has never read the topic.
    #[serde(default)]
    pub start_at: StartAt,
    /// Columns by which the topic is partitioned: a promise that rows in which they are equal are in one partition, as they
    /// are where all of its producers use one of them as the key. Operators by this key then take them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyed_by: Option<Vec<String>>,
    /// Most rows in one batch.
    #[serde(default = "default_batch_rows_max")]
    pub batch_rows_max: usize,
    /// What the messages are, when other programs write them, e.g. `{type: json}`. A message that cannot be read is a
    /// dead letter. Without it: as the catalog has it, else this platform's own batches.
    #[serde(default)]
    pub format: Option<FormatSpec>,
    /// What a message has beside its payload, as more columns: `[key, timestamp]` adds `_key` and `_timestamp`. Only with
    /// a format.
    #[serde(default)]
    pub metadata: Vec<MetadataColumn>,
}

fn default_batch_rows_max() -> usize {
    8_192
}

impl SourceSpec for TopicSource {
    const KIND: &'static str = "topic";
    const EXAMPLE: &'static str = include_str!("../examples/topic.yaml");

    fn plan(&self, names: &dyn Names) -> Result<SourcePlan, Vec<Problem>> {
        let topic = topic_name(&self.topic)?;
        let declared = self.schema.as_ref().map(parse_schema).transpose()?;
        let format = format_of(self.format.as_ref(), &topic, names)?;
        let known = names.topic_schema(&topic);
        let wrong = |error: FormatError| vec![Problem::new(&["format"], error.to_string())];
        let written_out = match &format {
            Some(format) if declared.is_none() && known.is_none() => {
                format.columns().map_err(wrong)?
            }
            _ => None,
        };
        let schema = match (declared, known) {
            // Rows of either schema are read: what they lack is null, what they have more is left out.
            (Some(declared), Some(known)) => match check_columns(&known, &declared) {
                Ok(()) => declared,
                Err(message) => {
                    return Err(vec![
                        Problem::new(
                            &["schema"],
                            format!("topic `{topic}` has another schema: {message}"),
                        )
                        .hint("leave `schema` out to use the topic's own"),
                    ]);
                }
            },
            (Some(schema), None) | (None, Some(schema)) => schema,
            (None, None) => match written_out {
                Some(schema) => schema,
                None => {
                    let topics: Vec<String> =
                        names.topics().iter().map(ToString::to_string).collect();
                    return Err(vec![
                        Problem::new(&["topic"], format!("topic `{topic}` is not known")).hint(
                            format!(
                                "declare its `schema:` here, or use one of {}",
                                topics.join(", ")
                            ),
                        ),
                    ]);
                }
            },
        };
        if self.batch_rows_max == 0 {
            return Err(vec![Problem::new(
                &["batch_rows_max"],
                "must be at least 1",
            )]);
        }
        for column in self.keyed_by.iter().flatten() {
            if schema.field_with_name(column).is_err() {
                return Err(vec![Problem::new(
                    &["keyed_by"],
                    format!("topic `{topic}` has no column `{column}`"),
                )]);
            }
        }
        let records = format.map(|format| RecordsSpec {
            format,
            columns: schema.clone(),
            metadata: self.metadata.clone(),
        });
        if records.is_none() && !self.metadata.is_empty() {
            return Err(vec![
                Problem::new(
                    &["metadata"],
                    format!("topic `{topic}` holds batches of this platform, which have no keys"),
                )
                .hint("leave it out, or set the `format` of the topic's messages"),
            ]);
        }
        if let Some(records) = &records {
            records.reader().map_err(wrong)?;
        }
        Ok(SourcePlan {
            topic,
            schema: records.as_ref().map_or(schema, RecordsSpec::schema),
            keyed_by: self.keyed_by.clone(),
            start_at: self.start_at,
            batch_rows_max: self.batch_rows_max,
            records,
        })
    }
}

/// Appends rows to a topic; they become visible together with the checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicSink {
    /// Name of the topic; it is created when it does not exist.
    pub topic: String,
    /// Column whose value chooses the partition: rows of one key stay in order. `payload.field` reaches into a struct.
    /// Without it, batches take the partitions in turn. With a format it is also each message's key, and may be bytes.
    #[serde(default)]
    pub key: Option<String>,
    /// What the messages are, when other programs read them, e.g. `{type: json}`: one for each row. Without it: as the
    /// catalog has it, else this platform's own batches. Metadata columns (`_key`, `_headers`, ...) are not written into
    /// the payload.
    #[serde(default)]
    pub format: Option<FormatSpec>,
    /// Column with the headers of each message, as `_headers` of a source. Only with a format.
    #[serde(default)]
    pub headers: Option<String>,
}

impl SinkSpec for TopicSink {
    const KIND: &'static str = "topic";
    const EXAMPLE: &'static str = include_str!("../examples/topic.yaml");

    fn plan(&self, input: &SchemaRef, names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        let topic = topic_name(&self.topic)?;
        let format = format_of(self.format.as_ref(), &topic, names)?;
        let mut problems = Vec::new();
        if let Some(key) = &self.key {
            match key_field(input, key) {
                None => problems.push(Problem::new(
                    &["key"],
                    format!("the input has no column `{key}`"),
                )),
                Some(DataType::Utf8) => {}
                Some(DataType::Binary) if format.is_some() => {}
                Some(other) => problems.push(
                    Problem::new(
                        &["key"],
                        format!("column `{key}` is {other}, a key must be a string"),
                    )
                    .hint("cast it in a `map` before, e.g. `cast(id as varchar)`"),
                ),
            }
        }
        if let Some(headers) = &self.headers {
            if format.is_none() {
                problems.push(Problem::new(
                    &["headers"],
                    "only messages with a `format` have headers",
                ));
            }
            if input.field_with_name(headers).map(Field::data_type).ok() != Some(&headers_type()) {
                problems.push(
                    Problem::new(
                        &["headers"],
                        format!("the input has no column `{headers}` of headers"),
                    )
                    .hint("a source with `metadata: [headers]` has `_headers`"),
                );
            }
        }
        let columns = match &format {
            None => input.clone(),
            Some(_) => Arc::new(
                input
                    .project(&payload_columns(input))
                    .map_err(|error| vec![Problem::new(&["input"], error.to_string())])?,
            ),
        };
        if let Some(format) = &format
            && let Err(error) = format.encoder(&columns, &topic)
        {
            problems.push(Problem::new(&["format"], error.to_string()));
        }
        if let Some(known) = names.topic_schema(&topic)
            && let Err(changes) = evolve(&known, &columns)
        {
            problems.extend(changes.into_iter().map(|change| {
                let SchemaChange {
                    column, was, now, ..
                } = &change;
                let message =
                    format!("column `{column}` of topic `{topic}` was {was} and would be {now}");
                Problem::new(&["topic"], message).hint(change.hint)
            }));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(SinkPlan {
            topic: Some((topic, columns)),
            format,
        })
    }

    fn build(self, input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        let topic =
            TopicName::new(self.topic).map_err(|error| FlowError::fatal(Self::KIND, error))?;
        let partitions = Partitions {
            topic,
            log: resources.log.clone(),
            known: None,
        };
        let Some(format) = self.format else {
            return Ok(Box::new(TopicWriter {
                partitions,
                key: self.key,
                next: 0,
                rows: Vec::new(),
            }));
        };
        let payload = payload_columns(input);
        let columns = Arc::new(input.project(&payload)?);
        let encoder = format
            .encoder(&columns, &partitions.topic)
            .map_err(|error| FlowError::fatal(Self::KIND, error))?;
        Ok(Box::new(RecordsWriter {
            partitions,
            encoder,
            payload,
            key: self.key,
            headers: self.headers,
            turn: 0,
            rows: Vec::new(),
        }))
    }
}

/// The format that is named here, else the one that the catalog has; both must not differ.
fn format_of(
    named: Option<&FormatSpec>,
    topic: &TopicName,
    names: &dyn Names,
) -> Result<Option<FormatSpec>, Vec<Problem>> {
    let problem = |message: String| Problem::new(&["format"], message);
    let known = names
        .topic_format(topic)
        .map(serde_json::from_value::<FormatSpec>)
        .transpose()
        .map_err(|error| vec![problem(format!("the format of topic `{topic}`: {error}"))])?;
    match (named, known) {
        (Some(named), Some(known)) if named.kind() != known.kind() => Err(vec![
            problem(format!(
                "topic `{topic}` holds `{}`, not `{}`",
                known.kind(),
                named.kind()
            ))
            .hint("leave `format` out to use the topic's own"),
        ]),
        (Some(named), _) => Ok(Some(named.clone())),
        (None, known) => Ok(known),
    }
}

fn topic_name(name: &str) -> Result<TopicName, Vec<Problem>> {
    TopicName::new(name).map_err(|error| vec![Problem::new(&["topic"], error.to_string())])
}

fn key_field(input: &SchemaRef, key: &str) -> Option<DataType> {
    let (outer, inner) = key
        .split_once('.')
        .map_or((key, None), |(outer, inner)| (outer, Some(inner)));
    let field = input.field_with_name(outer).ok()?;
    match (field.data_type(), inner) {
        (data_type, None) => Some(data_type.clone()),
        (DataType::Struct(fields), Some(inner)) => fields
            .find(inner)
            .map(|(_, field)| field.data_type().clone()),
        _ => None,
    }
}

/// How many partitions the topic has.
struct Partitions {
    topic: TopicName,
    log: Arc<dyn Log>,
    /// Known after the first write.
    known: Option<u32>,
}

impl Partitions {
    async fn count(&mut self) -> Result<u32, FlowError> {
        if let Some(partitions) = self.known {
            return Ok(partitions);
        }
        let topics = self
            .log
            .topics()
            .await
            .map_err(|error| FlowError::retriable("topic", error))?;
        let partitions = topics
            .iter()
            .find(|(name, _)| name == &self.topic)
            .map(|(_, config)| config.partitions)
            .ok_or_else(|| {
                FlowError::fatal("topic", format!("topic `{}` does not exist", self.topic))
            })?;
        Ok(*self.known.insert(partitions))
    }
}

/// Appends batches.
struct TopicWriter {
    partitions: Partitions,
    key: Option<String>,
    /// Partition of the next batch without key.
    next: u32,
    rows: Vec<(Partition, RecordBatch)>,
}

/// Appends each row as a message in a format.
struct RecordsWriter {
    partitions: Partitions,
    encoder: Box<dyn Encoder>,
    /// Positions of the columns that go into the payload.
    payload: Vec<usize>,
    key: Option<String>,
    headers: Option<String>,
    turn: u32,
    rows: Vec<(Partition, RecordBatch)>,
}

/// Most bytes in one append of records; arrow's arrays end at 2 GiB.
const APPEND_BYTES_MAX: usize = 64 << 20;

#[async_trait]
impl Sink for RecordsWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        let partitions = self.partitions.count().await?;
        self.encoder.prepare().await.map_err(failed)?;
        // In one go and on the node's own task, as operators do: it is a few milliseconds for a full batch.
        let encoded = self
            .encoder
            .encode(&batch.project(&self.payload)?)
            .map_err(failed)?;
        let rows = encoded.payloads.len();
        let keys = match &self.key {
            Some(key) if encoded.by_row => {
                let keys = key_column(&batch, key)?;
                Some(arrow::compute::cast(&keys, &DataType::Binary)?)
            }
            _ => None,
        };
        let mut records =
            records::of_payloads(encoded.payloads, keys.map(|keys| keys.as_binary().clone()));
        if let Some(headers) = self.headers.as_deref().filter(|_| encoded.by_row)
            && let Some(headers) = batch.column_by_name(headers)
        {
            let mut columns = records.columns().to_vec();
            columns[3] = headers.clone();
            records = RecordBatch::try_new(records.schema(), columns)?;
        }
        debug_assert_eq!(records.num_rows(), rows);
        self.rows
            .extend(records::by_partition(&records, partitions, &mut self.turn)?);
        Ok(())
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        let topic = &self.partitions.topic;
        append_all(topic, std::mem::take(&mut self.rows), APPEND_BYTES_MAX)
    }
}

fn failed(error: FormatError) -> FlowError {
    match error {
        FormatError::Invalid(message) => FlowError::fatal("topic", message),
        FormatError::Unavailable(message) => FlowError::retriable("topic", message),
    }
}

/// Rows by partition as appends of about `bytes_max` at most, in order.
fn append_all(
    topic: &TopicName,
    rows: Vec<(Partition, RecordBatch)>,
    bytes_max: usize,
) -> Result<Prepared, FlowError> {
    let mut by_partition: BTreeMap<Partition, Vec<(usize, Vec<RecordBatch>)>> = BTreeMap::new();
    for (partition, batch) in rows {
        let bytes = batch.get_array_memory_size();
        let groups = by_partition.entry(partition).or_default();
        match groups.last_mut() {
            Some((sum, group)) if *sum + bytes <= bytes_max => {
                *sum += bytes;
                group.push(batch);
            }
            _ => groups.push((bytes, vec![batch])),
        }
    }
    let mut appends = Vec::new();
    for (partition, groups) in by_partition {
        for (_, batches) in groups {
            let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches)?;
            appends.push(Append {
                topic: topic.clone(),
                target: Target::Partition(partition),
                batch,
            });
        }
    }
    Ok(Prepared {
        appends,
        ..Prepared::default()
    })
}

#[async_trait]
impl Sink for TopicWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        let partitions = self.partitions.count().await?;
        let Some(key) = &self.key else {
            self.rows.push((Partition(self.next % partitions), batch));
            self.next = self.next.wrapping_add(1);
            return Ok(());
        };
        let mut rows: BTreeMap<Partition, Vec<u32>> = BTreeMap::new();
        let column = key_column(&batch, key)?;
        let keys = column.as_string::<i32>();
        for row in 0..batch.num_rows() {
            let key = if keys.is_valid(row) {
                keys.value(row)
            } else {
                ""
            };
            rows.entry(partition_of(key.as_bytes(), partitions))
                .or_default()
                .push(row as u32);
        }
        for (partition, rows) in rows {
            self.rows.push((
                partition,
                take_record_batch(&batch, &UInt32Array::from(rows))?,
            ));
        }
        Ok(())
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        let topic = &self.partitions.topic;
        append_all(topic, std::mem::take(&mut self.rows), usize::MAX)
    }
}

fn key_column(batch: &RecordBatch, key: &str) -> Result<arrow::array::ArrayRef, FlowError> {
    let (outer, inner) = key
        .split_once('.')
        .map_or((key, None), |(outer, inner)| (outer, Some(inner)));
    let column = batch.column_by_name(outer);
    let column = match inner {
        None => column.cloned(),
        Some(inner) => column
            .and_then(|c| c.as_struct_opt())
            .and_then(|s| s.column_by_name(inner))
            .cloned(),
    };
    column.ok_or_else(|| FlowError::fatal("topic", format!("the key column `{key}` is missing")))
}
