//! The embedded form of the indexes: two stores of one process, changed apart and shown together.
//!
//! The vector store and the full-text index commit one after the other; a search that took one before and the other
//! after would see two versions of a document, or none. So searches take a [`View`]: one snapshot of each, of the same
//! checkpoint.
//!
//! ```text
//!  sink prepares:      stage(c)     search stays on the snapshots of now
//!                      apply to the vector store (durable), apply to the full-text index (in memory)
//!  all are prepared:   publish(c)   the full-text commit, which names the version of the vector store;
//!                                   then search takes new snapshots of both
//!  the log's commit follows
//! ```
//!
//! After a crash between the two, the full-text index is the one behind, and it says with which version of the vector
//! store it belongs together: [`Pair::recover`] keeps search on that pair until the pipeline has replayed what was
//! not committed ([`Pair::recovered`]).
//!
//! What goes into the indexes is the sinks' business, ranking is retrieval's. One pipeline writes a collection at a time.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;
use va_catalog::CollectionRef;
use va_fulltext::TextIndex;
use va_vector::VectorStore;

use crate::indexes::{IndexError, View, text_error, vector_error};

/// The token of a full-text commit.
#[derive(Serialize, Deserialize)]
struct Token {
    /// For people who look into the files.
    checkpoint: String,
    /// The version of the vector store that holds the same documents; `None` when it has no such collection.
    vectors: Option<u64>,
}

/// Why search stays on old snapshots.
enum Pin {
    /// A checkpoint is changing the indexes.
    Staged(View),
    /// A crash left one index ahead.
    Recovering(View),
}

impl Pin {
    fn view(&self) -> &View {
        match self {
            Self::Staged(view) | Self::Recovering(view) => view,
        }
    }
}

/// A vector store and a full-text index.
pub(crate) struct Pair {
    pub vectors: Arc<dyn VectorStore>,
    pub texts: Arc<dyn TextIndex>,
    pinned: RwLock<HashMap<CollectionRef, Pin>>,
}

impl Pair {
    pub fn new(vectors: Arc<dyn VectorStore>, texts: Arc<dyn TextIndex>) -> Self {
        Self {
            vectors,
            texts,
            pinned: RwLock::default(),
        }
    }

    /// The collection as searches see it.
    pub async fn view(&self, collection: &CollectionRef) -> View {
        let pinned = self.pinned.read().await;
        match pinned.get(collection) {
            Some(pin) => pin.view().clone(),
            // The lock is held while both are taken: nobody can stage in between.
            None => self.newest(collection).await,
        }
    }

    /// Searches stay on what they see now until [`Pair::publish`]. A sink calls it before it changes the
    /// collection; the second sink of a checkpoint, or a repeated checkpoint, finds it done.
    pub async fn stage(&self, collection: &CollectionRef) {
        let mut pinned = self.pinned.write().await;
        let view = match pinned.remove(collection) {
            Some(pin) => pin.view().clone(),
            None => self.newest(collection).await,
        };
        pinned.insert(collection.clone(), Pin::Staged(view));
    }

    /// Commits the full-text side of the collections and shows both sides to searches, collection by collection.
    ///
    /// To be called when every sink of the checkpoint has applied its changes. After an error nothing new is shown;
    /// roll the full-text index back, apply the checkpoint again and repeat.
    pub async fn publish(
        &self,
        collections: &[CollectionRef],
        checkpoint: &str,
    ) -> Result<(), IndexError> {
        for collection in collections {
            let vectors = self.vectors.snapshot(collection).await;
            let vectors = vectors.map_err(vector_error)?.map(|at| at.version());
            let token = Token {
                checkpoint: checkpoint.to_owned(),
                vectors,
            };
            // A pipeline may write vectors only; then there is no index to commit to.
            let texts = self.texts.snapshot(collection).await;
            if texts.map_err(text_error)?.is_some() {
                let token = serde_json::to_string(&token).map_err(text_error)?;
                self.texts
                    .commit(collection, &token)
                    .await
                    .map_err(text_error)?;
            }
            self.pinned.write().await.remove(collection);
        }
        Ok(())
    }

