//! Invites: one person may become a user of a tenant, once, with these roles.

use super::database::Catalog;
use super::error::CatalogError;
use super::keys::{SecretKey, hash, new_secret};
use super::query::{Transaction, Why, query};
use crate::ids::TenantId;

const PREFIX: &str = "vi_";

/// What an invite offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    pub tenant: TenantId,
    pub roles: Vec<String>,
    /// UTC milliseconds.
    pub expires_at: i64,
}

impl Catalog {
    /// Makes an invite; its secret is returned this once. `by` says who made it.
    pub async fn create_invite(
        &self,
        tenant: &TenantId,
        roles: &[String],
        by: &str,
        lasts_ms: i64,
    ) -> Result<(SecretKey, i64), CatalogError> {
        if roles.is_empty() {
            return Err(CatalogError::Invalid(
                "an invite needs `roles`, e.g. [\"viewer\"]".to_owned(),
            ));
        }
        self.tenant(tenant).await?;
        self.check_roles(tenant, roles).await?;
        let secret = new_secret(PREFIX)?;
        let now = self.now_ms();
        let expires_at = now.saturating_add(lasts_ms);
        let roles = serde_json::to_string(roles)
            .map_err(|error| CatalogError::storage("write the roles", error))?;
        query(
            "INSERT INTO invites (token_hash, tenant_id, roles, created_by, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(hash(secret.expose()))
        .bind(tenant.as_str())
        .bind(roles)
        .bind(by)
        .bind(now)
        .bind(expires_at)
        .execute(self.write_of(tenant))
        .await?;
        Ok((secret, expires_at))
    }

    /// What the invite offers; `None` when it is unknown, taken or expired. The tenant is what this finds out.
    pub async fn invite(&self, secret: &str) -> Result<Option<Invite>, CatalogError> {
        let row = query(
            "SELECT tenant_id, roles, expires_at FROM invites WHERE token_hash = $1 AND used_at IS NULL AND expires_at > $2",
        )
        .bind(hash(secret))
        .bind(self.now_ms())
        .fetch_optional(self.read_all(Why::Credential))
        .await?;
        let Some(row) = row else { return Ok(None) };
        let roles: String = row.try_get("roles")?;
        Ok(Some(Invite {
            tenant: TenantId::new(row.try_get::<String>("tenant_id")?)?,
            roles: serde_json::from_str(&roles)
                .map_err(|_| CatalogError::corrupt("roles", &roles))?,
            expires_at: row.try_get("expires_at")?,
        }))
    }
}

/// Uses an invite up, in the transaction that makes the user.
pub(super) async fn take(
    transaction: &mut Transaction,
    tenant: &TenantId,
    secret: &str,
    now: i64,
) -> Result<(), CatalogError> {
    let taken = query(
        "UPDATE invites SET used_at = $3 WHERE token_hash = $1 AND tenant_id = $2 AND used_at IS NULL AND expires_at > $3",
    )
    .bind(hash(secret))
    .bind(tenant.as_str())
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    if taken == 0 {
        return Err(CatalogError::Invalid(
            "the invite is unknown, taken or expired: ask for a new one".to_owned(),
        ));
    }
    Ok(())
}
