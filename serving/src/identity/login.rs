//! Logging in and what belongs to it: register, refresh, log out, change a password.
//!
//! A refusal tells a stranger nothing: an unknown address, a wrong password and a disabled user get the same reply after
//! the same work, and unknown addresses are locked like others. What happened to an account goes to its tenant's audit
//! trail.

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use va_catalog::settings::Registration;
use va_catalog::store::{
    CatalogError, NewAuditEvent, NewUser, Refreshed, SecretKey, Session, SessionId, User, UserId,
    UserState,
};
use va_catalog::{BuiltInRole, TenantId};

use super::Identity;
use super::passwords::{self, PasswordError};
use super::throttle::still_locked;
use crate::platform::now_ms;

/// Actor of what nobody has logged in for.
const NOBODY: &str = "nobody";

/// Where a call comes from, for the audit trail and for bounds on tries.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub address: Option<IpAddr>,
    pub request_id: Option<String>,
}

/// Who wants to become a user.
pub struct Registering {
    pub email: String,
    pub password: String,
    pub name: Option<String>,
    pub phone: Option<String>,
    /// The new tenant, where anybody may make one.
    pub tenant: Option<TenantId>,
    pub invite: Option<String>,
}

/// A session and its tokens.
pub struct LoggedIn {
    pub access: String,
    pub refresh: SecretKey,
    pub user: User,
    pub session: Session,
}

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("tenant, e-mail address and password do not fit together")]
    Credentials,
    #[error("the account is locked after too many wrong passwords; try again in {} seconds", .0.as_secs().max(1))]
    Locked(Duration),
    #[error("too many tries from this address; try again in {} seconds", .0.as_secs().max(1))]
    TooMany(Duration),
    #[error("{0}")]
    Closed(String),
    #[error("the refresh token is not valid (any more); log in again")]
    Refresh,
    #[error(
        "the refresh token was used before, so it may be in other hands: its session has ended, log in again"
    )]
    Reused,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What is noted in the audit trail.
pub struct Note<'a> {
    pub actor: &'a str,
    pub action: &'a str,
    pub target: Option<&'a str>,
    pub succeeded: bool,
    pub detail: Option<&'a str>,
}

impl Identity {
    /// Notes in the tenant's audit trail. What was done is done, so a failure here is only told.
    pub async fn note(&self, tenant: &TenantId, origin: &Origin, note: Note<'_>) {
        let address = origin.address.map(|address| address.to_string());
        let event = NewAuditEvent {
            actor: note.actor,
            action: note.action,
            target: note.target,
            succeeded: note.succeeded,
            address: address.as_deref(),
            request_id: origin.request_id.as_deref(),
            detail: note.detail,
        };
        if let Err(error) = self.catalog.note_audit(tenant, &event).await {
            tracing::error!(%error, %tenant, action = note.action, actor = note.actor, "write the audit trail");
        }
    }

    /// Checks the password and begins a session.
    pub async fn login(
        &self,
        tenant: &TenantId,
        email: &str,
        password: &str,
        origin: &Origin,
    ) -> Result<LoggedIn, LoginError> {
        self.admit(origin).await?;
        self.open_here()?;
        let now = now_ms();
        let record = self.catalog.login_record(tenant, email).await?;
        let stranger = stranger(tenant, email);
        let lock_ms = i64::try_from(self.settings.lockout_seconds.saturating_mul(1_000));
        let lock_ms = lock_ms.unwrap_or(i64::MAX / 2);
        let locked_until = match &record {
            Some(record) => record
                .locked_until
                .filter(|until| still_locked(*until, now, lock_ms)),
            None => self.unknown.locked(&stranger, now).await,
        };
        if let Some(until) = locked_until {
            return Err(LoginError::Locked(millis(until - now)));
        }
        let expected = record.as_ref().and_then(|r| r.password_hash.as_deref());
        let fits = self.passwords.verify(password, expected).await?;
        let Some(record) = record else {
            self.unknown.failed(stranger, now).await;
            return Err(LoginError::Credentials);
        };
        let note = |succeeded, detail| Note {
            actor: NOBODY,
            action: "auth.login",
            target: Some(record.id.as_str()),
            succeeded,
            detail,
        };
        if !fits || record.state != UserState::Active {
            let locked = self
                .catalog
                .login_failed(tenant, &record.id, self.settings.lockout_failures, lock_ms)
                .await?;
            let detail = match (fits, locked) {
                (_, Some(_)) => "wrong password; locked",
                (false, None) => "wrong password",
                (true, None) => "disabled",
            };
            self.note(tenant, origin, note(false, Some(detail))).await;
            return Err(LoginError::Credentials);
        }
        self.catalog.login_succeeded(tenant, &record.id).await?;
        let logged_in = self.begin(tenant, &record.id).await?;
        self.note(tenant, origin, note(true, None)).await;
        Ok(logged_in)
    }

