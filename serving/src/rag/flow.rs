//! One question from beginning to end, as a stream of events.
//!
//! ```text
//! message.start ─► (freshness, search, perhaps once more) ─► retrieval ─► delta, citation … ─► usage ─► done
//! ```
//!
//! Runs inside the future of its request: when the client goes, the future is dropped and everything ends. Events go
//! through a bounded channel, so a client that reads slowly makes the writer wait.

mod search;
mod told;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;
use va_catalog::store::CatalogError;
use va_catalog::{CollectionRef, TenantId};

use super::answer::{Draft, Gone, Task, WriteError, Writer};
use super::request::Ask;
use super::rewrite::rewrite;
use crate::freshness::{NotFresh, wait};
use crate::platform::Platform;
use crate::retrieval::{Degraded, SearchError};
use search::look_up;
pub use told::Event;
use told::{Took, Trace, done, traced};

/// How long searching may take, all rounds together.
const RETRIEVAL_MAX: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RagError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    NotFresh(#[from] NotFresh),
    #[error("no retriever could answer, and nothing was found for this question before: {0}")]
    Unavailable(String),
    #[error(
        "searching took more than {0} s: the machine is busy, or a store does not answer; try again"
    )]
    TimedOut(u64),
    #[error("the answer could not be written: {0}")]
    Write(String),
    #[error("the client has gone")]
    Gone,
}

impl From<Gone> for RagError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<SearchError> for RagError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Invalid(message) => Self::Invalid(message),
            SearchError::Catalog(error) => Self::Catalog(error),
            SearchError::Unavailable(message) => Self::Unavailable(message),
        }
    }
}

/// Counts answers that are being made, and those that nobody waited for.
struct Running {
    finished: bool,
}

impl Running {
    fn begin() -> Self {
        metrics::gauge!("va_rag_running").increment(1.0);
        // Zero is seen before the first one happens.
        metrics::counter!("va_rag_cancelled_total").increment(0);
        Self { finished: false }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        metrics::gauge!("va_rag_running").decrement(1.0);
        if !self.finished {
            metrics::counter!("va_rag_cancelled_total").increment(1);
        }
    }
}

/// Refuses what needs no stream to be refused: a collection that does not exist.
///
/// # Errors
/// When the collection is not there or the catalog does not answer.
pub async fn check(platform: &Platform, tenant: &TenantId, ask: &Ask) -> Result<(), RagError> {
    platform.catalog.collection(&scope(tenant, ask)).await?;
    Ok(())
}

fn scope(tenant: &TenantId, ask: &Ask) -> CollectionRef {
    CollectionRef {
        tenant: tenant.clone(),
        collection: ask.collection.clone(),
    }
}

/// Answers a question; what there is to tell goes to `events`.
///
/// # Errors
/// When there is no answer, or no whole one; the events that were sent before stay true.
pub async fn run(
    platform: &Arc<Platform>,
    tenant: &TenantId,
    ask: &Ask,
    writer: &dyn Writer,
    events: &mpsc::Sender<Event>,
) -> Result<(), RagError> {
    let mut running = Running::begin();
    let outcome = answer(platform, tenant, ask, writer, events).await;
    running.finished = !matches!(outcome, Err(RagError::Gone));
    let word = match &outcome {
        Ok(true) => "answered",
        Ok(false) => "nothing_found",
        Err(_) => "failed",
    };
    metrics::counter!("va_rag_answers_total", "mode" => writer.mode(), "outcome" => word)
        .increment(1);
    outcome.map(|_| ())
}

