//! Consumer groups: shares, handover, fencing, resuming, resetting.

use std::collections::BTreeSet;
use std::sync::Arc;

use va_catalog::{Offset, Partition};

use super::{assigned, create, end, group, ints, part, produce, read, revoked, state, topic};
use crate::log::{Log, LogError, Member, Rebalance, Target};

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
    // In the middle of the batch.
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
    let rows: Vec<i64> = (0..10).chain([0]).collect();
    assert_eq!(
        read(&log, &name, 0, 0).await,
        rows,
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
        // One batch, so this is within it, or its end.
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
    let end = end(&log, &name, 0).await;
    commit.consumed(&place, end);
    commit.finish().await.unwrap();
    assert_eq!(log.committed(&id, &place).await.unwrap(), Some(end));
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
