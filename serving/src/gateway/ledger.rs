//! The books, kept and written down.
//!
//! Each event changes the [`Books`] at once and waits in a bounded queue to be written to `llm.usage`, many in a commit.
//! A call takes the room for both of its events before it begins, waiting a bounded time for it; its end therefore never
//! waits, not even where it is dropped. When the log takes nothing for that long, new calls are refused: what is not
//! written down is not spent.
//!
//! After a start the books are read again from the log. Reservations that a process left open when it died are settled
//! with what was reserved, since the provider may have charged it. Several processes on one log follow each other's events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, watch};
use va_catalog::event::LLM_USAGE;
use va_catalog::settings::llm::{Amount, BudgetSettings, LlmSettings};
use va_catalog::{Offset, Partition, TenantScope, TopicName, TopicPartition};
use va_connectors::log::{FetchLimit, Log, LogError, Target};
use va_llm::{Attempt, Caller, ErrorKind, Ledger, LlmError, Outcome, Reservation, Took, Usage};

use super::books::{Books, BudgetState, Entry, Kind, TenantSpent};
use super::events::{Read, UsageEvent, batch, read};
use crate::platform::{Platform, now_ms};

/// Events that may wait to be written.
const QUEUE_MAX: usize = 16_384;
/// Most events in one commit.
const BATCH_MAX: usize = 4_096;
/// How long events are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// How long a new call waits for room in the queue, and for the books to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before a commit that failed is repeated.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the last events may take when the platform stops.
const CLOSING: Duration = Duration::from_secs(10);
/// After this time a reservation of a process that is not heard of is taken for lost: no call takes so long.
const LOST_AFTER_MS: i64 = 3_600_000;
/// How long one look for events of other processes waits for them.
const FOLLOW_WAIT: Duration = Duration::from_millis(500);
/// Partitions of the topic, as `built_in_topics` makes it.
const PARTITIONS: u32 = 3;

/// What a tenant has spent, and how its budgets stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    pub currency: String,
    pub spent: TenantSpent,
    pub budgets: Vec<BudgetState>,
}

/// The books of this process, and what of them is still to be written.
pub(super) struct UsageLedger {
    log: Arc<dyn Log>,
    process: String,
    currency: String,
    budgets: Vec<BudgetSettings>,
    books: Mutex<Books>,
    waiting: Mutex<Vec<UsageEvent>>,
    room: Semaphore,
    news: Notify,
    /// Whether the books are as the log has them.
    ready: watch::Sender<bool>,
    /// Held while a commit is made, so that the last one waits for the one before.
    writing: tokio::sync::Mutex<()>,
}

