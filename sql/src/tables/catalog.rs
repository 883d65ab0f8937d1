//! `public.*`: the catalog as tables, read page by page when a query runs, so a LIMIT stops the reading.
//!
//! Times are UTC in milliseconds. JSON objects are text. `collection = '...'` reads only that collection's documents.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use va_catalog::event::timestamp_type;
use va_catalog::store::{
    Collection, CollectionCounts, DocumentFilter, Listing, Model, PAGE_LIMIT_MAX, Page, Pipeline,
    Topic, VersionInfo,
};
use va_catalog::{
    Catalog, CatalogError, CollectionName, CollectionRef, DocumentInfo, TenantScope, Viewer,
};
use va_connectors::schema::schema_lines;

use super::stream::Batches;
use super::{equal_to, part, project, projected, stream_plan};
use crate::error::unreadable;

/// A table of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Collections,
    Documents,
    DocumentVersions,
    Models,
    Pipelines,
    Topics,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Collections,
        Self::Documents,
        Self::DocumentVersions,
        Self::Models,
        Self::Pipelines,
        Self::Topics,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Collections => "collections",
            Self::Documents => "documents",
            Self::DocumentVersions => "document_versions",
            Self::Models => "models",
            Self::Pipelines => "pipelines",
            Self::Topics => "topics",
        }
    }

    /// The columns, in the order in which the functions below make them.
    fn schema(self) -> SchemaRef {
        let columns: &[(&str, Column)] = match self {
            Self::Collections => &[
                ("name", Column::Text),
                ("description", Column::Text),
                ("model", Column::NullableText),
                ("dims", Column::NullableU32),
                ("chunking", Column::Text),
                ("documents", Column::U64),
                ("chunks", Column::U64),
                ("created_at", Column::Time),
                ("updated_at", Column::Time),
            ],
            Self::Documents => &[
                ("collection", Column::Text),
                ("id", Column::Text),
                ("name", Column::Text),
                ("uri", Column::Text),
                ("title", Column::NullableText),
                ("version", Column::U32),
                ("current_version", Column::NullableU32),
                ("state", Column::Text),
                ("error", Column::NullableText),
                ("chunks", Column::U32),
                ("size", Column::U64),
                ("content_type", Column::NullableText),
                ("content_hash", Column::Text),
                ("metadata", Column::Text),
                ("created_at", Column::Time),
                ("updated_at", Column::Time),
            ],
            Self::DocumentVersions => &[
                ("collection", Column::Text),
                ("document_id", Column::Text),
                ("version", Column::U32),
                ("title", Column::NullableText),
                ("state", Column::Text),
                ("error", Column::NullableText),
                ("chunks", Column::U32),
                ("size", Column::U64),
                ("content_type", Column::NullableText),
                ("content_hash", Column::Text),
                ("created_at", Column::Time),
                ("updated_at", Column::Time),
            ],
            Self::Models => &[
                ("name", Column::Text),
                ("reference", Column::Text),
                ("dims", Column::NullableU32),
                ("fingerprint", Column::NullableText),
                ("last_used_at", Column::NullableTime),
            ],
            Self::Pipelines => &[
                ("name", Column::Text),
                ("version", Column::U32),
                ("desired_state", Column::Text),
                ("source_file", Column::NullableText),
                ("definition", Column::Text),
                ("created_at", Column::Time),
                ("updated_at", Column::Time),
            ],
            Self::Topics => &[
                ("name", Column::Text),
                ("description", Column::Text),
                ("partitions", Column::U32),
                ("retention_ms", Column::NullableU64),
                ("retention_bytes", Column::NullableU64),
                ("wire_format", Column::Text),
                ("columns", Column::NullableText),
            ],
        };
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, column)| column.field(name))
            .collect();
        Arc::new(Schema::new(fields))
    }
}

#[derive(Debug, Clone, Copy)]
enum Column {
    Text,
    NullableText,
    U32,
    NullableU32,
    U64,
    NullableU64,
    Time,
    NullableTime,
}

impl Column {
    fn field(self, name: &str) -> Field {
        let (data_type, nullable) = match self {
            Self::Text => (DataType::Utf8, false),
            Self::NullableText => (DataType::Utf8, true),
            Self::U32 => (DataType::UInt32, false),
            Self::NullableU32 => (DataType::UInt32, true),
            Self::U64 => (DataType::UInt64, false),
            Self::NullableU64 => (DataType::UInt64, true),
            Self::Time => (timestamp_type(), false),
            Self::NullableTime => (timestamp_type(), true),
        };
        Field::new(name, data_type, nullable)
    }
}