    /// After a start: keeps searches on the pairs that belong together. Returns the collections where one index is
    /// ahead of the other.
    pub async fn recover(&self) -> Result<Vec<CollectionRef>, IndexError> {
        let mut ahead = Vec::new();
        for collection in self.texts.collections().await.map_err(text_error)? {
            // An index that cannot be read is told by the search that needs it.
            let Ok(Some(token)) = self.texts.committed(&collection).await else {
                continue;
            };
            let Ok(Token {
                vectors: Some(version),
                ..
            }) = serde_json::from_str(&token)
            else {
                continue;
            };
            let newest = self.newest(&collection).await;
            if !matches!(&newest.vectors, Ok(Some(at)) if at.version() != version) {
                continue;
            }
            match self.vectors.snapshot_at(&collection, version).await {
                Ok(Some(at)) => {
                    let view = View {
                        vectors: Ok(Some(at)),
                        texts: newest.texts,
                    };
                    let mut pinned = self.pinned.write().await;
                    pinned.insert(collection.clone(), Pin::Recovering(view));
                    ahead.push(collection);
                }
                Ok(None) => {
                    tracing::warn!(%collection, version, "the vector store does not keep the version of the last checkpoint; search may show documents twice until the pipeline has caught up");
                }
                Err(error) => {
                    tracing::warn!(%collection, version, %error, "open the last checkpoint")
                }
            }
        }
        Ok(ahead)
    }

    /// Ends what [`Pair::recover`] began: everything that was not committed has been done again.
    pub async fn recovered(&self) {
        let mut pinned = self.pinned.write().await;
        pinned.retain(|_, pin| matches!(pin, Pin::Staged(_)));
    }

