//! The section `llm`: providers of models, the models that clients ask for, how calls are routed, what they may cost.
//!
//! Without it, `OPENAI_API_KEY`, `OPENAI_BASE_URL` and `ANTHROPIC_API_KEY` in the environment make a provider each
//! ([`LlmSettings::or_environment`]). Checking needs no network and returns every problem at once. What the words mean for
//! a call is the gateway's business.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Secret, positive_u64};

mod cache;
mod money;

pub use cache::{
    ExactCacheSettings, ReplyCacheSettings, SemanticCacheSettings, Similarity,
    TemplateReplySettings,
};
pub use money::{Amount, Date, Price};

/// Models behind providers, and the gateway to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LlmSettings {
    /// The model of a request that names none.
    pub default_model: Option<String>,
    /// Who runs models, by a name of one's own. `local`, the models in this process, is always there.
    pub providers: BTreeMap<String, ProviderSettings>,
    /// What clients ask for. A name that ends in `*` stands for all that begin so, under their own names.
    pub models: BTreeMap<String, LlmModelSettings>,
    /// How a deployment is chosen, and what happens when it fails.
    pub routing: RoutingSettings,
    /// Which replies are given again instead of asking a model.
    pub cache: ReplyCacheSettings,
    /// What people are told when every model fails.
    pub template_reply: TemplateReplySettings,
    /// What may be spent.
    pub budgets: Vec<BudgetSettings>,
    /// What prices and budgets are in; only shown.
    pub currency: String,
    /// The language models in this process.
    pub local: LocalModelSettings,
}

/// Language models in this process (provider `local`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LocalModelSettings {
    /// Replies that are made at a time; each takes all processors that are free.
    pub concurrency: NonZeroU32,
    /// Most calls that wait for those; more are refused.
    pub queue_max: u32,
    /// Most tokens of a conversation and its reply, where a model holds more: they take memory.
    pub context_tokens: NonZeroU32,
    /// Conversations that are kept in memory, so that the next turn of one starts sooner.
    pub conversations: NonZeroU32,
}

impl Default for LocalModelSettings {
    fn default() -> Self {
        Self {
            concurrency: NonZeroU32::MIN,
            queue_max: 16,
            context_tokens: const { NonZeroU32::new(8_192).expect("not zero") },
            conversations: const { NonZeroU32::new(2).expect("not zero") },
        }
    }
}

/// Which protocol a provider speaks, and its habits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// OpenAI, or any server that speaks its protocol (`base_url`).
    #[default]
    Openai,
    /// Azure OpenAI: `base_url` is the resource, a deployment's `model` is Azure's name of the deployment.
    Azure,
    /// Qwen at DashScope, in its OpenAI-compatible mode.
    Qwen,
    /// ERNIE at Qianfan, in its OpenAI-compatible mode.
    Ernie,
    /// The Anthropic Messages API.
    Anthropic,
}

/// Somebody who runs models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderSettings {
    pub kind: ProviderKind,
    /// Where it is; each kind but `azure` has a default.
    pub base_url: Option<String>,
    /// The key itself. Better is `api_key_env`.
    pub api_key: Option<Secret>,
    /// Name of the environment variable that holds the key.
    pub api_key_env: Option<String>,
    /// Of `azure`: the version of its API, for deployments that are addressed by path.
    pub api_version: Option<String>,
    /// More headers for each call.
    pub headers: BTreeMap<String, Secret>,
    /// What the limit of the reply's length is called: `max_tokens`, which most servers know, or `max_completion_tokens`.
    pub max_tokens_field: Option<String>,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelUse {
    #[default]
    Chat,
    Embedding,
    Rerank,
    /// Text of what was said.
    Transcription,
    /// A voice that reads text.
    Speech,
}

/// A model as clients ask for it: one or more deployments that are alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LlmModelSettings {
    #[serde(rename = "use")]
    pub used_for: ModelUse,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Where it runs.
    pub deployments: Vec<DeploymentSettings>,
    /// Models that are asked, in this order, when no deployment of this one answers.
    pub fallbacks: Vec<String>,
    /// Models that are asked when the request is too long for this one.
    pub context_window_fallbacks: Vec<String>,
    /// Models that are asked when the provider refuses the content.
    pub content_policy_fallbacks: Vec<String>,
    /// How a deployment is chosen; without it as `routing.strategy` says.
    pub strategy: Option<Strategy>,
}

