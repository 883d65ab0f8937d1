//! The writer without a model: the best sentences of the sources, each with its citation, and nothing else.
//!
//! Sentences that stand together are quoted together, in their order; a second source is added when it is about as good and
//! says something else. When no sentence is good enough, the answer is that nothing was found.

use std::collections::BTreeSet;
use std::ops::Range;

use async_trait::async_trait;

use super::answer::{Draft, Task, WriteError, Writer, Written};
use super::grade::{Candidate, Grade};
use super::retrieve::Source;
use super::text::Lang;

/// Sentences of one answer, of its best passage, and of each further one.
const SENTENCES_MAX: usize = 6;
const BEST_PASSAGE: usize = 3;
const OTHER_PASSAGE: usize = 1;
/// How many more a passage may have when one leads to the next.
const COMPLETE: usize = 2;
/// Passages that are quoted.
const PASSAGES_MAX: usize = 3;

/// How far behind the best a neighbour may be that makes it complete, and a sentence elsewhere.
const NEIGHBOUR: f64 = 0.25;
const ELSEWHERE: f64 = 0.08;

/// Two sentences that share so much of their words say the same.
const SAME: f64 = 0.6;

/// Bytes of an answer, about.
const ANSWER_BYTES_MAX: usize = 1_500;

/// Quotes the best sentences.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extractive;

/// A sentence to quote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Quote {
    source: usize,
    range: Range<usize>,
}

#[async_trait]
impl Writer for Extractive {
    fn mode(&self) -> &'static str {
        "extractive"
    }

    async fn write(&self, task: &Task, draft: &mut Draft<'_>) -> Result<Written, WriteError> {
        if !task.grade.answerable() {
            draft.notice(&nothing(task)).await?;
            return Ok(Written::default());
        }
        quote(task, &task.grade, draft).await
    }
}

/// Quotes the best sentences.
pub(super) async fn quote(
    task: &Task,
    grade: &Grade,
    draft: &mut Draft<'_>,
) -> Result<Written, WriteError> {
    let sources = &task.context.sources;
    let mut before: Option<Quote> = None;
    for quote in choose(grade) {
        let gap = match &before {
            None => "",
            Some(before) => between(before, &quote, sources),
        };
        draft.quote(quote.source, quote.range.clone(), gap).await?;
        before = Some(quote);
    }
    Ok(Written {
        answered: true,
        ..Written::default()
    })
}

/// That there is no answer, in the language of the question.
fn nothing(task: &Task) -> String {
    match task.lang {
        Lang::Zh => format!("在“{}”中没有找到能回答这个问题的内容。", task.collection),
        Lang::En => format!("Nothing in `{}` answers this question.", task.collection),
    }
}

/// What stands between two quotes: a line break where the source has one, or another source begins.
fn between(before: &Quote, quote: &Quote, sources: &[Source]) -> &'static str {
    let text = &sources[quote.source].chunk.text;
    let gap = if before.source == quote.source {
        text.get(before.range.end..quote.range.start)
    } else {
        None
    };
    match gap {
        Some(gap) if !gap.contains('\n') => {
            let wide = text[..quote.range.start]
                .trim_end()
                .ends_with(|c: char| !c.is_ascii());
            if wide { "" } else { " " }
        }
        Some(gap) if gap.trim().is_empty() && !gap.contains("\n\n") => "\n",
        _ => "\n\n",
    }
}

/// The sentences of the answer, best passage first.
fn choose(grade: &Grade) -> Vec<Quote> {
    let Some(best) = grade.candidates.first() else {
        return Vec::new();
    };
    let mut chosen: Vec<Quote> = Vec::new();
    let mut said: Vec<&BTreeSet<String>> = Vec::new();
    let mut passages: Vec<(usize, usize)> = Vec::new();
    let mut bytes = 0;
    for lead in &grade.candidates {
        let place = (lead.source, lead.section);
        if lead.score < best.score - ELSEWHERE || passages.len() == PASSAGES_MAX {
            break;
        }
        if passages.contains(&place) || said.iter().any(|terms| alike(terms, &lead.terms)) {
            continue;
        }
        let most = if passages.is_empty() {
            BEST_PASSAGE
        } else {
            OTHER_PASSAGE
        };
        for sentence in passage(grade, lead, most) {
            if chosen.len() == SENTENCES_MAX
                || bytes + sentence.range.len() > ANSWER_BYTES_MAX && bytes > 0
            {
                return chosen;
            }
            bytes += sentence.range.len();
            said.push(&sentence.terms);
            chosen.push(Quote {
                source: sentence.source,
                range: sentence.range.clone(),
            });
        }
        passages.push(place);
    }
    chosen
}

