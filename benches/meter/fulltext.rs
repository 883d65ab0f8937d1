//! A bare full-text writer: the product's own analysis, schema and writer settings, fed from memory and committed
//! once, without log, catalog or pipeline.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::chunk::batch_of;
use va_catalog::{ChunkRecord, CollectionName, CollectionRef, DocumentId, TenantId};
use va_fulltext::{TantivyIndex, TextIndex};

use crate::Failure;

/// Indexes every chunk of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fulltext {
    /// Chunk records, one JSON object a line.
    rows: PathBuf,
    /// Where the index is made, and removed again.
    dir: PathBuf,
}

/// Chunks that are handed over in one call.
const CHUNKS: usize = 1_000;

pub async fn run(asked: &Fulltext) -> Result<Value, Failure> {
    let collection = CollectionRef {
        tenant: TenantId::default_tenant(),
        collection: CollectionName::new("bare")?,
    };
    let text = std::fs::read_to_string(&asked.rows)?;
    let chunks: Vec<ChunkRecord> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let mut batches = Vec::new();
    for part in chunks.chunks(CHUNKS) {
        batches.push(batch_of(&collection, part)?);
    }
    let bytes: usize = chunks.iter().map(|chunk| chunk.text.len()).sum();
    let documents: BTreeSet<DocumentId> = chunks.iter().map(|chunk| chunk.document.id).collect();
    let dir = tempfile::tempdir_in(&asked.dir)?;
    let index = TantivyIndex::open(dir.path())?;
    // The dictionary is loaded once per process; that is not the writer's speed.
    va_fulltext::Analysis::default().terms("热身");
    let started = Instant::now();
    for batch in &batches {
        // No documents to replace: only additions, as in an empty index.
        index.apply(&collection, &[], batch).await?;
    }
    index.commit(&collection, "all").await?;
    let seconds = started.elapsed().as_secs_f64();
    let found = index.count(&collection).await?;
    if found != chunks.len() as u64 {
        return Err(format!("{found} chunks are in the index of {}", chunks.len()).into());
    }
    Ok(json!({
        "seconds": seconds, "chunks": chunks.len(), "documents": documents.len(), "text_bytes": bytes,
    }))
}
