//! SQL over everything the platform holds: the catalog, the chunks of collections, the topics of the log, and search.
//!
//! One [`SqlEngine`] serves many tenants. Each session sees one tenant's rows only:
//!
//! ```text
//! public.collections, documents, document_versions, topics, pipelines, models    the catalog, read when scanned
//! chunks.<collection>                                                            the indexed chunks of a collection
//! topic.<topic>                              the rows of a topic, plus _partition, _offset and _appended_at
//! hybrid_search(collection, query [, k])     a table function: vector and keyword search, fused
//! information_schema.*                       what there is
//! ```
//!
//! Names with dots, capitals or hyphens are quoted: `topic."document.indexed"`; Chinese ones work with and without.
//!
//! Sessions only read. A statement that would write, define, copy or configure is refused before it is planned, and
//! the session knows no file system, so no statement can open a file. Every query has a deadline, and all queries
//! together a memory bound ([`SqlLimits`]).
//!
//! [`serve_postgres`] speaks the PostgreSQL protocol, so that `psql` and drivers work. Search itself is left to
//! `serving`, which brings an implementation of [`Search`].

mod engine;
mod error;
mod functions;
mod postgres;
mod services;
mod tables;
mod tenant;

pub use engine::{SqlEngine, SqlLimits};
pub use error::SqlError;
pub use postgres::{KeyCheck, PostgresOptions, serve_postgres};
pub use services::{Search, SearchRow, SqlServices};
