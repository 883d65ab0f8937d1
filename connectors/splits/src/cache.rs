//! Splits on the local disk: unpacked, opened once, and removed when others need the room.
//!
//! ```text
//!  DIR/HASH/             an unpacked split: texts/, vectors/, and files.json, which says what must be there
//!  DIR/~.../             being made or being removed; whatever a start finds of them is of a process that died
//! ```
//!
//! A split gets its name by renaming when it is whole, so a killed process leaves no half of one; that a power cut leaves
//! none is checked by the sizes of its files when the cache is opened. What is in use stays, so the bound is on what is kept
//! for later.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::OnceCell;
use va_catalog::{CollectionRef, ContentHash};
use va_connectors::objects::Objects;
use va_fulltext::TextSplit;
use va_vector::{VectorSplit, VectorSplits};

use crate::SplitError;
use crate::pack::{List, unpack};

const TEXTS: &str = "texts";
const VECTORS: &str = "vectors";
const FILES: &str = "files.json";
/// Of folders that are no splits.
const PASSING: char = '~';

/// An open split. While it is held, its files stay.
pub(crate) struct OpenSplit {
    pub texts: Option<Arc<TextSplit>>,
    pub vectors: Option<Arc<VectorSplit>>,
}

pub(crate) struct Cache {
    dir: PathBuf,
    objects: Objects,
    pub vectors: VectorSplits,
    bytes_max: u64,
    slots: Mutex<HashMap<ContentHash, Arc<Slot>>>,
    /// Counts uses, to tell which split was used least recently.
    clock: AtomicU64,
}

#[derive(Default)]
struct Slot {
    open: OnceCell<Arc<OpenSplit>>,
    /// On the disk; 0 before it is there.
    bytes: AtomicU64,
    used_at: AtomicU64,
}

/// A folder in which a split is made; it goes with this.
pub(crate) struct NewDir(PathBuf);

impl NewDir {
    pub fn texts(&self) -> PathBuf {
        self.0.join(TEXTS)
    }

