//! `topic.<topic>`: the rows of a topic up to where it ended when the query was planned.
//!
//! Beside the columns of the topic's schema there are `_partition`, `_offset` and `_appended_at`. Older rows may have
//! another schema: a column that they lack is null, one of another type is cast; the same within a struct. Which rows a tenant sees is decided
//! by the rows themselves and not by the declared schema: with a column `tenant_id`, each tenant sees its own; batches
//! without it belong to the default tenant.
//!
//! Messages of other programs are decoded as pipelines decode them, and have a column `_error` more: a message that cannot
//! be read is a row of nulls with the reason.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray,
    StructArray, TimestampMillisecondArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt};
use va_catalog::event::timestamp_type;
use va_catalog::{Offset, Partition, TenantId, TenantScope, TopicName, TopicPartition};
use va_connectors::log::records::Records;
use va_connectors::log::{FetchLimit, Log, LogError};
use va_formats::FormatSpec;
use va_formats::source::{RecordsReader, RecordsSpec};

use super::{Part, part, projected, stream_plan};
use crate::error::unreadable;

pub(crate) const TENANT_COLUMN: &str = "tenant_id";
const PARTITION: &str = "_partition";
const OFFSET: &str = "_offset";
const APPENDED_AT: &str = "_appended_at";
const ERROR: &str = "_error";

pub(crate) struct TopicTable {
    log: Arc<dyn Log>,
    tenant: TenantScope,
    topic: TopicName,
    partitions: u32,
    schema: SchemaRef,
    /// How its messages are read; `None` for batches of this platform.
    messages: Option<RecordsSpec>,
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
        tenant: TenantScope,
        topic: TopicName,
        partitions: u32,
        rows: &SchemaRef,
        format: Option<FormatSpec>,
    ) -> Self {
        let mut added = vec![
            Field::new(PARTITION, DataType::UInt32, false),
            Field::new(OFFSET, DataType::UInt64, false),
            Field::new(APPENDED_AT, timestamp_type(), false),
        ];
        if format.is_some() {
            added.push(Field::new(ERROR, DataType::Utf8, true));
        }
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
            messages: format.map(|format| RecordsSpec {
                format,
                columns: rows.clone(),
                metadata: Vec::new(),
            }),
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
                    messages: self.messages.clone(),
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
    tenant: TenantScope,
    partition: TopicPartition,
    low: Offset,
    /// One past the last.
    high: Offset,
    /// Of the batches to make.
    schema: SchemaRef,
    messages: Option<RecordsSpec>,
}

impl PartitionRange {
    fn read(self) -> super::stream::Batches {
        let start = (self.low, None);
        futures::stream::try_unfold((self, start), |(range, (from, mut reader))| async move {
            let left = range.high.0.saturating_sub(from.0);
            if left == 0 {
                return Ok::<_, DataFusionError>(None);
            }
            let limit = FetchLimit {
                rows: usize::try_from(left).map_or(8_192, |left| left.min(8_192)),
                ..FetchLimit::default()
            };
            if let (None, Some(messages)) = (&reader, &range.messages) {
                reader = Some(messages.reader().map_err(unreadable)?);
            }
            let (batches, next) = match &mut reader {
                None => range.batches(from, limit).await?,
                Some(reader) => range.decoded(from, limit, reader).await?,
            };
            if next <= from {
                // Nothing more, though the log said otherwise at planning: the topic was deleted and made again.
                return Ok(None);
            }
            Ok(Some((
                futures::stream::iter(batches.into_iter().map(Ok::<_, DataFusionError>)),
                (range, (next, reader)),
            )))
        })
        .try_flatten()
        .boxed()
    }

