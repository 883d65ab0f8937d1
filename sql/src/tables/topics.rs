//! `topic.<topic>`: the rows of a topic up to where it ended when the query was planned.
//!
//! Beside the columns of the topic's schema there are `_partition`, `_offset` and `_appended_at`. Older rows may have
//! another schema: a column that they lack is null, one of another type is cast. Which rows a tenant sees is decided
//! by the rows themselves and not by the declared schema: with a column `tenant_id`, each tenant sees its own; batches
//! without it belong to the default tenant.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray,
    TimestampMillisecondArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt};
use va_catalog::event::timestamp_type;
use va_catalog::{Offset, Partition, TenantId, TopicName, TopicPartition};
use va_connectors::log::{FetchLimit, Log, LogBatch, LogError};

use super::{Part, part, projected, stream_plan};
use crate::error::unreadable;

pub(crate) const TENANT_COLUMN: &str = "tenant_id";
const PARTITION: &str = "_partition";
const OFFSET: &str = "_offset";
const APPENDED_AT: &str = "_appended_at";

pub(crate) struct TopicTable {
    log: Arc<dyn Log>,
    tenant: TenantId,
    topic: TopicName,
    partitions: u32,
    schema: SchemaRef,
}

impl std::fmt::Debug for TopicTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopicTable")
            .field("tenant", &self.tenant)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl TopicTable {
    /// A table of the topic's rows with the columns of `rows`; `partitions` is 0 for a topic that the log does not have.
    pub(crate) fn new(
        log: Arc<dyn Log>,
        tenant: TenantId,
        topic: TopicName,
        partitions: u32,
        rows: &Schema,
    ) -> Self {
        let added = [
            Field::new(PARTITION, DataType::UInt32, false),
            Field::new(OFFSET, DataType::UInt64, false),
            Field::new(APPENDED_AT, timestamp_type(), false),
        ];
        // Rows from before a column was added do not have it, so every column may be null.
        let fields: Vec<Field> = rows
            .fields()
            .iter()
            .filter(|field| added.iter().all(|other| other.name() != field.name()))
            .map(|field| field.as_ref().clone().with_nullable(true))
            .chain(added.iter().cloned())
            .collect();
        Self {
            log,
            tenant,
            topic,
            partitions,
            schema: Arc::new(Schema::new(fields)),
        }
    }
}

/// The schema of the first rows that the topic still has; for topics without a declared one.
pub(crate) async fn first_schema(
    log: &dyn Log,
    topic: &TopicName,
    partitions: u32,
) -> std::result::Result<Option<SchemaRef>, LogError> {
    for number in 0..partitions {
        let partition = TopicPartition {
            topic: topic.clone(),
            partition: Partition(number),
        };
        let marks = log.watermarks(&partition).await?;
        let mut from = marks.low;
        // A fetch may pass a gap between offsets and bring no row.
        while from < marks.high {
            let limit = FetchLimit { rows: 1, bytes: 1 };
            let fetched = log.fetch(&partition, from, limit, Duration::ZERO).await?;
            if let Some(first) = fetched.batches.first() {
                return Ok(Some(first.batch.schema()));
            }
            if fetched.next <= from {
                break;
            }
            from = fetched.next;
        }
    }
    Ok(None)
}

#[async_trait]
impl TableProvider for TopicTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = projected(&self.schema, projection)?;
        let mut parts: Vec<Part> = Vec::new();
        for number in 0..self.partitions {
            let partition = TopicPartition {
                topic: self.topic.clone(),
                partition: Partition(number),
            };
            let marks = match self.log.watermarks(&partition).await {
                Ok(marks) => marks,
                // Deleted since the query was planned.
                Err(LogError::UnknownTopic(_)) => break,
                Err(error) => return Err(unreadable(error)),
            };
            if marks.low < marks.high {
                let range = PartitionRange {
                    log: self.log.clone(),
                    tenant: self.tenant.clone(),
                    partition,
                    low: marks.low,
                    high: marks.high,
                    schema: schema.clone(),
                };
                parts.push(part(move || range.clone().read()));
            }
        }
        stream_plan(schema, parts, limit)
    }
}

