//! Immutable datasets that are searched together, as one.
//!
//! A [`VectorSplit`] is written once, into a folder, and never changes; which of its documents are still alive is told by
//! whoever opens it ([`VectorSplit::without`]). Dead rows are left out before anything is ranked, so `k` nearest are `k`
//! live ones. A split is a Lance dataset of one fragment with the columns of a table; large ones have its indexes.
//!
//! Which splits there are, and where their folders come from, is the caller's business.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};
use lance::dataset::{InsertBuilder, WriteParams};
use lance::deps::datafusion::error::DataFusionError;
use lance::deps::datafusion::physical_plan::SendableRecordBatchStream;
use lance::deps::datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use lance::session::Session;
use tokio::sync::OnceCell;
use va_catalog::chunk::{column, strings};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, CollectionRef, DocumentId, Filter, InvalidName};

use crate::VectorError;
use crate::embedded::LanceOptions;
use crate::ids::KnownRows;
use crate::parts::Parts;
use crate::reader::{Reader, better, check_dims, sort};
use crate::rows::{prepare, stored_schema};
use crate::store::{ChunkStream, K_MAX, Metric, VectorHit};
use crate::upkeep::{INDEXED, create_index};

/// Makes and opens splits; those of one share a cache.
pub struct VectorSplits {
    options: Arc<LanceOptions>,
    session: Arc<Session>,
    known: KnownRows,
    parts: Arc<Parts>,
}

/// An immutable dataset.
pub struct VectorSplit {
    reader: Reader,
    /// Where the chunks of each document are; read when the first of them dies.
    documents: OnceCell<HashMap<DocumentId, Vec<u64>>>,
}

/// A split without its dead documents. Cheap to clone.
#[derive(Clone)]
pub struct LiveVectors {
    reader: Reader,
    rows: u64,
}

impl VectorSplits {
    pub fn new(options: LanceOptions) -> Self {
        Self {
            session: Arc::new(Session::new(
                options.cache_bytes / 4 * 3,
                options.cache_bytes / 4,
                Arc::default(),
            )),
            parts: Arc::new(Parts::new(&options)),
            options: Arc::new(options),
            known: KnownRows::default(),
        }
    }

