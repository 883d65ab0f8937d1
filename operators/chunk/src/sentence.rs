//! Where sentences end, in Chinese, English and their mixtures.
//!
//! The sentence rules of Unicode (UAX #29) are not used because they end a sentence at every line break, which tears
//! text that was wrapped by hand or comes from a PDF, and know no abbreviations. Here a line break ends a sentence only
//! before a blank line or a list mark. One pass, constant look-behind, so linear time on any input.

use std::ops::Range;

/// Words before a full stop that do not end a sentence.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "gen", "col", "sgt", "capt", "lt", "rev", "hon",
    "messrs", "vs", "cf", "viz", "e.g", "eg", "i.e", "ie", "incl", "resp", "esp",
];

/// The same, but only before a number: `Fig. 3` goes on, `the answer is no. We ...` does not.
const ABBREVIATIONS_OF_NUMBERS: &[&str] = &[
    "no", "nos", "fig", "figs", "eq", "eqs", "vol", "ch", "sec", "art", "p", "pp", "pg", "ver",
    "approx", "ca", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov",
    "dec",
];

/// The sentences of `text`, as byte ranges that follow each other without gap and cover it; white space after a
/// sentence belongs to the next one.
pub fn sentences(text: &str) -> Sentences<'_> {
    Sentences {
        text,
        start: 0,
        quoted: false,
    }
}

/// Iterator made by [`sentences`].
#[derive(Debug, Clone)]
pub struct Sentences<'a> {
    text: &'a str,
    start: usize,
    /// Inside straight double quotes, which alone do not tell where they open and close.
    quoted: bool,
}

impl Iterator for Sentences<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        if self.start >= bytes.len() {
            return None;
        }
        let start = self.start;
        let mut at = start;
        while at < bytes.len() {
            match bytes[at] {
                b'\n' if ends_paragraph(bytes, at) => {
                    self.quoted = false;
                    at += 1;
                    break;
                }
                b'"' => {
                    self.quoted = !self.quoted;
                    at += 1;
                }
                b'.' | b'!' | b'?' => {
                    let run = Run::read(self.text, at, &mut self.quoted);
                    at = run.end;
                    if run.ends_sentence(self.text, start) {
                        break;
                    }
                }
                // First bytes of the terminators that are not ASCII.
                0xD8 | 0xDB | 0xE0..=0xE3 | 0xEF => match char_at(self.text, at) {
                    Some(c) if is_terminator(c) => {
                        let run = Run::read(self.text, at, &mut self.quoted);
                        at = run.end;
                        if run.ends_sentence(self.text, start) {
                            break;
                        }
                    }
                    c => at += c.map_or(1, char::len_utf8),
                },
                _ => at += 1,
            }
        }
        self.start = at;
        Some(start..at)
    }
}

/// Terminators with the quotes and brackets that close after them: `?!`, `……`, `。”`.
struct Run {
    start: usize,
    end: usize,
    /// Has a terminator that needs no space after it, as in Chinese.
    full_width: bool,
    /// Only ASCII full stops.
    dots_only: bool,
    /// Has nothing but ellipses (and their closers).
    ellipsis_only: bool,
}

impl Run {
    fn read(text: &str, start: usize, quoted: &mut bool) -> Self {
        let mut run = Self {
            start,
            end: start,
            full_width: false,
            dots_only: true,
            ellipsis_only: true,
        };
        while let Some(c) = char_at(text, run.end) {
            let after = run.end + c.len_utf8();
            if is_terminator(c) {
                run.full_width |= !c.is_ascii();
                run.dots_only &= c == '.';
                run.ellipsis_only &= matches!(c, '…' | '‥');
            } else if matches!(c, '"' | '\'') {
                // Straight quotes close what is open, or where nothing is quoted after them.
                let closes = c == '"' && *quoted;
                if !closes && char_at(text, after).is_some_and(char::is_alphanumeric) {
                    break;
                }
                *quoted &= c != '"';
            } else if !is_closer(c) {
                break;
            }
            run.end = after;
        }
        run
    }

    fn ends_sentence(&self, text: &str, sentence_start: usize) -> bool {
        let Some(next) = char_at(text, self.end) else {
            return true;
        };
        if self.full_width {
            // `３．１４`, and an ellipsis in the middle of a Western sentence.
            let number = text[self.start..].starts_with('．') && next.is_numeric();
            let goes_on =
                self.ellipsis_only && first_visible(text, self.end).is_some_and(char::is_lowercase);
            return !number && !goes_on;
        }
        let wide = !next.is_ascii() && next.is_alphabetic();
        if !next.is_whitespace() && !wide {
            return false; // 3.14, example.com, e.g., a?b=c
        }
        let next = first_visible(text, self.end);
        if next.is_some_and(char::is_lowercase) {
            return false;
        }
        if !self.dots_only || self.end - self.start > 1 {
            return true;
        }
        let before = &text[sentence_start..self.start];
        !is_abbreviation(before, next)
    }
}

