//! Sealing what must not be read from a stolen database: envelope encryption and the blind index.
//!
//! ```text
//! master key (file, setting)  ──seals──►  data key of a tenant (table `data_keys`)  ──seals──►  e-mail, name, phone
//!          └──derives──►  key of the blind index: HMAC(tenant, normalised e-mail), by which an address is found
//! ```
//!
//! AES-256-GCM with a random nonce; what is sealed is bound to its place (tenant, row, column), so a sealed value that is
//! copied elsewhere does not open. Replacing the master key means sealing the few data keys anew, not the rows.
//! Who holds the database alone sees that two rows of one tenant have the same address, and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use super::database::Catalog;
use super::error::CatalogError;
use super::keys::{restrict, write_private};
use super::query::query;
use crate::ids::TenantId;

const KEY_LEN: usize = 32;
/// In front of what is sealed, so that another way of sealing can follow.
const VERSION: &str = "v1.";
/// Data keys that are remembered; beyond it they are read again.
const CACHED_MAX: usize = 10_000;

/// The key above all others. It does not print.
pub struct MasterKey {
    seals: LessSafeKey,
    blind: hmac::Key,
    fingerprint: String,
    /// Opened data keys.
    data_keys: Mutex<HashMap<TenantId, Arc<LessSafeKey>>>,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.fingerprint)
    }
}

impl MasterKey {
    /// The key of `text`: 32 bytes in base64. No error shows the text.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let text = text.trim();
        let bytes = STANDARD
            .decode(text)
            .or_else(|_| URL_SAFE_NO_PAD.decode(text))
            .ok()
            .filter(|bytes| bytes.len() == KEY_LEN)
            .ok_or_else(|| {
                CatalogError::Invalid(
                    "the master key is not 32 bytes in base64: make one with `openssl rand -base64 32`".to_owned(),
                )
            })?;
        Self::from_bytes(&bytes)
    }

    /// The key in the file, which is made (mode 0600) when there is none.
    pub fn ensure(path: &Path) -> Result<Self, CatalogError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                restrict(path)?;
                Self::parse(&text)
                    .map_err(|error| CatalogError::Locked(format!("`{}`: {error}", path.display())))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = STANDARD.encode(random::<KEY_LEN>()?);
                write_private(path, &text).map_err(|error| {
                    CatalogError::storage(
                        format!("write the master key `{}`", path.display()),
                        error,
                    )
                })?;
                Self::parse(&text)
            }
            Err(error) => Err(CatalogError::storage(
                format!("read the master key `{}`", path.display()),
                error,
            )),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CatalogError> {
        // The master key is uniformly random, so a keyed hash of a purpose is a key for that purpose.
        let root = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let derive = |purpose: &str| hmac::sign(&root, purpose.as_bytes());
        let fingerprint = derive("va fingerprint 1");
        Ok(Self {
            seals: aes_key(derive("va seal 1").as_ref())?,
            blind: hmac::Key::new(hmac::HMAC_SHA256, derive("va blind index 1").as_ref()),
            fingerprint: fingerprint.as_ref()[..8]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            data_keys: Mutex::default(),
        })
    }

    /// Tells keys apart without telling anything about them.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn seal(&self, place: &str, bytes: &[u8]) -> Result<String, CatalogError> {
        seal(&self.seals, place, bytes)
    }

    pub(super) fn open(&self, place: &str, text: &str) -> Result<Vec<u8>, CatalogError> {
        open(&self.seals, place, text)
    }

    /// What stands for the normalised address in the index.
    pub(super) fn blind(&self, tenant: &TenantId, email: &str) -> String {
        let mut context = hmac::Context::with_key(&self.blind);
        for part in [tenant.as_str(), email] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        URL_SAFE_NO_PAD.encode(context.sign())
    }
}

/// Seals and opens the columns of one tenant.
#[derive(Clone)]
pub(super) struct TenantSeal {
    key: Arc<LessSafeKey>,
}

impl TenantSeal {
    pub fn seal(&self, place: &str, text: &str) -> Result<String, CatalogError> {
        seal(&self.key, place, text.as_bytes())
    }

