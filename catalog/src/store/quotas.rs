//! How much a tenant may have: documents and their bytes, collections, users, keys, conversations.
//!
//! Whoever adds something asks in its own transaction, which first locks the tenant's row of quotas and then counts. So two
//! at once cannot exceed a quota, whichever processes they are in; a tenant without quotas pays one statement that finds
//! nothing. Counting what is there, and no counters beside it: nothing can drift apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::query::{On, Transaction, query};
use crate::ids::TenantId;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// Documents that are not removed, whatever their state.
    Documents,
    /// Bytes of the newest version of each of those.
    StorageBytes,
    Collections,
    Users,
    /// API keys that are neither revoked nor expired.
    Keys,
    Conversations,
}

impl Quota {
    pub const ALL: [Self; 6] = [
        Self::Documents,
        Self::StorageBytes,
        Self::Collections,
        Self::Users,
        Self::Keys,
        Self::Conversations,
    ];

    /// As it is written in requests and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::StorageBytes => "storage_bytes",
            Self::Collections => "collections",
            Self::Users => "users",
            Self::Keys => "keys",
            Self::Conversations => "conversations",
        }
    }

    fn column(self) -> &'static str {
        match self {
            Self::Documents => "documents_max",
            Self::StorageBytes => "storage_bytes_max",
            Self::Collections => "collections_max",
            Self::Users => "users_max",
            Self::Keys => "keys_max",
            Self::Conversations => "conversations_max",
        }
    }
}

impl std::fmt::Display for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The limits of a tenant; what is not there has none.
pub type Quotas = BTreeMap<Quota, u64>;

/// What a tenant has of each.
pub type Usage = BTreeMap<Quota, u64>;

const COLUMNS: &str =
    "documents_max, storage_bytes_max, collections_max, users_max, keys_max, conversations_max";

impl Catalog {
    /// The tenant's limits.
    pub async fn quotas(&self, tenant: &TenantId) -> Result<Quotas, CatalogError> {
        self.tenant(tenant).await?;
        read_quotas(self.read_of(tenant), tenant).await
    }

    /// Sets limits, `None` for no limit, and leaves the others. What is there already stays, also when it is more.
    pub async fn set_quotas(
        &self,
        tenant: &TenantId,
        changes: &BTreeMap<Quota, Option<u64>>,
    ) -> Result<Quotas, CatalogError> {
        self.tenant(tenant).await?;
        let mut limits = Vec::new();
        for (quota, limit) in changes {
            let limit = limit.map(i64::try_from).transpose().map_err(|_| {
                CatalogError::Invalid(format!(
                    "quota `{quota}` is too large: use at most {}",
                    i64::MAX
                ))
            })?;
            limits.push((*quota, limit));
        }
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        query(
            "INSERT INTO tenant_quotas (tenant_id, updated_at) VALUES ($1, $2) ON CONFLICT (tenant_id) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(now)
        .execute(&mut transaction)
        .await?;
        for (quota, limit) in limits {
            let statement = format!(
                "UPDATE tenant_quotas SET {} = $2, updated_at = $3 WHERE tenant_id = $1",
                quota.column()
            );
            query(&statement)
                .bind(tenant.as_str())
                .bind(limit)
                .bind(now)
                .execute(&mut transaction)
                .await?;
        }
        let quotas = read_quotas((&mut transaction).into(), tenant).await?;
        transaction.commit().await?;
        Ok(quotas)
    }

    /// What the tenant has of everything that can be limited.
    pub async fn usage(&self, tenant: &TenantId) -> Result<Usage, CatalogError> {
        self.tenant(tenant).await?;
        let mut usage = Usage::new();
        for quota in Quota::ALL {
            let used = count(self.read_of(tenant), tenant, quota, self.now_ms()).await?;
            usage.insert(quota, used);
        }
        Ok(usage)
    }
}

/// Refuses one more of it where the tenant has no room. The row that is counted comes after it, in the same transaction.
pub(super) async fn room_for(
    transaction: &mut Transaction,
    tenant: &TenantId,
    quota: Quota,
    now: i64,
) -> Result<(), CatalogError> {
    let Some(limit) = locked(transaction, tenant).await?.remove(&quota) else {
        return Ok(());
    };
    let used = count((&mut *transaction).into(), tenant, quota, now).await?;
    Room { quota, limit, used }.needs(1)
}

/// What documents there is room for, as a transaction goes on.
pub(super) struct DocumentRoom {
    documents: Option<Room>,
    bytes: Option<Room>,
}

impl DocumentRoom {
    /// What there is now. The tenant's quotas are locked until the transaction ends.
    pub async fn of(
        transaction: &mut Transaction,
        tenant: &TenantId,
    ) -> Result<Self, CatalogError> {
        let limits = locked(transaction, tenant).await?;
        let mut rooms = [None, None];
        for (room, quota) in rooms
            .iter_mut()
            .zip([Quota::Documents, Quota::StorageBytes])
        {
            if let Some(limit) = limits.get(&quota).copied() {
                // Neither of the two depends on the time.
                let used = count((&mut *transaction).into(), tenant, quota, 0).await?;
                *room = Some(Room { quota, limit, used });
            }
        }
        let [documents, bytes] = rooms;
        Ok(Self { documents, bytes })
    }

