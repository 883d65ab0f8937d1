//! Access tokens: JSON Web Tokens signed with Ed25519 (`alg` EdDSA, RFC 8037), and the key set that others verify them with.
//!
//! The algorithm is ours, never the token's: a header that names another one, or none, is refused before anything else is
//! looked at. Keys come from the catalog, so a token of one process is good in all that share it. A key that is not known
//! is asked for once a second at most, so that invented `kid`s do not become load.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use va_catalog::Catalog;
use va_catalog::settings::IdentitySettings;
use va_catalog::store::{CatalogError, Session, SigningKey, SigningTimes, VerifyingKey};

use crate::platform::now_ms;

const ALGORITHM: &str = "EdDSA";
/// `typ` of access tokens.
const TYPE: &str = "JWT";
/// `typ` of what a browser carries during a login elsewhere.
const STATE_TYPE: &str = "va-login";
/// Ours have about 600.
const TOKEN_BYTES_MAX: usize = 4 << 10;
/// How long the list of keys is believed.
const KEYS_MS: i64 = 60_000;
/// How soon it is read again for a key that is not in it.
const KEYS_AGAIN_MS: i64 = 1_000;
const DAY_MS: i64 = 86_400_000;
/// A hundred years: no setting means more.
const SECONDS_MAX: i64 = 3_155_760_000;

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    /// Id of the user.
    pub sub: String,
    pub tenant: String,
    /// Id of the session.
    pub sid: String,
    /// As of when it was issued; what counts is looked up.
    pub roles: Vec<String>,
    /// Seconds since 1970.
    pub iat: i64,
    pub nbf: i64,
    pub exp: i64,
    pub jti: String,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("it is not a JSON Web Token of this server")]
    Malformed,
    #[error("it is not signed with {ALGORITHM}")]
    Algorithm,
    #[error("its signing key is unknown or too old")]
    Key,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it is for another audience")]
    Audience,
    #[error("it is from another issuer")]
    Issuer,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    /// Extensions that must be understood; there are none that we do.
    crit: Option<Value>,
}

/// Issues and verifies access tokens.
pub struct Tokens {
    catalog: Catalog,
    issuer: String,
    audience: String,
    access_seconds: i64,
    skew_seconds: i64,
    times: SigningTimes,
    keys: RwLock<Keys>,
    /// One reader of the catalog at a time.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Keys {
    signing: Option<Arc<SigningKey>>,
    verifying: HashMap<String, VerifyingKey>,
    read_at_ms: i64,
}

impl Tokens {
    pub fn new(catalog: Catalog, settings: &IdentitySettings) -> Self {
        let seconds = |seconds: u64| {
            i64::try_from(seconds)
                .unwrap_or(SECONDS_MAX)
                .min(SECONDS_MAX)
        };
        let (access_seconds, skew_seconds) = (
            seconds(settings.access_seconds),
            seconds(settings.clock_skew_seconds),
        );
        Self {
            catalog,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            access_seconds,
            skew_seconds,
            times: SigningTimes {
                signs_ms: i64::from(settings.signing_key_days) * DAY_MS,
                // As long as its last token is good somewhere, and as the lists of other processes are believed.
                verifies_ms: (access_seconds + 2 * skew_seconds) * 1_000 + 2 * KEYS_MS,
            },
            keys: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// How long a token is good.
    pub fn access_seconds(&self) -> i64 {
        self.access_seconds
    }

    /// A token of the session, from now on.
    pub async fn issue(&self, session: &Session) -> Result<String, CatalogError> {
        let key = self.signing_key(false).await?;
        let now = now_ms() / 1_000;
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: session.user.to_string(),
            tenant: session.tenant.to_string(),
            sid: session.id.to_string(),
            roles: session.roles.clone(),
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.access_seconds),
            jti: uuid::Uuid::now_v7().simple().to_string(),
        };
        Ok(sign(&key, &header(&key, TYPE), &json!(claims)))
    }

