//! `chunks.<collection>`: the indexed chunks of a collection, without their vectors.
//!
//! The vector store does the work: it reads only the columns and, for `document_id = '...'` and the like, only the
//! rows that are asked for and that the viewer may read. A collection that nothing was indexed into yet has the columns
//! and no rows.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt};
use va_catalog::{CollectionRef, Filter, Viewer, chunk_schema};
use va_vector::{VectorStore, filter_sql, quoted};

use super::stream::Batches;
use super::{equal_to, part, project, projected, stream_plan};
use crate::error::unreadable;

/// Columns by which rows are found in the store.
const LOOKED_UP: [&str; 4] = ["id", "document_id", "name", "uri"];
/// The same on every row of a collection, so not stored; the vector is for machines only.
const HIDDEN: [&str; 4] = ["op", "tenant_id", "collection", "vector"];

pub(crate) struct ChunkTable {
    vectors: Arc<dyn VectorStore>,
    collection: CollectionRef,
    /// Of which chunks the rows are, as SQL that the store understands.
    seen: Option<String>,
    schema: SchemaRef,
}

impl std::fmt::Debug for ChunkTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkTable")
            .field("collection", &self.collection)
            .finish_non_exhaustive()
    }
}

impl ChunkTable {
    pub(crate) async fn open(
        vectors: Arc<dyn VectorStore>,
        collection: CollectionRef,
        viewer: Viewer,
    ) -> Result<Self> {
        let seen = filter_sql(&Filter::default().seen_by(viewer)).map_err(unreadable)?;
        let stored = vectors.schema(&collection).await.map_err(unreadable)?;
        let stored = stored.unwrap_or_else(|| chunk_schema(None));
        let fields: Vec<_> = stored
            .fields()
            .iter()
            .filter(|field| !HIDDEN.contains(&field.name().as_str()))
            .cloned()
            .collect();
        Ok(Self {
            vectors,
            collection,
            seen,
            schema: Arc::new(Schema::new(fields)),
        })
    }
}

#[async_trait]
impl TableProvider for ChunkTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = projected(&self.schema, projection)?;
        let conditions: Vec<String> = LOOKED_UP
            .into_iter()
            .filter_map(|column| {
                let value = equal_to(filters, column)?;
                Some(format!("{column} = {}", quoted(&value)))
            })
            .chain(self.seen.clone())
            .collect();
        let query = Query {
            vectors: self.vectors.clone(),
            collection: self.collection.clone(),
            schema: schema.clone(),
            condition: (!conditions.is_empty()).then(|| conditions.join(" AND ")),
            limit,
        };
        let rows = part(move || {
            let query = query.clone();
            futures::stream::once(query.rows()).try_flatten().boxed()
        });
        stream_plan(schema, vec![rows], limit)
    }
}

/// What one scan asks of the store.
#[derive(Clone)]
struct Query {
    vectors: Arc<dyn VectorStore>,
    collection: CollectionRef,
    /// The columns to read.
    schema: SchemaRef,
    /// SQL that the store understands.
    condition: Option<String>,
    limit: Option<usize>,
}

impl Query {
    async fn rows(self) -> Result<Batches> {
        let fields = self.schema.fields();
        let columns: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
        let rows = self
            .vectors
            .scan(
                &self.collection,
                Some(&columns),
                self.condition.as_deref(),
                self.limit,
            )
            .await
            .map_err(unreadable)?;
        let Some(rows) = rows else {
            return Ok(futures::stream::empty().boxed());
        };
        let batches = rows.batches.map(move |batch| {
            let batch = batch.map_err(unreadable)?;
            project(&batch, &self.schema)
        });
        Ok(batches.boxed())
    }
}
