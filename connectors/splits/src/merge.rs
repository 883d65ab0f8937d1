//! Merging small splits into larger ones, so that a search reads few.
//!
//! What to merge is a pure function of the splits' sizes: splits of similar size together, when enough of them have come
//! together, so that a chunk is written again a few times in its life and not at each merge; and a split most of which is
//! dead, alone. A merge reads its inputs where they lie and writes as it reads, so its memory does not grow with them. One
//! runs at a time in a process; of several processes one merges a collection at a time. It swaps the splits in one
//! transaction, which does nothing when one of them is gone: then the work was for nothing and the next merge plans anew.

use std::sync::Arc;
use std::time::Instant;

use va_catalog::CollectionRef;
use va_catalog::store::{SplitInfo, SplitSeq};
use va_fulltext::{LiveTexts, TextSplit};
use va_vector::{LiveVectors, OptimizeReport, VectorError};

use crate::SplitError;
use crate::store::SplitStore;
use crate::view::{Part, SplitView};

/// How long a process has a collection's merge to itself. One that takes longer is only not alone any more.
const TURN_MS: i64 = 10 * 60 * 1_000;
/// Merges in one call: each leaves fewer splits, so this is never reached unless others publish as fast.
const ROUNDS_MAX: usize = 32;

/// When splits are merged.
#[derive(Debug, Clone)]
pub struct MergePolicy {
    /// Splits with fewer chunks than the first number are merged with each other, then those below the second, and so on.
    pub tiers: Vec<u64>,
    /// No merge makes a split with more chunks: at least twice the last tier, so that it does not leave one that has to be
    /// merged again.
    pub rows_max: u64,
    /// Nor one with more bytes, about: an object must be stored by one request in the end, and fetched by every reader.
    pub bytes_max: u64,
    /// So many splits of one tier are merged.
    pub fan_in: usize,
    /// Splits that one merge reads at most.
    pub inputs_max: usize,
    /// A writer that finds more splits than this waits for a merge.
    pub splits_max: usize,
}

impl Default for MergePolicy {
    fn default() -> Self {
        Self {
            // At rest, three of each tier are left, and those that have outgrown them.
            tiers: vec![4 << 10, 64 << 10, 512 << 10],
            rows_max: 1 << 20,
            bytes_max: 2 << 30,
            fan_in: 4,
            inputs_max: 64,
            splits_max: 40,
        }
    }
}

/// What a plan needs to know of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub seq: SplitSeq,
    /// Chunks in it.
    pub rows: u64,
    /// Of those, visible ones.
    pub live: u64,
    pub bytes: u64,
}

impl Size {
    /// Of what was read from the catalog, which does not know how much is dead.
    fn of(info: &SplitInfo) -> Self {
        Self {
            seq: info.seq,
            rows: info.split.rows,
            live: info.split.rows,
            bytes: info.split.bytes,
        }
    }
}

impl MergePolicy {
    /// The splits to merge next; none when all is well.
    pub(crate) fn plan(&self, sizes: &[Size]) -> Vec<SplitSeq> {
        let mut least = 0;
        for tier in &self.tiers {
            let mut members: Vec<&Size> = sizes
                .iter()
                .filter(|size| (least..*tier).contains(&size.live))
                .filter(|size| size.bytes <= self.bytes_max / 2)
                .collect();
            least = *tier;
            if members.len() < self.fan_in {
                continue;
            }
            // The smallest first: they cost least and are most.
            members.sort_by_key(|size| (size.live, size.seq));
            let (mut rows, mut bytes) = (0, 0);
            let mut inputs = Vec::new();
            for size in members.into_iter().take(self.inputs_max) {
                rows += size.live;
                bytes += size.bytes;
                if rows > self.rows_max || bytes > self.bytes_max {
                    break;
                }
                inputs.push(size.seq);
            }
            if inputs.len() > 1 {
                return inputs;
            }
        }
        // Dead chunks cost room and time on the disk of every reader.
        let dead = sizes.iter().find(|size| size.live * 2 < size.rows);
        dead.map(|size| vec![size.seq]).unwrap_or_default()
    }
}

