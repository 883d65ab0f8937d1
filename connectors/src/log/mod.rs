//! The log seam: partitioned topics, consumer groups, and one atomic commit of appends, consumed offsets and state.
//!
//! [`embedded`] implements it on an embedded LSM store, `kafka` (a feature) on Apache Kafka; nothing here promises what a
//! Kafka transaction cannot do. [`conformance`] is the suite both must pass.
//! Schemas of topics are the catalog's business: a log stores any record batch. [`records`] is how it carries what other
//! programs write and read: single messages, whose bytes it does not look into.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod records;

use std::fmt;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};

pub use records::FetchedRecords;

/// What a topic keeps. Created once; a second `create_topic` with the same values is a no-op.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfig {
    pub partitions: u32,
    /// Batches older than this may be removed. `None` keeps everything.
    pub retention_ms: Option<u64>,
    /// Oldest batches of a partition are removed above this size. `None` keeps everything.
    pub retention_bytes: Option<u64>,
}

impl Default for TopicConfig {
    /// 3 partitions, 7 days.
    fn default() -> Self {
        Self {
            partitions: 3,
            retention_ms: Some(7 * 24 * 3_600_000),
            retention_bytes: None,
        }
    }
}

/// A consumer group. A pipeline's group has the pipeline's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub PipelineName);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A batch as stored: its rows have the offsets `base .. base + rows`. Nothing follows for the next batch but that its
/// base is not below: offsets have no gaps in the embedded log, and may have in others.
#[derive(Debug, Clone)]
pub struct LogBatch {
    pub base: Offset,
    pub batch: RecordBatch,
    /// When it was appended, UTC milliseconds.
    pub appended_at_ms: i64,
}

/// Result of a fetch.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// In offset order; the first may have been sliced so that it begins at the requested offset.
    pub batches: Vec<LogBatch>,
    /// Where to go on: behind the last returned row, or the requested offset when nothing came, or the low watermark
    /// when the requested rows had already been removed by retention (then `skipped` says how many). It may be beyond
    /// the last row plus one, and may be ahead without a row, where offsets have gaps: a reader stores this as its
    /// position when it has handled the rows, and reads on from it.
    pub next: Offset,
    /// What retention removed before it was read, as [`Log::distance`] counts; the caller counts and reports it.
    pub skipped: u64,
    /// The high watermark, never below `next`.
    pub high: Offset,
}

/// First offset that can be read, and the one behind all that can be read. A reader has read everything when its
/// position equals `high`; how much is left is [`Log::distance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    pub low: Offset,
    pub high: Offset,
}

/// Where an append goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To this partition.
    Partition(Partition),
    /// To the partition of this key: the same key always goes to the same partition, in order.
    Key(Bytes),
}

/// Names one operator's state in one partition set: `(pipeline, node, key)`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKey {
    pub group: GroupId,
    /// The node's name, or another namespace of the group.
    pub namespace: String,
    pub key: Bytes,
}

/// Most rows and bytes that one fetch should return; at least one batch is returned when there is one.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimit {
    pub rows: usize,
    pub bytes: usize,
}

impl Default for FetchLimit {
    fn default() -> Self {
        Self {
            rows: 8_192,
            bytes: 4 << 20,
        }
    }
}

