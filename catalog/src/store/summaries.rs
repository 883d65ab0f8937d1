//! What the older messages of a conversation are summed up to, and the number of the last message that is in it.
//!
//! A summary is only ever replaced by one that reaches further, so of two that are made at once the longer-reaching stays.
//! Who writes it, and from what, is the caller's business. It goes with the conversation, and with the first month of
//! messages that goes (`message_months.rs`).

use super::conversations::Owner;
use super::database::Catalog;
use super::error::CatalogError;
use super::query::query;

/// Longest summary: a few pages.
const SUMMARY_CHARS_MAX: usize = 20_000;

/// What was said in a conversation, up to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationSummary {
    pub text: String,
    /// The number of the last message that is in it.
    pub seq: i64,
}

impl Catalog {
    /// The summary of a conversation, if there is one.
    pub async fn conversation_summary(
        &self,
        owner: &Owner,
        conversation: &str,
    ) -> Result<Option<ConversationSummary>, CatalogError> {
        let row = query(
            "SELECT summary, summary_seq FROM conversations WHERE tenant_id = $1 AND owner = $2 AND id = $3",
        )
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(conversation)
        .fetch_optional(self.read_of(&owner.tenant))
        .await?
        .ok_or_else(|| CatalogError::not_found("conversation", conversation))?;
        let text: Option<String> = row.try_get("summary")?;
        let seq: Option<i64> = row.try_get("summary_seq")?;
        Ok(text
            .zip(seq)
            .map(|(text, seq)| ConversationSummary { text, seq }))
    }

    /// Keeps a summary, unless there is one that reaches as far; tells whether it did.
    pub async fn keep_conversation_summary(
        &self,
        owner: &Owner,
        conversation: &str,
        summary: &ConversationSummary,
    ) -> Result<bool, CatalogError> {
        let chars = summary.text.chars().count();
        if chars > SUMMARY_CHARS_MAX {
            return Err(CatalogError::Invalid(format!(
                "the summary of a conversation has {chars} characters; at most {SUMMARY_CHARS_MAX} are kept"
            )));
        }
        let kept = query(
            "UPDATE conversations SET summary = $4, summary_seq = $5 WHERE tenant_id = $1 AND owner = $2 AND id = $3 \
             AND last_seq >= $5 AND (summary_seq IS NULL OR summary_seq < $5)",
        )
        .bind(owner.tenant.as_str())
        .bind(&owner.id)
        .bind(conversation)
        .bind(&summary.text)
        .bind(summary.seq)
        .execute(self.write_of(&owner.tenant))
        .await?;
        Ok(kept > 0)
    }
}
