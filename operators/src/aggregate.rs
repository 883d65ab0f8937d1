//! `aggregate`: running counts, sums, extremes and last values by key.
//!
//! Batch-wise: each row is given the place of its key in a table of what changed since the last checkpoint; keys that are
//! not in it are read from state, all at once; then each aggregate goes over its column. State is read through a bounded
//! cache and committed with the checkpoint, so a replay after a crash begins from what
//! the last checkpoint held. What a key came to is emitted once per checkpoint, however many of its rows arrived.
//!
//! Relies on all rows of a key coming to one task. Where they do not, the graph cuts it in two (see [`ByKey`]): the first
//! half ([`Form::Partial`]) adds up what came since the last checkpoint, without state, and emits it in the columns of
//! the result; the second ([`Form::Merging`]) adds those up by key, in the state that the whole would have.
//!
//! `layout` resolves the options, `values` holds what keys have come to.

#[path = "aggregate/layout.rs"]
mod layout;
#[path = "aggregate/values.rs"]
mod values;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::RandomState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_connectors::flow::{FlowError, Names, Problem};

use self::layout::{Function, Layout};
use self::values::{Column, Table, Value, decode, encode};
use crate::operator::{ByKey, Cx, Operator, OperatorSpec, Resources};

/// Keys whose state is kept in memory between checkpoints; the others are read again when their next row comes.
const CACHED_KEYS_MAX: usize = 100_000;
/// Most rows in one emitted batch.
const ROWS_MAX: usize = 8_192;

/// Running aggregates by key. At every checkpoint one row is emitted for each key that changed: the key's columns and
/// what its aggregates have come to since the pipeline first ran.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AggregateSpec {
    /// The columns that make the key; rows in which they are null are a key like any other. None: one key for all rows.
    #[serde(default)]
    pub group_by: Vec<String>,
    /// New column: `count()`, `count(column)`, `sum(column)`, `min(column)`, `max(column)` or `last(column)`. Nulls are
    /// left out, except by `count()` and `last`. For an expression put a `map` before.
    pub compute: serde_json::Map<String, serde_json::Value>,
    /// Partitions of the topic that brings the rows of a key together, where the source has more than one partition; as
    /// many as the source when absent. It cannot change once rows have gone through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub partitions: Option<u32>,
    /// Which half it is; only the graph writes it, so users do not see it.
    #[serde(default)]
    #[schemars(skip)]
    pub form: Form,
}

/// The whole, or a half of it around the topic that brings rows together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    #[default]
    Whole,
    Partial,
    Merging,
}

impl OperatorSpec for AggregateSpec {
    const KIND: &'static str = "aggregate";
    const EXAMPLE: &'static str = include_str!("../examples/aggregate.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        self.layout(&inputs[0]).map(|layout| layout.schema)
    }

    fn by_key(&self) -> Option<ByKey> {
        if self.form == Form::Partial {
            return None;
        }
        let half = |form| {
            serde_json::to_value(Self {
                form,
                ..self.clone()
            })
            .ok()
        };
        Some(ByKey {
            columns: self.group_by.clone(),
            partitions: self.partitions,
            before: Some(half(Form::Partial)?),
            after: half(Form::Merging)?,
        })
    }

    fn keeps(&self, column: &str) -> bool {
        self.group_by.iter().any(|name| name == column)
    }

    fn build(
        self,
        inputs: &[SchemaRef],
        _resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let layout = self.layout(&inputs[0]).map_err(|problems| {
            let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
            FlowError::fatal(Self::KIND, text.join("; "))
        })?;
        let keys = converter(layout.keys.iter().map(|&column| inputs[0].field(column)))?;
        let values = layout
            .aggregates
            .iter()
            .map(|aggregate| match aggregate.column {
                Some(column) if aggregate.function.keeps_value() => {
                    converter([inputs[0].field(column)]).map(Some)
                }
                _ => Ok(None),
            })
            .collect::<Result<_, FlowError>>()?;
        Ok(Box::new(AggregateTask {
            keys,
            values,
            layout,
            form: self.form,
            cache: HashMap::default(),
            changed: Table::default(),
            full: Table::default(),
        }))
    }
}

