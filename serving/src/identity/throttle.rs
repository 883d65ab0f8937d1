//! How often somebody may try: counted in the cache that processes share, where they do, and in tables of this process where
//! they do not or while the cache is gone. Both tables are bounded: who fills them pushes out the oldest entries, not the
//! newest. The cache's windows are of the clock, so that processes agree on them; a table's begin with the first try.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use va_catalog::TenantId;
use va_connectors::cache::{Cache, CacheError, CacheKey};

/// Entries of a table.
const ENTRIES_MAX: usize = 20_000;
/// How long failures in a row are remembered in the cache.
const FAILURES_LIFE: Duration = Duration::from_secs(86_400);

/// How much clocks that are well may differ or be put back, in milliseconds.
const CLOCKS_MS: i64 = 60_000;

/// At most so many tries of one network in a window of time.
pub struct Throttle {
    limit: u32,
    window_ms: i64,
    shared: Option<Arc<dyn Cache>>,
    tries: Mutex<HashMap<IpAddr, (i64, u32)>>,
}

impl Throttle {
    /// `shared`: the cache by which several processes count together.
    pub fn new(limit: u32, window: Duration, shared: Option<Arc<dyn Cache>>) -> Self {
        Self {
            limit,
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX).max(1),
            shared,
            tries: Mutex::default(),
        }
    }

    /// Counts a try; the error is how long to wait.
    pub async fn admit(&self, address: IpAddr, now_ms: i64) -> Result<(), Duration> {
        if let Some(shared) = &self.shared {
            match self.admit_shared(shared.as_ref(), address, now_ms).await {
                Ok(admitted) => return admitted,
                // Told by the cache, once an outage.
                Err(error) => tracing::debug!(%error, "tries are counted in this process"),
            }
        }
        self.admit_here(address, now_ms)
    }

    async fn admit_shared(
        &self,
        shared: &dyn Cache,
        address: IpAddr,
        now_ms: i64,
    ) -> Result<Result<(), Duration>, CacheError> {
        let window = now_ms.div_euclid(self.window_ms);
        let key = place(
            "login.tries",
            &[&network(address).to_string(), &window.to_string()],
        );
        // A process whose clock is behind still finds it.
        let life = millis(self.window_ms.saturating_mul(2));
        if shared.add(&key, 1, life).await? <= i64::from(self.limit) {
            return Ok(Ok(()));
        }
        let left = (window + 1).saturating_mul(self.window_ms) - now_ms;
        Ok(Err(millis(left.max(1))))
    }

    fn admit_here(&self, address: IpAddr, now_ms: i64) -> Result<(), Duration> {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = network(address);
        if !tries.contains_key(&key) {
            make_room(&mut *tries, |(since, _)| *since);
        }
        let (since, count) = tries.entry(key).or_insert((now_ms, 0));
        // Also when the clock was put back.
        if !(0..self.window_ms).contains(&(now_ms - *since)) {
            (*since, *count) = (now_ms, 0);
        }
        if *count >= self.limit {
            let left = (*since + self.window_ms - now_ms).max(1);
            return Err(millis(left));
        }
        *count += 1;
        Ok(())
    }
}

/// Tries are of no tenant: nobody has said yet, credibly, whose they are.
fn place(kind: &'static str, parts: &[&str]) -> CacheKey {
    CacheKey::new(kind, &TenantId::default_tenant(), parts)
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0).unsigned_abs())
}

/// One customer of a provider has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => {
                let prefix = u128::from(address) & (u128::MAX << 64);
                std::net::Ipv6Addr::from(prefix).into()
            }
        },
    }
}

/// Failures in a row of something that has no row in the catalog, and its lockout.
pub struct Failures {
    limit: u32,
    lock_ms: i64,
    shared: Option<Arc<dyn Cache>>,
    /// Failures, when the last was, and until when it is locked.
    failures: Mutex<HashMap<[u8; 32], (u32, i64, i64)>>,
}

