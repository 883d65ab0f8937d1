//! Searching an index of vectors part by part, without a plan of Lance's for each search.
//!
//! For a search that has no conditions, by the metric of an index of whole partitions: the usual one, whose plan alone
//! takes as long as the rest. Partitions are read from the index once and kept as `codes`; which rows are still there is
//! Lance's to say, once for each version of a dataset; rows that the index does not have yet are searched by a scan of their
//! files meanwhile. Everything else, and an index of another kind, is left to the planner (`reader`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::available_parallelism;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt64Type};
use futures::TryStreamExt;
use futures::future::try_join_all;
use lance::dataset::ROW_ID;
use lance::dataset::scanner::RowAddrMask;
use lance::index::prefilter::DatasetPreFilter;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt, PreFilter};
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::vector::VectorIndex;
use lance_index::vector::flat::storage::FLAT_COLUMN;
use lance_index::vector::quantizer::QuantizationType;
use lance_index::vector::v3::subindex::SubIndexType;
use lance_linalg::distance::{DistanceType, l2_distance_batch_into};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::{OnceCell, oneshot};
use uuid::Uuid;
use va_catalog::chunk::column;

use crate::VectorError;
use crate::codes::{Codes, Wanted, nearest, top};
use crate::embedded::{IndexKind, LanceOptions};
use crate::reader::Reader;
use crate::store::Metric;
use crate::upkeep::index_name;

/// Versions at most of which it is known what is still there.
const VERSIONS_MAX: usize = 256;
/// Partitions that are read at the same time.
const READS: usize = 8;
/// Partitions that are searched in addition, as often as there are too few rows in those before.
const FARTHER: usize = 64;
/// Rows that are worth another thread.
const ROWS_OF_A_THREAD: usize = 8 << 10;
/// Threads of one search at most: searches run beside each other, too. Found out once: to ask costs as much as a tenth of a search.
static THREADS_MAX: LazyLock<usize> =
    LazyLock::new(|| available_parallelism().map_or(1, |n| n.get().min(4)));

/// What is kept of the indexes of one store. Every index has a name that no other has, and never changes.
///
/// Nothing of it keeps a file open: the files of an index that nobody needs any more give their space back when they go.
pub(crate) struct Parts {
    indexes: Cache<u128, Arc<Index>, Bytes>,
    codes: Cache<(u128, u32), Arc<Codes>, Bytes>,
    /// The rows of an index that are still there, by the dataset's version.
    visible: Cache<(u128, u64), Arc<RowAddrMask>>,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<(u128, u32), Arc<Codes>> for Bytes {
    fn weight(&self, _: &(u128, u32), codes: &Arc<Codes>) -> u64 {
        codes.bytes()
    }
}

impl Weighter<u128, Arc<Index>> for Bytes {
    fn weight(&self, _: &u128, index: &Arc<Index>) -> u64 {
        (size_of::<Index>() + size_of_val(&index.centroids[..])) as u64
    }
}

/// What is known of an index.
struct Index {
    name: Uuid,
    dims: usize,
    /// Of the partitions, one after the other; none for an index that is not searched here.
    centroids: Vec<f32>,
}

impl Parts {
    pub fn new(options: &LanceOptions) -> Self {
        let bytes = options.cache_bytes;
        Self {
            indexes: Cache::with_weighter(64, (bytes / 8) as u64, Bytes),
            // A partition has about as many rows as there are partitions: a few hundred, of a kilobyte each.
            codes: Cache::with_weighter((bytes >> 18).max(16), bytes as u64, Bytes),
            visible: Cache::new(VERSIONS_MAX),
        }
    }

    /// The `k` nearest rows with their scores, in no order, as a search by Lance would find them; `None` where that is to be
    /// asked. `query` has as many numbers as the dataset's vectors.
    pub async fn best(
        &self,
        reader: &Reader,
        query: &[f32],
        k: usize,
        metric: Metric,
    ) -> Result<Option<Vec<(f32, u64)>>, VectorError> {
        let fail = |error: lance::Error| reader.error("searching", error);
        if metric != Metric::Cosine || reader.options.index_kind != IndexKind::IvfFlat {
            return Ok(None);
        }
        let Some(wanted) = Wanted::new(query) else {
            return Ok(None);
        };
        let dataset = &reader.dataset;
        let mut segments = dataset
            .load_indices_by_name(&index_name("vector"))
            .await
            .map_err(fail)?;
        let (Some(segment), true) = (segments.pop(), segments.is_empty()) else {
            return Ok(None);
        };
        let Some(covered) = &segment.fragment_bitmap else {
            return Ok(None);
        };
        let uncovered: Vec<_> = dataset
            .fragments()
            .iter()
            .filter(|fragment| !covered.contains(fragment.id as u32))
            .cloned()
            .collect();

        let name = segment.uuid.as_u128();
        let index = self
            .indexes
            .get_or_insert_async(&name, Index::of(reader, segment.uuid))
            .await?;
        if index.centroids.is_empty() || index.dims != query.len() {
            return Ok(None);
        }
        let visible = async {
            let filter =
                DatasetPreFilter::new(dataset.clone(), std::slice::from_ref(&segment), None);
            filter.wait_for_ready().await.map_err(fail)?;
            Ok::<_, VectorError>(filter.mask())
        };
        let visible = self
            .visible
            .get_or_insert_async(&(name, dataset.version().version), visible)
            .await?;
        let beside = async {
            match uncovered.is_empty() {
                true => Ok(Vec::new()),
                false => reader.best_in(uncovered, query, k, metric).await,
            }
        };
        let inside = self.search(reader, index, Arc::new(wanted), k, visible);
        let (mut found, beside) = futures::try_join!(inside, beside)?;
        found.extend(beside);
        top(&mut found, k);
        Ok(Some(found))
    }