    /// Takes the room of a content, which takes the place of one of `held` bytes; `None`: it is a new document.
    pub fn take(&mut self, held: Option<u64>, size: u64) -> Result<(), CatalogError> {
        let document = u64::from(held.is_none());
        let more = size.saturating_sub(held.unwrap_or_default());
        if let Some(room) = self.documents.as_ref().filter(|_| document > 0) {
            room.needs(document)?;
        }
        if let Some(room) = self.bytes.as_ref().filter(|_| more > 0) {
            room.needs(more)?;
        }
        if let Some(room) = &mut self.documents {
            room.used += document;
        }
        if let Some(room) = &mut self.bytes {
            room.used = room
                .used
                .saturating_sub(held.unwrap_or_default())
                .saturating_add(size);
        }
        Ok(())
    }
}

struct Room {
    quota: Quota,
    limit: u64,
    used: u64,
}

impl Room {
    fn needs(&self, more: u64) -> Result<(), CatalogError> {
        if self.used.saturating_add(more) <= self.limit {
            return Ok(());
        }
        Err(CatalogError::QuotaExceeded {
            quota: self.quota,
            limit: self.limit,
            used: self.used,
            needs: more,
        })
    }
}

/// The tenant's limits, which nobody changes or counts against until the transaction ends. Writing the row is a lock that
/// both databases have.
async fn locked(transaction: &mut Transaction, tenant: &TenantId) -> Result<Quotas, CatalogError> {
    let rows = query("UPDATE tenant_quotas SET updated_at = updated_at WHERE tenant_id = $1")
        .bind(tenant.as_str())
        .execute(&mut *transaction)
        .await?;
    match rows {
        0 => Ok(Quotas::new()),
        _ => read_quotas((&mut *transaction).into(), tenant).await,
    }
}

async fn read_quotas(on: On<'_>, tenant: &TenantId) -> Result<Quotas, CatalogError> {
    let statement = format!("SELECT {COLUMNS} FROM tenant_quotas WHERE tenant_id = $1");
    let row = query(&statement)
        .bind(tenant.as_str())
        .fetch_optional(on)
        .await?;
    let mut quotas = Quotas::new();
    if let Some(row) = row {
        for quota in Quota::ALL {
            if let Some(limit) = row.try_get::<Option<i64>>(quota.column())? {
                quotas.insert(quota, limit.unsigned_abs());
            }
        }
    }
    Ok(quotas)
}

/// What the tenant has of it at `now`.
async fn count(on: On<'_>, tenant: &TenantId, quota: Quota, now: i64) -> Result<u64, CatalogError> {
    let statement = match quota {
        Quota::Documents | Quota::StorageBytes => {
            "SELECT COUNT(*) AS counted, CAST(COALESCE(SUM(v.size), 0) AS BIGINT) AS bytes FROM documents d \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id AND v.version = d.latest_version \
             WHERE d.tenant_id = $1 AND v.state NOT IN ('DELETING', 'DELETED')"
        }
        Quota::Collections => {
            "SELECT COUNT(*) AS counted FROM collections WHERE tenant_id = $1 AND state = 'READY'"
        }
        Quota::Users => "SELECT COUNT(*) AS counted FROM users WHERE tenant_id = $1",
        // Those that the installation made for its own command line do not count.
        Quota::Keys => {
            "SELECT COUNT(*) AS counted FROM api_keys WHERE tenant_id = $1 AND purpose = 'user' \
             AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)"
        }
        Quota::Conversations => {
            "SELECT COUNT(*) AS counted FROM conversations WHERE tenant_id = $1"
        }
    };
    let mut counting = query(statement).bind(tenant.as_str());
    if quota == Quota::Keys {
        counting = counting.bind(now);
    }
    let row = counting.fetch_one(on).await?;
    let column = match quota {
        Quota::StorageBytes => "bytes",
        _ => "counted",
    };
    Ok(row.try_get::<i64>(column)?.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_takes_the_place_of_another() {
        let room = |quota, limit, used| Some(Room { quota, limit, used });
        let mut left = DocumentRoom {
            documents: room(Quota::Documents, 2, 1),
            bytes: room(Quota::StorageBytes, 100, 90),
        };
        left.take(Some(90), 95).expect("five bytes more");
        left.take(None, 5).expect("the second document");
        let full = left.take(None, 0).expect_err("a third document");
        assert_eq!(
            full.to_string(),
            "the tenant's quota of documents is used up: it has 2 of 2, and this needs 1 more; remove some, or ask the \
             operators of the installation for more (`va tenant quota`)"
        );
        let full = left.take(Some(5), 6).expect_err("one byte more");
        assert!(full.to_string().contains("storage_bytes"), "{full}");
        left.take(Some(95), 1).expect("less is always possible");
        left.take(Some(5), 6).expect("now there is room");
        let mut unlimited = DocumentRoom {
            documents: None,
            bytes: None,
        };
        unlimited.take(None, u64::MAX).expect("no limit");
    }
}