#[derive(Debug)]
pub(crate) struct CatalogTable {
    catalog: Catalog,
    tenant: TenantScope,
    viewer: Viewer,
    kind: Kind,
    schema: SchemaRef,
}

impl CatalogTable {
    pub(crate) fn new(catalog: Catalog, tenant: TenantScope, viewer: Viewer, kind: Kind) -> Self {
        let schema = kind.schema();
        Self {
            catalog,
            tenant,
            viewer,
            kind,
            schema,
        }
    }
}

#[async_trait]
impl TableProvider for CatalogTable {
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
        let source = Source {
            catalog: self.catalog.clone(),
            tenant: self.tenant.clone(),
            viewer: self.viewer.clone(),
            schema: self.schema.clone(),
            collection: equal_to(filters, "collection"),
            counts: ["documents", "chunks"]
                .iter()
                .any(|column| schema.index_of(column).is_ok()),
        };
        let kind = self.kind;
        let columns = schema.clone();
        let rows = part(move || {
            let columns = columns.clone();
            source
                .clone()
                .rows(kind)
                .and_then(move |batch| futures::future::ready(project(&batch, &columns)))
                .boxed()
        });
        stream_plan(schema, vec![rows], limit)
    }
}

/// What one scan reads.
#[derive(Clone)]
struct Source {
    catalog: Catalog,
    tenant: TenantScope,
    /// As whom documents are read.
    viewer: Viewer,
    /// Of the whole table.
    schema: SchemaRef,
    /// Read only this collection's documents.
    collection: Option<String>,
    /// Whether the counts of collections are wanted; they cost a query each.
    counts: bool,
}

impl Source {
    fn rows(self, kind: Kind) -> Batches {
        match kind {
            Kind::Collections => self.collections(),
            Kind::Documents => self.documents(),
            Kind::DocumentVersions => self.document_versions(),
            Kind::Models => self.models(),
            Kind::Pipelines => self.pipelines(),
            Kind::Topics => self.topics(),
        }
    }

    fn batch(&self, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    fn collections(self) -> Batches {
        let pages = collection_pages(self.catalog.clone(), self.tenant.clone());
        pages
            .and_then(move |rows| {
                let source = self.clone();
                async move {
                    let mut counts = Vec::with_capacity(rows.len());
                    for row in &rows {
                        counts.push(source.count(row).await?);
                    }
                    source.batch(vec![
                        text(rows.iter().map(|row| row.name.as_str())),
                        text(rows.iter().map(|row| &row.config.description)),
                        nullable_text(rows.iter().map(|row| row.config.model.as_ref())),
                        nullable_u32(rows.iter().map(|row| row.config.dims)),
                        text(rows.iter().map(|row| json(&row.config.chunking))),
                        u64s(counts.iter().map(|count| count.documents)),
                        u64s(counts.iter().map(|count| count.chunks)),
                        times(rows.iter().map(|row| row.created_at)),
                        times(rows.iter().map(|row| row.updated_at)),
                    ])
                }
            })
            .boxed()
    }

    async fn count(&self, row: &Collection) -> Result<CollectionCounts> {
        if !self.counts {
            return Ok(CollectionCounts::default());
        }
        let collection = self.tenant.collection(row.name.clone());
        let counts = self
            .catalog
            .collection_counts(&collection, &self.viewer)
            .await;
        gone_is_default(counts)
    }

    /// Pages of documents, with their collection.
    fn document_pages(&self) -> BoxStream<'static, Result<(CollectionRef, Vec<DocumentInfo>)>> {
        let (catalog, tenant) = (self.catalog.clone(), self.tenant.clone());
        let (wanted, viewer) = (self.collection.clone(), self.viewer.clone());
        let names = match wanted {
            // A name that no collection can have: nothing to read.
            Some(name) => {
                let name = CollectionName::new(name).ok();
                futures::stream::iter(name.map(Ok::<_, DataFusionError>)).boxed()
            }
            None => collection_pages(catalog.clone(), tenant.clone())
                .map_ok(|page| {
                    let names = page.into_iter().map(|row| row.name);
                    futures::stream::iter(names.map(Ok::<_, DataFusionError>))
                })
                .try_flatten()
                .boxed(),
        };
        names
            .map_ok(move |name| {
                let catalog = catalog.clone();
                let collection = tenant.collection(name);
                let documents = pages({
                    let (collection, viewer) = (collection.clone(), viewer.clone());
                    move |page| {
                        let (catalog, collection) = (catalog.clone(), collection.clone());
                        let filter = DocumentFilter {
                            viewer: viewer.clone(),
                            ..DocumentFilter::default()
                        };
                        async move {
                            match catalog.documents(&collection, &filter, &page).await {
                                // Removed meanwhile, or a name that was only asked for.
                                Err(CatalogError::NotFound { .. }) => Ok(Listing {
                                    items: Vec::new(),
                                    next: None,
                                }),
                                listing => listing,
                            }
                        }
                    }
                });
                documents.map_ok(move |page| (collection.clone(), page))
            })
            .try_flatten()
            .boxed()
    }