    pub fn open(&self, place: &str, sealed: &str) -> Result<String, CatalogError> {
        let bytes = open(&self.key, place, sealed)?;
        String::from_utf8(bytes).map_err(|_| damaged(place))
    }
}

impl Catalog {
    /// The same catalog with the key that opens people's data. [`CatalogError::Locked`] when the data was sealed with
    /// another one.
    pub async fn unlocked(&self, master: MasterKey) -> Result<Self, CatalogError> {
        let catalog = self.with_master(master);
        // The default tenant is always there, and so tells whether this is the key.
        catalog.tenant_seal(&TenantId::default_tenant()).await?;
        Ok(catalog)
    }

    /// Whether something was sealed already, so that only the key of that time is of use.
    pub async fn is_sealed(&self) -> Result<bool, CatalogError> {
        let stored = self.stored_data_key(&TenantId::default_tenant()).await?;
        Ok(stored.is_some())
    }

    pub(super) fn master(&self) -> Result<&MasterKey, CatalogError> {
        self.master_key().ok_or_else(|| {
            CatalogError::Locked("the catalog was opened without its master key".to_owned())
        })
    }

    /// What seals the tenant's columns. Not to be called inside a transaction: it may write.
    pub(super) async fn tenant_seal(&self, tenant: &TenantId) -> Result<TenantSeal, CatalogError> {
        let master = self.master()?;
        if let Some(key) = lock(&master.data_keys).get(tenant).cloned() {
            return Ok(TenantSeal { key });
        }
        let place = format!("data key of {tenant}");
        let stored = match self.stored_data_key(tenant).await? {
            Some(stored) => stored,
            None => {
                let wrapped = master.seal(&place, &random::<KEY_LEN>()?)?;
                self.tenant(tenant).await?;
                // Another process may be first; its key counts then.
                query(
                    "INSERT INTO data_keys (tenant_id, wrapped, master, created_at) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT (tenant_id) DO NOTHING",
                )
                .bind(tenant.as_str())
                .bind(wrapped)
                .bind(master.fingerprint())
                .bind(self.now_ms())
                .execute(self.write_of(tenant))
                .await?;
                self.stored_data_key(tenant)
                    .await?
                    .ok_or_else(|| CatalogError::not_found("tenant", tenant))?
            }
        };
        let (wrapped, sealed_with) = stored;
        if sealed_with != master.fingerprint() {
            return Err(CatalogError::Locked(format!(
                "the data of people was sealed with the master key {sealed_with}, and this process has {}: set \
                 `identity.master_key` (VA_IDENTITY__MASTER_KEY) to the key of the process that came first, which is in \
                 `master.key` of its data directory",
                master.fingerprint()
            )));
        }
        let key = Arc::new(aes_key(&master.open(&place, &wrapped)?)?);
        let mut cached = lock(&master.data_keys);
        if cached.len() >= CACHED_MAX {
            cached.clear();
        }
        cached.insert(tenant.clone(), key.clone());
        Ok(TenantSeal { key })
    }

    /// Seals what is kept outside the catalog for the tenant, a cached reply for example; `place` says where. It opens there
    /// and nowhere else, the columns of the catalog included.
    pub async fn seal_outside(
        &self,
        tenant: &TenantId,
        place: &str,
        bytes: &[u8],
    ) -> Result<String, CatalogError> {
        let tenant_seal = self.tenant_seal(tenant).await?;
        seal(&tenant_seal.key, &outside(place), bytes)
    }

    /// Opens what [`Catalog::seal_outside`] sealed for this tenant and place.
    pub async fn open_outside(
        &self,
        tenant: &TenantId,
        place: &str,
        sealed: &str,
    ) -> Result<Vec<u8>, CatalogError> {
        let tenant_seal = self.tenant_seal(tenant).await?;
        open(&tenant_seal.key, &outside(place), sealed)
    }

