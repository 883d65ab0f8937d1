//! The catalog store: tenants, collections, documents, topics, pipelines, models, keys and settings in a database.
//!
//! [`Catalog`] is the handle; each file adds the methods of one idea to it. Every statement runs on SQLite and on
//! PostgreSQL alike (`query.rs`); what differs between the two is in `sqlite.rs` and `postgres.rs`, and `migrations/` has
//! the tables for both.

mod collections;
mod database;
mod documents;
mod error;
mod keys;
mod models;
mod news;
mod objects;
mod page;
mod pipelines;
mod postgres;
mod processes;
mod query;
mod splits;
mod sqlite;
mod state;
mod tenant_settings;
mod tenants;
mod topic_schema;
mod topics;
mod versions;

pub use collections::{Collection, CollectionConfig, CollectionCounts};
pub use database::{Catalog, Clock};
pub use documents::{
    DocumentFilter, DocumentInfo, ExpectedInIndex, LiveContent, Unchanged, VersionInfo,
};
pub use error::CatalogError;
pub use keys::{ApiKey, KeyId, Principal, Scope, SecretKey, host_name};
pub use models::Model;
pub use page::{Listing, PAGE_LIMIT_MAX, Page};
pub use pipelines::{DesiredState, Pipeline, PipelineVersion};
pub use processes::Process;
pub use splits::{NewSplit, Published, SplitDocument, SplitInfo, SplitSeq, SplitState};
pub use state::{Applied, DocumentState, News};
pub use tenants::Tenant;
pub use topic_schema::{
    SchemaChange, SchemaMismatch, check_batch, evolve, schema_from_json, schema_to_json,
};
pub use topics::{Retention, Topic, WireFormat, built_in_topics};
pub use versions::{BeginOutcome, Begun, NewVersion, VERSIONS_PER_CALL_MAX};
