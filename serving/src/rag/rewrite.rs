//! From a question and the conversation before it to a few queries, without a model; `model` lets one make them.
//!
//! - A follow-up (`那怎么取消？`, `how do I undo it?`) is about what the question before it was about: its words are added.
//!   That is guessed from pronouns, opening words and brevity, so the question as it was asked is searched too.
//! - Synonyms come from a table that people can read (`synonyms.txt`).
//! - For the keyword side question words are taken out.
//! - Only when the first queries find no answer: the question in the other language, as far as the table goes, and its
//!   keywords alone.
//!
//! A pure function; at most [`QUERIES_MAX`] queries a round.

pub mod model;

use serde::Serialize;
use va_fulltext::analysis::Term;

use super::request::{HistoryRole, Turn};
use super::synonyms::{Match, Synonyms, in_language};
use super::text::{Lang, telling, without, without_question_words, words};

/// Queries in one round.
pub const QUERIES_MAX: usize = 3;

/// Questions of the history that are looked at.
pub const TURNS: usize = 3;

/// What is taken over of an earlier question, in characters.
const TOPIC_CHARS_MAX: usize = 200;

/// How much the first query of a round counts, and how much a variant of it.
const FIRST: f64 = 1.0;
const VARIANT: f64 = 0.5;

/// Why a query is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is the question.
    Question,
    /// The question with the topic of the conversation.
    FollowUp,
    /// The question alone, in case it is no follow-up.
    AsAsked,
    Synonyms,
    OtherLanguage,
    Keywords,
    /// The question as a model would ask it without the conversation.
    Rewritten,
    /// The question in a model's other words.
    Variant,
    /// A passage that a model made up, which might answer.
    Hyde,
}

/// One search.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// For the vectors.
    pub text: String,
    /// For the keywords.
    pub keywords: String,
    pub why: Why,
    pub weight: f64,
    pub by: By,
}

/// What finds the passages of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Vectors and keywords: a question.
    Both,
    /// Keywords alone: other words for the same, which a vector of the question is near to already.
    Keywords,
    /// Vectors alone: a text like what is looked for, with words that nobody asked for.
    Passage,
}

impl Query {
    /// A question, or words of one.
    fn question(text: &str, why: Why, weight: f64) -> Self {
        Self {
            text: text.to_owned(),
            keywords: without_question_words(text),
            why,
            weight,
            by: By::Both,
        }
    }
}

/// A question made ready.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewritten {
    /// The question as it would be asked without the conversation.
    pub standalone: String,
    pub lang: Lang,
    /// The first of them is the question itself.
    pub first: Vec<Query>,
    /// For a second round; may be empty.
    pub again: Vec<Query>,
}

/// Pronouns as they are written, in lower case.
const PRONOUNS: &[&str] = &[
    "it", "its", "they", "them", "their", "this", "that", "these", "those", "one", "ones", "它",
    "它们", "他", "他们", "她", "她们", "这", "那", "这个", "那个", "这些", "那些", "其", "此",
    "这样", "那样", "这里", "那里",
];

/// How follow-ups begin.
const OPENINGS: &[&str] = &[
    "and ",
    "what about",
    "how about",
    "what if",
    "then ",
    "also ",
    "那",
    "那么",
    "还有",
    "另外",
    "然后",
    "如果",
];

/// Makes the queries of a question.
pub fn rewrite(question: &str, history: &[Turn], synonyms: &Synonyms) -> Rewritten {
    let asked: Vec<&str> = history
        .iter()
        .filter(|turn| turn.role == HistoryRole::User)
        .map(|turn| turn.content.as_str())
        .collect();
    let recent = &asked[asked.len().saturating_sub(TURNS)..];
    // A follow-up of a follow-up is about what the first one was about.
    let before = recent.iter().fold(None::<String>, |before, question| {
        Some(standalone(question, before.as_deref()).unwrap_or_else(|| (*question).to_owned()))
    });
    let lang = Lang::of(question);
    let query = Query::question;
    let followed = standalone(question, before.as_deref());
    let mut first = Vec::new();
    let standalone = match followed {
        Some(whole) => {
            first.push(query(&whole, Why::FollowUp, FIRST));
            first.push(query(question, Why::AsAsked, VARIANT));
            whole
        }
        None => {
            first.push(query(question, Why::Question, FIRST));
            question.to_owned()
        }
    };
    let terms = words(&standalone);
    let matches = synonyms.matches(&terms);
    first.extend(with_synonyms(&standalone, lang, &matches));
    first.truncate(QUERIES_MAX);

    let mut again: Vec<Query> = in_other_language(&standalone, lang, &terms, &matches)
        .into_iter()
        .collect();
    let keywords = without_question_words(&standalone);
    if keywords != standalone {
        again.push(query(&keywords, Why::Keywords, FIRST));
    }
    again.truncate(QUERIES_MAX);
    Rewritten {
        standalone,
        lang,
        first,
        again,
    }
}

/// The question with the topic of the one before it, when it looks like a follow-up.
fn standalone(question: &str, before: Option<&str>) -> Option<String> {
    let before = before?;
    let lower = question.trim().to_lowercase();
    let pronouns: Vec<std::ops::Range<usize>> = words(question)
        .iter()
        .map(|term| term.start..term.end)
        .filter(|range| {
            let written = question.get(range.clone()).unwrap_or_default();
            PRONOUNS.contains(&written.to_lowercase().as_str())
        })
        .collect();
    let opens = OPENINGS.iter().any(|opening| lower.starts_with(opening));
    let trails = lower
        .trim_end_matches(['?', '？', '。', ' '])
        .ends_with('呢');
    let short = telling(question).len() <= 1;
    if pronouns.is_empty() && !opens && !trails && !short {
        return None;
    }
    let topic: String = without_question_words(before)
        .chars()
        .take(TOPIC_CHARS_MAX)
        .collect();
    let rest = without(question, &pronouns);
    Some(format!("{topic} {rest}"))
}

