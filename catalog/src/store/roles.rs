//! Roles: the built-in ones and a tenant's own, and what a list of roles permits.

use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::query::{Row, query};
use crate::ids::TenantId;
use crate::permission::{BuiltInRole, Permissions};

/// A role: a name for a set of permissions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRole {
    pub name: String,
    pub description: String,
    pub permissions: Permissions,
    /// One that every tenant has and none can change.
    pub built_in: bool,
}

impl From<BuiltInRole> for UserRole {
    fn from(role: BuiltInRole) -> Self {
        Self {
            name: role.as_str().to_owned(),
            description: role.description().to_owned(),
            permissions: role.permissions(),
            built_in: true,
        }
    }
}

const NAME_CHARS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 500;
/// Of one tenant.
const ROLES_MAX: usize = 200;

impl Catalog {
    /// The built-in roles, then the tenant's own by name.
    pub async fn roles(&self, tenant: &TenantId) -> Result<Vec<UserRole>, CatalogError> {
        let rows = query(
            "SELECT name, description, permissions FROM roles WHERE tenant_id = $1 ORDER BY name",
        )
        .bind(tenant.as_str())
        .fetch_all(self.read_of(tenant))
        .await?;
        let mut roles: Vec<UserRole> = BuiltInRole::ALL.map(UserRole::from).to_vec();
        for row in &rows {
            roles.push(read_role(row)?);
        }
        Ok(roles)
    }

    /// The role of that name.
    pub async fn role(&self, tenant: &TenantId, name: &str) -> Result<UserRole, CatalogError> {
        if let Some(role) = BuiltInRole::named(name) {
            return Ok(role.into());
        }
        let row = query(
            "SELECT name, description, permissions FROM roles WHERE tenant_id = $1 AND name = $2",
        )
        .bind(tenant.as_str())
        .bind(name)
        .fetch_optional(self.read_of(tenant))
        .await?
        .ok_or_else(|| CatalogError::not_found("role", name))?;
        read_role(&row)
    }

    /// Makes a role, or with `replace` changes one that is there.
    pub async fn put_role(
        &self,
        tenant: &TenantId,
        role: &UserRole,
        replace: bool,
    ) -> Result<(), CatalogError> {
        check(role)?;
        let permissions = serde_json::to_string(&role.permissions)
            .map_err(|error| CatalogError::storage("write the permissions", error))?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let written = if replace {
            query(
                "UPDATE roles SET description = $3, permissions = $4, updated_at = $5 WHERE tenant_id = $1 AND name = $2",
            )
        } else {
            let rows = query("SELECT name FROM roles WHERE tenant_id = $1")
                .bind(tenant.as_str())
                .fetch_all(&mut transaction)
                .await?;
            if rows.len() >= ROLES_MAX {
                return Err(CatalogError::Invalid(format!(
                    "a tenant has at most {ROLES_MAX} roles of its own: remove one first"
                )));
            }
            query(
                "INSERT INTO roles (tenant_id, name, description, permissions, created_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (tenant_id, name) DO NOTHING",
            )
        }
        .bind(tenant.as_str())
        .bind(&role.name)
        .bind(&role.description)
        .bind(permissions)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        match (written, replace) {
            (0, true) => Err(CatalogError::not_found("role", &role.name)),
            (0, false) => Err(CatalogError::exists("role", &role.name)),
            _ => transaction.commit().await,
        }
    }

    /// Removes one of the tenant's own roles, unless somebody has it.
    pub async fn delete_role(&self, tenant: &TenantId, name: &str) -> Result<(), CatalogError> {
        if BuiltInRole::named(name).is_some() {
            return Err(built_in(name));
        }
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let holders =
            query("SELECT user_id FROM user_roles WHERE tenant_id = $1 AND role = $2 LIMIT 1")
                .bind(tenant.as_str())
                .bind(name)
                .fetch_all(&mut transaction)
                .await?;
        if !holders.is_empty() {
            return Err(CatalogError::Conflict {
                kind: "role",
                name: name.to_owned(),
                from: "in use".to_owned(),
                to: "removed".to_owned(),
                allowed: "removed once no user has it".to_owned(),
            });
        }
        let deleted = query("DELETE FROM roles WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name)
            .execute(&mut transaction)
            .await?;
        if deleted == 0 {
            return Err(CatalogError::not_found("role", name));
        }
        transaction.commit().await
    }

    /// What the roles permit together. A role that is gone permits nothing.
    pub async fn permissions_of(
        &self,
        tenant: &TenantId,
        roles: &[String],
    ) -> Result<Permissions, CatalogError> {
        let mut permissions = Permissions::NONE;
        for name in roles {
            match self.role(tenant, name).await {
                Ok(role) => permissions = permissions.union(role.permissions),
                Err(CatalogError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(permissions)
    }

    /// Whether all of them are there.
    pub(super) async fn check_roles(
        &self,
        tenant: &TenantId,
        roles: &[String],
    ) -> Result<(), CatalogError> {
        for name in roles {
            match self.role(tenant, name).await {
                Ok(_) => {}
                Err(CatalogError::NotFound { .. }) => {
                    return Err(CatalogError::Invalid(format!(
                        "role `{name}` does not exist: use owner, admin, editor, viewer or one of `GET /api/v1/roles`"
                    )));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn built_in(name: &str) -> CatalogError {
    CatalogError::Invalid(format!(
        "`{name}` is a built-in role, which cannot be changed: make one of another name"
    ))
}

fn check(role: &UserRole) -> Result<(), CatalogError> {
    let UserRole {
        name, description, ..
    } = role;
    if BuiltInRole::named(name).is_some() {
        return Err(built_in(name));
    }
    let good = (1..=NAME_CHARS_MAX).contains(&name.chars().count())
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if !good {
        return Err(CatalogError::Invalid(format!(
            "`{name}` is not a valid role name: use 1 to {NAME_CHARS_MAX} letters, digits, `.`, `_` or `-`"
        )));
    }
    if description.chars().count() > DESCRIPTION_CHARS_MAX {
        return Err(CatalogError::Invalid(format!(
            "`description` has at most {DESCRIPTION_CHARS_MAX} characters"
        )));
    }
    Ok(())
}

fn read_role(row: &Row) -> Result<UserRole, CatalogError> {
    let permissions: String = row.try_get("permissions")?;
    Ok(UserRole {
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        permissions: serde_json::from_str(&permissions)
            .map_err(|_| CatalogError::corrupt("permissions", &permissions))?,
        built_in: false,
    })
}
