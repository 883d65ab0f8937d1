//! Data that was written with another schema, into the columns that are wanted: by name, wherever nothing is lost.
//!
//! A column that the data lacks is null, one that nobody asked for is left out, a number grows, a text changes its
//! encoding. What would change a meaning (a text into a number) or drop a value is refused, and the error names the
//! column, what it is and what it should be.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions, StructArray,
    new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::FormatOptions;

/// The batch in the columns of `schema`.
pub fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let rows = batch.num_rows();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = batch.column_by_name(field.name());
        columns.push(fit_column(field.name(), column, field, rows, true)?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|error| error.to_string())
}

/// Whether data of one schema can become rows of the other, whatever its values are (a null where none may be is found
/// only in the data).
pub fn check(data: &Schema, wanted: &Schema) -> Result<(), String> {
    wanted.fields().iter().try_for_each(|field| {
        let found = data.column_with_name(field.name()).map(|(_, found)| found);
        check_field(field.name(), found.map(Field::data_type), field)
    })
}

fn check_field(path: &str, data: Option<&DataType>, wanted: &Field) -> Result<(), String> {
    let Some(data) = data else {
        return missing(path, wanted);
    };
    match (data, wanted.data_type()) {
        (DataType::Struct(data), DataType::Struct(fields)) => fields.iter().try_for_each(|field| {
            let found = data.find(field.name()).map(|(_, found)| found.data_type());
            check_field(&format!("{path}.{}", field.name()), found, field)
        }),
        (DataType::List(data), DataType::List(item)) => {
            check_field(&format!("{path}[]"), Some(data.data_type()), item)
        }
        (DataType::Map(data, _), DataType::Map(entries, _)) => {
            match (map_value(data), map_value(entries)) {
                (Some(data), Some(value)) => {
                    check_field(&format!("{path}[]"), Some(data.data_type()), value)
                }
                _ => Err(differs(path, data.data_type(), wanted.data_type())),
            }
        }
        (data, wanted) if data == wanted || is_lossless(data, wanted) => Ok(()),
        (data, wanted) => Err(differs(path, data, wanted)),
    }
}

fn missing(path: &str, field: &Field) -> Result<(), String> {
    if field.is_nullable() {
        return Ok(());
    }
    Err(format!(
        "column `{path}` ({}, never null) is not in the data; let its writer keep it, or declare it without `!`",
        field.data_type()
    ))
}

fn differs(path: &str, data: &DataType, wanted: &DataType) -> String {
    format!(
        "column `{path}` is {data} in the data and {wanted} is wanted; declare it as what it is, and cast it in a `map`"
    )
}

fn map_value(entries: &Field) -> Option<&Arc<Field>> {
    match entries.data_type() {
        DataType::Struct(fields) => fields.get(1),
        _ => None,
    }
}

fn fit_column(
    path: &str,
    column: Option<&ArrayRef>,
    field: &Field,
    rows: usize,
    is_top: bool,
) -> Result<ArrayRef, String> {
    let Some(column) = column else {
        missing(path, field)?;
        return Ok(new_null_array(field.data_type(), rows));
    };
    // Below a struct a null may be that of the struct; there the struct itself checks.
    if is_top && !field.is_nullable() && column.logical_null_count() > 0 {
        return Err(format!(
            "column `{path}` is never null, and here it is null"
        ));
    }
    if column.data_type() == field.data_type() {
        return Ok(column.clone());
    }
    let wrong = |error: arrow::error::ArrowError| format!("column `{path}`: {error}");
    match (column.data_type(), field.data_type()) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let data = column.as_struct();
            let children = fields
                .iter()
                .map(|child| {
                    let path = format!("{path}.{}", child.name());
                    fit_column(
                        &path,
                        data.column_by_name(child.name()),
                        child,
                        data.len(),
                        false,
                    )
                })
                .collect::<Result<Vec<_>, _>>()?;
            let fitted = StructArray::try_new_with_length(
                fields.clone(),
                children,
                data.nulls().cloned(),
                data.len(),
            );
            Ok(Arc::new(fitted.map_err(wrong)?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let data = column.as_list::<i32>();
            let path = format!("{path}[]");
            let values = fit_column(&path, Some(data.values()), item, data.values().len(), false)?;
            let fitted = ListArray::try_new(
                item.clone(),
                data.offsets().clone(),
                values,
                data.nulls().cloned(),
            );
            Ok(Arc::new(fitted.map_err(wrong)?))
        }
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let data = column.as_map();
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(differs(path, column.data_type(), field.data_type()));
            };
            let rows = data.entries().len();
            let path = format!("{path}[]");
            let keys = fit_column(&path, Some(data.keys()), &fields[0], rows, false)?;
            let values = fit_column(&path, Some(data.values()), &fields[1], rows, false)?;
            let inner =
                StructArray::try_new(fields.clone(), vec![keys, values], None).map_err(wrong)?;
            let fitted = MapArray::try_new(
                entries.clone(),
                data.offsets().clone(),
                inner,
                data.nulls().cloned(),
                *sorted,
            );
            Ok(Arc::new(fitted.map_err(wrong)?))
        }
        (data, wanted) if is_lossless(data, wanted) => {
            let options = CastOptions {
                // A value that does not fit is an error and not a null.
                safe: false,
                format_options: FormatOptions::default(),
            };
            cast_with_options(column, wanted, &options).map_err(wrong)
        }
        (data, wanted) => Err(differs(path, data, wanted)),
    }
}

