//! Dead letters: the rows that a pipeline could not process, listed, shown and sent through it again.
//!
//! A letter is a row of the topic `<pipeline>.dead_letter`, written by the pipeline's runtime; its place there,
//! `partition-offset`, is its id, because one row that fails twice in the same way makes two letters. Whether it was
//! retried is state of the pipeline's consumer group in the log, written in the very commit that appends the source row
//! again (see [`retry`]). The topic itself never changes, and retention removes old letters.

mod letter;
mod read;
mod retry;

use va_catalog::InvalidName;
use va_catalog::store::CatalogError;
use va_connectors::log::LogError;

pub use letter::{DocumentOf, Letter, LetterId, SourceRow};
pub use read::{Count, Filter, LIST_MAX, Page, find, list, summary};
pub use retry::{Outcome, Skipped, Wanted, resume, retry};

/// Why a call about dead letters was refused. A single letter that cannot be retried is no error, see [`Skipped`].
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error("pipeline `{0}` has no dead-letter topic; see `va pipeline list`")]
    UnknownPipeline(String),
    #[error(
        "pipeline `{pipeline}` has no dead letter `{id}`; retention may have removed it: see `va dlq ls {pipeline} --all`"
    )]
    UnknownLetter { pipeline: String, id: String },
    #[error("another process retries dead letters of `{0}` now; try again when it has ended")]
    Busy(String),
    /// The caller's problem: the message says what is allowed.
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A stored letter does not have the shape of its topic.
    #[error("read a dead letter: {0}")]
    Damaged(#[from] arrow::error::ArrowError),
}

impl From<InvalidName> for DeadLetterError {
    fn from(error: InvalidName) -> Self {
        Self::Invalid(error.to_string())
    }
}
