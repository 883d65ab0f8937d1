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
sources: {orders: {type: topic, topic: orders, schema: {id: string!, city: string, amount: string}}}
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
const SEED: u64 = 20_261_126;

/// What happens to the workers.
#[derive(Debug, Clone, Copy)]
enum Way {
    Straight,
    Stopped,
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

/// `batches` small ones in each partition, each a commit of its own; the same every time.
async fn produce(log: &dyn Log, plan: &Plan, batches: u32) {
    let config = TopicConfig {
        partitions: PARTITIONS,
        ..TopicConfig::default()
    };
    log.create_topic(&topic("orders"), config).await.unwrap();
    let schema = plan.nodes[0].output.clone().unwrap();
    for at in 0..batches {
        let mut commit = log.begin();
        for partition in 0..PARTITIONS {
            let rows: Vec<Map<String, Value>> = (0..10)
                .map(|row| order((at * PARTITIONS + partition) * 10 + row))
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

/// Works the input off in this way.
fn work(way: Way, logs: Logs<'_>, plan: &Plan, random: &mut Random) {
    let start = || Worker::start(logs(), plan.clone());
    let unfinished = |worker: &Worker| {
        let status = worker.status();
        assert!(status.lag_rows > 0, "the input is too short: {status:?}");
    };
    match way {
        Way::Straight => {}
        Way::Stopped => {
            for _ in 0..STOPS {
                let worker = start();
                worker.after_checkpoints(1 + random.below(4));
                unfinished(&worker);
                worker.stop();
            }
        }
        Way::Killed(times) => {
            for _ in 0..times {
                let worker = start();
                worker.after_checkpoints(1 + random.below(4));
                unfinished(&worker);
                worker.die();
            }
        }
        Way::Resized => {
            let first = start();
            first.after_checkpoints(2);
            let others = [start(), start()];
            others[0].after_checkpoints(1);
            unfinished(&first);
            first.stop();
            others[1].after_checkpoints(1);
            let [second, third] = others;
            second.die();
            third.stop();
        }
    }
    let last = start();
    last.until(|status| status.lag_rows == 0);
    let status = last.status();
    assert_eq!(status.conservation_violations, 0, "{status:?}");
    last.stop();
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

/// `logs` makes, for each way, a function that opens its log.
fn all_ways_agree(
    on: &tokio::runtime::Runtime,
    batches: u32,
    ways: &[Way],
    open: &dyn Fn(Way) -> Arc<dyn Fn() -> Arc<dyn Log>>,
) {
    let plan = plan();
    let mut golden: Option<Made> = None;
    for &way in ways {
        println!("{way:?}: VA_GOLDEN_SEED={SEED}");
        let logs = open(way);
        let log = logs();
        on.block_on(produce(log.as_ref(), &plan, batches));
        work(way, &*logs, &plan, &mut Random(SEED));
        let made = on.block_on(made(log.as_ref()));
        let bad = (0..batches * PARTITIONS * 10)
            .filter(|n| n % 97 == 0)
            .count();
        assert_eq!(made.dead_letters.len(), bad);
        assert_eq!(made.rows.len(), (batches * PARTITIONS * 10) as usize - bad);
        assert_eq!(made.totals.len(), CITIES.len());
        match &golden {
            None => golden = Some(made),
            Some(golden) => assert!(*golden == made, "{way:?} made something else"),
        }
    }
}

#[test]
fn stops_kills_and_other_numbers_of_workers_change_nothing_on_the_embedded_log() {
    let (on, dir) = (runtime(), tempfile::tempdir().unwrap());
    let ways = [Way::Straight, Way::Stopped, Way::Killed(6), Way::Resized];
    all_ways_agree(&on, 250, &ways, &|way| {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let log = on.block_on(async { embedded(&dir) });
        println!("{way:?} in {}", dir.path().display());
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
        let ways = [Way::Straight, Way::Stopped, Way::Killed(3), Way::Resized];
        all_ways_agree(&on, 250, &ways, &|way| {
            let name = match way {
                Way::Straight => "straight.",
                Way::Stopped => "stopped.",
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
