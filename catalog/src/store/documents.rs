//! Reading documents and their versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::access::{read_readers, visible};
use super::database::Catalog;
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{On, Row, Why, query};
use super::state::DocumentState;
use crate::ids::{CollectionName, CollectionRef, ContentHash, DocumentId, TenantId, Version};
use crate::readers::{Readers, Viewer};

/// How many values one statement asks for. More costs SQLite more: sqlx looks for the name of every parameter among all.
pub(crate) const IDS_PER_QUERY: usize = 200;

/// A document as clients see it: its newest version, whatever the state of that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentInfo {
    pub id: DocumentId,
    pub name: String,
    pub uri: String,
    pub version: Version,
    pub state: DocumentState,
    /// The version that search shows: the newest one ready. An older one than `version` while that is in work or failed.
    pub current_version: Option<Version>,
    /// Why it is `FAILED`.
    pub error: Option<String>,
    pub chunks: u32,
    pub title: Option<String>,
    /// In bytes.
    pub size: u64,
    pub content_type: Option<String>,
    pub content_hash: ContentHash,
    pub metadata: BTreeMap<String, String>,
    /// Who may read it, whichever version; none named: everybody in the tenant who may read documents.
    pub readers: Readers,
    /// UTC milliseconds; `created_at` of the document, `updated_at` of the version.
    pub created_at: i64,
    pub updated_at: i64,
}

/// One version of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    pub version: Version,
    pub state: DocumentState,
    pub error: Option<String>,
    pub chunks: u32,
    pub title: Option<String>,
    /// In bytes.
    pub size: u64,
    pub content_type: Option<String>,
    pub content_hash: ContentHash,
    pub metadata: BTreeMap<String, String>,
    /// UTC milliseconds.
    pub created_at: i64,
    pub updated_at: i64,
}

/// Which documents to list. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentFilter {
    /// The state of the newest version.
    pub state: Option<DocumentState>,
    /// Part of the name; upper and lower case are the same.
    pub name: Option<String>,
    /// Whose eyes the list is for.
    #[serde(skip)]
    pub viewer: Viewer,
}

/// What the indexes must hold of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedInIndex {
    pub id: DocumentId,
    pub uri: String,
    /// The newest version and its state.
    pub latest: (Version, DocumentState),
    /// The version that search shows, with its number of chunks; `None` when there must be nothing.
    pub current: Option<(Version, u32)>,
}

/// A document whose newest version that did not fail has the content asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    pub uri: String,
    pub id: DocumentId,
    pub version: Version,
    /// `UPLOADING` means that it may not be in the log: begin it again and append it.
    pub state: DocumentState,
}

/// What a collection holds at a URI: the newest version that neither failed nor is on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveContent {
    pub id: DocumentId,
    pub version: Version,
    pub state: DocumentState,
    pub content_hash: ContentHash,
    pub readers: Readers,
}

const DOCUMENT: &str = "SELECT d.id, d.name, d.uri, v.version, v.state, d.current_version, v.error, v.chunks, \
    v.title, v.size, v.content_type, v.content_hash, v.metadata, d.readers, d.created_at, v.updated_at \
    FROM documents d JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
    AND v.document_id = d.id AND v.version = d.latest_version";

