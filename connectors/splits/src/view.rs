//! A collection as of one state: what a search reads.
//!
//! A view holds its splits open, so everything it shows stays readable for as long as it is held. The next view takes over
//! what did not change, and hears of what died since.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use va_catalog::store::{SplitInfo, SplitSeq, SplitState};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, CollectionRef, DocumentId, Filter};
use va_fulltext::{LiveTexts, TextError, TextHit, TextSnapshot};
use va_vector::{ChunkStream, LiveVectors, Metric, VectorError, VectorHit, VectorSnapshot};

use crate::SplitError;
use crate::cache::{Cache, OpenSplit};

/// Splits that are fetched at once.
const FETCHES: usize = 4;

/// A state of a collection, with its splits open.
pub struct SplitView {
    pub(crate) collection: CollectionRef,
    pub(crate) seq: i64,
    pub(crate) parts: Vec<Arc<Part>>,
    /// Splits that are searched at the same time.
    at_once: usize,
    texts: Vec<LiveTexts>,
    vectors: Vec<LiveVectors>,
}

/// A split in a view.
pub(crate) struct Part {
    pub info: SplitInfo,
    dead: HashSet<DocumentId>,
    split: Arc<OpenSplit>,
    pub texts: Option<LiveTexts>,
    pub vectors: Option<LiveVectors>,
}

impl Part {
    async fn open(
        cache: &Cache,
        collection: &CollectionRef,
        info: SplitInfo,
        dead: HashSet<DocumentId>,
        split: Option<Arc<OpenSplit>>,
    ) -> Result<Arc<Self>, SplitError> {
        let split = match split {
            Some(split) => split,
            None => cache.get(collection, &info.split.object).await?,
        };
        let vectors = match &split.vectors {
            Some(vectors) => Some(vectors.without(&dead).await?),
            None => None,
        };
        let part = tokio::task::spawn_blocking(move || {
            let texts = match &split.texts {
                Some(texts) => Some(texts.without(&dead)?),
                None => None,
            };
            Ok::<_, SplitError>(Self {
                info,
                dead,
                split,
                texts,
                vectors,
            })
        });
        Ok(Arc::new(part.await??))
    }

    /// Live chunks, on whichever side has more.
    pub fn rows(&self) -> u64 {
        let texts = self.texts.as_ref().map_or(0, LiveTexts::count);
        texts.max(self.vectors.as_ref().map_or(0, LiveVectors::count))
    }
}

impl SplitView {
    /// The view of a state that has nothing, from which all others follow.
    pub(crate) fn empty(collection: CollectionRef, at_once: usize) -> Self {
        Self {
            collection,
            seq: 0,
            parts: Vec::new(),
            at_once,
            texts: Vec::new(),
            vectors: Vec::new(),
        }
    }

    /// The view of a state that is told relative to this one's.
    pub(crate) async fn next(&self, state: SplitState, cache: &Cache) -> Result<Self, SplitError> {
        let known: HashMap<SplitSeq, &Arc<Part>> = self
            .parts
            .iter()
            .map(|part| (part.info.seq, part))
            .collect();
        let mut died: HashMap<SplitSeq, Vec<DocumentId>> = HashMap::new();
        for (split, document) in state.dead {
            died.entry(split).or_default().push(document);
        }
        let mut opening = Vec::with_capacity(state.splits.len());
        for info in state.splits {
            let died = died.remove(&info.seq).unwrap_or_default();
            let known = known.get(&info.seq).map(|part| Arc::clone(part));
            let collection = &self.collection;
            opening.push(async move {
                let (mut dead, split) = match known {
                    Some(part) if died.is_empty() => return Ok(part),
                    Some(part) => (part.dead.clone(), Some(part.split.clone())),
                    None => (HashSet::new(), None),
                };
                dead.extend(died);
                Part::open(cache, collection, info, dead, split).await
            });
        }
        let parts: Vec<Arc<Part>> = futures::stream::iter(opening)
            .buffered(FETCHES)
            .try_collect()
            .await?;
        // What has nothing alive need not be searched.
        let texts = parts.iter().filter_map(|part| part.texts.clone());
        let vectors = parts.iter().filter_map(|part| part.vectors.clone());
        Ok(Self {
            collection: self.collection.clone(),
            seq: state.seq,
            at_once: self.at_once,
            texts: texts.filter(|texts| texts.count() > 0).collect(),
            vectors: vectors.filter(|vectors| vectors.count() > 0).collect(),
            parts,
        })
    }

