//! Pipelines: loading, checking, drawing, testing and running dataflow graphs.
//!
//! `load` turns YAML into a `Graph`, [`plan`] checks it against the registered components, [`runtime`] runs it. What
//! operators and connectors do is theirs; this crate moves batches and barriers between them and commits.

pub mod definitions;
pub mod draw;
pub mod fixture;
pub mod load;
pub mod plan;
pub mod registry;
pub mod runtime;
pub mod shuffle;
mod source_text;

pub use load::{Diagnostic, Diagnostics, load};
pub use plan::{Plan, PlannedNode};
pub use runtime::{PipelineStatus, Runtime, RuntimeConfig};
