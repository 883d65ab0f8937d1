//! Prints how fast an embedding model is: sequences per second for passages of 128 tokens in batches of 32, and the
//! time of one query of 16 tokens.
//!
//!     cargo run -p va-models --example embed_speed [MODEL NAME OR DIRECTORY] [SECONDS]
//!
//! `embed_speed_onnxruntime.py` beside this file measures the same with onnxruntime.

use std::time::{Duration, Instant};

use va_models::{ModelStore, NoProgress, Role, default_model_dir, load_embedder};

const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or("multilingual-e5-small".to_owned());
    let seconds: u64 = args.next().map_or(Ok(10), |s| s.parse())?;
    let store = ModelStore::open(default_model_dir())?;
    if store.lock().get(&name).is_some() {
        store.pull(&name, &NoProgress)?;
    }
    let before = resident_mib();
    let started = Instant::now();
    let model = load_embedder(&name, &store)?;
    println!("load: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);

    // Words that are one token each in both built-in models, up to exactly 128 tokens with prefix and special ones.
    let used = model.max_tokens() - model.passage_tokens();
    let passages: Vec<String> = (0..BATCH).map(|i| words(128 - used, i)).collect();
    let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
    println!(
        "tokens per passage: {}",
        model.tokenizer().count(passages[0]) + used
    );
    model.embed(&passages, Role::Passage)?;
    let mut best = Duration::MAX;
    let (started, cpu, mut done) = (Instant::now(), cpu_seconds(), 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        let batch = Instant::now();
        model.embed(&passages, Role::Passage)?;
        best = best.min(batch.elapsed());
        done += BATCH;
    }
    println!(
        "passages: {:.1} sequences/s (best batch {:.1})",
        done as f64 / started.elapsed().as_secs_f64(),
        BATCH as f64 / best.as_secs_f64()
    );

    // Other programs take processor time away, but not from this figure.
    if let (Some(before), Some(now)) = (cpu, cpu_seconds()) {
        println!(
            "passages: {:.1} sequences per second of processor time",
            done as f64 / (now - before)
        );
    }

    let query = words(16 - used, 7);
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..200 {
        let one = Instant::now();
        model.embed(&[&query], Role::Query)?;
        times.push(one.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "query of 16 tokens: median {:.2} ms, best {:.2} ms, p95 {:.2} ms",
        times[100], times[0], times[190]
    );
    let text = passages.join(" ");
    let count = Instant::now();
    let tokens = model.tokenizer().count(&text);
    println!(
        "tokenizer: {:.0} thousand tokens/s",
        tokens as f64 / count.elapsed().as_secs_f64() / 1e3
    );
    if let (Some(before), Some(now)) = (before, resident_mib()) {
        println!("resident memory: {now} MiB ({before} before loading)");
    }
    Ok(())
}

fn words(tokens: usize, seed: usize) -> String {
    const WORDS: [&str; 8] = [
        "time", "people", "water", "world", "house", "music", "book", "city",
    ];
    (0..tokens)
        .map(|i| WORDS[(i * 5 + seed * 3 + i / 7) % WORDS.len()])
        .collect::<Vec<_>>()
        .join(" ")
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    // Linux counts in hundredths of a second on every platform that it shows to programs.
    Some((user + system) / 100.0)
}

fn resident_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}
