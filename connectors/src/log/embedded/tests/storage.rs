//! What is on disk: reopening, locking, damage, time, and waiting readers when a topic or the log goes away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};

use super::{INTERVAL, open};
use crate::log::embedded::codec::batch_key;
use crate::log::embedded::{Durability, EmbeddedLog, Options};
use crate::log::{
    FetchLimit, Fetched, GroupId, Log, LogError, StateKey, Target, TopicConfig, Watermarks,
};

const FOREVER: Duration = Duration::from_secs(60);

pub(super) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub(super) fn group() -> GroupId {
    GroupId(PipelineName::new("index").unwrap())
}

pub(super) fn part(name: &str, partition: u32) -> TopicPartition {
    TopicPartition {
        topic: topic(name),
        partition: Partition(partition),
    }
}

fn ints(range: std::ops::Range<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
    RecordBatch::try_from_iter([("value", column)]).unwrap()
}

async fn create(log: &EmbeddedLog, name: &str, partitions: u32) {
    let config = TopicConfig {
        partitions,
        ..TopicConfig::default()
    };
    log.create_topic(&topic(name), config).await.unwrap();
}

async fn produce(log: &EmbeddedLog, name: &str, rows: std::ops::Range<i64>) {
    let mut commit = log.begin();
    commit.append(&topic(name), Target::Partition(Partition(0)), ints(rows));
    commit.finish().await.unwrap();
}

async fn fetch(log: &EmbeddedLog, name: &str, from: u64) -> Result<Fetched, LogError> {
    log.fetch(
        &part(name, 0),
        Offset(from),
        FetchLimit::default(),
        Duration::ZERO,
    )
    .await
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

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let key = StateKey {
        group: group(),
        namespace: "node".to_owned(),
        key: "key".into(),
    };
    for round in 0..3_i64 {
        for durability in [Durability::EveryCommit, INTERVAL] {
            let log = open(dir.path(), durability);
            if round == 0 && durability == Durability::EveryCommit {
                create(&log, "t", 2).await;
                create(&log, "gone", 1).await;
                produce(&log, "gone", 0..5).await;
            }
            let from = log.watermarks(&part("t", 0)).await.unwrap().high.0;
            let member = log.join(&group(), &[topic("t")]).await.unwrap();
            let assigned = member.rebalance().await.unwrap().assigned;
            assert_eq!(assigned[0], (part("t", 0), Offset(from)));
            let mut commit = member.begin();
            let rows = ints(from as i64..from as i64 + 4);
            commit.append(&topic("t"), Target::Partition(Partition(0)), rows);
            commit.consumed(&part("t", 0), Offset(from + 4));
            commit.put(key.clone(), (from + 4).to_string().into());
            assert_eq!(commit.finish().await.unwrap(), [Offset(from)]);
        }
        let log = open(dir.path(), INTERVAL);
        if round == 1 {
            log.delete_topic(&topic("gone")).await.unwrap();
        }
    }
    let log = open(dir.path(), INTERVAL);
    let fetched = fetch(&log, "t", 0).await.unwrap();
    assert_eq!(values(&fetched), (0..24).collect::<Vec<_>>());
    let committed = log.committed(&group(), &part("t", 0)).await.unwrap();
    assert_eq!(committed, Some(Offset(24)));
    assert_eq!(log.state_get(&key).await.unwrap(), Some("24".into()));
    let names: Vec<_> = log.topics().await.unwrap();
    assert_eq!(names.len(), 1);
    // A new topic never sees the rows of a deleted one.
    create(&log, "gone", 1).await;
    assert!(fetch(&log, "gone", 0).await.unwrap().batches.is_empty());
    create(&log, "new", 1).await;
    drop(log);
    let log = open(dir.path(), INTERVAL);
    assert!(fetch(&log, "new", 0).await.unwrap().batches.is_empty());
    assert!(fetch(&log, "gone", 0).await.unwrap().batches.is_empty());
}