impl SplitStore {
    /// After a publish: starts a merge in the background if one is due and none is running; waits for it when the writer is
    /// far ahead.
    pub(crate) async fn merge_if_due(
        self: &Arc<Self>,
        collection: &CollectionRef,
    ) -> Result<(), SplitError> {
        let splits = self.catalog.splits(collection).await?;
        let sizes: Vec<Size> = splits.iter().map(Size::of).collect();
        if self.options.merge.plan(&sizes).is_empty() {
            return Ok(());
        }
        if splits.len() > self.options.merge.splits_max {
            metrics::counter!("va_splits_publish_waits_total").increment(1);
            self.merge_quietly(collection).await;
        } else if self.merging.available_permits() > 0 {
            let (store, collection) = (self.clone(), collection.clone());
            tokio::spawn(async move { store.merge_quietly(&collection).await });
        }
        Ok(())
    }

    /// The publish that set it off has succeeded, so an error is only logged and counted.
    async fn merge_quietly(&self, collection: &CollectionRef) {
        if let Err(error) = self.merge(collection).await {
            metrics::counter!("va_splits_merge_errors_total").increment(1);
            tracing::warn!(%collection, %error, "merging splits failed; it is tried again");
        }
    }

    /// Merges until nothing is due, unless another process is at it.
    pub async fn merge(&self, collection: &CollectionRef) -> Result<OptimizeReport, SplitError> {
        let splits = self.catalog.splits(collection).await?.len();
        let mut report = OptimizeReport {
            fragments_before: splits,
            fragments_after: splits,
            ..OptimizeReport::default()
        };
        // Never closed.
        let Ok(_one) = self.merging.acquire().await else {
            return Ok(report);
        };
        if !self.catalog.begin_merge(collection, TURN_MS).await? {
            return Ok(report);
        }
        let merged = async {
            for _ in 0..ROUNDS_MAX {
                let view = self.newest(collection).await?;
                report.fragments_after = view.splits();
                let inputs = self.options.merge.plan(&sizes(&view));
                if inputs.is_empty() {
                    break;
                }
                if !self.merge_once(&view, &inputs).await? {
                    metrics::counter!("va_splits_merge_conflicts_total").increment(1);
                    tracing::info!(%collection, "another process merged the same splits");
                }
            }
            Ok::<_, SplitError>(())
        }
        .await;
        let ended = self.catalog.end_merge(collection).await;
        merged?;
        ended?;
        let (tenant, name) = (
            collection.tenant.to_string(),
            collection.collection.to_string(),
        );
        metrics::gauge!("va_splits", "tenant" => tenant, "collection" => name)
            .set(report.fragments_after as f64);
        Ok(report)
    }

    /// Merges these splits; `false` when one of them was gone.
    async fn merge_once(&self, view: &SplitView, inputs: &[SplitSeq]) -> Result<bool, SplitError> {
        let started = Instant::now();
        let collection = &view.collection;
        let parts: Vec<&Part> = view
            .parts
            .iter()
            .filter(|part| inputs.contains(&part.info.seq))
            .map(|part| &**part)
            .collect();
        let texts: Vec<LiveTexts> = parts.iter().filter_map(|part| part.texts.clone()).collect();
        let vectors: Vec<LiveVectors> = parts
            .iter()
            .filter_map(|part| part.vectors.clone())
            .collect();
        let text_rows: u64 = texts.iter().map(LiveTexts::count).sum();
        let vector_rows: u64 = vectors.iter().map(LiveVectors::count).sum();
        let new = self.cache.new_dir()?;
        if text_rows > 0 {
            let dir = new.texts();
            let merge = move || {
                std::fs::create_dir(&dir).map_err(SplitError::io("create directory", &dir))?;
                TextSplit::merge(&dir, &texts).map_err(SplitError::from)
            };
            tokio::task::spawn_blocking(merge).await??;
        }
        let mut dims = None;
        if vector_rows > 0 {
            let mut all = parts.iter().filter_map(|part| part.info.split.dims);
            let first = all.next().unwrap_or_default() as usize;
            if let Some(other) = all.find(|other| *other as usize != first) {
                return Err(SplitError::Vector(VectorError::Dimensions {
                    collection: collection.clone(),
                    has: first,
                    got: other as usize,
                }));
            }
            let dir = new.vectors();
            self.cache
                .vectors
                .merge(&dir, collection, first, &vectors)
                .await?;
            dims = Some(first);
        }
        let rows = text_rows.max(vector_rows);
        let (output, kept) = match rows {
            0 => (None, None),
            rows => {
                let (split, kept) = self.upload(new, rows, dims).await?;
                (Some(split), Some(kept))
            }
        };
        let swapped = self
            .catalog
            .merge_splits(collection, inputs, view.seq, output.as_ref())
            .await?;
        drop(kept);
        let Some(seq) = swapped else {
            return Ok(false);
        };
        self.want(collection, seq);
        metrics::counter!("va_splits_merges_total").increment(1);
        metrics::counter!("va_splits_merged_rows_total").increment(rows);
        metrics::histogram!("va_splits_merge_seconds").record(started.elapsed().as_secs_f64());
        tracing::debug!(%collection, inputs = inputs.len(), rows, seq, "merged splits");
        Ok(true)
    }
}

