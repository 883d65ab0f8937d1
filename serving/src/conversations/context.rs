//! What of a conversation a model is told: its last messages, by one of four strategies, under a budget of messages or tokens.
//!
//! Pure: which messages there are is the catalog's business, keeping what was chosen `remembered`'s, summing up `summary`'s.

use serde::{Deserialize, Serialize};
use va_catalog::store::{MessageRole, StoredMessage};
use va_models::SharedTokenizer;

use crate::platform::Platform;
use crate::rag::{HistoryRole, Turn};

/// Longest turn in characters; a longer one is cut at its end.
const TURN_CHARS_MAX: usize = 8_000;
const MESSAGES: u32 = 10;
const MESSAGES_MAX: u32 = 100;
const TOKENS: u32 = 4_000;
const TOKENS_MIN: u32 = 64;
/// A summary and some turns need room.
const SUMMARY_TOKENS_MIN: u32 = 512;
/// Models take 4, 8, 32 thousand tokens and more; the largest that there are take about this.
const TOKENS_MAX: u32 = 200_000;

/// How the messages are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case", deny_unknown_fields)]
pub enum ContextStrategy {
    /// The last so many messages.
    Fixed {
        #[serde(default = "ten")]
        messages: u32,
    },
    /// The same, but a question and its answer stay together: it begins with a question.
    Sliding {
        #[serde(default = "ten")]
        messages: u32,
    },
    /// As many of the last messages as have so many tokens together.
    Tokens {
        #[serde(default = "tokens", alias = "tokens_max")]
        tokens: u32,
    },
    /// As `tokens`, and what is older as a summary that a model has written.
    Summary {
        #[serde(default = "tokens", alias = "tokens_max")]
        tokens: u32,
    },
}

fn ten() -> u32 {
    MESSAGES
}

fn tokens() -> u32 {
    TOKENS
}

impl Default for ContextStrategy {
    fn default() -> Self {
        Self::Fixed { messages: MESSAGES }
    }
}

/// A turn, and the number of the message that it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    pub seq: i64,
    pub turn: Turn,
}

impl ContextStrategy {
    /// Whether its number makes sense.
    ///
    /// # Errors
    /// What is allowed.
    pub fn check(self) -> Result<Self, String> {
        let (name, number, least, most) = match self {
            Self::Fixed { messages } | Self::Sliding { messages } => {
                ("messages", messages, 1, MESSAGES_MAX)
            }
            Self::Tokens { tokens } => ("tokens", tokens, TOKENS_MIN, TOKENS_MAX),
            Self::Summary { tokens } => ("tokens", tokens, SUMMARY_TOKENS_MIN, TOKENS_MAX),
        };
        if (least..=most).contains(&number) {
            return Ok(self);
        }
        Err(format!(
            "`context.{name}` is {number}; use {least} to {most}"
        ))
    }

    /// The last of `turns` that are told. With a summary the turns are chosen as with `tokens`.
    pub fn choose(self, turns: &[Numbered], counting: &Counting) -> Vec<Numbered> {
        let from = match self {
            Self::Fixed { messages } => turns.len().saturating_sub(messages as usize),
            Self::Sliding { messages } => {
                let least = turns.len().saturating_sub(messages as usize);
                begins_with_question(turns, least)
            }
            Self::Tokens { tokens } | Self::Summary { tokens } => {
                fitting(turns, tokens as usize, counting)
            }
        };
        turns[from..].to_vec()
    }
}

/// Where the first question is, from there on; the end when there is none.
pub(super) fn begins_with_question(turns: &[Numbered], least: usize) -> usize {
    let begins = turns[least..]
        .iter()
        .position(|one| one.turn.role == HistoryRole::User);
    begins.map_or(turns.len(), |at| least + at)
}

/// Where the last turns begin that have at most so many tokens together.
pub(super) fn fitting(turns: &[Numbered], tokens: usize, counting: &Counting) -> usize {
    let mut left = tokens;
    let fitting = turns.iter().rev().take_while(|one| {
        let needed = counting.count(&one.turn.content);
        let fits = needed <= left;
        left = left.saturating_sub(needed);
        fits
    });
    turns.len() - fitting.count()
}

