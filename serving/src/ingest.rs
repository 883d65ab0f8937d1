//! How documents come in: stored by content, begun as a version in the catalog, appended to the log.
//!
//! Uploads, `va index` and deletions all go through here; everything after it is the `index` pipeline. A crash between
//! two steps is made good by [`resume`], at the next start or by another process that shares the stores: what the catalog
//! knows as begun is appended again, which is harmless, because the pipeline writes by deterministic ids.

mod readers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, RecordBatch, StringArray, StructArray, TimestampMillisecondArray,
    UInt32Array, UInt64Array,
};
use arrow::datatypes::DataType;
use bytes::Bytes;
use futures::Stream;
use tracing::Instrument;
use va_catalog::event::{DOCUMENT_DELETED, DOCUMENT_UPLOADED, document_uploaded_schema};
use va_catalog::readers::check_keys;
use va_catalog::store::{
    BeginOutcome, Begun, CatalogError, DocumentInfo, DocumentState, NewVersion, News,
};
use va_catalog::{
    CollectionRef, DocumentId, Partition, PipelineName, Readers, TopicName, Version, Viewer,
};
use va_connectors::log::{LogError, Target, partition_of};
use va_connectors::objects::ObjectError;
use va_connectors::trace::{self, TRACEPARENT};

use self::readers::{forbidden, unwritable};
use crate::backlog::BacklogFull;
use crate::disk::{self, DiskFull};
use crate::platform::{Platform, now_ms};

pub use self::readers::change_readers;

/// A document as it is handed in.
#[derive(Debug, Clone)]
pub struct NewDocument {
    pub name: String,
    /// The path or URL that it came from; the same URI is the same document.
    pub uri: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Who may read it; `None`: whoever may read what is at the URI already, and of a new document everybody.
    pub readers: Option<Readers>,
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
    #[error(transparent)]
    Backlog(#[from] BacklogFull),
    /// Somebody may not write there.
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Index(String),
    #[error("make the event: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Takes a document: stores the bytes, begins a version, appends `document.uploaded`.
///
/// When it returns, the document is durable and will be indexed, whatever happens. An unchanged document costs no more
/// than its hash. Over a document that the viewer may not read, nobody writes.
pub async fn upload<S>(
    platform: &Platform,
    collection: &CollectionRef,
    viewer: &Viewer,
    document: NewDocument,
    bytes: S,
) -> Result<Begun, IngestError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    room(platform)?;
    let ids = [DocumentId::of(collection, &document.uri)];
    if !unwritable(platform, collection, viewer, &ids)
        .await?
        .is_empty()
    {
        return Err(forbidden(&document.uri));
    }
    let begun = take(platform, collection, document, bytes).await;
    begun.map_err(|error| or_full(platform, error))
}

/// Whether documents are taken now.
fn room(platform: &Platform) -> Result<(), IngestError> {
    platform.disk.room()?;
    Ok(platform.backlog.room(DOCUMENT_UPLOADED)?)
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
    let config = platform.catalog.collection(collection).await?.config;
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
        readers: document.readers,
    };
    let begun = platform.catalog.begin_version(collection, &new).await?;
    metrics::counter!("va_documents_taken_total", "outcome" => outcome_word(begun.outcome))
        .increment(1);
    if begun.state == DocumentState::Uploading {
        let readers = platform.catalog.readers_of(collection, &[begun.id]).await?;
        let event = Event::uploaded(new, &begun, &readers, config.model.is_some());
        announce(platform, collection, vec![event]).await?;
    }
    Ok(begun)
}

/// Takes many small documents at the price of a few: their files are synced together, and one transaction begins all
/// versions, one commit of the log announces them, one transaction notes that.
///
/// The outcomes are in the order of `documents`; one that cannot be taken does not hinder the others. An error of the
/// call as a whole means that none may be relied on; handing all of them in again is right. At most
/// [`va_catalog::store::VERSIONS_PER_CALL_MAX`] documents.
pub async fn upload_many(
    platform: &Platform,
    collection: &CollectionRef,
    viewer: &Viewer,
    documents: Vec<(NewDocument, Bytes)>,
) -> Result<Vec<Result<Begun, IngestError>>, IngestError> {
    room(platform)?;
    let begun = take_many(platform, collection, viewer, documents).await;
    begun.map_err(|error| or_full(platform, error))
}

