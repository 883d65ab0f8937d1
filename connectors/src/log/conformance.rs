//! What every log must do, as one function per behaviour. Each takes a fresh, empty log.
//!
//! [`log_conformance!`](crate::log_conformance) makes a test of each:
//!
//! ```ignore
//! async fn make() -> (Arc<dyn Log>, TempDir) { ... }     // the guard lives as long as the test
//! va_connectors::log_conformance!(make);
//! ```
//!
//! Nothing here depends on time passing: where a log has to wait, the test commits or the wait is what is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, Schema};
use bytes::Bytes;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};

use super::{
    FetchLimit, Fetched, GroupId, Log, LogError, Member, Rebalance, StateKey, Target, TopicConfig,
    partition_of,
};

/// Makes a `#[tokio::test]` of every behaviour, on a log made by `$make`: an async function without arguments that
/// returns the log and something to keep until the test ends.
#[macro_export]
macro_rules! log_conformance {
    ($make:path) => {
        $crate::log_conformance! { @each $make;
            create_topic_is_idempotent, partitions_never_change, delete_topic_removes_all,
            rows_come_back_as_they_went, offsets_are_dense, keys_choose_partitions,
            a_failed_commit_leaves_nothing, a_commit_is_atomic, an_unfinished_commit_is_invisible,
            an_empty_batch_is_ignored, fetch_wakes_on_commit, fetch_times_out,
            fetch_begins_inside_a_batch, fetch_respects_limits, fetch_can_be_cancelled,
            a_group_shares_partitions, a_partition_moves_after_release,
            a_dropped_member_gives_up_all, a_former_owner_is_fenced, a_group_resumes,
            groups_are_independent, reset_needs_an_empty_group, a_producer_cannot_consume,
            joining_needs_the_topic, retention_by_time, retention_by_size,
            offset_at_finds_the_time, state_is_kept_by_key, state_is_scanned_in_order,
            concurrent_producers_leave_no_gap, a_closed_log_refuses_commits,
        }
    };
    (@each $make:path; $($behaviour:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let (log, _guard) = $make().await;
                $crate::log::conformance::$behaviour(log).await;
            }
        )*
    };
}

/// The longest that anything may take; only a broken log waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

// ---- topics

pub async fn create_topic_is_idempotent(log: Arc<dyn Log>) {
    let config = TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    };
    let name = topic("events.eingang-事件");
    log.create_topic(&name, config.clone()).await.unwrap();
    produce(&log, &name, 0, 0..3).await;
    log.create_topic(&name, config.clone()).await.unwrap();
    assert_eq!(log.topics().await.unwrap(), [(name.clone(), config)]);
    assert_eq!(high(&log, &name, 0).await, 3, "the rows are still there");

    let longer = TopicConfig {
        partitions: 2,
        retention_ms: None,
        retention_bytes: Some(1 << 30),
    };
    log.create_topic(&name, longer.clone()).await.unwrap();
    assert_eq!(log.topics().await.unwrap(), [(name, longer)]);
}

pub async fn partitions_never_change(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    let error = log
        .create_topic(
            &name,
            TopicConfig {
                partitions: 3,
                ..TopicConfig::default()
            },
        )
        .await
        .unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
    let none = TopicConfig {
        partitions: 0,
        ..TopicConfig::default()
    };
    let error = log.create_topic(&topic("none"), none).await.unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
}

pub async fn delete_topic_removes_all(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let other = create(&log, "other", 1).await;
    produce(&log, &name, 0, 0..5).await;
    produce(&log, &other, 0, 0..2).await;
    let member = log
        .join(&group("g"), &[name.clone(), other.clone()])
        .await
        .unwrap();
    assigned(&*member, 2).await;
    let mut commit = member.begin();
    commit.consumed(&part(&name, 0), Offset(5));
    commit.consumed(&part(&other, 0), Offset(2));
    commit.finish().await.unwrap();
    drop(member);

    log.delete_topic(&name).await.unwrap();
    let error = log.watermarks(&part(&name, 0)).await.unwrap_err();
    assert!(matches!(error, LogError::UnknownTopic(_)), "{error}");
    let error = log.delete_topic(&name).await.unwrap_err();
    assert!(matches!(error, LogError::UnknownTopic(_)), "{error}");

    create(&log, "t", 1).await;
    assert_eq!(high(&log, &name, 0).await, 0);
    assert_eq!(
        log.committed(&group("g"), &part(&name, 0)).await.unwrap(),
        None
    );
    let kept = log.committed(&group("g"), &part(&other, 0)).await.unwrap();
    assert_eq!(kept, Some(Offset(2)));
    assert_eq!(read(&log, &other, 0, 0).await, [0, 1]);
}

