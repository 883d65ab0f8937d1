//! Hybrid search: vector and keyword candidates in parallel, fused by reciprocal ranks, with citations. Several queries of one
//! question are searched together.
//!
//! When one side fails the other answers and the reply says so; only when both fail is there an error. Fusion is a pure
//! function. Reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
//! individual Rank Learning Methods", SIGIR 2009.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Instant;

use futures::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing::{Instrument, info_span};
use va_catalog::settings::FusionMethod;
use va_catalog::store::CatalogError;
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter,
    TenantScope, Viewer,
};
use va_connectors::trace::TARGET;
use va_endpoints::{Near, View};
use va_fulltext::{TextHit, highlights, snippet};
use va_models::{ModelError, Role};
use va_vector::Metric;

use crate::freshness::{AsOf, as_of};
use crate::platform::Platform;

/// Longest snippet, in characters.
const SNIPPET_CHARS: usize = 240;

/// Which retrievers answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Hybrid,
    Vector,
    Keyword,
}

/// What a client asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    pub query: String,
    pub collection: CollectionName,
    /// Hits wanted, 1 to 1000; 5 when left out.
    pub k: Option<u32>,
    #[serde(default)]
    pub mode: Mode,
    /// `{"key": "value"}` or `{"key": ["one", "other"]}`: every key must match one of its values. Keys are the
    /// document's metadata, `format`, `name`, `uri` and `document_id`.
    #[serde(default)]
    pub filter: Filter,
    /// Adds how the ranking came about.
    #[serde(default)]
    pub explain: bool,
}

/// What a client gets.
#[derive(Debug, Clone, Serialize)]
pub struct SearchReply {
    pub hits: Vec<Hit>,
    /// One entry for each retriever that could not answer, with the reason.
    pub degraded: Vec<Degraded>,
    pub as_of: AsOf,
    pub took_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<Explain>,
}

/// What searches that belong together have in common: all of them see the same checkpoint.
pub struct Scope<'a> {
    pub within: &'a Within,
    pub viewer: &'a Viewer,
    pub filter: &'a Filter,
    /// Hits wanted of each.
    pub k: u32,
    pub explain: bool,
}

/// One of them.
pub struct Query<'a> {
    /// What the vectors are compared with.
    pub text: &'a str,
    pub role: Role,
    /// What the keyword side looks for: a question without its question words.
    pub keywords: &'a str,
    pub mode: Mode,
}

/// What searches found, without what is made for people who read it.
pub struct Retrieved {
    pub as_of: AsOf,
    /// One for each query, in their order. Fails where neither retriever could answer.
    pub found: Vec<Result<Found, SearchError>>,
}

/// What one search found.
pub struct Found {
    /// Best first.
    pub chunks: Vec<Fused>,
    pub degraded: Vec<Degraded>,
    pub explain: Option<Explain>,
    /// Until its last retriever had answered.
    pub took_ms: f64,
}

/// A retriever that could not answer.
#[derive(Debug, Clone, Serialize)]
pub struct Degraded {
    pub retriever: &'static str,
    pub reason: String,
}

/// How the ranking came about.
#[derive(Debug, Clone, Serialize)]
pub struct Explain {
    pub fusion: String,
    pub vector: Option<RetrieverExplain>,
    pub keyword: Option<RetrieverExplain>,
    /// `None` in a collection for keyword search only.
    pub model: Option<String>,
}

/// What one retriever did.
#[derive(Debug, Clone, Serialize)]
pub struct RetrieverExplain {
    pub candidates: usize,
    pub took_ms: f64,
}

/// One found chunk.
#[derive(Debug, Clone, Serialize)]
pub struct Hit {
    /// From 1.
    pub rank: u32,
    pub score: f64,
    pub document: DocumentRef,
    pub chunk: HitChunk,
    pub retrievers: Retrievers,
}

/// The chunk of a hit.
#[derive(Debug, Clone, Serialize)]
pub struct HitChunk {
    pub id: ChunkId,
    pub text: String,
    pub title_path: Vec<String>,
    pub page: Option<u32>,
    /// Character offsets in the document's text.
    pub start: u64,
    pub end: u64,
    /// Character ranges in `text`.
    pub highlights: Vec<(usize, usize)>,
    pub snippet: Snippet,
}

