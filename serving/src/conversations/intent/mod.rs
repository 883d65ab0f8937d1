//! What a message is: what somebody wants with it (intent), and in which mood (sentiment), in Chinese and English.
//!
//! Deterministic, by lists of words (`zh.txt`, `en.txt`) that a person can read and mend: no model, no clock, microseconds a
//! message. Both lists are looked into, since people mix languages. What is found adds up:
//!
//! 1. A match inside a longer one does not count (`人工` in `人工智能`), nor does one behind a negation of its clause, within
//!    three words or characters (`不用转人工`).
//! 2. Who asks for a human gets that; then a complaint counts that outweighs what is asked and what is to be done; then a
//!    greeting that is most of the message, or all that is in it; then a task; everything else is a question, since bare
//!    keywords are one.
//! 3. Sentiment is what is positive less what is negative, by their sum: -1 to 1. A negation turns a word round, an emphasis
//!    doubles it. Questions and tasks use such words to describe things, so they need more of them.
//!
//! It errs towards `question` and `neutral`. What follows from it is the caller's business.

use std::ops::Range;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use va_catalog::store::NewQuestion;

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// To know something, or to find it.
    Question,
    /// Something to be done.
    Task,
    /// To say that something is wrong.
    Complaint,
    /// To greet, to thank, to chat.
    Greeting,
    /// A human.
    Handover,
}

impl Intent {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Task => "task",
            Self::Complaint => "complaint",
            Self::Greeting => "greeting",
            Self::Handover => "handover",
        }
    }
}

/// In which mood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sentiment {
    Positive,
    Neutral,
    Negative,
}

impl Sentiment {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Neutral => "neutral",
            Self::Negative => "negative",
        }
    }
}

/// What a message was taken for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Understood {
    pub intent: Intent,
    pub sentiment: Sentiment,
    /// From -1 to 1, in hundredths.
    pub sentiment_score: f64,
    pub handover_requested: bool,
}

impl Understood {
    /// Adds it to what is told of an answer.
    pub fn tell(&self, told: &mut Value) {
        told["intent"] = json!(self.intent);
        told["sentiment"] = json!(self.sentiment);
        told["sentiment_score"] = json!(self.sentiment_score);
        told["handover_requested"] = json!(self.handover_requested);
    }

    /// A question with it, for the catalog.
    pub fn question<'a>(&self, content: &'a str) -> NewQuestion<'a> {
        NewQuestion {
            content,
            intent: Some(self.intent.as_str()),
            sentiment: Some(self.sentiment.as_str()),
            sentiment_score: Some(self.sentiment_score),
            handover_requested: Some(self.handover_requested),
        }
    }
}

/// A list of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Greeting,
    GreetingNot,
    Question,
    Task,
    Complaint,
    Handover,
    HandoverNot,
    Positive,
    Negative,
    SentimentNot,
    Negation,
    NegationNot,
    Strong,
}

impl List {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "greeting" => Self::Greeting,
            "greeting-not" => Self::GreetingNot,
            "question" => Self::Question,
            "task" => Self::Task,
            "complaint" => Self::Complaint,
            "handover" => Self::Handover,
            "handover-not" => Self::HandoverNot,
            "positive" => Self::Positive,
            "negative" => Self::Negative,
            "sentiment-not" => Self::SentimentNot,
            "negation" => Self::Negation,
            "negation-not" => Self::NegationNot,
            "strong" => Self::Strong,
            _ => return None,
        })
    }

    fn feels(self) -> bool {
        matches!(self, Self::Positive | Self::Negative | Self::SentimentNot)
    }

    fn modifies(self) -> bool {
        matches!(self, Self::Negation | Self::Strong)
    }
}

/// How the patterns of a file are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    /// Characters, wherever they stand.
    Characters,
    /// Whole words.
    Words,
}

struct Pattern {
    script: Script,
    list: List,
    /// One text of characters, or each word.
    parts: Vec<String>,
    weight: u32,
    first: bool,
    last: bool,
}

/// Where a pattern stands in a message.
struct Found {
    script: Script,
    list: List,
    range: Range<usize>,
    weight: u32,
}

impl Found {
    /// Whether the other one is a part of this and says nothing by itself. What somebody wants and how it feels are two
    /// things that the same words may tell.
    fn hides(&self, other: &Self) -> bool {
        self.range.start <= other.range.start
            && other.range.end <= self.range.end
            && self.range.len() > other.range.len()
            && (self.list.feels() == other.list.feels() || other.list.modifies())
    }