// ---- append and fetch

pub async fn rows_come_back_as_they_went(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let batch = rich_batch();
    let mut commit = log.begin();
    commit.append(&name, Target::Partition(Partition(0)), batch.clone());
    // A slice has to be stored as what it shows, not as what it points into.
    commit.append(&name, Target::Partition(Partition(0)), batch.slice(1, 2));
    assert_eq!(commit.finish().await.unwrap(), [Offset(0), Offset(4)]);

    let fetched = fetch(&log, &name, 0, 0).await;
    assert_eq!(fetched.batches.len(), 2);
    assert_eq!(fetched.batches[0].batch, batch);
    assert_eq!(fetched.batches[0].batch.schema(), batch.schema());
    assert_eq!(fetched.batches[1].batch, batch.slice(1, 2));
    assert_eq!(
        (fetched.next, fetched.high, fetched.skipped),
        (Offset(6), Offset(6), 0)
    );
    assert!(fetched.batches[0].appended_at_ms > 0);
}

pub async fn offsets_are_dense(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    let mut commit = log.begin();
    for (partition, rows) in [(0, 0..3), (1, 0..2), (0, 3..7), (0, 7..8)] {
        commit.append(&name, Target::Partition(Partition(partition)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(0), Offset(0), Offset(3), Offset(7)]);
    assert_eq!(produce(&log, &name, 1, 2..4).await, Offset(2));
    assert_eq!(read(&log, &name, 0, 0).await, (0..8).collect::<Vec<_>>());
    assert_eq!(read(&log, &name, 1, 0).await, [0, 1, 2, 3]);
}

pub async fn keys_choose_partitions(log: Arc<dyn Log>) {
    let name = create(&log, "t", 3).await;
    let mut expected: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for i in 0..30 {
        let key = format!("文档-{}", i % 10);
        let mut commit = log.begin();
        commit.append(&name, Target::Key(key.clone().into()), ints(i..i + 1));
        commit.finish().await.unwrap();
        let partition = partition_of(key.as_bytes(), 3);
        expected.entry(partition.0).or_default().push(i);
    }
    assert!(expected.len() > 1, "ten keys on one of three partitions");
    for (partition, rows) in expected {
        assert_eq!(read(&log, &name, partition, 0).await, rows);
    }
}

pub async fn an_empty_batch_is_ignored(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let mut commit = log.begin();
    for rows in [0..0, 0..2, 0..0] {
        commit.append(&name, Target::Partition(Partition(0)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(0), Offset(0), Offset(2)]);
    assert_eq!(read(&log, &name, 0, 0).await, [0, 1]);
    assert!(log.begin().finish().await.unwrap().is_empty());
}

pub async fn fetch_wakes_on_commit(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    let mut waiting =
        std::pin::pin!(log.fetch(&place, Offset(0), FetchLimit::default(), PATIENCE * 2));
    assert!(futures::poll!(&mut waiting).is_pending());
    produce(&log, &name, 0, 0..2).await;
    let fetched = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the commit wakes it")
        .unwrap();
    assert_eq!(values(&fetched), [0, 1]);
}

pub async fn fetch_times_out(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..2).await;
    for wait in [Duration::ZERO, Duration::from_millis(30)] {
        let started = Instant::now();
        let fetched = log
            .fetch(&part(&name, 0), Offset(2), FetchLimit::default(), wait)
            .await
            .unwrap();
        assert!(started.elapsed() >= wait);
        assert!(fetched.batches.is_empty());
        assert_eq!((fetched.next, fetched.high), (Offset(2), Offset(2)));
    }
    let error = log
        .fetch(
            &part(&name, 1),
            Offset(0),
            FetchLimit::default(),
            Duration::ZERO,
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, LogError::UnknownPartition { partitions: 1, .. }),
        "{error}"
    );
}

