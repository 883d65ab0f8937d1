//! The log's connection to the cluster: its clients, what is known of topics, and how Kafka's errors become ours.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{ClientConfig, ClientContext};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use va_catalog::{Partition, TopicName, TopicPartition};

use super::groups::GroupClients;
use super::member::Members;
use super::names::Position;
use super::names::{kafka_topic, topic_name};
use super::options::KafkaOptions;
use super::producer::Producers;
use super::reader::Readers;
use super::state::State;
use crate::log::{LogError, Watermarks};

/// Between two looks at what is about to become visible.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long to wait at the start before looking whether waiting is of any use.
const FIRST_LOOKS: Duration = Duration::from_millis(500);

/// Between two questions to a partition that has no leader yet.
const LEADER_PAUSE: Duration = Duration::from_millis(20);

/// How long a broker may take to hear of a new topic.
const YOUNG_FOR: Duration = Duration::from_secs(10);

/// How long a commit that is behind somebody else's open transaction is waited for.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

/// The log on a Kafka cluster. Needs a tokio runtime.
#[derive(Debug)]
pub struct KafkaLog {
    pub(super) shared: Arc<Shared>,
}

/// What the log, its members and its commits hold in common.
pub(super) struct Shared {
    pub(super) options: KafkaOptions,
    /// Also asks for metadata and watermarks: it has a thread that serves it. Its watermarks are those of readers: they
    /// end where a transaction is not finished.
    pub(super) admin: AdminClient<Quiet>,
    pub(super) readers: Readers,
    pub(super) groups: GroupClients,
    pub(super) producers: Producers,
    pub(super) members: Members,
    pub(super) state: State,
    /// Partition counts of topics, as last heard.
    counts: Mutex<BTreeMap<TopicName, u32>>,
    /// Topics that this process created, with their partitions and the time. Brokers hear of a new topic one after the
    /// other, so one that does not know it yet is no proof that it is gone.
    young: Mutex<HashMap<TopicName, (u32, Instant)>>,
    /// Records `from..to` of a partition that hold no row: the ends of transactions, aborted records. The last such
    /// stretch of each partition, so that an idle partition is not read again and again.
    pub(super) gaps: Mutex<HashMap<TopicPartition, (i64, i64)>>,
    /// The last record of each partition that a finished commit of this log wrote, until it was seen to be readable.
    /// Kafka acknowledges a commit before its readers can see it; here a commit is visible once it is finished.
    written: Mutex<HashMap<(String, i32), i64>>,
    pub(super) closed: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl KafkaLog {
    /// Connects, and waits until a broker answered. [`LogError::Config`] when the options are wrong or the brokers refuse
    /// who we are, [`LogError::Storage`] when no broker answers within `request_timeout_ms`.
    pub async fn connect(options: KafkaOptions) -> Result<Arc<Self>, LogError> {
        options.validate()?;
        let id = Uuid::now_v7().simple().to_string();
        let shared = tokio::task::spawn_blocking(move || Shared::connect(options, id))
            .await
            .unwrap_or_else(|e| Err(LogError::Storage(format!("connect to kafka: {e}"))))?;
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
        }))
    }
}

impl Shared {
    fn connect(options: KafkaOptions, id: String) -> Result<Self, LogError> {
        let mut config = options.client();
        config.set("socket.timeout.ms", options.request_timeout_ms.to_string());
        let config = options.finish(config);
        let admin = AdminClient::from_config_and_context(&config, Quiet)
            .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
        let shared = Self {
            readers: Readers::default(),
            groups: GroupClients::default(),
            producers: Producers::new(&options, &id),
            members: Members::default(),
            state: State::new(options.state_dir.clone()),
            admin,
            written: Mutex::default(),
            counts: Mutex::default(),
            young: Mutex::default(),
            gaps: Mutex::default(),
            closed: CancellationToken::new(),
            options,
        };
        shared.first_answer(&config)?;
        shared.refresh_counts()?;
        Ok(shared)
    }

    /// Waits for a broker. librdkafka tries again until the time is over, also where nothing but another password helps.
    /// What it says meanwhile is the reason that a person needs; only a client that is polled tells it.
    fn first_answer(&self, config: &ClientConfig) -> Result<(), LogError> {
        let deadline = Instant::now() + self.timeout();
        let left = || deadline.saturating_duration_since(Instant::now());
        let ask = || {
            let client = self.admin.inner();
            client.fetch_metadata(None, left().min(FIRST_LOOKS))
        };
        let Err(mut error) = ask() else {
            return Ok(());
        };
        let probe: BaseProducer<Telling> =
            BaseProducer::from_config_and_context(config, Telling::default())
                .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
        let brokers = &self.options.brokers;
        loop {
            probe.poll(left().min(FIRST_LOOKS));
            let told = lock(&probe.context().failure).clone();
            match told {
                Some(told) if is_refusal(&told) => {
                    return Err(LogError::Config(format!(
                        "the brokers at `{brokers}` cannot be used with these settings, see `log.kafka.security`: {told}"
                    )));
                }
                told if left().is_zero() => {
                    let told = told.unwrap_or_else(|| error.to_string());
                    return Err(LogError::Storage(format!(
                        "kafka: no answer from `{brokers}`: {told}; if it runs there, it may want TLS or a password, see `log.kafka.security`"
                    )));
                }
                _ => {}
            }
            match ask() {
                Ok(_) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.options.request_timeout_ms))
    }

