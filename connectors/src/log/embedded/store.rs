//! The store behind the log: opening it, its keyspaces, what is kept in memory, and how its errors become ours.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use va_catalog::{Partition, TopicName, TopicPartition};

use super::codec::{self, Marks, TopicId};
use super::commit::Queue;
use super::groups::Groups;
use super::sync::SyncThread;
use crate::log::{LogError, TopicConfig};

/// What an acknowledged commit survives. Order and atomicity hold in every case: after a restart the log holds a prefix
/// of the commits, each whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Every commit is synced to the disk before it is acknowledged or can be read. Loses nothing, neither when the
    /// process is killed nor when the power fails. Costs an fsync per commit; commits that wait together share one.
    EveryCommit,
    /// Commits are handed to the operating system before they are acknowledged, and synced in the background this often.
    /// Loses nothing when the process is killed; when the power fails or the system crashes it may lose the commits of
    /// the last interval.
    Interval(Duration),
}

impl Durability {
    /// Its name as a label of metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::EveryCommit => "every_commit",
            Self::Interval(_) => "interval",
        }
    }
}

/// Tells the time, UTC milliseconds.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How to open an [`EmbeddedLog`].
#[derive(Clone)]
pub struct Options {
    pub durability: Durability,
    /// Stamps batches as they are committed.
    pub clock: Clock,
    /// Memory for stored blocks that were read, in bytes.
    pub cache_bytes: u64,
}

impl Default for Options {
    /// Every commit synced, the system's clock, 32 MiB of cache.
    fn default() -> Self {
        Self {
            durability: Durability::EveryCommit,
            clock: Arc::new(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_millis() as i64)
            }),
            cache_bytes: 32 << 20,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("durability", &self.durability)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

/// The log on the local disk. Needs a tokio runtime: storage runs on its blocking threads.
///
/// The directory stays locked until the log, its members and its commits are dropped.
#[derive(Debug)]
pub struct EmbeddedLog {
    pub(super) shared: Arc<Shared>,
}

/// What the log, its members and its commits hold in common.
pub(super) struct Shared {
    // First, so that it makes its last sync before the store closes.
    _sync: Option<SyncThread>,
    pub(super) db: Database,
    pub(super) index: Keyspace,
    pub(super) batches: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) offsets: Keyspace,
    pub(super) state: Keyspace,
    pub(super) options: Options,
    /// Locked before `topics` where both are needed.
    pub(super) groups: Mutex<Groups>,
    pub(super) topics: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    /// Commits that wait for the writer.
    pub(super) queue: Mutex<Queue>,
    /// Held by whoever changes the store. Taken before `groups` and `topics`, and never on the async executor.
    pub(super) writer: Mutex<Writer>,
    /// Something was written since the last sync.
    pub(super) dirty: Arc<AtomicBool>,
    pub(super) closed: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The right to change the store.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) next_topic: TopicId,
}

/// A topic in memory.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: TopicName,
    pub(super) id: TopicId,
    pub(super) config: TopicConfig,
    /// Watermarks as last committed, one per partition. Readers wait on them; they end when the topic is deleted.
    pub(super) partitions: Arc<Vec<watch::Sender<Marks>>>,
}

