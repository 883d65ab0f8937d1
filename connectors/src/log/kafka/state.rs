//! State of groups: a compacted topic each, and a local store that follows it.
//!
//! An entry is in partition `murmur2(key) mod N` of the topic, whichever namespace it is of, and N is what the topic was
//! made with, so that all processes agree. A read asks for the end of the partitions that its keys are in, applies what
//! is new up to there, and answers from the local store: so it sees every commit that was finished before, whoever made
//! it, and never another process's copy. Partitions that nobody asks for are not followed; a scan follows all.
//!
//! ```text
//!  commit ──► va.state.<group>  0 1 2 ... N-1  (compacted)
//!                               │ │
//!                 followed as far as it was when the read began ──► local store ──► state_get, state_get_many, state_scan
//! ```
//!
//! The first time that a partition is followed is its restore: from the topic's beginning. Whoever is given partitions
//! of rows can have the state of their keys restored in the background ([`Shared::restore_state`]): where the rows are
//! partitioned by the bytes of the state's keys, into a number of partitions that divides N, only that part of the state.
//! A standby follows all partitions all the time. Neither is needed for an answer; it comes sooner.
//!
//! The local store is a cache in a temporary folder that does not outlive the process. To keep it, a process would have
//! to know at the start that what it holds was not torn by a power cut, and up to which record, under the same topic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use futures::StreamExt;
use futures::future::try_join_all;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::client::{Quiet, Shared, lock, storage};
use super::names::state_topic;
use super::producer::Outgoing;
use crate::log::{GroupId, LogError, StateKey, partition_of};

/// `fjall` refuses longer keys with a panic.
const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Before each value, so that an empty value is no deletion.
const PRESENT: u8 = 1;
/// Records that are put into the local store at once.
const APPLIED_AT_ONCE: usize = 4_096;
/// Partitions that are restored at the same time.
const RESTORED_AT_ONCE: usize = 2;
/// A state topic has no more partitions than this, whatever it should be aligned with.
const PARTITIONS_MAX: u32 = 256;
/// Between two looks of a standby at what is new.
const STANDBY_LOOKS: Duration = Duration::from_secs(1);
/// Between two lines of the log about a restore that takes long.
const TELL: Duration = Duration::from_secs(5);
/// Restores of fewer records are not worth a line.
const TELL_RECORDS: u64 = 1_000;

pub(super) struct State {
    dir: Option<PathBuf>,
    store: OnceLock<Result<Store, LogError>>,
    groups: Mutex<HashMap<GroupId, Arc<GroupState>>>,
}

/// The local copy. The folder goes away with it.
struct Store {
    entries: Keyspace,
    database: Database,
    _folder: TempDir,
}

/// What is known of a group's topic.
struct GroupState {
    group: GroupId,
    topic: String,
    /// One for each partition, once the topic is known to be there.
    followers: OnceLock<Vec<Follower>>,
    /// Wakes who waits for something to be applied.
    followed: Arc<tokio::sync::Notify>,
    /// Readers that nobody uses now.
    consumers: Mutex<Vec<BaseConsumer<Quiet>>>,
}

/// How far a partition has been followed.
#[derive(Default)]
struct Follower {
    /// Held while it is being followed.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The next record to apply.
    next: AtomicI64,
    /// Its end, as far as a follower had to go that is not there yet.
    goal: AtomicI64,
    /// Records applied.
    applied: AtomicU64,
    /// Whether the end was reached once.
    restored: OnceLock<()>,
}

