//! The gateway to models: who asks for what, the router that finds an answer, and the books of what it took.
//!
//! [`Gateway`] is what handlers and the RAG answers call; it hands out streams that settle themselves. Money is events of
//! the topic `llm.usage` (`events`): the [`books`] are their sum, whether they are kept or read again from the log. `cache`
//! gives replies again that are kept, `alerts` tells of models that nobody answers for.
//! Protocols of clients are `http/v1`'s business, providers and routing are `va-llm`'s.

mod alerts;
pub mod books;
mod cache;
mod events;
mod ledger;
mod local;

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use va_catalog::TenantScope;
use va_catalog::settings::llm::{
    Amount, BudgetSettings, LOCAL_PROVIDER, LlmSettings, ModelUse, TemplateReplySettings,
};
use va_catalog::store::Principal;
use va_connectors::cache::Cache;
use va_connectors::log::Log;
use va_llm::{
    Attempt, Caller, ChatReply, ChatRequest, ChatStream, EmbedReply, EmbedRequest, Ledger,
    LlmError, ModelInfo, Outcome, Parts, Provider, RerankReply, RerankRequest, RouteInfo, Router,
    SpeakRequest, SpeechStream, TokenCount, Took, TranscribeReply, TranscribeRequest, Usage,
};
use va_models::{ChatTokenizer, Embedders, ModelError};

use alerts::{Failing, is_all_failed};
pub use books::BudgetState;
pub use cache::CacheWish;
use cache::{Looked, ReplyCache};
pub use ledger::UsageReport;
use ledger::{Accounts, UsageLedger};
use local::LocalModels;

use crate::platform::{Platform, now_ms};
use crate::rag::Lang;

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
    replies: Arc<ReplyCache>,
    template: TemplateReplySettings,
    failing: Failing,
    /// Which the gateway is a part of; for alerts.
    platform: OnceLock<Weak<Platform>>,
}

