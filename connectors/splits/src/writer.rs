//! The writing side: what the sinks of one task hand over between two checkpoints, and publishing it.
//!
//! A task has a writer of its own. So what a failed task left goes with it, and two tasks that write into one collection,
//! of one process or of two, publish a split each.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use va_catalog::chunk::{strings, u32s};
use va_catalog::store::{NewSplit, Published, SplitDocument};
use va_catalog::{ChunkOp, CollectionRef, DocumentId, Version};
use va_connectors::objects::StoredObject;
use va_fulltext::TextSplit;

use crate::SplitError;
use crate::cache::NewDir;
use crate::pack::{List, pack};
use crate::store::{SplitStore, lock};

/// Gathers the changes of one task and publishes them.
pub struct SplitWriter {
    store: Arc<SplitStore>,
    drafts: Mutex<BTreeMap<CollectionRef, Draft>>,
}

/// What a checkpoint changes in a collection: rows as they came, on each side.
#[derive(Default, Clone)]
struct Draft {
    texts: Vec<RecordBatch>,
    vectors: Vec<RecordBatch>,
}

impl SplitWriter {
    pub(crate) fn new(store: Arc<SplitStore>) -> Self {
        Self {
            store,
            drafts: Mutex::default(),
        }
    }

    /// Where it is written to.
    pub fn store(&self) -> &Arc<SplitStore> {
        &self.store
    }

    /// Takes rows for the full-text side: for each document a `document` or `delete` row, which tells its version, and its
    /// `chunk` rows. Of a document that comes twice the last state counts. Nothing is visible before
    /// [`SplitWriter::publish`].
    pub fn apply_texts(&self, collection: &CollectionRef, rows: RecordBatch) {
        let mut drafts = lock(&self.drafts);
        drafts
            .entry(collection.clone())
            .or_default()
            .texts
            .push(rows);
    }

    /// Takes rows for the side of the vectors, in the same way.
    pub fn apply_vectors(&self, collection: &CollectionRef, rows: RecordBatch) {
        let mut drafts = lock(&self.drafts);
        drafts
            .entry(collection.clone())
            .or_default()
            .vectors
            .push(rows);
    }

