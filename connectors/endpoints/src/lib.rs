//! The sources and sinks that pipelines can name.
//!
//! [`endpoint`] is the seam, [`registry`] the list. The stores behind the sinks are crates of their own
//! (`va-vector`, `va-fulltext`); this crate turns rows into their calls.

mod changes;
pub mod endpoint;
mod news;
pub mod registry;

pub use endpoint::{Resources, SinkEntry, SinkPlan, SourceEntry, SourcePlan, StartAt};
