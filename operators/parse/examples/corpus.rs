//! Parses every file below the given directories and sums up what happened.
//!
//!     cargo run -p va-parse --example corpus -- DIRECTORY...
//!
//! With `--show`, prints the parsed text of each file with its blocks instead.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use va_parse::{Document, Input, Limits, parse};
use walkdir::WalkDir;

/// Files slower than this are named.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Sum {
    files: usize,
    bytes: usize,
    text: usize,
    blocks: usize,
    warnings: usize,
    time: Duration,
}

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let show = args.iter().any(|arg| arg == "--show");
    args.retain(|arg| arg != "--show");
    anyhow::ensure!(!args.is_empty(), "which directories or files?");
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut slow = Vec::new();
    let mut failed = Vec::new();
    for entry in args.iter().flat_map(WalkDir::new) {
        let entry = entry?;
        if !entry.file_type().is_file() {
            continue;
        }
        let path = entry.path();
        let bytes = std::fs::read(path)?;
        let start = Instant::now();
        let outcome = parse_file(path, &bytes);
        let time = start.elapsed();
        let key = match &outcome {
            Ok(document) => format!("ok {}", document.format),
            Err(error) => format!("error {}", error.kind()),
        };
        let sum = sums.entry(key).or_default();
        sum.files += 1;
        sum.bytes += bytes.len();
        sum.time += time;
        if time > SLOW {
            slow.push((time, path.to_owned()));
        }
        match outcome {
            Ok(document) => {
                sum.text += document.text.len();
                sum.blocks += document.blocks.len();
                sum.warnings += document.warnings.len();
                if show {
                    print(path, &document);
                }
            }
            Err(error) => failed.push(format!("{}: {error}", path.display())),
        }
    }
    if show {
        return Ok(());
    }
    for line in failed
        .iter()
        .filter(|line| !line.contains("is not supported"))
    {
        println!("{line}");
    }
    for (time, path) in slow {
        println!("slow: {:.1} s {}", time.as_secs_f64(), path.display());
    }
    println!("outcome | files | KiB in | KiB text | blocks | warnings | seconds | files/s");
    for (key, sum) in sums {
        let seconds = sum.time.as_secs_f64();
        println!(
            "{key} | {} | {} | {} | {} | {} | {seconds:.2} | {:.0}",
            sum.files,
            sum.bytes >> 10,
            sum.text >> 10,
            sum.blocks,
            sum.warnings,
            sum.files as f64 / seconds.max(1e-9),
        );
    }
    Ok(())
}

fn parse_file(path: &Path, bytes: &[u8]) -> Result<Document, va_parse::ParseError> {
    let input = Input {
        name: &path.to_string_lossy(),
        content_type: None,
        bytes,
    };
    parse(&input, &Limits::default())
}

fn print(path: &Path, document: &Document) {
    println!(
        "##### {} {:?} {:?}",
        path.display(),
        document.format,
        document.encoding
    );
    println!(
        "title: {:?}, pages: {:?}, warnings: {:?}",
        document.title, document.pages, document.warnings
    );
    for block in &document.blocks {
        let page = block
            .page
            .map(|page| format!(" p{page}"))
            .unwrap_or_default();
        println!("--- {:?}{page} {:?}", block.kind, block.title_path);
        println!("{}", &document.text[block.range.clone()]);
    }
}
