//! In which order the sources are taken that the searches found.
//!
//! ```text
//! fused sources, best first ─ the first `rag.rerank.candidates` ─► late | llm | provider ─► a new order ─► the first k
//! ```
//!
//! - `late` compares question and passages token by token, with the collection's own model, in bounded time; by default only
//!   passages that are known already, which `learn` sees to when nobody waits. Such models are not trained for it, so its
//!   order does not replace the fused one but is fused with it ([`blend`])
//! - `model` asks a model, which is trained for it: its order is taken as it is
//!
//! What fails leaves the order as it was and says why. The orders themselves are pure functions.

mod late;
mod learn;
mod model;

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use va_catalog::settings::rag::Rerank;

pub use late::TokenCache;
pub use learn::Learner;

use super::helper::Helper;
use super::request::Ask;
use super::retrieve::{Place, Source};
use super::rewrite::Rewritten;
use crate::platform::Platform;
use crate::retrieval::Degraded;

/// How much the fused order counts, and how much late interaction beside it, by reciprocal ranks with the constant [`RANK`].
const FUSED: f64 = 1.0;
const LATE: f64 = 0.5;
const RANK: f64 = 20.0;

/// How the order came about.
#[derive(Debug, Clone, Serialize)]
pub struct RerankTrace {
    /// `late`, `llm` or `provider:MODEL`.
    pub method: String,
    /// Sources that were to be put in order.
    pub candidates: usize,
    /// Those that were judged; the others kept their places.
    pub judged: usize,
    pub took_ms: f64,
    /// Why it was not done, or not for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Sources in their new order.
pub struct Reranked {
    /// The best `k`, numbered.
    pub sources: Vec<Source>,
    /// `None` where nothing was to be done.
    pub trace: Option<RerankTrace>,
    pub degraded: Option<Degraded>,
    /// Of the model that was asked.
    pub tokens: u64,
}

/// What a method says of the candidates.
struct Judged {
    /// Indices, best first; each exactly once.
    order: Vec<usize>,
    /// By index, where the method has scores.
    scores: Vec<Option<f64>>,
    judged: usize,
    tokens: u64,
    note: Option<String>,
}

/// How this question's sources are re-ranked: as it asks for, or else as the settings say.
pub fn method<'a>(platform: &'a Platform, ask: &'a Ask) -> &'a Rerank {
    let settings = &platform.settings.rag.rerank;
    ask.rerank.as_ref().unwrap_or(&settings.method)
}

/// How many sources to find for an answer that takes `ask.k`.
pub fn wanted(platform: &Platform, ask: &Ask) -> usize {
    match method(platform, ask) {
        Rerank::None => ask.k,
        _ => ask.k.max(platform.settings.rag.rerank.candidates as usize),
    }
}

/// Puts the sources, as they were fused, in order, and takes the best `ask.k`. `model` is the collection's own.
pub async fn rerank(
    platform: &Arc<Platform>,
    helper: &Helper<'_>,
    ask: &Ask,
    made: &Rewritten,
    model: Option<&str>,
    mut sources: Vec<Source>,
) -> Reranked {
    let method = method(platform, ask);
    let settings = &platform.settings.rag.rerank;
    let few = sources.len().min(settings.candidates as usize);
    if *method == Rerank::None || few < 2 {
        sources.truncate(ask.k);
        return Reranked {
            sources,
            trace: None,
            degraded: None,
            tokens: 0,
        };
    }
    let started = Instant::now();
    let (question, candidates) = (made.standalone.as_str(), &sources[..few]);
    let outcome = match method {
        Rerank::Late => {
            let waits = ask.rerank.is_some();
            late::judge(platform, model, question, candidates, waits).await
        }
        Rerank::Llm => model::listwise(helper, question, made.lang, candidates).await,
        Rerank::Provider(name) => model::by_provider(helper, name, question, candidates).await,
        Rerank::None => Err("`rerank` is `none`".to_owned()),
    };
    let took = started.elapsed().as_secs_f64();
    metrics::histogram!("va_rag_rerank_seconds", "method" => word(method)).record(took);
    let mut trace = RerankTrace {
        method: method.to_string(),
        candidates: few,
        judged: 0,
        took_ms: took * 1_000.0,
        note: None,
    };
    let mut degraded = None;
    let mut tokens = 0;
    match outcome {
        Ok(judged) => {
            (trace.judged, trace.note) = (judged.judged, judged.note);
            tokens = judged.tokens;
            sources = reordered(sources, &judged.order, &judged.scores);
        }
        Err(reason) => {
            // By default late interaction is an attempt: without a model `vector` says what is missing, and an answer in the
            // order of the searches is no worse than what was promised. What was asked for and not done is told.
            if *method != Rerank::Late || ask.rerank.is_some() {
                degraded = Some(Degraded {
                    retriever: "rerank",
                    reason: format!(
                        "the sources are in the order that the searches gave them: {reason}"
                    ),
                });
            }
            trace.note = Some(reason);
        }
    }
    sources.truncate(ask.k);
    Reranked {
        sources,
        trace: Some(trace),
        degraded,
        tokens,
    }
}

/// A word for metrics: names of models are not among the labels.
fn word(method: &Rerank) -> &'static str {
    match method {
        Rerank::None => "none",
        Rerank::Late => "late",
        Rerank::Llm => "llm",
        Rerank::Provider(_) => "provider",
    }
}

