//! Where a source says what a sentence says: as it stands there, or in other order with most of the same words.
//!
//! Pure functions. Compares words, not meanings.

use std::collections::BTreeSet;
use std::ops::Range;

use va_chunk::sentences;

use super::super::text::{bare, compared, trimmed};

/// Share of a sentence's words that its source must have.
const SUPPORT: f64 = 0.6;

/// Where a source says what a sentence says.
pub fn locate(sentence: &str, text: &str) -> Option<Range<usize>> {
    if let Some(range) = verbatim(sentence, text) {
        return Some(range);
    }
    let claimed = compared(sentence);
    if claimed.is_empty() {
        return None;
    }
    let is_number = |term: &&String| term.starts_with(|c: char| c.is_ascii_digit());
    let numbers: BTreeSet<&String> = claimed.iter().filter(is_number).collect();
    let sentences: Vec<(Range<usize>, BTreeSet<String>)> = sentences(text)
        .map(|range| trimmed(text, range))
        .filter(|range| !range.is_empty())
        .map(|range| (range.clone(), compared(&text[range])))
        .collect();
    let mut best: Option<(usize, Range<usize>)> = None;
    for window in 1..=2 {
        for run in sentences.windows(window) {
            let has = |term: &String| run.iter().any(|(_, terms)| terms.contains(term));
            let shared = claimed.iter().filter(|term| has(term)).count();
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let better = best.as_ref().is_none_or(|(most, _)| shared > *most);
            if better && numbers.iter().all(|number| has(number)) {
                best = Some((shared, first.0.start..last.0.end));
            }
        }
    }
    best.filter(|(shared, _)| *shared as f64 >= SUPPORT * claimed.len() as f64)
        .map(|(_, range)| range)
}

/// Where a sentence stands in a text, whatever its spacing, punctuation and case.
fn verbatim(sentence: &str, text: &str) -> Option<Range<usize>> {
    const LETTERS_MIN: usize = 4;
    let wanted = bare(sentence);
    if wanted.chars().count() < LETTERS_MIN {
        return None;
    }
    let mut plain = String::with_capacity(text.len());
    // For each byte of `plain` the character of the text that it comes from.
    let mut origin: Vec<Range<usize>> = Vec::with_capacity(text.len());
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_alphanumeric()) {
        for lower in c.to_lowercase() {
            plain.push(lower);
            origin.resize(plain.len(), at..at + c.len_utf8());
        }
    }
    let start = plain.find(&wanted)?;
    let first = origin.get(start)?.start;
    let last = origin.get(start + wanted.len() - 1)?.end;
    // The sentence's own full stop belongs to the quote.
    let stop = text[last..]
        .chars()
        .next()
        .filter(|c| ".。!！?？；;".contains(*c));
    Some(first..last + stop.map_or(0, char::len_utf8))
}
