//! Batches as records and back. Pure functions.

use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use xxhash_rust::xxh3::xxh3_64;

use super::names::ROWS_MAX;
use crate::log::LogError;

const ROWS: &str = "va.rows";
const SCHEMA: &str = "va.schema";
const TRACE: &str = "traceparent";

/// A record to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub payload: Vec<u8>,
    pub rows: usize,
    pub schema: u64,
}

/// A batch as records of at most `bytes_max`, in order. One, unless the batch is very large.
pub(super) fn encode(batch: &RecordBatch, bytes_max: usize) -> Result<Vec<Encoded>, LogError> {
    let mut records = Vec::with_capacity(1);
    let mut parts = vec![batch.clone()];
    while let Some(part) = parts.pop() {
        let rows = part.num_rows();
        let payload = if rows <= ROWS_MAX {
            Some(encode_one(&part)?)
        } else {
            None
        };
        match payload {
            Some(payload) if payload.len() <= bytes_max => records.push(Encoded {
                schema: fingerprint(&part),
                payload,
                rows,
            }),
            Some(payload) if rows <= 1 => {
                return Err(LogError::Config(format!(
                    "a row of {} bytes is too large for a record: at most {bytes_max}; raise `record_bytes_max`",
                    payload.len()
                )));
            }
            _ => {
                // The first half is taken next.
                let half = rows / 2;
                parts.push(part.slice(half, rows - half));
                parts.push(part.slice(0, half));
            }
        }
    }
    Ok(records)
}

fn encode_one(batch: &RecordBatch) -> Result<Vec<u8>, LogError> {
    let refuse = |e: arrow::error::ArrowError| LogError::Config(format!("encode a batch: {e}"));
    let mut payload = Vec::new();
    let mut writer = StreamWriter::try_new(&mut payload, batch.schema_ref()).map_err(refuse)?;
    writer.write(batch).map_err(refuse)?;
    writer.finish().map_err(refuse)?;
    drop(writer);
    Ok(payload)
}

/// Tells schemas apart without reading a record.
fn fingerprint(batch: &RecordBatch) -> u64 {
    // Without metadata, whose order is by chance and whose values are no part of the shape.
    let shape: String = batch
        .schema_ref()
        .fields()
        .iter()
        .map(|field| {
            let (name, null) = (field.name(), field.is_nullable());
            format!("{name:?} {null} {}\n", field.data_type())
        })
        .collect();
    xxh3_64(shape.as_bytes())
}

pub(super) fn headers(record: &Encoded, traceparent: Option<&str>) -> OwnedHeaders {
    let (rows, schema) = (record.rows.to_string(), format!("{:016x}", record.schema));
    let headers = OwnedHeaders::new_with_capacity(3)
        .insert(Header {
            key: ROWS,
            value: Some(&rows),
        })
        .insert(Header {
            key: SCHEMA,
            value: Some(&schema),
        });
    match traceparent {
        None => headers,
        Some(value) => headers.insert(Header {
            key: TRACE,
            value: Some(value),
        }),
    }
}

/// The `traceparent` of a batch: the entry of that name in its schema's metadata.
pub(super) fn traceparent(batch: &RecordBatch) -> Option<&str> {
    batch.schema_ref().metadata().get(TRACE).map(String::as_str)
}

/// Whether a record holds a batch of ours.
pub(super) fn is_batch<H: Headers>(headers: &H) -> bool {
    headers.iter().any(|header| header.key == ROWS)
}

/// Reads a record back. The error says what is wrong, not where.
pub(super) fn decode<H: Headers>(
    payload: Option<Bytes>,
    headers: Option<&H>,
) -> Result<RecordBatch, String> {
    let stated = headers
        .and_then(|headers| headers.iter().find(|header| header.key == ROWS))
        .and_then(|header| header.value)
        .ok_or_else(|| format!("it has no header `{ROWS}`: another program wrote it; read the topic with the `format` of what writes it"))?;
    let rows: usize = std::str::from_utf8(stated)
        .ok()
        .and_then(|rows| rows.parse().ok())
        .ok_or_else(|| format!("its header `{ROWS}` is {stated:?}"))?;
    let payload = payload.ok_or("it has no value")?;
    let mut buffer = Buffer::from(payload);
    match StreamDecoder::new().decode(&mut buffer) {
        Ok(Some(batch)) if batch.num_rows() == rows && (1..=ROWS_MAX).contains(&rows) => Ok(batch),
        Ok(Some(batch)) => Err(format!(
            "it has {} rows, its header says {rows}",
            batch.num_rows()
        )),
        Ok(None) => Err("it holds no batch".to_owned()),
        Err(e) => Err(format!("it is not an arrow stream: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::compute::concat_batches;

    use super::*;

    fn ints(rows: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        RecordBatch::try_from_iter([("value", column)]).unwrap()
    }

    #[test]
    fn large_batches_are_cut_in_order() {
        for (rows, bytes_max, records) in [
            (10, 1 << 20, 1),
            (100_000, 16 << 20, 2),
            (10_000, 30_000, 4),
        ] {
            let batch = ints(rows);
            let encoded = encode(&batch, bytes_max).unwrap();
            assert_eq!(encoded.len(), records, "{rows} rows");
            let parts: Vec<RecordBatch> = encoded
                .iter()
                .map(|record| {
                    let payload = Bytes::copy_from_slice(&record.payload);
                    decode(Some(payload), Some(&headers(record, None))).unwrap()
                })
                .collect();
            assert_eq!(concat_batches(&batch.schema(), &parts).unwrap(), batch);
        }
        let error = encode(&ints(1), 10).unwrap_err().to_string();
        assert!(error.contains("record_bytes_max"), "{error}");
    }

    #[test]
    fn damage_is_an_error() {
        let record = encode(&ints(3), 1 << 20).unwrap().remove(0);
        let good = headers(&record, Some("00-1-2-01"));
        let payload = Bytes::copy_from_slice(&record.payload);
        assert!(decode(Some(payload.clone()), Some(&good)).is_ok());
        assert!(decode(Some(payload.clone()), None::<&OwnedHeaders>).is_err());
        assert!(decode(None, Some(&good)).is_err());
        for cut in 0..record.payload.len() - 8 {
            assert!(
                decode(Some(payload.slice(..cut)), Some(&good)).is_err(),
                "{cut}"
            );
        }
        let mut wrong = record;
        wrong.rows = 4;
        assert!(decode(Some(payload), Some(&headers(&wrong, None))).is_err());
    }
}
