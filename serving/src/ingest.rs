//! How documents come in: stored by content, begun as a version in the catalog, appended to the log.
//!
//! Uploads, `va index` and deletions all go through here; everything after it is the `index` pipeline. A crash between
//! two steps is made good by [`resume`] at the next start: what the catalog knows as begun is appended again, which is
//! harmless, because the pipeline writes by deterministic ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, RecordBatch, StringArray, StructArray, TimestampMillisecondArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::DataType;
use bytes::Bytes;
use futures::Stream;
use va_catalog::event::{DOCUMENT_DELETED, DOCUMENT_UPLOADED, document_uploaded_schema};
use va_catalog::store::{
    BeginOutcome, Begun, CatalogError, DocumentInfo, DocumentState, NewVersion,
};
use va_catalog::{CollectionRef, DocumentId, PipelineName, TopicName, Version};
use va_connectors::log::{LogError, Target};
use va_connectors::objects::ObjectError;

use crate::disk::{self, DiskFull};
use crate::platform::{Platform, now_ms};

/// A document as it is handed in.
#[derive(Debug, Clone)]
pub struct NewDocument {
    pub name: String,
    /// The path or URL that it came from; the same URI is the same document.
    pub uri: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// Why a document was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    DiskFull(#[from] DiskFull),
    #[error("{0}")]
    Index(String),
    #[error("make the event: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Takes a document: stores the bytes, begins a version, appends `document.uploaded`.
///
/// When it returns, the document is durable and will be indexed, whatever happens. An unchanged document costs no more
/// than its hash.
pub async fn upload<S>(
    platform: &Platform,
    collection: &CollectionRef,
    document: NewDocument,
    bytes: S,
) -> Result<Begun, IngestError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    platform.catalog.collection(collection).await?;
    platform.disk.room()?;
    let begun = take(platform, collection, document, bytes).await;
    begun.map_err(|error| or_full(platform, error))
}

/// The same error, or that the disk is full when that is what it means.
fn or_full(platform: &Platform, error: IngestError) -> IngestError {
    let storage = matches!(
        error,
        IngestError::Log(_) | IngestError::Objects(ObjectError::Storage(_))
    );
    // A log that met the full disk before refuses with other words.
    if disk::is_full(&error.to_string()) || storage && !platform.disk.has_room_again() {
        tracing::warn!(%error, "the disk is full");
        platform.disk.full().into()
    } else {
        error
    }
}

async fn take<S>(
    platform: &Platform,
    collection: &CollectionRef,
    document: NewDocument,
    bytes: S,
) -> Result<Begun, IngestError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let stored = platform
        .objects
        .put_stream(bytes, platform.settings.limits.upload_bytes_max)
        .await?;
    let new = NewVersion {
        uri: document.uri,
        name: document.name,
        content_type: document.content_type,
        content_hash: stored.hash,
        size: stored.size,
        metadata: document.metadata,
    };
    let begun = platform.catalog.begin_version(collection, &new).await?;
    metrics::counter!("va_documents_taken_total", "outcome" => outcome_word(begun.outcome))
        .increment(1);
    if begun.state == DocumentState::Uploading {
        let event = Event {
            event_type: DOCUMENT_UPLOADED,
            id: begun.id,
            version: begun.version,
            name: new.name,
            uri: new.uri,
            content_type: new.content_type,
            content_hash: new.content_hash.to_string(),
            size: new.size,
            metadata: new.metadata,
        };
        append(platform, collection, event).await?;
        platform
            .catalog
            .set_processing(collection, begun.id, begun.version)
            .await?;
    }
    Ok(begun)
}

/// Marks a document for removal and tells the pipeline. `None` when there is no such document.
pub async fn delete(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
) -> Result<Option<DocumentInfo>, IngestError> {
    let deleted = platform.catalog.delete_documents(collection, &[id]).await?;
    let Some(document) = deleted.into_iter().next() else {
        return Ok(None);
    };
    append(platform, collection, Event::of(&document, DOCUMENT_DELETED)).await?;
    Ok(Some(document))
}

/// Most documents that are taken up again at a start.
const RESUME_MAX: u32 = 1_000_000;

