//! The searching half of a question: searches, the order of what they find, the context that fits, its grade, and once more
//! when no sentence answers.

use std::sync::Arc;
use std::time::Instant;

use tracing::{Instrument, info_span};
use va_connectors::trace::TARGET;
use va_models::{Embedder, ModelError};

use super::super::alerts::Part;
use super::super::context::{Context, Counter, build};
use super::super::earlier::{Key, Remembered};
use super::super::grade::{Depth, Grade, grade};
use super::super::helper::Helper;
use super::super::request::Ask;
use super::super::rerank::{RerankTrace, method, rerank, wanted};
use super::super::retrieve::{QueryTrace, Retrieved, Source};
use super::super::rewrite::Rewritten;
use super::super::text::Lang;
use super::turn::Turn;
use super::{RagError, ms};
use crate::freshness::AsOf;
use crate::platform::{Platform, now_ms};
use crate::retrieval::{Degraded, Question, SearchError, Within};

/// What searching brought.
pub struct Looked {
    pub sources: Vec<Source>,
    pub context: Context,
    pub grade: Grade,
    pub rerank: Option<RerankTrace>,
    pub queries: Vec<QueryTrace>,
    pub as_of: Option<AsOf>,
    pub rounds: u32,
    pub grade_ms: f64,
    pub rerank_ms: f64,
    /// Of the model that put the sources in order.
    pub tokens: u64,
}

/// A question to search for.
pub struct Search<'a> {
    pub platform: &'a Arc<Platform>,
    pub helper: &'a Helper<'a>,
    pub ask: &'a Ask,
    pub within: &'a Within,
    pub made: &'a Rewritten,
    pub grader: &'a Grader,
    pub depth: Depth,
    /// Tokens of the context at most.
    pub context_tokens: usize,
}

/// What grades the sources of a question.
#[derive(Clone)]
pub struct Grader {
    platform: Arc<Platform>,
    /// The collection's own.
    model: Option<String>,
    standalone: String,
    lang: Lang,
}

impl Grader {
    pub fn new(
        platform: &Arc<Platform>,
        model: Option<String>,
        standalone: &str,
        lang: Lang,
    ) -> Self {
        Self {
            platform: platform.clone(),
            model,
            standalone: standalone.to_owned(),
            lang,
        }
    }

    /// The best sentences, where only a verdict was wanted before. `None` when that cannot be found out now.
    pub async fn whole(&self, sources: &[Source]) -> Option<Grade> {
        let (grader, sources) = (self.clone(), sources.to_vec());
        let graded = tokio::task::spawn_blocking(move || {
            let embedder = grader.embedder();
            let embedder = embedder.as_ref().and_then(|loaded| loaded.as_deref().ok());
            grader.grade(&sources, embedder, Depth::Order)
        });
        graded.await.ok()
    }

    /// The model that compares, if the collection has one. Blocks.
    fn embedder(&self) -> Option<Result<Arc<dyn Embedder>, ModelError>> {
        let model = self.model.as_deref()?;
        Some(self.platform.embedders.get(model))
    }

    /// Blocks.
    fn grade(&self, sources: &[Source], embedder: Option<&dyn Embedder>, depth: Depth) -> Grade {
        let vectors = &self.platform.answers.sentences;
        grade(
            &self.standalone,
            self.lang,
            sources,
            embedder,
            vectors,
            depth,
        )
    }
}

/// Sources in order, what fits of them into the context, and whether they hold an answer.
struct Judged {
    sources: Vec<Source>,
    rerank: Option<RerankTrace>,
    context: Context,
    grade: Grade,
    degraded: Vec<Degraded>,
}

/// What the work on sources took, all rounds together.
#[derive(Default)]
struct Spent {
    grade_ms: f64,
    rerank_ms: f64,
    tokens: u64,
}

