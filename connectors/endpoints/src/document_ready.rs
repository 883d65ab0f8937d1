//! `document_ready`: tells the catalog which document versions are searchable, or gone.
//!
//! Idempotent: the catalog ignores news that it knows or that an newer version has overtaken.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::chunk::{column, strings, u32s};
use va_catalog::event::DOCUMENT_DELETED;
use va_catalog::store::{Catalog, News};
use va_catalog::{CollectionName, CollectionRef, TenantId, Version};
use va_connectors::flow::{CheckpointId, FlowError, Names, Prepared, Problem, Sink};

use crate::endpoint::{Resources, SinkPlan, SinkSpec};
use crate::news::NewsBatch;

/// Marks document versions READY (or removed) in the catalog, from the events of `document.indexed`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentReadySink {}

impl SinkSpec for DocumentReadySink {
    const KIND: &'static str = "document_ready";
    const EXAMPLE: &'static str = include_str!("../examples/document_ready.yaml");

    fn plan(&self, input: &SchemaRef, _names: &dyn Names) -> Result<SinkPlan, Vec<Problem>> {
        crate::news::expect_payload(input, &["collection", "document_id", "version", "chunks"])?;
        Ok(SinkPlan::default())
    }

    fn build(self, _input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError> {
        Ok(Box::new(DocumentReadyWriter {
            catalog: resources.catalog.clone(),
            news: NewsBatch::default(),
        }))
    }
}

struct DocumentReadyWriter {
    catalog: Catalog,
    news: NewsBatch,
}

#[async_trait]
impl Sink for DocumentReadyWriter {
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        let event_type = strings(&batch, "event_type")?;
        let tenant = strings(&batch, "tenant_id")?;
        let payload = column(&batch, "payload")?
            .as_struct_opt()
            .map(|payload| RecordBatch::from(payload.clone()))
            .ok_or_else(|| FlowError::fatal("document_ready", "`payload` is not a struct"))?;
        let collection = strings(&payload, "collection")?;
        let document = strings(&payload, "document_id")?;
        let version = u32s(&payload, "version")?;
        let title = strings(&payload, "title")?;
        let chunks = u32s(&payload, "chunks")?;
        let bad = |error: va_catalog::InvalidName| FlowError::fatal("document_ready", error);
        for row in 0..batch.num_rows() {
            let collection = CollectionRef {
                tenant: TenantId::new(tenant.value(row)).map_err(bad)?,
                collection: CollectionName::new(collection.value(row)).map_err(bad)?,
            };
            let news = if event_type.value(row) == DOCUMENT_DELETED {
                News::Deleted
            } else {
                let title = title.is_valid(row).then(|| title.value(row).to_owned());
                News::Ready {
                    title,
                    chunks: chunks.value(row),
                }
            };
            let document = document.value(row).parse().map_err(bad)?;
            self.news
                .push(collection, (document, Version(version.value(row)), news));
        }
        Ok(())
    }

    async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<Prepared, FlowError> {
        self.news.apply(&self.catalog).await?;
        Ok(Prepared::default())
    }
}
