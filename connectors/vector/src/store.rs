//! The seam: what any vector store must do.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, CollectionRef, DocumentId, Filter};

use crate::VectorError;

/// The most hits that one search returns.
pub const K_MAX: usize = 1000;

/// How near two vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The angle between them; a hit's score is the cosine, 1 for the same direction, -1 for the opposite.
    #[default]
    Cosine,
    /// The Euclidean distance; a hit's score is its negative, 0 for the same vector.
    L2,
}

/// One found chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorHit {
    pub chunk: ChunkRecord,
    /// Greater is better; see [`Metric`].
    pub score: f32,
}

/// Stored rows as they come from the disk.
pub struct ChunkStream {
    /// The schema of every batch.
    pub schema: SchemaRef,
    pub batches: BoxStream<'static, Result<RecordBatch, VectorError>>,
}

/// What [`VectorStore::optimize`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OptimizeReport {
    pub fragments_before: usize,
    pub fragments_after: usize,
    /// Old versions removed, and the bytes this gave back.
    pub versions_removed: u64,
    pub bytes_removed: u64,
    /// Indexes that were built, or extended by new rows.
    pub indexes: Vec<String>,
}

/// A collection as it was at one moment: what is written afterwards does not show in it.
///
/// Hold it for the length of a search, not for minutes: while it is held, replaced rows keep their place on the disk.
#[async_trait]
pub trait VectorSnapshot: Send + Sync {
    /// Names this state: [`VectorStore::snapshot_at`] finds it again, also in another process, for as long as it is kept.
    fn version(&self) -> u64;

    /// The `k` (up to [`K_MAX`]) chunks nearest to `query` among those that match `filter`, best first.
    async fn search(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError>;

    /// The chunks that [`VectorSnapshot::search`] would find, by their ids, with their scores, best first. Cheaper: nothing
    /// else of them is read.
    async fn nearest(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<(ChunkId, f32)>, VectorError>;

    /// Those of the chunks that are here.
    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, VectorError>;

    /// Every chunk, to compare with the other indexes. In no order.
    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError>;
}

/// Chunks with their vectors, by collection.
///
/// A collection exists from the first rows on; reading one that does not exist finds nothing.
#[async_trait]
pub trait VectorStore: Send + Sync {
    /// The collection as last applied; `None` if it does not exist.
    async fn snapshot(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError>;

    /// The collection at a version that [`VectorSnapshot::version`] named; `None` if that is not kept any more.
    async fn snapshot_at(
        &self,
        collection: &CollectionRef,
        version: u64,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError>;

    /// Replaces whole documents, atomically and idempotently: afterwards the collection holds of `documents` exactly
    /// the `chunk` rows in `rows`.
    ///
    /// `rows` are of `chunk_schema(Some(dims))`; rows with another `op` are ignored, and every chunk must belong to one
    /// of `documents`. A document without rows is removed. A reader sees the old chunks of a document or the new ones,
    /// never both and never neither. Durable on return; after an error the call can be repeated.
    async fn apply(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<(), VectorError>;

    /// [`VectorSnapshot::search`] in the newest state.
    async fn search(
        &self,
        collection: &CollectionRef,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError> {
        match self.snapshot(collection).await? {
            Some(snapshot) => snapshot.search(query, k, metric, filter).await,
            None => Ok(Vec::new()),
        }
    }

    /// The chunks with these ids, in the order of `ids`; ids that are not stored are left out.
    async fn chunks(
        &self,
        collection: &CollectionRef,
        ids: &[ChunkId],
    ) -> Result<Vec<ChunkRecord>, VectorError>;

    /// How many chunks the collection has.
    async fn count(&self, collection: &CollectionRef) -> Result<u64, VectorError>;

    /// Rows that match `filter_sql` (SQL over the stored columns), at most `limit`.
    ///
    /// `columns` in the order asked for; `None` is every column but `vector`. `None` is returned for a collection that
    /// does not exist.
    async fn scan(
        &self,
        collection: &CollectionRef,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Option<ChunkStream>, VectorError>;

    /// The stored columns, `vector` last; `None` for a collection that does not exist.
    async fn schema(&self, collection: &CollectionRef) -> Result<Option<SchemaRef>, VectorError>;

    /// Removes a collection with its files. Not an error if there is none.
    async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), VectorError>;

    /// Every collection, in order.
    async fn collections(&self) -> Result<Vec<CollectionRef>, VectorError>;

    /// Merges small files, removes old versions, and builds or extends indexes where that pays off.
    ///
    /// Searches and writes go on meanwhile. Call it when a bulk load has ended, and now and then.
    async fn optimize(&self, collection: &CollectionRef) -> Result<OptimizeReport, VectorError>;
}
