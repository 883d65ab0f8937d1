//! Users of a tenant. E-mail address, name and phone number are sealed (`seal.rs`); an address is found by its blind index.
//!
//! What this file sees to is that never losing the last owner holds when several processes write at once. Passwords and
//! failed logins are `passwords.rs`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, Transaction, query};
use super::quotas::{Quota, room_for};
use super::seal::TenantSeal;
use crate::ids::TenantId;
use crate::permission::BuiltInRole;

/// The id of a user. It tells nothing about the person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(String);

impl UserId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for UserId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

/// Whether a user may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum UserState {
    Active,
    Disabled,
}

impl UserState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Disabled => "DISABLED",
        }
    }

    pub(super) fn read(text: &str) -> Result<Self, CatalogError> {
        match text {
            "ACTIVE" => Ok(Self::Active),
            "DISABLED" => Ok(Self::Disabled),
            other => Err(CatalogError::corrupt("state", other)),
        }
    }
}

/// A user, opened. It prints as its id: the rest is not for logs.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct User {
    pub id: UserId,
    pub email: String,
    pub name: Option<String>,
    pub phone: Option<String>,
    pub state: UserState,
    pub roles: Vec<String>,
    /// Whatever clients keep there.
    pub preferences: Map<String, Value>,
    /// UTC milliseconds.
    pub created_at: i64,
    pub updated_at: i64,
    pub last_login_at: Option<i64>,
    pub locked_until: Option<i64>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({})", self.id)
    }
}

/// Who is to be created.
#[derive(Default)]
pub struct NewUser<'a> {
    pub email: &'a str,
    pub name: Option<&'a str>,
    pub phone: Option<&'a str>,
    /// PHC text; without it nobody logs in with a password.
    pub password_hash: Option<&'a str>,
    pub roles: &'a [String],
    /// The invite that is used up by this.
    pub invite: Option<&'a str>,
}

/// What is to change; what is `None` stays. An empty name or phone number removes it.
#[derive(Default)]
pub struct UserChange<'a> {
    pub name: Option<&'a str>,
    pub phone: Option<&'a str>,
    pub state: Option<UserState>,
    pub roles: Option<&'a [String]>,
    pub preferences: Option<&'a Map<String, Value>>,
    /// Ends a lockout.
    pub unlock: bool,
}

const EMAIL_CHARS_MAX: usize = 254;
const TEXT_CHARS_MAX: usize = 200;
const PREFERENCES_BYTES_MAX: usize = 16 << 10;
const ROLES_MAX: usize = 32;
const COLUMNS: &str = "id, email, name, phone, state, preferences, created_at, updated_at, last_login_at, locked_until";

