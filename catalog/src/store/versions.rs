//! Beginning document versions: the catalog's side of an upload, one at a time or a thousand in one transaction.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::access::{as_stored, note_restricted};
use super::collections::require_collection;
use super::database::{Catalog, Part};
use super::documents::{Latest, LiveVersion, latest_of, value_rows};
use super::error::CatalogError;
use super::query::{Transaction, query};
use super::quotas::DocumentRoom;
use super::state::DocumentState;
use crate::ids::{CollectionRef, ContentHash, DocumentId, Version};
use crate::readers::{Readers, check_keys};

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
    /// Who may read the document from now on; `None`: whoever may read it already, and of a new one everybody.
    pub readers: Option<Readers>,
}

/// What beginning a version found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeginOutcome {
    /// The first version, or the first after a removal.
    New,
    /// Another content than the newest version that did not fail, or other readers.
    Changed,
    /// That content is there, with these readers; no version was made.
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
    /// the order of `new`. Of a URI that occurs twice, the later is the newer. All or none: when one of them is more than
    /// the tenant may have, none has begun.
    pub async fn begin_versions(
        &self,
        collection: &CollectionRef,
        new: &[NewVersion],
    ) -> Result<Vec<Begun>, CatalogError> {
        let (transaction, begun) = self.begin_in(collection, new).await?;
        let begun = begun.into_iter().collect::<Result<Vec<_>, _>>()?;
        transaction.commit().await?;
        Ok(begun)
    }

    /// [`Catalog::begin_versions`], of which each that the tenant's quotas have no room for is refused alone.
    pub async fn begin_versions_with_room(
        &self,
        collection: &CollectionRef,
        new: &[NewVersion],
    ) -> Result<Vec<Result<Begun, CatalogError>>, CatalogError> {
        let (transaction, begun) = self.begin_in(collection, new).await?;
        transaction.commit().await?;
        Ok(begun)
    }

    /// Begins versions in a transaction that is still to be committed. What is refused has written nothing.
    async fn begin_in(
        &self,
        collection: &CollectionRef,
        new: &[NewVersion],
    ) -> Result<(Transaction, Vec<Result<Begun, CatalogError>>), CatalogError> {
        if new.len() > VERSIONS_PER_CALL_MAX {
            return Err(CatalogError::Invalid(format!(
                "{} versions in one call: begin at most {VERSIONS_PER_CALL_MAX}",
                new.len()
            )));
        }
        for new in new {
            check_new(new)?;
        }
        let ids: Vec<_> = new
            .iter()
            .map(|new| DocumentId::of(collection, &new.uri))
            .collect();

        let mut transaction = self.begin(Part::Collection(collection)).await?;
        require_collection(&mut transaction, collection).await?;
        let mut latest = latest_of(&mut transaction, collection, &ids).await?;
        let mut room = DocumentRoom::of(&mut transaction, &collection.tenant).await?;
        let mut begun = Vec::with_capacity(new.len());
        let mut rows: Vec<(&NewVersion, Begun, Readers)> = Vec::new();
        for (new, id) in new.iter().zip(&ids) {
            let decided = match unchanged(*id, new, &latest) {
                Some(unchanged) => Ok(unchanged),
                None => {
                    let held = latest.get(id).and_then(|known| known.size);
                    room.take(held, new.size)
                        .map(|()| begin(*id, new, &mut latest))
                }
            };
            if let Ok(begun) = &decided
                && begun.outcome != BeginOutcome::Unchanged
            {
                let readers = latest.get(id).map(|known| known.readers.clone());
                rows.push((new, *begun, readers.unwrap_or_default()));
            }
            begun.push(decided);
        }
        if !rows.is_empty() {
            let now = self.now_ms();
            insert_documents(&mut transaction, collection, &rows, now).await?;
            insert_versions(&mut transaction, collection, &rows, now).await?;
            if rows.iter().any(|(.., readers)| !readers.is_everybody()) {
                note_restricted(&mut transaction, collection).await?;
            }
        }
        Ok((transaction, begun))
    }
}

