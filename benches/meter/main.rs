//! What the benchmarks measure inside our own crates: one JSON command a line on stdin, one JSON answer a line on stdout.
//!
//! The scripts beside this folder ask in turns with the peer, so that both have the same disturbances. Each command
//! measures one thing once; which sizes, how often and against what is the scripts' business. An error is answered as
//! `{"error": "..."}` and ends the process.

mod embed;
mod fulltext;
mod gemm;
mod http;
mod kafka;
mod keyed;
mod log;
mod serving;
mod upstream;

use std::io::{BufRead, Write};

use serde::Deserialize;
use serde_json::{Value, json};

/// Any failure; what went wrong is in its text.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What can be asked.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Append batches to a log of its own and read them back.
    LogBatches(log::Batches),
    /// Small commits to a log of its own, one after the other or several at once.
    LogCommits(log::Commits),
    /// The peer of `log_batches`: the same bytes to a plain file.
    FileBatches(log::Batches),
    /// The peer of `log_commits`: small synced writes to a plain file.
    FileCommits(log::Commits),
    /// Count rows by key through a pipeline.
    KeyedCount(keyed::Count),
    /// Restore the state of a group from Kafka.
    StateRestore(keyed::Restore),
    /// Embed texts from a file.
    Embed(embed::Embed),
    /// One matrix product of bytes on every thread.
    Gemm(gemm::Gemm),
    /// Index chunk rows of a file with a bare full-text writer.
    Fulltext(fulltext::Fulltext),
    /// Make topics on a Kafka cluster.
    KafkaCreate(kafka::Topics),
    /// Remove them.
    KafkaRemove(kafka::Topics),
    /// Write events as a plain producer.
    KafkaFill(kafka::Fill),
    /// How fast a group gets through a topic.
    KafkaWatch(kafka::Watch),
    /// A peer: consume and produce in transactions, with nothing but rdkafka.
    KafkaLoop(kafka::Loop),
    /// Whether every event is in an output exactly once.
    KafkaCheck(kafka::Check),
    /// Send events at a steady rate and see when they come out.
    KafkaLatency(kafka::Latency),
    /// Start a model that costs nothing; it runs until this process ends.
    UpstreamStart,
    /// Requests to a server, each connection one after the other.
    HttpLoad(serving::Load),
    /// Requests to a server, all at the same moment.
    HttpBurst(serving::Burst),
    /// Streams of a server.
    HttpStreams(serving::Streams),
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut models = embed::Models::default();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = serde_json::from_str(&line)
            .map_err(Failure::from)
            .and_then(|command| match command {
                Command::LogBatches(batches) => runtime.block_on(log::batches(&batches)),
                Command::LogCommits(commits) => runtime.block_on(log::commits(&commits)),
                Command::FileBatches(batches) => log::file_batches(&batches),
                Command::FileCommits(commits) => log::file_commits(&commits),
                Command::KeyedCount(count) => runtime.block_on(keyed::count(&count)),
                Command::StateRestore(restore) => runtime.block_on(keyed::restore(&restore)),
                Command::Embed(embed) => models.embed(&embed),
                Command::Gemm(gemm) => gemm::run(&gemm),
                Command::Fulltext(rows) => runtime.block_on(fulltext::run(&rows)),
                Command::KafkaCreate(topics) => runtime.block_on(kafka::create(&topics)),
                Command::KafkaRemove(topics) => runtime.block_on(kafka::remove(&topics)),
                Command::KafkaFill(fill) => kafka::fill(&fill),
                Command::KafkaWatch(watch) => kafka::watch(&watch),
                Command::KafkaLoop(bare) => kafka::bare_loop(&bare),
                Command::KafkaCheck(check) => kafka::check(&check),
                Command::KafkaLatency(latency) => kafka::latency(&latency),
                Command::UpstreamStart => runtime.block_on(upstream::start()),
                Command::HttpLoad(load) => runtime.block_on(serving::load(&load)),
                Command::HttpBurst(burst) => runtime.block_on(serving::burst(&burst)),
                Command::HttpStreams(streams) => runtime.block_on(serving::streams(&streams)),
            });
        let failed = answer.is_err();
        let answer: Value = answer.unwrap_or_else(|error| json!({"error": error.to_string()}));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
        if failed {
            std::process::exit(1);
        }
    }
    Ok(())
}
