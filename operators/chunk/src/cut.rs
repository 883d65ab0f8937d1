//! Cuts a stretch of text that is too long for one chunk: at line ends, else at clause punctuation, else between words,
//! else between tokens; never inside a character, and between two that are drawn as one only when they fill a chunk.
//!
//! Each step sees only what the step before left too long, and the counter is never given more than
//! [`Limits::bytes_max`] bytes at once, so the time is linear in the text.

use std::ops::Range;

use unicode_segmentation::GraphemeCursor;

use crate::chunk::TokenCounter;
use crate::options::Limits;

/// Calls `emit` with ranges that cover all visible text of `range`, in order, and the tokens of each: one range when all
/// of it fits. A range is above `tokens_max` only if it is a single character.
pub(crate) fn cut(
    text: &str,
    range: Range<usize>,
    limits: &Limits,
    counter: &dyn TokenCounter,
    emit: &mut dyn FnMut(Range<usize>, usize),
) {
    let mut cutter = Cutter {
        text,
        limits,
        counter,
        emit,
    };
    cutter.whole_or(range, Level::Lines);
}

/// `range` without white space at both ends.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let slice = &text[range.clone()];
    let start = range.start + (slice.len() - slice.trim_start().len());
    let length = slice.trim().len();
    start..start + length
}

#[derive(Clone, Copy)]
enum Level {
    Lines,
    Clauses,
    Tokens,
}

struct Cutter<'a> {
    text: &'a str,
    limits: &'a Limits,
    counter: &'a dyn TokenCounter,
    emit: &'a mut dyn FnMut(Range<usize>, usize),
}

impl Cutter<'_> {
    /// Emits the range if it fits, else cuts it at `level`.
    fn whole_or(&mut self, range: Range<usize>, level: Level) {
        let range = trim(self.text, range);
        if range.is_empty() {
            return;
        }
        if range.len() <= self.limits.bytes_max {
            let tokens = self.counter.count(&self.text[range.clone()]);
            if tokens <= self.limits.tokens_max {
                (self.emit)(range, tokens);
                return;
            }
        }
        match level {
            Level::Lines => self.fragments(range, |_, c| c == '\n', Level::Clauses),
            Level::Clauses => self.fragments(range, is_clause_end, Level::Tokens),
            Level::Tokens => self.tokens(range),
        }
    }

    /// Cuts after each character for which `ends(rest, character)` holds, and hands what is still too long to `next`.
    fn fragments(&mut self, range: Range<usize>, ends: fn(&str, char) -> bool, next: Level) {
        let mut start = range.start;
        let slice = &self.text[range.clone()];
        for (at, c) in slice.char_indices() {
            let after = range.start + at + c.len_utf8();
            // Small fragments are left together: counting each would cost more than it gains.
            if after - start >= self.limits.grain_bytes && ends(&self.text[after..range.end], c) {
                self.whole_or(start..after, next);
                start = after;
            }
        }
        if start == range.start {
            // Nothing to cut at, so the range is known to be too long: do not count it again.
            match next {
                Level::Lines | Level::Clauses => {
                    self.fragments(range, is_clause_end, Level::Tokens)
                }
                Level::Tokens => self.tokens(range),
            }
        } else {
            self.whole_or(start..range.end, next);
        }
    }

    /// Cuts between words, or between tokens where there are no words.
    fn tokens(&mut self, range: Range<usize>) {
        let mut start = range.start;
        while start < range.end {
            let rest = trim(self.text, start..range.end.min(self.window_end(start)));
            if rest.is_empty() {
                start = rest.end.max(self.window_end(start)).min(range.end);
                continue;
            }
            let (end, tokens) = self.fitting(rest.clone(), rest.end >= range.end);
            (self.emit)(trim(self.text, rest.start..end), tokens);
            start = end;
        }
    }

    /// Four bytes a token: what most text has, so that little is tokenized in vain.
    fn window_end(&self, start: usize) -> usize {
        let bytes = (self.limits.tokens_max * 4).clamp(16, self.limits.bytes_max);
        self.text.floor_char_boundary(start + bytes)
    }

    /// Where the longest good prefix of `window` that fits ends, and its tokens. At least one character. `last` says
    /// that nothing follows the window, so that its end is a good place.
    fn fitting(&self, window: Range<usize>, last: bool) -> (usize, usize) {
        let slice = &self.text[window.clone()];
        let offsets = self.counter.offsets(slice);
        let first_end = window.start + slice.chars().next().map_or(0, char::len_utf8);
        let mut allowed = self.limits.tokens_max;
        let mut step = 1;
        loop {
            let end = match offsets.get(allowed) {
                Some((start, _)) => {
                    let limit = slice.floor_char_boundary((*start).min(slice.len()));
                    good_border(self.text, window.start, window.start + limit)
                }
                None if last => window.end,
                None => good_border(self.text, window.start, window.end),
            };
            let end = end.max(first_end);
            let tokens = self.counter.count(self.text[window.start..end].trim());
            if tokens <= self.limits.tokens_max || end == first_end {
                return (end, tokens);
            }
            // The prefix alone has more tokens than inside the window, or the offsets are coarse.
            allowed = allowed.min(offsets.len());
            allowed = (allowed * self.limits.tokens_max / tokens).min(allowed.saturating_sub(step));
            step *= 2;
            if allowed == 0 {
                let tokens = self.counter.count(&self.text[window.start..first_end]);
                return (first_end, tokens);
            }
        }
    }
}