    fn documents(self) -> Batches {
        let pages = self.document_pages();
        pages
            .and_then(move |(collection, rows)| {
                let batch = self.batch(vec![
                    text(rows.iter().map(|_| collection.collection.as_str())),
                    text(rows.iter().map(|row| row.id.to_string())),
                    text(rows.iter().map(|row| &row.name)),
                    text(rows.iter().map(|row| &row.uri)),
                    nullable_text(rows.iter().map(|row| row.title.as_ref())),
                    u32s(rows.iter().map(|row| row.version.0)),
                    nullable_u32(rows.iter().map(|row| row.current_version.map(|v| v.0))),
                    text(rows.iter().map(|row| row.state.as_str())),
                    nullable_text(rows.iter().map(|row| row.error.as_ref())),
                    u32s(rows.iter().map(|row| row.chunks)),
                    u64s(rows.iter().map(|row| row.size)),
                    nullable_text(rows.iter().map(|row| row.content_type.as_ref())),
                    text(rows.iter().map(|row| row.content_hash.as_str())),
                    text(rows.iter().map(|row| json(&row.metadata))),
                    times(rows.iter().map(|row| row.created_at)),
                    times(rows.iter().map(|row| row.updated_at)),
                ]);
                futures::future::ready(batch)
            })
            .boxed()
    }

    fn document_versions(self) -> Batches {
        let pages = self.document_pages();
        pages
            .and_then(move |(collection, documents)| {
                let source = self.clone();
                async move {
                    let mut rows: Vec<(String, VersionInfo)> = Vec::new();
                    for document in documents {
                        let versions = source
                            .catalog
                            .document_versions(&collection, document.id)
                            .await;
                        for version in gone_is_default(versions)? {
                            rows.push((document.id.to_string(), version));
                        }
                    }
                    let versions = || rows.iter().map(|(_, version)| version);
                    source.batch(vec![
                        text(rows.iter().map(|_| collection.collection.as_str())),
                        text(rows.iter().map(|(document, _)| document)),
                        u32s(versions().map(|row| row.version.0)),
                        nullable_text(versions().map(|row| row.title.as_ref())),
                        text(versions().map(|row| row.state.as_str())),
                        nullable_text(versions().map(|row| row.error.as_ref())),
                        u32s(versions().map(|row| row.chunks)),
                        u64s(versions().map(|row| row.size)),
                        nullable_text(versions().map(|row| row.content_type.as_ref())),
                        text(versions().map(|row| row.content_hash.as_str())),
                        times(versions().map(|row| row.created_at)),
                        times(versions().map(|row| row.updated_at)),
                    ])
                }
            })
            .boxed()
    }

    fn models(self) -> Batches {
        let (catalog, tenant) = (self.catalog.clone(), self.tenant.clone());
        pages(move |page| {
            let (catalog, tenant) = (catalog.clone(), tenant.clone());
            async move { catalog.models(&tenant, &page).await }
        })
        .and_then(move |rows: Vec<Model>| {
            let batch = self.batch(vec![
                text(rows.iter().map(|row| &row.name)),
                text(rows.iter().map(|row| &row.reference)),
                nullable_u32(rows.iter().map(|row| row.dims)),
                nullable_text(rows.iter().map(|row| row.fingerprint.as_ref())),
                nullable_times(rows.iter().map(|row| row.last_used_at)),
            ]);
            futures::future::ready(batch)
        })
        .boxed()
    }

