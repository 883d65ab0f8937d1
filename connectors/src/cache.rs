//! What is kept for a while and may be lost: cached replies, counters, results of repeated requests, locks.
//!
//! Two implementations, one contract: `memory` for one process, `redis` for many. Nothing here is the only copy of
//! anything: whoever finds nothing does the work. What must be exact (money, offsets, versions) is the log's or the
//! catalog's business. Keys name their tenant, so nobody reads what another tenant put.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use va_catalog::TenantId;

/// Why the cache could not be asked. The caller goes on without it, and says so where a user would notice.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the cache is not available: {0}")]
pub struct CacheError(pub String);

/// The name of an entry: `KIND:{TENANT}:PART:PART`. Each part is free text; it cannot reach into another tenant or kind.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CacheKey(String);

impl CacheKey {
    /// `kind` says what the entry is, e.g. `context`; `parts` which one.
    pub fn new(kind: &'static str, tenant: &TenantId, parts: &[&str]) -> Self {
        let mut key = format!("{kind}:{tenant}");
        for part in parts {
            key.push(':');
            // The separator is the only character with a meaning.
            key.extend(part.chars().flat_map(|c| match c {
                ':' => ['%', '3', 'A'].into_iter().take(3),
                '%' => ['%', '2', '5'].into_iter().take(3),
                c => [c, c, c].into_iter().take(1),
            }));
        }
        Self(key)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Entries that end by themselves. Every entry has a life; bytes and entries are bounded, so one may end early.
#[async_trait]
pub trait Cache: Send + Sync + fmt::Debug {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, CacheError>;

    /// Replaces what is there.
    async fn put(&self, key: &CacheKey, value: Bytes, life: Duration) -> Result<(), CacheError>;

    /// Puts `value` where nothing is, and tells whether it did. Of several callers at once one succeeds.
    async fn put_new(
        &self,
        key: &CacheKey,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError>;

    /// Replaces the entry if it is `expected`, and tells whether it was.
    async fn replace(
        &self,
        key: &CacheKey,
        expected: &Bytes,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError>;

    async fn remove(&self, key: &CacheKey) -> Result<(), CacheError>;

    /// Removes the entry if it is `expected`: how the holder of a lock lets go of it, and nobody else.
    async fn remove_if(&self, key: &CacheKey, expected: &Bytes) -> Result<bool, CacheError>;

    /// Adds to a counter, which begins at 0 and lives for `life` from its first use. The new value. As an entry it is the
    /// number in decimal digits; an entry that is no number, and a sum beyond 64 bits, are errors.
    async fn add(&self, key: &CacheKey, by: i64, life: Duration) -> Result<i64, CacheError>;

    /// Whether the cache answers: for `/readyz` and `va doctor`.
    async fn ping(&self) -> Result<(), CacheError>;

    /// In a line, without a password.
    fn told(&self) -> String;
}

/// The longest life of an entry, which no clock of a server runs over at: ten years.
const LIFE_MS_MAX: u128 = 10 * 365 * 86_400_000;

/// A life in milliseconds, at least one: servers refuse to keep something for no time.
fn millis(life: Duration) -> i64 {
    let millis = life.as_millis().clamp(1, LIFE_MS_MAX);
    // What was clamped fits.
    i64::try_from(millis).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stays_in_its_place() {
        let tenant = TenantId::default_tenant();
        let one = CacheKey::new("context", &tenant, &["a:b", "c"]);
        let other = CacheKey::new("context", &tenant, &["a", "b:c"]);
        assert_ne!(one, other);
        assert_eq!(one.as_str(), "context:default:a%3Ab:c");
        let chinese = CacheKey::new("answer", &tenant, &["如何", "100%"]);
        assert_eq!(chinese.as_str(), "answer:default:如何:100%25");
    }
}
