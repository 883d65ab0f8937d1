//! The way of a request to the deployment that answers it.
//!
//! Acts on the decisions of [`crate::routing`]: takes the deployments of a model in their order, waits for room, reserves
//! the money, makes the call, and after a failure repeats it, goes on to the next deployment or to another model. A stream
//! is handed out when its first visible piece is there; until then everything can still be done elsewhere. What is on its
//! way when the caller goes is given back: room, money, the trial of a deployment.

mod audio;
mod count;
mod deployment;
mod need;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use va_catalog::settings::llm::{LlmModelSettings, LlmSettings, ModelUse, Strategy};
use va_connectors::trace::TARGET;

pub use audio::SpeechStream;
pub use count::TokenCount;
pub(crate) use deployment::{Deployment, Lease, Rules};
pub(crate) use need::tokens;
use need::{Need, counted};

use crate::error::{ErrorKind, LlmError};
use crate::ledger::{Attempt, Caller, Ledger, Outcome};
use crate::provider::{Call, Provider};
use crate::routing::retry::{Step, step};
use crate::routing::select::{Candidate, mixed, order};
use crate::stream::{ChatStream, open};
use crate::types::{
    ChatReply, ChatRequest, EmbedReply, EmbedRequest, RerankReply, RerankRequest, Usage,
};

/// What a reply takes when neither the request nor the deployment says how long it may be.
const OUTPUT_TOKENS: u64 = 4_096;

/// A model as clients ask for it.
#[derive(Debug)]
pub(crate) struct Group {
    pub name: String,
    /// Whether the settings name it. A model of this process is there without that, but nothing uses it unasked.
    pub is_asked_for: bool,
    pub settings: LlmModelSettings,
    pub deployments: Vec<Arc<Deployment>>,
}

/// A model that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    pub name: String,
    pub aliases: Vec<String>,
    pub used_for: ModelUse,
    /// Whose it is: the provider of its first deployment.
    pub provider: String,
}

/// How a request got its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteInfo {
    /// `model/provider/upstream model`.
    pub deployment: String,
    /// How many calls were made for it.
    pub tries: u32,
    /// Whether another model answers than was asked for.
    pub fell_back: bool,
    /// How much of the time was spent waiting: for providers, for room, between repetitions.
    pub waited: Duration,
    /// What a cache of replies made of it: `exact` or `semantic` where the reply was kept there, `miss` where it was not;
    /// `None` where none was asked.
    pub cache: Option<&'static str>,
}

/// Finds the deployment that answers.
pub struct Router {
    settings: LlmSettings,
    groups: Vec<Group>,
    rules: Rules,
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    chance: AtomicU64,
}

/// What came of a request: the answer, what it holds on to, and how it came about.
type Routed<T> = (T, Lease, RouteInfo);

/// The function of a provider that gives a reply in one piece.
type Ask<R, T> =
    for<'a> fn(&'a dyn Provider, Call<'a>, &'a R) -> BoxFuture<'a, Result<T, LlmError>>;

impl Router {
    pub(crate) fn new(
        settings: LlmSettings,
        groups: Vec<Group>,
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    ) -> Self {
        let mut seed = [0; 8];
        // Without randomness from the system the order is the same after each start, which is no fault.
        let _ = getrandom::fill(&mut seed);
        Self {
            rules: Rules::of(&settings.routing),
            settings,
            groups,
            ledger,
            clock,
            chance: AtomicU64::new(u64::from_le_bytes(seed)),
        }
    }

    /// Whether some model is there to be asked for replies.
    pub fn has_chat(&self) -> bool {
        self.groups
            .iter()
            .any(|group| group.is_asked_for && group.settings.used_for == ModelUse::Chat)
    }

    /// The model of a request that names none.
    pub fn default_model(&self) -> Option<&str> {
        self.settings.default_model.as_deref().or_else(|| {
            let chat =
                |group: &&Group| group.is_asked_for && group.settings.used_for == ModelUse::Chat;
            let named = self.groups.iter().filter(chat);
            let mut named = named.filter(|group| !group.name.ends_with('*'));
            named.next().map(|group| group.name.as_str())
        })
    }