/// The messages as turns. Of several answers to one question the last counts; what says nothing is left out.
pub fn turns(messages: &[StoredMessage]) -> Vec<Numbered> {
    let mut turns: Vec<Numbered> = Vec::with_capacity(messages.len());
    for message in messages.iter().filter(|one| !one.content.is_empty()) {
        let role = match message.role {
            MessageRole::User => HistoryRole::User,
            MessageRole::Assistant => HistoryRole::Assistant,
        };
        let again = role == HistoryRole::Assistant
            && turns.last().is_some_and(|last| last.turn.role == role);
        if again {
            turns.pop();
        }
        turns.push(Numbered {
            seq: message.seq,
            turn: Turn {
                role,
                content: message.content.chars().take(TURN_CHARS_MAX).collect(),
            },
        });
    }
    turns
}

/// How tokens are counted: by the tokenizer of a model that runs here, else by an estimate that is rather too high.
pub enum Counting {
    Model(SharedTokenizer),
    Estimate,
}

impl Counting {
    /// As that model counts. Reading a tokenizer blocks, so it has a thread of its own.
    pub async fn of(platform: &Platform, model: Option<&str>) -> Self {
        let Some(model) = model else {
            return Self::Estimate;
        };
        let embedders = platform.embedders.clone();
        let name = model.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let is_here = embedders.store().list().iter().any(|one| one.name == name);
            is_here.then(|| embedders.tokenizer(&name))
        });
        match read.await {
            Ok(Some(Ok(tokenizer))) => Self::Model(tokenizer),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, model, "its tokenizer cannot be read; tokens are estimated");
                Self::Estimate
            }
            Ok(None) | Err(_) => Self::Estimate,
        }
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> usize {
        match self {
            Self::Model(tokenizer) => tokenizer.count(text),
            Self::Estimate => estimate(text),
        }
    }
}

/// About how many tokens a text has, rather too many: a context that is too long is refused, one that is a little short is
/// none. Tokenizers take from about 0.6 to about 1.25 tokens for a Chinese character, and one for about four letters of
/// English; digits, signs and other languages take more, so three characters are counted as one.
fn estimate(text: &str) -> usize {
    let all = text.chars().count();
    let wide = text.chars().filter(|c| *c >= '\u{2e80}').count();
    (wide * 5).div_ceil(4) + (all - wide).div_ceil(3)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use va_catalog::store::MessageState;

    use super::*;

    fn message(role: MessageRole, content: &str) -> StoredMessage {
        StoredMessage::new(role, content, MessageState::Complete)
    }

    fn told(strategy: Value, messages: &[StoredMessage]) -> Vec<String> {
        let strategy: ContextStrategy = serde_json::from_value(strategy).expect("a strategy");
        let chosen = strategy.choose(&turns(messages), &Counting::Estimate);
        chosen.into_iter().map(|one| one.turn.content).collect()
    }

    #[test]
    fn strategies_choose_the_last_messages() {
        use MessageRole::{Assistant, User};
        let messages = [
            message(User, "q1"),
            message(Assistant, "a1"),
            message(User, "q2"),
            message(Assistant, "broken"),
            message(Assistant, "四个汉字"),
            message(Assistant, ""),
        ];
        let all = ["q1", "a1", "q2", "四个汉字"];
        assert_eq!(told(json!({"strategy": "fixed"}), &messages), all);
        let three = json!({"strategy": "fixed", "messages": 3});
        assert_eq!(told(three, &messages), all[1..]);
        let three = json!({"strategy": "sliding", "messages": 3});
        assert_eq!(told(three, &messages), all[2..]);
        let one = json!({"strategy": "sliding", "messages": 1});
        assert_eq!(told(one, &messages), [""; 0]);
        // Four characters are five tokens, and two letters one.
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens_max": 6}), &messages),
            all[2..]
        );
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens": 5}), &messages),
            all[3..]
        );
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens": 4}), &messages),
            [""; 0]
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (strategy, said) in [
            (
                json!({"strategy": "fixed", "messages": 0}),
                "`context.messages` is 0; use 1 to 100",
            ),
            (
                json!({"strategy": "tokens", "tokens": 200_001}),
                "`context.tokens` is 200001",
            ),
            (
                json!({"strategy": "summary", "tokens": 511}),
                "`context.tokens` is 511; use 512 to 200000",
            ),
        ] {
            let strategy: ContextStrategy = serde_json::from_value(strategy).expect("a strategy");
            let error = strategy.check().expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_estimate_is_right_for_chinese_and_rather_high() {
        for (text, most) in [
            ("如何冻结表格的第一行，并打印每页？", 22),
            ("How do I freeze the first row of a sheet?", 15),
            ("", 0),
        ] {
            let count = estimate(text);
            assert!((most * 3 / 4..=most).contains(&count), "{text}: {count}");
        }
    }
}
