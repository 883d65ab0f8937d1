//! The commit: encoded on the caller's side, then applied by whoever holds the writer, together with all that wait.
//!
//! A finished commit goes through: encode -> queue -> check (owners, topics, sizes) -> give offsets -> one write ->
//! new watermarks, which wake the readers. A commit that fails its check leaves no trace and does not disturb the others
//! of the same write.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::oneshot;
use va_catalog::{Offset, Partition, TopicName, TopicPartition};

use super::assign::MemberId;
use super::codec::{
    BatchEntry, KEY_BYTES_MAX, Marks, TopicId, VALUE_BYTES_MAX, batch_key, encode_batch, marks_key,
    offset_key, seal, state_key,
};
use super::groups::{Epoch, Groups};
use super::store::{Durability, Shared, Topic, lock, storage};
use crate::log::{Commit, GroupId, LogError, StateKey, Target, partition_of};

/// On whose behalf a commit consumes.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub group: GroupId,
    pub member: MemberId,
}

/// A position of a group.
struct Consumed {
    partition: TopicPartition,
    next: Offset,
    /// When the commit was told: the partition must have been owned since then.
    told: Epoch,
}

/// A commit being built.
pub(super) struct EmbeddedCommit {
    shared: Arc<Shared>,
    consumer: Option<Consumer>,
    appends: Vec<(TopicName, Target, RecordBatch)>,
    consumed: Vec<Consumed>,
    state: Vec<(StateKey, Option<Bytes>)>,
}

impl EmbeddedCommit {
    pub(super) fn new(shared: Arc<Shared>, consumer: Option<Consumer>) -> Self {
        Self {
            shared,
            consumer,
            appends: Vec::new(),
            consumed: Vec::new(),
            state: Vec::new(),
        }
    }
}

#[async_trait]
impl Commit for EmbeddedCommit {
    fn append(&mut self, topic: &TopicName, target: Target, batch: RecordBatch) {
        self.appends.push((topic.clone(), target, batch));
    }

    fn consumed(&mut self, partition: &TopicPartition, next: Offset) {
        self.consumed.push(Consumed {
            partition: partition.clone(),
            next,
            told: lock(&self.shared.groups).epoch(),
        });
    }

    fn put(&mut self, key: StateKey, value: Bytes) {
        self.state.push((key, Some(value)));
    }

    fn delete(&mut self, key: StateKey) {
        self.state.push((key, None));
    }

    async fn finish(self: Box<Self>) -> Result<Vec<Offset>, LogError> {
        let started = Instant::now();
        let shared = Arc::clone(&self.shared);
        let label = shared.options.durability.label();
        let (answer, answered) = oneshot::channel();
        // Not awaited: when the caller goes away, the commit is still finished by this task or by another's.
        tokio::task::spawn_blocking(move || {
            let shared = Arc::clone(&self.shared);
            match self.encode() {
                Ok(prepared) => {
                    lock(&shared.queue).push((prepared, answer));
                    shared.apply_queue();
                }
                Err(error) => {
                    let _ = answer.send(Err(error));
                }
            }
        });
        let result = answered.await.unwrap_or_else(|_| {
            Err(LogError::Indefinite(
                "the task that wrote it ended early".to_owned(),
            ))
        });
        metrics::histogram!("va_log_commit_seconds", "durability" => label)
            .record(started.elapsed().as_secs_f64());
        result
    }
}

type Answer = oneshot::Sender<Result<Vec<Offset>, LogError>>;

/// Commits that wait for the writer. Bounded by the number of callers, who wait too.
pub(super) type Queue = Vec<(Prepared, Answer)>;

/// A commit without its offsets.
pub(super) struct Prepared {
    consumer: Option<Consumer>,
    appends: Vec<PreparedAppend>,
    consumed: Vec<Consumed>,
    state: Vec<(Vec<u8>, Option<Bytes>)>,
}

struct PreparedAppend {
    topic: TopicName,
    target: Target,
    rows: u32,
    /// Without its checksum; `None` for an empty batch.
    value: Option<Vec<u8>>,
}

impl EmbeddedCommit {
    /// Everything that needs no lock.
    fn encode(self) -> Result<Prepared, LogError> {
        if self.consumer.is_none()
            && let Some(consumed) = self.consumed.first()
        {
            return Err(LogError::Config(format!(
                "only a member's commit consumes: `{}` was consumed on a producer's",
                consumed.partition
            )));
        }
        let mut appends = Vec::with_capacity(self.appends.len());
        for (topic, target, batch) in self.appends {
            let rows = u32::try_from(batch.num_rows()).map_err(|_| {
                LogError::Config(format!(
                    "a batch of {} rows for `{topic}` is too large: at most {}",
                    batch.num_rows(),
                    u32::MAX
                ))
            })?;
            let value = (rows > 0).then(|| encode_batch(&batch)).transpose()?;
            appends.push(PreparedAppend {
                topic,
                target,
                rows,
                value,
            });
        }
        let mut state = Vec::with_capacity(self.state.len());
        for (key, value) in self.state {
            let bytes = state_key(&key);
            let value_len = value.as_ref().map_or(0, Bytes::len);
            if bytes.len() > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
                return Err(LogError::Config(format!(
                    "state of `{}` in `{}` is too large: its key has {} bytes (at most {KEY_BYTES_MAX} with the names), \
                     its value {value_len} (at most {VALUE_BYTES_MAX})",
                    key.namespace,
                    key.group,
                    bytes.len(),
                )));
            }
            state.push((bytes, value));
        }
        Ok(Prepared {
            consumer: self.consumer,
            appends,
            consumed: self.consumed,
            state,
        })
    }
}

