//! Both indexes of every collection: written by sinks, published by checkpoints, searched as one.
//!
//! ```text
//!  sink prepares:      stage(c)     search stays on the state of now
//!                      apply_vectors, apply_texts
//!  all are prepared:   publish(c)   search takes the new state of both
//!  the log's commit follows
//! ```
//!
//! A search takes a [`View`]: both indexes as of the same checkpoint. Two forms keep that promise. Embedded, a process has
//! two stores of its own and ties their commits together (`pair.rs`). Shared, any number of processes publish splits, which
//! hold both sides (`va-splits`).
//!
//! What goes into the indexes is the sinks' business, ranking is retrieval's.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use va_catalog::{ChunkId, ChunkRecord, CollectionRef, DocumentId, Filter};
use va_fulltext::{TextIndex, TextSnapshot};
use va_splits::{SplitStore, SplitWriter};
use va_vector::{Metric, VectorHit, VectorSnapshot, VectorStore};

use crate::pair::Pair;

/// Why an index could not do its part; the text says which and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{index}: {message}")]
pub struct IndexError {
    /// `vector store`, `full-text index` or `shared index`.
    pub index: &'static str,
    pub message: String,
}

pub(crate) fn vector_error(error: impl std::fmt::Display) -> IndexError {
    IndexError {
        index: "vector store",
        message: error.to_string(),
    }
}

pub(crate) fn text_error(error: impl std::fmt::Display) -> IndexError {
    IndexError {
        index: "full-text index",
        message: error.to_string(),
    }
}

fn shared_error(error: impl std::fmt::Display) -> IndexError {
    IndexError {
        index: "shared index",
        message: error.to_string(),
    }
}

/// One side of a [`View`]: `None` when the collection has nothing there, an error when it cannot be read. The other
/// side answers all the same.
pub type Side<T> = Result<Option<Arc<T>>, IndexError>;

/// A collection in both indexes, as of one checkpoint.
#[derive(Clone)]
pub struct View {
    pub vectors: Side<dyn VectorSnapshot>,
    pub texts: Side<dyn TextSnapshot>,
}

/// What is nearest to a vector, as [`View::nearest`] finds it.
pub enum Near {
    /// Best first, yet to be read.
    Named(Vec<(ChunkId, f32)>),
    /// What could be read in one go.
    Read(Vec<VectorHit>),
}

impl View {
    /// The chunks nearest to `query`, as [`VectorSnapshot::search`] finds them; `None` when there are no vectors.
    pub async fn nearest(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Option<Near>, IndexError> {
        let Some(vectors) = self.vectors.clone()? else {
            return Ok(None);
        };
        let near = match &self.texts {
            Ok(Some(_)) => {
                let near = vectors.nearest(query, k, metric, filter).await;
                near.map(Near::Named)
            }
            _ => {
                let hits = vectors.search(query, k, metric, filter).await;
                hits.map(Near::Read)
            }
        };
        near.map(Some).map_err(vector_error)
    }

    /// The chunks that are near, but for those that are `known` already.
    ///
    /// The full-text side holds each chunk whole, in one place; the vector store would collect it from a column for each of
    /// its fields. So chunks are read there, and from the vector store only what is missing there, or when that side cannot
    /// be read.
    pub async fn read(
        &self,
        near: Near,
        known: &HashMap<ChunkId, &ChunkRecord>,
    ) -> Result<Vec<VectorHit>, IndexError> {
        let near = match near {
            Near::Read(hits) => return Ok(hits),
            Near::Named(near) => near,
        };
        let ids = near.iter().map(|(id, _)| *id);
        let unknown: Vec<ChunkId> = ids.filter(|id| !known.contains_key(id)).collect();
        let mut chunks = match (&self.texts, unknown.is_empty()) {
            (Ok(Some(texts)), false) => texts.find(&unknown).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "chunks are read from the vector store instead");
                HashMap::new()
            }),
            _ => HashMap::new(),
        };
        let missing: Vec<ChunkId> = unknown
            .into_iter()
            .filter(|id| !chunks.contains_key(id))
            .collect();
        if let (Some(vectors), false) = (self.vectors.clone()?, missing.is_empty()) {
            chunks.extend(vectors.find(&missing).await.map_err(vector_error)?);
        }
        let hits = near.into_iter().filter_map(|(id, score)| {
            let chunk = chunks.remove(&id);
            let chunk = chunk.or_else(|| known.get(&id).copied().cloned())?;
            Some(VectorHit { chunk, score })
        });
        Ok(hits.collect())
    }
}

/// The two indexes. Shared by the sinks that write, the runtime that publishes and the searches that read.
pub struct Indexes {
    /// The side of the vectors, for SQL and upkeep.
    pub vectors: Arc<dyn VectorStore>,
    form: Form,
}

enum Form {
    Embedded(Pair),
    Shared(SplitWriter),
}

impl Indexes {
    /// Two stores that this process has to itself. One pipeline writes a collection at a time.
    pub fn new(vectors: Arc<dyn VectorStore>, texts: Arc<dyn TextIndex>) -> Self {
        Self {
            vectors: vectors.clone(),
            form: Form::Embedded(Pair::new(vectors, texts)),
        }
    }

