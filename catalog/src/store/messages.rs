//! Messages of conversations: questions, answers while and after they are written, and what people thought of them.
//!
//! Whatever changes here and is told on the log is written together with its event (`outbox.rs`), so a message is in the
//! table if and only if its event is, or will be, on the log. On PostgreSQL the table is cut by months of creation
//! (`message_months.rs`): reads name the time from which on there can be something, so that older months are not looked into.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::conversations::{NewConversation, Owner, fold, must_be_there};
use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::outbox::{self, ConversationEvent, EventKind};
use super::page::{Listing, Page};
use super::query::{Row, Transaction, Why, places, query};
use crate::ids::TenantId;
use crate::scope::{Internal, TenantScope};

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageRole {
    User,
    Assistant,
}

impl MessageRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    fn read(text: &str) -> Result<Self, CatalogError> {
        match text {
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            other => Err(CatalogError::corrupt("role", other)),
        }
    }
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    Complete,
    /// An answer that is being written.
    Writing,
    /// An answer that ended early; the reason says why.
    Partial,
}

impl MessageState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Writing => "writing",
            Self::Partial => "partial",
        }
    }

    fn read(text: &str) -> Result<Self, CatalogError> {
        match text {
            "complete" => Ok(Self::Complete),
            "writing" => Ok(Self::Writing),
            "partial" => Ok(Self::Partial),
            other => Err(CatalogError::corrupt("state", other)),
        }
    }
}

/// What somebody thought of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feedback {
    Up,
    Down,
}