impl Failures {
    /// `shared`: the cache by which several processes count together.
    pub fn new(limit: u32, lock_seconds: u64, shared: Option<Arc<dyn Cache>>) -> Self {
        Self {
            limit,
            lock_ms: i64::try_from(lock_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX / 2),
            shared,
            failures: Mutex::default(),
        }
    }

    /// Until when it is locked, if it is now.
    pub async fn locked(&self, name: &[u8; 32], now_ms: i64) -> Option<i64> {
        if let Some(shared) = &self.shared {
            match shared.get(&place("login.locked", &[&hex(name)])).await {
                Ok(until) => {
                    return until
                        .and_then(|until| std::str::from_utf8(&until).ok()?.parse::<i64>().ok())
                        .filter(|until| *until > now_ms);
                }
                Err(error) => tracing::debug!(%error, "lockouts are of this process"),
            }
        }
        self.locked_here(name, now_ms)
    }

    pub async fn failed(&self, name: [u8; 32], now_ms: i64) {
        if let Some(shared) = &self.shared {
            match self.failed_shared(shared.as_ref(), &name, now_ms).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "failures are counted in this process"),
            }
        }
        self.failed_here(name, now_ms);
    }

    async fn failed_shared(
        &self,
        shared: &dyn Cache,
        name: &[u8; 32],
        now_ms: i64,
    ) -> Result<(), CacheError> {
        let count = place("login.failures", &[&hex(name)]);
        if shared.add(&count, 1, FAILURES_LIFE).await? < i64::from(self.limit) {
            return Ok(());
        }
        let until = now_ms.saturating_add(self.lock_ms).to_string();
        let locked = place("login.locked", &[&hex(name)]);
        shared
            .put(&locked, until.into(), millis(self.lock_ms))
            .await?;
        shared.remove(&count).await
    }

    fn locked_here(&self, name: &[u8; 32], now_ms: i64) -> Option<i64> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(name)
            .map(|(_, _, until)| *until)
            .filter(|until| still_locked(*until, now_ms, self.lock_ms))
    }

    fn failed_here(&self, name: [u8; 32], now_ms: i64) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.contains_key(&name) {
            make_room(&mut *failures, |(_, at, _)| *at);
        }
        let (count, at, until) = failures.entry(name).or_insert((0, now_ms, 0));
        (*count, *at) = (*count + 1, now_ms);
        if *count >= self.limit {
            (*count, *until) = (0, now_ms.saturating_add(self.lock_ms));
        }
    }
}

