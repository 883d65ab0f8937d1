//! Moves events of conversations from the catalog's outbox to the topic `conversation.events`, each once.
//!
//! A commit of the log holds some events and, as state, their ids. Only after it are they removed from the outbox. Whoever
//! begins, or does not know how a commit ended, reads that state first and removes what it names; so nothing is written
//! twice and nothing is lost, wherever a process dies. One process at a time does this, under a lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray, UInt64Array,
};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use bytes::Bytes;
use va_catalog::event::{CONVERSATION_EVENTS, conversation_events_schema};
use va_catalog::store::{CatalogError, OutboxEvent};
use va_catalog::{PipelineName, TopicName};
use va_connectors::log::{GroupId, LogError, StateKey, Target};

use crate::platform::Platform;

/// Events in one commit at most.
const BATCH: u32 = 500;
/// How often is looked for events that nobody told of: those of other processes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Whoever asks one question after the other waits for answers, not for events: those of several are moved at once, when no
/// answer was made for so long, or after [`INTERVAL`].
const QUIET: Duration = Duration::from_millis(50);
/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Whose state in the log it is.
const GROUP: &str = "conversation.outbox";

/// Why events were not moved.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("make rows of the events: {0}")]
    Rows(#[from] ArrowError),
    #[error("the state of the outbox in the log: {0}")]
    State(String),
}

/// Moves events until the platform stops. What is left then is moved after the next start.
pub async fn run(platform: Arc<Platform>) {
    let shared = platform.catalog.is_shared();
    // Whether the log may have events that are still in the outbox.
    let mut unsure = true;
    loop {
        let mut pause = INTERVAL;
        if platform.leads(GROUP).await {
            match move_some(&platform, unsure).await {
                Ok(moved) => {
                    // Another process may have had its turn when this one looks again.
                    unsure = shared;
                    if moved == BATCH as usize {
                        continue;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "move events of conversations to the log; it is tried again");
                    unsure = true;
                    pause = PAUSE;
                }
            }
        }
        let told = async {
            platform.conversations.news().await;
            platform.answers.quiet.wait(QUIET).await;
        };
        tokio::select! {
            () = told => {}
            () = tokio::time::sleep(pause) => {}
            () = platform.stopping().cancelled() => return,
        }
    }
}

/// Moves some events; returns how many.
async fn move_some(platform: &Platform, unsure: bool) -> Result<usize, RelayError> {
    let state = StateKey {
        group: GroupId(
            PipelineName::new(GROUP).map_err(|error| RelayError::State(error.to_string()))?,
        ),
        namespace: "outbox".to_owned(),
        key: Bytes::from_static(b"last"),
    };
    if unsure && let Some(last) = platform.log.state_get(&state).await? {
        let ids: Vec<String> =
            serde_json::from_slice(&last).map_err(|error| RelayError::State(error.to_string()))?;
        platform.catalog.sent_all_tenants(&ids).await?;
    }
    let events = platform.catalog.outbox_all_tenants(BATCH).await?;
    if events.is_empty() {
        return Ok(0);
    }
    let topic = TopicName::new(CONVERSATION_EVENTS)
        .map_err(|error| RelayError::State(error.to_string()))?;
    // By conversation, so that the events of one are in one partition and in order.
    let mut conversations: BTreeMap<&str, Vec<&OutboxEvent>> = BTreeMap::new();
    for event in &events {
        let of_one = conversations.entry(&event.event.conversation_id);
        of_one.or_default().push(event);
    }
    let ids: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
    let value = serde_json::to_vec(&ids).map_err(|error| RelayError::State(error.to_string()))?;
    let mut commit = platform.log.begin();
    for (conversation, events) in conversations {
        let key = Bytes::copy_from_slice(conversation.as_bytes());
        commit.append(&topic, Target::Key(key), rows(&events)?);
    }
    commit.put(state, Bytes::from(value));
    commit.finish().await?;
    platform.catalog.sent_all_tenants(&ids).await?;
    metrics::counter!("va_conversation_events_total").increment(ids.len() as u64);
    Ok(ids.len())
}

/// The events as rows of the topic.
fn rows(events: &[&OutboxEvent]) -> Result<RecordBatch, ArrowError> {
    let schema = conversation_events_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(ArrowError::SchemaError(
            "`conversation.events` has no struct payload".into(),
        ));
    };
    fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }
    fn perhaps<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
        Arc::new(values.collect::<StringArray>())
    }
    let told = || events.iter().map(|one| &one.event);
    let payload: Vec<ArrayRef> = vec![
        texts(told().map(|event| event.conversation_id.as_str())),
        perhaps(told().map(|event| event.message_id.as_deref())),
        texts(told().map(|event| event.kind.as_str())),
        perhaps(told().map(|event| event.role.as_deref())),
        perhaps(told().map(|event| event.state.as_deref())),
        Arc::new(told().map(|event| event.chars).collect::<UInt64Array>()),
        perhaps(told().map(|event| event.feedback.as_deref())),
        perhaps(told().map(|event| event.intent.as_deref())),
        perhaps(told().map(|event| event.sentiment.as_deref())),
        Arc::new(
            told()
                .map(|event| event.sentiment_score)
                .collect::<Float64Array>(),
        ),
        Arc::new(
            told()
                .map(|event| event.handover_requested)
                .collect::<BooleanArray>(),
        ),
    ];
    let payload = StructArray::try_new(fields.clone(), payload, None)?;
    let types: Vec<String> = told()
        .map(|event| format!("conversation.{}", event.kind.as_str()))
        .collect();
    let times = TimestampMillisecondArray::from_iter_values(events.iter().map(|one| one.at));
    let columns: Vec<ArrayRef> = vec![
        texts(events.iter().map(|one| one.id.as_str())),
        texts(types.iter().map(String::as_str)),
        texts(events.iter().map(|one| one.tenant.as_str())),
        texts(events.iter().map(|one| one.owner.as_str())),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(payload),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}
