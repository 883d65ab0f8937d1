//! The sink that the graph puts before an operator that needs rows by key: it sends each row to the partition of its key
//! in a hidden topic (`va_pipelines::shuffle`). Not registered, because pipelines do not name it.
//!
//! The key is the key columns in arrow's row format: the bytes by which `aggregate` names its state, so that a partition
//! of the topic and a partition of the state can hold the same keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::{Partition, TopicName};
use va_connectors::flow::{Append, CheckpointId, FlowError, Names, Prepared, Problem, Sink};
use va_connectors::log::{Log, Target, partition_of};

use crate::endpoint::{Resources, SinkEntry, SinkPlan, SinkSpec, sink};

/// Brings rows of a key together.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepartitionSink {
    /// The hidden topic.
    pub topic: String,
    /// The columns that make the key; none: all rows go to one partition.
    pub columns: Vec<String>,
}

impl SinkSpec for RepartitionSink {
    const KIND: &'static str = "repartition";
    const EXAMPLE: &'static str = "";

    fn plan(&self, input: &SchemaRef, _names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        let topic = TopicName::new(self.topic.clone())
            .map_err(|error| vec![Problem::new(&["topic"], error.to_string())])?;
        converter(&self.columns, input)
            .map_err(|error| vec![Problem::new(&["columns"], error.to_string())])?;
        Ok(SinkPlan {
            topic: Some((topic, input.clone())),
            format: None,
        })
    }

    fn build(self, input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        let topic =
            TopicName::new(self.topic).map_err(|error| FlowError::fatal(Self::KIND, error))?;
        let (columns, keys) = converter(&self.columns, input)?;
        Ok(Box::new(Repartition {
            topic,
            columns,
            keys,
            log: resources.log.clone(),
            partitions: None,
            batches: Vec::new(),
        }))
    }
}

/// Its entry, as those of the registry.
pub fn entry() -> SinkEntry {
    sink::<RepartitionSink>("Brings rows of a key together.")
}

fn converter(
    columns: &[String],
    input: &SchemaRef,
) -> Result<(Vec<usize>, Option<RowConverter>), FlowError> {
    let columns = columns
        .iter()
        .map(|name| input.index_of(name))
        .collect::<Result<Vec<_>, _>>()?;
    let fields: Vec<SortField> = columns
        .iter()
        .map(|&column| SortField::new(input.field(column).data_type().clone()))
        .collect();
    let keys = (!fields.is_empty())
        .then(|| RowConverter::new(fields))
        .transpose()?;
    Ok((columns, keys))
}

struct Repartition {
    topic: TopicName,
    columns: Vec<usize>,
    /// `None` without key columns.
    keys: Option<RowConverter>,
    log: Arc<dyn Log>,
    /// Known after the first write.
    partitions: Option<u32>,
    batches: Vec<RecordBatch>,
}

impl Repartition {
    async fn partitions(&mut self) -> Result<u32, FlowError> {
        if let Some(partitions) = self.partitions {
            return Ok(partitions);
        }
        let topics = self
            .log
            .topics()
            .await
            .map_err(|error| FlowError::retriable(RepartitionSink::KIND, error))?;
        let partitions = topics
            .iter()
            .find(|(name, _)| name == &self.topic)
            .map(|(_, config)| config.partitions)
            .ok_or_else(|| {
                FlowError::retriable(
                    RepartitionSink::KIND,
                    format!("topic `{}` does not exist", self.topic),
                )
            })?;
        Ok(*self.partitions.insert(partitions))
    }

    /// The rows of each partition, in their order.
    fn rows_by_partition(
        &self,
        batch: &RecordBatch,
        partitions: u32,
    ) -> Result<Vec<Vec<u32>>, FlowError> {
        let rows = 0..batch.num_rows() as u32;
        let mut by_partition = vec![Vec::new(); partitions as usize];
        let Some(keys) = &self.keys else {
            by_partition[partition_of(&[], partitions).0 as usize].extend(rows);
            return Ok(by_partition);
        };
        let columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|&column| batch.column(column).clone())
            .collect();
        for (row, key) in rows.zip(&keys.convert_columns(&columns)?) {
            by_partition[partition_of(key.data(), partitions).0 as usize].push(row);
        }
        Ok(by_partition)
    }
}

#[async_trait]
impl Sink for Repartition {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        self.batches.push(batch);
        Ok(())
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        let batches = std::mem::take(&mut self.batches);
        let Some(first) = batches.first() else {
            return Ok(Prepared::default());
        };
        let partitions = self.partitions().await?;
        let batch = concat_batches(&first.schema(), &batches)?;
        let appends = self
            .rows_by_partition(&batch, partitions)?
            .into_iter()
            .zip(0..)
            .filter(|(rows, _)| !rows.is_empty())
            .map(|(rows, partition)| {
                Ok(Append {
                    topic: self.topic.clone(),
                    target: Target::Partition(Partition(partition)),
                    batch: take_record_batch(&batch, &UInt32Array::from(rows))?,
                })
            })
            .collect::<Result<_, FlowError>>()?;
        Ok(Prepared {
            appends,
            ..Prepared::default()
        })
    }
}
