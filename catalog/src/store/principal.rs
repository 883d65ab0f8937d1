//! [`Principal`]: what every credential comes to, and as which [`Viewer`] it reads documents. Keys (`keys.rs`) and sessions (`sessions.rs`) are turned into one, and
//! nothing else makes one.

use serde::{Deserialize, Serialize};

use super::error::CatalogError;
use super::keys::{KeyId, Scope};
use super::sessions::SessionId;
use super::users::UserId;
use crate::permission::{Permission, Permissions};
use crate::readers::{Reader, Viewer};
use crate::scope::TenantScope;
pub use crate::settings::llm::BudgetWindow;

/// Who calls, and what the call may do. It comes from a credential and from nothing else; above all the tenant does, which
/// cannot be made of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub tenant: TenantScope,
    pub caller: Caller,
    pub permissions: Permissions,
    pub limits: KeyLimits,
}

/// The credential that was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An API key, of a user, whose roles these are, or of nobody in particular.
    Key {
        id: KeyId,
        user: Option<UserId>,
        roles: Vec<String>,
    },
    /// An access token of a user's session.
    User {
        id: UserId,
        session: SessionId,
        roles: Vec<String>,
    },
}

impl Principal {
    /// Whether everything that the scope stands for is permitted.
    pub fn allows(&self, scope: Scope) -> bool {
        self.permissions.includes(scope.permissions())
    }

    /// The key that was shown, if it was one.
    pub fn key(&self) -> Option<&KeyId> {
        match &self.caller {
            Caller::Key { id, .. } => Some(id),
            Caller::User { .. } => None,
        }
    }

    /// The user behind the credential, if there is one.
    pub fn user(&self) -> Option<&UserId> {
        match &self.caller {
            Caller::Key { user, .. } => user.as_ref(),
            Caller::User { id, .. } => Some(id),
        }
    }

    /// As whom the caller reads documents.
    ///
    /// Whoever may manage documents sees all. So does a key of the tenant that may write them: it belongs to a program
    /// that keeps a collection, which must find what it wrote. Users, and keys of users, see what everybody may read and
    /// what names them or one of their roles; other keys of the tenant are nobody and see what everybody may read.
    pub fn viewer(&self) -> Viewer {
        let nobodys = self.user().is_none();
        if self.permissions.contains(Permission::DocumentsManage)
            || nobodys && self.permissions.contains(Permission::DocumentsWrite)
        {
            return Viewer::Everything;
        }
        let roles = match &self.caller {
            Caller::Key { roles, .. } | Caller::User { roles, .. } => roles,
        };
        let user = self.user().map(|id| Reader::User(id.as_str().to_owned()));
        let roles = roles.iter().map(|role| Reader::Role(role.clone()));
        Viewer::Only(user.into_iter().chain(roles).collect())
    }

    /// The id of the credential's holder, for the audit trail and the log.
    pub fn actor(&self) -> &str {
        match &self.caller {
            Caller::Key { id, .. } => id.as_str(),
            Caller::User { id, .. } => id.as_str(),
        }
    }
}

/// What a key may spend and on which models. A session has no limits of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    /// Names of models; `None`: all.
    pub models: Option<Vec<String>>,
    pub budget: Option<Budget>,
}

/// An amount of money for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Millionths of the currency that prices are in (`llm.currency`).
    pub micros: i64,
    pub window: BudgetWindow,
}

impl BudgetWindow {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    pub(super) fn read(text: &str) -> Result<Self, CatalogError> {
        [Self::Day, Self::Week, Self::Month, Self::Total]
            .into_iter()
            .find(|window| window.as_str() == text)
            .ok_or_else(|| CatalogError::corrupt("budget_window", text))
    }
}