    /// Whether this stands before the other in the same clause, with so little between them.
    fn is_shortly_before(&self, other: &Self, text: &str, most: usize) -> bool {
        let Some(gap) = text.get(self.range.end..other.range.start) else {
            return false;
        };
        let between = match other.script {
            Script::Characters => gap.trim().chars().count(),
            Script::Words => gap.split_whitespace().count(),
        };
        between <= most && !gap.contains(CLAUSE_ENDS)
    }
}

const ZH: &str = include_str!("zh.txt");
const EN: &str = include_str!("en.txt");
const CLAUSE_ENDS: [char; 13] = [
    '，', '。', '！', '？', '；', '：', ',', '.', '!', '?', ';', ':', '\n',
];
/// Weight of a pattern that has none.
const WEIGHT: u32 = 2;
/// Characters or words between a negation and what it negates, and between an emphasis and what it doubles.
const NEGATED_WITHIN: usize = 3;
const STRESSED_WITHIN: usize = 1;
/// The weight from which on a human is asked for, and something is complained about.
const HANDOVER: u32 = 2;
const COMPLAINT: u32 = 3;
/// The part of the letters that greets, in a message that also asks something.
const MOSTLY: f64 = 0.5;
/// Weight of a feeling that nobody expressed: keeps one weak word from being a strong feeling.
const CALM: f64 = 2.0;
/// Scores from which on a message is not neutral.
const FEELS: f64 = 0.2;
const FEELS_IN_A_QUESTION: f64 = 0.55;
const FEELS_IN_A_STATEMENT: f64 = 0.45;
/// Characters of a message that are looked at: more is pasted text, not what somebody says.
const CHARS_MAX: usize = 2_000;

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let read = |text, script| {
        patterns(text, script).expect("the lists are part of the program, and tests read them")
    };
    let mut all = read(ZH, Script::Characters);
    all.extend(read(EN, Script::Words));
    all
});

/// Reads a file of patterns, as its own head describes it.
fn patterns(text: &str, script: Script) -> Result<Vec<Pattern>, String> {
    let mut list = None;
    let mut patterns = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            let named = List::named(name);
            list = Some(named.ok_or_else(|| format!("line {at}: there is no list `{name}`"))?);
            continue;
        }
        let list = list.ok_or_else(|| format!("line {at}: `{line}` is in no list"))?;
        let (pattern, weight) = match line.rsplit_once(' ') {
            Some((pattern, weight)) if weight.bytes().all(|byte| byte.is_ascii_digit()) => {
                let weight = weight
                    .parse::<u32>()
                    .map_err(|error| format!("line {at}: weight `{weight}`: {error}"))?;
                (pattern, weight)
            }
            _ => (line, WEIGHT),
        };
        let (pattern, first) = match pattern.strip_prefix('^') {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        let (pattern, last) = match pattern.strip_suffix('$') {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        if pattern.is_empty() || pattern != pattern.to_lowercase() {
            return Err(format!("line {at}: `{line}` is no pattern in lower case"));
        }
        let parts = match script {
            Script::Characters => vec![pattern.to_owned()],
            Script::Words => pattern.split(' ').map(ToOwned::to_owned).collect(),
        };
        patterns.push(Pattern {
            script,
            list,
            parts,
            weight,
            first,
            last,
        });
    }
    Ok(patterns)
}

