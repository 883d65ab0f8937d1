//! The reading side: the newest view of each collection.
//!
//! The catalog is asked for the number of the newest state at most every [`SplitOptions::refresh_ms`], and at once after
//! this process published: what it reported as indexed, its own searches find. Meanwhile, and while a newer view is being
//! fetched, searches go on with the one that is there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::sync::Semaphore;
use va_catalog::store::Catalog;
use va_catalog::{ChunkId, ChunkRecord, CollectionRef, DocumentId};
use va_connectors::objects::{ObjectError, Objects};
use va_vector::{
    ChunkStream, LanceOptions, OptimizeReport, VectorError, VectorSnapshot, VectorSplits,
    VectorStore, stored_schema,
};

use crate::SplitError;
use crate::cache::Cache;
use crate::merge::MergePolicy;
use crate::view::SplitView;
use crate::writer::SplitWriter;

/// Collections whose newest view is kept.
const VIEWS_MAX: usize = 256;

/// How a [`SplitStore`] works.
#[derive(Debug, Clone)]
pub struct SplitOptions {
    /// How long a search may go on with the state it knows before it asks for a newer one.
    pub refresh_ms: u64,
    /// What unpacked splits may take on the local disk, in bytes; those in use stay even if it is more.
    pub cache_bytes_max: u64,
    /// Splits of a collection that one search reads at the same time.
    pub search_at_once: usize,
    pub merge: MergePolicy,
    /// Of the vectors: from which size on a split gets indexes, and which.
    pub vectors: LanceOptions,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self {
            refresh_ms: 500,
            cache_bytes_max: 20 << 30,
            search_at_once: std::thread::available_parallelism().map_or(2, usize::from),
            merge: MergePolicy::default(),
            vectors: LanceOptions::default(),
        }
    }
}

/// Shared indexes, over a catalog and an object store.
pub struct SplitStore {
    pub(crate) catalog: Catalog,
    pub(crate) objects: Objects,
    pub(crate) cache: Cache,
    pub(crate) options: SplitOptions,
    /// One merge at a time.
    pub(crate) merging: Arc<Semaphore>,
    known: Mutex<HashMap<CollectionRef, Arc<Known>>>,
    /// Counts uses, to tell which view was used least recently.
    clock: AtomicU64,
}

/// The newest view of a collection that this process has.
struct Known {
    newest: Mutex<(Arc<SplitView>, Option<Instant>)>,
    /// The state that a search must have seen at least.
    wanted: AtomicI64,
    /// Held while a newer view is fetched.
    refreshing: tokio::sync::Mutex<()>,
    used_at: AtomicU64,
}

impl Known {
    fn view(&self) -> Arc<SplitView> {
        lock(&self.newest).0.clone()
    }

    /// The view, if it need not be asked for a newer one.
    fn fresh(&self, for_ms: u64) -> Option<Arc<SplitView>> {
        let newest = lock(&self.newest);
        let (view, checked_at) = &*newest;
        let checked = checked_at.is_some_and(|at| at.elapsed() < Duration::from_millis(for_ms));
        (checked && self.is_enough(view)).then(|| view.clone())
    }

    fn is_enough(&self, view: &SplitView) -> bool {
        view.seq >= self.wanted.load(Ordering::Acquire)
    }
}

impl SplitStore {
    /// Opens the store with its cache in `dir`, which is made if missing.
    pub async fn open(
        catalog: Catalog,
        objects: Objects,
        dir: impl Into<PathBuf>,
        options: SplitOptions,
    ) -> Result<Arc<Self>, SplitError> {
        let vectors = VectorSplits::new(options.vectors.clone());
        let (dir, fetched, bytes) = (dir.into(), objects.clone(), options.cache_bytes_max);
        let opened = move || Cache::open(dir, fetched, vectors, bytes);
        Ok(Arc::new(Self {
            catalog,
            objects,
            cache: tokio::task::spawn_blocking(opened).await??,
            options,
            merging: Arc::new(Semaphore::new(1)),
            known: Mutex::default(),
            clock: AtomicU64::new(0),
        }))
    }

