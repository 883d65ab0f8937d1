//! Where a query matched a text, and which part of the text to show.
//!
//! Works on the text alone, with the analysis of the index, so a hit of the vector store is highlighted the same way.
//! All positions are Unicode characters, end exclusive, as in [`va_catalog::ChunkRecord`].

use std::collections::HashSet;

use crate::analysis::{Analysis, Kind, Term, is_stop_word};
use crate::query::cut;

/// The parts of `text` that match words of `query`: ranges of characters in order, merged where they touch.
pub fn highlights(text: &str, query: &str) -> Vec<(usize, usize)> {
    let analysis = Analysis::default();
    let asked = analysis.terms(cut(query));
    // A frequent word, or a pair that has a part of one, is shown only if the query is made of nothing better.
    let frequent: Vec<_> = (asked.iter())
        .filter(|term| term.kind == Kind::Word && is_stop_word(&term.text))
        .map(|term| term.start..term.end)
        .collect();
    let apart = |term: &Term| {
        frequent
            .iter()
            .all(|f| term.end <= f.start || f.end <= term.start)
    };
    let telling: HashSet<_> = (asked.iter())
        .filter(|term| term.kind != Kind::Single && apart(term))
        .map(|term| term.text.as_str())
        .collect();
    let wanted = match telling.is_empty() {
        true => asked.iter().map(|term| term.text.as_str()).collect(),
        false => telling,
    };
    // Next to longer words, a character counts only where it is a word too: `行` in `冻结 行`, not in `进行`.
    let longer = wanted.iter().any(|term| term.chars().nth(1).is_some());
    let mut bytes: Vec<(usize, usize)> = analysis
        .terms(text)
        .into_iter()
        .filter(|term| wanted.contains(term.text.as_str()))
        .filter(|term| !(longer && term.kind == Kind::Single))
        .map(|term| (term.start, term.end))
        .collect();
    bytes.sort_unstable();
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for (start, end) in bytes {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    in_chars(text, &merged)
}

/// Sorted byte ranges as ranges of characters.
fn in_chars(text: &str, ranges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let (mut byte, mut count) = (0, 0);
    let mut chars_before = |end: usize| {
        count += text.get(byte..end).map_or(0, |piece| piece.chars().count());
        byte = end;
        count
    };
    ranges
        .iter()
        .map(|&(start, end)| (chars_before(start), chars_before(end)))
        .collect()
}

/// The range of at most `chars_max` characters of `text` to show: whole sentences where the most different highlights
/// are, the earlier ones if equal. A sentence that is too long is cut around its highlights.
pub fn snippet(text: &str, highlights: &[(usize, usize)], chars_max: usize) -> (usize, usize) {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= chars_max {
        return trim(&chars, 0, chars.len());
    }
    let worth = |start: usize, end: usize| {
        let mut seen = HashSet::new();
        let inside = highlights.iter().filter(|h| start <= h.0 && h.1 <= end);
        inside
            .filter_map(|&(from, to)| chars.get(from..to))
            // A repetition is worth something, but less than another word.
            .map(|part| part.len() * if seen.insert(part) { 4 } else { 1 })
            .sum::<usize>()
    };
    let sentences = sentences(&chars);
    let mut best = (0, 0..0);
    for (i, &(start, _)) in sentences.iter().enumerate() {
        let fits = |&&(_, end): &&(usize, usize)| end - start <= chars_max;
        let window = match sentences[i..].iter().take_while(fits).last() {
            Some(&(_, end)) => start..end,
            None => {
                let end = sentences[i].1;
                let begin = densest(highlights, start, end, chars_max, &worth);
                at_words(&chars, begin, end.min(begin + chars_max))
            }
        };
        let value = worth(window.start, window.end);
        if value > best.0 || best.1.is_empty() {
            best = (value, window);
        }
    }
    trim(&chars, best.1.start, best.1.end)
}

/// Where the best window inside the long sentence `start..end` begins: a little before one of the highlights.
fn densest(
    highlights: &[(usize, usize)],
    start: usize,
    end: usize,
    chars_max: usize,
    worth: &impl Fn(usize, usize) -> usize,
) -> usize {
    let lead = chars_max / 5;
    let latest = end - chars_max;
    let begins = highlights
        .iter()
        .filter(|h| start <= h.0 && h.1 <= end)
        .map(|h| h.0.saturating_sub(lead).clamp(start, latest));
    let mut best = (0, start);
    for begin in begins {
        let value = worth(begin, begin + chars_max);
        if value > best.0 {
            best = (value, begin);
        }
    }
    best.1
}

/// Moves the ends of a window inwards to the next space, if one is near, so that no word is cut.
fn at_words(chars: &[char], start: usize, end: usize) -> std::ops::Range<usize> {
    const NEAR: usize = 15;
    let cuts = |at: usize| {
        at > 0
            && at < chars.len()
            && chars[at - 1].is_ascii_alphanumeric()
            && chars[at].is_ascii_alphanumeric()
    };
    let near = (end - start).min(NEAR);
    let mut range = start..end;
    if cuts(start) {
        range.start = (start..start + near).find(|&i| !cuts(i)).unwrap_or(start);
    }
    if cuts(end) {
        let back = (end - near..end).rev().find(|&i| !cuts(i));
        range.end = back.filter(|&i| i > range.start).unwrap_or(end);
    }
    range
}

/// The sentences of a text, which together cover it. A line break ends a sentence.
fn sentences(chars: &[char]) -> Vec<(usize, usize)> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for i in 0..chars.len() {
        let next = chars.get(i + 1).copied().unwrap_or('\n');
        let closes = |ch| matches!(ch, '”' | '"' | '」' | '』' | '）' | ')');
        let ends = match chars[i] {
            '\n' => true,
            '。' | '！' | '？' | '；' => !closes(next),
            '.' | '!' | '?' | ';' => next.is_whitespace(),
            ch if closes(ch) => i > 0 && matches!(chars[i - 1], '。' | '！' | '？'),
            _ => false,
        };
        if ends {
            sentences.push((start, i + 1));
            start = i + 1;
        }
    }
    if start < chars.len() {
        sentences.push((start, chars.len()));
    }
    sentences
}

fn trim(chars: &[char], start: usize, end: usize) -> (usize, usize) {
    let solid = |&i: &usize| !chars[i].is_whitespace();
    let first = (start..end).find(solid);
    let last = (start..end).rev().find(solid);
    match (first, last) {
        (Some(first), Some(last)) => (first, last + 1),
        _ => (start, start),
    }
}
