//! [`Documents`] in the process of the platform.

use async_trait::async_trait;
use tokio_util::io::ReaderStream;
use va_catalog::store::{DocumentState, Page};
use va_catalog::{CollectionRef, ContentHash, DocumentId, PipelineName, Viewer};
use va_pipelines::runtime::PipelineState;

use super::documents::{
    Checked, Documents, Held, Large, Small, Standing, SyncError, Taken, Trouble,
};
use crate::ingest::{self, NewDocument};
use crate::platform::Platform;

/// Nobody is behind it: the platform itself keeps the folder, and sees all of it.
const ALL: Viewer = Viewer::Everything;

/// A collection of the platform in this process.
pub struct LocalDocuments<'a> {
    pub platform: &'a Platform,
    pub collection: CollectionRef,
}

#[async_trait]
impl Documents for LocalDocuments<'_> {
    async fn check(&self, contents: &[(String, ContentHash)]) -> Result<Checked, SyncError> {
        let uris: Vec<&str> = contents.iter().map(|(uri, _)| uri.as_str()).collect();
        let catalog = &self.platform.catalog;
        let held = catalog
            .live_contents(&self.collection, &uris)
            .await
            .map_err(SyncError::new)?;
        let mut checked = Checked {
            upload_bytes_max: self.platform.settings.limits.upload_bytes_max,
            ..Checked::default()
        };
        for ((uri, hash), held) in contents.iter().zip(held) {
            match held {
                // One that never reached the log must be handed in again.
                Some(held)
                    if held.content_hash == *hash && held.state == DocumentState::Uploading => {}
                Some(held) if held.content_hash == *hash => checked.unchanged.push(Held {
                    uri: uri.clone(),
                    id: held.id,
                    version: held.version,
                    state: held.state,
                }),
                Some(_) => checked.changed.push(uri.clone()),
                None => {}
            }
        }
        Ok(checked)
    }

    async fn hand_over(&self, files: Vec<Small>) -> Result<Vec<Result<Taken, String>>, SyncError> {
        let documents = files
            .into_iter()
            .map(|file| {
                let document = NewDocument {
                    name: file.name,
                    uri: file.uri,
                    content_type: None,
                    metadata: file.meta,
                    readers: None,
                };
                (document, file.bytes)
            })
            .collect();
        let outcomes = ingest::upload_many(self.platform, &self.collection, &ALL, documents)
            .await
            .map_err(SyncError::new)?;
        let taken = |begun: va_catalog::store::Begun| Taken {
            id: begun.id,
            version: begun.version,
            state: begun.state,
        };
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.map(taken).map_err(|error| error.to_string()))
            .collect())
    }

    async fn hand_over_large(&self, file: Large<'_>) -> Result<Taken, String> {
        let document = NewDocument {
            name: file.name.to_owned(),
            uri: file.uri.to_owned(),
            content_type: None,
            metadata: file.meta.clone(),
            readers: None,
        };
        let open = tokio::fs::File::open(file.path)
            .await
            .map_err(|error| format!("read: {error}"))?;
        let begun = ingest::upload(
            self.platform,
            &self.collection,
            &ALL,
            document,
            ReaderStream::new(open),
        )
        .await
        .map_err(|error| error.to_string())?;
        Ok(Taken {
            id: begun.id,
            version: begun.version,
            state: begun.state,
        })
    }

    async fn under(&self, prefix: &str) -> Result<Vec<(DocumentId, String)>, SyncError> {
        let mut page = Page::first(1_000);
        let mut found = Vec::new();
        loop {
            let listing = self
                .platform
                .catalog
                .documents_under(&self.collection, &ALL, prefix, &page)
                .await
                .map_err(SyncError::new)?;
            found.extend(listing.items);
            match listing.next {
                Some(next) => page.cursor = Some(next),
                None => return Ok(found),
            }
        }
    }

    async fn standing(&self, ids: &[DocumentId]) -> Result<Vec<Standing>, SyncError> {
        let documents = self
            .platform
            .catalog
            .documents_by_id(&self.collection, ids)
            .await
            .map_err(SyncError::new)?;
        Ok(documents
            .into_iter()
            .map(|document| Standing {
                id: document.id,
                uri: document.uri,
                version: document.version,
                state: document.state,
                error: document.error,
                hash: document.content_hash,
            })
            .collect())
    }

    async fn remove(&self, ids: &[DocumentId]) -> Result<(), SyncError> {
        ingest::delete_many(self.platform, &self.collection, ids)
            .await
            .map(drop)
            .map_err(SyncError::new)
    }

    async fn trouble(&self) -> Result<Option<Trouble>, SyncError> {
        let index = PipelineName::new("index").map_err(SyncError::new)?;
        let status = self
            .platform
            .runtime
            .status(&index)
            .await
            .map_err(SyncError::new)?;
        Ok(match status.state {
            PipelineState::Restarting { reason } => Some(Trouble::Restarting(reason)),
            PipelineState::Failed { reason } => Some(Trouble::Failed(reason)),
            _ => None,
        })
    }
}
