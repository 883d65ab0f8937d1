//! Golden runs: what a pipeline makes of one input is the same whether it runs straight through, is stopped at twenty
//! random checkpoints, is killed, or goes on with another number of workers; on both logs.
//!
//! Rows and dead letters are compared as multisets, and of what is counted by key the last word.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use va_catalog::Partition;
use va_connectors::log::{Log, Target, TopicConfig};
use va_pipelines::Plan;
use va_pipelines::fixture::rows_to_batch;
use va_pipelines::plan::BuiltinNames;

use crate::chaos::faults::Random;
use crate::shuffle::{Logs, PARTITIONS, Worker, embedded, rows_of, runtime, topic};

/// A checkpoint every few rows, so that there are many to stop at.
const DEFINITION: &str = r#"pipeline: totals
checkpoint: {rows_max: 40, interval_ms: 20}
sources:
  orders: {type: topic, topic: orders, batch_rows_max: 20, schema: {id: string!, city: string, amount: string}}
operators:
  parsed: {type: map, input: orders, set: {amount: cast(amount as bigint)}}
  by_city:
    type: aggregate
    input: parsed
    group_by: [city]
    compute: {orders: count(), total: sum(amount), least: min(amount), most: max(amount)}
sinks:
  each: {type: topic, input: parsed, topic: each, key: id}
  cities: {type: topic, input: by_city, topic: cities, key: city}
"#;
const CITIES: [&str; 7] = ["北京", "Paris", "上海", "Oslo", "Lima", "深圳", "Łódź"];
const STOPS: usize = 20;
/// The input: parts of so many batches for each partition, of so many rows. Enough for a part to be still coming in when
/// the worker stops that was started with it.
const PARTS: u32 = STOPS as u32 + 1;
const BATCHES: u32 = 60;
const ROWS: u32 = 10;
const INPUT: u32 = PARTS * BATCHES * PARTITIONS * ROWS;
const SEED: u64 = 20_261_126;

/// What happens to the workers.
#[derive(Debug, Clone, Copy)]
enum Way {
    Straight,
    Stopped(usize),
    Killed(usize),
    Resized,
}

/// What came out.
#[derive(Debug, PartialEq)]
struct Made {
    rows: Vec<String>,
    dead_letters: Vec<String>,
    totals: BTreeMap<String, String>,
}

fn plan() -> Plan {
    va_pipelines::load("golden.yaml", DEFINITION, &BuiltinNames)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .plan
}

/// One of [`PARTS`] equal parts of the input: small batches in every partition, the same every time.
async fn produce(log: &dyn Log, plan: &Plan, part: u32) {
    let schema = plan.nodes[0].output.clone().unwrap();
    for at in part * BATCHES..(part + 1) * BATCHES {
        let mut commit = log.begin();
        for partition in 0..PARTITIONS {
            let rows: Vec<Map<String, Value>> = (0..ROWS)
                .map(|row| order((at * PARTITIONS + partition) * ROWS + row))
                .collect();
            commit.append(
                &topic("orders"),
                Target::Partition(Partition(partition)),
                rows_to_batch(&schema, &rows).unwrap(),
            );
        }
        commit.finish().await.unwrap();
    }
}

fn order(number: u32) -> Map<String, Value> {
    let amount = match number % 97 {
        0 => json!("many"),
        _ => json!((i64::from(number) * 7919 % 1_000 - 300).to_string()),
    };
    let city = CITIES[number as usize % CITIES.len()];
    let row = json!({"id": format!("{number:06}"), "city": city, "amount": amount});
    row.as_object().unwrap().clone()
}

/// What works the input off, and what it is fed by.
struct Run<'a> {
    on: &'a tokio::runtime::Runtime,
    logs: Logs<'a>,
    log: Arc<dyn Log>,
    plan: &'a Plan,
    /// The next part of the input.
    next: u32,
    /// Stops and kills that left something to do.
    in_the_middle: usize,
}

impl Run<'_> {
    fn start(&self) -> Worker {
        Worker::start((self.logs)(), self.plan.clone())
    }

    /// Lets a part of the input come in meanwhile.
    fn feed(&mut self) -> tokio::task::JoinHandle<()> {
        let (log, plan, part) = (self.log.clone(), self.plan.clone(), self.next);
        self.next += 1;
        self.on
            .spawn(async move { produce(log.as_ref(), &plan, part).await })
    }

    fn fed(&mut self, feeding: tokio::task::JoinHandle<()>) {
        self.on.block_on(feeding).unwrap();
        let lag = va_pipelines::runtime::lag(self.log.as_ref(), self.plan);
        let left: u64 = self.on.block_on(lag).unwrap().values().sum();
        self.in_the_middle += usize::from(left > 0);
    }

    fn work(&mut self, way: Way, random: &mut Random) {
        match way {
            Way::Straight => {}
            Way::Stopped(times) | Way::Killed(times) => {
                for _ in 0..times {
                    let worker = self.start();
                    let feeding = self.feed();
                    worker.after_checkpoints(1 + random.below(4));
                    match way {
                        Way::Killed(_) => worker.die(),
                        _ => worker.stop(),
                    }
                    self.fed(feeding);
                }
                // On a machine that does other things, too, workers get to the end more often.
                assert!(self.in_the_middle >= times / 4, "{}", self.in_the_middle);
            }
            Way::Resized => {
                let first = self.start();
                let feeding = self.feed();
                first.after_checkpoints(2);
                let (second, third) = (self.start(), self.start());
                self.fed(feeding);
                let feeding = self.feed();
                second.after_checkpoints(1);
                first.stop();
                self.fed(feeding);
                let feeding = self.feed();
                third.after_checkpoints(1);
                second.die();
                third.stop();
                self.fed(feeding);
            }
        }
        let last = self.start();
        for part in self.next..PARTS {
            self.on
                .block_on(produce(self.log.as_ref(), self.plan, part));
        }
        let status = last.until(|status| status.lag_rows == 0);
        assert_eq!(status.conservation_violations, 0, "{status:?}");
        last.stop();
    }
}

