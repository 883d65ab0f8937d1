//! `map`: computes, renames and drops columns with SQL expressions.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_connectors::flow::{FlowError, Names, Problem};

use crate::expression::{Expression, rows_left, without_rows};
use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::shape::column_names;

/// Makes each output column from a SQL expression over the input row.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// Output columns by name, each a SQL expression over the input's columns, e.g. `total: price * amount`. They come
    /// after the kept input columns; a column of the same name is replaced in its place.
    #[serde(default)]
    pub set: serde_json::Map<String, serde_json::Value>,
    /// Input columns to leave out.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Leave out every input column that `set` does not name.
    #[serde(default)]
    pub only_set: bool,
}

/// Where an output column comes from.
enum Column {
    Kept(usize),
    Computed(Expression),
}

impl MapSpec {
    fn plan(&self, input: &SchemaRef) -> Result<(SchemaRef, Vec<Column>), Vec<Problem>> {
        let mut problems = Vec::new();
        for name in &self.drop {
            if input.column_with_name(name).is_none() {
                problems.push(
                    Problem::new(&["drop"], format!("there is no column `{name}` to drop"))
                        .hint(format!("the input has {}", column_names(input))),
                );
            }
        }
        let mut fields: Vec<Field> = Vec::new();
        let mut columns = Vec::new();
        if !self.only_set {
            for (i, field) in input.fields().iter().enumerate() {
                if !self.drop.contains(field.name()) {
                    fields.push(field.as_ref().clone());
                    columns.push(Column::Kept(i));
                }
            }
        }
        for (name, text) in &self.set {
            let expression = match text {
                serde_json::Value::String(text) => Expression::new(text, input),
                // `discount: 0` is as good as `discount: "0"`.
                other => Expression::new(&other.to_string(), input),
            };
            match expression {
                Ok(expression) => {
                    let field =
                        Field::new(name, expression.data_type().clone(), expression.nullable());
                    match fields.iter().position(|field| field.name() == name) {
                        Some(at) => {
                            fields[at] = field;
                            columns[at] = Column::Computed(expression);
                        }
                        None => {
                            fields.push(field);
                            columns.push(Column::Computed(expression));
                        }
                    }
                }
                Err(error) => problems.push(
                    Problem::new(&["set", name], error)
                        .hint(format!("the input has {}", column_names(input))),
                ),
            }
        }
        if fields.is_empty() && problems.is_empty() {
            problems
                .push(Problem::new(&[], "no column is left").hint("name at least one in `set`"));
        }
        if problems.is_empty() {
            Ok((Arc::new(Schema::new(fields)), columns))
        } else {
            Err(problems)
        }
    }
}

impl OperatorSpec for MapSpec {
    const KIND: &'static str = "map";
    const EXAMPLE: &'static str = include_str!("../examples/map.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        self.plan(&inputs[0]).map(|(schema, _)| schema)
    }

    fn keeps(&self, column: &str) -> bool {
        !self.only_set
            && !self.set.contains_key(column)
            && !self.drop.iter().any(|dropped| dropped == column)
    }

    fn build(
        self,
        inputs: &[SchemaRef],
        _resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let (schema, columns) = self
            .plan(&inputs[0])
            .map_err(|problems| FlowError::fatal(Self::KIND, problems[0].clone()))?;
        Ok(Box::new(MapTask { schema, columns }))
    }
}

struct MapTask {
    schema: SchemaRef,
    columns: Vec<Column>,
}

#[async_trait]
impl Operator for MapTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let mut bad: Vec<(usize, String)> = Vec::new();
        for column in &self.columns {
            if let Column::Computed(expression) = column {
                let (_, _, failed) = expression.evaluate_rows(&batch);
                for (row, reason) in failed {
                    if bad.iter().all(|(seen, _)| *seen != row) {
                        bad.push((row, reason));
                    }
                }
            }
        }
        let good = without_rows(&batch, &bad);
        let rows = rows_left(batch.num_rows(), &bad);
        for (row, reason) in bad {
            cx.dead_letter(&batch, row, reason);
        }
        let arrays = self
            .columns
            .iter()
            .map(|column| match column {
                Column::Kept(i) => Ok(good.column(*i).clone()),
                Column::Computed(expression) => expression
                    .evaluate(&good)
                    .map_err(|error| FlowError::fatal("map", error)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(good.num_rows()));
        cx.passed(good.num_rows());
        let made = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?;
        cx.emit_from(made, &rows).await
    }
}
