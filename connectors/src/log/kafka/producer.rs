//! Transactions: who writes them, and what is done when one ends badly.
//!
//! A producer belongs to one transactional id. A member has one of its own; [`Log::begin`](crate::log::Log::begin)
//! takes one from a pool. When the end of a transaction is unknown the producer is thrown away and its id is
//! *unsettled*: a new producer of that id, whose initialisation ends or aborts what the former one began, settles it.
//! No position of a group is told while an id is unsettled, because the unknown transaction could still move it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::client::{Quiet, lock};
use super::options::KafkaOptions;
use crate::log::LogError;
use crate::log::records::Records;

/// Plain commits that run at the same time; more wait.
const PLAIN_MAX: usize = 8;

/// Between two looks for deliveries.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How a transaction failed.
#[derive(Debug)]
pub(super) enum TransactionError {
    /// It was aborted: nothing happened.
    Aborted(Code, String),
    /// A newer producer of the same id ended it: nothing happened.
    Fenced(String),
    /// It may have happened.
    Unknown(String),
}

/// One record of a transaction.
pub(super) struct Outgoing {
    pub topic: String,
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
}

/// Records of one partition, as [`crate::log::records`] holds them: sent without a copy of each in between.
pub(super) struct OutgoingRecords {
    pub topic: String,
    pub partition: i32,
    pub batch: RecordBatch,
}

/// Everything that a transaction writes: numbered in this order, the rows of each batch one by one.
#[derive(Default)]
pub(super) struct Writes {
    pub single: Vec<Outgoing>,
    pub records: Vec<OutgoingRecords>,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        self.single.is_empty() && self.records.is_empty()
    }

    fn len(&self) -> usize {
        let rows: usize = self.records.iter().map(|r| r.batch.num_rows()).sum();
        self.single.len() + rows
    }
}

/// Where the records of the running transaction went.
#[derive(Default)]
pub(super) struct Deliveries {
    offsets: Mutex<Vec<Option<Result<i64, KafkaError>>>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    /// The record's number in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, number: usize) {
        let outcome = match delivery {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        if let Some(place) = lock(&self.offsets).get_mut(number) {
            *place = Some(outcome);
        }
    }
}

/// A producer whose transactional id is fenced to it.
pub(super) struct TransactionalProducer {
    pub(super) id: String,
    producer: BaseProducer<Deliveries>,
}

/// What the parts of a transaction take, for who wants to know why commits are slow.
struct Phases(std::time::Instant);

impl Phases {
    fn begin() -> Self {
        Self(std::time::Instant::now())
    }

    fn end_of(&mut self, phase: &'static str) {
        let now = std::time::Instant::now();
        metrics::histogram!("va_log_commit_phase_seconds", "phase" => phase)
            .record((now - self.0).as_secs_f64());
        self.0 = now;
    }
}

impl TransactionalProducer {
    /// Waits for or aborts what a former producer of the id began, and keeps that one from writing. Blocks.
    fn init(options: &KafkaOptions, id: &str, timeout: Duration) -> Result<Self, KafkaError> {
        let producer =
            BaseProducer::from_config_and_context(&options.producer(id), Deliveries::default())?;
        producer.init_transactions(timeout)?;
        Ok(Self {
            id: id.to_owned(),
            producer,
        })
    }