    /// The wrapped key, and the fingerprint of what it is wrapped with.
    async fn stored_data_key(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<(String, String)>, CatalogError> {
        let row = query("SELECT wrapped, master FROM data_keys WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(self.read_of(tenant))
            .await?;
        row.map(|row| Ok((row.try_get("wrapped")?, row.try_get("master")?)))
            .transpose()
    }
}

/// No column of the catalog has a name like that.
fn outside(place: &str) -> String {
    format!("outside: {place}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A map of keys cannot be left half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], CatalogError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| CatalogError::storage("ask the system for random bytes", error))?;
    Ok(bytes)
}

fn aes_key(bytes: &[u8]) -> Result<LessSafeKey, CatalogError> {
    UnboundKey::new(&AES_256_GCM, bytes)
        .map(LessSafeKey::new)
        .map_err(|_| damaged("data key"))
}

/// `place` says where the value belongs; it opens only there.
fn seal(key: &LessSafeKey, place: &str, bytes: &[u8]) -> Result<String, CatalogError> {
    let nonce = random::<NONCE_LEN>()?;
    let mut sealed = bytes.to_vec();
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(place.as_bytes()),
        &mut sealed,
    )
    .map_err(|_| CatalogError::storage("seal a value", "it is too long"))?;
    let mut whole = nonce.to_vec();
    whole.extend(sealed);
    Ok(format!("{VERSION}{}", URL_SAFE_NO_PAD.encode(whole)))
}

fn open(key: &LessSafeKey, place: &str, text: &str) -> Result<Vec<u8>, CatalogError> {
    let mut whole = text
        .strip_prefix(VERSION)
        .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .filter(|bytes| bytes.len() > NONCE_LEN)
        .ok_or_else(|| damaged(place))?;
    let mut sealed = whole.split_off(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(&whole).map_err(|_| damaged(place))?;
    let opened = key
        .open_in_place(nonce, Aad::from(place.as_bytes()), &mut sealed)
        .map_err(|_| damaged(place))?;
    Ok(opened.to_vec())
}

/// What was stored is not what was sealed.
fn damaged(place: &str) -> CatalogError {
    CatalogError::storage(
        "open a sealed value",
        format!("{place}: it was changed, moved, or sealed with another key"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_at_its_place_and_whole() {
        let master = MasterKey::parse(&STANDARD.encode([7; 32])).expect("a key");
        let sealed = master
            .seal("users.email a", "ann@例子.cn".as_bytes())
            .expect("sealed");
        assert_ne!(
            sealed,
            master
                .seal("users.email a", "ann@例子.cn".as_bytes())
                .expect("sealed")
        );
        let opened = master.open("users.email a", &sealed).expect("opened");
        assert_eq!(opened, "ann@例子.cn".as_bytes());
        assert!(master.open("users.email b", &sealed).is_err());
        let other = MasterKey::parse(&STANDARD.encode([8; 32])).expect("a key");
        assert!(other.open("users.email a", &sealed).is_err());
        for at in [3, 10, sealed.len() - 1] {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("text");
            assert!(master.open("users.email a", &changed).is_err(), "{at}");
        }
        for short in ["", "v1.", "v1.AAAA", "v2.AAAA", "ann"] {
            assert!(master.open("users.email a", short).is_err(), "{short}");
        }
    }

    #[test]
    fn the_blind_index_depends_on_key_tenant_and_address() {
        let key = |byte: u8| MasterKey::parse(&STANDARD.encode([byte; 32])).expect("a key");
        let tenant = |name: &str| TenantId::new(name).expect("a name");
        let index = key(1).blind(&tenant("a"), "x@y");
        assert_eq!(index, key(1).blind(&tenant("a"), "x@y"));
        assert_ne!(index, key(2).blind(&tenant("a"), "x@y"));
        assert_ne!(index, key(1).blind(&tenant("b"), "x@y"));
        assert_ne!(index, key(1).blind(&tenant("a"), "z@y"));
    }

    #[test]
    fn a_key_is_32_bytes_and_is_not_shown() {
        for bad in ["", "short", &STANDARD.encode([1; 31]), "s3cret s3cret"] {
            let error = MasterKey::parse(bad).expect_err("not a key").to_string();
            assert!(
                error.contains("32 bytes") && !error.contains("s3cret"),
                "{error}"
            );
        }
        let key = MasterKey::parse(&format!("{}\n", STANDARD.encode([1; 32]))).expect("a key");
        assert!(!format!("{key:?}").contains(&STANDARD.encode([1; 32])));
    }
}
