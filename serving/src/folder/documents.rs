//! The collection as those see it who keep it like a folder. Two implementations: over HTTP and in the process.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use va_catalog::store::DocumentState;
use va_catalog::{ContentHash, DocumentId, Version};

/// Most items of [`Documents::check`], and ids of one call.
pub const ITEMS_MAX: usize = 1_000;
/// Most files of [`Documents::hand_over`].
pub const FILES_MAX: usize = 200;
/// Bytes of all files of one [`Documents::hand_over`] together.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// A larger file goes alone, as a stream.
pub const SMALL_BYTES_MAX: u64 = 4 << 20;

/// The collection could not be reached, or refused the whole call. What was handed over before stays so; the next run
/// finds out by the hashes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SyncError(pub String);

impl SyncError {
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// What the collection holds of the contents asked about.
#[derive(Debug, Default, Deserialize)]
pub struct Checked {
    /// With the same content.
    pub unchanged: Vec<Held>,
    /// URIs with another content. What is neither is new.
    pub changed: Vec<String>,
    /// The largest document that is taken.
    pub upload_bytes_max: u64,
}

/// A document with the content that was asked about.
#[derive(Debug, Clone, Deserialize)]
pub struct Held {
    pub uri: String,
    pub id: DocumentId,
    pub version: Version,
    pub state: DocumentState,
}

/// A file in memory.
#[derive(Debug, Clone)]
pub struct Small {
    pub uri: String,
    pub name: String,
    pub meta: BTreeMap<String, String>,
    pub bytes: Bytes,
}

/// A file to be streamed.
#[derive(Debug, Clone, Copy)]
pub struct Large<'a> {
    pub uri: &'a str,
    pub name: &'a str,
    pub meta: &'a BTreeMap<String, String>,
    pub path: &'a Path,
}

/// A document that was handed over.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Taken {
    pub id: DocumentId,
    pub version: Version,
    pub state: DocumentState,
}

/// How a document stands: its newest version.
#[derive(Debug, Clone, Deserialize)]
pub struct Standing {
    pub id: DocumentId,
    pub uri: String,
    pub version: Version,
    pub state: DocumentState,
    /// Why it is `FAILED`.
    pub error: Option<String>,
    pub hash: ContentHash,
}

/// What keeps documents from being indexed.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The pipeline goes on by itself.
    Restarting(String),
    /// Somebody has to look.
    Failed(String),
}

/// The documents of one collection.
#[async_trait]
pub trait Documents: Send + Sync {
    /// Compares up to [`ITEMS_MAX`] contents with what is there; of none, it tells the limit only.
    async fn check(&self, contents: &[(String, ContentHash)]) -> Result<Checked, SyncError>;

    /// Hands over up to [`FILES_MAX`] files; each has its outcome, in their order. On return those taken are durable.
    async fn hand_over(&self, files: Vec<Small>) -> Result<Vec<Result<Taken, String>>, SyncError>;

    /// Hands over one file as a stream.
    async fn hand_over_large(&self, file: Large<'_>) -> Result<Taken, String>;

    /// Ids and URIs of the documents whose URI begins with the prefix.
    async fn under(&self, prefix: &str) -> Result<Vec<(DocumentId, String)>, SyncError>;

    /// How up to [`ITEMS_MAX`] documents stand; those that are gone are left out.
    async fn standing(&self, ids: &[DocumentId]) -> Result<Vec<Standing>, SyncError>;

    /// Removes up to [`ITEMS_MAX`] documents: they are marked at once and leave the indexes soon after.
    async fn remove(&self, ids: &[DocumentId]) -> Result<(), SyncError>;

    /// What is wrong with indexing, if anything.
    async fn trouble(&self) -> Result<Option<Trouble>, SyncError>;
}
