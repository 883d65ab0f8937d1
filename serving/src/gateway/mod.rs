//! The gateway to models: who asks for what, the router that finds an answer, and the books of what it took.
//!
//! [`Gateway`] is what handlers and the RAG answers call; it hands out streams that settle themselves. Money is events of
//! the topic `llm.usage` (`events`): the [`books`] are their sum, whether they are kept or read again from the log.
//! Protocols of clients are `http/v1`'s business, providers and routing are `va-llm`'s.

pub mod books;
mod events;
mod ledger;
mod local;

use std::sync::Arc;
use std::time::Duration;

use va_catalog::TenantId;
use va_catalog::settings::llm::{Amount, BudgetSettings, LOCAL_PROVIDER, LlmSettings, ModelUse};
use va_catalog::store::Principal;
use va_connectors::log::Log;
use va_llm::{
    Caller, ChatReply, ChatRequest, ChatStream, EmbedReply, EmbedRequest, LlmError, ModelInfo,
    Parts, Provider, RerankReply, RerankRequest, RouteInfo, Router,
};
use va_models::{ChatTokenizer, Embedders, ModelError};

pub use books::BudgetState;
pub use ledger::UsageReport;
use ledger::{Accounts, UsageLedger};
use local::LocalModels;

use crate::platform::{Platform, now_ms};

/// Budgets of keys are in millionths, the books in billionths of a thousandth.
const PICOS_PER_MICRO: i128 = 1_000_000;

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The gateway of one process.
pub struct Gateway {
    router: Router,
    ledger: Arc<UsageLedger>,
    budgets: Vec<BudgetSettings>,
    local: Arc<LocalModels>,
}

impl Gateway {
    /// Makes the providers and deployments of the settings. Connects to nobody. The environment is asked for keys only.
    pub fn new(
        settings: &LlmSettings,
        embedders: Arc<Embedders>,
        log: Arc<dyn Log>,
        process: &str,
    ) -> Result<Self, String> {
        let ledger = Arc::new(UsageLedger::new(log, process, settings));
        let local = Arc::new(LocalModels::new(embedders, &settings.local));
        let provider: Arc<dyn Provider> = local.clone();
        let parts = Parts {
            local: Some((provider, local.models())),
            ledger: Arc::new(Accounts(ledger.clone())),
            clock: Arc::new(now_ms),
            variable: Box::new(variable),
        };
        Ok(Self {
            router: va_llm::build(settings, parts).map_err(|error| error.to_string())?,
            ledger,
            budgets: settings.budgets.clone(),
            local,
        })
    }

    /// Reads the books from the log and begins to write to it. Runs until the platform stops.
    pub fn start(&self, platform: &Arc<Platform>) {
        ledger::start(&self.ledger, platform);
    }

    /// Writes what is still to be written.
    pub async fn close(&self) {
        self.ledger.close().await;
    }

    /// Whether some model can be asked for replies.
    pub fn is_configured(&self) -> bool {
        self.router.has_chat()
    }

    /// In a line, for `va doctor`.
    pub fn told(&self) -> String {
        let models = self.models();
        let chat = models
            .iter()
            .filter(|model| model.used_for == ModelUse::Chat);
        match (self.is_configured(), chat.count()) {
            (false, _) => {
                "no provider is configured (`llm` in va.yaml, or OPENAI_API_KEY)".to_owned()
            }
            (true, 0) => "models under the names that providers have for them".to_owned(),
            (true, models) => format!("{models} models for replies"),
        }
    }

    /// The model of a request that names none.
    pub fn default_model(&self) -> Option<&str> {
        self.router.default_model()
    }

    /// The models that can be asked for, without those of this process that are not fetched.
    pub fn models(&self) -> Vec<ModelInfo> {
        let absent = self.local.absent_chats();
        let mut models = self.router.models();
        models.retain(|model| model.provider != LOCAL_PROVIDER || !absent.contains(&model.name));
        models
    }

    /// The tokenizer of a language model of this process, for exact counts. Blocks.
    pub fn local_tokenizer(&self, model: &str) -> Result<ChatTokenizer, ModelError> {
        self.local.tokenizer(model)
    }

    /// Drops language models that nobody asked for within `idle`; returns how many. Blocks.
    pub fn unload_idle(&self, idle: Duration) -> usize {
        self.local.unload_idle(idle)
    }

    /// On whose behalf: the holder of this key. What a key may use and spend beside the settings goes in here.
    pub fn caller(&self, principal: &Principal, request_id: &str) -> Caller {
        Caller {
            tenant: principal.tenant.clone(),
            key: principal.key().map(ToString::to_string),
            user: principal.user().map(ToString::to_string),
            models: principal.limits.models.clone(),
            budgets: principal
                .limits
                .budget
                .iter()
                .map(|budget| BudgetSettings {
                    tenant: principal.tenant.to_string(),
                    key: principal.key().map(ToString::to_string),
                    amount: Amount::from_picos(i128::from(budget.micros) * PICOS_PER_MICRO),
                    window: budget.window,
                })
                .collect(),
            request_id: request_id.to_owned(),
        }
    }

    /// Asks for a reply, as it comes. Dropping the stream ends the call.
    pub async fn chat(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<ChatStream, LlmError> {
        self.router.chat(caller, request).await
    }

    /// Asks for a reply and waits for all of it.
    pub async fn complete(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<(ChatReply, RouteInfo), LlmError> {
        self.router.complete(caller, request).await
    }

    /// Asks for vectors.
    pub async fn embed(
        &self,
        caller: &Caller,
        request: &EmbedRequest,
    ) -> Result<(EmbedReply, RouteInfo), LlmError> {
        self.router.embed(caller, request).await
    }

    /// Asks for an order of documents.
    pub async fn rerank(
        &self,
        caller: &Caller,
        request: &RerankRequest,
    ) -> Result<(RerankReply, RouteInfo), LlmError> {
        self.router.rerank(caller, request).await
    }

    /// What the tenant has spent, and how its budgets stand.
    pub async fn usage(&self, tenant: &TenantId) -> Result<UsageReport, LlmError> {
        let budgets = self.budgets.iter();
        let budgets: Vec<_> = budgets
            .filter(|budget| budget.tenant == tenant.as_str())
            .collect();
        self.ledger.report(tenant, &budgets).await
    }
}
