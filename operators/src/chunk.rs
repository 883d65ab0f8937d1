//! `chunk`: parsed documents to chunk rows with deterministic ids.
//!
//! The cutting itself is `va-chunk`; this file turns its result into rows: ids, character offsets, tags for filters.
//! A document becomes one `document` row, which tells the indexes to drop what they hold of it, and its `chunk` rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::chunk::{chunk_schema, string_lists};
use va_catalog::event::parsed_schema;
use va_catalog::readers::{READERS_KEY, RESERVED};
use va_catalog::{
    ChunkId, ChunkOp, CollectionName, CollectionRef, DocumentId, Readers, TenantId, Version,
};
use va_chunk::{ChunkOptions, Estimate, TokenCounter};
use va_connectors::flow::{FlowError, Names, Problem};
use va_models::SharedTokenizer;

use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::parsed::{ParsedRow, from_batch};
use crate::shape::expect_columns;

/// Most rows in one emitted batch.
const ROWS_MAX: usize = 256;

/// Cuts documents into chunks that keep sentences, headings, tables and code whole.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChunkSpec {
    /// The embedding model whose tokenizer counts: a name from `va model list` or a directory. For collections without
    /// vectors no model counts, tokens are estimated.
    #[serde(default = "default_model")]
    pub model: String,
    /// Longest chunk, in tokens.
    #[serde(default = "default_tokens_max")]
    pub tokens_max: usize,
    /// Smaller neighbours under the same heading are merged, in tokens.
    #[serde(default = "default_tokens_min")]
    pub tokens_min: usize,
    /// Whole sentences repeated from the end of the chunk before, at most so many tokens.
    #[serde(default = "default_overlap_tokens")]
    pub overlap_tokens: usize,
}

pub(crate) fn default_model() -> String {
    va_models::DEFAULT_EMBEDDER.to_owned()
}

fn default_tokens_max() -> usize {
    ChunkOptions::default().tokens_max
}

fn default_tokens_min() -> usize {
    ChunkOptions::default().tokens_min
}

fn default_overlap_tokens() -> usize {
    ChunkOptions::default().overlap_tokens
}

impl OperatorSpec for ChunkSpec {
    const KIND: &'static str = "chunk";
    const EXAMPLE: &'static str = include_str!("../examples/chunk.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        expect_columns(&inputs[0], &parsed_schema())?;
        let mut problems = Vec::new();
        if !(8..=8_192).contains(&self.tokens_max) {
            problems.push(
                Problem::new(
                    &["tokens_max"],
                    format!("{} is out of range", self.tokens_max),
                )
                .hint("use 8 to 8192; 200 to 400 suits most models"),
            );
        }
        if self.overlap_tokens * 2 > self.tokens_max {
            problems.push(
                Problem::new(
                    &["overlap_tokens"],
                    format!(
                        "{} is more than half of tokens_max ({})",
                        self.overlap_tokens, self.tokens_max
                    ),
                )
                .hint("use at most half, so that every chunk brings something new"),
            );
        }
        if problems.is_empty() {
            Ok(emitted_schema())
        } else {
            Err(problems)
        }
    }

    fn build(
        self,
        _inputs: &[SchemaRef],
        resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let options = ChunkOptions {
            tokens_max: self.tokens_max,
            tokens_min: self.tokens_min,
            overlap_tokens: self.overlap_tokens,
            ..ChunkOptions::default()
        };
        Ok(Box::new(ChunkTask {
            model: self.model,
            options,
            resources: resources.clone(),
        }))
    }
}

/// Chunk rows, what is embedded before the text of each (titles above it, the header row of its table), and whether it
/// gets a vector.
fn emitted_schema() -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = chunk_schema(None).fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("context", DataType::Utf8, true)));
    fields.push(Arc::new(Field::new("vectors", DataType::Boolean, true)));
    Arc::new(Schema::new(fields))
}

struct ChunkTask {
    model: String,
    options: ChunkOptions,
    resources: Resources,
}

