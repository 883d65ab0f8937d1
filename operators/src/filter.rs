//! `filter`: keeps the rows for which a SQL condition is true.
//!
//! The smallest operator, and the one to copy for a new one.

use arrow::array::AsArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_connectors::flow::{FlowError, Names, Problem};

use crate::expression::{Expression, rows_left};
use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::shape::column_names;

/// Keeps the rows for which a SQL condition is true; rows for which it is false or null are counted as filtered.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterSpec {
    /// A SQL expression of type boolean over the input's columns, e.g. `amount > 100 and country = 'CN'`.
    #[serde(rename = "where")]
    pub condition: String,
}

impl OperatorSpec for FilterSpec {
    const KIND: &'static str = "filter";
    const EXAMPLE: &'static str = include_str!("../examples/filter.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        let expression = Expression::new(&self.condition, &inputs[0]).map_err(|error| {
            vec![
                Problem::new(&["where"], error)
                    .hint(format!("the input has {}", column_names(&inputs[0]))),
            ]
        })?;
        if expression.data_type() != &DataType::Boolean {
            return Err(vec![
                Problem::new(
                    &["where"],
                    format!(
                        "`{}` is {}, not a condition",
                        self.condition,
                        expression.data_type()
                    ),
                )
                .hint("write an expression that is true or false, such as `amount > 100`"),
            ]);
        }
        Ok(inputs[0].clone())
    }

    fn keeps(&self, _column: &str) -> bool {
        true
    }

    fn build(
        self,
        inputs: &[SchemaRef],
        _resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let condition = Expression::new(&self.condition, &inputs[0])
            .map_err(|error| FlowError::fatal(Self::KIND, error))?;
        Ok(Box::new(FilterTask { condition }))
    }
}

struct FilterTask {
    condition: Expression,
}

#[async_trait]
impl Operator for FilterTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let (good, values, bad) = self.condition.evaluate_rows(&batch);
        let rows = rows_left(batch.num_rows(), &bad);
        for (row, reason) in bad {
            cx.dead_letter(&batch, row, reason);
        }
        let Some(mask) = values.as_ref().and_then(|values| values.as_boolean_opt()) else {
            return Ok(());
        };
        // A null is not true: the kernel leaves those rows out.
        let kept = filter_record_batch(&good, mask)?;
        cx.passed(kept.num_rows());
        cx.filtered(good.num_rows() - kept.num_rows());
        let rows: Vec<usize> = rows
            .into_iter()
            .zip(mask)
            .filter_map(|(row, keep)| (keep == Some(true)).then_some(row))
            .collect();
        cx.emit_from(kept, &rows).await
    }
}
