//! Keeps tables fast: merges small files, removes old versions, builds indexes. Never in the way of a search.
//!
//! Every commit adds a file. When `fragments_max` have come together, one background task per table merges them, level
//! by level like a log-structured merge tree: files below 8 Ki rows into larger ones, when there are too many of those
//! the files below 128 Ki rows, and so on. A row is thus rewritten about once a level, not at every compaction.
//!
//! Merging reads a snapshot without any lock and takes the writer lock only to commit. A write that deleted rows of the
//! merged files meanwhile makes the commit fail; the merge is then done again under the lock, so it cannot starve.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::index::DatasetIndexRemapperOptions;
use lance::dataset::optimize::{
    CompactionOptions, RewriteResult, commit_compaction, plan_compaction,
};
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::ScalarIndexParams;
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use tokio::sync::OwnedMutexGuard;

use crate::apply::is_conflict;
use crate::embedded::{IndexKind, LanceOptions};
use crate::store::OptimizeReport;
use crate::table::{OpenTable, Upkeep};
use crate::{VectorError, sync};

/// Upper row counts of the files that one level of compaction merges.
const LEVELS: [usize; 3] = [8 << 10, 128 << 10, 2 << 20];
/// A writer that is this many times `fragments_max` ahead waits for compaction.
const AHEAD_MAX: usize = 4;

/// Starts compaction if it is due.
pub(crate) async fn after_commit(
    options: &Arc<LanceOptions>,
    table: &Arc<OpenTable>,
    fragments: usize,
) -> Result<(), VectorError> {
    let ahead = fragments.saturating_sub(table.fragments_floor.load(Ordering::Relaxed));
    if ahead <= options.fragments_max {
        return Ok(());
    }
    if ahead > options.fragments_max * AHEAD_MAX {
        let guard = table.upkeep.clone().lock_owned().await;
        run(options.clone(), table.clone(), guard).await;
    } else if let Ok(guard) = table.upkeep.clone().try_lock_owned() {
        tokio::spawn(run(options.clone(), table.clone(), guard));
    }
    Ok(())
}

/// One background round. The write that set it off has succeeded, so an error is only logged and counted.
async fn run(
    options: Arc<LanceOptions>,
    table: Arc<OpenTable>,
    mut upkeep: OwnedMutexGuard<Upkeep>,
) {
    let result = async {
        compact_levels(&options, &table).await?;
        let due = upkeep
            .pruned_at
            .is_none_or(|at| at.elapsed() >= options.keep_versions / 4);
        if due {
            prune(&options, &table).await?;
            upkeep.pruned_at = Some(Instant::now());
        }
        Ok::<(), VectorError>(())
    }
    .await;
    if let Err(error) = result {
        metrics::counter!("va_vector_upkeep_errors_total").increment(1);
        tracing::warn!(collection = %table.collection, %error, "compaction failed; it is tried again later");
    }
}

async fn compact_levels(options: &LanceOptions, table: &OpenTable) -> Result<(), VectorError> {
    for level in LEVELS {
        let dataset = table.snapshot().await?;
        let small = dataset
            .fragments()
            .iter()
            .filter(|fragment| fragment.num_rows().is_some_and(|rows| rows < level))
            .count();
        if small > options.fragments_max {
            compact(options, table, level).await?;
        }
    }
    let left = table.snapshot().await?.count_fragments();
    table.fragments_floor.store(left, Ordering::Relaxed);
    Ok(())
}

/// Merges neighbouring files below `rows_target` rows, and rewrites those of which a tenth is deleted.
async fn compact(
    options: &LanceOptions,
    table: &OpenTable,
    rows_target: usize,
) -> Result<(), VectorError> {
    let started = Instant::now();
    let compaction = CompactionOptions {
        target_rows_per_fragment: rows_target,
        // Searches need the other cores.
        num_threads: Some(1),
        ..CompactionOptions::default()
    };
    let merged = merge(options, table, &compaction).await?;
    if merged.is_empty() {
        return Ok(());
    }
    let writer = table.writer.lock().await;
    let mut result = commit(table, merged, &compaction).await;
    if matches!(&result, Err(error) if is_conflict(error)) {
        table.refresh().await?;
        let merged = merge(options, table, &compaction).await?;
        result = commit(table, merged, &compaction).await;
    }
    drop(writer);
    result.map_err(|error| table.error("compacting", error))?;
    metrics::counter!("va_vector_compactions_total").increment(1);
    metrics::histogram!("va_vector_compaction_seconds").record(started.elapsed().as_secs_f64());
    Ok(())
}

