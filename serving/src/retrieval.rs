//! Hybrid search: vector and keyword candidates in parallel, fused by reciprocal ranks, with citations.
//!
//! When one side fails the other answers and the reply says so; only when both fail is there an error. Fusion is a pure
//! function. Reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
//! individual Rank Learning Methods", SIGIR 2009.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

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
use va_endpoints::View;
use va_fulltext::{highlights, snippet};
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
    /// What the keyword side looks for instead of `query`: a question without its question words. Not for clients.
    #[serde(skip)]
    pub keywords: Option<String>,
    /// Whether `query` is a passage like those that are looked for, and not a question. Not for clients.
    #[serde(skip)]
    pub passage: bool,
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

/// What a search found, without what is made for people who read it.
pub struct Retrieved {
    /// Best first.
    pub chunks: Vec<Fused>,
    pub degraded: Vec<Degraded>,
    pub as_of: AsOf,
    pub explain: Option<Explain>,
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

type Side = Result<(Vec<(ChunkRecord, f32)>, f64), String>;

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
    let found = retrieve(platform, &within, viewer, request, None).await?;
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
    let took_ms = started.elapsed().as_secs_f64() * 1_000.0;
    Ok(SearchReply {
        hits,
        degraded: found.degraded,
        as_of: found.as_of,
        took_ms,
        explain: found.explain,
    })
}

