//! `json`: one object a message, or one a line of a message.
//!
//! Whole batches go through arrow's tape decoder into the declared columns; nothing is ever built for a single row. A
//! message must hold whole objects: the decoder would take the halves of one from two messages, so after each it is
//! asked whether it is between objects.

use arrow::array::{Array, BinaryArray, BinaryBuilder};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder as JsonReader;
use arrow::record_batch::RecordBatch;

use crate::format::{Decoded, Decoder, Encoded, Encoder, FormatError};
use crate::salvage::salvage;
use crate::spec::{JsonOptions, UnknownFields};

/// Rows after which the reader wants to be emptied: its buffers are made for so many.
const FULL: usize = 8_192;

/// Reads JSON objects into the columns of a schema.
pub(crate) struct JsonDecoder {
    schema: SchemaRef,
    options: JsonOptions,
    /// Kept between batches for its buffers; a new one after an error, which leaves it in the middle of something.
    reader: Option<JsonReader>,
}

impl JsonDecoder {
    pub(crate) fn new(schema: SchemaRef, options: JsonOptions) -> Result<Self, FormatError> {
        let reader = Some(reader(&schema, &options)?);
        Ok(Self {
            schema,
            options,
            reader,
        })
    }

    fn read(
        &mut self,
        payloads: &BinaryArray,
        range: std::ops::Range<usize>,
    ) -> Result<(RecordBatch, Option<Vec<u32>>), String> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => reader(&self.schema, &self.options).map_err(|error| error.to_string())?,
        };
        let mut rows_of = self.options.lines.then(Vec::new);
        let (mut parts, mut done) = (Vec::new(), 0);
        for payload in range.clone() {
            let before = done + reader.len();
            if payloads.is_null(payload) {
                return Err("the record has no value (a tombstone)".to_owned());
            }
            let mut rest = payloads.value(payload);
            loop {
                let read = reader.decode(rest).map_err(|error| error.to_string())?;
                rest = &rest[read..];
                if rest.is_empty() {
                    break;
                }
                // It is full; it always stops between two objects.
                done += reader.len();
                let part = reader.flush().map_err(|error| error.to_string())?;
                parts.push(part.ok_or("the JSON cannot be read on")?);
            }
            let rows = done + reader.len() - before;
            if reader.has_partial_record() {
                return Err("the JSON ends in the middle of a value".to_owned());
            }
            match &mut rows_of {
                Some(rows_of) => rows_of.extend(std::iter::repeat_n(payload as u32, rows)),
                None if rows == 1 => {}
                None if rows == 0 => return Err("the record is empty".to_owned()),
                None => {
                    return Err(format!(
                        "the record holds {rows} JSON values and not one; set `lines: true` to take each as a row"
                    ));
                }
            }
        }
        parts.extend(reader.flush().map_err(|error| error.to_string())?);
        let batch = match parts.len() {
            1 => parts.remove(0),
            _ => concat_batches(&self.schema, &parts).map_err(|error| error.to_string())?,
        };
        self.reader = Some(reader);
        Ok((batch, rows_of))
    }
}

fn reader(schema: &SchemaRef, options: &JsonOptions) -> Result<JsonReader, FormatError> {
    ReaderBuilder::new(schema.clone())
        .with_batch_size(FULL)
        .with_strict_mode(options.unknown_fields == UnknownFields::Refuse)
        .build_decoder()
        .map_err(|error| FormatError::invalid("read JSON into these columns", error))
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded, FormatError> {
        let schema = self.schema.clone();
        salvage(&schema, payloads.len(), |range| self.read(payloads, range))
    }
}

/// Writes each row as a JSON object.
pub(crate) struct JsonEncoder {
    options: JsonOptions,
}

impl JsonEncoder {
    pub(crate) fn new(options: JsonOptions) -> Self {
        Self { options }
    }
}