fn converter<'a>(fields: impl IntoIterator<Item = &'a Field>) -> Result<RowConverter, FlowError> {
    let fields = fields
        .into_iter()
        .map(|field| SortField::new(field.data_type().clone()))
        .collect();
    Ok(RowConverter::new(fields)?)
}

struct AggregateTask {
    layout: Layout,
    keys: RowConverter,
    /// One for each aggregate that keeps a value.
    values: Vec<Option<RowConverter>>,
    form: Form,
    /// As of the last checkpoint; what state says, as long as no other task owned the key's partition in between.
    cache: HashMap<Bytes, Vec<Value>, RandomState>,
    /// Since the last checkpoint.
    changed: Table,
    /// Of the partial form: what had come for a key before a sum grew too large, to be emitted before what came after.
    full: Table,
}

#[async_trait]
impl Operator for AggregateTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        if self.form == Form::Merging && batch.schema_ref().fields() != self.layout.schema.fields()
        {
            return Err(FlowError::fatal(
                "aggregate",
                "rows that an earlier definition of the pipeline left in the repartition topic have other columns; let \
                 the former definition read them first, or give the operator another name",
            ));
        }
        let columns = self.columns(&batch)?;
        let places = self.places(&batch, cx).await?;
        let width = self.layout.aggregates.len();
        let surely_fits = columns
            .iter()
            .enumerate()
            .all(|(at, column)| column.surely_fits(&places, &self.changed.values, at, width));
        if surely_fits {
            for (at, column) in columns.iter().enumerate() {
                let function = self.layout.aggregates[at].function;
                column.apply_all(&places, function, &mut self.changed.values, at, width);
            }
            cx.passed(batch.num_rows());
            return Ok(());
        }
        for (row, &place) in places.iter().enumerate() {
            let start = place as usize * width;
            let values = &mut self.changed.values[start..start + width];
            // All of a row or nothing: a sum that overflows must not leave a count behind.
            let fits = columns
                .iter()
                .zip(&*values)
                .all(|(column, value)| column.fits(row, value));
            if !fits && self.form != Form::Partial {
                cx.dead_letter(&batch, row, "a sum would not fit into 64 bits");
                continue;
            }
            if !fits {
                // Whether the total fits is decided where it is known. A row alone always does.
                self.full
                    .keys
                    .push(self.changed.keys[place as usize].clone());
                let before = values.iter_mut().zip(&self.layout.aggregates);
                self.full
                    .values
                    .extend(before.map(|(value, &aggregate)| {
                        std::mem::replace(value, Value::new(aggregate))
                    }));
            }
            for ((column, aggregate), value) in
                columns.iter().zip(&self.layout.aggregates).zip(values)
            {
                column.apply(row, aggregate.function, value);
            }
            cx.passed(1);
        }
        Ok(())
    }

    fn on_assigned(&mut self) {
        self.cache.clear();
    }

    async fn on_barrier(&mut self, cx: &mut Cx) -> Result<(), FlowError> {
        let full = std::mem::take(&mut self.full);
        let changed = std::mem::take(&mut self.changed);
        let width = self.layout.aggregates.len();
        for table in [&full, &changed] {
            for (keys, values) in table
                .keys
                .chunks(ROWS_MAX)
                .zip(table.values.chunks(ROWS_MAX * width))
            {
                cx.emit(self.rows_of(keys, values)?).await?;
            }
        }
        if self.form == Form::Partial {
            return Ok(());
        }
        if self.cache.len() + changed.keys.len() > CACHED_KEYS_MAX {
            self.cache.clear();
        }
        let mut values = changed.values.into_iter();
        for key in changed.keys {
            let values: Vec<Value> = values.by_ref().take(width).collect();
            cx.state().put(key.clone(), encode(&values));
            self.cache.insert(key, values);
        }
        Ok(())
    }
}

