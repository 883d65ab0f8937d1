//! `kill -9` at any moment: every acknowledged commit is there, whole, and at most one more.
//!
//! The child is this test binary again, told by an environment variable to commit in a loop. Each commit n touches three
//! topics, an offset and two keys of state, and is printed once acknowledged; the parent kills the child somewhere in
//! the middle, reopens the log, and checks that all of them tell of the same last n.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use va_catalog::{Offset, Partition, TopicPartition};

use super::storage::{group, part, topic};
use super::{INTERVAL, open};
use crate::log::embedded::{Durability, EmbeddedLog};
use crate::log::{FetchLimit, Log, StateKey, Target, TopicConfig};

const DIR: &str = "VA_LOG_CRASH_DIR";
const MODE: &str = "VA_LOG_CRASH_MODE";

#[tokio::test]
async fn killed_with_every_commit_synced() {
    kill_and_check("every_commit", 11).await;
}

#[tokio::test]
async fn killed_with_interval_sync() {
    kill_and_check("interval", 12).await;
}

fn durability(mode: &str) -> Durability {
    match mode {
        "interval" => INTERVAL,
        _ => Durability::EveryCommit,
    }
}

async fn kill_and_check(mode: &str, seed: u64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for run in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        // The same directory again and again, so that a recovered log crashes as well.
        for round in 0..8 {
            let (lines, turns) = (draw(30), draw(100_000));
            let acknowledged = crash(dir.path(), mode, lines, turns);
            let last = check(dir.path(), durability(mode)).await;
            let context = format!("{mode}, seed {seed}, run {run}, round {round}");
            assert!(
                last == acknowledged || last == acknowledged + 1,
                "{context}: {acknowledged} was acknowledged, {last} is there"
            );
        }
    }
}

/// Runs the child and kills it somewhere in a commit: after it has printed `lines` commits and the parent has spun
/// `turns` times more. Returns the last one that it printed.
fn crash(dir: &Path, mode: &str, lines: u64, turns: u64) -> i64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "log::embedded::tests::crash::child",
            "--nocapture",
        ])
        .env(DIR, dir)
        .env(MODE, mode)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = None;
    let mut seen = 0;
    let stdout = BufReader::new(child.stdout.take().unwrap());
    // After the kill, what is still in the pipe was acknowledged too.
    for line in stdout.lines() {
        let line = line.unwrap();
        let Some(number) = line.split("acknowledged ").nth(1) else {
            continue;
        };
        acknowledged = Some(number.parse().unwrap());
        if seen == lines {
            for _ in 0..turns {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
        }
        seen += 1;
    }
    let status = child.wait().unwrap();
    assert!(!status.success(), "the child ended by itself");
    acknowledged.expect("the child committed something")
}

/// The child's part; without the variables it is a test that passes.
#[test]
fn child() {
    let (Ok(dir), Ok(mode)) = (std::env::var(DIR), std::env::var(MODE)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = open(Path::new(&dir), durability(&mode));
        for (name, partitions) in [("in", 1), ("out", 2), ("dead_letter", 1)] {
            let config = TopicConfig {
                partitions,
                ..TopicConfig::default()
            };
            log.create_topic(&topic(name), config).await.unwrap();
        }
        let member = log.join(&group(), &[topic("in")]).await.unwrap();
        let assigned = member.rebalance().await.unwrap().assigned;
        let mut stdout = std::io::stdout();
        for n in assigned[0].1.0 as i64.. {
            let mut commit = member.begin();
            let out = topic("out");
            commit.append(
                &out,
                Target::Partition(Partition(0)),
                rows(n * 3..n * 3 + 3),
            );
            commit.append(&out, Target::Partition(Partition(1)), rows(n..n + 1));
            if n % 5 == 0 {
                let place = Target::Partition(Partition(0));
                commit.append(&topic("dead_letter"), place, rows(n..n + 1));
            }
            commit.consumed(&part("in", 0), Offset(n as u64 + 1));
            commit.put(key("last"), n.to_string().into());
            commit.put(key(&format!("seen {n}")), "".into());
            commit.delete(key(&format!("seen {}", n - 1)));
            commit.finish().await.unwrap();
            // One call, so that a line is printed whole or not at all.
            stdout
                .write_all(format!("acknowledged {n}\n").as_bytes())
                .unwrap();
            stdout.flush().unwrap();
        }
    });
}

/// Checks that everything in the log is of the same commits, and returns the last of them.
async fn check(dir: &Path, durability: Durability) -> i64 {
    let log = open(dir, durability);
    let last = log.state_get(&key("last")).await.unwrap().unwrap();
    let last: i64 = std::str::from_utf8(&last).unwrap().parse().unwrap();
    let consumed = log.committed(&group(), &part("in", 0)).await.unwrap();
    assert_eq!(consumed, Some(Offset(last as u64 + 1)));
    let seen = log
        .state_scan(&group(), "node", b"seen ", usize::MAX)
        .await
        .unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, format!("seen {last}"));
    let out = read(&log, &part("out", 0)).await;
    assert_eq!(out, (0..(last + 1) * 3).collect::<Vec<_>>());
    let out = read(&log, &part("out", 1)).await;
    assert_eq!(out, (0..=last).collect::<Vec<_>>());
    let dead = read(&log, &part("dead_letter", 0)).await;
    assert_eq!(dead, (0..=last).step_by(5).collect::<Vec<_>>());
    last
}

async fn read(log: &EmbeddedLog, place: &TopicPartition) -> Vec<i64> {
    let marks = log.watermarks(place).await.unwrap();
    let (mut next, mut found) = (marks.low, Vec::new());
    while next < marks.high {
        let fetched = log
            .fetch(place, next, FetchLimit::default(), Duration::ZERO)
            .await
            .unwrap();
        for LogRows { values, texts } in fetched.batches.iter().map(|b| LogRows::of(&b.batch)) {
            for (value, text) in values.iter().zip(texts) {
                assert_eq!(text, payload(*value));
            }
            found.extend(values);
        }
        next = fetched.next;
    }
    found
}

struct LogRows {
    values: Vec<i64>,
    texts: Vec<String>,
}

impl LogRows {
    fn of(batch: &RecordBatch) -> Self {
        Self {
            values: batch
                .column(0)
                .as_primitive::<Int64Type>()
                .values()
                .to_vec(),
            texts: batch
                .column(1)
                .as_string::<i32>()
                .iter()
                .map(|text| text.unwrap().to_owned())
                .collect(),
        }
    }
}

/// Up to 64 kB, so that a commit does not reach the file in one piece.
fn payload(value: i64) -> String {
    "文档 document ".repeat((value * 37 % 4_000) as usize)
}

fn rows(range: std::ops::Range<i64>) -> RecordBatch {
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(range.clone()));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(range.map(payload)));
    RecordBatch::try_from_iter([("value", values), ("text", texts)]).unwrap()
}

fn key(name: &str) -> StateKey {
    StateKey {
        group: group(),
        namespace: "node".to_owned(),
        key: name.to_owned().into(),
    }
}
