//! Records as other programs write them: one message is one row, with its key, value, time and headers as they are.
//!
//! A batch of the schema here is *records*. [`Commit::append`](super::Commit::append) takes it as that: on Kafka each
//! row becomes one record, readable by anybody, in the same transaction as everything else of the commit; the embedded
//! log stores the batch. [`Log::fetch_records`](super::Log::fetch_records) gives them back, many to a batch.
//!
//! What the bytes mean is left to formats (`va-formats`), which partition a key belongs to is decided here as Kafka's
//! own producers decide it. A topic holds either records or batches; who reads it the other way is told so.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, MapArray, MapBuilder, MapFieldNames,
    RecordBatch, StringArray, StringBuilder, TimestampMillisecondArray,
    TimestampMillisecondBuilder, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMillisecondType};
use arrow::error::ArrowError;
use va_catalog::event::timestamp_type;
use va_catalog::{Offset, Partition};

use super::partition_of;

/// Entry of the schema's metadata that says that its batches are records.
const MARK: &str = "va.records";

/// Columns of a batch of records: `key` and `value` (bytes or null), `timestamp`, `headers`.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new_with_metadata(
            vec![
                Field::new("key", DataType::Binary, true),
                Field::new("value", DataType::Binary, true),
                // When it was appended. Set by the log, whatever is given.
                Field::new("timestamp", timestamp_type(), true),
                Field::new("headers", headers_type(), true),
            ],
            [(MARK.to_owned(), "1".to_owned())].into(),
        ))
    });
    Arc::clone(&SCHEMA)
}

/// Names and values, in the order in which they were written; a name may come more than once.
pub fn headers_type() -> DataType {
    DataType::Map(
        Arc::new(Field::new(
            "entries",
            DataType::Struct(
                vec![
                    Field::new("keys", DataType::Utf8, false),
                    Field::new("values", DataType::Binary, true),
                ]
                .into(),
            ),
            false,
        )),
        false,
    )
}

/// Whether the batch is records, and not rows of this platform.
pub fn is_records(batch: &RecordBatch) -> bool {
    batch.schema_ref().metadata().contains_key(MARK)
}

/// Result of a fetch of records.
#[derive(Debug, Clone)]
pub struct FetchedRecords {
    /// In offset order, perhaps none.
    pub batch: RecordBatch,
    /// Of each row. They grow; on Kafka with gaps.
    pub offsets: Vec<Offset>,
    /// As in [`super::Fetched`].
    pub next: Offset,
    /// As in [`super::Fetched`].
    pub skipped: u64,
    /// As in [`super::Fetched`].
    pub high: Offset,
}

/// Builds a batch of records.
pub struct RecordsBuilder {
    keys: BinaryBuilder,
    values: BinaryBuilder,
    timestamps: TimestampMillisecondBuilder,
    headers: MapBuilder<StringBuilder, BinaryBuilder>,
    rows: usize,
}

impl RecordsBuilder {
    /// With room for so many rows and bytes of values.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let names = MapFieldNames {
            entry: "entries".to_owned(),
            key: "keys".to_owned(),
            value: "values".to_owned(),
        };
        Self {
            keys: BinaryBuilder::with_capacity(rows, rows * 8),
            values: BinaryBuilder::with_capacity(rows, bytes),
            timestamps: TimestampMillisecondBuilder::with_capacity(rows),
            headers: MapBuilder::with_capacity(
                Some(names),
                StringBuilder::new(),
                BinaryBuilder::new(),
                rows,
            ),
            rows: 0,
        }
    }

    /// Adds a record; no headers at all are null.
    pub fn push<'a>(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: Option<i64>,
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) {
        self.keys.append_option(key);
        self.values.append_option(value);
        self.timestamps.append_option(timestamp_ms);
        let mut any = false;
        for (name, value) in headers {
            self.headers.keys().append_value(name);
            self.headers.values().append_option(value);
            any = true;
        }
        self.headers
            .append(any)
            .expect("each header has a name and a value");
        self.rows += 1;
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub fn finish(mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.keys.finish()),
            Arc::new(self.values.finish()),
            Arc::new(self.timestamps.finish().with_timezone("UTC")),
            Arc::new(self.headers.finish()),
        ];
        RecordBatch::try_new(schema(), columns).expect("the builders are those of the schema")
    }
}

/// Payloads with their keys as records; `keys` may be left out.
pub fn of_payloads(payloads: BinaryArray, keys: Option<BinaryArray>) -> RecordBatch {
    let rows = payloads.len();
    let keys = keys.unwrap_or_else(|| BinaryArray::new_null(rows));
    let headers = arrow::array::new_null_array(&headers_type(), rows);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(keys),
        Arc::new(payloads),
        Arc::new(TimestampMillisecondArray::new_null(rows).with_timezone("UTC")),
        headers,
    ];
    RecordBatch::try_new(schema(), columns).expect("a key for each payload, and the schema's types")
}

/// The columns of a batch of records.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a> {
    pub keys: &'a BinaryArray,
    pub values: &'a BinaryArray,
    pub timestamps: &'a TimestampMillisecondArray,
    pub headers: &'a MapArray,
    names: &'a StringArray,
    contents: &'a BinaryArray,
}