impl AggregateTask {
    fn columns(&self, batch: &RecordBatch) -> Result<Vec<Column>, FlowError> {
        let mut columns = Vec::with_capacity(self.layout.aggregates.len());
        for (aggregate, converter) in self.layout.aggregates.iter().zip(&self.values) {
            let Some(column) = aggregate.column else {
                columns.push(Column::All);
                continue;
            };
            let column = batch.column(column);
            columns.push(match (aggregate.function, converter) {
                (_, Some(converter)) => Column::Kept(
                    column.clone(),
                    converter.convert_columns(std::slice::from_ref(column))?,
                ),
                (Function::Sum, _) if aggregate.float => Column::Float(
                    cast(column, &DataType::Float64)?
                        .as_primitive::<Float64Type>()
                        .clone(),
                ),
                (Function::Count, _) if self.form == Form::Merging => {
                    Column::Counts(column.as_primitive::<Int64Type>().clone())
                }
                (Function::Sum, _) => Column::Whole(
                    cast(column, &DataType::Int64)?
                        .as_primitive::<Int64Type>()
                        .clone(),
                ),
                _ => Column::Counted(column.clone()),
            });
        }
        Ok(columns)
    }

    /// The place of each row's key among what has changed; keys that were not there are read from state, in one go.
    async fn places(&mut self, batch: &RecordBatch, cx: &mut Cx) -> Result<Vec<u32>, FlowError> {
        let mut places = Vec::with_capacity(batch.num_rows());
        let first_new = self.changed.keys.len();
        if self.layout.keys.is_empty() {
            let place = self.changed.place_of(&[]);
            places.resize(batch.num_rows(), place);
        } else {
            let columns: Vec<ArrayRef> = self
                .layout
                .keys
                .iter()
                .map(|&column| batch.column(column).clone())
                .collect();
            let keys = self.keys.convert_columns(&columns)?;
            places.extend(keys.iter().map(|key| self.changed.place_of(key.data())));
        }
        let new = &self.changed.keys[first_new..];
        if self.form == Form::Partial {
            for _ in new {
                self.changed.values.extend(self.layout.nothing());
            }
            return Ok(places);
        }
        let mut known: Vec<Option<Vec<Value>>> =
            new.iter().map(|key| self.cache.remove(key)).collect();
        let unknown: Vec<usize> = (0..new.len()).filter(|&at| known[at].is_none()).collect();
        let asked: Vec<Bytes> = unknown.iter().map(|&at| new[at].clone()).collect();
        for (at, stored) in unknown.into_iter().zip(cx.state().get_many(&asked).await?) {
            known[at] = stored
                .map(|stored| decode(&stored, &self.layout.aggregates))
                .transpose()?;
        }
        for values in known {
            let values = values.unwrap_or_else(|| self.layout.nothing());
            self.changed.values.extend(values);
        }
        Ok(places)
    }

    /// `values` are those of each key, one after the other.
    fn rows_of(&self, keys: &[Bytes], values: &[Value]) -> Result<RecordBatch, FlowError> {
        let width = self.layout.aggregates.len();
        let mut columns: Vec<ArrayRef> = Vec::new();
        if !self.layout.keys.is_empty() {
            let parser = self.keys.parser();
            columns.extend(
                self.keys
                    .convert_rows(keys.iter().map(|key| parser.parse(key)))?,
            );
        }
        for (at, converter) in self.values.iter().enumerate() {
            let values = || values.iter().skip(at).step_by(width);
            let whole = |value: &Value| match value {
                Value::Count(count) => Some(*count),
                Value::Whole(sum) => *sum,
                _ => None,
            };
            let float = |value: &Value| match value {
                Value::Float(sum) => *sum,
                _ => None,
            };
            columns.push(match converter {
                Some(converter) => self.kept(converter, at, values())?,
                None if self.layout.aggregates[at].float
                    && self.layout.aggregates[at].function == Function::Sum =>
                {
                    Arc::new(values().map(float).collect::<Float64Array>())
                }
                None => Arc::new(values().map(whole).collect::<Int64Array>()),
            });
        }
        Ok(RecordBatch::try_new(self.layout.schema.clone(), columns)?)
    }

