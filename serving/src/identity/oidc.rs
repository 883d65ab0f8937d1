//! Logging in with an account of another provider: OpenID Connect, authorization code with PKCE.
//!
//! ```text
//! browser ─► /auth/oidc/login ─► provider ─► /auth/oidc/callback?code&state ─► tokens of ours
//!             cookie: state, nonce, verifier (signed by us)        │ code + verifier
//!                                                                  ▼
//!                                                     provider: ID token ─► verified ─► user
//! ```
//!
//! Nothing is kept between the two calls but the cookie, so they may meet different processes. An ID token is believed when
//! its signature fits a key of the provider, and issuer, audience, time and nonce are right. Who logs in: the user that the
//! account is linked with; else the one whose address the provider has verified; else, where the settings say so, a new one.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use va_catalog::TenantId;
use va_catalog::settings::OidcSettings;
use va_catalog::store::{CatalogError, NewUser, UserId, UserState};

use super::login::{LoggedIn, LoginError, Note, Origin};
use super::{Identity, TokenError, Tokens};
use crate::percent::encode;
use crate::platform::now_ms;

/// How long somebody may take at the provider.
pub const LOGIN_SECONDS: i64 = 600;
/// How long what the provider says of itself is believed.
const PROVIDER_MS: i64 = 3_600_000;
/// How soon its keys are read again for one that is not among them.
const KEYS_AGAIN_MS: i64 = 10_000;
const TIMEOUT: Duration = Duration::from_secs(10);
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("logging in with another provider is not set up: see `identity.oidc`")]
    Off,
    #[error(
        "this login was not begun here, or too long ago; begin again at /api/v1/auth/oidc/login"
    )]
    State,
    #[error("the provider says `{0}`; begin again at /api/v1/auth/oidc/login")]
    Refused(String),
    #[error("the provider `{issuer}` cannot be asked: {reason}")]
    Provider { issuer: String, reason: String },
    #[error("the provider's ID token is not accepted: {0}")]
    Token(&'static str),
    #[error("nobody here has this account; ask somebody who may create users")]
    Stranger,
    #[error(transparent)]
    Login(#[from] LoginError),
}

impl From<CatalogError> for OidcError {
    fn from(error: CatalogError) -> Self {
        Self::Login(error.into())
    }
}

/// What goes with the browser to the provider and back.
#[derive(Serialize, Deserialize)]
struct Begun {
    state: String,
    nonce: String,
    verifier: String,
    /// Seconds since 1970.
    exp: i64,
}

/// What comes back in the callback.
#[derive(Debug, Default)]
pub struct Returned {
    pub code: Option<String>,
    pub state: Option<String>,
    pub issuer: Option<String>,
    pub error: Option<String>,
}

/// The provider, and how to talk to it.
pub struct Oidc {
    settings: OidcSettings,
    skew_seconds: i64,
    http: OnceLock<reqwest::Client>,
    known: tokio::sync::Mutex<Option<Provider>>,
}

#[derive(Clone)]
struct Provider {
    authorization_endpoint: String,
    token_endpoint: String,
    userinfo_endpoint: Option<String>,
    jwks_uri: String,
    keys: HashMap<String, Key>,
    read_at_ms: i64,
    keys_read_at_ms: i64,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    userinfo_endpoint: Option<String>,
    jwks_uri: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Key {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// An account at the provider.
struct Account {
    subject: String,
    email: Option<String>,
    email_verified: bool,
    name: Option<String>,
}

impl Oidc {
    pub fn new(settings: OidcSettings, skew_seconds: i64) -> Self {
        Self {
            settings,
            skew_seconds,
            http: OnceLock::new(),
            known: tokio::sync::Mutex::default(),
        }
    }

    fn issuer(&self) -> Result<&str, OidcError> {
        self.settings.issuer.as_deref().ok_or(OidcError::Off)
    }

    fn redirect_url(&self) -> Result<&str, OidcError> {
        self.settings.redirect_url.as_deref().ok_or_else(|| {
            self.failed(
                "`identity.oidc.redirect_url` is not set: how do browsers reach this server?",
            )
        })
    }

    /// Whether the cookie may cross TLS only.
    pub fn is_secure(&self) -> bool {
        let url = self.settings.redirect_url.as_deref();
        url.is_some_and(|url| url.starts_with("https://"))
    }

    /// Where to send the browser, and the cookie for it.
    async fn begin(
        &self,
        tokens: &Tokens,
        hint: Option<&str>,
    ) -> Result<(String, String), OidcError> {
        self.issuer()?;
        let redirect = self.redirect_url()?;
        let provider = self.provider(None).await?;
        let begun = Begun {
            state: random()?,
            nonce: random()?,
            verifier: random()?,
            exp: now_ms() / 1_000 + LOGIN_SECONDS,
        };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&begun.verifier));
        let mut fields = vec![
            ("response_type", "code"),
            ("client_id", self.settings.client_id.as_str()),
            ("redirect_uri", redirect),
            ("scope", "openid email profile"),
            ("state", begun.state.as_str()),
            ("nonce", begun.nonce.as_str()),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ];
        if let Some(hint) = hint {
            fields.push(("login_hint", hint));
        }
        let query = form(&fields);
        let endpoint = &provider.authorization_endpoint;
        let joint = if endpoint.contains('?') { '&' } else { '?' };
        let cookie = tokens.sign_state(&begun).await?;
        Ok((format!("{endpoint}{joint}{query}"), cookie))
    }

    /// The account, when the provider says so.
    async fn finish(
        &self,
        tokens: &Tokens,
        cookie: &str,
        returned: &Returned,
    ) -> Result<Account, OidcError> {
        let issuer = self.issuer()?;
        let begun: Begun = match tokens.verify_state(cookie).await {
            Ok(begun) => begun,
            Err(TokenError::Catalog(error)) => return Err(error.into()),
            Err(_) => return Err(OidcError::State),
        };
        let same = returned.state.as_deref() == Some(begun.state.as_str());
        if !same || begun.exp <= now_ms() / 1_000 {
            return Err(OidcError::State);
        }
        // Another provider's reply must not be taken for this one's (RFC 9207).
        if returned
            .issuer
            .as_deref()
            .is_some_and(|other| other != issuer)
        {
            return Err(OidcError::State);
        }
        if let Some(error) = &returned.error {
            return Err(OidcError::Refused(error.chars().take(100).collect()));
        }
        let code = returned.code.as_deref().ok_or(OidcError::State)?;
        let provider = self.provider(None).await?;
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.redirect_url()?),
            ("code_verifier", begun.verifier.as_str()),
        ];
        let mut request = self.http().post(&provider.token_endpoint);
        match &self.settings.client_secret {
            Some(secret) => {
                // Both are encoded as in a form first (RFC 6749, 2.3.1).
                let (id, secret) = (encode(&self.settings.client_id), encode(secret.expose()));
                request = request.basic_auth(id, Some(secret));
            }
            None => fields.push(("client_id", self.settings.client_id.as_str())),
        }
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form(&fields));
        let reply = self.json(request).await?;
        let token = reply["id_token"]
            .as_str()
            .ok_or(OidcError::Token("there is none in the reply"))?;
        let mut claims = self.verify(token, &begun.nonce).await?;
        let subject = claims["sub"]
            .as_str()
            .filter(|subject| !subject.is_empty())
            .ok_or(OidcError::Token("it names no subject"))?
            .to_owned();
        if claims["email"].is_null()
            && let (Some(endpoint), Some(access)) =
                (&provider.userinfo_endpoint, reply["access_token"].as_str())
        {
            let said = self
                .json(self.http().get(endpoint).bearer_auth(access))
                .await?;
            if said["sub"].as_str() != Some(subject.as_str()) {
                return Err(OidcError::Token("the user info is about somebody else"));
            }
            claims = said;
        }
        Ok(Account {
            subject,
            email: claims["email"].as_str().map(ToOwned::to_owned),
            email_verified: claims["email_verified"] == true,
            name: claims["name"].as_str().map(ToOwned::to_owned),
        })
    }

    /// The claims of an ID token that is the provider's, for us, for now and for this login.
    async fn verify(&self, token: &str, nonce: &str) -> Result<Value, OidcError> {
        let parts: Vec<&str> = token.split('.').collect();
        let [head, body, signature] = parts[..] else {
            return Err(OidcError::Token("it is not a JSON Web Token"));
        };
        let header = part(head)?;
        let algorithm = header["alg"].as_str().unwrap_or_default();
        let kid = header["kid"].as_str();
        let signature = decode(signature)?;
        let signed = format!("{head}.{body}");
        let provider = self.provider(Some(kid.unwrap_or_default())).await?;
        let candidates: Vec<&Key> = match kid {
            Some(kid) => provider.keys.get(kid).into_iter().collect(),
            None => provider.keys.values().collect(),
        };
        let fits = candidates
            .into_iter()
            .any(|key| key.verifies(algorithm, signed.as_bytes(), &signature));
        if !fits {
            return Err(OidcError::Token(
                "its signature fits no key of the provider",
            ));
        }
        let claims = part(body)?;
        check_claims(
            &claims,
            self.issuer()?,
            &self.settings.client_id,
            nonce,
            self.skew_seconds,
        )?;
        Ok(claims)
    }

    /// What the provider says of itself, with its keys; read again when it is old, or for a key that is not known.
    async fn provider(&self, kid: Option<&str>) -> Result<Provider, OidcError> {
        let issuer = self.issuer()?;
        // Who asks meanwhile waits, and finds the answer.
        let mut known = self.known.lock().await;
        let now = now_ms();
        let fresh = |at: i64, lasts: i64| (0..lasts).contains(&(now - at));
        let mut provider = match known.clone() {
            Some(provider) if fresh(provider.read_at_ms, PROVIDER_MS) => provider,
            _ => {
                let url = format!(
                    "{}/.well-known/openid-configuration",
                    issuer.trim_end_matches('/')
                );
                let said = self.json(self.http().get(url)).await?;
                let said: Discovered = serde_json::from_value(said)
                    .map_err(|error| self.failed(format!("its configuration: {error}")))?;
                if said.issuer != issuer {
                    return Err(self.failed(format!("it calls itself `{}`", said.issuer)));
                }
                Provider {
                    authorization_endpoint: said.authorization_endpoint,
                    token_endpoint: said.token_endpoint,
                    userinfo_endpoint: said.userinfo_endpoint,
                    jwks_uri: said.jwks_uri,
                    keys: HashMap::new(),
                    read_at_ms: now,
                    keys_read_at_ms: 0,
                }
            }
        };
        let missing = kid.is_some_and(|kid| !provider.keys.contains_key(kid));
        if missing && !fresh(provider.keys_read_at_ms, KEYS_AGAIN_MS) {
            let set = self.json(self.http().get(&provider.jwks_uri)).await?;
            provider.keys = keys_of(&set);
            provider.keys_read_at_ms = now;
        }
        *known = Some(provider.clone());
        Ok(provider)
    }

    fn http(&self) -> &reqwest::Client {
        self.http.get_or_init(|| {
            reqwest::Client::builder()
                .timeout(TIMEOUT)
                // A provider that sends us elsewhere is not the one of the settings.
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap_or_default()
        })
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value, OidcError> {
        let asked = request.header("accept", "application/json").send().await;
        let mut response = asked.map_err(|error| self.failed(error.without_url()))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| self.failed(error.without_url()))?
        {
            if body.len() + piece.len() > REPLY_BYTES_MAX {
                return Err(self.failed("its reply is too long"));
            }
            body.extend_from_slice(&piece);
        }
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if !status.is_success() {
            let said = value["error"].as_str().unwrap_or("no reason");
            return Err(self.failed(format!("{status}: {said}")));
        }
        Ok(value)
    }

    fn failed(&self, reason: impl std::fmt::Display) -> OidcError {
        OidcError::Provider {
            issuer: self.settings.issuer.clone().unwrap_or_default(),
            reason: reason.to_string(),
        }
    }
}

