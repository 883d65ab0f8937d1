//! What a client asks, and the checks that need nothing but the request.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use va_catalog::settings::rag::{Rerank, RewriteMethod};
use va_catalog::{CollectionName, Filter, Viewer};

use super::text::Lang;
use crate::freshness::Wanted;

/// Longest question and longest turn of the history, in characters: a model reads no more than a few hundred words.
pub const QUESTION_CHARS_MAX: usize = 8_000;
/// Turns of history that are taken; the last few are looked at.
const HISTORY_MAX: usize = 200;
/// Sources that an answer may be made from.
const K_MAX: u32 = 20;
const K: u32 = 6;
/// Tokens of the context: sources, history, question and instructions.
const CONTEXT_TOKENS: u32 = 3_000;
const CONTEXT_TOKENS_MIN: u32 = 256;
const CONTEXT_TOKENS_MAX: u32 = 32_000;
const FRESHNESS_TIMEOUT: u64 = 10_000;
const FRESHNESS_TIMEOUT_MAX: u64 = 30_000;

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryRole {
    User,
    Assistant,
}

/// A turn of the conversation so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    pub role: HistoryRole,
    pub content: String,
}

/// Who writes an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A model where one is configured, else the sentences of the documents themselves.
    #[default]
    Auto,
    /// The sentences of the documents themselves.
    Extractive,
    /// A model.
    Generated,
}

/// `POST /api/v1/rag/query`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RagRequest {
    pub question: String,
    pub collection: CollectionName,
    /// Sources that the answer may use, 1 to 20; 6 when left out.
    pub k: Option<u32>,
    /// As for a search.
    #[serde(default)]
    pub filter: Filter,
    /// The conversation so far, oldest first; the last three questions and their answers are used.
    #[serde(default)]
    pub history: Vec<Turn>,
    /// Tokens of the context, 256 to 32000; 3000 when left out.
    pub context_tokens: Option<u32>,
    /// `"now"`, or the `as_of` of an answer: what the indexes must have reached.
    pub min_freshness: Option<Value>,
    /// How long to wait for that, at most 30000; 10000 when left out.
    pub freshness_timeout_ms: Option<u64>,
    /// Answer from what is there when the indexes do not get so far in time, and say so.
    #[serde(default)]
    pub allow_stale: bool,
    /// Server-sent events, as with `Accept: text/event-stream`.
    #[serde(default)]
    pub stream: bool,
    /// Adds the prompt and the scores of the best sentences.
    #[serde(default)]
    pub explain: bool,
    /// `auto`, `extractive` or `generated`.
    #[serde(default)]
    pub mode: Mode,
    /// The model that writes; the gateway's default when left out.
    pub model: Option<String>,
    /// `none`, `late`, `llm` or `provider:MODEL`: how the sources are put in order; the setting `rag.rerank.method` when
    /// left out, as the next two are `rag.rewrite` and `rag.hyde`.
    pub rerank: Option<Rerank>,
    /// `rules` or `model`: who makes the queries.
    pub rewrite: Option<RewriteMethod>,
    /// Whether a model makes up a passage to search with.
    pub hyde: Option<bool>,
}

/// A request that makes sense.
#[derive(Debug, Clone)]
pub struct Ask {
    pub question: String,
    pub collection: CollectionName,
    pub k: usize,
    pub filter: Filter,
    /// As whom the documents are read.
    pub viewer: Viewer,
    pub history: Vec<Turn>,
    pub context_tokens: usize,
    pub min_freshness: Option<Wanted>,
    pub freshness_timeout: Duration,
    pub allow_stale: bool,
    pub explain: bool,
    pub mode: Mode,
    pub model: Option<String>,
    pub rerank: Option<Rerank>,
    pub rewrite: Option<RewriteMethod>,
    pub hyde: Option<bool>,
    /// The language of our own phrases; that of the question when left out. Not of the request: whoever asks prefers it.
    pub language: Option<Lang>,
}

