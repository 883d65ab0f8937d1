//! One fixed version of a table.
//!
//! A snapshot is one Lance version: later commits do not show in it. While one is alive, pruning
//! leaves its version alone, so that it stays readable for as long as it is held. Writing is `apply`'s business.

use std::sync::Arc;

use async_trait::async_trait;
use lance::Dataset;
use va_catalog::{ChunkKey, Filter};

use crate::VectorError;
use crate::embedded::LanceOptions;
use crate::reader::Reader;
use crate::store::{Metric, VectorHit, VectorSnapshot};
use crate::table::{OpenTable, Reading};

pub(crate) struct LanceSnapshot {
    reader: Reader,
    /// Keeps the version from being pruned.
    _reading: Reading,
}

impl LanceSnapshot {
    pub fn new(table: &OpenTable, dataset: Arc<Dataset>, options: &Arc<LanceOptions>) -> Self {
        Self {
            _reading: table.reading(dataset.version().version),
            reader: Reader {
                collection: table.collection.clone(),
                dataset,
                options: options.clone(),
                mask: None,
            },
        }
    }
}

#[async_trait]
impl VectorSnapshot for LanceSnapshot {
    fn version(&self) -> u64 {
        self.reader.dataset.version().version
    }

    async fn search(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError> {
        self.reader.search(query, k, metric, filter).await
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        self.reader.chunk_keys().await
    }
}
