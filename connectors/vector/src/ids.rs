//! Which chunk is in which row, kept in memory.
//!
//! What a row of a dataset holds never changes: a write adds rows and marks others as gone, a merge writes new ones. So what
//! was read once stays true, and a search that only wants to know which chunks are near reads nothing but the index.
//! Reading what is not known, and reading ahead, is `reader`'s.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lance::table::format::Fragment;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use va_catalog::ChunkId;

/// Rows that are known at most, of all datasets of a store; about 60 bytes each. Those that are asked for least go first.
const ROWS_MAX: usize = 1 << 20;

/// A dataset with more rows is not read ahead: it would drive out what others have.
const ROWS_AHEAD_MAX: usize = ROWS_MAX / 2;

/// What is known of the datasets of one store.
pub(crate) struct KnownRows {
    rows: Arc<Cache<(u64, u64), ChunkId>>,
    datasets: AtomicU64,
    turn: Arc<Semaphore>,
}

/// What is known of one dataset. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RowIds {
    rows: Arc<Cache<(u64, u64), ChunkId>>,
    dataset: u64,
    /// Its fragments that were read ahead, or are being read.
    ahead: Arc<Mutex<HashSet<u64>>>,
    /// One dataset is read ahead at a time: searches have the machine first.
    pub turn: Arc<Semaphore>,
}

impl Default for KnownRows {
    fn default() -> Self {
        Self {
            rows: Arc::new(Cache::new(ROWS_MAX)),
            datasets: AtomicU64::new(0),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl KnownRows {
    /// For a dataset that was just opened. One that is dropped and made again, under the same name, is another.
    pub fn dataset(&self) -> RowIds {
        RowIds {
            rows: self.rows.clone(),
            dataset: self.datasets.fetch_add(1, Ordering::Relaxed),
            ahead: Arc::default(),
            turn: self.turn.clone(),
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

    /// Those of the dataset's `fragments` that are to be read ahead. Each is named once.
    pub fn begin(&self, fragments: &[Fragment]) -> Vec<Fragment> {
        let rows = |fragment: &Fragment| fragment.physical_rows.unwrap_or(ROWS_MAX);
        if fragments.iter().map(rows).sum::<usize>() > ROWS_AHEAD_MAX {
            return Vec::new();
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        // Of fragments that a merge has replaced nothing is asked any more.
        ahead.retain(|id| fragments.iter().any(|fragment| fragment.id == *id));
        let new = fragments.iter().filter(|one| ahead.insert(one.id));
        new.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(rows: &[(u64, usize)]) -> Vec<Fragment> {
        let one = |(id, rows): &(u64, usize)| Fragment::new(*id).with_physical_rows(*rows);
        rows.iter().map(one).collect()
    }

    #[test]
    fn each_fragment_is_read_ahead_once() {
        let known = KnownRows::default();
        let ids = known.dataset();
        let begun = |of: &RowIds, rows: &[(u64, usize)]| -> Vec<u64> {
            let begun = of.begin(&fragments(rows));
            begun.iter().map(|fragment| fragment.id).collect()
        };
        assert_eq!(begun(&ids, &[(0, 10), (1, 10)]), [0, 1]);
        assert_eq!(begun(&ids.clone(), &[(0, 10), (1, 10), (2, 5)]), [2]);
        // Merged into one.
        assert_eq!(begun(&ids, &[(3, 25)]), [3]);
        assert_eq!(begun(&ids, &[(3, 25)]), [0_u64; 0]);
        assert_eq!(begun(&known.dataset(), &[(3, 25)]), [3], "another dataset");
        // More than may be kept.
        let large = (4, ROWS_AHEAD_MAX - 24);
        assert_eq!(begun(&ids, &[(3, 25), large]), [0_u64; 0]);
    }
}
