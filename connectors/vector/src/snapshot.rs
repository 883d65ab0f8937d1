//! One fixed version of a table.
//!
//! A snapshot is one Lance version: later commits do not show in it. While one is alive, pruning
//! leaves its version alone, so that it stays readable for as long as it is held. Writing is `apply`'s business.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use lance::Dataset;
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, Filter};

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
                ids: table.ids.clone(),
                parts: table.parts.clone(),
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

    async fn nearest(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<(ChunkId, f32)>, VectorError> {
        self.reader.nearest_ids(query, k, metric, filter).await
    }

    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, VectorError> {
        let mut found = HashMap::with_capacity(ids.len());
        self.reader.find(ids, &mut found).await?;
        Ok(found)
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        self.reader.chunk_keys().await
    }
}
