//! Retention: whole batches go, oldest first, and the low watermark follows in the same write.
//!
//! By time everything may go, also the newest batch. By size the newest batch always stays: otherwise a batch larger
//! than the limit could never be read.

use std::sync::Arc;

use fjall::PersistMode;
use va_catalog::{Offset, Partition, TopicPartition};

use super::codec::{BatchEntry, base_of, batch_key, marks_key};
use super::store::{Shared, Topic, at};
use crate::log::LogError;

impl Shared {
    /// Every topic's retention as of `now_ms`; returns the rows removed.
    pub(super) fn enforce_retention(&self, now_ms: i64) -> Result<u64, LogError> {
        let names: Vec<_> = self.partition_counts().into_keys().collect();
        let mut rows = 0;
        for name in names {
            // The writer is taken anew for each partition, so that commits get in between.
            for partition in 0.. {
                let _writer = self.writer()?;
                let Ok(topic) = self.topic(&name) else {
                    break;
                };
                if partition >= topic.config.partitions {
                    break;
                }
                rows += self.retain(&topic, Partition(partition), now_ms, Offset(0))?;
            }
        }
        Ok(rows)
    }

    /// Whole batches that end before an offset go, whatever retention says.
    pub(super) fn trim(&self, place: &TopicPartition, before: Offset) -> Result<(), LogError> {
        let _writer = self.writer()?;
        let topic = self.topic_of(place)?;
        self.retain(&topic, place.partition, i64::MIN, before)?;
        Ok(())
    }

    /// The caller holds the writer. Batches that end at `before` go in any case.
    fn retain(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        now_ms: i64,
        before: Offset,
    ) -> Result<u64, LogError> {
        let sender = topic.marks(partition)?;
        let mut marks = *sender.borrow();
        let oldest_ms = topic
            .config
            .retention_ms
            .map(|keep| now_ms.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX)));
        let bytes_max = topic.config.retention_bytes.unwrap_or(u64::MAX);
        let place = || format!("retention of `{}-{partition}`", topic.name);

        let low = marks.low;
        if low == marks.high {
            return Ok(0);
        }
        let mut batch = self.db.batch();
        let range = batch_key(topic.id, partition, Offset(marks.low))
            ..batch_key(topic.id, partition, Offset(marks.high));
        for guard in self.index.range(range) {
            let (key, value) = guard.into_inner().map_err(|e| at(&place(), e))?;
            let (Some(base), Some(entry)) = (base_of(&key), BatchEntry::decode(&value)) else {
                return Err(LogError::Corrupt(place()));
            };
            let end = base.0 + u64::from(entry.rows);
            let expired = oldest_ms.is_some_and(|oldest| entry.appended_at_ms < oldest);
            let too_much = marks.bytes > bytes_max && end < marks.high;
            let consumed = end <= before.0;
            if !expired && !too_much && !consumed {
                break;
            }
            batch.remove(&self.index, key.clone());
            batch.remove(&self.batches, key);
            marks.low = end;
            marks.bytes = marks.bytes.saturating_sub(u64::from(entry.bytes));
        }
        if marks.low == low {
            return Ok(0);
        }
        batch.insert(&self.meta, marks_key(topic.id, partition), marks.encode());
        // Not synced: what comes back after a power cut is removed again.
        batch
            .durability(Some(PersistMode::Buffer))
            .commit()
            .map_err(|e| at(&place(), e))?;
        sender.send_replace(marks);
        Ok(marks.low - low)
    }
}
