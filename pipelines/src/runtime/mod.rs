//! Running pipelines: supervision of tasks, status, taps.
//!
//! A task that fails for an outside reason is restarted from its last checkpoint after 1, 2 and 4 seconds, at most
//! three times without a checkpoint in between; then, or at once for a reason that would repeat itself, the pipeline
//! stays failed and says why.

mod checkpoint;
mod feeder;
mod node;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod simulation;
mod stats;
mod supervisor;
mod tap;
mod task;
mod traces;

pub use stats::{NodeStats, Stats};
pub use supervisor::{PipelineState, PipelineStatus, Runtime, RuntimeConfig, RuntimeError, lag};
pub use tap::Taps;