    pub(super) fn kafka_topic(&self, topic: &TopicName) -> Result<String, LogError> {
        kafka_topic(&self.options.prefix, topic)
    }

    pub(super) fn topic_name(&self, kafka: &str) -> Option<TopicName> {
        topic_name(&self.options.prefix, kafka)
    }

    pub(super) fn group_id(&self, group: &crate::log::GroupId) -> String {
        format!("{}{group}", self.options.prefix)
    }

    pub(super) fn open(&self) -> Result<(), LogError> {
        if self.closed.is_cancelled() {
            Err(LogError::Closed)
        } else {
            Ok(())
        }
    }

    /// Runs calls of the client that block on a thread that may.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .unwrap_or_else(|e| Err(LogError::Storage(format!("a kafka task failed: {e}"))))
    }

    /// Asks the cluster for all topics. One by one would be cheaper, but asking for a topic can create it.
    pub(super) fn refresh_counts(&self) -> Result<(), LogError> {
        let metadata = self
            .admin
            .inner()
            .fetch_metadata(None, self.timeout())
            .map_err(|e| storage("ask for the topics", &e))?;
        let mut found: BTreeMap<TopicName, u32> = metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty())
            .filter_map(|topic| {
                let ready = topic.partitions().iter().all(|p| p.leader() >= 0);
                Some((
                    self.topic_name(topic.name())?,
                    topic.partitions().len(),
                    ready,
                ))
            })
            .filter(|(.., ready)| *ready)
            .map(|(name, partitions, _)| (name, partitions as u32))
            .collect();
        let mut young = lock(&self.young);
        young.retain(|_, (_, since)| since.elapsed() < YOUNG_FOR);
        for (topic, (partitions, _)) in young.iter() {
            found.entry(topic.clone()).or_insert(*partitions);
        }
        drop(young);
        *lock(&self.counts) = found;
        Ok(())
    }

    /// What was heard last of all topics.
    pub(super) fn known_topics(&self) -> BTreeMap<TopicName, u32> {
        lock(&self.counts).clone()
    }

    /// How many partitions the topic has, as heard last.
    pub(super) fn known_count(&self, topic: &TopicName) -> Option<u32> {
        lock(&self.counts).get(topic).copied()
    }

    /// This process created the topic, and one broker at least knows it.
    pub(super) fn note_created(&self, topic: &TopicName, partitions: u32) {
        lock(&self.young).insert(topic.clone(), (partitions, Instant::now()));
    }

    /// A topic that is to be gone: it is not new any more.
    pub(super) fn note_deleted(&self, topic: &TopicName) {
        lock(&self.young).remove(topic);
    }

    /// A topic that turned out to be gone.
    pub(super) fn forget(&self, topic: &TopicName) {
        lock(&self.counts).remove(topic);
        lock(&self.gaps).retain(|place, _| place.topic != *topic);
        if let Ok(name) = self.kafka_topic(topic) {
            lock(&self.written).retain(|(written, _), _| *written != name);
        }
        self.readers.forget(topic);
    }

    /// How many partitions the topic has. Blocks when it is not known yet.
    pub(super) fn partitions(&self, topic: &TopicName) -> Result<u32, LogError> {
        let known = || lock(&self.counts).get(topic).copied();
        if let Some(count) = known() {
            return Ok(count);
        }
        self.refresh_counts()?;
        known().ok_or_else(|| LogError::UnknownTopic(topic.clone()))
    }

    /// The topic's name in the cluster, when it has that partition. Blocks when it is not known yet.
    pub(super) fn place(&self, place: &TopicPartition) -> Result<String, LogError> {
        let partitions = self.partitions(&place.topic)?;
        if place.partition.0 < partitions {
            self.kafka_topic(&place.topic)
        } else {
            Err(LogError::UnknownPartition {
                topic: place.topic.clone(),
                partition: place.partition,
                partitions,
            })
        }
    }

    /// First and one past the last record that can be read. Blocks.
    pub(super) fn records(&self, place: &TopicPartition) -> Result<(i64, i64), LogError> {
        let topic = self.place(place)?;
        let deadline = Instant::now() + self.timeout();
        loop {
            match self.visible_records(&topic, place.partition.0 as i32) {
                // The leader of a new partition, or of one whose broker went away, is about to be known.
                Err(error) if has_no_leader_yet(&error) && Instant::now() < deadline => {
                    std::thread::park_timeout(LEADER_PAUSE);
                }
                // A broker that has not heard of a new topic yet.
                Err(error) if is_unknown_topic(&error) && Instant::now() < deadline => {
                    self.still_exists(place)?;
                    std::thread::park_timeout(LOOK_AGAIN);
                }
                other => return other.map_err(|e| self.lost(place, "ask for the watermarks", &e)),
            }
        }
    }

    /// Asks the cluster whether a topic is there that one broker does not know. Blocks.
    pub(super) fn still_exists(&self, place: &TopicPartition) -> Result<(), LogError> {
        self.refresh_counts()?;
        if self.known_count(&place.topic).is_some() {
            return Ok(());
        }
        self.forget(&place.topic);
        Err(LogError::UnknownTopic(place.topic.clone()))
    }

    /// The same by the topic's name in the cluster. Waits until what this log committed can be read, which takes a few
    /// milliseconds: until then the coordinator tells the partitions that the transaction ended. Blocks.
    pub(super) fn visible_records(
        &self,
        topic: &str,
        partition: i32,
    ) -> Result<(i64, i64), KafkaError> {
        let key = (topic.to_owned(), partition);
        let deadline = Instant::now() + self.timeout().min(VISIBLE_WITHIN);
        loop {
            let written = lock(&self.written).get(&key).copied();
            let (low, high) =
                self.admin
                    .inner()
                    .fetch_watermarks(topic, partition, self.timeout())?;
            let Some(written) = written else {
                return Ok((low, high));
            };
            // Past the deadline somebody else's transaction is before it, or the topic was made again by somebody else.
            if high > written || Instant::now() >= deadline {
                let mut all = lock(&self.written);
                if all.get(&key) == Some(&written) {
                    all.remove(&key);
                }
                return Ok((low, high));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// A finished commit wrote this record.
    pub(super) fn note_written(&self, topic: &str, partition: i32, record: i64) {
        let mut written = lock(&self.written);
        let last = written
            .entry((topic.to_owned(), partition))
            .or_insert(record);
        *last = record.max(*last);
    }

    pub(super) fn watermarks(&self, place: &TopicPartition) -> Result<Watermarks, LogError> {
        let (low, high) = self.records(place)?;
        Ok(Watermarks {
            low: Position::start_of(low).offset(),
            high: Position::start_of(high).offset(),
        })
    }

    /// An error about one partition; the topic may be gone.
    pub(super) fn lost(&self, place: &TopicPartition, what: &str, error: &KafkaError) -> LogError {
        if is_unknown_topic(error) {
            self.forget(&place.topic);
            LogError::UnknownTopic(place.topic.clone())
        } else {
            storage(&format!("{what} of `{place}`"), error)
        }
    }
}

/// Whether the error says that the topic or partition does not exist.
pub(super) fn is_unknown_topic(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition)
    )
}

