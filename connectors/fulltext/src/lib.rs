//! Full-text search of chunks: the seam, its embedded implementation on tantivy, and Chinese and English analysis.
//!
//! [`seam`] is the trait that pipelines write to and serving reads from; [`TantivyIndex`] implements it in process.
//! [`TextSplit`] is an immutable index of its own; several of them are searched as one.
//! [`analysis`] turns text into terms, [`highlight`] shows where a query matched. Vectors are another crate's.

mod dictionary;
mod directory;
mod fold;
mod lookup;
mod matching;
mod query;
mod schema;
mod snapshot;
mod split;
mod tantivy_index;

pub mod analysis;
pub mod highlight;
pub mod seam;

pub use analysis::Analysis;
pub use dictionary::unload_idle;
pub use highlight::{highlights, snippet};
pub use query::Ranking;
pub use seam::{HITS_MAX, TextError, TextHit, TextIndex, TextSnapshot};
pub use split::{LiveTexts, TextSplit, search_splits};
pub use tantivy_index::TantivyIndex;