impl Search<'_> {
    /// Searches, and once more with other queries when no sentence answers. When nothing can be searched, takes what was
    /// found for the same question, named by `key`, before. `begun` may be the vector of one of the first queries. What is
    /// missing is added to `degraded`. Gives `turn` back while a model works.
    ///
    /// # Errors
    /// When nothing could be searched and nothing is remembered, the request makes no sense, or no other turn came.
    pub async fn run(
        &self,
        key: Key,
        begun: Option<Question>,
        turn: &mut Turn<'_>,
        degraded: &mut Vec<Degraded>,
    ) -> Result<Looked, RagError> {
        let (platform, ask, made) = (self.platform, self.ask, self.made);
        let within = self.within;
        let mut spent = Spent::default();
        let mut retrieved = Retrieved::default();
        if let Err(error) = retrieved
            .add(platform, within, ask, &made.first, begun, 1)
            .await
        {
            let SearchError::Unavailable(reason) = error else {
                return Err(error.into());
            };
            return self.remembered(&key, reason, degraded).await;
        }
        let mut rounds = 1;
        let mut judged = self.judge(&retrieved, turn, &mut spent).await?;
        if !judged.grade.answerable() && !made.again.is_empty() {
            rounds = 2;
            // What the first round found stays; failing here is no reason to have no answer.
            if let Err(error) = retrieved
                .add(platform, within, ask, &made.again, None, 2)
                .await
            {
                tracing::warn!(%error, "the second round of searches failed");
            }
            let again = self.judge(&retrieved, turn, &mut spent).await?;
            if again.grade.answerable() {
                judged = again;
            }
        }
        degraded.append(&mut retrieved.degraded);
        degraded.append(&mut judged.degraded);
        // Only what is whole is worth remembering; without the help of a model it is whole too.
        if degraded.iter().all(|d| is_improvement(d.retriever)) {
            let found = Remembered {
                sources: judged.sources.clone(),
                as_of: retrieved.as_of.clone(),
                at_ms: now_ms(),
            };
            let earlier = &platform.answers.earlier;
            earlier.remember(key, found.bytes(), found);
        }
        let (queries, as_of) = (retrieved.queries, retrieved.as_of);
        Ok(looked(judged, queries, as_of, rounds, spent))
    }

    /// The last resort: what was found for the same question before.
    async fn remembered(
        &self,
        key: &Key,
        reason: String,
        degraded: &mut Vec<Degraded>,
    ) -> Result<Looked, RagError> {
        let (platform, ask) = (self.platform, self.ask);
        let collection = self.within.collection();
        let Some(mut before) = platform.answers.earlier.recall(key) else {
            let failed = [Degraded {
                retriever: "all",
                reason: reason.clone(),
            }];
            let alerts = &platform.answers.alerts;
            alerts.look(platform, collection, Part::Retrieval, &failed);
            return Err(RagError::Unavailable(reason));
        };
        // Who may read it may have changed since.
        let ids: Vec<_> = before.sources.iter().map(|s| s.document.id).collect();
        let withdrawn = platform
            .catalog
            .hidden_among(&ask.viewer, collection, &ids)
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
        let mut spent = Spent::default();
        // They are in the order that they were answered from.
        let mut judged = self.grade(before.sources, &mut spent).await?;
        degraded.append(&mut judged.degraded);
        Ok(looked(judged, Vec::new(), before.as_of, 0, spent))
    }

    /// Puts what was found in order, and grades the best of it.
    async fn judge(
        &self,
        retrieved: &Retrieved,
        turn: &mut Turn<'_>,
        spent: &mut Spent,
    ) -> Result<Judged, RagError> {
        let (platform, ask) = (self.platform, self.ask);
        let rrf_k = platform.settings.search.rrf_k;
        let sources = retrieved.sources(rrf_k, wanted(platform, ask));
        if method(platform, ask).waits_for_a_model() {
            turn.give_back();
        }
        let began = Instant::now();
        let model = self.grader.model.as_deref();
        let span = info_span!(target: TARGET, "rag.rerank", rag.sources = sources.len() as i64);
        let ordered = rerank(platform, self.helper, ask, self.made, model, sources)
            .instrument(span)
            .await;
        spent.rerank_ms += ms(began);
        spent.tokens += ordered.tokens;
        turn.again().await?;
        let mut judged = self.grade(ordered.sources, spent).await?;
        judged.rerank = ordered.trace;
        judged.degraded.extend(ordered.degraded);
        Ok(judged)
    }

    /// Builds the context of the sources and grades it, on a blocking thread.
    async fn grade(&self, sources: Vec<Source>, spent: &mut Spent) -> Result<Judged, RagError> {
        let started = Instant::now();
        let (grader, depth) = (self.grader.clone(), self.depth);
        let question = self.ask.question.clone();
        let (history, tokens_max) = (self.ask.history.clone(), self.context_tokens);
        let span = info_span!(target: TARGET, "rag.grade", rag.sources = sources.len() as i64);
        let (sources, context, grade, fault) = tokio::task::spawn_blocking(move || {
            let (embedder, fault) = match grader.embedder() {
                Some(Ok(embedder)) => (Some(embedder), None),
                Some(Err(error)) => (None, Some(error.to_string())),
                None => (None, None),
            };
            let counter = match &embedder {
                Some(embedder) => {
                    Counter::Model(va_models::SharedTokenizer::OfModel(embedder.clone()))
                }
                None => Counter::Estimate,
            };
            let count = |text: &str| counter.count(text);
            let context = build(
                &question,
                grader.lang,
                &history,
                &sources,
                tokens_max,
                &count,
            );
            let graded = grader.grade(&context.sources, embedder.as_deref(), depth);
            let fault = fault.or_else(|| graded.degraded.clone());
            (sources, context, graded, fault)
        })
        .instrument(span)
        .await
        .map_err(|error| RagError::Write(error.to_string()))?;
        spent.grade_ms += ms(started);
        let fault = fault.map(|reason| Degraded {
            retriever: "sentences",
            reason: format!("sentences were compared by their words alone: {reason}"),
        });
        Ok(Judged {
            sources,
            rerank: None,
            context,
            grade,
            degraded: fault.into_iter().collect(),
        })
    }
}

/// Whether an answer without it is a whole one all the same.
fn is_improvement(what: &str) -> bool {
    ["rewrite", "hyde", "rerank"].contains(&what)
}

fn looked(
    judged: Judged,
    queries: Vec<QueryTrace>,
    as_of: Option<AsOf>,
    rounds: u32,
    spent: Spent,
) -> Looked {
    Looked {
        sources: judged.sources,
        context: judged.context,
        grade: judged.grade,
        rerank: judged.rerank,
        queries,
        as_of,
        rounds,
        grade_ms: spent.grade_ms,
        rerank_ms: spent.rerank_ms,
        tokens: spent.tokens,
    }
}
