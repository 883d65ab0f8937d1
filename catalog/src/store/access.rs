//! Who may read which document: the condition for lists, looking up what is hidden from somebody, and changing readers.
//!
//! Readers are the document's, whichever version is looked at. The indexes hold them with the chunks of a version, so a
//! change of readers begins a new version with the same content, which goes through the pipeline like any other.

use std::collections::{BTreeMap, BTreeSet};

use super::collections::require_collection;
use super::database::{Catalog, Part};
use super::documents::{DocumentInfo, IDS_PER_QUERY, parameters, read_id};
use super::error::CatalogError;
use super::query::{Row, Transaction, query};
use super::state::DocumentState;
use super::versions::{BeginOutcome, Begun, NewVersion, insert_documents, insert_versions};
use crate::ids::{CollectionRef, ContentHash, DocumentId, TenantId, Version};
use crate::readers::{Reader, Readers, Viewer};

impl Catalog {
    /// The document, if it is there for the viewer; one that it may not read is not found.
    pub async fn document_seen_by(
        &self,
        viewer: &Viewer,
        collection: &CollectionRef,
        document: DocumentId,
    ) -> Result<DocumentInfo, CatalogError> {
        let found = self.document(collection, document).await?;
        if viewer.sees(&found.readers) {
            Ok(found)
        } else {
            Err(CatalogError::not_found("document", document))
        }
    }

    /// Those of the documents that the viewer may not read, also when they are removed.
    pub async fn hidden_among(
        &self,
        viewer: &Viewer,
        collection: &CollectionRef,
        documents: &[DocumentId],
    ) -> Result<BTreeSet<DocumentId>, CatalogError> {
        if *viewer == Viewer::Everything {
            return Ok(BTreeSet::new());
        }
        let readers = self.readers_of(collection, documents).await?;
        let hidden = readers.into_iter().filter(|(_, r)| !viewer.sees(r));
        Ok(hidden.map(|(id, _)| id).collect())
    }

    /// All documents of the tenant that the viewer may not read, also removed ones.
    pub async fn hidden_documents(
        &self,
        viewer: &Viewer,
        tenant: &TenantId,
    ) -> Result<BTreeSet<DocumentId>, CatalogError> {
        if *viewer == Viewer::Everything {
            return Ok(BTreeSet::new());
        }
        let rows =
            query("SELECT id, readers FROM documents WHERE tenant_id = $1 AND readers <> ''")
                .bind(tenant.as_str())
                .fetch_all(self.read_of(tenant))
                .await?;
        let mut hidden = BTreeSet::new();
        for row in &rows {
            if !viewer.sees(&read_readers(row)?) {
                hidden.insert(read_id(row, "id")?);
            }
        }
        Ok(hidden)
    }