fn sizes(view: &SplitView) -> Vec<Size> {
    let size = |part: &Arc<Part>| Size {
        live: part.rows(),
        ..Size::of(&part.info)
    };
    view.parts.iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_of_like_size_are_merged_and_large_ones_left_alone() {
        let policy = MergePolicy {
            tiers: vec![100, 1_000, 10_000],
            rows_max: 10_000,
            bytes_max: u64::MAX,
            fan_in: 3,
            inputs_max: 4,
            splits_max: 40,
        };
        // `rows` or `live/rows`, in the order of the splits; the numbers, from 1, of those that are merged.
        for (sizes, expected) in [
            ("", ""),
            ("10 10", ""),
            ("10 10 10", "1 2 3"),
            // The smallest of the tier, not more than fit into one merge.
            ("50 10 40 20 30", "2 4 5 3"),
            ("500 10 600 20 700", "1 3 5"),
            ("500 10 600 20 30 700", "2 4 5"),
            // The output would be too large.
            ("900 9000 5000 4000", "4 3"),
            ("9000 9000 9000", ""),
            ("20000 30000 40000", ""),
            // Mostly dead.
            ("10 40/100", "2"),
            ("10 60/100", ""),
            ("0/100", "1"),
            // What is alive counts.
            ("10 10 10/900", "1 2 3"),
        ] {
            let read: Vec<Size> = sizes
                .split_whitespace()
                .zip(1..)
                .map(|(word, seq)| {
                    let (live, rows) = word.split_once('/').unwrap_or((word, word));
                    Size {
                        seq: SplitSeq(seq),
                        rows: rows.parse().expect("a number"),
                        live: live.parse().expect("a number"),
                        bytes: 0,
                    }
                })
                .collect();
            let plan: Vec<String> = policy
                .plan(&read)
                .iter()
                .map(|seq| seq.0.to_string())
                .collect();
            assert_eq!(plan.join(" "), expected, "{sizes}");
        }
    }

    /// Checkpoints of a few hundred chunks, for long: few splits at any time, and each chunk is written a few times.
    #[test]
    fn a_long_load_leaves_few_splits_and_writes_each_chunk_a_few_times() {
        let policy = MergePolicy::default();
        let mut sizes: Vec<Size> = Vec::new();
        let (mut written, mut most) = (0, 0);
        let checkpoints = 10_000;
        for seq in 1..=checkpoints {
            sizes.push(Size {
                seq: SplitSeq(seq),
                rows: 500,
                live: 500,
                bytes: 500,
            });
            loop {
                let inputs = policy.plan(&sizes);
                if inputs.is_empty() {
                    break;
                }
                let merged = sizes.iter().filter(|size| inputs.contains(&size.seq));
                let rows: u64 = merged.map(|size| size.live).sum();
                written += rows;
                sizes.retain(|size| !inputs.contains(&size.seq));
                let last = Size {
                    seq: SplitSeq(seq),
                    rows,
                    live: rows,
                    bytes: rows,
                };
                sizes.push(last);
            }
            most = most.max(sizes.len());
        }
        let all = 500 * checkpoints as u64;
        assert!(most <= 9 + (all >> 19) as usize, "{most} splits");
        assert!(written < 12 * all, "{} times", written / all);
    }
}
