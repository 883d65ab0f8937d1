//! Conversations: whose they are, their titles, and searching in them.
//!
//! A conversation belongs to one [`Owner`]; to everybody else it does not exist. Its messages are `messages.rs`'s, and
//! what waits for the log `outbox.rs`'s.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::outbox::{self, ConversationEvent, EventKind};
use super::page::{Listing, Page};
use super::principal::Principal;
use super::query::{Row, Transaction, query};
use super::quotas::{Quota, room_for};
use crate::ids::{CollectionName, TenantId};

/// Whose conversations: a user's, or an API key's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub tenant: TenantId,
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
    /// UTC milliseconds.
    pub created_at: i64,
    /// When something was last said in it, or its title changed.
    pub updated_at: i64,
}

const TITLE_CHARS_MAX: usize = 200;
/// Longest text to search for.
const SEARCH_CHARS_MAX: usize = 200;
const COLUMNS: &str = "id, title, collection, created_at, updated_at";

impl Catalog {
    /// Begins a conversation.
    pub async fn create_conversation(
        &self,
        owner: &Owner,
        title: &str,
        collection: Option<&CollectionName>,
    ) -> Result<Conversation, CatalogError> {
        let title = checked_title(title)?;
        let now = self.now_ms();
        let conversation = Conversation {
            id: format!("conv_{}", Uuid::now_v7().simple()),
            title,
            collection: collection.map(ToString::to_string),
            created_at: now,
            updated_at: now,
        };
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        room_for(&mut transaction, &owner.tenant, Quota::Conversations, now).await?;
        query(
            "INSERT INTO conversations (tenant_id, id, owner, title, folded, collection, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        )
        .bind(owner.tenant.as_str())
        .bind(&conversation.id)
        .bind(&owner.id)
        .bind(&conversation.title)
        .bind(fold(&conversation.title))
        .bind(&conversation.collection)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        let event = ConversationEvent::of(EventKind::Created, &conversation.id);
        outbox::put(&mut transaction, owner, &event, now).await?;
        transaction.commit().await?;
        Ok(conversation)
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
            .fetch_optional(&self.read)
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
             AND m.conversation_id = c.id AND m.folded LIKE $6 ESCAPE '!')) ORDER BY id DESC LIMIT $4"
        );
        let rows = query(&text)
            .bind(owner.tenant.as_str())
            .bind(&owner.id)
            .bind(page.after()?)
            .bind(page.rows()?)
            .bind(i64::from(pattern.is_some()))
            .bind(pattern.unwrap_or_default())
            .fetch_all(&self.read)
            .await?;
        let conversations = rows
            .iter()
            .map(read_conversation)
            .collect::<Result<_, _>>()?;
        Ok(page.listing(conversations, |one: &Conversation| one.id.as_str()))
    }

    /// Gives a conversation another title.
    pub async fn rename_conversation(
        &self,
        owner: &Owner,
        id: &str,
        title: &str,
    ) -> Result<Conversation, CatalogError> {
        let title = checked_title(title)?;
        let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
        let updated = query(
            "UPDATE conversations SET title = $4, folded = $5, updated_at = $6 \
             WHERE tenant_id = $1 AND owner = $2 AND id = $3",
        )
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(id)
        .bind(&title)
        .bind(fold(&title))
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
        outbox::put(&mut transaction, owner, &event, now).await?;
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

fn read_conversation(row: &Row) -> Result<Conversation, CatalogError> {
    Ok(Conversation {
        id: row.try_get("id")?,
        title: row.try_get("title")?,
        collection: row.try_get("collection")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
