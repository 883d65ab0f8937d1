//! What one tenant can name: the schemas `public`, `chunks` and `topic`.
//!
//! DataFusion asks for the *list* of names without waiting, so the list is read before each statement
//! ([`TenantNames::refresh`]); a *table* is looked up when it is named, so it is never out of date.

use std::sync::{Arc, PoisonError, RwLock};

use arrow::datatypes::Schema;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::plan_datafusion_err;
use datafusion::error::Result;
use futures::TryStreamExt;
use va_catalog::event::dead_letter_schema;
use va_catalog::graph::dead_letter_topic;
use va_catalog::readers::tells_of_documents;
use va_catalog::{
    CatalogError, CollectionName, CollectionRef, TenantId, TenantScope, TopicName, Viewer,
};
use va_formats::FormatSpec;

use crate::error::{suggestion, unreadable};
use crate::services::SqlServices;
use crate::tables::catalog::{CatalogTable, Kind, collection_pages, pipeline_pages, topic_pages};
use crate::tables::chunks::ChunkTable;
use crate::tables::topics::{TENANT_COLUMN, TopicTable, first_schema, is_text};

pub(crate) const CATALOG: &str = "va";
pub(crate) const PUBLIC: &str = "public";
const CHUNKS: &str = "chunks";
const TOPIC: &str = "topic";
const DEAD_LETTER_SUFFIX: &str = ".dead_letter";

/// The names that a tenant sees, as of the last refresh.
#[derive(Debug, Default)]
struct Names {
    collections: Vec<String>,
    topics: Vec<String>,
}

/// One tenant's view of the services.
#[derive(Debug)]
pub(crate) struct TenantNames {
    pub(crate) services: Arc<SqlServices>,
    pub(crate) tenant: TenantScope,
    /// As whom documents are read.
    pub(crate) viewer: Viewer,
    names: RwLock<Arc<Names>>,
}

impl TenantNames {
    pub(crate) fn new(
        services: Arc<SqlServices>,
        tenant: TenantScope,
        viewer: Viewer,
    ) -> Arc<Self> {
        Arc::new(Self {
            services,
            tenant,
            viewer,
            names: RwLock::default(),
        })
    }

    fn names(&self) -> Arc<Names> {
        // The lock only guards a pointer, so a panic elsewhere cannot have left it half written.
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.clone()
    }

    pub(crate) fn collections(&self) -> Vec<String> {
        self.names().collections.clone()
    }

    /// Reads the lists of names.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let (catalog, tenant) = (&self.services.catalog, &self.tenant);
        let mut names = Names::default();
        let mut pages = collection_pages(catalog.clone(), tenant.clone());
        while let Some(page) = pages.try_next().await? {
            names
                .collections
                .extend(page.into_iter().map(|row| row.name.to_string()));
        }
        let in_log = self.services.log.topics().await.map_err(unreadable)?;
        let mut pages = topic_pages(catalog.clone(), tenant.clone());
        while let Some(page) = pages.try_next().await? {
            for topic in page {
                if self.sees(topic.schema.as_deref()) {
                    names.topics.push(topic.name.to_string());
                }
            }
        }
        if *tenant == TenantId::default_tenant() {
            names
                .topics
                .extend(in_log.iter().map(|(topic, _)| topic.to_string()));
        } else {
            let mut pages = pipeline_pages(catalog.clone(), tenant.clone());
            while let Some(page) = pages.try_next().await? {
                let dead_letters = page.iter().map(|row| dead_letter_topic(&row.name));
                names.topics.extend(
                    dead_letters
                        .filter(|topic| in_log.iter().any(|(other, _)| other == topic))
                        .map(|topic| topic.to_string()),
                );
            }
        }
        names.topics.sort();
        names.topics.dedup();
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
        Ok(())
    }

    /// Whether the tenant may read a topic with this schema: with a tenant column, its own rows; without, only the
    /// default tenant.
    fn sees(&self, schema: Option<&Schema>) -> bool {
        self.tenant == TenantId::default_tenant()
            || schema
                .and_then(|schema| schema.field_with_name(TENANT_COLUMN).ok())
                .is_some_and(|field| is_text(field.data_type()))
    }

    /// The collection of that name, when the tenant has it.
    pub(crate) async fn collection(&self, name: &str) -> Result<Option<CollectionRef>> {
        let Ok(collection) = CollectionName::new(name) else {
            return Ok(None);
        };
        let collection = self.tenant.collection(collection);
        match self.services.catalog.collection(&collection).await {
            Ok(_) => Ok(Some(collection)),
            Err(CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(unreadable(error)),
        }
    }

    async fn topic(&self, name: &str) -> Result<Option<TopicTable>> {
        let Ok(topic) = TopicName::new(name) else {
            return Ok(None);
        };
        let log = &self.services.log;
        let in_log = log.topics().await.map_err(unreadable)?;
        let partitions = in_log
            .iter()
            .find(|(other, _)| *other == topic)
            .map(|(_, config)| config.partitions);
        let mut format = None;
        let schema = match self.services.catalog.topic(&self.tenant, &topic).await {
            Ok(found) => {
                let options = found.wire_format.messages().cloned();
                format = options
                    .map(serde_json::from_value::<FormatSpec>)
                    .transpose()
                    .map_err(unreadable)?;
                match (found.schema, partitions) {
                    (Some(schema), _) => Some(schema),
                    (None, Some(partitions)) => self.undeclared(&topic, partitions).await?,
                    (None, None) => None,
                }
            }
            Err(CatalogError::NotFound { .. }) => match partitions {
                None => return Ok(None),
                // Made by the pipeline runtime in the log, of one schema for all.
                Some(_) if name.ends_with(DEAD_LETTER_SUFFIX) => Some(dead_letter_schema()),
                Some(partitions) => self.undeclared(&topic, partitions).await?,
            },
            Err(error) => return Err(unreadable(error)),
        };
        if !self.sees(schema.as_deref()) {
            return Ok(None);
        }
        // Its rows say what is in documents, also in those that only some may read.
        if self.viewer != Viewer::Everything
            && tells_of_documents(name, schema.as_deref())
            && (self.services.catalog.has_restricted(&self.tenant).await).map_err(unreadable)?
        {
            return Ok(None);
        }
        let schema = schema.unwrap_or_else(|| Arc::new(Schema::empty()));
        Ok(Some(TopicTable::new(
            log.clone(),
            self.tenant.clone(),
            topic,
            partitions.unwrap_or(0),
            &schema,
            format,
        )))
    }

    /// The schema of a topic's rows, where none is declared. Other tenants than the default one do not see such
    /// topics, so that they do not learn how others' rows look.
    async fn undeclared(&self, topic: &TopicName, partitions: u32) -> Result<Option<Arc<Schema>>> {
        if self.tenant != TenantId::default_tenant() {
            return Ok(None);
        }
        first_schema(self.services.log.as_ref(), topic, partitions)
            .await
            .map_err(unreadable)
    }
}

