//! Schema checks that operators share when they plan.

use arrow::datatypes::{DataType, Schema};
use va_connectors::flow::Problem;

/// Every column of `wanted` must be in `input` with the same type; more columns are fine.
pub fn expect_columns(input: &Schema, wanted: &Schema) -> Result<(), Vec<Problem>> {
    let (mut missing, mut problems) = (Vec::new(), Vec::new());
    for field in wanted.fields() {
        match input.field_with_name(field.name()) {
            Err(_) => missing.push(format!(
                "`{}` ({})",
                field.name(),
                type_name(field.data_type())
            )),
            Ok(found) if !same_type(found.data_type(), field.data_type()) => {
                problems.push(Problem::new(
                    &["input"],
                    format!(
                        "column `{}` is {} in the input, {} is needed",
                        field.name(),
                        type_name(found.data_type()),
                        type_name(field.data_type())
                    ),
                ))
            }
            Ok(_) => {}
        }
    }
    if !missing.is_empty() {
        let message = format!("missing from the input: {}", missing.join(", "));
        problems.push(
            Problem::new(&["input"], message)
                .hint(format!("the input has {}", column_names(input))),
        );
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// The column names of a schema, quoted, for messages.
pub fn column_names(schema: &Schema) -> String {
    schema
        .fields()
        .iter()
        .map(|field| format!("`{}`", field.name()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The same type but for nullability inside and the names of list items.
fn same_type(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::Struct(a), DataType::Struct(b)) => b.iter().all(|wanted| {
            a.iter().any(|found| {
                found.name() == wanted.name() && same_type(found.data_type(), wanted.data_type())
            })
        }),
        (DataType::List(a), DataType::List(b)) => same_type(a.data_type(), b.data_type()),
        _ => a == b,
    }
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Struct(_) => "a struct".into(),
        DataType::List(item) => format!("a list of {}", type_name(item.data_type())),
        other => other.to_string(),
    }
}