    pub fn vectors(&self) -> PathBuf {
        self.0.join(VECTORS)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        // It may have become a split, or the next start removes it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Cache {
    /// Opens the folder, which is made if missing, and looks at what it has. Blocks.
    pub fn open(
        dir: PathBuf,
        objects: Objects,
        vectors: VectorSplits,
        bytes_max: u64,
    ) -> Result<Self, SplitError> {
        std::fs::create_dir_all(&dir).map_err(SplitError::io("create directory", &dir))?;
        let dir = dir
            .canonicalize()
            .map_err(SplitError::io("find directory", &dir))?;
        let mut slots = HashMap::new();
        for entry in std::fs::read_dir(&dir).map_err(SplitError::io("list", &dir))? {
            let entry = entry.map_err(SplitError::io("list", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = ContentHash::new(name.as_str())
                .ok()
                .zip(whole(&entry.path()));
            match known {
                Some((hash, bytes)) => {
                    let slot = Slot::default();
                    slot.bytes.store(bytes, Ordering::Relaxed);
                    slots.insert(hash, Arc::new(slot));
                }
                None => remove(&entry.path())?,
            }
        }
        let cache = Self {
            dir,
            objects,
            vectors,
            bytes_max,
            slots: Mutex::new(slots),
            clock: AtomicU64::new(1),
        };
        cache.evict();
        Ok(cache)
    }

    /// A folder for a split that is to be made.
    pub fn new_dir(&self) -> Result<NewDir, SplitError> {
        let path = self.passing();
        std::fs::create_dir(&path).map_err(SplitError::io("create directory", &path))?;
        Ok(NewDir(path))
    }

    /// Takes a split that was made here, so that nobody needs to fetch it. Blocks.
    pub fn adopt(&self, new: NewDir, hash: &ContentHash, list: &List) -> Result<(), SplitError> {
        let slot = self.slot(hash);
        self.take_in(new, hash, list, &slot)
    }

    /// The split of that object, fetched and unpacked when it is not here.
    pub async fn get(
        &self,
        collection: &CollectionRef,
        hash: &ContentHash,
    ) -> Result<Arc<OpenSplit>, SplitError> {
        let slot = self.slot(hash);
        let open = slot.open.get_or_try_init(|| async {
            if slot.bytes.load(Ordering::Relaxed) > 0 {
                match self.open_split(collection, hash).await {
                    Ok(open) => {
                        metrics::counter!("va_splits_cache_hits_total").increment(1);
                        return Ok(open);
                    }
                    Err(error) => {
                        tracing::warn!(%hash, %error, "a split in the cache is damaged; it is fetched again");
                        let dir = self.dir.join(hash.as_str());
                        remove(&dir)?;
                    }
                }
            }
            self.fetch(hash, &slot).await?;
            self.open_split(collection, hash).await
        });
        let open = open.await.cloned();
        drop(slot);
        if open.is_err() {
            // Nothing was fetched; who tries again makes a new one.
            let mut slots = lock(&self.slots);
            let unused = |slot: &Arc<Slot>| {
                Arc::strong_count(slot) == 1 && slot.bytes.load(Ordering::Relaxed) == 0
            };
            if slots.get(hash).is_some_and(unused) {
                slots.remove(hash);
            }
        }
        self.evict();
        open
    }

    /// Whether more is on the disk than should be, because it is in use.
    pub fn is_over(&self) -> bool {
        bytes_of(&lock(&self.slots)) > self.bytes_max
    }

    /// Removes what was used least recently and is not in use, until the rest has room.
    pub fn evict(&self) {
        let mut gone = Vec::new();
        {
            let mut slots = lock(&self.slots);
            let mut bytes = bytes_of(&slots);
            let mut idle: Vec<(u64, ContentHash, u64)> = Vec::new();
            if bytes > self.bytes_max {
                let unused = slots.iter().filter(|(_, slot)| slot.is_idle());
                idle = unused
                    .map(|(hash, slot)| {
                        let used_at = slot.used_at.load(Ordering::Relaxed);
                        (used_at, hash.clone(), slot.bytes.load(Ordering::Relaxed))
                    })
                    .collect();
                idle.sort();
            }
            for (_, hash, size) in idle {
                if bytes <= self.bytes_max {
                    break;
                }
                // Under the lock: whoever wants it after this finds neither slot nor folder, and fetches it.
                let passing = self.passing();
                if std::fs::rename(self.dir.join(hash.as_str()), &passing).is_ok() {
                    gone.push(passing);
                }
                slots.remove(&hash);
                bytes -= size;
                metrics::counter!("va_splits_cache_evictions_total").increment(1);
            }
            metrics::gauge!("va_splits_cache_bytes").set(bytes as f64);
        }
        for path in gone {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "remove a split from the cache; the next start tries again");
            }
        }
    }

    fn slot(&self, hash: &ContentHash) -> Arc<Slot> {
        let slot = lock(&self.slots).entry(hash.clone()).or_default().clone();
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        slot.used_at.store(now, Ordering::Relaxed);
        slot
    }

    async fn fetch(&self, hash: &ContentHash, slot: &Slot) -> Result<(), SplitError> {
        let started = Instant::now();
        let new = self.new_dir()?;
        let object = self.objects.read(hash).await?;
        let list = unpack(object, new.path()).await?;
        self.take_in(new, hash, &list, slot)?;
        metrics::counter!("va_splits_fetched_total").increment(1);
        metrics::counter!("va_splits_fetched_bytes_total").increment(list.bytes());
        metrics::histogram!("va_splits_fetch_seconds").record(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn take_in(
        &self,
        new: NewDir,
        hash: &ContentHash,
        list: &List,
        slot: &Slot,
    ) -> Result<(), SplitError> {
        let target = self.dir.join(hash.as_str());
        let json =
            serde_json::to_vec(list).map_err(|error| SplitError::Damaged(error.to_string()))?;
        let file = new.path().join(FILES);
        std::fs::write(&file, json).map_err(SplitError::io("write", &file))?;
        if !target.exists() {
            std::fs::rename(new.path(), &target).map_err(SplitError::io("rename", new.path()))?;
        }
        slot.bytes.store(list.bytes().max(1), Ordering::Relaxed);
        Ok(())
    }

    async fn open_split(
        &self,
        collection: &CollectionRef,
        hash: &ContentHash,
    ) -> Result<Arc<OpenSplit>, SplitError> {
        let dir = self.dir.join(hash.as_str());
        let (texts, vectors) = (dir.join(TEXTS), dir.join(VECTORS));
        let has_vectors = vectors.exists();
        let texts = tokio::task::spawn_blocking(move || match texts.exists() {
            true => TextSplit::open(&texts).map(Some),
            false => Ok(None),
        })
        .await??;
        let vectors = match has_vectors {
            true => Some(self.vectors.open(&vectors, collection).await?),
            false => None,
        };
        Ok(Arc::new(OpenSplit { texts, vectors }))
    }

    /// A name for a folder that is no split.
    fn passing(&self) -> PathBuf {
        let name = uuid::Uuid::now_v7().simple();
        self.dir.join(format!("{PASSING}{name}"))
    }
}

impl Slot {
    /// On the disk and used by nobody. To be asked under the lock of the slots.
    fn is_idle(self: &Arc<Self>) -> bool {
        let held = self
            .open
            .get()
            .map_or(0, |open| Arc::strong_count(open) - 1);
        Arc::strong_count(self) == 1 && held == 0 && self.bytes.load(Ordering::Relaxed) > 0
    }
}

fn bytes_of(slots: &HashMap<ContentHash, Arc<Slot>>) -> u64 {
    let sizes = slots
        .values()
        .map(|slot| slot.bytes.load(Ordering::Relaxed));
    sizes.sum()
}

/// The slots are right after every step, so a poisoned lock is usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size of the split in the folder; `None` if it is not a whole one.
fn whole(dir: &Path) -> Option<u64> {
    let json = std::fs::read(dir.join(FILES)).ok()?;
    let list: List = serde_json::from_slice(&json).ok()?;
    list.is_whole(dir).then(|| list.bytes().max(1))
}

fn remove(path: &Path) -> Result<(), SplitError> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    removed.map_err(SplitError::io("remove", path))
}
