//! State in partitions: only what is needed is followed, a standby has it already, and topics of earlier versions are
//! read on.

use std::sync::Arc;

use bytes::Bytes;
use va_catalog::Partition;

use super::super::names::state_topic;
use super::super::{KafkaLog, KafkaOptions};
use super::{connect, options};
use crate::log::conformance::{PATIENCE, create, group, state};
use crate::log::{Log, partition_of};

const KEYS: usize = 300;

fn key(i: usize) -> String {
    format!("k{i:03}")
}

fn keys() -> Vec<Bytes> {
    (0..KEYS).map(|i| key(i).into()).collect()
}

/// Another process of the installation.
async fn another(options: &KafkaOptions) -> Arc<KafkaLog> {
    connect(options.clone()).await
}

async fn fill(log: &KafkaLog) {
    let mut commit = log.begin();
    for i in 0..KEYS {
        commit.put(state("g", "node", &key(i)), key(i).into());
    }
    commit.finish().await.unwrap();
}

fn applied(log: &KafkaLog) -> usize {
    log.shared.state_applied(&group("g")) as usize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_asked_for_is_followed() {
    let Some(options) = options() else { return };
    let log = another(&options).await;
    log.create_state(&group("g"), &[3]).await.unwrap();
    fill(&log).await;

    let one = another(&options).await;
    let value = one.state_get(&state("g", "node", &key(7))).await.unwrap();
    assert_eq!(value, Some(key(7).into()));
    let of_nine = |partition| {
        let there = |i: &usize| partition_of(key(*i).as_bytes(), 9) == partition;
        (0..KEYS).filter(there).count()
    };
    assert_eq!(
        applied(&one),
        of_nine(partition_of(key(7).as_bytes(), 9)),
        "8 partitions are wanted, and 9 are aligned with 3"
    );
    let all = one
        .state_scan(&group("g"), "node", b"", KEYS + 1)
        .await
        .unwrap();
    assert_eq!((all.len(), applied(&one)), (KEYS, KEYS));

    // The state of the rows in one of three partitions.
    let owner = another(&options).await;
    owner.shared.restore(&group("g"), &[1], 3).await.unwrap();
    let owned = |key: &Bytes| partition_of(key, 3) == Partition(1);
    let mine: Vec<Bytes> = keys().into_iter().filter(owned).collect();
    assert_eq!(applied(&owner), mine.len());
    let values = owner
        .state_get_many(&group("g"), "node", &mine)
        .await
        .unwrap();
    assert!(
        values
            .iter()
            .zip(&mine)
            .all(|(v, key)| v.as_ref() == Some(key))
    );
    assert_eq!(applied(&owner), mine.len(), "nothing more was needed");
    assert_eq!(owner.state_restoring(&group("g")), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_has_the_state_before_it_needs_it() {
    let Some(options) = options() else { return };
    let log = another(&options).await;
    let name = create(&(Arc::clone(&log) as Arc<dyn Log>), "in", 1).await;
    let standby = another(&KafkaOptions {
        standby: true,
        ..options
    })
    .await;
    let _owner = log.join(&group("g"), std::slice::from_ref(&name)).await;
    let member = standby.join(&group("g"), std::slice::from_ref(&name)).await;
    fill(&log).await;
    let followed = standby.shared.state_followed(&group("g")).unwrap();
    loop {
        // Before the look, so that nothing is missed.
        let more = followed.notified();
        if applied(&standby) >= KEYS {
            break;
        }
        tokio::time::timeout(PATIENCE, more)
            .await
            .expect("it follows");
    }
    let values = standby
        .state_get_many(&group("g"), "node", &keys())
        .await
        .unwrap();
    assert!(values.iter().all(Option::is_some));
    assert_eq!(applied(&standby), KEYS, "nothing was left to restore");
    drop(member);
}

/// Earlier versions made one partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_partitions_is_that_of_the_topic() {
    let Some(options) = options() else { return };
    let log = another(&options).await;
    let topic = state_topic(&options.prefix, "g").unwrap();
    log.shared
        .create_kafka_topic(&topic, 1, &[("cleanup.policy", "compact")])
        .await
        .unwrap();
    log.create_state(&group("g"), &[3]).await.unwrap();
    fill(&log).await;
    let other = another(&options).await;
    other.shared.restore(&group("g"), &[1], 3).await.unwrap();
    assert_eq!(applied(&other), KEYS, "all of it: nothing smaller is there");
    let values = other
        .state_get_many(&group("g"), "node", &keys())
        .await
        .unwrap();
    assert!(values.iter().all(Option::is_some));
}
