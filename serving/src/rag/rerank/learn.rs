//! Makes the token vectors of passages that were not known when a question came, for the next one that meets them.
//!
//! One passage at a time, in the background, when no answer was made for a moment: the next question of a row must not find the
//! processors taken. Under constant load each waits some seconds at most, so that what is asked most becomes known all the
//! same. The queue is bounded: passages that fall out are queued again by the
//! next question that finds them. What is lost with the process is only time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

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

/// Passages that are still to be known.
#[derive(Default)]
pub struct Learner {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    lessons: VecDeque<Lesson>,
    is_running: bool,
}

impl Learner {
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
        // Either is fine.
        let _ = tokio::time::timeout(PATIENCE, platform.answers.quiet.wait(QUIET)).await;
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