impl State {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            store: OnceLock::new(),
            groups: Mutex::default(),
        }
    }

    /// Opened with the first use. Blocks.
    fn store(&self) -> Result<&Store, LogError> {
        let store = self.store.get_or_init(|| {
            let failed = |e: &dyn std::fmt::Display| {
                LogError::Storage(format!("open the local copy of state: {e}"))
            };
            let mut folder = tempfile::Builder::new();
            folder.prefix("va-state-");
            let folder = match &self.dir {
                Some(dir) => std::fs::create_dir_all(dir).and_then(|()| folder.tempdir_in(dir)),
                None => folder.tempdir(),
            };
            let folder = folder.map_err(|e| failed(&e))?;
            let database = Database::builder(folder.path())
                .open()
                .map_err(|e| failed(&e))?;
            let entries = database
                .keyspace("state", KeyspaceCreateOptions::default)
                .map_err(|e| failed(&e))?;
            Ok(Store {
                entries,
                database,
                _folder: folder,
            })
        });
        store.as_ref().map_err(LogError::clone)
    }

    fn group(&self, prefix: &str, group: &GroupId) -> Result<Arc<GroupState>, LogError> {
        let mut groups = lock(&self.groups);
        if let Some(known) = groups.get(group) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(GroupState {
            group: group.clone(),
            topic: state_topic(prefix, group.0.as_str())?,
            followers: OnceLock::new(),
            followed: Arc::default(),
            consumers: Mutex::default(),
        });
        groups.insert(group.clone(), Arc::clone(&new));
        Ok(new)
    }

    /// Records that a restore of the group's state has still to apply, as far as is known.
    pub(super) fn restoring(&self, group: &GroupId) -> u64 {
        let known = lock(&self.groups).get(group).cloned();
        known.map_or(0, |known| known.remaining())
    }

    pub(super) async fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.groups));
        // Closing a consumer waits for its threads.
        let _ = tokio::task::spawn_blocking(move || drop(all)).await;
    }
}

impl GroupState {
    fn remaining(&self) -> u64 {
        self.followers
            .get()
            .into_iter()
            .flatten()
            .filter(|follower| follower.restored.get().is_none())
            .map(|follower| {
                let left =
                    follower.goal.load(Ordering::Relaxed) - follower.next.load(Ordering::Relaxed);
                left.max(0) as u64
            })
            .sum()
    }

    /// Records applied so far, of all partitions.
    #[cfg(test)]
    fn applied(&self) -> u64 {
        let followers = self.followers.get().into_iter().flatten();
        followers
            .map(|follower| follower.applied.load(Ordering::Relaxed))
            .sum()
    }
}

