//! One open table: the version that readers see, and the locks of those who change it.
//!
//! Locks are taken in the order upkeep, writer. Readers take none: they get a snapshot of the newest version that this
//! process has committed and keep it for as long as they read.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::scanner::Scanner;
use tokio::sync::Mutex;
use va_catalog::chunk::strings;
use va_catalog::{CollectionRef, DocumentId};

use crate::VectorError;
use crate::ids::RowIds;
use crate::parts::Parts;
use crate::reader::check_dims;

pub(crate) struct OpenTable {
    pub collection: CollectionRef,
    /// The table's directory.
    pub path: PathBuf,
    pub table: lancedb::Table,
    pub ids: RowIds,
    pub parts: Arc<Parts>,
    /// Held by the one writer.
    pub writer: Mutex<Writer>,
    /// Held by the one compaction, pruning or indexing.
    pub upkeep: Arc<Mutex<Upkeep>>,
    /// Fragments left by the last compaction; the next is due when this has grown by `fragments_max`.
    pub fragments_floor: AtomicUsize,
    /// Versions that snapshots read, with how many do.
    readers: Readers,
}

type Readers = Arc<std::sync::Mutex<BTreeMap<u64, usize>>>;

/// A version that somebody reads, for as long as this lives.
pub(crate) struct Reading {
    version: u64,
    readers: Readers,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = locked(&self.readers);
        if let Some(count) = readers.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.version);
            }
        }
    }
}

/// A count is right after every step, so a poisoned lock is usable.
fn locked(readers: &Readers) -> std::sync::MutexGuard<'_, BTreeMap<u64, usize>> {
    readers
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[derive(Default)]
pub(crate) struct Writer {
    /// The documents that have rows, so that a new document is appended without looking for old rows. `None` means
    /// unknown: not read yet, or a commit ended in an unknown way.
    pub present: Option<HashSet<DocumentId>>,
    /// The collection was dropped; whoever waited for the lock must open it anew.
    pub dropped: bool,
}

#[derive(Default)]
pub(crate) struct Upkeep {
    pub pruned_at: Option<Instant>,
}

impl OpenTable {
    pub fn new(
        collection: CollectionRef,
        path: PathBuf,
        table: lancedb::Table,
        ids: RowIds,
        parts: Arc<Parts>,
    ) -> Self {
        Self {
            collection,
            path,
            table,
            ids,
            parts,
            writer: Mutex::default(),
            upkeep: Arc::default(),
            fragments_floor: AtomicUsize::new(0),
            readers: Arc::default(),
        }
    }

    /// Notes that a version is read, for as long as the result lives: it is not pruned meanwhile.
    pub fn reading(&self, version: u64) -> Reading {
        *locked(&self.readers).entry(version).or_default() += 1;
        Reading {
            version,
            readers: self.readers.clone(),
        }
    }

    /// The oldest version that somebody reads.
    pub fn oldest_read(&self) -> Option<u64> {
        locked(&self.readers).keys().next().copied()
    }

    /// The newest version that this process knows.
    pub async fn snapshot(&self) -> Result<Arc<Dataset>, VectorError> {
        self.table
            .dataset()
            .ok_or_else(|| self.not_local())?
            .get()
            .await
            .map_err(|error| self.error("opening", error))
    }

    /// Shows a committed version to readers; an older one than they see already is ignored.
    pub fn publish(&self, dataset: Dataset) -> Result<(), VectorError> {
        self.table
            .dataset()
            .ok_or_else(|| self.not_local())?
            .update(dataset);
        Ok(())
    }

    /// Reads the newest version from the disk.
    pub async fn refresh(&self) -> Result<(), VectorError> {
        self.table
            .dataset()
            .ok_or_else(|| self.not_local())?
            .reload()
            .await
            .map_err(|error| self.error("refreshing", error))
    }

    pub fn error(
        &self,
        action: &'static str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> VectorError {
        VectorError::storage(&self.collection, action, error)
    }

    fn not_local(&self) -> VectorError {
        self.error("opening", "the table is not a local one")
    }

    /// Fails unless vectors have this length.
    pub fn check_dims(&self, dataset: &Dataset, got: usize) -> Result<(), VectorError> {
        check_dims(&self.collection, dataset, got)
    }

    /// A scan of some columns.
    pub fn scanner(&self, dataset: &Dataset, columns: &[&str]) -> Result<Scanner, VectorError> {
        let mut scanner = dataset.scan();
        scanner
            .project(columns)
            .map_err(|error| self.error("reading", error))?;
        Ok(scanner)
    }

    /// The ids of all documents that have rows.
    pub async fn document_ids(
        &self,
        dataset: &Dataset,
    ) -> Result<HashSet<DocumentId>, VectorError> {
        let scanner = self.scanner(dataset, &["document_id"])?;
        let mut batches = scanner
            .try_into_stream()
            .await
            .map_err(|error| self.error("reading document ids", error))?;
        let mut documents = HashSet::new();
        while let Some(batch) = batches
            .try_next()
            .await
            .map_err(|error| self.error("reading document ids", error))?
        {
            let ids = strings(&batch, "document_id")
                .map_err(|error| self.error("reading document ids", error))?;
            for id in ids.iter().flatten() {
                documents.insert(id.parse().map_err(|error: va_catalog::InvalidName| {
                    self.error("reading document ids", error)
                })?);
            }
        }
        Ok(documents)
    }
}
