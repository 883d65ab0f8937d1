//! The trait: each method goes to the file that holds its idea.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use va_catalog::{Offset, Partition, TopicName, TopicPartition};

use super::client::KafkaLog;
use super::commit::KafkaCommit;
use super::member::KafkaMember;
use super::names::Position;
use crate::log::{
    Commit, FetchLimit, Fetched, FetchedRecords, Finding, GroupId, Log, LogError, Member, StateKey,
    TopicConfig, Watermarks,
};

#[async_trait]
impl Log for KafkaLog {
    async fn create_topic(&self, topic: &TopicName, config: TopicConfig) -> Result<(), LogError> {
        self.shared.create_topic(topic, &config).await
    }

    async fn delete_topic(&self, topic: &TopicName) -> Result<(), LogError> {
        self.shared.delete_topic(topic).await
    }

    async fn topics(&self) -> Result<Vec<(TopicName, TopicConfig)>, LogError> {
        self.shared.topics().await
    }

    async fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks, LogError> {
        let place = partition.clone();
        self.shared
            .blocking(move |shared| shared.watermarks(&place))
            .await
    }

    async fn offset_at(
        &self,
        partition: &TopicPartition,
        time_ms: i64,
    ) -> Result<Offset, LogError> {
        self.shared.offset_at(partition, time_ms).await
    }

    fn distance(&self, from: Offset, to: Offset) -> u64 {
        let (from, to) = (Position::of(from), Position::of(to));
        u64::try_from(to.record - from.record).unwrap_or(0)
    }

    async fn fetch(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<Fetched, LogError> {
        self.shared.fetch(partition, from, limit, wait).await
    }

    async fn fetch_records(
        &self,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<FetchedRecords, LogError> {
        self.shared
            .fetch_records(partition, from, limit, wait)
            .await
    }

    async fn committed(
        &self,
        group: &GroupId,
        partition: &TopicPartition,
    ) -> Result<Option<Offset>, LogError> {
        self.shared.committed(group, partition).await
    }

    async fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        self.shared.blocking(|shared| shared.all_groups()).await
    }

    async fn reset_group(
        &self,
        group: &GroupId,
        offsets: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError> {
        self.shared.reset_group(group, offsets).await
    }

    async fn join(
        &self,
        group: &GroupId,
        topics: &[TopicName],
    ) -> Result<Box<dyn Member>, LogError> {
        let member = KafkaMember::join(Arc::clone(&self.shared), group, topics).await?;
        Ok(Box::new(member))
    }

    fn begin(&self) -> Box<dyn Commit> {
        Box::new(KafkaCommit::new(Arc::clone(&self.shared), None))
    }

    async fn state_get(&self, key: &StateKey) -> Result<Option<Bytes>, LogError> {
        let keys = std::slice::from_ref(&key.key);
        let values = self
            .shared
            .state_get_many(&key.group, &key.namespace, keys)
            .await?;
        Ok(values.into_iter().next().flatten())
    }

    async fn state_get_many(
        &self,
        group: &GroupId,
        namespace: &str,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, LogError> {
        self.shared.state_get_many(group, namespace, keys).await
    }

    async fn create_state(&self, group: &GroupId, aligned: &[u32]) -> Result<(), LogError> {
        self.shared.ready_state(group, aligned).await.map(|_| ())
    }

    fn restore_state(&self, group: &GroupId, partitions: &[Partition], of: u32) {
        let rows = partitions.iter().map(|partition| partition.0).collect();
        self.shared.restore_state(group, rows, of);
    }

    fn state_restoring(&self, group: &GroupId) -> u64 {
        self.shared.state.restoring(group)
    }

    async fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        self.shared.trim(before).await
    }

    async fn state_scan(
        &self,
        group: &GroupId,
        namespace: &str,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.shared
            .state_scan(group, namespace, prefix, limit)
            .await
    }

    /// The brokers do it, by the topic's settings: nothing is left to do here.
    async fn enforce_retention(&self, _now_ms: i64) -> Result<u64, LogError> {
        Ok(0)
    }

    async fn diagnose(&self) -> Result<Vec<Finding>, LogError> {
        self.shared.diagnose().await
    }

    async fn close(&self) -> Result<(), LogError> {
        self.shared.closed.cancel();
        // A commit that was finished is durable already: the brokers have acknowledged it.
        self.shared.state.clear().await;
        self.shared
            .blocking(|shared| {
                shared.readers.clear();
                shared.producers.clear();
                Ok(())
            })
            .await
    }
}