impl Catalog {
    /// The document, unless it is gone.
    pub async fn document(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
    ) -> Result<DocumentInfo, CatalogError> {
        self.collection(collection).await?;
        let row = query(&format!(
            "{DOCUMENT} WHERE d.tenant_id = $1 AND d.collection = $2 AND d.id = $3 AND v.state <> 'DELETED'"
        ))
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .bind(document.to_string())
        .fetch_optional(self.read_of(&collection.tenant))
        .await?;
        row.map(|row| read_document(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("document", document))
    }

    /// Those of the documents that are there, by id; without those that are gone.
    pub async fn documents_by_id(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
    ) -> Result<Vec<DocumentInfo>, CatalogError> {
        let mut found = Vec::with_capacity(documents.len());
        for part in documents.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "{DOCUMENT} WHERE d.tenant_id = $1 AND d.collection = $2 AND v.state <> 'DELETED' AND d.id IN ({}) ORDER BY d.id",
                parameters(3, part.len())
            );
            let mut query = query(&statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str());
            for id in part {
                query = query.bind(id.to_string());
            }
            for row in query.fetch_all(self.read_of(&collection.tenant)).await? {
                found.push(read_document(&row)?);
            }
        }
        Ok(found)
    }

    /// The collection's documents, by URI.
    pub async fn documents(
        &self,
        collection: &CollectionRef,
        filter: &DocumentFilter,
        page: &Page,
    ) -> Result<Listing<DocumentInfo>, CatalogError> {
        self.collection(collection).await?;
        let (seen, readers) = visible(&filter.viewer, 7);
        // `$4` and `$5` always occur, so that the statement has few shapes.
        let statement = format!(
            "{DOCUMENT} WHERE d.tenant_id = $1 AND d.collection = $2 AND d.uri > $3 AND v.state <> 'DELETED' \
             AND ($4 = '' OR v.state = $4) AND d.name_folded LIKE $5 ESCAPE '!' AND {seen} ORDER BY d.uri LIMIT $6"
        );
        let rows = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .bind(page.after()?)
            .bind(filter.state.map_or("", DocumentState::as_str))
            .bind(like_pattern(filter.name.as_deref().unwrap_or_default()))
            .bind(page.rows()?)
            .bind_all(readers)
            .fetch_all(self.read_of(&collection.tenant))
            .await?;
        let documents = rows.iter().map(read_document).collect::<Result<_, _>>()?;
        Ok(page.listing(documents, |document: &DocumentInfo| &document.uri))
    }

    /// The document's versions, newest first.
    pub async fn document_versions(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
    ) -> Result<Vec<VersionInfo>, CatalogError> {
        let rows = query(
            "SELECT version, state, error, chunks, title, size, content_type, content_hash, metadata, created_at, updated_at \
             FROM document_versions WHERE tenant_id = $1 AND collection = $2 AND document_id = $3 ORDER BY version DESC",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .bind(document.to_string())
        .fetch_all(self.read_of(&collection.tenant))
        .await?;
        if rows.is_empty() {
            return Err(CatalogError::not_found("document", document));
        }
        rows.iter().map(read_version).collect()
    }

    /// Those of the `(uri, content hash)` pairs that the collection holds with that content already, in any order.
    pub async fn unchanged(
        &self,
        collection: &CollectionRef,
        contents: &[(String, ContentHash)],
    ) -> Result<Vec<Unchanged>, CatalogError> {
        let uris: Vec<&str> = contents.iter().map(|(uri, _)| uri.as_str()).collect();
        let held = self.live_contents(collection, &uris).await?;
        Ok(contents
            .iter()
            .zip(held)
            .filter_map(|((uri, hash), held)| {
                let held = held.filter(|held| held.content_hash == *hash)?;
                Some(Unchanged {
                    uri: uri.clone(),
                    id: held.id,
                    version: held.version,
                    state: held.state,
                })
            })
            .collect())
    }

    /// What the collection holds at each of the URIs, in their order: the newest version that neither failed nor is on
    /// its way out.
    pub async fn live_contents(
        &self,
        collection: &CollectionRef,
        uris: &[&str],
    ) -> Result<Vec<Option<LiveContent>>, CatalogError> {
        let mut found = Vec::with_capacity(uris.len());
        for part in uris.chunks(IDS_PER_QUERY) {
            let ids: Vec<_> = part
                .iter()
                .map(|uri| DocumentId::of(collection, uri))
                .collect();
            let latest = latest_of(self.read_of(&collection.tenant), collection, &ids).await?;
            found.extend(ids.into_iter().map(|id| {
                // Not removed: the same URI may be asked for twice.
                let known = latest.get(&id)?;
                let live = known.live.clone()?;
                Some(LiveContent {
                    id,
                    version: live.version,
                    state: live.state,
                    content_hash: live.content_hash,
                    readers: known.readers.clone(),
                })
            }));
        }
        Ok(found)
    }

    /// Ids and URIs of the documents whose URI begins with `prefix` and that the viewer may read, by URI; without those
    /// that are gone or going.
    pub async fn documents_under(
        &self,
        collection: &CollectionRef,
        viewer: &Viewer,
        prefix: &str,
        page: &Page,
    ) -> Result<Listing<(DocumentId, String)>, CatalogError> {
        let (seen, readers) = visible(viewer, 7);
        let statement = format!(
            "SELECT d.id, d.uri FROM documents d \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id AND v.version = d.latest_version \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.uri >= $3 AND d.uri < $4 AND d.uri > $5 \
               AND v.state NOT IN ('DELETING', 'DELETED') AND {seen} ORDER BY d.uri LIMIT $6"
        );
        let rows = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str())
            .bind(prefix)
            // Texts are compared by their bytes, and no text has a character above this one.
            .bind(format!("{prefix}{}", char::MAX))
            .bind(page.after()?)
            .bind(page.rows()?)
            .bind_all(readers)
            .fetch_all(self.read_of(&collection.tenant))
            .await?;
        let documents = rows
            .iter()
            .map(|row| Ok((read_id(row, "id")?, row.try_get("uri")?)))
            .collect::<Result<_, CatalogError>>()?;
        Ok(page.listing(documents, |(_, uri): &(DocumentId, String)| uri))
    }

    /// What the indexes must hold of every document that the collection ever had, by id.
    pub async fn expected_in_index(
        &self,
        collection: &CollectionRef,
    ) -> Result<Vec<ExpectedInIndex>, CatalogError> {
        let rows = query(
            "SELECT d.id, d.uri, d.latest_version, l.state, d.current_version, c.chunks FROM documents d \
             JOIN document_versions l ON l.tenant_id = d.tenant_id AND l.collection = d.collection \
               AND l.document_id = d.id AND l.version = d.latest_version \
             LEFT JOIN document_versions c ON c.tenant_id = d.tenant_id AND c.collection = d.collection \
               AND c.document_id = d.id AND c.version = d.current_version \
             WHERE d.tenant_id = $1 AND d.collection = $2 ORDER BY d.id",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .fetch_all(self.read_of(&collection.tenant))
        .await?;
        rows.iter()
            .map(|row| {
                let current = match row.try_get::<Option<i64>>("current_version")? {
                    Some(_) => Some((
                        Version(read_number(row, "current_version")?),
                        read_number(row, "chunks")?,
                    )),
                    None => None,
                };
                Ok(ExpectedInIndex {
                    id: read_id(row, "id")?,
                    uri: row.try_get("uri")?,
                    latest: (
                        Version(read_number(row, "latest_version")?),
                        read_state(row)?,
                    ),
                    current,
                })
            })
            .collect()
    }

    /// Documents of which a pipeline owes news, of every tenant, at most `limit`, whose state is older than `older_than`;
    /// for taking up what was interrupted.
    pub async fn pending_documents_all_tenants(
        &self,
        limit: u32,
        older_than: std::time::Duration,
    ) -> Result<Vec<(CollectionRef, DocumentId, Version, DocumentState)>, CatalogError> {
        let age = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let rows = query(
            "SELECT tenant_id, collection, document_id, version, state FROM document_versions \
             WHERE state IN ('UPLOADING', 'PROCESSING', 'DELETING') AND updated_at <= $2 \
             ORDER BY tenant_id, collection, document_id, version LIMIT $1",
        )
        .bind(i64::from(limit))
        .bind(self.now_ms().saturating_sub(age))
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        rows.iter()
            .map(|row| {
                let collection = CollectionRef {
                    tenant: TenantId::new(row.try_get::<String>("tenant_id")?)?,
                    collection: CollectionName::new(row.try_get::<String>("collection")?)?,
                };
                Ok((
                    collection,
                    read_id(row, "document_id")?,
                    read_number(row, "version").map(Version)?,
                    read_state(row)?,
                ))
            })
            .collect()
    }
}