impl Gateway {
    /// Makes the providers and deployments of the settings. Connects to nobody. The environment is asked for keys only.
    pub fn new(
        settings: &LlmSettings,
        embedders: Arc<Embedders>,
        log: Arc<dyn Log>,
        cache: Arc<dyn Cache>,
        process: &str,
    ) -> Result<Self, String> {
        let ledger = Arc::new(UsageLedger::new(log, process, settings));
        let local = Arc::new(LocalModels::new(embedders.clone(), &settings.local));
        let names = local.embedding_names();
        let replies = ReplyCache::new(&settings.cache, cache, embedders, &names)?;
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
            replies: Arc::new(replies),
            template: settings.template_reply.clone(),
            failing: Failing::default(),
            platform: OnceLock::new(),
        })
    }

    /// Reads the books from the log and begins to write to it. Runs until the platform stops.
    pub fn start(&self, platform: &Arc<Platform>) {
        // Started once; a second time would change nothing.
        let _ = self.platform.set(Arc::downgrade(platform));
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

    /// The tokens that a request to a model and its reply may have together, where that is known.
    pub fn context_tokens(&self, model: &str) -> Option<u32> {
        self.router.context_tokens(model)
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
        let asked = self.router.chat(caller, request).await;
        self.watch(&request.model, asked)
    }

    /// [`Self::chat`], waiting for all of it.
    pub async fn complete(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<(ChatReply, RouteInfo), LlmError> {
        self.chat(caller, request).await?.collect().await
    }

    /// Asks for a reply that may be one which was given before, as far as the settings and `wish` allow. What is new is kept.
    pub async fn chat_or_kept(
        &self,
        caller: &Caller,
        request: &ChatRequest,
        wish: CacheWish,
    ) -> Result<ChatStream, LlmError> {
        if wish == CacheWish::Bypass || !self.replies.is_on() {
            return self.chat(caller, request).await;
        }
        let begun = Instant::now();
        let model = self.router.may_ask(caller, request)?;
        let looked = self.replies.look(&caller.tenant, &model, request, wish);
        match looked.await {
            Looked::Found(stream, how) => {
                self.write_down_kept(caller, &model, how, begun).await?;
                Ok(stream)
            }
            Looked::Nothing(keep) => {
                let stream = self.chat(caller, request).await?;
                Ok(self.replies.listen(stream, keep))
            }
        }
    }

    /// [`Self::chat_or_kept`], waiting for all of it.
    pub async fn complete_or_kept(
        &self,
        caller: &Caller,
        request: &ChatRequest,
        wish: CacheWish,
    ) -> Result<(ChatReply, RouteInfo), LlmError> {
        let stream = self.chat_or_kept(caller, request, wish).await?;
        stream.collect().await
    }

    /// A call that asked nobody is an event too, and costs nothing.
    async fn write_down_kept(
        &self,
        caller: &Caller,
        model: &str,
        how: &'static str,
        begun: Instant,
    ) -> Result<(), LlmError> {
        // Under the name of the settings, of which there are not too many for a metric.
        let name = self.router.model_name(model).unwrap_or(model);
        let attempt = Attempt {
            number: 0,
            model: model.to_owned(),
            deployment: format!("{name}/cache/{how}"),
            provider: "cache".to_owned(),
            upstream_model: how.to_owned(),
            most: Usage::default(),
            most_cost: 0,
        };
        let accounts = Accounts(self.ledger.clone());
        let reservation = accounts.reserve(caller, attempt).await?;
        let took = Took {
            whole: begun.elapsed(),
            first_token: None,
        };
        reservation.settle(Usage::default(), 0, Outcome::Cached, took);
        Ok(())
    }

    /// Counts the tokens of a request.
    pub async fn count_tokens(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<TokenCount, LlmError> {
        self.router.count_tokens(caller, request).await
    }

    /// Asks for vectors.
    pub async fn embed(
        &self,
        caller: &Caller,
        request: &EmbedRequest,
    ) -> Result<(EmbedReply, RouteInfo), LlmError> {
        let asked = self.router.embed(caller, request).await;
        self.watch(&request.model, asked)
    }

    /// Asks for an order of documents.
    pub async fn rerank(
        &self,
        caller: &Caller,
        request: &RerankRequest,
    ) -> Result<(RerankReply, RouteInfo), LlmError> {
        let asked = self.router.rerank(caller, request).await;
        self.watch(&request.model, asked)
    }

    /// Asks for the text of what was said.
    pub async fn transcribe(
        &self,
        caller: &Caller,
        request: &TranscribeRequest,
    ) -> Result<(TranscribeReply, RouteInfo), LlmError> {
        let asked = self.router.transcribe(caller, request).await;
        self.watch(&request.model, asked)
    }

    /// Asks for a text to be read aloud, as it comes. Dropping the stream ends the call.
    pub async fn speak(
        &self,
        caller: &Caller,
        request: &SpeakRequest,
    ) -> Result<SpeechStream, LlmError> {
        let asked = self.router.speak(caller, request).await;
        self.watch(&request.model, asked)
    }

    /// What a person is told instead of an answer to `question`, when the failure is that of all who could have answered.
    pub fn template_reply(&self, question: &str, error: &LlmError) -> Option<&str> {
        let text = match Lang::of(question) {
            Lang::Zh => &self.template.zh,
            Lang::En => &self.template.en,
        };
        (is_all_failed(error.kind) && !text.is_empty()).then_some(text.as_str())
    }

    /// Tells when nobody answers for a model, and when somebody does again.
    fn watch<T>(&self, asked: &str, outcome: Result<T, LlmError>) -> Result<T, LlmError> {
        let Some(model) = self.router.model_name(asked) else {
            return outcome;
        };
        let news = match &outcome {
            Ok(_) => self
                .failing
                .answered(model)
                .then(|| ("cleared", "a model answers again".to_owned())),
            Err(error) if is_all_failed(error.kind) => {
                metrics::counter!("va_llm_all_failed_total", "model" => model.to_owned())
                    .increment(1);
                self.failing
                    .failed(model, now_ms())
                    .then(|| ("raised", error.message.clone()))
            }
            Err(_) => None,
        };
        if let Some((state, detail)) = news
            && let Some(platform) = self.platform.get().and_then(Weak::upgrade)
        {
            let model = model.to_owned();
            // Ends with its one commit; on a log that is away, with the log's own patience.
            tokio::spawn(async move {
                crate::backlog::raise(&platform, "model", &model, state, &detail).await;
            });
        }
        outcome
    }

    /// What the tenant has spent, and how its budgets stand.
    pub async fn usage(&self, tenant: &TenantScope) -> Result<UsageReport, LlmError> {
        let budgets = self.budgets.iter();
        let budgets: Vec<_> = budgets
            .filter(|budget| budget.tenant == tenant.as_str())
            .collect();
        self.ledger.report(tenant, &budgets).await
    }
}