/// Is the full stop after `before` part of its last word? `next` is the next visible character.
fn is_abbreviation(before: &str, next: Option<char>) -> bool {
    const LETTERS_MAX: usize = 8;
    let bytes = before.as_bytes();
    let length = bytes
        .iter()
        .rev()
        .take(LETTERS_MAX + 1)
        .take_while(|b| b.is_ascii_alphanumeric() || **b == b'.')
        .count();
    if length == 0 || length > LETTERS_MAX {
        return false;
    }
    let word = &before[before.len() - length..];
    if word.bytes().all(|b| b.is_ascii_digit()) {
        // The number of a list item: `1. Install`.
        return before.len() == length || before[..before.len() - length].trim().is_empty();
    }
    if word.len() == 1 && word.as_bytes()[0].is_ascii_uppercase() {
        return true; // J. Smith
    }
    let word = word.to_ascii_lowercase();
    ABBREVIATIONS.contains(&word.as_str())
        || (ABBREVIATIONS_OF_NUMBERS.contains(&word.as_str()) && next.is_some_and(char::is_numeric))
}

/// Does the line break at `at` stand before a blank line or a list mark?
fn ends_paragraph(bytes: &[u8], at: usize) -> bool {
    let rest = &bytes[at + 1..];
    let blanks = rest
        .iter()
        .take_while(|b| matches!(b, b' ' | b'\t' | b'\r'))
        .count();
    let rest = &rest[blanks..];
    match rest {
        [b'\n', ..] => true,
        [b'-' | b'*' | b'+', b' ', ..] => true,
        _ if rest.starts_with("•".as_bytes()) || rest.starts_with("·".as_bytes()) => true,
        _ => {
            let digits = rest
                .iter()
                .take(4)
                .take_while(|b| b.is_ascii_digit())
                .count();
            let mark = &rest[digits..];
            (1..=3).contains(&digits)
                && (mark.starts_with("、".as_bytes()) || matches!(mark, [b'.' | b')', b' ', ..]))
        }
    }
}

fn is_terminator(c: char) -> bool {
    matches!(
        c,
        '.' | '!'
            | '?'
            | '。'
            | '！'
            | '？'
            | '；'
            | '…'
            | '‥'
            | '．'
            | '｡'
            | '‼'
            | '⁇'
            | '⁈'
            | '⁉'
            | '؟'
            | '۔'
            | '।'
            | '॥'
            | '።'
    )
}

fn is_closer(c: char) -> bool {
    matches!(
        c,
        ')' | ']'
            | '}'
            | '”'
            | '’'
            | '»'
            | '」'
            | '』'
            | '）'
            | '］'
            | '｝'
            | '】'
            | '》'
            | '〉'
            | '〕'
            | '〗'
            | '｣'
            | '＂'
            | '＇'
    )
}

fn char_at(text: &str, at: usize) -> Option<char> {
    text[at..].chars().next()
}

/// The first character from `at` that is neither white space nor an opening quote or bracket.
fn first_visible(text: &str, at: usize) -> Option<char> {
    text[at..]
        .chars()
        .find(|c| !c.is_whitespace() && !matches!(c, '"' | '\'' | '“' | '‘' | '(' | '['))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `marked` is a text with `|` where sentences end.
    fn check(marked: &str) {
        let text = marked.replace('|', "");
        let found: Vec<&str> = sentences(&text).map(|range| &text[range]).collect();
        assert_eq!(found.join("|"), marked);
    }

    #[test]
    fn ends() {
        for marked in [
            "",
            "no end",
            "今天下雨。|我们不去了！|好吗？|好；|行……|走",
            "他说：“你好。”|她笑了。|（见下图。）|完",
            "他问『去吗？』|她不答。",
            "One.| Two!| Three?| Four",
            "Version 3.14 of example.com is out.| See e.g. the notes, i.e. this.",
            "Dr. Smith met J. Doe.| They left.",
            "See Fig. 3 and No. 5.| The answer is no.| We go.",
            "1. Install it.| Then 2 of 3.| Done.",
            "He said \"Go.\"| Then he left.",
            "Really?!| Yes...| Well... maybe.| Then… perhaps.",
            "a line\nwrapped here.\n|\nnext",
            "使用 Ctrl+C 复制。|Use Ctrl+V to paste.| 然后保存.|好",
            "他说。|\"你好。\"|走了",
            "数值为３．１４。|完",
            "see /a?b=c&d!| Ok",
        ] {
            check(marked);
        }
        check("list:\n|- one\n|- two\n|1. three\n|2、四");
        check("para\n|\r\nnext");
    }
}
