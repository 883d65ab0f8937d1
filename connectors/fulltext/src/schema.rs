//! The tantivy schema of a collection, and chunks as tantivy documents.
//!
//! The whole [`ChunkRecord`] is stored, so that a hit can be cited although no other store answers.

use tantivy::TantivyDocument;
use tantivy::schema::document::Value;
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions,
};
use va_catalog::ChunkRecord;

use crate::analysis::Analysis;
use crate::seam::TextError;

/// The fields of a collection.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    pub chunk_id: Field,
    pub document_id: Field,
    pub tags: Field,
    pub title: Field,
    pub text: Field,
    /// `version` is read from its column, never searched.
    pub version: Field,
    /// The record as JSON.
    pub record: Field,
}

/// The schema for one way of analysis; its name is in it, so that an index made in another way is recognised.
pub(crate) fn schema(analysis: Analysis) -> (Schema, Fields) {
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(&analysis.name())
        .set_index_option(IndexRecordOption::WithFreqsAndPositions);
    let analysed = TextOptions::default().set_indexing_options(indexing);
    let mut builder = Schema::builder();
    let fields = Fields {
        chunk_id: builder.add_text_field("chunk_id", STRING | FAST),
        document_id: builder.add_text_field("document_id", STRING | FAST),
        tags: builder.add_text_field("tags", STRING),
        title: builder.add_text_field("title", analysed.clone()),
        text: builder.add_text_field("text", analysed),
        version: builder.add_u64_field("version", INDEXED | FAST),
        record: builder.add_bytes_field("record", STORED),
    };
    (builder.build(), fields)
}

impl Fields {
    /// A chunk as tantivy stores it.
    pub fn document(&self, chunk: &ChunkRecord) -> Result<TantivyDocument, TextError> {
        let mut document = TantivyDocument::new();
        document.add_text(self.chunk_id, chunk.id.to_string());
        document.add_text(self.document_id, chunk.document.id.to_string());
        document.add_u64(self.version, u64::from(chunk.document.version.0));
        for tag in &chunk.tags {
            document.add_text(self.tags, tag);
        }
        // People also look for a file by its name. A heading path often begins with the title; once is enough.
        document.add_text(self.title, &chunk.document.name);
        let title = chunk.document.title.as_ref();
        let title = title.filter(|title| !chunk.title_path.contains(title));
        for title in title.into_iter().chain(&chunk.title_path) {
            document.add_text(self.title, title);
        }
        document.add_text(self.text, &chunk.text);
        let record = serde_json::to_vec(chunk).map_err(TextError::Record)?;
        document.add_bytes(self.record, &record);
        Ok(document)
    }

    /// The chunk that [`Fields::document`] stored.
    pub fn record(&self, document: &TantivyDocument) -> Result<ChunkRecord, TextError> {
        let stored = document.get_first(self.record);
        let bytes = stored.as_ref().and_then(|value| value.as_bytes());
        serde_json::from_slice(bytes.unwrap_or_default()).map_err(TextError::Record)
    }
}
