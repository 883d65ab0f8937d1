//! Makes the token vectors of passages that were not known when a question came, for the next one that meets them.
//!
//! One passage at a time, in the background, when no answer was made for a moment: the next question of a row must not find the
//! processors taken. Under constant load each waits some seconds at most, so that what is asked most becomes known all the
//! same. The queue is bounded: passages that fall out are queued again by the
//! next question that finds them. What is lost with the process is only time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use va_catalog::ChunkId;
use va_models::ModelError;

use super::late;
use crate::platform::Platform;

/// Passages that may wait.
const QUEUE: usize = 256;
/// How long ago the last answer must have ended.
const QUIET: Duration = Duration::from_millis(300);
/// How long a passage waits for such a moment. To learn one takes about 40 ms of a processor: less than a hundredth of that.
const PATIENCE: Duration = Duration::from_secs(5);

/// A passage to be known, and the model that is to know it.
pub(super) struct Lesson {
    pub model: String,
    pub chunk: ChunkId,
    pub text: String,
}

impl Lesson {
    fn is_same(&self, other: &Self) -> bool {
        self.chunk == other.chunk && self.model == other.model
    }
}

/// Passages that are still to be known, and whether somebody waits for an answer meanwhile.
#[derive(Default)]
pub struct Learner {
    queue: Mutex<Queue>,
    answers: AtomicUsize,
    /// When the last answer ended.
    ended_at: Mutex<Option<Instant>>,
    /// Told when the last answer ends.
    quiet: Notify,
}

#[derive(Default)]
struct Queue {
    lessons: VecDeque<Lesson>,
    is_running: bool,
}

/// An answer that is being made, until it is dropped.
pub struct Answering<'a>(&'a Learner);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if self.0.answers.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.0.ended() = Some(Instant::now());
            self.0.quiet.notify_waiters();
        }
    }
}

impl Learner {
    /// While it lives, learning waits.
    pub fn answering(&self) -> Answering<'_> {
        self.answers.fetch_add(1, Ordering::AcqRel);
        Answering(self)
    }

    /// Adds passages, best first; the longest waiting fall out when there are too many. Must be called in a runtime.
    pub(super) fn learn(&self, platform: &Arc<Platform>, lessons: Vec<Lesson>) {
        let mut queue = self.lock();
        let mut fallen = 0_u64;
        for lesson in lessons {
            if queue.lessons.iter().any(|other| other.is_same(&lesson)) {
                continue;
            }
            if queue.lessons.len() >= QUEUE {
                queue.lessons.pop_front();
                fallen += 1;
            }
            queue.lessons.push_back(lesson);
        }
        metrics::counter!("va_rag_passages_not_learned_total", "reason" => "queue_full")
            .increment(fallen);
        if !queue.is_running && !queue.lessons.is_empty() {
            queue.is_running = true;
            tokio::spawn(work(Arc::downgrade(platform)));
        }
    }

    /// The next passage. Without one the work ends.
    fn next(&self) -> Option<Lesson> {
        let mut queue = self.lock();
        let lesson = queue.lessons.pop_front();
        queue.is_running = lesson.is_some();
        lesson
    }

    /// Until no answer was made for [`QUIET`], but not longer than [`PATIENCE`].
    async fn quiet(&self) {
        let quiet = async {
            loop {
                let ended = self.quiet.notified();
                if self.answers.load(Ordering::Acquire) > 0 {
                    ended.await;
                    continue;
                }
                let since = self.ended().map_or(QUIET, |at| at.elapsed());
                match QUIET.checked_sub(since) {
                    None | Some(Duration::ZERO) => return,
                    Some(left) => tokio::time::sleep(left).await,
                }
            }
        };
        // Either is fine.
        let _ = tokio::time::timeout(PATIENCE, quiet).await;
    }

    fn ended(&self) -> MutexGuard<'_, Option<Instant>> {
        self.ended_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Learns until the queue is empty. Does not keep the platform up.
async fn work(platform: Weak<Platform>) {
    loop {
        let Some(platform) = platform.upgrade() else {
            return;
        };
        let Some(lesson) = platform.answers.learner.next() else {
            return;
        };
        platform.answers.learner.quiet().await;
        let learned = tokio::task::spawn_blocking(move || {
            let embedder = platform.embedders.get(&lesson.model)?;
            let bytes_max = late::cache_bytes_max(&platform);
            late::know(
                &*embedder,
                lesson.chunk,
                &lesson.text,
                &platform.answers.tokens,
                bytes_max,
            )
        });
        let error = match learned.await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(error) => ModelError::Run(error.to_string()),
        };
        metrics::counter!("va_rag_passages_not_learned_total", "reason" => "model").increment(1);
        tracing::warn!(%error, "a passage could not be prepared for re-ranking");
    }
}
