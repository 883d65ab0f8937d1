//! API keys: who may call, for which tenant, to do what.
//!
//! A key is `va_` and 32 random bytes in base64url. Only its SHA-256 is stored: with 256 random bits there is nothing to
//! guess, so a slow password hash would only slow every call. A key is looked up by that hash, so how long the look-up
//! takes tells nothing about the key.
//!
//! A key that a user made is that user's: it dies with the user and never permits more than the user's roles do by then.

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
use super::principal::{Budget, BudgetWindow, Caller, KeyLimits, Principal};
use super::query::{Row, Transaction, Why, query};
use super::quotas::{Quota, room_for};
use super::seal::random;
use super::users::{UserId, UserState};
use crate::ids::TenantId;
use crate::permission::{BuiltInRole, Permissions};
use crate::scope::TenantScope;

/// A rough word for what a key permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Search, list and read: what the role `viewer` permits.
    Read,
    /// Upload and delete documents, call models: what the role `editor` permits.
    Write,
    /// Everything, keys and tenants too: what the role `owner` permits.
    Admin,
}

impl Scope {
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Read => BuiltInRole::Viewer,
            Self::Write => BuiltInRole::Editor,
            Self::Admin => BuiltInRole::Owner,
        }
        .permissions()
    }
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

/// A key that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewKey<'a> {
    pub name: &'a str,
    pub scopes: BTreeSet<Scope>,
    /// Beside the scopes.
    pub permissions: Permissions,
    /// Whose it is; `None`: the tenant's.
    pub user: Option<&'a UserId>,
    pub limits: KeyLimits,
    /// UTC milliseconds.
    pub expires_at: Option<i64>,
}

/// A key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: KeyId,
    pub name: String,
    /// The beginning of the key; `None` for keys from before it was kept.
    pub prefix: Option<String>,
    pub scopes: BTreeSet<Scope>,
    /// Beside those of the scopes.
    pub permissions: Permissions,
    pub user: Option<UserId>,
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// UTC milliseconds.
    pub created_at: i64,
    pub expires_at: Option<i64>,
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
/// Of the key's beginning, which is kept to recognise it by: `va_` and 48 of its 256 bits.
const SHOWN_CHARS: usize = PREFIX.len() + 8;
const NAME_CHARS_MAX: usize = 200;
const MODELS_MAX: usize = 200;
const COLUMNS: &str = "id, name, prefix, scopes, permissions, user_id, models, budget_micros, budget_window, created_at, \
    expires_at, last_used_at, revoked_at";

impl Catalog {
    /// Makes a key of the tenant with these scopes and no limits. The secret is returned this once.
    pub async fn create_key(
        &self,
        tenant: &TenantId,
        name: &str,
        scopes: &BTreeSet<Scope>,
    ) -> Result<(KeyId, SecretKey), CatalogError> {
        let new = NewKey {
            name,
            scopes: scopes.clone(),
            ..NewKey::default()
        };
        self.create_key_with(tenant, &new).await
    }

    /// Makes a key. The secret is returned this once and cannot be had again.
    pub async fn create_key_with(
        &self,
        tenant: &TenantId,
        new: &NewKey<'_>,
    ) -> Result<(KeyId, SecretKey), CatalogError> {
        check_new(new, self.now_ms())?;
        self.tenant(tenant).await?;
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let now = self.now_ms();
        room_for(&mut transaction, tenant, Quota::Keys, now).await?;
        let made = insert_key(&mut transaction, tenant, new, "user", now).await?;
        transaction.commit().await?;
        Ok(made)
    }

