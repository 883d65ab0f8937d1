//! Topics: creating, changing, listing and deleting them.

use std::time::Duration;

use rdkafka::admin::{
    AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::time::Instant;
use va_catalog::{Offset, TopicName, TopicPartition};

use super::client::{Shared, storage, storage_code};
use super::names::Position;
use crate::log::{LogError, TopicConfig};

const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const RECORD_BYTES: &str = "max.message.bytes";
/// Between two looks at the metadata, while the brokers tell each other of a change.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Kafka's way to say without limit.
fn limit(value: Option<u64>) -> String {
    value.map_or_else(|| "-1".to_owned(), |value| value.to_string())
}

fn unlimited(value: Option<&str>) -> Option<u64> {
    value.and_then(|value| value.parse().ok())
}

impl Shared {
    fn admin_options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout()))
            .operation_timeout(Some(self.timeout()))
    }

    pub(super) async fn create_topic(
        self: &std::sync::Arc<Self>,
        topic: &TopicName,
        config: &TopicConfig,
    ) -> Result<(), LogError> {
        self.open()?;
        if config.partitions == 0 {
            return Err(LogError::Config(format!(
                "topic `{topic}` needs at least one partition"
            )));
        }
        let kafka = self.kafka_topic(topic)?;
        let (time, bytes) = (limit(config.retention_ms), limit(config.retention_bytes));
        let settings = [
            ("cleanup.policy", "delete"),
            // The time of the append and not of the producer's clock, so that times never go back in a partition.
            ("message.timestamp.type", "LogAppendTime"),
            (RETENTION_MS, &time),
            (RETENTION_BYTES, &bytes),
        ];
        if self
            .create_kafka_topic(&kafka, config.partitions, &settings)
            .await?
        {
            let name = topic.clone();
            self.wait_until(move |shared| shared.known_count(&name).is_some())
                .await?;
            self.note_created(topic, config.partitions);
            return Ok(());
        }
        // Another process may have created it a moment ago, and not every broker has heard of it yet.
        let name = topic.clone();
        self.wait_until(move |shared| shared.known_count(&name).is_some())
            .await?;
        let name = topic.clone();
        let partitions = self
            .blocking(move |shared| shared.partitions(&name))
            .await?;
        if partitions != config.partitions {
            return Err(LogError::Config(format!(
                "topic `{topic}` has {partitions} partitions, not {}: their number cannot change, because keys would move",
                config.partitions
            )));
        }
        self.change_retention(&kafka, &time, &bytes).await
    }

    /// Creates a topic by its name in the cluster; false when it is there already.
    pub(super) async fn create_kafka_topic(
        &self,
        kafka: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<bool, LogError> {
        let record_bytes = self.options.record_bytes_max.to_string();
        let replication = TopicReplication::Fixed(i32::from(self.options.replication_factor));
        let mut new =
            NewTopic::new(kafka, partitions as i32, replication).set(RECORD_BYTES, &record_bytes);
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let what = format!("create topic `{kafka}`");
        let created = self
            .admin
            .create_topics([&new], &self.admin_options())
            .await;
        match created.map_err(|e| storage(&what, &e))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
            Some(Err((
                _,
                code @ (Code::InvalidTopic
                | Code::InvalidPartitions
                | Code::InvalidReplicationFactor
                | Code::InvalidConfig
                | Code::PolicyViolation
                | Code::TopicAuthorizationFailed),
            ))) => Err(LogError::Config(format!("kafka: {what}: {code}"))),
            Some(Err((_, code))) => Err(storage_code(&what, code)),
            None => Err(LogError::Storage(format!("kafka: {what}: no answer"))),
        }
    }

    /// The request replaces all settings of the topic, so what others set goes with it.
    async fn change_retention(&self, kafka: &str, time: &str, bytes: &str) -> Result<(), LogError> {
        let what = format!("change topic `{kafka}`");
        let resource = ResourceSpecifier::Topic(kafka);
        let described = self
            .admin
            .describe_configs([&resource], &self.admin_options())
            .await;
        let described = match described
            .map_err(|e| storage(&what, &e))?
            .into_iter()
            .next()
        {
            Some(Ok(described)) => described,
            Some(Err(code)) => return Err(storage_code(&what, code)),
            None => return Err(LogError::Storage(format!("kafka: {what}: no answer"))),
        };
        let now = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref());
        if now(RETENTION_MS) == Some(time) && now(RETENTION_BYTES) == Some(bytes) {
            return Ok(());
        }
        let mut change = AlterConfig::new(resource)
            .set(RETENTION_MS, time)
            .set(RETENTION_BYTES, bytes);
        for entry in &described.entries {
            if entry.source == ConfigSource::DynamicTopic
                && ![RETENTION_MS, RETENTION_BYTES].contains(&entry.name.as_str())
                && let Some(value) = &entry.value
            {
                change = change.set(&entry.name, value);
            }
        }
        let changed = self
            .admin
            .alter_configs([&change], &self.admin_options())
            .await;
        match changed.map_err(|e| storage(&what, &e))?.into_iter().next() {
            Some(Ok(_)) => Ok(()),
            Some(Err((_, code))) => Err(storage_code(&what, code)),
            None => Err(LogError::Storage(format!("kafka: {what}: no answer"))),
        }
    }

    /// Removes the records before these positions.
    pub(super) async fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        let what = "remove consumed records";
        let mut list = TopicPartitionList::with_capacity(before.len());
        for (place, before) in before {
            let topic = self.kafka_topic(&place.topic)?;
            let record = KafkaOffset::Offset(Position::of(*before).record);
            list.add_partition_offset(&topic, place.partition.0 as i32, record)
                .map_err(|e| storage(what, &e))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        let trimmed = self
            .admin
            .delete_records(&list, &self.admin_options())
            .await
            .map_err(|e| storage(what, &e))?;
        trimmed
            .elements()
            .iter()
            .try_for_each(|one| one.error().map_err(|e| storage(what, &e)))
    }

    pub(super) async fn delete_topic(
        self: &std::sync::Arc<Self>,
        topic: &TopicName,
    ) -> Result<(), LogError> {
        self.open()?;
        let kafka = self.kafka_topic(topic)?;
        let what = format!("delete topic `{kafka}`");
        let deleted = self
            .admin
            .delete_topics(&[&kafka], &self.admin_options())
            .await;
        match deleted.map_err(|e| storage(&what, &e))?.into_iter().next() {
            Some(Ok(_)) => {}
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => {
                self.forget(topic);
                return Err(LogError::UnknownTopic(topic.clone()));
            }
            Some(Err((_, code))) => return Err(storage_code(&what, code)),
            None => return Err(LogError::Storage(format!("kafka: {what}: no answer"))),
        }
        self.note_deleted(topic);
        let gone = topic.clone();
        self.wait_until(move |shared| shared.known_count(&gone).is_none())
            .await?;
        self.forget(topic);
        Ok(())
    }

    /// Looks at the metadata until the brokers know of a change that the controller has accepted.
    pub(super) async fn wait_until(
        self: &std::sync::Arc<Self>,
        seen: impl Fn(&Self) -> bool + Clone + Send + 'static,
    ) -> Result<(), LogError> {
        let deadline = Instant::now() + self.timeout();
        loop {
            let seen = seen.clone();
            let is_seen = self.blocking(move |shared| {
                shared.refresh_counts()?;
                Ok(seen(shared))
            });
            if is_seen.await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LogError::Storage(
                    "kafka: the brokers do not know of the change of the topic yet".to_owned(),
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) async fn topics(
        self: &std::sync::Arc<Self>,
    ) -> Result<Vec<(TopicName, TopicConfig)>, LogError> {
        self.blocking(|shared| shared.refresh_counts()).await?;
        let known = self.known_topics();
        let mut names = Vec::with_capacity(known.len());
        for topic in known.keys() {
            names.push(self.kafka_topic(topic)?);
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let resources: Vec<_> = names
            .iter()
            .map(|name| ResourceSpecifier::Topic(name))
            .collect();
        let what = "ask for the settings of topics";
        let described = self
            .admin
            .describe_configs(&resources, &self.admin_options())
            .await;
        let mut topics = Vec::with_capacity(known.len());
        for resource in described.map_err(|e| storage(what, &e))? {
            let resource = match resource {
                Ok(resource) => resource,
                // It was deleted just now.
                Err(Code::UnknownTopicOrPartition) => continue,
                Err(code) => return Err(storage_code(what, code)),
            };
            let rdkafka::admin::OwnedResourceSpecifier::Topic(kafka) = &resource.specifier else {
                continue;
            };
            let Some((name, partitions)) = self
                .topic_name(kafka)
                .and_then(|name| known.get(&name).map(|count| (name, *count)))
            else {
                continue;
            };
            let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
            topics.push((
                name,
                TopicConfig {
                    partitions,
                    retention_ms: unlimited(value(RETENTION_MS)),
                    retention_bytes: unlimited(value(RETENTION_BYTES)),
                },
            ));
        }
        topics.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(topics)
    }
}
