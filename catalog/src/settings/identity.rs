//! Settings of logins, tokens and registration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Secret, positive_u32, positive_u64};

/// Who may log in, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdentitySettings {
    /// Who may register.
    pub registration: Registration,
    /// The key that seals people's data and the signing keys: 32 bytes in base64 (`openssl rand -base64 32`). Processes
    /// that share a catalog need the same one. Without it, `master.key` in the data directory, which is made when there is
    /// none. Without the right key nobody can log in and no e-mail address can be read; API keys work.
    pub master_key: Option<Secret>,
    /// `iss` of access tokens.
    pub issuer: String,
    /// `aud` of access tokens.
    pub audience: String,
    /// How long an access token is good, in seconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub access_seconds: u64,
    /// How long a login lasts while its refresh tokens are used, in days.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub session_days: u32,
    /// How long a signing key signs before a new one takes its place, in days.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub signing_key_days: u32,
    /// How much the clocks of two processes may differ, in seconds.
    pub clock_skew_seconds: u64,
    /// The shortest password, in characters.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub password_chars_min: u32,
    /// After how many wrong passwords in a row an account is locked.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub lockout_failures: u32,
    /// For how long, in seconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub lockout_seconds: u64,
    /// How many logins and registrations one network address may try in a minute.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub attempts_per_minute: u32,
    /// How long an invite can be taken, in hours.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub invite_hours: u32,
    /// How long the audit trail is kept, in days.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub audit_days: u32,
    /// Logging in with an account of another provider.
    pub oidc: OidcSettings,
}

/// Logging in with an account of another provider, by OpenID Connect (authorization code with PKCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OidcSettings {
    /// The provider, `https://...`, as it names itself. Without it there is no such login.
    pub issuer: Option<String>,
    /// What the provider knows this server as.
    pub client_id: String,
    pub client_secret: Option<Secret>,
    /// This server's `/api/v1/auth/oidc/callback` as browsers reach it, which the provider must know.
    pub redirect_url: Option<String>,
    /// The tenant whose users log in so.
    pub tenant: String,
    /// Whether somebody who is no user becomes one. Otherwise only users log in whose address the provider has verified.
    pub create_users: bool,
    /// The roles of users that are made so.
    pub roles: Vec<String>,
}

impl Default for OidcSettings {
    fn default() -> Self {
        Self {
            issuer: None,
            client_id: "voiceassistant".to_owned(),
            client_secret: None,
            redirect_url: None,
            tenant: "default".to_owned(),
            create_users: false,
            roles: vec!["viewer".to_owned()],
        }
    }
}

/// Who may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// Anybody: with an invite into its tenant, without one as the owner of a new tenant.
    Open,
    /// Whoever has an invite.
    #[default]
    Invite,
    /// Nobody; users are created by those who may.
    Closed,
}

impl Default for IdentitySettings {
    fn default() -> Self {
        Self {
            registration: Registration::default(),
            master_key: None,
            issuer: "voiceassistant".to_owned(),
            audience: "voiceassistant".to_owned(),
            access_seconds: 900,
            session_days: 30,
            signing_key_days: 30,
            clock_skew_seconds: 30,
            password_chars_min: 10,
            lockout_failures: 5,
            lockout_seconds: 300,
            attempts_per_minute: 30,
            invite_hours: 72,
            audit_days: 365,
            oidc: OidcSettings::default(),
        }
    }
}
