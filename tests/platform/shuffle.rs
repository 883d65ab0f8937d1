//! Several workers in one group, and a key whose rows are in every partition of the source: what is counted by key is
//! exact, on both logs, also while workers die and others join.
//!
//! A worker is a `Runtime` on a tokio runtime of its own. It dies by that being shut down: its tasks end wherever they
//! wait, and nothing is committed after that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use va_catalog::settings::Settings;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::log::embedded::{EmbeddedLog, Options};
use va_connectors::log::{FetchLimit, GroupId, Log, Target, TopicConfig, partition_of};
use va_parse_worker::InProcess;
use va_pipelines::fixture::{batch_to_rows, rows_to_batch};
use va_pipelines::plan::BuiltinNames;
use va_pipelines::{PipelineStatus, Plan, Runtime, RuntimeConfig};
use va_serving::platform::{Platform, now_ms};

#[cfg(feature = "kafka")]
use crate::servers;

/// Two aggregates behind each other, by different keys, so that rows are brought together twice.
const TOTALS: &str = r#"pipeline: totals
sources: {orders: {type: topic, topic: orders, schema: {id: string!, city: string, amount: string}}}
operators:
  parsed: {type: map, input: orders, set: {amount: cast(amount as bigint)}}
  by_city:
    type: aggregate
    input: parsed
    group_by: [city]
    compute: {orders: count(), total: sum(amount), least: min(amount), most: max(amount), newest: last(id)}
  size: {type: map, input: by_city, set: {size: "case when total > 500 then 'large' else 'small' end"}}
  by_size: {type: aggregate, input: size, group_by: [size], compute: {most: max(total), seen: count()}}
sinks:
  cities: {type: topic, input: by_city, topic: cities, key: city}
  sizes: {type: topic, input: by_size, topic: sizes, key: size}
"#;
pub const PARTITIONS: u32 = 6;
const CITIES: [&str; 5] = ["北京", "Paris", "上海", "Oslo", "Lima"];

/// Where the workers' logs come from: one for each, as each is a process of its own.
pub type Logs<'a> = &'a dyn Fn() -> Arc<dyn Log>;

pub struct Worker {
    on: tokio::runtime::Runtime,
    pipelines: Arc<Runtime>,
    /// Holds the stores that the pipeline does not use.
    _platform: Arc<Platform>,
    _dir: TempDir,
}

impl Worker {
    pub fn start(log: Arc<dyn Log>, plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let on = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let settings = Settings {
            data: dir.path().join("data"),
            ..Settings::default()
        };
        let platform = on
            .block_on(Platform::open(settings, va_serving::platform::Role::Up))
            .unwrap();
        let pipelines = Arc::new(Runtime::new(RuntimeConfig {
            log: log.clone(),
            operators: va_operators::Resources {
                objects: platform.objects.clone(),
                embedders: platform.embedders.clone(),
                parser: Arc::new(InProcess::default()),
            },
            endpoints: va_endpoints::Resources {
                log,
                catalog: platform.catalog.clone(),
                indexes: platform.indexes.clone(),
            },
            clock: Arc::new(now_ms),
            patience: Duration::ZERO,
        }));
        on.block_on(pipelines.start(plan)).unwrap();
        Self {
            on,
            pipelines,
            _platform: platform,
            _dir: dir,
        }
    }

    pub fn status(&self) -> PipelineStatus {
        self.on.block_on(self.pipelines.status(&name())).unwrap()
    }

