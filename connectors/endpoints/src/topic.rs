//! `topic`: reading from and appending to the log.
//!
//! As a sink it writes nothing itself: its rows become part of the checkpoint's commit, which is what makes pipelines
//! between topics exactly-once.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use va_catalog::{Partition, TopicName};
use va_connectors::flow::{Append, CheckpointId, FlowError, Names, Prepared, Problem, Sink};
use va_connectors::log::{Log, Target, partition_of};
use va_connectors::schema::parse_schema;

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
        let known = names.topic_schema(&topic);
        let schema = match (declared, known) {
            (Some(declared), Some(known)) if declared != known => {
                return Err(vec![
                    Problem::new(
                        &["schema"],
                        format!("differs from the schema that topic `{topic}` has"),
                    )
                    .hint("leave `schema` out to use the topic's own"),
                ]);
            }
            (Some(schema), _) | (None, Some(schema)) => schema,
            (None, None) => {
                let topics: Vec<String> = names.topics().iter().map(ToString::to_string).collect();
                return Err(vec![
                    Problem::new(&["topic"], format!("topic `{topic}` is not known")).hint(
                        format!(
                            "declare its `schema:` here, or use one of {}",
                            topics.join(", ")
                        ),
                    ),
                ]);
            }
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
        Ok(SourcePlan {
            topic,
            schema,
            keyed_by: self.keyed_by.clone(),
            start_at: self.start_at,
            batch_rows_max: self.batch_rows_max,
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
    /// Without it, batches take the partitions in turn.
    #[serde(default)]
    pub key: Option<String>,
}

impl SinkSpec for TopicSink {
    const KIND: &'static str = "topic";
    const EXAMPLE: &'static str = include_str!("../examples/topic.yaml");

    fn plan(&self, input: &SchemaRef, names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        let topic = topic_name(&self.topic)?;
        if let Some(key) = &self.key {
            let field = key_field(input, key).ok_or_else(|| {
                vec![Problem::new(
                    &["key"],
                    format!("the input has no column `{key}`"),
                )]
            })?;
            if field != DataType::Utf8 {
                return Err(vec![
                    Problem::new(
                        &["key"],
                        format!("column `{key}` is {field}, a key must be a string"),
                    )
                    .hint("cast it in a `map` before, e.g. `cast(id as varchar)`"),
                ]);
            }
        }
        if let Some(known) = names.topic_schema(&topic)
            && let Err(message) = same_columns(input, &known)
        {
            return Err(vec![Problem::new(
                &["topic"],
                format!("topic `{topic}` has another schema: {message}"),
            )]);
        }
        Ok(SinkPlan {
            topic: Some((topic, input.clone())),
        })
    }

    fn build(self, _input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        let topic =
            TopicName::new(self.topic).map_err(|error| FlowError::fatal(Self::KIND, error))?;
        Ok(Box::new(TopicWriter {
            topic,
            key: self.key,
            log: resources.log.clone(),
            partitions: None,
            next: 0,
            rows: Vec::new(),
        }))
    }
}

fn topic_name(name: &str) -> Result<TopicName, Vec<Problem>> {
    TopicName::new(name).map_err(|error| vec![Problem::new(&["topic"], error.to_string())])
}

fn same_columns(input: &SchemaRef, topic: &SchemaRef) -> Result<(), String> {
    if input.fields().len() != topic.fields().len() {
        return Err(format!(
            "{} columns instead of {}",
            input.fields().len(),
            topic.fields().len()
        ));
    }
    for (a, b) in input.fields().iter().zip(topic.fields()) {
        if a.name() != b.name() || a.data_type() != b.data_type() {
            return Err(format!(
                "`{}` {} instead of `{}` {}",
                a.name(),
                a.data_type(),
                b.name(),
                b.data_type()
            ));
        }
    }
    Ok(())
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

struct TopicWriter {
    topic: TopicName,
    key: Option<String>,
    log: Arc<dyn Log>,
    /// Known after the first write.
    partitions: Option<u32>,
    /// Partition of the next batch without key.
    next: u32,
    rows: Vec<(Partition, RecordBatch)>,
}

impl TopicWriter {
    async fn partitions(&mut self) -> Result<u32, FlowError> {
        if let Some(partitions) = self.partitions {
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
        Ok(*self.partitions.insert(partitions))
    }
}

#[async_trait]
impl Sink for TopicWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        let partitions = self.partitions().await?;
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
        let mut by_partition: BTreeMap<Partition, Vec<RecordBatch>> = BTreeMap::new();
        for (partition, batch) in self.rows.drain(..) {
            by_partition.entry(partition).or_default().push(batch);
        }
        let appends = by_partition
            .into_iter()
            .map(|(partition, batches)| {
                let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches)?;
                Ok(Append {
                    topic: self.topic.clone(),
                    target: Target::Partition(partition),
                    batch,
                })
            })
            .collect::<Result<_, FlowError>>()?;
        Ok(Prepared {
            appends,
            ..Prepared::default()
        })
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
