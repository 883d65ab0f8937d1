//! The Avro schema of columns: what others read what is written here with.
//!
//! A nullable column is `["null", T]` with the default `null`, so that it can come and go without breaking a reader.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde_json::{Value, json};

/// The schema of a record of these columns.
pub(crate) fn avro_schema(schema: &Schema, name: &str) -> Result<Value, String> {
    record(schema.fields().iter().map(AsRef::as_ref), name)
}

fn record<'a>(fields: impl Iterator<Item = &'a Field>, name: &str) -> Result<Value, String> {
    let (namespace, short) = match name.rsplit_once('.') {
        Some((namespace, short)) => (Some(namespace), short),
        None => (None, name),
    };
    check_name(short)?;
    let fields = fields
        .map(|field| {
            check_name(field.name())?;
            let of = type_of(field.data_type(), &format!("{name}_{}", field.name()))?;
            Ok(match field.is_nullable() {
                true => json!({"name": field.name(), "type": ["null", of], "default": null}),
                false => json!({"name": field.name(), "type": of}),
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    let mut record = json!({"type": "record", "name": short});
    if let Some(namespace) = namespace {
        record["namespace"] = namespace.into();
    }
    record["fields"] = fields.into();
    Ok(record)
}

fn nullable(field: &Field, name: &str) -> Result<Value, String> {
    let of = type_of(field.data_type(), name)?;
    Ok(if field.is_nullable() {
        json!(["null", of])
    } else {
        of
    })
}

fn type_of(data_type: &DataType, name: &str) -> Result<Value, String> {
    Ok(match data_type {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            json!("int")
        }
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => json!("long"),
        DataType::Float16 | DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!("string"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => json!("bytes"),
        DataType::Date32 => json!({"type": "int", "logicalType": "date"}),
        DataType::Timestamp(unit, zone) => {
            let local = if zone.is_some() { "" } else { "local-" };
            let unit = match unit {
                TimeUnit::Second | TimeUnit::Millisecond => "millis",
                TimeUnit::Microsecond | TimeUnit::Nanosecond => "micros",
            };
            json!({"type": "long", "logicalType": format!("{local}timestamp-{unit}")})
        }
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        DataType::Dictionary(_, value) => type_of(value, name)?,
        DataType::List(item) => json!({"type": "array", "items": nullable(item, name)?}),
        DataType::Struct(fields) => record(fields.iter().map(AsRef::as_ref), name)?,
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields)
                if fields.len() == 2 && *fields[0].data_type() == DataType::Utf8 =>
            {
                json!({"type": "map", "values": nullable(&fields[1], name)?})
            }
            _ => {
                return Err(format!(
                    "Avro has no type for {data_type}: its maps have texts as keys"
                ));
            }
        },
        other => {
            return Err(format!(
                "Avro has no type for {other}; cast the column in a `map` before"
            ));
        }
    })
}

fn check_name(name: &str) -> Result<(), String> {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_fine = name.chars().next().is_some_and(is_first)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_fine {
        return Ok(());
    }
    Err(format!(
        "`{name}` is no name in Avro, which has letters A to Z, digits and `_`; rename it in a `map` before"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use va_connectors::schema::parse_schema;

    use super::*;

    #[test]
    fn nullable_columns_have_a_default() {
        let columns = json!({"id": "int64!", "tags": "list<string!>", "who": {"at": "timestamp!"}});
        let schema = parse_schema(columns.as_object().unwrap()).unwrap();
        let at = json!({"type": "long", "logicalType": "timestamp-millis"});
        let expected = json!({"type": "record", "name": "order", "namespace": "a.b", "fields": [
            {"name": "id", "type": "long"},
            {"name": "tags", "type": ["null", {"type": "array", "items": "string"}], "default": null},
            {"name": "who", "type": ["null", {"type": "record", "name": "order_who", "namespace": "a.b",
                "fields": [{"name": "at", "type": at}]}], "default": null},
        ]});
        assert_eq!(avro_schema(&schema, "a.b.order").unwrap(), expected);
        let chinese = parse_schema(json!({"名": "string"}).as_object().unwrap()).unwrap();
        assert!(avro_schema(&chinese, "x").unwrap_err().contains("rename"));
    }
}