/// Refuses what no document can be.
fn check_new(new: &NewVersion) -> Result<(), CatalogError> {
    if new.uri.is_empty() || new.name.is_empty() {
        return Err(CatalogError::Invalid(format!(
            "a document needs a uri and a name, but these are `{}` and `{}`",
            new.uri, new.name
        )));
    }
    check_keys(new.metadata.keys())
        .map_err(|reason| CatalogError::Invalid(format!("metadata of `{}`: {reason}", new.uri)))?;
    i64::try_from(new.size).map_err(|_| {
        CatalogError::Invalid(format!("size {} of `{}` is too large", new.size, new.uri))
    })?;
    Ok(())
}

/// The version that has the content already, for the same readers.
fn unchanged(
    id: DocumentId,
    new: &NewVersion,
    latest: &BTreeMap<DocumentId, Latest>,
) -> Option<Begun> {
    let known = latest.get(&id)?;
    let live = known.live.as_ref()?;
    // Behind a version that failed, the indexes have the readers of the one before it.
    let same_readers = new
        .readers
        .as_ref()
        .is_none_or(|readers| *readers == known.readers && live.version == known.version);
    (live.content_hash == new.content_hash && same_readers).then_some(Begun {
        id,
        version: live.version,
        outcome: BeginOutcome::Unchanged,
        state: live.state,
    })
}

/// What the content of a document becomes, noted in `latest`.
fn begin(id: DocumentId, new: &NewVersion, latest: &mut BTreeMap<DocumentId, Latest>) -> Begun {
    let known = latest.get(&id);
    let live = known.and_then(|known| known.live.as_ref());
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
    let before = known.map(|known| known.readers.clone());
    let readers = new.readers.clone().or(before).unwrap_or_default();
    latest.insert(
        id,
        Latest {
            version: begun.version,
            size: Some(new.size),
            readers,
            live: Some(LiveVersion {
                version: begun.version,
                state: begun.state,
                content_hash: new.content_hash.clone(),
            }),
        },
    );
    begun
}

pub(super) async fn insert_documents(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    rows: &[(&NewVersion, Begun, Readers)],
    now: i64,
) -> Result<(), CatalogError> {
    // One statement may not touch a row twice (PostgreSQL refuses), so only the newest of a document goes in.
    let newest: BTreeMap<DocumentId, &(&NewVersion, Begun, Readers)> =
        rows.iter().map(|row| (row.1.id, row)).collect();
    let newest: Vec<_> = newest.into_values().collect();
    for part in newest.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO documents (tenant_id, collection, id, uri, name, name_folded, latest_version, readers, created_at, \
             updated_at) VALUES {} ON CONFLICT (tenant_id, collection, id) DO UPDATE SET name = excluded.name, \
             name_folded = excluded.name_folded, latest_version = excluded.latest_version, readers = excluded.readers, \
             updated_at = excluded.updated_at",
            value_rows(1, part.len(), 10)
        );
        let mut query = query(&statement);
        for (new, begun, readers) in part {
            query = query
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(begun.id.to_string())
                .bind(&new.uri)
                .bind(&new.name)
                .bind(new.name.to_lowercase())
                .bind(i64::from(begun.version.0))
                .bind(as_stored(readers))
                .bind(now)
                .bind(now);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

pub(super) async fn insert_versions(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    rows: &[(&NewVersion, Begun, Readers)],
    now: i64,
) -> Result<(), CatalogError> {
    for part in rows.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO document_versions (tenant_id, collection, document_id, version, state, content_hash, \
             content_type, size, metadata, chunks, created_at, updated_at) VALUES {}",
            value_rows(1, part.len(), 12)
        );
        let mut query = query(&statement);
        for (new, begun, _) in part {
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
