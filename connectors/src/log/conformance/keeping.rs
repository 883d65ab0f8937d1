//! What is kept: topics, retention, time, and state.

use std::sync::Arc;

use bytes::Bytes;
use va_catalog::Offset;

use super::{
    assigned, create, fetch, follow, group, high, part, produce, read, read_all, state, topic,
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
