//! The trait: each method goes to the file that holds its idea; offsets and state of groups are read here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use arrow::compute::concat_batches;
use async_trait::async_trait;
use bytes::Bytes;
use fjall::{PersistMode, Readable};
use va_catalog::{Offset, PipelineName, TopicName, TopicPartition};

use super::codec;
use super::commit::EmbeddedCommit;
use super::member::EmbeddedMember;
use super::store::{EmbeddedLog, Shared, at, lock, storage};
use crate::log::records::{self, FetchedRecords, is_records};
use crate::log::{
    Commit, FetchLimit, Fetched, GroupId, Log, LogError, Member, StateKey, TopicConfig, Watermarks,
};

#[async_trait]
impl Log for EmbeddedLog {
    async fn create_topic(&self, topic: &TopicName, config: TopicConfig) -> Result<(), LogError> {
        let topic = topic.clone();
        self.shared
            .blocking(move |shared| shared.create_topic(&topic, config))
            .await
    }

    async fn delete_topic(&self, topic: &TopicName) -> Result<(), LogError> {
        let topic = topic.clone();
        self.shared
            .blocking(move |shared| shared.delete_topic(&topic))
            .await
    }

    async fn topics(&self) -> Result<Vec<(TopicName, TopicConfig)>, LogError> {
        let topics = self.shared.topics.read();
        let topics = topics.unwrap_or_else(PoisonError::into_inner);
        Ok(topics
            .iter()
            .map(|(name, topic)| (name.clone(), topic.config.clone()))
            .collect())
    }

    async fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks, LogError> {
        let partition = partition.clone();
        self.shared
            .blocking(move |shared| shared.watermarks(&partition))
            .await
    }

    async fn offset_at(
        &self,
        partition: &TopicPartition,
        time_ms: i64,
    ) -> Result<Offset, LogError> {
        let topic = self.shared.topic_of(partition)?.id;
        let partition = partition.clone();
        self.shared
            .blocking(move |shared| shared.offset_at(&partition, topic, time_ms))
            .await
    }