/// The part of the chunk's text that shows best why it was found.
#[derive(Debug, Clone, Serialize)]
pub struct Snippet {
    pub text: String,
    /// Character ranges in the snippet's own text.
    pub highlights: Vec<(usize, usize)>,
}

/// Where the hit stood with each retriever.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Retrievers {
    pub vector: Option<RankScore>,
    pub keyword: Option<RankScore>,
}

/// Rank from 1 and the retriever's own score (cosine similarity, BM25).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankScore {
    pub rank: u32,
    pub score: f32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("no retriever could answer: {0}")]
    Unavailable(String),
}

/// A collection of a tenant's that is there. Nobody but its tenant's scope can name it.
#[derive(Debug, Clone)]
pub struct Within {
    collection: CollectionRef,
    model: Option<String>,
}

impl Within {
    /// Looks the collection up.
    ///
    /// # Errors
    /// When it is not there or the catalog does not answer.
    pub async fn of(
        platform: &Platform,
        tenant: &TenantScope,
        name: &CollectionName,
    ) -> Result<Self, CatalogError> {
        let collection = tenant.collection(name.clone());
        let model = platform.catalog.collection(&collection).await?.config.model;
        Ok(Self { collection, model })
    }

    pub fn collection(&self) -> &CollectionRef {
        &self.collection
    }