impl EmbeddedLog {
    /// Opens the log in `dir`, creating the directory when needed. Blocks for recovery after a crash.
    ///
    /// [`LogError::Config`] when another process holds the directory or the data has another format.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, LogError> {
        std::fs::create_dir_all(dir)
            .map_err(|e| LogError::Storage(format!("create directory `{}`: {e}", dir.display())))?;
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes)
            // The journal is short-lived; compressing it would cost more than writing it.
            .journal_compression(CompressionType::None)
            .open()
            .map_err(|e| match e {
                fjall::Error::Locked => LogError::Config(format!(
                    "the log in `{}` is in use by another process; stop that one, or talk to it",
                    dir.display()
                )),
                other => at(&format!("open the log in `{}`", dir.display()), other),
            })?;
        let keyspace = |name: &str| {
            db.keyspace(name, KeyspaceCreateOptions::default)
                .map_err(|e| at(name, e))
        };
        // Batches are large and never change: kept apart, compaction does not rewrite them over and over.
        let batches = db
            .keyspace("batches", || {
                KeyspaceCreateOptions::default()
                    .with_kv_separation(Some(KvSeparationOptions::default()))
            })
            .map_err(|e| at("batches", e))?;
        let meta = keyspace("meta")?;
        check_format(&meta, dir)?;
        let topics = super::topics::load(&meta)?;
        let next_topic = super::topics::load_next(&meta)?;
        let dirty = Arc::new(AtomicBool::new(false));
        let sync = match options.durability {
            Durability::EveryCommit => None,
            Durability::Interval(interval) => {
                Some(SyncThread::start(db.clone(), Arc::clone(&dirty), interval)?)
            }
        };
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                _sync: sync,
                index: keyspace("index")?,
                batches,
                meta,
                offsets: keyspace("offsets")?,
                state: keyspace("state")?,
                db,
                options,
                groups: Mutex::default(),
                topics: RwLock::new(topics),
                queue: Mutex::default(),
                writer: Mutex::new(Writer { next_topic }),
                dirty,
                closed: CancellationToken::new(),
            }),
        }))
    }
}

fn check_format(meta: &Keyspace, dir: &Path) -> Result<(), LogError> {
    let expected = codec::FORMAT.to_le_bytes();
    match meta.get(codec::FORMAT_KEY).map_err(storage)? {
        None => meta.insert(codec::FORMAT_KEY, expected).map_err(storage),
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(LogError::Config(format!(
            "the log in `{}` has format {:?}, this version reads {:?}; use the version that wrote it",
            dir.display(),
            &found[..],
            expected
        ))),
    }
}

impl Shared {
    /// Runs storage work on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .unwrap_or_else(|e| Err(LogError::Storage(format!("a storage task failed: {e}"))))
    }

    /// Waits for the running change of the store and keeps others out.
    pub(super) fn writer(&self) -> Result<MutexGuard<'_, Writer>, LogError> {
        let writer = lock(&self.writer);
        if self.closed.is_cancelled() {
            return Err(LogError::Closed);
        }
        Ok(writer)
    }

    pub(super) fn topic(&self, topic: &TopicName) -> Result<Arc<Topic>, LogError> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics
            .get(topic)
            .cloned()
            .ok_or_else(|| LogError::UnknownTopic(topic.clone()))
    }

    /// The topic, when it has that partition.
    pub(super) fn topic_of(&self, partition: &TopicPartition) -> Result<Arc<Topic>, LogError> {
        let topic = self.topic(&partition.topic)?;
        topic.marks(partition.partition)?;
        Ok(topic)
    }

    /// Partition counts of all topics, as groups need them.
    pub(super) fn partition_counts(&self) -> BTreeMap<TopicName, u32> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics
            .iter()
            .map(|(name, topic)| (name.clone(), topic.config.partitions))
            .collect()
    }
}

impl Topic {
    /// Watermarks of a partition.
    pub(super) fn marks(&self, partition: Partition) -> Result<&watch::Sender<Marks>, LogError> {
        self.partitions
            .get(partition.0 as usize)
            .ok_or_else(|| LogError::UnknownPartition {
                topic: self.name.clone(),
                partition,
                partitions: self.config.partitions,
            })
    }
}

/// Locks. A panic elsewhere does not matter: what the locks guard is changed only after a write succeeded.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store's error as ours.
pub(super) fn storage(error: fjall::Error) -> LogError {
    classify(error, String::new())
}

/// The same, saying where it happened.
pub(super) fn at(place: &str, error: fjall::Error) -> LogError {
    classify(error, format!("{place}: "))
}

fn classify(error: fjall::Error, place: String) -> LogError {
    use fjall::{Error, LsmError};
    match error {
        Error::Io(e) | Error::Storage(LsmError::Io(e)) => LogError::Storage(format!("{place}{e}")),
        Error::Poisoned => LogError::Storage(format!(
            "{place}an earlier write failed, so nothing more is written; check the disk and restart"
        )),
        Error::Locked | Error::KeyspaceDeleted => LogError::Storage(format!("{place}{error}")),
        // Checksums, tags, lengths: the bytes are not what was written.
        damaged => LogError::Corrupt(format!("{place}{damaged}")),
    }
}
