//! The platform grown onto servers: the log on Kafka, the catalog in PostgreSQL, content in S3, all of them real. What holds
//! on embedded stores holds there too, also after `kill -9`.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::crash::{DOCUMENTS, chunks, found_by_keyword, hand_over, uncrashed};
use crate::messages::{check_evolution, check_messages};
use crate::pipelines::{TOTALS, check_running_totals};
use crate::server::{Server, Worker, good, need_model, run, skip, va};

pub(crate) use crate::servers;

/// A database and a bucket, for one test; they end with it.
pub struct Servers {
    database: servers::Server,
    bucket: servers::Server,
}

impl Servers {
    /// The brokers of `script` and the rest. `None`, and said why, when one cannot be had.
    pub fn with_brokers(script: &str) -> Option<(servers::Server, Self)> {
        let start = |script| match servers::Server::start(script) {
            Ok(server) => Some(server),
            Err(reason) => skip(&reason),
        };
        let brokers = start(script)?;
        let servers = Self {
            database: start("postgres.sh")?,
            bucket: start("s3.sh")?,
        };
        Some((brokers, servers))
    }

    /// Keys, host and bucket of the S3 server.
    fn s3(&self) -> [&str; 4] {
        let (keys, place) = self
            .bucket
            .url()
            .trim_start_matches("http://")
            .split_once('@')
            .unwrap();
        let (key, secret) = keys.split_once(':').unwrap();
        let (host, bucket) = place.split_once('/').unwrap();
        [key, secret, host, bucket]
    }

    /// A configuration on these servers, with the log on `brokers`.
    pub fn settings(&self, brokers: &str) -> Value {
        let [_, _, _, bucket] = self.s3();
        json!({
            "log": {"brokers": brokers, "kafka": {"replication_factor": 1, "session_timeout_ms": 6_000}},
            "catalog": {"url": self.database.url()},
            "objects": {"url": format!("s3://{bucket}/test")},
        })
    }

