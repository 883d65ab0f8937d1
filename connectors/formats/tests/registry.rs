//! The registry's client, and the formats that use it, against a real registry process (`deploy/dev/registry.sh`).
//!
//! One registry for all tests; each has subjects of its own. Where Java or Maven are missing they say `SKIPPED`, and with
//! `CI` set they fail.

#![allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]

use std::sync::{Mutex, OnceLock};

use arrow::array::{BinaryArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};
use va_catalog::TopicName;
use va_connectors::schema::parse_schema;
use va_formats::registry::{RegisteredSchema, Registry};
use va_formats::{Decoded, FormatError, FormatSpec};

#[path = "../../../deploy/dev/server.rs"]
mod server;

/// Its address, started with the first call. It ends when this process does, with its input.
fn url() -> Option<String> {
    static SERVER: OnceLock<Result<Mutex<server::Server>, String>> = OnceLock::new();
    match SERVER.get_or_init(|| server::Server::start("registry.sh").map(Mutex::new)) {
        Ok(server) => Some(server.lock().unwrap().url().to_owned()),
        Err(reason) => {
            server::skip(reason);
            None
        }
    }
}

fn client(url: &str) -> Registry {
    Registry::new(&serde_json::from_value(json!({"url": url})).unwrap()).unwrap()
}

fn avro(fields: Value) -> RegisteredSchema {
    RegisteredSchema {
        schema: json!({"type": "record", "name": "Order", "fields": fields}).to_string(),
        kind: "AVRO".to_owned(),
        references: Vec::new(),
    }
}

