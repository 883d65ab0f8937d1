//! State of groups: a compacted topic each, and a local store that follows it.
//!
//! A read asks for the topic's end, applies what is new up to it, and answers from the local store: so it sees every
//! commit that was finished before, whoever made it, and never another process's copy. The local store is a cache in a
//! temporary folder; after a start it is filled from the topic's beginning.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tempfile::TempDir;

use super::client::{Quiet, Shared, is_unknown_topic, storage};
use super::names::state_topic;
use super::producer::Outgoing;
use crate::log::{GroupId, LogError, StateKey};

/// `fjall` refuses longer keys with a panic.
const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Before each value, so that an empty value is no deletion.
const PRESENT: u8 = 1;

pub(super) struct State {
    dir: Option<PathBuf>,
    store: OnceLock<Result<Store, LogError>>,
    groups: tokio::sync::Mutex<HashMap<GroupId, Arc<tokio::sync::Mutex<Follower>>>>,
}

/// The local copy. The folder goes away with it.
struct Store {
    entries: Keyspace,
    _database: Database,
    _folder: TempDir,
}

/// How far a group's topic has been followed.
#[derive(Default)]
struct Follower {
    /// It is there: asked for or created.
    exists: bool,
    /// The next record to apply.
    next: i64,
    consumer: Option<StreamConsumer<Quiet>>,
}

impl State {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            store: OnceLock::new(),
            groups: tokio::sync::Mutex::default(),
        }
    }

    /// Opened with the first use. Blocks.
    fn store(&self) -> Result<&Keyspace, LogError> {
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
                _database: database,
                _folder: folder,
            })
        });
        match store {
            Ok(store) => Ok(&store.entries),
            Err(error) => Err(error.clone()),
        }
    }

    async fn follower(&self, group: &GroupId) -> Arc<tokio::sync::Mutex<Follower>> {
        let mut groups = self.groups.lock().await;
        Arc::clone(groups.entry(group.clone()).or_default())
    }

    pub(super) async fn clear(&self) {
        let all = std::mem::take(&mut *self.groups.lock().await);
        // Closing a consumer waits for its threads.
        let _ = tokio::task::spawn_blocking(move || drop(all)).await;
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

/// A change as a record.
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
        // One partition for a group: see the module.
        partition: 0,
        key: Some(bytes),
        payload: value.map(|value| [&[PRESENT], &value[..]].concat()),
        headers: None,
    })
}

impl Shared {
    /// Creates the group's topic for state when it is not there.
    pub(super) async fn ready_state(self: &Arc<Self>, group: &GroupId) -> Result<(), LogError> {
        let follower = self.state.follower(group).await;
        let mut follower = follower.lock().await;
        if follower.exists {
            return Ok(());
        }
        let topic = state_topic(&self.options.prefix, group.0.as_str())?;
        let settings = [("cleanup.policy", "compact")];
        self.create_kafka_topic(&topic, 1, &settings).await?;
        self.wait_until(move |shared| shared.visible_records(&topic, 0).is_ok())
            .await?;
        follower.exists = true;
        Ok(())
    }

    /// Applies what was committed so far. False when the group never had state.
    async fn follow(self: &Arc<Self>, group: &GroupId) -> Result<bool, LogError> {
        self.open()?;
        let follower = self.state.follower(group).await;
        let mut follower = follower.lock().await;
        let topic = state_topic(&self.options.prefix, group.0.as_str())?;
        let asked = topic.clone();
        let exists = follower.exists;
        let marks = self
            .blocking(move |shared| match shared.visible_records(&asked, 0) {
                Ok(marks) => Ok(Some(marks)),
                Err(error) if is_unknown_topic(&error) && !exists => Ok(None),
                Err(error) => Err(storage(&format!("ask for the end of `{asked}`"), &error)),
            })
            .await?;
        let Some((_, high)) = marks else {
            return Ok(false);
        };
        follower.exists = true;
        if follower.next >= high {
            return Ok(true);
        }
        let Follower { next, consumer, .. } = &mut *follower;
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => {
                let mut config = self.options.reader();
                // It reads up to an end that is known and then stops, so the broker should not keep it waiting there.
                config.set("fetch.wait.max.ms", "5");
                // Compaction may have removed the record that it stands at.
                config.set("auto.offset.reset", "earliest");
                let made = StreamConsumer::from_config_and_context(&config, Quiet)
                    .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
                consumer.insert(made)
            }
        };
        let result = self.apply(group, &topic, consumer, next, high).await;
        let _ = consumer.unassign();
        result.map(|()| true)
    }

    /// Positioned after `high` was asked for, so that an end means that nothing below it is missing.
    async fn apply(
        self: &Arc<Self>,
        group: &GroupId,
        topic: &str,
        consumer: &StreamConsumer<Quiet>,
        next: &mut i64,
        high: i64,
    ) -> Result<(), LogError> {
        let failed = |e: KafkaError| storage(&format!("read `{topic}`"), &e);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, KafkaOffset::Offset(*next))
            .map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        let entries = self
            .blocking(|shared| shared.state.store().cloned())
            .await?;
        while *next < high {
            let received = tokio::time::timeout(self.timeout(), consumer.recv())
                .await
                .map_err(|_| {
                    LogError::Storage(format!("kafka: no answer for record {next} of `{topic}`"))
                })?;
            let message = match received {
                Ok(message) => message,
                Err(KafkaError::PartitionEOF(_)) => {
                    *next = high;
                    break;
                }
                // It connects again by itself; the time-out above bounds it.
                Err(error) => {
                    tracing::debug!(%error, topic, "the reader of state goes on");
                    continue;
                }
            };
            let key = message.key().ok_or_else(|| {
                LogError::Corrupt(format!(
                    "record {} of `{topic}`: it has no key",
                    message.offset()
                ))
            })?;
            let key = local_key(group, key);
            let written = match message.payload() {
                None => entries.remove(key),
                Some([PRESENT, value @ ..]) => entries.insert(key, value),
                Some(_) => {
                    return Err(LogError::Corrupt(format!(
                        "record {} of `{topic}`: it is not a value of state",
                        message.offset()
                    )));
                }
            };
            written.map_err(|e| LogError::Storage(format!("local copy of state: {e}")))?;
            *next = message.offset() + 1;
        }
        Ok(())
    }

    pub(super) async fn state_get(
        self: &Arc<Self>,
        key: &StateKey,
    ) -> Result<Option<Bytes>, LogError> {
        if !self.follow(&key.group).await? {
            return Ok(None);
        }
        let key = local_key(&key.group, &topic_key(&key.namespace, &key.key));
        self.blocking(move |shared| {
            let value = shared.state.store()?.get(key);
            let value =
                value.map_err(|e| LogError::Storage(format!("local copy of state: {e}")))?;
            Ok(value.map(Bytes::from))
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
        if !self.follow(group).await? {
            return Ok(Vec::new());
        }
        let mut full = local_key(group, &topic_key(namespace, &[]));
        let names = full.len();
        full.extend_from_slice(prefix);
        self.blocking(move |shared| {
            shared
                .state
                .store()?
                .prefix(full)
                .take(limit)
                .map(|guard| {
                    let (key, value) = guard
                        .into_inner()
                        .map_err(|e| LogError::Storage(format!("local copy of state: {e}")))?;
                    Ok((Bytes::from(key).slice(names..), Bytes::from(value)))
                })
                .collect()
        })
        .await
    }
}
