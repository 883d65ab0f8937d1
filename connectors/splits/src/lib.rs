//! Shared indexes: several processes write, and any number of them search, the same collections.
//!
//! ```text
//!  writer   SplitWriter::publish     the chunks of a checkpoint ─► one split: a folder with a full-text index and a
//!                                    dataset of vectors ─► one object ─► one transaction of the catalog
//!  reader   SplitStore::view         the newest state in the catalog ─► its splits, unpacked in a local cache ─► both
//!                                    sides of a search, as of that state
//!  merge    SplitStore::optimize     small splits ─► one without what is dead, in one transaction
//! ```
//!
//! A split never changes, and both of its sides come from the same rows, so there is no moment at which texts and vectors
//! are of different checkpoints, and nothing to recover after a crash: what was uploaded and not published is an object
//! that nobody refers to, which the sweep takes. Which versions win when several publish, and why a process that lost its
//! partition does no harm, is said at [`va_catalog::store`]'s `splits.rs`.
//!
//! A document belongs to one pipeline: what a checkpoint says of it replaces both sides, also when the pipeline writes only
//! one of them.
//!
//! Left to others: what is in an index (`va-fulltext`, `va-vector`), the objects (`va-connectors`), when objects go
//! (the sweep), and which of the two forms of indexes is in use (`va-endpoints`).

mod cache;
mod error;
mod merge;
mod pack;
mod store;
mod view;
mod writer;

pub use error::SplitError;
pub use merge::MergePolicy;
pub use store::{SplitOptions, SplitStore};
pub use view::SplitView;
pub use writer::SplitWriter;
