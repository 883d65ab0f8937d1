//! News of documents on their way into the catalog, gathered until the checkpoint. Shared by the sinks that write there.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Schema};
use va_catalog::store::{Applied, Catalog, CatalogError, News};
use va_catalog::{CollectionRef, DocumentId, Version};
use va_connectors::flow::{FlowError, Problem};

type Item = (DocumentId, Version, News);

#[derive(Default)]
pub struct NewsBatch {
    by_collection: BTreeMap<CollectionRef, Vec<Item>>,
}

impl NewsBatch {
    pub fn push(&mut self, collection: CollectionRef, item: Item) {
        self.by_collection.entry(collection).or_default().push(item);
    }

    /// Writes everything, one transaction a collection. News that the catalog cannot use (the document is gone, or is
    /// already further) is counted and logged: it is old, not wrong.
    pub async fn apply(&mut self, catalog: &Catalog) -> Result<(), FlowError> {
        for (collection, items) in &self.by_collection {
            let results = match catalog.apply_news(collection, items).await {
                Ok(results) => results,
                Err(error @ CatalogError::Storage { .. }) => {
                    return Err(FlowError::retriable("catalog", error));
                }
                Err(error) => {
                    tracing::warn!(%collection, %error, "news about documents of a collection that is gone");
                    continue;
                }
            };
            let mut searchable = Vec::new();
            for (result, (document, version, news)) in results.into_iter().zip(items) {
                match (result, news) {
                    (Ok(Applied::Changed), News::Ready { .. }) => {
                        searchable.push((*document, *version));
                    }
                    (Ok(_), _) => {}
                    (Err(error), _) => {
                        metrics::counter!("va_catalog_stale_news_total").increment(1);
                        tracing::debug!(%collection, %document, %version, %error, "stale news about a document");
                    }
                }
            }
            // A measurement that fails is no reason to hold documents up.
            match catalog.version_ages_ms(collection, &searchable).await {
                Ok(ages) => ages.into_iter().for_each(|age_ms| {
                    metrics::histogram!("va_document_freshness_seconds")
                        .record(age_ms.max(0) as f64 / 1000.0);
                }),
                Err(error) => tracing::warn!(%collection, %error, "measure freshness"),
            }
        }
        self.by_collection.clear();
        Ok(())
    }
}

/// The input must be events whose payload has these fields.
pub fn expect_payload(input: &Schema, wanted: &[&str]) -> Result<(), Vec<Problem>> {
    let fields = match input
        .field_with_name("payload")
        .map(|field| field.data_type())
    {
        Ok(DataType::Struct(fields)) => fields.clone(),
        _ => {
            return Err(vec![
                Problem::new(&["input"], "the input has no struct column `payload`")
                    .hint("read a topic of events"),
            ]);
        }
    };
    let missing: Vec<Problem> = wanted
        .iter()
        .filter(|name| fields.find(name).is_none())
        .map(|name| {
            Problem::new(
                &["input"],
                format!("`payload.{name}` is missing from the input"),
            )
        })
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(missing)
    }
}
