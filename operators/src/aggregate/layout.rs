//! The options of `aggregate`, resolved against the columns of its input.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use va_connectors::flow::Problem;

use super::values::Value;
use super::{AggregateSpec, Form};
use crate::shape::column_names;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Count,
    Sum,
    Min,
    Max,
    Last,
}

impl Function {
    const ALL: [(&'static str, Self); 5] = [
        ("count", Self::Count),
        ("sum", Self::Sum),
        ("min", Self::Min),
        ("max", Self::Max),
        ("last", Self::Last),
    ];

    /// Whether its state is a value of the column, not a number.
    pub(super) fn keeps_value(self) -> bool {
        matches!(self, Self::Min | Self::Max | Self::Last)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Aggregate {
    pub(super) function: Function,
    /// `None` only for `count()`.
    pub(super) column: Option<usize>,
    /// Whether a sum is of floating-point numbers.
    pub(super) float: bool,
}

/// The options, resolved against the input's schema.
pub(super) struct Layout {
    pub(super) keys: Vec<usize>,
    pub(super) aggregates: Vec<Aggregate>,
    pub(super) schema: SchemaRef,
}

impl Layout {
    /// What the aggregates of a key are before its first row.
    pub(super) fn nothing(&self) -> Vec<Value> {
        self.aggregates.iter().map(|&it| Value::new(it)).collect()
    }
}

impl AggregateSpec {
    pub(super) fn layout(&self, input: &Schema) -> Result<Layout, Vec<Problem>> {
        if self.form == Form::Merging {
            return self.merging_layout(input);
        }
        let mut problems = Vec::new();
        let known = || format!("the input has {}", column_names(input));
        let mut fields: Vec<Field> = Vec::new();
        let mut keys = Vec::new();
        for name in &self.group_by {
            match input.index_of(name) {
                Ok(column) if !RowConverter::supports_fields(&[sort_field(input, column)]) => {
                    problems.push(
                        Problem::new(
                            &["group_by"],
                            format!(
                                "`{name}` is {} and cannot be a key",
                                input.field(column).data_type()
                            ),
                        )
                        .hint("use a `map` before that makes text or a number of it"),
                    );
                }
                Ok(column) => {
                    keys.push(column);
                    fields.push(input.field(column).clone());
                }
                Err(_) => problems
                    .push(Problem::new(&["group_by"], format!("no column `{name}`")).hint(known())),
            }
        }
        if self.compute.is_empty() {
            problems.push(
                Problem::new(&["compute"], "nothing to compute")
                    .hint("name at least one column, such as `orders: count()`"),
            );
        }
        let mut aggregates = Vec::new();
        for (name, call) in &self.compute {
            let resolved = match call.as_str() {
                Some(call) => aggregate(call, input),
                None => Err((format!("`{call}` is not a call of a function"), usage())),
            };
            match resolved {
                Ok(aggregate) => {
                    fields.push(result_field(name, aggregate, input));
                    aggregates.push(aggregate);
                }
                Err((message, hint)) => problems.push(
                    Problem::new(&["compute", name], message).hint(hint.unwrap_or_else(known)),
                ),
            }
        }
        for (at, field) in fields.iter().enumerate() {
            if fields[..at]
                .iter()
                .any(|before| before.name() == field.name())
            {
                problems.push(
                    Problem::new(&["compute"], format!("`{}` is there twice", field.name()))
                        .hint("give the computed column a name of its own"),
                );
            }
        }
        if problems.is_empty() {
            Ok(Layout {
                keys,
                aggregates,
                schema: Arc::new(Schema::new(fields)),
            })
        } else {
            Err(problems)
        }
    }
}

impl AggregateSpec {
    /// Its input has the columns of the result.
    fn merging_layout(&self, input: &Schema) -> Result<Layout, Vec<Problem>> {
        let column = |name: &str| {
            input
                .index_of(name)
                .map_err(|error| vec![Problem::new(&["compute"], error.to_string())])
        };
        let keys = self
            .group_by
            .iter()
            .map(|name| column(name))
            .collect::<Result<_, _>>()?;
        let mut aggregates = Vec::new();
        for (name, call) in &self.compute {
            let (function, _) = call
                .as_str()
                .and_then(function)
                .ok_or_else(|| vec![Problem::new(&["compute", name], "no call")])?;
            let column = column(name)?;
            aggregates.push(Aggregate {
                function,
                column: Some(column),
                float: input.field(column).data_type().is_floating(),
            });
        }
        Ok(Layout {
            keys,
            aggregates,
            schema: Arc::new(input.clone()),
        })
    }
}

fn sort_field(input: &Schema, column: usize) -> SortField {
    SortField::new(input.field(column).data_type().clone())
}

fn usage() -> Option<String> {
    Some(
        "write `count()`, `sum(column)`, `min(column)`, `max(column)` or `last(column)`".to_owned(),
    )
}

/// `sum(amount)` as `sum` and `amount`.
fn parts(call: &str) -> Option<(&str, &str)> {
    let (function, argument) = call.trim().strip_suffix(')')?.split_once('(')?;
    Some((function.trim(), argument.trim()))
}

fn function(call: &str) -> Option<(Function, &str)> {
    let (function, argument) = parts(call)?;
    let (_, function) = Function::ALL
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(function))?;
    Some((function, argument))
}

/// Reads `sum(amount)`. The error is what is wrong and, unless it is about the columns, what to do.
fn aggregate(call: &str, input: &Schema) -> Result<Aggregate, (String, Option<String>)> {
    let (name, _) =
        parts(call).ok_or_else(|| (format!("`{call}` is not a call of a function"), usage()))?;
    let (function, argument) =
        function(call).ok_or_else(|| (format!("no function `{name}`"), usage()))?;
    if argument.is_empty() || argument == "*" {
        return match function {
            Function::Count => Ok(Aggregate {
                function,
                column: None,
                float: false,
            }),
            _ => Err((format!("`{call}` needs a column"), usage())),
        };
    }
    let column = input
        .index_of(argument)
        .map_err(|_| (format!("no column `{argument}`"), None))?;
    let data_type = input.field(column).data_type();
    let float = data_type.is_floating();
    match function {
        Function::Sum if !(data_type.is_integer() || float) || data_type == &DataType::UInt64 => {
            Err((
                format!("`{argument}` is {data_type}, which cannot be added up"),
                Some(
                    "sum signed whole or floating-point numbers; a `map` before can cast"
                        .to_owned(),
                ),
            ))
        }
        Function::Min | Function::Max | Function::Last
            if data_type.is_nested()
                || !RowConverter::supports_fields(&[sort_field(input, column)]) =>
        {
            Err((
                format!("`{argument}` is {data_type}, of which no value can be kept"),
                Some("use a `map` before that makes text or a number of it".to_owned()),
            ))
        }
        _ => Ok(Aggregate {
            function,
            column: Some(column),
            float,
        }),
    }
}

fn result_field(name: &str, aggregate: Aggregate, input: &Schema) -> Field {
    match (aggregate.function, aggregate.column) {
        (Function::Count, _) | (_, None) => Field::new(name, DataType::Int64, false),
        (Function::Sum, _) if aggregate.float => Field::new(name, DataType::Float64, true),
        (Function::Sum, _) => Field::new(name, DataType::Int64, true),
        (_, Some(column)) => Field::new(name, input.field(column).data_type().clone(), true),
    }
}
