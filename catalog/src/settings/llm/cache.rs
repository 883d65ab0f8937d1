//! `llm.cache`: which replies are kept and given again; `llm.template_reply`: what is said when no model answers.
//!
//! Both caches are off unless switched on. Where replies are kept is the section `cache`'s business, when one fits the
//! gateway's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::positive_u64;

/// Replies that are given again instead of asking a model. Of each tenant its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReplyCacheSettings {
    /// The reply to the same request.
    pub exact: ExactCacheSettings,
    /// The reply to a question that means the same.
    pub semantic: SemanticCacheSettings,
}

/// The same request gets the same reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactCacheSettings {
    pub enabled: bool,
    /// How long a reply is kept.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub life_seconds: u64,
}

/// A question that means the same gets the same reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SemanticCacheSettings {
    pub enabled: bool,
    /// How long a reply is kept.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub life_seconds: u64,
    /// The cosine from which on two questions mean the same, 0 to 1.
    #[schemars(with = "f64", range(min = 0.0, max = 1.0))]
    pub similarity: Similarity,
    /// The local embedding model that compares them.
    pub model: String,
    /// How many questions of a tenant are remembered.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1, max = 100_000))]
    pub entries_max: u64,
}

impl Default for ExactCacheSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            life_seconds: 3_600,
        }
    }
}

impl Default for SemanticCacheSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            life_seconds: 3_600,
            similarity: Similarity {
                millionths: 970_000,
            },
            model: "multilingual-e5-small".to_owned(),
            entries_max: 1_000,
        }
    }
}

impl SemanticCacheSettings {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        if self.entries_max > 100_000 {
            problems.push(format!(
                "`llm.cache.semantic.entries_max` is {}: use at most 100000, since each question is compared with all of them",
                self.entries_max
            ));
        }
        if self.enabled && self.model.trim().is_empty() {
            problems.push(
                "`llm.cache.semantic.model` is empty: name a local embedding model, e.g. `multilingual-e5-small`"
                    .to_owned(),
            );
        }
    }
}

/// A share of 1, to six decimal places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Similarity {
    millionths: u32,
}

impl Similarity {
    pub fn as_f32(self) -> f32 {
        f64::from(self) as f32
    }
}

impl TryFrom<f64> for Similarity {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("{share} is not within 0 and 1"));
        }
        Ok(Self {
            millionths: (share * 1e6).round() as u32,
        })
    }
}

impl From<Similarity> for f64 {
    fn from(similarity: Similarity) -> Self {
        Self::from(similarity.millionths) / 1e6
    }
}

/// What a person is told when every model fails, by the language of the question. An empty text leaves it at the error.
/// Clients of `/v1` always get the error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateReplySettings {
    /// In Chinese.
    pub zh: String,
    /// In English, and for every other language.
    pub en: String,
}

impl Default for TemplateReplySettings {
    fn default() -> Self {
        Self {
            zh: "抱歉，现在没有可用的模型来回答这个问题，请稍后再试。".to_owned(),
            en: "Sorry, no model can answer this at the moment. Please try again later.".to_owned(),
        }
    }
}
