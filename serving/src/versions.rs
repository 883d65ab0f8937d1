//! Versions of a document: what one held, what changed between two, and going back to one.
//!
//! Going back makes a new version with the old content, so history only ever grows. Comparing is done on the text that
//! the parsers make of the content, so it works for every format that can be searched.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use similar::{ChangeTag, TextDiff};
use va_catalog::store::{Begun, CatalogError, DocumentInfo, VersionInfo};
use va_catalog::{CollectionRef, DocumentId, Version, Viewer};
use va_connectors::objects::ObjectError;
use va_parse_worker::{Parser, Source};

use crate::ingest::{self, IngestError, NewDocument};
use crate::platform::Platform;

/// How long the smallest difference is looked for; after that, a larger one is good enough.
const DIFF_WAIT: Duration = Duration::from_secs(5);
/// Unchanged lines shown around a change.
const CONTEXT_LINES: usize = 3;

/// Why a call about versions was refused.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error("document `{id}` has no version {version}; it has {existing}")]
    Unknown {
        id: DocumentId,
        version: Version,
        existing: String,
    },
    #[error("the document has only one version, so there is nothing to compare it with")]
    Only,
    #[error(
        "version {0} is the first, so there is none before it to compare it with: name the other one"
    )]
    First(Version),
    #[error(
        "the content of version {version} is not stored any more: of a document the newest {versions_max} versions are kept (`documents.versions_max`)"
    )]
    Gone { version: Version, versions_max: u32 },
    #[error("version {version} cannot be read as text: {reason}")]
    Unreadable { version: Version, reason: String },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Objects(ObjectError),
    #[error("compare: {0}")]
    Compare(String),
}

/// What changed between the texts of two versions.
#[derive(Debug, Serialize)]
pub struct Difference {
    pub from: Version,
    pub to: Version,
    /// Lines that only the newer has, and only the older.
    pub added: usize,
    pub removed: usize,
    /// A unified diff; empty when the texts are equal.
    pub diff: String,
}

/// The document as it is now, and the version as it was recorded.
pub async fn find(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
    version: Version,
) -> Result<(DocumentInfo, VersionInfo), VersionError> {
    let document = platform.catalog.document(collection, id).await?;
    let versions = platform.catalog.document_versions(collection, id).await?;
    let found = pick(&versions, id, version)?.clone();
    Ok((document, found))
}

fn pick(
    versions: &[VersionInfo],
    id: DocumentId,
    version: Version,
) -> Result<&VersionInfo, VersionError> {
    versions
        .iter()
        .find(|found| found.version == version)
        .ok_or_else(|| {
            let all: Vec<String> = versions
                .iter()
                .rev()
                .map(|v| v.version.to_string())
                .collect();
            VersionError::Unknown {
                id,
                version,
                existing: all.join(", "),
            }
        })
}

/// The bytes of a version, as they were uploaded.
pub async fn content(platform: &Platform, version: &VersionInfo) -> Result<Bytes, VersionError> {
    platform
        .objects
        .get(&version.content_hash)
        .await
        .map_err(|error| match error {
            ObjectError::NotFound(_) => VersionError::Gone {
                version: version.version,
                versions_max: platform.settings.documents.versions_max,
            },
            other => VersionError::Objects(other),
        })
}

/// Compares two versions: without `to`, the one that search shows; without `from`, the one before `to`.
pub async fn diff(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
    from: Option<Version>,
    to: Option<Version>,
) -> Result<Difference, VersionError> {
    let document = platform.catalog.document(collection, id).await?;
    let versions = platform.catalog.document_versions(collection, id).await?;
    let shown = document.current_version.unwrap_or(document.version);
    let to = pick(&versions, id, to.unwrap_or(shown))?;
    let from = match from {
        Some(from) => pick(&versions, id, from)?,
        // Newest first.
        None => versions
            .iter()
            .find(|version| version.version < to.version)
            .ok_or_else(|| match versions.len() {
                1 => VersionError::Only,
                _ => VersionError::First(to.version),
            })?,
    };
    let (old, new) = (
        text(platform, &document.name, from).await?,
        text(platform, &document.name, to).await?,
    );
    let title = |version: &VersionInfo| format!("{} (version {})", document.name, version.version);
    let (old_title, new_title) = (title(from), title(to));
    let (from, to) = (from.version, to.version);
    tokio::task::spawn_blocking(move || {
        let lines = TextDiff::configure()
            .timeout(DIFF_WAIT)
            .diff_lines(&old, &new);
        let count = |tag| {
            lines
                .iter_all_changes()
                .filter(|change| change.tag() == tag)
                .count()
        };
        Difference {
            from,
            to,
            added: count(ChangeTag::Insert),
            removed: count(ChangeTag::Delete),
            diff: lines
                .unified_diff()
                .context_radius(CONTEXT_LINES)
                .header(&old_title, &new_title)
                .to_string(),
        }
    })
    .await
    .map_err(|error| VersionError::Compare(error.to_string()))
}

/// The text of a version, with a line end after its last line.
async fn text(
    platform: &Platform,
    name: &str,
    version: &VersionInfo,
) -> Result<String, VersionError> {
    let bytes = content(platform, version).await?;
    let document = Source {
        name: name.to_owned(),
        content_type: version.content_type.clone(),
        bytes,
    };
    let parsed = parse(platform, document).await;
    let mut text = parsed.map_err(|reason| VersionError::Unreadable {
        version: version.version,
        reason,
    })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The text of a document, read by a parser process within its limits.
async fn parse(platform: &Platform, document: Source) -> Result<String, String> {
    let parser = &platform.parser;
    let mut parsed = parser
        .parse(vec![document], &parser.limits())
        .await
        .map_err(|error| error.to_string())?;
    // One in, one out.
    match parsed.pop() {
        Some(Ok(document)) => Ok(document.text),
        Some(Err(failure)) => Err(failure.to_string()),
        None => Err("the parser gave no answer".to_owned()),
    }
}

/// Begins a new version with the content, content type and metadata of an old one; `Unchanged` when the newest version
/// that did not fail has that content already. Whether the caller may read the document, it has asked before.
pub async fn rollback(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
    version: Version,
) -> Result<Begun, VersionError> {
    let (document, old) = find(platform, collection, id, version).await?;
    let bytes = content(platform, &old).await?;
    let again = NewDocument {
        name: document.name,
        uri: document.uri,
        content_type: old.content_type,
        metadata: old.metadata,
        // Who may read it does not go back with the content.
        readers: None,
    };
    let stream = futures::stream::once(std::future::ready(Ok(bytes)));
    Ok(ingest::upload(platform, collection, &Viewer::Everything, again, stream).await?)
}