    async fn fetch(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<Fetched, LogError> {
        let fetched = self.shared.fetch(partition, from, limit, wait).await?;
        match fetched.batches.iter().find(|b| is_records(&b.batch)) {
            None => Ok(fetched),
            Some(found) => Err(LogError::Corrupt(format!(
                "{partition}@{} holds records and not batches: read it with the `format` of what writes them",
                found.base
            ))),
        }
    }

    async fn fetch_records(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<FetchedRecords, LogError> {
        let fetched = self.shared.fetch(partition, from, limit, wait).await?;
        let mut offsets = Vec::new();
        let mut parts = Vec::with_capacity(fetched.batches.len());
        for stored in &fetched.batches {
            if !is_records(&stored.batch) {
                return Err(LogError::Config(format!(
                    "{partition}@{} holds batches and not records: read it without `format`",
                    stored.base
                )));
            }
            offsets
                .extend((0..stored.batch.num_rows() as u64).map(|row| Offset(stored.base.0 + row)));
            parts.push(records::stamped(&stored.batch, stored.appended_at_ms));
        }
        let batch = concat_batches(&records::schema(), &parts)
            .map_err(|e| LogError::Corrupt(format!("records of {partition}@{from}: {e}")))?;
        Ok(FetchedRecords {
            batch,
            offsets,
            next: fetched.next,
            skipped: fetched.skipped,
            high: fetched.high,
        })
    }

    async fn committed(
        &self,
        group: &GroupId,
        partition: &TopicPartition,
    ) -> Result<Option<Offset>, LogError> {
        let (group, partition) = (group.clone(), partition.clone());
        self.shared
            .blocking(move |shared| shared.committed(&group, &partition))
            .await
    }

    async fn positions(
        &self,
        group: &GroupId,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(Watermarks, Option<Offset>)>, LogError> {
        let (group, partitions) = (group.clone(), partitions.to_vec());
        self.shared
            .blocking(move |shared| {
                let position = |partition: &TopicPartition| {
                    let marks = shared.watermarks(partition)?;
                    Ok((marks, shared.committed(&group, partition)?))
                };
                partitions.iter().map(position).collect()
            })
            .await
    }

    async fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        self.shared.blocking(|shared| shared.groups()).await
    }

    async fn reset_group(
        &self,
        group: &GroupId,
        offsets: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError> {
        let group = group.clone();
        self.shared
            .blocking(move |shared| shared.reset_group(&group, &offsets))
            .await
    }

    async fn join(
        &self,
        group: &GroupId,
        topics: &[TopicName],
    ) -> Result<Box<dyn Member>, LogError> {
        let member = EmbeddedMember::join(Arc::clone(&self.shared), group, topics)?;
        Ok(Box::new(member))
    }

    fn begin(&self) -> Box<dyn Commit> {
        Box::new(EmbeddedCommit::new(Arc::clone(&self.shared), None))
    }

    async fn state_get(&self, key: &StateKey) -> Result<Option<Bytes>, LogError> {
        let place = format!("state of `{}` in `{}`", key.namespace, key.group);
        let key = codec::state_key(key);
        self.shared
            .blocking(move |shared| {
                let value = shared.state.get(key).map_err(|e| at(&place, e))?;
                Ok(value.map(Bytes::from))
            })
            .await
    }

    async fn state_get_many(
        &self,
        group: &GroupId,
        namespace: &str,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, LogError> {
        let place = format!("state of `{namespace}` in `{group}`");
        let prefix = codec::state_prefix(group, namespace);
        let keys: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| [&prefix[..], &key[..]].concat())
            .collect();
        self.shared
            .blocking(move |shared| {
                keys.into_iter()
                    .map(|key| {
                        let value = shared.state.get(key).map_err(|e| at(&place, e))?;
                        Ok(value.map(Bytes::from))
                    })
                    .collect()
            })
            .await
    }

    async fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        let before = before.to_vec();
        self.shared
            .blocking(move |shared| {
                before
                    .iter()
                    .try_for_each(|(place, before)| shared.trim(place, *before))
            })
            .await
    }

    async fn state_scan(
        &self,
        group: &GroupId,
        namespace: &str,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let place = format!("state of `{namespace}` in `{group}`");
        let mut full = codec::state_prefix(group, namespace);
        let names = full.len();
        full.extend_from_slice(prefix);
        self.shared
            .blocking(move |shared| {
                shared
                    .state
                    .prefix(full)
                    .take(limit)
                    .map(|guard| {
                        let (key, value) = guard.into_inner().map_err(|e| at(&place, e))?;
                        Ok((Bytes::from(key).slice(names..), Bytes::from(value)))
                    })
                    .collect()
            })
            .await
    }

    async fn enforce_retention(&self, now_ms: i64) -> Result<u64, LogError> {
        self.shared
            .blocking(move |shared| shared.enforce_retention(now_ms))
            .await
    }

    async fn close(&self) -> Result<(), LogError> {
        self.shared
            .blocking(|shared| {
                // Waits for the commit that is being written.
                let _writer = lock(&shared.writer);
                shared.closed.cancel();
                shared
                    .db
                    .persist(PersistMode::SyncAll)
                    .map_err(|e| at("close the log", e))
            })
            .await
    }
}

impl Shared {
    pub(super) fn committed(
        &self,
        group: &GroupId,
        partition: &TopicPartition,
    ) -> Result<Option<Offset>, LogError> {
        let key = codec::offset_key(group, &partition.topic, partition.partition);
        let damaged = || format!("offset of `{group}` in `{partition}`");
        // In a snapshot a commit is there whole or not at all, so that its offsets do not come before its rows.
        let offset = self.db.snapshot().get(&self.offsets, key);
        match offset.map_err(|e| at(&damaged(), e))? {
            None => Ok(None),
            Some(value) => match value[..].try_into() {
                Ok(bytes) => Ok(Some(Offset(u64::from_le_bytes(bytes)))),
                Err(_) => Err(LogError::Corrupt(damaged())),
            },
        }
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        let mut groups = BTreeSet::new();
        for guard in self.offsets.iter() {
            let key = guard.key().map_err(|e| at("offsets of groups", e))?;
            let group = codec::offset_key_parts(&key)
                .and_then(|(group, _)| PipelineName::new(group).ok())
                .ok_or_else(|| LogError::Corrupt(format!("a group's name: {key:?}")))?;
            groups.insert(GroupId(group));
        }
        Ok(groups.into_iter().collect())
    }

    fn reset_group(
        &self,
        group: &GroupId,
        offsets: &[(TopicPartition, Option<Offset>)],
    ) -> Result<(), LogError> {
        let _writer = self.writer()?;
        if lock(&self.groups).has_members(group) {
            return Err(LogError::Config(format!(
                "group `{group}` has members; stop its pipeline, then reset it"
            )));
        }
        // By key: the store must not get one key twice in one write.
        let mut changes = BTreeMap::new();
        for (partition, offset) in offsets {
            self.topic_of(partition)?;
            let key = codec::offset_key(group, &partition.topic, partition.partition);
            changes.insert(key, *offset);
        }
        let mut batch = self.db.batch();
        for (key, offset) in changes {
            match offset {
                Some(offset) => batch.insert(&self.offsets, key, offset.0.to_le_bytes()),
                None => batch.remove(&self.offsets, key),
            }
        }
        batch
            .durability(Some(PersistMode::SyncData))
            .commit()
            .map_err(storage)
    }
}
