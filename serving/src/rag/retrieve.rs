//! Several queries at once, fused into one ranked list of sources.
//!
//! Each query is a whole hybrid search (synonyms are one by keywords, a made-up passage is one by vectors), with its own
//! degradation, and all of a round see the same checkpoint. Ranks are fused by reciprocal rank with the weight of the query. A
//! chunk counts once, and so does a text that several documents share. [`fuse`] is a pure function.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use tracing::{Instrument, info_span};
use va_catalog::{ChunkId, ChunkRecord, DocumentRef};
use va_connectors::trace::TARGET;
use va_models::Role;

use super::request::Ask;
use super::rewrite::{By, Query, Why};
use super::text::bare;
use crate::freshness::AsOf;
use crate::platform::Platform;
use crate::retrieval::{
    self, Degraded, Fused, Mode, Question, RankScore, Scope, SearchError, Within, retrieve,
};

/// Hits of each query that take part in the fusion.
const HITS: u32 = 20;

/// A chunk that an answer may be made from.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// What a citation calls it: `来源[n]`, `Source[n]`. From 1, best first.
    pub n: u32,
    pub score: f64,
    pub document: DocumentRef,
    pub chunk: Passage,
    /// Which queries found it, and where each of them ranked it.
    pub found: Vec<Found>,
    /// Where it came from, when the sources were put in another order than the searches gave them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reranked: Option<Place>,
}

impl Source {
    /// Cosine of the question's vector and the passage's, where a search by vectors found it by the question.
    pub fn similarity(&self) -> Option<f64> {
        // The first query is the question; see `Rewritten`.
        let found = self.found.iter().find(|found| found.query == 0)?;
        Some(f64::from(found.vector?.score))
    }
}

/// A source's place before it was re-ranked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Place {
    /// From 1.
    pub from: u32,
    /// What the method gave it; `None` where it gives none, or did not judge it.
    pub score: Option<f64>,
}

/// The chunk of a source.
#[derive(Debug, Clone, Serialize)]
pub struct Passage {
    pub id: ChunkId,
    pub text: String,
    pub title_path: Vec<String>,
    pub page: Option<u32>,
    /// Character offsets in the document's text.
    pub start: u64,
    pub end: u64,
    /// Of the text, as the collection's model counts; 0 where nobody counted.
    #[serde(skip)]
    pub tokens: u32,
}

/// A rank that a query gave.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Index into the trace's `queries`.
    pub query: usize,
    pub rank: u32,
    pub vector: Option<RankScore>,
    pub keyword: Option<RankScore>,
}

/// What one query did.
#[derive(Debug, Clone, Serialize)]
pub struct QueryTrace {
    /// 1, or 2 for the queries of the second round.
    pub round: u32,
    pub why: Why,
    pub text: String,
    pub keywords: String,
    pub hits: usize,
    /// Until its last retriever had answered.
    pub took_ms: f64,
}

/// The hits of all queries so far.
#[derive(Debug, Default)]
pub struct Retrieved {
    lists: Vec<(f64, Vec<Fused>)>,
    pub queries: Vec<QueryTrace>,
    pub degraded: Vec<Degraded>,
    /// Of the least fresh search.
    pub as_of: Option<AsOf>,
}

impl Retrieved {
    /// Searches for all `queries` and adds what they find. `begun` may be the vector of one of them.
    ///
    /// # Errors
    /// When not one of them could be answered.
    pub async fn add(
        &mut self,
        platform: &Platform,
        within: &Within,
        ask: &Ask,
        queries: &[Query],
        begun: Option<Question>,
        round: u32,
    ) -> Result<(), SearchError> {
        let scope = Scope {
            within,
            viewer: &ask.viewer,
            filter: &ask.filter,
            k: HITS.max(ask.k as u32).min(platform.settings.search.k_max),
            explain: false,
        };
        let searches: Vec<retrieval::Query<'_>> = queries.iter().map(Query::search).collect();
        let span = info_span!(
            target: TARGET,
            "rag.retrieve",
            rag.round = i64::from(round),
            rag.queries = queries.len() as i64,
        );
        let reply = retrieve(platform, &scope, &searches, begun)
            .instrument(span)
            .await?;
        let mut failed = None;
        let mut answered = false;
        for (query, found) in queries.iter().zip(reply.found) {
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            answered = true;
            for degraded in found.degraded {
                if !self
                    .degraded
                    .iter()
                    .any(|d| d.retriever == degraded.retriever)
                {
                    self.degraded.push(degraded);
                }
            }
            self.queries.push(QueryTrace {
                round,
                why: query.why,
                text: query.text.clone(),
                keywords: query.keywords.clone(),
                hits: found.chunks.len(),
                took_ms: found.took_ms,
            });
            self.lists.push((query.weight, found.chunks));
        }
        match failed {
            Some(error) if !answered => return Err(error),
            // A later round has seen no less.
            _ => self.as_of.get_or_insert(reply.as_of),
        };
        Ok(())
    }

    /// The best `k` sources of all queries so far.
    pub fn sources(&self, rrf_k: u32, k: usize) -> Vec<Source> {
        fuse(&self.lists, rrf_k, k)
    }
}

