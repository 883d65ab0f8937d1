//! The commit: all or nothing, invisible before, and nothing lost among many producers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use va_catalog::{Offset, Partition};

use super::{
    PATIENCE, assigned, create, end, group, high, ints, part, produce, read, read_all, state, topic,
};
use crate::log::{FetchLimit, Log, LogError, Target};

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
    let end = end(&log, &source, 0).await;
    commit.consumed(&part(&source, 0), end);
    commit.put(state("g", "count", "all"), "8".into());
    commit.finish().await.unwrap();

    assert_eq!(read(&log, &out, 0, 0).await, [0, 1, 2, 3]);
    assert_eq!(read(&log, &out, 1, 0).await, [4, 5, 6]);
    assert_eq!(read(&log, &dead, 0, 0).await, [7]);
    let committed = log.committed(&group("g"), &part(&source, 0)).await.unwrap();
    assert_eq!(committed, Some(end));
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

/// Who adds up lag looks at a source and then at what was made of it: between the two nothing is missing.
pub async fn offsets_never_come_before_their_rows(log: Arc<dyn Log>) {
    const COMMITS: u64 = 200;
    let source = create(&log, "in", 1).await;
    let out = create(&log, "out", 1).await;
    let base = produce(&log, &source, 0, 0..COMMITS as i64).await;
    let ends: Vec<Offset> = (1..=COMMITS).map(|rows| Offset(base.0 + rows)).collect();
    let member = log
        .join(&group("g"), std::slice::from_ref(&source))
        .await
        .unwrap();
    assigned(&*member, 1).await;

    let last = ends[ends.len() - 1];
    let watcher = tokio::spawn({
        let (log, place) = (log.clone(), part(&source, 0));
        let out = part(&out, 0);
        async move {
            let mut seen = Vec::new();
            loop {
                let committed = log.committed(&group("g"), &place).await.unwrap();
                let high = log.watermarks(&out).await.unwrap().high;
                seen.push((committed.unwrap_or(Offset(0)), high));
                if committed >= Some(last) {
                    return seen;
                }
            }
        }
    });
    let mut steps = Vec::new();
    for next in ends {
        let mut commit = member.begin();
        commit.append(&out, Target::Partition(Partition(0)), ints(0..1));
        commit.consumed(&part(&source, 0), next);
        steps.push((next, commit.finish().await.unwrap()[0]));
    }
    let seen = tokio::time::timeout(PATIENCE, watcher)
        .await
        .unwrap()
        .unwrap();
    for (committed, high) in seen {
        let made = steps.iter().take_while(|(next, _)| *next <= committed);
        let missing = made.last().filter(|(_, row)| high <= *row);
        assert_eq!(missing, None, "at {committed} the rows ended at {high}");
    }
}

pub async fn concurrent_producers_lose_nothing(log: Arc<dyn Log>) {
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
            assert!(*base >= next, "batches overlap in partition {partition}");
            next = base + *rows as u64;
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
