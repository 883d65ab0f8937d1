//! Sessions: a login and the chain of refresh tokens that follows from it.
//!
//! A refresh token is `vr_` and 32 random bytes in base64url, stored as its SHA-256. It can be exchanged once. When one
//! is shown a second time, either its thief or its owner is late; nobody can tell which, so the whole session ends and
//! both have to log in again.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::keys::{SecretKey, hash, new_secret};
use super::query::{Transaction, Why, query};
use super::users::{UserId, UserState};
use crate::ids::TenantId;
use crate::permission::Permissions;
use crate::scope::TenantScope;

const PREFIX: &str = "vr_";
/// Sessions that one user has at a time; a login beyond it ends the oldest.
const SESSIONS_MAX: usize = 50;

/// The id of a session; access tokens carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(String);

impl SessionId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for SessionId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

/// Whose session it is, as of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub tenant: TenantScope,
    pub user: UserId,
    pub roles: Vec<String>,
    pub permissions: Permissions,
}

/// What is remembered of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    pub id: SessionId,
    /// UTC milliseconds.
    pub created_at: i64,
    pub expires_at: i64,
    pub ended_at: Option<i64>,
    pub end_reason: Option<String>,
}

/// What became of a refresh token that was shown.
#[derive(Debug)]
pub enum Refreshed {
    /// It was exchanged for this one.
    Renewed { session: Session, token: SecretKey },
    /// It had been exchanged before: the session has ended.
    Reused {
        tenant: TenantId,
        user: UserId,
        session: SessionId,
    },
    /// Unknown, expired, ended, or of a user who may not log in.
    Refused,
}