/// A model at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentSettings {
    /// One of `providers`, or `local`.
    pub provider: String,
    /// The provider's name of the model; without it, the one that the client asked for.
    #[serde(default)]
    pub model: Option<String>,
    /// Its share of the calls, against the others' weights. With 0 it is asked when the others cannot be.
    #[serde(default = "one")]
    pub weight: u32,
    /// Most requests a minute; more of them wait.
    #[serde(default)]
    pub rpm: Option<NonZeroU32>,
    /// Most tokens a minute; more of them wait.
    #[serde(default)]
    pub tpm: Option<NonZeroU64>,
    /// Most calls at a time; more of them wait.
    #[serde(default)]
    pub concurrent: Option<NonZeroU32>,
    /// How many tokens a request and its reply may have together. A request that is clearly longer is not sent.
    #[serde(default)]
    pub context_tokens: Option<NonZeroU32>,
    /// The longest reply. It is reserved for a request that names no limit.
    #[serde(default)]
    pub output_tokens_max: Option<NonZeroU32>,
    /// What it can do; without it, everything. A request that needs more goes to another deployment.
    #[serde(default)]
    pub capabilities: Option<Vec<Capability>>,
    /// What it costs, from which day on.
    #[serde(default)]
    pub prices: Vec<PriceSettings>,
}

fn one() -> u32 {
    1
}

/// What a request may need of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Calls of tools.
    Tools,
    /// Pictures in messages.
    Vision,
    /// Replies that are JSON, by a schema or not.
    Json,
}

/// What a deployment costs from a day on, in `llm.currency` for a million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceSettings {
    /// The first day (UTC) of this price, `YYYY-MM-DD`; without it, it has always been so.
    #[serde(default)]
    pub from: Option<Date>,
    /// Of the request's tokens.
    #[serde(default)]
    pub input: Price,
    /// Of the reply's tokens.
    #[serde(default)]
    pub output: Price,
    /// Of the request's tokens that the provider had in its cache; without it, as `input`.
    #[serde(default)]
    pub cached: Option<Price>,
    /// Of the request's tokens that were put into the provider's cache; without it, as `input`.
    #[serde(default)]
    pub cache_write: Option<Price>,
    /// Of a million seconds of a transcription's audio.
    #[serde(default)]
    pub seconds: Price,
    /// Of a million characters that are read aloud.
    #[serde(default)]
    pub characters: Price,
}

/// How a deployment is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// By chance, in proportion to their weights.
    #[default]
    Weight,
    /// The one that has been giving its first token soonest.
    Latency,
    /// The cheapest.
    Cost,
}

/// What happens on the way to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingSettings {
    pub strategy: Strategy,
    /// How long a call may take, in milliseconds; of a stream, how long it may be silent.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// How long a stream may take to its first token, in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub first_token_timeout_ms: u64,
    /// How often a call is repeated on the same deployment when that may help.
    pub retries: u32,
    /// The pause before the first repetition, in milliseconds; each further one is twice as long.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub backoff_ms: u64,
    /// How many calls may wait for a deployment that is at its limits.
    pub queue_max: u32,
    /// How long a call may wait there, in milliseconds.
    pub queue_wait_ms: u64,
    /// Of how many of the last calls in percent a deployment may fail before it is left alone.
    pub failures_percent_max: u32,
    /// The time in which those calls are counted, in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub failures_window_ms: u64,
    /// How many calls it takes to tell.
    pub failures_calls_min: u32,
    /// How long it is left alone, in milliseconds; then one call tries it.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub cooldown_ms: u64,
}

impl Default for RoutingSettings {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            timeout_ms: 60_000,
            first_token_timeout_ms: 60_000,
            retries: 3,
            backoff_ms: 1_000,
            queue_max: 128,
            queue_wait_ms: 10_000,
            failures_percent_max: 50,
            failures_window_ms: 60_000,
            failures_calls_min: 5,
            cooldown_ms: 30_000,
        }
    }
}

/// How often a budget begins anew, by UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetWindow {
    Day,
    /// On Monday.
    Week,
    #[default]
    Month,
    /// Never.
    Total,
}

