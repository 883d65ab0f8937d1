//! What the engine reads from, and the search that it calls.

use std::sync::Arc;

use async_trait::async_trait;
use va_catalog::{Catalog, CollectionName, TenantScope, Viewer};
use va_connectors::log::Log;
use va_vector::VectorStore;

/// Hybrid search, as `serving` implements it.
#[async_trait]
pub trait Search: Send + Sync {
    /// The best `k` chunks of the collection for the query that the viewer may read, best first. The collection exists, and
    /// `k` is 1 to 1000.
    /// The error is shown to whoever wrote the SQL.
    async fn hybrid(
        &self,
        tenant: &TenantScope,
        viewer: &Viewer,
        collection: &CollectionName,
        query: &str,
        k: usize,
    ) -> Result<Vec<SearchRow>, String>;
}

/// One hit: a row of `hybrid_search(...)`.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRow {
    /// Counted from 1.
    pub rank: u32,
    /// Greater is better; comparable within one search only.
    pub score: f64,
    pub document_id: String,
    pub name: String,
    /// The path or URL that was indexed.
    pub uri: String,
    pub title: Option<String>,
    pub version: u32,
    pub chunk_id: String,
    pub title_path: Vec<String>,
    /// 1-based; `None` where the format has no pages.
    pub page: Option<u32>,
    /// Offsets in Unicode characters into the document's text, end exclusive.
    pub start: u64,
    pub end: u64,
    pub text: String,
    /// Rank in the vector search alone, counted from 1; `None` when that did not find it.
    pub vector_rank: Option<u32>,
    /// Rank in the keyword search alone.
    pub keyword_rank: Option<u32>,
}

/// Everything the engine reads.
#[derive(Clone)]
pub struct SqlServices {
    pub catalog: Catalog,
    pub log: Arc<dyn Log>,
    pub vectors: Arc<dyn VectorStore>,
    pub search: Arc<dyn Search>,
}

impl std::fmt::Debug for SqlServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlServices").finish_non_exhaustive()
    }
}