impl ChunkTask {
    /// The model's tokenizer, without its weights: a collection without vectors never needs those.
    async fn tokenizer(&self) -> Result<SharedTokenizer, FlowError> {
        let (embedders, model) = (self.resources.embedders.clone(), self.model.clone());
        tokio::task::spawn_blocking(move || embedders.tokenizer(&model))
            .await
            .map_err(|error| FlowError::fatal("chunk", error))?
            .map_err(|error| FlowError::fatal("chunk", error))
    }
}

#[async_trait]
impl Operator for ChunkTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let documents: Vec<ParsedRow> = (0..batch.num_rows())
            .map(|row| from_batch(&batch, row))
            .collect::<Result<_, _>>()?;
        let model = match documents.iter().any(is_embedded) {
            true => Some(Tokens(self.tokenizer().await?)),
            false => None,
        };
        let options = self.options;
        let cut = tokio::task::spawn_blocking(move || {
            documents
                .par_iter()
                .map(|document| {
                    let model = model.as_ref().filter(|_| is_embedded(document));
                    let tokens = model.map_or(&Estimate as &dyn TokenCounter, |model| {
                        model as &dyn TokenCounter
                    });
                    rows_of(document, &options, tokens)
                })
                .collect::<Vec<_>>()
        })
        .await
        .map_err(|error| FlowError::fatal("chunk", error))?;
        let mut good = Vec::with_capacity(cut.len());
        for (row, cut) in cut.into_iter().enumerate() {
            match cut {
                Ok(rows) => good.push(rows),
                Err(reason) => cx.dead_letter(&batch, row, reason),
            }
        }
        cx.passed(good.len());
        // Documents together: a model is much faster on many passages than on a few at a time.
        let rows = concat_batches(&emitted_schema(), &good)?;
        // In equal parts, so that none is left with a few.
        let parts = rows.num_rows().div_ceil(ROWS_MAX).max(1);
        let size = rows.num_rows().div_ceil(parts).max(1);
        for start in (0..rows.num_rows()).step_by(size) {
            cx.emit(rows.slice(start, size.min(rows.num_rows() - start)))
                .await?;
        }
        Ok(())
    }
}

/// The tokenizer of a model as the chunker wants it.
struct Tokens(SharedTokenizer);

impl TokenCounter for Tokens {
    fn count(&self, text: &str) -> usize {
        self.0.count(text)
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        self.0.offsets(text)
    }
}

/// Whether a model will read the chunks, so that their size in its tokens matters.
fn is_embedded(document: &ParsedRow) -> bool {
    document.vectors != Some(false) && document.op != "delete"
}

/// One `document` or `delete` row, then the chunk rows.
fn rows_of(
    document: &ParsedRow,
    options: &ChunkOptions,
    tokens: &dyn TokenCounter,
) -> Result<RecordBatch, String> {
    let collection = CollectionRef {
        tenant: TenantId::new(&document.tenant_id).map_err(|e| e.to_string())?,
        collection: CollectionName::new(&document.collection).map_err(|e| e.to_string())?,
    };
    let id: DocumentId = document
        .document_id
        .parse()
        .map_err(|e: va_catalog::InvalidName| e.to_string())?;
    let deleted = document.op == "delete";
    let chunks = if deleted {
        Vec::new()
    } else {
        va_chunk::chunk(&document.text, &document.blocks, options, tokens)
    };
    let tags = tags_of(document)?;
    let first_op = if deleted {
        ChunkOp::Delete
    } else {
        ChunkOp::Document
    };
    let no_path: &[String] = &[];
    let n = chunks.len() + 1;

    let all = |value: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n)))
    };
    let ids = (0..chunks.len() as u32)
        .map(|index| ChunkId::of(&collection, id, Version(document.version), index).to_string());
    let u32s = |first: u32, rest: Vec<u32>| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(
            std::iter::once(first).chain(rest),
        ))
    };
    let u64s = |rest: Vec<u64>| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(
            std::iter::once(0).chain(rest),
        ))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            std::iter::once(first_op.as_str())
                .chain(chunks.iter().map(|_| ChunkOp::Chunk.as_str())),
        )),
        Arc::new(StringArray::from_iter_values(
            std::iter::once(String::new()).chain(ids),
        )),
        all(&document.tenant_id),
        all(&document.collection),
        all(&document.document_id),
        Arc::new(UInt32Array::from(vec![document.version; n])),
        all(&document.name),
        all(&document.uri),
        Arc::new(StringArray::from(vec![document.title.as_deref(); n])),
        u32s(0, (0..chunks.len() as u32).collect()),
        Arc::new(UInt32Array::from(vec![chunks.len() as u32; n])),
        string_lists(
            std::iter::once(no_path).chain(chunks.iter().map(|c| c.title_path.as_slice())),
        ),
        Arc::new(UInt32Array::from_iter(
            std::iter::once(None).chain(chunks.iter().map(|c| c.page)),
        )),
        u64s(chunks.iter().map(|c| c.chars.start as u64).collect()),
        u64s(chunks.iter().map(|c| c.chars.end as u64).collect()),
        u32s(0, chunks.iter().map(|c| c.tokens as u32).collect()),
        string_lists(std::iter::repeat_n(tags.as_slice(), n)),
        Arc::new(StringArray::from_iter_values(
            std::iter::once("").chain(chunks.iter().map(|c| c.text.as_str())),
        )),
        Arc::new(StringArray::from_iter(
            std::iter::once(None).chain(chunks.iter().map(context_of)),
        )),
        Arc::new(BooleanArray::from(vec![document.vectors; n])),
    ];
    RecordBatch::try_new(emitted_schema(), columns).map_err(|error| error.to_string())
}