/// A panic elsewhere leaves sums and lists as they were: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UsageLedger {
    pub(super) fn new(log: Arc<dyn Log>, process: &str, settings: &LlmSettings) -> Self {
        Self {
            log,
            process: process.to_owned(),
            currency: settings.currency.clone(),
            budgets: settings.budgets.clone(),
            books: Mutex::default(),
            waiting: Mutex::default(),
            room: Semaphore::new(QUEUE_MAX),
            news: Notify::new(),
            ready: watch::Sender::new(false),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// Changes the books, and has it written down. The room for it was taken before.
    fn push(&self, event: UsageEvent) {
        lock(&self.books).apply(&event.entry);
        lock(&self.waiting).push(event);
        self.news.notify_one();
    }

    async fn until_ready(&self) -> Result<(), LlmError> {
        let mut ready = self.ready.subscribe();
        let waited = tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(LlmError::new(
                ErrorKind::Unavailable,
                "what has been spent is still being read from the topic `llm.usage`; try again in a moment",
            )
            .after(Some(PATIENCE))),
        }
    }

    pub(super) async fn report(
        &self,
        tenant: &TenantScope,
        budgets: &[&BudgetSettings],
    ) -> Result<UsageReport, LlmError> {
        self.until_ready().await?;
        let books = lock(&self.books);
        let now = now_ms();
        Ok(UsageReport {
            currency: self.currency.clone(),
            spent: books.tenant(tenant.as_str(), now),
            budgets: budgets
                .iter()
                .map(|budget| books.budget(budget, now))
                .collect(),
        })
    }

    /// Writes what waits. Called when nothing new comes any more.
    pub(super) async fn close(&self) {
        let closing = async {
            loop {
                match self.write().await {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "write the last events of `llm.usage`");
                        tokio::time::sleep(PAUSES.0).await;
                    }
                }
            }
        };
        if tokio::time::timeout(CLOSING, closing).await.is_err() {
            let left = lock(&self.waiting).len();
            tracing::error!(
                left,
                "events of `llm.usage` could not be written before the stop"
            );
        }
    }

    /// Writes some of what waits, in one commit. What could not be written waits on.
    async fn write(&self) -> Result<usize, LogError> {
        let _writing = self.writing.lock().await;
        let events: Vec<UsageEvent> = {
            let mut waiting = lock(&self.waiting);
            let some = waiting.len().min(BATCH_MAX);
            waiting.drain(..some).collect()
        };
        if events.is_empty() {
            return Ok(0);
        }
        match self.commit(&events).await {
            Ok(()) => {
                self.room.add_permits(events.len());
                Ok(events.len())
            }
            Err(error) => {
                let mut waiting = lock(&self.waiting);
                let later = std::mem::replace(&mut *waiting, events);
                waiting.extend(later);
                Err(error)
            }
        }
    }

    async fn commit(&self, events: &[UsageEvent]) -> Result<(), LogError> {
        let topic = topic()?;
        // By tenant, so that a tenant's events are in one partition and in order.
        let mut tenants: HashMap<&str, Vec<UsageEvent>> = HashMap::new();
        for event in events {
            let of_tenant = tenants.entry(&event.entry.tenant).or_default();
            of_tenant.push(event.clone());
        }
        let mut commit = self.log.begin();
        for (tenant, events) in tenants {
            let batch = batch(&events, &self.process, &self.currency)
                .map_err(|error| LogError::Config(error.to_string()))?;
            let key = Bytes::copy_from_slice(tenant.as_bytes());
            commit.append(&topic, Target::Key(key), batch);
        }
        commit.finish().await.map(drop)
    }
}

fn topic() -> Result<TopicName, LogError> {
    TopicName::new(LLM_USAGE).map_err(|error| LogError::Config(error.to_string()))
}

/// Reads the books, then writes until the platform stops.
pub(super) fn start(ledger: &Arc<UsageLedger>, platform: &Arc<Platform>) {
    tokio::spawn(follow(ledger.clone(), platform.clone()));
    tokio::spawn(write_on(ledger.clone(), platform.clone()));
}

