//! Beginning document versions: the catalog's side of an upload, one at a time or a thousand in one transaction.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::collections::require_collection;
use super::database::{Catalog, Part};
use super::documents::{Latest, LiveVersion, latest_of, value_rows};
use super::error::CatalogError;
use super::query::{Transaction, query};
use super::state::DocumentState;
use crate::ids::{CollectionRef, ContentHash, DocumentId, Version};

/// The most versions that one call may begin.
pub const VERSIONS_PER_CALL_MAX: usize = 1000;

/// Rows of one `INSERT`. Beyond this nothing is gained, and SQLite, where sqlx looks for the name of every parameter among
/// all, loses.
pub(crate) const ROWS_PER_INSERT: usize = 16;

/// The content of a document, to be begun as a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVersion {
    /// The path or URL it comes from; the same URI is the same document.
    pub uri: String,
    pub name: String,
    pub content_type: Option<String>,
    pub content_hash: ContentHash,
    /// In bytes.
    pub size: u64,
    pub metadata: BTreeMap<String, String>,
}

/// What beginning a version found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeginOutcome {
    /// The first version, or the first after a removal.
    New,
    /// Another content than the newest version that did not fail.
    Changed,
    /// That content is there; no version was made.
    Unchanged,
}

/// The version that holds the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub id: DocumentId,
    pub version: Version,
    pub outcome: BeginOutcome,
    /// `UPLOADING` when new or changed. When unchanged and still `UPLOADING`, an earlier upload did not get as far as
    /// the log: append it (again).
    pub state: DocumentState,
}

impl Catalog {
    /// Begins a version of the document at `new.uri`, in state `UPLOADING`, unless its content is there already.
    pub async fn begin_version(
        &self,
        collection: &CollectionRef,
        new: &NewVersion,
    ) -> Result<Begun, CatalogError> {
        let begun = self
            .begin_versions(collection, std::slice::from_ref(new))
            .await?;
        // One in, one out.
        begun
            .into_iter()
            .next()
            .ok_or_else(|| CatalogError::not_found("document", &new.uri))
    }

    /// [`Catalog::begin_version`] for up to [`VERSIONS_PER_CALL_MAX`] documents in one transaction; the results are in
    /// the order of `new`. Of a URI that occurs twice, the later is the newer.
    pub async fn begin_versions(
        &self,
        collection: &CollectionRef,
        new: &[NewVersion],
    ) -> Result<Vec<Begun>, CatalogError> {
        if new.len() > VERSIONS_PER_CALL_MAX {
            return Err(CatalogError::Invalid(format!(
                "{} versions in one call: begin at most {VERSIONS_PER_CALL_MAX}",
                new.len()
            )));
        }
        for new in new {
            if new.uri.is_empty() || new.name.is_empty() {
                return Err(CatalogError::Invalid(format!(
                    "a document needs a uri and a name, but these are `{}` and `{}`",
                    new.uri, new.name
                )));
            }
            i64::try_from(new.size).map_err(|_| {
                CatalogError::Invalid(format!("size {} of `{}` is too large", new.size, new.uri))
            })?;
        }
        let ids: Vec<_> = new
            .iter()
            .map(|new| DocumentId::of(collection, &new.uri))
            .collect();

        let mut transaction = self.begin(Part::Collection(collection)).await?;
        require_collection(&mut transaction, collection).await?;
        let mut latest = latest_of(&mut transaction, collection, &ids).await?;
        let begun: Vec<_> = new
            .iter()
            .zip(&ids)
            .map(|(new, id)| begin(*id, &new.content_hash, &mut latest))
            .collect();
        let rows: Vec<_> = new
            .iter()
            .zip(&begun)
            .filter(|(_, begun)| begun.outcome != BeginOutcome::Unchanged)
            .collect();
        if !rows.is_empty() {
            let now = self.now_ms();
            insert_documents(&mut transaction, collection, &rows, now).await?;
            insert_versions(&mut transaction, collection, &rows, now).await?;
        }
        transaction.commit().await?;
        Ok(begun)
    }
}

/// Decides what a content of a document becomes, and notes it in `latest`.
fn begin(
    id: DocumentId,
    content_hash: &ContentHash,
    latest: &mut BTreeMap<DocumentId, Latest>,
) -> Begun {
    let known = latest.get(&id);
    let live = known.and_then(|known| known.live.as_ref());
    if let Some(live) = live.filter(|live| live.content_hash == *content_hash) {
        return Begun {
            id,
            version: live.version,
            outcome: BeginOutcome::Unchanged,
            state: live.state,
        };
    }
    let begun = Begun {
        id,
        version: Version(known.map_or(1, |known| known.version.0 + 1)),
        outcome: if live.is_some() {
            BeginOutcome::Changed
        } else {
            BeginOutcome::New
        },
        state: DocumentState::Uploading,
    };
    latest.insert(
        id,
        Latest {
            version: begun.version,
            live: Some(LiveVersion {
                version: begun.version,
                state: begun.state,
                content_hash: content_hash.clone(),
            }),
        },
    );
    begun
}

async fn insert_documents(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    rows: &[(&NewVersion, &Begun)],
    now: i64,
) -> Result<(), CatalogError> {
    // One statement may not touch a row twice (PostgreSQL refuses), so only the newest of a document goes in.
    let newest: BTreeMap<DocumentId, &(&NewVersion, &Begun)> =
        rows.iter().map(|row| (row.1.id, row)).collect();
    let newest: Vec<_> = newest.into_values().collect();
    for part in newest.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO documents (tenant_id, collection, id, uri, name, name_folded, latest_version, created_at, updated_at) \
             VALUES {} ON CONFLICT (tenant_id, collection, id) DO UPDATE SET name = excluded.name, \
             name_folded = excluded.name_folded, latest_version = excluded.latest_version, updated_at = excluded.updated_at",
            value_rows(1, part.len(), 9)
        );
        let mut query = query(&statement);
        for (new, begun) in part {
            query = query
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(begun.id.to_string())
                .bind(&new.uri)
                .bind(&new.name)
                .bind(new.name.to_lowercase())
                .bind(i64::from(begun.version.0))
                .bind(now)
                .bind(now);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

async fn insert_versions(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    rows: &[(&NewVersion, &Begun)],
    now: i64,
) -> Result<(), CatalogError> {
    for part in rows.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO document_versions (tenant_id, collection, document_id, version, state, content_hash, \
             content_type, size, metadata, chunks, created_at, updated_at) VALUES {}",
            value_rows(1, part.len(), 12)
        );
        let mut query = query(&statement);
        for (new, begun) in part {
            let metadata = serde_json::to_string(&new.metadata)
                .map_err(|error| CatalogError::storage("write the metadata", error))?;
            query = query
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(begun.id.to_string())
                .bind(i64::from(begun.version.0))
                .bind(begun.state.as_str())
                .bind(new.content_hash.as_str())
                .bind(&new.content_type)
                // Checked before the transaction.
                .bind(new.size as i64)
                .bind(metadata)
                .bind(0_i64)
                .bind(now)
                .bind(now);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}
