//! What callers may do: permissions, sets of them, and the roles that everybody has.
//!
//! A permission is one verb on one kind of thing. Routes name the one they need, credentials carry a set. What a
//! permission reaches is always inside the caller's tenant; the few things that belong to the whole installation
//! (`platform.*`, pipelines, topics) are besides open to the default tenant only, which is the routes' business.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// One thing that a caller may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $($(#[$doc])* $name),+
        }

        impl Permission {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As it is written in roles, keys and the OpenAPI document.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }
        }
    };
}

permissions! {
    /// List and show collections.
    CollectionsRead = "collections.read",
    /// Make and remove collections.
    CollectionsWrite = "collections.write",
    /// List and show documents, their versions and content.
    DocumentsRead = "documents.read",
    /// Upload, roll back and remove documents.
    DocumentsWrite = "documents.write",
    /// See documents whoever their readers are, and change those.
    DocumentsManage = "documents.manage",
    /// Search collections.
    Search = "search",
    /// Read by SQL, over HTTP and the PostgreSQL wire.
    SqlRead = "sql.read",
    /// Ask questions and hold conversations.
    Chat = "chat",
    /// Call models (`/v1`).
    ModelsUse = "models.use",
    /// Show the rows that a pipeline could not process.
    DeadLettersRead = "dead_letters.read",
    /// Send such rows through the pipeline again.
    DeadLettersRetry = "dead_letters.retry",
    /// Show pipelines and what flows through them.
    PipelinesRead = "pipelines.read",
    /// Create, start, stop and remove pipelines.
    PipelinesManage = "pipelines.manage",
    /// List, describe and read topics.
    TopicsRead = "topics.read",
    /// Append to topics.
    TopicsWrite = "topics.write",
    /// Create and remove topics.
    TopicsManage = "topics.manage",
    /// Show users, their roles and what roles permit.
    UsersRead = "users.read",
    /// Create, change, invite and remove users, and grant roles.
    UsersManage = "users.manage",
    /// Make, change and remove the tenant's own roles.
    RolesManage = "roles.manage",
    /// List API keys (never the keys themselves).
    KeysRead = "keys.read",
    /// Make and revoke API keys.
    KeysManage = "keys.manage",
    /// Show the caller's tenant.
    TenantRead = "tenant.read",
    /// Change the caller's tenant.
    TenantManage = "tenant.manage",
    /// Read the audit trail.
    AuditRead = "audit.read",
    /// See how the installation is.
    PlatformRead = "platform.read",
    /// Make tenants, replace signing keys.
    PlatformManage = "platform.manage",
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no permission: use one of those that `GET /api/v1/roles` lists for `owner`")]
pub struct UnknownPermission(pub String);

impl FromStr for Permission {
    type Err = UnknownPermission;

    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        Self::ALL
            .iter()
            .copied()
            .find(|permission| permission.as_str() == text)
            .ok_or_else(|| UnknownPermission(text.to_owned()))
    }
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Permission {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A set of permissions. It is a word, so that a check on every request costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Permissions(u64);

// Each permission is a bit.
const _: () = assert!(Permission::ALL.len() <= 64);

impl Permissions {
    pub const NONE: Self = Self(0);

    /// Every permission there is.
    pub fn all() -> Self {
        Permission::ALL.iter().copied().collect()
    }

    pub fn contains(self, permission: Permission) -> bool {
        self.0 & bit(permission) != 0
    }

    #[must_use]
    pub fn with(self, permission: Permission) -> Self {
        Self(self.0 | bit(permission))
    }

    #[must_use]
    pub fn without(self, permission: Permission) -> Self {
        Self(self.0 & !bit(permission))
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is here.
    pub fn includes(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL
            .iter()
            .copied()
            .filter(move |permission| self.contains(*permission))
    }
}

fn bit(permission: Permission) -> u64 {
    1 << (permission as u64)
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Permission::as_str))
            .finish()
    }
}

/// For people: names, separated by commas.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Permission::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Permission>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

/// Roles that every tenant has. Others are the tenants' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltInRole {
    /// Everything in the tenant; a tenant's last owner cannot be removed.
    Owner,
    /// Everything but changing the tenant itself.
    Admin,
    /// Reads and writes content, calls models. Not pipelines: they see what the whole installation does.
    Editor,
    /// Reads, searches and asks.
    Viewer,
}

impl BuiltInRole {
    pub const ALL: [Self; 4] = [Self::Owner, Self::Admin, Self::Editor, Self::Viewer];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Editor => "editor",
            Self::Viewer => "viewer",
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Self::Owner => "everything, the tenant itself too",
            Self::Admin => "everything but changing the tenant and the installation",
            Self::Editor => "reads and writes content, calls models",
            Self::Viewer => "reads, searches and asks",
        }
    }

    /// The built-in role of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    pub fn permissions(self) -> Permissions {
        use Permission::*;
        match self {
            Self::Owner => Permissions::all(),
            Self::Admin => Permissions::all()
                .without(TenantManage)
                .without(PlatformManage),
            Self::Editor => Self::Viewer.permissions().union(
                [
                    CollectionsWrite,
                    DocumentsWrite,
                    ModelsUse,
                    DeadLettersRetry,
                    TopicsWrite,
                ]
                .into_iter()
                .collect(),
            ),
            Self::Viewer => [
                CollectionsRead,
                DocumentsRead,
                Search,
                SqlRead,
                Chat,
                DeadLettersRead,
                PipelinesRead,
                TopicsRead,
                TenantRead,
            ]
            .into_iter()
            .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_text_and_unknown_ones_are_refused() {
        for permission in Permission::ALL {
            assert_eq!(permission.as_str().parse(), Ok(*permission));
        }
        let set: Permissions = serde_json::from_str(r#"["search","sql.read"]"#).expect("a set");
        assert_eq!(set.to_string(), "search, sql.read");
        assert_eq!(
            serde_json::to_string(&set).expect("JSON"),
            r#"["search","sql.read"]"#
        );
        let error = serde_json::from_str::<Permissions>(r#"["root"]"#).expect_err("unknown");
        assert!(
            error.to_string().contains("`root` is no permission"),
            "{error}"
        );
    }

    #[test]
    fn each_role_includes_the_next() {
        for pair in BuiltInRole::ALL.windows(2) {
            let (more, less) = (pair[0].permissions(), pair[1].permissions());
            assert!(more.includes(less) && !less.includes(more), "{pair:?}");
        }
        let viewer = BuiltInRole::Viewer.permissions();
        assert!(viewer.iter().all(|permission| {
            let name = permission.as_str();
            !name.contains("write") && !name.contains("manage") && !name.contains("retry")
        }));
        assert!(
            Permissions::all()
                .minus(viewer)
                .contains(Permission::UsersManage)
        );
    }
}
