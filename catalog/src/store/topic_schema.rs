//! Arrow schemas as JSON, the check of a batch against a topic's schema, and how that schema may change.
//!
//! The JSON names each column's type as Arrow prints and reads it, so that people can read it too:
//!
//! ```json
//! {"fields": [{"name": "event_id", "type": "Utf8", "nullable": false},
//!             {"name": "tags", "type": "List(non-null Utf8)", "nullable": true}]}
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::error::CatalogError;
use super::topics::Topic;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaJson {
    fields: Vec<FieldJson>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldJson {
    name: String,
    #[serde(rename = "type")]
    data_type: String,
    nullable: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// The schema as JSON. An error when it holds what the JSON cannot (metadata on nested fields, exotic names).
pub fn schema_to_json(schema: &Schema) -> Result<serde_json::Value, CatalogError> {
    let sorted = |metadata: &HashMap<String, String>| {
        metadata
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let data_type = field.data_type().to_string();
        // What cannot be read back would only be found out when the topic is next read.
        if data_type.parse::<DataType>().ok().as_ref() != Some(field.data_type()) {
            return Err(CatalogError::Invalid(format!(
                "the type `{data_type}` of column `{}` cannot be stored: leave metadata of nested fields and quotes in their names out",
                field.name()
            )));
        }
        fields.push(FieldJson {
            name: field.name().clone(),
            data_type,
            nullable: field.is_nullable(),
            metadata: sorted(field.metadata()),
        });
    }
    let json = SchemaJson {
        fields,
        metadata: sorted(schema.metadata()),
    };
    serde_json::to_value(json).map_err(|error| CatalogError::storage("write the schema", error))
}

/// The schema that the JSON describes.
pub fn schema_from_json(json: &serde_json::Value) -> Result<SchemaRef, CatalogError> {
    let json = SchemaJson::deserialize(json)
        .map_err(|error| CatalogError::Invalid(format!("the schema is not valid: {error}")))?;
    let mut fields = Vec::with_capacity(json.fields.len());
    for field in json.fields {
        let data_type: DataType = field.data_type.parse().map_err(|_| {
            CatalogError::Invalid(format!(
                "column `{}` has the unknown type `{}`: use an Arrow type, as `Utf8`, `Int64`, `Timestamp(ms, \"UTC\")` or `List(Utf8)`",
                field.name, field.data_type
            ))
        })?;
        fields.push(
            Field::new(field.name, data_type, field.nullable)
                .with_metadata(field.metadata.into_iter().collect()),
        );
    }
    Ok(Arc::new(Schema::new_with_metadata(
        fields,
        json.metadata.into_iter().collect(),
    )))
}

/// The first column of a batch that does not fit a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` does not fit the topic: expected {expected}, got {got}; {hint}")]
pub struct SchemaMismatch {
    /// With dots into structs and `[]` into lists: `payload.tags[]`.
    pub column: String,
    pub expected: String,
    pub got: String,
    pub hint: String,
}

/// Checks that a batch has exactly the topic's columns, in their order, with their types, and no nulls where the topic
/// has none. A topic without a schema accepts any batch.
pub fn check_batch(topic: &Topic, batch: &RecordBatch) -> Result<(), SchemaMismatch> {
    let Some(schema) = &topic.schema else {
        return Ok(());
    };
    let got_schema = batch.schema_ref();
    let missing = |field: &Field| SchemaMismatch {
        column: field.name().clone(),
        expected: described(field),
        got: "no such column".to_owned(),
        hint: format!(
            "add it; topic `{}` has {}",
            topic.name,
            names(schema.as_ref())
        ),
    };
    for (index, field) in schema.fields().iter().enumerate() {
        let Some((position, got)) = got_schema.fields().find(field.name()) else {
            return Err(missing(field));
        };
        if position != index {
            return Err(SchemaMismatch {
                column: field.name().clone(),
                expected: format!("position {index}"),
                got: format!("position {position}"),
                hint: format!("order the columns as {}", names(schema.as_ref())),
            });
        }
        check_column(field.name(), field, got, batch.column(position))?;
    }
    // All expected columns are at their places, so what is left over stands behind them.
    if let Some(extra) = got_schema.fields().get(schema.fields().len()) {
        return Err(SchemaMismatch {
            column: extra.name().clone(),
            expected: "no such column".to_owned(),
            got: described(extra),
            hint: format!(
                "drop it; topic `{}` has {}",
                topic.name,
                names(schema.as_ref())
            ),
        });
    }
    Ok(())
}

/// A column of rows to be written that does not fit what the topic holds already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` was {was} and would be {now}; {hint}")]
pub struct SchemaChange {
    /// With dots into structs and `[]` into lists.
    pub column: String,
    pub was: String,
    pub now: String,
    pub hint: String,
}

/// The schema of a topic after rows of another schema were written to it: its own columns in their order, then the new
/// ones, which are nullable from then on because older rows lack them. Readers of either schema go on: what a row lacks is
/// null, what it has more they do not see.
///
/// Refused, with every column at once: another type, and leaving out a column that is never null. A new place among the
/// columns, and whether a column that is never null is declared so, change nothing: values are checked where they are read.
pub fn evolve(topic: &Schema, rows: &Schema) -> Result<SchemaRef, Vec<SchemaChange>> {
    let mut changes = Vec::new();
    let fields = evolve_fields("", topic.fields(), rows.fields(), &mut changes);
    if changes.is_empty() {
        Ok(Arc::new(Schema::new_with_metadata(
            fields,
            topic.metadata().clone(),
        )))
    } else {
        Err(changes)
    }
}

fn evolve_fields(
    path: &str,
    topic: &Fields,
    rows: &Fields,
    changes: &mut Vec<SchemaChange>,
) -> Vec<Arc<Field>> {
    let at = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    let mut fields = Vec::with_capacity(topic.len());
    for field in topic {
        let Some((_, found)) = rows.find(field.name()) else {
            if !field.is_nullable() {
                changes.push(SchemaChange {
                    column: at(field.name()),
                    was: described(field),
                    now: "gone".to_owned(),
                    hint: "keep it, because readers count on it".to_owned(),
                });
            }
            fields.push(field.clone());
            continue;
        };
        let data_type = evolve_type(
            &at(field.name()),
            field.data_type(),
            found.data_type(),
            changes,
        );
        fields.push(Arc::new(field.as_ref().clone().with_data_type(data_type)));
    }
    for field in rows {
        if topic.find(field.name()).is_none() {
            fields.push(Arc::new(field.as_ref().clone().with_nullable(true)));
        }
    }
    fields
}

fn evolve_type(
    path: &str,
    topic: &DataType,
    rows: &DataType,
    changes: &mut Vec<SchemaChange>,
) -> DataType {
    match (topic, rows) {
        (DataType::Struct(topic), DataType::Struct(rows)) => {
            DataType::Struct(evolve_fields(path, topic, rows, changes).into())
        }
        (DataType::List(topic), DataType::List(rows)) => {
            let path = format!("{path}[]");
            let item = evolve_type(&path, topic.data_type(), rows.data_type(), changes);
            DataType::List(Arc::new(topic.as_ref().clone().with_data_type(item)))
        }
        (topic, rows) if topic == rows => topic.clone(),
        (topic, rows) => {
            changes.push(SchemaChange {
                column: path.to_owned(),
                was: topic.to_string(),
                now: rows.to_string(),
                hint: match arrow::compute::can_cast_types(rows, topic) {
                    true => format!(
                        "cast it in a `map`: arrow_cast(column, '{topic}'), or write the new type under a new name"
                    ),
                    false => "write the new type under a new name, or to a new topic".to_owned(),
                },
            });
            topic.clone()
        }
    }
}

fn check_column(
    path: &str,
    expected: &Field,
    got: &Field,
    array: &ArrayRef,
) -> Result<(), SchemaMismatch> {
    if !expected.is_nullable() && array.null_count() > 0 {
        return Err(SchemaMismatch {
            column: path.to_owned(),
            expected: "no nulls".to_owned(),
            got: format!("{} nulls", array.null_count()),
            hint: "fill or filter these rows".to_owned(),
        });
    }
    let mismatch = || SchemaMismatch {
        column: path.to_owned(),
        expected: expected.data_type().to_string(),
        got: got.data_type().to_string(),
        hint: type_hint(expected.data_type(), got.data_type()),
    };
    match (expected.data_type(), got.data_type()) {
        (DataType::Struct(expected), DataType::Struct(got_fields)) => {
            let children = array.as_struct().columns();
            if expected.len() != got_fields.len() {
                return Err(mismatch());
            }
            for ((expected, got), child) in expected.iter().zip(got_fields).zip(children) {
                if expected.name() != got.name() {
                    return Err(mismatch());
                }
                check_column(&format!("{path}.{}", expected.name()), expected, got, child)?;
            }
            Ok(())
        }
        (DataType::List(expected), DataType::List(got)) => check_column(
            &format!("{path}[]"),
            expected,
            got,
            array.as_list::<i32>().values(),
        ),
        (DataType::LargeList(expected), DataType::LargeList(got)) => check_column(
            &format!("{path}[]"),
            expected,
            got,
            array.as_list::<i64>().values(),
        ),
        (DataType::FixedSizeList(expected, a), DataType::FixedSizeList(got, b)) if a == b => {
            // A null list has null items behind it, so items are only held against the type.
            if expected.data_type() == got.data_type() {
                Ok(())
            } else {
                Err(mismatch())
            }
        }
        (expected, got) if expected == got => Ok(()),
        _ => Err(mismatch()),
    }
}

fn type_hint(expected: &DataType, got: &DataType) -> String {
    match (expected, got) {
        (DataType::Struct(expected), DataType::Struct(_)) => {
            let names: Vec<_> = expected.iter().map(|field| field.name().as_str()).collect();
            format!("its fields are, in this order, {}", names.join(", "))
        }
        (DataType::FixedSizeList(_, expected), DataType::FixedSizeList(_, got))
            if expected != got =>
        {
            format!(
                "the vectors have {got} dimensions instead of {expected}: use the model of the collection"
            )
        }
        (expected, got) if arrow::compute::can_cast_types(got, expected) => {
            format!("cast it: arrow_cast(column, '{expected}')")
        }
        _ => "change what writes it, or the topic's schema".to_owned(),
    }
}

fn described(field: &Field) -> String {
    let nulls = if field.is_nullable() { "" } else { "non-null " };
    format!("{nulls}{}", field.data_type())
}

fn names(schema: &Schema) -> String {
    let names: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray, StructArray};
    use arrow::datatypes::TimeUnit;

    use super::*;
    use crate::chunk::chunk_schema;
    use crate::event;
    use crate::ids::TopicName;
    use crate::store::topics::{Retention, WireFormat, built_in_topics};

    fn topic(schema: Schema) -> Topic {
        Topic {
            name: TopicName::new("orders").expect("a valid name"),
            partitions: 1,
            retention: Retention::default(),
            wire_format: WireFormat::Batches,
            schema: Some(Arc::new(schema)),
            description: String::new(),
        }
    }

    #[test]
    fn schemas_survive_json() {
        let odd = Schema::new_with_metadata(
            vec![
                Field::new(
                    "时间",
                    DataType::Timestamp(TimeUnit::Nanosecond, None),
                    true,
                )
                .with_metadata([("unit".to_owned(), "纳秒".to_owned())].into()),
                Field::new("amount", DataType::Decimal128(20, 4), false),
                Field::new_dictionary("kind", DataType::Int32, DataType::Utf8, true),
                Field::new_map(
                    "labels",
                    "entries",
                    Arc::new(Field::new("keys", DataType::Utf8, false)),
                    Arc::new(Field::new("values", DataType::Int64, true)),
                    false,
                    true,
                ),
            ],
            [("owner".to_owned(), "sales".to_owned())].into(),
        );
        for schema in [
            event::document_uploaded_schema(),
            event::document_indexed_schema(),
            event::platform_alert_schema(),
            event::llm_usage_schema(),
            event::conversation_events_schema(),
            event::dead_letter_schema(),
            event::parsed_schema(),
            chunk_schema(Some(384)),
            Arc::new(odd),
        ] {
            let text = schema_to_json(&schema).expect("json").to_string();
            let json = serde_json::from_str(&text).expect("valid json");
            assert_eq!(schema_from_json(&json).expect("a schema"), schema, "{text}");
        }
        assert_eq!(built_in_topics().len(), 5);
    }

    /// Catalogs hold this text: it must be readable for ever.
    #[test]
    fn stored_schemas_stay_readable() {
        let stored = r#"{"fields":[{"name":"at","type":"Timestamp(ms, \"UTC\")","nullable":false},
            {"name":"payload","type":"Struct(\"id\": non-null Utf8, \"tags\": List(non-null Utf8))","nullable":false},
            {"name":"vector","type":"FixedSizeList(384 x Float32)","nullable":true}]}"#;
        let json = serde_json::from_str(stored).expect("valid json");
        let schema = schema_from_json(&json).expect("a schema");
        let string_list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, false)));
        let payload = vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("tags", string_list, true),
        ];
        let expected = Schema::new(vec![
            Field::new("at", event::timestamp_type(), false),
            Field::new("payload", DataType::Struct(payload.into()), false),
            crate::chunk::vector_field(384),
        ]);
        assert_eq!(*schema, expected);
        assert_eq!(schema_to_json(&expected).expect("json"), json);
    }

    #[test]
    fn batches_are_checked_column_by_column() {
        let payload = |tag: DataType| {
            Field::new(
                "payload",
                DataType::Struct(vec![Field::new("tag", tag, false)].into()),
                false,
            )
        };
        let id = || Field::new("id", DataType::Int64, false);
        let topic = topic(Schema::new(vec![id(), payload(DataType::Utf8)]));
        let ids = || -> ArrayRef { Arc::new(Int64Array::from(vec![1, 2])) };
        let tags = |tag: DataType, values: ArrayRef| -> ArrayRef {
            Arc::new(StructArray::new(
                vec![Field::new("tag", tag, true)].into(),
                vec![values],
                None,
            ))
        };
        let texts =
            || -> ArrayRef { tags(DataType::Utf8, Arc::new(StringArray::from(vec!["a", "b"]))) };
        let check = |columns: Vec<(&str, ArrayRef)>| {
            let batch = RecordBatch::try_from_iter(columns).expect("a batch");
            check_batch(&topic, &batch).map_err(|mismatch| mismatch.to_string())
        };
        assert_eq!(check(vec![("id", ids()), ("payload", texts())]), Ok(()));
        let errors = [
            (
                vec![("id", ids())],
                "column `payload` does not fit the topic: expected non-null Struct(\"tag\": non-null Utf8), got no such column; \
                 add it; topic `orders` has id, payload",
            ),
            (
                vec![("payload", texts()), ("id", ids())],
                "column `id` does not fit the topic: expected position 0, got position 1; order the columns as id, payload",
            ),
            (
                vec![("id", ids()), ("payload", texts()), ("more", ids())],
                "column `more` does not fit the topic: expected no such column, got non-null Int64; \
                 drop it; topic `orders` has id, payload",
            ),
            (
                vec![
                    (
                        "id",
                        Arc::new(StringArray::from(vec!["1", "2"])) as ArrayRef,
                    ),
                    ("payload", texts()),
                ],
                "column `id` does not fit the topic: expected Int64, got Utf8; cast it: arrow_cast(column, 'Int64')",
            ),
            (
                vec![
                    (
                        "id",
                        Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef,
                    ),
                    ("payload", texts()),
                ],
                "column `id` does not fit the topic: expected no nulls, got 1 nulls; fill or filter these rows",
            ),
            (
                vec![("id", ids()), ("payload", tags(DataType::Int64, ids()))],
                "column `payload.tag` does not fit the topic: expected Utf8, got Int64; cast it: arrow_cast(column, 'Utf8')",
            ),
        ];
        for (columns, expected) in errors {
            assert_eq!(check(columns), Err(expected.to_owned()));
        }
    }

    #[test]
    fn nullable_columns_come_and_go_and_types_stay() {
        let field = |name: &str, data_type: DataType, null: bool| Field::new(name, data_type, null);
        let of = |fields: Vec<Field>| Schema::new(fields);
        let inner = |fields: Vec<Field>| DataType::Struct(fields.into());
        let topic = of(vec![
            field("id", DataType::Int64, false),
            field("name", DataType::Utf8, true),
            field(
                "who",
                inner(vec![field("city", DataType::Utf8, true)]),
                true,
            ),
        ]);
        let more = inner(vec![
            field("zip", DataType::Utf8, false),
            field("city", DataType::Utf8, true),
        ]);
        let rows = of(vec![
            field("country", DataType::Utf8, false),
            field("who", more, true),
            field("id", DataType::Int64, true),
        ]);
        let expected = of(vec![
            field("id", DataType::Int64, false),
            field("name", DataType::Utf8, true),
            field(
                "who",
                inner(vec![
                    field("city", DataType::Utf8, true),
                    field("zip", DataType::Utf8, true),
                ]),
                true,
            ),
            field("country", DataType::Utf8, true),
        ]);
        assert_eq!(*evolve(&topic, &rows).expect("compatible"), expected);
        assert_eq!(*evolve(&expected, &topic).expect("the way back"), expected);

        let wrong = of(vec![
            field("name", DataType::Int64, true),
            field(
                "who",
                inner(vec![field("city", DataType::Boolean, true)]),
                true,
            ),
        ]);
        let changes: Vec<String> = evolve(&topic, &wrong)
            .expect_err("three columns")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            changes,
            [
                "column `id` was non-null Int64 and would be gone; keep it, because readers count on it",
                "column `name` was Utf8 and would be Int64; cast it in a `map`: arrow_cast(column, 'Utf8'), or write the \
                 new type under a new name",
                "column `who.city` was Utf8 and would be Boolean; cast it in a `map`: arrow_cast(column, 'Utf8'), or write \
                 the new type under a new name",
            ]
        );
    }
}