/// What is known of a document before a version is begun.
#[derive(Debug, Clone)]
pub(crate) struct Latest {
    /// The highest version number ever given.
    pub version: Version,
    /// In bytes, of the newest version, whatever its state; `None` when the document is gone or going.
    pub size: Option<u64>,
    /// Of the document, unless it is gone or going.
    pub readers: Readers,
    /// The newest version that neither failed nor is on its way out.
    pub live: Option<LiveVersion>,
}

#[derive(Debug, Clone)]
pub(crate) struct LiveVersion {
    pub version: Version,
    pub state: DocumentState,
    pub content_hash: ContentHash,
}

/// [`Latest`] of those of the documents that exist.
pub(crate) async fn latest_of(
    on: impl Into<On<'_>>,
    collection: &CollectionRef,
    ids: &[DocumentId],
) -> Result<BTreeMap<DocumentId, Latest>, CatalogError> {
    let mut on = on.into();
    let mut found = BTreeMap::new();
    for part in ids.chunks(IDS_PER_QUERY) {
        // Superseded versions need not be read: whatever superseded them is READY, and newer.
        let statement = format!(
            "SELECT d.id, d.latest_version, d.readers, l.state AS latest_state, l.size AS latest_size, \
             v.version, v.state, v.content_hash FROM documents d \
             JOIN document_versions l ON l.tenant_id = d.tenant_id AND l.collection = d.collection \
               AND l.document_id = d.id AND l.version = d.latest_version \
             LEFT JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id AND v.state IN ('UPLOADING', 'PROCESSING', 'READY') \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.id IN ({})",
            parameters(3, part.len())
        );
        let mut query = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str());
        for id in part {
            query = query.bind(id.to_string());
        }
        for row in query.fetch_all(on.again()).await? {
            let latest_state: String = row.try_get("latest_state")?;
            // What comes after a removal is a new document, which inherits nothing.
            let gone = ["DELETING", "DELETED"].contains(&latest_state.as_str());
            let latest = found.entry(read_id(&row, "id")?).or_insert(Latest {
                version: Version(read_number(&row, "latest_version")?),
                size: match gone {
                    true => None,
                    false => Some(row.try_get::<i64>("latest_size")?.unsigned_abs()),
                },
                readers: match gone {
                    true => Readers::default(),
                    false => read_readers(&row)?,
                },
                live: None,
            });
            if row.try_get::<Option<i64>>("version")?.is_none() {
                continue;
            }
            let version = Version(read_number(&row, "version")?);
            if latest
                .live
                .as_ref()
                .is_none_or(|live| live.version < version)
            {
                latest.live = Some(LiveVersion {
                    version,
                    state: read_state(&row)?,
                    content_hash: ContentHash::new(row.try_get::<String>("content_hash")?)?,
                });
            }
        }
    }
    Ok(found)
}