async fn merge(
    options: &LanceOptions,
    table: &OpenTable,
    compaction: &CompactionOptions,
) -> Result<Vec<RewriteResult>, VectorError> {
    let dataset = table.snapshot().await?;
    let plan = plan_compaction(&dataset, compaction)
        .await
        .map_err(|error| table.error("compacting", error))?;
    let mut merged = Vec::with_capacity(plan.num_tasks());
    for task in plan.compaction_tasks() {
        let result = task
            .execute(&dataset)
            .await
            .map_err(|error| table.error("compacting", error))?;
        if options.sync {
            sync::fragments(&table.path, &result.new_fragments)
                .await
                .map_err(|error| table.error("compacting", error))?;
        }
        merged.push(result);
    }
    Ok(merged)
}

async fn commit(
    table: &OpenTable,
    merged: Vec<RewriteResult>,
    compaction: &CompactionOptions,
) -> Result<(), lance::Error> {
    let external = |error: VectorError| lance::Error::external(Box::new(error));
    let mut dataset = Dataset::clone(&*table.snapshot().await.map_err(external)?);
    let remap = Arc::new(DatasetIndexRemapperOptions::default());
    commit_compaction(&mut dataset, merged, remap, compaction).await?;
    table.publish(dataset).map_err(external)
}

/// Removes versions that nobody has needed for a while; returns how many, and the bytes they took. A version that a
/// snapshot reads stays, and so do those after it.
async fn prune(options: &LanceOptions, table: &OpenTable) -> Result<(u64, u64), VectorError> {
    let keep = chrono::Duration::from_std(options.keep_versions)
        .map_err(|error| table.error("pruning", error))?;
    let policy = CleanupPolicy {
        before_timestamp: Some(chrono::Utc::now() - keep),
        before_version: table.oldest_read(),
        // A file that no version names may belong to a write in progress.
        delete_unverified: false,
        error_if_tagged_old_versions: false,
        ..CleanupPolicy::default()
    };
    let removed = table
        .snapshot()
        .await?
        .cleanup_with_policy(policy)
        .await
        .map_err(|error| table.error("pruning", error))?;
    metrics::counter!("va_vector_pruned_bytes_total").increment(removed.bytes_removed);
    Ok((removed.old_versions, removed.bytes_removed))
}

/// Everything at once, for [`crate::VectorStore::optimize`].
pub(crate) async fn optimize(
    options: &LanceOptions,
    table: &OpenTable,
) -> Result<OptimizeReport, VectorError> {
    let mut upkeep = table.upkeep.lock().await;
    let fragments_before = table.snapshot().await?.count_fragments();
    compact(options, table, LEVELS[LEVELS.len() - 1]).await?;
    let indexes = index(options, table).await?;
    let (versions_removed, bytes_removed) = prune(options, table).await?;
    upkeep.pruned_at = Some(Instant::now());
    let fragments_after = table.snapshot().await?.count_fragments();
    table
        .fragments_floor
        .store(fragments_after, Ordering::Relaxed);
    Ok(OptimizeReport {
        fragments_before,
        fragments_after,
        versions_removed,
        bytes_removed,
        indexes,
    })
}