    /// Writes the `chunk` rows, each of one of `documents`, as a split into the folder. Returns the length of the vectors;
    /// `None`, and nothing is written, when there are no rows. Nothing is synced.
    pub async fn write(
        &self,
        dir: &Path,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<Option<usize>, VectorError> {
        let Some(prepared) = prepare(collection, documents, rows)? else {
            return Ok(None);
        };
        let params = self.params();
        let dataset = InsertBuilder::new(uri(dir)?)
            .with_params(&params)
            .execute(vec![prepared.batch])
            .await
            .map_err(|error| VectorError::storage(collection, "writing a split", error))?;
        self.index(collection, dataset).await?;
        Ok(Some(prepared.dims))
    }

    /// Writes the live rows of `inputs`, whose vectors have `dims` dimensions, as one split into the folder.
    pub async fn merge(
        &self,
        dir: &Path,
        collection: &CollectionRef,
        dims: usize,
        inputs: &[LiveVectors],
    ) -> Result<(), VectorError> {
        let schema = stored_schema(dims);
        let columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
        let mut scans = Vec::with_capacity(inputs.len());
        for input in inputs {
            check_dims(&input.reader.collection, &input.reader.dataset, dims)?;
            let scan = input.reader.scan(Some(&columns), None, None).await?;
            scans.push(scan.batches);
        }
        let declared = schema.clone();
        let rows = futures::stream::iter(scans).flatten().map(move |batch| {
            let batch = batch.map_err(|error| DataFusionError::External(Box::new(error)))?;
            // The same fields; what Lance noted about them stays behind.
            Ok(RecordBatch::try_new(
                declared.clone(),
                batch.columns().to_vec(),
            )?)
        });
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        let params = self.params();
        let dataset = InsertBuilder::new(uri(dir)?)
            .with_params(&params)
            .execute_stream(rows)
            .await
            .map_err(|error| VectorError::storage(collection, "merging splits", error))?;
        self.index(collection, dataset).await
    }

    /// Opens what [`VectorSplits::write`] or [`VectorSplits::merge`] wrote.
    pub async fn open(
        &self,
        dir: &Path,
        collection: &CollectionRef,
    ) -> Result<Arc<VectorSplit>, VectorError> {
        let dataset = DatasetBuilder::from_uri(uri(dir)?)
            .with_session(self.session.clone())
            .load()
            .await
            .map_err(|error| VectorError::storage(collection, "opening a split", error))?;
        Ok(Arc::new(VectorSplit {
            reader: Reader {
                collection: collection.clone(),
                dataset: Arc::new(dataset),
                ids: self.known.dataset(),
                parts: self.parts.clone(),
                options: self.options.clone(),
                mask: None,
            },
            documents: OnceCell::new(),
        }))
    }

    /// The indexes that a table of this size would get.
    async fn index(
        &self,
        collection: &CollectionRef,
        mut dataset: Dataset,
    ) -> Result<(), VectorError> {
        let fail = |error| VectorError::storage(collection, "indexing a split", error);
        let rows = dataset.count_rows(None).await.map_err(fail)?;
        if (rows as u64) < self.options.index_rows_min {
            return Ok(());
        }
        for column in INDEXED {
            create_index(&self.options, &mut dataset, column, rows)
                .await
                .map_err(fail)?;
        }
        Ok(())
    }

    fn params(&self) -> WriteParams {
        WriteParams {
            // What is only written and packed needs no place in the cache of what is searched.
            session: None,
            skip_auto_cleanup: true,
            ..WriteParams::default()
        }
    }
}

fn uri(dir: &Path) -> Result<&str, VectorError> {
    dir.to_str().ok_or_else(|| VectorError::Directory {
        dir: dir.display().to_string(),
        action: "naming the directory",
        source: "the path is not UTF-8".into(),
    })
}

impl VectorSplit {
    /// The split without the chunks of `dead`.
    pub async fn without(&self, dead: &HashSet<DocumentId>) -> Result<LiveVectors, VectorError> {
        let collection = &self.reader.collection;
        let all = self
            .reader
            .dataset
            .count_rows(None)
            .await
            .map_err(|error| VectorError::storage(collection, "counting", error))?;
        let mut reader = self.reader.clone();
        let mut rows = all as u64;
        if !dead.is_empty() {
            let documents = self
                .documents
                .get_or_try_init(|| self.read_documents())
                .await?;
            let gone = dead.iter().filter_map(|id| documents.get(id)).flatten();
            let gone: Vec<u64> = gone.copied().collect();
            rows -= gone.len() as u64;
            if !gone.is_empty() {
                let gone = RowAddrTreeMap::from_iter(gone);
                reader.mask = Some(RowAddrMask::from_block(gone));
            }
        }
        Ok(LiveVectors { reader, rows })
    }

    async fn read_documents(&self) -> Result<HashMap<DocumentId, Vec<u64>>, VectorError> {
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            VectorError::storage(&self.reader.collection, "reading document ids", error)
        };
        let mut scanner = self.reader.scanner(&["document_id"])?;
        scanner.with_row_id();
        let mut batches = scanner
            .try_into_stream()
            .await
            .map_err(|error| fail(error.into()))?;
        let mut documents: HashMap<DocumentId, Vec<u64>> = HashMap::new();
        while let Some(batch) = batches
            .try_next()
            .await
            .map_err(|error| fail(error.into()))?
        {
            let ids = strings(&batch, "document_id").map_err(|error| fail(error.into()))?;
            let rows = column(&batch, lance::dataset::ROW_ID)
                .ok()
                .and_then(|rows| rows.as_primitive_opt::<UInt64Type>())
                .ok_or_else(|| fail("the rows have no number".into()))?;
            for (id, row) in ids.iter().flatten().zip(rows.values()) {
                let id = id
                    .parse()
                    .map_err(|error: InvalidName| fail(error.into()))?;
                documents.entry(id).or_default().push(*row);
            }
        }
        Ok(documents)
    }
}

impl LiveVectors {
    /// How many chunks are alive.
    pub fn count(&self) -> u64 {
        self.rows
    }

    /// Every live chunk, in no order.
    pub async fn keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        self.reader.chunk_keys().await
    }

    /// Adds those of the chunks that are here and alive.
    pub async fn find(
        &self,
        ids: &[ChunkId],
        found: &mut HashMap<ChunkId, ChunkRecord>,
    ) -> Result<(), VectorError> {
        self.reader.find(ids, found).await
    }

    /// The live rows, as [`VectorStore::scan`](crate::VectorStore::scan) gives them.
    pub async fn scan(
        &self,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<ChunkStream, VectorError> {
        self.reader.scan(columns, filter_sql, limit).await
    }
}

