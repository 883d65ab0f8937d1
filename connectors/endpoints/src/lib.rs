//! The sources and sinks that pipelines can name.
//!
//! [`endpoint`] is the seam, [`registry`] the list. The stores behind the sinks are crates of their own
//! (`va-vector`, `va-fulltext`, `va-splits`); this crate turns rows into their calls. [`indexes`] holds the two that are
//! searched together, so that what one checkpoint changed in both is seen at once.

mod changes;
pub mod endpoint;
pub mod indexes;
mod news;
mod pair;
pub mod registry;
pub mod repartition;

pub use endpoint::{Resources, SinkEntry, SinkPlan, SourceEntry, SourcePlan, StartAt};
pub use indexes::{IndexError, Indexes, Near, View};
