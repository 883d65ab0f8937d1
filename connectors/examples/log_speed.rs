//! Speed of the embedded log: appends and consumes batches of 256 KiB, and times small commits, for both durabilities.
//!
//! `cargo run -p va-connectors --example log_speed -- [MiB] [commits] [directory]` (default 512, 2000, a temporary
//! directory beside the current one: a memory file system would flatter the syncs).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::log::embedded::{Durability, EmbeddedLog, Options};
use va_connectors::log::{FetchLimit, GroupId, Log, LogError, StateKey, Target, TopicConfig};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BATCH_BYTES: usize = 256 << 10;
const PRODUCERS: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(Ok(512), |a| a.parse())?;
    let commits: usize = arguments.next().map_or(Ok(2_000), |a| a.parse())?;
    let base = arguments
        .next()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    for durability in [
        Durability::EveryCommit,
        Durability::Interval(Duration::from_millis(100)),
    ] {
        let dir = base.join(format!("log-speed-{}", std::process::id()));
        let result = measure(&dir, durability, mib, commits).await;
        std::fs::remove_dir_all(&dir)?;
        result?;
    }
    Ok(())
}

async fn measure(
    dir: &std::path::Path,
    durability: Durability,
    mib: usize,
    commits: usize,
) -> Result<()> {
    println!("{durability:?}");
    let options = Options {
        durability,
        ..Options::default()
    };
    let log = EmbeddedLog::open(dir, options.clone())?;
    let topic = TopicName::new("speed")?;
    let place = TopicPartition {
        topic: topic.clone(),
        partition: Partition(0),
    };
    let config = TopicConfig {
        partitions: 1,
        ..TopicConfig::default()
    };
    log.create_topic(&topic, config.clone()).await?;

    let batch = text_batch(BATCH_BYTES);
    let count = (mib << 20) / BATCH_BYTES;
    let started = Instant::now();
    for _ in 0..count {
        let mut commit = log.begin();
        commit.append(&topic, Target::Partition(Partition(0)), batch.clone());
        commit.finish().await?;
    }
    println!(
        "  append   {:7.0} MB/s  ({count} commits of one 256 KiB batch)",
        rate(count, started)
    );

    consume(&log, &place, count, "just written").await?;
    drop(log);
    let started = Instant::now();
    let log = EmbeddedLog::open(dir, options)?;
    println!(
        "  reopen   {:7.0} ms",
        started.elapsed().as_secs_f64() * 1e3
    );
    consume(&log, &place, count, "reopened").await?;
    println!(
        "  on disk  {:7.0} MB for {} MB of batches",
        disk_bytes(dir)? as f64 / 1e6,
        count * BATCH_BYTES / 1_000_000
    );

    latency(&log, &topic, commits, 1).await?;
    latency(&log, &topic, commits, PRODUCERS).await?;
    Ok(())
}

async fn consume(
    log: &EmbeddedLog,
    place: &TopicPartition,
    count: usize,
    what: &str,
) -> Result<()> {
    let started = Instant::now();
    let (mut next, mut rows) = (Offset(0), 0);
    let high = log.watermarks(place).await?.high;
    while next < high {
        let fetched = log
            .fetch(place, next, FetchLimit::default(), Duration::ZERO)
            .await?;
        rows += fetched
            .batches
            .iter()
            .map(|b| b.batch.num_rows())
            .sum::<usize>();
        next = fetched.next;
    }
    println!(
        "  consume  {:7.0} MB/s  ({what}, {rows} rows)",
        rate(count, started)
    );
    Ok(())
}

/// A checkpoint's shape: a few kB of rows and one state change.
async fn latency(
    log: &Arc<EmbeddedLog>,
    topic: &TopicName,
    commits: usize,
    producers: usize,
) -> Result<()> {
    let batch = text_batch(4 << 10);
    let started = Instant::now();
    let tasks: Vec<_> = (0..producers)
        .map(|producer| {
            let (log, topic, batch) = (Arc::clone(log), topic.clone(), batch.clone());
            tokio::spawn(async move {
                let group = PipelineName::new("speed").map(GroupId);
                let key = StateKey {
                    group: group.map_err(|e| LogError::Config(e.to_string()))?,
                    namespace: "node".to_owned(),
                    key: producer.to_string().into(),
                };
                let mut times = Vec::new();
                for i in 0..commits / producers {
                    let mut commit = log.begin();
                    commit.append(&topic, Target::Partition(Partition(0)), batch.clone());
                    commit.put(key.clone(), i.to_string().into());
                    let started = Instant::now();
                    commit.finish().await?;
                    times.push(started.elapsed());
                }
                Ok::<_, LogError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let seconds = started.elapsed().as_secs_f64();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "  commit   p50 {:.3} ms  p99 {:.3} ms  max {:.3} ms  {:.0}/s  ({} of 4 KiB, {producers} at once)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len() as f64 / seconds,
        times.len()
    );
    Ok(())
}

/// Rows of text that is neither constant nor noise.
fn text_batch(bytes: usize) -> RecordBatch {
    let mut random = 42_u64;
    let mut word = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ["冻结", "行", "列", "freeze ", "rows ", "columns ", "pane "][random as usize % 7]
    };
    let rows = bytes / 512;
    let texts: Vec<String> = (0..rows)
        .map(|_| {
            let mut text = String::new();
            while text.len() < 500 {
                text.push_str(word());
            }
            text
        })
        .collect();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    RecordBatch::try_from_iter([("id", ids), ("text", texts)]).expect("columns of the same length")
}

fn rate(count: usize, started: Instant) -> f64 {
    (count * BATCH_BYTES) as f64 / 1e6 / started.elapsed().as_secs_f64()
}

fn disk_bytes(dir: &std::path::Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}
