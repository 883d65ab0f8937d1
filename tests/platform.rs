//! The whole platform, as its users meet it: the `va` binary, its HTTP API, real documents and real models.
//!
//! One binary, because linking is the slow part. What a test needs and cannot find makes it print `SKIPPED: why`; with
//! `CI` set it fails instead.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "platform/bad_input.rs"]
mod bad_input;
#[path = "platform/cache.rs"]
mod cache;
#[path = "platform/chaos.rs"]
mod chaos;
#[path = "platform/conversation_context.rs"]
mod conversation_context;
#[path = "platform/conversations.rs"]
mod conversations;
#[path = "platform/crash.rs"]
mod crash;
#[path = "platform/dlq.rs"]
mod dlq;
#[path = "platform/examples.rs"]
mod examples;
#[path = "platform/gateway.rs"]
mod gateway;
#[path = "platform/golden.rs"]
mod golden;
#[path = "platform/help_corpus.rs"]
mod help_corpus;
#[path = "platform/http.rs"]
mod http;
#[path = "platform/identity.rs"]
mod identity;
#[path = "platform/incremental.rs"]
mod incremental;
#[path = "platform/isolation.rs"]
mod isolation;
#[path = "platform/local_model.rs"]
mod local_model;
#[path = "platform/messages.rs"]
mod messages;
#[path = "platform/oidc.rs"]
mod oidc;
#[path = "platform/on_servers.rs"]
mod on_servers;
#[path = "platform/permissions.rs"]
mod permissions;
#[path = "platform/pipelines.rs"]
mod pipelines;
#[path = "platform/rag.rs"]
mod rag;
#[path = "platform/robust.rs"]
mod robust;
#[path = "platform/server.rs"]
mod server;
#[path = "../deploy/dev/server.rs"]
mod servers;
#[path = "platform/shared_indexes.rs"]
mod shared_indexes;
#[path = "platform/shuffle.rs"]
mod shuffle;
#[path = "platform/sql_shell.rs"]
mod sql_shell;
#[path = "platform/traces.rs"]
mod traces;
#[path = "platform/uploads.rs"]
mod uploads;
#[path = "platform/validate.rs"]
mod validate;
#[path = "platform/versions.rs"]
mod versions;
#[path = "platform/versions_at_once.rs"]
mod versions_at_once;
