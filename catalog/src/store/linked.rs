//! Accounts of other providers (OIDC) that are users here: which subject of which issuer is which user.
//!
//! A subject may be an address or a name, so only its keyed hash is stored.

use super::database::Catalog;
use super::error::CatalogError;
use super::query::query;
use super::users::{UserId, UserState};
use crate::ids::TenantId;

impl Catalog {
    /// The user that this account is, and whether it may log in.
    pub async fn linked_user(
        &self,
        tenant: &TenantId,
        issuer: &str,
        subject: &str,
    ) -> Result<Option<(UserId, UserState)>, CatalogError> {
        let row = query(
            "SELECT u.id, u.state FROM linked_logins l JOIN users u ON u.tenant_id = l.tenant_id AND u.id = l.user_id \
             WHERE l.tenant_id = $1 AND l.subject_index = $2",
        )
        .bind(tenant.as_str())
        .bind(self.subject_index(tenant, issuer, subject)?)
        .fetch_optional(self.read_of(tenant))
        .await?;
        let Some(row) = row else { return Ok(None) };
        let id = UserId::from(row.try_get::<String>("id")?.as_str());
        Ok(Some((
            id,
            UserState::read(&row.try_get::<String>("state")?)?,
        )))
    }

    /// From now on the account is this user. [`CatalogError::Exists`] when it is one already.
    pub async fn link_user(
        &self,
        tenant: &TenantId,
        user: &UserId,
        issuer: &str,
        subject: &str,
    ) -> Result<(), CatalogError> {
        let linked = query(
            "INSERT INTO linked_logins (tenant_id, subject_index, user_id, issuer, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, subject_index) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(self.subject_index(tenant, issuer, subject)?)
        .bind(user.as_str())
        .bind(issuer)
        .bind(self.now_ms())
        .execute(self.write_of(tenant))
        .await?;
        if linked == 0 {
            return Err(CatalogError::exists("linked login", user));
        }
        Ok(())
    }

    fn subject_index(
        &self,
        tenant: &TenantId,
        issuer: &str,
        subject: &str,
    ) -> Result<String, CatalogError> {
        // Lengths are hashed too, so no issuer runs into its subject; and no e-mail address begins like this.
        let account = format!("oidc {} {issuer} {subject}", issuer.len());
        Ok(self.master()?.blind(tenant, &account))
    }
}