/// What a message is taken for.
pub fn understand(message: &str) -> Understood {
    let said: String = message.chars().take(CHARS_MAX).collect();
    let text = said.to_lowercase().replace('’', "'");
    let all = find(&text);
    let told: Vec<&Found> = all
        .iter()
        .filter(|one| !all.iter().any(|other| other.hides(one)))
        .collect();
    let (mut handover, mut complaint, mut greeting, mut task, mut question) = (0, 0, 0, 0, 0);
    let (mut positive, mut negative) = (0, 0);
    for one in &told {
        let has = |list: List, most: usize| {
            let mut those = told.iter().filter(|other| other.list == list);
            those.any(|other| other.is_shortly_before(one, &text, most))
        };
        let negated = has(List::Negation, NEGATED_WITHIN);
        match one.list {
            List::Handover if !negated => handover += one.weight,
            List::Complaint if !negated => complaint += one.weight,
            List::Greeting => greeting += one.weight,
            List::Task => task += one.weight,
            List::Question => question += one.weight,
            List::Positive | List::Negative => {
                let stressed = has(List::Strong, STRESSED_WITHIN);
                let weight = if stressed { one.weight * 2 } else { one.weight };
                match (one.list == List::Positive, negated) {
                    (true, false) => positive += weight,
                    (true, true) | (false, false) => negative += weight,
                    // What is not bad is not good yet.
                    (false, true) => positive += weight / 2,
                }
            }
            _ => {}
        }
    }
    let intent = if handover >= HANDOVER {
        Intent::Handover
    } else if complaint >= COMPLAINT && complaint > question + task {
        Intent::Complaint
    } else if greeting > 0 && (question + task == 0 || greeting_part(&text, &told) >= MOSTLY) {
        Intent::Greeting
    } else if task > 0 && task >= question {
        Intent::Task
    } else {
        Intent::Question
    };
    let (positive, negative) = (f64::from(positive), f64::from(negative));
    let score = (positive - negative) / (positive + negative + CALM);
    let feels = match intent {
        Intent::Question | Intent::Task if question + task > 0 => FEELS_IN_A_QUESTION,
        Intent::Question | Intent::Task | Intent::Handover => FEELS_IN_A_STATEMENT,
        Intent::Complaint | Intent::Greeting => FEELS,
    };
    let sentiment = if score > feels {
        Sentiment::Positive
    } else if score < -feels {
        Sentiment::Negative
    } else {
        Sentiment::Neutral
    };
    Understood {
        intent,
        sentiment,
        sentiment_score: (score * 100.0).round() / 100.0,
        handover_requested: intent == Intent::Handover,
    }
}

/// The part of the letters that are in greetings.
fn greeting_part(text: &str, told: &[&Found]) -> f64 {
    let greets = |at: usize| {
        let mut greetings = told.iter().filter(|one| one.list == List::Greeting);
        greetings.any(|one| one.range.contains(&at))
    };
    let letters = text.char_indices().filter(|(_, c)| c.is_alphanumeric());
    let (mut all, mut greeting) = (0_u32, 0_u32);
    for (at, _) in letters {
        all += 1;
        greeting += u32::from(greets(at));
    }
    f64::from(greeting) / f64::from(all.max(1))
}

/// Every pattern that stands in a text (in lower case), each place once.
fn find(text: &str) -> Vec<Found> {
    let words = words(text);
    let is_edge = |c: char| c.is_whitespace() || "，。！!.,~～…、".contains(c);
    let first = text.len() - text.trim_start_matches(is_edge).len();
    let last = text.trim_end_matches(is_edge).len();
    let mut all: Vec<Found> = Vec::new();
    for pattern in PATTERNS.iter() {
        let mut add = |range: Range<usize>| {
            let known = all
                .iter_mut()
                .find(|one| one.list == pattern.list && one.range == range);
            match known {
                Some(known) => known.weight = known.weight.max(pattern.weight),
                None => all.push(Found {
                    script: pattern.script,
                    list: pattern.list,
                    range,
                    weight: pattern.weight,
                }),
            }
        };
        match pattern.script {
            Script::Characters => {
                let Some(part) = pattern.parts.first() else {
                    continue;
                };
                for (at, found) in text.match_indices(part.as_str()) {
                    let range = at..at + found.len();
                    if (!pattern.first || at == first) && (!pattern.last || range.end == last) {
                        add(range);
                    }
                }
            }
            Script::Words => {
                for (at, some) in words.windows(pattern.parts.len()).enumerate() {
                    let in_place = (!pattern.first || at == 0)
                        && (!pattern.last || at + some.len() == words.len());
                    let same = in_place
                        && some
                            .iter()
                            .zip(&pattern.parts)
                            .all(|(word, part)| is_word(&text[word.clone()], part));
                    if same {
                        add(some[0].start..some[some.len() - 1].end);
                    }
                }
            }
        }
    }
    all
}

/// Whether a word is that of a pattern, or begins as the pattern does up to its `*`.
fn is_word(word: &str, part: &str) -> bool {
    match part.strip_suffix('*') {
        Some(beginning) => word.starts_with(beginning),
        None => word == part,
    }
}

