//! From the settings to a router: clients, headers and keys of providers, deployments of models.

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::header::HeaderMap;
use va_catalog::settings::llm::{
    LOCAL_PROVIDER, LlmModelSettings, LlmSettings, ProviderKind, ProviderSettings,
};

use crate::anthropic::{self, Anthropic};
use crate::http;
use crate::ledger::Ledger;
use crate::openai::{self, Addresses, Habits, OpenAi};
use crate::provider::Provider;
use crate::router::{Deployment, Group, Router};

/// What a router is made of, beside the settings.
pub struct Parts {
    /// The models of this process, as provider `local`, by name.
    pub local: Option<(Arc<dyn Provider>, Vec<(String, LlmModelSettings)>)>,
    pub ledger: Arc<dyn Ledger>,
    /// UTC milliseconds, for prices.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// The environment, for keys.
    pub variable: Box<dyn Fn(&str) -> Option<String>>,
}

/// Why there is no router: all that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BuildError(pub Vec<String>);

/// Makes a router. Connects to nobody.
pub fn build(settings: &LlmSettings, parts: Parts) -> Result<Router, BuildError> {
    let mut problems = settings.problems();
    let mut providers: BTreeMap<&str, Arc<dyn Provider>> = BTreeMap::new();
    for (name, provider) in &settings.providers {
        match make(provider, &*parts.variable) {
            Ok(provider) => {
                providers.insert(name, provider);
            }
            Err(problem) => problems.push(format!("`llm.providers.{name}`: {problem}")),
        }
    }
    let mut models = settings.models.clone();
    if let Some((local, own)) = parts.local {
        for (name, model) in own {
            // A model of the settings with this name goes before.
            models.entry(name).or_insert(model);
        }
        providers.insert(LOCAL_PROVIDER, local);
    }
    if !problems.is_empty() {
        return Err(BuildError(problems));
    }
    if let Some(model) = &settings.default_model
        && !models.contains_key(model)
        && settings.find(model).is_none()
    {
        // Not an error, since a provider's key may be missing for a while.
        tracing::warn!(
            model,
            "`llm.default_model` names no model that is configured or runs in this process"
        );
    }
    let mut groups = Vec::new();
    for (name, model) in &models {
        let deployments = model.deployments.iter().filter_map(|deployment| {
            let provider = providers.get(deployment.provider.as_str())?.clone();
            Some(Arc::new(Deployment::new(name, deployment, provider)))
        });
        groups.push(Group {
            name: name.clone(),
            is_asked_for: settings.models.contains_key(name)
                || settings.default_model.as_ref() == Some(name),
            settings: model.clone(),
            deployments: deployments.collect(),
        });
    }
    Ok(Router::new(
        settings.clone(),
        groups,
        parts.ledger,
        parts.clock,
    ))
}

fn make(
    settings: &ProviderSettings,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn Provider>, String> {
    let key = match (&settings.api_key, &settings.api_key_env) {
        (Some(key), _) => Some(key.expose().to_owned()),
        (None, Some(name)) => Some(variable(name).filter(|key| !key.trim().is_empty()).ok_or(
            format!("the environment variable `{name}`, which `api_key_env` names, is not set"),
        )?),
        (None, None) => None,
    };
    let base_url = settings
        .base_url
        .as_deref()
        .unwrap_or(match settings.kind {
            ProviderKind::Openai | ProviderKind::Azure => "https://api.openai.com/v1",
            ProviderKind::Qwen => "https://dashscope.aliyuncs.com/compatible-mode/v1",
            ProviderKind::Ernie => "https://qianfan.baidubce.com/v2",
            ProviderKind::Anthropic => "https://api.anthropic.com",
        })
        .trim_end_matches('/');
    let http = http::client(base_url)?;
    let headers = |name: &str, key: Option<String>| -> Result<HeaderMap, String> {
        let own = settings
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()));
        let key = key.as_deref().map(|key| (name, key));
        openai::headers(key.into_iter().chain(own))
    };
    let bearer = |key: Option<String>| key.map(|key| format!("Bearer {}", key.trim()));
    let mut habits = Habits::default();
    let mut addresses = Addresses::Plain;
    let mut base_url = base_url.to_owned();
    let headers = match settings.kind {
        ProviderKind::Anthropic => {
            let mut headers = headers("x-api-key", key)?;
            let version = reqwest::header::HeaderValue::from_static(anthropic::VERSION);
            headers.entry("anthropic-version").or_insert(version);
            let base_url = base_url.strip_suffix("/v1").unwrap_or(&base_url).to_owned();
            return Ok(Arc::new(Anthropic {
                http,
                base_url,
                headers,
            }));
        }
        ProviderKind::Azure => {
            habits.max_tokens = "max_completion_tokens".to_owned();
            match &settings.api_version {
                Some(version) => {
                    addresses = Addresses::ByDeployment {
                        version: version.clone(),
                    }
                }
                // The form without versions, which is OpenAI's own.
                None if !base_url.ends_with("/openai/v1") => base_url.push_str("/openai/v1"),
                None => {}
            }
            headers("api-key", key)?
        }
        ProviderKind::Openai => {
            // Reasoning models of OpenAI know only the new name, most other servers only the old one.
            if base_url == "https://api.openai.com/v1" {
                habits.max_tokens = "max_completion_tokens".to_owned();
            }
            headers("authorization", bearer(key))?
        }
        ProviderKind::Qwen => {
            habits.tool_choice_required = false;
            // 2 itself is refused.
            habits.temperature_max = 1.99;
            headers("authorization", bearer(key))?
        }
        ProviderKind::Ernie => {
            habits.tool_choice_required = false;
            habits.temperature_max = 1.0;
            habits.seed = false;
            headers("authorization", bearer(key))?
        }
    };
    if let Some(field) = &settings.max_tokens_field {
        habits.max_tokens.clone_from(field);
    }
    Ok(Arc::new(OpenAi {
        http,
        base_url,
        addresses,
        headers,
        habits,
    }))
}