    /// Waits until the pipeline is as `is` wants it.
    pub fn until(&self, is: impl Fn(&PipelineStatus) -> bool) -> PipelineStatus {
        let mut checkpoints = self.pipelines.checkpoints(&name()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        loop {
            let status = self.status();
            if is(&status) {
                return status;
            }
            assert!(std::time::Instant::now() < deadline, "{status:?}");
            // Others make progress too, without a checkpoint here.
            let _ = self.on.block_on(async {
                tokio::time::timeout(Duration::from_millis(100), checkpoints.changed()).await
            });
        }
    }

    pub fn stop(self) {
        self.on.block_on(self.pipelines.stop(&name())).unwrap();
    }

    /// Waits until it has committed so many checkpoints.
    pub fn after_checkpoints(&self, count: u64) {
        let mut committed = self.pipelines.checkpoints(&name()).unwrap();
        let enough = async {
            let limit = Duration::from_secs(120);
            tokio::time::timeout(limit, committed.wait_for(|now| *now >= count)).await
        };
        let waited = self.on.block_on(enough).map(|seen| seen.is_ok());
        assert_eq!(waited, Ok(true), "{:?}", self.status());
    }

    /// As a process that is killed.
    pub fn die(self) {
        self.on.shutdown_background();
    }
}

pub fn name() -> PipelineName {
    PipelineName::new("totals").unwrap()
}

pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn plan() -> Plan {
    va_pipelines::load("totals.yaml", TOTALS, &BuiltinNames)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .plan
}

/// Rows of every city in every partition, and what they come to.
#[derive(Default)]
struct Orders {
    made: i64,
    bad: usize,
    expected: BTreeMap<String, (i64, i64, i64, i64)>,
}

impl Orders {
    async fn produce(&mut self, log: &dyn Log, plan: &Plan, rows: usize) {
        let schema = plan.nodes[0].output.clone().unwrap();
        for partition in (0..PARTITIONS).map(Partition) {
            let mut batch: Vec<Map<String, Value>> = Vec::new();
            for i in 0..rows {
                self.made += 1;
                let city = CITIES[(self.made as usize + i) % CITIES.len()];
                let amount = self.made % 17 - 3;
                let id = format!("{:06}", self.made);
                let mut row = json!({"id": id, "city": city, "amount": amount.to_string()});
                if self.made % 101 == 0 {
                    row["amount"] = json!("many");
                    self.bad += 1;
                } else {
                    let one = self.expected.entry(city.to_owned());
                    let one = one.or_insert((0, 0, i64::MAX, i64::MIN));
                    *one = (
                        one.0 + 1,
                        one.1 + amount,
                        one.2.min(amount),
                        one.3.max(amount),
                    );
                }
                batch.push(row.as_object().unwrap().clone());
            }
            let mut commit = log.begin();
            commit.append(
                &topic("orders"),
                Target::Partition(partition),
                rows_to_batch(&schema, &batch).unwrap(),
            );
            commit.finish().await.unwrap();
        }
    }
}

/// All rows of a topic, those of a partition in order.
pub async fn rows_of(log: &dyn Log, topic: &TopicName) -> Vec<Map<String, Value>> {
    let topics = log.topics().await.unwrap();
    let (_, config) = topics.iter().find(|(name, _)| name == topic).unwrap();
    let mut rows = Vec::new();
    for partition in (0..config.partitions).map(Partition) {
        rows.extend(rows_in(log, topic, partition).await);
    }
    rows
}

async fn rows_in(
    log: &dyn Log,
    topic: &TopicName,
    partition: Partition,
) -> Vec<Map<String, Value>> {
    let place = TopicPartition {
        topic: topic.clone(),
        partition,
    };
    let high = log.watermarks(&place).await.unwrap().high;
    let (mut rows, mut next) = (Vec::new(), Offset(0));
    while next < high {
        let fetched = log
            .fetch(&place, next, FetchLimit::default(), Duration::from_secs(30))
            .await
            .unwrap();
        for stored in &fetched.batches {
            rows.extend(batch_to_rows(&stored.batch).unwrap());
        }
        next = fetched.next;
    }
    rows
}

async fn judge(log: &dyn Log, orders: &Orders) {
    let number = |row: &Map<String, Value>, column: &str| row[column].as_i64().unwrap();
    let mut last: BTreeMap<String, (i64, i64, i64, i64)> = BTreeMap::new();
    for row in rows_of(log, &topic("cities")).await {
        let city = row["city"].as_str().unwrap().to_owned();
        let now = (
            number(&row, "orders"),
            number(&row, "total"),
            number(&row, "least"),
            number(&row, "most"),
        );
        // Nothing is taken back and nothing told twice.
        if let Some(before) = last.insert(city.clone(), now) {
            assert!(before.0 < now.0, "{city}: {before:?}, then {now:?}");
        }
    }
    assert_eq!(last, orders.expected);
    let most = orders.expected.values().map(|one| one.1).max();
    let sizes = rows_of(log, &topic("sizes")).await;
    let seen = sizes.iter().map(|row| number(row, "most")).max();
    assert_eq!(
        seen, most,
        "the largest total that was ever told is the last one"
    );
    let letters = rows_of(log, &topic("totals.dead_letter")).await;
    assert_eq!(letters.len(), orders.bad);
    for letter in letters {
        assert_eq!(letter["payload"]["operator"], json!("parsed"));
        assert_eq!(letter["payload"]["source_topic"], json!("orders"));
    }
}

/// Workers come, stop and die; in the end every row is in the totals of its key once.
fn totals_are_exact(on: &tokio::runtime::Runtime, logs: Logs<'_>) {
    let log = logs();
    let config = TopicConfig {
        partitions: PARTITIONS,
        ..TopicConfig::default()
    };
    on.block_on(log.create_topic(&topic("orders"), config))
        .unwrap();
    let plan = plan();
    let mut orders = Orders::default();
    // Whoever comes late has nothing to do unless there is more.
    let mut until_at_work = |worker: &Worker| {
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while worker.status().last_checkpoint_at_ms.is_none() {
            assert!(
                std::time::Instant::now() < deadline,
                "{:?}",
                worker.status()
            );
            on.block_on(orders.produce(log.as_ref(), &plan, 20));
        }
    };
    let first = Worker::start(logs(), plan.clone());
    until_at_work(&first);
    let second = Worker::start(logs(), plan.clone());
    until_at_work(&second);
    first.die();
    let third = Worker::start(logs(), plan.clone());
    let fourth = Worker::start(logs(), plan.clone());
    until_at_work(&third);
    second.stop();
    until_at_work(&fourth);
    on.block_on(orders.produce(log.as_ref(), &plan, 20));
    fourth.until(|status| status.lag_rows == 0);
    for worker in [third, fourth] {
        let status = worker.status();
        assert_eq!(status.conservation_violations, 0, "{status:?}");
        worker.stop();
    }
    on.block_on(judge(log.as_ref(), &orders));
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

pub fn embedded(dir: &TempDir) -> Arc<dyn Log> {
    EmbeddedLog::open(&dir.path().join("log"), Options::default()).unwrap()
}

#[test]
fn totals_of_several_workers_are_exact_on_the_embedded_log() {
    let (on, dir) = (runtime(), tempfile::tempdir().unwrap());
    let log = on.block_on(async { embedded(&dir) });
    totals_are_exact(&on, &|| log.clone());
}

/// What goes into the hidden topic comes out of it, and status, lag and taps know the nodes.
#[test]
fn what_is_hidden_adds_up() {
    let (on, dir) = (runtime(), tempfile::tempdir().unwrap());
    let log = on.block_on(async { embedded(&dir) });
    let config = TopicConfig {
        partitions: PARTITIONS,
        ..TopicConfig::default()
    };
    on.block_on(log.create_topic(&topic("orders"), config))
        .unwrap();
    let (plan, mut orders) = (plan(), Orders::default());
    on.block_on(orders.produce(log.as_ref(), &plan, 40));
    let worker = Worker::start(log.clone(), plan.clone());
    let by_city = "by_city".parse().unwrap();
    assert!(worker.pipelines.tap(&name(), &by_city).is_ok());
    let status = worker.until(|status| status.lag_rows == 0);
    let rows = |node: &str| status.nodes[&node.parse().unwrap()].clone();
    assert_eq!(rows("by_city.partial").rows_in, rows("parsed").rows_out);
    assert!(rows("by_city.partial").rows_out < rows("by_city.partial").rows_in);
    for node in ["by_city", "by_size"] {
        let sent = rows(&format!("{node}.repartition")).rows_in;
        assert_eq!(sent, rows(&format!("{node}.partial")).rows_out);
        assert_eq!(sent, rows(&format!("{node}.repartitioned")).rows_out);
        assert_eq!(sent, rows(node).rows_in);
    }
    let lags: Vec<&String> = status.lag.keys().collect();
    assert!(
        lags.iter()
            .any(|lag| lag.starts_with("totals.by_city.repartition")),
        "{lags:?}"
    );

    // State and rows of a key are in partitions of one number: the topic's key is made of the bytes of the state's.
    let group = GroupId(name());
    let state = on
        .block_on(log.state_scan(&group, "by_city", b"", 100))
        .unwrap();
    assert_eq!(state.len(), CITIES.len());
    let hidden = topic("totals.by_city.repartition");
    for partition in (0..PARTITIONS).map(Partition) {
        let rows = on.block_on(rows_in(log.as_ref(), &hidden, partition));
        let cities: BTreeSet<&str> = rows
            .iter()
            .map(|row| row["city"].as_str().unwrap())
            .collect();
        let here = |key: &Bytes| partition_of(key, PARTITIONS) == partition;
        assert_eq!(
            cities.len(),
            state.iter().filter(|(key, _)| here(key)).count()
        );
    }

    // Another number of partitions is refused while the topic is there, and fine when the pipeline was deleted.
    let wider = TOTALS.replace("group_by: [city]", "group_by: [city]\n    partitions: 2");
    let wider = va_pipelines::load("totals.yaml", &wider, &BuiltinNames)
        .unwrap()
        .plan;
    worker.on.block_on(worker.pipelines.stop(&name())).unwrap();
    let refused = worker.on.block_on(worker.pipelines.start(wider.clone()));
    let said = refused.unwrap_err().to_string();
    assert!(
        said.contains("`by_city` of pipeline `totals` has `partitions: 2`, but its topic `totals.by_city.repartition` has 6"),
        "{said}"
    );
    on.block_on(judge(log.as_ref(), &orders));
    let name = name();
    let deleted = worker.pipelines.delete_internal_topics(&name);
    worker.on.block_on(deleted).unwrap();
    worker.on.block_on(worker.pipelines.start(wider)).unwrap();
    worker.until(|status| status.lag_rows == 0);
    worker.stop();
}

#[cfg(feature = "kafka")]
mod on_kafka {
    use super::*;
    use va_connectors::log::kafka::{KafkaLog, KafkaOptions};

    #[test]
    fn totals_of_several_workers_are_exact_on_kafka() {
        let brokers = match servers::Server::start("kafka.sh") {
            Ok(brokers) => brokers,
            Err(reason) => return servers::skip(&reason),
        };
        let on = runtime();
        let options = KafkaOptions {
            brokers: brokers.url().to_owned(),
            replication_factor: 1,
            session_timeout_ms: 6_000,
            rebalance_timeout_ms: 30_000,
            ..KafkaOptions::default()
        };
        totals_are_exact(&on, &|| {
            on.block_on(KafkaLog::connect(options.clone())).unwrap()
        });
    }
}
