//! SQL expressions over a batch, as `filter` and `map` use them: parsed and typed at plan time by DataFusion, evaluated
//! per batch.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use datafusion::physical_expr::PhysicalExpr;

/// An expression bound to the schema of its input.
#[derive(Debug, Clone)]
pub struct Expression {
    text: String,
    physical: Arc<dyn PhysicalExpr>,
    data_type: DataType,
    nullable: bool,
}

impl Expression {
    /// Parses and types `text` against `schema`; the error says what DataFusion's planner says, in its first line.
    pub fn new(text: &str, schema: &SchemaRef) -> Result<Self, String> {
        let plan = || -> Result<Self, DataFusionError> {
            let context = SessionContext::new();
            let df_schema = DFSchema::try_from(Arc::clone(schema))?;
            let logical = context.parse_sql_expr(text, &df_schema)?;
            let physical = context.create_physical_expr(logical, &df_schema)?;
            let data_type = physical.data_type(schema)?;
            let nullable = physical.nullable(schema)?;
            Ok(Self {
                text: text.to_owned(),
                physical,
                data_type,
                nullable,
            })
        };
        plan().map_err(|error| {
            let message = error.strip_backtrace();
            message.lines().next().unwrap_or_default().to_owned()
        })
    }

    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    pub fn nullable(&self) -> bool {
        self.nullable
    }

    /// One value a row; the error is the first one that a row of the batch caused.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, String> {
        self.physical
            .evaluate(batch)
            .and_then(|value| value.into_array(batch.num_rows()))
            .map_err(|error| error.strip_backtrace())
    }

    /// Evaluates; when the batch fails, finds out row by row which rows do, so that the others go on.
    /// Returns the batch of good rows, their values, and `(row, reason)` of the bad ones.
    pub fn evaluate_rows(
        &self,
        batch: &RecordBatch,
    ) -> (RecordBatch, Option<ArrayRef>, Vec<(usize, String)>) {
        if let Ok(values) = self.evaluate(batch) {
            return (batch.clone(), Some(values), Vec::new());
        }
        let bad: Vec<(usize, String)> = (0..batch.num_rows())
            .filter_map(|row| {
                let error = self.evaluate(&batch.slice(row, 1)).err()?;
                Some((row, format!("`{}`: {error}", self.text)))
            })
            .collect();
        let good = without_rows(batch, &bad);
        let values = self.evaluate(&good).ok();
        (good, values, bad)
    }
}

/// The batch without the given rows.
pub fn without_rows(batch: &RecordBatch, bad: &[(usize, String)]) -> RecordBatch {
    let mut keep = vec![true; batch.num_rows()];
    for (row, _) in bad {
        keep[*row] = false;
    }
    arrow::compute::filter_record_batch(batch, &keep.into()).expect("the mask has one entry a row")
}

/// Numbers of the rows that [`without_rows`] keeps, of `rows`.
pub fn rows_left(rows: usize, bad: &[(usize, String)]) -> Vec<usize> {
    let mut keep = vec![true; rows];
    for (row, _) in bad {
        keep[*row] = false;
    }
    (0..rows).filter(|&row| keep[row]).collect()
}
