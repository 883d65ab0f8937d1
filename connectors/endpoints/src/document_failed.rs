//! `document_failed`: tells the catalog which document versions could not be indexed, and why.
//!
//! Reads dead letters. One that holds a row of a document (an event of `document.uploaded`, a parsed document or a
//! chunk) marks that version FAILED; others are not its business.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::chunk::{column, strings, u32s};
use va_catalog::store::{Catalog, News};
use va_catalog::{CollectionName, CollectionRef, DocumentId, TenantId, Version};
use va_connectors::flow::{CheckpointId, FlowError, Names, Prepared, Problem, Sink};

use crate::endpoint::{Resources, SinkPlan, SinkSpec};
use crate::news::NewsBatch;

/// Marks document versions FAILED in the catalog, with the reason, from the dead letters of a pipeline.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentFailedSink {}

impl SinkSpec for DocumentFailedSink {
    const KIND: &'static str = "document_failed";
    const EXAMPLE: &'static str = include_str!("../examples/document_failed.yaml");

    fn plan(&self, input: &SchemaRef, _names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        crate::news::expect_payload(input, &["operator", "reason", "row_ipc"])?;
        Ok(SinkPlan::default())
    }

    fn build(self, _input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        Ok(Box::new(DocumentFailedWriter {
            catalog: resources.catalog.clone(),
            news: NewsBatch::default(),
        }))
    }
}

struct DocumentFailedWriter {
    catalog: Catalog,
    news: NewsBatch,
}

#[async_trait]
impl Sink for DocumentFailedWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        let payload = column(&batch, "payload")?
            .as_struct_opt()
            .map(|payload| RecordBatch::from(payload.clone()))
            .ok_or_else(|| FlowError::fatal("document_failed", "`payload` is not a struct"))?;
        let operator = strings(&payload, "operator")?;
        let reason = strings(&payload, "reason")?;
        let rows = column(&payload, "row_ipc")?
            .as_binary_opt::<i32>()
            .ok_or_else(|| {
                FlowError::fatal("document_failed", "`payload.row_ipc` is not Binary")
            })?;
        for row in 0..batch.num_rows() {
            match document_of(rows.value(row)) {
                Some((collection, document, version)) => {
                    let reason = format!("{}: {}", operator.value(row), reason.value(row));
                    self.news
                        .push(collection, (document, version, News::Failed { reason }));
                }
                None => tracing::debug!("a dead letter that is not a document"),
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        self.news.apply(&self.catalog).await?;
        Ok(Prepared::default())
    }
}

/// The document that a failed row belongs to; `None` when the row is of another kind.
fn document_of(row_ipc: &[u8]) -> Option<(CollectionRef, DocumentId, Version)> {
    let row = StreamReader::try_new(row_ipc, None).ok()?.next()?.ok()?;
    let tenant = strings(&row, "tenant_id").ok()?;
    let fields = match column(&row, "payload")
        .ok()
        .and_then(|payload| payload.as_struct_opt())
    {
        Some(payload) => RecordBatch::from(payload.clone()),
        None => row.clone(),
    };
    let collection = CollectionRef {
        tenant: TenantId::new(tenant.value(0)).ok()?,
        collection: CollectionName::new(strings(&fields, "collection").ok()?.value(0)).ok()?,
    };
    let document = strings(&fields, "document_id")
        .ok()?
        .value(0)
        .parse()
        .ok()?;
    Some((
        collection,
        document,
        Version(u32s(&fields, "version").ok()?.value(0)),
    ))
}
