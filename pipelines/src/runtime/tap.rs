//! Taps: watching the live output of a node without touching what flows.
//!
//! A tap that is too slow misses batches and is told how many; it never holds the pipeline up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::record_batch::RecordBatch;
use tokio::sync::broadcast;
use va_catalog::{NodeName, PipelineName};

/// Batches that a tap may be behind before it misses some.
const TAP_BATCHES: usize = 64;

/// The tappable outputs of all running pipelines.
#[derive(Default, Clone)]
pub struct Taps {
    outputs: Arc<Mutex<HashMap<(PipelineName, NodeName), broadcast::Sender<RecordBatch>>>>,
}

impl Taps {
    /// Batches that the node emits from now on. A node that does not exist yet may be tapped too.
    pub fn subscribe(
        &self,
        pipeline: &PipelineName,
        node: &NodeName,
    ) -> broadcast::Receiver<RecordBatch> {
        self.sender(pipeline, node).subscribe()
    }

    /// What a node calls with every batch that it emits; free while nobody listens.
    pub fn publisher(
        &self,
        pipeline: &PipelineName,
        node: &NodeName,
    ) -> Arc<dyn Fn(&RecordBatch) + Send + Sync> {
        let sender = self.sender(pipeline, node);
        Arc::new(move |batch| {
            if sender.receiver_count() > 0 {
                // Fails only when the last listener has just gone.
                let _ = sender.send(batch.clone());
            }
        })
    }

    fn sender(&self, pipeline: &PipelineName, node: &NodeName) -> broadcast::Sender<RecordBatch> {
        self.outputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((pipeline.clone(), node.clone()))
            .or_insert_with(|| broadcast::channel(TAP_BATCHES).0)
            .clone()
    }
}
