//! Checks what a writer writes: every citation points to bytes of a source that say it, and what nothing supports is marked.
//!
//! [`Checker`] takes an answer as it is written, in pieces of any length, and gives back what to send on: the text with its
//! markers written as `[n]`, a [`Citation`] for each sentence that its source supports, and an [`Unsupported`] for each that
//! none does. A sentence is supported when it stands in the source as it is, or when one or two sentences of the source have
//! most of its words and all of its numbers. That compares words, not meanings: it does not see a negation, and not a
//! translation. A marker of a source that does not exist is not passed on.
//!
//! A pure state machine: no clock, no store, no model.

mod locate;
mod marker;

use std::ops::Range;

use serde::Serialize;
use va_catalog::{ChunkId, DocumentRef};
use va_chunk::sentences;

use super::retrieve::Source;
use super::text::trimmed;
use locate::locate;
use marker::{LABELS, MARKER_BYTES_MAX, label_begun, numbers};

/// A sentence of the answer and the place that it comes from.
#[derive(Debug, Clone, Serialize)]
pub struct Citation {
    /// The number in the answer's `[n]`.
    pub n: u32,
    pub document: DocumentRef,
    pub chunk: CitedChunk,
    /// Exactly the chunk's text at `bytes`.
    pub quote: String,
    /// Byte range of the quote in the chunk's text.
    pub bytes: (usize, usize),
    /// Characters of the answer that it stands for.
    pub answer: (usize, usize),
}

/// The cited chunk.
#[derive(Debug, Clone, Serialize)]
pub struct CitedChunk {
    pub id: ChunkId,
    pub title_path: Vec<String>,
    pub page: Option<u32>,
    /// Character offsets in the document's text.
    pub start: u64,
    pub end: u64,
    pub text: String,
}

/// A sentence of the answer that no source supports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unsupported {
    pub text: String,
    /// Characters of the answer.
    pub answer: (usize, usize),
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It names no source.
    NoCitation,
    /// It names a source that was not given.
    NoSuchSource,
    /// The source that it names does not say so.
    NotInSource,
}

/// What to do with a piece of the answer.
#[derive(Debug, Clone)]
pub enum Finding {
    Text(String),
    Citation(Box<Citation>),
    Unsupported(Unsupported),
}

/// Checks one answer.
pub struct Checker<'a> {
    sources: &'a [Source],
    /// Text that may be the beginning of a marker.
    held: String,
    open: Open,
    /// Characters that have been sent on.
    sent: usize,
    findings: Vec<Finding>,
}

/// The sentence that is being written, and what came with it in one piece.
#[derive(Default)]
struct Open {
    text: String,
    /// Where stretches of `text` are in the answer: bytes of `text`, characters of the answer.
    places: Vec<(usize, usize)>,
    marks: Vec<u32>,
}

impl Open {
    /// Where a byte of the text is in the answer; an end that touches the next stretch belongs to the one before.
    fn place(&self, byte: usize, end: bool) -> usize {
        let before =
            |(start, _): &&(usize, usize)| if end { *start < byte } else { *start <= byte };
        let stretch = self.places.iter().take_while(before).last();
        let (start, place) = stretch.or(self.places.first()).copied().unwrap_or((0, 0));
        place + self.text.get(start..byte).map_or(0, |t| t.chars().count())
    }

    /// Forgets the text before `byte`.
    fn forget(&mut self, byte: usize) {
        let first = self.place(byte, false);
        let rest: Vec<(usize, usize)> = self
            .places
            .iter()
            .filter(|(start, _)| *start > byte)
            .map(|(start, place)| (start - byte, *place))
            .collect();
        self.places = vec![(0, first)];
        self.places.extend(rest);
        self.text.drain(..byte);
    }

    fn ends(&self) -> bool {
        let text = self
            .text
            .trim_end()
            .trim_end_matches(['"', '”', '’', ')', '）', '」', '』', '*']);
        text.ends_with(['.', '。', '!', '！', '?', '？', '；', ';', '…'])
    }
}

