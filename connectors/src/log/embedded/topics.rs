//! Topics: loading them at the start, creating and deleting them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use fjall::{Keyspace, PersistMode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use va_catalog::{Partition, TopicName};

use super::codec::{self, Marks, TopicId};
use super::store::{Shared, Topic, at, lock, storage};
use crate::log::{LogError, TopicConfig};

/// Most partitions of a topic; each costs a little memory for ever.
const PARTITIONS_MAX: u32 = 4_096;

/// A topic in the `meta` keyspace.
#[derive(Debug, Serialize, Deserialize)]
struct TopicRecord {
    id: u32,
    config: TopicConfig,
}

/// All topics with their watermarks.
pub(super) fn load(meta: &Keyspace) -> Result<BTreeMap<TopicName, Arc<Topic>>, LogError> {
    let mut topics = BTreeMap::new();
    for guard in meta.prefix(codec::TOPIC_PREFIX) {
        let (key, value) = guard.into_inner().map_err(|e| at("topics", e))?;
        let name = std::str::from_utf8(&key[codec::TOPIC_PREFIX.len()..])
            .ok()
            .and_then(|name| TopicName::new(name).ok())
            .ok_or_else(|| LogError::Corrupt(format!("a topic's name: {key:?}")))?;
        let record: TopicRecord = serde_json::from_slice(&value)
            .map_err(|e| LogError::Corrupt(format!("topic `{name}`: {e}")))?;
        let id = TopicId(record.id);
        let mut partitions = Vec::new();
        for partition in (0..record.config.partitions).map(Partition) {
            let marks = match meta
                .get(codec::marks_key(id, partition))
                .map_err(|e| at(&format!("watermarks of `{name}`"), e))?
            {
                None => Marks::default(),
                Some(value) => Marks::decode(&value).ok_or_else(|| {
                    LogError::Corrupt(format!("watermarks of `{name}-{partition}`"))
                })?,
            };
            partitions.push(watch::Sender::new(marks));
        }
        topics.insert(
            name.clone(),
            Arc::new(Topic {
                name,
                id,
                config: record.config,
                partitions: Arc::new(partitions),
            }),
        );
    }
    Ok(topics)
}

/// The number of the next new topic.
pub(super) fn load_next(meta: &Keyspace) -> Result<TopicId, LogError> {
    match meta.get(codec::NEXT_TOPIC_KEY).map_err(storage)? {
        None => Ok(TopicId(0)),
        Some(value) => match value[..].try_into() {
            Ok(bytes) => Ok(TopicId(u32::from_le_bytes(bytes))),
            Err(_) => Err(LogError::Corrupt("the number of the next topic".to_owned())),
        },
    }
}

impl Shared {
    pub(super) fn create_topic(
        &self,
        name: &TopicName,
        config: TopicConfig,
    ) -> Result<(), LogError> {
        if !(1..=PARTITIONS_MAX).contains(&config.partitions) {
            return Err(LogError::Config(format!(
                "topic `{name}` with {} partitions: use 1 to {PARTITIONS_MAX}",
                config.partitions
            )));
        }
        let mut writer = self.writer()?;
        let former = self.topic(name).ok();
        let (id, partitions) = match former {
            Some(topic) if topic.config == config => return Ok(()),
            Some(topic) if topic.config.partitions != config.partitions => {
                return Err(LogError::Config(format!(
                    "topic `{name}` has {} partitions, not {}; partitions cannot change, use another name",
                    topic.config.partitions, config.partitions
                )));
            }
            Some(topic) => (topic.id, Arc::clone(&topic.partitions)),
            None => (
                writer.next_topic,
                Arc::new(
                    (0..config.partitions)
                        .map(|_| watch::Sender::new(Marks::default()))
                        .collect(),
                ),
            ),
        };
        let is_new = id == writer.next_topic;
        let record = TopicRecord {
            id: id.0,
            config: config.clone(),
        };
        let record = serde_json::to_vec(&record)
            .map_err(|e| LogError::Config(format!("topic `{name}`: {e}")))?;
        let mut batch = self.db.batch();
        batch.insert(&self.meta, codec::topic_key(name), record);
        if is_new {
            batch.insert(&self.meta, codec::NEXT_TOPIC_KEY, (id.0 + 1).to_le_bytes());
            for partition in (0..config.partitions).map(Partition) {
                batch.insert(
                    &self.meta,
                    codec::marks_key(id, partition),
                    Marks::default().encode(),
                );
            }
        }
        batch
            .durability(Some(PersistMode::SyncData))
            .commit()
            .map_err(|e| at(&format!("create topic `{name}`"), e))?;

        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.insert(
            name.clone(),
            Arc::new(Topic {
                name: name.clone(),
                id,
                config,
                partitions,
            }),
        );
        drop(topics);
        if is_new {
            writer.next_topic = TopicId(id.0 + 1);
            self.tell_groups();
        }
        Ok(())
    }

    /// Removes the topic with its rows and offsets in one write.
    pub(super) fn delete_topic(&self, name: &TopicName) -> Result<(), LogError> {
        let _writer = self.writer()?;
        let topic = self.topic(name)?;
        let failed = |e| at(&format!("delete topic `{name}`"), e);
        let mut batch = self.db.batch();
        batch.remove(&self.meta, codec::topic_key(name));
        for partition in (0..topic.config.partitions).map(Partition) {
            batch.remove(&self.meta, codec::marks_key(topic.id, partition));
        }
        for guard in self.index.prefix(topic.id.0.to_be_bytes()) {
            let key = guard.key().map_err(failed)?;
            batch.remove(&self.index, key.clone());
            batch.remove(&self.batches, key);
        }
        for guard in self.offsets.iter() {
            let key = guard.key().map_err(failed)?;
            let is_here = codec::offset_key_parts(&key).is_some_and(|(_, t)| t == name.as_str());
            if is_here {
                batch.remove(&self.offsets, key);
            }
        }
        batch
            .durability(Some(PersistMode::SyncData))
            .commit()
            .map_err(failed)?;
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.remove(name);
        drop(topics);
        self.tell_groups();
        Ok(())
    }

    fn tell_groups(&self) {
        let mut groups = lock(&self.groups);
        groups.topics_changed(&self.partition_counts());
    }
}
