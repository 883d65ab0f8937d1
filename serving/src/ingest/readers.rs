//! Readers of documents on their way in: nobody writes over what they may not read, and a change of readers goes the way of
//! an upload. Who may change them is the callers' business.

use std::collections::BTreeSet;

use va_catalog::event::DOCUMENT_UPLOADED;
use va_catalog::store::{Begun, DocumentState};
use va_catalog::{CollectionRef, DocumentId, Readers, Viewer};

use super::{Event, IngestError, announce, or_full, room};
use crate::platform::Platform;

/// Says who may read a document from now on, and sends its content through the pipeline once more, so that the indexes
/// come to know. What is asked of the catalog is so at once; searches leave out what was withdrawn at once, and find what
/// was opened when the new version is in the indexes.
pub async fn change_readers(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
    readers: &Readers,
) -> Result<Begun, IngestError> {
    room(platform)?;
    let config = platform.catalog.collection(collection).await?.config;
    let catalog = &platform.catalog;
    let begun = catalog.change_readers(collection, id, readers).await?;
    if begun.state == DocumentState::Uploading {
        let document = catalog.document(collection, id).await?;
        // A version that was begun meanwhile has the readers too, and its own event.
        if document.version == begun.version {
            let event = Event::of(&document, DOCUMENT_UPLOADED, config.model.is_some());
            let told = announce(platform, collection, vec![event]).await;
            told.map_err(|error| or_full(platform, error))?;
        }
    }
    Ok(begun)
}

/// Those of the documents that are there and that the viewer may not read, so may not write either.
pub(super) async fn unwritable(
    platform: &Platform,
    collection: &CollectionRef,
    viewer: &Viewer,
    ids: &[DocumentId],
) -> Result<BTreeSet<DocumentId>, IngestError> {
    if *viewer == Viewer::Everything {
        return Ok(BTreeSet::new());
    }
    let documents = platform.catalog.documents_by_id(collection, ids).await?;
    let hidden = documents.into_iter().filter(|document| {
        document.state != DocumentState::Deleting && !viewer.sees(&document.readers)
    });
    Ok(hidden.map(|document| document.id).collect())
}

pub(super) fn forbidden(uri: &str) -> IngestError {
    IngestError::Forbidden(format!(
        "you may not write a document at `{uri}`: use another `uri`, or ask whoever manages documents"
    ))
}
