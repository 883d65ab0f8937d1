//! The catalog store: tenants, users, collections, documents, topics, pipelines, models, keys and settings in a database.
//!
//! [`Catalog`] is the handle; each file adds the methods of one idea to it. Every statement runs on SQLite and on
//! PostgreSQL alike (`query.rs`); what differs between the two is in `sqlite.rs` and `postgres.rs`, and `migrations/` has
//! the tables for both.

mod access;
mod audit;
mod collections;
mod conversations;
mod database;
mod documents;
mod error;
mod invites;
mod keys;
mod linked;
mod message_months;
mod messages;
mod models;
mod news;
mod objects;
mod outbox;
mod page;
mod passwords;
mod pipelines;
mod postgres;
mod principal;
mod processes;
mod query;
mod quotas;
mod roles;
mod seal;
mod sessions;
mod signing;
mod splits;
mod sqlite;
mod state;
mod summaries;
mod tenant_settings;
mod tenants;
mod topic_schema;
mod topics;
mod users;
mod versions;

pub use audit::{AuditEvent, NewAuditEvent};
pub use collections::{Collection, CollectionConfig, CollectionCounts};
pub use conversations::{Conversation, ConversationChange, NewConversation, Owner};
pub use database::{Catalog, Clock};
pub use documents::{
    DocumentFilter, DocumentInfo, ExpectedInIndex, LiveContent, Unchanged, VersionInfo,
};
pub use error::CatalogError;
pub use invites::Invite;
pub use keys::{ApiKey, KeyId, NewKey, Scope, SecretKey, host_name};
pub use message_months::MessageMonths;
pub use messages::{
    Feedback, FinishedAnswer, MessageRole, MessageState, NewQuestion, StoredMessage,
};
pub use models::Model;
pub use outbox::{ConversationEvent, EventKind, OutboxEvent};
pub use page::{Listing, PAGE_LIMIT_MAX, Page};
pub use passwords::LoginRecord;
pub use pipelines::{DesiredState, Pipeline, PipelineVersion};
pub use principal::{Budget, BudgetWindow, Caller, KeyLimits, Principal};
pub use processes::Process;
pub use quotas::{Quota, Quotas, Usage};
pub use roles::UserRole;
pub use seal::MasterKey;
pub use sessions::{Refreshed, Session, SessionId, SessionInfo};
pub use signing::{SigningKey, SigningTimes, VerifyingKey};
pub use splits::{NewSplit, Published, SplitDocument, SplitInfo, SplitSeq, SplitState};
pub use state::{Applied, DocumentState, News};
pub use summaries::ConversationSummary;
pub use tenants::Tenant;
pub use topic_schema::{
    SchemaChange, SchemaMismatch, check_batch, evolve, schema_from_json, schema_to_json,
};
pub use topics::{Retention, Topic, WireFormat, built_in_topics};
pub use users::{NewUser, User, UserChange, UserId, UserState, check_email};
pub use versions::{BeginOutcome, Begun, NewVersion, VERSIONS_PER_CALL_MAX};