    /// The models, by name; those that stand for many are left out.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.groups
            .iter()
            .filter(|group| !group.name.ends_with('*'))
            .map(|group| ModelInfo {
                name: group.name.clone(),
                aliases: group.settings.aliases.clone(),
                used_for: group.settings.used_for,
                provider: group
                    .deployments
                    .first()
                    .map_or_else(String::new, |deployment| deployment.provider_name.clone()),
            })
            .collect()
    }

    /// The name that a model goes by in the settings.
    pub fn model_name(&self, asked: &str) -> Option<&str> {
        let asked = if asked.is_empty() {
            self.default_model()?
        } else {
            asked
        };
        self.group(asked).map(|group| group.name.as_str())
    }

    /// The tokens that a request and its reply may have together: as many as the largest deployment takes. `None` where there
    /// is no such model, or one of its deployments does not say.
    pub fn context_tokens(&self, asked: &str) -> Option<u32> {
        let group = self.group(self.model_name(asked)?)?;
        let known: Option<Vec<u32>> = group.deployments.iter().map(|d| d.context_tokens).collect();
        known?.into_iter().max()
    }

    /// The model that a request is for, under one name for all its aliases, when the caller may ask for it.
    pub fn may_ask(&self, caller: &Caller, request: &ChatRequest) -> Result<String, LlmError> {
        let need = self.chat_need(request)?;
        let group = self.permitted(caller, &need)?;
        // One that stands for many is a model for each name.
        let name = if group.name.ends_with('*') {
            need.model
        } else {
            group.name.as_str()
        };
        Ok(name.to_owned())
    }

    /// Asks for a reply. It is a stream in any case; with `stream: false` the provider was asked for it in one piece.
    pub async fn chat(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<ChatStream, LlmError> {
        let need = self.chat_need(request)?;
        let rules = &self.rules;
        let run = |deployment: &Deployment, asked: &str| -> BoxFuture<'static, _> {
            let (provider, model) = (deployment.provider.clone(), deployment.upstream(asked));
            let (request, output_tokens_max) = (request.clone(), deployment.output_tokens_max);
            let limits = (rules.first_token_timeout, rules.timeout);
            Box::pin(async move {
                let call = Call {
                    model: &model,
                    output_tokens_max,
                };
                open(provider.as_ref(), call, &request, limits).await
            })
        };
        let (opened, lease, info) = self.route(caller, &need, &run).await?;
        Ok(ChatStream::new(opened, lease, info, rules.timeout))
    }

    /// Asks for a reply and waits for all of it.
    pub async fn complete(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<(ChatReply, RouteInfo), LlmError> {
        self.chat(caller, request).await?.collect().await
    }

    /// Asks for vectors.
    pub async fn embed(
        &self,
        caller: &Caller,
        request: &EmbedRequest,
    ) -> Result<(EmbedReply, RouteInfo), LlmError> {
        let need = Need {
            model: &request.model,
            used_for: ModelUse::Embedding,
            input_tokens: request.texts.iter().map(|text| tokens(text)).sum(),
            output_tokens: Some(0),
            user: request.user.as_deref(),
            ..Need::default()
        };
        let ask: Ask<_, _> = |provider, call, request| provider.embed(call, request);
        let (reply, lease, info) = self.whole(caller, &need, request, ask).await?;
        let usage = counted(reply.usage, need.input_tokens);
        lease.settle(usage, Outcome::Ok);
        Ok((EmbedReply { usage, ..reply }, info))
    }

    /// Asks for an order of documents.
    pub async fn rerank(
        &self,
        caller: &Caller,
        request: &RerankRequest,
    ) -> Result<(RerankReply, RouteInfo), LlmError> {
        let documents: u64 = request.documents.iter().map(|text| tokens(text)).sum();
        let query = tokens(&request.query);
        let need = Need {
            model: &request.model,
            used_for: ModelUse::Rerank,
            input_tokens: documents + query * request.documents.len() as u64,
            output_tokens: Some(0),
            ..Need::default()
        };
        let ask: Ask<_, _> = |provider, call, request| provider.rerank(call, request);
        let (mut reply, lease, info) = self.whole(caller, &need, request, ask).await?;
        let usage = counted(reply.usage, need.input_tokens);
        lease.settle(usage, Outcome::Ok);
        if let Some(top_n) = request.top_n {
            reply.ranked.truncate(top_n as usize);
        }
        Ok((RerankReply { usage, ..reply }, info))
    }

    /// The group of that name: its own, an alias, or one that stands for many.
    fn group(&self, name: &str) -> Option<&Group> {
        let exact = |group: &&Group| {
            group.name == name || group.settings.aliases.iter().any(|alias| alias == name)
        };
        self.groups.iter().find(exact).or_else(|| {
            let (found, _) = self.settings.find(name)?;
            self.groups.iter().find(|group| group.name == found)
        })
    }

    /// The model that is asked for, when there is one for this use and the caller may ask for it.
    fn permitted(&self, caller: &Caller, need: &Need<'_>) -> Result<&Group, LlmError> {
        let group = self.group(need.model).ok_or_else(|| self.unknown(need))?;
        if let Some(models) = &caller.models
            && !models
                .iter()
                .any(|model| model == need.model || *model == group.name)
        {
            return Err(LlmError::new(
                ErrorKind::Forbidden,
                format!("this key may not use the model `{}`", need.model),
            ));
        }
        if group.settings.used_for != need.used_for
            && !(need.used_for == ModelUse::Rerank
                && group.settings.used_for == ModelUse::Embedding)
        {
            return Err(LlmError::new(
                ErrorKind::BadRequest,
                format!(
                    "the model `{}` is for another use ({:?}) than this call needs ({:?})",
                    need.model, group.settings.used_for, need.used_for
                ),
            ));
        }
        Ok(group)
    }

    /// Asks for a reply that comes in one piece.
    async fn whole<R: Clone + Send + Sync + 'static, T: 'static>(
        &self,
        caller: &Caller,
        need: &Need<'_>,
        request: &R,
        ask: Ask<R, T>,
    ) -> Result<Routed<T>, LlmError> {
        let timeout = self.rules.timeout;
        let run = |deployment: &Deployment, asked: &str| -> BoxFuture<'static, _> {
            let (provider, model) = (deployment.provider.clone(), deployment.upstream(asked));
            let request = request.clone();
            Box::pin(async move {
                let call = Call {
                    model: &model,
                    output_tokens_max: None,
                };
                within(timeout, ask(provider.as_ref(), call, &request)).await
            })
        };
        self.route(caller, need, &run).await
    }

    /// Asks the deployments of the model, and of those that may stand in for it, until one answers.
    async fn route<T>(
        &self,
        caller: &Caller,
        need: &Need<'_>,
        run: &(dyn Fn(&Deployment, &str) -> BoxFuture<'static, Result<T, LlmError>> + Send + Sync),
    ) -> Result<Routed<T>, LlmError> {
        let group = self.permitted(caller, need)?;
        let mut info = RouteInfo::default();
        let mut seen = HashSet::from([group.name.as_str()]);
        let mut queue = std::collections::VecDeque::from([(group, need.model)]);
        let mut first: Option<LlmError> = None;
        while let Some((group, asked)) = queue.pop_front() {
            info.fell_back = first.is_some();
            let (error, stand_ins) =
                match self.ask(caller, need, group, asked, &mut info, run).await {
                    Ok((answer, lease)) => return Ok((answer, lease, info)),
                    Err(failed) => failed,
                };
            tracing::warn!(model = group.name, request = caller.request_id, %error, "no deployment answered");
            let names: &[String] = match stand_ins {
                StandIns::None => &[],
                StandIns::Any => &group.settings.fallbacks,
                StandIns::Larger => &group.settings.context_window_fallbacks,
                StandIns::OtherPolicy => &group.settings.content_policy_fallbacks,
            };
            for name in names {
                if let Some(group) = self.group(name)
                    && seen.insert(&group.name)
                {
                    queue.push_back((group, name.as_str()));
                }
            }
            // The client asked for the first one, so its failure decides what the error is.
            match &mut first {
                None => first = Some(error),
                Some(first) => first
                    .message
                    .push_str(&format!("; in its place {}", error.message)),
            }
        }
        Err(first.unwrap_or_else(|| self.unknown(need)))
    }

    /// Asks the deployments of one model.
    async fn ask<T>(
        &self,
        caller: &Caller,
        need: &Need<'_>,
        group: &Group,
        asked: &str,
        info: &mut RouteInfo,
        run: &(dyn Fn(&Deployment, &str) -> BoxFuture<'static, Result<T, LlmError>> + Send + Sync),
    ) -> Result<(T, Lease), (LlmError, StandIns)> {
        let able = self.able(need, group)?;
        let strategy = group
            .settings
            .strategy
            .unwrap_or(self.settings.routing.strategy);
        let candidates = self.candidates(&able, need.input_tokens);
        if candidates.is_empty() {
            return Err((self.all_cooling(group, &able), StandIns::Any));
        }
        let order = order(strategy, &candidates, self.draw(need.user, strategy));
        let mut last = LlmError::new(ErrorKind::Unavailable, "no deployment was asked");
        for (place, index) in order.iter().enumerate() {
            let deployment = &able[*index];
            let others = order[place + 1..]
                .iter()
                .any(|index| able[*index].admits(&self.rules));
            let mut repeated = 0;
            while deployment.admits(&self.rules) {
                let failed = self
                    .attempt(caller, need, deployment, asked, info, run)
                    .await;
                let error = match failed {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let next = step(
                    &self.rules.retry,
                    &error,
                    repeated,
                    others,
                    self.next_chance(),
                );
                last = error.at(&deployment.name);
                match next {
                    Step::Repeat(pause) => {
                        repeated += 1;
                        info.waited += pause;
                        tokio::time::sleep(pause).await;
                    }
                    Step::Next => break,
                    Step::LargerModel => return Err((last, StandIns::Larger)),
                    Step::OtherPolicy => return Err((last, StandIns::OtherPolicy)),
                    Step::GiveUp => return Err((last, StandIns::None)),
                }
            }
        }
        Err((last, StandIns::Any))
    }

    /// One call of one deployment.
    async fn attempt<T>(
        &self,
        caller: &Caller,
        need: &Need<'_>,
        deployment: &Arc<Deployment>,
        asked: &str,
        info: &mut RouteInfo,
        run: &(dyn Fn(&Deployment, &str) -> BoxFuture<'static, Result<T, LlmError>> + Send + Sync),
    ) -> Result<(T, Lease), LlmError> {
        let most = Usage {
            input: need.input_tokens,
            output: need
                .output_tokens
                .or(deployment.output_tokens_max.map(u64::from))
                .unwrap_or(OUTPUT_TOKENS),
            audio_seconds: need.audio_seconds,
            characters: need.characters,
            estimated: true,
            ..Usage::default()
        };
        let queued = Instant::now();
        let tokens = most.input + most.output;
        let mut lease = Lease::take(deployment.clone(), &self.rules, most, tokens).await?;
        info.waited += queued.elapsed();
        let now = (self.clock)();
        info.tries += 1;
        let attempt = Attempt {
            number: info.tries,
            model: need.model.to_owned(),
            deployment: deployment.name.clone(),
            provider: deployment.provider_name.clone(),
            upstream_model: deployment.upstream(asked),
            most,
            most_cost: deployment.prices.cost(&most, now),
        };
        lease.reserve(self.ledger.reserve(caller, attempt).await?, now);
        info.deployment.clone_from(&deployment.name);
        let called = Instant::now();
        let span = span(need.used_for, deployment, asked, info.tries);
        lease.trace(span.clone());
        let answer = run(deployment, asked).instrument(span).await;
        info.waited += called.elapsed();
        match answer {
            Ok(answer) => {
                lease.answered();
                Ok((answer, lease))
            }
            Err(error) => {
                lease.failed(&error);
                Err(error)
            }
        }
    }

    /// The deployments that can do what is needed.
    fn able(
        &self,
        need: &Need<'_>,
        group: &Group,
    ) -> Result<Vec<Arc<Deployment>>, (LlmError, StandIns)> {
        let capable: Vec<_> = group
            .deployments
            .iter()
            .filter(|deployment| deployment.can(&need.capabilities))
            .cloned()
            .collect();
        if capable.is_empty() {
            return Err((
                LlmError::new(
                    ErrorKind::Unsupported,
                    format!(
                        "no deployment of `{}` has what the request needs: {:?}",
                        group.name, need.capabilities
                    ),
                ),
                StandIns::Any,
            ));
        }
        let able: Vec<_> = capable
            .iter()
            .filter(|deployment| deployment.holds(need.input_tokens))
            .cloned()
            .collect();
        if able.is_empty() {
            let most = capable.iter().filter_map(|d| d.context_tokens).max();
            return Err((
                LlmError::new(
                    ErrorKind::ContextWindow,
                    format!(
                        "the request has about {} tokens, more than the {} that `{}` takes",
                        need.input_tokens,
                        most.unwrap_or_default(),
                        group.name
                    ),
                ),
                StandIns::Larger,
            ));
        }
        Ok(able)
    }

    fn candidates(&self, able: &[Arc<Deployment>], tokens: u64) -> Vec<Candidate> {
        let now = (self.clock)();
        able.iter()
            .enumerate()
            .filter(|(_, deployment)| deployment.admits(&self.rules))
            .map(|(index, deployment)| Candidate {
                index,
                weight: deployment.weight,
                latency_ms: deployment.latency_ms(),
                cost: deployment.prices.level(now),
                has_room: deployment.has_room(&self.rules, tokens),
            })
            .collect()
    }

    fn all_cooling(&self, group: &Group, able: &[Arc<Deployment>]) -> LlmError {
        let soonest = able
            .iter()
            .map(|deployment| deployment.admits_in(&self.rules))
            .min();
        let seconds = soonest.unwrap_or_default().as_secs() + 1;
        LlmError::new(
            ErrorKind::Unavailable,
            format!(
                "all deployments of `{}` have failed too often and are left alone; the first of them is tried again in \
                 {seconds} s",
                group.name
            ),
        )
        .after(Some(Duration::from_secs(seconds)))
    }

    fn unknown(&self, need: &Need<'_>) -> LlmError {
        if need.used_for == ModelUse::Chat && !self.has_chat() {
            return LlmError::new(
                ErrorKind::NotConfigured,
                "no model provider is configured: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server that speaks OpenAI's \
                 protocol) or ANTHROPIC_API_KEY in the server's environment, or name `llm.providers` and `llm.models` in \
                 va.yaml, then restart; or ask for a model of this process (`va model list`) by its name",
            );
        }
        let known: Vec<String> = self
            .models()
            .into_iter()
            .filter(|model| model.used_for == need.used_for)
            .map(|model| format!("`{}`", model.name))
            .collect();
        let known = if known.is_empty() {
            "there is none for this use".to_owned()
        } else {
            format!("use {}", known.join(", "))
        };
        LlmError::new(
            ErrorKind::UnknownModel,
            format!("there is no model `{}`: {known}", need.model),
        )
    }

    /// A number for choosing; the same one for the same user, so that a provider's cache is of use.
    fn draw(&self, user: Option<&str>, strategy: Strategy) -> u64 {
        match user {
            Some(user) if strategy == Strategy::Weight => {
                user.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                    mixed(hash ^ u64::from(byte))
                })
            }
            _ => self.next_chance(),
        }
    }

    fn next_chance(&self) -> u64 {
        mixed(
            self.chance
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed),
        )
    }
}

/// The span of one call, with names of the semantic conventions for generative AI.
fn span(used_for: ModelUse, deployment: &Deployment, asked: &str, number: u32) -> Span {
    let operation = match used_for {
        ModelUse::Chat => "chat",
        ModelUse::Embedding => "embeddings",
        ModelUse::Rerank => "rerank",
        ModelUse::Transcription => "transcription",
        ModelUse::Speech => "speech",
    };
    let model = deployment.upstream(asked);
    tracing::info_span!(
        target: TARGET,
        "gen_ai",
        otel.name = format!("{operation} {model}"),
        otel.kind = "client",
        otel.status_code = Empty,
        gen_ai.operation.name = operation,
        gen_ai.system = deployment.provider_name,
        gen_ai.request.model = model,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        "error.type" = Empty,
        llm.attempt = i64::from(number),
    )
}

/// Which models may stand in after a failure.
enum StandIns {
    None,
    Any,
    Larger,
    OtherPolicy,
}

async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, LlmError>>,
) -> Result<T, LlmError> {
    tokio::time::timeout(timeout, call)
        .await
        .unwrap_or_else(|_| Err(crate::stream::timed_out("no reply", timeout)))
}
