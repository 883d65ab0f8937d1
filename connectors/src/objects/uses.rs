//! Who needs an object right now: uploads keep it, the sweep removes it, and never both at once.
//!
//! An upload finds that its content is stored already and relies on that until the catalog has a version that refers to
//! it. In between nothing in the catalog says that the object is needed, so the upload holds a [`Kept`]. A removal
//! begins only for an object that nobody keeps, and whoever wants to keep it meanwhile waits until it has ended. Waits
//! are short, because a removal is two queries, and cannot be mutual, because a removal never waits.
//!
//! This holds within one process: the one that has locked the data directory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use va_catalog::ContentHash;

#[derive(Debug, Default)]
pub(super) struct Uses {
    inner: Mutex<Inner>,
    removed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    kept: HashMap<ContentHash, usize>,
    going: HashSet<ContentHash>,
}

/// Keeps an object from being removed as long as it lives.
#[derive(Debug)]
pub(super) struct Kept {
    uses: Arc<Uses>,
    hash: ContentHash,
}

/// An object on its way out, until this is dropped.
#[derive(Debug)]
pub(super) struct Going {
    uses: Arc<Uses>,
    hash: ContentHash,
}

impl Uses {
    /// Waits for a removal under way, then keeps the object. Cancel-safe.
    pub async fn keep(self: &Arc<Self>, hash: &ContentHash) -> Kept {
        loop {
            // Before the look, so that a removal that ends after it wakes us.
            let removed = self.removed.notified();
            {
                let mut inner = self.lock();
                if !inner.going.contains(hash) {
                    *inner.kept.entry(hash.clone()).or_default() += 1;
                    return Kept {
                        uses: self.clone(),
                        hash: hash.clone(),
                    };
                }
            }
            removed.await;
        }
    }

    /// Begins a removal; `None` while somebody keeps the object or removes it.
    pub fn begin_removal(self: &Arc<Self>, hash: &ContentHash) -> Option<Going> {
        let mut inner = self.lock();
        let free = !inner.kept.contains_key(hash) && inner.going.insert(hash.clone());
        free.then(|| Going {
            uses: self.clone(),
            hash: hash.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut inner = self.uses.lock();
        if let Some(count) = inner.kept.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                inner.kept.remove(&self.hash);
            }
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.uses.lock().going.remove(&self.hash);
        self.uses.removed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_kept_object_stays_and_one_on_its_way_out_is_waited_for() {
        let uses = Arc::new(Uses::default());
        let hash = ContentHash::new("ab".repeat(32)).unwrap();
        let other = ContentHash::new("cd".repeat(32)).unwrap();
        let (one, two) = (uses.keep(&hash).await, uses.keep(&hash).await);
        drop(one);
        assert!(uses.begin_removal(&hash).is_none());
        drop(two);
        let going = uses.begin_removal(&hash).expect("nobody keeps it");
        assert!(uses.begin_removal(&hash).is_none());
        assert!(uses.keep(&other).now_or_never().is_some());

        let mut keep = Box::pin(uses.keep(&hash));
        assert!((&mut keep).now_or_never().is_none());
        drop(going);
        let kept = keep.await;
        assert!(uses.begin_removal(&hash).is_none());
        drop(kept);
        assert!(uses.begin_removal(&hash).is_some());
    }
}
