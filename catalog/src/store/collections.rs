//! Collections: named sets of documents that are indexed alike and searched together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::access::visible;
use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, Transaction, Why, query};
use super::quotas::{Quota, room_for};
use super::state::DocumentState;
use crate::ids::{CollectionName, CollectionRef, TenantId};
use crate::readers::Viewer;

/// How the documents of a collection are indexed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectionConfig {
    /// The embedding model; `None` means keyword search only.
    pub model: Option<String>,
    /// The model's vector length; needed with a model, absent without.
    pub dims: Option<u32>,
    /// Options of the chunk operator, a JSON object.
    pub chunking: serde_json::Map<String, serde_json::Value>,
    pub description: String,
}

impl CollectionConfig {
    fn check(&self) -> Result<(), CatalogError> {
        match (&self.model, self.dims) {
            (Some(_), Some(1..)) | (None, None) => Ok(()),
            (Some(model), _) => Err(CatalogError::Invalid(format!(
                "model `{model}` needs `dims`, its vector length, at least 1"
            ))),
            (None, Some(dims)) => Err(CatalogError::Invalid(format!(
                "`dims` {dims} without a `model`: name the model or leave `dims` out"
            ))),
        }
    }
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    pub name: CollectionName,
    #[serde(flatten)]
    pub config: CollectionConfig,
    /// UTC milliseconds.
    pub created_at: i64,
    pub updated_at: i64,
}

/// What a collection holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionCounts {
    /// Documents, without those that are gone.
    pub documents: u64,
    /// Chunks of the versions that search shows.
    pub chunks: u64,
    /// Documents by the state of their newest version; states without documents are left out.
    pub by_state: BTreeMap<DocumentState, u64>,
}

const COLUMNS: &str = "name, model, dims, chunking, description, created_at, updated_at";

impl Catalog {
    /// Makes a collection. [`CatalogError::Exists`] when there is one; also while one of that name is being removed.
    pub async fn create_collection(
        &self,
        collection: &CollectionRef,
        config: &CollectionConfig,
    ) -> Result<Collection, CatalogError> {
        config.check()?;
        self.tenant(&collection.tenant).await?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(&collection.tenant)).await?;
        let known = query("SELECT name FROM collections WHERE tenant_id = $1 AND name = $2")
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .fetch_optional(&mut transaction)
            .await?;
        // Whoever has no room for another collection still learns that it has this one.
        if known.is_none() {
            let quota = Quota::Collections;
            room_for(&mut transaction, &collection.tenant, quota, now).await?;
        }
        let inserted = query(
            "INSERT INTO collections (tenant_id, name, state, model, dims, chunking, description, created_at, updated_at) \
             VALUES ($1, $2, 'READY', $3, $4, $5, $6, $7, $7) ON CONFLICT (tenant_id, name) DO NOTHING",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .bind(&config.model)
        .bind(config.dims.map(i64::from))
        .bind(serde_json::Value::Object(config.chunking.clone()).to_string())
        .bind(&config.description)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if inserted == 0 {
            return Err(CatalogError::exists("collection", &collection.collection));
        }
        transaction.commit().await?;
        self.collection(collection).await
    }