impl<'a> Checker<'a> {
    /// For an answer from these sources.
    pub fn new(sources: &'a [Source]) -> Self {
        Self {
            sources,
            held: String::new(),
            open: Open::default(),
            sent: 0,
            findings: Vec::new(),
        }
    }

    /// More text of the answer.
    pub fn text(&mut self, delta: &str) -> Vec<Finding> {
        self.held.push_str(delta);
        self.read(false);
        std::mem::take(&mut self.findings)
    }

    /// Bytes of source number `source` (an index) as a sentence of its own, after `before`.
    pub fn quote(&mut self, source: usize, range: Range<usize>, before: &str) -> Vec<Finding> {
        self.close_all();
        let quoted = self
            .sources
            .get(source)
            .and_then(|source| Some((source, source.chunk.text.get(range.clone())?)));
        if let Some((source, quote)) = quoted {
            self.send(before);
            let start = self.sent;
            let words: Vec<&str> = quote.split_whitespace().collect();
            self.send(&words.join(" "));
            let answer = (start, self.sent);
            self.send(&format!("[{}]", source.n));
            let citation = cited(source, range, answer);
            self.findings.push(Finding::Citation(Box::new(citation)));
        } else {
            // Never sent to a client: what cannot be shown to be there is not quoted.
            tracing::error!(source, ?range, "a quote is not in its source");
        }
        std::mem::take(&mut self.findings)
    }

    /// Text that claims nothing.
    pub fn notice(&mut self, text: &str) -> Vec<Finding> {
        self.close_all();
        self.send(text);
        std::mem::take(&mut self.findings)
    }

    /// The end of the answer.
    pub fn finish(&mut self) -> Vec<Finding> {
        self.close_all();
        std::mem::take(&mut self.findings)
    }

    fn close_all(&mut self) {
        self.read(true);
        let marks = std::mem::take(&mut self.open.marks);
        self.close(0..self.open.text.len(), &marks);
        self.open = Open::default();
    }

    fn send(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.sent += text.chars().count();
        // Deltas that follow each other at once go as one.
        if let Some(Finding::Text(last)) = self.findings.last_mut() {
            last.push_str(text);
        } else {
            self.findings.push(Finding::Text(text.to_owned()));
        }
    }

    /// Takes text and markers from what is held; at the `end` nothing is held back.
    fn read(&mut self, end: bool) {
        loop {
            let Some(at) = self.held.find(['[', '［', '【']) else {
                let keep = if end { 0 } else { label_begun(&self.held) };
                let rest = self.held.split_off(self.held.len() - keep);
                let text = std::mem::replace(&mut self.held, rest);
                self.add(&text);
                return;
            };
            let opening = self.held[at..].chars().next().map_or(1, char::len_utf8);
            let inside = &self.held[at + opening..];
            let closing = inside
                .char_indices()
                .take_while(|(i, _)| *i <= MARKER_BYTES_MAX)
                .find(|(_, c)| matches!(c, ']' | '］' | '】'));
            let marks = closing.and_then(|(close, _)| numbers(&inside[..close]));
            match (closing, marks) {
                (Some((close, c)), Some(marks)) => {
                    let after = at + opening + close + c.len_utf8();
                    let rest = self.held.split_off(after);
                    let mut text = std::mem::replace(&mut self.held, rest);
                    text.truncate(at);
                    let label = LABELS
                        .iter()
                        .find_map(|label| text.strip_suffix(label).map(str::len));
                    text.truncate(label.unwrap_or(text.len()));
                    self.add(&text);
                    marks.into_iter().for_each(|n| self.mark(n));
                }
                // More may come.
                (None, _) if !end && inside.len() <= MARKER_BYTES_MAX => {
                    let label = LABELS
                        .iter()
                        .find_map(|label| self.held[..at].strip_suffix(label).map(str::len));
                    let rest = self.held.split_off(label.unwrap_or(at));
                    let text = std::mem::replace(&mut self.held, rest);
                    self.add(&text);
                    return;
                }
                _ => {
                    let rest = self.held.split_off(at + opening);
                    let text = std::mem::replace(&mut self.held, rest);
                    self.add(&text);
                }
            }
        }
    }