/// Key in the topic. A namespace is any text, so its length goes first.
fn topic_key(namespace: &str, key: &[u8]) -> Vec<u8> {
    let mut bytes = (namespace.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// Key in the local store. A group's name has no zero byte.
fn local_key(group: &GroupId, topic_key: &[u8]) -> Vec<u8> {
    [group.0.as_str().as_bytes(), &[0], topic_key].concat()
}

/// A change as a record. Its partition is not known before the topic is: see [`place`].
pub(super) fn outgoing(
    prefix: &str,
    key: &StateKey,
    value: Option<Bytes>,
) -> Result<Outgoing, LogError> {
    let bytes = topic_key(&key.namespace, &key.key);
    if local_key(&key.group, &bytes).len() > KEY_BYTES_MAX {
        return Err(LogError::Config(format!(
            "a key of state of `{}` in `{}` is too large: at most {KEY_BYTES_MAX} bytes with the names",
            key.namespace, key.group
        )));
    }
    Ok(Outgoing {
        topic: state_topic(prefix, key.group.0.as_str())?,
        partition: 0,
        key: Some(bytes),
        payload: value.map(|value| [&[PRESENT], &value[..]].concat()),
        headers: None,
    })
}

/// Where a key is, in a topic with so many partitions.
pub(super) fn place(key: &[u8], partitions: u32) -> usize {
    partition_of(key, partitions).0 as usize
}

/// Of how many partitions a new topic is: at least `wanted`, and a multiple of each of `aligned`, so that each of those
/// partitions of rows has whole partitions of state. Where that would be too many, it is `wanted`.
fn partitions_for(wanted: u32, aligned: &[u32]) -> u32 {
    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let multiple = aligned.iter().try_fold(1_u32, |all, &one| {
        let one = one.max(1);
        (all / gcd(all, one)).checked_mul(one)
    });
    multiple
        .and_then(|multiple| wanted.max(1).div_ceil(multiple).checked_mul(multiple))
        .filter(|count| *count <= PARTITIONS_MAX)
        .unwrap_or_else(|| wanted.clamp(1, PARTITIONS_MAX))
}

/// The partitions of state that hold the keys of some partitions of rows.
fn needed(rows: &[u32], of: u32, partitions: u32) -> BTreeSet<usize> {
    let aligned = of > 0 && partitions.is_multiple_of(of);
    (0..partitions)
        .filter(|state| !aligned || rows.contains(&(state % of)))
        .map(|state| state as usize)
        .collect()
}

impl Shared {
    fn group_state(&self, group: &GroupId) -> Result<Arc<GroupState>, LogError> {
        self.state.group(&self.options.prefix, group)
    }

    /// The group's topic for state, when it is there.
    async fn known_state(self: &Arc<Self>, state: &Arc<GroupState>) -> Result<bool, LogError> {
        if state.followers.get().is_some() {
            return Ok(true);
        }
        let asked = Arc::clone(state);
        let count = self
            .blocking(move |shared| shared.partitions_of_state(&asked.topic))
            .await?;
        let Some(count) = count else {
            return Ok(false);
        };
        let followers = (0..count).map(|_| Follower::default()).collect();
        // Another reader may have been faster; it heard the same.
        let _ = state.followers.set(followers);
        Ok(true)
    }

    /// `None` when the cluster does not have the topic. An error while a partition has no leader: it is there, and to take
    /// it for empty would be to start from nothing. Blocks.
    fn partitions_of_state(&self, topic: &str) -> Result<Option<usize>, LogError> {
        let metadata = self
            .admin
            .inner()
            .fetch_metadata(None, self.timeout())
            .map_err(|e| storage("ask for the topics", &e))?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
            return Ok(None);
        };
        let partitions = found.partitions();
        let led = partitions.iter().all(|p| p.leader() >= 0);
        if found.error().is_some() || partitions.is_empty() || !led {
            return Err(LogError::Storage(format!(
                "kafka: not every partition of `{topic}` has a leader now"
            )));
        }
        Ok(Some(partitions.len()))
    }

    /// Creates the group's topic for state when it is not there; returns how many partitions it has.
    pub(super) async fn ready_state(
        self: &Arc<Self>,
        group: &GroupId,
        aligned: &[u32],
    ) -> Result<u32, LogError> {
        let state = self.group_state(group)?;
        if !self.known_state(&state).await? {
            let count = partitions_for(self.options.state_partitions, aligned);
            let settings = [("cleanup.policy", "compact")];
            self.create_kafka_topic(&state.topic, count, &settings)
                .await?;
            let asked = Arc::clone(&state);
            self.wait_until(move |shared| {
                let count = shared.partitions_of_state(&asked.topic).ok().flatten();
                count.is_some_and(|count| {
                    (0..count).all(|p| shared.visible_records(&asked.topic, p as i32).is_ok())
                })
            })
            .await?;
            if !self.known_state(&state).await? {
                return Err(LogError::Storage(format!(
                    "kafka: the topic `{}` is gone again",
                    state.topic
                )));
            }
        }
        Ok(state.followers.get().map_or(1, Vec::len) as u32)
    }

    /// Applies what was committed so far to partitions of a group's state.
    async fn follow(
        self: &Arc<Self>,
        state: &Arc<GroupState>,
        partitions: &BTreeSet<usize>,
    ) -> Result<(), LogError> {
        self.open()?;
        let followers = state.followers.get().map_or(&[][..], Vec::as_slice);
        // Always in this order, so that two readers do not wait for each other.
        let mut turns = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            turns.push(Arc::clone(&followers[partition].turn).lock_owned().await);
        }
        let ends = partitions.iter().map(|&partition| {
            let asked = Arc::clone(state);
            self.blocking(move |shared| {
                let marks = shared.visible_records(&asked.topic, partition as i32);
                let (_, high) = marks
                    .map_err(|e| storage(&format!("ask for the end of `{}`", asked.topic), &e))?;
                Ok((partition, high))
            })
        });
        let behind: BTreeMap<usize, i64> = try_join_all(ends)
            .await?
            .into_iter()
            .filter(|(partition, high)| {
                let behind = followers[*partition].next.load(Ordering::Relaxed) < *high;
                if !behind {
                    let _ = followers[*partition].restored.set(());
                }
                behind
            })
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        let state = Arc::clone(state);
        self.blocking(move |shared| {
            let consumer = shared.state_reader(&state)?;
            let result = shared.apply(&state, &consumer, behind);
            let _ = consumer.unassign();
            if result.is_ok() {
                lock(&state.consumers).push(consumer);
            }
            drop(turns);
            result
        })
        .await
    }

    fn state_reader(&self, state: &GroupState) -> Result<BaseConsumer<Quiet>, LogError> {
        if let Some(consumer) = lock(&state.consumers).pop() {
            return Ok(consumer);
        }
        let mut config = self.options.reader();
        // It reads up to an end that is known and then stops, so the broker should not keep it waiting there.
        config.set("fetch.wait.max.ms", "5");
        // Compaction may have removed the record that it stands at.
        config.set("auto.offset.reset", "earliest");
        config.set("queued.min.messages", "100000");
        BaseConsumer::from_config_and_context(&config, Quiet)
            .map_err(|e| LogError::Config(format!("kafka: {e}")))
    }

    /// Reads each partition up to its end, which was asked for before: so an end that is met means that nothing below it
    /// is missing. Blocks.
    fn apply(
        &self,
        state: &GroupState,
        consumer: &BaseConsumer<Quiet>,
        mut behind: BTreeMap<usize, i64>,
    ) -> Result<(), LogError> {
        let topic = &state.topic;
        let followers = state.followers.get().map_or(&[][..], Vec::as_slice);
        let failed = |e: KafkaError| storage(&format!("read `{topic}`"), &e);
        let mut list = TopicPartitionList::new();
        for (&partition, &high) in &behind {
            let follower = &followers[partition];
            follower.goal.store(high, Ordering::Relaxed);
            let next = KafkaOffset::Offset(follower.next.load(Ordering::Relaxed));
            list.add_partition_offset(topic, partition as i32, next)
                .map_err(failed)?;
        }
        let mut told = Restore::begin(state, &behind);
        consumer.assign(&list).map_err(failed)?;
        let mut batch = Applying::new(self.state.store()?);
        let mut heard = Instant::now();
        while !behind.is_empty() {
            let message = match consumer.poll(Duration::from_millis(100)) {
                None if heard.elapsed() < self.timeout() => continue,
                None => {
                    return Err(LogError::Storage(format!(
                        "kafka: no answer for the records of `{topic}`"
                    )));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    let partition = partition as usize;
                    if let Some(high) = behind.remove(&partition) {
                        batch.next.insert(partition, high);
                        batch.write(followers)?;
                        let _ = followers[partition].restored.set(());
                    }
                    continue;
                }
                // It connects again by itself; the time-out above bounds it.
                Some(Err(error)) => {
                    tracing::debug!(%error, topic, "the reader of state goes on");
                    if heard.elapsed() >= self.timeout() {
                        return Err(failed(error));
                    }
                    continue;
                }
                Some(Ok(message)) => message,
            };
            let partition = message.partition() as usize;
            let Some(&high) = behind.get(&partition) else {
                // Behind the end that was asked for. It says nothing about those that are still waited for, which a
                // dead leader may hold up for ever while others go on.
                if heard.elapsed() >= self.timeout() {
                    return Err(LogError::Storage(format!(
                        "kafka: no answer for the records of `{topic}`"
                    )));
                }
                continue;
            };
            heard = Instant::now();
            let damaged = |what: &str| {
                let (partition, record) = (message.partition(), message.offset());
                LogError::Corrupt(format!("record {record} of `{topic}-{partition}`: {what}"))
            };
            let key = message.key().ok_or_else(|| damaged("it has no key"))?;
            let value = match message.payload() {
                None => None,
                Some([PRESENT, value @ ..]) => Some(value.to_vec()),
                Some(_) => return Err(damaged("it is not a value of state")),
            };
            told.add(key.len() + value.as_ref().map_or(0, Vec::len));
            batch.changes.insert(local_key(&state.group, key), value);
            batch.next.insert(partition, message.offset() + 1);
            followers[partition].applied.fetch_add(1, Ordering::Relaxed);
            let done = message.offset() + 1 >= high;
            if done || batch.changes.len() >= APPLIED_AT_ONCE {
                batch.write(followers)?;
                told.progress(state);
            }
            if done {
                behind.remove(&partition);
                let _ = followers[partition].restored.set(());
            }
        }
        batch.write(followers)?;
        told.end(state);
        state.followed.notify_waiters();
        Ok(())
    }

    pub(super) async fn state_get_many(
        self: &Arc<Self>,
        group: &GroupId,
        namespace: &str,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, LogError> {
        self.open()?;
        let state = self.group_state(group)?;
        if keys.is_empty() || !self.known_state(&state).await? {
            return Ok(vec![None; keys.len()]);
        }
        let count = state.followers.get().map_or(1, Vec::len) as u32;
        let partitions = keys.iter().map(|key| place(key, count)).collect();
        self.follow(&state, &partitions).await?;
        let keys: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| local_key(group, &topic_key(namespace, key)))
            .collect();
        self.blocking(move |shared| {
            let entries = &shared.state.store()?.entries;
            keys.into_iter()
                .map(|key| {
                    let value = entries.get(key).map_err(broken)?;
                    Ok(value.map(Bytes::from))
                })
                .collect()
        })
        .await
    }

    pub(super) async fn state_scan(
        self: &Arc<Self>,
        group: &GroupId,
        namespace: &str,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.open()?;
        let state = self.group_state(group)?;
        if !self.known_state(&state).await? {
            return Ok(Vec::new());
        }
        self.follow(&state, &state.all()).await?;
        let mut full = local_key(group, &topic_key(namespace, &[]));
        let names = full.len();
        full.extend_from_slice(prefix);
        self.blocking(move |shared| {
            shared
                .state
                .store()?
                .entries
                .prefix(full)
                .take(limit)
                .map(|guard| {
                    let (key, value) = guard.into_inner().map_err(broken)?;
                    Ok((Bytes::from(key).slice(names..), Bytes::from(value)))
                })
                .collect()
        })
        .await
    }

    /// Restores, in the background, the state of the keys that these partitions of rows have. An error costs nothing:
    /// the next read says it.
    pub(super) fn restore_state(self: &Arc<Self>, group: &GroupId, rows: Vec<u32>, of: u32) {
        let (shared, group) = (Arc::clone(self), group.clone());
        tokio::spawn(async move {
            if let Err(error) = shared.restore(&group, &rows, of).await {
                tracing::debug!(%group, %error, "state is restored when it is read");
            }
        });
    }

    pub(super) async fn restore(
        self: &Arc<Self>,
        group: &GroupId,
        rows: &[u32],
        of: u32,
    ) -> Result<(), LogError> {
        let state = self.group_state(group)?;
        if !self.known_state(&state).await? {
            return Ok(());
        }
        let count = state.followers.get().map_or(1, Vec::len) as u32;
        self.follow_each(&state, needed(rows, of, count)).await
    }

    /// Each by itself, so that a read of one partition does not wait for another.
    async fn follow_each(
        self: &Arc<Self>,
        state: &Arc<GroupState>,
        partitions: BTreeSet<usize>,
    ) -> Result<(), LogError> {
        let mut all = futures::stream::iter(partitions)
            .map(|partition| async move { self.follow(state, &BTreeSet::from([partition])).await })
            .buffer_unordered(RESTORED_AT_ONCE);
        while let Some(one) = all.next().await {
            one?;
        }
        Ok(())
    }

    /// Follows all state of a group until the member leaves, so that a takeover finds it here.
    pub(super) fn stand_by(self: &Arc<Self>, group: &GroupId, leave: CancellationToken) {
        let (shared, group) = (Arc::clone(self), group.clone());
        tokio::spawn(async move {
            loop {
                let followed = async {
                    let state = shared.group_state(&group)?;
                    if shared.known_state(&state).await? {
                        shared.follow_each(&state, state.all()).await?;
                    }
                    Ok::<_, LogError>(())
                };
                tokio::select! {
                    followed = followed => if let Err(error) = followed {
                        tracing::debug!(%group, %error, "the standby tries again");
                    },
                    () = leave.cancelled() => return,
                    () = shared.closed.cancelled() => return,
                }
                tokio::select! {
                    () = tokio::time::sleep(STANDBY_LOOKS) => {}
                    () = leave.cancelled() => return,
                    () = shared.closed.cancelled() => return,
                }
            }
        });
    }

    #[cfg(test)]
    pub(super) fn state_followed(
        &self,
        group: &GroupId,
    ) -> Result<Arc<tokio::sync::Notify>, LogError> {
        Ok(Arc::clone(&self.group_state(group)?.followed))
    }

    /// Records of the group's state that this process has applied.
    #[cfg(test)]
    pub(super) fn state_applied(&self, group: &GroupId) -> u64 {
        self.group_state(group).map_or(0, |state| state.applied())
    }
}

