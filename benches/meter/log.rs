//! The embedded log and its peer, a plain file that is synced just as often.
//!
//! Every measurement makes a log or file of its own in a temporary directory below `dir`, which should be on a real
//! disk: a memory file system would flatter the syncs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::log::embedded::{Durability, EmbeddedLog, Options};
use va_connectors::log::{FetchLimit, GroupId, Log, LogError, StateKey, Target, TopicConfig};

use crate::Failure;

const BATCH_BYTES: usize = 256 << 10;
/// A checkpoint's size: a few kB of rows.
const COMMIT_BYTES: usize = 4 << 10;

/// When the disk is waited for.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    EveryCommit,
    /// Every 100 ms, from beside the writer.
    Interval,
}

const SYNC_INTERVAL: Duration = Duration::from_millis(100);

impl Sync {
    fn durability(self) -> Durability {
        match self {
            Self::EveryCommit => Durability::EveryCommit,
            Self::Interval => Durability::Interval(SYNC_INTERVAL),
        }
    }
}

/// Large batches, one a commit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batches {
    dir: PathBuf,
    sync: Sync,
    mib: usize,
}

/// Small commits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commits {
    dir: PathBuf,
    sync: Sync,
    commits: usize,
    /// How many commit at the same time.
    producers: usize,
}

/// Appends, then reads everything back as whoever consumes the topic does.
pub async fn batches(asked: &Batches) -> Result<Value, Failure> {
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let log = open(dir.path(), asked.sync)?;
    let (topic, place) = topic(&log).await?;
    let batch = text_batch(BATCH_BYTES);
    let count = (asked.mib << 20) / BATCH_BYTES;
    let started = Instant::now();
    for _ in 0..count {
        let mut commit = log.begin();
        commit.append(&topic, Target::Partition(Partition(0)), batch.clone());
        commit.finish().await?;
    }
    let append = started.elapsed();

    let started = Instant::now();
    let (mut next, mut rows) = (Offset(0), 0);
    let high = log.watermarks(&place).await?.high;
    while next < high {
        let fetched = log
            .fetch(&place, next, FetchLimit::default(), Duration::ZERO)
            .await?;
        rows += fetched
            .batches
            .iter()
            .map(|b| b.batch.num_rows())
            .sum::<usize>();
        next = fetched.next;
    }
    let consume = started.elapsed();
    if rows != count * batch.num_rows() {
        return Err(format!("{rows} rows came back of {}", count * batch.num_rows()).into());
    }
    log.close().await?;
    Ok(json!({
        "append_mb_s": rate(count, append), "consume_mb_s": rate(count, consume),
    }))
}

/// The same number of bytes to a plain file, and back. `Interval` syncs from the writer's own thread, as a simple
/// program would.
pub fn file_batches(asked: &Batches) -> Result<Value, Failure> {
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let path = dir.path().join("plain");
    let bytes = noise(BATCH_BYTES);
    let count = (asked.mib << 20) / BATCH_BYTES;
    let started = Instant::now();
    let mut file = File::create(&path)?;
    let mut synced = Instant::now();
    for _ in 0..count {
        file.write_all(&bytes)?;
        if matches!(asked.sync, Sync::EveryCommit) || synced.elapsed() >= SYNC_INTERVAL {
            file.sync_data()?;
            synced = Instant::now();
        }
    }
    let append = started.elapsed();
    let started = Instant::now();
    let mut file = File::open(&path)?;
    let mut block = vec![0; BATCH_BYTES];
    for _ in 0..count {
        file.read_exact(&mut block)?;
    }
    Ok(json!({
        "append_mb_s": rate(count, append), "consume_mb_s": rate(count, started.elapsed()),
    }))
}

/// A checkpoint's shape: a few kB of rows and one state change.
pub async fn commits(asked: &Commits) -> Result<Value, Failure> {
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let log = open(dir.path(), asked.sync)?;
    let (topic, _) = topic(&log).await?;
    let batch = text_batch(COMMIT_BYTES);
    let started = Instant::now();
    let tasks: Vec<_> = (0..asked.producers)
        .map(|producer| {
            let (log, topic, batch) = (Arc::clone(&log), topic.clone(), batch.clone());
            let commits = asked.commits / asked.producers;
            tokio::spawn(async move {
                let group = PipelineName::new("speed").map(GroupId);
                let key = StateKey {
                    group: group.map_err(|e| LogError::Config(e.to_string()))?,
                    namespace: "node".to_owned(),
                    key: producer.to_string().into(),
                };
                let mut times = Vec::new();
                for i in 0..commits {
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
    let took = started.elapsed();
    log.close().await?;
    Ok(latencies(times, took))
}

/// Small writes to a plain file by one writer, each synced or not: what the disk itself takes.
pub fn file_commits(asked: &Commits) -> Result<Value, Failure> {
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let mut file = File::create(dir.path().join("plain"))?;
    let bytes = noise(COMMIT_BYTES);
    let mut times = Vec::new();
    let started = Instant::now();
    for _ in 0..asked.commits {
        let one = Instant::now();
        file.write_all(&bytes)?;
        if matches!(asked.sync, Sync::EveryCommit) {
            file.sync_data()?;
        }
        times.push(one.elapsed());
    }
    Ok(latencies(times, started.elapsed()))
}

fn open(dir: &Path, sync: Sync) -> Result<Arc<EmbeddedLog>, LogError> {
    let options = Options {
        durability: sync.durability(),
        ..Options::default()
    };
    EmbeddedLog::open(dir, options)
}

async fn topic(log: &EmbeddedLog) -> Result<(TopicName, TopicPartition), Failure> {
    let topic = TopicName::new("speed")?;
    let place = TopicPartition {
        topic: topic.clone(),
        partition: Partition(0),
    };
    let config = TopicConfig {
        partitions: 1,
        ..TopicConfig::default()
    };
    log.create_topic(&topic, config).await?;
    Ok((topic, place))
}

fn latencies(mut times: Vec<Duration>, took: Duration) -> Value {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    json!({
        "p50_ms": at(0.5), "p99_ms": at(0.99), "per_second": times.len() as f64 / took.as_secs_f64(),
    })
}

/// Rows of text that is neither constant nor noise.
fn text_batch(bytes: usize) -> RecordBatch {
    let mut random = Random::default();
    let mut word = || {
        ["冻结", "行", "列", "freeze ", "rows ", "columns ", "pane "][random.next() as usize % 7]
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

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = Random::default();
    (0..bytes / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect()
}

/// Pseudo-random numbers (xorshift), the same in every run.
struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(42)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn rate(count: usize, took: Duration) -> f64 {
    (count * BATCH_BYTES) as f64 / 1e6 / took.as_secs_f64()
}