async fn take_many(
    platform: &Platform,
    collection: &CollectionRef,
    viewer: &Viewer,
    documents: Vec<(NewDocument, Bytes)>,
) -> Result<Vec<Result<Begun, IngestError>>, IngestError> {
    let config = platform.catalog.collection(collection).await?.config;
    let limit = platform.settings.limits.upload_bytes_max;
    let ids: Vec<DocumentId> = documents
        .iter()
        .map(|(document, _)| DocumentId::of(collection, &document.uri))
        .collect();
    let unwritable = unwritable(platform, collection, viewer, &ids).await?;
    let mut outcomes: Vec<Option<Result<Begun, IngestError>>> = Vec::new();
    let mut taken = Vec::new();
    let mut contents = Vec::new();
    for ((document, bytes), id) in documents.into_iter().zip(ids) {
        let problem = if unwritable.contains(&id) {
            Some(forbidden(&document.uri))
        } else if let Err(reason) = check_keys(document.metadata.keys()) {
            Some(CatalogError::Invalid(reason).into())
        } else if document.uri.is_empty() || document.name.is_empty() {
            Some(
                CatalogError::Invalid(format!(
                    "a document needs a uri and a name, but these are `{}` and `{}`",
                    document.uri, document.name
                ))
                .into(),
            )
        } else if bytes.len() as u64 > limit {
            Some(ObjectError::TooLarge { limit }.into())
        } else {
            None
        };
        outcomes.push(problem.map(Err));
        if let Some(None) = outcomes.last() {
            taken.push(document);
            contents.push(bytes);
        }
    }
    // Held until the versions have begun: nobody removes an object meanwhile.
    let stored = platform.objects.put_all(contents).await?;
    let new: Vec<NewVersion> = taken
        .into_iter()
        .zip(&stored)
        .map(|(document, stored)| NewVersion {
            uri: document.uri,
            name: document.name,
            content_type: document.content_type,
            content_hash: stored.hash.clone(),
            size: stored.size,
            metadata: document.metadata,
            readers: document.readers,
        })
        .collect();
    let begun = platform
        .catalog
        .begin_versions_with_room(collection, &new)
        .await?;
    drop(stored);
    let written: Vec<DocumentId> = begun.iter().flatten().map(|begun| begun.id).collect();
    let readers = platform.catalog.readers_of(collection, &written).await?;
    let mut events = Vec::new();
    for (new, begun) in new.into_iter().zip(&begun) {
        let Ok(begun) = begun else { continue };
        metrics::counter!("va_documents_taken_total", "outcome" => outcome_word(begun.outcome))
            .increment(1);
        if begun.state == DocumentState::Uploading {
            let vectors = config.model.is_some();
            events.push(Event::uploaded(new, begun, &readers, vectors));
        }
    }
    announce(platform, collection, events).await?;
    let mut begun = begun.into_iter();
    Ok(outcomes
        .into_iter()
        .filter_map(|outcome| {
            outcome.or_else(|| begun.next().map(|begun| begun.map_err(IngestError::from)))
        })
        .collect())
}

/// Appends uploads to the log and notes in the catalog that they are there.
async fn announce(
    platform: &Platform,
    collection: &CollectionRef,
    events: Vec<Event>,
) -> Result<(), IngestError> {
    if events.is_empty() {
        return Ok(());
    }
    let news: Vec<_> = events
        .iter()
        .map(|event| (event.id, event.version, News::Processing))
        .collect();
    append(platform, collection, events).await?;
    for applied in platform.catalog.apply_news(collection, &news).await? {
        applied?;
    }
    Ok(())
}

/// Marks a document for removal and tells the pipeline. `None` when there is no such document.
pub async fn delete(
    platform: &Platform,
    collection: &CollectionRef,
    id: DocumentId,
) -> Result<Option<DocumentInfo>, IngestError> {
    Ok(delete_many(platform, collection, &[id]).await?.pop())
}

/// Marks documents for removal and tells the pipeline. Returns them, without those that are not there.
pub async fn delete_many(
    platform: &Platform,
    collection: &CollectionRef,
    ids: &[DocumentId],
) -> Result<Vec<DocumentInfo>, IngestError> {
    let deleted = platform.catalog.delete_documents(collection, ids).await?;
    let events = deleted
        .iter()
        .map(|document| Event::of(document, DOCUMENT_DELETED, true))
        .collect();
    append(platform, collection, events).await?;
    Ok(deleted)
}

/// Most documents that are taken up again at a start.
const RESUME_MAX: u32 = 1_000_000;
/// Events of one commit when they are taken up again.
const RESUME_EVENTS: usize = 500;

/// How long a state must have stood before another process may take it for left behind: much longer than the steps of an
/// upload take. A process that was only slow, and goes on, appends the same event a second time, which is harmless.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(120);

