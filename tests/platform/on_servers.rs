//! The platform grown onto servers: the log on Kafka, the catalog in PostgreSQL, content in S3, all of them real. What holds
//! on embedded stores holds there too, also after `kill -9`.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::crash::{DOCUMENTS, chunks, found_by_keyword, hand_over, uncrashed};
use crate::messages::{check_evolution, check_messages};
use crate::pipelines::check_running_totals;
use crate::server::{Server, need_model, skip, va};

#[path = "../../deploy/dev/server.rs"]
mod servers;

/// One of each, for one test; they end with it.
struct Servers {
    brokers: servers::Server,
    database: servers::Server,
    bucket: servers::Server,
}

impl Servers {
    /// `None`, and said why, when one cannot be had.
    fn start() -> Option<Self> {
        let start = |script| match servers::Server::start(script) {
            Ok(server) => Some(server),
            Err(reason) => skip(&reason),
        };
        Some(Self {
            brokers: start("kafka.sh")?,
            database: start("postgres.sh")?,
            bucket: start("s3.sh")?,
        })
    }

    /// `va up` on these servers.
    fn up(&self, data: &Path) -> Server {
        let config = data.join("va.yaml");
        let (keys, place) = self
            .bucket
            .url()
            .trim_start_matches("http://")
            .split_once('@')
            .unwrap();
        let (key, secret) = keys.split_once(':').unwrap();
        let (host, bucket) = place.split_once('/').unwrap();
        let settings = json!({
            "log": {"brokers": self.brokers.url(), "kafka": {"replication_factor": 1, "session_timeout_ms": 6_000}},
            "catalog": {"url": self.database.url()},
            "objects": {"url": format!("s3://{bucket}/test")},
        });
        std::fs::write(&config, settings.to_string()).unwrap();
        Server::start_as(
            va(data)
                .env("VA_CONFIG", config)
                .env("AWS_ACCESS_KEY_ID", key)
                .env("AWS_SECRET_ACCESS_KEY", secret)
                .env("AWS_REGION", "us-east-1")
                .env("AWS_ENDPOINT_URL", format!("http://{host}"))
                .env("AWS_ALLOW_HTTP", "true"),
            data,
        )
    }
}

#[test]
fn a_killed_server_on_servers_loses_and_doubles_nothing() {
    let Some(()) = need_model() else { return };
    let Some(servers) = Servers::start() else {
        return;
    };
    let calm = tempdir().unwrap();
    let expected = uncrashed(calm.path());

    let dir = tempdir().unwrap();
    let mut handed_over = 0;
    for ready in [2, 21] {
        let server = servers.up(dir.path());
        if handed_over == 0 {
            server.create_collection("c");
        }
        handed_over = hand_over(&server, handed_over);
        server.until("/api/v1/collections/c", |c: &Value| {
            c["states"]["READY"].as_u64().unwrap_or(0) >= ready
        });
        server.kill();
    }
    let server = servers.up(dir.path());
    assert_eq!(hand_over(&server, handed_over), DOCUMENTS);
    let collection = server.until_indexed("c");
    assert_eq!(
        collection["states"]["READY"].as_u64(),
        Some(DOCUMENTS as u64),
        "{collection}"
    );
    assert_eq!((chunks(&server), found_by_keyword(&server)), expected);
    assert!(!dir.path().join("catalog.db").exists() && !dir.path().join("log").exists());
}

/// State and output change in one transaction: totals are those of all rows, each once.
#[test]
fn running_totals_on_kafka_are_exact_after_kills() {
    let Some(servers) = Servers::start() else {
        return;
    };
    check_running_totals(|data| servers.up(data));
}

/// Messages of other programs are single records, in the same transactions.
#[test]
fn messages_on_kafka_are_read_and_written_once() {
    let Some(servers) = Servers::start() else {
        return;
    };
    check_messages(|data| servers.up(data));
}

#[test]
fn columns_come_and_go_on_kafka() {
    let Some(servers) = Servers::start() else {
        return;
    };
    check_evolution(|data| servers.up(data));
}
