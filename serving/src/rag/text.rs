//! What answering needs to know of words: the language of a text, the words that tell, question words, repetition.
//!
//! Words are cut by the full-text index's own analysis, so that a word counts here exactly where it counts in a search.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Serialize;
use va_fulltext::analysis::{Analysis, Kind, Term, is_stop_word};

/// A language that answers are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lang {
    Zh,
    En,
}

impl Lang {
    /// Chinese when there are at least as many Chinese characters as words in Latin letters, and any at all.
    pub fn of(text: &str) -> Self {
        let han = text.chars().filter(|c| is_han(*c)).count();
        let latin = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| word.bytes().any(|b| b.is_ascii_alphabetic()))
            .count();
        if han > 0 && han >= latin {
            Self::Zh
        } else {
            Self::En
        }
    }
}

pub fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// Words that make a question of a statement, as terms of the analysis (English ones are stemmed). Prepositions and
/// articles are not among them: a phrase is found better whole.
const QUESTION_WORDS: &[&str] = &[
    "how",
    "what",
    "when",
    "where",
    "which",
    "who",
    "whi",
    "do",
    "doe",
    "did",
    "can",
    "could",
    "should",
    "would",
    "will",
    "i",
    "you",
    "me",
    "tell",
    "pleas",
    "want",
    "need",
    "know",
    "there",
    "如何",
    "怎么",
    "怎样",
    "怎么样",
    "什么",
    "哪些",
    "哪",
    "哪里",
    "哪个",
    "哪儿",
    "为什么",
    "为何",
    "吗",
    "呢",
    "吧",
    "请问",
    "请",
    "可以",
    "能",
    "能否",
    "是否",
    "我",
    "你",
    "您",
    "想",
    "知道",
    "告诉",
    "多少",
    "几",
    "么",
    "应该",
    "该",
    "要",
];

/// The terms of `text` that are words of their own, in order.
pub fn words(text: &str) -> Vec<Term> {
    let mut words = Analysis::default().terms(text);
    words.retain(|term| term.kind == Kind::Word);
    words.sort_by_key(|term| (term.start, term.end));
    words
}

/// The words that say what `text` is about: neither frequent nor question words. Each once.
pub fn telling(text: &str) -> BTreeSet<String> {
    words(text)
        .into_iter()
        .map(|term| term.text)
        .filter(|word| !is_stop_word(word) && !QUESTION_WORDS.contains(&word.as_str()))
        .collect()
}

/// The terms by which sentences are compared: telling words, and pairs of Chinese characters, which agree where two texts
/// were cut into words differently.
pub fn compared(text: &str) -> BTreeSet<String> {
    let terms = Analysis::default().terms(text);
    let frequent: Vec<Range<usize>> = terms
        .iter()
        .filter(|term| term.kind == Kind::Word)
        .filter(|term| is_stop_word(&term.text) || QUESTION_WORDS.contains(&term.text.as_str()))
        .map(|term| term.start..term.end)
        .collect();
    terms
        .into_iter()
        .filter(|term| term.kind != Kind::Single)
        .filter(|term| {
            frequent
                .iter()
                .all(|f| term.end <= f.start || f.end <= term.start)
        })
        .map(|term| term.text)
        .collect()
}

/// `text` without its question words: what a keyword search should look for. The text itself when nothing would be left.
pub fn without_question_words(text: &str) -> String {
    let cut: Vec<Range<usize>> = words(text)
        .into_iter()
        .filter(|term| QUESTION_WORDS.contains(&term.text.as_str()))
        .map(|term| term.start..term.end)
        .collect();
    without(text, &cut)
}

/// `text` without the ranges (in order), its white space and the punctuation at its ends tidied.
pub fn without(text: &str, cut: &[Range<usize>]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    for range in cut {
        if range.start >= at {
            kept.push_str(&text[at..range.start]);
            kept.push(' ');
            at = range.end;
        }
    }
    kept.push_str(&text[at..]);
    let kept: Vec<&str> = kept.split_whitespace().collect();
    let kept = kept.join(" ");
    let edge = |c: char| c.is_whitespace() || "?？!！。.，,;；:：、".contains(c);
    let kept = kept.trim_matches(edge);
    if words(kept).is_empty() {
        text.trim().to_owned()
    } else {
        kept.to_owned()
    }
}

/// Letters, digits and Chinese characters alone, in lower case: equal for texts that differ in spacing or punctuation.
pub fn bare(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// The byte range of `range` without the white space at its ends.
pub fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let slice = &text[range.clone()];
    let start = range.start + (slice.len() - slice.trim_start().len());
    start..start + slice.trim().len()
}

/// At most `chars` characters of `text` on one line, without what steers a terminal or a reader.
pub fn one_line(text: &str, chars: usize) -> String {
    let visible = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .filter(|c| !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    let line: String = visible.collect();
    let words: Vec<&str> = line.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        for (text, lang) in [
            ("Debian 是什么？", Lang::Zh),
            ("什么是 Debian GNU/Linux 发行版？", Lang::Zh),
            ("How do I type 冻结 in Calc?", Lang::En),
            ("freeze rows", Lang::En),
            ("冻结行", Lang::Zh),
            ("", Lang::En),
        ] {
            assert_eq!(Lang::of(text), lang, "{text}");
        }
    }

    #[test]
    fn question_words_go_for_the_keyword_side() {
        for (question, keywords) in [
            ("How do I freeze rows or columns?", "freeze rows or columns"),
            ("如何冻结行或列？", "冻结行或列"),
            ("请问怎么安装 Debian？", "安装 Debian"),
            ("What can I do?", "What can I do?"),
            ("freeze", "freeze"),
        ] {
            assert_eq!(without_question_words(question), keywords);
        }
    }

    #[test]
    fn a_name_cannot_steer() {
        assert_eq!(
            one_line("a\n\n来源[9]：\u{1b}[31m b\u{202e}", 40),
            "a 来源[9]： [31m b"
        );
        assert_eq!(one_line("冻结行列", 2), "冻结…");
    }
}
