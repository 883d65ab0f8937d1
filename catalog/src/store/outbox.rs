//! The outbox: events that were written in the transaction of what they tell, until the log has them.
//!
//! Whoever moves them (one process at a time) asks for some, writes them to the log, and removes them; an event's id is
//! what tells it apart for ever, so one that was moved twice can be known by it. Order is that of the ids.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::conversations::Owner;
use super::database::Catalog;
use super::error::CatalogError;
use super::query::{Row, Transaction, Why, places, query};
use crate::event::CONVERSATION_EVENTS;

/// What became of a conversation or a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Created,
    Finished,
    Deleted,
    Feedback,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Finished => "finished",
            Self::Deleted => "deleted",
            Self::Feedback => "feedback",
        }
    }
}

/// An event of `conversation.events`, without what was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConversationEvent {
    pub conversation_id: String,
    /// `None`: it is about the conversation.
    pub message_id: Option<String>,
    pub kind: EventKind,
    pub role: Option<String>,
    pub state: Option<String>,
    pub chars: Option<u64>,
    pub feedback: Option<String>,
    /// What a question was taken for, where it was looked at. (Not in events that an older version wrote.)
    #[serde(default)]
    pub intent: Option<String>,
    #[serde(default)]
    pub sentiment: Option<String>,
    #[serde(default)]
    pub sentiment_score: Option<f64>,
    #[serde(default)]
    pub handover_requested: Option<bool>,
}

impl ConversationEvent {
    /// One about the conversation as a whole.
    pub(super) fn of(kind: EventKind, conversation: &str) -> Self {
        Self {
            conversation_id: conversation.to_owned(),
            message_id: None,
            kind,
            role: None,
            state: None,
            chars: None,
            feedback: None,
            intent: None,
            sentiment: None,
            sentiment_score: None,
            handover_requested: None,
        }
    }
}

/// An event that waits for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEvent {
    pub id: String,
    pub tenant: String,
    pub owner: String,
    pub event: ConversationEvent,
    /// UTC milliseconds.
    pub at: i64,
}

/// Adds events, in this order, to a transaction.
pub(super) async fn put(
    transaction: &mut Transaction,
    owner: &Owner,
    events: &[ConversationEvent],
    now: i64,
) -> Result<(), CatalogError> {
    let text = format!(
        "INSERT INTO outbox (id, tenant_id, owner, topic, event, created_at) VALUES {}",
        places(events.len(), 6)
    );
    let mut statement = query(&text);
    for event in events {
        let event = serde_json::to_string(event)
            .map_err(|error| CatalogError::storage("write an event", error))?;
        statement = statement
            .bind(format!("evt_{}", Uuid::now_v7().simple()))
            .bind(owner.tenant.as_str())
            .bind(&owner.id)
            .bind(CONVERSATION_EVENTS)
            .bind(event)
            .bind(now);
    }
    statement.execute(transaction).await.map(drop)
}

impl Catalog {
    /// Some of the events that wait, of all tenants.
    pub async fn outbox_all_tenants(&self, limit: u32) -> Result<Vec<OutboxEvent>, CatalogError> {
        let rows = query(
            "SELECT id, tenant_id, owner, event, created_at FROM outbox WHERE topic = $1 ORDER BY id LIMIT $2",
        )
        .bind(CONVERSATION_EVENTS)
        .bind(i64::from(limit))
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        rows.iter().map(read_event).collect()
    }

    /// Forgets events that the log has; those that are not there are passed over.
    pub async fn sent_all_tenants(&self, ids: &[String]) -> Result<(), CatalogError> {
        for some in ids.chunks(IDS_AT_ONCE) {
            let text = format!("DELETE FROM outbox WHERE id IN {}", places(1, some.len()));
            let mut statement = query(&text);
            for id in some {
                statement = statement.bind(id);
            }
            statement.execute(self.write_all(Why::Chore)).await?;
        }
        Ok(())
    }
}

/// Parameters of one statement.
const IDS_AT_ONCE: usize = 200;

fn read_event(row: &Row) -> Result<OutboxEvent, CatalogError> {
    let text: String = row.try_get("event")?;
    Ok(OutboxEvent {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant_id")?,
        owner: row.try_get("owner")?,
        event: serde_json::from_str(&text)
            .map_err(|error| CatalogError::storage("read an event", error))?,
        at: row.try_get("created_at")?,
    })
}