impl Key {
    /// The key decides which algorithm is right; the token only has to name that one.
    fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, "RS256") => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            (Self::P256(point), "ES256") => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            (Self::Ed25519(key), "EdDSA") => UnparsedPublicKey::new(&ED25519, key)
                .verify(message, signature)
                .is_ok(),
            _ => false,
        }
    }
}

/// The keys of a JWK set that sign and that we know how to use.
fn keys_of(set: &Value) -> HashMap<String, Key> {
    let keys = set["keys"].as_array().into_iter().flatten();
    keys.filter(|key| key["use"].as_str().is_none_or(|r#use| r#use == "sig"))
        .filter_map(|key| {
            let bytes = |field: &str| URL_SAFE_NO_PAD.decode(key[field].as_str()?).ok();
            let made = match (key["kty"].as_str()?, key["crv"].as_str()) {
                ("RSA", _) => Key::Rsa {
                    n: bytes("n")?,
                    e: bytes("e")?,
                },
                ("EC", Some("P-256")) => {
                    // Uncompressed point.
                    let mut point = vec![4];
                    point.extend(bytes("x")?);
                    point.extend(bytes("y")?);
                    Key::P256(point)
                }
                ("OKP", Some("Ed25519")) => Key::Ed25519(bytes("x")?),
                _ => return None,
            };
            Some((key["kid"].as_str().unwrap_or_default().to_owned(), made))
        })
        .collect()
}

fn check_claims(
    claims: &Value,
    issuer: &str,
    client: &str,
    nonce: &str,
    skew: i64,
) -> Result<(), OidcError> {
    let now = now_ms() / 1_000;
    let problem = if claims["iss"] != issuer {
        "it is from another issuer"
    } else if !is_for(claims, client) {
        "it is for another client"
    } else if claims["nonce"] != nonce {
        "it is of another login"
    } else if claims["exp"].as_i64().is_none_or(|exp| exp + skew <= now) {
        "it has expired"
    } else if ["iat", "nbf"]
        .iter()
        .any(|claim| claims[claim].as_i64().is_some_and(|at| at - skew > now))
    {
        "it is not valid yet"
    } else {
        return Ok(());
    };
    Err(OidcError::Token(problem))
}

/// One audience, or several of which we are the one that it was issued to.
fn is_for(claims: &Value, client: &str) -> bool {
    match &claims["aud"] {
        Value::String(audience) => audience == client,
        Value::Array(audiences) => {
            audiences.iter().any(|audience| audience == client)
                && (audiences.len() == 1 || claims["azp"] == client)
        }
        _ => false,
    }
}

impl Identity {
    /// Where to send the browser, and the cookie for it; `hint` is who probably logs in.
    pub async fn oidc_begin(&self, hint: Option<&str>) -> Result<(String, String), OidcError> {
        self.open_here()?;
        self.oidc.begin(&self.tokens, hint).await
    }

    /// Logs in whom the provider sent back.
    pub async fn oidc_finish(
        &self,
        cookie: &str,
        returned: &Returned,
        origin: &Origin,
    ) -> Result<LoggedIn, OidcError> {
        self.admit(origin).await?;
        self.open_here()?;
        let issuer = self.oidc.issuer()?.to_owned();
        let account = self.oidc.finish(&self.tokens, cookie, returned).await?;
        let tenant =
            TenantId::new(self.oidc.settings.tenant.as_str()).map_err(CatalogError::from)?;
        let user = self.user_of(&tenant, &issuer, &account).await?;
        let logged_in = self.begin(&tenant, &user).await?;
        let note = Note {
            actor: "nobody",
            action: "auth.oidc",
            target: Some(user.as_str()),
            succeeded: true,
            detail: None,
        };
        self.note(&tenant, origin, note).await;
        Ok(logged_in)
    }

    async fn user_of(
        &self,
        tenant: &TenantId,
        issuer: &str,
        account: &Account,
    ) -> Result<UserId, OidcError> {
        let subject = &account.subject;
        let linked = self.catalog.linked_user(tenant, issuer, subject).await?;
        if let Some((user, state)) = linked {
            return match state {
                UserState::Active => Ok(user),
                UserState::Disabled => Err(OidcError::Stranger),
            };
        }
        // An address that nobody verified may be anybody's.
        let email = account.email.as_deref().filter(|_| account.email_verified);
        let email = email.ok_or(OidcError::Stranger)?;
        let user = match self.catalog.login_record(tenant, email).await? {
            Some(record) if record.state == UserState::Active => record.id,
            Some(_) => return Err(OidcError::Stranger),
            None if self.oidc.settings.create_users => {
                let new = NewUser {
                    email,
                    name: account.name.as_deref(),
                    roles: &self.oidc.settings.roles,
                    ..NewUser::default()
                };
                self.catalog.create_user(tenant, &new).await?.id
            }
            None => return Err(OidcError::Stranger),
        };
        self.catalog
            .link_user(tenant, &user, issuer, subject)
            .await?;
        Ok(user)
    }
}

fn random() -> Result<String, OidcError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        OidcError::Login(LoginError::Password(super::PasswordError::Failed(
            "the system gives no random bytes".to_owned(),
        )))
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn decode(text: &str) -> Result<Vec<u8>, OidcError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| OidcError::Token("it is not a JSON Web Token"))
}