/// The words in Latin letters, and question marks.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut begun: Option<usize> = None;
    for (at, c) in text.char_indices() {
        let within = c.is_ascii_alphanumeric() || begun.is_some() && matches!(c, '\'' | '-');
        match begun {
            None if within => begun = Some(at),
            Some(start) if !within => {
                words.push(start..at);
                begun = None;
            }
            _ => {}
        }
        if c == '?' {
            words.push(at..at + 1);
        }
    }
    words.extend(begun.map(|start| start..text.len()));
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_lists_can_be_read() {
        for (text, script) in [(ZH, Script::Characters), (EN, Script::Words)] {
            let read = patterns(text, script).expect("a list");
            assert!(read.len() > 200, "{}", read.len());
        }
        for (text, said) in [
            ("hello", "line 1: `hello` is in no list"),
            ("[hello]", "there is no list `hello`"),
            ("[task]\n\nRun", "line 3"),
        ] {
            let error = patterns(text, Script::Words)
                .map(drop)
                .expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn negation_and_longer_words_count() {
        for (message, intent, handover) in [
            ("转人工", Intent::Handover, true),
            ("不用转人工", Intent::Question, false),
            ("人工智能是什么", Intent::Question, false),
            ("I do not want a human", Intent::Question, false),
            ("No. Get me a human", Intent::Handover, true),
            ("what are human rights", Intent::Question, false),
            ("history of Rome", Intent::Question, false),
            ("hello world in Rust", Intent::Question, false),
            ("聊天记录", Intent::Question, false),
            ("", Intent::Question, false),
        ] {
            let told = understand(message);
            assert_eq!(
                (told.intent, told.handover_requested),
                (intent, handover),
                "{message}"
            );
        }
        for (message, sentiment) in [
            ("很好用", Sentiment::Positive),
            ("不好用，很不满意", Sentiment::Negative),
            ("I am not happy", Sentiment::Negative),
            ("I am happy", Sentiment::Positive),
            ("It is not bad", Sentiment::Neutral),
        ] {
            assert_eq!(understand(message).sentiment, sentiment, "{message}");
        }
        let strong = understand("I am very unhappy with this rubbish").sentiment_score;
        let mild = understand("this is slow").sentiment_score;
        assert!(
            -1.0 < strong && strong < mild && mild < 0.0,
            "{strong} {mild}"
        );
    }

    /// Labelled by hand. Who wrote the lists knows the utterances, so this keeps what was reached; it does not say how good
    /// the lists are on those of others.
    #[test]
    fn labelled_utterances_are_understood() {
        let mut seen: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
        let mut of_intent: BTreeMap<(&str, &str), (u32, u32)> = BTreeMap::new();
        let mut wrong = Vec::new();
        for line in include_str!("utterances.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let [intent, sentiment, text] = fields[..] else {
                panic!("`{line}` has not three fields");
            };
            let lang = match crate::rag::Lang::of(text) {
                crate::rag::Lang::Zh => "zh",
                crate::rag::Lang::En => "en",
            };
            let told = understand(text);
            let right = told.intent.as_str() == intent;
            let felt = told.sentiment.as_str() == sentiment;
            if !right || !felt {
                wrong.push(format!("{line}: {told:?}"));
            }
            let counts = seen.entry(lang).or_default();
            counts.0 += 1;
            counts.1 += u32::from(right);
            counts.2 += u32::from(felt);
            let counts = of_intent.entry((lang, intent)).or_default();
            counts.0 += 1;
            counts.1 += u32::from(right);
        }
        let told = wrong.join("\n");
        for (lang, (all, right, felt)) in seen {
            assert!(all >= 120, "{lang}: {all} utterances");
            let (right, felt) = (
                f64::from(right) / f64::from(all),
                f64::from(felt) / f64::from(all),
            );
            assert!(right >= 0.96, "{lang}: {right} of the intents\n{told}");
            assert!(felt >= 0.96, "{lang}: {felt} of the sentiments\n{told}");
        }
        assert_eq!(of_intent.len(), 10, "five intents in two languages");
        for ((lang, intent), (all, right)) in of_intent {
            let right = f64::from(right) / f64::from(all);
            assert!(right >= 0.9, "{lang}: {right} of `{intent}`\n{told}");
        }
    }
}
