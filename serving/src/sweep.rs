//! Removing stored objects that no document version needs any more.
//!
//! This is the compensation of every way that leaves an object behind: an upload whose catalog step failed or whose
//! process died, a document or a collection that was removed. One rule covers them all, so no path has to remember to
//! clean up: an object stays as long as any version, of any tenant, that is not DELETED has its hash. Older and failed
//! versions count, for rollback, diff and retry, up to `documents.versions_max` of a document.
//!
//! An object goes in two looks. The first finds that nothing refers to it and notes where `document.uploaded` ends; the
//! second, when the `index` pipeline has committed everything up to there, asks again and removes. So no event under
//! way, or replayed after a crash, finds its document without content. An upload of the same content at the same time
//! is safe: it keeps the object until the catalog refers to it, and a removal under way is waited for
//! ([`Objects::remove_unless_used`](va_connectors::objects::Objects::remove_unless_used)).
//!
//! Splits of shared indexes are objects too. One stays as long as the catalog lists it, which is for
//! [`SPLITS_KEPT_FOR`] after it was merged or dropped: a search that began before goes on with it, and a process that is
//! behind may still fetch it. One that was uploaded and never published is like the object of an upload that failed.
//!
//! Each step looks at a bounded number of objects and goes on from there at the next.

use std::sync::Arc;
use std::time::Duration;

use va_catalog::event::DOCUMENT_UPLOADED;
use va_catalog::store::CatalogError;
use va_catalog::{
    ContentHash, InvalidName, Offset, Partition, PipelineName, TopicName, TopicPartition,
};
use va_connectors::log::{GroupId, LogError};
use va_connectors::objects::ObjectError;

use crate::platform::Platform;

/// Objects after which a step ends; it may look at one directory more.
const LOOK_MAX: usize = 2_000;
/// How long a split stays after it was replaced: far longer than a view of an index lives, and than clocks differ.
const SPLITS_KEPT_FOR: Duration = Duration::from_secs(3_600);
/// Directories of the object store.
const DIRS: usize = 256;

/// What kept a step from being done; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Sweeps now and then until the platform stops.
pub async fn run(platform: Arc<Platform>) {
    let pause = Duration::from_millis(platform.settings.documents.sweep_interval_ms);
    let mut ticks = tokio::time::interval(pause);
    let mut sweep = Sweep::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => return,
        }
        if !platform.leads("sweep").await {
            continue;
        }
        match sweep.step(&platform).await {
            Ok(0) => {}
            Ok(objects) => tracing::info!(objects, "removed objects that no document needs"),
            Err(error) => tracing::warn!(%error, "the sweep of objects failed; it is tried again"),
        }
    }
}

#[derive(Default)]
struct Sweep {
    /// The directory to look at next.
    dir: u8,
    /// What the first look found.
    unused: Option<Unused>,
}

struct Unused {
    objects: Vec<ContentHash>,
    /// Where `document.uploaded` ended then.
    events: Vec<(TopicPartition, Offset)>,
}

impl Sweep {
    /// One look, the second or the first; returns how many objects were removed.
    async fn step(&mut self, platform: &Platform) -> Result<u64, SweepError> {
        let versions_max = platform.settings.documents.versions_max;
        let splits = platform
            .catalog
            .forget_splits(SPLITS_KEPT_FOR.as_millis() as i64)
            .await?;
        metrics::counter!("va_splits_forgotten_total").increment(splits);
        let mut removed = 0;
        if let Some(unused) = &self.unused {
            if !are_indexed(platform, &unused.events).await? {
                return Ok(0);
            }
            for hash in &unused.objects {
                let used = async {
                    let used = platform
                        .catalog
                        .objects_in_use_all_tenants(std::slice::from_ref(hash), versions_max)
                        .await?;
                    Ok::<_, SweepError>(!used.is_empty())
                };
                if platform.objects.remove_unless_used(hash, used).await? {
                    removed += 1;
                    metrics::counter!("va_objects_removed_total").increment(1);
                }
            }
            self.unused = None;
        }
        self.unused = self.look(platform).await?;
        Ok(removed)
    }

    /// The first look, at the next directories.
    async fn look(&mut self, platform: &Platform) -> Result<Option<Unused>, SweepError> {
        let mut objects = Vec::new();
        for _ in 0..DIRS {
            objects.extend(platform.objects.list(self.dir).await?);
            self.dir = self.dir.wrapping_add(1);
            if objects.len() >= LOOK_MAX {
                break;
            }
        }
        let used = platform
            .catalog
            .objects_in_use_all_tenants(&objects, platform.settings.documents.versions_max)
            .await?;
        objects.retain(|hash| !used.contains(hash));
        if objects.is_empty() {
            return Ok(None);
        }
        Ok(Some(Unused {
            objects,
            events: ends(platform).await?,
        }))
    }
}

async fn ends(platform: &Platform) -> Result<Vec<(TopicPartition, Offset)>, SweepError> {
    let topic = TopicName::new(DOCUMENT_UPLOADED)?;
    let partitions = platform
        .log
        .topics()
        .await?
        .into_iter()
        .find(|(name, _)| *name == topic)
        .map_or(0, |(_, config)| config.partitions);
    let mut ends = Vec::with_capacity(partitions as usize);
    for partition in 0..partitions {
        let place = TopicPartition {
            topic: topic.clone(),
            partition: Partition(partition),
        };
        let end = platform.log.watermarks(&place).await?.high;
        ends.push((place, end));
    }
    Ok(ends)
}

/// Whether `index` has committed everything before these offsets.
async fn are_indexed(
    platform: &Platform,
    ends: &[(TopicPartition, Offset)],
) -> Result<bool, SweepError> {
    let index = GroupId(PipelineName::new("index")?);
    for (place, end) in ends {
        let committed = platform.log.committed(&index, place).await?;
        if committed.unwrap_or(Offset(0)) < *end {
            return Ok(false);
        }
    }
    Ok(true)
}