    async fn batches(&self, from: Offset, limit: FetchLimit) -> Result<(Vec<RecordBatch>, Offset)> {
        let fetched = self
            .log
            .fetch(&self.partition, from, limit, Duration::ZERO)
            .await
            .map_err(unreadable)?;
        let batches = fetched
            .batches
            .iter()
            .map(|stored| {
                let (base, rows) = (stored.base.0, stored.batch.num_rows());
                let offsets = UInt64Array::from_iter_values(base..base + rows as u64);
                let times = TimestampMillisecondArray::from(vec![stored.appended_at_ms; rows]);
                self.rows(&stored.batch, &offsets, &times)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok((batches, fetched.next))
    }

    /// The same of a topic of messages, which are decoded; those that cannot be read come after the others.
    async fn decoded(
        &self,
        from: Offset,
        limit: FetchLimit,
        reader: &mut RecordsReader,
    ) -> Result<(Vec<RecordBatch>, Offset)> {
        let fetched = self
            .log
            .fetch_records(&self.partition, from, limit, Duration::ZERO)
            .await
            .map_err(unreadable)?;
        reader.prepare(&fetched.batch).await.map_err(unreadable)?;
        let read = reader
            .read(&fetched.batch, self.partition.partition, &fetched.offsets)
            .map_err(unreadable)?;
        let records =
            Records::of(&fetched.batch).ok_or_else(|| unreadable("the log returned no records"))?;
        let of = |numbers: &mut dyn Iterator<Item = usize>| {
            let (mut offsets, mut times) = (Vec::new(), Vec::new());
            for number in numbers {
                offsets.push(fetched.offsets[number].0);
                times.push(records.timestamps.value(number));
            }
            (
                UInt64Array::from(offsets),
                TimestampMillisecondArray::from(times),
            )
        };
        let (offsets, times) = match &read.records {
            Some(numbers) => of(&mut numbers.iter().map(|number| *number as usize)),
            None => of(&mut (0..fetched.offsets.len())),
        };
        let mut batches = vec![self.rows(&read.batch, &offsets, &times)?];
        if !read.failures.is_empty() {
            let reasons = read.failures.iter().map(|failure| &failure.reason);
            let reasons: ArrayRef = Arc::new(StringArray::from_iter_values(reasons));
            let (offsets, times) = of(&mut read.failures.iter().map(|failure| failure.payload));
            let failed = RecordBatch::try_from_iter([(ERROR, reasons)])?;
            batches.push(self.rows(&failed, &offsets, &times)?);
        }
        Ok((batches, fetched.next))
    }

    /// The tenant's rows of a batch, below `high`, with the columns asked for.
    fn rows(
        &self,
        batch: &RecordBatch,
        offsets: &UInt64Array,
        times: &TimestampMillisecondArray,
    ) -> Result<RecordBatch> {
        let count = offsets
            .values()
            .partition_point(|offset| *offset < self.high.0);
        let base = offsets.values().first().copied().unwrap_or_default();
        let batch = batch.slice(0, count);
        let offsets: ArrayRef = Arc::new(offsets.slice(0, count));
        let times: ArrayRef = Arc::new(times.slice(0, count).with_timezone("UTC"));

        // Only the tenant's rows may be looked at, or an error could tell of others: first filter, then cast.
        let (batch, offsets, times) = match self.mine(&batch)? {
            Some(mine) => (
                filter_record_batch(&batch, &mine)?,
                arrow::compute::filter(&offsets, &mine)?,
                arrow::compute::filter(&times, &mine)?,
            ),
            None => (batch, offsets, times),
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
                APPENDED_AT => Ok(times.clone()),
                name => match batch.column_by_name(name) {
                    None => Ok(new_null_array(field.data_type(), rows)),
                    Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
                    Some(column) => fitted(column, field.data_type()).map_err(|error| {
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

/// A column as another type: cast, and of a struct each field that is there; one that it lacks is null.
fn fitted(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let (DataType::Struct(fields), Some(structs)) = (data_type, column.as_struct_opt()) else {
        return cast(column, data_type);
    };
    let rows = structs.len();
    let columns = fields
        .iter()
        .map(|field| match structs.column_by_name(field.name()) {
            None => Ok(new_null_array(field.data_type(), rows)),
            Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
            Some(column) => fitted(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, ArrowError>>()?;
    let fitted =
        StructArray::try_new_with_length(fields.clone(), columns, structs.nulls().cloned(), rows)?;
    Ok(Arc::new(fitted))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Fields;

    use super::*;

    #[test]
    fn a_struct_from_before_a_field_was_added_has_it_as_null() {
        let old = Fields::from(vec![
            Field::new("cost", DataType::UInt32, false),
            Field::new("model", DataType::Utf8, false),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![7, 8])),
            Arc::new(StringArray::from(vec!["a", "b"])),
        ];
        let column: ArrayRef = Arc::new(StructArray::new(old, columns, None));
        let new = Fields::from(vec![
            Field::new("model", DataType::Utf8, false),
            Field::new("cost", DataType::UInt64, false),
            Field::new("seconds", DataType::UInt64, true),
        ]);
        let fitted = fitted(&column, &DataType::Struct(new)).expect("it fits");
        let fitted = fitted.as_struct();
        let costs = fitted.column_by_name("cost").expect("a column");
        assert_eq!(costs.as_ref(), &UInt64Array::from(vec![7, 8]) as &dyn Array);
        let seconds = fitted.column_by_name("seconds").expect("a column");
        assert_eq!(seconds.null_count(), 2);
        // A field that may not be null cannot be made up.
        let needed = Fields::from(vec![Field::new("needed", DataType::UInt64, false)]);
        assert!(super::fitted(&column, &DataType::Struct(needed)).is_err());
    }
}