    /// What makes its vectors; `None` when it has none.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// What a retriever found and when, in milliseconds; or why it could not answer.
type Side<T> = Result<(T, f64), String>;

/// Chunks with their scores, best first.
type Ranked = Vec<(ChunkRecord, f32)>;

/// Answers a search with what the viewer may read, with snippets and what to highlight.
///
/// # Errors
/// As [`retrieve`].
pub async fn search(
    platform: &Platform,
    tenant: &TenantScope,
    viewer: &Viewer,
    request: &SearchRequest,
) -> Result<SearchReply, SearchError> {
    let started = Instant::now();
    let within = Within::of(platform, tenant, &request.collection).await?;
    let scope = Scope {
        within: &within,
        viewer,
        filter: &request.filter,
        k: request.k.unwrap_or(platform.settings.search.k),
        explain: request.explain,
    };
    let query = Query {
        text: &request.query,
        role: Role::Query,
        keywords: &request.query,
        mode: request.mode,
    };
    let Retrieved { as_of, found } = retrieve(platform, &scope, &[query], None).await?;
    let unsearched = || SearchError::Unavailable("nothing was searched".into());
    let found = found.into_iter().next().ok_or_else(unsearched)??;
    let query = request.query.clone();
    // The segmenter is fast but not free; a thousand hits would hold up the executor.
    let hits = tokio::task::spawn_blocking(move || {
        found
            .chunks
            .into_iter()
            .zip(1..)
            .map(|(fused, rank)| hit(rank, fused, &query))
            .collect()
    })
    .await
    .map_err(|error| SearchError::Unavailable(error.to_string()))?;
    let took_ms = ms(started);
    Ok(SearchReply {
        hits,
        degraded: found.degraded,
        as_of,
        took_ms,
        explain: found.explain,
    })
}

/// Finds what the viewer may read within a collection.
///
/// The condition on readers is part of every query of an index. Beyond that, candidates are left out that the catalog says
/// were withdrawn from the viewer a moment ago, while the indexes do not know yet. `begun` is the vector of one of the queries
/// where that is being made already.
///
/// # Errors
/// When the request makes no sense or the catalog does not answer.
pub async fn retrieve(
    platform: &Platform,
    scope: &Scope<'_>,
    queries: &[Query<'_>],
    mut begun: Option<Question>,
) -> Result<Retrieved, SearchError> {
    let limits = &platform.settings.search;
    let k = scope.k;
    if !(1..=limits.k_max).contains(&k) {
        return Err(SearchError::Invalid(format!(
            "`k` is {k}; use 1 to {}",
            limits.k_max
        )));
    }
    if queries.iter().any(|query| query.text.trim().is_empty()) {
        return Err(SearchError::Invalid("`query` is empty".into()));
    }
    let unfit = |reason: String| SearchError::Invalid(format!("`filter`: {reason}"));
    scope.filter.check().map_err(unfit)?;
    let Within { collection, model } = scope.within;
    let model = model.as_deref();
    if model.is_none() && queries.iter().any(|query| query.mode == Mode::Vector) {
        return Err(SearchError::Invalid(format!(
            "collection `{}` is for keyword search only, it has no vectors: use the mode `keyword` or `hybrid`",
            collection.collection
        )));
    }
    // Begin at once: they take longer than all that can be found out meanwhile.
    let questions: Vec<Option<(&str, Question)>> = queries
        .iter()
        .map(|query| {
            let model = model.filter(|_| query.mode != Mode::Keyword)?;
            let begun = begun.take_if(|begun| begun.is_of(query));
            let begin = || Question::begin(platform, model, query.text, query.role);
            Some((model, begun.unwrap_or_else(begin)))
        })
        .collect();
    let started = Instant::now();
    // Before the view is taken: what the answer says that it has seen, it has seen.
    let as_of = as_of(platform).await;
    // Both sides answer from the same checkpoint, whatever is written meanwhile.
    let view = platform.indexes.view(collection).await;
    // After the view: what is in it for some only was noted before. A collection where nothing ever was needs no condition.
    let restricted =
        *scope.viewer != Viewer::Everything && platform.catalog.is_restricted(collection).await?;
    let filter = match restricted {
        true => scope.filter.clone().seen_by(scope.viewer.clone()),
        false => scope.filter.clone(),
    };
    let candidates = limits.candidates.max(k) as usize;

    let near = questions.into_iter().map(|question| async {
        let (model, question) = question?;
        let span = info_span!(
            target: TARGET,
            "retrieval.vector",
            gen_ai.request.model = model,
            retrieval.candidates = candidates as i64,
        );
        let side = vector_side(&view, question, &filter, candidates);
        Some(side.instrument(span).await)
    });
    let by_words: Vec<&str> = queries
        .iter()
        .filter(|query| query.mode != Mode::Vector)
        .map(|query| query.keywords)
        .collect();
    let matching = async {
        if by_words.is_empty() {
            return Ok((Vec::new(), 0.0));
        }
        let span = info_span!(
            target: TARGET,
            "retrieval.keyword",
            retrieval.candidates = candidates as i64,
            retrieval.queries = by_words.len() as i64,
        );
        let side = keyword_side(&view, &by_words, &filter, candidates, started);
        side.instrument(span).await
    };
    let (near, matching) = tokio::join!(join_all(near), matching);

    // What a query by words brought need not be read again for one by vectors.
    let matched = matching.iter().flat_map(|(lists, _)| lists).flatten();
    let known: HashMap<ChunkId, &ChunkRecord> =
        matched.map(|(chunk, _)| (chunk.id, chunk)).collect();
    let mut vectors = Vec::with_capacity(queries.len());
    for near in near {
        vectors.push(match near {
            Some(near) => Some(read(&view, near, &known).await),
            None => None,
        });
    }
    let mut matching = matching.map(|(lists, took_ms)| (lists.into_iter(), took_ms));
    let mut next_matching = || match &mut matching {
        Ok((lists, took_ms)) => Ok((lists.next().unwrap_or_default(), *took_ms)),
        Err(reason) => Err(reason.clone()),
    };
    let mut sides: Vec<(Option<Side<Ranked>>, Option<Side<Ranked>>)> = queries
        .iter()
        .zip(vectors)
        .map(|(query, vector)| {
            (
                vector,
                (query.mode != Mode::Vector).then(&mut next_matching),
            )
        })
        .collect();
    if restricted {
        let found = sides.iter().flat_map(|(vector, keyword)| [vector, keyword]);
        let found = found.flatten().flatten().flat_map(|(found, _)| found);
        let ids: BTreeSet<DocumentId> = found.map(|(chunk, _)| chunk.document.id).collect();
        let ids: Vec<DocumentId> = ids.into_iter().collect();
        let withdrawn = platform
            .catalog
            .hidden_among(scope.viewer, collection, &ids);
        let withdrawn = withdrawn.await?;
        let found = sides
            .iter_mut()
            .flat_map(|(vector, keyword)| [vector, keyword]);
        for (found, _) in found.flatten().flatten() {
            found.retain(|(chunk, _)| !withdrawn.contains(&chunk.document.id));
        }
    }
    let found = queries.iter().zip(sides).map(|(query, (vector, keyword))| {
        fused(platform, scope, query.mode, vector, keyword).inspect(|found| {
            metrics::histogram!("va_search_seconds").record(found.took_ms / 1_000.0);
        })
    });
    Ok(Retrieved {
        as_of,
        found: found.collect(),
    })
}

/// One list of what the sides of a query found.
fn fused(
    platform: &Platform,
    scope: &Scope<'_>,
    mode: Mode,
    vector: Option<Side<Ranked>>,
    keyword: Option<Side<Ranked>>,
) -> Result<Found, SearchError> {
    let limits = &platform.settings.search;
    let collection = &scope.within.collection;
    let mut degraded = Vec::new();
    let mut answer = |retriever: &'static str, side: Option<Side<Ranked>>| match side? {
        Ok(found) => Some(found),
        Err(reason) => {
            metrics::counter!("va_search_degraded_total", "retriever" => retriever).increment(1);
            tracing::error!(retriever, reason, %collection, "a retriever could not answer");
            degraded.push(Degraded { retriever, reason });
            None
        }
    };
    let vector = answer("vector", vector);
    let keyword = answer("keyword", keyword);
    if vector.is_none() && keyword.is_none() {
        let reasons: Vec<String> = degraded
            .iter()
            .map(|d| format!("{}: {}", d.retriever, d.reason))
            .collect();
        return Err(SearchError::Unavailable(reasons.join("; ")));
    }
    let took = |side: &Option<(Ranked, f64)>| side.as_ref().map_or(0.0, |(_, took_ms)| *took_ms);
    let took_ms = took(&vector).max(took(&keyword));
    let explain = scope.explain.then(|| {
        let side = |found: &Option<(Ranked, f64)>| {
            found.as_ref().map(|(found, took_ms)| RetrieverExplain {
                candidates: found.len(),
                took_ms: *took_ms,
            })
        };
        let single = |name: &str| format!("score of the {name} retriever");
        let fusion = match mode {
            Mode::Vector => single("vector"),
            Mode::Keyword => single("keyword"),
            Mode::Hybrid => {
                let (vector, keyword) = (limits.vector_weight, limits.keyword_weight);
                let sum = match limits.fusion {
                    FusionMethod::Rrf => format!(
                        "{vector} / ({k} + rank) by vectors + {keyword} / ({k} + rank) by keywords, ranks of documents",
                        k = limits.rrf_k
                    ),
                    FusionMethod::Scores => format!(
                        "{vector} x vector score + {keyword} x keyword score, of documents, from 0 to 1"
                    ),
                };
                format!("{sum}; {REPEAT} of it for each further chunk")
            }
        };
        Explain {
            fusion,
            vector: side(&vector),
            keyword: side(&keyword),
            model: scope.within.model.clone(),
        }
    });
    let fusion = Fusion {
        method: limits.fusion,
        rrf_k: limits.rrf_k,
        vector_weight: limits.vector_weight,
        keyword_weight: limits.keyword_weight,
    };
    let vector = vector.map(|(found, _)| found).unwrap_or_default();
    let keyword = keyword.map(|(found, _)| found).unwrap_or_default();
    let k = scope.k as usize;
    let chunks = match mode {
        Mode::Hybrid => fuse(vector, keyword, fusion, k),
        // One retriever alone: its order and its scores.
        Mode::Vector => alone(vector, true, k),
        Mode::Keyword => alone(keyword, false, k),
    };
    Ok(Found {
        chunks,
        degraded,
        explain,
        took_ms,
    })
}

/// A question's vector that is being made, and since when.
pub struct Question {
    text: String,
    role: Role,
    began: Instant,
    vector: JoinHandle<Result<Vec<Vec<f32>>, ModelError>>,
}

impl Question {
    /// Begins to make the vector of a text, by the collection's model.
    pub fn begin(platform: &Platform, model: &str, text: &str, role: Role) -> Self {
        let embedders = platform.embedders.clone();
        let (model, query) = (model.to_owned(), text.to_owned());
        Self {
            text: text.to_owned(),
            role,
            began: Instant::now(),
            vector: tokio::task::spawn_blocking(move || {
                let embedder = embedders.get(&model)?;
                embedder.embed(&[query.as_str()], role)
            }),
        }
    }