    /// What a process finds the bucket with.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let [key, secret, host, _] = self.s3();
        vec![
            ("AWS_ACCESS_KEY_ID", key.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{host}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// `va` on a data directory and with a configuration of its own.
    pub fn command(&self, data: &Path, config: &Path) -> std::process::Command {
        let mut command = va(data);
        command.env("VA_CONFIG", config).envs(self.environment());
        command
    }

    /// `va up` with the log on `brokers`.
    fn up(&self, data: &Path, brokers: &servers::Server) -> Server {
        let config = data.join("va.yaml");
        std::fs::write(&config, self.settings(brokers.url()).to_string()).unwrap();
        Server::start_as(&mut self.command(data, &config), data)
    }
}

#[test]
fn a_killed_server_on_servers_loses_and_doubles_nothing() {
    let Some(()) = need_model() else { return };
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    let calm = tempdir().unwrap();
    let expected = uncrashed(calm.path());

    let dir = tempdir().unwrap();
    let mut handed_over = 0;
    for ready in [2, 21] {
        let server = servers.up(dir.path(), &brokers);
        if handed_over == 0 {
            server.create_collection("c");
        }
        handed_over = hand_over(&server, handed_over);
        server.until("/api/v1/collections/c", |c: &Value| {
            c["states"]["READY"].as_u64().unwrap_or(0) >= ready
        });
        server.kill();
    }
    let server = servers.up(dir.path(), &brokers);
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
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    check_running_totals(|data| servers.up(data, &brokers));
}

/// Serving and work in processes of their own: a pipeline that is deployed once runs in every worker, a backlog closes the
/// door to producers, and workers that come open it again.
#[test]
fn workers_share_what_is_served() {
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    let dir = tempdir().unwrap();
    let config = dir.path().join("va.yaml");
    let mut settings = servers.settings(brokers.url());
    // A search sees at once what workers published.
    settings["indexes"] = json!({"shared": true, "refresh_ms": 1});
    settings["limits"] = json!({"backlog_max": 20});
    std::fs::write(&config, settings.to_string()).unwrap();
    let data = dir.path().join("data");
    let serve = Server::start_role("serve", &mut servers.command(&data, &config), &data);
    let cli = |words: &[&str]| run(servers.command(&data, &config).args(words));
    cli(&[
        "topic",
        "create",
        "orders",
        "id:string!",
        "city:string",
        "amount:int64",
    ]);
    good(serve.post("/api/v1/pipelines?file=x.yaml").body(TOTALS));
    let status = good(serve.get("/api/v1/pipelines/totals"));
    assert_eq!(status["state"], "stopped", "{status}");
    assert!(
        status["reason"].as_str().unwrap().contains("va worker"),
        "{status}"
    );
    let doctor = servers
        .command(&data, &config)
        .arg("doctor")
        .output()
        .unwrap();
    assert!(
        !doctor.status.success()
            && crate::server::both(&doctor).contains("start one with `va worker`")
    );

    // Nobody works, so rows pile up until no more are taken.
    let mut sent = 0;
    let row = |at: i64| {
        let city = ["北京", "Paris"][at as usize % 2];
        json!({"id": format!("r{at}"), "city": city, "amount": at})
    };
    let refused = loop {
        let reply = serve
            .post("/api/v1/topics/orders/records?key=id")
            .body(row(sent).to_string());
        let reply = reply.send().unwrap();
        if reply.status() == 429 {
            break reply;
        }
        assert!(reply.status().is_success());
        sent += 1;
        assert!(sent < 100_000, "nothing is refused");
    };
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    let said = refused.text().unwrap();
    assert!(
        said.contains("`totals` is") && said.contains("backlog_full"),
        "{said}"
    );
    // Other topics are open.
    serve.create_collection("c");

    let start = || Worker::start(&data, &config, servers.environment());
    let mut workers = [start(), start()];
    let status = serve.until("/api/v1/pipelines/totals", |p| {
        p["lag_rows"] == 0
            && p["workers"]
                .as_array()
                .is_some_and(|workers| workers.len() == 2)
    });
    assert_eq!(
        (&status["state"], &status["tasks"]),
        (&json!("running"), &json!(2)),
        "{status}"
    );
    let again = serve.until("/api/v1/pipelines/totals", |_| {
        let reply = serve
            .post("/api/v1/topics/orders/records?key=id")
            .body(row(sent).to_string());
        let taken = reply.send().unwrap().status().is_success();
        sent += i64::from(taken);
        taken
    });
    assert_eq!(again["state"], "running");
    let alerts = cli(&["topic", "consume", "platform.alert"]);
    let states: Vec<Value> = alerts
        .lines()
        .map(|line| {
            let alert: Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (&alert["payload"]["alert"], &alert["payload"]["subject"]),
                (&json!("backlog"), &json!("orders"))
            );
            alert["payload"]["state"].clone()
        })
        .collect();
    assert_eq!(states, [json!("raised"), json!("cleared")]);

    // Documents are indexed by workers and found by whoever serves; one worker dies in the middle.
    let Some(()) = need_model() else { return };
    let mut handed_over = hand_over(&serve, 0);
    serve.until("/api/v1/collections/c", |c| {
        c["states"]["READY"].as_u64().unwrap_or(0) >= 3
    });
    workers[0].kill();
    // Uploads are refused, too, while `index` is too far behind.
    serve.until("/api/v1/collections/c", |_| {
        handed_over = hand_over(&serve, handed_over);
        handed_over == DOCUMENTS
    });
    serve.until_indexed("c");
    assert_eq!(found_by_keyword(&serve).len(), DOCUMENTS);
    assert_eq!(
        chunks(&serve).len(),
        good(serve.get("/api/v1/collections/c"))["chunks"]
            .as_u64()
            .unwrap() as usize
    );
    cli(&["collection", "verify", "c"]);

    // Every row counts once, whichever worker had it.
    serve.until("/api/v1/pipelines/totals", |p| p["lag_rows"] == 0);
    let mut found = std::collections::BTreeMap::new();
    for line in cli(&["topic", "consume", "totals"]).lines() {
        let total: Value = serde_json::from_str(line).unwrap();
        found.insert(
            total["city"].to_string(),
            (
                total["orders"].as_i64().unwrap(),
                total["total"].as_i64().unwrap(),
            ),
        );
    }
    let of = |rest: i64| {
        let mine = (0..sent).filter(move |at| at % 2 == rest);
        (mine.clone().count() as i64, mine.sum())
    };
    let expected = [
        ("\"北京\"".to_owned(), of(0)),
        ("\"Paris\"".to_owned(), of(1)),
    ];
    assert_eq!(found, expected.into());

    // A pipeline that is stopped is stopped everywhere.
    cli(&["pipeline", "stop", "totals"]);
    serve.until("/api/v1/pipelines/totals", |p| p["state"] == "stopped");
}

/// A role that needs others says all that it misses.
/// On a new cluster, where nothing is there yet and each of them creates what it does not find.
#[test]
fn processes_that_start_together_all_come_up() {
    const WORKERS: usize = 4;
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    let dir = tempdir().unwrap();
    let config = dir.path().join("va.yaml");
    let mut settings = servers.settings(brokers.url());
    settings["indexes"] = json!({"shared": true, "refresh_ms": 1});
    std::fs::write(&config, settings.to_string()).unwrap();
    let data = dir.path().join("data");
    let (serve, mut workers) = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..WORKERS)
            .map(|number| {
                let data = dir.path().join(format!("worker-{number}"));
                let (config, servers) = (&config, &servers);
                scope.spawn(move || Worker::start(&data, config, servers.environment()))
            })
            .collect();
        let serve = Server::start_role("serve", &mut servers.command(&data, &config), &data);
        let workers: Vec<Worker> = starting
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect();
        (serve, workers)
    });
    serve.until("/api/v1/pipelines/index", |p| {
        p["workers"]
            .as_array()
            .is_some_and(|known| known.len() == WORKERS)
    });
    workers.iter_mut().for_each(Worker::must_live);
}

#[test]
fn a_worker_without_servers_says_what_is_missing() {
    let dir = tempdir().unwrap();
    for role in ["worker", "serve"] {
        let output = va(dir.path()).arg(role).output().unwrap();
        let said = crate::server::both(&output);
        assert!(!output.status.success(), "{said}");
        for setting in [
            "log.brokers",
            "catalog.url",
            "objects.url",
            "indexes.shared",
        ] {
            assert!(said.contains(setting), "{said}");
        }
    }
}

/// Messages of other programs are single records, in the same transactions.
#[test]
fn messages_on_kafka_are_read_and_written_once() {
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    check_messages(|data| servers.up(data, &brokers));
}

#[test]
fn columns_come_and_go_on_kafka() {
    let Some((brokers, servers)) = Servers::with_brokers("kafka.sh") else {
        return;
    };
    check_evolution(|data| servers.up(data, &brokers));
}
