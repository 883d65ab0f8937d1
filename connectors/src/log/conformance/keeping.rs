//! What is kept: topics, time, and state.

use std::sync::Arc;

use bytes::Bytes;
use va_catalog::{Offset, Partition};

use super::{
    assigned, create, end, group, high, part, produce, read, read_all, read_batches, state, topic,
};
use crate::log::{Log, LogError, TopicConfig};

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
    assert_eq!(
        read_all(&log, &name, 0).await,
        [0, 1, 2],
        "the rows are still there"
    );

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
    let end = end(&log, &other, 0).await;
    let mut commit = member.begin();
    commit.consumed(&part(&name, 0), Offset(5));
    commit.consumed(&part(&other, 0), end);
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
    assert_eq!(kept, Some(end));
    assert_eq!(read(&log, &other, 0, 0).await, [0, 1]);
}

pub async fn offset_at_finds_the_time(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    assert_eq!(log.offset_at(&place, 0).await.unwrap(), Offset(0));
    for i in 0..50 {
        produce(&log, &name, 0, i * 2..i * 2 + 2).await;
    }
    let (batches, _) = read_batches(&log, &name, 0, Offset(0)).await;
    assert_eq!(batches.len(), 50);
    let mut times: Vec<(i64, Offset)> = Vec::new();
    for batch in &batches {
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
    let end = log.watermarks(&place).await.unwrap().high;
    assert_eq!(log.offset_at(&place, after).await.unwrap(), end);
}

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

pub async fn state_of_many_keys_comes_at_once(log: Arc<dyn Log>) {
    let name = |i: usize| format!("键{i:03}");
    let keys: Vec<Bytes> = (0..200).map(|i| name(i).into()).collect();
    let ask = async |namespace: &str| {
        log.state_get_many(&group("g"), namespace, &keys)
            .await
            .unwrap()
    };
    assert!(ask("node").await.iter().all(Option::is_none));
    // Room that is made beforehand, also twice, changes nothing.
    for aligned in [&[3][..], &[5]] {
        log.create_state(&group("g"), aligned).await.unwrap();
    }
    assert_eq!(ask("node").await.len(), keys.len());
    let mut commit = log.begin();
    for i in (0..200).step_by(2) {
        commit.put(state("g", "node", &name(i)), name(i).into());
        commit.put(state("g", "other", &name(i + 1)), "other".into());
        commit.put(state("h", "node", &name(i + 1)), "other".into());
    }
    commit.finish().await.unwrap();
    let mut commit = log.begin();
    commit.delete(state("g", "node", &name(0)));
    commit.put(state("g", "node", &name(2)), Bytes::new());
    commit.finish().await.unwrap();
    log.restore_state(&group("g"), &[Partition(1)], 3);
    let expected: Vec<Option<Bytes>> = (0..200)
        .map(|i| match i {
            0 => None,
            2 => Some(Bytes::new()),
            i if i % 2 == 0 => Some(name(i).into()),
            _ => None,
        })
        .collect();
    assert_eq!(ask("node").await, expected);
    let all = log
        .state_scan(&group("g"), "node", b"", usize::MAX)
        .await
        .unwrap();
    assert_eq!(all.len(), expected.iter().flatten().count());
    let none = log.state_get_many(&group("g"), "node", &[]).await.unwrap();
    assert!(none.is_empty());
}

/// What is before the position may go, nothing behind it, and readers go on.
pub async fn trimmed_rows_may_be_gone(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    produce(&log, &name, 0, 0..3).await;
    produce(&log, &name, 0, 3..6).await;
    let third = produce(&log, &name, 0, 6..8).await;
    produce(&log, &name, 1, 0..3).await;
    let suffix = |all: &[i64], at_least: &[i64]| {
        assert!(all.ends_with(at_least), "{all:?}");
    };
    log.trim(&[(part(&name, 0), third)]).await.unwrap();
    suffix(&read_all(&log, &name, 0).await, &[6, 7]);
    let behind = end(&log, &name, 0).await;
    log.trim(&[(part(&name, 0), behind), (part(&name, 1), Offset(0))])
        .await
        .unwrap();
    assert_eq!(read_all(&log, &name, 1).await, [0, 1, 2]);
    produce(&log, &name, 0, 8..9).await;
    suffix(&read_all(&log, &name, 0).await, &[8]);
    let member = log
        .join(&group("g"), std::slice::from_ref(&name))
        .await
        .unwrap();
    let from = assigned(&*member, 2).await[&part(&name, 0)];
    suffix(&read(&log, &name, 0, from.0).await, &[8]);
    log.trim(&[]).await.unwrap();
}