/// Whether a lock that ends then still holds. One that would hold for longer than any does was set before the clock was put
/// back, and nobody should wait for the clock to get there again.
pub fn still_locked(until_ms: i64, now_ms: i64, lock_ms: i64) -> bool {
    let longest = lock_ms.saturating_add(CLOCKS_MS);
    until_ms > now_ms && until_ms.saturating_sub(now_ms) <= longest
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Drops the older half of a full table.
fn make_room<K: Eq + Hash + Copy, V>(table: &mut HashMap<K, V>, age: impl Fn(&V) -> i64) {
    if table.len() < ENTRIES_MAX {
        return;
    }
    let mut ages: Vec<(i64, K)> = table
        .iter()
        .map(|(key, value)| (age(value), *key))
        .collect();
    ages.sort_unstable_by_key(|(at, _)| *at);
    for (_, key) in ages.into_iter().take(ENTRIES_MAX / 2) {
        table.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_network_has_its_own_tries_in_each_window() {
        let throttle = Throttle::new(2, Duration::from_secs(60), None);
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        assert!(throttle.admit_here(a, 0).is_ok() && throttle.admit_here(a, 1).is_ok());
        assert_eq!(throttle.admit_here(a, 10_000), Err(Duration::from_secs(50)));
        assert!(throttle.admit_here(b, 10_000).is_ok());
        assert!(throttle.admit_here(a, 60_000).is_ok());
        // One /64 is one caller, and a mapped address is the address.
        let inside = [
            address("2001:db8::1"),
            address("2001:db8::2"),
            address("2001:db8::ffff"),
        ];
        let refused = inside.map(|address| throttle.admit_here(address, 0).is_err());
        assert_eq!(refused, [false, false, true]);
        assert!(throttle.admit_here(address("2001:db8:0:1::1"), 0).is_ok());
        assert!(
            throttle
                .admit_here(address("::ffff:10.0.0.2"), 10_001)
                .is_ok()
        );
        assert!(throttle.admit_here(b, 10_002).is_err());
    }

    #[test]
    fn a_clock_that_is_put_back_locks_nobody_out() {
        let hour = 3_600_000;
        let throttle = Throttle::new(1, Duration::from_secs(60), None);
        assert!(throttle.admit_here(address("10.0.0.1"), hour).is_ok());
        assert!(throttle.admit_here(address("10.0.0.1"), 0).is_ok());

        let failures = Failures::new(1, 300, None);
        failures.failed_here([1; 32], hour);
        assert_eq!(
            failures.locked_here(&[1; 32], hour + 1),
            Some(hour + 300_000)
        );
        // As clocks are adjusted, or those of two processes differ.
        assert!(failures.locked_here(&[1; 32], hour - 5_000).is_some());
        assert_eq!(failures.locked_here(&[1; 32], 0), None);
    }

    #[test]
    fn tables_do_not_grow_without_bound() {
        let throttle = Throttle::new(1, Duration::from_secs(60), None);
        for n in 0..50_000_u32 {
            let _ = throttle.admit_here(std::net::Ipv4Addr::from(n).into(), i64::from(n % 1_000));
        }
        assert!(throttle.tries.lock().expect("a lock").len() <= ENTRIES_MAX);
        let failures = Failures::new(3, 60, None);
        for n in 0..50_000_u32 {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&n.to_le_bytes());
            failures.failed_here(name, i64::from(n));
        }
        assert!(failures.failures.lock().expect("a lock").len() <= ENTRIES_MAX);
        let newest = {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&49_999_u32.to_le_bytes());
            name
        };
        failures.failed_here(newest, 50_000);
        failures.failed_here(newest, 50_000);
        assert_eq!(failures.locked_here(&newest, 50_001), Some(110_000));
        assert_eq!(failures.locked_here(&newest, 110_000), None);
    }

    /// Two processes with one cache.
    #[tokio::test]
    async fn processes_with_one_cache_count_together() {
        use va_connectors::cache::memory::MemoryCache;
        let cache: Arc<dyn Cache> = Arc::new(MemoryCache::new(16 << 20));
        let minute = Duration::from_secs(60);
        let throttle = || Throttle::new(3, minute, Some(cache.clone()));
        let (one, other) = (throttle(), throttle());
        let a = address("10.0.0.1");
        assert!(one.admit(a, 120_000).await.is_ok());
        assert!(other.admit(a, 130_000).await.is_ok());
        assert!(one.admit(a, 140_000).await.is_ok());
        let left = Err(Duration::from_secs(35));
        assert_eq!(other.admit(a, 145_000).await, left);
        assert_eq!(one.admit(a, 145_000).await, left);
        assert!(one.admit(address("10.0.0.2"), 145_000).await.is_ok());
        assert!(other.admit(a, 180_000).await.is_ok());

        let failures = || Failures::new(2, 300, Some(cache.clone()));
        let (one, other) = (failures(), failures());
        let name = [7; 32];
        one.failed(name, 1_000).await;
        assert_eq!(other.locked(&name, 1_000).await, None);
        other.failed(name, 2_000).await;
        assert_eq!(one.locked(&name, 2_000).await, Some(302_000));
        assert_eq!(other.locked(&name, 302_000).await, None);
        assert_eq!(one.locked(&[8; 32], 2_000).await, None);
    }
}
