//! What a login is checked against: the hash of the password, failures in a row, a lockout.
//!
//! Passwords come here hashed; how, and when a login is refused, is the serving layer's business. What this file sees to
//! is that failures are all counted when several processes count at once.

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::query::query;
use super::users::{UserId, UserState, normalise_email};
use crate::ids::TenantId;

/// What a login has to be checked against.
#[derive(Clone)]
pub struct LoginRecord {
    pub id: UserId,
    pub password_hash: Option<String>,
    pub state: UserState,
    pub failed_logins: i64,
    pub locked_until: Option<i64>,
}

impl Catalog {
    /// What a login with that address is checked against; `None` when the tenant has no such user, or there is no such
    /// tenant.
    pub async fn login_record(
        &self,
        tenant: &TenantId,
        email: &str,
    ) -> Result<Option<LoginRecord>, CatalogError> {
        let Ok(email) = normalise_email(email) else {
            return Ok(None);
        };
        let index = self.master()?.blind(tenant, &email);
        self.login_where(tenant, "email_index", &index).await
    }

    /// The same of a user whose id is known.
    pub async fn login_record_of(
        &self,
        tenant: &TenantId,
        id: &UserId,
    ) -> Result<Option<LoginRecord>, CatalogError> {
        self.login_where(tenant, "id", id.as_str()).await
    }

    async fn login_where(
        &self,
        tenant: &TenantId,
        column: &str,
        value: &str,
    ) -> Result<Option<LoginRecord>, CatalogError> {
        let text = format!(
            "SELECT id, password_hash, state, failed_logins, locked_until FROM users \
             WHERE tenant_id = $1 AND {column} = $2"
        );
        let row = query(&text)
            .bind(tenant.as_str())
            .bind(value)
            .fetch_optional(self.read_of(tenant))
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(LoginRecord {
            id: UserId::from(row.try_get::<String>("id")?.as_str()),
            password_hash: row.try_get("password_hash")?,
            state: UserState::read(&row.try_get::<String>("state")?)?,
            failed_logins: row.try_get("failed_logins")?,
            locked_until: row.try_get("locked_until")?,
        }))
    }

    /// Counts a wrong password; at the `failures_max`th in a row the account is locked for `lock_ms`. Returns until when.
    pub async fn login_failed(
        &self,
        tenant: &TenantId,
        id: &UserId,
        failures_max: u32,
        lock_ms: i64,
    ) -> Result<Option<i64>, CatalogError> {
        // One statement, so that guesses that come at once are all counted.
        query(
            "UPDATE users SET failed_logins = CASE WHEN failed_logins + 1 >= $3 THEN 0 ELSE failed_logins + 1 END, \
             locked_until = CASE WHEN failed_logins + 1 >= $3 THEN $4 ELSE locked_until END \
             WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(i64::from(failures_max))
        .bind(self.now_ms().saturating_add(lock_ms))
        .execute(self.write_of(tenant))
        .await?;
        let record = self.login_record_of(tenant, id).await?;
        let now = self.now_ms();
        Ok(record
            .and_then(|record| record.locked_until)
            .filter(|until| *until > now))
    }

    /// Notes a login that succeeded.
    pub async fn login_succeeded(
        &self,
        tenant: &TenantId,
        id: &UserId,
    ) -> Result<(), CatalogError> {
        query(
            "UPDATE users SET failed_logins = 0, locked_until = NULL, last_login_at = $3 WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(self.now_ms())
        .execute(self.write_of(tenant))
        .await?;
        Ok(())
    }

    /// Replaces the password and ends every session but `keep`.
    pub async fn set_password(
        &self,
        tenant: &TenantId,
        id: &UserId,
        password_hash: &str,
        keep: Option<&str>,
    ) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let updated = query(
            "UPDATE users SET password_hash = $3, updated_at = $4 WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(password_hash)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("user", id));
        }
        super::sessions::end_all(&mut transaction, tenant, id, "password", keep, now).await?;
        transaction.commit().await
    }
}
