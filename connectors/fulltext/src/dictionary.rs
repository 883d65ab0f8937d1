//! The dictionary that Chinese text is cut with: loaded when the first Chinese text comes, shared by the whole process,
//! dropped when none came for a while. It takes tens of megabytes, which a process at rest is to give back.
//!
//! Never starts a thread: the caller decides when [`unload_idle`] runs. Cutting is [`crate::analysis`]' part.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jieba_rs::Jieba;

static HELD: Mutex<Option<Held>> = Mutex::new(None);

struct Held {
    dictionary: Arc<Jieba>,
    used: Instant,
}

/// The dictionary. Loading it takes a fraction of a second; others wait meanwhile instead of loading it too.
pub(crate) fn dictionary() -> Arc<Jieba> {
    let mut held = lock();
    let held = held.get_or_insert_with(|| Held {
        dictionary: Arc::new(Jieba::new()),
        used: Instant::now(),
    });
    held.used = Instant::now();
    Arc::clone(&held.dictionary)
}

/// Drops the dictionary if nobody holds it and nobody asked for it within `idle`; returns whether it did. The next text
/// loads it again.
pub fn unload_idle(idle: Duration) -> bool {
    lock()
        .take_if(|held| held.used.elapsed() >= idle && Arc::strong_count(&held.dictionary) == 1)
        .is_some()
}

/// A panic while it was held leaves nothing half done: the dictionary is there or it is not.
fn lock() -> MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Analysis;

    #[test]
    fn an_idle_dictionary_goes_and_comes_back() {
        let before = Analysis::default().terms("语音助手平台");
        assert!(!unload_idle(Duration::from_secs(3600)), "it was just used");
        let held = dictionary();
        assert!(!unload_idle(Duration::ZERO), "it is held");
        drop(held);
        // Other tests of this process use it at the same time: what they hold stays, and they load it again.
        unload_idle(Duration::ZERO);
        assert_eq!(Analysis::default().terms("语音助手平台"), before);
    }
}