fn context_of(chunk: &va_chunk::Chunk) -> Option<String> {
    let parts: Vec<&str> = [&chunk.context, &chunk.prefix]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// `key=value` of the document's metadata and of what is known anyway, and who may read it.
fn tags_of(document: &ParsedRow) -> Result<Vec<String>, String> {
    let metadata: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&document.metadata)
            .map_err(|error| format!("`metadata` is not a JSON object: {error}"))?;
    // Left out in silence it would be everybody's, so what cannot be read costs the document.
    let carried = metadata.get(READERS_KEY).map(|carried| {
        carried
            .as_str()
            .ok_or_else(|| format!("`{READERS_KEY}` is not a text: {carried}"))
    });
    let readers = Readers::carried_by(carried.transpose()?).map_err(|error| error.to_string())?;
    let mut tags: Vec<String> = metadata
        .iter()
        .filter(|(key, _)| !key.starts_with(RESERVED))
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        })
        .collect();
    tags.push(format!("document_id={}", document.document_id));
    tags.push(format!("name={}", document.name));
    tags.push(format!("uri={}", document.uri));
    if let Some(format) = &document.format {
        tags.push(format!("format={format}"));
    }
    tags.extend(readers.tags());
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(metadata: &str) -> Result<Vec<String>, String> {
        tags_of(&ParsedRow {
            document_id: "d".into(),
            name: "n".into(),
            uri: "u".into(),
            metadata: metadata.into(),
            ..ParsedRow::default()
        })
    }

    #[test]
    fn readers_become_tags_that_no_metadata_can_make() {
        let known = ["document_id=d", "name=n", "uri=u"];
        assert_eq!(
            tags(r#"{"lang":"zh"}"#).expect("tags"),
            [&["lang=zh"][..], &known[..]].concat()
        );
        let readers = r#"{"lang":"zh","va.readers":"[\"role:legal\",\"user:usr_1\"]"}"#;
        let restricted = [
            "va.restricted",
            "va.reader=user:usr_1",
            "va.reader=role:legal",
        ];
        assert_eq!(
            tags(readers).expect("tags"),
            [&["lang=zh"][..], &known[..], &restricted[..]].concat()
        );
        // From before such keys were refused.
        let forged = r#"{"va.reader":"user:usr_2","va.restricted":"no"}"#;
        assert_eq!(tags(forged).expect("tags"), known);
        // What cannot be read is not taken for everybody's.
        for damaged in [
            r#"{"va.readers":"everybody"}"#,
            r#"{"va.readers":["user:a"]}"#,
        ] {
            let error = tags(damaged).expect_err("refused");
            assert!(error.contains("va.readers"), "{error}");
        }
    }
}
