//! The commit: checked and encoded first, then one transaction. A commit that fails its check wrote nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::Array;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use va_catalog::{Offset, TopicName, TopicPartition};

use super::client::{Shared, storage};
use super::codec;
use super::member::{Epoch, Membership};
use super::names::{OffsetNote, Position};
use super::producer::{Outgoing, OutgoingRecords, TransactionError, TransactionalProducer, Writes};
use super::state;
use crate::log::records::Records;
use crate::log::{Commit, GroupId, LogError, StateKey, Target, partition_of};

/// Between two tries while the group is being rearranged.
const REARRANGING: Duration = Duration::from_millis(50);

/// Room that a record's key and headers take of the largest record.
const FRAME_BYTES: usize = 4 << 10;

/// A position of a group, and the assignment under which the commit was told of it.
struct Consumed {
    place: TopicPartition,
    next: Offset,
    told: Option<Epoch>,
}

/// A commit being built.
pub(super) struct KafkaCommit {
    shared: Arc<Shared>,
    member: Option<Arc<Membership>>,
    appends: Vec<(TopicName, Target, RecordBatch)>,
    consumed: Vec<Consumed>,
    /// By key, so that the last word counts.
    state: HashMap<StateKey, Option<Bytes>>,
}

impl KafkaCommit {
    pub(super) fn new(shared: Arc<Shared>, member: Option<Arc<Membership>>) -> Self {
        Self {
            shared,
            member,
            appends: Vec::new(),
            consumed: Vec::new(),
            state: HashMap::new(),
        }
    }
}

#[async_trait]
impl Commit for KafkaCommit {
    fn append(&mut self, topic: &TopicName, target: Target, batch: RecordBatch) {
        self.appends.push((topic.clone(), target, batch));
    }

    fn consumed(&mut self, partition: &TopicPartition, next: Offset) {
        self.consumed.push(Consumed {
            place: partition.clone(),
            next,
            told: self
                .member
                .as_ref()
                .and_then(|member| member.epoch(partition)),
        });
    }

    fn put(&mut self, key: StateKey, value: Bytes) {
        self.state.insert(key, Some(value));
    }

    fn delete(&mut self, key: StateKey) {
        self.state.insert(key, None);
    }

    async fn finish(self: Box<Self>) -> Result<Vec<Offset>, LogError> {
        let started = Instant::now();
        let Self {
            shared,
            member,
            appends,
            consumed,
            state,
        } = *self;
        shared.open()?;
        if member.is_none()
            && let Some(consumed) = consumed.first()
        {
            return Err(LogError::Config(format!(
                "only a member's commit consumes: `{}` was consumed on a producer's",
                consumed.place
            )));
        }
        let mut prepared = shared
            .blocking(move |shared| Prepared::of(shared, appends, state))
            .await?;
        for (group, changes) in &prepared.state {
            let partitions = shared.ready_state(group, &[]).await?;
            for &(at, hash_of) in changes {
                let outgoing = &mut prepared.writes.single[at];
                let key = outgoing.key.as_deref().unwrap_or_default();
                outgoing.partition = state::place(&key[hash_of..], partitions) as i32;
            }
        }
        let result = if prepared.writes.is_empty() && consumed.is_empty() {
            prepared.bases(&shared, &[]).await
        } else {
            let transaction = Transaction {
                shared: Arc::clone(&shared),
                prepared: Arc::new(prepared),
                consumed,
            };
            // Not on the caller's task: when the caller goes away, a transaction that has begun is still ended.
            let task = tokio::spawn(async move {
                match member {
                    Some(member) => transaction.of_member(&member).await,
                    None => transaction.of_producer().await,
                }
            });
            task.await.unwrap_or_else(|e| {
                Err(LogError::Indefinite(format!(
                    "the task that wrote it ended early: {e}"
                )))
            })
        };
        metrics::histogram!("va_log_commit_seconds", "durability" => "kafka")
            .record(started.elapsed().as_secs_f64());
        result
    }
}

