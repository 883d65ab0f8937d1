//! Arrow schemas as people write them in YAML: `{id: string, price: float64, tags: list<string>}`.
//!
//! A field is nullable unless its type ends in `!`; a nested mapping is a struct.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::{Map, Value};
use va_catalog::event::timestamp_type;

use crate::flow::Problem;

const TYPES: [(&str, DataType); 13] = [
    ("string", DataType::Utf8),
    ("large_string", DataType::LargeUtf8),
    ("boolean", DataType::Boolean),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float32", DataType::Float32),
    ("float64", DataType::Float64),
    ("binary", DataType::Binary),
    ("date", DataType::Date32),
];

/// Reads a schema; every problem's path begins with `schema`.
pub fn parse_schema(fields: &Map<String, Value>) -> Result<SchemaRef, Vec<Problem>> {
    let mut problems = Vec::new();
    let fields = parse_fields(fields, &["schema"], &mut problems);
    if problems.is_empty() {
        Ok(Arc::new(Schema::new(fields)))
    } else {
        Err(problems)
    }
}

fn parse_fields(fields: &Map<String, Value>, path: &[&str], problems: &mut Vec<Problem>) -> Fields {
    fields
        .iter()
        .filter_map(|(name, value)| {
            let path: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
            match value {
                Value::String(text) => match parse_type(text) {
                    Some((data_type, nullable)) => Some(Field::new(name, data_type, nullable)),
                    None => {
                        let known: Vec<&str> = TYPES.iter().map(|(word, _)| *word).collect();
                        problems.push(Problem::new(&path, format!("`{text}` is not a type")).hint(
                            format!(
                                "use {}, timestamp, list<...>; `!` at the end means never null",
                                known.join(", ")
                            ),
                        ));
                        None
                    }
                },
                Value::Object(inner) => {
                    let inner = parse_fields(inner, &path, problems);
                    Some(Field::new(name, DataType::Struct(inner), true))
                }
                other => {
                    problems.push(
                        Problem::new(&path, format!("`{other}` is not a type"))
                            .hint("write e.g. `string`"),
                    );
                    None
                }
            }
        })
        .collect()
}

fn parse_type(text: &str) -> Option<(DataType, bool)> {
    let text = text.trim();
    let (text, nullable) = match text.strip_suffix('!') {
        Some(text) => (text.trim_end(), false),
        None => (text, true),
    };
    let data_type = if text == "timestamp" {
        timestamp_type()
    } else if let Some(inner) = text
        .strip_prefix("list<")
        .and_then(|rest| rest.strip_suffix('>'))
    {
        let (item, nullable) = parse_type(inner)?;
        DataType::List(Arc::new(Field::new("item", item, nullable)))
    } else {
        TYPES.iter().find(|(word, _)| *word == text)?.1.clone()
    };
    Some((data_type, nullable))
}

/// The inverse, for `va topic describe` and `va pipeline explain`: one line a field.
pub fn schema_lines(schema: &Schema) -> Vec<String> {
    schema
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), type_text(field)))
        .collect()
}

fn type_text(field: &Field) -> String {
    let text = match field.data_type() {
        DataType::Struct(fields) => {
            let inner: Vec<String> = fields
                .iter()
                .map(|f| format!("{}: {}", f.name(), type_text(f)))
                .collect();
            format!("{{{}}}", inner.join(", "))
        }
        DataType::List(item) => format!("list<{}>", type_text(item)),
        DataType::FixedSizeList(item, n) => format!("vector<{}, {n}>", type_text(item)),
        DataType::Timestamp(_, _) => "timestamp".into(),
        other => TYPES
            .iter()
            .find(|(_, data_type)| data_type == other)
            .map_or_else(|| other.to_string(), |(word, _)| (*word).to_owned()),
    };
    if field.is_nullable() {
        text
    } else {
        format!("{text}!")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_back() {
        let text = serde_json::json!({
            "id": "string!", "price": "float64", "at": "timestamp", "tags": "list<string!>", "who": {"name": "string"}
        });
        let schema = parse_schema(text.as_object().expect("an object")).expect("a schema");
        assert_eq!(
            schema_lines(&schema),
            [
                "id: string!",
                "price: float64",
                "at: timestamp",
                "tags: list<string!>",
                "who: {name: string}"
            ]
        );
    }

    #[test]
    fn all_bad_types_are_reported_with_their_path() {
        let text = serde_json::json!({"a": "strng", "b": {"c": 3}, "d": "int64"});
        let problems =
            parse_schema(text.as_object().expect("an object")).expect_err("two bad types");
        let paths: Vec<String> = problems.iter().map(|p| p.path.join(".")).collect();
        assert_eq!(paths, ["schema.a", "schema.b.c"]);
    }
}