#[tokio::test]
async fn retention_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), INTERVAL);
    create(&log, "t", 1).await;
    produce(&log, "t", 0..5).await;
    assert_eq!(log.enforce_retention(i64::MAX).await.unwrap(), 5);
    produce(&log, "t", 5..8).await;
    drop(log);
    let log = open(dir.path(), INTERVAL);
    let marks = log.watermarks(&part("t", 0)).await.unwrap();
    let expected = Watermarks {
        low: Offset(5),
        high: Offset(8),
    };
    assert_eq!(marks, expected);
    let fetched = fetch(&log, "t", 1).await.unwrap();
    assert_eq!((fetched.skipped, values(&fetched)), (4, vec![5, 6, 7]));
}

#[tokio::test]
async fn a_second_process_is_told_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), INTERVAL);
    let error = EmbeddedLog::open(dir.path(), Options::default()).unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(text.contains("in use by another process"), "{text}");
    drop(first);
    open(dir.path(), INTERVAL);
}

/// Damage that the store itself does not see: our own checksum has to find it.
#[tokio::test]
async fn a_changed_value_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), INTERVAL);
    create(&log, "t", 1).await;
    for i in 0..3 {
        produce(&log, "t", i * 5..i * 5 + 5).await;
    }
    let shared = &log.shared;
    let id = shared.topic(&topic("t")).unwrap().id;
    let key = |base| batch_key(id, Partition(0), Offset(base));
    let whole = shared.batches.get(key(5)).unwrap().unwrap().to_vec();
    let expect_corrupt = async |what: &str| {
        let error = fetch(&log, "t", 5).await.unwrap_err();
        assert!(matches!(error, LogError::Corrupt(_)), "{what}: {error}");
        assert!(error.to_string().contains("t-0@5"), "{what}: {error}");
    };
    for at in (0..whole.len())
        .step_by(7)
        .filter(|at| !(8..16).contains(at))
    {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        shared.batches.insert(key(5), damaged).unwrap();
        expect_corrupt(&format!("byte {at}")).await;
    }
    for length in [0, 7, 16, whole.len() - 1] {
        shared.batches.insert(key(5), &whole[..length]).unwrap();
        expect_corrupt(&format!("length {length}")).await;
    }
    let other = shared.batches.get(key(10)).unwrap().unwrap();
    shared.batches.insert(key(5), other).unwrap();
    expect_corrupt("another batch's value").await;
    shared.batches.remove(key(5)).unwrap();
    expect_corrupt("no value").await;
    // The others can still be read.
    assert_eq!(values(&fetch(&log, "t", 10).await.unwrap()).len(), 5);
    shared.batches.insert(key(5), whole).unwrap();
    assert_eq!(values(&fetch(&log, "t", 0).await.unwrap()).len(), 15);
    shared.index.remove(key(5)).unwrap();
    expect_corrupt("no index entry").await;
}

