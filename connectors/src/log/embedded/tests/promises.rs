//! What the embedded log promises beyond the conformance suite: offsets without gaps, and retention when it is told to.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use va_catalog::{Offset, Partition, TopicName};

use super::super::Durability;
use super::open;
use crate::log::conformance::{
    PATIENCE, assigned, create, fetch, group, high, ints, part, produce, read_all, topic, values,
};
use crate::log::{FetchLimit, Log, Target, TopicConfig};

async fn make() -> (Arc<dyn Log>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(dir.path(), Durability::EveryCommit), dir)
}

/// As `offsets_never_come_before_their_rows`, with commits to so many partitions that readers of the last one are told late:
/// who asks is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_after_an_offset_sees_its_rows() {
    const PARTITIONS: u32 = 256;
    const COMMITS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let log: Arc<dyn Log> = open(dir.path(), super::INTERVAL);
    let source = create(&log, "in", 1).await;
    let out = create(&log, "out", PARTITIONS).await;
    produce(&log, &source, 0, 0..COMMITS as i64).await;
    let member = log
        .join(&group("g"), std::slice::from_ref(&source))
        .await
        .unwrap();
    assigned(&*member, 1).await;
    let watcher = tokio::spawn({
        let (log, place) = (log.clone(), part(&source, 0));
        let out = part(&out, PARTITIONS - 1);
        async move {
            loop {
                let committed = log.committed(&group("g"), &place).await.unwrap();
                let committed = committed.unwrap_or(Offset(0));
                let high = log.watermarks(&out).await.unwrap().high;
                assert!(high >= committed, "{high} rows are there at {committed}");
                if committed == Offset(COMMITS) {
                    return;
                }
            }
        }
    });
    for next in 1..=COMMITS {
        let mut commit = member.begin();
        for partition in 0..PARTITIONS {
            commit.append(&out, Target::Partition(Partition(partition)), ints(0..1));
        }
        commit.consumed(&part(&source, 0), Offset(next));
        commit.finish().await.unwrap();
    }
    let watched = tokio::time::timeout(PATIENCE, watcher).await;
    watched.unwrap().unwrap();
}

#[tokio::test]
async fn offsets_are_dense() {
    let (log, _dir) = make().await;
    let name = create(&log, "t", 2).await;
    let mut commit = log.begin();
    for (partition, rows) in [(0, 0..3), (1, 0..2), (0, 3..7), (0, 7..8)] {
        commit.append(&name, Target::Partition(Partition(partition)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(0), Offset(0), Offset(3), Offset(7)]);
    assert_eq!(produce(&log, &name, 1, 2..4).await, Offset(2));
    assert_eq!(high(&log, &name, 0).await, 8);
    assert_eq!(log.distance(Offset(3), Offset(8)), 5);

    // One fetch returns all that the limit allows, beginning in the middle of a batch.
    for from in 0..8 {
        let fetched = fetch(&log, &name, 0, from).await;
        assert_eq!(fetched.batches[0].base, Offset(from));
        assert_eq!(values(&fetched), (from as i64..8).collect::<Vec<_>>());
        assert_eq!((fetched.next, fetched.skipped), (Offset(8), 0));
    }
    let limit = FetchLimit {
        rows: 7,
        bytes: usize::MAX,
    };
    let fetched = log
        .fetch(&part(&name, 0), Offset(0), limit, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!((fetched.next, fetched.high), (Offset(7), Offset(8)));

    let mut commit = log.begin();
    for rows in [0..0, 0..2, 0..0] {
        commit.append(&name, Target::Partition(Partition(0)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(8), Offset(8), Offset(10)]);
}

#[tokio::test]
async fn concurrent_producers_leave_no_gap() {
    let (log, _dir) = make().await;
    let name = create(&log, "t", 1).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (log, name) = (Arc::clone(&log), name.clone());
        tasks.spawn(async move {
            let mut bases = Vec::new();
            for _ in 0..50 {
                bases.push((
                    produce(&log, &name, 0, 0..1 + task % 3).await.0,
                    1 + task % 3,
                ));
            }
            bases
        });
    }
    let mut bases: Vec<(u64, i64)> = tasks.join_all().await.into_iter().flatten().collect();
    bases.sort_unstable();
    let mut next = 0;
    for (base, rows) in bases {
        assert_eq!(base, next);
        next += rows as u64;
    }
    assert_eq!(high(&log, &name, 0).await, next);
}

#[tokio::test]
async fn retention_by_time() {
    let (log, _dir) = make().await;
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

#[tokio::test]
async fn retention_by_size() {
    let (log, _dir) = make().await;
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