async fn made(log: &dyn Log) -> Made {
    let text = |row: &Map<String, Value>| Value::Object(row.clone()).to_string();
    let mut rows: Vec<String> = rows_of(log, &topic("each"))
        .await
        .iter()
        .map(text)
        .collect();
    rows.sort_unstable();
    let letters = rows_of(log, &topic("totals.dead_letter")).await;
    let mut dead_letters: Vec<String> = letters
        .iter()
        .map(|letter| {
            let said = &letter["payload"];
            json!([
                said["operator"],
                said["reason"],
                said["source_topic"],
                said["row_json"]
            ])
            .to_string()
        })
        .collect();
    dead_letters.sort_unstable();
    let cities = rows_of(log, &topic("cities")).await;
    let totals = cities
        .iter()
        .map(|row| (row["city"].to_string(), text(row)))
        .collect();
    Made {
        rows,
        dead_letters,
        totals,
    }
}

/// `open` makes, for each way, what opens its log.
fn all_ways_agree(
    on: &tokio::runtime::Runtime,
    ways: &[Way],
    open: &dyn Fn(Way) -> Arc<dyn Fn() -> Arc<dyn Log>>,
) {
    let plan = plan();
    let mut golden: Option<Made> = None;
    for &way in ways {
        println!("{way:?}, seed {SEED}");
        let logs = open(way);
        let config = TopicConfig {
            partitions: PARTITIONS,
            ..TopicConfig::default()
        };
        let log = logs();
        on.block_on(log.create_topic(&topic("orders"), config))
            .unwrap();
        let mut run = Run {
            on,
            logs: &*logs,
            log: log.clone(),
            plan: &plan,
            next: 0,
            in_the_middle: 0,
        };
        run.work(way, &mut Random(SEED));
        let made = on.block_on(made(log.as_ref()));
        let bad = (0..INPUT).filter(|number| number % 97 == 0).count();
        assert_eq!(made.dead_letters.len(), bad, "{way:?}");
        assert_eq!(made.rows.len(), INPUT as usize - bad, "{way:?}");
        assert_eq!(made.totals.len(), CITIES.len(), "{way:?}");
        match &golden {
            None => golden = Some(made),
            Some(golden) => assert!(*golden == made, "{way:?} made something else"),
        }
    }
}

#[test]
fn stops_kills_and_other_numbers_of_workers_change_nothing_on_the_embedded_log() {
    let (on, dir) = (runtime(), tempfile::tempdir().unwrap());
    let ways = [
        Way::Straight,
        Way::Stopped(STOPS),
        Way::Killed(6),
        Way::Resized,
    ];
    all_ways_agree(&on, &ways, &|_| {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let log = on.block_on(async { embedded(&dir) });
        // The folder stays until the outer one goes.
        let _ = dir.keep();
        Arc::new(move || log.clone())
    });
}

#[cfg(feature = "kafka")]
mod on_kafka {
    use super::*;
    use crate::on_servers::servers;
    use va_connectors::log::kafka::{KafkaLog, KafkaOptions};

    #[test]
    fn stops_kills_and_other_numbers_of_workers_change_nothing_on_kafka() {
        let brokers = match servers::Server::start("kafka.sh") {
            Ok(brokers) => brokers,
            Err(reason) => return servers::skip(&reason),
        };
        let on = Arc::new(runtime());
        let ways = [
            Way::Straight,
            Way::Stopped(STOPS),
            Way::Killed(2),
            Way::Resized,
        ];
        all_ways_agree(&on, &ways, &|way| {
            let name = match way {
                Way::Straight => "straight.",
                Way::Stopped(_) => "stopped.",
                Way::Killed(_) => "killed.",
                Way::Resized => "resized.",
            };
            let options = KafkaOptions {
                brokers: brokers.url().to_owned(),
                prefix: name.to_owned(),
                replication_factor: 1,
                session_timeout_ms: 6_000,
                rebalance_timeout_ms: 30_000,
                ..KafkaOptions::default()
            };
            let on = Arc::clone(&on);
            Arc::new(move || on.block_on(KafkaLog::connect(options.clone())).unwrap())
        });
    }
}
