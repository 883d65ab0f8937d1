//! Keys that sign access tokens: Ed25519, each for a while. Every process that shares the catalog verifies what the others
//! signed, with the public halves; the private halves are sealed with the master key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::query::{Row, query};

const ALGORITHM: &str = "EdDSA";

/// The public half of a signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    /// `kid` of the tokens that it signed.
    pub id: String,
    /// 32 bytes.
    pub public_key: Vec<u8>,
    /// UTC milliseconds.
    pub created_at: i64,
    pub signs_until: i64,
    pub verifies_until: i64,
}

/// A key that signs. It does not print.
pub struct SigningKey {
    pub id: String,
    pub pair: Ed25519KeyPair,
    /// UTC milliseconds.
    pub signs_until: i64,
}

/// How long keys are used, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct SigningTimes {
    pub signs_ms: i64,
    /// After it stopped signing: as long as what it signed may be good.
    pub verifies_ms: i64,
}

const COLUMNS: &str =
    "id, public_key, private_key, master, created_at, signs_until, verifies_until";

impl Catalog {
    /// Every key whose signatures count now, newest first. They belong to the installation, not to a tenant.
    pub async fn verifying_keys_all_tenants(&self) -> Result<Vec<VerifyingKey>, CatalogError> {
        let text = format!(
            "SELECT {COLUMNS} FROM signing_keys WHERE algorithm = '{ALGORITHM}' AND verifies_until > $1 ORDER BY id DESC"
        );
        let rows = query(&text)
            .bind(self.now_ms())
            .fetch_all(self.read_installation())
            .await?;
        rows.iter().map(read_verifying).collect()
    }

    /// The key that signs now; made when there is none, or always with `anew`.
    pub async fn signing_key(
        &self,
        times: SigningTimes,
        anew: bool,
    ) -> Result<SigningKey, CatalogError> {
        let master = self.master()?;
        let now = self.now_ms();
        let text = format!(
            "SELECT {COLUMNS} FROM signing_keys WHERE algorithm = '{ALGORITHM}' AND signs_until > $1 AND master = $2 \
             ORDER BY id DESC LIMIT 1"
        );
        // Two processes that find none at once take turns, and the second finds the first one's.
        let mut transaction = self.begin(Part::Tenants).await?;
        let found = query(&text)
            .bind(now)
            .bind(master.fingerprint())
            .fetch_optional(&mut transaction)
            .await?;
        if let Some(row) = found.filter(|_| !anew) {
            let verifying = read_verifying(&row)?;
            let sealed: String = row.try_get("private_key")?;
            let pkcs8 = master.open(&place(&verifying.id), &sealed)?;
            let pair = Ed25519KeyPair::from_pkcs8(&pkcs8)
                .map_err(|_| CatalogError::corrupt("private_key", &verifying.id))?;
            return Ok(SigningKey {
                id: verifying.id,
                pair,
                signs_until: verifying.signs_until,
            });
        }
        let failed = |_| CatalogError::storage("make a signing key", "no random bytes");
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref())
            .map_err(|error| CatalogError::storage("make a signing key", error.to_string()))?;
        let id = format!("sig_{}", Uuid::now_v7().simple());
        let signs_until = now.saturating_add(times.signs_ms);
        query(
            "INSERT INTO signing_keys (id, algorithm, public_key, private_key, master, created_at, signs_until, \
             verifies_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&id)
        .bind(ALGORITHM)
        .bind(URL_SAFE_NO_PAD.encode(pair.public_key()))
        .bind(master.seal(&place(&id), pkcs8.as_ref())?)
        .bind(master.fingerprint())
        .bind(now)
        .bind(signs_until)
        .bind(signs_until.saturating_add(times.verifies_ms))
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(SigningKey {
            id,
            pair,
            signs_until,
        })
    }
}

/// Where the sealed private half belongs.
fn place(id: &str) -> String {
    format!("signing key {id}")
}

fn read_verifying(row: &Row) -> Result<VerifyingKey, CatalogError> {
    let public_key: String = row.try_get("public_key")?;
    Ok(VerifyingKey {
        id: row.try_get("id")?,
        public_key: URL_SAFE_NO_PAD
            .decode(&public_key)
            .map_err(|_| CatalogError::corrupt("public_key", &public_key))?,
        created_at: row.try_get("created_at")?,
        signs_until: row.try_get("signs_until")?,
        verifies_until: row.try_get("verifies_until")?,
    })
}