    /// What the token says, when it is ours, and good now.
    pub async fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let claims: Claims = self.signed_by_us(token, TYPE).await?;
        self.check(&claims, now_ms() / 1_000)?;
        Ok(claims)
    }

    /// Signs what a browser carries for us. It is no access token: its type is another one.
    pub async fn sign_state<T: Serialize>(&self, state: &T) -> Result<String, CatalogError> {
        let key = self.signing_key(false).await?;
        Ok(sign(&key, &header(&key, STATE_TYPE), &json!(state)))
    }

    /// What [`Tokens::sign_state`] signed. Its time is the caller's to check.
    pub async fn verify_state<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        self.signed_by_us(token, STATE_TYPE).await
    }

    /// The body of a token of that type, when a key of ours signed it.
    async fn signed_by_us<T: DeserializeOwned>(
        &self,
        token: &str,
        expected: &str,
    ) -> Result<T, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let mut parts = token.split('.');
        let (Some(head), Some(body), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let header: Header = part(head)?;
        if header.alg != ALGORITHM {
            return Err(TokenError::Algorithm);
        }
        if header.typ.as_deref() != Some(expected) || header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let kid = header.kid.ok_or(TokenError::Key)?;
        let key = self.verifying_key(&kid).await?.ok_or(TokenError::Key)?;
        let signature = decode(signature)?;
        let signed = &token.as_bytes()[..head.len() + 1 + body.len()];
        UnparsedPublicKey::new(&ED25519, &key.public_key)
            .verify(signed, &signature)
            .map_err(|_| TokenError::Signature)?;
        part(body)
    }

    fn check(&self, claims: &Claims, now: i64) -> Result<(), TokenError> {
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if claims.aud != self.audience {
            return Err(TokenError::Audience);
        }
        if claims.exp.saturating_add(self.skew_seconds) <= now {
            return Err(TokenError::Expired);
        }
        if claims.nbf.max(claims.iat).saturating_sub(self.skew_seconds) > now {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }

    /// The keys that others verify our tokens with (RFC 7517).
    pub async fn key_set(&self) -> Result<Value, CatalogError> {
        self.read_keys(KEYS_AGAIN_MS).await?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<&VerifyingKey> = keys.verifying.values().collect();
        keys.sort_by(|a, b| b.id.cmp(&a.id));
        let keys: Vec<Value> = keys
            .into_iter()
            .map(|key| {
                json!({
                    "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM, "kid": key.id,
                    "x": URL_SAFE_NO_PAD.encode(&key.public_key),
                })
            })
            .collect();
        Ok(json!({"keys": keys}))
    }

    /// Signs with a new key from now on. Tokens of the old one are good until they end. Returns its id.
    pub async fn rotate(&self) -> Result<String, CatalogError> {
        Ok(self.signing_key(true).await?.id.clone())
    }

    async fn signing_key(&self, anew: bool) -> Result<Arc<SigningKey>, CatalogError> {
        let known = || {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let now = now_ms();
            let fresh = now - keys.read_at_ms < KEYS_MS;
            keys.signing
                .clone()
                .filter(|key| fresh && key.signs_until > now)
        };
        if !anew && let Some(key) = known() {
            return Ok(key);
        }
        let key = Arc::new(self.catalog.signing_key(self.times, anew).await?);
        self.keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .signing = Some(key.clone());
        self.read_keys(0).await?;
        Ok(key)
    }

    async fn verifying_key(&self, kid: &str) -> Result<Option<VerifyingKey>, CatalogError> {
        let known = |older_than_ms: i64| {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let fresh = now_ms() - keys.read_at_ms < older_than_ms;
            fresh.then(|| keys.verifying.get(kid).cloned()).flatten()
        };
        let mut found = known(KEYS_MS);
        if found.is_none() {
            self.read_keys(KEYS_AGAIN_MS).await?;
            found = known(i64::MAX);
        }
        Ok(found.filter(|key| key.verifies_until > now_ms()))
    }

    /// Reads the keys when what is known is older than that.
    async fn read_keys(&self, older_than_ms: i64) -> Result<(), CatalogError> {
        let _one = self.reading.lock().await;
        let age = now_ms()
            - self
                .keys
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .read_at_ms;
        if (0..older_than_ms).contains(&age) {
            return Ok(());
        }
        let read = self.catalog.verifying_keys_all_tenants().await?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // Another process may have been told to sign with a new one; then so do we.
        let newest = read.first().map(|key| key.id.clone());
        keys.signing = keys
            .signing
            .take()
            .filter(|key| Some(&key.id) == newest.as_ref());
        keys.verifying = read.into_iter().map(|key| (key.id.clone(), key)).collect();
        keys.read_at_ms = now_ms();
        Ok(())
    }
}