/// Whether every value either stays what it is or is refused. An integer may be declared narrower: one that does not fit
/// is an error of its message.
fn is_lossless(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    let is_text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let is_binary =
        |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView | FixedSizeBinary(_));
    match (from, to) {
        (Dictionary(_, value), to) => **value == *to || is_lossless(value, to),
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, Float64) => from.is_integer() || matches!(from, Float16 | Float32),
        (Float16, Float32) => true,
        (from, to) if is_text(from) && is_text(to) => true,
        (from, Binary | LargeBinary | BinaryView) => is_binary(from),
        (Binary, FixedSizeBinary(_)) => true,
        (Timestamp(_, a), Timestamp(_, b)) => a.is_some() == b.is_some(),
        (Decimal128(p1, s1), Decimal128(p2, s2)) => s1 == s2 && p1 <= p2,
        (Null, _) => true,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use arrow::array::{Int32Array, StringArray};
    use serde_json::{Value, json};
    use va_connectors::schema::parse_schema;

    use super::*;

    fn schema(text: Value) -> SchemaRef {
        parse_schema(text.as_object().unwrap()).unwrap()
    }

    #[test]
    fn columns_go_by_name() {
        let inner: Vec<(Arc<Field>, ArrayRef)> = vec![(
            Arc::new(Field::new("n", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![Some(1), None])),
        )];
        let batch = RecordBatch::try_from_iter([
            ("gone", Arc::new(Int32Array::from(vec![9, 9])) as ArrayRef),
            ("who", Arc::new(StructArray::from(inner))),
            ("name", Arc::new(StringArray::from(vec!["a", "小"]))),
            ("id", Arc::new(Int32Array::from(vec![1, 2]))),
        ])
        .unwrap();
        let wanted = schema(
            json!({"id": "int64!", "name": "string", "new": "list<string>",
            "who": {"n": "int64", "m": "string"}}),
        );
        let fitted = fit(&batch, &wanted).unwrap();
        assert_eq!(fitted.schema(), wanted);
        assert_eq!(fitted.column(2).null_count(), 2);
        assert_eq!(fitted.column(3).as_struct().column(1).null_count(), 2);
        check(batch.schema_ref(), &wanted).unwrap();

        for (wanted, expected) in [
            (
                json!({"name": "int64"}),
                "column `name` is Utf8 in the data and Int64 is wanted",
            ),
            (
                json!({"id": "string"}),
                "column `id` is Int32 in the data and Utf8 is wanted",
            ),
            (
                json!({"more": "string!"}),
                "column `more` (Utf8, never null) is not in the data",
            ),
            (json!({"who": {"n": "string"}}), "column `who.n` is Int32"),
        ] {
            let wanted = schema(wanted);
            for error in [
                fit(&batch, &wanted).unwrap_err(),
                check(batch.schema_ref(), &wanted).unwrap_err(),
            ] {
                assert!(error.starts_with(expected), "{error}");
            }
        }
        let narrow = fit(&batch, &schema(json!({"id": "int8"}))).unwrap();
        assert_eq!(narrow.column(0).null_count(), 0);
    }
}
