//! The cache of one process: a table in memory, bounded by bytes.
//!
//! Sharded, each shard behind one lock that is held for a few map operations, so that every call is atomic. When a shard is
//! full, what was written longest ago goes first: locks and counters are young. Ended entries go when somebody next uses
//! their shard. The clock is the caller's, so tests need not wait. What it holds ends with the process; many processes
//! that need one truth take Redis (`redis.rs`).

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Cache, CacheError, CacheKey, millis};

const SHARDS: usize = 8;
/// What an entry costs beside its key, which is kept twice, and its value.
const ENTRY_BYTES: usize = 256;

/// Milliseconds that never go back.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A bounded table.
pub struct MemoryCache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    bytes_max: u64,
    shard_bytes_max: usize,
    clock: Clock,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<CacheKey, Entry>,
    /// When entries end, and which.
    by_end: BTreeSet<(i64, u64)>,
    /// Entries in the order in which they were written.
    by_order: BTreeMap<u64, CacheKey>,
    bytes: usize,
    written: u64,
}

struct Entry {
    value: Bytes,
    ends_ms: i64,
    order: u64,
}

fn size(key: &CacheKey, value: &Bytes) -> usize {
    2 * key.as_str().len() + value.len() + ENTRY_BYTES
}

impl Shard {
    fn drop_ended(&mut self, now_ms: i64) {
        while let Some(&(ends_ms, order)) = self.by_end.first() {
            if ends_ms > now_ms {
                return;
            }
            self.take(ends_ms, order);
        }
    }

    /// Drops the entry that was written as number `order`.
    fn take(&mut self, ends_ms: i64, order: u64) {
        self.by_end.remove(&(ends_ms, order));
        if let Some(key) = self.by_order.remove(&order)
            && let Some(entry) = self.entries.remove(&key)
        {
            self.bytes -= size(&key, &entry.value);
        }
    }

    fn remove(&mut self, key: &CacheKey) -> bool {
        let Some(entry) = self.entries.get(key) else {
            return false;
        };
        let (ends_ms, order) = (entry.ends_ms, entry.order);
        self.take(ends_ms, order);
        true
    }

    fn is(&self, key: &CacheKey, expected: &Bytes) -> bool {
        self.entries
            .get(key)
            .is_some_and(|entry| entry.value == *expected)
    }

    /// Writes the entry, and makes room for it.
    fn write(&mut self, key: &CacheKey, value: &Bytes, ends_ms: i64, bytes_max: usize) {
        self.remove(key);
        let order = self.written;
        self.written += 1;
        self.bytes += size(key, value);
        self.by_end.insert((ends_ms, order));
        self.by_order.insert(order, key.clone());
        let entry = Entry {
            // A slice would keep the whole of what it is a slice of.
            value: Bytes::copy_from_slice(value),
            ends_ms,
            order,
        };
        self.entries.insert(key.clone(), entry);
        let mut evicted = 0;
        while self.bytes > bytes_max {
            let Some((&oldest, victim)) = self.by_order.first_key_value() else {
                break;
            };
            let Some(ends_ms) = self.entries.get(victim).map(|entry| entry.ends_ms) else {
                break;
            };
            self.take(ends_ms, oldest);
            evicted += 1;
        }
        if evicted > 0 {
            metrics::counter!("va_cache_evicted_total").increment(evicted);
        }
    }
}

impl MemoryCache {
    /// A cache that holds so many bytes, keys and bookkeeping included.
    pub fn new(bytes_max: u64) -> Self {
        let begun = Instant::now();
        let clock = move || i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        Self::with_clock(bytes_max, Arc::new(clock))
    }

    /// The same with a clock of the caller's.
    pub fn with_clock(bytes_max: u64, clock: Clock) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            bytes_max,
            shard_bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX) / SHARDS,
            clock,
        }
    }

    /// The shard of the key without what has ended, and the time.
    fn shard(&self, key: &CacheKey) -> (MutexGuard<'_, Shard>, i64) {
        // The remainder is below the number of shards.
        let at = (self.hasher.hash_one(key) % SHARDS as u64) as usize;
        // No method of a shard panics halfway.
        let mut shard = self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = (self.clock)();
        shard.drop_ended(now);
        (shard, now)
    }

    /// An entry that can never be kept is refused, instead of being lost at once.
    fn check(&self, key: &CacheKey, value: &Bytes) -> Result<(), CacheError> {
        let size = size(key, value);
        if size <= self.shard_bytes_max {
            return Ok(());
        }
        Err(CacheError(format!(
            "an entry of {size} bytes is more than a cache of {} bytes takes: at most {}; raise `cache.max_bytes`",
            self.bytes_max, self.shard_bytes_max
        )))
    }
}