/// Damage in the files, as a failing disk makes it.
#[tokio::test]
async fn a_flipped_byte_on_disk_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), INTERVAL);
    create(&log, "t", 1).await;
    for i in 0..4 {
        produce(&log, "t", i * 5_000..i * 5_000 + 5_000).await;
    }
    log.shared.batches.rotate_memtable_and_wait().unwrap();
    drop(log);

    let mut damaged = 0;
    for path in files(dir.path()) {
        let is_blob = path.components().any(|c| c.as_os_str() == "blobs");
        if is_blob {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x01;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(
        damaged > 0,
        "batches are stored apart: {:?}",
        files(dir.path())
    );
    let log = open(dir.path(), INTERVAL);
    let mut corrupt = 0;
    for i in 0..4 {
        match fetch(&log, "t", i * 5_000).await {
            Ok(_) => {}
            Err(LogError::Corrupt(text)) => {
                assert!(text.contains("t-0@"), "{text}");
                corrupt += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(corrupt > 0);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// A clock that jumps back must not make times go back, or searching by time would fail.
#[tokio::test]
async fn times_never_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_000));
    let options = Options {
        durability: INTERVAL,
        clock: {
            let time = Arc::clone(&time);
            Arc::new(move || time.load(Ordering::SeqCst))
        },
        ..Options::default()
    };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    create(&log, "t", 1).await;
    for (i, now) in [1_000, 2_000, 500, 3_000, 3_000, 4_000]
        .into_iter()
        .enumerate()
    {
        time.store(now, Ordering::SeqCst);
        let i = i as i64;
        produce(&log, "t", i * 2..i * 2 + 2).await;
    }
    let times: Vec<_> = fetch(&log, "t", 0).await.unwrap().batches;
    let times: Vec<_> = times.iter().map(|b| b.appended_at_ms).collect();
    assert_eq!(times, [1_000, 2_000, 2_000, 3_000, 3_000, 4_000]);
    let place = part("t", 0);
    for (time, offset) in [
        (0, 0),
        (1_000, 0),
        (1_001, 2),
        (2_000, 2),
        (2_001, 6),
        (3_000, 6),
        (3_001, 10),
        (4_001, 12),
    ] {
        assert_eq!(
            log.offset_at(&place, time).await.unwrap(),
            Offset(offset),
            "{time}"
        );
    }
    // 7 days: only what is older goes.
    let week = 7 * 24 * 3_600_000;
    assert_eq!(log.enforce_retention(week + 2_001).await.unwrap(), 6);
}

#[tokio::test]
async fn readers_learn_that_a_topic_or_the_log_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), INTERVAL);
    create(&log, "t", 1).await;
    create(&log, "u", 1).await;
    let (t, u) = (part("t", 0), part("u", 0));
    let mut on_t = std::pin::pin!(log.fetch(&t, Offset(0), FetchLimit::default(), FOREVER));
    let mut on_u = std::pin::pin!(log.fetch(&u, Offset(0), FetchLimit::default(), FOREVER));
    let member = log.join(&group(), &[topic("t"), topic("u")]).await.unwrap();
    assert_eq!(member.rebalance().await.unwrap().assigned.len(), 2);
    assert!(futures::poll!(&mut on_t).is_pending());
    assert!(futures::poll!(&mut on_u).is_pending());

    log.delete_topic(&topic("t")).await.unwrap();
    let error = on_t.await.unwrap_err();
    assert!(matches!(error, LogError::UnknownTopic(_)), "{error}");
    assert_eq!(member.rebalance().await.unwrap().revoked, [part("t", 0)]);

    let mut waiting = std::pin::pin!(member.rebalance());
    assert!(futures::poll!(&mut waiting).is_pending());
    log.close().await.unwrap();
    let error = on_u.await.unwrap_err();
    assert!(matches!(error, LogError::Closed), "{error}");
    let error = waiting.await.unwrap_err();
    assert!(matches!(error, LogError::Closed), "{error}");
}

/// A caller that gives up does not tear a commit apart, and does not block the ones behind it.
#[tokio::test]
async fn an_abandoned_finish_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Durability::EveryCommit);
    create(&log, "t", 1).await;
    create(&log, "u", 1).await;
    for i in 0..20 {
        let mut commit = log.begin();
        for name in ["t", "u"] {
            commit.append(
                &topic(name),
                Target::Partition(Partition(0)),
                ints(i..i + 1),
            );
        }
        let mut finish = commit.finish();
        let _ = futures::poll!(&mut finish);
        drop(finish);
        produce(&log, "t", 0..1).await;
        produce(&log, "u", 0..1).await;
    }
    // Commits of the blocking threads that still run are waited for by close.
    log.close().await.unwrap();
    let t = values(&fetch(&log, "t", 0).await.unwrap());
    let u = values(&fetch(&log, "u", 0).await.unwrap());
    let abandoned = |rows: Vec<i64>| rows.into_iter().filter(|v| *v > 0).collect::<Vec<_>>();
    assert_eq!(abandoned(t), abandoned(u));
}
