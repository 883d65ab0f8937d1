//! Vector store seam with LanceDB as its embedded implementation.
//!
//! [`VectorStore`] is what the rest of the platform sees: whole documents are replaced in one commit, searched with an
//! exact prefilter, and scanned as Arrow for SQL. [`LanceStore`] keeps it in one directory:
//!
//! ```text
//! <dir>/<tenant>__<collection>.lance/     one LanceDB table a collection (see `names` for the encoding)
//!     data/*.lance                        one file a commit, merged by compaction
//!     _deletions/*                        which rows of a file are gone
//!     _indices/*                          vector and id indexes, above `LanceOptions::index_rows_min` rows
//!     _versions/*.manifest                one a commit; a reader keeps the version that it began with
//! ```
//!
//! A table holds the columns of `chunk_schema(Some(dims))` without `op`, `tenant_id` and `collection`: those are the
//! same on every row, so SQL adds them from the collection's name and nothing can disagree with it.
//!
//! Limits: one process writes a directory at a time (readers in that process see every commit at once; another process
//! would read, but see only what was there when it opened the table). All vectors of a collection have one length.
//! At most [`K_MAX`] hits a search. The ids of all documents of a collection that is being written are kept in memory,
//! about 20 bytes each, those of the chunks that searches found last, and within [`LanceOptions::cache_bytes`] the
//! partitions of indexes that searches read (see `parts`). A scan that runs for longer than
//! [`LanceOptions::keep_versions`] may fail, because the version it reads is pruned.
//!
//! Left to others: embedding, the log (whoever calls [`VectorStore::apply`] replays after a crash), when to call
//! [`VectorStore::optimize`].

mod apply;
mod codes;
mod embedded;
mod error;
mod filter;
mod ids;
mod names;
mod parts;
mod reader;
mod rows;
mod snapshot;
mod split;
mod store;
mod sync;
mod table;
mod upkeep;

pub use embedded::{IndexKind, LanceOptions, LanceStore};
pub use error::VectorError;
pub use filter::{filter_sql, quoted};
pub use rows::stored_schema;
pub use split::{LiveVectors, VectorSplit, VectorSplits, nearest_in_splits, search_splits};
pub use store::{
    ChunkStream, K_MAX, Metric, OptimizeReport, VectorHit, VectorSnapshot, VectorStore,
};
