//! Conversations: whose they are, their titles, and searching in them.
//!
//! A conversation belongs to one [`Owner`]; to everybody else it does not exist. Its messages are `messages.rs`'s, what they
//! are summed up to `summaries.rs`'s, and what waits for the log `outbox.rs`'s.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::outbox::{self, ConversationEvent, EventKind};
use super::page::{Listing, Page};
use super::principal::Principal;
use super::query::{Row, Transaction, query};
use super::quotas::{Quota, room_for};
use crate::ids::CollectionName;
use crate::scope::TenantScope;

/// Whose conversations: a user's, or an API key's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub tenant: TenantScope,
    pub id: String,
}

impl From<&Principal> for Owner {
    fn from(principal: &Principal) -> Self {
        Self {
            tenant: principal.tenant.clone(),
            id: principal.actor().to_owned(),
        }
    }
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    pub id: String,
    pub title: String,
    /// Where its answers are searched for; without one a model answers by itself.
    pub collection: Option<String>,
    /// What its owner wants of the answers in it; told to the model that writes them.
    pub instructions: Option<String>,
    /// Number of its last message, also when that one is gone; 0 before the first.
    pub last_seq: i64,
    /// UTC milliseconds.
    pub created_at: i64,
    /// When something was last said in it, or its title changed.
    pub updated_at: i64,
}

/// What is to change of a conversation; what is `None` stays. Empty instructions remove them.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConversationChange<'a> {
    pub title: Option<&'a str>,
    pub instructions: Option<&'a str>,
}

/// A conversation that is to be begun.
#[derive(Debug, Clone, Copy)]
pub struct NewConversation<'a> {
    pub title: &'a str,
    pub collection: Option<&'a CollectionName>,
    pub instructions: Option<&'a str>,
}

impl NewConversation<'_> {
    /// Writes it down, without its event, if the tenant has room for it. `last_seq` messages follow in the same transaction.
    pub(super) async fn insert(
        &self,
        transaction: &mut Transaction,
        owner: &Owner,
        last_seq: i64,
        now: i64,
    ) -> Result<Conversation, CatalogError> {
        let conversation = Conversation {
            id: format!("conv_{}", Uuid::now_v7().simple()),
            title: checked_title(self.title)?,
            collection: self.collection.map(ToString::to_string),
            instructions: checked_instructions(self.instructions.unwrap_or_default())?,
            last_seq,
            created_at: now,
            updated_at: now,
        };
        room_for(transaction, &owner.tenant, Quota::Conversations, now).await?;
        query(
            "INSERT INTO conversations (tenant_id, id, owner, title, folded, collection, created_at, updated_at, \
             instructions, last_seq) VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9)",
        )
        .bind(owner.tenant.as_str())
        .bind(&conversation.id)
        .bind(&owner.id)
        .bind(&conversation.title)
        .bind(fold(&conversation.title))
        .bind(&conversation.collection)
        .bind(now)
        .bind(&conversation.instructions)
        .bind(conversation.last_seq)
        .execute(&mut *transaction)
        .await?;
        Ok(conversation)
    }
}

const TITLE_CHARS_MAX: usize = 200;
const INSTRUCTIONS_CHARS_MAX: usize = 4_000;
/// Longest text to search for.
const SEARCH_CHARS_MAX: usize = 200;
const COLUMNS: &str = "id, title, collection, instructions, last_seq, created_at, updated_at";

impl Catalog {
    /// Begins a conversation.
    pub async fn create_conversation(
        &self,
        owner: &Owner,
        title: &str,
        collection: Option<&CollectionName>,
        instructions: Option<&str>,
    ) -> Result<Conversation, CatalogError> {
        let new = NewConversation {
            title,
            collection,
            instructions,
        };
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        let now = self.now_ms();
        let made = new.insert(&mut transaction, owner, 0, now).await?;
        let event = ConversationEvent::of(EventKind::Created, &made.id);
        outbox::put(&mut transaction, owner, &[event], now).await?;
        transaction.commit().await?;
        Ok(made)
    }