impl GroupState {
    fn all(&self) -> BTreeSet<usize> {
        (0..self.followers.get().map_or(0, Vec::len)).collect()
    }
}

fn broken(error: fjall::Error) -> LogError {
    LogError::Storage(format!("local copy of state: {error}"))
}

/// Changes on their way into the local store.
struct Applying<'a> {
    store: &'a Store,
    /// By key, so that the last one counts: the store must not get a key twice in one write.
    changes: HashMap<Vec<u8>, Option<Vec<u8>>>,
    next: HashMap<usize, i64>,
}

impl<'a> Applying<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            changes: HashMap::new(),
            next: HashMap::new(),
        }
    }

    /// Only then have the partitions been followed so far.
    fn write(&mut self, followers: &[Follower]) -> Result<(), LogError> {
        let mut batch = self.store.database.batch();
        for (key, value) in self.changes.drain() {
            match value {
                Some(value) => batch.insert(&self.store.entries, key, value),
                None => batch.remove(&self.store.entries, key),
            }
        }
        batch.commit().map_err(broken)?;
        for (partition, next) in self.next.drain() {
            followers[partition].next.store(next, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Tells how a restore goes: metrics, and lines of the log when it is a long one. Following what comes later is none.
struct Restore {
    /// Whether a partition is followed for the first time.
    is_one: bool,
    began: Instant,
    told: Instant,
    records: u64,
    /// Not yet in the metrics.
    new: u64,
    bytes: u64,
}

impl Restore {
    fn begin(state: &GroupState, behind: &BTreeMap<usize, i64>) -> Self {
        let followers = state.followers.get().map_or(&[][..], Vec::as_slice);
        Self {
            is_one: behind
                .keys()
                .any(|&partition| followers[partition].restored.get().is_none()),
            began: Instant::now(),
            told: Instant::now(),
            records: 0,
            new: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.new += 1;
        self.bytes += bytes as u64;
    }

    fn progress(&mut self, state: &GroupState) {
        if !self.is_one {
            return;
        }
        let group = || state.group.to_string();
        let left = state.remaining();
        metrics::counter!("va_state_restore_records_total", "group" => group())
            .increment(std::mem::take(&mut self.new));
        metrics::gauge!("va_state_restore_lag_records", "group" => group()).set(left as f64);
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            tracing::info!(group = %state.group, records = self.records, left, "state is being restored");
        }
    }

    fn end(mut self, state: &GroupState) {
        self.progress(state);
        if !self.is_one {
            return;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        metrics::histogram!("va_state_restore_seconds", "group" => state.group.to_string())
            .record(seconds);
        if self.records >= TELL_RECORDS {
            let mb_s = self.bytes as f64 / 1e6 / seconds.max(1e-9);
            tracing::info!(group = %state.group, records = self.records, bytes = self.bytes, seconds, mb_s, "state is restored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_state_are_aligned() {
        for (wanted, aligned, count) in [
            (8, &[][..], 8),
            (8, &[3][..], 9),
            (8, &[6, 4][..], 12),
            (8, &[8][..], 8),
            (8, &[251, 241][..], 8),
            (0, &[0][..], 1),
            (1_000, &[3][..], 256),
        ] {
            assert_eq!(
                partitions_for(wanted, aligned),
                count,
                "{wanted} {aligned:?}"
            );
        }
        for key in 0..1_000_u32 {
            let key = key.to_be_bytes();
            let (rows, state) = (partition_of(&key, 3).0, place(&key, 9));
            assert!(needed(&[rows], 3, 9).contains(&state));
        }
        assert_eq!(needed(&[1], 3, 9), BTreeSet::from([1, 4, 7]));
        assert_eq!(needed(&[1], 4, 6).len(), 6, "not aligned: all of it");
        assert_eq!(needed(&[], 3, 9).len(), 0);
    }
}
