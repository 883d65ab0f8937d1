//! Settings of answers from documents: how questions are rewritten, and how what they find is re-ranked.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{positive_u32, positive_u64};

/// The longest `rag.model_time_max_ms`: a client waits for it, up to three times for one question.
const MODEL_TIME_MAX_MS: u64 = 60_000;
/// What `rag.rerank.candidates` and `rag.queries` may be.
const CANDIDATES: std::ops::RangeInclusive<u32> = 2..=100;
const QUERIES_MAX: u32 = 8;

/// Answers from documents. A request may ask for another `rerank`, `rewrite` and `hyde`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RagSettings {
    pub rerank: RerankSettings,
    /// Who makes the queries of a question. A model needs a provider (`llm`); where it fails, the rules do it.
    pub rewrite: RewriteMethod,
    /// Of `rewrite: model`: how many other wordings of the question are searched too, 0 to 8.
    pub queries: u32,
    /// Whether a model writes a passage that might answer, and passages like that one are searched too.
    pub hyde: bool,
    /// The model that rewrites and re-ranks; without it `llm.default_model`.
    pub model: Option<String>,
    /// How long one call of that model may take, in milliseconds, at most 60000.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub model_time_max_ms: u64,
}

/// In which order an answer's sources are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RerankSettings {
    /// `none`: as the searches found them. `late`: compared with the question token by token, by the collection's own model.
    /// `llm`: a model puts them in order. `provider:MODEL`: that re-ranking model of the gateway does.
    #[schemars(with = "String")]
    pub method: Rerank,
    /// How many of the best are re-ranked, 2 to 100.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 2, max = 100))]
    pub candidates: u32,
    /// Of `late`: how long a request that asks for it waits for the vectors of passages that are not known yet, in
    /// milliseconds. Those that it does not suffice for keep their places, as for requests that do not ask do all that are
    /// not known; they are made known when nobody waits.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub time_max_ms: u64,
    /// Of `late`: what vectors of passages that are kept for the next question may take, in bytes; about 100 KB a passage.
    pub cache_bytes_max: u64,
}

/// How sources are re-ranked. Written `none`, `late`, `llm` or `provider:MODEL`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rerank {
    None,
    /// Late interaction over the token vectors of the collection's model.
    Late,
    /// Listwise, by a model for chat.
    Llm,
    /// By a re-ranking model of the gateway.
    Provider(String),
}

impl Rerank {
    /// What is done where nothing says otherwise. Measured in docs/answers.md.
    pub const DEFAULT: Self = Self::Late;

    /// Whether somebody else does the work, so that this processor has none meanwhile.
    pub fn waits_for_a_model(&self) -> bool {
        matches!(self, Self::Llm | Self::Provider(_))
    }
}

impl fmt::Display for Rerank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Late => f.write_str("late"),
            Self::Llm => f.write_str("llm"),
            Self::Provider(model) => write!(f, "provider:{model}"),
        }
    }
}

impl FromStr for Rerank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "late" => Ok(Self::Late),
            "llm" => Ok(Self::Llm),
            _ => match text.strip_prefix("provider:").map(str::trim) {
                Some(model) if !model.is_empty() => Ok(Self::Provider(model.to_owned())),
                _ => Err(format!(
                    "`{text}` is no way to re-rank: use `none`, `late`, `llm`, or `provider:` and the name of a re-ranking model"
                )),
            },
        }
    }
}

impl TryFrom<String> for Rerank {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rerank> for String {
    fn from(rerank: Rerank) -> Self {
        rerank.to_string()
    }
}

/// Who makes the queries of a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewriteMethod {
    /// Rules and a table of synonyms: no model, no waiting.
    #[default]
    Rules,
    /// A model, which knows the conversation.
    Model,
}

impl RagSettings {
    /// What is wrong with values that are fine by themselves; `None` where nothing is.
    pub(super) fn problem(&self) -> Option<String> {
        if !CANDIDATES.contains(&self.rerank.candidates) {
            return Some(format!(
                "`rag.rerank.candidates` is {}: use {} to {}",
                self.rerank.candidates,
                CANDIDATES.start(),
                CANDIDATES.end()
            ));
        }
        if self.queries > QUERIES_MAX {
            return Some(format!(
                "`rag.queries` is {}: use at most {QUERIES_MAX}",
                self.queries
            ));
        }
        (self.model_time_max_ms > MODEL_TIME_MAX_MS).then(|| {
            format!(
                "`rag.model_time_max_ms` is {}: use at most {MODEL_TIME_MAX_MS}",
                self.model_time_max_ms
            )
        })
    }
}

impl Default for RagSettings {
    fn default() -> Self {
        Self {
            rerank: RerankSettings::default(),
            rewrite: RewriteMethod::default(),
            queries: 3,
            hyde: false,
            model: None,
            model_time_max_ms: 10_000,
        }
    }
}

impl Default for RerankSettings {
    fn default() -> Self {
        Self {
            method: Rerank::DEFAULT,
            candidates: 20,
            time_max_ms: 400,
            cache_bytes_max: 64 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_rerank_are_written_as_they_are_read() {
        for text in ["none", "late", "llm", "provider:bge-reranker"] {
            let read: Rerank = serde_json::from_value(text.into()).expect("a way to re-rank");
            assert_eq!(serde_json::to_value(&read).expect("text"), text);
        }
        for text in ["", "Late", "provider:", "provider: ", "bge"] {
            let error = text.parse::<Rerank>().expect_err(text);
            assert!(error.contains("use `none`"), "{error}");
        }
    }
}
