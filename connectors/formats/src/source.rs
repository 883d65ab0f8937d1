//! Records of a log as rows: a format over the payloads, and what a record has beside them.

use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use va_catalog::{Offset, Partition};
use va_connectors::log::records::Records;

use crate::format::{Decoder, Failure, FormatError};
use crate::metadata::{MetadataColumn, columns};
use crate::spec::FormatSpec;

/// What a source reads out of records.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordsSpec {
    pub format: FormatSpec,
    /// Columns of the payload.
    pub columns: SchemaRef,
    pub metadata: Vec<MetadataColumn>,
}

impl RecordsSpec {
    /// The columns that come out: the payload's, then the metadata.
    pub fn schema(&self) -> SchemaRef {
        let metadata = self.metadata.iter().map(|column| Arc::new(column.field()));
        let fields: Vec<Arc<Field>> = self
            .columns
            .fields()
            .iter()
            .cloned()
            .chain(metadata)
            .collect();
        Arc::new(Schema::new_with_metadata(
            fields,
            self.columns.metadata().clone(),
        ))
    }

    /// What reads them.
    pub fn reader(&self) -> Result<RecordsReader, FormatError> {
        Ok(RecordsReader {
            decoder: self.format.decoder(&self.columns)?,
            schema: self.schema(),
            spec: self.clone(),
        })
    }
}

/// Rows of records.
#[derive(Debug)]
pub struct Rows {
    pub batch: RecordBatch,
    /// Of the record of each row; `None` when row `i` is record `i`.
    pub records: Option<Vec<u32>>,
    /// Records that are no rows, by their number, in order.
    pub failures: Vec<Failure>,
}

/// Reads records into rows.
pub struct RecordsReader {
    decoder: Box<dyn Decoder>,
    schema: SchemaRef,
    spec: RecordsSpec,
}

impl RecordsReader {
    /// Fetches from outside what these records need to be read.
    pub async fn prepare(&mut self, records: &RecordBatch) -> Result<(), FormatError> {
        self.decoder.prepare(view(records)?.values).await
    }

    /// Reads them, in the order in which they are. Takes time on the CPU.
    pub fn read(
        &mut self,
        batch: &RecordBatch,
        partition: Partition,
        offsets: &[Offset],
    ) -> Result<Rows, FormatError> {
        let records = view(batch)?;
        let decoded = self.decoder.decode(records.values)?;
        let (mut rows, mut of, mut failures) = (decoded.batch, decoded.payloads, decoded.failures);
        if self.spec.metadata.contains(&MetadataColumn::Key) {
            let bad: Vec<usize> = (0..batch.num_rows())
                .filter(|row| {
                    records
                        .key(*row)
                        .is_some_and(|key| std::str::from_utf8(key).is_err())
                })
                .collect();
            if !bad.is_empty() {
                (rows, of) = without(&rows, of, &bad)?;
                failures.retain(|failure| !bad.contains(&failure.payload));
                failures.extend(bad.into_iter().map(|payload| Failure {
                    payload,
                    reason: "the record's key is not UTF-8; use `key_bytes` instead of `key` in `metadata`".to_owned(),
                }));
                failures.sort_by_key(|failure| failure.payload);
            }
        }
        if !self.spec.metadata.is_empty() {
            let numbers = match &of {
                Some(of) => UInt32Array::from(of.clone()),
                None => UInt32Array::from_iter_values(0..batch.num_rows() as u32),
            };
            let mut all = rows.columns().to_vec();
            let metadata = columns(&self.spec.metadata, batch, (partition, offsets), &numbers);
            let put = |error| FormatError::invalid("add the metadata of records", error);
            all.extend(metadata.map_err(put)?);
            rows = RecordBatch::try_new(self.schema.clone(), all).map_err(put)?;
        }
        Ok(Rows {
            batch: rows,
            records: of,
            failures,
        })
    }
}

/// The rows that are not of these records.
fn without(
    rows: &RecordBatch,
    of: Option<Vec<u32>>,
    bad: &[usize],
) -> Result<(RecordBatch, Option<Vec<u32>>), FormatError> {
    let of = of.unwrap_or_else(|| (0..rows.num_rows() as u32).collect());
    let kept: Vec<u32> = (0..of.len() as u32)
        .filter(|row| !bad.contains(&(of[*row as usize] as usize)))
        .collect();
    let of = kept.iter().map(|row| of[*row as usize]).collect();
    let rows = arrow::compute::take_record_batch(rows, &UInt32Array::from(kept))
        .map_err(|error| FormatError::invalid("leave records out", error))?;
    Ok((rows, Some(of)))
}

fn view(batch: &RecordBatch) -> Result<Records<'_>, FormatError> {
    Records::of(batch).ok_or_else(|| FormatError::Invalid("the batch is not records".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::UInt64Type;
    use serde_json::json;
    use va_connectors::log::records::RecordsBuilder;
    use va_connectors::schema::parse_schema;

    use super::*;

    #[test]
    fn rows_keep_what_their_records_had() {
        let columns = parse_schema(json!({"id": "int64!"}).as_object().unwrap()).unwrap();
        let spec = RecordsSpec {
            format: serde_json::from_value(json!({"type": "json"})).unwrap(),
            columns,
            metadata: MetadataColumn::ALL.to_vec(),
        };
        let mut builder = RecordsBuilder::with_capacity(4, 0);
        builder.push(
            Some(b"a"),
            Some(b"{\"id\":1}"),
            Some(10),
            [("traceparent", Some(&b"00"[..]))],
        );
        builder.push(Some(b"b"), Some(b"{"), Some(11), []);
        builder.push(Some(b"\xff"), Some(b"{\"id\":3}"), Some(12), []);
        builder.push(None, Some(b"{\"id\":4}"), Some(13), []);
        let offsets = [5, 7, 8, 20].map(Offset);
        let rows = spec
            .reader()
            .unwrap()
            .read(&builder.finish(), Partition(2), &offsets)
            .unwrap();
        assert_eq!(rows.batch.schema(), spec.schema());
        assert_eq!(rows.records, Some(vec![0, 3]));
        let failed: Vec<usize> = rows.failures.iter().map(|f| f.payload).collect();
        assert_eq!(failed, [1, 2]);
        assert!(rows.failures[1].reason.contains("key_bytes"));
        let column = |name: &str| rows.batch.column_by_name(name).unwrap().clone();
        assert_eq!(
            column("_key").as_string::<i32>().iter().collect::<Vec<_>>(),
            [Some("a"), None]
        );
        assert_eq!(
            column("_offset").as_primitive::<UInt64Type>().values(),
            &[5, 20]
        );
        assert_eq!(column("_headers").as_map().value_length(0), 1);
        assert!(column("_headers").is_null(1));
    }
}
