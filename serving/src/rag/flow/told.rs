//! What a client is told of a question: the events, and the parts of the reply that are about how it came about.

use serde::Serialize;
use serde_json::{Value, json};

use super::super::answer::Task;
use super::super::cite::{Citation, Unsupported};
use super::super::context::Context;
use super::super::grade::GradeTrace;
use super::super::request::Ask;
use super::super::rerank::RerankTrace;
use super::super::retrieve::{Found, Place, QueryTrace, Source};
use super::super::text::one_line;
use crate::freshness::AsOf;
use crate::retrieval::Degraded;

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

/// How an answer came about.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    pub rounds: u32,
    pub queries: Vec<QueryTrace>,
    /// Best first: what the answer could be made from.
    pub sources: Vec<Traced>,
    /// `null` where the order of the searches was taken.
    pub rerank: Option<RerankTrace>,
    pub grade: GradeTrace,
    pub took_ms: Took,
}

/// A source without its text.
#[derive(Debug, Clone, Serialize)]
pub struct Traced {
    n: u32,
    score: f64,
    document: va_catalog::DocumentRef,
    chunk: Value,
    found: Vec<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reranked: Option<Place>,
    /// False where the context had no room for it.
    in_context: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Took {
    /// A model's rewriting of the question.
    pub rewrite: f64,
    pub freshness: f64,
    /// Until it was this question's turn.
    pub queue: f64,
    pub retrieval: f64,
    pub rerank: f64,
    pub grade: f64,
    pub write: f64,
    pub total: f64,
}

#[expect(
    clippy::too_many_arguments,
    reason = "each is a part of the reply, used once"
)]
pub fn done(
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

pub fn traced(sources: &[Source], context: &Context) -> Vec<Traced> {
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
            reranked: source.reranked,
            in_context: context.sources.iter().any(|kept| kept.n == source.n),
        })
        .collect()
}