/// Builds the indexes of a table that is large enough, extends them when a tenth of the rows is not in them, and builds
/// that of the vectors anew when the table has outgrown its partitions; returns the names of those it touched.
async fn index(options: &LanceOptions, table: &OpenTable) -> Result<Vec<String>, VectorError> {
    let mut dataset = Dataset::clone(&*table.snapshot().await?);
    let rows = dataset
        .count_rows(None)
        .await
        .map_err(|error| table.error("indexing", error))?;
    if (rows as u64) < options.index_rows_min {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let mut touched = Vec::new();
    for column in INDEXED {
        let name = index_name(column);
        let exists = !dataset
            .load_indices_by_name(&name)
            .await
            .map_err(|error| table.error("indexing", error))?
            .is_empty();
        let state = match exists {
            true => Some(
                state_of(&dataset, &name)
                    .await
                    .map_err(|error| table.error("indexing", error))?,
            ),
            false => None,
        };
        let wanted = (column == "vector").then(|| partitions(options, rows));
        match state {
            Some(state) if !state.is_outgrown(wanted) => {
                if state.unindexed * 10 <= rows {
                    continue;
                }
                // Without rebalancing, which would join small partitions until few large ones are left.
                let extend = OptimizeOptions::merge(1).index_names(vec![name.clone()]);
                dataset
                    .optimize_indices(&extend)
                    .await
                    .map_err(|error| table.error("indexing", error))?;
            }
            _ => create_index(options, &mut dataset, column, rows)
                .await
                .map_err(|error| table.error("indexing", error))?,
        }
        touched.push(name);
        table.publish(dataset.clone())?;
    }
    if !touched.is_empty() {
        if options.sync {
            sync::indexes(&table.path)
                .await
                .map_err(|error| table.error("indexing", error))?;
        }
        // Writes may have gone on while the index was built.
        table.refresh().await?;
        metrics::histogram!("va_vector_index_seconds").record(started.elapsed().as_secs_f64());
    }
    Ok(touched)
}

/// Columns that a large dataset gets an index of.
pub(crate) const INDEXED: [&str; 3] = ["vector", "document_id", "id"];

pub(crate) fn index_name(column: &str) -> String {
    format!("{column}_idx")
}

/// Builds the index of a column over all `rows`.
pub(crate) async fn create_index(
    options: &LanceOptions,
    dataset: &mut Dataset,
    column: &str,
    rows: usize,
) -> Result<(), lance::Error> {
    let name = Some(index_name(column));
    if column == "vector" {
        let params = vector_index(options, rows);
        dataset
            .create_index(&[column], IndexType::Vector, name, &params, true)
            .await?;
    } else {
        let params = ScalarIndexParams::default();
        dataset
            .create_index(&[column], IndexType::BTree, name, &params, true)
            .await?;
    }
    Ok(())
}

/// What is known of an index.
struct IndexState {
    /// Rows that a search or a lookup must still scan.
    unindexed: usize,
    /// Of an index of vectors; of several parts those of the part with the fewest.
    partitions: Option<usize>,
}

impl IndexState {
    /// Whether the table has grown so much that partitions hold twice as many rows as they should.
    fn is_outgrown(&self, wanted: Option<usize>) -> bool {
        match (self.partitions, wanted) {
            (Some(has), Some(wanted)) => wanted.pow(2) >= 2 * has.pow(2),
            _ => false,
        }
    }
}

async fn state_of(dataset: &Dataset, name: &str) -> Result<IndexState, lance::Error> {
    let statistics = dataset.index_statistics(name).await?;
    let statistics: serde_json::Value = serde_json::from_str(&statistics).unwrap_or_default();
    let number = |value: &serde_json::Value| value.as_u64().and_then(|n| n.try_into().ok());
    let parts = statistics["indices"].as_array();
    Ok(IndexState {
        // Statistics without that number: extending once too often is harmless.
        unindexed: number(&statistics["num_unindexed_rows"]).unwrap_or(usize::MAX / 10),
        partitions: parts
            .into_iter()
            .flatten()
            .filter_map(|part| number(&part["num_partitions"]))
            .min(),
    })
}

/// Partitions of the index of so many vectors.
fn partitions(options: &LanceOptions, rows: usize) -> usize {
    match options.index_kind {
        // As many as rows in each: a search then reads the fewest vectors.
        IndexKind::IvfFlat => rows.isqrt().clamp(1, 4096),
        IndexKind::IvfHnswSq => rows.div_ceil(1 << 20),
    }
}

fn vector_index(options: &LanceOptions, rows: usize) -> VectorIndexParams {
    let partitions = partitions(options, rows);
    let metric = options.index_metric.distance().into();
    match options.index_kind {
        IndexKind::IvfFlat => VectorIndexParams::ivf_flat(partitions, metric),
        IndexKind::IvfHnswSq => VectorIndexParams::with_ivf_hnsw_sq_params(
            metric,
            IvfBuildParams::new(partitions),
            HnswBuildParams::default(),
            SQBuildParams::default(),
        ),
    }
}

/// How long versions are kept by default.
pub(crate) const KEEP_VERSIONS: Duration = Duration::from_secs(300);