impl<'a> Records<'a> {
    /// `None` when the batch is not records.
    pub fn of(batch: &'a RecordBatch) -> Option<Self> {
        if batch.num_columns() != 4 || !is_records(batch) {
            return None;
        }
        let headers = batch.column(3).as_map_opt()?;
        Some(Self {
            keys: batch.column(0).as_binary_opt()?,
            values: batch.column(1).as_binary_opt()?,
            timestamps: batch
                .column(2)
                .as_primitive_opt::<TimestampMillisecondType>()?,
            headers,
            names: headers.keys().as_string_opt()?,
            contents: headers.values().as_binary_opt()?,
        })
    }

    pub fn key(&self, row: usize) -> Option<&'a [u8]> {
        self.keys.is_valid(row).then(|| self.keys.value(row))
    }

    pub fn value(&self, row: usize) -> Option<&'a [u8]> {
        self.values.is_valid(row).then(|| self.values.value(row))
    }

    /// Names and values of a record's headers.
    pub fn headers(
        &self,
        row: usize,
    ) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let range = if self.headers.is_valid(row) {
            let offsets = self.headers.value_offsets();
            offsets[row] as usize..offsets[row + 1] as usize
        } else {
            0..0
        };
        let (names, contents) = (self.names, self.contents);
        range.map(move |i| {
            let value = contents.is_valid(i).then(|| contents.value(i));
            (names.value(i), value)
        })
    }
}

/// Cuts records by the partition of their keys: murmur2 as Kafka's own producers, so that a key is where theirs put it.
/// Those without a key go together to the next partition in turn, which `turn` counts.
pub fn by_partition(
    batch: &RecordBatch,
    partitions: u32,
    turn: &mut u32,
) -> Result<Vec<(Partition, RecordBatch)>, ArrowError> {
    let records = Records::of(batch)
        .ok_or_else(|| ArrowError::SchemaError("the batch is not records".to_owned()))?;
    let keyless = Partition(*turn % partitions.max(1));
    if records.keys.null_count() > 0 {
        *turn = turn.wrapping_add(1);
    }
    if records.keys.null_count() == batch.num_rows() || partitions <= 1 {
        return Ok(vec![(keyless, batch.clone())]);
    }
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); partitions as usize];
    for row in 0..batch.num_rows() {
        let partition = records
            .key(row)
            .map_or(keyless, |key| partition_of(key, partitions));
        rows[partition.0 as usize].push(row as u32);
    }
    rows.into_iter()
        .enumerate()
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(partition, rows)| {
            let part = take_record_batch(batch, &UInt32Array::from(rows))?;
            Ok((Partition(partition as u32), part))
        })
        .collect()
}

/// The same records with the time at which the log took them.
pub(super) fn stamped(batch: &RecordBatch, appended_at_ms: i64) -> RecordBatch {
    let times = TimestampMillisecondArray::from(vec![appended_at_ms; batch.num_rows()]);
    let mut columns = batch.columns().to_vec();
    columns[2] = Arc::new(times.with_timezone("UTC"));
    RecordBatch::try_new(schema(), columns).expect("only the times are others")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> RecordBatch {
        let mut builder = RecordsBuilder::with_capacity(3, 16);
        builder.push(
            Some(b"a"),
            Some(b"1"),
            Some(5),
            [("x", Some(&b"y"[..])), ("x", None)],
        );
        builder.push(None, None, None, []);
        builder.push(Some("键".as_bytes()), Some(b""), None, []);
        builder.finish()
    }

    #[test]
    fn what_is_built_is_read() {
        for cut in [built(), built().slice(1, 2)] {
            assert!(is_records(&cut));
            let first = 3 - cut.num_rows();
            let records = Records::of(&cut).unwrap();
            let keys: Vec<_> = (0..cut.num_rows()).map(|row| records.key(row)).collect();
            assert_eq!(
                keys,
                [Some(&b"a"[..]), None, Some("键".as_bytes())][first..]
            );
            let values: Vec<_> = (0..cut.num_rows()).map(|row| records.value(row)).collect();
            assert_eq!(values, [Some(&b"1"[..]), None, Some(&b""[..])][first..]);
        }
        let batch = built();
        let records = Records::of(&batch).unwrap();
        let headers: Vec<_> = records.headers(0).collect();
        assert_eq!(headers, [("x", Some(&b"y"[..])), ("x", None)]);
        assert_eq!(records.headers(1).count(), 0);
    }

    #[test]
    fn keys_choose_partitions_and_the_rest_takes_turns() {
        let (mut turn, mut places) = (0, Vec::new());
        for _ in 0..2 {
            for (partition, part) in by_partition(&built(), 3, &mut turn).unwrap() {
                let records = Records::of(&part).unwrap();
                for row in 0..part.num_rows() {
                    let key = records.key(row).map(<[u8]>::to_vec);
                    if let Some(key) = &key {
                        assert_eq!(partition, partition_of(key, 3));
                    } else {
                        places.push(partition.0);
                    }
                }
            }
        }
        assert_eq!(places, [0, 1]);
    }
}