pub async fn fetch_begins_inside_a_batch(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    produce(&log, &name, 0, 10..15).await;
    for from in 0..15 {
        let fetched = fetch(&log, &name, 0, from).await;
        assert_eq!(fetched.batches[0].base, Offset(from));
        let expected: Vec<i64> = (from as i64..15).collect();
        assert_eq!(values(&fetched), expected, "from {from}");
    }
}

pub async fn fetch_respects_limits(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    for i in 0..6 {
        produce(&log, &name, 0, i * 10..i * 10 + 10).await;
    }
    let limits = [
        (
            FetchLimit {
                rows: 25,
                bytes: usize::MAX,
            },
            2,
        ),
        // At least one batch, however small the limit.
        (
            FetchLimit {
                rows: 1,
                bytes: usize::MAX,
            },
            1,
        ),
        (
            FetchLimit {
                rows: usize::MAX,
                bytes: 1,
            },
            1,
        ),
        (FetchLimit::default(), 6),
    ];
    for (limit, batches) in limits {
        let fetched = log
            .fetch(&part(&name, 0), Offset(0), limit, PATIENCE)
            .await
            .unwrap();
        assert_eq!(fetched.batches.len(), batches, "{limit:?}");
        assert_eq!(fetched.next, Offset(10 * batches as u64), "{limit:?}");
        assert_eq!(fetched.high, Offset(60));
    }
}

pub async fn fetch_can_be_cancelled(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    for i in 0..5 {
        {
            let mut waiting =
                std::pin::pin!(log.fetch(&place, Offset(i), FetchLimit::default(), PATIENCE));
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        produce(&log, &name, 0, i as i64..i as i64 + 1).await;
        assert_eq!(read(&log, &name, 0, i).await, [i as i64]);
    }
}

// ---- the commit

pub async fn a_failed_commit_leaves_nothing(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let member = log
        .join(&group("g"), std::slice::from_ref(&name))
        .await
        .unwrap();
    assigned(&*member, 1).await;
    let ghost = topic("ghost");
    for place in [Target::Partition(Partition(0)), Target::Key("k".into())] {
        let mut commit = member.begin();
        commit.append(&name, Target::Partition(Partition(0)), ints(0..3));
        commit.append(&ghost, place, ints(0..3));
        commit.consumed(&part(&name, 0), Offset(3));
        commit.put(state("g", "node", "key"), "value".into());
        let error = commit.finish().await.unwrap_err();
        assert!(
            matches!(&error, LogError::UnknownTopic(t) if *t == ghost),
            "{error}"
        );
    }
    let mut commit = member.begin();
    commit.append(&name, Target::Partition(Partition(0)), ints(0..3));
    commit.append(&name, Target::Partition(Partition(7)), ints(0..3));
    let error = commit.finish().await.unwrap_err();
    assert!(
        matches!(error, LogError::UnknownPartition { .. }),
        "{error}"
    );

    assert_eq!(high(&log, &name, 0).await, 0);
    assert_eq!(
        log.committed(&group("g"), &part(&name, 0)).await.unwrap(),
        None
    );
    let value = log.state_get(&state("g", "node", "key")).await.unwrap();
    assert_eq!(value, None);
    assert_eq!(
        produce(&log, &name, 0, 0..1).await,
        Offset(0),
        "no offset was used up"
    );
}

pub async fn a_commit_is_atomic(log: Arc<dyn Log>) {
    let source = create(&log, "in", 1).await;
    let out = create(&log, "out", 2).await;
    let dead = create(&log, "dead_letter", 1).await;
    produce(&log, &source, 0, 0..8).await;
    let member = log
        .join(&group("g"), std::slice::from_ref(&source))
        .await
        .unwrap();
    assigned(&*member, 1).await;

    let mut commit = member.begin();
    commit.append(&out, Target::Partition(Partition(0)), ints(0..4));
    commit.append(&out, Target::Partition(Partition(1)), ints(4..7));
    commit.append(&dead, Target::Partition(Partition(0)), ints(7..8));
    commit.consumed(&part(&source, 0), Offset(8));
    commit.put(state("g", "count", "all"), "8".into());
    commit.finish().await.unwrap();

    assert_eq!(read(&log, &out, 0, 0).await, [0, 1, 2, 3]);
    assert_eq!(read(&log, &out, 1, 0).await, [4, 5, 6]);
    assert_eq!(read(&log, &dead, 0, 0).await, [7]);
    let committed = log.committed(&group("g"), &part(&source, 0)).await.unwrap();
    assert_eq!(committed, Some(Offset(8)));
    let value = log.state_get(&state("g", "count", "all")).await.unwrap();
    assert_eq!(value, Some("8".into()));
}

pub async fn an_unfinished_commit_is_invisible(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let mut commit = log.begin();
    commit.append(&name, Target::Partition(Partition(0)), ints(0..3));
    commit.put(state("g", "node", "key"), "value".into());
    assert_eq!(high(&log, &name, 0).await, 0);
    let fetched = log
        .fetch(
            &part(&name, 0),
            Offset(0),
            FetchLimit::default(),
            Duration::from_millis(10),
        )
        .await
        .unwrap();
    assert!(fetched.batches.is_empty());
    let value = log.state_get(&state("g", "node", "key")).await.unwrap();
    assert_eq!(value, None);
    drop(commit);
    assert_eq!(produce(&log, &name, 0, 0..1).await, Offset(0));
}

pub async fn concurrent_producers_leave_no_gap(log: Arc<dyn Log>) {
    const TASKS: i64 = 8;
    const COMMITS: i64 = 50;
    let name = create(&log, "t", 2).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (log, name) = (Arc::clone(&log), name.clone());
        tasks.spawn(async move {
            let mut got = Vec::new();
            for i in 0..COMMITS {
                let rows = 1 + (task + i) % 3;
                let start = (task * COMMITS + i) * 10;
                let mut commit = log.begin();
                for partition in [0, 1] {
                    let target = Target::Partition(Partition(partition));
                    commit.append(&name, target, ints(start..start + rows));
                }
                let bases = commit.finish().await.unwrap();
                for (partition, base) in bases.into_iter().enumerate() {
                    got.push((partition as u32, base, start, rows));
                }
            }
            got
        });
    }
    let mut acknowledged: [BTreeMap<u64, (i64, i64)>; 2] = Default::default();
    while let Some(got) = tasks.join_next().await {
        for (partition, base, start, rows) in got.unwrap() {
            let former = acknowledged[partition as usize].insert(base.0, (start, rows));
            assert!(former.is_none(), "offset {base} was given twice");
        }
    }
    for (partition, batches) in acknowledged.iter().enumerate() {
        let mut next = 0;
        let mut expected = Vec::new();
        for (base, (start, rows)) in batches {
            assert_eq!(*base, next, "a gap in partition {partition}");
            next += *rows as u64;
            expected.extend(*start..start + rows);
        }
        assert_eq!(read_all(&log, &name, partition as u32).await, expected);
    }
}

