//! Which chunk is in which row, kept in memory.
//!
//! What a row of a dataset holds never changes: a write adds rows and marks others as gone, a merge writes new ones. So what
//! was read once stays true, and a search that only wants to know which chunks are near reads nothing but the index.
//! Reading what is not known is `reader`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use va_catalog::ChunkId;

/// Rows that are known at most, of all datasets of a store; about 60 bytes each. Those that are asked for least go first.
const ROWS_MAX: usize = 1 << 20;

/// What is known of the datasets of one store.
pub(crate) struct KnownRows {
    rows: Arc<Cache<(u64, u64), ChunkId>>,
    datasets: AtomicU64,
}

/// What is known of one dataset. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RowIds {
    rows: Arc<Cache<(u64, u64), ChunkId>>,
    dataset: u64,
}

impl Default for KnownRows {
    fn default() -> Self {
        Self {
            rows: Arc::new(Cache::new(ROWS_MAX)),
            datasets: AtomicU64::new(0),
        }
    }
}

impl KnownRows {
    /// For a dataset that was just opened. One that is dropped and made again, under the same name, is another.
    pub fn dataset(&self) -> RowIds {
        RowIds {
            rows: self.rows.clone(),
            dataset: self.datasets.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl RowIds {
    pub fn get(&self, row: u64) -> Option<ChunkId> {
        self.rows.get(&(self.dataset, row))
    }

    pub fn insert(&self, row: u64, id: ChunkId) {
        self.rows.insert((self.dataset, row), id);
    }
}