    fn mark(&mut self, n: u32) {
        if self.sources.iter().any(|source| source.n == n) {
            self.send(&format!("[{n}]"));
        }
        self.open.marks.push(n);
    }

    /// Text without markers.
    fn add(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let visible = text.chars().any(|c| !c.is_whitespace());
        if visible && !self.open.marks.is_empty() && self.open.ends() {
            let marks = std::mem::take(&mut self.open.marks);
            self.close(0..self.open.text.len(), &marks);
            self.open = Open::default();
        }
        self.open.places.push((self.open.text.len(), self.sent));
        self.send(text);
        self.open.text.push_str(text);
        // White space after the last sentence says nothing yet: its marker may follow.
        let ranges: Vec<Range<usize>> = sentences(&self.open.text)
            .filter(|range| !self.open.text[range.clone()].trim().is_empty())
            .collect();
        let Some((last, whole)) = ranges.split_last() else {
            return;
        };
        for range in whole {
            let marks = std::mem::take(&mut self.open.marks);
            self.close(range.clone(), &marks);
        }
        if last.start > 0 {
            self.open.forget(last.start);
        }
    }

    /// Checks a sentence of the open text.
    fn close(&mut self, range: Range<usize>, marks: &[u32]) {
        let range = trimmed(&self.open.text, range);
        let sentence = self.open.text[range.clone()].to_owned();
        if !sentence.chars().any(char::is_alphanumeric) {
            return;
        }
        let answer = (
            self.open.place(range.start, false),
            self.open.place(range.end, true),
        );
        let mut reason = Some(Reason::NoCitation);
        for n in marks {
            let Some(source) = self.sources.iter().find(|source| source.n == *n) else {
                reason = reason.map(|_| Reason::NoSuchSource);
                continue;
            };
            match locate(&sentence, &source.chunk.text) {
                Some(found) => {
                    reason = None;
                    let citation = cited(source, found, answer);
                    self.findings.push(Finding::Citation(Box::new(citation)));
                }
                None => reason = reason.map(|_| Reason::NotInSource),
            }
        }
        if let Some(reason) = reason {
            self.findings.push(Finding::Unsupported(Unsupported {
                text: sentence,
                answer,
                reason,
            }));
        }
    }
}

