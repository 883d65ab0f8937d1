//! One question from beginning to end, as a stream of events.
//!
//! ```text
//! message.start ─► (freshness, search, perhaps once more) ─► retrieval ─► delta, citation … ─► usage ─► done
//! ```
//!
//! Runs inside the future of its request: when the client goes, the future is dropped and everything ends. Events go
//! through a bounded channel, so a client that reads slowly makes the writer wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use va_catalog::store::CatalogError;
use va_catalog::{CollectionRef, TenantId};

use super::answer::{Draft, Gone, Task, WriteError, Writer};
use super::cite::{Citation, Unsupported};
use super::context::{Context, Counter, build};
use super::earlier::{Key, Remembered};
use super::grade::{Grade, GradeTrace, grade};
use super::request::Ask;
use super::retrieve::{QueryTrace, Retrieved, Source};
use super::rewrite::{Rewritten, rewrite};
use super::text::{Lang, one_line};
use crate::freshness::{AsOf, NotFresh, wait};
use crate::platform::{Platform, now_ms};
use crate::retrieval::{Degraded, SearchError};

/// How long searching may take, all rounds together.
const RETRIEVAL_MAX: Duration = Duration::from_secs(30);

/// Sentences whose scores an explained answer shows.
const EXPLAINED: usize = 8;

/// What a client is told, in this order.
#[derive(Debug, Clone)]
pub enum Event {
    Start(Value),
    Retrieval(Value),
    Delta(String),
    Citation(Box<Citation>),
    Usage(Value),
    /// The rest of the reply.
    Done(Value),
}

impl Event {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "message.start",
            Self::Retrieval(_) => "retrieval",
            Self::Delta(_) => "delta",
            Self::Citation(_) => "citation",
            Self::Usage(_) => "usage",
            Self::Done(_) => "done",
        }
    }

    /// Its data on the wire.
    pub fn data(&self) -> Value {
        match self {
            Self::Start(value)
            | Self::Retrieval(value)
            | Self::Usage(value)
            | Self::Done(value) => value.clone(),
            Self::Delta(text) => json!({"text": text}),
            Self::Citation(citation) => json!(citation),
        }
    }
}

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

/// How an answer came about.
#[derive(Debug, Clone, Serialize)]
struct Trace {
    rounds: u32,
    queries: Vec<QueryTrace>,
    /// Best first: what the answer could be made from.
    sources: Vec<Traced>,
    grade: GradeTrace,
    took_ms: Took,
}

/// A source without its text.
#[derive(Debug, Clone, Serialize)]
struct Traced {
    n: u32,
    score: f64,
    document: va_catalog::DocumentRef,
    chunk: Value,
    found: Vec<super::retrieve::Found>,
    /// False where the context had no room for it.
    in_context: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Took {
    freshness: f64,
    retrieval: f64,
    grade: f64,
    write: f64,
    total: f64,
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

#[expect(
    clippy::too_many_arguments,
    reason = "each is a part of the reply, used once"
)]
fn done(
    ask: &Ask,
    mode: &'static str,
    task: &Task,
    answered: bool,
    unsupported: &[Unsupported],
    as_of: &Option<AsOf>,
    degraded: &[Degraded],
    trace: &Trace,
) -> Value {
    let mut done = json!({
        "answered": answered,
        "mode": mode,
        "unsupported": unsupported,
        "as_of": as_of,
        "degraded": degraded,
        "trace": trace,
    });
    if ask.explain {
        done["prompt"] = json!(task.context);
        done["sentences"] = task
            .grade
            .candidates
            .iter()
            .take(EXPLAINED)
            .filter_map(|candidate| {
                let source = task.context.sources.get(candidate.source)?;
                Some(json!({
                    "n": source.n,
                    "text": source.chunk.text.get(candidate.range.clone()),
                    "heading": candidate.heading,
                    "similarity": candidate.similarity,
                    "coverage": candidate.coverage,
                    "evidence": candidate.evidence,
                    "score": candidate.score,
                }))
            })
            .collect();
    }
    done
}

/// What searching brought.
struct Looked {
    sources: Vec<Source>,
    context: Context,
    grade: Grade,
    queries: Vec<QueryTrace>,
    as_of: Option<AsOf>,
    rounds: u32,
    grade_ms: f64,
}

