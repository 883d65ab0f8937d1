//! Searching one commit of a tantivy index.
//!
//! A tantivy searcher sees the segments of one commit and keeps them for as long as it lives. Everything blocks, so it
//! runs on the blocking pool. Writing is the index's business.

use std::collections::HashMap;

use async_trait::async_trait;
use tantivy::collector::TopDocs;
use tantivy::{Searcher, TantivyDocument};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, Filter};

use crate::analysis::Analysis;
use crate::lookup;
use crate::query::{self, Ranking};
use crate::schema::Fields;
use crate::seam::{HITS_MAX, TextError, TextHit, TextSnapshot};

#[derive(Clone)]
pub(crate) struct TantivySnapshot {
    pub searcher: Searcher,
    pub fields: Fields,
    pub analysis: Analysis,
    pub ranking: Ranking,
}

impl TantivySnapshot {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, TextError> + Send + 'static,
    ) -> Result<T, TextError> {
        let snapshot = self.clone();
        tokio::task::spawn_blocking(move || work(&snapshot)).await?
    }

    fn hits(&self, text: &str, k: usize, filter: &Filter) -> Result<Vec<TextHit>, TextError> {
        let query = query::build(&self.fields, self.analysis, &self.ranking, text, filter);
        let (Some(query), true) = (query, k > 0) else {
            return Ok(Vec::new());
        };
        let best = TopDocs::with_limit(k).order_by_score();
        let mut hits = Vec::new();
        for (score, address) in self.searcher.search(&query, &best)? {
            let document: TantivyDocument = self.searcher.doc(address)?;
            let chunk = self.fields.record(&document)?;
            hits.push(TextHit { chunk, score });
        }
        // Segments come and go, so equal scores are put into an order that lasts.
        hits.sort_by(|a, b| {
            (b.score.total_cmp(&a.score)).then_with(|| a.chunk.id.cmp(&b.chunk.id))
        });
        Ok(hits)
    }

    fn keys(&self) -> Result<Vec<ChunkKey>, TextError> {
        let mut keys = Vec::with_capacity(self.searcher.num_docs() as usize);
        for segment in self.searcher.segment_readers() {
            // Read once, in order: a small cache is enough.
            let store = segment
                .get_store_reader(1)
                .map_err(tantivy::TantivyError::from)?;
            for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
                keys.push(self.fields.record(&document?)?.key());
            }
        }
        Ok(keys)
    }
}

#[async_trait]
impl TextSnapshot for TantivySnapshot {
    async fn search(
        &self,
        query: &str,
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<TextHit>, TextError> {
        let found = self.search_each(&[query], k, filter).await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    async fn search_each(
        &self,
        queries: &[&str],
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<Vec<TextHit>>, TextError> {
        if k > HITS_MAX {
            return Err(TextError::TooManyHits { k });
        }
        let cut = |query: &&str| query::cut(query).to_owned();
        let (queries, filter) = (queries.iter().map(cut).collect::<Vec<_>>(), filter.clone());
        self.blocking(move |snapshot| {
            let hits = |query: &String| snapshot.hits(query, k, &filter);
            queries.iter().map(hits).collect()
        })
        .await
    }

    async fn find(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, ChunkRecord>, TextError> {
        let ids = ids.to_vec();
        self.blocking(move |snapshot| {
            let mut found = HashMap::with_capacity(ids.len());
            let searcher = &snapshot.searcher;
            lookup::find(
                searcher,
                searcher.segment_readers(),
                &snapshot.fields,
                &ids,
                &mut found,
            )?;
            Ok(found)
        })
        .await
    }

    fn count(&self) -> u64 {
        self.searcher.num_docs()
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, TextError> {
        self.blocking(Self::keys).await
    }
}