/// Whether the error says that a partition's leader is only about to be known.
fn has_no_leader_yet(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable)
    )
}

/// A failed request as ours.
pub(super) fn storage(what: &str, error: &KafkaError) -> LogError {
    LogError::Storage(format!("kafka: {what}: {error}"))
}

/// The same from a code.
pub(super) fn storage_code(what: &str, code: RDKafkaErrorCode) -> LogError {
    LogError::Storage(format!("kafka: {what}: {code}"))
}

/// Locks. A panic elsewhere does not matter: what the locks guard is changed in one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn place(topic: TopicName, partition: i32) -> TopicPartition {
    TopicPartition {
        topic,
        partition: Partition(partition.max(0) as u32),
    }
}

/// Says what librdkafka says, in the process's own log. It reports each lost connection as an error and then connects
/// again, so nothing of that is more than a warning.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quiet;

/// [`Quiet`], that remembers why the last connection failed.
#[derive(Default)]
pub(super) struct Telling {
    failure: Mutex<Option<String>>,
}

impl ClientContext for Telling {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // Behind a failure comes the word that now all brokers are down, which says less.
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            *lock(&self.failure) = Some(reason.to_owned());
        }
        Quiet.error(error, reason);
    }
}

impl ProducerContext for Telling {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}

/// Whether a connection failed for what only other settings change. A broker that just starts says other things.
fn is_refusal(failure: &str) -> bool {
    ["SASL authentication error", "certificate verify failed"]
        .iter()
        .any(|refusal| failure.contains(refusal))
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(facility, text, "librdkafka");
            }
            _ => tracing::debug!(facility, text, "librdkafka"),
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}