/// The question with the other words of its language for what it names.
fn with_synonyms(question: &str, lang: Lang, matches: &[Match<'_>]) -> Option<Query> {
    let lower = question.to_lowercase();
    let mut added: Vec<&str> = Vec::new();
    for found in matches {
        for entry in in_language(found.group, lang) {
            if !lower.contains(&entry.to_lowercase()) && !added.contains(&entry) {
                added.push(entry);
            }
        }
    }
    if added.is_empty() {
        return None;
    }
    let added = added.join(" ");
    Some(Query {
        text: format!("{question} {added}"),
        keywords: format!("{} {added}", without_question_words(question)),
        why: Why::Synonyms,
        weight: VARIANT,
        by: By::Keywords,
    })
}

/// The words of the question that the table knows in the other language, and the names that need no translation.
fn in_other_language(
    question: &str,
    lang: Lang,
    terms: &[Term],
    matches: &[Match<'_>],
) -> Option<Query> {
    let other = match lang {
        Lang::Zh => Lang::En,
        Lang::En => Lang::Zh,
    };
    let telling = telling(question);
    let mut translated: Vec<&str> = Vec::new();
    let mut known = false;
    let mut at = 0;
    while at < terms.len() {
        let entry = matches.iter().find(|found| found.first == at);
        let word = entry.and_then(|found| in_language(found.group, other).next());
        if let (Some(found), Some(word)) = (entry, word) {
            translated.push(word);
            known = true;
            at += found.count;
            continue;
        }
        let written = question
            .get(terms[at].start..terms[at].end)
            .unwrap_or_default();
        let latin = written.is_ascii() && telling.contains(&terms[at].text);
        // In an English question a name is what has a capital or a digit and does not begin the sentence.
        let name = written
            .bytes()
            .any(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if latin && (lang == Lang::Zh || name && at > 0) {
            translated.push(written);
        }
        at += 1;
    }
    known.then(|| {
        let text = translated.join(" ");
        Query {
            keywords: text.clone(),
            text,
            why: Why::OtherLanguage,
            weight: FIRST,
            by: By::Both,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Synonyms {
        Synonyms::parse("冻结 | 固定 | freeze | fix\n行 | row\n列 | 栏 | column\n取消 | undo")
            .expect("a table")
    }

    fn user(content: &str) -> Turn {
        Turn {
            role: HistoryRole::User,
            content: content.into(),
        }
    }

    fn shown(queries: &[Query]) -> Vec<String> {
        let line = |q: &Query| format!("{:?}: {} / {}", q.why, q.text, q.keywords);
        queries.iter().map(line).collect()
    }

    #[test]
    fn a_question_alone() {
        let made = rewrite("How do I freeze rows?", &[], &table());
        assert_eq!(made.standalone, "How do I freeze rows?");
        assert_eq!(
            shown(&made.first),
            [
                "Question: How do I freeze rows? / freeze rows",
                "Synonyms: How do I freeze rows? fix / freeze rows fix",
            ]
        );
        assert_eq!(
            shown(&made.again),
            [
                "OtherLanguage: 冻结 行 / 冻结 行",
                "Keywords: freeze rows / freeze rows",
            ]
        );
        let zh = rewrite("Calc 里怎么冻结列？", &[], &table());
        assert_eq!(zh.lang, Lang::Zh);
        assert_eq!(zh.again[0].text, "Calc freeze column");
    }

    #[test]
    fn follow_ups_take_the_topic_along() {
        let history = [
            user("How do I freeze rows?"),
            Turn {
                role: HistoryRole::Assistant,
                content: "Select the row below. [1]".into(),
            },
        ];
        let made = rewrite("How do I undo it?", &history, &table());
        assert_eq!(made.standalone, "freeze rows How do I undo");
        assert_eq!(
            (made.first[0].why, made.first[1].why),
            (Why::FollowUp, Why::AsAsked)
        );
        assert_eq!(made.first[1].text, "How do I undo it?");

        let made = rewrite("那怎么取消呢？", &[user("如何冻结行？")], &table());
        assert!(
            made.standalone.starts_with("冻结行 "),
            "{}",
            made.standalone
        );
        assert!(made.standalone.contains("取消"), "{}", made.standalone);

        // Three turns on, the topic is still that of the first.
        let chain = [user("如何冻结行？"), user("那怎么取消它？"), user("列呢？")];
        let made = rewrite("它有快捷键吗？", &chain, &table());
        assert!(made.standalone.contains("冻结行"), "{}", made.standalone);
        assert!(made.standalone.contains("快捷键"), "{}", made.standalone);
    }

    #[test]
    fn a_new_question_is_not_a_follow_up() {
        let history = [user("How do I freeze rows?")];
        let question = "Where are printer settings stored?";
        assert_eq!(rewrite(question, &history, &table()).standalone, question);
        assert_eq!(
            rewrite("它是什么？", &[], &table()).standalone,
            "它是什么？"
        );
    }
}
