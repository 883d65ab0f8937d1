//! A model at a provider, how it is doing, and what a call holds on to while it runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::Span;
use va_catalog::settings::llm::{Capability, DeploymentSettings, RoutingSettings};

use crate::error::{ErrorKind, LlmError};
use crate::ledger::{Outcome, Reservation, Took};
use crate::price::PriceTable;
use crate::provider::Provider;
use crate::routing::breaker::{Breaker, BreakerRules};
use crate::routing::limits::{Admission, Limits, Load};
use crate::routing::retry::{RetryRules, blames_deployment};
use crate::types::Usage;

/// The settings of routing, as they are used.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub retry: RetryRules,
    pub breaker: BreakerRules,
    pub timeout: Duration,
    pub first_token_timeout: Duration,
    queue_max: u32,
    queue_wait: Duration,
    /// What times are measured from.
    origin: Instant,
}

impl Rules {
    pub(crate) fn of(settings: &RoutingSettings) -> Self {
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX / 4);
        Self {
            retry: RetryRules {
                retries: settings.retries,
                backoff: Duration::from_millis(settings.backoff_ms),
            },
            breaker: BreakerRules {
                window_ms: ms(settings.failures_window_ms),
                calls_min: settings.failures_calls_min,
                failures_percent_max: settings.failures_percent_max,
                cooldown_ms: ms(settings.cooldown_ms),
            },
            timeout: Duration::from_millis(settings.timeout_ms),
            first_token_timeout: Duration::from_millis(settings.first_token_timeout_ms),
            queue_max: settings.queue_max,
            queue_wait: Duration::from_millis(settings.queue_wait_ms),
            origin: Instant::now(),
        }
    }

    /// Milliseconds that only ever grow, which the wall clock's do not.
    fn now(&self) -> i64 {
        i64::try_from(self.origin.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// A model at a provider.
#[derive(Debug)]
pub(crate) struct Deployment {
    /// `model/provider/upstream model`.
    pub name: String,
    pub provider_name: String,
    pub provider: Arc<dyn Provider>,
    /// `None`: as the client calls it.
    model: Option<String>,
    pub weight: u32,
    pub context_tokens: Option<u32>,
    pub output_tokens_max: Option<u32>,
    capabilities: Option<Vec<Capability>>,
    pub prices: PriceTable,
    limits: Limits,
    state: Mutex<State>,
    /// Somebody left: a call that ended, or one that waited.
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    load: Load,
    breaker: Breaker,
    /// How soon it gives its first token, the last calls counting most.
    latency_ms: Option<u32>,
}

impl Deployment {
    pub(crate) fn new(
        group: &str,
        settings: &DeploymentSettings,
        provider: Arc<dyn Provider>,
    ) -> Self {
        let model = settings.model.as_deref().unwrap_or(group);
        Self {
            name: format!("{group}/{}/{model}", settings.provider),
            provider_name: settings.provider.clone(),
            provider,
            // One that stands for many hands on each under its own name.
            model: settings
                .model
                .clone()
                .or_else(|| (!group.ends_with('*')).then(|| group.to_owned())),
            weight: settings.weight,
            context_tokens: settings.context_tokens.map(std::num::NonZeroU32::get),
            output_tokens_max: settings.output_tokens_max.map(std::num::NonZeroU32::get),
            capabilities: settings.capabilities.clone(),
            prices: PriceTable::new(&settings.prices),
            limits: Limits {
                requests_per_minute: settings.rpm.map(|rpm| u64::from(rpm.get())),
                tokens_per_minute: settings.tpm.map(std::num::NonZeroU64::get),
                concurrent: settings.concurrent.map(std::num::NonZeroU32::get),
            },
            state: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// The provider's name of the model that a client asks for.
    pub(crate) fn upstream(&self, asked: &str) -> String {
        self.model.clone().unwrap_or_else(|| asked.to_owned())
    }

    pub(crate) fn can(&self, needed: &[Capability]) -> bool {
        self.capabilities
            .as_ref()
            .is_none_or(|known| needed.iter().all(|needed| known.contains(needed)))
    }

    /// Whether so many tokens may fit. They are an estimate, so only what is clearly too much does not.
    pub(crate) fn holds(&self, tokens: u64) -> bool {
        self.context_tokens
            .is_none_or(|most| tokens <= u64::from(most) + u64::from(most) / 2)
    }

    pub(crate) fn admits(&self, rules: &Rules) -> bool {
        self.lock().breaker.admits(&rules.breaker, rules.now())
    }

    pub(crate) fn admits_in(&self, rules: &Rules) -> Duration {
        let now = rules.now();
        let at = self.lock().breaker.admits_at(&rules.breaker, now);
        Duration::from_millis(at.saturating_sub(now).unsigned_abs())
    }

    pub(crate) fn has_room(&self, rules: &Rules, tokens: u64) -> bool {
        let state = self.lock();
        state.load.is_next(None)
            && state.load.admission(&self.limits, rules.now(), tokens) == Admission::Now
    }

    pub(crate) fn latency_ms(&self) -> Option<u32> {
        self.lock().latency_ms
    }

    /// A panic elsewhere leaves the state usable: it is numbers, each set at once.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a deployment's queue, given up when it is dropped.
struct Place<'a> {
    deployment: &'a Deployment,
    ticket: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.deployment.lock().load.leave(ticket);
            self.deployment.freed.notify_waiters();
        }
    }
}

/// What a call holds while it runs: its share of the limits and its reservation. Dropped without an end, the call was
/// cancelled.
pub(crate) struct Lease {
    deployment: Arc<Deployment>,
    rules: Rules,
    reservation: Option<Box<dyn Reservation>>,
    most: Usage,
    /// As counted against the limits.
    tokens: u64,
    begun: i64,
    started: Instant,
    first_token: Option<Duration>,
    /// When it is charged, UTC milliseconds.
    priced_at: i64,
    /// What is known to have been taken.
    taken: Usage,
    ended: bool,
    /// Of the traces; it ends with the call.
    span: Span,
}

impl Lease {
    /// Waits until the deployment has room, in turn and for a bounded time.
    pub(crate) async fn take(
        deployment: Arc<Deployment>,
        rules: &Rules,
        most: Usage,
        tokens: u64,
    ) -> Result<Self, LlmError> {
        let deadline = tokio::time::Instant::now() + rules.queue_wait;
        {
            let mut place = Place {
                deployment: &deployment,
                ticket: None,
            };
            loop {
                let freed = deployment.freed.notified();
                tokio::pin!(freed);
                // From here on no news is missed.
                freed.as_mut().enable();
                let until = {
                    let now = rules.now();
                    let mut state = deployment.lock();
                    let turn = state.load.is_next(place.ticket);
                    let admission = state.load.admission(&deployment.limits, now, tokens);
                    if turn && admission == Admission::Now {
                        state.load.begin(now, tokens);
                        state.breaker.begin(now);
                        break;
                    }
                    if place.ticket.is_none() {
                        place.ticket = state.load.queue(rules.queue_max);
                        if place.ticket.is_none() {
                            let waiting = state.load.waiting();
                            return Err(full(&format!("{waiting} calls wait for it already")));
                        }
                    }
                    match admission {
                        Admission::At(at) if state.load.is_next(place.ticket) => {
                            let wait = Duration::from_millis(at.saturating_sub(now).unsigned_abs());
                            deadline.min(tokio::time::Instant::now() + wait)
                        }
                        _ => deadline,
                    }
                };
                tokio::select! {
                    () = freed => {}
                    () = tokio::time::sleep_until(until) => {
                        if tokio::time::Instant::now() >= deadline {
                            let ms = rules.queue_wait.as_millis();
                            return Err(full(&format!("it had no room for {ms} ms")));
                        }
                    }
                }
            }
        }
        Ok(Self {
            begun: rules.now(),
            rules: rules.clone(),
            deployment,
            reservation: None,
            most,
            tokens,
            started: Instant::now(),
            first_token: None,
            priced_at: 0,
            taken: Usage::default(),
            ended: false,
            span: Span::none(),
        })
    }

    /// The call is told to the traces as `span`, which has the fields that [`Lease::end`] fills in.
    pub(crate) fn trace(&mut self, span: Span) {
        self.span = span;
    }

    /// The money for it is there.
    pub(crate) fn reserve(&mut self, reservation: Box<dyn Reservation>, priced_at: i64) {
        self.reservation = Some(reservation);
        self.priced_at = priced_at;
        // What is cancelled before the provider said anything has still been sent.
        self.taken = Usage {
            input: self.most.input,
            estimated: true,
            ..Usage::default()
        };
    }

    /// The request's tokens, as estimated.
    pub(crate) fn input_tokens(&self) -> u64 {
        self.most.input
    }

    /// The first piece of the answer is here.
    pub(crate) fn answered(&mut self) {
        let took = self.started.elapsed();
        self.first_token = Some(took);
        let ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        let mut state = self.deployment.lock();
        state.latency_ms = Some(match state.latency_ms {
            None => ms,
            Some(before) => ((u64::from(before) * 4 + u64::from(ms)) / 5) as u32,
        });
        // What others wait for is whether it answers at all; calls are counted where they end.
        if state.breaker.is_open() {
            state
                .breaker
                .succeeded(&self.rules.breaker, self.rules.now());
            drop(state);
            tracing::info!(deployment = self.deployment.name, "it answers again");
        }
    }

    /// What is taken so far, should the client go away.
    pub(crate) fn note(&mut self, usage: Usage) {
        self.taken = usage;
    }

    /// The call failed before it gave anything.
    pub(crate) fn failed(mut self, error: &LlmError) {
        let now = self.rules.now();
        {
            let mut state = self.deployment.lock();
            if blames_deployment(error.kind) {
                if state.breaker.failed(&self.rules.breaker, now) {
                    tracing::warn!(
                        deployment = self.deployment.name,
                        "it fails too often and is left alone for a while"
                    );
                }
            } else {
                state.breaker.abandoned();
            }
            if let (ErrorKind::RateLimited, Some(after)) = (error.kind, error.retry_after) {
                let after = i64::try_from(after.as_millis()).unwrap_or(i64::MAX / 4);
                // Short pauses are for the repetition of this call to wait; others may find it free again.
                if after > self.rules.retry.backoff.as_millis() as i64 * 4 {
                    state.breaker.block(now.saturating_add(after));
                }
            }
        }
        self.end(None, Outcome::Failed(error.kind));
    }

    /// The call ended; this is what it took.
    pub(crate) fn settle(mut self, usage: Usage, outcome: Outcome) {
        let (rules, now) = (self.rules.breaker, self.rules.now());
        match outcome {
            Outcome::Ok => {
                self.deployment.lock().breaker.succeeded(&rules, now);
            }
            Outcome::Failed(kind) if blames_deployment(kind) => {
                self.deployment.lock().breaker.failed(&rules, now);
            }
            Outcome::Failed(_) | Outcome::Cancelled | Outcome::Cached => {}
        }
        self.end(Some(usage), outcome);
    }

    fn end(&mut self, usage: Option<Usage>, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(usage) = usage {
            self.span
                .record("gen_ai.usage.input_tokens", usage.input as i64);
            self.span
                .record("gen_ai.usage.output_tokens", usage.output as i64);
        }
        if matches!(outcome, Outcome::Failed(_) | Outcome::Cancelled) {
            self.span.record("error.type", outcome.as_str());
            self.span.record("otel.status_code", "ERROR");
        }
        let taken = usage.map_or(0, |usage| usage.input + usage.output);
        {
            let now = self.rules.now();
            let mut state = self.deployment.lock();
            state.load.end(self.begun, self.tokens, taken, now);
        }
        self.deployment.freed.notify_waiters();
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        let took = Took {
            whole: self.started.elapsed(),
            first_token: self.first_token,
        };
        match usage {
            Some(usage) => {
                let cost = self.deployment.prices.cost(&usage, self.priced_at);
                reservation.settle(usage, cost, outcome, took);
            }
            None => reservation.release(outcome, took),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.deployment.lock().breaker.abandoned();
        // Nobody but the provider knows how far it came; what has been shown is the least.
        let taken = self.reservation.is_some().then_some(self.taken);
        self.end(taken, Outcome::Cancelled);
    }
}

fn full(why: &str) -> LlmError {
    LlmError::new(
        ErrorKind::RateLimited,
        format!("the deployment is at its limits (`rpm`, `tpm`, `concurrent`) and {why}"),
    )
    .after(Some(Duration::from_secs(1)))
}
