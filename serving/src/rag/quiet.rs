//! Knows when nobody waits for an answer, for work that can wait: the next question must not find the processors taken.
//!
//! How long such work waits at most is for its owner to say.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Answers that are being made by this process.
#[derive(Default)]
pub(crate) struct Quiet {
    answers: AtomicUsize,
    /// When the last answer ended.
    ended_at: Mutex<Option<Instant>>,
    /// Told when the last answer ends.
    told: Notify,
}

/// An answer that is being made, until it is dropped.
pub(crate) struct Answering<'a>(&'a Quiet);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if self.0.answers.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.0.ended() = Some(Instant::now());
            self.0.told.notify_waiters();
        }
    }
}

impl Quiet {
    /// While it lives, other work waits.
    pub fn answering(&self) -> Answering<'_> {
        self.answers.fetch_add(1, Ordering::AcqRel);
        Answering(self)
    }

    /// Waits until no answer was made for so long. Under constant load that does not happen.
    pub async fn wait(&self, long: Duration) {
        loop {
            let ended = self.told.notified();
            if self.answers.load(Ordering::Acquire) > 0 {
                ended.await;
                continue;
            }
            let since = self.ended().map_or(long, |at| at.elapsed());
            match long.checked_sub(since) {
                None | Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, Option<Instant>> {
        self.ended_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn it_is_quiet_some_time_after_the_last_answer() {
        let quiet = Quiet::default();
        let is_quiet = |long| quiet.wait(long).now_or_never().is_some();
        assert!(is_quiet(LONG));
        let (one, other) = (quiet.answering(), quiet.answering());
        drop(one);
        assert!(!is_quiet(Duration::ZERO));
        drop(other);
        assert!(is_quiet(Duration::ZERO));
        assert!(!is_quiet(LONG));
    }

    #[tokio::test]
    async fn who_waits_is_told() {
        let quiet = Quiet::default();
        let answering = quiet.answering();
        let ends = async { drop(answering) };
        tokio::join!(quiet.wait(Duration::ZERO), ends);
    }
}