    /// Indexes that other processes write and search too.
    pub fn shared(store: &Arc<SplitStore>) -> Self {
        Self {
            vectors: store.clone(),
            form: Form::Shared(store.writer()),
        }
    }

    /// The same indexes for the sinks and checkpoints of one task: what it applied and did not publish goes with it, and is
    /// never published by another.
    pub fn for_task(self: &Arc<Self>) -> Arc<Self> {
        match &self.form {
            // The text side is rolled back by its sink, the vectors are replaced by the repetition.
            Form::Embedded(_) => self.clone(),
            Form::Shared(writer) => Arc::new(Self::shared(writer.store())),
        }
    }

    /// The collection as searches see it.
    pub async fn view(&self, collection: &CollectionRef) -> View {
        let writer = match &self.form {
            Form::Embedded(pair) => return pair.view(collection).await,
            Form::Shared(writer) => writer,
        };
        match writer.store().view(collection).await {
            Ok(view) => View {
                vectors: Ok(view
                    .has_vectors()
                    .then(|| view.clone() as Arc<dyn VectorSnapshot>)),
                texts: Ok((view.splits() > 0).then_some(view as Arc<dyn TextSnapshot>)),
            },
            Err(error) => {
                let error = shared_error(error);
                View {
                    vectors: Err(error.clone()),
                    texts: Err(error),
                }
            }
        }
    }

    /// Searches stay on what they see now until [`Indexes::publish`]. A sink calls it before it changes the
    /// collection; the second sink of a checkpoint, or a repeated checkpoint, finds it done.
    pub async fn stage(&self, collection: &CollectionRef) {
        match &self.form {
            Form::Embedded(pair) => pair.stage(collection).await,
            // Nothing is visible before it is published.
            Form::Shared(_) => {}
        }
    }

    /// Replaces whole documents on the side of the vectors, see [`VectorStore::apply`]. `rows` also have the `document` or
    /// `delete` row of each document.
    pub async fn apply_vectors(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: RecordBatch,
    ) -> Result<(), IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair
                .vectors
                .apply(collection, documents, &rows)
                .await
                .map_err(vector_error)?,
            Form::Shared(writer) => writer.apply_vectors(collection, rows),
        }
        Ok(())
    }

    /// Replaces whole documents on the full-text side, see [`TextIndex::apply`]. `rows` as for [`Indexes::apply_vectors`].
    pub async fn apply_texts(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: RecordBatch,
    ) -> Result<(), IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair
                .texts
                .apply(collection, documents, &rows)
                .await
                .map_err(text_error)?,
            Form::Shared(writer) => writer.apply_texts(collection, rows),
        }
        Ok(())
    }

    /// Forgets what a failed task before this one applied to the full-text side and did not publish.
    pub async fn rollback_texts(&self, collection: &CollectionRef) -> Result<(), IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair.texts.rollback(collection).await.map_err(text_error),
            // It went with the task.
            Form::Shared(_) => Ok(()),
        }
    }

    /// Shows what was applied to the collections, both sides at once, collection by collection, and makes it durable.
    ///
    /// To be called when every sink of the checkpoint has applied its changes. After an error nothing new is shown; roll
    /// back, apply the checkpoint again and repeat.
    pub async fn publish(
        &self,
        collections: &[CollectionRef],
        checkpoint: &str,
    ) -> Result<(), IndexError> {
        let writer = match &self.form {
            Form::Embedded(pair) => return pair.publish(collections, checkpoint).await,
            Form::Shared(writer) => writer,
        };
        for collection in collections {
            writer.publish(collection).await.map_err(shared_error)?;
        }
        Ok(())
    }

    /// After a start: keeps searches on what belongs together. Returns the collections where one index is ahead of the
    /// other.
    pub async fn recover(&self) -> Result<Vec<CollectionRef>, IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair.recover().await,
            Form::Shared(_) => Ok(Vec::new()),
        }
    }

    /// Ends what [`Indexes::recover`] began: everything that was not committed has been done again.
    pub async fn recovered(&self) {
        match &self.form {
            Form::Embedded(pair) => pair.recovered().await,
            Form::Shared(_) => {}
        }
    }

    /// Removes a collection from both indexes. Not an error if it is in neither.
    pub async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair.drop_collection(collection).await,
            Form::Shared(writer) => {
                let dropped = writer.store().drop_collection(collection).await;
                dropped.map_err(shared_error)
            }
        }
    }

    /// The collections of the full-text side, in order.
    pub async fn text_collections(&self) -> Result<Vec<CollectionRef>, IndexError> {
        match &self.form {
            Form::Embedded(pair) => pair.texts.collections().await.map_err(text_error),
            Form::Shared(writer) => writer.store().collections().await.map_err(shared_error),
        }
    }

    /// Whether other processes may write them.
    pub fn is_shared(&self) -> bool {
        matches!(self.form, Form::Shared(_))
    }
}