/// A partitioned, durable, replayable log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Creates the topic, or does nothing when it is there with the same partitions (retention is updated).
    /// [`LogError::Config`] when the partitions differ.
    async fn create_topic(&self, topic: &TopicName, config: TopicConfig) -> Result<(), LogError>;

    /// Removes the topic, its rows and its committed offsets.
    async fn delete_topic(&self, topic: &TopicName) -> Result<(), LogError>;

    /// All topics, by name.
    async fn topics(&self) -> Result<Vec<(TopicName, TopicConfig)>, LogError>;

    async fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks, LogError>;

    /// How far apart two positions of a partition are, for lag: 0 exactly when `to` is not ahead of `from`. Counts rows
    /// where offsets have no gaps. On Kafka it counts records, each a batch of rows, and what ends transactions: an
    /// upper bound of the batches that are left. Subtracting offsets says nothing there.
    fn distance(&self, from: Offset, to: Offset) -> u64 {
        to.0.saturating_sub(from.0)
    }

    /// First offset whose batch was appended at or after `time_ms`; the high watermark when there is none.
    async fn offset_at(&self, partition: &TopicPartition, time_ms: i64)
    -> Result<Offset, LogError>;

    /// Rows from `from` on, perhaps fewer than there are. When there is none, waits until one is committed or `wait` has
    /// passed, without polling; it may return early without rows when `next` has moved over a gap. Cancel-safe.
    async fn fetch(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<Fetched, LogError>;

    /// The same for a topic of [`records`]: many in one batch. [`LogError::Config`] when the topic holds batches, as
    /// [`Log::fetch`] says [`LogError::Corrupt`] of records.
    async fn fetch_records(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<FetchedRecords, LogError>;

    /// Committed offset of a group: where it will read on, moved over gaps, so that it equals the high watermark exactly
    /// when the group has consumed everything. `None` when it never committed there. Rows that were committed together with
    /// it are below the watermark of their partition when that is asked for afterwards.
    async fn committed(
        &self,
        group: &GroupId,
        partition: &TopicPartition,
    ) -> Result<Option<Offset>, LogError>;

    /// Watermarks and committed offsets of a group, in the order of `partitions`; of each the watermarks are read first, so
    /// that what is committed meanwhile may be beyond them, never the other way round. A log that blocks answers in one go.
    async fn positions(
        &self,
        group: &GroupId,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(Watermarks, Option<Offset>)>, LogError> {
        let mut positions = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let marks = self.watermarks(partition).await?;
            positions.push((marks, self.committed(group, partition).await?));
        }
        Ok(positions)
    }

    /// Groups that have committed an offset; on Kafka those that the brokers remember.
    async fn groups(&self) -> Result<Vec<GroupId>, LogError>;

    /// Sets or (with `None`) forgets a group's offsets: reset, replay. Refused while the group has members.
    async fn reset_group(
        &self,
        group: &GroupId,
        offsets: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError>;

    /// Joins a consumer group; the partitions of `topics` are shared among its members.
    async fn join(
        &self,
        group: &GroupId,
        topics: &[TopicName],
    ) -> Result<Box<dyn Member>, LogError>;

    /// A commit that consumes nothing: for producers.
    fn begin(&self) -> Box<dyn Commit>;

    /// State as of the last commit.
    async fn state_get(&self, key: &StateKey) -> Result<Option<Bytes>, LogError>;

    /// State of several keys of a namespace, in the order of the keys, each as of the last commit or a later one: as
    /// [`Log::state_get`] for each, in one go.
    async fn state_get_many(
        &self,
        group: &GroupId,
        namespace: &str,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, LogError> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let key = StateKey {
                group: group.clone(),
                namespace: namespace.to_owned(),
                key: key.clone(),
            };
            values.push(self.state_get(&key).await?);
        }
        Ok(values)
    }

    /// Makes room for the group's state, before its first commit: best where [`partition_of`] of a state's key is taken
    /// modulo one of these numbers, which are those of the partitions that its rows come in. Changes nothing for state
    /// that is there.
    async fn create_state(&self, _group: &GroupId, _aligned: &[u32]) -> Result<(), LogError> {
        Ok(())
    }

    /// The caller is about to ask for state whose keys [`partition_of`] puts into one of these of so many partitions. It
    /// is brought near in the background; nothing depends on it but how soon answers come.
    fn restore_state(&self, _group: &GroupId, _partitions: &[Partition], _of: u32) {}

    /// How much of the group's state, in changes, is still to be brought near; 0 where state is always near.
    fn state_restoring(&self, _group: &GroupId) -> u64 {
        0
    }

    /// All state of a namespace whose key begins with `prefix`, in key order, at most `limit` entries.
    async fn state_scan(
        &self,
        group: &GroupId,
        namespace: &str,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError>;

    /// Removes rows before these positions, as far as whole batches go: their only reader has consumed them. A log may keep
    /// them for as long as retention says.
    async fn trim(&self, _before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        Ok(())
    }

    /// Removes what retention allows, everywhere; returns the rows removed. Called by a background task. A log whose
    /// servers do this by themselves (Kafka) does nothing and returns 0.
    async fn enforce_retention(&self, now_ms: i64) -> Result<u64, LogError>;

    /// What is set up in a way that will hurt, as far as the log can tell. Nothing, by default.
    async fn diagnose(&self) -> Result<Vec<Finding>, LogError> {
        Ok(Vec::new())
    }

    /// Makes everything committed so far durable and refuses further commits.
    async fn close(&self) -> Result<(), LogError>;
}

/// Something that is set up in a way that will hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One word for what it is about.
    pub name: String,
    /// What is wrong, and what follows from it.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// A change of the partitions that a member owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rebalance {
    /// Newly owned, with the offset to read from: the committed one, else the low watermark.
    pub assigned: Vec<(TopicPartition, Offset)>,
    /// To be given up: finish and commit what was read, then call [`Member::release`]. Until then nobody else gets them.
    pub revoked: Vec<TopicPartition>,
}

/// Membership in a consumer group. Dropping it leaves the group: its partitions move at once.
#[async_trait]
pub trait Member: Send + Sync {
    /// Waits for the next change of assignment. The first call returns the first assignment (perhaps empty).
    /// Cancel-safe.
    async fn rebalance(&self) -> Result<Rebalance, LogError>;

    /// Gives up partitions after their last commit.
    async fn release(&self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// A commit on behalf of this member: it fails with [`LogError::Fenced`] when it consumes a partition that the
    /// member does not own any more.
    fn begin(&self) -> Box<dyn Commit>;
}

/// One atomic change. Nothing is visible before [`Commit::finish`] returns `Ok`, and everything is after; to other
/// processes on the same servers everything at once, within moments.
#[async_trait]
pub trait Commit: Send {
    /// Appends a batch; empty batches are ignored. A batch of [`records`] is appended as single records, which keep
    /// their keys; with [`Target::Key`] that key only chooses the partition.
    fn append(&mut self, topic: &TopicName, target: Target, batch: RecordBatch);

    /// Records that the group has consumed everything before `next`. Only on a member's commit.
    fn consumed(&mut self, partition: &TopicPartition, next: Offset);

    /// Writes state.
    fn put(&mut self, key: StateKey, value: Bytes);

    /// Deletes state.
    fn delete(&mut self, key: StateKey);

    /// Makes it so. On success returns the base offset of each append, in order of the calls (empty batches included,
    /// with the high watermark at that time).
    ///
    /// `Fenced`: stop, somebody else owns the partitions. `Retriable`: nothing happened, the same commit may be built
    /// again. `Indefinite`: it may have happened; re-join, read the committed position, replay from there.
    async fn finish(self: Box<Self>) -> Result<Vec<Offset>, LogError>;
}

/// What went wrong, by what the caller must do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("topic `{0}` does not exist; create it with `va topic create {0}`")]
    UnknownTopic(TopicName),
    #[error("partition {partition} of topic `{topic}` does not exist: it has {partitions}")]
    UnknownPartition {
        topic: TopicName,
        partition: Partition,
        partitions: u32,
    },
    #[error("{0}")]
    Config(String),
    #[error("fenced: `{0}` is owned by another member of the group")]
    Fenced(TopicPartition),
    #[error("the commit did not happen and may be repeated: {0}")]
    Retriable(String),
    #[error("the commit may or may not have happened: {0}")]
    Indefinite(String),
    #[error("the log is closed")]
    Closed,
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    #[error("log storage: {0}")]
    Storage(String),
}

/// The partition of a key: murmur2 as Kafka's default partitioner, so that both logs place keys alike.
pub fn partition_of(key: &[u8], partitions: u32) -> Partition {
    Partition((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

/// MurmurHash2, 32 bit, seed 0x9747b28c (Austin Appleby; the variant in Kafka's `Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_land_where_kafka_puts_them() {
        // Values of Kafka's own `UtilsTest.testMurmur2`.
        for (key, hash) in [
            ("21", -973932308_i32),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
