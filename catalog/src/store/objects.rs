//! Which stored objects document versions need, and how long versions take.

use std::collections::BTreeSet;

use super::database::Catalog;
use super::documents::{IDS_PER_QUERY, parameters, value_rows};
use super::error::CatalogError;
use super::query::{Why, query};
use crate::ids::{CollectionRef, ContentHash, DocumentId, Version};

impl Catalog {
    /// Those of the objects that are splits of a shared index, or that a version of some tenant refers to. A version that is gone needs nothing; one that is
    /// older, failed or being removed still does: it can be read, taken back, tried again, or is still under way. But
    /// of superseded and failed versions only those among a document's newest `versions_max` count.
    pub async fn objects_in_use_all_tenants(
        &self,
        objects: &[ContentHash],
        versions_max: u32,
    ) -> Result<BTreeSet<ContentHash>, CatalogError> {
        let mut used = self.split_objects_all_tenants(objects).await?;
        for part in objects.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "SELECT DISTINCT v.content_hash FROM document_versions v \
                 JOIN documents d ON d.tenant_id = v.tenant_id AND d.collection = v.collection AND d.id = v.document_id \
                 WHERE v.state <> 'DELETED' \
                   AND NOT (v.state IN ('SUPERSEDED', 'FAILED') AND v.version <= d.latest_version - $1) \
                   AND v.content_hash IN ({})",
                parameters(2, part.len())
            );
            let mut query = query(&statement).bind(i64::from(versions_max));
            for hash in part {
                query = query.bind(hash.as_str());
            }
            for row in query.fetch_all(self.read_all(Why::Chore)).await? {
                used.insert(ContentHash::new(row.try_get::<String>("content_hash")?)?);
            }
        }
        Ok(used)
    }

    /// How long each of the versions took from when it was begun to its last change of state, in milliseconds, in any
    /// order; versions that are not there are left out.
    pub async fn version_ages_ms(
        &self,
        collection: &CollectionRef,
        versions: &[(DocumentId, Version)],
    ) -> Result<Vec<i64>, CatalogError> {
        let mut ages = Vec::with_capacity(versions.len());
        for part in versions.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "SELECT updated_at - created_at AS age FROM document_versions \
                 WHERE tenant_id = $1 AND collection = $2 AND (document_id, version) IN (VALUES {})",
                value_rows(3, part.len(), 2)
            );
            let mut query = query(&statement)
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str());
            for (id, version) in part {
                query = query.bind(id.to_string()).bind(i64::from(version.0));
            }
            for row in query.fetch_all(self.read_of(&collection.tenant)).await? {
                ages.push(row.try_get("age")?);
            }
        }
        Ok(ages)
    }

    /// When the oldest version was begun that waits to become searchable, UTC milliseconds.
    pub async fn oldest_pending_all_tenants(&self) -> Result<Option<i64>, CatalogError> {
        // The first condition is, word for word, that of the index.
        let row = query(
            "SELECT MIN(created_at) AS oldest FROM document_versions \
             WHERE state IN ('UPLOADING', 'PROCESSING', 'DELETING') AND state <> 'DELETING'",
        )
        .fetch_one(self.read_all(Why::Chore))
        .await?;
        row.try_get("oldest")
    }
}