fn header(key: &SigningKey, r#type: &str) -> Value {
    json!({"alg": ALGORITHM, "typ": r#type, "kid": key.id})
}

fn sign(key: &SigningKey, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = key.pair.sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| TokenError::Malformed)
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(text)?).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use va_catalog::store::{MasterKey, SessionId, UserId};
    use va_catalog::{Internal, Permissions, TenantId, TenantScope};

    struct World {
        tokens: Tokens,
        session: Session,
        _folder: tempfile::TempDir,
    }

    async fn world() -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = Catalog::open(folder.path().join("catalog.db"))
            .await
            .expect("a catalog");
        let key = MasterKey::ensure(&folder.path().join("master.key")).expect("a key");
        let catalog = catalog.unlocked(key).await.expect("the key fits");
        World {
            tokens: Tokens::new(catalog, &IdentitySettings::default()),
            session: Session {
                id: SessionId::from("ses_1"),
                tenant: TenantScope::internal(TenantId::new("甲").expect("a name"), Internal::Test),
                user: UserId::from("usr_1"),
                roles: vec!["viewer".to_owned()],
                permissions: Permissions::NONE,
            },
            _folder: folder,
        }
    }

    async fn refused(world: &World, token: &str) -> String {
        let refused = world.tokens.verify(token).await;
        refused
            .map(|claims| format!("accepted {claims:?}"))
            .unwrap_or_else(|e| e.to_string())
    }

    #[tokio::test]
    async fn what_is_issued_is_accepted_and_what_is_forged_is_not() {
        let world = world().await;
        let token = world.tokens.issue(&world.session).await.expect("a token");
        let claims = world.tokens.verify(&token).await.expect("accepted");
        assert_eq!(
            (claims.tenant.as_str(), claims.sub.as_str()),
            ("甲", "usr_1")
        );
        assert_eq!(claims.exp - claims.iat, 900);

        let key = world.tokens.signing_key(false).await.expect("a key");
        let header = |alg: &str, kid: &str| json!({"alg": alg, "typ": "JWT", "kid": kid});
        let good = json!(claims);
        let with = |field: &str, value: Value| {
            let mut claims = good.clone();
            claims[field] = value;
            sign(&key, &header(ALGORITHM, &key.id), &claims)
        };
        let now = now_ms() / 1_000;
        for (token, expected) in [
            (with("iss", json!("elsewhere")), "another issuer"),
            (with("aud", json!("elsewhere")), "another audience"),
            // Lists and missing claims are not what we issue.
            (
                with("aud", json!(["voiceassistant"])),
                "not a JSON Web Token of this",
            ),
            (with("exp", Value::Null), "not a JSON Web Token of this"),
            (with("exp", json!(now - 31)), "expired"),
            (with("nbf", json!(now + 60)), "not valid yet"),
            (with("iat", json!(now + 60)), "not valid yet"),
            (
                sign(&key, &header("none", &key.id), &good),
                "not signed with EdDSA",
            ),
            (
                sign(&key, &header("HS256", &key.id), &good),
                "not signed with EdDSA",
            ),
            (
                sign(&key, &header("eddsa", &key.id), &good),
                "not signed with EdDSA",
            ),
            (
                sign(&key, &header(ALGORITHM, "sig_x"), &good),
                "signing key is unknown",
            ),
            (
                sign(&key, &json!({"alg": ALGORITHM, "typ": TYPE}), &good),
                "signing key is unknown",
            ),
            (
                sign(
                    &key,
                    &json!({"alg": ALGORITHM, "typ": TYPE, "kid": key.id, "crit": ["x"]}),
                    &good,
                ),
                "not a JSON Web Token of this",
            ),
        ] {
            let error = refused(&world, &token).await;
            assert!(error.contains(expected), "{expected}: {error}");
        }
        // What a browser carries during a login elsewhere is signed too, and is no access token.
        let state = world.tokens.sign_state(&good).await.expect("signed");
        assert!(
            refused(&world, &state)
                .await
                .contains("not a JSON Web Token")
        );
        let carried: Value = world.tokens.verify_state(&state).await.expect("ours");
        assert_eq!(carried, good);
        assert!(world.tokens.verify_state::<Value>(&token).await.is_err());
        // Within the skew of clocks it is still good.
        assert!(
            world
                .tokens
                .verify(&with("exp", json!(now - 5)))
                .await
                .is_ok()
        );
        assert!(
            world
                .tokens
                .verify(&with("nbf", json!(now + 5)))
                .await
                .is_ok()
        );

        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let changed = URL_SAFE_NO_PAD.encode(json!({"sub": "usr_2"}).to_string());
        for (forged, expected) in [
            (format!("{none}.{}.", parts[1]), "not signed with"),
            (
                format!("{}.{changed}.{}", parts[0], parts[2]),
                "signature is wrong",
            ),
            (format!("{}.{}.", parts[0], parts[1]), "signature is wrong"),
            (
                format!("{}.{}.{}", parts[0], parts[1], &parts[2][..80]),
                "signature is wrong",
            ),
            (
                format!("{}.{}.{}=", parts[0], parts[1], parts[2]),
                "not a JSON",
            ),
            (format!("{token}.x"), "not a JSON"),
            ("..".to_owned(), "not a JSON"),
            (
                format!("{}.{}.{}", parts[0], "a".repeat(5_000), parts[2]),
                "not a JSON",
            ),
        ] {
            let error = refused(&world, &forged).await;
            assert!(error.contains(expected), "{forged}: {error}");
        }
        // Signed by somebody else's key under our key's name.
        let other = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a pair");
        let head = &token[..token.rfind('.').expect("a dot")];
        let forged = format!(
            "{head}.{}",
            URL_SAFE_NO_PAD.encode(other.sign(head.as_bytes()))
        );
        assert!(
            refused(&world, &forged)
                .await
                .contains("signature is wrong")
        );
    }

    #[tokio::test]
    async fn keys_rotate_and_are_published() {
        let world = world().await;
        let token = world.tokens.issue(&world.session).await.expect("a token");
        let set = world.tokens.key_set().await.expect("a set");
        let old = set["keys"][0].clone();
        assert_eq!(
            (&old["kty"], &old["crv"], &old["alg"]),
            (&json!("OKP"), &json!("Ed25519"), &json!("EdDSA"))
        );
        assert!(old.get("d").is_none(), "the private half stays here");
        // As any other program would verify it.
        let x = URL_SAFE_NO_PAD
            .decode(old["x"].as_str().expect("a key"))
            .expect("base64");
        let (signed, signature) = token.rsplit_once('.').expect("a dot");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        UnparsedPublicKey::new(&ED25519, x)
            .verify(signed.as_bytes(), &signature)
            .expect("it fits");

        let new = world.tokens.rotate().await.expect("a new key");
        assert_ne!(old["kid"], json!(new));
        let next = world.tokens.issue(&world.session).await.expect("a token");
        assert!(
            world.tokens.verify(&token).await.is_ok(),
            "the old key is still believed"
        );
        assert!(world.tokens.verify(&next).await.is_ok());
        let set = world.tokens.key_set().await.expect("a set");
        let kids: Vec<&Value> = set["keys"]
            .as_array()
            .expect("keys")
            .iter()
            .map(|k| &k["kid"])
            .collect();
        assert_eq!(kids, [&json!(new), &old["kid"]]);
    }
}