/// The rows of one partition that a scan reads.
#[derive(Clone)]
struct PartitionRange {
    log: Arc<dyn Log>,
    tenant: TenantId,
    partition: TopicPartition,
    low: Offset,
    /// One past the last.
    high: Offset,
    /// Of the batches to make.
    schema: SchemaRef,
}

impl PartitionRange {
    fn read(self) -> super::stream::Batches {
        let start = self.low;
        futures::stream::try_unfold((self, start), |(range, from)| async move {
            let left = range.high.0.saturating_sub(from.0);
            if left == 0 {
                return Ok::<_, DataFusionError>(None);
            }
            let limit = FetchLimit {
                rows: usize::try_from(left).map_or(8_192, |left| left.min(8_192)),
                ..FetchLimit::default()
            };
            let fetched = range
                .log
                .fetch(&range.partition, from, limit, Duration::ZERO)
                .await
                .map_err(unreadable)?;
            if fetched.next <= from {
                // Nothing more, though the log said otherwise at planning: the topic was deleted and made again.
                return Ok(None);
            }
            let batches = fetched
                .batches
                .iter()
                .map(|batch| range.rows(batch))
                .collect::<Result<Vec<_>>>()?;
            let next = fetched.next;
            Ok(Some((
                futures::stream::iter(batches.into_iter().map(Ok::<_, DataFusionError>)),
                (range, next),
            )))
        })
        .try_flatten()
        .boxed()
    }

    /// The tenant's rows of a stored batch, below `high`, with the columns asked for.
    fn rows(&self, stored: &LogBatch) -> Result<RecordBatch> {
        let base = stored.base.0;
        let below = self.high.0.saturating_sub(base);
        let count = usize::try_from(below).map_or(stored.batch.num_rows(), |below| {
            below.min(stored.batch.num_rows())
        });
        let batch = stored.batch.slice(0, count);
        let mine = self.mine(&batch)?;

        // Only the tenant's rows may be looked at, or an error could tell of others: first filter, then cast.
        let offsets: ArrayRef = Arc::new(UInt64Array::from_iter_values(
            (0..count as u64).map(|row| base + row),
        ));
        let offsets = match &mine {
            Some(mine) => arrow::compute::filter(&offsets, mine)?,
            None => offsets,
        };
        let batch = match &mine {
            Some(mine) => filter_record_batch(&batch, mine)?,
            None => batch,
        };
        let rows = batch.num_rows();
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                OFFSET => Ok(offsets.clone()),
                PARTITION => Ok(Arc::new(UInt32Array::from(vec![
                    self.partition.partition.0;
                    rows
                ])) as ArrayRef),
                APPENDED_AT => {
                    let times = TimestampMillisecondArray::from(vec![stored.appended_at_ms; rows]);
                    Ok(Arc::new(times.with_timezone("UTC")) as ArrayRef)
                }
                name => match batch.column_by_name(name) {
                    None => Ok(new_null_array(field.data_type(), rows)),
                    Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
                    Some(column) => cast(column, field.data_type()).map_err(|error| {
                        unreadable(format!(
                            "column `{name}` of topic `{}` is {} in the rows at offset {base}, not {}: {error}",
                            self.partition.topic,
                            column.data_type(),
                            field.data_type()
                        ))
                    }),
                },
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(
            self.schema.clone(),
            columns,
            &options,
        )?)
    }

    /// Which rows are the tenant's; `None` for all.
    fn mine(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let owners = match batch.column_by_name(TENANT_COLUMN) {
            Some(owners) if is_text(owners.data_type()) => cast(owners, &DataType::Utf8)?,
            _ if self.tenant == TenantId::default_tenant() => return Ok(None),
            _ => return Ok(Some(BooleanArray::from(vec![false; batch.num_rows()]))),
        };
        let owners: &StringArray = owners.as_string();
        let mine = owners
            .iter()
            .map(|owner| Some(owner == Some(self.tenant.as_str())))
            .collect();
        Ok(Some(mine))
    }
}

/// Whether a column can name a tenant.
pub(crate) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}