/// Where the first record of an append is.
enum Placed {
    /// Among the single ones.
    Single(usize),
    /// In this batch of records.
    Records(usize),
    /// It was empty.
    Nowhere(TopicPartition),
}

/// A commit as records.
struct Prepared {
    writes: Writes,
    appends: Vec<Placed>,
    /// Changes of each group's state: where they are among the single records, and where in the record's key that of the
    /// state begins.
    state: HashMap<GroupId, Vec<(usize, usize)>>,
}

impl Prepared {
    /// Blocks when a topic is not known yet.
    fn of(
        shared: &Shared,
        appends: Vec<(TopicName, Target, RecordBatch)>,
        state: HashMap<StateKey, Option<Bytes>>,
    ) -> Result<Self, LogError> {
        let record_bytes_max = shared.options.record_bytes_max as usize - FRAME_BYTES;
        let mut prepared = Self {
            writes: Writes::default(),
            appends: Vec::new(),
            state: HashMap::new(),
        };
        for (topic, target, batch) in appends {
            let partitions = shared.partitions(&topic)?;
            let (partition, key) = match target {
                Target::Partition(partition) => (partition, None),
                Target::Key(key) => (partition_of(&key, partitions), Some(key.to_vec())),
            };
            let place = TopicPartition { topic, partition };
            let kafka = shared.place(&place)?;
            if batch.num_rows() == 0 {
                prepared.appends.push(Placed::Nowhere(place));
                continue;
            }
            if let Some(records) = Records::of(&batch) {
                check_sizes(&records, record_bytes_max)?;
                let at = Placed::Records(prepared.writes.records.len());
                prepared.appends.push(at);
                prepared.writes.records.push(OutgoingRecords {
                    topic: kafka,
                    partition: place.partition.0 as i32,
                    batch,
                });
                continue;
            }
            let at = Placed::Single(prepared.writes.single.len());
            prepared.appends.push(at);
            let trace = codec::traceparent(&batch).map(str::to_owned);
            for record in codec::encode(&batch, record_bytes_max)? {
                prepared.writes.single.push(Outgoing {
                    topic: kafka.clone(),
                    partition: place.partition.0 as i32,
                    key: key.clone(),
                    headers: Some(codec::headers(&record, trace.as_deref())),
                    payload: Some(record.payload),
                });
            }
        }
        for (key, value) in state {
            let outgoing = state::outgoing(&shared.options.prefix, &key, value)?;
            let bytes = outgoing.key.as_ref().map_or(0, Vec::len)
                + outgoing.payload.as_ref().map_or(0, Vec::len);
            if bytes > record_bytes_max {
                return Err(LogError::Config(format!(
                    "state of `{}` in `{}` is too large: {bytes} bytes, at most {record_bytes_max}; raise `record_bytes_max`",
                    key.namespace, key.group
                )));
            }
            let begins = outgoing.key.as_ref().map_or(0, Vec::len) - key.key.len();
            let at = (prepared.writes.single.len(), begins);
            prepared.state.entry(key.group).or_default().push(at);
            prepared.writes.single.push(outgoing);
        }
        Ok(prepared)
    }

