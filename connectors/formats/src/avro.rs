//! `avro`: bare records of one schema, or Confluent's framing, where each message names the schema it was written with.
//!
//! A batch is read with the schema of its writer and then brought into the declared columns ([`crate::fit`]), so a message
//! of an older or newer schema is a row like any other: what it lacks is null, what it has more is left out. The messages
//! of one writer schema are read together, also when those of several are mixed in a topic.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryArray, Int32Array, Int32DictionaryArray, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow_avro::codec::Tz;
use arrow_avro::reader::{Decoder as AvroReader, ReaderBuilder};
use arrow_avro::schema::{
    AVRO_ENUM_SYMBOLS_METADATA_KEY, AvroSchema, Fingerprint, FingerprintAlgorithm,
    SCHEMA_METADATA_KEY, SchemaStore,
};
use arrow_avro::writer::format::AvroBinaryFormat;
use arrow_avro::writer::{Encoder as AvroWriter, WriterBuilder};
use async_trait::async_trait;
use serde_json::Value;
use va_catalog::TopicName;

use crate::avro_schema::avro_schema;
use crate::confluent;
use crate::fit::{check, fit};
use crate::format::{Decoded, Decoder, Encoded, Encoder, FormatError};
use crate::registry::{RegisteredSchema, Registry};
use crate::salvage::by_writer;
use crate::spec::{AvroOptions, Framing};

/// Name of the record where none is given.
const RECORD: &str = "record";

/// What the reader wants before each body; which id it is does not matter, since each reader has one schema.
const PREFIX: [u8; 5] = [0; 5];

/// Reads messages that one schema wrote.
struct Writer {
    schema: String,
    /// A new one after an error, which leaves it in the middle of something.
    reader: Option<AvroReader>,
}

impl Writer {
    fn new(schema: String, columns: &Schema) -> Result<Self, String> {
        let reader = reader(&schema)?;
        check(&reader.schema(), columns)?;
        Ok(Self {
            schema,
            reader: Some(reader),
        })
    }

    fn read(
        &mut self,
        bodies: &mut dyn Iterator<Item = &[u8]>,
        columns: &SchemaRef,
    ) -> Result<RecordBatch, String> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => reader(&self.schema)?,
        };
        for body in bodies {
            let before = reader.capacity();
            let wrong = |error: arrow_avro::errors::AvroError| error.to_string();
            reader.decode(&PREFIX).map_err(wrong)?;
            let read = reader.decode(body).map_err(wrong)?;
            if read != body.len() || before - reader.capacity() != 1 {
                return Err(match before - reader.capacity() {
                    0 => "it ends in the middle of the record".to_owned(),
                    _ => "there are bytes behind the record".to_owned(),
                });
            }
        }
        let schema = reader.schema();
        let batch = reader.flush().map_err(|error| error.to_string())?;
        let batch = batch.unwrap_or_else(|| RecordBatch::new_empty(schema));
        let fitted = fit(&batch, columns)?;
        self.reader = Some(reader);
        Ok(fitted)
    }
}

fn reader(schema: &str) -> Result<AvroReader, String> {
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store
        .set(Fingerprint::Id(0), AvroSchema::new(schema.to_owned()))
        .map_err(|error| format!("its Avro schema: {error}"))?;
    ReaderBuilder::new()
        .with_batch_size(usize::MAX >> 1)
        .with_tz(Tz::Utc)
        .with_writer_schema_store(store)
        .build_decoder()
        .map_err(|error| format!("its Avro schema: {error}"))
}

