//! Applying what pipelines report about document versions, and asking for removals.
//!
//! The decisions are in [`super::state`]; here they meet the tables, many in one transaction, because a transaction
//! costs a disk sync.

use std::collections::{BTreeMap, BTreeSet};

use super::collections::require_collection;
use super::database::{Catalog, Part};
use super::documents::{
    DocumentInfo, IDS_PER_QUERY, parameters, read_id, read_number, read_state, value_rows,
};
use super::error::CatalogError;
use super::query::{Query, Transaction, query};
use super::state::{Applied, DocumentState, News, decide};
use crate::ids::{CollectionRef, DocumentId, Version};

/// Versions of one `UPDATE`, see `ROWS_PER_INSERT`.
const ROWS_PER_UPDATE: usize = 32;

type VersionKey = (DocumentId, Version);

/// What decisions need to know of a version, kept up to date while a batch of news is applied.
struct Known {
    states: BTreeMap<VersionKey, DocumentState>,
    current: BTreeMap<DocumentId, Option<Version>>,
}

impl Catalog {
    /// Notes that the version is in the log.
    pub async fn set_processing(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
    ) -> Result<Applied, CatalogError> {
        self.apply_one(collection, document, version, News::Processing)
            .await
    }

    /// Notes that a failed version is tried again.
    pub async fn set_retried(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
    ) -> Result<Applied, CatalogError> {
        self.apply_one(collection, document, version, News::Retried)
            .await
    }

    /// Notes that the version is in both indexes. It becomes the one that search shows and supersedes older ones,
    /// unless a newer one is ready.
    pub async fn set_ready(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
        title: Option<String>,
        chunks: u32,
    ) -> Result<Applied, CatalogError> {
        let news = News::Ready { title, chunks };
        self.apply_one(collection, document, version, news).await
    }

    /// Notes that the version cannot be indexed.
    pub async fn set_failed(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
        reason: impl Into<String>,
    ) -> Result<Applied, CatalogError> {
        let reason = reason.into();
        self.apply_one(collection, document, version, News::Failed { reason })
            .await
    }

    /// Notes that the document, up to and including `version`, is gone from both indexes. A newer version that was
    /// begun since lives on.
    pub async fn set_deleted(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
    ) -> Result<Applied, CatalogError> {
        self.apply_one(collection, document, version, News::Deleted)
            .await
    }

    /// Applies news in their order, in one transaction. Each has a result of its own: what contradicts a state
    /// ([`CatalogError::Conflict`]) or names an unknown version ([`CatalogError::NotFound`]) does not hinder the rest.
    pub async fn apply_news(
        &self,
        collection: &CollectionRef,
        news: &[(DocumentId, Version, News)],
    ) -> Result<Vec<Result<Applied, CatalogError>>, CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let mut known = load(&mut transaction, collection, news).await?;
        let mut results = Vec::with_capacity(news.len());
        // Of different documents, so that their order does not matter.
        let mut writes = Writes::new(collection, now);
        for (document, version, news) in news {
            let Some(state) = known.states.get(&(*document, *version)).copied() else {
                let name = format!("{document} version {version}");
                results.push(Err(CatalogError::not_found("document", name)));
                continue;
            };
            let current = known.current.get(document).copied().flatten();
            let step = match decide(*document, *version, state, current, news) {
                Ok(step) => step,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            if let Some(next) = step.next {
                let supersedes = known.supersedes(*document, *version);
                if !writes.documents.insert(*document) {
                    writes.flush(&mut transaction).await?;
                    writes.documents.insert(*document);
                }
                writes.steps.push(Decided {
                    document: *document,
                    version: *version,
                    supersedes,
                    next,
                    news,
                });
                known.note(*document, *version, next);
            }
            results.push(Ok(step.applied));
        }
        writes.flush(&mut transaction).await?;
        transaction.commit().await?;
        Ok(results)
    }

