//! Reading: the blocking fetch, and finding an offset by time. Everything is read from one snapshot of the store.

use std::sync::Arc;
use std::time::Duration;

use fjall::{Readable, Snapshot};
use va_catalog::{Offset, TopicPartition};

use super::codec::{BatchEntry, Marks, TopicId, base_of, batch_key, decode_batch, marks_key};
use super::store::{Shared, at};
use crate::log::{FetchLimit, Fetched, LogBatch, LogError, Watermarks};

/// A batch's place and size, from the `index` keyspace.
struct Found {
    base: Offset,
    entry: BatchEntry,
}

impl Found {
    fn end(&self) -> Offset {
        Offset(self.base.0 + u64::from(self.entry.rows))
    }
}

impl Shared {
    /// See [`crate::log::Log::fetch`]. Cancel-safe: it changes nothing.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        partition: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<Fetched, LogError> {
        // A wait beyond what the timer can hold is a wait without end.
        let deadline = tokio::time::Instant::now().checked_add(wait);
        // The topic itself is not kept while waiting: its senders have to end when it is deleted.
        let (id, mut marks) = {
            let topic = self.topic_of(partition)?;
            (topic.id, topic.marks(partition.partition)?.subscribe())
        };
        loop {
            let now = *marks.borrow_and_update();
            if from.0 < now.high {
                let place = partition.clone();
                let fetched = self
                    .blocking(move |shared| shared.read(&place, id, from, limit))
                    .await?;
                let rows: usize = fetched.batches.iter().map(|b| b.batch.num_rows()).sum();
                let topic = partition.topic.to_string();
                metrics::counter!("va_log_fetch_rows_total", "topic" => topic)
                    .increment(rows as u64);
                return Ok(fetched);
            }
            let nothing = Fetched {
                batches: Vec::new(),
                next: from,
                skipped: 0,
                high: Offset(now.high),
            };
            if wait.is_zero() {
                return Ok(nothing);
            }
            let timeout = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = marks.changed() => {
                    if changed.is_err() {
                        return Err(LogError::UnknownTopic(partition.topic.clone()));
                    }
                }
                () = self.closed.cancelled() => return Err(LogError::Closed),
                () = timeout => return Ok(nothing),
            }
        }
    }

    /// What is written, which may be a little more than readers that wait have been told.
    pub(super) fn watermarks(&self, place: &TopicPartition) -> Result<Watermarks, LogError> {
        let topic = self.topic_of(place)?;
        let marks = self
            .marks_in(&self.db.snapshot(), place, topic.id)?
            .ok_or_else(|| LogError::UnknownTopic(place.topic.clone()))?;
        Ok(Watermarks {
            low: Offset(marks.low),
            high: Offset(marks.high),
        })
    }

    fn read(
        &self,
        place: &TopicPartition,
        topic: TopicId,
        from: Offset,
        limit: FetchLimit,
    ) -> Result<Fetched, LogError> {
        let snapshot = self.db.snapshot();
        let marks = self
            .marks_in(&snapshot, place, topic)?
            .ok_or_else(|| LogError::UnknownTopic(place.topic.clone()))?;
        let start = Offset(from.0.max(marks.low));
        let mut fetched = Fetched {
            batches: Vec::new(),
            next: start,
            skipped: start.0 - from.0,
            high: Offset(marks.high),
        };
        if start.0 >= marks.high {
            return Ok(fetched);
        }

        let first = self.find(&snapshot, place, topic, marks, start)?;
        let range = batch_key(topic, place.partition, first.base)
            ..batch_key(topic, place.partition, Offset(marks.high));
        let (mut rows, mut bytes) = (0_usize, 0_usize);
        let mut expected = first.base;
        for guard in snapshot.range(&self.index, range) {
            let (key, value) = guard
                .into_inner()
                .map_err(|e| at(&format!("{place}@{expected}"), e))?;
            let found = found(place, &key, &value)?;
            if found.base != expected {
                return Err(LogError::Corrupt(format!(
                    "{place}@{expected}: it is missing"
                )));
            }
            expected = found.end();
            rows += found.entry.rows as usize;
            bytes += found.entry.bytes as usize;
            if !fetched.batches.is_empty() && (rows > limit.rows || bytes > limit.bytes) {
                break;
            }
            let batch = self.batch(&snapshot, place, &key, &found)?;
            fetched.next = found.end();
            fetched.batches.push(if found.base < start {
                let cut = (start.0 - found.base.0) as usize;
                rows -= cut;
                LogBatch {
                    base: start,
                    batch: batch.slice(cut, batch.num_rows() - cut),
                    appended_at_ms: found.entry.appended_at_ms,
                }
            } else {
                LogBatch {
                    base: found.base,
                    batch,
                    appended_at_ms: found.entry.appended_at_ms,
                }
            });
        }
        if fetched.batches.is_empty() {
            return Err(LogError::Corrupt(format!("{place}@{start}: it is missing")));
        }
        Ok(fetched)
    }

    /// See [`crate::log::Log::offset_at`]: a binary search, because times never go back within a partition.
    pub(super) fn offset_at(
        &self,
        place: &TopicPartition,
        topic: TopicId,
        time_ms: i64,
    ) -> Result<Offset, LogError> {
        let snapshot = self.db.snapshot();
        let marks = self
            .marks_in(&snapshot, place, topic)?
            .ok_or_else(|| LogError::UnknownTopic(place.topic.clone()))?;
        let (mut low, mut high) = (marks.low, marks.high);
        while low < high {
            let middle = Offset(low + (high - low) / 2);
            let found = self.find(&snapshot, place, topic, marks, middle)?;
            if found.entry.appended_at_ms < time_ms {
                low = found.end().0;
            } else {
                high = found.base.0;
            }
        }
        Ok(Offset(low))
    }

    fn marks_in(
        &self,
        snapshot: &Snapshot,
        place: &TopicPartition,
        topic: TopicId,
    ) -> Result<Option<Marks>, LogError> {
        let context = || format!("watermarks of `{place}`");
        snapshot
            .get(&self.meta, marks_key(topic, place.partition))
            .map_err(|e| at(&context(), e))?
            .map(|value| Marks::decode(&value).ok_or_else(|| LogError::Corrupt(context())))
            .transpose()
    }

    /// The batch that holds `offset`, which lies between the watermarks.
    fn find(
        &self,
        snapshot: &Snapshot,
        place: &TopicPartition,
        topic: TopicId,
        marks: Marks,
        offset: Offset,
    ) -> Result<Found, LogError> {
        let key = |offset| batch_key(topic, place.partition, offset);
        let missing = || LogError::Corrupt(format!("{place}@{offset}: it is missing"));
        // Not below the low watermark: there may be many removed entries.
        let guard = snapshot
            .range(&self.index, key(Offset(marks.low))..=key(offset))
            .next_back()
            .ok_or_else(missing)?;
        let (key, value) = guard
            .into_inner()
            .map_err(|e| at(&format!("{place}@{offset}"), e))?;
        let found = found(place, &key, &value)?;
        if offset < found.end() {
            Ok(found)
        } else {
            Err(missing())
        }
    }

    fn batch(
        &self,
        snapshot: &Snapshot,
        place: &TopicPartition,
        key: &[u8],
        found: &Found,
    ) -> Result<arrow::record_batch::RecordBatch, LogError> {
        let context = || format!("{place}@{}", found.base);
        let value = snapshot
            .get(&self.batches, key)
            .map_err(|e| at(&context(), e))?
            .ok_or_else(|| LogError::Corrupt(format!("{}: it is missing", context())))?;
        let batch = decode_batch(key, value.into())
            .map_err(|e| LogError::Corrupt(format!("{}: {e}", context())))?;
        if batch.num_rows() == found.entry.rows as usize {
            Ok(batch)
        } else {
            Err(LogError::Corrupt(format!(
                "{}: {} rows instead of {}",
                context(),
                batch.num_rows(),
                found.entry.rows
            )))
        }
    }
}

fn found(place: &TopicPartition, key: &[u8], value: &[u8]) -> Result<Found, LogError> {
    match (base_of(key), BatchEntry::decode(value)) {
        (Some(base), Some(entry)) if entry.rows > 0 => Ok(Found { base, entry }),
        _ => Err(LogError::Corrupt(format!("index of `{place}`: {key:?}"))),
    }
}