/// What a tenant or one of its keys may spend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetSettings {
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// The id of a key (`key_...`), when the budget is for it alone.
    #[serde(default)]
    pub key: Option<String>,
    /// In `llm.currency`.
    pub amount: Amount,
    #[serde(default)]
    pub window: BudgetWindow,
}

fn default_tenant() -> String {
    crate::ids::TenantId::default_tenant().as_str().to_owned()
}

impl Default for LlmSettings {
    fn default() -> Self {
        Self {
            default_model: None,
            providers: BTreeMap::new(),
            models: BTreeMap::new(),
            routing: RoutingSettings::default(),
            cache: ReplyCacheSettings::default(),
            template_reply: TemplateReplySettings::default(),
            budgets: Vec::new(),
            currency: "USD".to_owned(),
            local: LocalModelSettings::default(),
        }
    }
}

/// The name of the provider that is this process.
pub const LOCAL_PROVIDER: &str = "local";

impl LlmSettings {
    /// These settings; where they name no provider, with those that the usual variables of the environment make.
    #[must_use]
    pub fn or_environment(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        if !self.providers.is_empty() || !self.models.is_empty() {
            return self;
        }
        let mut add = |name: &str, kind, base_url, key: &str, models: &str| {
            let provider = ProviderSettings {
                kind,
                base_url,
                api_key_env: variable(key).map(|_| key.to_owned()),
                ..ProviderSettings::default()
            };
            self.providers.insert(name.to_owned(), provider);
            let group = LlmModelSettings {
                deployments: vec![DeploymentSettings::at(name)],
                ..LlmModelSettings::default()
            };
            self.models.insert(models.to_owned(), group);
        };
        let openai = variable("OPENAI_BASE_URL");
        if openai.is_some() || variable("OPENAI_API_KEY").is_some() {
            add(
                "openai",
                ProviderKind::Openai,
                openai,
                "OPENAI_API_KEY",
                "*",
            );
        }
        if variable("ANTHROPIC_API_KEY").is_some() {
            let base_url = variable("ANTHROPIC_BASE_URL");
            add(
                "anthropic",
                ProviderKind::Anthropic,
                base_url,
                "ANTHROPIC_API_KEY",
                "claude-*",
            );
        }
        self
    }