/// `$first, $first+1, ...`, `count` of them.
pub(crate) fn parameters(first: usize, count: usize) -> String {
    let list: Vec<_> = (first..first + count).map(|n| format!("${n}")).collect();
    list.join(", ")
}

/// `($first, $first+1), ($first+2, $first+3), ...`
pub(crate) fn value_rows(first: usize, rows: usize, columns: usize) -> String {
    let rows: Vec<_> = (0..rows)
        .map(|row| format!("({})", parameters(first + row * columns, columns)))
        .collect();
    rows.join(", ")
}

/// A pattern for `LIKE ... ESCAPE '!'` that matches texts containing `part`.
fn like_pattern(part: &str) -> String {
    let mut pattern = String::from("%");
    for c in part.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

pub(crate) fn read_document(row: &Row) -> Result<DocumentInfo, CatalogError> {
    let version = read_version(row)?;
    Ok(DocumentInfo {
        id: read_id(row, "id")?,
        name: row.try_get("name")?,
        uri: row.try_get("uri")?,
        version: version.version,
        state: version.state,
        current_version: row
            .try_get::<Option<i64>>("current_version")?
            .map(|_| read_number(row, "current_version").map(Version))
            .transpose()?,
        error: version.error,
        chunks: version.chunks,
        title: version.title,
        size: version.size,
        content_type: version.content_type,
        content_hash: version.content_hash,
        metadata: version.metadata,
        readers: read_readers(row)?,
        created_at: version.created_at,
        updated_at: version.updated_at,
    })
}

fn read_version(row: &Row) -> Result<VersionInfo, CatalogError> {
    let metadata: String = row.try_get("metadata")?;
    Ok(VersionInfo {
        version: Version(read_number(row, "version")?),
        state: read_state(row)?,
        error: row.try_get("error")?,
        chunks: read_number(row, "chunks")?,
        title: row.try_get("title")?,
        size: row.try_get::<i64>("size")?.unsigned_abs(),
        content_type: row.try_get("content_type")?,
        content_hash: ContentHash::new(row.try_get::<String>("content_hash")?)?,
        metadata: serde_json::from_str(&metadata)
            .map_err(|_| CatalogError::corrupt("metadata", &metadata))?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

pub(crate) fn read_id(row: &Row, column: &str) -> Result<DocumentId, CatalogError> {
    let id: String = row.try_get(column)?;
    id.parse().map_err(|_| CatalogError::corrupt(column, id))
}

pub(crate) fn read_number(row: &Row, column: &str) -> Result<u32, CatalogError> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number).map_err(|_| CatalogError::corrupt(column, number))
}

pub(crate) fn read_state(row: &Row) -> Result<DocumentState, CatalogError> {
    let state: String = row.try_get("state")?;
    DocumentState::parse(&state).ok_or_else(|| CatalogError::corrupt("state", &state))
}