fn part(text: &str) -> Result<Value, OidcError> {
    serde_json::from_slice(&decode(text)?)
        .map_err(|_| OidcError::Token("it is not a JSON Web Token"))
}

fn form(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    fields.join("&")
}

#[cfg(test)]
mod tests {
    use ring::signature::Ed25519KeyPair;
    use ring::signature::KeyPair;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_keys_own_algorithm_counts() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).expect("a pair");
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let set = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "a", "use": "sig", "x": x},
            {"kty": "OKP", "crv": "Ed25519", "kid": "enc", "use": "enc", "x": x},
            {"kty": "RSA", "kid": "b", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "kid": "c", "x": "AQ", "y": "Ag"},
            {"kty": "oct", "kid": "d", "k": "AQAB"},
            {"kty": "RSA", "kid": "e"},
        ]});
        let keys = keys_of(&set);
        let mut ids: Vec<&str> = keys.keys().map(String::as_str).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(keys["c"], Key::P256(vec![4, 1, 2]));
        let signature = pair.sign(b"x");
        assert!(keys["a"].verifies("EdDSA", b"x", signature.as_ref()));
        for algorithm in ["none", "HS256", "RS256", "ES256", "eddsa", ""] {
            assert!(
                !keys["a"].verifies(algorithm, b"x", signature.as_ref()),
                "{algorithm}"
            );
        }
        assert!(!keys["a"].verifies("EdDSA", b"y", signature.as_ref()));
        assert!(!keys["b"].verifies("RS256", b"x", signature.as_ref()));
    }

    #[test]
    fn an_id_token_is_for_us_now_and_for_this_login() {
        let now = now_ms() / 1_000;
        let good =
            json!({"iss": "https://id", "aud": "va", "nonce": "n", "exp": now + 60, "iat": now});
        let check = |field: &str, value: Value| {
            let mut claims = good.clone();
            claims[field] = value;
            check_claims(&claims, "https://id", "va", "n", 5).map_err(|error| error.to_string())
        };
        assert_eq!(check("x", json!(1)), Ok(()));
        assert_eq!(check("aud", json!(["va"])), Ok(()));
        assert_eq!(check("exp", json!(now - 3)), Ok(()));
        for (field, value, expected) in [
            ("iss", json!("https://id/"), "another issuer"),
            ("aud", json!("vb"), "another client"),
            ("aud", json!(["va", "vb"]), "another client"),
            ("aud", Value::Null, "another client"),
            ("nonce", json!("m"), "another login"),
            ("nonce", Value::Null, "another login"),
            ("exp", json!(now - 6), "expired"),
            ("exp", json!("soon"), "expired"),
            ("iat", json!(now + 60), "not valid yet"),
            ("nbf", json!(now + 60), "not valid yet"),
        ] {
            let error = check(field, value).expect_err(field);
            assert!(error.contains(expected), "{field}: {error}");
        }
        assert_eq!(
            form(&[("a", "x y&z"), ("b", "文")]),
            "a=x%20y%26z&b=%E6%96%87"
        );
    }
}
