//! API keys: who may call, for which tenant, to do what.
//!
//! A key is `va_` and 32 random bytes in base64url. Only its SHA-256 is stored: with 256 random bits there is nothing to
//! guess, so a slow password hash would only slow every call. A key is looked up by that hash, so how long the look-up
//! takes tells nothing about the key.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, Transaction, query};
use crate::ids::TenantId;

/// What a key permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Search, list and read.
    Read,
    /// Upload and delete documents, run pipelines.
    Write,
    /// Everything, keys and tenants too.
    Admin,
}

/// The public name of a key: safe to show and to log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for KeyId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

/// A key as its holder has it. It prints as `va_***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(String);

impl SecretKey {
    /// The key itself, to hand to its holder once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("va_***")
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub tenant: TenantId,
    pub key_id: KeyId,
    pub scopes: BTreeSet<Scope>,
}

impl Principal {
    /// Whether the scopes include `scope`; `admin` includes all, `write` includes `read`.
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|granted| *granted >= scope)
    }
}

/// A key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: KeyId,
    pub name: String,
    pub scopes: BTreeSet<Scope>,
    /// UTC milliseconds.
    pub created_at: i64,
    /// To the minute.
    pub last_used_at: Option<i64>,
    pub revoked_at: Option<i64>,
}

const PREFIX: &str = "va_";
const KEY_BYTES: usize = 32;
/// `va_` and 32 bytes in base64url.
const KEY_CHARS: usize = PREFIX.len() + 43;
/// The use of a key is noted at most this often, so that calls do not become writes.
const LAST_USED_STEP_MS: i64 = 60_000;
const ADMIN_FILE: &str = "admin.key";

impl Catalog {
    /// Makes a key. The secret is returned this once and cannot be had again.
    pub async fn create_key(
        &self,
        tenant: &TenantId,
        name: &str,
        scopes: &BTreeSet<Scope>,
    ) -> Result<(KeyId, SecretKey), CatalogError> {
        if name.trim().is_empty() {
            return Err(CatalogError::Invalid(
                "a key needs a name that tells what uses it".to_owned(),
            ));
        }
        if scopes.is_empty() {
            return Err(CatalogError::Invalid(
                "a key needs scopes: `read`, `write` or `admin`".to_owned(),
            ));
        }
        self.tenant(tenant).await?;
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let made = insert_key(
            &mut transaction,
            tenant,
            name,
            scopes,
            "user",
            self.now_ms(),
        )
        .await?;
        transaction.commit().await?;
        Ok(made)
    }

    /// Who holds the key; `None` when it is unknown or revoked. The tenant is what this finds out, so there is none to ask for.
    pub async fn check_key(&self, secret: &str) -> Result<Option<Principal>, CatalogError> {
        if secret.len() != KEY_CHARS || !secret.starts_with(PREFIX) {
            return Ok(None);
        }
        let row = query(
            "SELECT id, tenant_id, scopes, last_used_at FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL",
        )
        .bind(hash(secret))
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let principal = Principal {
            tenant: TenantId::new(row.try_get::<String>("tenant_id")?)?,
            key_id: KeyId(row.try_get("id")?),
            scopes: read_scopes(&row)?,
        };
        let now = self.now_ms();
        let last_used_at: Option<i64> = row.try_get("last_used_at")?;
        if last_used_at.is_none_or(|at| at + LAST_USED_STEP_MS <= now) {
            let noted = query("UPDATE api_keys SET last_used_at = $2 WHERE id = $1")
                .bind(principal.key_id.as_str())
                .bind(now)
                .execute(&self.write)
                .await;
            // On a full disk, people must still be able to search and to see what is wrong.
            if let Err(error) = noted {
                tracing::warn!(%error, "note when a key was used");
            }
        }
        Ok(Some(principal))
    }

