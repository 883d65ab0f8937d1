//! Names and meaning: what tenants, collections, documents, topics and pipeline graphs *are*.
//!
//! Every other crate speaks in these types. This crate knows no engine: it stores the catalog in a relational
//! database and leaves logs, indexes and models to `connectors`.

pub mod chunk;
pub mod event;
pub mod graph;
pub mod ids;
pub mod permission;
pub mod readers;
pub mod scope;
pub mod settings;
pub mod store;

pub use chunk::{ChunkKey, ChunkOp, ChunkRecord, DocumentRef, Filter, chunk_schema};
pub use graph::{CheckpointSpec, Graph, Node, Role};
pub use ids::{
    ChunkId, CollectionName, CollectionRef, ContentHash, DocumentId, InvalidName, NodeName, Offset,
    Partition, PipelineName, TenantId, TopicName, TopicPartition, Version,
};
pub use permission::{BuiltInRole, Permission, Permissions};
pub use readers::{Reader, Readers, Viewer};
pub use scope::{Internal, TenantScope};
pub use settings::{Settings, SettingsError};
pub use store::{Catalog, CatalogError, DocumentInfo, DocumentState};
