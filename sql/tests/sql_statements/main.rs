//! SQL as its users see it: over a real catalog, vector store and log, in `.slt` files and through real `psql`.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod limits;
mod postgres;
mod slt;
mod wire;
mod world;