async fn write_on(ledger: Arc<UsageLedger>, platform: Arc<Platform>) {
    let mut pause = PAUSES.0;
    loop {
        tokio::select! {
            () = ledger.news.notified() => {}
            // The rest is written by `close`.
            () = platform.stopping().cancelled() => return,
        }
        tokio::time::sleep(GATHER).await;
        loop {
            match ledger.write().await {
                Ok(0) => break,
                Ok(_) => pause = PAUSES.0,
                Err(error) => {
                    tracing::warn!(%error, "write to `llm.usage`; it is tried again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = platform.stopping().cancelled() => return,
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }
}

/// Reads the topic from its beginning, and goes on where other processes write to it too.
async fn follow(ledger: Arc<UsageLedger>, platform: Arc<Platform>) {
    let mut positions: Vec<Option<Offset>> = vec![None; PARTITIONS as usize];
    let mut open: HashMap<String, Read> = HashMap::new();
    let shared = platform.catalog.is_shared();
    let mut is_ready = false;
    loop {
        if platform.stopping().is_cancelled() {
            return;
        }
        let wait = if is_ready {
            FOLLOW_WAIT
        } else {
            Duration::ZERO
        };
        let mut behind = false;
        for (number, position) in positions.iter_mut().enumerate() {
            match read_on(&ledger, number as u32, position, wait, &mut open).await {
                Ok(more) => behind |= more,
                Err(error) => {
                    tracing::warn!(%error, "read the topic `llm.usage`; it is tried again");
                    behind = true;
                    tokio::time::sleep(PAUSES.1).await;
                }
            }
        }
        if behind {
            continue;
        }
        if !is_ready {
            is_ready = true;
            tracing::debug!(
                open = open.len(),
                "what was spent has been read from `llm.usage`"
            );
        }
        let before = if shared {
            now_ms() - LOST_AFTER_MS
        } else {
            i64::MAX
        };
        let lost: Vec<_> = open
            .iter()
            .filter(|(_, read)| read.entry.at_ms < before && read.process != ledger.process)
            .map(|(id, _)| id.clone())
            .collect();
        if !lost.is_empty() && platform.leads("llm-usage").await {
            for id in lost {
                if let Some(read) = open.remove(&id) {
                    settle_lost(&ledger, read).await;
                }
            }
        }
        ledger.ready.send_replace(true);
        if !shared {
            // Whatever comes now is of this process, which knows it already.
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_WAIT) => {}
            () = platform.stopping().cancelled() => return,
        }
    }
}

/// Reads what is new in a partition; true when there may be more.
async fn read_on(
    ledger: &UsageLedger,
    number: u32,
    position: &mut Option<Offset>,
    wait: Duration,
    open: &mut HashMap<String, Read>,
) -> Result<bool, LogError> {
    let partition = TopicPartition {
        topic: topic()?,
        partition: Partition(number),
    };
    let from = match *position {
        Some(from) => from,
        None => ledger.log.watermarks(&partition).await?.low,
    };
    let limit = FetchLimit::default();
    let fetched = ledger.log.fetch(&partition, from, limit, wait).await?;
    *position = Some(fetched.next);
    for batch in &fetched.batches {
        let (events, odd) = read(&batch.batch);
        if odd > 0 {
            tracing::warn!(rows = odd, %partition, "rows of `llm.usage` are no usage events");
        }
        for event in events {
            // What this process did is in the books since it happened.
            if event.process == ledger.process {
                continue;
            }
            let is_open = {
                let mut books = lock(&ledger.books);
                books.apply(&event.entry);
                books.is_open(&event.entry.reservation_id)
            };
            if is_open {
                open.insert(event.entry.reservation_id.clone(), event);
            } else {
                open.remove(&event.entry.reservation_id);
            }
        }
    }
    Ok(fetched.next < fetched.high)
}

/// Ends a reservation whose process is gone.
async fn settle_lost(ledger: &UsageLedger, read: Read) {
    tracing::warn!(
        request = read.request_id,
        deployment = read.attempt.deployment,
        "a call was under way when its process ended; what was reserved for it counts as spent"
    );
    if let Ok(permit) = ledger.room.acquire().await {
        permit.forget();
    }
    ledger.push(UsageEvent {
        entry: Entry {
            kind: Kind::Settled,
            at_ms: now_ms(),
            ..read.entry
        },
        request_id: read.request_id,
        attempt: Arc::new(read.attempt),
        usage: Usage {
            estimated: true,
            ..Usage::default()
        },
        outcome: None,
        took: None,
        lost: true,
    });
}

/// The ledger as the router knows it.
pub(super) struct Accounts(pub Arc<UsageLedger>);

#[async_trait]
impl Ledger for Accounts {
    async fn reserve(
        &self,
        caller: &Caller,
        attempt: Attempt,
    ) -> Result<Box<dyn Reservation>, LlmError> {
        let ledger = &self.0;
        let tenant = caller.tenant.as_str();
        let of_caller = |budget: &&BudgetSettings| {
            budget.tenant == tenant && (budget.key.is_none() || budget.key == caller.key)
        };
        let budgets: Vec<&BudgetSettings> = ledger
            .budgets
            .iter()
            .filter(of_caller)
            .chain(&caller.budgets)
            .collect();
        if !budgets.is_empty() {
            ledger.until_ready().await?;
        }
        // For this event and for the one that ends the call.
        let room = match ledger.room.try_acquire_many(2) {
            Ok(room) => room,
            Err(_) => tokio::time::timeout(PATIENCE, ledger.room.acquire_many(2))
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or_else(|| {
                    LlmError::new(
                        ErrorKind::Unavailable,
                        "usage cannot be written to the topic `llm.usage`, and without that nothing is spent; \
                         see `va doctor` for the log",
                    )
                    .after(Some(PATIENCE))
                })?,
        };
        let event = UsageEvent {
            entry: Entry {
                kind: Kind::Reserved,
                tenant: tenant.to_owned(),
                key: caller.key.clone(),
                // A client chooses the request's id, so money does not go by that.
                reservation_id: uuid::Uuid::now_v7().to_string(),
                cost: attempt.most_cost,
                at_ms: now_ms(),
            },
            request_id: caller.request_id.clone(),
            usage: attempt.most,
            attempt: Arc::new(attempt),
            outcome: None,
            took: None,
            lost: false,
        };
        {
            // Looked at and reserved under one lock, so that two calls cannot both take the last of it.
            let mut books = lock(&ledger.books);
            books
                .allows(&budgets, event.entry.cost, event.entry.at_ms)
                .map_err(|exceeded| refused(&exceeded, event.entry.cost, &ledger.currency))?;
            books.apply(&event.entry);
        }
        room.forget();
        lock(&ledger.waiting).push(event.clone());
        ledger.news.notify_one();
        Ok(Box::new(Reserved {
            ledger: ledger.clone(),
            event: Some(event),
        }))
    }
}

fn refused(exceeded: &super::books::Exceeded, cost: i128, currency: &str) -> LlmError {
    let text = |picos: i128| Amount::from_picos(picos).to_string();
    let budget = &exceeded.budget;
    let whose = match &budget.key {
        Some(key) => format!("key `{key}`"),
        None => format!("tenant `{}`", budget.tenant),
    };
    let error = LlmError::new(
        ErrorKind::Budget,
        format!(
            "the budget of {whose} ({} {currency}, `{:?}`) does not allow this call: {} are spent and {} reserved, and it may \
             cost {}; ask for a shorter reply (`max_tokens`), or raise the budget",
            budget.amount,
            budget.window,
            text(exceeded.spent),
            text(exceeded.reserved),
            text(cost),
        ),
    );
    let until = exceeded
        .resets_at
        .map(|at| at.saturating_sub(now_ms()).max(0));
    error.after(until.map(|ms| Duration::from_millis(ms.unsigned_abs())))
}

/// What a call reserved. Its end is an event in any case.
struct Reserved {
    ledger: Arc<UsageLedger>,
    event: Option<UsageEvent>,
}

impl Reserved {
    fn end(&mut self, kind: Kind, usage: Usage, cost: i128, outcome: Outcome, took: Option<Took>) {
        let Some(mut event) = self.event.take() else {
            return;
        };
        event.entry.kind = kind;
        event.entry.cost = cost;
        event.entry.at_ms = now_ms();
        event.usage = usage;
        event.outcome = Some(outcome);
        event.took = took;
        count(&event, took);
        self.ledger.push(event);
    }
}

fn count(event: &UsageEvent, took: Option<Took>) {
    let deployment = event.attempt.deployment.clone();
    let outcome = event.outcome.map_or("", Outcome::as_str);
    metrics::counter!("va_llm_calls_total", "deployment" => deployment.clone(), "outcome" => outcome)
        .increment(1);
    for (kind, tokens) in [("input", event.usage.input), ("output", event.usage.output)] {
        metrics::counter!("va_llm_tokens_total", "deployment" => deployment.clone(), "kind" => kind)
            .increment(tokens);
    }
    for (name, units) in [
        ("va_llm_audio_seconds_total", event.usage.audio_seconds),
        ("va_llm_characters_total", event.usage.characters),
    ] {
        if units > 0 {
            metrics::counter!(name, "deployment" => deployment.clone()).increment(units);
        }
    }
    if let Some(took) = took {
        metrics::histogram!("va_llm_call_seconds", "deployment" => deployment)
            .record(took.whole.as_secs_f64());
    }
}

impl Reservation for Reserved {
    fn settle(mut self: Box<Self>, usage: Usage, cost: i128, outcome: Outcome, took: Took) {
        self.end(Kind::Settled, usage, cost, outcome, Some(took));
    }

    fn release(mut self: Box<Self>, outcome: Outcome, took: Took) {
        self.end(Kind::Released, Usage::default(), 0, outcome, Some(took));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.end(
            Kind::Released,
            Usage::default(),
            0,
            Outcome::Cancelled,
            None,
        );
    }
}
