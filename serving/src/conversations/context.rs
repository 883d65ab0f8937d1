//! What of a conversation a model is told: its last messages, by one of three strategies.
//!
//! Pure: which messages there are is the catalog's business, what is done with them the answer's.

use serde::Deserialize;
use va_catalog::store::{MessageRole, StoredMessage};

use crate::rag::{HistoryRole, Turn};

/// Longest turn in characters; a longer one is cut at its end.
const TURN_CHARS_MAX: usize = 8_000;
const MESSAGES: u32 = 10;
const MESSAGES_MAX: u32 = 100;
const TOKENS: u32 = 4_000;
const TOKENS_MIN: u32 = 64;
const TOKENS_MAX: u32 = 32_000;
/// Characters of a token in scripts with letters; those of the others are a token each.
const CHARS_PER_TOKEN: usize = 4;

/// How the messages are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
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
    /// As many of the last messages as have so many tokens together (estimated).
    Tokens {
        #[serde(default = "tokens")]
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
        };
        if (least..=most).contains(&number) {
            return Ok(self);
        }
        Err(format!(
            "`context.{name}` is {number}; use {least} to {most}"
        ))
    }

    /// The turns that are told, oldest first, of all `messages` before the question.
    pub fn history(self, messages: &[StoredMessage]) -> Vec<Turn> {
        let turns = turns(messages);
        let from = match self {
            Self::Fixed { messages } => turns.len().saturating_sub(messages as usize),
            Self::Sliding { messages } => {
                let least = turns.len().saturating_sub(messages as usize);
                let begins = turns[least..]
                    .iter()
                    .position(|turn| turn.role == HistoryRole::User);
                begins.map_or(turns.len(), |at| least + at)
            }
            Self::Tokens { tokens } => {
                let mut left = tokens as usize;
                let fitting = turns.iter().rev().take_while(|turn| {
                    let needed = estimate(&turn.content);
                    let fits = needed <= left;
                    left = left.saturating_sub(needed);
                    fits
                });
                turns.len() - fitting.count()
            }
        };
        turns[from..].to_vec()
    }
}

/// The messages as turns. Of several answers to one question the last counts; what says nothing is left out.
fn turns(messages: &[StoredMessage]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::with_capacity(messages.len());
    for message in messages.iter().filter(|one| !one.content.is_empty()) {
        let role = match message.role {
            MessageRole::User => HistoryRole::User,
            MessageRole::Assistant => HistoryRole::Assistant,
        };
        let again =
            role == HistoryRole::Assistant && turns.last().is_some_and(|turn| turn.role == role);
        if again {
            turns.pop();
        }
        turns.push(Turn {
            role,
            content: message.content.chars().take(TURN_CHARS_MAX).collect(),
        });
    }
    turns
}

/// About how many tokens a text has.
fn estimate(text: &str) -> usize {
    let wide = text.chars().filter(|c| *c >= '\u{2e80}').count();
    wide + (text.chars().count() - wide).div_ceil(CHARS_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use va_catalog::store::MessageState;

    use super::*;

    fn message(role: MessageRole, content: &str) -> StoredMessage {
        StoredMessage {
            id: String::new(),
            seq: 0,
            role,
            content: content.to_owned(),
            state: MessageState::Complete,
            reason: None,
            mode: None,
            citations: json!([]),
            usage: Value::Null,
            feedback: None,
            feedback_comment: None,
            created_at: 0,
        }
    }

    fn told(strategy: Value, messages: &[StoredMessage]) -> Vec<String> {
        let strategy: ContextStrategy = serde_json::from_value(strategy).expect("a strategy");
        let turns = strategy.history(messages).into_iter();
        turns.map(|turn| turn.content).collect()
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
        // Four characters are four tokens, and two letters one.
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens": 5}), &messages),
            all[2..]
        );
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens": 4}), &messages),
            all[3..]
        );
        assert_eq!(
            told(json!({"strategy": "tokens", "tokens": 3}), &messages),
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
                json!({"strategy": "tokens", "tokens": 32_001}),
                "`context.tokens` is 32001",
            ),
        ] {
            let strategy: ContextStrategy = serde_json::from_value(strategy).expect("a strategy");
            let error = strategy.check().expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }
}
