//! `protobuf`: messages of a type that a `.proto` text or a descriptor set declares, bare or in Confluent's framing.
//!
//! The declared columns decide what is read: fields by name, of a message that is known at run time only. A field without
//! presence has its default where it is not sent, as everywhere in Protobuf; one with presence is null. Enums are texts,
//! `google.protobuf.Timestamp` is a timestamp, the wrappers are nullable values.
//!
//! Here is where the type comes from. `columns` makes arrays of its fields, `decode` reads messages, `encode` writes them.

mod columns;
mod decode;
mod encode;

use std::collections::BTreeMap;

use base64::Engine;
use prost_reflect::{DescriptorPool, FileDescriptor, MessageDescriptor};
use protobuf::Message as _;
use protobuf::descriptor::FileDescriptorSet;

use crate::format::FormatError;
use crate::spec::ProtobufOptions;

pub(crate) use self::decode::ProtobufDecoder;
pub(crate) use self::encode::ProtobufEncoder;

/// Name of the file that is given as a text.
const MAIN: &str = "message.proto";
const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// Reads the text of a `.proto` file and of those that it imports. The parser reads files, so they are written into a
/// folder that goes again; Google's own it knows by itself.
fn compile(main: &str, imports: &BTreeMap<String, String>) -> Result<FileDescriptor, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("make a folder: {error}"))?;
    for (name, text) in imports.iter().chain([(&MAIN.to_owned(), &main.to_owned())]) {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
        if !name.split('/').all(is_plain) {
            return Err(format!("`{name}` is no name of a file to import"));
        }
        let path = folder.path().join(name);
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("write `{name}`: {error}"))?;
    }
    // The chain of an error is its text: which file, which place, what is wrong there.
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(folder.path())
        .input(folder.path().join(MAIN))
        .parse_and_typecheck()
        .map_err(|error| {
            let text = format!("{error:#}");
            text.replace(&format!("{}/", folder.path().display()), "")
        })?;
    let mut set = FileDescriptorSet::new();
    set.file = parsed.file_descriptors;
    let bytes = set.write_to_bytes().map_err(|error| error.to_string())?;
    let pool = DescriptorPool::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    pool.get_file_by_name(MAIN)
        .ok_or_else(|| "the compiled file is missing".to_owned())
}

/// The message that the options name.
fn message_of(options: &ProtobufOptions) -> Result<Option<MessageDescriptor>, FormatError> {
    let invalid = FormatError::Invalid;
    let (pool, file) = match (&options.schema, &options.descriptor_set) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid(
                "`format` has both `schema` and `descriptor_set`; use one of them".to_owned(),
            ));
        }
        (Some(schema), None) => {
            let file = compile(schema, &options.imports)
                .map_err(|error| invalid(format!("`format.schema`: {error}")))?;
            (file.parent_pool().clone(), Some(file))
        }
        (None, Some(set)) => {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(set.trim())
                .map_err(|error| {
                    invalid(format!("`format.descriptor_set` is no base64: {error}"))
                })?;
            let pool = DescriptorPool::decode(bytes.as_slice())
                .map_err(|error| invalid(format!("`format.descriptor_set`: {error}")))?;
            (pool, None)
        }
    };
    let names = || {
        let known: Vec<String> = match &file {
            Some(file) => file
                .messages()
                .map(|m| format!("`{}`", m.full_name()))
                .collect(),
            None => pool
                .all_messages()
                .map(|m| format!("`{}`", m.full_name()))
                .collect(),
        };
        known.join(", ")
    };
    let found = match &options.message {
        Some(name) => pool.get_message_by_name(name).ok_or_else(|| {
            invalid(format!(
                "`format.message` is `{name}`, which is not declared; use one of {}",
                names()
            ))
        })?,
        None => {
            let mut messages: Vec<_> = file
                .iter()
                .flat_map(|file| file.messages().collect::<Vec<_>>())
                .collect();
            if messages.len() != 1 {
                return Err(invalid(format!(
                    "name the type in `format.message`; there are {}",
                    names()
                )));
            }
            messages.remove(0)
        }
    };
    Ok(Some(found))
}