impl Query {
    /// What is searched for.
    fn search(&self) -> retrieval::Query<'_> {
        retrieval::Query {
            text: &self.text,
            role: match self.by {
                By::Both | By::Keywords => Role::Query,
                By::Passage => Role::Passage,
            },
            keywords: &self.keywords,
            mode: match self.by {
                By::Both => Mode::Hybrid,
                By::Keywords => Mode::Keyword,
                By::Passage => Mode::Vector,
            },
        }
    }
}

/// Fuses ranked lists, each with its weight. Ties keep the better single rank first, then the id.
fn fuse(lists: &[(f64, Vec<Fused>)], rrf_k: u32, k: usize) -> Vec<Source> {
    struct Candidate<'a> {
        score: f64,
        chunk: &'a ChunkRecord,
        found: Vec<Found>,
    }
    let mut by_chunk: HashMap<ChunkId, Candidate<'_>> = HashMap::new();
    for (query, (weight, hits)) in lists.iter().enumerate() {
        for (hit, rank) in hits.iter().zip(1..) {
            let candidate = by_chunk.entry(hit.chunk.id).or_insert_with(|| Candidate {
                score: 0.0,
                chunk: &hit.chunk,
                found: Vec::new(),
            });
            candidate.score += weight / f64::from(rrf_k + rank);
            candidate.found.push(Found {
                query,
                rank,
                vector: hit.retrievers.vector,
                keyword: hit.retrievers.keyword,
            });
        }
    }
    let mut candidates: Vec<Candidate<'_>> = by_chunk.into_values().collect();
    let best = |candidate: &Candidate<'_>| candidate.found.iter().map(|found| found.rank).min();
    candidates.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| best(a).cmp(&best(b)))
            .then_with(|| a.chunk.id.cmp(&b.chunk.id))
    });
    // The same text in a second document (another format of it, a copy) says nothing more.
    let mut seen = HashSet::new();
    let kept = candidates
        .into_iter()
        .filter(|candidate| seen.insert(bare(&candidate.chunk.text)))
        .take(k);
    kept.zip(1..)
        .map(|(candidate, n)| {
            let chunk = candidate.chunk;
            Source {
                n,
                score: candidate.score,
                document: chunk.document.clone(),
                chunk: Passage {
                    id: chunk.id,
                    text: chunk.text.clone(),
                    title_path: chunk.title_path.clone(),
                    page: chunk.page,
                    start: chunk.start,
                    end: chunk.end,
                    tokens: chunk.tokens,
                },
                found: candidate.found,
                reranked: None,
            }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::retrieval::Retrievers;
    use va_catalog::{CollectionName, CollectionRef, DocumentId, TenantId, Version};

    fn hit(name: &str, text: &str) -> Fused {
        let source = source(name, 1, text);
        Fused {
            chunk: ChunkRecord {
                id: source.chunk.id,
                document: source.document,
                index: 0,
                count: 1,
                title_path: Vec::new(),
                page: None,
                start: 0,
                end: 0,
                text: text.into(),
                tokens: 1,
                tags: Vec::new(),
            },
            score: 1.0,
            retrievers: Retrievers::default(),
        }
    }

    /// A source for tests of this folder.
    pub fn source(name: &str, n: u32, text: &str) -> Source {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        };
        let id = DocumentId::of(&collection, name);
        Source {
            n,
            score: 1.0,
            document: DocumentRef {
                id,
                name: name.into(),
                uri: name.into(),
                title: None,
                version: Version(1),
            },
            chunk: Passage {
                id: ChunkId::of(&collection, id, Version(1), 0),
                text: text.into(),
                title_path: Vec::new(),
                page: None,
                start: 0,
                end: text.chars().count() as u64,
                tokens: 0,
            },
            found: Vec::new(),
            reranked: None,
        }
    }

    fn order(lists: &[(f64, &[&str])]) -> String {
        let lists: Vec<(f64, Vec<Fused>)> = lists
            .iter()
            .map(|(weight, names)| {
                let hits = names.iter().map(|name| hit(name, name));
                (*weight, hits.collect())
            })
            .collect();
        let sources = fuse(&lists, 20, 3);
        let names: Vec<&str> = sources.iter().map(|s| s.document.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn queries_are_fused_by_weight() {
        assert_eq!(order(&[(1.0, &["a", "b", "c", "d"])]), "a b c");
        assert_eq!(order(&[(1.0, &["a", "b"]), (0.5, &["b", "c"])]), "b a c");
        assert_eq!(order(&[(1.0, &["a", "b"]), (0.1, &["c", "d"])]), "a b c");
        assert_eq!(order(&[]), "");
    }

    #[test]
    fn a_copy_of_a_text_is_one_source() {
        let hits = vec![
            hit("a", "The same, text."),
            hit("b", "the same text"),
            hit("c", "x"),
        ];
        let sources = fuse(&[(1.0, hits)], 20, 5);
        let numbered: Vec<(u32, &str)> = sources
            .iter()
            .map(|s| (s.n, s.document.name.as_str()))
            .collect();
        assert_eq!(numbered, [(1, "a"), (2, "c")]);
    }
}