async fn answer(
    platform: &Arc<Platform>,
    tenant: &TenantId,
    ask: &Ask,
    writer: &dyn Writer,
    events: &mpsc::Sender<Event>,
) -> Result<bool, RagError> {
    let started = Instant::now();
    let mut took = Took::default();
    let collection = scope(tenant, ask);
    let model = platform.catalog.collection(&collection).await?.config.model;
    let made = rewrite(&ask.question, &ask.history, &platform.answers.synonyms);
    let start = json!({
        "id": uuid::Uuid::now_v7().to_string(),
        "question": ask.question,
        "standalone": made.standalone,
        "lang": made.lang,
        "collection": ask.collection,
        "mode": writer.mode(),
    });
    send(events, Event::Start(start)).await?;

    let mut degraded = Vec::new();
    if let Some(wanted) = &ask.min_freshness {
        match wait(platform, wanted, ask.freshness_timeout).await {
            Ok(()) => {}
            Err(error @ NotFresh::Behind { .. }) if ask.allow_stale => degraded.push(Degraded {
                retriever: "freshness",
                reason: error.to_string(),
            }),
            Err(error) => return Err(error.into()),
        }
        took.freshness = ms(started);
    }

    let searching = Instant::now();
    let search = look_up(
        platform,
        tenant,
        ask,
        &made,
        model.as_deref(),
        &mut degraded,
    );
    let found = tokio::time::timeout(RETRIEVAL_MAX, search)
        .await
        .map_err(|_| RagError::TimedOut(RETRIEVAL_MAX.as_secs()))??;
    took.grade = found.grade_ms;
    took.retrieval = ms(searching) - found.grade_ms;
    platform
        .answers
        .alerts
        .look(platform, &collection, &retriever_faults(&degraded));

    let task = Task {
        question: ask.question.clone(),
        standalone: made.standalone.clone(),
        lang: made.lang,
        collection: ask.collection.to_string(),
        context: found.context,
        grade: found.grade,
    };
    let retrieval = json!({
        "sources": traced(&found.sources, &task.context),
        "queries": found.queries,
        "grade": task.grade.trace(),
        "as_of": found.as_of,
        "degraded": degraded,
    });
    send(events, Event::Retrieval(retrieval)).await?;

    let writing = Instant::now();
    let mut draft = Draft::new(&task, events);
    let written = match writer.write(&task, &mut draft).await {
        Ok(written) => written,
        Err(WriteError::Gone(gone)) => return Err(gone.into()),
        Err(WriteError::Failed(reason)) => return Err(RagError::Write(reason)),
    };
    let (unsupported, citations) = draft.finish().await?;
    let mode = written.mode.unwrap_or(writer.mode());
    if let Some(reason) = written.trouble {
        degraded.push(Degraded {
            retriever: "model",
            reason,
        });
        let faults = retriever_faults(&degraded);
        platform.answers.alerts.look(platform, &collection, &faults);
    }
    took.write = ms(writing);
    took.total = ms(started);
    metrics::histogram!("va_rag_seconds", "mode" => mode).record(took.total / 1_000.0);
    metrics::counter!("va_rag_citations_total").increment(citations as u64);
    metrics::counter!("va_rag_unsupported_total").increment(unsupported.len() as u64);

    let usage = json!({
        "prompt_tokens": written.prompt_tokens,
        "completion_tokens": written.completion_tokens,
        "total_tokens": written.prompt_tokens + written.completion_tokens,
        "context_tokens": task.context.tokens,
    });
    send(events, Event::Usage(usage)).await?;
    let trace = Trace {
        rounds: found.rounds,
        queries: found.queries,
        sources: traced(&found.sources, &task.context),
        grade: task.grade.trace(),
        took_ms: took,
    };
    let done = done(
        ask,
        mode,
        &task,
        written.answered,
        &unsupported,
        &found.as_of,
        &degraded,
        &trace,
    );
    send(events, Event::Done(done)).await?;
    Ok(written.answered)
}

/// What an alert is about: retrievers, not what a single request asked for.
fn retriever_faults(degraded: &[Degraded]) -> Vec<Degraded> {
    let faults = degraded.iter().filter(|d| d.retriever != "freshness");
    faults.cloned().collect()
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), RagError> {
    events.send(event).await.map_err(|_| RagError::Gone)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
