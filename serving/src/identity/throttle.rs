//! How often somebody may try. Both tables are bounded: who fills them pushes out the oldest entries, not the newest.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Entries of a table.
const ENTRIES_MAX: usize = 20_000;

/// How much clocks that are well may differ or be put back, in milliseconds.
const CLOCKS_MS: i64 = 60_000;

/// At most so many tries of one network in a window of time.
pub struct Throttle {
    limit: u32,
    window_ms: i64,
    tries: Mutex<HashMap<IpAddr, (i64, u32)>>,
}

impl Throttle {
    pub fn new(limit: u32, window: Duration) -> Self {
        Self {
            limit,
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
            tries: Mutex::default(),
        }
    }

    /// Counts a try; the error is how long to wait.
    pub fn admit(&self, address: IpAddr, now_ms: i64) -> Result<(), Duration> {
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
            return Err(Duration::from_millis(left.unsigned_abs()));
        }
        *count += 1;
        Ok(())
    }
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
    /// Failures, when the last was, and until when it is locked.
    failures: Mutex<HashMap<[u8; 32], (u32, i64, i64)>>,
}

impl Failures {
    pub fn new(limit: u32, lock_seconds: u64) -> Self {
        Self {
            limit,
            lock_ms: i64::try_from(lock_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX / 2),
            failures: Mutex::default(),
        }
    }

    /// Until when it is locked, if it is now.
    pub fn locked(&self, name: &[u8; 32], now_ms: i64) -> Option<i64> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(name)
            .map(|(_, _, until)| *until)
            .filter(|until| still_locked(*until, now_ms, self.lock_ms))
    }

    pub fn failed(&self, name: [u8; 32], now_ms: i64) {
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
        let throttle = Throttle::new(2, Duration::from_secs(60));
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        assert!(throttle.admit(a, 0).is_ok() && throttle.admit(a, 1).is_ok());
        assert_eq!(throttle.admit(a, 10_000), Err(Duration::from_secs(50)));
        assert!(throttle.admit(b, 10_000).is_ok());
        assert!(throttle.admit(a, 60_000).is_ok());
        // One /64 is one caller, and a mapped address is the address.
        let inside = [
            address("2001:db8::1"),
            address("2001:db8::2"),
            address("2001:db8::ffff"),
        ];
        let refused = inside.map(|address| throttle.admit(address, 0).is_err());
        assert_eq!(refused, [false, false, true]);
        assert!(throttle.admit(address("2001:db8:0:1::1"), 0).is_ok());
        assert!(throttle.admit(address("::ffff:10.0.0.2"), 10_001).is_ok());
        assert!(throttle.admit(b, 10_002).is_err());
    }

    #[test]
    fn a_clock_that_is_put_back_locks_nobody_out() {
        let hour = 3_600_000;
        let throttle = Throttle::new(1, Duration::from_secs(60));
        assert!(throttle.admit(address("10.0.0.1"), hour).is_ok());
        assert!(throttle.admit(address("10.0.0.1"), 0).is_ok());

        let failures = Failures::new(1, 300);
        failures.failed([1; 32], hour);
        assert_eq!(failures.locked(&[1; 32], hour + 1), Some(hour + 300_000));
        // As clocks are adjusted, or those of two processes differ.
        assert!(failures.locked(&[1; 32], hour - 5_000).is_some());
        assert_eq!(failures.locked(&[1; 32], 0), None);
    }

    #[test]
    fn tables_do_not_grow_without_bound() {
        let throttle = Throttle::new(1, Duration::from_secs(60));
        for n in 0..50_000_u32 {
            let _ = throttle.admit(std::net::Ipv4Addr::from(n).into(), i64::from(n % 1_000));
        }
        assert!(throttle.tries.lock().expect("a lock").len() <= ENTRIES_MAX);
        let failures = Failures::new(3, 60);
        for n in 0..50_000_u32 {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&n.to_le_bytes());
            failures.failed(name, i64::from(n));
        }
        assert!(failures.failures.lock().expect("a lock").len() <= ENTRIES_MAX);
        let newest = {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&49_999_u32.to_le_bytes());
            name
        };
        failures.failed(newest, 50_000);
        failures.failed(newest, 50_000);
        assert_eq!(failures.locked(&newest, 50_001), Some(110_000));
        assert_eq!(failures.locked(&newest, 110_000), None);
    }
}