impl RagRequest {
    /// Checks everything that can be checked without asking a store. Sources are found as `viewer` may read them.
    ///
    /// # Errors
    /// The first thing that is wrong, and what is allowed.
    pub fn check(self, viewer: Viewer) -> Result<Ask, String> {
        let question = self.question.trim();
        if !question.chars().any(char::is_alphanumeric) {
            return Err("`question` is empty: ask something in words".into());
        }
        let chars = question.chars().count();
        if chars > QUESTION_CHARS_MAX {
            return Err(format!(
                "`question` has {chars} characters; ask in at most {QUESTION_CHARS_MAX}, and upload long texts as documents"
            ));
        }
        if self.history.len() > HISTORY_MAX {
            return Err(format!(
                "`history` has {} turns; send at most {HISTORY_MAX}, the last three questions and answers are used",
                self.history.len()
            ));
        }
        for (at, turn) in self.history.iter().enumerate() {
            let chars = turn.content.chars().count();
            if chars > QUESTION_CHARS_MAX {
                return Err(format!(
                    "`history[{at}].content` has {chars} characters; at most {QUESTION_CHARS_MAX} are allowed"
                ));
            }
        }
        self.filter
            .check()
            .map_err(|reason| format!("`filter`: {reason}"))?;
        let within = |name: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(value)
            } else {
                Err(format!("`{name}` is {value}; use {min} to {max}"))
            }
        };
        let k = within("k", self.k.unwrap_or(K).into(), 1, K_MAX.into())?;
        let context_tokens = within(
            "context_tokens",
            self.context_tokens.unwrap_or(CONTEXT_TOKENS).into(),
            CONTEXT_TOKENS_MIN.into(),
            CONTEXT_TOKENS_MAX.into(),
        )?;
        let timeout = within(
            "freshness_timeout_ms",
            self.freshness_timeout_ms.unwrap_or(FRESHNESS_TIMEOUT),
            0,
            FRESHNESS_TIMEOUT_MAX,
        )?;
        Ok(Ask {
            question: question.to_owned(),
            collection: self.collection,
            k: k as usize,
            filter: self.filter,
            viewer,
            history: self.history,
            context_tokens: context_tokens as usize,
            min_freshness: (self.min_freshness.as_ref())
                .map(Wanted::parse)
                .transpose()?,
            freshness_timeout: Duration::from_millis(timeout),
            allow_stale: self.allow_stale,
            explain: self.explain,
            mode: self.mode,
            model: self.model,
            rerank: self.rerank,
            rewrite: self.rewrite,
            hyde: self.hyde,
            language: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(request: Value) -> Result<Ask, String> {
        serde_json::from_value::<RagRequest>(request)
            .map_err(|error| error.to_string())?
            .check(Viewer::Everything)
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = json!({"question": " 冻结行? ", "collection": "c"});
        let ask = check(good).expect("a good request");
        assert_eq!((ask.question.as_str(), ask.k), ("冻结行?", 6));
        for (request, said) in [
            (
                json!({"question": " ?! ", "collection": "c"}),
                "`question` is empty",
            ),
            (
                json!({"question": "字".repeat(8_001), "collection": "c"}),
                "8001 characters",
            ),
            (
                json!({"question": "a", "collection": "c", "k": 0}),
                "`k` is 0; use 1 to 20",
            ),
            (
                json!({"question": "a", "collection": "c", "k": 21}),
                "`k` is 21",
            ),
            (
                json!({"question": "a", "collection": "c", "context_tokens": 1}),
                "`context_tokens` is 1",
            ),
            (
                json!({"question": "a", "collection": "c", "freshness_timeout_ms": 30_001}),
                "use 0 to 30000",
            ),
            (
                json!({"question": "a", "collection": "c", "min_freshness": "soon"}),
                "`min_freshness`",
            ),
            (
                json!({"question": "a", "collection": "c", "tenant": "other"}),
                "unknown field `tenant`",
            ),
            (
                json!({"question": "a", "collection": "c", "rerank": "best"}),
                "`best` is no way to re-rank: use `none`, `late`, `llm`, or `provider:`",
            ),
            (
                json!({"question": "a", "collection": "c", "rewrite": "poem"}),
                "`rules` or `model`",
            ),
            (
                json!({"question": "a", "collection": "c", "filter": {"va.reader": "user:b"}}),
                "`filter`: the key `va.reader`",
            ),
            (json!({"question": "a", "collection": "a/b"}), "collection"),
            (json!({"collection": "c"}), "question"),
        ] {
            let error = check(request).expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }
}