pub async fn a_closed_log_refuses_commits(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..1).await;
    log.close().await.unwrap();
    let mut commit = log.begin();
    commit.append(&name, Target::Partition(Partition(0)), ints(0..3));
    let error = commit.finish().await.unwrap_err();
    assert!(matches!(error, LogError::Closed), "{error}");
}

// ---- groups

pub async fn a_group_shares_partitions(log: Arc<dyn Log>) {
    let name = create(&log, "t", 4).await;
    let topics = [name.clone()];
    let first = log.join(&group("g"), &topics).await.unwrap();
    let all = assigned(&*first, 4).await;
    assert!(all.values().all(|offset| *offset == Offset(0)));

    let second = log.join(&group("g"), &topics).await.unwrap();
    let revoked = revoked(&*first, 2).await;
    first.release(&revoked).await.unwrap();
    let got = assigned(&*second, 2).await;
    let got: BTreeSet<_> = got.into_keys().collect();
    assert_eq!(got, revoked.into_iter().collect());
}

pub async fn a_partition_moves_after_release(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    let topics = [name.clone()];
    for partition in [0, 1] {
        produce(&log, &name, partition, 0..10).await;
    }
    let first = log.join(&group("g"), &topics).await.unwrap();
    assigned(&*first, 2).await;
    let second = log.join(&group("g"), &topics).await.unwrap();
    assert_eq!(second.rebalance().await.unwrap(), Rebalance::default());
    let revoked = revoked(&*first, 1).await;
    {
        let mut waiting = std::pin::pin!(second.rebalance());
        assert!(
            futures::poll!(&mut waiting).is_pending(),
            "not before it is released"
        );
    }
    // What was read before the revocation is committed, and the new owner goes on behind it.
    let mut commit = first.begin();
    commit.consumed(&revoked[0], Offset(7));
    commit.finish().await.unwrap();
    first.release(&revoked).await.unwrap();
    let got = assigned(&*second, 1).await;
    assert_eq!(
        got.into_iter().next(),
        Some((revoked[0].clone(), Offset(7)))
    );
}