/// The catalog `va` of a session: three schemas, and whatever the PostgreSQL server adds.
pub(crate) fn catalog(names: &Arc<TenantNames>) -> Result<Arc<MemoryCatalogProvider>> {
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(PUBLIC, Arc::new(PublicSchema(names.clone())))?;
    catalog.register_schema(CHUNKS, Arc::new(ChunksSchema(names.clone())))?;
    catalog.register_schema(TOPIC, Arc::new(TopicSchema(names.clone())))?;
    Ok(Arc::new(catalog))
}

#[derive(Debug)]
struct PublicSchema(Arc<TenantNames>);

#[async_trait]
impl SchemaProvider for PublicSchema {
    fn table_names(&self) -> Vec<String> {
        Kind::ALL.map(|kind| kind.name().to_owned()).to_vec()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        Ok(kind.map(|kind| {
            let (catalog, tenant) = (self.0.services.catalog.clone(), self.0.tenant.clone());
            let viewer = self.0.viewer.clone();
            Arc::new(CatalogTable::new(catalog, tenant, viewer, kind)) as Arc<dyn TableProvider>
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        Kind::ALL.iter().any(|kind| kind.name() == name)
    }
}

#[derive(Debug)]
struct ChunksSchema(Arc<TenantNames>);

#[async_trait]
impl SchemaProvider for ChunksSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.names().collections.clone()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.0.collection(name).await? {
            Some(collection) => {
                let vectors = self.0.services.vectors.clone();
                let viewer = self.0.viewer.clone();
                let table = ChunkTable::open(vectors, collection, viewer).await?;
                Ok(Some(Arc::new(table)))
            }
            None => missing("collection", name, &self.0.names().collections),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.names().collections.iter().any(|other| other == name)
    }
}

#[derive(Debug)]
struct TopicSchema(Arc<TenantNames>);

#[async_trait]
impl SchemaProvider for TopicSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.names().topics.clone()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.0.topic(name).await? {
            Some(table) => Ok(Some(Arc::new(table))),
            None => missing("topic", name, &self.0.names().topics),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.names().topics.iter().any(|other| other == name)
    }
}

/// An error that helps, unless the name was listed a moment ago: then it is gone, and whoever walks the list (as
/// `information_schema` does) goes on without it.
fn missing(kind: &str, name: &str, known: &[String]) -> Result<Option<Arc<dyn TableProvider>>> {
    if known.iter().any(|other| other == name) {
        return Ok(None);
    }
    Err(plan_datafusion_err!(
        "{kind} `{name}` does not exist{}",
        suggestion(name, known)
    ))
}