/// Appends again what was begun but, after a crash, may not have reached the log, and ends removals of collections. Only
/// of documents whose state has stood for `older_than`.
pub async fn resume(platform: &Platform, older_than: Duration) -> Result<(), IngestError> {
    for collection in platform.catalog.deleting_collections_all_tenants().await? {
        remove_collection(platform, &collection).await?;
    }
    let mut pending: BTreeMap<CollectionRef, Vec<(DocumentId, Version, DocumentState)>> =
        BTreeMap::new();
    for (collection, id, version, state) in platform
        .catalog
        .pending_documents_all_tenants(RESUME_MAX, older_than)
        .await?
    {
        if matches!(state, DocumentState::Uploading | DocumentState::Deleting) {
            pending
                .entry(collection)
                .or_default()
                .push((id, version, state));
        }
    }
    for (collection, pending) in pending {
        for part in pending.chunks(RESUME_EVENTS) {
            resume_part(platform, &collection, part).await?;
        }
    }
    Ok(())
}

async fn resume_part(
    platform: &Platform,
    collection: &CollectionRef,
    pending: &[(DocumentId, Version, DocumentState)],
) -> Result<(), IngestError> {
    let config = platform.catalog.collection(collection).await?.config;
    let vectors = config.model.is_some();
    let ids: Vec<DocumentId> = pending.iter().map(|(id, _, _)| *id).collect();
    let documents = platform.catalog.documents_by_id(collection, &ids).await?;
    let documents: BTreeMap<DocumentId, DocumentInfo> = documents
        .into_iter()
        .map(|document| (document.id, document))
        .collect();
    let (mut uploads, mut removals) = (Vec::new(), Vec::new());
    for (id, version, state) in pending {
        let Some(document) = documents.get(id) else {
            continue;
        };
        if *state == DocumentState::Deleting {
            removals.push(Event {
                version: *version,
                ..Event::of(document, DOCUMENT_DELETED, true)
            });
            // A version that was begun after the removal must come after it in the log, too.
            if document.version > *version && !gone_or_failed(document.state) {
                uploads.push(Event::of(document, DOCUMENT_UPLOADED, vectors));
            }
        } else if document.version == *version {
            uploads.push(Event::of(document, DOCUMENT_UPLOADED, vectors));
        }
        // Else overtaken by a newer version, which has an entry of its own.
    }
    tracing::info!(
        uploads = uploads.len(),
        removals = removals.len(),
        collection = %collection.collection,
        "taken up again after a restart"
    );
    // Removals first: an upload after a removal is the newer of the two.
    let removed: Vec<DocumentId> = removals.iter().map(|event| event.id).collect();
    append(platform, collection, removals).await?;
    platform
        .catalog
        .touch_removals(collection, &removed)
        .await?;
    announce(platform, collection, uploads).await
}

fn gone_or_failed(state: DocumentState) -> bool {
    use DocumentState::{Deleted, Deleting, Failed};
    matches!(state, Deleting | Deleted | Failed)
}

/// Removes a collection: hidden first, so that nothing finds it while its indexes go. May be repeated.
pub async fn remove_collection(
    platform: &Platform,
    collection: &CollectionRef,
) -> Result<(), IngestError> {
    platform
        .indexes
        .drop_collection(collection)
        .await
        .map_err(|error| IngestError::Index(error.to_string()))?;
    platform.catalog.drop_collection(collection).await?;
    Ok(())
}

/// Time between two looks at a document that another process works on.
const DONE_POLL: Duration = Duration::from_millis(100);

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
            if platform.settings.indexes.shared {
                // So long a search of this process may go on with what it knew.
                let refresh = platform.settings.indexes.refresh_ms;
                tokio::time::sleep(Duration::from_millis(refresh)).await;
            }
            return Ok(document);
        }
        match &mut checkpoints {
            Some(checkpoints) => {
                if checkpoints.changed().await.is_err() {
                    return Ok(document);
                }
            }
            // It happens in another process, and the catalog is where that shows.
            None => tokio::time::sleep(DONE_POLL).await,
        }
    }
}

/// What is said of a document above the limit (in bytes).
pub fn too_large(limit: u64) -> String {
    format!(
        "a document may have at most {limit} bytes ({} MB)",
        limit / (1 << 20)
    )
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
    /// With the readers, which travel in it.
    metadata: BTreeMap<String, String>,
    /// Whether the collection has vectors.
    vectors: bool,
}