impl fmt::Debug for MemoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, CacheError> {
        let (shard, _) = self.shard(key);
        Ok(shard.entries.get(key).map(|entry| entry.value.clone()))
    }

    async fn put(&self, key: &CacheKey, value: Bytes, life: Duration) -> Result<(), CacheError> {
        self.check(key, &value)?;
        let (mut shard, now) = self.shard(key);
        shard.write(key, &value, now + millis(life), self.shard_bytes_max);
        Ok(())
    }

    async fn put_new(
        &self,
        key: &CacheKey,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        self.check(key, &value)?;
        let (mut shard, now) = self.shard(key);
        if shard.entries.contains_key(key) {
            return Ok(false);
        }
        shard.write(key, &value, now + millis(life), self.shard_bytes_max);
        Ok(true)
    }

    async fn replace(
        &self,
        key: &CacheKey,
        expected: &Bytes,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        self.check(key, &value)?;
        let (mut shard, now) = self.shard(key);
        if !shard.is(key, expected) {
            return Ok(false);
        }
        shard.write(key, &value, now + millis(life), self.shard_bytes_max);
        Ok(true)
    }

    async fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        let (mut shard, _) = self.shard(key);
        shard.remove(key);
        Ok(())
    }

    async fn remove_if(&self, key: &CacheKey, expected: &Bytes) -> Result<bool, CacheError> {
        let (mut shard, _) = self.shard(key);
        Ok(shard.is(key, expected) && shard.remove(key))
    }

    async fn add(&self, key: &CacheKey, by: i64, life: Duration) -> Result<i64, CacheError> {
        let (mut shard, now) = self.shard(key);
        let known = shard
            .entries
            .get(key)
            .map(|entry| (entry.value.clone(), entry.ends_ms));
        let (before, ends_ms) = match known {
            Some((value, ends_ms)) => {
                let number = std::str::from_utf8(&value)
                    .ok()
                    .and_then(|digits| digits.parse::<i64>().ok());
                let number = number
                    .ok_or_else(|| CacheError(format!("the entry `{key:?}` is not a number")))?;
                (number, ends_ms)
            }
            None => (0, now + millis(life)),
        };
        let sum = before.checked_add(by).ok_or_else(|| {
            CacheError(format!(
                "the counter `{key:?}` is at {before}, and adding {by} goes beyond 64 bits"
            ))
        })?;
        let value = Bytes::from(sum.to_string());
        self.check(key, &value)?;
        shard.write(key, &value, ends_ms, self.shard_bytes_max);
        Ok(sum)
    }

    async fn ping(&self) -> Result<(), CacheError> {
        Ok(())
    }

    fn told(&self) -> String {
        format!("in this process, at most {} MiB", self.bytes_max >> 20)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use va_catalog::TenantId;

    use super::*;
    use crate::cache::conformance::World;

    /// A cache whose time the test moves.
    fn made(bytes_max: u64) -> (Arc<MemoryCache>, Arc<AtomicI64>) {
        let time = Arc::new(AtomicI64::new(0));
        let now = time.clone();
        let clock: Clock = Arc::new(move || now.load(Ordering::SeqCst));
        (Arc::new(MemoryCache::with_clock(bytes_max, clock)), time)
    }

    async fn make() -> Option<(World, ())> {
        let (cache, time) = made(64 << 20);
        let pass = move |life: Duration| {
            time.fetch_add(millis(life), Ordering::SeqCst);
        };
        let world = World {
            cache,
            pass: Some(Arc::new(pass)),
        };
        Some((world, ()))
    }

    crate::cache_conformance!(make);

    fn key(name: &str) -> CacheKey {
        CacheKey::new("test", &TenantId::default_tenant(), &[name])
    }

    #[tokio::test]
    async fn a_full_cache_drops_what_was_written_longest_ago() {
        let (cache, _) = made(8 * 16_000);
        let life = Duration::from_secs(60);
        for n in 0..1_000 {
            let value = Bytes::from(vec![0; 1_000]);
            cache.put(&key(&n.to_string()), value, life).await.unwrap();
        }
        let mut kept = Vec::new();
        for n in 0..1_000 {
            if cache.get(&key(&n.to_string())).await.unwrap().is_some() {
                kept.push(n);
            }
        }
        assert!(!kept.is_empty() && kept.len() <= 128, "{}", kept.len());
        assert!(kept.contains(&999), "{kept:?}");
        // Of each shard the youngest are left, so none of the first half is.
        assert!(kept.iter().all(|n| *n > 500), "{kept:?}");
        for shard in &cache.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.bytes <= cache.shard_bytes_max);
            assert_eq!(shard.entries.len(), shard.by_end.len());
            assert_eq!(shard.entries.len(), shard.by_order.len());
        }
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_and_nothing_is_left_of_ended_entries() {
        let (cache, time) = made(8 * 4_096);
        let life = Duration::from_millis(10);
        let large = Bytes::from(vec![0; 5_000]);
        let refused = cache.put(&key("a"), large, life).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("raise `cache.max_bytes`"), "{refused}");
        for n in 0..100 {
            cache.add(&key(&n.to_string()), 1, life).await.unwrap();
        }
        time.store(10, Ordering::SeqCst);
        for n in 0..100 {
            assert_eq!(cache.get(&key(&n.to_string())).await.unwrap(), None);
        }
        for shard in &cache.shards {
            assert_eq!(shard.lock().unwrap().bytes, 0);
        }
    }
}