impl Catalog {
    /// Begins a session of a user who has proved to be that user.
    pub async fn begin_session(
        &self,
        tenant: &TenantId,
        user: &UserId,
        lasts_ms: i64,
    ) -> Result<(SessionId, SecretKey), CatalogError> {
        let id = SessionId(format!("ses_{}", Uuid::now_v7().simple()));
        let token = new_secret(PREFIX)?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let open = query(
            "SELECT id FROM sessions WHERE tenant_id = $1 AND user_id = $2 AND ended_at IS NULL ORDER BY id DESC",
        )
        .bind(tenant.as_str())
        .bind(user.as_str())
        .fetch_all(&mut transaction)
        .await?;
        let surplus = open
            .iter()
            .skip(SESSIONS_MAX - 1)
            .map(|row| row.try_get("id"))
            .collect::<Result<Vec<String>, _>>()?;
        for oldest in surplus {
            end(&mut transaction, &oldest, "too many", now).await?;
        }
        query(
            "INSERT INTO sessions (id, tenant_id, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.as_str())
        .bind(tenant.as_str())
        .bind(user.as_str())
        .bind(now)
        .bind(now.saturating_add(lasts_ms))
        .execute(&mut transaction)
        .await?;
        insert_token(&mut transaction, &id, &token, now).await?;
        transaction.commit().await?;
        Ok((id, token))
    }

    /// Exchanges a refresh token for its successor; the session then lasts for another `lasts_ms`.
    pub async fn refresh_session(
        &self,
        secret: &str,
        lasts_ms: i64,
    ) -> Result<Refreshed, CatalogError> {
        let token_hash = hash(secret);
        let row = query(
            "SELECT s.id, s.tenant_id, s.user_id FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id \
             WHERE t.token_hash = $1",
        )
        .bind(&token_hash)
        .fetch_optional(self.read_all(Why::Credential))
        .await?;
        let Some(row) = row else {
            return Ok(Refreshed::Refused);
        };
        let id = SessionId(row.try_get("id")?);
        let tenant = TenantId::new(row.try_get::<String>("tenant_id")?)?;
        let user = UserId::from(row.try_get::<String>("user_id")?.as_str());
        let now = self.now_ms();
        let token = new_secret(PREFIX)?;
        let mut transaction = self.begin(Part::Tenant(&tenant)).await?;
        let used = query(
            "UPDATE refresh_tokens SET used_at = $2 WHERE token_hash = $1 AND used_at IS NULL",
        )
        .bind(&token_hash)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if used == 0 {
            // It may also have gone with its user a moment ago; ending a session twice is harmless.
            end(&mut transaction, id.as_str(), "reused", now).await?;
            transaction.commit().await?;
            return Ok(Refreshed::Reused {
                tenant,
                user,
                session: id,
            });
        }
        let lives = query(
            "UPDATE sessions SET expires_at = $2 WHERE id = $1 AND ended_at IS NULL AND expires_at > $3",
        )
        .bind(id.as_str())
        .bind(now.saturating_add(lasts_ms))
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if lives == 0 {
            transaction.commit().await?;
            return Ok(Refreshed::Refused);
        }
        insert_token(&mut transaction, &id, &token, now).await?;
        transaction.commit().await?;
        Ok(match self.session(&tenant, &id).await? {
            Some(session) => Refreshed::Renewed { session, token },
            None => Refreshed::Refused,
        })
    }

    /// The session, with what its user may do now; `None` when it has ended or the user may not log in.
    pub async fn session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
    ) -> Result<Option<Session>, CatalogError> {
        let row = query(
            "SELECT s.user_id, u.state FROM sessions s JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id \
             WHERE s.tenant_id = $1 AND s.id = $2 AND s.ended_at IS NULL AND s.expires_at > $3",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(self.now_ms())
        .fetch_optional(self.read_of(tenant))
        .await?;
        let Some(row) = row else { return Ok(None) };
        if UserState::read(&row.try_get::<String>("state")?)? != UserState::Active {
            return Ok(None);
        }
        let user = UserId::from(row.try_get::<String>("user_id")?.as_str());
        let (roles, permissions) = self.rights_of(tenant, &user).await?;
        Ok(Some(Session {
            id: id.clone(),
            tenant: TenantScope::of_credential(tenant.clone()),
            user,
            roles,
            permissions,
        }))
    }

    /// The roles of a user and what they permit.
    pub async fn rights_of(
        &self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<(Vec<String>, Permissions), CatalogError> {
        let rows = query(
            "SELECT role FROM user_roles WHERE tenant_id = $1 AND user_id = $2 ORDER BY role",
        )
        .bind(tenant.as_str())
        .bind(user.as_str())
        .fetch_all(self.read_of(tenant))
        .await?;
        let roles = rows
            .iter()
            .map(|row| row.try_get("role"))
            .collect::<Result<Vec<String>, _>>()?;
        let permissions = self.permissions_of(tenant, &roles).await?;
        Ok((roles, permissions))
    }

    /// The user's sessions that are remembered, newest first, at most `limit`: when each began, and when it ended or will.
    pub async fn sessions_of(
        &self,
        tenant: &TenantId,
        user: &UserId,
        limit: u32,
    ) -> Result<Vec<SessionInfo>, CatalogError> {
        let rows = query(
            "SELECT id, created_at, expires_at, ended_at, end_reason FROM sessions \
             WHERE tenant_id = $1 AND user_id = $2 ORDER BY id DESC LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(user.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.read_of(tenant))
        .await?;
        rows.iter()
            .map(|row| {
                Ok(SessionInfo {
                    id: SessionId(row.try_get("id")?),
                    created_at: row.try_get("created_at")?,
                    expires_at: row.try_get("expires_at")?,
                    ended_at: row.try_get("ended_at")?,
                    end_reason: row.try_get("end_reason")?,
                })
            })
            .collect()
    }

    /// Ends a session. Repeating it is no error.
    pub async fn end_session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        reason: &str,
    ) -> Result<(), CatalogError> {
        query(
            "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE tenant_id = $1 AND id = $2 AND ended_at IS NULL",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(self.now_ms())
        .bind(reason)
        .execute(self.write_of(tenant))
        .await?;
        Ok(())
    }

    /// Ends every session of a user.
    pub async fn end_sessions(
        &self,
        tenant: &TenantId,
        user: &UserId,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        end_all(&mut transaction, tenant, user, reason, None, now).await?;
        transaction.commit().await
    }

    /// Removes what is over and tells nothing any more: sessions and invites that ended before `before`, signing keys
    /// that nobody believes since then, and audit events older than `audit_before`. Returns how many rows went.
    pub async fn forget_ended_all_tenants(
        &self,
        before: i64,
        audit_before: i64,
    ) -> Result<u64, CatalogError> {
        let mut gone = 0;
        for (statement, limit) in [
            (
                "DELETE FROM refresh_tokens WHERE session_id IN \
                 (SELECT id FROM sessions WHERE expires_at < $1 OR ended_at < $1)",
                before,
            ),
            (
                "DELETE FROM sessions WHERE (expires_at < $1 OR ended_at < $1) \
                 AND NOT EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.session_id = sessions.id)",
                before,
            ),
            // Of a session that goes on: a token that was exchanged so long ago is only kept to notice its reuse.
            ("DELETE FROM refresh_tokens WHERE used_at < $1", before),
            (
                "DELETE FROM invites WHERE expires_at < $1 OR used_at < $1",
                before,
            ),
            ("DELETE FROM signing_keys WHERE verifies_until < $1", before),
            (
                "DELETE FROM audit_events WHERE happened_at < $1",
                audit_before,
            ),
        ] {
            gone += query(statement)
                .bind(limit)
                .execute(self.write_all(Why::Chore))
                .await?;
        }
        Ok(gone)
    }
}

async fn insert_token(
    transaction: &mut Transaction,
    session: &SessionId,
    token: &SecretKey,
    now: i64,
) -> Result<(), CatalogError> {
    query("INSERT INTO refresh_tokens (token_hash, session_id, created_at) VALUES ($1, $2, $3)")
        .bind(hash(token.expose()))
        .bind(session.as_str())
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

async fn end(
    transaction: &mut Transaction,
    id: &str,
    reason: &str,
    now: i64,
) -> Result<(), CatalogError> {
    query("UPDATE sessions SET ended_at = $2, end_reason = $3 WHERE id = $1 AND ended_at IS NULL")
        .bind(id)
        .bind(now)
        .bind(reason)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// Ends all sessions of a user but `keep`.
pub(super) async fn end_all(
    transaction: &mut Transaction,
    tenant: &TenantId,
    user: &UserId,
    reason: &str,
    keep: Option<&str>,
    now: i64,
) -> Result<(), CatalogError> {
    query(
        "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE tenant_id = $1 AND user_id = $2 AND ended_at IS NULL \
         AND id <> $5",
    )
    .bind(tenant.as_str())
    .bind(user.as_str())
    .bind(now)
    .bind(reason)
    .bind(keep.unwrap_or_default())
    .execute(&mut *transaction)
    .await?;
    Ok(())
}