impl Catalog {
    /// Makes a user. [`CatalogError::Exists`] when the tenant has one with that address.
    pub async fn create_user(
        &self,
        tenant: &TenantId,
        new: &NewUser<'_>,
    ) -> Result<User, CatalogError> {
        let email = normalise_email(new.email)?;
        self.check_roles(tenant, new.roles).await?;
        let seal = self.tenant_seal(tenant).await?;
        let index = self.master()?.blind(tenant, &email);
        let id = UserId(format!("usr_{}", Uuid::now_v7().simple()));
        let sealed_email = seal.seal(&place(tenant, &id, "email"), new.email.trim())?;
        let name = sealed_text(&seal, tenant, &id, "name", new.name)?;
        let phone = sealed_text(&seal, tenant, &id, "phone", new.phone)?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        if let Some(invite) = new.invite {
            super::invites::take(&mut transaction, tenant, invite, now).await?;
        }
        room_for(&mut transaction, tenant, Quota::Users, now).await?;
        let inserted = query(
            "INSERT INTO users (tenant_id, id, email_index, email, name, phone, password_hash, state, preferences, \
             failed_logins, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'ACTIVE', '{}', 0, $8, $8) \
             ON CONFLICT (tenant_id, email_index) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(&index)
        .bind(sealed_email)
        .bind(name)
        .bind(phone)
        .bind(new.password_hash)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        if inserted == 0 {
            // Whoever may create users may know that; the address itself is repeated by nobody.
            return Err(CatalogError::exists("user", "with this e-mail address"));
        }
        write_roles(&mut transaction, tenant, &id, new.roles, now).await?;
        transaction.commit().await?;
        self.user(tenant, &id).await
    }

    /// The user of that id.
    pub async fn user(&self, tenant: &TenantId, id: &UserId) -> Result<User, CatalogError> {
        let seal = self.tenant_seal(tenant).await?;
        let text = format!("SELECT {COLUMNS} FROM users WHERE tenant_id = $1 AND id = $2");
        let row = query(&text)
            .bind(tenant.as_str())
            .bind(id.as_str())
            .fetch_optional(self.read_of(tenant))
            .await?
            .ok_or_else(|| CatalogError::not_found("user", id))?;
        let roles = self.roles_between(tenant, id.as_str(), id.as_str()).await?;
        read_user(&row, &seal, tenant, &roles)
    }

    /// What a user prefers. It is not sealed, so no master key is needed.
    pub async fn preferences(
        &self,
        tenant: &TenantId,
        id: &UserId,
    ) -> Result<Map<String, Value>, CatalogError> {
        let row = query("SELECT preferences FROM users WHERE tenant_id = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(id.as_str())
            .fetch_optional(self.read_of(tenant))
            .await?
            .ok_or_else(|| CatalogError::not_found("user", id))?;
        let text: String = row.try_get("preferences")?;
        serde_json::from_str(&text).map_err(|_| CatalogError::corrupt("preferences", &text))
    }

    /// The tenant's users, oldest first.
    pub async fn users(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<User>, CatalogError> {
        let seal = self.tenant_seal(tenant).await?;
        let text = format!(
            "SELECT {COLUMNS} FROM users WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3"
        );
        let rows = query(&text)
            .bind(tenant.as_str())
            .bind(page.after()?)
            .bind(page.rows()?)
            .fetch_all(self.read_of(tenant))
            .await?;
        let ids = rows
            .iter()
            .map(|row| row.try_get("id"))
            .collect::<Result<Vec<String>, _>>()?;
        let roles = match (ids.first(), ids.last()) {
            (Some(first), Some(last)) => self.roles_between(tenant, first, last).await?,
            _ => BTreeMap::new(),
        };
        let users = rows
            .iter()
            .map(|row| read_user(row, &seal, tenant, &roles))
            .collect::<Result<_, _>>()?;
        Ok(page.listing(users, |user: &User| user.id.as_str()))
    }

    /// Changes a user. The last active owner of a tenant stays one.
    pub async fn update_user(
        &self,
        tenant: &TenantId,
        id: &UserId,
        change: &UserChange<'_>,
    ) -> Result<User, CatalogError> {
        let before = self.user(tenant, id).await?;
        if let Some(roles) = change.roles {
            self.check_roles(tenant, roles).await?;
        }
        let seal = self.tenant_seal(tenant).await?;
        let sealed = |column: &str, wanted: Option<&str>, old: &Option<String>| {
            sealed_text(&seal, tenant, id, column, wanted.or(old.as_deref()))
        };
        let name = sealed("name", change.name, &before.name)?;
        let phone = sealed("phone", change.phone, &before.phone)?;
        let preferences = preferences(change.preferences.unwrap_or(&before.preferences))?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let goes = change.state == Some(UserState::Disabled)
            || change
                .roles
                .is_some_and(|roles| !roles.iter().any(|role| role == OWNER));
        if goes {
            keep_an_owner(&mut transaction, tenant, id).await?;
        }
        let unlock = i64::from(change.unlock);
        let updated = query(
            "UPDATE users SET name = $3, phone = $4, preferences = $5, state = COALESCE($6, state), updated_at = $7, \
             failed_logins = CASE WHEN $8 = 1 THEN 0 ELSE failed_logins END, \
             locked_until = CASE WHEN $8 = 1 THEN NULL ELSE locked_until END WHERE tenant_id = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(name)
        .bind(phone)
        .bind(preferences)
        .bind(change.state.map(UserState::as_str))
        .bind(now)
        .bind(unlock)
        .execute(&mut transaction)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("user", id));
        }
        if let Some(roles) = change.roles {
            query("DELETE FROM user_roles WHERE tenant_id = $1 AND user_id = $2")
                .bind(tenant.as_str())
                .bind(id.as_str())
                .execute(&mut transaction)
                .await?;
            write_roles(&mut transaction, tenant, id, roles, now).await?;
        }
        if change.state == Some(UserState::Disabled) {
            super::sessions::end_all(&mut transaction, tenant, id, "disabled", None, now).await?;
        }
        transaction.commit().await?;
        self.user(tenant, id).await
    }

    /// Erases a user with sessions and roles; its keys are revoked, and the audit trail forgets its network addresses. The
    /// last active owner of a tenant stays.
    pub async fn delete_user(&self, tenant: &TenantId, id: &UserId) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        keep_an_owner(&mut transaction, tenant, id).await?;
        query(
            "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE tenant_id = $1 AND user_id = $2",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(now)
        .execute(&mut transaction)
        .await?;
        for statement in [
            "DELETE FROM refresh_tokens WHERE session_id IN \
             (SELECT id FROM sessions WHERE tenant_id = $1 AND user_id = $2)",
            "DELETE FROM sessions WHERE tenant_id = $1 AND user_id = $2",
            "DELETE FROM user_roles WHERE tenant_id = $1 AND user_id = $2",
            "DELETE FROM linked_logins WHERE tenant_id = $1 AND user_id = $2",
            "DELETE FROM messages WHERE tenant_id = $1 AND conversation_id IN \
             (SELECT id FROM conversations WHERE tenant_id = $1 AND owner = $2)",
            "DELETE FROM conversations WHERE tenant_id = $1 AND owner = $2",
        ] {
            query(statement)
                .bind(tenant.as_str())
                .bind(id.as_str())
                .execute(&mut transaction)
                .await?;
        }
        // The trail keeps what happened; where the person was is the person's.
        query(
            "UPDATE audit_events SET address = NULL WHERE tenant_id = $1 AND (actor = $2 OR target = $2)",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .execute(&mut transaction)
        .await?;
        let deleted = query("DELETE FROM users WHERE tenant_id = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(id.as_str())
            .execute(&mut transaction)
            .await?;
        if deleted == 0 {
            return Err(CatalogError::not_found("user", id));
        }
        transaction.commit().await
    }

    /// The roles of the users whose ids are in the range.
    async fn roles_between(
        &self,
        tenant: &TenantId,
        first: &str,
        last: &str,
    ) -> Result<BTreeMap<String, Vec<String>>, CatalogError> {
        let rows = query(
            "SELECT user_id, role FROM user_roles WHERE tenant_id = $1 AND user_id >= $2 AND user_id <= $3 \
             ORDER BY user_id, role",
        )
        .bind(tenant.as_str())
        .bind(first)
        .bind(last)
        .fetch_all(self.read_of(tenant))
        .await?;
        let mut roles: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows {
            roles
                .entry(row.try_get("user_id")?)
                .or_default()
                .push(row.try_get("role")?);
        }
        Ok(roles)
    }
}

const OWNER: &str = BuiltInRole::Owner.as_str();

/// Refuses when `id` is the only active owner.
async fn keep_an_owner(
    transaction: &mut Transaction,
    tenant: &TenantId,
    id: &UserId,
) -> Result<(), CatalogError> {
    let rows = query(
        "SELECT r.user_id FROM user_roles r JOIN users u ON u.tenant_id = r.tenant_id AND u.id = r.user_id \
         WHERE r.tenant_id = $1 AND r.role = $2 AND u.state = 'ACTIVE' LIMIT 2",
    )
    .bind(tenant.as_str())
    .bind(OWNER)
    .fetch_all(&mut *transaction)
    .await?;
    let owners = rows
        .iter()
        .map(|row| row.try_get("user_id"))
        .collect::<Result<Vec<String>, _>>()?;
    if owners.len() == 1 && owners[0] == id.as_str() {
        return Err(CatalogError::Conflict {
            kind: "user",
            name: id.to_string(),
            from: "the last owner".to_owned(),
            to: "anything else".to_owned(),
            allowed: "removed once another user is owner".to_owned(),
        });
    }
    Ok(())
}

async fn write_roles(
    transaction: &mut Transaction,
    tenant: &TenantId,
    id: &UserId,
    roles: &[String],
    now: i64,
) -> Result<(), CatalogError> {
    let roles: BTreeSet<&String> = roles.iter().collect();
    if roles.len() > ROLES_MAX {
        return Err(CatalogError::Invalid(format!(
            "{} roles; a user has at most {ROLES_MAX}",
            roles.len()
        )));
    }
    for role in roles {
        query(
            "INSERT INTO user_roles (tenant_id, user_id, role, granted_at) VALUES ($1, $2, $3, $4)",
        )
        .bind(tenant.as_str())
        .bind(id.as_str())
        .bind(role)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Where a sealed value belongs.
fn place(tenant: &TenantId, id: &UserId, column: &str) -> String {
    format!("users.{column} of {tenant}/{id}")
}

fn sealed_text(
    seal: &TenantSeal,
    tenant: &TenantId,
    id: &UserId,
    column: &str,
    text: Option<&str>,
) -> Result<Option<String>, CatalogError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.chars().count() > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(CatalogError::Invalid(format!(
            "`{column}` has at most {TEXT_CHARS_MAX} characters, on one line"
        )));
    }
    seal.seal(&place(tenant, id, column), text).map(Some)
}

fn preferences(preferences: &Map<String, Value>) -> Result<String, CatalogError> {
    let text = serde_json::to_string(preferences)
        .map_err(|error| CatalogError::storage("write the preferences", error))?;
    if text.len() > PREFERENCES_BYTES_MAX {
        return Err(CatalogError::Invalid(format!(
            "the preferences have {} bytes as JSON; keep them below {PREFERENCES_BYTES_MAX}",
            text.len()
        )));
    }
    // PostgreSQL has no place for it, and the JSON of it (`\u0000`) would come back as something else.
    if text.contains("\\u0000") {
        return Err(CatalogError::Invalid(
            "the preferences hold the character 0".to_owned(),
        ));
    }
    Ok(text)
}

/// Refuses what is no e-mail address.
pub fn check_email(email: &str) -> Result<(), CatalogError> {
    normalise_email(email).map(drop)
}

/// The form of an address that is compared: without space around it, in lower case.
pub(super) fn normalise_email(email: &str) -> Result<String, CatalogError> {
    let email = email.trim();
    let good = email.chars().count() <= EMAIL_CHARS_MAX
        && !email.chars().any(|c| c.is_whitespace() || c.is_control())
        && email
            .rsplit_once('@')
            .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty());
    if !good {
        return Err(CatalogError::Invalid(
            "`email` is not an e-mail address: use NAME@DOMAIN".to_owned(),
        ));
    }
    Ok(email.to_lowercase())
}

fn read_user(
    row: &Row,
    seal: &TenantSeal,
    tenant: &TenantId,
    roles: &BTreeMap<String, Vec<String>>,
) -> Result<User, CatalogError> {
    let id = UserId(row.try_get("id")?);
    let opened = |column: &str, sealed: Option<String>| {
        sealed
            .map(|sealed| seal.open(&place(tenant, &id, column), &sealed))
            .transpose()
    };
    let preferences: String = row.try_get("preferences")?;
    Ok(User {
        email: seal.open(
            &place(tenant, &id, "email"),
            &row.try_get::<String>("email")?,
        )?,
        name: opened("name", row.try_get("name")?)?,
        phone: opened("phone", row.try_get("phone")?)?,
        state: UserState::read(&row.try_get::<String>("state")?)?,
        roles: roles.get(id.as_str()).cloned().unwrap_or_default(),
        preferences: serde_json::from_str(&preferences)
            .map_err(|_| CatalogError::corrupt("preferences", &preferences))?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        last_login_at: row.try_get("last_login_at")?,
        locked_until: row.try_get("locked_until")?,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_in_one_form() {
        assert_eq!(
            normalise_email(" Ann@Example.COM ").ok().as_deref(),
            Some("ann@example.com")
        );
        assert_eq!(
            normalise_email("李@例子.中国").ok().as_deref(),
            Some("李@例子.中国")
        );
        for bad in [
            "",
            "ann",
            "@b",
            "a@",
            "a b@c",
            "a@b\0",
            &format!("{}@b", "a".repeat(300)),
        ] {
            assert!(normalise_email(bad).is_err(), "{bad}");
        }
    }
}
