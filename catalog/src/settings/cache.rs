//! Settings of the cache: what is kept for a while and may be lost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Secret, positive_u64};

/// The least that a cache in memory needs: a kept reply has up to 1 MiB, and a cache is cut into eight.
const BYTES_MIN: u64 = 16 << 20;

/// Where replies to repeated requests, counters and cached answers are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// URL of a Redis server that several processes share, `redis://USER:PASSWORD@HOST:PORT/DATABASE`, `rediss://` with
    /// TLS, or of a cluster `redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT` (`rediss+cluster://`). Without it, each
    /// process has a cache of its own in memory, which ends with it.
    pub url: Option<Secret>,
    /// What the cache in memory may take, in bytes: at least 16 MiB. Redis has `maxmemory` for that.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub max_bytes: u64,
    /// In front of every key in Redis, so that others may use the same server.
    pub namespace: String,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            url: None,
            max_bytes: 64 << 20,
            namespace: "va:".to_owned(),
        }
    }
}

impl CacheSettings {
    /// What is wrong, without the URL, which may hold a password.
    pub(super) fn problem(&self) -> Option<String> {
        let schemes = [
            "redis://",
            "rediss://",
            "redis+cluster://",
            "rediss+cluster://",
        ];
        if let Some(url) = &self.url
            && !schemes
                .iter()
                .any(|scheme| url.expose().starts_with(scheme))
        {
            return Some(format!(
                "`cache.url` begins with none of {}",
                schemes.join(", ")
            ));
        }
        if self.max_bytes < BYTES_MIN {
            return Some(format!(
                "`cache.max_bytes` is {}: use at least {BYTES_MIN}",
                self.max_bytes
            ));
        }
        let fits = |c: char| c.is_ascii_graphic() && !"{}".contains(c);
        if self.namespace.len() > 100 || !self.namespace.chars().all(fits) {
            // Braces would decide which node of a cluster has a key.
            return Some(format!(
                "`cache.namespace` is `{}`: use at most 100 letters, digits and signs, without braces and spaces",
                self.namespace
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_told_without_the_password() {
        assert_eq!(CacheSettings::default().problem(), None);
        let with = |url: &str| CacheSettings {
            url: Some(Secret::new(url)),
            ..CacheSettings::default()
        };
        for url in ["redis://:s3cret@host", "rediss+cluster://a:1,b:2"] {
            assert_eq!(with(url).problem(), None, "{url}");
        }
        let told = with("http://ann:s3cret@host").problem().expect("a problem");
        assert!(
            told.contains("redis://") && !told.contains("s3cret"),
            "{told}"
        );
        let small = CacheSettings {
            max_bytes: 1 << 20,
            ..CacheSettings::default()
        };
        assert!(
            small
                .problem()
                .expect("a problem")
                .contains("cache.max_bytes")
        );
        for namespace in ["{x}", "a b", "前"] {
            let odd = CacheSettings {
                namespace: namespace.to_owned(),
                ..CacheSettings::default()
            };
            assert!(
                odd.problem()
                    .expect("a problem")
                    .contains("cache.namespace")
            );
        }
    }
}