    fn is_of(&self, query: &Query<'_>) -> bool {
        self.role == query.role && self.text == query.text
    }
}

async fn vector_side(
    view: &View,
    question: Question,
    filter: &Filter,
    candidates: usize,
) -> Side<Near> {
    let vector = question.vector.await.map_err(|error| error.to_string())?;
    let vector = vector
        .map_err(|error| error.to_string())?
        .into_iter()
        .next()
        .ok_or("the model gave no vector")?;
    let near = view
        .nearest(&vector, candidates, Metric::Cosine, filter)
        .await
        .map_err(|error| error.to_string())?
        .unwrap_or(Near::Read(Vec::new()));
    Ok((near, ms(question.began)))
}

/// The chunks that are near.
async fn read(
    view: &View,
    near: Side<Near>,
    known: &HashMap<ChunkId, &ChunkRecord>,
) -> Side<Ranked> {
    let (near, took_ms) = near?;
    let hits = view.read(near, known).await;
    let hits = hits.map_err(|error| error.to_string())?.into_iter();
    Ok((hits.map(|hit| (hit.chunk, hit.score)).collect(), took_ms))
}

/// Searches of the keyword side for one question at once. One processor is left to the model: the vector takes longest, and what
/// has to wait for it should not be in its way.
static KEYWORD_SEARCHES: LazyLock<usize> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.saturating_sub(1).max(1)
});