impl Event {
    fn uploaded(
        new: NewVersion,
        begun: &Begun,
        readers: &BTreeMap<DocumentId, Readers>,
        vectors: bool,
    ) -> Self {
        let mut metadata = new.metadata;
        if let Some(readers) = readers.get(&begun.id) {
            readers.put_into(&mut metadata);
        }
        Self {
            event_type: DOCUMENT_UPLOADED,
            id: begun.id,
            version: begun.version,
            name: new.name,
            uri: new.uri,
            content_type: new.content_type,
            content_hash: new.content_hash.to_string(),
            size: new.size,
            metadata,
            vectors,
        }
    }

    fn of(document: &DocumentInfo, event_type: &'static str, vectors: bool) -> Self {
        let mut metadata = document.metadata.clone();
        document.readers.put_into(&mut metadata);
        Self {
            event_type,
            id: document.id,
            version: document.version,
            name: document.name.clone(),
            uri: document.uri.clone(),
            content_type: document.content_type.clone(),
            content_hash: document.content_hash.to_string(),
            size: document.size,
            metadata,
            vectors,
        }
    }
}

/// Appends events in one commit, those of one partition as one batch.
async fn append(
    platform: &Platform,
    collection: &CollectionRef,
    events: Vec<Event>,
) -> Result<(), IngestError> {
    if events.is_empty() {
        return Ok(());
    }
    let topic = TopicName::new(DOCUMENT_UPLOADED)
        .map_err(|error| CatalogError::Invalid(error.to_string()))?;
    let topics = platform.log.topics().await?;
    let partitions = topics
        .into_iter()
        .find(|(name, _)| *name == topic)
        .map(|(_, config)| config.partitions)
        .ok_or_else(|| LogError::UnknownTopic(topic.clone()))?;
    let count = events.len();
    let mut places: BTreeMap<Partition, Vec<Event>> = BTreeMap::new();
    for event in events {
        let partition = partition_of(event.id.to_string().as_bytes(), partitions);
        places.entry(partition).or_default().push(event);
    }
    let span = tracing::info_span!(
        target: trace::TARGET,
        "send document.uploaded",
        otel.kind = "producer",
        "messaging.operation.type" = "send",
        messaging.destination.name = DOCUMENT_UPLOADED,
        messaging.batch.message_count = count as i64,
    );
    let send = async {
        let mut commit = platform.log.begin();
        for (partition, events) in places {
            commit.append(
                &topic,
                Target::Partition(partition),
                batch_of(collection, &events)?,
            );
        }
        commit.finish().await?;
        Ok::<(), IngestError>(())
    };
    send.instrument(span).await
}

fn batch_of(
    collection: &CollectionRef,
    events: &[Event],
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let texts = |text: &dyn Fn(&Event) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(events.iter().map(text)))
    };
    let schema = document_uploaded_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(arrow::error::ArrowError::SchemaError(
            "`document.uploaded` has no struct payload".into(),
        ));
    };
    let metadata = events
        .iter()
        .map(|event| serde_json::to_string(&event.metadata))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| arrow::error::ArrowError::JsonError(error.to_string()))?;
    let content_types: StringArray = events
        .iter()
        .map(|event| event.content_type.as_deref())
        .collect();
    let payload = StructArray::try_new(
        fields.clone(),
        vec![
            texts(&|_| collection.collection.to_string()),
            texts(&|event| event.id.to_string()),
            Arc::new(UInt32Array::from_iter_values(
                events.iter().map(|event| event.version.0),
            )),
            texts(&|event| event.name.clone()),
            texts(&|event| event.uri.clone()),
            Arc::new(content_types),
            texts(&|event| event.content_hash.clone()),
            Arc::new(UInt64Array::from_iter_values(
                events.iter().map(|event| event.size),
            )),
            Arc::new(StringArray::from(metadata)),
            Arc::new(BooleanArray::from_iter(
                events.iter().map(|event| Some(event.vectors)),
            )),
        ],
        None,
    )?;
    let now = TimestampMillisecondArray::from(vec![now_ms(); events.len()]);
    // Whoever indexes it finds the request that it came with.
    let schema = match trace::current() {
        Some(parent) => {
            let metadata = HashMap::from([(TRACEPARENT.to_owned(), parent)]);
            Arc::new(schema.as_ref().clone().with_metadata(metadata))
        }
        None => schema.clone(),
    };
    RecordBatch::try_new(
        schema,
        vec![
            texts(&|_| uuid::Uuid::now_v7().to_string()),
            texts(&|event| event.event_type.to_owned()),
            texts(&|_| collection.tenant.to_string()),
            Arc::new(StringArray::new_null(events.len())),
            Arc::new(now.with_timezone("UTC")),
            Arc::new(payload),
        ],
    )
}