    /// The collection of that name; one that is being removed is not found.
    pub async fn collection(&self, collection: &CollectionRef) -> Result<Collection, CatalogError> {
        let row = query(&format!(
            "SELECT {COLUMNS} FROM collections WHERE tenant_id = $1 AND name = $2 AND state = 'READY'"
        ))
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .fetch_optional(self.read_of(&collection.tenant))
        .await?;
        row.map(|row| read_collection(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("collection", &collection.collection))
    }

    /// The tenant's collections, by name.
    pub async fn collections(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<Collection>, CatalogError> {
        let rows = query(&format!(
            "SELECT {COLUMNS} FROM collections WHERE tenant_id = $1 AND state = 'READY' AND name > $2 ORDER BY name LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(self.read_of(tenant))
        .await?;
        let collections = rows.iter().map(read_collection).collect::<Result<_, _>>()?;
        Ok(page.listing(collections, |collection: &Collection| {
            collection.name.as_str()
        }))
    }

    /// Documents and chunks in the collection, as far as the viewer may read them.
    pub async fn collection_counts(
        &self,
        collection: &CollectionRef,
        viewer: &Viewer,
    ) -> Result<CollectionCounts, CatalogError> {
        self.collection(collection).await?;
        let (seen, readers) = visible(viewer, 3);
        let statement = format!(
            "SELECT v.state, COUNT(*) AS documents FROM documents d \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id AND v.version = d.latest_version \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND v.state <> 'DELETED' AND {seen} GROUP BY v.state"
        );
        let rows = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .bind_all(readers.clone())
            .fetch_all(self.read_of(&collection.tenant))
            .await?;
        let mut counts = CollectionCounts::default();
        for row in &rows {
            let state: String = row.try_get("state")?;
            let state = DocumentState::parse(&state)
                .ok_or_else(|| CatalogError::corrupt("state", &state))?;
            let documents = row.try_get::<i64>("documents")?.unsigned_abs();
            counts.documents += documents;
            counts.by_state.insert(state, documents);
        }
        let statement = format!(
            "SELECT CAST(COALESCE(SUM(v.chunks), 0) AS BIGINT) AS chunks FROM documents d \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id AND v.version = d.current_version \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND {seen}"
        );
        let chunks: i64 = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .bind_all(readers)
            .fetch_one(self.read_of(&collection.tenant))
            .await?
            .try_get("chunks")?;
        counts.chunks = chunks.unsigned_abs();
        Ok(counts)
    }

    /// Hides the collection and marks it for removal. Remove its chunks from the indexes, then call
    /// [`Catalog::drop_collection`]; after a crash, [`Catalog::deleting_collections_all_tenants`] says what is left
    /// to do. Repeating it is no error.
    pub async fn delete_collection(&self, collection: &CollectionRef) -> Result<(), CatalogError> {
        // In turn with uploads: those before it are removed with the collection, those after it are refused.
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let updated = query(
            "UPDATE collections SET state = 'DELETING', updated_at = $3 WHERE tenant_id = $1 AND name = $2",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .bind(self.now_ms())
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        if updated == 0 {
            return Err(CatalogError::not_found(
                "collection",
                &collection.collection,
            ));
        }
        Ok(())
    }

    /// Forgets a collection that was marked for removal, with its documents. Repeating it is no error.
    pub async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), CatalogError> {
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let row = query("SELECT state FROM collections WHERE tenant_id = $1 AND name = $2")
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .fetch_optional(&mut transaction)
            .await?;
        let Some(row) = row else { return Ok(()) };
        let state: String = row.try_get("state")?;
        if state != "DELETING" {
            return Err(CatalogError::Conflict {
                kind: "collection",
                name: collection.collection.to_string(),
                from: state,
                to: "DROPPED".to_owned(),
                allowed: "DELETING".to_owned(),
            });
        }
        for statement in [
            "DELETE FROM document_versions WHERE tenant_id = $1 AND collection = $2",
            "DELETE FROM documents WHERE tenant_id = $1 AND collection = $2",
            "DELETE FROM collections WHERE tenant_id = $1 AND name = $2",
        ] {
            query(statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .execute(&mut transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Collections marked for removal whose removal has not ended, of every tenant; for the recovery at start.
    pub async fn deleting_collections_all_tenants(
        &self,
    ) -> Result<Vec<CollectionRef>, CatalogError> {
        let rows = query(
            "SELECT tenant_id, name FROM collections WHERE state = 'DELETING' ORDER BY tenant_id, name",
        )
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        rows.iter()
            .map(|row| {
                Ok(CollectionRef {
                    tenant: TenantId::new(row.try_get::<String>("tenant_id")?)?,
                    collection: CollectionName::new(row.try_get::<String>("name")?)?,
                })
            })
            .collect()
    }
}

/// Refuses writes into a collection that is not there or is being removed.
pub(crate) async fn require_collection(
    transaction: &mut Transaction,
    collection: &CollectionRef,
) -> Result<(), CatalogError> {
    query("SELECT 1 FROM collections WHERE tenant_id = $1 AND name = $2 AND state = 'READY'")
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .fetch_optional(&mut *transaction)
        .await?
        .map(|_| ())
        .ok_or_else(|| CatalogError::not_found("collection", &collection.collection))
}

fn read_collection(row: &Row) -> Result<Collection, CatalogError> {
    let chunking: String = row.try_get("chunking")?;
    Ok(Collection {
        name: CollectionName::new(row.try_get::<String>("name")?)?,
        config: CollectionConfig {
            model: row.try_get("model")?,
            dims: row
                .try_get::<Option<i64>>("dims")?
                .map(|dims| u32::try_from(dims).map_err(|_| CatalogError::corrupt("dims", dims)))
                .transpose()?,
            chunking: serde_json::from_str(&chunking)
                .map_err(|_| CatalogError::corrupt("chunking", &chunking))?,
            description: row.try_get("description")?,
        },
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
