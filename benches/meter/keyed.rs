//! Counting by key through a whole pipeline, and bringing back the state that it keeps.
//!
//! The pipeline is the smallest there is: `topic -> aggregate -> topic`, on a log of its own, with everything that was
//! produced beforehand. What is timed is from its start until it has consumed it all, its hidden topic included.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::settings::Settings;
use va_catalog::{Partition, PipelineName, TopicName};
use va_connectors::log::embedded::{Durability, EmbeddedLog, Options};
use va_connectors::log::{GroupId, Log, StateKey, Target, TopicConfig};
use va_parse_worker::InProcess;
use va_pipelines::plan::BuiltinNames;
use va_pipelines::{Runtime, RuntimeConfig};
use va_serving::platform::{Platform, Role, now_ms};

use crate::Failure;

const BATCH_ROWS: usize = 8_192;
/// Changes of state in one commit.
const COMMIT_ENTRIES: usize = 8_192;

/// Rows to count.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    dir: PathBuf,
    /// Kafka's; the embedded log without.
    brokers: Option<String>,
    rows: usize,
    keys: u64,
    partitions: u32,
    /// Rows and time of one checkpoint.
    #[serde(default = "checkpoint_rows")]
    checkpoint_rows: u64,
    #[serde(default = "checkpoint_ms")]
    checkpoint_ms: u64,
    #[serde(default = "one")]
    tasks: u32,
}

fn checkpoint_rows() -> u64 {
    100_000
}

fn checkpoint_ms() -> u64 {
    100
}

fn one() -> u32 {
    1
}

/// Entries to restore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    brokers: String,
    entries: usize,
    value_bytes: usize,
}

/// Rows that are counted in a second.
pub async fn count(asked: &Count) -> Result<Value, Failure> {
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let log: Arc<dyn Log> = match &asked.brokers {
        Some(brokers) => kafka(brokers, &unique()).await?,
        None => EmbeddedLog::open(
            &dir.path().join("log"),
            Options {
                durability: Durability::Interval(Duration::from_millis(100)),
                ..Options::default()
            },
        )?,
    };
    let events = TopicName::new("events")?;
    let config = TopicConfig {
        partitions: asked.partitions,
        ..TopicConfig::default()
    };
    log.create_topic(&events, config).await?;
    let mut random = 1_u64;
    for (at, start) in (0..asked.rows).step_by(BATCH_ROWS).enumerate() {
        let rows = BATCH_ROWS.min(asked.rows - start);
        let keys: StringArray = (0..rows)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                Some(format!("customer-{:08}", random % asked.keys))
            })
            .collect();
        let amounts = Int64Array::from_iter_values(0..rows as i64);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("customer", Arc::new(keys) as _, false),
            ("amount", Arc::new(amounts) as _, true),
        ])?;
        let mut commit = log.begin();
        let partition = Partition(at as u32 % asked.partitions);
        commit.append(&events, Target::Partition(partition), batch);
        commit.finish().await?;
    }

    let text = format!(
        "pipeline: count\ntasks: {}\ncheckpoint: {{interval_ms: {}, rows_max: {}}}\n\
         sources: {{events: {{type: topic, topic: events, schema: {{customer: string!, amount: int64}}}}}}\n\
         operators: {{count: {{type: aggregate, input: events, group_by: [customer], compute: {{n: count()}}}}}}\n\
         sinks: {{out: {{type: topic, input: count, topic: counts, key: customer}}}}\n",
        asked.tasks, asked.checkpoint_ms, asked.checkpoint_rows
    );
    let plan = va_pipelines::load("count.yaml", &text, &BuiltinNames)?.plan;
    let settings = Settings {
        data: dir.path().join("data"),
        ..Settings::default()
    };
    let platform = Platform::open(settings, Role::Up).await?;
    let runtime = Runtime::new(RuntimeConfig {
        log: log.clone(),
        operators: va_operators::Resources {
            objects: platform.objects.clone(),
            embedders: platform.embedders.clone(),
            parser: Arc::new(InProcess::default()),
        },
        endpoints: va_endpoints::Resources {
            log: log.clone(),
            catalog: platform.catalog.clone(),
            indexes: platform.indexes.clone(),
        },
        clock: Arc::new(now_ms),
        patience: Duration::ZERO,
    });
    let name = PipelineName::new("count")?;
    let started = Instant::now();
    runtime.start(plan).await?;
    let mut checkpoints = runtime.checkpoints(&name)?;
    let status = loop {
        let status = runtime.status(&name).await?;
        if status.lag_rows == 0 {
            break status;
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), checkpoints.changed()).await;
    };
    let seconds = started.elapsed().as_secs_f64();
    let committed = *checkpoints.borrow();
    runtime.stop(&name).await?;
    platform.stop().await;
    log.close().await?;
    let nodes: serde_json::Map<String, Value> = status
        .nodes
        .iter()
        .map(|(node, stats)| (node.to_string(), json!([stats.rows_in, stats.rows_out])))
        .collect();
    Ok(json!({
        "events_s": asked.rows as f64 / seconds, "seconds": seconds, "checkpoints": committed, "nodes": nodes,
    }))
}

/// How fast a process that has nothing gets the state of a group, MB of keys and values in a second.
pub async fn restore(asked: &Restore) -> Result<Value, Failure> {
    let prefix = unique();
    let writer = kafka(&asked.brokers, &prefix).await?;
    let group = GroupId(PipelineName::new("restore")?);
    let mut bytes = 0;
    for start in (0..asked.entries).step_by(COMMIT_ENTRIES) {
        let mut commit = writer.begin();
        for entry in start..(start + COMMIT_ENTRIES).min(asked.entries) {
            let key = format!("customer-{entry:010}");
            bytes += key.len() + asked.value_bytes;
            let key = StateKey {
                group: group.clone(),
                namespace: "count".to_owned(),
                key: key.into(),
            };
            commit.put(key, vec![7; asked.value_bytes].into());
        }
        commit.finish().await?;
    }
    writer.close().await?;
    let reader = kafka(&asked.brokers, &prefix).await?;
    let started = Instant::now();
    let found = reader.state_scan(&group, "count", b"", 1).await?;
    let seconds = started.elapsed().as_secs_f64();
    if found.len() != 1 {
        return Err("nothing came back".into());
    }
    reader.close().await?;
    Ok(json!({
        "mb_s": bytes as f64 / 1e6 / seconds, "entries_s": asked.entries as f64 / seconds, "seconds": seconds,
    }))
}

fn unique() -> String {
    format!("bench-{}.", uuid::Uuid::now_v7().simple())
}

#[cfg(feature = "kafka")]
async fn kafka(brokers: &str, prefix: &str) -> Result<Arc<dyn Log>, Failure> {
    use va_connectors::log::kafka::{KafkaLog, KafkaOptions};
    let options = KafkaOptions {
        brokers: brokers.to_owned(),
        prefix: prefix.to_owned(),
        replication_factor: 1,
        ..KafkaOptions::default()
    };
    Ok(KafkaLog::connect(options).await?)
}

#[cfg(not(feature = "kafka"))]
async fn kafka(_: &str, _: &str) -> Result<Arc<dyn Log>, Failure> {
    Err("this was built without Kafka: use `--features va-serving/kafka`".into())
}