impl Encoder for JsonEncoder {
    fn encode(&mut self, batch: &RecordBatch) -> Result<Encoded, FormatError> {
        let mut writer = arrow::json::WriterBuilder::new()
            .with_explicit_nulls(self.options.nulls)
            .build::<_, arrow::json::writer::LineDelimited>(Vec::with_capacity(
                batch.num_rows() * 128,
            ));
        writer
            .write(batch)
            .and_then(|()| writer.finish())
            .map_err(|error| FormatError::invalid("write rows as JSON", error))?;
        let text = writer.into_inner();
        // A newline within a string is escaped, so each one here ends a row.
        let mut payloads = BinaryBuilder::with_capacity(batch.num_rows(), text.len());
        for line in text.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                payloads.append_value(line);
            }
        }
        let payloads = payloads.finish();
        if payloads.len() != batch.num_rows() {
            return Err(FormatError::Invalid(format!(
                "{} rows became {} JSON lines",
                batch.num_rows(),
                payloads.len()
            )));
        }
        Ok(Encoded {
            payloads,
            by_row: true,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use super::*;
    use crate::format::Failure;
    use va_connectors::schema::parse_schema;

    fn schema() -> SchemaRef {
        let text = serde_json::json!({
            "id": "int64!", "name": "string", "at": "timestamp", "tags": "list<string!>", "who": {"city": "string"}
        });
        parse_schema(text.as_object().unwrap()).unwrap()
    }

    fn decode(options: JsonOptions, payloads: &[&str]) -> Decoded {
        let payloads = BinaryArray::from_iter_values(payloads);
        JsonDecoder::new(schema(), options)
            .unwrap()
            .decode(&payloads)
            .unwrap()
    }

    fn shown(decoded: &Decoded) -> Vec<String> {
        let encoded = JsonEncoder::new(JsonOptions::default())
            .encode(&decoded.batch)
            .unwrap();
        let text = |payload: Option<&[u8]>| String::from_utf8(payload.unwrap().to_vec()).unwrap();
        encoded.payloads.iter().map(text).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let rows = [
            r#"{"id":1,"name":"小明\n\"q\"","at":"2026-01-01T00:00:00Z","tags":["a","b"],"who":{"city":"上海"}}"#,
            r#"{"id":2}"#,
            r#"{"id":-3,"name":"","tags":[],"who":{}}"#,
        ];
        let decoded = decode(JsonOptions::default(), &rows);
        assert!(decoded.failures.is_empty() && decoded.payloads.is_none());
        assert_eq!(shown(&decoded), rows);
        assert_eq!(decode(JsonOptions::default(), &[]).batch.num_rows(), 0);
    }

    #[test]
    fn a_bad_payload_costs_only_itself() {
        let payloads = [
            r#"{"id":1}"#,
            r#"{"id":"#,
            r#"2}"#,
            r#"{"id":3} "#,
            r#"{"id":"x"}"#,
            r#"{"name":"no id"}"#,
            r#"[{"id":1}]"#,
            "",
            r#"{"id":4}{"id":5}"#,
            "\u{0}",
            r#" {"id":6,"more":{"unknown":[1]}}"#,
        ];
        let decoded = decode(JsonOptions::default(), &payloads);
        assert_eq!(
            shown(&decoded),
            [r#"{"id":1}"#, r#"{"id":3}"#, r#"{"id":6}"#]
        );
        assert_eq!(decoded.payloads, Some(vec![0, 3, 10]));
        let failed: Vec<usize> = decoded.failures.iter().map(|f| f.payload).collect();
        assert_eq!(failed, [1, 2, 4, 5, 6, 7, 8, 9]);
        for (payload, part) in [
            (0, "middle"),
            (2, "`id`"),
            (3, "null"),
            (5, "empty"),
            (6, "`lines: true`"),
        ] {
            let Failure { reason, .. } = &decoded.failures[payload];
            assert!(
                reason.replace("'id'", "`id`").contains(part),
                "{payload}: {reason}"
            );
        }
    }

    #[test]
    fn lines_are_rows_of_their_payload() {
        let lines = JsonOptions {
            lines: true,
            ..JsonOptions::default()
        };
        let decoded = decode(lines, &["{\"id\":1}\n{\"id\":2}\n", "", "{\"id\":3}"]);
        assert_eq!(decoded.payloads, Some(vec![0, 0, 2]));
        assert_eq!(decoded.batch.num_rows(), 3);
        assert!(decoded.failures.is_empty());
    }

    #[test]
    fn unknown_fields_can_be_refused() {
        let strict = JsonOptions {
            unknown_fields: UnknownFields::Refuse,
            ..JsonOptions::default()
        };
        let decoded = decode(strict, &[r#"{"id":1,"x":2}"#, r#"{"id":2}"#]);
        assert_eq!(decoded.payloads, Some(vec![1]));
        assert!(decoded.failures[0].reason.contains('x'));
    }

    /// Prints how fast it is: `-- --nocapture rates`.
    #[test]
    fn rates() {
        let rows: Vec<String> = (0..8_192)
            .map(|i| {
                format!(
                    r#"{{"id":{i},"name":"user-{}","at":"2026-01-01T00:00:{:02}.123Z","tags":["a","b"],"who":{{"city":"city {}"}}}}"#,
                    i % 1000, i % 60, i % 50
                )
            })
            .collect();
        let payloads = BinaryArray::from_iter_values(&rows);
        let mut decoder = JsonDecoder::new(schema(), JsonOptions::default()).unwrap();
        let rounds = 20;
        let started = std::time::Instant::now();
        let mut decoded = None;
        for _ in 0..rounds {
            decoded = Some(decoder.decode(&payloads).unwrap());
        }
        let read = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        let batch = decoded.unwrap().batch;
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            JsonEncoder::new(JsonOptions::default())
                .encode(&batch)
                .unwrap();
        }
        let written = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        println!(
            "json: {read:.0} rows/s read, {written:.0} rows/s written, {} bytes a row",
            rows[0].len()
        );
        assert_eq!(batch.num_rows(), 8_192);
    }
}
