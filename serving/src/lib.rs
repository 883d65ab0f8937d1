//! The library behind `va`: the platform in one process, its HTTP API, its command line, retrieval, and answers.
//!
//! The command line is a client of the HTTP API. When no server holds the data directory, a command brings the platform
//! up in its own process and talks to that, so there is one code path.

// Whether a future that holds the platform may be sent between threads is decided by looking through it, down to the
// expressions of every running plan; inside the futures of an answer that is deeper than the default.
#![recursion_limit = "256"]

pub mod backlog;
pub mod cache;
pub mod cli;
pub mod conversations;
pub mod dead_letters;
pub mod deployment;
pub mod disk;
pub mod folder;
pub mod freshness;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod ingest;
mod percent;
pub mod platform;
pub mod processes;
pub mod rag;
pub mod retrieval;
pub mod sweep;
pub mod telemetry;
pub mod traces;
pub mod verify;
pub mod versions;
