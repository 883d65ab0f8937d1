//! Processes that start at the same moment on a cluster that is new to all of them.

use futures::future::try_join_all;
use va_catalog::TopicName;

use super::{connect, options};
use crate::log::{Log, TopicConfig};

/// Each creates the same topics; one of them does, and the others find them.
#[tokio::test(flavor = "multi_thread")]
async fn several_processes_may_create_the_same_topics_at_once() {
    let Some(options) = options() else { return };
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(connect(options.clone()).await);
    }
    let config = TopicConfig {
        partitions: 3,
        retention_ms: Some(604_800_000),
        retention_bytes: None,
    };
    for at in 0..8 {
        let topic = TopicName::new(format!("together.{at}")).unwrap();
        let tries = processes
            .iter()
            .map(|log| log.create_topic(&topic, config.clone()));
        try_join_all(tries).await.unwrap();
    }
}
