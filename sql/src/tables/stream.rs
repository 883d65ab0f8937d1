//! From "a function that opens a stream of batches" to a DataFusion plan, and the few questions that every table asks
//! about projections and filters.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream::BoxStream;

/// Batches as a source yields them.
pub(crate) type Batches = BoxStream<'static, Result<RecordBatch>>;
/// One partition of a scan: opens its batches when the query runs.
pub(crate) type Part = Arc<dyn Fn() -> Batches + Send + Sync>;

/// A part from a closure.
pub(crate) fn part(open: impl Fn() -> Batches + Send + Sync + 'static) -> Part {
    Arc::new(open)
}

struct LazyPart {
    schema: SchemaRef,
    open: Part,
}

impl fmt::Debug for LazyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyPart").finish_non_exhaustive()
    }
}

impl PartitionStream for LazyPart {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        Box::pin(RecordBatchStreamAdapter::new(
            self.schema.clone(),
            (self.open)(),
        ))
    }
}

/// The plan that runs `parts` in parallel. Their batches have `schema`, so the projection is already in it.
pub(crate) fn stream_plan(
    schema: SchemaRef,
    parts: Vec<Part>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if parts.is_empty() {
        return Ok(Arc::new(EmptyExec::new(schema)));
    }
    let parts = parts
        .into_iter()
        .map(|open| {
            let schema = schema.clone();
            Arc::new(LazyPart { schema, open }) as Arc<dyn PartitionStream>
        })
        .collect();
    let plan = StreamingTableExec::try_new(schema, parts, None, [], false, limit)?;
    Ok(Arc::new(plan))
}

/// The columns that a scan asks for.
pub(crate) fn projected(schema: &SchemaRef, projection: Option<&Vec<usize>>) -> Result<SchemaRef> {
    Ok(match projection {
        Some(columns) => Arc::new(schema.project(columns)?),
        None => schema.clone(),
    })
}

/// The columns of `batch` that `schema` names, in its order.
pub(crate) fn project(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            Ok(batch
                .column(batch.schema_ref().index_of(field.name())?)
                .clone())
        })
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        schema.clone(),
        columns,
        &options,
    )?)
}

/// The text that `filters` require of `column`: from `column = 'text'`.
pub(crate) fn equal_to(filters: &[Expr], column: &str) -> Option<String> {
    filters
        .iter()
        .filter_map(text_equality)
        .find(|(name, _)| *name == column)
        .map(|(_, value)| value.to_owned())
}

fn text_equality(filter: &Expr) -> Option<(&str, &str)> {
    let Expr::BinaryExpr(binary) = filter else {
        return None;
    };
    if binary.op != Operator::Eq {
        return None;
    }
    match (binary.left.as_ref(), binary.right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _))
        | (Expr::Literal(value, _), Expr::Column(column)) => Some((&column.name, text(value)?)),
        _ => None,
    }
}

/// The text of a string literal.
pub(crate) fn text(value: &ScalarValue) -> Option<&str> {
    value.try_as_str().flatten()
}