pub async fn a_dropped_member_gives_up_all(log: Arc<dyn Log>) {
    let name = create(&log, "t", 3).await;
    let topics = [name.clone()];
    let first = log.join(&group("g"), &topics).await.unwrap();
    assigned(&*first, 3).await;
    let mut commit = first.begin();
    commit.consumed(&part(&name, 2), Offset(0));
    commit.finish().await.unwrap();
    let second = log.join(&group("g"), &topics).await.unwrap();
    assert_eq!(second.rebalance().await.unwrap(), Rebalance::default());
    drop(first);
    assigned(&*second, 3).await;
}

pub async fn a_former_owner_is_fenced(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    let topics = [name.clone()];
    let first = log.join(&group("g"), &topics).await.unwrap();
    assigned(&*first, 1).await;
    let commit_at = |member: &dyn Member, next: u64| {
        let mut commit = member.begin();
        commit.consumed(&part(&name, 0), Offset(next));
        commit.append(&name, Target::Partition(Partition(0)), ints(0..1));
        commit.put(state("g", "node", "position"), next.to_string().into());
        commit
    };
    commit_at(&*first, 4).finish().await.unwrap();
    let late = commit_at(&*first, 6);
    drop(first);
    let second = log.join(&group("g"), &topics).await.unwrap();
    let got = assigned(&*second, 1).await;
    assert_eq!(got[&part(&name, 0)], Offset(4));
    let error = late.finish().await.unwrap_err();
    assert!(
        matches!(&error, LogError::Fenced(p) if *p == part(&name, 0)),
        "{error}"
    );
    assert_eq!(
        high(&log, &name, 0).await,
        11,
        "a fenced commit appends nothing"
    );
    let value = log
        .state_get(&state("g", "node", "position"))
        .await
        .unwrap();
    assert_eq!(value, Some("4".into()));
    commit_at(&*second, 7).finish().await.unwrap();
}