impl Feedback {
    fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    fn read(text: &str) -> Result<Self, CatalogError> {
        match text {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            other => Err(CatalogError::corrupt("feedback", other)),
        }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredMessage {
    pub id: String,
    /// Its place in the conversation, from 1.
    pub seq: i64,
    pub role: MessageRole,
    pub content: String,
    pub state: MessageState,
    /// Why it is not complete.
    pub reason: Option<String>,
    /// How an answer came about: `chat` or `rag`.
    pub mode: Option<String>,
    pub citations: Value,
    pub usage: Value,
    pub feedback: Option<Feedback>,
    pub feedback_comment: Option<String>,
    /// What a question was taken for.
    pub intent: Option<String>,
    /// In which mood a question was asked.
    pub sentiment: Option<String>,
    /// UTC milliseconds. Never before its conversation's.
    pub created_at: i64,
}

impl StoredMessage {
    /// A message that has no place in a conversation yet, and nothing else that comes later.
    pub fn new(role: MessageRole, content: &str, state: MessageState) -> Self {
        Self {
            id: format!("msg_{}", Uuid::now_v7().simple()),
            seq: 0,
            role,
            content: content.to_owned(),
            state,
            reason: None,
            mode: None,
            citations: Value::Array(Vec::new()),
            usage: Value::Null,
            feedback: None,
            feedback_comment: None,
            intent: None,
            sentiment: None,
            created_at: 0,
        }
    }
}

/// A question that is to be written down, and what it was taken for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NewQuestion<'a> {
    pub content: &'a str,
    pub intent: Option<&'a str>,
    pub sentiment: Option<&'a str>,
    /// From -1 to 1.
    pub sentiment_score: Option<f64>,
    pub handover_requested: Option<bool>,
}

impl<'a> From<&'a str> for NewQuestion<'a> {
    fn from(content: &'a str) -> Self {
        Self {
            content,
            ..Self::default()
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub struct FinishedAnswer<'a> {
    pub content: &'a str,
    /// Why it ended early; `None`: it is complete.
    pub reason: Option<&'a str>,
    pub citations: &'a Value,
    pub usage: &'a Value,
}

const COMMENT_CHARS_MAX: usize = 2_000;
const COLUMNS: &str = "id, seq, role, content, state, reason, mode, citations, usage, feedback, feedback_comment, intent, \
                       sentiment, created_at";

impl Catalog {
    /// Adds a question, where there is a new one, and the answer that is going to be written; returns both.
    pub async fn begin_answer(
        &self,
        owner: &Owner,
        conversation: &str,
        question: Option<NewQuestion<'_>>,
        mode: &str,
    ) -> Result<(Option<StoredMessage>, StoredMessage), CatalogError> {
        let mut turn = NewTurn::of(question, mode);
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        // Clocks differ between processes; months before the conversation's are not looked into.
        let row = query(
            "UPDATE conversations SET last_seq = last_seq + $4, \
             updated_at = CASE WHEN created_at > $5 THEN created_at ELSE $5 END \
             WHERE tenant_id = $1 AND owner = $2 AND id = $3 RETURNING last_seq, updated_at",
        )
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(conversation)
        .bind(turn.len())
        .bind(self.now_ms())
        .fetch_optional(&mut transaction)
        .await?
        .ok_or_else(|| CatalogError::not_found("conversation", conversation))?;
        let (last_seq, now): (i64, i64) = (row.try_get("last_seq")?, row.try_get("updated_at")?);
        turn.place(last_seq - turn.len(), now);
        turn.insert(&mut transaction, owner, conversation).await?;
        let events = turn.events(conversation);
        outbox::put(&mut transaction, owner, &events, now).await?;
        transaction.commit().await?;
        Ok((turn.asked, turn.answer))
    }

    /// The same in a new conversation, all of it or nothing; returns its id, too.
    pub async fn begin_conversation(
        &self,
        owner: &Owner,
        new: &NewConversation<'_>,
        question: Option<NewQuestion<'_>>,
        mode: &str,
    ) -> Result<(String, Option<StoredMessage>, StoredMessage), CatalogError> {
        let now = self.now_ms();
        let mut turn = NewTurn::of(question, mode);
        turn.place(0, now);
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        let made = new.insert(&mut transaction, owner, turn.len(), now).await?;
        turn.insert(&mut transaction, owner, &made.id).await?;
        let mut events = vec![ConversationEvent::of(EventKind::Created, &made.id)];
        events.extend(turn.events(&made.id));
        outbox::put(&mut transaction, owner, &events, now).await?;
        transaction.commit().await?;
        Ok((made.id, turn.asked, turn.answer))
    }

    /// Keeps what has been written of an answer so far, so that little is lost when the process dies.
    pub async fn save_answer_so_far(
        &self,
        owner: &Owner,
        conversation: &str,
        id: &str,
        content: &str,
    ) -> Result<(), CatalogError> {
        query(
            "UPDATE messages SET content = $4, folded = $5 \
             WHERE tenant_id = $1 AND conversation_id = $2 AND id = $3 AND state = 'writing'",
        )
        .bind(owner.tenant.as_str())
        .bind(conversation)
        .bind(id)
        .bind(content)
        .bind(fold(content))
        .execute(self.write_of(&owner.tenant))
        .await
        .map(drop)
    }

    /// Ends an answer. [`CatalogError::NotFound`] when it is not being written any more, or its conversation is gone.
    pub async fn finish_answer(
        &self,
        owner: &Owner,
        conversation: &str,
        id: &str,
        finished: &FinishedAnswer<'_>,
    ) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let state = match finished.reason {
            None => MessageState::Complete,
            Some(_) => MessageState::Partial,
        };
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        let updated = query(
            "UPDATE messages SET content = $4, folded = $5, state = $6, reason = $7, citations = $8, usage = $9 \
             WHERE tenant_id = $1 AND conversation_id = $2 AND id = $3 AND state = 'writing'",
        )
        .bind(owner.tenant.as_str())
        .bind(conversation)
        .bind(id)
        .bind(finished.content)
        .bind(fold(finished.content))
        .bind(state.as_str())
        .bind(finished.reason)
        .bind(finished.citations.to_string())
        .bind(finished.usage.to_string())
        .execute(&mut transaction)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("answer being written", id));
        }
        let event = ConversationEvent {
            message_id: Some(id.to_owned()),
            role: Some(MessageRole::Assistant.as_str().to_owned()),
            state: Some(state.as_str().to_owned()),
            chars: Some(finished.content.chars().count() as u64),
            ..ConversationEvent::of(EventKind::Finished, conversation)
        };
        outbox::put(&mut transaction, owner, &[event], now).await?;
        transaction.commit().await
    }

    /// Ends answers that were begun before that time and are written by nobody any more; returns how many.
    pub async fn end_abandoned_answers_all_tenants(
        &self,
        before_ms: i64,
        reason: &str,
    ) -> Result<usize, CatalogError> {
        let rows = query(
            "SELECT m.tenant_id, m.conversation_id, m.id, m.content, c.owner FROM messages m \
             JOIN conversations c ON c.tenant_id = m.tenant_id AND c.id = m.conversation_id \
             WHERE m.state = 'writing' AND m.created_at <= $1 ORDER BY m.created_at LIMIT 1000",
        )
        .bind(before_ms)
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        let mut ended = 0;
        for row in &rows {
            let tenant: String = row.try_get("tenant_id")?;
            let tenant = TenantId::new(tenant)
                .map_err(|error| CatalogError::corrupt("tenant_id", error.to_string()))?;
            let owner = Owner {
                tenant: TenantScope::internal(tenant, Internal::Chore),
                id: row.try_get("owner")?,
            };
            let conversation: String = row.try_get("conversation_id")?;
            let id: String = row.try_get("id")?;
            let content: String = row.try_get("content")?;
            let finished = FinishedAnswer {
                content: &content,
                reason: Some(reason),
                citations: &Value::Array(Vec::new()),
                usage: &Value::Null,
            };
            match self
                .finish_answer(&owner, &conversation, &id, &finished)
                .await
            {
                Ok(()) => ended += 1,
                // Somebody else was faster.
                Err(CatalogError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    /// The messages of a conversation, oldest first.
    pub async fn messages(
        &self,
        owner: &Owner,
        conversation: &str,
        page: &Page,
    ) -> Result<Listing<StoredMessage>, CatalogError> {
        let since = self.conversation(owner, conversation).await?.created_at;
        let after = page.after()?;
        let after: i64 = match after.as_str() {
            "" => 0,
            text => text.parse().map_err(|_| {
                CatalogError::Invalid(
                    "the cursor is not one of messages: use `cursor` of the page before".into(),
                )
            })?,
        };
        let text = format!(
            "SELECT {COLUMNS} FROM messages WHERE tenant_id = $1 AND conversation_id = $2 AND seq > $3 \
             AND created_at >= $5 ORDER BY seq LIMIT $4"
        );
        let rows = query(&text)
            .bind(owner.tenant.as_str())
            .bind(conversation)
            .bind(after)
            .bind(page.rows()?)
            .bind(since)
            .fetch_all(self.read_of(&owner.tenant))
            .await?;
        let mut messages = Vec::with_capacity(rows.len());
        for row in &rows {
            let message = read_message(row)?;
            messages.push((message.seq.to_string(), message));
        }
        let listing = page.listing(messages, |one: &(String, StoredMessage)| one.0.as_str());
        Ok(Listing {
            items: listing.items.into_iter().map(|(_, one)| one).collect(),
            next: listing.next,
        })
    }

    /// The last messages of a conversation, at most `limit`, oldest first.
    pub async fn last_messages(
        &self,
        owner: &Owner,
        conversation: &str,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, CatalogError> {
        self.last_messages_after(owner, conversation, 0, limit)
            .await
    }

    /// The last messages of a conversation behind the number `after`, at most `limit`, oldest first.
    pub async fn last_messages_after(
        &self,
        owner: &Owner,
        conversation: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, CatalogError> {
        let since = self.conversation(owner, conversation).await?.created_at;
        let text = format!(
            "SELECT {COLUMNS} FROM messages WHERE tenant_id = $1 AND conversation_id = $2 AND seq > $4 \
             AND created_at >= $5 ORDER BY seq DESC LIMIT $3"
        );
        let rows = query(&text)
            .bind(owner.tenant.as_str())
            .bind(conversation)
            .bind(i64::from(limit))
            .bind(after)
            .bind(since)
            .fetch_all(self.read_of(&owner.tenant))
            .await?;
        rows.iter().rev().map(read_message).collect()
    }

    /// One message.
    pub async fn message(
        &self,
        owner: &Owner,
        conversation: &str,
        id: &str,
    ) -> Result<StoredMessage, CatalogError> {
        let since = self.conversation(owner, conversation).await?.created_at;
        let text = format!(
            "SELECT {COLUMNS} FROM messages WHERE tenant_id = $1 AND conversation_id = $2 AND id = $3 \
             AND created_at >= $4"
        );
        let row = query(&text)
            .bind(owner.tenant.as_str())
            .bind(conversation)
            .bind(id)
            .bind(since)
            .fetch_optional(self.read_of(&owner.tenant))
            .await?
            .ok_or_else(|| CatalogError::not_found("message", id))?;
        read_message(&row)
    }

    /// Notes what somebody thought of an answer; the last word counts.
    pub async fn set_feedback(
        &self,
        owner: &Owner,
        conversation: &str,
        id: &str,
        feedback: Feedback,
        comment: Option<&str>,
    ) -> Result<StoredMessage, CatalogError> {
        if comment.is_some_and(|text| text.chars().count() > COMMENT_CHARS_MAX) {
            return Err(CatalogError::Invalid(format!(
                "`comment` has at most {COMMENT_CHARS_MAX} characters"
            )));
        }
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        must_be_there(&mut transaction, owner, conversation).await?;
        let updated = query(
            "UPDATE messages SET feedback = $4, feedback_comment = $5 \
             WHERE tenant_id = $1 AND conversation_id = $2 AND id = $3 AND role = 'assistant'",
        )
        .bind(owner.tenant.as_str())
        .bind(conversation)
        .bind(id)
        .bind(feedback.as_str())
        .bind(comment)
        .execute(&mut transaction)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("answer", id));
        }
        let event = ConversationEvent {
            message_id: Some(id.to_owned()),
            role: Some(MessageRole::Assistant.as_str().to_owned()),
            feedback: Some(feedback.as_str().to_owned()),
            ..ConversationEvent::of(EventKind::Feedback, conversation)
        };
        outbox::put(&mut transaction, owner, &[event], now).await?;
        transaction.commit().await?;
        self.message(owner, conversation, id).await
    }
}

/// A question, where there is a new one, and the answer to be written: what is new in a conversation.
struct NewTurn<'a> {
    question: NewQuestion<'a>,
    asked: Option<StoredMessage>,
    answer: StoredMessage,
}

impl<'a> NewTurn<'a> {
    fn of(question: Option<NewQuestion<'a>>, mode: &str) -> Self {
        let message = StoredMessage::new;
        Self {
            question: question.unwrap_or_default(),
            asked: question.map(|question| StoredMessage {
                intent: question.intent.map(ToOwned::to_owned),
                sentiment: question.sentiment.map(ToOwned::to_owned),
                ..message(MessageRole::User, question.content, MessageState::Complete)
            }),
            answer: StoredMessage {
                mode: Some(mode.to_owned()),
                ..message(MessageRole::Assistant, "", MessageState::Writing)
            },
        }
    }

    fn messages(&self) -> impl Iterator<Item = &StoredMessage> {
        self.asked.iter().chain([&self.answer])
    }

    /// How many messages it is.
    fn len(&self) -> i64 {
        1 + i64::from(self.asked.is_some())
    }

    /// Numbers its messages, which follow the number `after`.
    fn place(&mut self, after: i64, now: i64) {
        let messages = self.asked.iter_mut().chain([&mut self.answer]);
        for (message, seq) in messages.zip(after + 1..) {
            message.seq = seq;
            message.created_at = now;
        }
    }

    /// Writes its messages down, without their events.
    async fn insert(
        &self,
        transaction: &mut Transaction,
        owner: &Owner,
        conversation: &str,
    ) -> Result<(), CatalogError> {
        let text = format!(
            "INSERT INTO messages (tenant_id, conversation_id, seq, id, role, content, folded, state, mode, citations, \
             created_at, intent, sentiment) VALUES {}",
            places(self.messages().count(), 13)
        );
        let mut statement = query(&text);
        for message in self.messages() {
            statement = statement
                .bind(owner.tenant.as_str())
                .bind(conversation)
                .bind(message.seq)
                .bind(&message.id)
                .bind(message.role.as_str())
                .bind(&message.content)
                .bind(fold(&message.content))
                .bind(message.state.as_str())
                .bind(&message.mode)
                .bind(message.citations.to_string())
                .bind(message.created_at)
                .bind(&message.intent)
                .bind(&message.sentiment);
        }
        statement.execute(transaction).await.map(drop)
    }

    /// What tells of its messages.
    fn events(&self, conversation: &str) -> Vec<ConversationEvent> {
        let event = |message: &StoredMessage| {
            // Of the question alone something is known.
            let asked = matches!(message.role, MessageRole::User).then_some(&self.question);
            ConversationEvent {
                message_id: Some(message.id.clone()),
                role: Some(message.role.as_str().to_owned()),
                state: Some(message.state.as_str().to_owned()),
                chars: Some(message.content.chars().count() as u64),
                intent: message.intent.clone(),
                sentiment: message.sentiment.clone(),
                sentiment_score: asked.and_then(|question| question.sentiment_score),
                handover_requested: asked.and_then(|question| question.handover_requested),
                ..ConversationEvent::of(EventKind::Created, conversation)
            }
        };
        self.messages().map(event).collect()
    }
}

fn read_message(row: &Row) -> Result<StoredMessage, CatalogError> {
    let role: String = row.try_get("role")?;
    let state: String = row.try_get("state")?;
    let citations: String = row.try_get("citations")?;
    let usage: Option<String> = row.try_get("usage")?;
    let feedback: Option<String> = row.try_get("feedback")?;
    let json = |column: &'static str, text: &str| {
        serde_json::from_str::<Value>(text).map_err(|_| CatalogError::corrupt(column, text))
    };
    Ok(StoredMessage {
        id: row.try_get("id")?,
        seq: row.try_get("seq")?,
        role: MessageRole::read(&role)?,
        content: row.try_get("content")?,
        state: MessageState::read(&state)?,
        reason: row.try_get("reason")?,
        mode: row.try_get("mode")?,
        citations: json("citations", &citations)?,
        usage: usage.map_or(Ok(Value::Null), |text| json("usage", &text))?,
        feedback: feedback.as_deref().map(Feedback::read).transpose()?,
        feedback_comment: row.try_get("feedback_comment")?,
        intent: row.try_get("intent")?,
        sentiment: row.try_get("sentiment")?,
        created_at: row.try_get("created_at")?,
    })
}
