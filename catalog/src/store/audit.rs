//! The audit trail of a tenant: who did what to whom. It holds ids, never an e-mail address or a secret.

use serde::Serialize;
use uuid::Uuid;

use super::database::Catalog;
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, query};
use super::users::UserId;
use crate::ids::TenantId;

/// What is to be noted.
#[derive(Debug, Clone, Default)]
pub struct NewAuditEvent<'a> {
    /// Id of a user or a key; `nobody` before a login.
    pub actor: &'a str,
    /// `user.create`, `auth.login`, ...
    pub action: &'a str,
    /// Id or name of what it was done to.
    pub target: Option<&'a str>,
    pub succeeded: bool,
    /// Network address of the caller.
    pub address: Option<&'a str>,
    pub request_id: Option<&'a str>,
    pub detail: Option<&'a str>,
}

/// What was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEvent {
    pub id: String,
    /// UTC milliseconds.
    pub happened_at: i64,
    pub actor: String,
    pub action: String,
    pub target: Option<String>,
    pub succeeded: bool,
    pub address: Option<String>,
    pub request_id: Option<String>,
    pub detail: Option<String>,
}

/// Sorts behind every id, where the newest page begins.
const AFTER_ALL: &str = "aue";

impl Catalog {
    pub async fn note_audit(
        &self,
        tenant: &TenantId,
        event: &NewAuditEvent<'_>,
    ) -> Result<(), CatalogError> {
        query(
            "INSERT INTO audit_events (tenant_id, id, happened_at, actor, action, target, succeeded, address, request_id, \
             detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(tenant.as_str())
        .bind(format!("aud_{}", Uuid::now_v7().simple()))
        .bind(self.now_ms())
        .bind(event.actor)
        .bind(event.action)
        .bind(event.target)
        .bind(i64::from(event.succeeded))
        .bind(event.address)
        .bind(event.request_id)
        .bind(event.detail)
        .execute(self.write_of(tenant))
        .await?;
        Ok(())
    }

    /// The tenant's audit events, newest first.
    pub async fn audit_events(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<AuditEvent>, CatalogError> {
        let before = match page.after()? {
            first if first.is_empty() => AFTER_ALL.to_owned(),
            before => before,
        };
        let rows = query(
            "SELECT id, happened_at, actor, action, target, succeeded, address, request_id, detail FROM audit_events \
             WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(before)
        .bind(page.rows()?)
        .fetch_all(self.read_of(tenant))
        .await?;
        let events = rows.iter().map(read_event).collect::<Result<_, _>>()?;
        Ok(page.listing(events, |event: &AuditEvent| event.id.as_str()))
    }
}

impl Catalog {
    /// What a user did and what was done to it, newest first, at most `limit`.
    pub async fn audit_of(
        &self,
        tenant: &TenantId,
        user: &UserId,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, CatalogError> {
        let rows = query(
            "SELECT id, happened_at, actor, action, target, succeeded, address, request_id, detail FROM audit_events \
             WHERE tenant_id = $1 AND (actor = $2 OR target = $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(user.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.read_of(tenant))
        .await?;
        rows.iter().map(read_event).collect()
    }
}

fn read_event(row: &Row) -> Result<AuditEvent, CatalogError> {
    Ok(AuditEvent {
        id: row.try_get("id")?,
        happened_at: row.try_get("happened_at")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
        succeeded: row.try_get::<i64>("succeeded")? != 0,
        address: row.try_get("address")?,
        request_id: row.try_get("request_id")?,
        detail: row.try_get("detail")?,
    })
}