pub async fn a_group_resumes(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    let topics = [name.clone()];
    let mut seen = Vec::new();
    for _ in 0..3 {
        let member = log.join(&group("g"), &topics).await.unwrap();
        let from = assigned(&*member, 1).await[&part(&name, 0)];
        let rows = read(&log, &name, 0, from.0).await;
        let rows = &rows[..rows.len().min(4)];
        seen.extend_from_slice(rows);
        let mut commit = member.begin();
        commit.consumed(&part(&name, 0), Offset(from.0 + rows.len() as u64));
        commit.finish().await.unwrap();
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

pub async fn groups_are_independent(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    let topics = [name.clone()];
    let place = part(&name, 0);
    let mut members = Vec::new();
    for (i, id) in ["a", "ab", "b"].into_iter().enumerate() {
        let member = log.join(&group(id), &topics).await.unwrap();
        assert_eq!(assigned(&*member, 1).await[&place], Offset(0));
        let mut commit = member.begin();
        commit.consumed(&place, Offset(i as u64 + 1));
        commit.put(state(id, "node", "key"), id.to_owned().into());
        commit.finish().await.unwrap();
        members.push(member);
    }
    for (i, id) in ["a", "ab", "b"].into_iter().enumerate() {
        let committed = log.committed(&group(id), &place).await.unwrap();
        assert_eq!(committed, Some(Offset(i as u64 + 1)));
        let value = log.state_get(&state(id, "node", "key")).await.unwrap();
        assert_eq!(value, Some(id.to_owned().into()));
    }
    let groups: BTreeSet<_> = log.groups().await.unwrap().into_iter().collect();
    assert_eq!(groups, ["a", "ab", "b"].map(group).into_iter().collect());
}

pub async fn reset_needs_an_empty_group(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    let (topics, place, id) = ([name.clone()], part(&name, 0), group("g"));
    let member = log.join(&id, &topics).await.unwrap();
    assigned(&*member, 1).await;
    let mut commit = member.begin();
    commit.consumed(&place, Offset(10));
    commit.finish().await.unwrap();
    let reset = |offset| log.reset_group(&id, vec![(place.clone(), offset)]);
    let error = reset(Some(Offset(3))).await.unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
    drop(member);

    for (offset, expected) in [(Some(Offset(3)), Offset(3)), (None, Offset(0))] {
        reset(offset).await.unwrap();
        let committed = log.committed(&group("g"), &place).await.unwrap();
        assert_eq!(committed, offset);
        let member = log.join(&group("g"), &topics).await.unwrap();
        assert_eq!(assigned(&*member, 1).await[&place], expected);
    }
}

pub async fn a_producer_cannot_consume(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let mut commit = log.begin();
    commit.consumed(&part(&name, 0), Offset(1));
    let error = commit.finish().await.unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
}

pub async fn joining_needs_the_topic(log: Arc<dyn Log>) {
    let error = match log.join(&group("g"), &[topic("ghost")]).await {
        Ok(_) => panic!("joined a topic that does not exist"),
        Err(error) => error,
    };
    assert!(matches!(error, LogError::UnknownTopic(_)), "{error}");
}

// ---- retention and time

pub async fn retention_by_time(log: Arc<dyn Log>) {
    let name = topic("t");
    let config = TopicConfig {
        partitions: 1,
        retention_ms: Some(1_000),
        retention_bytes: None,
    };
    log.create_topic(&name, config).await.unwrap();
    for i in 0..3 {
        produce(&log, &name, 0, i * 5..i * 5 + 5).await;
    }
    let last = fetch(&log, &name, 0, 10).await.batches[0].appended_at_ms;
    assert_eq!(log.enforce_retention(last - 100_000).await.unwrap(), 0);
    assert_eq!(log.enforce_retention(last + 1_001).await.unwrap(), 15);
    let marks = log.watermarks(&part(&name, 0)).await.unwrap();
    assert_eq!((marks.low, marks.high), (Offset(15), Offset(15)));

    // A reader that stood at 3 learns what it missed and goes on.
    let (skipped, rows, next) = follow(&log, &name, Offset(3), Offset(15)).await;
    assert_eq!((skipped, rows, next), (12, vec![], Offset(15)));
    assert_eq!(produce(&log, &name, 0, 15..17).await, Offset(15));
    let (skipped, rows, _) = follow(&log, &name, Offset(3), Offset(17)).await;
    assert_eq!((skipped, rows), (12, vec![15, 16]));
}

pub async fn retention_by_size(log: Arc<dyn Log>) {
    let name = topic("t");
    let config = |bytes| TopicConfig {
        partitions: 1,
        retention_ms: None,
        retention_bytes: bytes,
    };
    log.create_topic(&name, config(None)).await.unwrap();
    for i in 0..20 {
        produce(&log, &name, 0, i * 1_000..i * 1_000 + 1_000).await;
    }
    assert_eq!(log.enforce_retention(i64::MAX).await.unwrap(), 0);
    // 20 batches of 8 kB: some of them fit, not all.
    log.create_topic(&name, config(Some(50_000))).await.unwrap();
    let removed = log.enforce_retention(0).await.unwrap();
    assert!((1_000..20_000).contains(&removed), "{removed}");
    let marks = log.watermarks(&part(&name, 0)).await.unwrap();
    assert_eq!((marks.low, marks.high), (Offset(removed), Offset(20_000)));
    assert_eq!(log.enforce_retention(0).await.unwrap(), 0, "once is enough");

    let (skipped, rows, _) = follow(&log, &name, Offset(500), Offset(20_000)).await;
    assert_eq!(skipped, removed - 500);
    assert_eq!(rows, (removed as i64..20_000).collect::<Vec<_>>());

    // The newest batch stays however large it is.
    log.create_topic(&name, config(Some(1))).await.unwrap();
    log.enforce_retention(0).await.unwrap();
    assert!(!read_all(&log, &name, 0).await.is_empty());
    let member = log
        .join(&group("late"), std::slice::from_ref(&name))
        .await
        .unwrap();
    let low = log.watermarks(&part(&name, 0)).await.unwrap().low;
    assert_eq!(assigned(&*member, 1).await[&part(&name, 0)], low);
}

pub async fn offset_at_finds_the_time(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    assert_eq!(log.offset_at(&place, 0).await.unwrap(), Offset(0));
    for i in 0..50 {
        produce(&log, &name, 0, i * 2..i * 2 + 2).await;
    }
    let fetched = fetch(&log, &name, 0, 0).await;
    let mut times: Vec<(i64, Offset)> = Vec::new();
    for batch in &fetched.batches {
        if times
            .last()
            .is_none_or(|(time, _)| *time < batch.appended_at_ms)
        {
            times.push((batch.appended_at_ms, batch.base));
        }
    }
    for (time, base) in &times {
        assert_eq!(log.offset_at(&place, *time).await.unwrap(), *base);
    }
    assert_eq!(log.offset_at(&place, 0).await.unwrap(), Offset(0));
    let after = times.last().unwrap().0 + 1;
    assert_eq!(log.offset_at(&place, after).await.unwrap(), Offset(100));
}

// ---- state

pub async fn state_is_kept_by_key(log: Arc<dyn Log>) {
    let key = state("g", "node", "键");
    assert_eq!(log.state_get(&key).await.unwrap(), None);
    let write = async |values: &[Option<&'static str>]| {
        let mut commit = log.begin();
        for value in values {
            match value {
                Some(value) => commit.put(key.clone(), Bytes::from(*value)),
                None => commit.delete(key.clone()),
            }
        }
        commit.finish().await.unwrap();
        log.state_get(&key).await.unwrap()
    };
    assert_eq!(write(&[Some("1")]).await, Some("1".into()));
    // The last word within a commit counts.
    assert_eq!(write(&[Some("2"), None, Some("3")]).await, Some("3".into()));
    assert_eq!(write(&[Some("4"), None]).await, None);
    assert_eq!(write(&[None, Some("")]).await, Some("".into()));
    assert_eq!(write(&[None]).await, None);
    let large = Bytes::from(vec![7; 3 << 20]);
    let mut commit = log.begin();
    commit.put(state("g", "node", ""), large.clone());
    commit.finish().await.unwrap();
    assert_eq!(
        log.state_get(&state("g", "node", "")).await.unwrap(),
        Some(large)
    );
}

pub async fn state_is_scanned_in_order(log: Arc<dyn Log>) {
    let mut commit = log.begin();
    for i in (0..20).rev() {
        commit.put(
            state("g", "window", &format!("w{i:02}")),
            format!("{i}").into(),
        );
    }
    commit.put(state("g", "window", "x"), "x".into());
    // Neighbours that must not show up.
    commit.put(state("g", "window2", "w00"), "no".into());
    commit.put(state("g", "windo", "w00"), "no".into());
    commit.put(state("g2", "window", "w00"), "no".into());
    commit.put(state("g", "", "window"), "no".into());
    commit.finish().await.unwrap();

    let scan = async |prefix: &str, limit: usize| -> Vec<(Bytes, Bytes)> {
        log.state_scan(&group("g"), "window", prefix.as_bytes(), limit)
            .await
            .unwrap()
    };
    let expected: Vec<(Bytes, Bytes)> = (0..20)
        .map(|i| (format!("w{i:02}").into(), format!("{i}").into()))
        .collect();
    assert_eq!(scan("w", usize::MAX).await, expected);
    assert_eq!(scan("", usize::MAX).await.len(), 21);
    assert_eq!(scan("w1", usize::MAX).await, expected[10..]);
    assert_eq!(scan("w", 3).await, expected[..3]);
    assert_eq!(scan("nothing", usize::MAX).await, []);
}

// ---- helpers

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn group(name: &str) -> GroupId {
    GroupId(PipelineName::new(name).unwrap())
}

fn part(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition {
        topic: topic.clone(),
        partition: Partition(partition),
    }
}

fn state(group_name: &str, namespace: &str, key: &str) -> StateKey {
    StateKey {
        group: group(group_name),
        namespace: namespace.to_owned(),
        key: key.to_owned().into(),
    }
}

async fn create(log: &Arc<dyn Log>, name: &str, partitions: u32) -> TopicName {
    let name = topic(name);
    let config = TopicConfig {
        partitions,
        ..TopicConfig::default()
    };
    log.create_topic(&name, config).await.unwrap();
    name
}

fn ints(range: std::ops::Range<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
    RecordBatch::try_from_iter([("value", column)]).unwrap()
}

/// Lists, structs, nulls at every level, Chinese text, and metadata in the schema.
fn rich_batch() -> RecordBatch {
    let text = StringArray::from(vec![
        Some("如何冻结行或列"),
        None,
        Some(""),
        Some("freeze rows"),
    ]);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None, Some(3)]),
        None,
        Some(vec![]),
        Some(vec![Some(4)]),
    ]);
    let fields = Fields::from(vec![
        Field::new("page", DataType::Int64, true),
        Field::new("title", DataType::Utf8, true),
    ]);
    let structs = StructArray::new(
        fields.clone(),
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4)])),
            Arc::new(StringArray::from(vec![
                Some("标题"),
                Some("b"),
                None,
                Some("d"),
            ])),
        ],
        Some(vec![true, true, false, true].into()),
    );
    let metadata = [("va.kind".to_owned(), "测试".to_owned())].into();
    let schema = Schema::new(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("list", lists.data_type().clone(), true),
        Field::new("struct", DataType::Struct(fields), true),
    ])
    .with_metadata(metadata);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![Arc::new(text), Arc::new(lists), Arc::new(structs)],
    )
    .unwrap()
}