    fn pipelines(self) -> Batches {
        pipeline_pages(self.catalog.clone(), self.tenant.clone())
            .and_then(move |rows| {
                let batch = self.batch(vec![
                    text(rows.iter().map(|row| row.name.as_str())),
                    u32s(rows.iter().map(|row| row.version.0)),
                    text(rows.iter().map(|row| row.desired_state.as_str())),
                    nullable_text(rows.iter().map(|row| row.source_file.as_ref())),
                    text(rows.iter().map(|row| &row.definition)),
                    times(rows.iter().map(|row| row.created_at)),
                    times(rows.iter().map(|row| row.updated_at)),
                ]);
                futures::future::ready(batch)
            })
            .boxed()
    }

    fn topics(self) -> Batches {
        topic_pages(self.catalog.clone(), self.tenant.clone())
            .and_then(move |rows| {
                let columns = |row: &Topic| Some(schema_lines(row.schema.as_ref()?).join(", "));
                let batch = self.batch(vec![
                    text(rows.iter().map(|row| row.name.as_str())),
                    text(rows.iter().map(|row| &row.description)),
                    u32s(rows.iter().map(|row| row.partitions)),
                    nullable_u64(rows.iter().map(|row| row.retention.ms)),
                    nullable_u64(rows.iter().map(|row| row.retention.bytes)),
                    text(rows.iter().map(|row| row.wire_format.as_str())),
                    nullable_text(rows.iter().map(columns)),
                ]);
                futures::future::ready(batch)
            })
            .boxed()
    }
}

pub(crate) fn collection_pages(
    catalog: Catalog,
    tenant: TenantScope,
) -> BoxStream<'static, Result<Vec<Collection>>> {
    pages(move |page| {
        let (catalog, tenant) = (catalog.clone(), tenant.clone());
        async move { catalog.collections(&tenant, &page).await }
    })
}

pub(crate) fn topic_pages(
    catalog: Catalog,
    tenant: TenantScope,
) -> BoxStream<'static, Result<Vec<Topic>>> {
    pages(move |page| {
        let (catalog, tenant) = (catalog.clone(), tenant.clone());
        async move { catalog.topics(&tenant, &page).await }
    })
}

pub(crate) fn pipeline_pages(
    catalog: Catalog,
    tenant: TenantScope,
) -> BoxStream<'static, Result<Vec<Pipeline>>> {
    pages(move |page| {
        let (catalog, tenant) = (catalog.clone(), tenant.clone());
        async move { catalog.pipelines(&tenant, &page).await }
    })
}

/// Every page of a list, each read when it is asked for.
fn pages<T, F, R>(fetch: F) -> BoxStream<'static, Result<Vec<T>>>
where
    T: Send + 'static,
    F: Fn(Page) -> R + Send + 'static,
    R: Future<Output = std::result::Result<Listing<T>, CatalogError>> + Send + 'static,
{
    let first = Some(Page::first(PAGE_LIMIT_MAX));
    futures::stream::try_unfold((first, fetch), |(page, fetch)| async move {
        let Some(page) = page else {
            return Ok::<_, DataFusionError>(None);
        };
        let listing = fetch(page).await.map_err(unreadable)?;
        let next = listing.next.map(|cursor| Page {
            limit: PAGE_LIMIT_MAX,
            cursor: Some(cursor),
        });
        Ok(Some((listing.items, (next, fetch))))
    })
    .boxed()
}

/// What was removed while the scan ran counts as nothing.
fn gone_is_default<T: Default>(found: std::result::Result<T, CatalogError>) -> Result<T> {
    match found {
        Err(CatalogError::NotFound { .. }) => Ok(T::default()),
        found => found.map_err(unreadable),
    }
}

/// A JSON object as text. Maps of strings and JSON values always have one.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn text(values: impl Iterator<Item = impl AsRef<str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn nullable_text(values: impl Iterator<Item = Option<impl AsRef<str>>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

fn u32s(values: impl Iterator<Item = u32>) -> ArrayRef {
    Arc::new(UInt32Array::from_iter_values(values))
}

fn nullable_u32(values: impl Iterator<Item = Option<u32>>) -> ArrayRef {
    Arc::new(UInt32Array::from_iter(values))
}

fn u64s(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

fn nullable_u64(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter(values))
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMillisecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn nullable_times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampMillisecondArray::from_iter(values).with_timezone("UTC"))
}