    /// The nearest rows of the index.
    async fn search(
        &self,
        reader: &Reader,
        index: Arc<Index>,
        wanted: Arc<Wanted>,
        k: usize,
        visible: Arc<RowAddrMask>,
    ) -> Result<Vec<(f32, u64)>, VectorError> {
        let near = index.partitions(wanted.vector());
        let mut found = Vec::new();
        let mut searched = 0;
        let mut next = probes(&near, reader.options.nprobes.unwrap_or(1), k);
        // Rows that are gone may leave too few in the nearest partitions.
        while found.len() < k && searched < near.len() {
            let partitions = self.codes(reader, &index, &near[searched..next]).await?;
            let (visible, gone) = (visible.clone(), reader.mask.clone());
            let seen = move |row| {
                visible.selected(row) && gone.as_ref().is_none_or(|mask| mask.selected(row))
            };
            let hits = together(partitions, wanted.clone(), k, seen).await;
            found.extend(hits.ok_or_else(|| reader.error("searching", "one of its threads died"))?);
            top(&mut found, k);
            (searched, next) = (next, (next + FARTHER).min(near.len()));
        }
        Ok(found)
    }

    /// These partitions of the index.
    async fn codes(
        &self,
        reader: &Reader,
        index: &Index,
        partitions: &[(f32, u32)],
    ) -> Result<Vec<Arc<Codes>>, VectorError> {
        let mut codes = Vec::with_capacity(partitions.len());
        let name = index.name.as_u128();
        // Opened for what is missing, which mostly nothing is.
        let lance = OnceCell::new();
        for partitions in partitions.chunks(READS) {
            let mut reads = Vec::with_capacity(READS);
            for (_, partition) in partitions {
                let (key, read) = ((name, *partition), index.read(reader, &lance, *partition));
                reads.push(async move { self.codes.get_or_insert_async(&key, read).await });
            }
            codes.extend(try_join_all(reads).await?);
        }
        Ok(codes)
    }
}

impl Index {
    async fn of(reader: &Reader, name: Uuid) -> Result<Arc<Self>, VectorError> {
        let lance = open(reader, &name).await?;
        let ours = lance.metric_type() == DistanceType::Cosine
            && matches!(
                lance.sub_index_type(),
                (SubIndexType::Flat, QuantizationType::Flat)
            );
        let centroids = lance.ivf_model().centroids_array().filter(|_| ours);
        let dims = centroids.map_or(0, |centroids| centroids.value_length() as usize);
        let centroids = centroids
            .and_then(|centroids| centroids.values().as_primitive_opt::<Float32Type>())
            .map(|values| values.values().to_vec());
        Ok(Arc::new(Self {
            name,
            dims,
            centroids: centroids.unwrap_or_default(),
        }))
    }

    /// The partitions by how far their centres are from the query, which has length one: as Lance does for cosine.
    fn partitions(&self, query: &[f32]) -> Vec<(f32, u32)> {
        let mut distances = vec![0.0; self.centroids.len() / self.dims];
        l2_distance_batch_into(query, &self.centroids, self.dims, &mut distances);
        let mut near: Vec<(f32, u32)> = distances.into_iter().zip(0..).collect();
        near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        near
    }