    /// Everything that is wrong, each with its place.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, provider) in &self.providers {
            provider.check(name, &mut problems);
        }
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, model) in &self.models {
            for known in std::iter::once(name).chain(&model.aliases) {
                if let Some(other) = names.insert(known, name) {
                    problems.push(format!(
                        "`llm.models.{name}`: the name `{known}` belongs to `{other}` already"
                    ));
                }
            }
            if name.trim_end_matches('*').contains('*') {
                problems.push(format!(
                    "`llm.models.{name}`: a `*` may only be the last character of a name"
                ));
            }
            self.check_deployments(name, model, &mut problems);
        }
        for (name, model) in &self.models {
            let lists = [
                ("fallbacks", &model.fallbacks),
                ("context_window_fallbacks", &model.context_window_fallbacks),
                ("content_policy_fallbacks", &model.content_policy_fallbacks),
            ];
            for (list, models) in lists {
                for fallback in models {
                    let known = self.find(fallback);
                    if known.is_none() {
                        problems.push(format!(
                            "`llm.models.{name}.{list}`: there is no model `{fallback}` in `llm.models`"
                        ));
                    } else if known.is_some_and(|(_, other)| other.used_for != model.used_for) {
                        problems.push(format!(
                            "`llm.models.{name}.{list}`: `{fallback}` is for another use than `{name}`"
                        ));
                    }
                }
            }
        }
        if let Some(model) = &self.default_model
            && !self.models.is_empty()
            && self.find(model).is_none()
        {
            problems.push(format!(
                "`llm.default_model`: there is no model `{model}` in `llm.models`"
            ));
        }
        for (at, budget) in self.budgets.iter().enumerate() {
            if let Err(error) = crate::ids::TenantId::new(budget.tenant.as_str()) {
                problems.push(format!("`llm.budgets[{at}].tenant`: {error}"));
            }
        }
        self.cache.semantic.check(&mut problems);
        if self.routing.failures_percent_max > 100 {
            problems.push(format!(
                "`llm.routing.failures_percent_max` is {}: use 0 to 100",
                self.routing.failures_percent_max
            ));
        }
        if self.routing.retries > 10 {
            problems.push(format!(
                "`llm.routing.retries` is {}: use at most 10",
                self.routing.retries
            ));
        }
        problems
    }

    /// The model of that name: by its own name, an alias, or the longest beginning with a `*`.
    pub fn find(&self, name: &str) -> Option<(&str, &LlmModelSettings)> {
        if let Some((name, model)) = self.models.get_key_value(name) {
            return Some((name, model));
        }
        let alias = self
            .models
            .iter()
            .find(|(_, model)| model.aliases.iter().any(|alias| alias == name));
        let pattern = || {
            self.models
                .iter()
                .filter(|(known, _)| {
                    known
                        .strip_suffix('*')
                        .is_some_and(|beginning| name.starts_with(beginning))
                })
                .max_by_key(|(known, _)| known.len())
        };
        alias
            .or_else(pattern)
            .map(|(name, model)| (name.as_str(), model))
    }

    fn check_deployments(&self, name: &str, model: &LlmModelSettings, problems: &mut Vec<String>) {
        if model.deployments.is_empty() {
            problems.push(format!(
                "`llm.models.{name}` has no `deployments`: name at least one `provider`"
            ));
        }
        for (at, deployment) in model.deployments.iter().enumerate() {
            let place = format!("`llm.models.{name}.deployments[{at}]`");
            let provider = &deployment.provider;
            if provider == LOCAL_PROVIDER {
                if matches!(model.used_for, ModelUse::Transcription | ModelUse::Speech) {
                    problems.push(format!(
                        "{place}: the provider `{LOCAL_PROVIDER}` has no voices; name another provider"
                    ));
                }
            } else if !self.providers.contains_key(provider) {
                problems.push(format!(
                    "{place}: there is no provider `{provider}` in `llm.providers`"
                ));
            }
            let mut days: Vec<_> = deployment.prices.iter().map(|price| price.from).collect();
            days.sort_unstable();
            if days.windows(2).any(|pair| pair[0] == pair[1]) {
                problems.push(format!("{place}.prices: two prices begin on the same day"));
            }
            // Free of charge is said; forgotten is not the same.
            if !self.budgets.is_empty()
                && deployment.prices.is_empty()
                && provider != LOCAL_PROVIDER
            {
                problems.push(format!(
                    "{place} has no `prices`, but there are `llm.budgets`, against which its calls would count as nothing: \
                     give it prices, or say `prices: [{{input: 0, output: 0}}]`"
                ));
            }
        }
    }
}

impl DeploymentSettings {
    /// One without limits and prices.
    pub fn at(provider: &str) -> Self {
        Self {
            provider: provider.to_owned(),
            model: None,
            weight: one(),
            rpm: None,
            tpm: None,
            concurrent: None,
            context_tokens: None,
            output_tokens_max: None,
            capabilities: None,
            prices: Vec::new(),
        }
    }
}

impl ProviderSettings {
    fn check(&self, name: &str, problems: &mut Vec<String>) {
        let place = format!("`llm.providers.{name}`");
        if name == LOCAL_PROVIDER {
            problems.push(format!(
                "{place}: `{LOCAL_PROVIDER}` is this process; choose another name"
            ));
        }
        match &self.base_url {
            Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                problems.push(format!(
                    "{place}.base_url: it must begin with `https://` or `http://`"
                ));
            }
            None if self.kind == ProviderKind::Azure => problems.push(format!(
                "{place} has no `base_url`: for Azure it is `https://RESOURCE.openai.azure.com`"
            )),
            _ => {}
        }
        if self.api_key.is_some() && self.api_key_env.is_some() {
            problems.push(format!(
                "{place} has both `api_key` and `api_key_env`: use one"
            ));
        }
        if self.api_version.is_some() && self.kind != ProviderKind::Azure {
            problems.push(format!("{place}.api_version is for `kind: azure` only"));
        }
        if let Some(field) = &self.max_tokens_field
            && !matches!(field.as_str(), "max_tokens" | "max_completion_tokens")
        {
            problems.push(format!(
                "{place}.max_tokens_field is `{field}`: use `max_tokens` or `max_completion_tokens`"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
