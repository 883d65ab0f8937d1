//! The library behind `va`: the platform in one process, its HTTP API, its command line, and retrieval.
//!
//! The command line is a client of the HTTP API. When no server holds the data directory, a command brings the platform
//! up in its own process and talks to that, so there is one code path.

pub mod cli;
pub mod folder;
pub mod http;
pub mod ingest;
pub mod platform;
pub mod retrieval;
pub mod telemetry;