    /// Marks documents for removal, every version of them, and returns them as they are then: enough to append their
    /// removal to the log. Those that are marked already are returned again, those that are gone or were never there
    /// are left out.
    pub async fn delete_documents(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
    ) -> Result<Vec<DocumentInfo>, CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        require_collection(&mut transaction, collection).await?;
        for part in documents.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "UPDATE document_versions SET state = 'DELETING', updated_at = $3 \
                 WHERE tenant_id = $1 AND collection = $2 AND state NOT IN ('DELETING', 'DELETED') AND document_id IN ({})",
                parameters(4, part.len())
            );
            let mut query = query(&statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(now);
            for id in part {
                query = query.bind(id.to_string());
            }
            query.execute(&mut transaction).await?;
        }
        transaction.commit().await?;
        self.documents_by_id(collection, documents).await
    }

    /// Notes that the removal of these documents, which is under way, was told to the log once more.
    pub async fn touch_removals(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
    ) -> Result<(), CatalogError> {
        let now = self.now_ms();
        for part in documents.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "UPDATE document_versions SET updated_at = $3 \
                 WHERE tenant_id = $1 AND collection = $2 AND state = 'DELETING' AND document_id IN ({})",
                parameters(4, part.len())
            );
            let mut query = query(&statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(now);
            for id in part {
                query = query.bind(id.to_string());
            }
            query.execute(self.write_of(&collection.tenant)).await?;
        }
        Ok(())
    }

    /// [`Catalog::delete_documents`] of one, which must exist.
    pub async fn delete_document(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
    ) -> Result<DocumentInfo, CatalogError> {
        let deleted = self.delete_documents(collection, &[document]).await?;
        deleted
            .into_iter()
            .next()
            .ok_or_else(|| CatalogError::not_found("document", document))
    }

    async fn apply_one(
        &self,
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
        news: News,
    ) -> Result<Applied, CatalogError> {
        let results = self
            .apply_news(collection, &[(document, version, news)])
            .await?;
        // One in, one out.
        results
            .into_iter()
            .next()
            .unwrap_or_else(|| Err(CatalogError::not_found("document", document)))
    }
}

impl Known {
    /// Whether the version, once ready, takes the place of an older one.
    fn supersedes(&self, document: DocumentId, version: Version) -> bool {
        let older = (document, Version(0))..(document, version);
        self.states
            .range(older)
            .any(|(_, state)| superseded_by_ready(*state))
    }

    /// What [`write`] did to the tables, done to what is remembered.
    fn note(&mut self, document: DocumentId, version: Version, next: DocumentState) {
        let older = (document, Version(0))..=(document, version);
        match next {
            DocumentState::Ready => {
                for (_, state) in self.states.range_mut(older) {
                    if superseded_by_ready(*state) {
                        *state = DocumentState::Superseded;
                    }
                }
                self.current.insert(document, Some(version));
            }
            DocumentState::Deleted => {
                for (_, state) in self.states.range_mut(older) {
                    if *state == DocumentState::Deleting {
                        *state = DocumentState::Deleted;
                    }
                }
                if let Some(current) = self.current.get_mut(&document)
                    && current.is_some_and(|current| current <= version)
                {
                    *current = None;
                }
            }
            _ => {}
        }
        self.states.insert((document, version), next);
    }
}

/// Failed versions stay failed: they tell what happened.
fn superseded_by_ready(state: DocumentState) -> bool {
    matches!(
        state,
        DocumentState::Uploading | DocumentState::Processing | DocumentState::Ready
    )
}

async fn load(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    news: &[(DocumentId, Version, News)],
) -> Result<Known, CatalogError> {
    let mut known = Known {
        states: BTreeMap::new(),
        current: BTreeMap::new(),
    };
    let mut ids: Vec<_> = news.iter().map(|(id, _, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    for part in ids.chunks(IDS_PER_QUERY) {
        let statement = format!(
            "SELECT d.id, d.current_version, v.version, v.state FROM documents d \
             JOIN document_versions v ON v.tenant_id = d.tenant_id AND v.collection = d.collection AND v.document_id = d.id \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.id IN ({})",
            parameters(3, part.len())
        );
        let mut query = query(&statement)
            .bind(collection.tenant.as_str())
            .bind(collection.collection.as_str());
        for id in part {
            query = query.bind(id.to_string());
        }
        for row in query.fetch_all(&mut *transaction).await? {
            let id = read_id(&row, "id")?;
            let current = row
                .try_get::<Option<i64>>("current_version")?
                .map(|_| read_number(&row, "current_version").map(Version))
                .transpose()?;
            let version = Version(read_number(&row, "version")?);
            known.current.insert(id, current);
            known.states.insert((id, version), read_state(&row)?);
        }
    }
    Ok(known)
}

/// A decided step, still to be written.
struct Decided<'a> {
    document: DocumentId,
    version: Version,
    /// Older versions have to be marked. Of a new document there are none, which saves a way to the server.
    supersedes: bool,
    next: DocumentState,
    news: &'a News,
}

impl Decided<'_> {
    /// Title, chunks and error as the version then has them.
    fn found(&self) -> (Option<&str>, u32, Option<&str>) {
        match self.news {
            News::Ready { title, chunks } if self.next == DocumentState::Ready => {
                (title.as_deref(), *chunks, None)
            }
            News::Failed { reason } => (None, 0, Some(reason.as_str())),
            _ => (None, 0, None),
        }
    }
}

