//! What `va index` shows: the bar, the report, the plan. Names are printed with control characters escaped.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Value, json};

use super::IndexArgs;
use crate::cli::client::{Failure, Outcome};
use crate::cli::table::printable;
use crate::folder::{Note, Plan, Progress, Report};

/// Lines of one kind on the terminal; `--json` has all.
const LINES_MAX: usize = 20;

/// The progress bar; on no terminal it shows nothing.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(files: u64) -> Self {
        let bar = ProgressBar::new(files);
        // Nothing is to be done about a terminal that cannot be written to.
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{:.0}/s", state.per_sec());
        };
        // Before anything is done there is nothing to reckon with.
        let eta = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = match state.pos() {
                0 => write!(out, "-"),
                _ => write!(out, "{:#}", HumanDuration(state.eta())),
            };
        };
        let style = ProgressStyle::with_template(
            "{bar:30} {pos}/{len} files  {rate}  ETA {left}  {wide_msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
        .with_key("left", eta);
        bar.set_style(style);
        bar.set_message("reading");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn done(&self, files: u64) {
        self.0.inc(files);
    }

    fn message(&self, text: String) {
        self.0.set_message(printable(&text));
    }
}

/// Prints the outcome; a failed file makes a failed command.
pub fn report(args: &IndexArgs, report: &Report, took: Duration) -> Outcome<()> {
    let seconds = took.as_secs_f64();
    if args.json {
        let indexed = if args.no_wait {
            Value::Null
        } else {
            json!(report.indexed)
        };
        println!(
            "{}",
            json!({
                "files": report.files, "indexed": indexed, "handed_over": report.handed_over,
                "unchanged": report.unchanged, "moved": moves(&report.moved), "removed": report.removed,
                "failed": notes(&report.failed), "skipped": notes(&report.skipped), "seconds": seconds,
            })
        );
    } else {
        let (done, verb) = if args.no_wait {
            (report.handed_over, "handed over")
        } else {
            (report.indexed, "indexed")
        };
        println!(
            "{} files in {seconds:.1} s: {done} {verb}, {} unchanged, {} moved, {} removed, {} failed",
            report.files,
            report.unchanged,
            report.moved.len(),
            report.removed.len(),
            report.failed.len()
        );
        lines("skipped", &report.skipped);
        lines("failed", &report.failed);
        if report.failed.len() > LINES_MAX {
            eprintln!(
                "  see them all: va document list --collection {} --state FAILED",
                args.collection
            );
        }
    }
    // The lines above say it all.
    if report.failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(""))
    }
}

/// Prints what would happen.
pub fn plan(args: &IndexArgs, plan: &Plan, urls: &[String]) -> Outcome<()> {
    if args.json {
        println!(
            "{}",
            json!({
                "dry_run": true, "new": plan.new, "changed": plan.changed, "moved": moves(&plan.moved),
                "removed": plan.removed, "unchanged": plan.unchanged, "failed": notes(&plan.failed),
                "skipped": notes(&plan.skipped), "urls": urls,
            })
        );
    } else {
        let mut text = String::new();
        let mut list = |word: &str, uris: &[String]| {
            for uri in uris {
                // A string takes everything.
                let _ = writeln!(text, "{word:<8} {}", printable(uri));
            }
        };
        list("new", &plan.new);
        list("changed", &plan.changed);
        for (from, to) in &plan.moved {
            list("moved", &[format!("{from} -> {to}")]);
        }
        list("removed", &plan.removed);
        list("fetched", urls);
        print!("{text}");
        lines("skipped", &plan.skipped);
        lines("failed", &plan.failed);
        println!(
            "Nothing was changed. It would be: {} new, {} changed, {} moved, {} removed, {} unchanged, {} failed{}",
            plan.new.len(),
            plan.changed.len(),
            plan.moved.len(),
            plan.removed.len(),
            plan.unchanged,
            plan.failed.len(),
            if urls.is_empty() {
                String::new()
            } else {
                format!("; {} URLs would be fetched", urls.len())
            }
        );
    }
    if plan.failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(""))
    }
}

fn lines(word: &str, notes: &[Note]) {
    for note in notes.iter().take(LINES_MAX) {
        eprintln!("  {word}: {}", printable(&note.uri));
        eprintln!("          {}", printable(&note.reason));
    }
    if notes.len() > LINES_MAX {
        eprintln!("  {word}: and {} more", notes.len() - LINES_MAX);
    }
}

fn notes(notes: &[Note]) -> Vec<Value> {
    notes
        .iter()
        .map(|note| json!({"uri": note.uri, "error": note.reason}))
        .collect()
}

fn moves(moves: &[(String, String)]) -> Vec<Value> {
    moves
        .iter()
        .map(|(from, to)| json!({"from": from, "to": to}))
        .collect()
}