async fn produce(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    partition: u32,
    rows: std::ops::Range<i64>,
) -> Offset {
    let mut commit = log.begin();
    commit.append(topic, Target::Partition(Partition(partition)), ints(rows));
    commit.finish().await.unwrap()[0]
}

async fn high(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> u64 {
    log.watermarks(&part(topic, partition))
        .await
        .unwrap()
        .high
        .0
}

async fn fetch(log: &Arc<dyn Log>, topic: &TopicName, partition: u32, from: u64) -> Fetched {
    let limit = FetchLimit {
        rows: usize::MAX,
        bytes: usize::MAX,
    };
    log.fetch(&part(topic, partition), Offset(from), limit, PATIENCE)
        .await
        .unwrap()
}

fn values(fetched: &Fetched) -> Vec<i64> {
    fetched
        .batches
        .iter()
        .flat_map(|b| {
            b.batch
                .column(0)
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect()
}

async fn read(log: &Arc<dyn Log>, topic: &TopicName, partition: u32, from: u64) -> Vec<i64> {
    values(&fetch(log, topic, partition, from).await)
}

/// All rows between the watermarks, in as many fetches as it takes, each checked to go on where the last one ended.
async fn read_all(log: &Arc<dyn Log>, topic: &TopicName, partition: u32) -> Vec<i64> {
    let marks = log.watermarks(&part(topic, partition)).await.unwrap();
    let mut rows = Vec::new();
    let mut next = marks.low;
    while next < marks.high {
        let fetched = log
            .fetch(
                &part(topic, partition),
                next,
                FetchLimit::default(),
                PATIENCE,
            )
            .await
            .unwrap();
        assert_eq!(fetched.batches[0].base, next);
        rows.extend(values(&fetched));
        next = fetched.next;
    }
    rows
}

/// Reads partition 0 from `from` up to `end` as a consumer does: rows skipped, rows read, position.
async fn follow(
    log: &Arc<dyn Log>,
    topic: &TopicName,
    from: Offset,
    end: Offset,
) -> (u64, Vec<i64>, Offset) {
    let (mut skipped, mut rows, mut next) = (0, Vec::new(), from);
    while next < end {
        let fetched = log
            .fetch(&part(topic, 0), next, FetchLimit::default(), PATIENCE)
            .await
            .unwrap();
        assert!(fetched.next > next, "no progress at {next}");
        skipped += fetched.skipped;
        rows.extend(values(&fetched));
        next = fetched.next;
    }
    (skipped, rows, next)
}

/// Waits until the member has been given `count` partitions.
async fn assigned(member: &dyn Member, count: usize) -> BTreeMap<TopicPartition, Offset> {
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