    /// The readers of those of the documents that not everybody may read.
    pub async fn readers_of(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
    ) -> Result<BTreeMap<DocumentId, Readers>, CatalogError> {
        let mut found = BTreeMap::new();
        for part in documents.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "SELECT id, readers FROM documents WHERE tenant_id = $1 AND collection = $2 AND readers <> '' AND id IN ({})",
                parameters(3, part.len())
            );
            let rows = query(&statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind_all(part.iter().map(DocumentId::to_string))
                .fetch_all(self.read_of(&collection.tenant))
                .await?;
            for row in &rows {
                found.insert(read_id(row, "id")?, read_readers(row)?);
            }
        }
        Ok(found)
    }

    /// Whether a document of the collection has or had readers, so that its indexes may hold what not everybody may read.
    /// Ask after the view of the indexes was taken: what they hold was begun here before.
    pub async fn is_restricted(&self, collection: &CollectionRef) -> Result<bool, CatalogError> {
        let row = query(
            "SELECT name FROM collections WHERE tenant_id = $1 AND name = $2 AND restricted = 1",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .fetch_optional(self.read_of(&collection.tenant))
        .await?;
        Ok(row.is_some())
    }

    /// Whether that is so of any of the tenant's collections.
    pub async fn has_restricted(&self, tenant: &TenantId) -> Result<bool, CatalogError> {
        let row =
            query("SELECT name FROM collections WHERE tenant_id = $1 AND restricted = 1 LIMIT 1")
                .bind(tenant.as_str())
                .fetch_optional(self.read_of(tenant))
                .await?;
        Ok(row.is_some())
    }

    /// Refuses readers that the tenant does not have: a slip of the pen would lock everybody out.
    pub async fn check_readers(
        &self,
        tenant: &TenantId,
        readers: &Readers,
    ) -> Result<(), CatalogError> {
        for reader in readers.iter() {
            match reader {
                Reader::Role(name) => self.check_roles(tenant, std::slice::from_ref(name)).await?,
                Reader::User(id) => {
                    let row = query("SELECT id FROM users WHERE tenant_id = $1 AND id = $2")
                        .bind(tenant.as_str())
                        .bind(id)
                        .fetch_optional(self.read_of(tenant))
                        .await?;
                    if row.is_none() {
                        return Err(CatalogError::Invalid(format!(
                            "reader `{reader}` does not exist: use the id of a user of this tenant (`va user list`)"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Says who may read a document from now on. Its newest content that did not fail is begun as a new version, so that
    /// the indexes come to hold the readers; `Unchanged` when they are these already. A removed document is not found.
    pub async fn change_readers(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        readers: &Readers,
    ) -> Result<Begun, CatalogError> {
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        require_collection(&mut transaction, collection).await?;
        // The newest first; of one that only ever failed, the content that failed.
        let row = query(
            "SELECT d.uri, d.name, d.readers, d.latest_version, v.version, v.state, v.content_hash, v.content_type, \
             v.size, v.metadata FROM documents d \
             JOIN document_versions l ON l.tenant_id = d.tenant_id AND l.collection = d.collection \
               AND l.document_id = d.id AND l.version = d.latest_version \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection \
               AND v.document_id = d.id \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.id = $3 AND l.state NOT IN ('DELETING', 'DELETED') \
               AND v.state IN ('UPLOADING', 'PROCESSING', 'READY', 'FAILED') \
             ORDER BY CASE WHEN v.state = 'FAILED' THEN 1 ELSE 0 END, v.version DESC LIMIT 1",
        )
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .bind(document.to_string())
        .fetch_optional(&mut transaction)
        .await?
        .ok_or_else(|| CatalogError::not_found("document", document))?;
        let number = |column: &str| super::documents::read_number(&row, column);
        let latest = number("latest_version")?;
        let from = number("version")?;
        let state = super::documents::read_state(&row)?;
        if read_readers(&row)? == *readers && from == latest {
            return Ok(Begun {
                id: document,
                version: Version(from),
                outcome: BeginOutcome::Unchanged,
                state,
            });
        }
        let metadata: String = row.try_get("metadata")?;
        let new = NewVersion {
            uri: row.try_get("uri")?,
            name: row.try_get("name")?,
            content_type: row.try_get("content_type")?,
            content_hash: ContentHash::new(row.try_get::<String>("content_hash")?)?,
            size: row.try_get::<i64>("size")?.unsigned_abs(),
            metadata: serde_json::from_str(&metadata)
                .map_err(|_| CatalogError::corrupt("metadata", &metadata))?,
            readers: Some(readers.clone()),
        };
        let begun = Begun {
            id: document,
            version: Version(latest + 1),
            outcome: BeginOutcome::Changed,
            state: DocumentState::Uploading,
        };
        let rows = [(&new, begun, readers.clone())];
        let now = self.now_ms();
        insert_documents(&mut transaction, collection, &rows, now).await?;
        insert_versions(&mut transaction, collection, &rows, now).await?;
        if !readers.is_everybody() {
            note_restricted(&mut transaction, collection).await?;
        }
        transaction.commit().await?;
        Ok(begun)
    }
}

/// Notes that searches of the collection must look at who asks.
pub(super) async fn note_restricted(
    transaction: &mut Transaction,
    collection: &CollectionRef,
) -> Result<(), CatalogError> {
    query("UPDATE collections SET restricted = 1 WHERE tenant_id = $1 AND name = $2 AND restricted = 0")
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// The condition on `d.readers` that the viewer may read the document, with its parameters from `$first` on.
///
/// `replace` and not `LIKE`: SQLite's takes upper and lower case for the same, and names of roles are not.
pub(super) fn visible(viewer: &Viewer, first: usize) -> (String, Vec<String>) {
    let Viewer::Only(own) = viewer else {
        return ("1 = 1".to_owned(), Vec::new());
    };
    let mut condition = String::from("(d.readers = ''");
    for n in first..first + own.len() {
        condition.push_str(&format!(" OR replace(d.readers, ${n}, '') <> d.readers"));
    }
    condition.push(')');
    (condition, own.iter().map(|r| format!("\n{r}\n")).collect())
}

/// Readers as the column `readers` has them.
pub(super) fn as_stored(readers: &Readers) -> String {
    let mut text = String::new();
    for reader in readers.iter() {
        text.push('\n');
        text.push_str(&reader.to_string());
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// The column `readers`.
pub(super) fn read_readers(row: &Row) -> Result<Readers, CatalogError> {
    let text: String = row.try_get("readers")?;
    let readers = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::parse)
        .collect::<Result<Vec<Reader>, _>>()
        .and_then(Readers::try_from);
    readers.map_err(|_| CatalogError::corrupt("readers", text))
}
