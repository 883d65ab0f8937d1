//! `parse`: document bytes to text with structure.
//!
//! Takes `document.uploaded` events, reads the bytes from the object store by content hash and emits one
//! `parsed_schema` row a document. The formats and encodings themselves are `va-parse`'s business, and limits of time and
//! memory the parser's that it is given (`va-parse-worker`). A document that cannot be parsed goes to the dead-letter
//! topic with the reason.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{SchemaRef, UInt32Type};
use async_trait::async_trait;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::ContentHash;
use va_catalog::chunk::{column, strings};
use va_catalog::event::{DOCUMENT_DELETED, document_uploaded_schema, parsed_schema};
use va_connectors::flow::{FlowError, Names, Problem};
use va_connectors::objects::{ObjectError, Objects};
use va_parse::{Document, Limits};
use va_parse_worker::{Parser, Source};

use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::parsed::{ParsedRow, to_batch, yes_or_no};
use crate::shape::expect_columns;

/// Documents that are read at once, before they are parsed.
const READS: usize = 8;

/// Turns uploaded documents (PDF, DOCX, PPTX, XLSX, HTML, Markdown, text, CSV, JSON, e-mail) into text with headings,
/// tables, pages and offsets.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParseSpec {
    /// Longest text kept of one document, in bytes; a document with more goes to the dead-letter topic. Without it,
    /// `parse.text_bytes_max` of the configuration holds.
    #[serde(default)]
    pub text_bytes_max: Option<usize>,
}

impl OperatorSpec for ParseSpec {
    const KIND: &'static str = "parse";
    const EXAMPLE: &'static str = include_str!("../examples/parse.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        expect_columns(&inputs[0], &document_uploaded_schema())?;
        Ok(parsed_schema())
    }

    fn build(
        self,
        _inputs: &[SchemaRef],
        resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let usual = resources.parser.limits();
        let limits = Limits {
            text_bytes_max: self.text_bytes_max.unwrap_or(usual.text_bytes_max),
            ..usual
        };
        Ok(Box::new(ParseTask {
            objects: resources.objects.clone(),
            parser: resources.parser.clone(),
            limits,
        }))
    }
}

struct ParseTask {
    objects: Objects,
    parser: Arc<dyn Parser>,
    limits: Limits,
}

#[async_trait]
impl Operator for ParseTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let mut rows: Vec<(usize, ParsedRow)> = Vec::with_capacity(batch.num_rows());
        let mut uploads = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let event = Event::of(&batch, row)?;
            if event.event_type == DOCUMENT_DELETED {
                let op = "delete".into();
                rows.push((row, ParsedRow { op, ..event.parsed }));
                continue;
            }
            match ContentHash::new(event.content_hash.as_str()) {
                Ok(hash) => uploads.push((row, event, hash)),
                Err(error) => cx.dead_letter(&batch, row, error.to_string()),
            }
        }
        let objects = &self.objects;
        let mut read = futures::stream::iter(uploads)
            .map(|(row, event, hash)| async move { (row, event, objects.get(&hash).await) })
            .buffered(READS);
        let mut events = Vec::with_capacity(batch.num_rows());
        let mut sources = Vec::with_capacity(batch.num_rows());
        while let Some((row, event, bytes)) = read.next().await {
            match bytes {
                Ok(bytes) => {
                    sources.push(Source {
                        name: event.parsed.name.clone(),
                        content_type: event.content_type,
                        bytes,
                    });
                    events.push((row, event.parsed));
                }
                // One document's trouble, not the store's: the others go on.
                Err(error @ (ObjectError::NotFound(_) | ObjectError::Corrupt { .. })) => {
                    cx.dead_letter(&batch, row, error.to_string())
                }
                Err(error) => return Err(FlowError::retriable("parse", error)),
            }
        }
        drop(read);

        let parsed = self
            .parser
            .parse(sources, &self.limits)
            .await
            .map_err(|error| FlowError::retriable("parse", error))?;
        for ((row, event), outcome) in events.into_iter().zip(parsed) {
            match outcome {
                Ok(document) => rows.push((row, parsed_row(event, document))),
                Err(failure) => cx.dead_letter(&batch, row, failure.to_string()),
            }
        }
        rows.sort_unstable_by_key(|(row, _)| *row);
        cx.passed(rows.len());
        let rows: Vec<ParsedRow> = rows.into_iter().map(|(_, parsed)| parsed).collect();
        cx.emit(to_batch(&rows)?).await
    }
}

fn parsed_row(event: ParsedRow, document: Document) -> ParsedRow {
    for warning in &document.warnings {
        tracing::info!(document = %event.document_id, name = %event.name, warning, "parsed with a warning");
    }
    let format = serde_json::to_value(document.format)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned));
    ParsedRow {
        op: "upsert".into(),
        format,
        encoding: document.encoding,
        title: document.title,
        pages: document.pages,
        text: document.text,
        blocks: document.blocks,
        ..event
    }
}

struct Event {
    event_type: String,
    content_hash: String,
    content_type: Option<String>,
    parsed: ParsedRow,
}

impl Event {
    fn of(batch: &RecordBatch, row: usize) -> Result<Self, FlowError> {
        let payload: &StructArray = column(batch, "payload")?
            .as_struct_opt()
            .ok_or_else(|| FlowError::fatal("parse", "column `payload` is not a struct"))?;
        let payload = RecordBatch::from(payload.slice(row, 1));
        let text = |name: &str| strings(&payload, name).map(|array| array.value(0).to_owned());
        let content_type = strings(&payload, "content_type")?;
        let version = column(&payload, "version")?
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| FlowError::fatal("parse", "`payload.version` is not UInt32"))?;
        Ok(Self {
            event_type: strings(batch, "event_type")?.value(row).to_owned(),
            content_hash: text("content_hash")?,
            content_type: content_type
                .is_valid(0)
                .then(|| content_type.value(0).to_owned()),
            parsed: ParsedRow {
                tenant_id: strings(batch, "tenant_id")?.value(row).to_owned(),
                collection: text("collection")?,
                document_id: text("document_id")?,
                version: version.value(0),
                name: text("name")?,
                uri: text("uri")?,
                metadata: text("metadata")?,
                vectors: yes_or_no(&payload, "vectors", 0)?,
                ..ParsedRow::default()
            },
        })
    }
}