    /// The base of each append, given where the records went.
    async fn bases(&self, shared: &Arc<Shared>, written: &[i64]) -> Result<Vec<Offset>, LogError> {
        let (single, mut rest) = written.split_at(self.writes.single.len().min(written.len()));
        let mut last: HashMap<(&str, i32), i64> = HashMap::new();
        for (outgoing, &record) in self.writes.single.iter().zip(single) {
            let last = last
                .entry((&outgoing.topic, outgoing.partition))
                .or_insert(record);
            *last = record.max(*last);
        }
        for ((topic, partition), record) in last {
            shared.note_written(topic, partition, record);
        }
        let mut firsts = Vec::with_capacity(self.writes.records.len());
        for part in &self.writes.records {
            let (of_part, others) = rest.split_at(part.batch.num_rows().min(rest.len()));
            rest = others;
            firsts.push(of_part.first().copied().unwrap_or_default());
            if let Some(last) = of_part.last() {
                shared.note_written(&part.topic, part.partition, *last);
            }
        }
        let mut bases = Vec::with_capacity(self.appends.len());
        for append in &self.appends {
            bases.push(match append {
                Placed::Single(first) => {
                    let record = single.get(*first).copied().unwrap_or_default();
                    Position::start_of(record).offset()
                }
                Placed::Records(part) => {
                    let record = firsts.get(*part).copied().unwrap_or_default();
                    Position::start_of(record).offset()
                }
                Placed::Nowhere(place) => {
                    let asked = place.clone();
                    // The commit has happened; a watermark that cannot be asked for now is no reason to doubt it.
                    let marks = shared
                        .blocking(move |shared| shared.watermarks(&asked))
                        .await;
                    marks.map_or(Offset(0), |marks| marks.high)
                }
            });
        }
        Ok(bases)
    }
}

/// Refuses what the brokers would refuse, before anything is sent.
fn check_sizes(records: &Records<'_>, bytes_max: usize) -> Result<(), LogError> {
    for row in 0..records.values.len() {
        let bytes = records.key(row).map_or(0, <[u8]>::len)
            + records.value(row).map_or(0, <[u8]>::len)
            + records
                .headers(row)
                .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len))
                .sum::<usize>();
        if bytes > bytes_max {
            return Err(LogError::Config(format!(
                "a record of {bytes} bytes is too large: at most {bytes_max}; raise `record_bytes_max`"
            )));
        }
    }
    Ok(())
}

struct Transaction {
    shared: Arc<Shared>,
    prepared: Arc<Prepared>,
    consumed: Vec<Consumed>,
}

type Outcome = Result<Vec<i64>, TransactionError>;

impl Transaction {
    async fn of_producer(self) -> Result<Vec<Offset>, LogError> {
        // Bounds the producers; nobody closes it.
        let permit = Arc::clone(&self.shared.producers.permits)
            .acquire_owned()
            .await;
        let prepared = Arc::clone(&self.prepared);
        let written = self
            .shared
            .blocking(move |shared| {
                let producer = shared.producers.take_plain(&shared.options)?;
                let outcome = producer.run(&prepared.writes, None, shared.timeout());
                let (outcome, producer) = after(shared, producer, outcome);
                if let Some(producer) = producer {
                    shared.producers.give_plain(producer);
                }
                outcome.map_err(|e| match e {
                    TransactionError::Aborted(code, text) => aborted(code, text),
                    TransactionError::Fenced(text) => LogError::Retriable(text),
                    TransactionError::Unknown(text) => LogError::Indefinite(text),
                })
            })
            .await?;
        drop(permit);
        self.prepared.bases(&self.shared, &written).await
    }