/// Which message of its file it is.
fn path_of(message: &MessageDescriptor) -> Vec<usize> {
    let indexes = message.path().iter().skip(1).step_by(2);
    indexes.map(|index| *index as usize).collect()
}

fn message_at(file: &FileDescriptor, path: &[usize]) -> Option<MessageDescriptor> {
    let (first, rest) = path.split_first()?;
    let top = file.messages().nth(*first)?;
    rest.iter()
        .try_fold(top, |message, index| message.child_messages().nth(*index))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use arrow::array::{BinaryArray, RecordBatch};
    use arrow::datatypes::SchemaRef;
    use serde_json::json;
    use va_catalog::TopicName;
    use va_connectors::schema::parse_schema;

    use super::*;
    use crate::confluent;
    use crate::format::{Decoder, Encoder};
    use crate::json::{JsonDecoder, JsonEncoder};
    use crate::spec::JsonOptions;

    const PROTO: &str = r#"
        syntax = "proto3";
        package shop;
        import "google/protobuf/timestamp.proto";
        import "google/protobuf/wrappers.proto";
        message Other { string x = 1; }
        message Order {
          int64 id = 1;
          optional string name = 2;
          google.protobuf.Timestamp at = 3;
          repeated string tags = 4;
          enum State { NEW = 0; PAID = 1; }
          State state = 5;
          message Who { string city = 1; int32 n = 2; Order order = 3; }
          Who who = 6;
          google.protobuf.DoubleValue score = 7;
          map<string, int32> counts = 8;
          bytes raw = 9;
        }"#;

    fn columns(text: serde_json::Value) -> SchemaRef {
        parse_schema(text.as_object().unwrap()).unwrap()
    }

    fn order() -> SchemaRef {
        columns(
            json!({"id": "int64!", "name": "string", "at": "timestamp", "tags": "list<string>", "state": "string",
            "who": {"city": "string", "n": "int64"}, "score": "float64", "raw": "binary"}),
        )
    }

    fn options(text: serde_json::Value) -> ProtobufOptions {
        serde_json::from_value(text).unwrap()
    }

    fn topic() -> TopicName {
        TopicName::new("orders").unwrap()
    }

    fn rows(columns: &SchemaRef, lines: &[&str]) -> RecordBatch {
        let payloads = BinaryArray::from_iter_values(lines);
        let decoded = JsonDecoder::new(columns.clone(), JsonOptions::default())
            .unwrap()
            .decode(&payloads)
            .unwrap();
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

    const ORDERS: [&str; 2] = [
        r#"{"id":1,"name":"小明","at":"2026-01-01T00:00:00.123Z","tags":["a","b"],"state":"PAID","who":{"city":"上海","n":3},"score":1.5,"raw":"00ff"}"#,
        r#"{"id":2,"tags":[],"state":"NEW","raw":""}"#,
    ];

    #[test]
    fn what_is_written_is_read() {
        let options = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &options, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let mut decoder = ProtobufDecoder::new(order(), &options).unwrap();
        let decoded = decoder.decode(&payloads).unwrap();
        assert_eq!(decoded.failures, []);
        assert_eq!(shown(&decoded.batch), ORDERS);

        let bad = BinaryArray::from(vec![
            Some(payloads.value(1)),
            Some(&b"\xff\xff"[..]),
            None,
            Some(&b""[..]),
        ]);
        let decoded = decoder.decode(&bad).unwrap();
        assert_eq!(decoded.payloads, Some(vec![0, 3]));
        assert_eq!(decoded.failures.len(), 2);
        // An empty message is one whose fields have their defaults.
        assert_eq!(
            shown(&decoded.batch)[1],
            r#"{"id":0,"tags":[],"state":"NEW","raw":""}"#
        );
    }

    #[test]
    fn a_descriptor_set_does_as_well() {
        let message = message_of(&options(json!({"schema": PROTO, "message": "shop.Order"})))
            .unwrap()
            .unwrap();
        let set =
            base64::engine::general_purpose::STANDARD.encode(message.parent_pool().encode_to_vec());
        let options = options(json!({"descriptor_set": set, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &options, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let decoded = ProtobufDecoder::new(order(), &options)
            .unwrap()
            .decode(&payloads)
            .unwrap();
        assert_eq!(shown(&decoded.batch), ORDERS);
    }

    #[tokio::test]
    async fn framed_messages_name_their_type() {
        let bare = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &bare, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let path = path_of(&encoder.message);
        assert_eq!(path, [1]);
        let framed = |path: &[usize], body: &[u8]| {
            [&confluent::header(7)[..], &confluent::indexes(path), body].concat()
        };
        let framed = BinaryArray::from_iter_values([
            framed(&path, payloads.value(0)),
            framed(&[9], payloads.value(0)),
            payloads.value(0).to_vec(),
            framed(&path, payloads.value(1)),
        ]);
        let options =
            options(json!({"schema": PROTO, "message": "shop.Order", "framing": "confluent"}));
        let mut decoder = ProtobufDecoder::new(order(), &options).unwrap();
        decoder.prepare(&framed).await.unwrap();
        let decoded = decoder.decode(&framed).unwrap();
        assert_eq!(decoded.payloads, Some(vec![0, 3]));
        assert_eq!(shown(&decoded.batch), ORDERS);
        assert!(
            decoded.failures[0].reason.contains("no message at [9]"),
            "{:?}",
            decoded.failures
        );
        let nested = message_of(&options_of_nested()).unwrap().unwrap();
        assert_eq!(path_of(&nested), [1, 0]);
        assert_eq!(message_at(&nested.parent_file(), &[1, 0]).unwrap(), nested);
    }

    fn options_of_nested() -> ProtobufOptions {
        options(json!({"schema": PROTO, "message": "shop.Order.Who"}))
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let of = |text| options(text);
        let decoder = |columns, options: &ProtobufOptions| {
            ProtobufDecoder::new(columns, options)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        let good = of(json!({"schema": PROTO, "message": "shop.Order"}));
        for (error, part) in [
            (decoder(order(), &of(json!({}))), "`schema`"),
            (
                decoder(order(), &of(json!({"schema": PROTO}))),
                "`shop.Order`",
            ),
            (
                decoder(order(), &of(json!({"schema": "message {"}))),
                "`format.schema`",
            ),
            (
                decoder(columns(json!({"id": "string"})), &good),
                "column `id` is Int64 in the data and Utf8 is wanted",
            ),
            (
                decoder(columns(json!({"more": "string!"})), &good),
                "`more`",
            ),
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = ProtobufEncoder::new(&columns(json!({"more": "string"})), &good, &topic())
            .err()
            .unwrap();
        assert!(error.to_string().contains("no field `more`"), "{error}");
        // A new nullable column is null in old messages.
        let newer = columns(json!({"id": "int64!", "more": "string"}));
        assert_eq!(decoder(newer, &good), "");
    }

    #[test]
    fn rates() {
        let columns = columns(
            json!({"id": "int64!", "name": "string", "at": "timestamp", "score": "float64"}),
        );
        let lines: Vec<String> = (0..8_192)
            .map(|i| {
                format!(
                    r#"{{"id":{i},"name":"user-{}","at":"2026-01-01T00:00:{:02}.123Z","score":{}.5}}"#,
                    i % 1000,
                    i % 60,
                    i % 500
                )
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let options = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let batch = rows(&columns, &lines);
        let rounds = 10;
        let mut encoder = ProtobufEncoder::new(&columns, &options, &topic()).unwrap();
        let started = std::time::Instant::now();
        let mut payloads = None;
        for _ in 0..rounds {
            payloads = Some(encoder.encode(&batch).unwrap().payloads);
        }
        let written = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        let payloads = payloads.unwrap();
        let mut decoder = ProtobufDecoder::new(columns, &options).unwrap();
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            assert_eq!(decoder.decode(&payloads).unwrap().batch.num_rows(), 8_192);
        }
        let read = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        println!("protobuf: {read:.0} rows/s read, {written:.0} rows/s written");
    }
}
