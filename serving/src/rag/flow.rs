//! One question from beginning to end, as a stream of events.
//!
//! ```text
//! (rewriting) ─► message.start ─► (freshness, search, perhaps once more) ─► retrieval ─► delta, citation … ─► usage ─► done
//! ```
//!
//! Runs inside the future of its request: when the client goes, the future is dropped and everything ends. Events go
//! through a bounded channel, so a client that reads slowly makes the writer wait.

mod search;
mod told;
mod turn;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, info_span};
use va_catalog::TenantScope;
use va_catalog::settings::rag::RewriteMethod;
use va_catalog::store::CatalogError;
use va_connectors::trace::TARGET;
use va_llm::Caller;
use va_models::Role;

use super::alerts::{Part, of_search};
use super::answer::{Draft, Gone, Task, WriteError, Writer};
use super::earlier::Key;
use super::grade::Depth;
use super::helper::Helper;
use super::request::Ask;
use super::rerank::method;
use super::rewrite::model::{Wanted, Widened, widen};
use super::rewrite::{Rewritten, rewrite};
use crate::freshness::{NotFresh, wait};
use crate::platform::Platform;
use crate::retrieval::{Degraded, Question, SearchError, Within};
pub use search::Grader;
use search::Search;
pub use told::Event;
use told::{Took, Trace, done, traced};
use turn::{TURN_MAX, Turn};

/// How long searching may take, all rounds together, beside what a model may take that puts the sources in order, and the
/// wait for a turn after it.
const RETRIEVAL_MAX: Duration = Duration::from_secs(30);

/// Rounds of searches, thus calls of that model.
const ROUNDS_MAX: u32 = 2;

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
    #[error("more questions are waiting than could be searched for in {0} s: try again later")]
    Busy(u64),
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

/// A question, and the collection that it is asked of, which is there.
pub struct Asked {
    pub ask: Ask,
    within: Within,
    rules: Rewritten,
    /// The vector of the first query, where it is being made.
    begun: Option<Question>,
    /// What has to happen before a model is asked.
    first: Option<oneshot::Receiver<()>>,
}

impl Asked {
    /// Asks no model before `first` is told; when that is dropped, nobody waits for an answer any more.
    #[must_use]
    pub fn after(mut self, first: oneshot::Receiver<()>) -> Self {
        self.first = Some(first);
        self
    }
}

/// Waits for it, once.
async fn happened(first: &mut Option<oneshot::Receiver<()>>) -> Result<(), RagError> {
    match first.take() {
        Some(first) => first.await.map_err(|_| RagError::Gone),
        None => Ok(()),
    }
}

/// Refuses what needs no stream to be refused: a collection that does not exist. What takes longest, the vector of the
/// question, is begun here when no other question waits for the processor, so that it is made while the caller does the rest.
///
/// # Errors
/// When the collection is not there or the catalog does not answer.
pub async fn check(platform: &Platform, tenant: &TenantScope, ask: Ask) -> Result<Asked, RagError> {
    let within = Within::of(platform, tenant, &ask.collection).await?;
    let rules = rewrite(&ask.question, &ask.history, &platform.answers.synonyms);
    let idle = platform.answers.turns.available_permits() > 0;
    let begun = match (within.model(), rules.first.first()) {
        (Some(model), Some(query)) if idle && !wanted(platform, &ask, true).rewrite => {
            Some(Question::begin(platform, model, &query.text, Role::Query))
        }
        _ => None,
    };
    Ok(Asked {
        ask,
        within,
        rules,
        begun,
        first: None,
    })
}

