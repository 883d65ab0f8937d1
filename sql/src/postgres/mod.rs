//! The PostgreSQL protocol: user = tenant, password = API key.
//!
//! The password crosses the wire as it is: only hashes of keys are stored, so the server cannot take part in SCRAM.
//! Bind to loopback, or put TLS in front. Everything that a connection runs is scoped to its tenant and only reads;
//! transactions are accepted and mean nothing, because there is nothing to roll back.

mod cancel;
mod connection;
mod server;
mod startup;
mod statements;

pub use server::{PostgresOptions, serve_postgres};
pub use startup::KeyCheck;
