//! What a run tells: a table of its faults and the judge's findings, for people and for RELIABILITY.md.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::faults::Fault;
use super::oracle::Verdict;

pub struct Played {
    pub fault: Fault,
    /// From the fault until everything that was there at that moment had been consumed.
    pub recovered: Duration,
}

pub struct Report {
    pub seed: u64,
    pub played: Vec<Played>,
    pub verdict: Verdict,
    pub took: Duration,
}

/// Between these the file is made; the rest of it is written by hand.
const MARKS: [&str; 2] = ["<!-- made by `make chaos` -->\n", "<!-- end -->\n"];

impl Report {
    /// Puts the report between the marks of the file.
    pub fn write(&self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; a report goes into a page that is there",
                path.display()
            )
        });
        let [begin, end] = MARKS.map(|mark| text.find(mark).expect("the file has the marks"));
        let made = format!("{}{}{self}{}", &text[..begin], MARKS[0], &text[end..]);
        std::fs::write(path, made).unwrap();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, kills) = (
            &self.verdict,
            self.played
                .iter()
                .map(|played| played.fault.kills())
                .sum::<usize>(),
        );
        writeln!(
            f,
            "Seed {}: {} faults, {kills} processes killed, {:.0} minutes.\n",
            self.seed,
            self.played.len(),
            self.took.as_secs_f64() / 60.0
        )?;
        let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for played in &self.played {
            kinds
                .entry(played.fault.kind())
                .or_default()
                .push(played.recovered.as_secs_f64());
        }
        writeln!(
            f,
            "| fault | times | everything before it consumed after, median | worst |"
        )?;
        writeln!(f, "|---|---|---|---|")?;
        for (kind, mut seconds) in kinds {
            seconds.sort_by(f64::total_cmp);
            let (median, worst) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
            writeln!(
                f,
                "| {kind} | {} | {median:.1} s | {worst:.1} s |",
                seconds.len()
            )?;
        }
        writeln!(f, "\n| what was checked | of | found |\n|---|---|---|")?;
        for (what, of, found) in [
            (
                "acknowledged events that are not in their topic",
                verdict.events,
                verdict.never_stored,
            ),
            (
                "events lost on the way to the output",
                verdict.events,
                verdict.lost,
            ),
            (
                "events doubled, in the input or the output",
                verdict.events,
                verdict.doubled,
            ),
            (
                "events of a key and partition out of order",
                verdict.events,
                verdict.overtaken,
            ),
            (
                "totals that differ from a recomputation",
                verdict.keys,
                verdict.wrong_totals,
            ),
            (
                "documents with another content than the last acknowledged",
                verdict.documents,
                verdict.wrong_documents,
            ),
            (
                "collections whose catalog, vectors and full text disagree",
                2,
                verdict.disagreements,
            ),
        ] {
            writeln!(f, "| {what} | {of} | **{found}** |")?;
        }
        writeln!(
            f,
            "\n{} events were in calls that ended in an error; {} of them are there, once.",
            verdict.in_doubt, verdict.in_doubt_there
        )
    }
}