/// The columns that an Avro schema has.
pub(crate) fn columns_of(schema: &Value) -> Result<SchemaRef, FormatError> {
    let schema = reader(&text(schema))
        .map_err(FormatError::Invalid)?
        .schema();
    // What arrow-avro notes for itself is no part of the columns, and an enum is a text.
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = match field.data_type() {
                DataType::Dictionary(_, value) => value.as_ref().clone(),
                other => other.clone(),
            };
            Field::new(field.name(), data_type, field.is_nullable())
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

/// A schema as JSON text; it may be given as a text or as a mapping.
fn text(schema: &Value) -> String {
    match schema {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Reads Avro messages into columns.
pub(crate) struct AvroDecoder {
    columns: SchemaRef,
    framing: Framing,
    registry: Option<Registry>,
    /// By schema id; why one cannot be read.
    writers: HashMap<u32, Result<Writer, String>>,
}

impl AvroDecoder {
    pub(crate) fn new(columns: SchemaRef, options: &AvroOptions) -> Result<Self, FormatError> {
        let registry = options.registry.as_ref().map(Registry::new).transpose()?;
        let mut writers = HashMap::new();
        let named = |what: &str, error: String| FormatError::Invalid(format!("{what}: {error}"));
        if options.framing() == Framing::None {
            let schema = match &options.schema {
                Some(schema) => text(schema),
                None => generated(&columns, options)?,
            };
            let writer = Writer::new(schema, &columns).map_err(|e| named("`format.schema`", e))?;
            writers.insert(0, Ok(writer));
        } else if registry.is_none() && options.schemas.is_empty() {
            return Err(FormatError::Invalid(
                "messages with a schema id need `registry`, or `schemas` by their ids".to_owned(),
            ));
        }
        for (id, schema) in options.schemas()? {
            let writer = Writer::new(text(schema), &columns)
                .map_err(|error| named(&format!("`format.schemas.{id}`"), error))?;
            writers.insert(id, Ok(writer));
        }
        Ok(Self {
            columns,
            framing: options.framing(),
            registry,
            writers,
        })
    }
}

#[async_trait]
impl Decoder for AvroDecoder {
    async fn prepare(&mut self, payloads: &BinaryArray) -> Result<(), FormatError> {
        let Some(registry) = self
            .registry
            .clone()
            .filter(|_| self.framing == Framing::Confluent)
        else {
            return Ok(());
        };
        let mut last = None;
        for payload in payloads.iter().flatten() {
            let Ok((id, _)) = confluent::split(payload) else {
                continue;
            };
            if last == Some(id) || matches!(self.writers.get(&id), Some(Ok(_))) {
                last = Some(id);
                continue;
            }
            last = Some(id);
            let writer = match registry.schema(id).await? {
                None => Err(format!("the registry has no schema {id}")),
                Some(found) if found.kind != "AVRO" => {
                    Err(format!("schema {id} is {} and not Avro", found.kind))
                }
                Some(found) if !found.references.is_empty() => Err(format!(
                    "schema {id} refers to other schemas, which is not supported for Avro"
                )),
                Some(found) => Writer::new(found.schema.clone(), &self.columns)
                    .map_err(|error| format!("written with schema {id}: {error}")),
            };
            self.writers.insert(id, writer);
        }
        Ok(())
    }

    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded, FormatError> {
        let (columns, writers) = (&self.columns, &mut self.writers);
        let framing = self.framing;
        let split = |payload| match framing {
            Framing::None => Ok((0, payload)),
            Framing::Confluent => confluent::split(payload),
        };
        by_writer(columns, payloads, split, |id, bodies| {
            match writers.get_mut(id) {
                Some(Ok(writer)) => writer.read(bodies, columns),
                Some(Err(reason)) => Err(reason.clone()),
                None => Err(format!("schema {id} is not known")),
            }
        })
    }
}

fn generated(columns: &Schema, options: &AvroOptions) -> Result<String, FormatError> {
    let name = options.name.as_deref().unwrap_or(RECORD);
    avro_schema(columns, name)
        .map(|schema| schema.to_string())
        .map_err(FormatError::Invalid)
}

/// Writes rows as Avro messages.
pub(crate) struct AvroEncoder {
    schema: String,
    /// The columns as Avro has them.
    natural: SchemaRef,
    writer: AvroWriter,
    /// Before each body.
    header: Vec<u8>,
    /// Until the id is known.
    unregistered: Option<(Registry, String, bool)>,
}

impl AvroEncoder {
    pub(crate) fn new(
        columns: &SchemaRef,
        options: &AvroOptions,
        topic: &TopicName,
    ) -> Result<Self, FormatError> {
        let schema = match &options.schema {
            Some(schema) => text(schema),
            None => generated(columns, options)?,
        };
        let natural = reader(&schema).map_err(FormatError::Invalid)?.schema();
        check(columns, &texts(&natural)).map_err(|error| {
            FormatError::Invalid(format!("the rows do not fit `format.schema`: {error}"))
        })?;
        let mut metadata = natural.metadata().clone();
        metadata.insert(SCHEMA_METADATA_KEY.to_owned(), schema.clone());
        let natural = Arc::new(Schema::new_with_metadata(
            natural.fields().clone(),
            metadata,
        ));
        let writer = WriterBuilder::new(natural.as_ref().clone())
            .build_encoder::<AvroBinaryFormat>()
            .map_err(|error| FormatError::invalid("write these columns as Avro", error))?;
        let mut encoder = Self {
            natural,
            writer,
            header: Vec::new(),
            unregistered: None,
            schema,
        };
        if options.framing() == Framing::Confluent {
            match (&options.registry, options.schemas()?.keys().next()) {
                (Some(registry), _) => {
                    let subject = registry
                        .subject
                        .subject(topic, &full_name(&encoder.schema)?);
                    let client = Registry::new(registry)?;
                    encoder.unregistered = Some((client, subject, registry.register));
                }
                (None, Some(id)) => encoder.header = confluent::header(*id).to_vec(),
                (None, None) => {
                    return Err(FormatError::Invalid(
                        "messages with a schema id need `registry`, or `schemas` by their ids"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(encoder)
    }
}

/// The schema with texts for enums, which is how columns have them.
fn texts(natural: &Schema) -> Schema {
    let fields: Vec<Field> = natural
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            DataType::Dictionary(_, value) => field
                .as_ref()
                .clone()
                .with_data_type(value.as_ref().clone()),
            _ => field.as_ref().clone(),
        })
        .collect();
    Schema::new(fields)
}

/// The batch with its texts as the symbols of Avro's enums, in the order in which the schema has them. Enums within records
/// are not looked for: there a text is refused.
fn with_enums(batch: &RecordBatch, natural: &Schema) -> Result<RecordBatch, String> {
    let mut columns = batch.columns().to_vec();
    let mut fields: Vec<Field> = Vec::with_capacity(columns.len());
    for (field, column) in batch.schema_ref().fields().iter().zip(&mut columns) {
        fields.push(field.as_ref().clone());
        let Ok(wanted) = natural.field_with_name(field.name()) else {
            continue;
        };
        let Some(symbols) = wanted.metadata().get(AVRO_ENUM_SYMBOLS_METADATA_KEY) else {
            continue;
        };
        let Some(texts) = column.as_string_opt::<i32>() else {
            continue;
        };
        let symbols: Vec<String> = serde_json::from_str(symbols)
            .map_err(|error| format!("`{}`: {error}", field.name()))?;
        let key_of = |text: &str| {
            symbols
                .iter()
                .position(|symbol| symbol == text)
                .ok_or_else(|| {
                    format!(
                        "column `{}`: `{text}` is none of {}",
                        field.name(),
                        symbols.join(", ")
                    )
                })
        };
        let keys = texts
            .iter()
            .map(|text| {
                text.map(|text| key_of(text).map(|key| key as i32))
                    .transpose()
            })
            .collect::<Result<Int32Array, String>>()?;
        let values = Arc::new(StringArray::from_iter_values(&symbols));
        let array =
            Int32DictionaryArray::try_new(keys, values).map_err(|error| error.to_string())?;
        if let Some(last) = fields.last_mut() {
            *last = last.clone().with_data_type(array.data_type().clone());
        }
        *column = Arc::new(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| error.to_string())
}

/// The full name of a schema's record.
fn full_name(schema: &str) -> Result<String, FormatError> {
    let schema: Value = serde_json::from_str(schema)
        .map_err(|error| FormatError::invalid("the Avro schema is no JSON", error))?;
    let name = schema["name"].as_str().ok_or_else(|| {
        FormatError::Invalid("the Avro schema is no record with a name".to_owned())
    })?;
    Ok(match schema["namespace"].as_str() {
        Some(namespace) if !name.contains('.') && !namespace.is_empty() => {
            format!("{namespace}.{name}")
        }
        _ => name.to_owned(),
    })
}

#[async_trait]
impl Encoder for AvroEncoder {
    async fn prepare(&mut self) -> Result<(), FormatError> {
        let Some((registry, subject, register)) = &self.unregistered else {
            return Ok(());
        };
        let schema = RegisteredSchema {
            schema: self.schema.clone(),
            kind: "AVRO".to_owned(),
            references: Vec::new(),
        };
        let id = registry.id_of(subject, &schema, *register).await?;
        self.header = confluent::header(id).to_vec();
        self.unregistered = None;
        Ok(())
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<Encoded, FormatError> {
        if self.unregistered.is_some() {
            return Err(FormatError::Invalid(
                "the schema id is not known yet: `prepare` comes first".to_owned(),
            ));
        }
        let batch = with_enums(batch, &self.natural).map_err(FormatError::Invalid)?;
        let fitted = fit(&batch, &self.natural).map_err(FormatError::Invalid)?;
        self.writer
            .encode(&fitted)
            .map_err(|error| FormatError::invalid("write rows as Avro", error))?;
        let rows = self.writer.flush();
        let (bytes, offsets) = (rows.bytes(), rows.offsets());
        Ok(Encoded {
            payloads: framed(bytes, offsets, &self.header)?,
            by_row: true,
        })
    }
}

/// Rows that lie one behind the other, each with a header before it.
fn framed(bytes: &[u8], offsets: &[usize], header: &[u8]) -> Result<BinaryArray, FormatError> {
    let rows = offsets.len().saturating_sub(1);
    let total = bytes.len() + rows * header.len();
    if i32::try_from(total).is_err() {
        return Err(FormatError::Invalid(format!(
            "a batch of {total} bytes is too large: at most 2 GiB"
        )));
    }
    let mut values = Vec::with_capacity(total);
    let mut ends = Vec::with_capacity(rows + 1);
    ends.push(0_i32);
    for row in offsets.windows(2) {
        values.extend_from_slice(header);
        values.extend_from_slice(&bytes[row[0]..row[1]]);
        ends.push(values.len() as i32);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    BinaryArray::try_new(offsets, Buffer::from_vec(values), None)
        .map_err(|error| FormatError::invalid("put payloads together", error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use serde_json::json;
    use va_connectors::schema::parse_schema;

    use super::*;
    use crate::json::{JsonDecoder, JsonEncoder};
    use crate::spec::JsonOptions;

    fn columns(text: Value) -> SchemaRef {
        parse_schema(text.as_object().unwrap()).unwrap()
    }

    fn rich() -> SchemaRef {
        columns(
            json!({"id": "int64!", "name": "string", "score": "float64", "small": "int8", "big": "uint32",
            "ok": "boolean", "at": "timestamp", "day": "date", "raw": "binary", "tags": "list<string!>",
            "who": {"city": "string", "n": "int32"}}),
        )
    }

    fn rows(columns: &SchemaRef, lines: &[&str]) -> RecordBatch {
        let payloads = BinaryArray::from_iter_values(lines);
        let mut decoder = JsonDecoder::new(columns.clone(), JsonOptions::default()).unwrap();
        let decoded = decoder.decode(&payloads).unwrap();
        assert_eq!(decoded.failures, []);
        decoded.batch
    }

    fn shown(batch: &RecordBatch) -> Vec<String> {
        let encoded = JsonEncoder::new(JsonOptions::default())
            .encode(batch)
            .unwrap();
        let text = |payload: Option<&[u8]>| String::from_utf8(payload.unwrap().to_vec()).unwrap();
        encoded.payloads.iter().map(text).collect()
    }

    fn options(text: Value) -> AvroOptions {
        serde_json::from_value(text).unwrap()
    }

    fn topic() -> TopicName {
        TopicName::new("orders").unwrap()
    }

    fn encode(columns: &SchemaRef, options: &AvroOptions, lines: &[&str]) -> BinaryArray {
        let mut encoder = AvroEncoder::new(columns, options, &topic()).unwrap();
        encoder.encode(&rows(columns, lines)).unwrap().payloads
    }

    fn decode(columns: &SchemaRef, options: &AvroOptions, payloads: &BinaryArray) -> Decoded {
        AvroDecoder::new(columns.clone(), options)
            .unwrap()
            .decode(payloads)
            .unwrap()
    }

    const RICH: [&str; 3] = [
        r#"{"id":1,"name":"小明","score":1.5,"small":-7,"big":4000000000,"ok":true,"at":"2026-01-01T00:00:00.123Z","day":"2026-01-02","raw":"00ff","tags":["a","b"],"who":{"city":"上海","n":3}}"#,
        r#"{"id":2}"#,
        r#"{"id":-3,"name":"","tags":[],"who":{}}"#,
    ];

    #[test]
    fn what_is_written_is_read() {
        let plain = options(json!({}));
        let framed = options(
            json!({"framing": "confluent", "schemas": {"70000": avro_schema(&rich(), "record").unwrap()}}),
        );
        for options in [plain, framed] {
            let payloads = encode(&rich(), &options, &RICH);
            let decoded = decode(&rich(), &options, &payloads);
            assert_eq!(decoded.failures, []);
            assert!(decoded.payloads.is_none());
            assert_eq!(shown(&decoded.batch), RICH);
        }
    }

    #[test]
    fn a_bad_payload_costs_only_itself() {
        let options = options(json!({}));
        let columns = columns(json!({"id": "int64!", "name": "string"}));
        let good = encode(
            &columns,
            &options,
            &[r#"{"id":1,"name":"a"}"#, r#"{"id":2,"name":"b"}"#],
        );
        let (first, second) = (good.value(0), good.value(1));
        let longer = [second, b"!"].concat();
        let payloads = BinaryArray::from(vec![
            Some(first),
            Some(&first[..2]),
            Some(&b""[..]),
            Some(&longer),
            Some(&[0xff; 20]),
            None,
            Some(second),
        ]);
        let decoded = decode(&columns, &options, &payloads);
        assert_eq!(decoded.payloads, Some(vec![0, 6]));
        let failed: Vec<usize> = decoded.failures.iter().map(|f| f.payload).collect();
        assert_eq!(failed, [1, 2, 3, 4, 5], "{:?}", decoded.failures);
        assert_eq!(
            shown(&decoded.batch),
            [r#"{"id":1,"name":"a"}"#, r#"{"id":2,"name":"b"}"#]
        );
    }

    /// Both directions: an old reader of new messages and a new reader of old ones, mixed in one topic.
    #[test]
    fn a_nullable_column_comes_and_goes() {
        let old = columns(json!({"id": "int64!", "name": "string"}));
        let new = columns(json!({"id": "int64!", "name": "string", "country": "string"}));
        let both =
            json!({"1": avro_schema(&old, "r").unwrap(), "2": avro_schema(&new, "r").unwrap()});
        let of = |id: &str| options(json!({"framing": "confluent", "schemas": {id: both[id]}}));
        let by_old = encode(&old, &of("1"), &[r#"{"id":1,"name":"a"}"#, r#"{"id":3}"#]);
        let by_new = encode(
            &new,
            &of("2"),
            &[
                r#"{"id":2,"name":"b","country":"中国"}"#,
                r#"{"id":4,"country":"x"}"#,
            ],
        );
        let mixed = BinaryArray::from_iter_values([
            by_old.value(0),
            by_new.value(0),
            by_old.value(1),
            by_new.value(1),
        ]);
        let reader = options(json!({"framing": "confluent", "schemas": both}));
        let read = |columns: &SchemaRef| {
            let decoded = decode(columns, &reader, &mixed);
            assert!(
                decoded.failures.is_empty() && decoded.payloads.is_none(),
                "{decoded:?}"
            );
            shown(&decoded.batch)
        };
        assert_eq!(
            read(&old),
            [
                r#"{"id":1,"name":"a"}"#,
                r#"{"id":2,"name":"b"}"#,
                r#"{"id":3}"#,
                r#"{"id":4}"#
            ]
        );
        assert_eq!(
            read(&new),
            [
                r#"{"id":1,"name":"a"}"#,
                r#"{"id":2,"name":"b","country":"中国"}"#,
                r#"{"id":3}"#,
                r#"{"id":4,"country":"x"}"#
            ]
        );
        // What changes a meaning is refused, with the column and both types.
        let other = columns(json!({"id": "string!"}));
        let error = AvroDecoder::new(other, &reader).err().unwrap().to_string();
        assert!(
            error.contains("column `id` is Int64 in the data and Utf8 is wanted"),
            "{error}"
        );
        let required = columns(json!({"id": "int64!", "country": "string!"}));
        let error = AvroDecoder::new(required, &reader)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("`country`"), "{error}");
    }

    #[test]
    fn a_schema_of_others_is_read() {
        let schema = json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
            {"name": "id", "type": "int"},
            {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "labels", "type": {"type": "map", "values": "string"}},
        ]});
        let found = columns_of(&schema).unwrap();
        assert_eq!(found.fields().len(), 4);
        assert_eq!(found.field(1).data_type(), &DataType::Utf8);
        let wanted = columns(json!({"id": "int64!", "state": "string!", "at": "timestamp!"}));
        let options = options(json!({"schema": schema}));
        // id 5, PAID, 2026-01-01 in microseconds, no labels.
        let mut body = vec![10, 2];
        let micros: u64 = 1_767_225_600_000_000 << 1;
        let mut rest = micros;
        while rest >= 0x80 {
            body.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        body.extend([rest as u8, 0]);
        let decoded = decode(&wanted, &options, &BinaryArray::from_iter_values([body]));
        assert_eq!(decoded.failures, []);
        assert_eq!(
            shown(&decoded.batch),
            [r#"{"id":5,"state":"PAID","at":"2026-01-01T00:00:00Z"}"#]
        );
        assert_eq!(full_name(&schema.to_string()).unwrap(), "shop.Order");

        let written = columns(
            json!({"id": "int64!", "state": "string!", "at": "timestamp!", "labels": "string"}),
        );
        AvroEncoder::new(&written, &options, &topic())
            .err()
            .unwrap();
        let schema = json!({"type": "record", "name": "Order", "fields": [
            {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}},
        ]});
        let options = self::options(json!({"schema": schema}));
        let state = columns(json!({"state": "string!"}));
        let payloads = encode(
            &state,
            &options,
            &[r#"{"state":"PAID"}"#, r#"{"state":"NEW"}"#],
        );
        assert_eq!((payloads.value(0), payloads.value(1)), (&[2][..], &[0][..]));
        let mut encoder = AvroEncoder::new(&state, &options, &topic()).unwrap();
        let error = encoder
            .encode(&rows(&state, &[r#"{"state":"GONE"}"#]))
            .unwrap_err();
        assert!(error.to_string().contains("none of NEW, PAID"), "{error}");
    }

    #[test]
    fn rates() {
        let columns = columns(
            json!({"id": "int64!", "name": "string", "at": "timestamp", "amount": "float64", "city": "string"}),
        );
        let lines: Vec<String> = (0..8_192)
            .map(|i| format!(r#"{{"id":{i},"name":"user-{}","at":"2026-01-01T00:00:{:02}.123Z","amount":{}.5,"city":"city {}"}}"#, i % 1000, i % 60, i % 500, i % 50))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (options, batch) = (options(json!({})), rows(&columns, &lines));
        let rounds = 20;
        let mut encoder = AvroEncoder::new(&columns, &options, &topic()).unwrap();
        let started = std::time::Instant::now();
        let mut payloads = None;
        for _ in 0..rounds {
            payloads = Some(encoder.encode(&batch).unwrap().payloads);
        }
        let written = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        let payloads = payloads.unwrap();
        let mut decoder = AvroDecoder::new(columns, &options).unwrap();
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            assert_eq!(decoder.decode(&payloads).unwrap().batch.num_rows(), 8_192);
        }
        let read = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        println!("avro: {read:.0} rows/s read, {written:.0} rows/s written");
    }
}
