//! What a record has beside its payload, as columns: `_key`, `_timestamp`, `_partition`, `_offset`, `_headers`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringBuilder, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::event::timestamp_type;
use va_catalog::{Offset, Partition};
use va_connectors::log::records::{Records, headers_type};

/// Something that a record has beside its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetadataColumn {
    /// `_key`, a string: the record's key. A record whose key is not UTF-8 is a dead letter; see `key_bytes`.
    Key,
    /// `_key_bytes`, bytes: the record's key as it is.
    KeyBytes,
    /// `_timestamp`: the record's time.
    Timestamp,
    /// `_partition`: the partition it is in.
    Partition,
    /// `_offset`: its offset.
    Offset,
    /// `_headers`: names and values (bytes) of its headers, `traceparent` among them when it was sent.
    Headers,
}

impl MetadataColumn {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Key,
        Self::KeyBytes,
        Self::Timestamp,
        Self::Partition,
        Self::Offset,
        Self::Headers,
    ];

    /// Its column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "_key",
            Self::KeyBytes => "_key_bytes",
            Self::Timestamp => "_timestamp",
            Self::Partition => "_partition",
            Self::Offset => "_offset",
            Self::Headers => "_headers",
        }
    }

    /// Its column with the type.
    pub fn field(self) -> Field {
        let (data_type, nullable) = match self {
            Self::Key => (DataType::Utf8, true),
            Self::KeyBytes => (DataType::Binary, true),
            Self::Timestamp => (timestamp_type(), true),
            Self::Partition => (DataType::UInt32, false),
            Self::Offset => (DataType::UInt64, false),
            Self::Headers => (headers_type(), true),
        };
        Field::new(self.name(), data_type, nullable)
    }
}

/// Whether a column is one of these, and so no part of a payload.
pub fn is_metadata(name: &str) -> bool {
    MetadataColumn::ALL
        .iter()
        .any(|column| column.name() == name)
}

/// The columns that go into payloads: all that are not metadata.
pub fn payload_columns(schema: &SchemaRef) -> Vec<usize> {
    let is_payload = |(i, field): (usize, &Arc<Field>)| (!is_metadata(field.name())).then_some(i);
    schema
        .fields()
        .iter()
        .enumerate()
        .filter_map(is_payload)
        .collect()
}

/// The metadata columns of rows: row `i` is of record `rows[i]`. An error names a record whose key is no text.
pub(crate) fn columns(
    wanted: &[MetadataColumn],
    batch: &RecordBatch,
    (partition, offsets): (Partition, &[Offset]),
    rows: &UInt32Array,
) -> Result<Vec<ArrayRef>, arrow::error::ArrowError> {
    let not_records = || arrow::error::ArrowError::SchemaError("the batch is not records".into());
    let records = Records::of(batch).ok_or_else(not_records)?;
    let take = |column: &dyn Array| arrow::compute::take(column, rows, None);
    wanted
        .iter()
        .map(|column| match column {
            MetadataColumn::Key => {
                let mut keys = StringBuilder::new();
                for row in rows.values() {
                    let key = records.key(*row as usize);
                    keys.append_option(key.and_then(|key| std::str::from_utf8(key).ok()));
                }
                Ok(Arc::new(keys.finish()) as ArrayRef)
            }
            MetadataColumn::KeyBytes => take(records.keys),
            MetadataColumn::Timestamp => take(records.timestamps),
            MetadataColumn::Partition => {
                Ok(Arc::new(UInt32Array::from(vec![partition.0; rows.len()])) as ArrayRef)
            }
            MetadataColumn::Offset => {
                let of = rows.values().iter().map(|row| offsets[*row as usize].0);
                Ok(Arc::new(UInt64Array::from_iter_values(of)) as ArrayRef)
            }
            MetadataColumn::Headers => take(records.headers),
        })
        .collect()
}
