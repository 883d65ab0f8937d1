//! `announce`: one `document.indexed` event a document, when all its chunks have come by.
//!
//! Holds nothing across a barrier: a document's rows all lie before the same barrier, and what is announced at the
//! barrier is committed only after the index sinks made the same rows durable. That is what lets readers of
//! `document.indexed` trust that both indexes hold the document.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::array::{ArrayRef, StringArray, StructArray, TimestampMillisecondArray, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::ChunkOp;
use va_catalog::chunk::{chunk_schema, strings, u32s};
use va_catalog::event::{DOCUMENT_DELETED, DOCUMENT_INDEXED, document_indexed_schema};
use va_connectors::flow::{FlowError, Names, Problem};

use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::shape::expect_columns;

/// Emits one `document.indexed` event for each document whose chunk rows have all passed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnnounceSpec {}

impl OperatorSpec for AnnounceSpec {
    const KIND: &'static str = "announce";
    const EXAMPLE: &'static str = include_str!("../examples/announce.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        expect_columns(&inputs[0], &chunk_schema(None))?;
        Ok(document_indexed_schema())
    }

    fn build(
        self,
        _inputs: &[SchemaRef],
        _resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        Ok(Box::new(AnnounceTask {
            documents: Vec::new(),
        }))
    }
}

struct AnnounceTask {
    documents: Vec<Seen>,
}

struct Seen {
    event_type: &'static str,
    tenant_id: String,
    collection: String,
    document_id: String,
    version: u32,
    title: Option<String>,
    expected: u32,
    chunks: u32,
}

#[async_trait]
impl Operator for AnnounceTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let op = strings(&batch, "op")?;
        let tenant_id = strings(&batch, "tenant_id")?;
        let collection = strings(&batch, "collection")?;
        let document_id = strings(&batch, "document_id")?;
        let version = u32s(&batch, "version")?;
        let title = strings(&batch, "title")?;
        let count = u32s(&batch, "chunk_count")?;
        for row in 0..batch.num_rows() {
            let event_type = match ChunkOp::parse(op.value(row)) {
                Some(ChunkOp::Chunk) => {
                    let same = |seen: &&mut Seen| {
                        seen.document_id == document_id.value(row)
                            && seen.version == version.value(row)
                    };
                    if let Some(seen) = self.documents.iter_mut().rev().find(same) {
                        seen.chunks += 1;
                    }
                    continue;
                }
                Some(ChunkOp::Document) => DOCUMENT_INDEXED,
                Some(ChunkOp::Delete) => DOCUMENT_DELETED,
                None => {
                    return Err(FlowError::fatal(
                        "announce",
                        format!(
                            "`op` is `{}`; it must be document, chunk or delete",
                            op.value(row)
                        ),
                    ));
                }
            };
            self.documents.push(Seen {
                event_type,
                tenant_id: tenant_id.value(row).to_owned(),
                collection: collection.value(row).to_owned(),
                document_id: document_id.value(row).to_owned(),
                version: version.value(row),
                title: title.is_valid(row).then(|| title.value(row).to_owned()),
                expected: count.value(row),
                chunks: 0,
            });
        }
        cx.passed(batch.num_rows());
        Ok(())
    }

    async fn on_barrier(&mut self, cx: &mut Cx) -> Result<(), FlowError> {
        let mut seen = std::mem::take(&mut self.documents);
        // A document of which a chunk was dead-lettered is not whole; its dead letter says so and marks it failed.
        seen.retain(|document| document.chunks == document.expected);
        if seen.is_empty() {
            return Ok(());
        }
        cx.emit(events(&seen, cx.now_ms())?).await
    }
}

fn events(documents: &[Seen], now_ms: i64) -> Result<RecordBatch, FlowError> {
    let text = |f: &dyn Fn(&Seen) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(documents.iter().map(f)))
    };
    let schema = document_indexed_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(FlowError::fatal(
            "announce",
            "the schema of `document.indexed` has no struct payload",
        ));
    };
    let payload = StructArray::try_new(
        fields.clone(),
        vec![
            text(&|d| d.collection.clone()),
            text(&|d| d.document_id.clone()),
            Arc::new(UInt32Array::from_iter_values(
                documents.iter().map(|d| d.version),
            )),
            Arc::new(StringArray::from_iter(
                documents.iter().map(|d| d.title.as_deref()),
            )),
            Arc::new(UInt32Array::from_iter_values(
                documents.iter().map(|d| d.chunks),
            )),
        ],
        None,
    )?;
    Ok(RecordBatch::try_new(
        schema.clone(),
        vec![
            // Derived, so that a replay announces under the same id and consumers can tell.
            text(&|d| {
                let key = format!(
                    "{}/{}/{}/{}",
                    d.event_type, d.tenant_id, d.document_id, d.version
                );
                blake3::hash(key.as_bytes()).to_hex()[..32].to_owned()
            }),
            text(&|d| d.event_type.to_owned()),
            text(&|d| d.tenant_id.clone()),
            Arc::new(StringArray::new_null(documents.len())),
            Arc::new(
                TimestampMillisecondArray::from(vec![now_ms; documents.len()]).with_timezone("UTC"),
            ),
            Arc::new(payload),
        ],
    )?)
}
