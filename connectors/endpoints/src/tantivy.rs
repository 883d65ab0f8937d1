//! `tantivy`: chunks into the full-text index.
//!
//! Idempotent by document, like `lance`. Rows are applied when the checkpoint is prepared; the index commit follows when
//! the vector store has its part too (see [`crate::indexes`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::{CollectionRef, chunk_schema};
use va_connectors::flow::{CheckpointId, FlowError, Names, Prepared, Problem, Sink};

use crate::changes::Changes;
use crate::endpoint::{Resources, SinkPlan, SinkSpec};
use crate::indexes::{IndexError, Indexes};

/// Writes chunk rows to the full-text index, each to the collection that the row names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TantivySink {}

impl SinkSpec for TantivySink {
    const KIND: &'static str = "tantivy";
    const EXAMPLE: &'static str = include_str!("../examples/tantivy.yaml");

    fn plan(&self, input: &SchemaRef, _names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        let missing: Vec<Problem> = chunk_schema(None)
            .fields()
            .iter()
            .filter(|field| input.field_with_name(field.name()).is_err())
            .map(|field| {
                Problem::new(
                    &["input"],
                    format!("column `{}` is missing from the input", field.name()),
                )
                .hint("put a `chunk` before")
            })
            .collect();
        if missing.is_empty() {
            Ok(SinkPlan::default())
        } else {
            Err(missing)
        }
    }

    fn build(self, _input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        Ok(Box::new(TantivyWriter {
            indexes: resources.indexes.clone(),
            changes: Changes::default(),
            clean: BTreeSet::new(),
        }))
    }
}

struct TantivyWriter {
    indexes: Arc<Indexes>,
    changes: Changes,
    /// Collections in which what a failed task before us left uncommitted has been dropped.
    clean: BTreeSet<CollectionRef>,
}

#[async_trait]
impl Sink for TantivyWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        self.changes.push(&batch)
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        let mut collections = Vec::new();
        for change in self.changes.take()? {
            let retriable = |error: IndexError| FlowError::retriable("tantivy", error);
            self.indexes.stage(&change.collection).await;
            if self.clean.insert(change.collection.clone()) {
                self.indexes
                    .rollback_texts(&change.collection)
                    .await
                    .map_err(retriable)?;
            }
            self.indexes
                .apply_texts(&change.collection, &change.documents, change.rows)
                .await
                .map_err(retriable)?;
            collections.push(change.collection);
        }
        Ok(Prepared {
            collections,
            ..Prepared::default()
        })
    }
}
