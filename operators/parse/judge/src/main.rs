//! Judges PDF libraries: the text that each gets out of the same files, against Poppler's `pdftotext` as an independent
//! reference.
//!
//!     cargo run -- DIRECTORY_OR_FILE...
//!
//! Each library reads each file in a process of its own, so that a crash or a hang costs that file and nothing else.
//! Needs `pdftotext` (Debian package `poppler-utils`) and `timeout` (coreutils).
//!
//! - recall: characters (not white space) of the reference that are found, as a multiset
//! - precision: characters found that are in the reference
//! - order: runs of five characters of the reference that are found in one piece; falls when columns or lines are mixed
//! - words: words of the reference (between white space) that are found; falls when spaces are lost or invented
//!
//! All four are means over the files, so a book weighs as much as a page.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const CANDIDATES: &[&str] = &[
    "hayro (va-parse)",
    "pdf-extract",
    "pdf_oxide",
    "pdf-inspector",
    "unpdf",
    "lopdf",
];
const TIMEOUT_SECONDS: &str = "60";
/// References shorter than this are scans or empty pages.
const REFERENCE_CHARS_MIN: usize = 10;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [one, candidate, file] = args.as_slice()
        && one == "--one"
    {
        let bytes = std::fs::read(file)?;
        std::io::stdout().write_all(extract(candidate, &bytes)?.as_bytes())?;
        return Ok(());
    }
    let mut files = Vec::new();
    for arg in &args {
        collect(Path::new(arg), &mut files)?;
    }
    files.sort();
    judge(&files)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            collect(&entry?.path(), files)?;
        }
    } else if path.extension().is_some_and(|ending| ending == "pdf") {
        files.push(path.to_owned());
    }
    Ok(())
}

#[derive(Default)]
struct Score {
    recall: f64,
    precision: f64,
    order: f64,
    words: f64,
    errors: usize,
    crashes: usize,
    hangs: usize,
    time: Duration,
}

fn judge(files: &[PathBuf]) -> anyhow::Result<()> {
    let references: Vec<(&PathBuf, String)> = files
        .iter()
        .filter_map(|file| Some((file, reference(file)?)))
        .filter(|(_, text)| squeeze(text).chars().count() >= REFERENCE_CHARS_MIN)
        .collect();
    println!(
        "{} files, {} with text by pdftotext",
        files.len(),
        references.len()
    );
    println!(
        "| library | recall | precision | order | words | errors | crashes | hangs | seconds |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let exe = std::env::current_exe()?;
    for candidate in CANDIDATES {
        let mut score = Score::default();
        for (file, expected) in &references {
            let start = Instant::now();
            let output = Command::new("timeout")
                .arg(TIMEOUT_SECONDS)
                .arg(&exe)
                .args(["--one", candidate])
                .arg(file)
                .stderr(Stdio::null())
                .output()
                .context("run `timeout`")?;
            score.time += start.elapsed();
            match output.status.code() {
                Some(0) => {}
                Some(1) => score.errors += 1,
                Some(124) => score.hangs += 1,
                _ => score.crashes += 1,
            }
            let text = String::from_utf8_lossy(&output.stdout);
            let found = compare(expected, &text, &mut score);
            if std::env::var_os("JUDGE_EACH").is_some() {
                eprintln!(
                    "{candidate} {found:.3} {:?} {}",
                    output.status.code(),
                    file.display()
                );
            }
        }
        let n = references.len() as f64;
        println!(
            "| {candidate} | {:.3} | {:.3} | {:.3} | {:.3} | {} | {} | {} | {:.1} |",
            score.recall / n,
            score.precision / n,
            score.order / n,
            score.words / n,
            score.errors,
            score.crashes,
            score.hangs,
            score.time.as_secs_f64(),
        );
    }
    Ok(())
}

fn reference(file: &Path) -> Option<String> {
    let output = Command::new("pdftotext")
        .args(["-enc", "UTF-8"])
        .arg(file)
        .arg("-")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn compare(expected: &str, found: &str, score: &mut Score) -> f64 {
    let (e, f): (Vec<char>, Vec<char>) = (
        squeeze(expected).chars().collect(),
        squeeze(found).chars().collect(),
    );
    let recall = common(e.iter(), f.iter());
    score.recall += recall;
    score.precision += if f.is_empty() {
        0.0
    } else {
        common(f.iter(), e.iter())
    };
    let order = common(e.windows(5), f.windows(5));
    score.order += order;
    score.words += common(expected.split_whitespace(), found.split_whitespace());
    order
}

/// The part of `wanted` that is in `found`, both as multisets.
fn common<T: Hash + Eq>(wanted: impl Iterator<Item = T>, found: impl Iterator<Item = T>) -> f64 {
    let mut counts: HashMap<T, usize> = HashMap::new();
    for item in found {
        *counts.entry(item).or_default() += 1;
    }
    let (mut all, mut hits) = (0usize, 0usize);
    for item in wanted {
        all += 1;
        if let Some(count) = counts.get_mut(&item).filter(|count| **count > 0) {
            *count -= 1;
            hits += 1;
        }
    }
    hits as f64 / all.max(1) as f64
}

/// Text without white space, with ligatures as letters, so that only what is said counts. Table rules (`|`) and the dots
/// that lead to page numbers are no text either.
fn squeeze(text: &str) -> String {
    let text: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && !c.is_control() && *c != '|')
        .collect();
    let text = text
        .replace('\u{FB00}', "ff")
        .replace('\u{FB01}', "fi")
        .replace('\u{FB02}', "fl")
        .replace('\u{FB03}', "ffi")
        .replace('\u{FB04}', "ffl");
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(|c| c != '.') {
        // Each part is a run of dots with the character after it.
        if part.bytes().filter(|byte| *byte == b'.').count() < 4 {
            out.push_str(part);
        } else {
            out.push_str(part.trim_start_matches('.'));
        }
    }
    out
}

fn extract(candidate: &str, bytes: &[u8]) -> anyhow::Result<String> {
    Ok(match candidate {
        "hayro (va-parse)" => {
            let input = va_parse::Input {
                name: "judged.pdf",
                content_type: None,
                bytes,
            };
            va_parse::parse(&input, &va_parse::Limits::default())?.text
        }
        "pdf-extract" => pdf_extract::extract_text_from_mem(bytes)?,
        "lopdf" => {
            let document = lopdf::Document::load_mem(bytes)?;
            let pages: Vec<u32> = document.get_pages().keys().copied().collect();
            document.extract_text(&pages)?
        }
        "pdf_oxide" => pdf_oxide::PdfDocument::from_bytes(bytes.to_vec())?.extract_all_text()?,
        "pdf-inspector" => pdf_inspector::process_pdf_mem(bytes)?
            .markdown
            .unwrap_or_default(),
        "unpdf" => unpdf::Unpdf::new().parse_bytes(bytes)?.plain_text(),
        other => bail!("unknown library `{other}`, known are {CANDIDATES:?}"),
    })
}