    /// Makes the key useless from now on. Repeating it is no error.
    pub async fn revoke_key(&self, tenant: &TenantId, id: &KeyId) -> Result<(), CatalogError> {
        let updated = query(
            "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(self.now_ms())
        .execute(&self.write)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("key", id));
        }
        Ok(())
    }

    /// The tenant's keys, oldest first, revoked ones too.
    pub async fn keys(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<ApiKey>, CatalogError> {
        // Ids begin with their time, so their order is that of creation.
        let rows = query(
            "SELECT id, name, scopes, created_at, last_used_at, revoked_at FROM api_keys \
             WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(&self.read)
        .await?;
        let keys = rows.iter().map(read_key).collect::<Result<_, _>>()?;
        Ok(page.listing(keys, |key: &ApiKey| key.id.as_str()))
    }

    /// Sees to it that `data_dir/admin.key` (mode 0600) holds a working admin key of the default tenant, and returns its
    /// path. When the file is missing or its key does not work, a new key is made and the old one revoked; in a catalog
    /// that several data directories share, those of the others stay.
    pub async fn ensure_admin_key(&self, data_dir: &Path) -> Result<PathBuf, CatalogError> {
        let path = data_dir.join(ADMIN_FILE);
        match std::fs::read_to_string(&path) {
            Ok(secret) => {
                if let Some(principal) = self.check_key(secret.trim()).await?
                    && principal.allows(Scope::Admin)
                {
                    restrict(&path)?;
                    return Ok(path);
                }
                tracing::warn!(path = %path.display(), "the admin key does not work with this catalog, making a new one");
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(CatalogError::storage(
                    format!("read the admin key `{}`", path.display()),
                    error,
                ));
            }
        }
        let tenant = TenantId::default_tenant();
        let name = if self.is_shared() {
            format!("{ADMIN_FILE} of {}:{}", host_name(), data_dir.display())
        } else {
            ADMIN_FILE.to_owned()
        };
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(&tenant)).await?;
        query(
            "UPDATE api_keys SET revoked_at = $2 WHERE tenant_id = $1 AND purpose = 'admin_file' AND name = $3 \
             AND revoked_at IS NULL",
        )
        .bind(tenant.as_str())
        .bind(now)
        .bind(&name)
        .execute(&mut transaction)
        .await?;
        let scopes = BTreeSet::from([Scope::Admin]);
        let (_, secret) =
            insert_key(&mut transaction, &tenant, &name, &scopes, "admin_file", now).await?;
        transaction.commit().await?;
        // The file comes last: a crash before it leaves no file, and the next start makes a new key.
        write_private(&path, secret.expose()).map_err(|error| {
            CatalogError::storage(format!("write the admin key `{}`", path.display()), error)
        })?;
        Ok(path)
    }
}

async fn insert_key(
    transaction: &mut Transaction,
    tenant: &TenantId,
    name: &str,
    scopes: &BTreeSet<Scope>,
    purpose: &str,
    now: i64,
) -> Result<(KeyId, SecretKey), CatalogError> {
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| CatalogError::storage("ask the system for random bytes", error))?;
    let secret = SecretKey(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random)));
    let id = KeyId(format!("key_{}", Uuid::now_v7().simple()));
    let scopes = serde_json::to_string(scopes)
        .map_err(|error| CatalogError::storage("write the scopes", error))?;
    query(
        "INSERT INTO api_keys (id, tenant_id, name, key_hash, scopes, purpose, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(id.as_str())
    .bind(tenant.as_str())
    .bind(name)
    .bind(hash(secret.expose()))
    .bind(scopes)
    .bind(purpose)
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    Ok((id, secret))
}

/// The name of this machine, by which equal paths on different ones are told apart.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "localhost".to_owned(), |name| name.trim().to_owned())
}

fn hash(secret: &str) -> String {
    let digest = Sha256::digest(secret.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.with_extension("key.partial");
    // What an earlier crash left would keep its own permissions.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Takes the file from everyone but its owner.
fn restrict(path: &Path) -> Result<(), CatalogError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let failed = |error| {
            CatalogError::storage(
                format!("restrict the admin key `{}`", path.display()),
                error,
            )
        };
        let mode = std::fs::metadata(path)
            .map_err(failed)?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others could read the admin key, now only its owner can");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(failed)?;
        }
    }
    Ok(())
}

fn read_scopes(row: &Row) -> Result<BTreeSet<Scope>, CatalogError> {
    let scopes: String = row.try_get("scopes")?;
    serde_json::from_str(&scopes).map_err(|_| CatalogError::corrupt("scopes", &scopes))
}

fn read_key(row: &Row) -> Result<ApiKey, CatalogError> {
    Ok(ApiKey {
        id: KeyId(row.try_get("id")?),
        name: row.try_get("name")?,
        scopes: read_scopes(row)?,
        created_at: row.try_get("created_at")?,
        last_used_at: row.try_get("last_used_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}