/// A list for each of the queries.
async fn keyword_side(
    view: &View,
    queries: &[&str],
    filter: &Filter,
    candidates: usize,
    started: Instant,
) -> Side<Vec<Ranked>> {
    let lists = match &view.texts {
        Ok(Some(texts)) => {
            let shares = queries.chunks(queries.len().div_ceil(*KEYWORD_SEARCHES).max(1));
            let searches = shares.map(|share| texts.search_each(share, candidates, filter));
            let lists = try_join_all(searches).await;
            let lists = lists.map_err(|error| error.to_string())?;
            lists.into_iter().flatten().collect()
        }
        Ok(None) => vec![Vec::new(); queries.len()],
        Err(error) => return Err(error.to_string()),
    };
    let ranked = |hits: Vec<TextHit>| hits.into_iter().map(|hit| (hit.chunk, hit.score));
    let lists = lists.into_iter().map(|hits| ranked(hits).collect());
    Ok((lists.collect(), ms(started)))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// A chunk with its place in each list and its fused score.
#[derive(Debug, Clone)]
pub struct Fused {
    pub chunk: ChunkRecord,
    pub score: f64,
    pub retrievers: Retrievers,
}

/// How two lists become one.
#[derive(Debug, Clone, Copy)]
pub struct Fusion {
    pub method: FusionMethod,
    pub rrf_k: u32,
    pub vector_weight: u32,
    pub keyword_weight: u32,
}

/// Each further chunk of the same document counts so much of the one before it: a page that answers comes before a
/// second passage of the page above it, unless that page is far better than all others.
const REPEAT: f64 = 0.5;

/// Fuses two ranked lists of chunks.
///
/// Documents are ranked, because that is where the lists agree: the words of a question may be in one passage of a page
/// and its meaning in another. A document's score is a sum over the lists that hold a chunk of it:
///
/// - by ranks, `weight / (rrf_k + rank)`, where `rank` counts documents;
/// - by scores, `weight` times the score of its best chunk on a scale from 0 to 1. Keyword scores are taken as shares of
///   the best; vector scores lie close together and are taken between the worst candidate and the best. (Bruch, Gai and
///   Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023.)
///
/// Its chunks follow each other by their own fused score, each with [`REPEAT`] of the score before. Ties keep the better
/// single rank first, then the id, so that the same lists always give the same order.
pub fn fuse(
    vector: Vec<(ChunkRecord, f32)>,
    keyword: Vec<(ChunkRecord, f32)>,
    fusion: Fusion,
    k: usize,
) -> Vec<Fused> {
    let mut fused: HashMap<ChunkId, Fused> = HashMap::new();
    let mut documents: HashMap<DocumentId, f64> = HashMap::new();
    for (from_vector, list) in [(true, vector), (false, keyword)] {
        let weight = f64::from(match from_vector {
            true => fusion.vector_weight,
            false => fusion.keyword_weight,
        });
        let score_of = |hit: Option<&(ChunkRecord, f32)>| hit.map_or(0.0, |(_, s)| f64::from(*s));
        let best = score_of(list.first());
        let worst = match from_vector {
            true => score_of(list.last()),
            false => 0.0,
        };
        let share = |rank: u32, score: f32| match fusion.method {
            FusionMethod::Rrf => weight / f64::from(fusion.rrf_k + rank),
            // Where all are equal, all are as good as the best.
            FusionMethod::Scores if best <= worst => weight,
            FusionMethod::Scores => weight * (f64::from(score) - worst) / (best - worst),
        };
        let mut seen: HashSet<DocumentId> = HashSet::new();
        for (i, (chunk, score)) in list.into_iter().enumerate() {
            let rank = i as u32 + 1;
            if seen.insert(chunk.document.id) {
                *documents.entry(chunk.document.id).or_default() += share(seen.len() as u32, score);
            }
            let entry = fused.entry(chunk.id).or_insert_with(|| Fused {
                chunk,
                score: 0.0,
                retrievers: Retrievers::default(),
            });
            entry.score += share(rank, score);
            let place = Some(RankScore { rank, score });
            if from_vector {
                entry.retrievers.vector = place;
            } else {
                entry.retrievers.keyword = place;
            }
        }
    }
    let mut fused: Vec<Fused> = fused.into_values().collect();
    sort(&mut fused);
    // In the order of the chunks' own scores, so that each document's best chunk takes its whole score.
    for fused in &mut fused {
        if let Some(score) = documents.get_mut(&fused.chunk.document.id) {
            fused.score = *score;
            *score *= REPEAT;
        }
    }
    sort(&mut fused);
    fused.truncate(k);
    fused
}

/// The list of one retriever as it is.
fn alone(list: Vec<(ChunkRecord, f32)>, from_vector: bool, k: usize) -> Vec<Fused> {
    let ranked = list.into_iter().take(k).zip(1..);
    ranked
        .map(|((chunk, score), rank)| {
            let place = Some(RankScore { rank, score });
            let retrievers = match from_vector {
                true => Retrievers {
                    vector: place,
                    keyword: None,
                },
                false => Retrievers {
                    vector: None,
                    keyword: place,
                },
            };
            Fused {
                chunk,
                score: f64::from(score),
                retrievers,
            }
        })
        .collect()
}

/// Best first, in an order that is always the same.
fn sort(fused: &mut [Fused]) {
    let best = |fused: &Fused| {
        let rank = |place: Option<RankScore>| place.map_or(u32::MAX, |place| place.rank);
        rank(fused.retrievers.vector).min(rank(fused.retrievers.keyword))
    };
    fused.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| best(a).cmp(&best(b)))
            .then_with(|| a.chunk.id.cmp(&b.chunk.id))
    });
}

