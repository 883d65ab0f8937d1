//! The Kafka log's tests, on a real broker: the conformance suite, and what only a distributed log has to survive.
//!
//! The first test starts a broker for all of them through `deploy/dev/kafka.sh`; each test has names of its own. Where
//! Java or Maven are missing the tests say `SKIPPED`, and with `CI=true` they fail.

mod broker;
mod faults;
#[path = "../../../../../deploy/dev/kafka_proxy.rs"]
mod proxy;
mod records;
mod security;
mod state;
mod together;

use std::sync::Arc;

use uuid::Uuid;

use super::{KafkaLog, KafkaOptions};
use crate::log::Log;

/// Options for a log of its own on the broker; `None` when there is no broker, which is said.
fn options() -> Option<KafkaOptions> {
    let brokers = broker::bootstrap()?;
    Some(KafkaOptions {
        brokers,
        prefix: format!("t{}.", Uuid::now_v7().simple()),
        replication_factor: 1,
        session_timeout_ms: 6_000,
        rebalance_timeout_ms: 30_000,
        ..KafkaOptions::default()
    })
}

async fn connect(options: KafkaOptions) -> Arc<KafkaLog> {
    KafkaLog::connect(options).await.unwrap()
}

mod conformance {
    use super::*;

    async fn make() -> Option<(Arc<dyn Log>, ())> {
        let log = connect(options()?).await;
        Some((log, ()))
    }

    crate::log_conformance!(make);
}