    /// Makes a user, as the settings permit, and logs in.
    pub async fn register(
        &self,
        new: &Registering,
        origin: &Origin,
    ) -> Result<LoggedIn, LoginError> {
        self.admit(origin).await?;
        self.open_here()?;
        let policy = self.settings.registration;
        let invite = match (policy, &new.invite) {
            (Registration::Closed, _) => {
                return Err(LoginError::Closed(
                    "registration is closed; ask somebody who may create users".to_owned(),
                ));
            }
            (Registration::Invite, None) => {
                return Err(LoginError::Closed(
                    "registration needs an `invite`; ask somebody who may create users (`va user invite`)".to_owned(),
                ));
            }
            (_, None) => None,
            (_, Some(invite)) => {
                let found = self.catalog.invite(invite).await?;
                Some(found.ok_or_else(|| {
                    LoginError::Closed(
                        "the invite is unknown, taken or expired; ask for a new one".to_owned(),
                    )
                })?)
            }
        };
        // Everything that can be wrong with the input comes before a tenant is made.
        let hash = self.hash_new(&new.password, &new.email).await?;
        let (tenant, roles) = match invite {
            Some(invite) => {
                if new
                    .tenant
                    .as_ref()
                    .is_some_and(|wanted| *wanted != invite.tenant)
                {
                    return Err(LoginError::Closed(
                        "the invite is for another tenant; leave `tenant` out".to_owned(),
                    ));
                }
                (invite.tenant, invite.roles)
            }
            None => {
                let tenant = new.tenant.clone().ok_or_else(|| {
                    CatalogError::Invalid("`tenant` is missing: choose a name for your new tenant, or bring an `invite`".to_owned())
                })?;
                va_catalog::store::check_email(&new.email)?;
                self.catalog.create_tenant(&tenant, "").await?;
                (tenant, vec![BuiltInRole::Owner.as_str().to_owned()])
            }
        };
        let user = NewUser {
            email: &new.email,
            name: new.name.as_deref(),
            phone: new.phone.as_deref(),
            password_hash: Some(&hash),
            roles: &roles,
            invite: new.invite.as_deref(),
        };
        let user = self.catalog.create_user(&tenant, &user).await?;
        let note = Note {
            actor: NOBODY,
            action: "auth.register",
            target: Some(user.id.as_str()),
            succeeded: true,
            detail: None,
        };
        self.note(&tenant, origin, note).await;
        Ok(self.begin(&tenant, &user.id).await?)
    }

    /// Exchanges a refresh token. One that was exchanged before ends its session.
    pub async fn refresh(&self, token: &str, origin: &Origin) -> Result<LoggedIn, LoginError> {
        self.open_here()?;
        match self
            .catalog
            .refresh_session(token, self.session_ms())
            .await?
        {
            Refreshed::Renewed { session, token } => Ok(self.tokens_of(session, token).await?),
            Refreshed::Refused => Err(LoginError::Refresh),
            Refreshed::Reused {
                tenant,
                user,
                session,
            } => {
                self.look_again();
                let note = Note {
                    actor: NOBODY,
                    action: "auth.refresh",
                    target: Some(user.as_str()),
                    succeeded: false,
                    detail: Some("a refresh token was used twice; its session has ended"),
                };
                self.note(&tenant, origin, note).await;
                tracing::warn!(%tenant, %user, %session, "a refresh token was used twice");
                Err(LoginError::Reused)
            }
        }
    }