    /// Kept values as a column; null where none has come yet.
    fn kept<'a>(
        &self,
        converter: &RowConverter,
        at: usize,
        values: impl Iterator<Item = &'a Value>,
    ) -> Result<ArrayRef, FlowError> {
        let field = self.layout.schema.field(self.layout.keys.len() + at);
        let null =
            converter.convert_columns(&[arrow::array::new_null_array(field.data_type(), 1)])?;
        let parser = converter.parser();
        let rows: Vec<_> = values
            .map(|value| match value {
                Value::Kept(Some(kept)) => parser.parse(kept),
                _ => null.row(0),
            })
            .collect();
        converter
            .convert_rows(rows)?
            .pop()
            .ok_or_else(|| FlowError::fatal("aggregate", "a row without a column"))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use arrow::datatypes::Schema;

    use super::*;

    fn spec(compute: &[(&str, &str)]) -> AggregateSpec {
        AggregateSpec {
            partitions: None,
            form: Form::Whole,
            group_by: vec!["city".into()],
            compute: compute
                .iter()
                .map(|(name, call)| ((*name).to_owned(), (*call).into()))
                .collect(),
        }
    }

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("city", DataType::Utf8, true),
            Field::new("amount", DataType::Int32, true),
            Field::new("price", DataType::Float32, true),
        ])
    }

    fn problems(compute: &[(&str, &str)]) -> String {
        let problems = spec(compute).layout(&schema()).err().unwrap();
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        text.join("\n")
    }

    #[test]
    fn wrong_options_are_all_named() {
        let text = problems(&[
            ("a", "sum(city)"),
            ("b", "average(amount)"),
            ("c", "min()"),
            ("d", "max(height)"),
            ("city", "count()"),
            ("e", "amount"),
        ]);
        for part in [
            "compute.a: `city` is Utf8, which cannot be added up",
            "compute.b: no function `average`",
            "compute.c: `min()` needs a column",
            "compute.d: no column `height` (the input has",
            "compute.e: `amount` is not a call of a function",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(problems(&[("city", "count()")]).contains("`city` is there twice"));
        assert!(problems(&[]).contains("nothing to compute"));
    }

    #[test]
    fn state_comes_back_and_other_state_is_refused() {
        let layout =
            |compute: &[(&str, &str)]| spec(compute).layout(&schema()).ok().unwrap().aggregates;
        let some = layout(&[
            ("n", "count()"),
            ("s", "sum(amount)"),
            ("f", "sum(price)"),
            ("l", "last(city)"),
        ]);
        let values = [
            Value::Count(3),
            Value::Whole(None),
            Value::Float(Some(1.5)),
            Value::Kept(Some(Bytes::from_static(b"\x02ab"))),
        ];
        let stored = encode(&values);
        assert_eq!(decode(&stored, &some).unwrap(), values);
        assert!(decode(&stored, &some[..3]).is_err());
        assert!(decode(&stored[..stored.len() - 1], &some).is_err());
        assert!(decode(&[], &some).is_err());
    }

    /// Kept values and keys are stored in arrow's row format, which arrow may change: then [`LAYOUT`] has to change too.
    #[test]
    fn the_row_format_is_the_one_that_was_stored() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![Some("中国"), None])),
            Arc::new(Int64Array::from(vec![Some(-2), None])),
            Arc::new(Float64Array::from(vec![Some(1.5), None])),
        ];
        let fields = columns
            .iter()
            .map(|column| SortField::new(column.data_type().clone()))
            .collect();
        let rows = RowConverter::new(fields)
            .unwrap()
            .convert_columns(&columns)
            .unwrap();
        let hex = |row: usize| -> String {
            rows.row(row)
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        assert_eq!(hex(0), EXPECTED[0]);
        assert_eq!(hex(1), EXPECTED[1]);
    }

    const EXPECTED: [&str; 2] = [
        "02e4b8ade59bbd000006017ffffffffffffffe01bff8000000000000",
        "00000000000000000000000000000000000000",
    ];
}
