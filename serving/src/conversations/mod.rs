//! Conversations: who answers a message, the answer's task, and what everybody who follows it is told.
//!
//! ```text
//! message ─ intent ─ Mode::choose ─► Work (a model alone, or the RAG flow) ─ task ─► Live ─► any number of readers
//!                        context ────►                                        └────► catalog (so far, then finished) ─► outbox
//! ```
//!
//! An answer is written by a task of its own, which outlives the client that asked: whoever lost the connection reads on by
//! `Last-Event-ID`, or finds the text in the conversation. It ends by itself, when it is stopped, when it takes too long,
//! and when the platform stops; what was produced is kept in any case.
//!
//! - `intent` says what a message is; `context` chooses what of the conversation is told to the model, `summary` sums up what
//!   is older, `remembered` keeps both for the next answer; `profile` is what the user prefers, `prompt` makes text of it
//! - `write` runs one answer, `live` is what readers see
//! - `outbox` moves events to the log, `months` sees to the months of messages
//! - rows and transactions are `va_catalog::store`'s business, requests and replies `http::conversations`'s

mod context;
mod intent;
mod live;
pub mod months;
pub mod outbox;
mod profile;
mod prompt;
mod remembered;
mod summary;
mod withheld;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use va_catalog::store::Owner;

pub use context::ContextStrategy;
pub use intent::{Intent, Understood, understand};
pub use live::Live;
pub use profile::Profile;
pub use prompt::about;
pub use remembered::{Context, Wanted, forget, recall};
pub use withheld::withhold;
pub use write::{Beginning, Begun, Place, Work, begin};

/// Answers that may be written at once by one process.
const ANSWERS_MAX: usize = 256;
/// How long a new one waits for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer may take: more than its searches and its model together may.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(600);
/// How long the last answers may take to be saved when the platform stops.
const CLOSING: Duration = Duration::from_secs(10);
const TITLE_CHARS: usize = 60;

/// How a message is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A model, by itself.
    Chat,
    /// From documents.
    Rag,
    /// By doing things. There are no agents yet.
    Agent,
}

/// Words that ask for a search, and words that ask for something to be done. The longer one counts where both begin alike.
const SEARCHES: [&str; 3] = ["查询", "检索", "帮我找"];
const DOES: [&str; 3] = ["帮我", "执行", "操作"];

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Rag => "rag",
            Self::Agent => "agent",
        }
    }

    /// What the words of the message ask for; without any, documents where the conversation has some. A greeting needs
    /// none, where a model can answer it.
    pub fn choose(message: &str, intent: Intent, has_documents: bool, has_model: bool) -> Self {
        if SEARCHES.iter().any(|word| message.contains(word)) {
            Self::Rag
        } else if DOES.iter().any(|word| message.contains(word)) {
            Self::Agent
        } else if has_documents && !(intent == Intent::Greeting && has_model) {
            Self::Rag
        } else {
            Self::Chat
        }
    }
}

/// The title of a conversation that begins with this question.
pub fn title_of(question: &str) -> String {
    let words: Vec<&str> = question
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= TITLE_CHARS {
        return line;
    }
    let mut title: String = line.chars().take(TITLE_CHARS - 1).collect();
    title.push('…');
    title
}

/// The answers that are being written in this process.
pub struct Conversations {
    /// By the id of the message.
    running: Mutex<HashMap<String, Arc<Live>>>,
    room: Arc<Semaphore>,
    news: Notify,
}

impl Default for Conversations {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            room: Arc::new(Semaphore::new(ANSWERS_MAX)),
            news: Notify::new(),
        }
    }
}

/// A panic elsewhere leaves lists as they were: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conversations {
    /// Room for one more answer; `None` when there is none soon.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        let room = self.room.clone().acquire_owned();
        tokio::time::timeout(PATIENCE, room).await.ok()?.ok()
    }

    /// An answer that is being written here, to whoever owns it.
    pub fn live(&self, owner: &Owner, conversation: &str, message: &str) -> Option<Arc<Live>> {
        let running = lock(&self.running);
        let live = running.get(message)?;
        live.is_of(owner, conversation).then(|| live.clone())
    }

    /// Stops what is being written in a conversation; returns how many answers.
    pub fn stop(&self, owner: &Owner, conversation: &str) -> usize {
        let running = lock(&self.running);
        let mut stopped = 0;
        for live in running.values() {
            if live.is_of(owner, conversation) {
                live.stop.cancel();
                stopped += 1;
            }
        }
        stopped
    }

    /// Whether something is being written in a conversation.
    pub fn is_busy(&self, owner: &Owner, conversation: &str) -> bool {
        let running = lock(&self.running);
        running.values().any(|live| live.is_of(owner, conversation))
    }

    /// Says that the outbox has something.
    pub fn tell(&self) {
        self.news.notify_one();
    }

    /// Waits for that.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// Waits until every answer is saved. Called when the platform stops.
    pub async fn close(&self) {
        let all = self.room.acquire_many(ANSWERS_MAX as u32);
        if tokio::time::timeout(CLOSING, all).await.is_err() {
            tracing::error!(
                left = lock(&self.running).len(),
                "answers could not be saved before the stop; the next start marks them as broken off"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_the_words() {
        for (message, documents, model, mode) in [
            ("查询冻结行", false, true, Mode::Rag),
            ("帮我找一下合同", false, true, Mode::Rag),
            ("帮我发一封邮件", true, true, Mode::Agent),
            ("请执行备份", false, true, Mode::Agent),
            ("你好", false, true, Mode::Chat),
            ("你好", true, true, Mode::Chat),
            ("你好", true, false, Mode::Rag),
            ("你好，如何冻结行？", true, true, Mode::Rag),
            ("转人工", true, true, Mode::Rag),
            ("How do I freeze rows?", true, true, Mode::Rag),
        ] {
            let intent = understand(message).intent;
            let chosen = Mode::choose(message, intent, documents, model);
            assert_eq!(chosen, mode, "{message}");
        }
    }

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title_of(" 如何\n冻结行?\t"), "如何 冻结行?");
        let long = title_of(&"字".repeat(100));
        assert_eq!((long.chars().count(), long.ends_with('…')), (60, true));
    }
}