fn columns(text: Value) -> SchemaRef {
    parse_schema(text.as_object().unwrap()).unwrap()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn spec(text: Value) -> FormatSpec {
    serde_json::from_value(text).unwrap()
}

async fn rows(columns: &SchemaRef, lines: &[&str]) -> RecordBatch {
    let mut decoder = spec(json!({"type": "json"})).decoder(columns).unwrap();
    let decoded = decoder
        .decode(&BinaryArray::from_iter_values(lines))
        .unwrap();
    assert_eq!(decoded.failures, []);
    decoded.batch
}

fn shown(batch: &RecordBatch) -> Vec<String> {
    let mut encoder = spec(json!({"type": "json"}))
        .encoder(&batch.schema(), &topic("t"))
        .unwrap();
    let payloads = encoder.encode(batch).unwrap().payloads;
    payloads
        .iter()
        .map(|p| String::from_utf8(p.unwrap().to_vec()).unwrap())
        .collect()
}

async fn write(
    format: &FormatSpec,
    columns: &SchemaRef,
    name: &str,
    lines: &[&str],
) -> Result<BinaryArray, FormatError> {
    let mut encoder = format.encoder(columns, &topic(name))?;
    encoder.prepare().await?;
    Ok(encoder.encode(&rows(columns, lines).await)?.payloads)
}

async fn read(format: &FormatSpec, columns: &SchemaRef, payloads: &BinaryArray) -> Decoded {
    let mut decoder = format.decoder(columns).unwrap();
    decoder.prepare(payloads).await.unwrap();
    decoder.decode(payloads).unwrap()
}

#[tokio::test]
async fn subjects_versions_ids_and_rules() {
    let Some(url) = url() else { return };
    let registry = client(&url);
    let id = json!({"name": "id", "type": "long"});
    let old = avro(json!([id]));
    let new = avro(json!([id, {"name": "name", "type": ["null", "string"], "default": null}]));
    let wrong = avro(json!([{"name": "id", "type": "string"}]));

    assert_eq!(registry.version("s-value", None).await.unwrap(), None);
    assert_eq!(registry.lookup("s-value", &old).await.unwrap(), None);
    assert!(
        registry
            .compatibility("s-value", &old)
            .await
            .unwrap()
            .is_compatible
    );
    let first = registry.register("s-value", &old).await.unwrap();
    assert_eq!(
        registry.register("s-value", &old).await.unwrap(),
        first,
        "the same again is the same"
    );
    assert_eq!(registry.lookup("s-value", &old).await.unwrap(), Some(first));
    registry
        .set_rule(Some("s-value"), "BACKWARD")
        .await
        .unwrap();
    assert_eq!(registry.rule(Some("s-value")).await.unwrap(), "BACKWARD");
    assert_eq!(
        registry.rule(Some("t-value")).await.unwrap(),
        registry.rule(None).await.unwrap()
    );

    let allowed = registry.compatibility("s-value", &new).await.unwrap();
    assert!(allowed.is_compatible, "{allowed:?}");
    let refused = registry.compatibility("s-value", &wrong).await.unwrap();
    assert!(
        !refused.is_compatible && !refused.reasons.is_empty(),
        "{refused:?}"
    );
    let error = registry
        .register("s-value", &wrong)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`s-value`") && error.contains("nullable"),
        "{error}"
    );
    let second = registry.register("s-value", &new).await.unwrap();
    assert_ne!(first, second);
    let latest = registry.version("s-value", None).await.unwrap().unwrap();
    assert_eq!((latest.version, latest.id), (2, second));
    assert_eq!(
        registry
            .version("s-value", Some(1))
            .await
            .unwrap()
            .unwrap()
            .id,
        first
    );
    let found = registry.schema(first).await.unwrap().unwrap();
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(json(&found.schema), json(&old.schema));
    assert_eq!(registry.schema(999_999).await.unwrap(), None);
    assert!(
        registry
            .subjects()
            .await
            .unwrap()
            .contains(&"s-value".to_owned())
    );

    let nonsense = RegisteredSchema {
        schema: "{".to_owned(),
        ..old
    };
    let error = registry.register("n-value", &nonsense).await.unwrap_err();
    assert!(matches!(error, FormatError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn avro_messages_of_two_versions_are_read_by_both() {
    let Some(url) = url() else { return };
    let old = columns(json!({"id": "int64!", "name": "string"}));
    let new = columns(json!({"id": "int64!", "name": "string", "country": "string"}));
    let format = spec(json!({"type": "avro", "name": "shop.Order", "registry": {"url": url}}));
    let by_old = write(&format, &old, "avro", &[r#"{"id":1,"name":"a"}"#])
        .await
        .unwrap();
    client(&url)
        .set_rule(Some("avro-value"), "FULL")
        .await
        .unwrap();
    let by_new = write(&format, &new, "avro", &[r#"{"id":2,"country":"中国"}"#])
        .await
        .unwrap();
    let unknown = [&[0, 0, 0, 255, 255][..], b"x"].concat();
    let mixed = BinaryArray::from_iter_values([
        by_new.value(0),
        by_old.value(0),
        &unknown,
        by_new.value(0),
    ]);
    for (columns, expected) in [
        (
            &old,
            [r#"{"id":2}"#, r#"{"id":1,"name":"a"}"#, r#"{"id":2}"#],
        ),
        (
            &new,
            [
                r#"{"id":2,"country":"中国"}"#,
                r#"{"id":1,"name":"a"}"#,
                r#"{"id":2,"country":"中国"}"#,
            ],
        ),
    ] {
        let decoded = read(&format, columns, &mixed).await;
        assert_eq!(shown(&decoded.batch), expected);
        assert_eq!(decoded.payloads, Some(vec![0, 1, 3]));
        assert!(
            decoded.failures[0].reason.contains("no schema 65535"),
            "{:?}",
            decoded.failures
        );
    }

    let wrong = columns(json!({"id": "string!"}));
    let error = write(&format, &wrong, "avro", &[]).await.unwrap_err();
    assert!(
        matches!(&error, FormatError::Invalid(text) if text.contains("`avro-value`")),
        "{error}"
    );
    // A reader that wants another type gets no wrong value.
    let decoded = read(&format, &wrong, &by_old).await;
    assert_eq!(decoded.batch.num_rows(), 0);
    let reason = &decoded.failures[0].reason;
    assert!(
        reason.contains("column `id` is Int64 in the data and Utf8 is wanted"),
        "{reason}"
    );

    let strict = spec(
        json!({"type": "avro", "name": "shop.Order", "registry": {"url": url, "register": false, "subject": "record"}}),
    );
    let error = write(&strict, &old, "avro", &[])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`shop.Order`") && error.contains("register: true"),
        "{error}"
    );
}

#[tokio::test]
async fn protobuf_messages_name_their_schema_and_type() {
    let Some(url) = url() else { return };
    let columns = columns(json!({"id": "int64!", "name": "string"}));
    let format = spec(
        json!({"type": "protobuf", "message": "shop.Order", "registry": {"url": url, "subject": "topic_record"},
        "schema": "syntax = \"proto3\"; package shop; message First { string x = 1; } message Order { int64 id = 1; optional string name = 2; }"}),
    );
    let payloads = write(
        &format,
        &columns,
        "proto",
        &[r#"{"id":1,"name":"a"}"#, r#"{"id":2}"#],
    )
    .await
    .unwrap();
    assert_eq!(
        (payloads.value(0)[0], &payloads.value(0)[5..7]),
        (0, &[2, 2][..])
    );
    let reader = spec(json!({"type": "protobuf", "registry": {"url": url}}));
    let decoded = read(&reader, &columns, &payloads).await;
    assert_eq!(decoded.failures, []);
    assert_eq!(
        shown(&decoded.batch),
        [r#"{"id":1,"name":"a"}"#, r#"{"id":2}"#]
    );
    let subjects = client(&url).subjects().await.unwrap();
    assert!(
        subjects.contains(&"proto-shop.Order".to_owned()),
        "{subjects:?}"
    );
}
