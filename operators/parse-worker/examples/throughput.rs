//! How much parsing in processes costs: the files of a directory, in batches as the `index` pipeline hands them over,
//! once in this process and once in workers.
//!
//! `cargo run --workspace --example throughput -- DIRECTORY`

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::path::Path;
use std::time::{Duration, Instant};

use va_parse::Limits;
use va_parse_worker::{InProcess, Parser, PoolOptions, Source, WorkerPool, run_worker};

/// `batch_rows_max` of the pipeline's source.
const BATCH: usize = 8;
const MEMORY: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = std::env::args().nth(1).ok_or("name a directory")?;
    // Started by the pool below.
    if argument == "parse-worker" {
        return Ok(run_worker(MEMORY)?);
    }
    let mut sources = Vec::new();
    read(Path::new(&argument), &mut sources)?;
    let options = PoolOptions {
        workers: std::thread::available_parallelism()?.get(),
        timeout: Duration::from_secs(60),
        memory_bytes_max: MEMORY,
        limits: Limits::default(),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let _guard = runtime.enter();
    let (inside, pool) = (InProcess::default(), WorkerPool::new(options)?);
    // The first round warms up: pages of the files, threads, processes.
    for round in 0..4 {
        for (name, parser) in [
            ("in process", &inside as &dyn Parser),
            ("in workers", &pool),
        ] {
            let started = Instant::now();
            let mut parsed = 0;
            for batch in sources.chunks(BATCH) {
                let outcomes = runtime.block_on(parser.parse(batch.to_vec(), &parser.limits()))?;
                parsed += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            }
            let seconds = started.elapsed().as_secs_f64();
            if round > 0 {
                let rate = sources.len() as f64 / seconds;
                println!(
                    "{name}: {parsed} of {} in {seconds:.2} s, {rate:.0}/s",
                    sources.len()
                );
            }
        }
    }
    Ok(())
}

fn read(dir: &Path, sources: &mut Vec<Source>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, sources)?;
        } else {
            sources.push(Source {
                name: path.display().to_string(),
                content_type: None,
                bytes: std::fs::read(&path)?.into(),
            });
        }
    }
    Ok(())
}
