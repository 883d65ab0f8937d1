//! The installation under test: real servers, one `va serve`, three `va worker`, and ways to hurt them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::faults::{Fault, Random, Way};
use super::pass;
use crate::on_servers::{Servers, servers};
use crate::server::{PATIENCE, Server, Worker, good};

#[path = "../../../deploy/dev/kafka_proxy.rs"]
mod proxy;

use proxy::{Cut, Proxy};

const WORKERS: usize = 3;
/// How long brokers wait for a worker that says nothing.
const SESSION_MS: u64 = 3_000;
/// The pipeline whose events are counted.
pub const PIPELINE: &str = "chaos";

pub struct World {
    pub serve: Server,
    pub faults: Faults,
    // After those who use them.
    _servers: Servers,
    _dir: TempDir,
}

/// What can be hurt.
pub struct Faults {
    workers: Vec<Worker>,
    proxies: Vec<Proxy>,
    brokers: servers::Server,
    runtime: tokio::runtime::Runtime,
    /// What was hurt in the last fault and must be well before the next.
    broken: Option<Fault>,
}

impl World {
    /// `None`, and said why, when a server cannot be had.
    pub fn start() -> Option<Self> {
        let (mut brokers, servers) = Servers::with_brokers("kafka.sh --brokers 3")?;
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let doors = brokers.ask("doors");
        let doors = doors.split(',').map(|door| {
            let (listens, told) = door.split_once(':').unwrap();
            (listens.parse().unwrap(), told.parse().unwrap())
        });
        let proxies: Vec<Proxy> = doors
            .map(|door| runtime.block_on(Proxy::start(door)))
            .collect();
        let through: Vec<String> = proxies.iter().map(Proxy::address).collect();

        let settings = |brokers: &str| {
            let mut settings = servers.settings(brokers);
            settings["log"]["kafka"] = json!({
                "replication_factor": 3, "session_timeout_ms": SESSION_MS, "request_timeout_ms": 5_000,
                "transaction_timeout_ms": 15_000, "rebalance_timeout_ms": 10_000,
            });
            settings["indexes"] = json!({"shared": true, "refresh_ms": 1});
            settings
        };
        let write = |name: &str, settings: Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, settings.to_string()).unwrap();
            path
        };
        let config = write("serve.yaml", settings(brokers.url()));
        let data = dir.path().join("serve");
        let serve = Server::start_role("serve", &mut servers.command(&data, &config), &data);
        let config = write("worker.yaml", settings(&through.join(",")));
        let workers = (0..WORKERS)
            .map(|at| {
                let (data, environment) = (dir.path().join(format!("{at}")), servers.environment());
                Worker::start(&data, &config, environment)
            })
            .collect();
        Some(Self {
            serve,
            faults: Faults {
                workers,
                proxies,
                brokers,
                runtime,
                broken: None,
            },
            _servers: servers,
            _dir: dir,
        })
    }

    /// Where the partitions of the events end now.
    pub fn ends(&self) -> Vec<(u64, u64)> {
        let topic = self.patiently("/api/v1/topics/events", |_| true);
        let offsets = topic["offsets"].as_array().unwrap().iter();
        offsets
            .map(|at| {
                (
                    at["partition"].as_u64().unwrap(),
                    at["high"].as_u64().unwrap(),
                )
            })
            .collect()
    }

    /// Waits until the pipeline has committed everything before `ends`; the time since `at`.
    pub fn until_consumed(&self, ends: &[(u64, u64)], at: Instant) -> Duration {
        self.patiently("/api/v1/topics/events", |topic| {
            let groups = topic["groups"].as_array().unwrap();
            ends.iter().all(|(partition, end)| {
                groups.iter().any(|group| {
                    group["group"] == PIPELINE
                        && group["partition"].as_u64() == Some(*partition)
                        && group["committed"].as_u64().unwrap() >= *end
                })
            })
        });
        at.elapsed()
    }

    /// Asks until the answer is good and `done` says so: while a broker is away, an answer may be an error.
    pub fn patiently(&self, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.serve.get(path).send();
            let reply = reply.ok().filter(|reply| reply.status().is_success());
            let value: Option<Value> =
                reply.and_then(|reply| serde_json::from_str(&reply.text().ok()?).ok());
            match value {
                Some(value) if done(&value) => return value,
                value => assert!(Instant::now() < deadline, "{path}: still {value:?}"),
            }
            pass(Duration::from_millis(50));
        }
    }

    /// Waits until everything that was sent has been worked off.
    pub fn until_settled(&self) {
        for pipeline in [PIPELINE, "index", "document_state"] {
            self.patiently(&format!("/api/v1/pipelines/{pipeline}"), |p| {
                p["lag_rows"] == 0 && p["state"] == "running"
            });
        }
    }

    /// JSON rows of a topic, in the order of each partition.
    pub fn rows(&self, topic: &str) -> Vec<Value> {
        let response = self
            .serve
            .get(&format!("/api/v1/topics/{topic}/records"))
            .send()
            .unwrap();
        let text = response.text().unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn deploy(&self, definition: &str) {
        good(
            self.serve
                .post("/api/v1/pipelines?file=chaos.yaml")
                .body(definition.to_owned()),
        );
    }
}

impl Faults {
    /// Does the harm. What comes back by itself has come back when this returns.
    pub fn play(&mut self, fault: &Fault, random: &mut Random) {
        // Not always at the same place of a checkpoint.
        pass(random.between(0, 500));
        self.broken = Some(*fault);
        match *fault {
            Fault::KillWorker { worker, away } => {
                self.workers[worker].kill();
                pass(away);
                self.workers[worker].revive();
            }
            Fault::KillTwo { spared, away } => {
                let others = (0..WORKERS).filter(|at| *at != spared);
                others.clone().for_each(|at| self.workers[at].kill());
                pass(away);
                others.for_each(|at| self.workers[at].revive());
            }
            Fault::FreezeWorker { worker, away } => {
                self.workers[worker].signal("STOP");
                pass(away);
                self.workers[worker].signal("CONT");
            }
            Fault::KillBroker { broker, away } => {
                self.brokers.tell(&format!("kill {}", broker + 1));
                pass(away);
                self.brokers.tell(&format!("resume {}", broker + 1));
            }
            Fault::CutCommit { broker, way, away } => {
                let cut = match way {
                    Way::Request => Cut::Request,
                    Way::Response => Cut::Response,
                };
                self.proxies[broker].cut_at_commit(cut);
                pass(away);
                self.proxies[broker].heal();
            }
        }
    }

    /// Everything is well again.
    pub fn calm(&mut self) {
        self.broken = None;
        for worker in &mut self.workers {
            worker.must_live();
        }
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if let Some(fault) = &self.broken {
            eprintln!("the run ended in the middle of: {fault}");
        }
        // Its tasks are the proxies'.
        self.proxies.clear();
        let _ = self.runtime.handle();
    }
}