    /// The owner's conversation of that id.
    pub async fn conversation(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<Conversation, CatalogError> {
        let text = format!(
            "SELECT {COLUMNS} FROM conversations WHERE tenant_id = $1 AND owner = $2 AND id = $3"
        );
        let row = query(&text)
            .bind(owner.tenant.as_str())
            .bind(&owner.id)
            .bind(id)
            .fetch_optional(self.read_of(&owner.tenant))
            .await?
            .ok_or_else(|| CatalogError::not_found("conversation", id))?;
        read_conversation(&row)
    }

    /// The owner's conversations, newest first; with `search` those that have this in their title or in a message,
    /// whichever case it is written in.
    pub async fn conversations(
        &self,
        owner: &Owner,
        search: Option<&str>,
        page: &Page,
    ) -> Result<Listing<Conversation>, CatalogError> {
        let pattern = search.map(pattern).transpose()?;
        let text = format!(
            "SELECT {COLUMNS} FROM conversations c WHERE tenant_id = $1 AND owner = $2 AND ($3 = '' OR id < $3) \
             AND ($5 = 0 OR folded LIKE $6 ESCAPE '!' OR EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = $1 \
             AND m.conversation_id = c.id AND m.created_at >= c.created_at AND m.folded LIKE $6 ESCAPE '!')) ORDER BY id DESC LIMIT $4"
        );
        let rows = query(&text)
            .bind(owner.tenant.as_str())
            .bind(&owner.id)
            .bind(page.after()?)
            .bind(page.rows()?)
            .bind(i64::from(pattern.is_some()))
            .bind(pattern.unwrap_or_default())
            .fetch_all(self.read_of(&owner.tenant))
            .await?;
        let conversations = rows
            .iter()
            .map(read_conversation)
            .collect::<Result<_, _>>()?;
        Ok(page.listing(conversations, |one: &Conversation| one.id.as_str()))
    }

    /// Gives a conversation another title, or other instructions.
    pub async fn update_conversation(
        &self,
        owner: &Owner,
        id: &str,
        change: &ConversationChange<'_>,
    ) -> Result<Conversation, CatalogError> {
        let title = change.title.map(checked_title).transpose()?;
        // An empty text stands for "none": NULL means that it stays.
        let instructions = match change.instructions {
            Some(text) => Some(checked_instructions(text)?.unwrap_or_default()),
            None => None,
        };
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        let updated = query(
            "UPDATE conversations SET title = COALESCE($4, title), folded = COALESCE($5, folded), \
             instructions = NULLIF(COALESCE($6, instructions), ''), updated_at = $7 \
             WHERE tenant_id = $1 AND owner = $2 AND id = $3",
        )
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(id)
        .bind(&title)
        .bind(title.as_deref().map(fold))
        .bind(&instructions)
        .bind(self.now_ms())
        .execute(&mut transaction)
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("conversation", id));
        }
        transaction.commit().await?;
        self.conversation(owner, id).await
    }

    /// Removes a conversation with all its messages.
    pub async fn delete_conversation(&self, owner: &Owner, id: &str) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        must_be_there(&mut transaction, owner, id).await?;
        for statement in [
            "DELETE FROM messages WHERE tenant_id = $1 AND conversation_id = $2",
            "DELETE FROM conversations WHERE tenant_id = $1 AND id = $2",
        ] {
            query(statement)
                .bind(owner.tenant.as_str())
                .bind(id)
                .execute(&mut transaction)
                .await?;
        }
        let event = ConversationEvent::of(EventKind::Deleted, id);
        outbox::put(&mut transaction, owner, &[event], now).await?;
        transaction.commit().await
    }
}

/// Refuses a conversation that the owner does not have.
pub(super) async fn must_be_there(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &str,
) -> Result<(), CatalogError> {
    query("SELECT id FROM conversations WHERE tenant_id = $1 AND owner = $2 AND id = $3")
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await?
        .map(drop)
        .ok_or_else(|| CatalogError::not_found("conversation", id))
}

/// As it is compared when searching. Databases fold ASCII only, or by a locale of theirs.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// A pattern of LIKE for texts that hold this.
fn pattern(search: &str) -> Result<String, CatalogError> {
    if search.chars().count() > SEARCH_CHARS_MAX {
        return Err(CatalogError::Invalid(format!(
            "`q` has more than {SEARCH_CHARS_MAX} characters: search for less"
        )));
    }
    let escaped = fold(search)
        .replace('!', "!!")
        .replace('%', "!%")
        .replace('_', "!_");
    Ok(format!("%{escaped}%"))
}

fn checked_title(title: &str) -> Result<String, CatalogError> {
    let title = title.trim();
    if title.chars().count() > TITLE_CHARS_MAX || title.chars().any(char::is_control) {
        return Err(CatalogError::Invalid(format!(
            "`title` has at most {TITLE_CHARS_MAX} characters, on one line"
        )));
    }
    Ok(title.to_owned())
}

fn checked_instructions(instructions: &str) -> Result<Option<String>, CatalogError> {
    let instructions = instructions.trim();
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if instructions.chars().count() > INSTRUCTIONS_CHARS_MAX || instructions.chars().any(steers) {
        return Err(CatalogError::Invalid(format!(
            "`instructions` has at most {INSTRUCTIONS_CHARS_MAX} characters, without control characters: say less, or \
             upload long texts as documents"
        )));
    }
    Ok(Some(instructions.to_owned()).filter(|text| !text.is_empty()))
}

fn read_conversation(row: &Row) -> Result<Conversation, CatalogError> {
    Ok(Conversation {
        id: row.try_get("id")?,
        title: row.try_get("title")?,
        collection: row.try_get("collection")?,
        instructions: row.try_get("instructions")?,
        last_seq: row.try_get("last_seq")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
