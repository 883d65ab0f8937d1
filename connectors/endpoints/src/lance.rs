//! `lance`: chunks with vectors into LanceDB.
//!
//! Idempotent by document: at each checkpoint the collection holds of every document that passed exactly the rows that
//! passed, however often they are written. Documents of collections without vectors (`vectors` is false) leave nothing
//! here.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_connectors::flow::{CheckpointId, FlowError, Names, Prepared, Problem, Sink};

use crate::changes::Changes;
use crate::endpoint::{Resources, SinkPlan, SinkSpec};
use crate::indexes::Indexes;

/// Writes chunk rows with vectors to the vector store, each to the collection that the row names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LanceSink {}

impl SinkSpec for LanceSink {
    const KIND: &'static str = "lance";
    const EXAMPLE: &'static str = include_str!("../examples/lance.yaml");

    fn plan(&self, input: &SchemaRef, _names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        match input
            .field_with_name("vector")
            .map(|field| field.data_type())
        {
            Ok(DataType::FixedSizeList(_, _)) => Ok(SinkPlan::default()),
            Ok(other) => Err(vec![Problem::new(
                &["input"],
                format!("column `vector` is {other}, not a vector"),
            )]),
            Err(_) => Err(vec![
                Problem::new(&["input"], "column `vector` is missing from the input")
                    .hint("put an `embed` before"),
            ]),
        }
    }

    fn build(self, _input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        Ok(Box::new(LanceWriter {
            indexes: resources.indexes.clone(),
            changes: Changes::of_vectors(),
        }))
    }
}

struct LanceWriter {
    indexes: Arc<Indexes>,
    changes: Changes,
}

#[async_trait]
impl Sink for LanceWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        self.changes.push(&batch)
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        let mut collections = Vec::new();
        for change in self.changes.take()? {
            self.indexes.stage(&change.collection).await;
            let rows = change.rows.num_rows();
            self.indexes
                .apply_vectors(&change.collection, &change.documents, change.rows)
                .await
                .map_err(|error| FlowError::retriable("lance", error))?;
            tracing::debug!(collection = %change.collection, rows, "chunks are in the vector store");
            collections.push(change.collection);
        }
        Ok(Prepared {
            collections,
            ..Prepared::default()
        })
    }
}