/// The sources with the first ones in `order`, numbered anew; those behind them stay where they are.
fn reordered(sources: Vec<Source>, order: &[usize], scores: &[Option<f64>]) -> Vec<Source> {
    let mut slots: Vec<Option<Source>> = sources.into_iter().map(Some).collect();
    let mut placed: Vec<Source> = Vec::with_capacity(slots.len());
    for &index in order {
        if let Some(mut source) = slots.get_mut(index).and_then(Option::take) {
            source.reranked = Some(Place {
                from: source.n,
                score: scores.get(index).copied().flatten(),
            });
            placed.push(source);
        }
    }
    placed.extend(slots.into_iter().flatten());
    for (source, n) in placed.iter_mut().zip(1..) {
        source.n = n;
    }
    placed
}

/// The order of candidates (which come best first) of which some have a score: those are ordered among the places that they
/// have, by reciprocal ranks of the fused order and of the scores; the others keep their places. Ties keep the fused order.
fn blend(scores: &[Option<f64>]) -> Vec<usize> {
    let places: Vec<usize> = (0..scores.len())
        .filter(|at| scores[*at].is_some())
        .collect();
    let score = |at: &usize| scores[*at].unwrap_or(f64::NEG_INFINITY);
    let mut by_score = places.clone();
    by_score.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    let mut points = vec![0.0; scores.len()];
    let share = |weight: f64, rank: usize| weight / (RANK + 1.0 + rank as f64);
    for (rank, at) in by_score.into_iter().enumerate() {
        points[at] = share(FUSED, at) + share(LATE, rank);
    }
    let mut best = places.clone();
    best.sort_by(|a, b| points[*b].total_cmp(&points[*a]).then(a.cmp(b)));
    let mut order: Vec<usize> = (0..scores.len()).collect();
    for (place, at) in places.into_iter().zip(best) {
        order[place] = at;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::retrieve::tests::source;

    #[test]
    fn both_orders_count() {
        let some = |scores: &[f64]| scores.iter().copied().map(Some).collect::<Vec<_>>();
        for (scores, expected) in [
            (some(&[0.9, 0.8, 0.7]), vec![0, 1, 2]),
            (some(&[0.5, 0.5, 0.5]), vec![0, 1, 2]),
            // One place ahead in the fused order outweighs one in the other, and not two.
            (some(&[0.1, 0.9]), vec![0, 1]),
            (some(&[0.1, 0.5, 0.3, 0.9]), vec![0, 1, 3, 2]),
            (
                some(&[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.95]),
                vec![0, 1, 2, 3, 4, 9, 5, 6, 7, 8],
            ),
            (Vec::new(), Vec::new()),
        ] {
            assert_eq!(blend(&scores), expected, "{scores:?}");
        }
    }

    #[test]
    fn what_has_no_score_keeps_its_place() {
        let scores = [Some(0.1), None, Some(0.5), Some(0.3), Some(0.9)];
        assert_eq!(blend(&scores), [0, 1, 2, 4, 3]);
        assert_eq!(blend(&[None, None]), [0, 1]);
        assert_eq!(blend(&[None, Some(0.3)]), [0, 1]);
    }

    #[test]
    fn sources_are_numbered_anew_and_say_where_they_were() {
        let sources = vec![
            source("a", 1, "a"),
            source("b", 2, "b"),
            source("c", 3, "c"),
        ];
        let placed = reordered(sources, &[1, 0], &[None, Some(0.5)]);
        let shown: Vec<(u32, &str, Option<Place>)> = placed
            .iter()
            .map(|s| (s.n, s.document.name.as_str(), s.reranked))
            .collect();
        let from = |from, score| Some(Place { from, score });
        assert_eq!(
            shown,
            [
                (1, "b", from(2, Some(0.5))),
                (2, "a", from(1, None)),
                (3, "c", None),
            ]
        );
    }
}
