//! Outside systems behind small traits: the log, objects, and the Source and Sink seams.
//!
//! Heavy client libraries live in crates of their own beside this one (`va-vector`, `va-fulltext`, `va-models`).

pub mod cache;
pub mod flow;
pub mod http;
pub mod log;
pub mod objects;
pub mod schema;
pub mod tls;
pub mod trace;

#[cfg(test)]
#[path = "../../deploy/dev/server.rs"]
mod servers;
