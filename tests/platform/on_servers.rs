//! The platform grown onto servers: the log on Kafka, the catalog in PostgreSQL, content in S3, all of them real. What holds
//! on embedded stores holds there too, also after `kill -9`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::crash::{DOCUMENTS, chunks, found_by_keyword, hand_over, uncrashed};
use crate::server::{Server, good, need_model, run, skip, va};

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
    const TOTALS: &str = r"pipeline: totals
sources: {orders: {type: topic, topic: orders}}
operators:
  totals:
    type: aggregate
    input: orders
    group_by: [city]
    compute: {orders: count(), total: sum(amount)}
sinks: {out: {type: topic, input: totals, topic: totals, key: city}}
";
    let Some(servers) = Servers::start() else {
        return;
    };
    let dir = tempdir().unwrap();
    let mut server = servers.up(dir.path());
    run(va(dir.path()).args([
        "topic",
        "create",
        "orders",
        "id:string!",
        "city:string",
        "amount:int64",
    ]));
    good(server.post("/api/v1/pipelines?file=x.yaml").body(TOTALS));
    let cities = ["北京", "Paris", "上海"];
    let mut expected: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for round in 0..4_i64 {
        let rows: String = (0..60_i64)
            .map(|i| {
                let city = cities[(i % 3) as usize];
                let total = expected.entry(city).or_default();
                *total = (total.0 + 1, total.1 + i * round);
                format!(
                    "{}\n",
                    json!({"id": format!("r{round}-{i:02}"), "city": city, "amount": i * round})
                )
            })
            .collect();
        good(server.post("/api/v1/topics/orders/records").body(rows));
        server.kill();
        server = servers.up(dir.path());
    }
    server.until("/api/v1/pipelines/totals", |p| p["lag_rows"] == 0);
    let mut last: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for line in run(va(dir.path()).args(["topic", "consume", "totals"])).lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let city = cities.iter().find(|city| row["city"] == **city).unwrap();
        let now = (
            row["orders"].as_i64().unwrap(),
            row["total"].as_i64().unwrap(),
        );
        let before = last.insert(city, now).unwrap_or_default();
        assert!(
            now.0 > before.0 && now.1 >= before.1,
            "{city}: {before:?}, then {now:?}"
        );
    }
    assert_eq!(last, expected);
}
