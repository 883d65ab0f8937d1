//! Settings that a tenant changes while the platform runs: keys and text values. What they mean is their readers'
//! business; the configuration of the program itself is [`crate::settings`].

use std::collections::BTreeMap;

use super::database::Catalog;
use super::error::CatalogError;
use super::query::query;
use crate::ids::TenantId;

impl Catalog {
    /// The value, if one is set.
    pub async fn setting(
        &self,
        tenant: &TenantId,
        setting: &str,
    ) -> Result<Option<String>, CatalogError> {
        let row = query("SELECT value FROM settings WHERE tenant_id = $1 AND setting = $2")
            .bind(tenant.as_str())
            .bind(setting)
            .fetch_optional(self.read_of(tenant))
            .await?;
        row.map(|row| row.try_get("value")).transpose()
    }

    /// All of the tenant's settings.
    pub async fn settings(
        &self,
        tenant: &TenantId,
    ) -> Result<BTreeMap<String, String>, CatalogError> {
        let rows = query("SELECT setting, value FROM settings WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_all(self.read_of(tenant))
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("setting")?, row.try_get("value")?)))
            .collect()
    }

    /// Sets a value, or with `None` removes it.
    pub async fn put_setting(
        &self,
        tenant: &TenantId,
        setting: &str,
        value: Option<&str>,
    ) -> Result<(), CatalogError> {
        let Some(value) = value else {
            query("DELETE FROM settings WHERE tenant_id = $1 AND setting = $2")
                .bind(tenant.as_str())
                .bind(setting)
                .execute(self.write_of(tenant))
                .await?;
            return Ok(());
        };
        self.tenant(tenant).await?;
        query(
            "INSERT INTO settings (tenant_id, setting, value, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant_id, setting) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )
        .bind(tenant.as_str())
        .bind(setting)
        .bind(value)
        .bind(self.now_ms())
        .execute(self.write_of(tenant))
        .await?;
        Ok(())
    }
}
