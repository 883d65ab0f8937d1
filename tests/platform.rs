//! The whole platform, as its users meet it: the `va` binary, its HTTP API, real documents and real models.
//!
//! One binary, because linking is the slow part. What a test needs and cannot find makes it print `SKIPPED: why`; with
//! `CI` set it fails instead.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "platform/crash.rs"]
mod crash;
#[path = "platform/examples.rs"]
mod examples;
#[path = "platform/help_corpus.rs"]
mod help_corpus;
#[path = "platform/http.rs"]
mod http;
#[path = "platform/incremental.rs"]
mod incremental;
#[path = "platform/pipelines.rs"]
mod pipelines;
#[path = "platform/server.rs"]
mod server;
#[path = "platform/uploads.rs"]
mod uploads;
#[path = "platform/validate.rs"]
mod validate;