/// Steps of different documents, which a few statements write together.
struct Writes<'a> {
    collection: &'a CollectionRef,
    now: i64,
    documents: BTreeSet<DocumentId>,
    steps: Vec<Decided<'a>>,
}

impl<'a> Writes<'a> {
    fn new(collection: &'a CollectionRef, now: i64) -> Self {
        Self {
            collection,
            now,
            documents: BTreeSet::new(),
            steps: Vec::new(),
        }
    }

    /// Writes the steps: the versions' rows and, where search is concerned, their older versions and the documents'.
    async fn flush(&mut self, transaction: &mut Transaction) -> Result<(), CatalogError> {
        self.documents.clear();
        let (ends, steps): (Vec<_>, Vec<_>) = std::mem::take(&mut self.steps)
            .into_iter()
            .partition(|step| step.next == DocumentState::Deleted);
        for step in &ends {
            self.end(transaction, step).await?;
        }
        for part in steps.chunks(ROWS_PER_UPDATE) {
            self.write(transaction, part).await?;
        }
        let ready: Vec<_> = steps
            .iter()
            .filter(|step| step.next == DocumentState::Ready)
            .collect();
        for step in ready.iter().filter(|step| step.supersedes) {
            self.bound(
                "UPDATE document_versions SET state = 'SUPERSEDED', updated_at = $5 WHERE tenant_id = $1 \
                 AND collection = $2 AND document_id = $3 AND version < $4 \
                 AND state IN ('UPLOADING', 'PROCESSING', 'READY')",
                step,
            )
            .execute(&mut *transaction)
            .await?;
        }
        for part in ready.chunks(ROWS_PER_UPDATE) {
            self.make_current(transaction, part).await?;
        }
        Ok(())
    }

    /// A statement about one step: its parameters are tenant, collection, document, version, now.
    fn bound(&self, statement: &'static str, step: &Decided<'_>) -> Query<'static> {
        query(statement)
            .bind(self.collection.tenant.to_string())
            .bind(self.collection.collection.to_string())
            .bind(step.document.to_string())
            .bind(i64::from(step.version.0))
            .bind(self.now)
    }

    async fn end(
        &self,
        transaction: &mut Transaction,
        step: &Decided<'_>,
    ) -> Result<(), CatalogError> {
        self.bound(
            "UPDATE document_versions SET state = 'DELETED', updated_at = $5 WHERE tenant_id = $1 AND collection = $2 \
             AND document_id = $3 AND version <= $4 AND state = 'DELETING'",
            step,
        )
        .execute(&mut *transaction)
        .await?;
        self.bound(
            "UPDATE documents SET current_version = NULL, updated_at = $5 WHERE tenant_id = $1 AND collection = $2 \
             AND id = $3 AND current_version <= $4",
            step,
        )
        .execute(&mut *transaction)
        .await?;
        Ok(())
    }

    async fn write(
        &self,
        transaction: &mut Transaction,
        steps: &[Decided<'_>],
    ) -> Result<(), CatalogError> {
        let statement = format!(
            "UPDATE document_versions AS v SET state = n.column3, title = n.column4, chunks = n.column5, \
             error = n.column6, updated_at = $3 FROM (VALUES {}) AS n \
             WHERE v.tenant_id = $1 AND v.collection = $2 AND v.document_id = n.column1 AND v.version = n.column2",
            value_rows(4, steps.len(), 6)
        );
        let mut query = self.about_all(&statement);
        for step in steps {
            let (title, chunks, error) = step.found();
            query = query
                .bind(step.document.to_string())
                .bind(i64::from(step.version.0))
                .bind(step.next.as_str())
                .bind(title)
                .bind(i64::from(chunks))
                .bind(error);
        }
        query.execute(&mut *transaction).await?;
        Ok(())
    }

    async fn make_current(
        &self,
        transaction: &mut Transaction,
        steps: &[&Decided<'_>],
    ) -> Result<(), CatalogError> {
        let statement = format!(
            "UPDATE documents AS d SET current_version = n.column2, updated_at = $3 FROM (VALUES {}) AS n \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.id = n.column1",
            value_rows(4, steps.len(), 2)
        );
        let mut query = self.about_all(&statement);
        for step in steps {
            query = query
                .bind(step.document.to_string())
                .bind(i64::from(step.version.0));
        }
        query.execute(&mut *transaction).await?;
        Ok(())
    }

    /// A statement about several steps: its first parameters are tenant, collection, now.
    fn about_all<'q>(&'q self, statement: &'q str) -> Query<'q> {
        query(statement)
            .bind(self.collection.tenant.as_str())
            .bind(self.collection.collection.as_str())
            .bind(self.now)
    }
}
