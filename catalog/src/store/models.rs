//! Models that a tenant uses: where each comes from and what it makes. The files are the model crate's business.

use serde::{Deserialize, Serialize};

use super::database::Catalog;
use super::documents::read_number;
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, query};
use crate::ids::TenantId;

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    /// A name of the lock file, or the path of a directory.
    pub reference: String,
    /// Vector length of an embedding model.
    pub dims: Option<u32>,
    /// What tells one build of the model from another, so that vectors of different ones are never mixed.
    pub fingerprint: Option<String>,
    /// UTC milliseconds.
    pub last_used_at: Option<i64>,
}

impl Catalog {
    /// Stores a model, or what changed of it; `last_used_at` is kept when `model` has none.
    pub async fn put_model(&self, tenant: &TenantId, model: &Model) -> Result<(), CatalogError> {
        if model.name.is_empty() {
            return Err(CatalogError::Invalid("a model needs a name".to_owned()));
        }
        self.tenant(tenant).await?;
        query(
            "INSERT INTO models (tenant_id, name, reference, dims, fingerprint, created_at, last_used_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant_id, name) DO UPDATE SET \
             reference = excluded.reference, dims = excluded.dims, fingerprint = excluded.fingerprint, \
             last_used_at = COALESCE(excluded.last_used_at, models.last_used_at)",
        )
        .bind(tenant.as_str())
        .bind(&model.name)
        .bind(&model.reference)
        .bind(model.dims.map(i64::from))
        .bind(&model.fingerprint)
        .bind(self.now_ms())
        .bind(model.last_used_at)
        .execute(self.write_of(tenant))
        .await?;
        Ok(())
    }

    /// The model of that name.
    pub async fn model(&self, tenant: &TenantId, name: &str) -> Result<Model, CatalogError> {
        let row = query(
            "SELECT name, reference, dims, fingerprint, last_used_at FROM models WHERE tenant_id = $1 AND name = $2",
        )
        .bind(tenant.as_str())
        .bind(name)
        .fetch_optional(self.read_of(tenant))
        .await?;
        row.map(|row| read_model(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("model", name))
    }

    /// The tenant's models, by name.
    pub async fn models(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<Model>, CatalogError> {
        let rows = query(
            "SELECT name, reference, dims, fingerprint, last_used_at FROM models \
             WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(self.read_of(tenant))
        .await?;
        let models = rows.iter().map(read_model).collect::<Result<_, _>>()?;
        Ok(page.listing(models, |model: &Model| &model.name))
    }

    /// Notes that the model was used now.
    pub async fn touch_model(&self, tenant: &TenantId, name: &str) -> Result<(), CatalogError> {
        let updated =
            query("UPDATE models SET last_used_at = $3 WHERE tenant_id = $1 AND name = $2")
                .bind(tenant.as_str())
                .bind(name)
                .bind(self.now_ms())
                .execute(self.write_of(tenant))
                .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("model", name));
        }
        Ok(())
    }
}

fn read_model(row: &Row) -> Result<Model, CatalogError> {
    Ok(Model {
        name: row.try_get("name")?,
        reference: row.try_get("reference")?,
        dims: row
            .try_get::<Option<i64>>("dims")?
            .map(|_| read_number(row, "dims"))
            .transpose()?,
        fingerprint: row.try_get("fingerprint")?,
        last_used_at: row.try_get("last_used_at")?,
    })
}