/// Answers a question on behalf of the caller, of whose tenant it is; what there is to tell goes to `events`.
///
/// # Errors
/// When there is no answer, or no whole one; the events that were sent before stay true.
pub async fn run(
    platform: &Arc<Platform>,
    caller: &Caller,
    asked: Asked,
    writer: &dyn Writer,
    events: &mpsc::Sender<Event>,
) -> Result<(), RagError> {
    let mut running = Running::begin();
    let _answering = platform.answers.quiet.answering();
    let outcome = answer(platform, caller, asked, writer, events).await;
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
    caller: &Caller,
    asked: Asked,
    writer: &dyn Writer,
    events: &mpsc::Sender<Event>,
) -> Result<bool, RagError> {
    let started = Instant::now();
    let mut took = Took::default();
    let Asked {
        ask,
        within,
        rules,
        begun,
        mut first,
    } = asked;
    let (ask, collection, model) = (&ask, within.collection(), within.model());
    let helper = Helper::new(platform, caller, ask);
    let synonyms = &platform.answers.synonyms;
    // By the rules' words, which are the same each time.
    let key = Key::of(&caller.tenant, ask, &rules.standalone);
    let wanted = wanted(platform, ask, model.is_some());
    if wanted.rewrite || wanted.hyde || method(platform, ask).waits_for_a_model() {
        happened(&mut first).await?;
    }
    let Widened {
        made,
        mut degraded,
        tokens,
    } = widen(&helper, ask, rules, wanted, synonyms)
        .instrument(info_span!(target: TARGET, "rag.rewrite"))
        .await;
    if ask.hyde == Some(true) && model.is_none() {
        degraded.push(Degraded {
            retriever: "hyde",
            reason: "no passage was made up to search with: the collection is for keyword search only, it has no vectors"
                .to_owned(),
        });
    }
    took.rewrite = ms(started);
    let start = json!({
        "id": uuid::Uuid::now_v7().to_string(),
        "question": ask.question,
        "standalone": made.standalone,
        "lang": made.lang,
        "collection": ask.collection,
        "mode": writer.mode(),
    });
    send(events, Event::Start(start)).await?;

    let waiting = Instant::now();
    if let Some(wanted) = &ask.min_freshness {
        match wait(platform, wanted, ask.freshness_timeout).await {
            Ok(()) => {}
            Err(error @ NotFresh::Behind { .. }) if ask.allow_stale => degraded.push(Degraded {
                retriever: "freshness",
                reason: error.to_string(),
            }),
            Err(error) => return Err(error.into()),
        }
        took.freshness = ms(waiting);
    }

    let grader = Grader::new(
        platform,
        model.map(str::to_owned),
        made.standalone.as_str(),
        made.lang,
    );
    let search = Search {
        platform,
        helper: &helper,
        ask,
        within: &within,
        made: &made,
        grader: &grader,
        // Who wants to see scores wants to see all of them.
        depth: match writer.depth() {
            Depth::Verdict if ask.explain => Depth::Explained,
            depth => depth,
        },
        context_tokens: writer
            .context_tokens_max()
            .map_or(ask.context_tokens, |most| most.min(ask.context_tokens)),
    };
    let patience = if method(platform, ask).waits_for_a_model() {
        RETRIEVAL_MAX + (helper.time_max() + TURN_MAX) * ROUNDS_MAX
    } else {
        RETRIEVAL_MAX
    };
    let mut turn = Turn::wait(&platform.answers.turns).await?;
    took.queue = turn.waited_ms;
    let searching = Instant::now();
    let found = tokio::time::timeout(patience, search.run(key, begun, &mut turn, &mut degraded))
        .await
        .map_err(|_| RagError::TimedOut(patience.as_secs()))??;
    (took.grade, took.rerank) = (found.grade_ms, found.rerank_ms);
    let again = turn.waited_ms - took.queue;
    took.retrieval = ms(searching) - found.grade_ms - found.rerank_ms - again;
    took.queue += again;
    drop(turn);
    let alerts = &platform.answers.alerts;
    for (part, faults) in of_search(&degraded) {
        alerts.look(platform, collection, part, &faults);
    }

    let task = Task {
        question: ask.question.clone(),
        standalone: made.standalone.clone(),
        lang: ask.language.unwrap_or(made.lang),
        collection: ask.collection.to_string(),
        context: found.context,
        grade: found.grade,
        grader,
    };
    let retrieval = json!({
        "sources": traced(&found.sources, &task.context),
        "queries": found.queries,
        "rerank": found.rerank,
        "grade": task.grade.trace(),
        "as_of": found.as_of,
        "degraded": degraded,
    });
    send(events, Event::Retrieval(retrieval)).await?;

    happened(&mut first).await?;
    let writing = Instant::now();
    let mut draft = Draft::new(&task, events);
    let span = info_span!(
        target: TARGET,
        "rag.write",
        rag.mode = writer.mode(),
        rag.context.tokens = task.context.tokens as i64,
    );
    let written = match writer.write(&task, &mut draft).instrument(span).await {
        Ok(written) => written,
        Err(WriteError::Gone(gone)) => return Err(gone.into()),
        Err(WriteError::Failed(reason)) => return Err(RagError::Write(reason)),
    };
    let (unsupported, citations) = draft.finish().await?;
    let mode = written.mode.unwrap_or(writer.mode());
    let trouble = written.trouble.map(|reason| Degraded {
        retriever: "model",
        reason,
    });
    // Whether a model works is known only where one was to write.
    if trouble.is_some() || written.completion_tokens > 0 {
        alerts.look(platform, collection, Part::Model, trouble.as_slice());
    }
    degraded.extend(trouble);
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
        "search_tokens": tokens + found.tokens,
    });
    send(events, Event::Usage(usage)).await?;
    let trace = Trace {
        rounds: found.rounds,
        queries: found.queries,
        sources: traced(&found.sources, &task.context),
        rerank: found.rerank,
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

/// What a model is to do for the question: as it asks for, or else as the settings say. Passages that a model makes up are
/// for vectors.
fn wanted(platform: &Platform, ask: &Ask, has_vectors: bool) -> Wanted {
    let settings = &platform.settings.rag;
    Wanted {
        rewrite: ask.rewrite.unwrap_or(settings.rewrite) == RewriteMethod::Model,
        queries: settings.queries as usize,
        hyde: has_vectors && ask.hyde.unwrap_or(settings.hyde),
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), RagError> {
    events.send(event).await.map_err(|_| RagError::Gone)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