    async fn of_member(self, member: &Arc<Membership>) -> Result<Vec<Offset>, LogError> {
        let mut slot = Arc::clone(&member.producer).lock_owned().await;
        let deadline = Instant::now() + self.shared.timeout();
        loop {
            // In this order: a partition that is lost after the check belongs to a later generation, which the broker
            // finds out.
            let metadata = member.group_metadata();
            self.check_owned(member)?;
            let lost = || self.fenced(member);
            let Some(metadata) = metadata else {
                return Err(lost());
            };
            let list = self.offsets(member)?;
            let (former, id) = (slot.take(), member.transactional_id.clone());
            let prepared = Arc::clone(&self.prepared);
            let (outcome, producer) = self
                .shared
                .blocking(move |shared| {
                    let producer = match former {
                        Some(producer) => producer,
                        None => shared.producers.init(&shared.options, &id)?,
                    };
                    let offsets = (list.count() > 0).then_some((&list, &metadata));
                    let outcome = producer.run(&prepared.writes, offsets, shared.timeout());
                    Ok(after(shared, producer, outcome))
                })
                .await?;
            *slot = producer;
            let error = match outcome {
                Ok(written) => return self.prepared.bases(&self.shared, &written).await,
                Err(error) => error,
            };
            match error {
                TransactionError::Unknown(text) => return Err(LogError::Indefinite(text)),
                TransactionError::Aborted(Code::UnknownMemberId | Code::FencedInstanceId, _) => {
                    return Err(lost());
                }
                // The group is being rearranged: what this member keeps it may commit a moment later.
                TransactionError::Aborted(
                    Code::IllegalGeneration | Code::RebalanceInProgress,
                    text,
                ) => {
                    if Instant::now() >= deadline {
                        return Err(LogError::Retriable(text));
                    }
                    tokio::time::sleep(REARRANGING).await;
                }
                TransactionError::Aborted(code, text) => return Err(aborted(code, text)),
                // Somebody took this member for dead. Whether it is, the brokers say at the next try.
                TransactionError::Fenced(text) => {
                    self.check_owned(member)?;
                    return Err(LogError::Retriable(text));
                }
            }
        }
    }

    fn check_owned(&self, member: &Membership) -> Result<(), LogError> {
        for consumed in &self.consumed {
            if consumed.told.is_none() || member.epoch(&consumed.place) != consumed.told {
                return Err(LogError::Fenced(consumed.place.clone()));
            }
        }
        Ok(())
    }

    fn fenced(&self, member: &Membership) -> LogError {
        match self.consumed.first() {
            Some(consumed) => LogError::Fenced(consumed.place.clone()),
            None => LogError::Retriable(format!("group `{}` was left", member.group)),
        }
    }

    fn offsets(&self, member: &Membership) -> Result<TopicPartitionList, LogError> {
        // By partition, so that the last word counts.
        let last: BTreeMap<&TopicPartition, Offset> =
            self.consumed.iter().map(|c| (&c.place, c.next)).collect();
        let mut list = TopicPartitionList::with_capacity(last.len());
        for (place, next) in last {
            let position = Position::of(next);
            let note = OffsetNote {
                row: position.row,
                producer: Some(member.transactional_id.clone()),
                forgotten: false,
            };
            let topic = self.shared.kafka_topic(&place.topic)?;
            let mut element = list.add_partition(&topic, place.partition.0 as i32);
            element
                .set_offset(KafkaOffset::Offset(position.record))
                .map_err(|e| storage("set an offset", &e))?;
            element.set_metadata(note.encode());
        }
        Ok(list)
    }
}

/// Whether the brokers answered, and said no: then no request of the transaction is still on its way.
fn is_answer(code: Code) -> bool {
    matches!(
        code,
        Code::IllegalGeneration
            | Code::RebalanceInProgress
            | Code::UnknownMemberId
            | Code::FencedInstanceId
            | Code::MessageSizeTooLarge
    )
}

/// What becomes of the producer after its transaction. Blocks when it has to be replaced.
fn after(
    shared: &Shared,
    producer: TransactionalProducer,
    outcome: Outcome,
) -> (Outcome, Option<TransactionalProducer>) {
    let producer = match &outcome {
        Ok(_) => Some(producer),
        Err(TransactionError::Aborted(code, _)) if is_answer(*code) => Some(producer),
        Err(TransactionError::Fenced(_)) => None,
        // Also when it was aborted after a time-out: a late copy of a request may still be under way.
        Err(TransactionError::Aborted(..) | TransactionError::Unknown(_)) => {
            shared.producers.replace(&shared.options, producer)
        }
    };
    (outcome, producer)
}

fn aborted(code: Code, text: String) -> LogError {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => {
            LogError::Config(format!("kafka refused a record: {text}"))
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed => {
            LogError::Config(format!("kafka: not allowed: {text}"))
        }
        _ => LogError::Retriable(text),
    }
}
