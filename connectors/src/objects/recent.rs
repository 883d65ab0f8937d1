//! Contents that were stored a moment ago, for who reads them next: usually the pipeline, once each.
//!
//! Only spares a read. What is given out is forgotten, and so is the oldest when there is too much.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use va_catalog::ContentHash;

/// Most that is remembered: what a few batches of uploads bring.
const BYTES_MAX: usize = 32 << 20;

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    contents: HashMap<String, (u64, Bytes)>,
    /// Hashes by the time they came.
    order: BTreeMap<u64, String>,
    clock: u64,
    bytes: usize,
}

impl Recent {
    /// Remembers contents by their hashes.
    pub fn keep(&self, contents: BTreeMap<String, Bytes>) {
        let mut inner = self.lock();
        for (hash, bytes) in contents {
            inner.remove(&hash);
            inner.clock += 1;
            inner.bytes += bytes.len();
            let now = inner.clock;
            inner.order.insert(now, hash.clone());
            inner.contents.insert(hash, (now, bytes));
        }
        while inner.bytes > BYTES_MAX
            && let Some((_, oldest)) = inner.order.pop_first()
        {
            inner.remove(&oldest);
        }
    }

    /// The content, which is forgotten.
    pub fn take(&self, hash: &ContentHash) -> Option<Bytes> {
        self.lock().remove(hash.as_str())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // It holds copies only: whatever state it is in, none is wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, hash: &str) -> Option<Bytes> {
        let (at, bytes) = self.contents.remove(hash)?;
        self.order.remove(&at);
        self.bytes -= bytes.len();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> String {
        format!("{n:064x}")
    }

    #[test]
    fn the_oldest_goes_first_and_each_is_given_once() {
        let recent = Recent::default();
        let take = |n| recent.take(&ContentHash::new(hash(n)).expect("a hash"));
        let big = Bytes::from(vec![0; BYTES_MAX / 2]);
        for n in 0..3 {
            recent.keep(BTreeMap::from([(hash(n), big.clone())]));
        }
        assert_eq!(take(0), None);
        assert_eq!(take(1), Some(big.clone()));
        assert_eq!(take(1), None);
        // The same again counts once, and is as young as if it were new.
        recent.keep(BTreeMap::from([(hash(2), big.clone())]));
        recent.keep(BTreeMap::from([(hash(3), big.clone())]));
        assert_eq!(take(2), Some(big.clone()));
        assert_eq!(take(3), Some(big));
        assert_eq!(recent.lock().bytes, 0);
    }
}