    /// Runs one transaction: records, then a group's offsets. Returns the records' offsets. Blocks.
    ///
    /// After [`TransactionError::Aborted`] the producer can be used again when no request can be on its way any more;
    /// after other errors it must not be.
    pub(super) fn run(
        &self,
        writes: &Writes,
        offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
        timeout: Duration,
    ) -> Result<Vec<i64>, TransactionError> {
        let deliveries = &self.producer.context().offsets;
        let count = writes.len();
        *lock(deliveries) = std::iter::repeat_with(|| None).take(count).collect();
        let mut phases = Phases::begin();
        // Nothing was sent so far, whatever the error says.
        self.producer
            .begin_transaction()
            .map_err(|e| self.give_up(&e, timeout))?;
        let sent = self.send(writes, timeout).and_then(|()| {
            phases.end_of("send");
            // Before the offsets: only then is a lost connection certainly not a commit.
            self.flush(timeout)?;
            phases.end_of("flush");
            if let Some((list, group)) = offsets {
                self.producer
                    .send_offsets_to_transaction(list, group, timeout)?;
                phases.end_of("offsets");
            }
            Ok(())
        });
        sent.map_err(|e| self.give_up(&e, timeout))?;
        let mut written = Vec::with_capacity(count);
        for outcome in lock(deliveries).drain(..) {
            written.push(outcome.unwrap_or(Err(KafkaError::Canceled)));
        }
        let written: Vec<i64> = written
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|e| self.give_up(&e, timeout))?;
        self.producer.commit_transaction(timeout).map_err(|error| {
            let must_abort = matches!(&error, KafkaError::Transaction(e) if e.txn_requires_abort());
            if must_abort {
                self.give_up(&error, timeout)
            } else {
                // A time-out, or fenced after the request went out: the broker may have committed.
                TransactionError::Unknown(error.to_string())
            }
        })?;
        phases.end_of("end");
        Ok(written)
    }

    /// Leaves a transaction open, as a process that dies does: its records are with the broker, its end is not.
    #[cfg(test)]
    pub(super) fn leave_open(
        &self,
        writes: &Writes,
        (list, group): (&TopicPartitionList, &ConsumerGroupMetadata),
        timeout: Duration,
    ) {
        *lock(&self.producer.context().offsets) = (0..writes.len()).map(|_| None).collect();
        self.producer.begin_transaction().unwrap();
        self.send(writes, timeout).unwrap();
        self.producer.flush(timeout).unwrap();
        self.producer
            .send_offsets_to_transaction(list, group, timeout)
            .unwrap();
    }

    fn send(&self, writes: &Writes, timeout: Duration) -> Result<(), KafkaError> {
        let deadline = std::time::Instant::now() + timeout;
        let mut number = 0;
        for record in &writes.single {
            let mut outgoing: BaseRecord<'_, [u8], [u8], usize> =
                BaseRecord::with_opaque_to(&record.topic, number).partition(record.partition);
            outgoing.key = record.key.as_deref();
            outgoing.payload = record.payload.as_deref();
            outgoing.headers.clone_from(&record.headers);
            self.send_one(outgoing, deadline)?;
            number += 1;
        }
        for part in &writes.records {
            // Only batches of records come here: the commit has looked.
            let Some(records) = Records::of(&part.batch) else {
                continue;
            };
            for row in 0..part.batch.num_rows() {
                let mut outgoing: BaseRecord<'_, [u8], [u8], usize> =
                    BaseRecord::with_opaque_to(&part.topic, number).partition(part.partition);
                outgoing.key = records.key(row);
                outgoing.payload = records.value(row);
                outgoing.headers = headers_of(records.headers(row));
                self.send_one(outgoing, deadline)?;
                number += 1;
            }
        }
        Ok(())
    }

    /// Waits until the brokers have all records.
    fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            match self.producer.flush(Duration::ZERO) {
                Err(KafkaError::Flush(Code::OperationTimedOut))
                    if std::time::Instant::now() < deadline =>
                {
                    self.listen();
                }
                flushed => return flushed,
            }
        }
    }

    /// Takes note of deliveries; where there are none, after a moment.
    ///
    /// The library's `poll` waits to the end of the time that it is given, however early a delivery comes, and spends the
    /// last millisecond of it asking for the time: it is only asked what is there already.
    fn listen(&self) {
        let before = self.producer.in_flight_count();
        self.producer.poll(Duration::ZERO);
        if self.producer.in_flight_count() >= before {
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn send_one(
        &self,
        mut outgoing: BaseRecord<'_, [u8], [u8], usize>,
        deadline: std::time::Instant,
    ) -> Result<(), KafkaError> {
        while let Err((error, back)) = self.producer.send(outgoing) {
            if error.rdkafka_error_code() != Some(Code::QueueFull)
                || std::time::Instant::now() >= deadline
            {
                return Err(error);
            }
            // Deliveries make room.
            self.listen();
            outgoing = back;
        }
        Ok(())
    }

    /// Aborts before the commit was asked for. Without an answer to the abort the transaction still cannot be
    /// committed, but requests of it may be under way, so the producer has to be replaced.
    fn give_up(&self, error: &KafkaError, timeout: Duration) -> TransactionError {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        if is_fenced(code) {
            return TransactionError::Fenced(error.to_string());
        }
        if matches!(error, KafkaError::Transaction(e) if e.is_fatal()) {
            return TransactionError::Unknown(error.to_string());
        }
        match self.producer.abort_transaction(timeout) {
            Ok(()) => TransactionError::Aborted(code, error.to_string()),
            Err(abort) => {
                TransactionError::Unknown(format!("{error}; aborting it failed too: {abort}"))
            }
        }
    }
}

/// `None` when there are none.
fn headers_of<'a>(
    headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Option<OwnedHeaders> {
    headers.fold(None, |all, (key, value)| {
        let all = all.unwrap_or_else(OwnedHeaders::new);
        Some(all.insert(Header { key, value }))
    })
}

/// Whether somebody newer has taken over.
fn is_fenced(code: Code) -> bool {
    matches!(
        code,
        Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
    )
}

/// All transactional ids of this log.
pub(super) struct Producers {
    prefix: String,
    /// Producers of plain commits that nobody uses.
    plain: Mutex<Vec<TransactionalProducer>>,
    /// Bounds the plain commits.
    pub(super) permits: Arc<Semaphore>,
    unsettled: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Producers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producers").finish_non_exhaustive()
    }
}

