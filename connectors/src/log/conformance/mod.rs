//! What every log must do, as one function per behaviour. Each takes a fresh, empty log.
//!
//! [`log_conformance!`](crate::log_conformance) makes a test of each:
//!
//! ```ignore
//! async fn make() -> Option<(Arc<dyn Log>, TempDir)> { ... }     // the guard lives as long as the test
//! va_connectors::log_conformance!(make);
//! ```
//!
//! Nothing here depends on time passing: where a log has to wait, the test commits or the wait is what is tested.
//!
//! Offsets may have gaps between batches and at the end. So nothing here computes the offset of another batch: it takes
//! it from what the log returned. Within a batch, rows have `base .. base + rows`. What only the embedded log promises
//! (no gaps, retention when it is told to) is tested beside it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]

mod commits;
mod groups;
mod keeping;
mod records;
mod rows;

pub use commits::*;
pub use groups::*;
pub use keeping::*;
pub use records::*;
pub use rows::*;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};

use super::{FetchLimit, Fetched, GroupId, Log, LogBatch, Member, StateKey, Target, TopicConfig};

/// Makes a `#[tokio::test]` of every behaviour, on a log made by `$make`: an async function without arguments that
/// returns the log and something to keep until the test ends, or `None` when there can be no such log here, having said
/// why.
#[macro_export]
macro_rules! log_conformance {
    ($make:path) => {
        $crate::log_conformance! { @each $make;
            create_topic_is_idempotent, partitions_never_change, delete_topic_removes_all,
            rows_come_back_as_they_went, offsets_grow, keys_choose_partitions,
            a_failed_commit_leaves_nothing, a_commit_is_atomic, an_unfinished_commit_is_invisible,
            offsets_never_come_before_their_rows,
            an_empty_batch_is_ignored, fetch_wakes_on_commit, fetch_times_out,
            fetch_begins_inside_a_batch, fetch_respects_limits, fetch_can_be_cancelled,
            a_group_shares_partitions, a_partition_moves_after_release,
            a_dropped_member_gives_up_all, a_former_owner_is_fenced, a_group_resumes,
            groups_are_independent, reset_needs_an_empty_group, a_producer_cannot_consume,
            joining_needs_the_topic, offset_at_finds_the_time, state_is_kept_by_key,
            state_is_scanned_in_order, state_of_many_keys_comes_at_once,
            trimmed_rows_may_be_gone, concurrent_producers_lose_nothing,
            a_closed_log_refuses_commits, records_come_back_as_they_went,
            records_are_read_from_anywhere, record_keys_choose_partitions,
            records_and_batches_do_not_mix, records_are_consumed_exactly_once,
        }
    };
    (@each $make:path; $($behaviour:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let Some((log, _guard)) = $make().await else { return };
                $crate::log::conformance::$behaviour(log).await;
            }
        )*
    };
}

/// The longest that anything may take; only a broken log waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub(crate) fn group(name: &str) -> GroupId {
    GroupId(PipelineName::new(name).unwrap())
}

pub(crate) fn part(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition {
        topic: topic.clone(),
        partition: Partition(partition),
    }
}

pub(crate) fn state(group_name: &str, namespace: &str, key: &str) -> StateKey {
    StateKey {
        group: group(group_name),
        namespace: namespace.to_owned(),
        key: key.to_owned().into(),
    }
}

pub(crate) async fn create(log: &Arc<dyn Log>, name: &str, partitions: u32) -> TopicName {
    let name = topic(name);
    let config = TopicConfig {
        partitions,
        ..TopicConfig::default()
    };
    log.create_topic(&name, config).await.unwrap();
    name
}

pub(crate) fn ints(range: std::ops::Range<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
    RecordBatch::try_from_iter([("value", column)]).unwrap()
}

