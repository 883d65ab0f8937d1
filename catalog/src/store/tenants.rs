//! Tenants: who owns data. A new database has the default one.

use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, Why, query};
use super::topics;
use crate::ids::TenantId;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub name: TenantId,
    pub description: String,
    /// UTC milliseconds.
    pub created_at: i64,
}

impl Catalog {
    /// Makes a tenant, with the built-in topics. [`CatalogError::Exists`] when there is one of that name.
    pub async fn create_tenant(
        &self,
        name: &TenantId,
        description: &str,
    ) -> Result<Tenant, CatalogError> {
        if self.insert_tenant(name, description).await? {
            self.tenant(name).await
        } else {
            Err(CatalogError::exists("tenant", name))
        }
    }

    /// The tenant of that name.
    pub async fn tenant(&self, name: &TenantId) -> Result<Tenant, CatalogError> {
        let row = query("SELECT name, description, created_at FROM tenants WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(self.read_of(name))
            .await?;
        row.map(|row| read_tenant(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("tenant", name))
    }

    /// Changes the description.
    pub async fn describe_tenant(
        &self,
        name: &TenantId,
        description: &str,
    ) -> Result<Tenant, CatalogError> {
        query("UPDATE tenants SET description = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(description)
            .execute(self.write_of(name))
            .await?;
        self.tenant(name).await
    }

    /// Every tenant, by name.
    pub async fn tenants_all_tenants(&self, page: &Page) -> Result<Listing<Tenant>, CatalogError> {
        let rows = query(
            "SELECT name, description, created_at FROM tenants WHERE name > $1 ORDER BY name LIMIT $2",
        )
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(self.read_all(Why::Operator))
        .await?;
        let tenants = rows.iter().map(read_tenant).collect::<Result<_, _>>()?;
        Ok(page.listing(tenants, |tenant: &Tenant| tenant.name.as_str()))
    }

    /// The default tenant, and for every tenant the built-in topics, where they are not there yet.
    pub(crate) async fn register_built_ins(&self) -> Result<(), CatalogError> {
        let default = TenantId::default_tenant();
        self.insert_tenant(&default, "made with the data directory")
            .await?;
        // A new version of the program may bring new built-in topics.
        let mut page = Page::first(super::page::PAGE_LIMIT_MAX);
        loop {
            let tenants = self.tenants_all_tenants(&page).await?;
            let mut transaction = self.begin(Part::Tenants).await?;
            for tenant in &tenants.items {
                topics::register_built_ins(&mut transaction, &tenant.name, self.now_ms()).await?;
            }
            transaction.commit().await?;
            if tenants.next.is_none() {
                return Ok(());
            }
            page.cursor = tenants.next;
        }
    }

    /// False when there is one of that name.
    async fn insert_tenant(
        &self,
        name: &TenantId,
        description: &str,
    ) -> Result<bool, CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenants).await?;
        let inserted = query(
            "INSERT INTO tenants (name, description, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.as_str())
        .bind(description)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if inserted > 0 {
            topics::register_built_ins(&mut transaction, name, now).await?;
        }
        transaction.commit().await?;
        Ok(inserted > 0)
    }
}

fn read_tenant(row: &Row) -> Result<Tenant, CatalogError> {
    Ok(Tenant {
        name: TenantId::new(row.try_get::<String>("name")?)?,
        description: row.try_get("description")?,
        created_at: row.try_get("created_at")?,
    })
}