/// Searches, and once more with other queries when no sentence answers. When nothing can be searched, takes what was found
/// for the same question before.
async fn look_up(
    platform: &Arc<Platform>,
    tenant: &TenantId,
    ask: &Ask,
    made: &Rewritten,
    model: Option<&str>,
    degraded: &mut Vec<Degraded>,
) -> Result<Looked, RagError> {
    let rrf_k = platform.settings.search.rrf_k;
    let key = Key::of(tenant, ask, &made.standalone);
    let mut retrieved = Retrieved::default();
    if let Err(error) = retrieved.add(platform, tenant, ask, &made.first, 1).await {
        let SearchError::Unavailable(reason) = error else {
            return Err(error.into());
        };
        let Some(mut before) = platform.answers.earlier.recall(&key) else {
            let failed = [Degraded {
                retriever: "all",
                reason: reason.clone(),
            }];
            platform
                .answers
                .alerts
                .look(platform, &scope(tenant, ask), &failed);
            return Err(RagError::Unavailable(reason));
        };
        let ids: Vec<_> = before.sources.iter().map(|s| s.document.id).collect();
        let catalog = &platform.catalog;
        let withdrawn = catalog
            .hidden_among(&ask.viewer, &scope(tenant, ask), &ids)
            .await?;
        before
            .sources
            .retain(|source| !withdrawn.contains(&source.document.id));
        let at = chrono::DateTime::from_timestamp_millis(before.at_ms)
            .map(|at| at.to_rfc3339())
            .unwrap_or_default();
        degraded.push(Degraded {
            retriever: "all",
            reason: format!("answered from what was found for this question at {at}, which may have changed since; {reason}"),
        });
        let judged = judge(platform, ask, made, model, before.sources.clone()).await?;
        degraded.extend(judged.2);
        return Ok(Looked {
            sources: before.sources,
            context: judged.0,
            grade: judged.1,
            queries: Vec::new(),
            as_of: before.as_of,
            rounds: 0,
            grade_ms: judged.3,
        });
    }
    let mut rounds = 1;
    let mut sources = retrieved.sources(rrf_k, ask.k);
    let mut judged = judge(platform, ask, made, model, sources.clone()).await?;
    let mut grade_ms = judged.3;
    if !judged.1.answerable() && !made.again.is_empty() {
        rounds = 2;
        // What the first round found stays; failing here is no reason to have no answer.
        if let Err(error) = retrieved.add(platform, tenant, ask, &made.again, 2).await {
            tracing::warn!(%error, "the second round of searches failed");
        }
        let more = retrieved.sources(rrf_k, ask.k);
        let again = judge(platform, ask, made, model, more.clone()).await?;
        grade_ms += again.3;
        if again.1.answerable() {
            sources = more;
            judged = again;
        }
    }
    degraded.append(&mut retrieved.degraded);
    degraded.extend(judged.2);
    // Only what is whole is worth remembering.
    if degraded.is_empty() {
        let found = Remembered {
            sources: sources.clone(),
            as_of: retrieved.as_of.clone(),
            at_ms: now_ms(),
        };
        platform.answers.earlier.remember(key, found);
    }
    Ok(Looked {
        sources,
        context: judged.0,
        grade: judged.1,
        queries: retrieved.queries,
        as_of: retrieved.as_of,
        rounds,
        grade_ms,
    })
}

/// The context that fits, its grade, what was degraded, and how long it took.
type Judged = (Context, Grade, Option<Degraded>, f64);

/// Builds the context and grades it, on a blocking thread.
async fn judge(
    platform: &Arc<Platform>,
    ask: &Ask,
    made: &Rewritten,
    model: Option<&str>,
    sources: Vec<Source>,
) -> Result<Judged, RagError> {
    let started = Instant::now();
    let platform = platform.clone();
    let (question, standalone, lang): (String, String, Lang) =
        (ask.question.clone(), made.standalone.clone(), made.lang);
    let (history, tokens_max) = (ask.history.clone(), ask.context_tokens);
    let model = model.map(ToOwned::to_owned);
    let (context, grade, fault) = tokio::task::spawn_blocking(move || {
        let mut fault = None;
        let loaded = model.map(|model| platform.embedders.get(&model));
        let embedder = match loaded {
            Some(Ok(embedder)) => Some(embedder),
            Some(Err(error)) => {
                fault = Some(error.to_string());
                None
            }
            None => None,
        };
        let counter = match &embedder {
            Some(embedder) => Counter::Model(va_models::SharedTokenizer::OfModel(embedder.clone())),
            None => Counter::Estimate,
        };
        let count = |text: &str| counter.count(text);
        let context = build(&question, lang, &history, &sources, tokens_max, &count);
        let vectors = &platform.answers.sentences;
        let graded = grade(
            &standalone,
            lang,
            &context.sources,
            embedder.as_deref(),
            vectors,
        );
        let fault = fault.or_else(|| graded.degraded.clone());
        (context, graded, fault)
    })
    .await
    .map_err(|error| RagError::Write(error.to_string()))?;
    let degraded = fault.map(|reason| Degraded {
        retriever: "sentences",
        reason: format!("sentences were compared by their words alone: {reason}"),
    });
    Ok((context, grade, degraded, ms(started)))
}

/// What an alert is about: retrievers, not what a single request asked for.
fn retriever_faults(degraded: &[Degraded]) -> Vec<Degraded> {
    let faults = degraded.iter().filter(|d| d.retriever != "freshness");
    faults.cloned().collect()
}

fn traced(sources: &[Source], context: &Context) -> Vec<Traced> {
    sources
        .iter()
        .map(|source| Traced {
            n: source.n,
            score: source.score,
            document: source.document.clone(),
            chunk: json!({
                "id": source.chunk.id,
                "title_path": source.chunk.title_path,
                "page": source.chunk.page,
                "start": source.chunk.start,
                "end": source.chunk.end,
                "beginning": one_line(&source.chunk.text, 80),
            }),
            found: source.found.clone(),
            in_context: context.sources.iter().any(|kept| kept.n == source.n),
        })
        .collect()
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), RagError> {
    events.send(event).await.map_err(|_| RagError::Gone)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