pub(crate) async fn produce(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    partition: u32,
    rows: std::ops::Range<i64>,
) -> Offset {
    let mut commit = log.begin();
    commit.append(topic, Target::Partition(Partition(partition)), ints(rows));
    commit.finish().await.unwrap()[0]
}

pub(crate) async fn high(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> u64 {
    log.watermarks(&part(topic, partition))
        .await
        .unwrap()
        .high
        .0
}

pub(crate) async fn fetch(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    partition: u32,
    from: u64,
) -> Fetched {
    let limit = FetchLimit {
        rows: usize::MAX,
        bytes: usize::MAX,
    };
    log.fetch(&part(topic, partition), Offset(from), limit, PATIENCE)
        .await
        .unwrap()
}

pub(crate) fn values(fetched: &Fetched) -> Vec<i64> {
    fetched
        .batches
        .iter()
        .flat_map(|batch| column(&batch.batch))
        .collect()
}

fn column(batch: &RecordBatch) -> Vec<i64> {
    batch
        .column(0)
        .as_primitive::<Int64Type>()
        .values()
        .to_vec()
}

/// All rows from `from` to the high watermark.
pub(crate) async fn read(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    partition: u32,
    from: u64,
) -> Vec<i64> {
    let (batches, _) = read_batches(log, topic, partition, Offset(from)).await;
    batches
        .iter()
        .flat_map(|batch| column(&batch.batch))
        .collect()
}

/// All rows between the watermarks.
pub(crate) async fn read_all(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> Vec<i64> {
    let low = log.watermarks(&part(topic, partition)).await.unwrap().low;
    read(log, topic, partition, low.0).await
}

/// All batches from `from` to the high watermark, in as many fetches as it takes, each checked to go on where the last
/// one ended; and the position after them.
async fn read_batches(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    partition: u32,
    from: Offset,
) -> (Vec<LogBatch>, Offset) {
    let high = log.watermarks(&part(topic, partition)).await.unwrap().high;
    let (mut batches, mut next) = (Vec::new(), from);
    while next < high {
        let fetched = fetch(log, topic, partition, next.0).await;
        assert!(fetched.next > next, "no progress at {next}");
        assert!(fetched.next <= fetched.high, "{next}: {fetched:?}");
        let mut end = next;
        for batch in &fetched.batches {
            assert!(batch.base >= end, "{next}: {fetched:?}");
            end = Offset(batch.base.0 + batch.batch.num_rows() as u64);
        }
        assert!(fetched.next >= end, "{next}: {fetched:?}");
        batches.extend(fetched.batches);
        next = fetched.next;
    }
    (batches, next)
}

/// Where a reader stands that has read everything.
pub(crate) async fn end(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> Offset {
    read_batches(log, topic, partition, Offset(0)).await.1
}

/// The offset of each row from the low watermark on.
async fn row_offsets(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> Vec<Offset> {
    read_batches(log, topic, partition, Offset(0))
        .await
        .0
        .iter()
        .flat_map(|batch| (0..batch.batch.num_rows() as u64).map(|row| Offset(batch.base.0 + row)))
        .collect()
}

/// Waits until the member has been given `count` partitions.
pub(crate) async fn assigned(
    member: &dyn Member,
    count: usize,
) -> BTreeMap<TopicPartition, Offset> {
    let mut all = BTreeMap::new();
    while all.len() < count {
        let change = tokio::time::timeout(PATIENCE, member.rebalance())
            .await
            .expect("an assignment in time")
            .unwrap();
        all.extend(change.assigned);
    }
    assert_eq!(all.len(), count);
    all
}

/// Waits until the member has been asked to give up `count` partitions.
async fn revoked(member: &dyn Member, count: usize) -> Vec<TopicPartition> {
    let mut all = Vec::new();
    while all.len() < count {
        let change = tokio::time::timeout(PATIENCE, member.rebalance())
            .await
            .expect("a revocation in time")
            .unwrap();
        all.extend(change.revoked);
    }
    assert_eq!(all.len(), count);
    all
}