    async fn read(
        &self,
        reader: &Reader,
        lance: &OnceCell<Arc<dyn VectorIndex>>,
        partition: u32,
    ) -> Result<Arc<Codes>, VectorError> {
        let fail = |error: lance::Error| reader.error("reading an index", error);
        let batches: Vec<_> = lance
            .get_or_try_init(|| open(reader, &self.name))
            .await?
            .partition_reader(partition as usize, true, &NoOpMetricsCollector)
            .await
            .map_err(fail)?
            .try_collect()
            .await
            .map_err(|error| reader.error("reading an index", error))?;
        let (mut rows, mut vectors) = (Vec::new(), Vec::new());
        for batch in &batches {
            let numbers = column(batch, ROW_ID)
                .ok()
                .and_then(|column| column.as_primitive_opt::<UInt64Type>());
            let values = column(batch, FLAT_COLUMN)
                .ok()
                .and_then(|column| column.as_fixed_size_list_opt())
                .and_then(|lists| lists.values().as_primitive_opt::<Float32Type>());
            let (Some(numbers), Some(values)) = (numbers, values) else {
                return Err(reader.error("reading an index", "a partition has no vectors"));
            };
            rows.extend_from_slice(numbers.values());
            vectors.extend_from_slice(values.values());
        }
        Ok(Arc::new(Codes::new(self.dims, &rows, &vectors)))
    }
}

async fn open(reader: &Reader, name: &Uuid) -> Result<Arc<dyn VectorIndex>, VectorError> {
    reader
        .dataset
        .open_vector_index("vector", name, &NoOpMetricsCollector)
        .await
        .map_err(|error| reader.error("opening an index", error))
}

/// How many partitions are searched, of these by distance: those that are hardly farther than the nearest, but at least
/// `least`, and not more than is of use for `k` hits. These are the measures of Lance's search for cosine, found by it on
/// vectors of several models.
fn probes(near: &[(f32, u32)], least: usize, k: usize) -> usize {
    let most = 106.max(11 * k.isqrt());
    let nearest = near.first().map_or(0.0, |(distance, _)| *distance);
    let close = near.partition_point(|(distance, _)| *distance <= nearest * 1.38);
    close.min(most).max(least.max(1)).min(near.len())
}

/// What [`nearest`] finds, by as many threads as have enough to do. Each takes the next partition that none has taken: one that
/// is given no processor holds nobody up. `None` when a thread died, which takes what it had found with it.
async fn together(
    partitions: Vec<Arc<Codes>>,
    wanted: Arc<Wanted>,
    k: usize,
    visible: impl Fn(u64) -> bool + Send + Sync + 'static,
) -> Option<Vec<(f32, u64)>> {
    if partitions.is_empty() {
        return Some(Vec::new());
    }
    let rows: usize = partitions.iter().map(|codes| codes.len()).sum();
    let threads = (rows / ROWS_OF_A_THREAD).clamp(1, *THREADS_MAX);
    let (tell, told) = oneshot::channel();
    let found = Mutex::new(Found {
        left: partitions.len(),
        hits: Vec::new(),
        tell: Some(tell),
    });
    let next = AtomicUsize::new(0);
    let work = Arc::new(move || {
        let mut taken = 0;
        let turn = std::iter::from_fn(|| {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            taken += usize::from(turn < partitions.len());
            (turn < partitions.len()).then_some(turn)
        });
        let hits = nearest(&partitions, turn, &wanted, k, &visible);
        if taken > 0 {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.add(taken, hits);
        }
    });
    for _ in 0..threads {
        let work = work.clone();
        tokio::task::spawn_blocking(move || work());
    }
    drop(work);
    told.await.ok()
}

/// What the threads of one search have found so far.
struct Found {
    /// Partitions that are not searched yet.
    left: usize,
    hits: Vec<(f32, u64)>,
    /// Whom to tell when all are.
    tell: Option<oneshot::Sender<Vec<(f32, u64)>>>,
}

impl Found {
    fn add(&mut self, partitions: usize, hits: Vec<(f32, u64)>) {
        self.left -= partitions;
        self.hits.extend(hits);
        if self.left == 0
            && let Some(tell) = self.tell.take()
        {
            // Whoever asked may have gone.
            drop(tell.send(std::mem::take(&mut self.hits)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::tests::{alike, random};

    #[tokio::test]
    async fn threads_together_find_what_one_finds() {
        const DIMS: usize = 8;
        let mut state = 11;
        let mut partitions = Vec::new();
        let mut rows = 0;
        // Enough for several threads, in parts of very different sizes.
        while rows < 5 * ROWS_OF_A_THREAD as u64 {
            let size = 1 + (random(&mut state).abs() * 900.0) as u64;
            let numbers: Vec<u64> = (rows..rows + size).collect();
            let vectors: Vec<f32> = (rows..rows + size)
                .flat_map(|_| alike(&mut state, DIMS))
                .collect();
            partitions.push(Arc::new(Codes::new(DIMS, &numbers, &vectors)));
            rows += size;
        }
        let wanted = Arc::new(Wanted::new(&alike(&mut state, DIMS)).expect("a direction"));
        let even = |row: u64| row.is_multiple_of(2);
        for k in [1, 20, 500] {
            let best = |mut found: Vec<(f32, u64)>| {
                found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
                found.truncate(k);
                found
            };
            let one = nearest(&partitions, 0..partitions.len(), &wanted, k, even);
            let several = together(partitions.clone(), wanted.clone(), k, even).await;
            assert_eq!(best(several.expect("hits")), best(one), "{k}");
        }
        let none = together(Vec::new(), wanted, 5, even).await;
        assert_eq!(none.expect("hits"), []);
    }

    #[tokio::test]
    async fn a_thread_that_dies_is_noticed() {
        let vectors = [1.0, 0.0, 0.0, 1.0];
        let codes = Arc::new(Codes::new(2, &[1, 2], &vectors));
        let wanted = Arc::new(Wanted::new(&[1.0, 0.0]).expect("a direction"));
        let dies = |_| panic!("on purpose");
        assert_eq!(together(vec![codes], wanted, 1, dies).await, None);
    }
}