/// Finds what the viewer may read within a collection, whatever the request names.
///
/// The condition on readers is part of both queries. Beyond that, candidates are left out that the catalog says were
/// withdrawn from the viewer a moment ago, while the indexes do not know yet. `begun` is the query's vector where that is
/// being made already.
///
/// # Errors
/// When the request makes no sense, the catalog does not answer, or neither retriever does.
pub async fn retrieve(
    platform: &Platform,
    within: &Within,
    viewer: &Viewer,
    request: &SearchRequest,
    begun: Option<Question>,
) -> Result<Retrieved, SearchError> {
    let started = Instant::now();
    let limits = &platform.settings.search;
    let k = request.k.unwrap_or(limits.k);
    if !(1..=limits.k_max).contains(&k) {
        return Err(SearchError::Invalid(format!(
            "`k` is {k}; use 1 to {}",
            limits.k_max
        )));
    }
    if request.query.trim().is_empty() {
        return Err(SearchError::Invalid("`query` is empty".into()));
    }
    let unfit = |reason: String| SearchError::Invalid(format!("`filter`: {reason}"));
    request.filter.check().map_err(unfit)?;
    let Within { collection, model } = within;
    let model = model.as_deref();
    if model.is_none() && request.mode == Mode::Vector {
        return Err(SearchError::Invalid(format!(
            "collection `{}` is for keyword search only, it has no vectors: use the mode `keyword` or `hybrid`",
            collection.collection
        )));
    }
    // Begins at once: it takes longer than all that can be found out meanwhile.
    let mut question = model
        .filter(|_| request.mode != Mode::Keyword)
        .map(|model| {
            let role = if request.passage {
                Role::Passage
            } else {
                Role::Query
            };
            let begin = || Question::begin(platform, model, &request.query, role);
            (model, begun.unwrap_or_else(begin))
        });
    // Before the view is taken: what the answer says that it has seen, it has seen.
    let as_of = as_of(platform).await;
    // Both sides answer from the same checkpoint, whatever is written meanwhile.
    let view = platform.indexes.view(collection).await;
    // After the view: what is in it for some only was noted before. A collection where nothing ever was needs no condition.
    let restricted =
        *viewer != Viewer::Everything && platform.catalog.is_restricted(collection).await?;
    let filter = match restricted {
        true => request.filter.clone().seen_by(viewer.clone()),
        false => request.filter.clone(),
    };
    let candidates = limits.candidates.max(k) as usize;

    let vector = async {
        let (model, question) = question.take()?;
        let span = info_span!(
            target: TARGET,
            "retrieval.vector",
            gen_ai.request.model = model,
            retrieval.candidates = candidates as i64,
        );
        let side = vector_side(&view, question, &filter, candidates);
        Some(side.instrument(span).await)
    };
    let keyword = async {
        if request.mode == Mode::Vector {
            return None;
        }
        let span = info_span!(
            target: TARGET,
            "retrieval.keyword",
            retrieval.candidates = candidates as i64,
        );
        let side = keyword_side(&view, request, &filter, candidates);
        Some(side.instrument(span).await)
    };
    let (vector, keyword) = tokio::join!(vector, keyword);

    let mut degraded = Vec::new();
    let mut asked = 0;
    let mut answer =
        |retriever: &'static str, side: Option<Side>| -> Option<(Vec<(ChunkRecord, f32)>, f64)> {
            asked += 1;
            match side? {
                Ok(found) => Some(found),
                Err(reason) => {
                    metrics::counter!("va_search_degraded_total", "retriever" => retriever)
                        .increment(1);
                    tracing::error!(retriever, reason, %collection, "a retriever could not answer");
                    degraded.push(Degraded { retriever, reason });
                    None
                }
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

    let explain = request.explain.then(|| {
        let side = |found: &Option<(Vec<(ChunkRecord, f32)>, f64)>| {
            found.as_ref().map(|(found, took_ms)| RetrieverExplain {
                candidates: found.len(),
                took_ms: *took_ms,
            })
        };
        let single = |name: &str| format!("score of the {name} retriever");
        let fusion = match request.mode {
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
            model: model.map(str::to_owned),
        }
    });
    let mut vector = vector.map(|(found, _)| found).unwrap_or_default();
    let mut keyword = keyword.map(|(found, _)| found).unwrap_or_default();
    if restricted {
        let ids: BTreeSet<DocumentId> = vector
            .iter()
            .chain(&keyword)
            .map(|(chunk, _)| chunk.document.id)
            .collect();
        let ids: Vec<DocumentId> = ids.into_iter().collect();
        let withdrawn = platform.catalog.hidden_among(viewer, collection, &ids);
        let withdrawn = withdrawn.await?;
        for found in [&mut vector, &mut keyword] {
            found.retain(|(chunk, _)| !withdrawn.contains(&chunk.document.id));
        }
    }
    let fusion = Fusion {
        method: limits.fusion,
        rrf_k: limits.rrf_k,
        vector_weight: limits.vector_weight,
        keyword_weight: limits.keyword_weight,
    };
    let chunks = match request.mode {
        Mode::Hybrid => fuse(vector, keyword, fusion, k as usize),
        // One retriever alone: its order and its scores.
        Mode::Vector => alone(vector, true, k as usize),
        Mode::Keyword => alone(keyword, false, k as usize),
    };
    metrics::histogram!("va_search_seconds").record(started.elapsed().as_secs_f64());
    Ok(Retrieved {
        chunks,
        degraded,
        as_of,
        explain,
    })
}

/// A question's vector that is being made, and since when.
pub struct Question {
    text: String,
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
            began: Instant::now(),
            vector: tokio::task::spawn_blocking(move || {
                let embedder = embedders.get(&model)?;
                embedder.embed(&[query.as_str()], role)
            }),
        }
    }

    /// Whether it is the vector of this text.
    pub fn is_of(&self, text: &str) -> bool {
        self.text == text
    }
}

async fn vector_side(view: &View, question: Question, filter: &Filter, candidates: usize) -> Side {
    let vector = question.vector.await.map_err(|error| error.to_string())?;
    let vector = vector
        .map_err(|error| error.to_string())?
        .into_iter()
        .next()
        .ok_or("the model gave no vector")?;
    let hits = view
        .nearest(&vector, candidates, Metric::Cosine, filter)
        .await
        .map_err(|error| error.to_string())?
        .unwrap_or_default();
    Ok((
        hits.into_iter().map(|hit| (hit.chunk, hit.score)).collect(),
        question.began.elapsed().as_secs_f64() * 1_000.0,
    ))
}

async fn keyword_side(
    view: &View,
    request: &SearchRequest,
    filter: &Filter,
    candidates: usize,
) -> Side {
    let started = Instant::now();
    let query = request.keywords.as_deref().unwrap_or(&request.query);
    let hits = match &view.texts {
        Ok(Some(texts)) => texts
            .search(query, candidates, filter)
            .await
            .map_err(|error| error.to_string())?,
        Ok(None) => Vec::new(),
        Err(error) => return Err(error.to_string()),
    };
    Ok((
        hits.into_iter().map(|hit| (hit.chunk, hit.score)).collect(),
        started.elapsed().as_secs_f64() * 1_000.0,
    ))
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
