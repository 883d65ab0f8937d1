//! The seam: what every full-text store must do, whichever engine is behind it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, CollectionRef, DocumentId, Filter, InvalidName};

/// A chunk that matched and how well. Scores compare within one reply only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextHit {
    pub chunk: ChunkRecord,
    pub score: f32,
}

/// Most hits that one search may ask for.
pub const HITS_MAX: usize = 10_000;

/// A collection's index as of one commit.
#[async_trait]
pub trait TextSnapshot: Send + Sync {
    /// The `k` best matches, best first. `query` is plain words in any language, without syntax.
    ///
    /// Empty for a query without letters or digits. `k` is at most [`HITS_MAX`].
    async fn search(
        &self,
        query: &str,
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<TextHit>, TextError>;

    /// What [`TextSnapshot::search`] finds for each of the queries, in their order.
    ///
    /// One query after the other, so that the caller decides how many processors they may take.
    async fn search_each(
        &self,
        queries: &[&str],
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<Vec<TextHit>>, TextError> {
        let mut found = Vec::with_capacity(queries.len());
        for query in queries {
            found.push(self.search(query, k, filter).await?);
        }
        Ok(found)
    }

    /// Those of the chunks that are here.
    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, TextError>;

    /// How many chunks there are.
    fn count(&self) -> u64;

    /// Every chunk, in no order: to compare with the vector store.
    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, TextError>;
}

/// A full-text index of chunks, one per collection.
///
/// Writing is `apply` any number of times, then `commit`: what was applied becomes durable, visible and tied to the
/// token in one step. A writer begins with `rollback`, then asks [`TextIndex::committed`] from where to apply again;
/// applying a document twice leaves it there once. One writer a collection; anyone may search at any time.
#[async_trait]
pub trait TextIndex: Send + Sync {
    /// Replaces whole documents: removes every chunk of `documents`, then adds those of `rows` (rows of
    /// [`va_catalog::chunk_schema`] with `op` = `chunk`; others are ignored).
    ///
    /// Chunks of a document that is not in `documents` are added to those it has, so that a long document may come in
    /// several batches. Nothing is visible or durable before `commit`. Rows of another collection are refused, and
    /// then nothing of the batch is applied.
    async fn apply(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<(), TextError>;

    /// Makes everything applied so far durable and visible, together with `token`, which means something to the
    /// caller only (the id or the offsets of a checkpoint).
    async fn commit(&self, collection: &CollectionRef, token: &str) -> Result<(), TextError>;

    /// Forgets what was applied since the last commit, as a crash would. After a failed `apply` or `commit` this must
    /// come first: until then both refuse to work.
    async fn rollback(&self, collection: &CollectionRef) -> Result<(), TextError>;

    /// The token of the last commit; `None` for a collection without one.
    async fn committed(&self, collection: &CollectionRef) -> Result<Option<String>, TextError>;

    /// The collection as last committed, fixed: later commits do not show in it. `None` if it was never written.
    async fn snapshot(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<dyn TextSnapshot>>, TextError>;

    /// [`TextSnapshot::search`] in the newest state.
    async fn search(
        &self,
        collection: &CollectionRef,
        query: &str,
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<TextHit>, TextError> {
        if k > HITS_MAX {
            return Err(TextError::TooManyHits { k });
        }
        match self.snapshot(collection).await? {
            Some(snapshot) => snapshot.search(query, k, filter).await,
            None => Ok(Vec::new()),
        }
    }

    /// How many chunks are visible.
    async fn count(&self, collection: &CollectionRef) -> Result<u64, TextError> {
        let snapshot = self.snapshot(collection).await?;
        Ok(snapshot.map_or(0, |snapshot| snapshot.count()))
    }

    /// Removes the collection with its token. Dropping what is not there is no error.
    async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), TextError>;

    /// The collections that have an index, sorted.
    async fn collections(&self) -> Result<Vec<CollectionRef>, TextError>;
}

/// Why the full-text index could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The caller's mistake: rows that are not chunk rows. A retry does not help.
    #[error("chunk rows: {0}")]
    Rows(#[from] ArrowError),
    /// The caller's mistake: rows of another collection.
    #[error("a chunk row of collection `{found}` was sent to the index of `{expected}`")]
    WrongCollection { expected: String, found: String },
    /// The caller's mistake.
    #[error("cannot return {k} hits, ask for at most {HITS_MAX}")]
    TooManyHits { k: usize },
    /// Another process writes this index. A retry helps once it has ended.
    #[error(
        "the full-text index of `{collection}` is being written by another process; stop it or use another data directory"
    )]
    Busy { collection: CollectionRef },
    /// The index was made by another version of the analysis.
    #[error(
        "the full-text index of `{collection}` was built with an older text analysis; drop it and index the collection again"
    )]
    Outdated { collection: CollectionRef },
    /// A split was made by another version of the analysis.
    #[error(
        "the full-text index in `{path}` was built with another text analysis; index its collection again",
        path = path.display()
    )]
    Foreign { path: PathBuf },
    /// A stored chunk cannot be read or written as JSON: damage, or our mistake.
    #[error("stored chunk: {0}")]
    Record(#[source] serde_json::Error),
    /// A stored id cannot be read: damage.
    #[error("stored id: {0}")]
    Id(#[from] InvalidName),
    /// An earlier write failed, so what was applied since the last commit is gone.
    #[error(
        "an earlier write to the full-text index of `{collection}` failed; roll back and apply again from the last commit"
    )]
    Lost { collection: CollectionRef },
    /// The file system refused.
    #[error("{doing} `{path}`: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The engine failed: a full disk or damaged files.
    #[error("full-text index: {0}")]
    Engine(#[from] tantivy::TantivyError),
    /// A blocking task died: our mistake.
    #[error("full-text task: {0}")]
    Task(#[from] tokio::task::JoinError),
}