fn cited(source: &Source, range: Range<usize>, answer: (usize, usize)) -> Citation {
    let chunk = &source.chunk;
    Citation {
        n: source.n,
        document: source.document.clone(),
        chunk: CitedChunk {
            id: chunk.id,
            title_path: chunk.title_path.clone(),
            page: chunk.page,
            start: chunk.start,
            end: chunk.end,
            text: chunk.text.clone(),
        },
        quote: chunk.text[range.clone()].to_owned(),
        bytes: (range.start, range.end),
        answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::retrieve::tests::source;

    const FREEZE: &str = "冻结行或列。先选择下一行。 然后选择“视图 - 冻结行列”。";
    const CELLS: &str =
        "A cell holds 32 values. Select the cell below the row, then choose Freeze. Save it.";

    /// The text that arrives, the citations as `n quote`, the unsupported as `reason text`, whatever the pieces are.
    fn check(answer: &str) -> (String, Vec<String>, Vec<String>) {
        let sources = [source("a", 1, FREEZE), source("b", 2, CELLS)];
        let whole = judge(&sources, &[answer]);
        let chars: Vec<String> = answer.chars().map(String::from).collect();
        let single: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(judge(&sources, &single), whole, "character by character");
        whole
    }

    fn judge(sources: &[Source], pieces: &[&str]) -> (String, Vec<String>, Vec<String>) {
        let mut checker = Checker::new(sources);
        let mut findings = Vec::new();
        for piece in pieces {
            findings.extend(checker.text(piece));
        }
        findings.extend(checker.finish());
        let (mut text, mut cited, mut bad) = (String::new(), Vec::new(), Vec::new());
        for finding in findings {
            match finding {
                Finding::Text(more) => text.push_str(&more),
                Finding::Citation(c) => {
                    let chunk = &c.chunk.text;
                    assert_eq!(
                        &chunk[c.bytes.0..c.bytes.1],
                        c.quote,
                        "the quote is where it says"
                    );
                    cited.push((c.n, c.quote.clone(), c.answer));
                }
                Finding::Unsupported(u) => bad.push(u),
            }
        }
        let slice = |(from, to): (usize, usize)| -> String {
            text.chars().skip(from).take(to - from).collect()
        };
        let cited = cited
            .iter()
            .map(|(n, quote, at)| format!("{n} {quote} <- {}", slice(*at)))
            .collect();
        let bad = bad
            .iter()
            .map(|u| {
                assert_eq!(
                    slice(u.answer).replace("[1]", "").replace("[2]", ""),
                    u.text
                );
                format!("{:?} {}", u.reason, u.text)
            })
            .collect();
        (text, cited, bad)
    }

    #[test]
    fn markers_in_every_form() {
        let (text, cited, bad) =
            check("先选择下一行。[1]然后选择“视图 - 冻结行列”来源[1]。Save it.【2】");
        assert_eq!(
            text,
            "先选择下一行。[1]然后选择“视图 - 冻结行列”[1]。Save it.[2]"
        );
        assert_eq!(
            cited,
            [
                "1 先选择下一行。 <- 先选择下一行。",
                "1 然后选择“视图 - 冻结行列 <- 然后选择“视图 - 冻结行列”[1]。",
                "2 Save it. <- Save it.",
            ]
        );
        assert_eq!(bad, Vec::<String>::new());
        let (text, cited, _) =
            check("Choose Freeze after selecting the cell below the row [Source 2, 1].");
        assert_eq!(
            text,
            "Choose Freeze after selecting the cell below the row [2][1]."
        );
        assert_eq!(cited.len(), 1, "{cited:?}");
    }

    #[test]
    fn what_nothing_supports_is_marked() {
        let (text, cited, bad) = check(
            "A cell holds 64 values. [2] The moon is cheese [2]. Select the cell below the row.[7] No source here. \
             Save it. [2]",
        );
        assert_eq!(
            bad,
            [
                "NotInSource A cell holds 64 values.",
                "NotInSource The moon is cheese .",
                "NoSuchSource Select the cell below the row.",
                "NoCitation No source here.",
            ]
        );
        assert_eq!(cited, ["2 Save it. <- Save it."]);
        assert!(!text.contains("[7]"), "{text}");
    }

    #[test]
    fn brackets_that_are_no_markers_stay() {
        let (text, _, _) =
            check("Use [Ctrl] and a[i] [see the long note that is no marker at all, really] [");
        assert_eq!(
            text,
            "Use [Ctrl] and a[i] [see the long note that is no marker at all, really] ["
        );
        let (text, _, _) = check("Open Source and S");
        assert_eq!(text, "Open Source and S");
    }

    #[test]
    fn a_quote_is_not_read_for_markers() {
        let sources = [source("a", 1, "See [2] for more.\nDone.")];
        let mut checker = Checker::new(&sources);
        let mut findings = checker.quote(0, 0..17, "");
        findings.extend(checker.quote(0, 18..23, "\n"));
        findings.extend(checker.quote(0, 18..99, ""));
        findings.extend(checker.finish());
        let mut text = String::new();
        let mut quotes = Vec::new();
        for finding in findings {
            match finding {
                Finding::Text(more) => text.push_str(&more),
                Finding::Citation(c) => quotes.push(c.quote),
                Finding::Unsupported(u) => panic!("{u:?}"),
            }
        }
        assert_eq!(text, "See [2] for more.[1]\nDone.[1]");
        assert_eq!(quotes, ["See [2] for more.", "Done."]);
    }
}