/// Appends again what was begun but, after a crash, may not have reached the log, and ends removals of collections.
pub async fn resume(platform: &Platform) -> Result<(), IngestError> {
    for collection in platform.catalog.deleting_collections_all_tenants().await? {
        remove_collection(platform, &collection).await?;
    }
    for (collection, id, version, state) in platform
        .catalog
        .pending_documents_all_tenants(RESUME_MAX)
        .await?
    {
        let event = match state {
            DocumentState::Uploading => {
                let document = platform.catalog.document(&collection, id).await?;
                // Overtaken by a newer version, which has an entry of its own.
                if document.version != version {
                    continue;
                }
                Event::of(&document, DOCUMENT_UPLOADED)
            }
            DocumentState::Deleting => {
                match platform
                    .catalog
                    .delete_documents(&collection, &[id])
                    .await?
                    .first()
                {
                    Some(document) => Event::of(document, DOCUMENT_DELETED),
                    None => continue,
                }
            }
            _ => continue,
        };
        tracing::info!(document = %id, name = event.name, event_type = event.event_type, "taken up again after a restart");
        append(platform, &collection, event).await?;
        if state == DocumentState::Uploading {
            platform
                .catalog
                .set_processing(&collection, id, version)
                .await?;
        }
    }
    Ok(())
}

/// Removes a collection: hidden first, so that nothing finds it while its indexes go. May be repeated.
pub async fn remove_collection(
    platform: &Platform,
    collection: &CollectionRef,
) -> Result<(), IngestError> {
    platform
        .vectors
        .drop_collection(collection)
        .await
        .map_err(|error| IngestError::Index(error.to_string()))?;
    platform
        .texts
        .drop_collection(collection)
        .await
        .map_err(|error| IngestError::Index(error.to_string()))?;
    platform.catalog.drop_collection(collection).await?;
    Ok(())
}

/// Waits until the version is searchable, failed or gone, and returns the document as it is then.
pub async fn wait_until_done(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
    version: Version,
) -> Result<DocumentInfo, IngestError> {
    let pipeline = PipelineName::new("document_state")
        .map_err(|error| CatalogError::Invalid(error.to_string()))?;
    let mut checkpoints = platform.runtime.checkpoints(&pipeline).ok();
    loop {
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.borrow_and_update();
        }
        let document = platform.catalog.document(collection, id).await?;
        let settled = matches!(document.state, DocumentState::Ready | DocumentState::Failed);
        if document.version > version || settled {
            return Ok(document);
        }
        match &mut checkpoints {
            Some(checkpoints) => {
                if checkpoints.changed().await.is_err() {
                    return Ok(document);
                }
            }
            None => return Ok(document),
        }
    }
}

/// The word for an outcome in replies and metrics.
pub fn outcome_word(outcome: BeginOutcome) -> &'static str {
    match outcome {
        BeginOutcome::New => "new",
        BeginOutcome::Changed => "changed",
        BeginOutcome::Unchanged => "unchanged",
    }
}

struct Event {
    event_type: &'static str,
    id: DocumentId,
    version: Version,
    name: String,
    uri: String,
    content_type: Option<String>,
    content_hash: String,
    size: u64,
    metadata: BTreeMap<String, String>,
}

impl Event {
    fn of(document: &DocumentInfo, event_type: &'static str) -> Self {
        Self {
            event_type,
            id: document.id,
            version: document.version,
            name: document.name.clone(),
            uri: document.uri.clone(),
            content_type: document.content_type.clone(),
            content_hash: document.content_hash.to_string(),
            size: document.size,
            metadata: document.metadata.clone(),
        }
    }
}

async fn append(
    platform: &Platform,
    collection: &CollectionRef,
    event: Event,
) -> Result<(), IngestError> {
    let topic = TopicName::new(DOCUMENT_UPLOADED)
        .map_err(|error| CatalogError::Invalid(error.to_string()))?;
    let key = Bytes::from(event.id.to_string().into_bytes());
    let batch = batch_of(collection, &event)?;
    let mut commit = platform.log.begin();
    commit.append(&topic, Target::Key(key), batch);
    commit.finish().await?;
    Ok(())
}

fn batch_of(
    collection: &CollectionRef,
    event: &Event,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let schema = document_uploaded_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(arrow::error::ArrowError::SchemaError(
            "`document.uploaded` has no struct payload".into(),
        ));
    };
    let metadata = serde_json::to_string(&event.metadata)
        .map_err(|error| arrow::error::ArrowError::JsonError(error.to_string()))?;
    let payload = StructArray::try_new(
        fields.clone(),
        vec![
            text(collection.collection.as_str()),
            text(&event.id.to_string()),
            Arc::new(UInt32Array::from(vec![event.version.0])),
            text(&event.name),
            text(&event.uri),
            Arc::new(StringArray::from(vec![event.content_type.as_deref()])),
            text(&event.content_hash),
            Arc::new(UInt64Array::from(vec![event.size])),
            text(&metadata),
        ],
        None,
    )?;
    RecordBatch::try_new(
        schema.clone(),
        vec![
            text(&uuid::Uuid::now_v7().to_string()),
            text(event.event_type),
            text(collection.tenant.as_str()),
            Arc::new(StringArray::new_null(1)),
            Arc::new(TimestampMillisecondArray::from(vec![now_ms()]).with_timezone("UTC")),
            Arc::new(payload),
        ],
    )
}