/// A border at or before `limit`: after white space in the second half of the stretch from `start`, else between two
/// drawn characters near it.
fn good_border(text: &str, start: usize, limit: usize) -> usize {
    let half = text.floor_char_boundary(start + (limit - start) / 2);
    let second_half = &text[half..limit];
    if let Some(at) = second_half.rfind(char::is_whitespace) {
        return half + at; // Callers trim, so before or after the white space is the same.
    }
    // A look at a few bytes is enough: longer clusters are no writing, and are cut.
    const CLUSTER_BYTES: usize = 64;
    let low = text.floor_char_boundary(limit.saturating_sub(CLUSTER_BYTES).max(start));
    let high = text.floor_char_boundary(limit + CLUSTER_BYTES);
    let near = &text[low..high];
    let mut at = limit;
    while at > low {
        let mut cursor = GraphemeCursor::new(at - low, near.len(), true);
        if cursor.is_boundary(near, 0).unwrap_or(true) {
            return at;
        }
        at = text.floor_char_boundary(at - 1);
    }
    limit
}

/// Clause punctuation, and the borders of table cells. ASCII marks count only before white space: `1,000`.
fn is_clause_end(rest: &str, c: char) -> bool {
    match c {
        '，' | '、' | '；' | '：' | '。' | '！' | '？' | '،' | '\t' | '|' | '｜' => true,
        ',' | ';' | ':' | '.' | '!' | '?' | ')' | '—' | '–' => {
            rest.chars().next().is_none_or(char::is_whitespace)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a byte: the hardest that a byte-level tokenizer can be.
    struct Bytes;

    impl TokenCounter for Bytes {
        fn count(&self, text: &str) -> usize {
            text.len()
        }
        fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
            (0..text.len()).map(|at| (at, at + 1)).collect()
        }
    }

    fn pieces(text: &str, tokens_max: usize) -> Vec<&str> {
        let limits = Limits::new(&crate::ChunkOptions {
            tokens_max,
            ..Default::default()
        });
        let mut found = Vec::new();
        cut(text, 0..text.len(), &limits, &Bytes, &mut |range, _| {
            found.push(&text[range]);
        });
        found
    }

    #[test]
    fn cuts_at_the_best_border() {
        assert_eq!(pieces("fits", 8), ["fits"]);
        assert_eq!(pieces("one, two, three", 8), ["one,", "two,", "three"]);
        assert_eq!(pieces("first line\nnext", 12), ["first line", "next"]);
        assert_eq!(pieces("alpha beta gamma", 12), ["alpha beta", "gamma"]);
        assert_eq!(pieces("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    }

    #[test]
    fn characters_and_clusters_stay_whole() {
        assert_eq!(pieces("字字字", 4), ["字", "字", "字"]);
        assert_eq!(
            pieces("e\u{301}e\u{301}e\u{301}", 5),
            ["e\u{301}", "e\u{301}", "e\u{301}"]
        );
        // One character above the limit is kept: there is nothing left to cut.
        assert_eq!(pieces("🦀🦀", 2), ["🦀", "🦀"]);
    }
}
