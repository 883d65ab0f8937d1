//! Chunks by their ids, from the index that holds them whole.
//!
//! An id is a term like any other: the dictionary of a segment knows the rows that have it. Blocks.

use std::collections::HashMap;

use tantivy::schema::IndexRecordOption;
use tantivy::{
    DocAddress, DocSet, Searcher, SegmentReader, TERMINATED, TantivyDocument, TantivyError, Term,
};
use va_catalog::{ChunkId, ChunkRecord};

use crate::schema::Fields;
use crate::seam::TextError;

/// Adds those of the chunks that are alive in `segments`, which are those of `searcher`, perhaps with fewer live rows.
pub(crate) fn find(
    searcher: &Searcher,
    segments: &[SegmentReader],
    fields: &Fields,
    ids: &[ChunkId],
    found: &mut HashMap<ChunkId, ChunkRecord>,
) -> Result<(), TextError> {
    for (at, segment) in segments.iter().enumerate() {
        let dictionary = segment.inverted_index(fields.chunk_id)?;
        for id in ids {
            if found.contains_key(id) {
                continue;
            }
            let term = Term::from_field_text(fields.chunk_id, &id.to_string());
            let rows = dictionary
                .read_postings(&term, IndexRecordOption::Basic)
                .map_err(TantivyError::from)?;
            let Some(mut rows) = rows else { continue };
            while rows.doc() != TERMINATED {
                if !segment.is_deleted(rows.doc()) {
                    let row = DocAddress::new(at as u32, rows.doc());
                    let document: TantivyDocument = searcher.doc(row)?;
                    found.insert(*id, fields.record(&document)?);
                    break;
                }
                rows.advance();
            }
        }
    }
    Ok(())
}