    /// Ends the session, or all of the user's.
    pub async fn logout(
        &self,
        tenant: &TenantId,
        user: &UserId,
        session: &SessionId,
        everywhere: bool,
        origin: &Origin,
    ) -> Result<(), CatalogError> {
        if everywhere {
            self.catalog.end_sessions(tenant, user, "logout").await?;
        } else {
            self.catalog.end_session(tenant, session, "logout").await?;
        }
        self.look_again();
        let note = Note {
            actor: user.as_str(),
            action: "auth.logout",
            target: None,
            succeeded: true,
            detail: everywhere.then_some("everywhere"),
        };
        self.note(tenant, origin, note).await;
        Ok(())
    }

    /// Replaces the password of somebody who knows the old one; every other session ends.
    pub async fn change_password(
        &self,
        tenant: &TenantId,
        id: &UserId,
        session: &SessionId,
        (current, new): (&str, &str),
        origin: &Origin,
    ) -> Result<(), LoginError> {
        self.admit(origin).await?;
        let user = self.catalog.user(tenant, id).await?;
        let record = self.catalog.login_record_of(tenant, id).await?;
        let expected = record.and_then(|record| record.password_hash);
        let fits = self.passwords.verify(current, expected.as_deref()).await?;
        let note = |succeeded| Note {
            actor: id.as_str(),
            action: "auth.password",
            target: None,
            succeeded,
            detail: None,
        };
        if !fits {
            self.note(tenant, origin, note(false)).await;
            return Err(LoginError::Credentials);
        }
        let hash = self.hash_new(new, &user.email).await?;
        self.catalog
            .set_password(tenant, id, &hash, Some(session.as_str()))
            .await?;
        self.look_again();
        self.note(tenant, origin, note(true)).await;
        Ok(())
    }

    /// The hash of a password that somebody chose.
    pub async fn hash_new(&self, password: &str, email: &str) -> Result<String, LoginError> {
        passwords::check(password, email, self.settings.password_chars_min)?;
        Ok(self.passwords.hash(password).await?)
    }

    /// How long an invite lasts.
    pub fn invite_ms(&self) -> i64 {
        i64::from(self.settings.invite_hours) * 3_600_000
    }

    pub(super) async fn begin(
        &self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<LoggedIn, CatalogError> {
        let (id, token) = self
            .catalog
            .begin_session(tenant, user, self.session_ms())
            .await?;
        let session = self.catalog.session(tenant, &id).await?;
        let session = session.ok_or_else(|| CatalogError::NotFound {
            kind: "session",
            name: id.to_string(),
        })?;
        self.tokens_of(session, token).await
    }

    async fn tokens_of(
        &self,
        session: Session,
        refresh: SecretKey,
    ) -> Result<LoggedIn, CatalogError> {
        Ok(LoggedIn {
            access: self.tokens.issue(&session).await?,
            refresh,
            user: self.catalog.user(&session.tenant, &session.user).await?,
            session,
        })
    }

    /// One try of an address; who has none (a test, a socket that is gone) shares one.
    pub(super) async fn admit(&self, origin: &Origin) -> Result<(), LoginError> {
        let address = origin.address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        self.attempts
            .admit(address, now_ms())
            .await
            .map_err(LoginError::TooMany)
    }

    pub(super) fn open_here(&self) -> Result<(), CatalogError> {
        match &self.locked {
            Some(reason) => Err(CatalogError::Locked(reason.clone())),
            None => Ok(()),
        }
    }
}

/// Stands for an account that may not exist, without keeping the address.
fn stranger(tenant: &TenantId, email: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(tenant.as_str());
    hash.update([0]);
    hash.update(email.trim().to_lowercase());
    hash.finalize().into()
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0).unsigned_abs())
}