fn hit(rank: u32, fused: Fused, query: &str) -> Hit {
    let Fused {
        chunk,
        score,
        retrievers,
    } = fused;
    let marks = highlights(&chunk.text, query);
    let (start, end) = snippet(&chunk.text, &marks, SNIPPET_CHARS);
    let shown = Snippet {
        text: chunk.text.chars().skip(start).take(end - start).collect(),
        highlights: marks
            .iter()
            .filter(|(from, to)| *from >= start && *to <= end)
            .map(|(from, to)| (from - start, to - start))
            .collect(),
    };
    Hit {
        rank,
        score,
        document: chunk.document,
        chunk: HitChunk {
            id: chunk.id,
            text: chunk.text,
            title_path: chunk.title_path,
            page: chunk.page,
            start: chunk.start,
            end: chunk.end,
            highlights: marks,
            snippet: shown,
        },
        retrievers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use va_catalog::{TenantId, Version};

    const FUSION: Fusion = Fusion {
        method: FusionMethod::Rrf,
        rrf_k: 5,
        vector_weight: 1,
        keyword_weight: 2,
    };

    /// Chunk `index` of a document.
    fn chunk(name: &str, index: u32) -> ChunkRecord {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        };
        let id = DocumentId::of(&collection, name);
        ChunkRecord {
            id: ChunkId::of(&collection, id, Version(1), index),
            document: DocumentRef {
                id,
                name: name.into(),
                uri: name.into(),
                title: None,
                version: Version(1),
            },
            index,
            count: 3,
            title_path: vec![],
            page: None,
            start: 0,
            end: 0,
            text: format!("{name}{index}"),
            tokens: 1,
            tags: vec![],
        }
    }

    /// Lists of chunks, best first, as `document index` words; the fused order in the same words, with scores.
    fn fused(vector: &str, keyword: &str) -> Vec<(String, f64)> {
        let list = |text: &str| {
            let chunks = text.split_whitespace().map(|word| {
                let (name, index) = word.split_at(1);
                (chunk(name, index.parse().expect("an index")), 0.5)
            });
            chunks.collect()
        };
        fuse(list(vector), list(keyword), FUSION, 10)
            .into_iter()
            .map(|fused| (fused.chunk.text, fused.score))
            .collect()
    }

    fn order(vector: &str, keyword: &str) -> String {
        let words: Vec<String> = fused(vector, keyword).into_iter().map(|f| f.0).collect();
        words.join(" ")
    }

    #[test]
    fn what_both_find_comes_first() {
        let found = fused("a0 b0 c0", "d0 c0");
        assert_eq!(found[0].0, "c0");
        assert!((found[0].1 - (1.0 / 8.0 + 2.0 / 7.0)).abs() < 1e-12);
        assert_eq!(order("a0 b0 c0", "d0 c0"), "c0 d0 a0 b0");
    }

    #[test]
    fn a_document_is_found_by_different_passages_in_each_list() {
        // `b` is second in both lists by another chunk each time, `a` and `c` are first in one.
        assert_eq!(order("a0 b0", "c0 b1"), "b1 c0 b0 a0");
    }

    #[test]
    fn passages_of_one_document_do_not_crowd_out_others() {
        // Ranks count documents: `b` is second, not fourth.
        assert_eq!(order("a0 a1 a2 b0", ""), "a0 b0 a1 a2");
        assert_eq!(order("a0 a1 a2", ""), "a0 a1 a2");
    }

    #[test]
    fn by_scores_a_hit_that_stands_out_keeps_its_lead() {
        let list = |hits: &[(&str, f32)]| -> Vec<(ChunkRecord, f32)> {
            hits.iter().map(|(name, s)| (chunk(name, 0), *s)).collect()
        };
        let by = |method| {
            let fusion = Fusion { method, ..FUSION };
            let vector = list(&[("a", 0.90), ("b", 0.89), ("c", 0.80)]);
            let keyword = list(&[("b", 30.0), ("c", 6.0), ("a", 5.0)]);
            let fused = fuse(vector, keyword, fusion, 10);
            let names = fused.iter().map(|f| f.chunk.document.name.as_str());
            (names.collect::<String>(), fused[0].score)
        };
        // `b`: 1 * (0.89 - 0.80) / 0.10 + 2 * 1; `a`: 1 + 2 * 5 / 30; `c`: 0 + 2 * 6 / 30.
        let (order, score) = by(FusionMethod::Scores);
        assert_eq!(order, "bac");
        assert!((score - 2.9).abs() < 1e-5, "{score}");
        assert_eq!(by(FusionMethod::Rrf).0, "bac");
        // Equal scores are all the best.
        let fusion = Fusion {
            method: FusionMethod::Scores,
            ..FUSION
        };
        let one = fuse(list(&[("a", 0.5)]), Vec::new(), fusion, 10);
        assert_eq!(one[0].score, 1.0);
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(order("", ""), "");
    }
}
