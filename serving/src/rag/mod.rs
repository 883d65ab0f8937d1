//! Answers from documents, each sentence with a citation that can be opened.
//!
//! ```text
//! question, history ─ rewrite ─► queries ─ retrieve ─► sources ─ rerank ─► the best k ─ context ─► what fits the budget
//!                                  ▲                                                               │
//!                                  └────────── once more, other queries ── no ── grade: is the answer in there?
//!                                                                                                  │ yes
//!                                                          events ◄─ cite: every claim checked ◄─ Writer
//! ```
//!
//! - `rewrite` (with `synonyms`) makes the queries, `retrieve` fuses what they find, `rerank` puts it in order, `earlier` is
//!   for when nothing can be searched; `freshness` (next to this folder) makes readers see their own writes
//! - `helper` is the model that `rewrite` and `rerank` may ask; what fails there costs the improvement, not the answer
//! - `context` numbers and fences the sources, `grade` scores their sentences against the question
//! - `answer` is the seam for writers: `extract` quotes, `generate` lets a model write; `cite` checks what they write
//! - `quiet` knows when nobody waits for an answer, for what is better done then
//! - `flow` runs all of it for one question and emits [`Event`]s; the HTTP layer makes JSON or SSE of them
//!
//! Nothing here writes an answer of its own: without a source that holds it, the reply says that nothing was found.

mod alerts;
mod answer;
mod cite;
mod context;
mod earlier;
mod extract;
mod flow;
mod generate;
mod grade;
mod helper;
mod quiet;
mod request;
mod rerank;
mod retrieve;
mod rewrite;
mod synonyms;
mod text;

use std::path::Path;

use tokio::sync::Semaphore;

pub(crate) use alerts::of_search;
pub use answer::{Draft, Gone, Task, WriteError, Writer, Written};
pub use cite::{Checker, Citation, Finding, Unsupported};
pub use context::Context;
pub(crate) use earlier::{Key, RememberedHits};
pub use extract::Extractive;
pub use flow::{Asked, Event, RagError, check, run};
pub use generate::Generated;
pub use request::{Ask, HistoryRole, Mode, RagRequest, Turn};
pub use retrieve::Source;
pub use text::{Lang, bare};

/// Questions for each processor that are searched for at a time: some of them wait for the disk or the model's threads.
const TURNS: usize = 4;

/// What answering keeps between questions, of one process.
pub struct Answers {
    pub(crate) synonyms: synonyms::Synonyms,
    pub(crate) earlier: earlier::Earlier<earlier::Remembered>,
    /// The same of searches without an answer.
    pub(crate) searches: earlier::Earlier<earlier::RememberedHits>,
    pub(crate) alerts: alerts::Alerts,
    pub(crate) sentences: grade::SentenceVectors,
    pub(crate) tokens: rerank::TokenCache,
    pub(crate) learner: rerank::Learner,
    pub(crate) quiet: quiet::Quiet,
    /// Of questions that are searched for at a time.
    pub(crate) turns: Semaphore,
}

impl Answers {
    /// Reads `synonyms.txt` of the data directory, or takes the built-in table when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn open(data: &Path) -> Result<Self, synonyms::TableError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            synonyms: synonyms::Synonyms::open(&data.join("synonyms.txt"))?,
            earlier: earlier::Earlier::default(),
            searches: earlier::Earlier::default(),
            alerts: alerts::Alerts::default(),
            sentences: grade::SentenceVectors::default(),
            tokens: rerank::TokenCache::default(),
            learner: rerank::Learner::default(),
            quiet: quiet::Quiet::default(),
            turns: Semaphore::new(TURNS * cores),
        })
    }
}