/// A sentence with the ones that follow it under the same heading, then those before it, as long as they are good enough or
/// one leads to the next: `Run the command` is no answer without the command, nor the command a sentence without it.
fn passage<'a>(grade: &'a Grade, lead: &'a Candidate, most: usize) -> Vec<&'a Candidate> {
    let mut section: Vec<&Candidate> = grade
        .candidates
        .iter()
        .filter(|c| (c.source, c.section) == (lead.source, lead.section))
        .collect();
    section.sort_by_key(|c| c.range.start);
    let Some(at) = section.iter().position(|c| c.range == lead.range) else {
        return vec![lead];
    };
    let good = |c: &&Candidate| c.score >= lead.score - NEIGHBOUR;
    let (mut from, mut to) = (at, at + 1);
    let whole = most + COMPLETE;
    while from > 0 && to - from < whole && section[from - 1].opens {
        from -= 1;
    }
    while to < section.len() {
        let room = if section[to - 1].opens { whole } else { most };
        if to - from >= room || !section[to - 1].opens && !good(&section[to]) {
            break;
        }
        to += 1;
    }
    while to - from < most && from > 0 && good(&section[from - 1]) {
        from -= 1;
    }
    section[from..to].to_vec()
}

/// Whether two sentences share most of the words of the shorter one.
fn alike(a: &BTreeSet<String>, b: &BTreeSet<String>) -> bool {
    let shorter = a.len().min(b.len());
    shorter > 0 && a.intersection(b).count() as f64 >= SAME * shorter as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::grade::{Depth, SentenceVectors, grade};
    use crate::rag::retrieve::tests::source;

    fn answer(question: &str, texts: &[&str]) -> String {
        let sources: Vec<Source> = texts
            .iter()
            .zip(1..)
            .map(|(text, n)| source(&format!("d{n}"), n, text))
            .collect();
        let graded = grade(
            question,
            Lang::of(question),
            &sources,
            None,
            &SentenceVectors::default(),
            Depth::Order,
        );
        let quotes = choose(&graded);
        let mut written = String::new();
        let mut before: Option<&Quote> = None;
        for quote in &quotes {
            written.push_str(before.map_or("", |before| between(before, quote, &sources)));
            written.push_str(&sources[quote.source].chunk.text[quote.range.clone()]);
            before = Some(quote);
        }
        written
    }

    #[test]
    fn quotes_what_stands_together() {
        let text = "Freezing rows\n\nTo freeze rows, select the row below. Then choose View. The header stays.\n\nSpacing\n\n\
                    Spacing is set elsewhere.";
        assert_eq!(
            answer(
                "How do I freeze rows?",
                &[text, "Printers are in the system menu."]
            ),
            "To freeze rows, select the row below. Then choose View. The header stays."
        );
        let text = "8.4. Which files are in a package?\n\nTo list all the files provided by the installed package foo execute the \
                    command\n\ndpkg --listfiles foo\n\nThere is no undo.";
        assert_eq!(
            answer("Which files has an installed package?", &[text]),
            "To list all the files provided by the installed package foo execute the command\n\ndpkg --listfiles foo\n\n\
             There is no undo."
        );
        assert_eq!(
            answer(
                "如何冻结行？",
                &["冻结行\n\n先选择要冻结的行的下一行。然后点击“冻结”。"]
            ),
            "先选择要冻结的行的下一行。然后点击“冻结”。"
        );
    }

    #[test]
    fn a_repetition_is_not_quoted_twice() {
        let said = answer(
            "How do I freeze rows?",
            &[
                "To freeze rows, select the row below.",
                "To freeze the rows, select the row below it.",
            ],
        );
        assert_eq!(said, "To freeze rows, select the row below.");
    }
}