    /// Who holds the key; `None` when it is unknown, expired or revoked, or its user may not log in. The tenant is what
    /// this finds out, so there is none to ask for.
    pub async fn check_key(&self, secret: &str) -> Result<Option<Principal>, CatalogError> {
        if secret.len() != KEY_CHARS || !secret.starts_with(PREFIX) {
            return Ok(None);
        }
        let row = query(
            "SELECT k.id, k.tenant_id, k.scopes, k.permissions, k.user_id, k.models, k.budget_micros, k.budget_window, \
             k.last_used_at, u.state FROM api_keys k LEFT JOIN users u ON u.tenant_id = k.tenant_id AND u.id = k.user_id \
             WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        )
        .bind(hash(secret))
        .bind(self.now_ms())
        .fetch_optional(self.read_all(Why::Credential))
        .await?;
        let Some(row) = row else { return Ok(None) };
        let tenant = TenantId::new(row.try_get::<String>("tenant_id")?)?;
        let id = KeyId(row.try_get("id")?);
        let mut permissions = read_scopes(&row)?
            .into_iter()
            .map(Scope::permissions)
            .fold(read_permissions(&row)?, Permissions::union);
        let user: Option<String> = row.try_get("user_id")?;
        let user = user.as_deref().map(UserId::from);
        let mut roles = Vec::new();
        if let Some(user) = &user {
            let state: Option<String> = row.try_get("state")?;
            let state = state.as_deref().map(UserState::read).transpose()?;
            if state != Some(UserState::Active) {
                return Ok(None);
            }
            let (held, rights) = self.rights_of(&tenant, user).await?;
            roles = held;
            permissions = permissions.intersection(rights);
        }
        let principal = Principal {
            tenant: TenantScope::of_credential(tenant),
            caller: Caller::Key { id, user, roles },
            permissions,
            limits: read_limits(&row)?,
        };
        let now = self.now_ms();
        let last_used_at: Option<i64> = row.try_get("last_used_at")?;
        if last_used_at.is_none_or(|at| at + LAST_USED_STEP_MS <= now) {
            let noted = query("UPDATE api_keys SET last_used_at = $2 WHERE id = $1")
                .bind(principal.actor())
                .bind(now)
                .execute(self.write_of(&principal.tenant))
                .await;
            // On a full disk, people must still be able to search and to see what is wrong.
            if let Err(error) = noted {
                tracing::warn!(%error, "note when a key was used");
            }
        }
        Ok(Some(principal))
    }

    /// The key of that id, without its secret.
    pub async fn key(&self, tenant: &TenantId, id: &KeyId) -> Result<ApiKey, CatalogError> {
        let text = format!("SELECT {COLUMNS} FROM api_keys WHERE tenant_id = $1 AND id = $2");
        let row = query(&text)
            .bind(tenant.as_str())
            .bind(id.as_str())
            .fetch_optional(self.read_of(tenant))
            .await?
            .ok_or_else(|| CatalogError::not_found("key", id))?;
        read_key(&row)
    }

    /// Makes the key useless from now on. Repeating it is no error.
    pub async fn revoke_key(&self, tenant: &TenantId, id: &KeyId) -> Result<(), CatalogError> {
        let updated = query(
            "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(self.now_ms())
        .execute(self.write_of(tenant))
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
        let text = format!(
            "SELECT {COLUMNS} FROM api_keys WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3"
        );
        let rows = query(&text)
            .bind(tenant.as_str())
            .bind(page.after()?)
            .bind(page.rows()?)
            .fetch_all(self.read_of(tenant))
            .await?;
        let keys = rows.iter().map(read_key).collect::<Result<_, _>>()?;
        Ok(page.listing(keys, |key: &ApiKey| key.id.as_str()))
    }

    /// The keys of one user, oldest first, at most `limit`, revoked ones too.
    pub async fn keys_of(
        &self,
        tenant: &TenantId,
        user: &UserId,
        limit: u32,
    ) -> Result<Vec<ApiKey>, CatalogError> {
        let text = format!(
            "SELECT {COLUMNS} FROM api_keys WHERE tenant_id = $1 AND user_id = $2 ORDER BY id LIMIT $3"
        );
        let rows = query(&text)
            .bind(tenant.as_str())
            .bind(user.as_str())
            .bind(i64::from(limit))
            .fetch_all(self.read_of(tenant))
            .await?;
        rows.iter().map(read_key).collect()
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
        let new = NewKey {
            name: &name,
            scopes: BTreeSet::from([Scope::Admin]),
            ..NewKey::default()
        };
        let (_, secret) = insert_key(&mut transaction, &tenant, &new, "admin_file", now).await?;
        transaction.commit().await?;
        // The file comes last: a crash before it leaves no file, and the next start makes a new key.
        write_private(&path, secret.expose()).map_err(|error| {
            CatalogError::storage(format!("write the admin key `{}`", path.display()), error)
        })?;
        Ok(path)
    }
}

fn check_new(new: &NewKey<'_>, now: i64) -> Result<(), CatalogError> {
    let problem = if new.name.trim().is_empty() {
        "a key needs a name that tells what uses it"
    } else if new.name.chars().count() > NAME_CHARS_MAX {
        "the name of a key has at most 200 characters"
    } else if new.scopes.is_empty() && new.permissions.is_empty() {
        "a key needs scopes (`read`, `write` or `admin`) or permissions"
    } else if new.expires_at.is_some_and(|at| at <= now) {
        "`expires_at` is in the past"
    } else if new
        .limits
        .models
        .as_ref()
        .is_some_and(|m| m.len() > MODELS_MAX)
    {
        "a key lists at most 200 models"
    } else if new.limits.budget.is_some_and(|budget| budget.micros < 0) {
        "a budget cannot be below 0"
    } else {
        return Ok(());
    };
    Err(CatalogError::Invalid(problem.to_owned()))
}

async fn insert_key(
    transaction: &mut Transaction,
    tenant: &TenantId,
    new: &NewKey<'_>,
    purpose: &str,
    now: i64,
) -> Result<(KeyId, SecretKey), CatalogError> {
    let secret = new_secret(PREFIX)?;
    let id = KeyId(format!("key_{}", Uuid::now_v7().simple()));
    let budget = new.limits.budget;
    query(
        "INSERT INTO api_keys (id, tenant_id, name, key_hash, scopes, purpose, created_at, prefix, permissions, user_id, \
         models, budget_micros, budget_window, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(id.as_str())
    .bind(tenant.as_str())
    .bind(new.name)
    .bind(hash(secret.expose()))
    .bind(json(&new.scopes)?)
    .bind(purpose)
    .bind(now)
    .bind(&secret.expose()[..SHOWN_CHARS])
    .bind(json(&new.permissions)?)
    .bind(new.user.map(UserId::as_str))
    .bind(new.limits.models.as_ref().map(json).transpose()?)
    .bind(budget.map(|budget| budget.micros))
    .bind(budget.map(|budget| budget.window.as_str()))
    .bind(new.expires_at)
    .execute(&mut *transaction)
    .await?;
    Ok((id, secret))
}

fn json<T: Serialize>(value: &T) -> Result<String, CatalogError> {
    serde_json::to_string(value).map_err(|error| CatalogError::storage("write a list", error))
}

/// A new secret: the prefix and 32 random bytes in base64url.
pub(super) fn new_secret(prefix: &str) -> Result<SecretKey, CatalogError> {
    let random: [u8; KEY_BYTES] = random()?;
    Ok(SecretKey(format!(
        "{prefix}{}",
        URL_SAFE_NO_PAD.encode(random)
    )))
}

/// The name of this machine, by which equal paths on different ones are told apart.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "localhost".to_owned(), |name| name.trim().to_owned())
}

/// What is stored of a secret.
pub(super) fn hash(secret: &str) -> String {
    let digest = Sha256::digest(secret.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that only its owner can read, whole or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
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
pub(super) fn restrict(path: &Path) -> Result<(), CatalogError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let failed =
            |error| CatalogError::storage(format!("restrict the key `{}`", path.display()), error);
        let mode = std::fs::metadata(path)
            .map_err(failed)?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others could read the key, now only its owner can");
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

/// Keys from before there were permissions have scopes only.
fn read_permissions(row: &Row) -> Result<Permissions, CatalogError> {
    let permissions: Option<String> = row.try_get("permissions")?;
    permissions.map_or(Ok(Permissions::NONE), |text| {
        serde_json::from_str(&text).map_err(|_| CatalogError::corrupt("permissions", &text))
    })
}

fn read_limits(row: &Row) -> Result<KeyLimits, CatalogError> {
    let models: Option<String> = row.try_get("models")?;
    let micros: Option<i64> = row.try_get("budget_micros")?;
    let window: Option<String> = row.try_get("budget_window")?;
    let window = window.as_deref().map(BudgetWindow::read).transpose()?;
    Ok(KeyLimits {
        models: models
            .map(|text| {
                serde_json::from_str(&text).map_err(|_| CatalogError::corrupt("models", &text))
            })
            .transpose()?,
        budget: micros
            .zip(window)
            .map(|(micros, window)| Budget { micros, window }),
    })
}

fn read_key(row: &Row) -> Result<ApiKey, CatalogError> {
    let user: Option<String> = row.try_get("user_id")?;
    Ok(ApiKey {
        id: KeyId(row.try_get("id")?),
        name: row.try_get("name")?,
        prefix: row.try_get("prefix")?,
        scopes: read_scopes(row)?,
        permissions: read_permissions(row)?,
        user: user.as_deref().map(UserId::from),
        limits: read_limits(row)?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        last_used_at: row.try_get("last_used_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}
