//! `arrow`: a message is an Arrow IPC stream, with its schema and any number of rows. Fast, and for programs that read
//! Arrow; a batch is one message, so its rows have no keys of their own.

use arrow::array::{Array, BinaryArray};
use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;

use crate::fit::fit;
use crate::format::{Decoded, Decoder, Encoded, Encoder, FormatError};
use crate::salvage::salvage;

/// Reads Arrow IPC streams into columns.
pub(crate) struct ArrowDecoder {
    pub(crate) columns: SchemaRef,
}

impl ArrowDecoder {
    fn read(&self, payload: &[u8]) -> Result<RecordBatch, String> {
        let mut decoder = StreamDecoder::new();
        let mut buffer = Buffer::from(payload);
        let mut batches = Vec::new();
        while let Some(batch) = decoder.decode(&mut buffer).map_err(|e| e.to_string())? {
            batches.push(fit(&batch, &self.columns)?);
        }
        decoder.finish().map_err(|error| error.to_string())?;
        if decoder.schema().is_none() {
            return Err("it holds no Arrow schema".to_owned());
        }
        concat_batches(&self.columns, &batches).map_err(|error| error.to_string())
    }
}

impl Decoder for ArrowDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded, FormatError> {
        salvage(&self.columns, payloads.len(), |range| {
            let (mut batches, mut rows_of) = (Vec::new(), Vec::new());
            for payload in range {
                if payloads.is_null(payload) {
                    return Err("the record has no value (a tombstone)".to_owned());
                }
                let batch = self.read(payloads.value(payload))?;
                rows_of.extend(std::iter::repeat_n(payload as u32, batch.num_rows()));
                batches.push(batch);
            }
            let batch = concat_batches(&self.columns, &batches).map_err(|e| e.to_string())?;
            Ok((batch, Some(rows_of)))
        })
    }
}

/// Writes a batch as one Arrow IPC stream.
pub(crate) struct ArrowEncoder;

impl Encoder for ArrowEncoder {
    fn encode(&mut self, batch: &RecordBatch) -> Result<Encoded, FormatError> {
        let wrong = |error| FormatError::invalid("write rows as Arrow IPC", error);
        let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).map_err(wrong)?;
        writer
            .write(batch)
            .and_then(|()| writer.finish())
            .map_err(wrong)?;
        let payload = writer.into_inner().map_err(wrong)?;
        let payloads = match batch.num_rows() {
            0 => BinaryArray::from_iter_values(std::iter::empty::<&[u8]>()),
            _ => BinaryArray::from_iter_values([payload]),
        };
        Ok(Encoded {
            payloads,
            by_row: false,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray};
    use serde_json::json;
    use va_connectors::schema::parse_schema;

    use super::*;

    #[test]
    fn streams_of_any_schema_that_fits_are_rows() {
        let encode = |batch: &RecordBatch| {
            ArrowEncoder
                .encode(batch)
                .unwrap()
                .payloads
                .value(0)
                .to_vec()
        };
        let old = RecordBatch::try_from_iter([(
            "id",
            Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef,
        )])
        .unwrap();
        let new = RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(vec!["a"])) as ArrayRef),
            ("id", Arc::new(Int32Array::from(vec![3]))),
        ])
        .unwrap();
        let wrong = RecordBatch::try_from_iter([(
            "id",
            Arc::new(StringArray::from(vec!["x"])) as ArrayRef,
        )])
        .unwrap();
        let (old, new, wrong) = (encode(&old), encode(&new), encode(&wrong));
        let payloads = BinaryArray::from(vec![
            Some(&old[..]),
            Some(&old[..20]),
            Some(&b""[..]),
            Some(&wrong[..]),
            Some(&new[..]),
        ]);
        let columns = parse_schema(
            json!({"id": "int64!", "name": "string"})
                .as_object()
                .unwrap(),
        )
        .unwrap();
        let decoded = ArrowDecoder { columns }.decode(&payloads).unwrap();
        assert_eq!(decoded.payloads, Some(vec![0, 0, 4]));
        assert_eq!(decoded.batch.num_rows(), 3);
        let failed: Vec<usize> = decoded.failures.iter().map(|f| f.payload).collect();
        assert_eq!(failed, [1, 2, 3]);
        assert!(
            decoded.failures[2].reason.contains("column `id` is Utf8"),
            "{:?}",
            decoded.failures
        );
    }
}