    /// The number of the state.
    pub fn seq(&self) -> i64 {
        self.seq
    }

    /// Its splits.
    pub fn splits(&self) -> usize {
        self.parts.len()
    }

    /// The length of the vectors; `None` without any.
    pub fn dims(&self) -> Option<usize> {
        let mut dims = self.parts.iter().filter_map(|part| part.info.split.dims);
        dims.next().map(|dims| dims as usize)
    }

    /// Whether there is a side of vectors.
    pub fn has_vectors(&self) -> bool {
        self.parts.iter().any(|part| part.vectors.is_some())
    }

    /// Chunks with vectors.
    pub fn vector_count(&self) -> u64 {
        self.vectors.iter().map(LiveVectors::count).sum()
    }

    /// The chunks with these ids, in the order of `ids`.
    pub(crate) async fn chunks(&self, ids: &[ChunkId]) -> Result<Vec<ChunkRecord>, VectorError> {
        let found = VectorSnapshot::find(self, ids).await?;
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    /// [`VectorStore::scan`](va_vector::VectorStore::scan) over all splits, one after the other.
    pub(crate) async fn scan(
        &self,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Option<ChunkStream>, VectorError> {
        let mut schema = None;
        let mut scans = Vec::new();
        // Also of splits without live chunks: a collection whose chunks are all gone has its columns still.
        for vectors in self.parts.iter().filter_map(|part| part.vectors.as_ref()) {
            let scan = vectors.scan(columns, filter_sql, limit).await?;
            schema.get_or_insert(scan.schema);
            scans.push(scan.batches);
        }
        let Some(schema) = schema else {
            return Ok(None);
        };
        let rows = futures::stream::iter(scans).flatten();
        let mut left = limit.unwrap_or(usize::MAX);
        let rows = rows.map_ok(move |batch| {
            let taken = batch.slice(0, left.min(batch.num_rows()));
            left -= taken.num_rows();
            taken
        });
        Ok(Some(ChunkStream {
            schema,
            batches: rows.boxed(),
        }))
    }
}

#[async_trait]
impl VectorSnapshot for SplitView {
    fn version(&self) -> u64 {
        self.seq.unsigned_abs()
    }

    async fn search(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError> {
        va_vector::search_splits(&self.vectors, query, k, metric, filter, self.at_once).await
    }

    async fn nearest(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<(ChunkId, f32)>, VectorError> {
        va_vector::nearest_in_splits(&self.vectors, query, k, metric, filter, self.at_once).await
    }

    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, VectorError> {
        let mut found = HashMap::with_capacity(ids.len());
        for vectors in &self.vectors {
            vectors.find(ids, &mut found).await?;
        }
        Ok(found)
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        let mut keys = Vec::new();
        for vectors in &self.vectors {
            keys.extend(vectors.keys().await?);
        }
        Ok(keys)
    }
}

#[async_trait]
impl TextSnapshot for SplitView {
    async fn search(
        &self,
        query: &str,
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<TextHit>, TextError> {
        va_fulltext::search_splits(&self.texts, query, k, filter, self.at_once).await
    }

    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, TextError> {
        let (texts, ids) = (self.texts.clone(), ids.to_vec());
        let looked = tokio::task::spawn_blocking(move || {
            let mut found = HashMap::with_capacity(ids.len());
            for texts in &texts {
                texts.find(&ids, &mut found)?;
            }
            Ok(found)
        });
        looked.await?
    }

    fn count(&self) -> u64 {
        self.texts.iter().map(LiveTexts::count).sum()
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, TextError> {
        let mut keys = Vec::new();
        for texts in &self.texts {
            let texts = texts.clone();
            keys.extend(tokio::task::spawn_blocking(move || texts.keys()).await??);
        }
        Ok(keys)
    }
}