    /// Makes what was taken for the collection visible, durably and all at once. `None` when that was nothing, or when the
    /// collection is gone. After an error nothing is visible, and it can be repeated.
    pub async fn publish(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Published>, SplitError> {
        let Some(draft) = lock(&self.drafts).get(collection).cloned() else {
            return Ok(None);
        };
        let started = Instant::now();
        let texts = last_states(&draft.texts)?;
        let vectors = last_states(&draft.vectors)?;
        let mut documents = BTreeMap::new();
        for rows in texts.iter().chain(&vectors) {
            documents_of(rows, &mut documents)?;
        }
        let documents: Vec<SplitDocument> = documents.into_values().collect();
        let (split, kept) = match self.build(collection, &documents, texts, vectors).await? {
            Some((split, kept)) => (Some(split), Some(kept)),
            None => (None, None),
        };
        let catalog = &self.store.catalog;
        let published = catalog
            .publish_split(collection, split.as_ref(), &documents)
            .await?;
        // The catalog has it, or does not want it.
        drop(kept);
        lock(&self.drafts).remove(collection);
        let Some(published) = published else {
            tracing::warn!(%collection, documents = documents.len(), "documents of a collection that is gone");
            return Ok(None);
        };
        self.store.want(collection, published.seq);
        let rows = split.as_ref().map_or(0, |split| split.rows);
        metrics::counter!("va_splits_published_total").increment(u64::from(split.is_some()));
        metrics::counter!("va_splits_published_rows_total").increment(rows);
        metrics::counter!("va_splits_published_bytes_total")
            .increment(split.as_ref().map_or(0, |split| split.bytes));
        metrics::counter!("va_splits_outrun_documents_total").increment(published.outrun);
        metrics::histogram!("va_splits_publish_seconds").record(started.elapsed().as_secs_f64());
        tracing::debug!(%collection, seq = published.seq, rows, outrun = published.outrun, "published a split");
        self.store.merge_if_due(collection).await?;
        Ok(Some(published))
    }

    /// Makes and uploads the split of these rows; `None` when no document has chunks.
    async fn build(
        &self,
        collection: &CollectionRef,
        documents: &[SplitDocument],
        texts: Option<RecordBatch>,
        vectors: Option<RecordBatch>,
    ) -> Result<Option<(NewSplit, StoredObject)>, SplitError> {
        if !documents.iter().any(|document| document.has_rows) {
            return Ok(None);
        }
        let store = &self.store;
        let new = store.cache.new_dir()?;
        let text_rows = texts.as_ref().map_or(Ok(0), chunk_rows)?;
        let write_texts = async {
            if let (Some(rows), true) = (texts, text_rows > 0) {
                let dir = new.texts();
                let write = move || {
                    make_dir(&dir)?;
                    TextSplit::write(&dir, &rows).map_err(SplitError::from)
                };
                tokio::task::spawn_blocking(write).await??;
            }
            Ok::<_, SplitError>(())
        };
        let ids: Vec<DocumentId> = documents.iter().map(|document| document.id).collect();
        let write_vectors = async {
            match &vectors {
                Some(rows) => {
                    let dir = new.vectors();
                    let dims = store
                        .cache
                        .vectors
                        .write(&dir, collection, &ids, rows)
                        .await?;
                    Ok::<_, SplitError>(dims)
                }
                None => Ok(None),
            }
        };
        let ((), dims) = tokio::try_join!(write_texts, write_vectors)?;
        let vector_rows = vectors.as_ref().map_or(Ok(0), chunk_rows)?;
        let rows = text_rows.max(vector_rows);
        store.upload(new, rows, dims).await.map(Some)
    }
}

impl SplitStore {
    /// Stores a finished split and keeps a copy of it here.
    pub(crate) async fn upload(
        &self,
        new: NewDir,
        rows: u64,
        dims: Option<usize>,
    ) -> Result<(NewSplit, StoredObject), SplitError> {
        let (new, list) = tokio::task::spawn_blocking(move || {
            let list = List::of(new.path())?;
            Ok::<_, SplitError>((new, list))
        })
        .await??;
        let object = pack(new.path(), &list)?;
        let stored = self.objects.put_stream(object, u64::MAX).await?;
        self.cache.adopt(new, &stored.hash, &list)?;
        let split = NewSplit {
            object: stored.hash.clone(),
            rows,
            bytes: stored.size,
            dims: dims.and_then(|dims| u32::try_from(dims).ok()),
        };
        Ok((split, stored))
    }
}

fn make_dir(dir: &Path) -> Result<(), SplitError> {
    std::fs::create_dir(dir).map_err(SplitError::io("create directory", dir))
}

/// The rows of each document as it came last.
fn last_states(batches: &[RecordBatch]) -> Result<Option<RecordBatch>, SplitError> {
    let [first, .., _] = batches else {
        return Ok(batches.first().cloned());
    };
    let mut seen: HashSet<String> = HashSet::new();
    let mut kept = Vec::with_capacity(batches.len());
    for batch in batches.iter().rev() {
        let ids = strings(batch, "document_id")?;
        let keep: BooleanArray = ids
            .iter()
            .map(|id| id.map(|id| !seen.contains(id)))
            .collect();
        seen.extend(ids.iter().flatten().map(str::to_owned));
        kept.push(filter_record_batch(batch, &keep)?);
    }
    kept.reverse();
    Ok(Some(concat_batches(&first.schema(), &kept)?))
}

/// What the rows say of each document, added to what the other side said.
fn documents_of(
    rows: &RecordBatch,
    documents: &mut BTreeMap<DocumentId, SplitDocument>,
) -> Result<(), SplitError> {
    let (ops, ids) = (strings(rows, "op")?, strings(rows, "document_id")?);
    let versions = u32s(rows, "version")?;
    for row in 0..rows.num_rows() {
        let invalid = |error: va_catalog::InvalidName| SplitError::Damaged(error.to_string());
        let id: DocumentId = ids.value(row).parse().map_err(invalid)?;
        let op = ChunkOp::parse(ops.value(row));
        let document = documents.entry(id).or_insert(SplitDocument {
            id,
            version: Version(versions.value(row)),
            removed: false,
            has_rows: false,
        });
        document.version = document.version.max(Version(versions.value(row)));
        document.removed |= op == Some(ChunkOp::Delete);
        document.has_rows |= op == Some(ChunkOp::Chunk);
    }
    Ok(())
}

fn chunk_rows(rows: &RecordBatch) -> Result<u64, SplitError> {
    let ops = strings(rows, "op")?;
    let chunks = ops.iter().filter(|op| *op == Some(ChunkOp::Chunk.as_str()));
    Ok(chunks.count() as u64)
}
