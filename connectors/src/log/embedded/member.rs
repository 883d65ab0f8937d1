//! A member of a consumer group: waits for what [`super::groups`] decides.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use va_catalog::{Offset, TopicName, TopicPartition};

use super::assign::MemberId;
use super::commit::{Consumer, EmbeddedCommit};
use super::groups::Epoch;
use super::store::{Shared, lock};
use crate::log::{Commit, GroupId, LogError, Member, Rebalance};

#[derive(Debug)]
pub(super) struct EmbeddedMember {
    shared: Arc<Shared>,
    group: GroupId,
    id: MemberId,
    changed: watch::Receiver<Epoch>,
}

impl EmbeddedMember {
    pub(super) fn join(
        shared: Arc<Shared>,
        group: &GroupId,
        subscribed: &[TopicName],
    ) -> Result<Self, LogError> {
        if shared.closed.is_cancelled() {
            return Err(LogError::Closed);
        }
        for topic in subscribed {
            shared.topic(topic)?;
        }
        let (id, changed) =
            lock(&shared.groups).join(group, subscribed, &shared.partition_counts());
        Ok(Self {
            shared,
            group: group.clone(),
            id,
            changed,
        })
    }

    /// Where to read on. Takes the writer: a commit of the former owner that is being written counts, and one that
    /// comes later is fenced, because the partition already has its new owner.
    async fn positions(
        &self,
        partitions: Vec<TopicPartition>,
    ) -> Result<Vec<(TopicPartition, Offset)>, LogError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let group = self.group.clone();
        self.shared
            .blocking(move |shared| {
                let _writer = shared.writer()?;
                let mut positions = Vec::with_capacity(partitions.len());
                for partition in partitions {
                    // A topic that was deleted just now is about to be taken away again.
                    let Ok(topic) = shared.topic_of(&partition) else {
                        continue;
                    };
                    let low = topic.marks(partition.partition)?.borrow().low;
                    let committed = shared.committed(&group, &partition)?;
                    positions.push((partition, committed.unwrap_or(Offset(low))));
                }
                Ok(positions)
            })
            .await
    }
}

#[async_trait]
impl Member for EmbeddedMember {
    async fn rebalance(&self) -> Result<Rebalance, LogError> {
        let mut changed = self.changed.clone();
        loop {
            changed.mark_unchanged();
            let change = lock(&self.shared.groups).change(&self.group, self.id);
            let Some(change) = change.filter(|change| change.is_due()) else {
                tokio::select! {
                    result = changed.changed() => {
                        if result.is_err() {
                            return Err(LogError::Closed);
                        }
                    }
                    () = self.shared.closed.cancelled() => return Err(LogError::Closed),
                }
                continue;
            };
            let assigned = self.positions(change.assigned.clone()).await?;
            // From here on there is no waiting: what is acknowledged is returned.
            if lock(&self.shared.groups).acknowledge(&self.group, self.id, &change) {
                return Ok(Rebalance {
                    assigned,
                    revoked: change.revoked,
                });
            }
        }
    }

    async fn release(&self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        lock(&self.shared.groups).release(
            &self.group,
            self.id,
            partitions,
            &self.shared.partition_counts(),
        );
        Ok(())
    }

    fn begin(&self) -> Box<dyn Commit> {
        let consumer = Consumer {
            group: self.group.clone(),
            member: self.id,
        };
        Box::new(EmbeddedCommit::new(
            Arc::clone(&self.shared),
            Some(consumer),
        ))
    }
}

impl Drop for EmbeddedMember {
    fn drop(&mut self) {
        lock(&self.shared.groups).leave(&self.group, self.id, &self.shared.partition_counts());
    }
}