/// The `k` live chunks nearest to `query` in all splits, best first, as
/// [`VectorSnapshot::search`](crate::VectorSnapshot::search) gives them for one table. At most `at_once` splits are searched
/// at the same time.
pub async fn search_splits(
    splits: &[LiveVectors],
    query: &[f32],
    k: usize,
    metric: Metric,
    filter: &Filter,
    at_once: usize,
) -> Result<Vec<VectorHit>, VectorError> {
    let read = |split: LiveVectors, rows: Vec<u64>| async move { split.reader.take(&rows).await };
    let found = nearest(splits, query, k, metric, filter, at_once, read).await?;
    let hits = found.into_iter();
    let mut hits: Vec<VectorHit> = hits
        .map(|(chunk, score)| VectorHit { chunk, score })
        .collect();
    sort(&mut hits);
    Ok(hits)
}

/// The same chunks by their ids, as [`VectorSnapshot::nearest`](crate::VectorSnapshot::nearest).
pub async fn nearest_in_splits(
    splits: &[LiveVectors],
    query: &[f32],
    k: usize,
    metric: Metric,
    filter: &Filter,
    at_once: usize,
) -> Result<Vec<(ChunkId, f32)>, VectorError> {
    let read = |split: LiveVectors, rows: Vec<u64>| async move { split.reader.ids(&rows).await };
    let mut hits = nearest(splits, query, k, metric, filter, at_once, read).await?;
    hits.sort_by(better);
    Ok(hits)
}

/// What `read` makes of the `k` nearest rows, split by split, with their scores. In no order.
async fn nearest<T, F: Future<Output = Result<Vec<T>, VectorError>>>(
    splits: &[LiveVectors],
    query: &[f32],
    k: usize,
    metric: Metric,
    filter: &Filter,
    at_once: usize,
    read: impl Fn(LiveVectors, Vec<u64>) -> F,
) -> Result<Vec<(T, f32)>, VectorError> {
    let started = Instant::now();
    let best = best_of(splits, query, k, metric, filter, at_once).await?;
    let reads = best.into_iter().map(|(split, scores, rows)| {
        let read = read(split, rows);
        async move { Ok::<_, VectorError>(read.await?.into_iter().zip(scores).collect::<Vec<_>>()) }
    });
    let reads = futures::stream::iter(reads).buffer_unordered(at_once.max(1));
    let hits = reads.try_concat().await?;
    metrics::histogram!("va_vector_search_seconds").record(started.elapsed().as_secs_f64());
    Ok(hits)
}

/// The splits that hold some of the `k` nearest rows, with the scores and numbers of those rows.
async fn best_of(
    splits: &[LiveVectors],
    query: &[f32],
    k: usize,
    metric: Metric,
    filter: &Filter,
    at_once: usize,
) -> Result<Vec<(LiveVectors, Vec<f32>, Vec<u64>)>, VectorError> {
    if k > K_MAX {
        return Err(VectorError::Invalid(format!(
            "k is {k}; a vector search returns at most {K_MAX} hits"
        )));
    }
    // Owned by each search: borrowed ones could not be seen to move between threads.
    let (vector, filter): (Arc<[f32]>, _) = (query.into(), Arc::new(filter.clone()));
    let searches = splits.iter().cloned().enumerate().map(|(at, split)| {
        let (vector, filter) = (vector.clone(), filter.clone());
        async move {
            let best = split.reader.best(&vector, k, metric, &filter).await?;
            let best = best.into_iter().map(|(score, row)| (score, at, row));
            Ok::<_, VectorError>(best.collect::<Vec<_>>())
        }
    });
    let searches = futures::stream::iter(searches).buffer_unordered(at_once.max(1));
    let mut best: Vec<(f32, usize, u64)> = searches.try_concat().await?;
    // Splits end in any order; the same search must give the same hits.
    best.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    best.truncate(k);
    // Only what is a hit among all is read.
    let mut by_split: Vec<(Vec<f32>, Vec<u64>)> = vec![Default::default(); splits.len()];
    for (score, at, row) in best {
        by_split[at].0.push(score);
        by_split[at].1.push(row);
    }
    let found = splits.iter().cloned().zip(by_split);
    Ok(found
        .filter(|(_, (_, rows))| !rows.is_empty())
        .map(|(split, (scores, rows))| (split, scores, rows))
        .collect())
}