/// The changes of the commits that are written together. Later values of a key replace earlier ones, because the store
/// must not get one key twice in one write.
#[derive(Default)]
struct Staged {
    marks: HashMap<(TopicId, Partition), (Arc<Topic>, Marks)>,
    batches: Vec<([u8; 16], BatchEntry, Vec<u8>)>,
    offsets: BTreeMap<Vec<u8>, Offset>,
    state: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl Shared {
    /// Writes everything that waits. When another thread already took this caller's commit, there is nothing left to do.
    fn apply_queue(&self) {
        let writer = self.writer();
        let waiting = std::mem::take(&mut *lock(&self.queue));
        if let Err(error) = &writer {
            for (_, answer) in waiting {
                let _ = answer.send(Err(error.clone()));
            }
            return;
        }
        if waiting.is_empty() {
            return;
        }

        let mut staged = Staged::default();
        let mut accepted = Vec::with_capacity(waiting.len());
        let now = (self.options.clock)();
        {
            let groups = lock(&self.groups);
            for (prepared, answer) in waiting {
                match self.stage(&groups, &mut staged, prepared, now) {
                    Ok(offsets) => accepted.push((answer, offsets)),
                    Err(error) => {
                        let _ = answer.send(Err(error));
                    }
                }
            }
        }
        let written = self.write(&mut staged);
        for (answer, offsets) in accepted {
            let result = match &written {
                Ok(()) => Ok(offsets),
                Err(error) => Err(error.clone()),
            };
            // Nobody listens when the caller has gone; the commit stands all the same.
            let _ = answer.send(result);
        }
    }

    /// Checks a commit, gives it offsets and adds it to `staged`; on an error `staged` is as before.
    fn stage(
        &self,
        groups: &Groups,
        staged: &mut Staged,
        prepared: Prepared,
        now: i64,
    ) -> Result<Vec<Offset>, LogError> {
        let mut places = Vec::with_capacity(prepared.appends.len());
        for append in &prepared.appends {
            let topic = self.topic(&append.topic)?;
            let partition = match &append.target {
                Target::Partition(partition) => *partition,
                Target::Key(key) => partition_of(key, topic.config.partitions),
            };
            topic.marks(partition)?;
            places.push((topic, partition));
        }
        for Consumed {
            partition, told, ..
        } in &prepared.consumed
        {
            self.topic_of(partition)?;
            let owned = prepared.consumer.as_ref().is_some_and(|consumer| {
                groups.owns_since(&consumer.group, consumer.member, partition, *told)
            });
            if !owned {
                return Err(LogError::Fenced(partition.clone()));
            }
        }

        let mut offsets = Vec::with_capacity(places.len());
        for (append, (topic, partition)) in prepared.appends.into_iter().zip(places) {
            let key = (topic.id, partition);
            let committed = *topic.marks(partition)?.borrow();
            let (_, marks) = staged
                .marks
                .entry(key)
                .or_insert_with(|| (topic, committed));
            let base = Offset(marks.high);
            offsets.push(base);
            let Some(mut value) = append.value else {
                continue;
            };
            let key = batch_key(key.0, partition, base);
            seal(&key, &mut value);
            let entry = BatchEntry {
                appended_at_ms: now.max(marks.last_ms),
                rows: append.rows,
                bytes: u32::try_from(value.len()).unwrap_or(u32::MAX),
            };
            marks.high += u64::from(entry.rows);
            marks.bytes += u64::from(entry.bytes);
            marks.last_ms = entry.appended_at_ms;
            staged.batches.push((key, entry, value));
        }
        if let Some(consumer) = &prepared.consumer {
            for Consumed {
                partition, next, ..
            } in prepared.consumed
            {
                let key = offset_key(&consumer.group, &partition.topic, partition.partition);
                staged.offsets.insert(key, next);
            }
        }
        staged.state.extend(prepared.state);
        Ok(offsets)
    }

    /// The one atomic write, and then the news for the readers.
    fn write(&self, staged: &mut Staged) -> Result<(), LogError> {
        let mut batch = self.db.batch();
        for (key, entry, value) in std::mem::take(&mut staged.batches) {
            batch.insert(&self.index, key, entry.encode());
            batch.insert(&self.batches, key, value);
        }
        for ((topic, partition), (_, marks)) in &staged.marks {
            batch.insert(&self.meta, marks_key(*topic, *partition), marks.encode());
        }
        for (key, next) in std::mem::take(&mut staged.offsets) {
            batch.insert(&self.offsets, key, next.0.to_le_bytes());
        }
        for (key, value) in std::mem::take(&mut staged.state) {
            match value {
                Some(value) => batch.insert(&self.state, key, value),
                None => batch.remove(&self.state, key),
            }
        }
        let mode = match self.options.durability {
            Durability::EveryCommit => PersistMode::SyncData,
            Durability::Interval(_) => PersistMode::Buffer,
        };
        batch.durability(Some(mode)).commit().map_err(|e| match e {
            // The journal may hold it, whole, and then a restart brings it back.
            fjall::Error::Io(e) => LogError::Indefinite(e.to_string()),
            other => storage(other),
        })?;
        self.dirty.store(true, Ordering::Release);
        for ((_, partition), (topic, marks)) in &staged.marks {
            if let Some(sender) = topic.partitions.get(partition.0 as usize) {
                let former = sender.send_replace(*marks);
                let name = topic.name.to_string();
                metrics::counter!("va_log_appended_rows_total", "topic" => name.clone())
                    .increment(marks.high - former.high);
                metrics::counter!("va_log_appended_bytes_total", "topic" => name)
                    .increment(marks.bytes - former.bytes);
            }
        }
        Ok(())
    }
}