    /// What one task publishes.
    pub fn writer(self: &Arc<Self>) -> SplitWriter {
        SplitWriter::new(self.clone())
    }

    /// The collection as searches see it.
    pub async fn view(&self, collection: &CollectionRef) -> Result<Arc<SplitView>, SplitError> {
        let known = self.known(collection);
        if let Some(view) = known.fresh(self.options.refresh_ms) {
            return Ok(view);
        }
        let _turn = match known.refreshing.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                // Somebody is fetching a newer one already.
                let view = known.view();
                if lock(&known.newest).1.is_some() && known.is_enough(&view) {
                    return Ok(view);
                }
                known.refreshing.lock().await
            }
        };
        match known.fresh(self.options.refresh_ms) {
            Some(view) => Ok(view),
            None => self.refresh(&known).await,
        }
    }

    /// The newest view, asked for now.
    pub(crate) async fn newest(
        &self,
        collection: &CollectionRef,
    ) -> Result<Arc<SplitView>, SplitError> {
        let known = self.known(collection);
        let _turn = known.refreshing.lock().await;
        self.refresh(&known).await
    }

    /// To be called in turn.
    async fn refresh(&self, known: &Known) -> Result<Arc<SplitView>, SplitError> {
        let mut again = true;
        loop {
            let last = known.view();
            let asked_at = Instant::now();
            let seq = self.catalog.split_seq(&last.collection).await?;
            if seq == last.seq {
                lock(&known.newest).1 = Some(asked_at);
                self.trim(&last.collection);
                return Ok(last);
            }
            let state = self.catalog.split_state(&last.collection, last.seq).await?;
            match last.next(state, &self.cache).await {
                Ok(view) => {
                    let view = Arc::new(view);
                    *lock(&known.newest) = (view.clone(), Some(asked_at));
                    self.trim(&view.collection);
                    return Ok(view);
                }
                // Merged and swept since we asked for the state, if we were held up for that long.
                Err(SplitError::Objects(ObjectError::NotFound(object))) if again => {
                    tracing::warn!(collection = %last.collection, %object, "a split is gone; asking for a newer state");
                    again = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// From now on searches of this process see at least that state.
    pub(crate) fn want(&self, collection: &CollectionRef, seq: i64) {
        let known = self.known(collection);
        known.wanted.fetch_max(seq, Ordering::AcqRel);
    }

    /// Removes a collection. Not an error if there is none.
    pub async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), SplitError> {
        self.catalog.drop_splits(collection).await?;
        lock(&self.known).remove(collection);
        self.cache.evict();
        Ok(())
    }

    /// Collections that have splits, in order.
    pub async fn collections(&self) -> Result<Vec<CollectionRef>, SplitError> {
        Ok(self.catalog.split_collections_all_tenants().await?)
    }

    fn known(&self, collection: &CollectionRef) -> Arc<Known> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut all = lock(&self.known);
        let known = all.entry(collection.clone()).or_insert_with(|| {
            let empty = SplitView::empty(collection.clone(), self.options.search_at_once);
            Arc::new(Known {
                newest: Mutex::new((Arc::new(empty), None)),
                wanted: AtomicI64::new(0),
                refreshing: tokio::sync::Mutex::default(),
                used_at: AtomicU64::new(0),
            })
        });
        known.used_at.store(now, Ordering::Relaxed);
        known.clone()
    }

    /// Lets go of views that were used least recently, while there are too many or they keep too much on the disk. What a
    /// search must have seen is forgotten with them, but so is what it saw: it asks for the newest.
    fn trim(&self, but: &CollectionRef) {
        loop {
            {
                let mut all = lock(&self.known);
                if all.len() <= VIEWS_MAX && !self.cache.is_over() {
                    return;
                }
                let others = all.iter().filter(|(collection, _)| *collection != but);
                let least = others.min_by_key(|(_, known)| known.used_at.load(Ordering::Relaxed));
                let Some(least) = least.map(|(collection, _)| collection.clone()) else {
                    break;
                };
                all.remove(&least);
            }
            self.cache.evict();
        }
        self.cache.evict();
    }
}

/// What is guarded is right after every step, so a poisoned lock is usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What SQL and upkeep need of an index; a search takes a [`SplitView`].
#[async_trait]
impl VectorStore for SplitStore {
    async fn snapshot(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError> {
        let view = self.view(collection).await;
        let view = view.map_err(|error| error.of(collection, "opening"))?;
        // Also without vectors: upkeep wants the version, to know whether there is something to merge.
        let is_there = view.splits() > 0;
        Ok(is_there.then_some(view as Arc<dyn VectorSnapshot>))
    }

    async fn snapshot_at(
        &self,
        collection: &CollectionRef,
        version: u64,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError> {
        let newest = self.snapshot(collection).await?;
        Ok(newest.filter(|view| view.version() == version))
    }

    /// A shared index is written by [`SplitWriter`], both sides together.
    async fn apply(
        &self,
        collection: &CollectionRef,
        _: &[DocumentId],
        _: &RecordBatch,
    ) -> Result<(), VectorError> {
        Err(VectorError::Invalid(format!(
            "the vectors of `{collection}` are part of a shared index; publish them with its texts"
        )))
    }

    async fn chunks(
        &self,
        collection: &CollectionRef,
        ids: &[ChunkId],
    ) -> Result<Vec<ChunkRecord>, VectorError> {
        let view = self.view(collection).await;
        let view = view.map_err(|error| error.of(collection, "reading"))?;
        view.chunks(ids).await
    }

    async fn count(&self, collection: &CollectionRef) -> Result<u64, VectorError> {
        let view = self.view(collection).await;
        Ok(view
            .map_err(|error| error.of(collection, "counting"))?
            .vector_count())
    }

    async fn scan(
        &self,
        collection: &CollectionRef,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Option<ChunkStream>, VectorError> {
        let view = self.view(collection).await;
        let view = view.map_err(|error| error.of(collection, "scanning"))?;
        let scan = view.scan(columns, filter_sql, limit).await?;
        // The splits stay on the disk until the last batch has been read.
        Ok(scan.map(|scan| ChunkStream {
            schema: scan.schema,
            batches: Box::pin(Held {
                inner: scan.batches,
                _view: view,
            }),
        }))
    }

    async fn schema(&self, collection: &CollectionRef) -> Result<Option<SchemaRef>, VectorError> {
        let view = self.view(collection).await;
        let view = view.map_err(|error| error.of(collection, "opening"))?;
        Ok(view.dims().map(stored_schema))
    }

    async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), VectorError> {
        let dropped = SplitStore::drop_collection(self, collection).await;
        dropped.map_err(|error| error.of(collection, "dropping"))
    }

    async fn collections(&self) -> Result<Vec<CollectionRef>, VectorError> {
        let collections = SplitStore::collections(self).await;
        collections.map_err(|error| VectorError::Directory {
            dir: "the catalog".to_owned(),
            action: "listing the collections",
            source: Box::new(error),
        })
    }

    /// Merges as often as it is due.
    async fn optimize(&self, collection: &CollectionRef) -> Result<OptimizeReport, VectorError> {
        let merged = self.merge(collection).await;
        merged.map_err(|error| error.of(collection, "merging"))
    }
}

/// A stream and what must live as long.
struct Held<S> {
    inner: S,
    _view: Arc<SplitView>,
}

impl<S: futures::Stream + Unpin> futures::Stream for Held<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::pin::Pin::new(&mut self.inner).poll_next(context)
    }
}
