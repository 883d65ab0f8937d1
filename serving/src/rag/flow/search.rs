//! The searching half of a question: searches, the context that fits, its grade, and once more when no sentence answers.

use std::sync::Arc;
use std::time::Instant;

use va_catalog::TenantId;

use super::super::context::{Context, Counter, build};
use super::super::earlier::{Key, Remembered};
use super::super::grade::{Grade, grade};
use super::super::request::Ask;
use super::super::retrieve::{QueryTrace, Retrieved, Source};
use super::super::rewrite::Rewritten;
use super::super::text::Lang;
use super::{RagError, ms, scope};
use crate::freshness::AsOf;
use crate::platform::{Platform, now_ms};
use crate::retrieval::{Degraded, SearchError};

/// What searching brought.
pub struct Looked {
    pub sources: Vec<Source>,
    pub context: Context,
    pub grade: Grade,
    pub queries: Vec<QueryTrace>,
    pub as_of: Option<AsOf>,
    pub rounds: u32,
    pub grade_ms: f64,
}

/// Searches, and once more with other queries when no sentence answers. When nothing can be searched, takes what was found
/// for the same question before.
pub async fn look_up(
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
        let Some(before) = platform.answers.earlier.recall(&key) else {
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
