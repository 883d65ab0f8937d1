//! Identity: who calls, and what they may do.
//!
//! ```text
//! password ──login──► session (catalog) ──► access token (15 min, signed) + refresh token (once)
//! access token or API key ──identify──► Principal { tenant, caller, permissions, limits }
//! ```
//!
//! The tenant of a [`Principal`] comes from the credential and from nowhere else. An access token says whose session it
//! belongs to; what its user may do is looked up in the catalog, at most [`SESSION_CHECK_MS`] ago, so that a logout or a
//! lost role counts at once here and within that time in other processes.
//!
//! What is stored is the catalog's business, which call needs which permission is `http/routes.rs`'s.

mod login;
mod oidc;
mod passwords;
mod throttle;
mod tokens;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use va_catalog::settings::IdentitySettings;
use va_catalog::store::{
    Caller, CatalogError, KeyLimits, MasterKey, Principal, Session, SessionId,
};
use va_catalog::{Catalog, TenantId};
use va_connectors::cache::Cache;

pub use login::{LoggedIn, LoginError, Note, Origin, Registering};
pub use oidc::{LOGIN_SECONDS, Oidc, OidcError, Returned};
pub use passwords::{PasswordError, Passwords};
pub use throttle::{Failures, Throttle};
pub use tokens::{Claims, TokenError, Tokens};

use crate::platform::now_ms;

/// How long the answer to whether a session lives is remembered.
pub const SESSION_CHECK_MS: i64 = 5_000;
/// Sessions that are remembered.
const SESSIONS_CACHED_MAX: usize = 10_000;
/// How long a session that has ended is kept, so that a late refresh token is told from an unknown one.
const ENDED_KEPT_MS: i64 = 7 * DAY_MS;
const DAY_MS: i64 = 86_400_000;
const MASTER_FILE: &str = "master.key";

/// Everything that identity does in one process.
pub struct Identity {
    pub settings: IdentitySettings,
    pub tokens: Tokens,
    pub passwords: Passwords,
    pub oidc: Oidc,
    catalog: Catalog,
    /// Tries of one network address.
    attempts: Throttle,
    /// Wrong passwords for accounts that do not exist, so that those look like others.
    unknown: Failures,
    sessions: Mutex<HashMap<SessionId, Checked>>,
    /// Why nobody can log in here.
    locked: Option<String>,
}

#[derive(Clone)]
struct Checked {
    session: Option<Session>,
    at_ms: i64,
}

/// Why a credential is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the key is not valid; the admin key is in `admin.key` of the data directory")]
    Key,
    #[error("the access token is not accepted: {0}; log in or refresh")]
    Token(#[from] TokenError),
    #[error("the session of the access token has ended; log in again")]
    Ended,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Identity {
    /// `shared`: the cache by which several processes count tries together.
    pub fn new(
        catalog: Catalog,
        settings: IdentitySettings,
        locked: Option<String>,
        shared: Option<Arc<dyn Cache>>,
    ) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            tokens: Tokens::new(catalog.clone(), &settings),
            passwords: Passwords::default(),
            oidc: Oidc::new(
                settings.oidc.clone(),
                i64::try_from(settings.clock_skew_seconds).unwrap_or(i64::MAX / 2_000),
            ),
            attempts: Throttle::new(settings.attempts_per_minute, minute, shared.clone()),
            unknown: Failures::new(settings.lockout_failures, settings.lockout_seconds, shared),
            sessions: Mutex::default(),
            catalog,
            settings,
            locked,
        }
    }

    /// Why nobody can log in here, if so.
    pub fn locked(&self) -> Option<&str> {
        self.locked.as_deref()
    }

    /// Whose credential that is. It is an API key or an access token; their forms do not overlap.
    pub async fn identify(&self, credential: &str) -> Result<Principal, Refusal> {
        if credential.split('.').count() != 3 {
            return self
                .catalog
                .check_key(credential)
                .await?
                .ok_or(Refusal::Key);
        }
        let claims = match self.tokens.verify(credential).await {
            Ok(claims) => claims,
            // Not the token's fault.
            Err(TokenError::Catalog(error)) => return Err(error.into()),
            Err(error) => return Err(error.into()),
        };
        let tenant = TenantId::new(claims.tenant.as_str()).map_err(|_| TokenError::Malformed)?;
        let id = SessionId::from(claims.sid.as_str());
        let session = self.session(&tenant, &id).await?.ok_or(Refusal::Ended)?;
        if session.user.as_str() != claims.sub {
            return Err(Refusal::Ended);
        }
        Ok(Principal {
            tenant: session.tenant,
            caller: Caller::User {
                id: session.user,
                session: session.id,
                roles: session.roles,
            },
            permissions: session.permissions,
            limits: KeyLimits::default(),
        })
    }

    /// The session, as of at most [`SESSION_CHECK_MS`] ago.
    async fn session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
    ) -> Result<Option<Session>, CatalogError> {
        let now = now_ms();
        let known = self.cached().get(id).cloned();
        if let Some(known) = known
            && (0..SESSION_CHECK_MS).contains(&(now - known.at_ms))
        {
            return Ok(known.session.filter(|session| session.tenant == *tenant));
        }
        let session = self.catalog.session(tenant, id).await?;
        let mut cached = self.cached();
        if cached.len() >= SESSIONS_CACHED_MAX {
            cached.clear();
        }
        let checked = Checked {
            session: session.clone(),
            at_ms: now,
        };
        cached.insert(id.clone(), checked);
        Ok(session)
    }

    /// Looks again at every session: something about users or roles has changed.
    pub fn look_again(&self) {
        self.cached().clear();
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Checked>> {
        // Each entry is written whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what has ended long ago.
    pub async fn tidy(&self) -> Result<u64, CatalogError> {
        let now = now_ms();
        let audit_ms = i64::from(self.settings.audit_days) * DAY_MS;
        self.catalog
            .forget_ended_all_tenants(now - ENDED_KEPT_MS, now - audit_ms)
            .await
    }

    fn session_ms(&self) -> i64 {
        i64::from(self.settings.session_days) * DAY_MS
    }
}

/// The catalog with its master key, or without it and the reason. A wrong setting is an error; a key that does not fit is
/// not: API keys, search and pipelines work without it, and `va doctor` tells.
pub async fn unlock(
    catalog: Catalog,
    settings: &IdentitySettings,
    data: &Path,
) -> Result<(Catalog, Option<String>), CatalogError> {
    let path = data.join(MASTER_FILE);
    let unlocked = match &settings.master_key {
        Some(key) => {
            let key = MasterKey::parse(key.expose()).map_err(|error| {
                CatalogError::Invalid(format!("`identity.master_key`: {error}"))
            })?;
            catalog.unlocked(key).await
        }
        None if !path.exists() && catalog.is_sealed().await? => Err(CatalogError::Locked(format!(
            "`{}` is gone, and the catalog holds what was sealed with it: put it back, or set `identity.master_key` \
             (VA_IDENTITY__MASTER_KEY) to the key",
            path.display()
        ))),
        None => match MasterKey::ensure(&path) {
            Ok(key) => catalog.unlocked(key).await,
            Err(error) => Err(error),
        },
    };
    match unlocked {
        Ok(unlocked) => Ok((unlocked, None)),
        Err(CatalogError::Locked(reason)) => {
            tracing::warn!(reason, "nobody can log in here");
            Ok((catalog, Some(reason)))
        }
        Err(error) => Err(error),
    }
}