    /// Removes a collection from both indexes. Not an error if it is in neither.
    pub async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), IndexError> {
        // Its files cannot go while a view of it is held here.
        self.pinned.write().await.remove(collection);
        self.vectors
            .drop_collection(collection)
            .await
            .map_err(vector_error)?;
        self.texts
            .drop_collection(collection)
            .await
            .map_err(text_error)
    }

    async fn newest(&self, collection: &CollectionRef) -> View {
        View {
            vectors: self
                .vectors
                .snapshot(collection)
                .await
                .map_err(vector_error),
            texts: self.texts.snapshot(collection).await.map_err(text_error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
    use arrow::datatypes::{DataType, Field};
    use arrow::record_batch::RecordBatch;
    use va_catalog::chunk::batch_of;
    use va_catalog::{
        ChunkId, ChunkRecord, CollectionName, DocumentId, DocumentRef, Filter, TenantId, Version,
        chunk_schema,
    };
    use va_fulltext::TantivyIndex;
    use va_vector::{LanceStore, Metric, VectorHit};

    const VECTOR: [f32; 2] = [0.6, 0.8];

    fn collection() -> CollectionRef {
        CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        }
    }

    fn document() -> DocumentId {
        DocumentId::of(&collection(), "a.md")
    }

    /// One document of one chunk, as `embed` emits it.
    fn rows(version: u32) -> RecordBatch {
        let record = ChunkRecord {
            id: ChunkId::of(&collection(), document(), Version(version), 0),
            document: DocumentRef {
                id: document(),
                name: "a.md".into(),
                uri: "a.md".into(),
                title: None,
                version: Version(version),
            },
            index: 0,
            count: 1,
            title_path: vec![],
            page: None,
            start: 0,
            end: 1,
            text: format!("zebra of version {version}"),
            tokens: 1,
            tags: vec![],
        };
        let batch = batch_of(&collection(), &[record]).expect("a batch");
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let values = Arc::new(Float32Array::from(VECTOR.to_vec()));
        let vectors = FixedSizeListArray::try_new(item, 2, values, None).expect("vectors");
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(vectors) as ArrayRef);
        RecordBatch::try_new(chunk_schema(Some(2)), columns).expect("a batch")
    }

    async fn open(dir: &Path) -> Pair {
        let vectors = LanceStore::open(dir.join("vectors"))
            .await
            .expect("a store");
        let texts = TantivyIndex::open(dir.join("texts")).expect("an index");
        Pair::new(Arc::new(vectors), Arc::new(texts))
    }

    async fn apply_vectors(indexes: &Pair, version: u32) {
        indexes
            .vectors
            .apply(&collection(), &[document()], &rows(version))
            .await
            .expect("applied");
    }

    async fn apply_texts(indexes: &Pair, version: u32) {
        indexes
            .texts
            .apply(&collection(), &[document()], &rows(version))
            .await
            .expect("applied");
    }

    /// The versions that a search finds in each index. What the view finds near is what the vector store finds, wherever it is
    /// read: from the index of texts, from the vector store where that one is behind, and without that one.
    async fn seen(indexes: &Pair) -> (Vec<u32>, Vec<u32>) {
        let view = indexes.view(&collection()).await;
        let alone = View {
            vectors: view.vectors.clone(),
            texts: Ok(None),
        };
        let (metric, filter) = (Metric::Cosine, &Filter::default());
        let near = async |view: &View, known: &[VectorHit]| {
            let known = known.iter().map(|hit| (hit.chunk.id, &hit.chunk));
            let known: HashMap<ChunkId, &ChunkRecord> = known.collect();
            let near = view.nearest(&VECTOR, 10, metric, filter).await;
            match near.expect("a readable store") {
                Some(near) => view.read(near, &known).await.expect("hits"),
                None => vec![],
            }
        };
        let near_both = near(&view, &[]).await;
        assert_eq!(near(&alone, &[]).await, near_both);
        // What is known already is not read again, and is the same.
        let near = near(&view, &near_both).await;
        assert_eq!(near, near_both);
        let vectors = match view.vectors.expect("a readable store") {
            Some(at) => at
                .search(&VECTOR, 10, Metric::Cosine, &Filter::default())
                .await
                .expect("hits"),
            None => vec![],
        };
        let texts = match view.texts.expect("a readable index") {
            Some(at) => at
                .search("zebra", 10, &Filter::default())
                .await
                .expect("hits"),
            None => vec![],
        };
        assert_eq!(vectors, near);
        let of = |chunk: &ChunkRecord| chunk.document.version.0;
        (
            vectors.iter().map(|hit| of(&hit.chunk)).collect(),
            texts.iter().map(|hit| of(&hit.chunk)).collect(),
        )
    }

    async fn publish(indexes: &Pair) {
        let published = indexes.publish(&[collection()], "test").await;
        published.expect("published");
    }

    async fn checkpoint(indexes: &Pair, version: u32) {
        indexes.stage(&collection()).await;
        apply_texts(indexes, version).await;
        apply_vectors(indexes, version).await;
        publish(indexes).await;
    }

    #[tokio::test]
    async fn both_sides_change_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let indexes = open(dir.path()).await;
        assert_eq!(seen(&indexes).await, (vec![], vec![]));
        checkpoint(&indexes, 1).await;
        assert_eq!(seen(&indexes).await, (vec![1], vec![1]));

        indexes.stage(&collection()).await;
        apply_vectors(&indexes, 2).await;
        assert_eq!(seen(&indexes).await, (vec![1], vec![1]));
        // The other sink of the same checkpoint stages too.
        indexes.stage(&collection()).await;
        apply_texts(&indexes, 2).await;
        assert_eq!(seen(&indexes).await, (vec![1], vec![1]));
        publish(&indexes).await;
        assert_eq!(seen(&indexes).await, (vec![2], vec![2]));
    }

    #[tokio::test]
    async fn a_crash_between_the_two_is_seen_by_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let indexes = open(dir.path()).await;
        checkpoint(&indexes, 1).await;
        indexes.stage(&collection()).await;
        apply_texts(&indexes, 2).await;
        apply_vectors(&indexes, 2).await;
        drop(indexes);

        let indexes = open(dir.path()).await;
        assert_eq!(seen(&indexes).await, (vec![2], vec![1]), "nothing to mend");
        let ahead = indexes.recover().await.expect("recovered");
        assert_eq!(ahead, [collection()]);
        assert_eq!(seen(&indexes).await, (vec![1], vec![1]));
        // The pipeline does it again. Until it is published, search stays where it was, also after `recovered`.
        indexes.stage(&collection()).await;
        indexes.recovered().await;
        apply_vectors(&indexes, 2).await;
        apply_texts(&indexes, 2).await;
        assert_eq!(seen(&indexes).await, (vec![1], vec![1]));
        publish(&indexes).await;
        assert_eq!(seen(&indexes).await, (vec![2], vec![2]));
        assert_eq!(indexes.recover().await.expect("recovered"), []);
    }

    #[tokio::test]
    async fn optimizing_is_no_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let indexes = open(dir.path()).await;
        for version in 1..=3 {
            checkpoint(&indexes, version).await;
        }
        let optimized = indexes.vectors.optimize(&collection()).await;
        optimized.expect("optimized");
        assert_eq!(seen(&indexes).await, (vec![3], vec![3]));
        drop(indexes);

        // Another version of the table, the same rows: search may go on with either.
        let indexes = open(dir.path()).await;
        indexes.recover().await.expect("recovered");
        assert_eq!(seen(&indexes).await, (vec![3], vec![3]));
        indexes.recovered().await;
        assert_eq!(seen(&indexes).await, (vec![3], vec![3]));
    }
}