impl Producers {
    pub(super) fn new(options: &KafkaOptions, log: &str) -> Self {
        Self {
            prefix: format!("{}va.producer.{log}", options.prefix),
            plain: Mutex::default(),
            permits: Arc::new(Semaphore::new(PLAIN_MAX)),
            unsettled: Mutex::default(),
        }
    }

    /// A producer for a plain commit, whose transactional id nobody else uses. Blocks.
    pub(super) fn take_plain(
        &self,
        options: &KafkaOptions,
    ) -> Result<TransactionalProducer, LogError> {
        if let Some(producer) = lock(&self.plain).pop() {
            return Ok(producer);
        }
        let id = format!("{}.{}", self.prefix, Uuid::now_v7().simple());
        self.init(options, &id)
    }

    pub(super) fn give_plain(&self, producer: TransactionalProducer) {
        lock(&self.plain).push(producer);
    }

    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.plain));
        drop(all);
    }

    /// A producer of this id; afterwards the id is settled. Blocks. The error says that nothing happened.
    pub(super) fn init(
        &self,
        options: &KafkaOptions,
        id: &str,
    ) -> Result<TransactionalProducer, LogError> {
        let timeout = Duration::from_millis(u64::from(options.request_timeout_ms));
        let producer = TransactionalProducer::init(options, id, timeout)
            .map_err(|e| LogError::Retriable(format!("kafka: begin as `{id}`: {e}")))?;
        lock(&self.unsettled).remove(id);
        Ok(producer)
    }

    /// Takes note that the end of the producer's transaction is unknown, and tries to settle it at once. Blocks.
    pub(super) fn replace(
        &self,
        options: &KafkaOptions,
        former: TransactionalProducer,
    ) -> Option<TransactionalProducer> {
        let id = former.id.clone();
        lock(&self.unsettled).insert(id.clone());
        drop(former);
        self.init(options, &id)
            .inspect_err(|error| tracing::warn!(%error, "a transaction stays unsettled for now"))
            .ok()
    }

    /// Settles every transaction whose end is unknown. Blocks. While one cannot be settled it is an error.
    pub(super) fn settle(&self, options: &KafkaOptions) -> Result<(), LogError> {
        let unsettled: Vec<String> = lock(&self.unsettled).iter().cloned().collect();
        for id in unsettled {
            self.init(options, &id).map_err(|error| {
                LogError::Storage(format!(
                    "the end of a transaction is not known yet: {error}"
                ))
            })?;
        }
        Ok(())
    }

    /// Ends what a dead process may have begun under this id. Blocks.
    pub(super) fn fence(&self, options: &KafkaOptions, id: &str) -> Result<(), LogError> {
        self.init(options, id).map(drop)
    }
}
