//! The context of an answer: from the cache, extended by what was said since, or built anew from the catalog.
//!
//! It is kept for an hour under `context:{tenant}:{conversation}`, with the number of the last message that is in it, the
//! strategy, and by which model tokens were counted. An entry is used only for the same of these, and only when the messages
//! behind its number follow without a gap and begin with a question; so one that is old is extended, never shown as it is. A
//! context in which an answer is still being written is not kept, since its number stays while its text grows. A change of
//! the conversation removes the entry. When the cache fails, the context is built anew. What it holds are words of people:
//! whoever can read the cache can read them for that hour.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use va_catalog::Viewer;
use va_catalog::store::{
    CatalogError, Conversation, ConversationSummary, MessageState, Owner, StoredMessage,
};
use va_connectors::cache::CacheKey;
use va_llm::Caller;

use super::context::{ContextStrategy, Counting, Numbered, turns};
use super::summary::Summing;
use super::withheld::{is_guarded, withhold};
use crate::platform::Platform;
use crate::rag::{HistoryRole, Turn};

/// Messages that are looked at.
const LOOKED_AT: u32 = 1_000;
const LIFE: Duration = Duration::from_secs(3_600);

/// What is told of a conversation.
#[derive(Debug, Default)]
pub struct Context {
    pub summary: Option<String>,
    pub history: Vec<Turn>,
    /// Why it is not what was asked for.
    pub degraded: Vec<Value>,
}

/// Which context is wanted.
pub struct Wanted<'a> {
    pub platform: &'a Arc<Platform>,
    pub owner: &'a Owner,
    pub conversation: &'a Conversation,
    /// The last message that may be in it.
    pub upto: i64,
    pub strategy: ContextStrategy,
    /// As whom documents are read: answers that quote others are not told.
    pub viewer: Viewer,
    /// The model that writes the answer, and sums up.
    pub model: Option<(&'a Caller, &'a str)>,
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    upto: i64,
    strategy: ContextStrategy,
    model: Option<String>,
    summary: Option<(String, i64)>,
    turns: Vec<Numbered>,
}

fn key(owner: &Owner, conversation: &str) -> CacheKey {
    CacheKey::new("context", &owner.tenant, &[conversation])
}

/// Removes what is kept of a conversation that was changed or is gone.
pub async fn forget(platform: &Platform, owner: &Owner, conversation: &str) {
    let removed = platform.cache.remove(&key(owner, conversation)).await;
    if let Err(error) = removed {
        // It ends within the hour, and is never shown where a message was added.
        tracing::debug!(%error, conversation, "remove a context from the cache");
    }
}

/// The context of an answer in that conversation.
///
/// # Errors
/// When the catalog does not answer, or the conversation is gone.
pub async fn recall(wanted: &Wanted<'_>) -> Result<Context, CatalogError> {
    if wanted.upto <= 0 {
        return Ok(Context::default());
    }
    let model = wanted.model.map(|(_, model)| model.to_owned());
    let counting = Counting::of(wanted.platform, model.as_deref()).await;
    let mut degraded = Vec::new();
    // What a document said to those who might read it then is in no summary and in no cache: it may be withdrawn.
    let guarded = is_guarded(wanted.platform, &wanted.owner.tenant, &wanted.viewer).await?;
    let wanted = &match wanted.strategy {
        ContextStrategy::Summary { tokens } if guarded => {
            degraded.push(json!({
                "retriever": "summary",
                "reason": "documents here are for some readers only, so conversations are not summed up: the last turns \
                           that fit are told",
            }));
            Wanted {
                strategy: ContextStrategy::Tokens { tokens },
                viewer: wanted.viewer.clone(),
                ..*wanted
            }
        }
        strategy => Wanted {
            strategy,
            viewer: wanted.viewer.clone(),
            ..*wanted
        },
    };
    let found = if guarded {
        None
    } else {
        extended(wanted, model.as_deref()).await?
    };
    let (mut entry, is_settled) = match found {
        Some(found) => found,
        None => built(wanted, model, &mut degraded).await?,
    };
    match wanted.strategy {
        ContextStrategy::Summary { tokens } => {
            let summing = Summing {
                platform: wanted.platform,
                owner: wanted.owner,
                conversation: wanted.conversation,
                model: wanted.model,
                counting: &counting,
                tokens,
            };
            let summary = entry.summary.take();
            let summary = summary.map(|(text, seq)| ConversationSummary { text, seq });
            let summed = summing.fit(summary, std::mem::take(&mut entry.turns)).await;
            entry.summary = summed.summary.map(|summary| (summary.text, summary.seq));
            entry.turns = summed.turns;
            degraded.extend(summed.degraded);
        }
        strategy => entry.turns = strategy.choose(&entry.turns, &counting),
    }
    // What was cut for want of a model is not to be extended: the next answer may have one.
    if is_settled && degraded.is_empty() && !guarded {
        keep(wanted, &entry).await;
    }
    Ok(Context {
        summary: entry.summary.map(|(text, _)| text),
        history: entry.turns.into_iter().map(|one| one.turn).collect(),
        degraded,
    })
}

/// What is kept, with what was said since; `None` where it cannot be used. And whether nobody writes any of it any more.
async fn extended(
    wanted: &Wanted<'_>,
    model: Option<&str>,
) -> Result<Option<(Entry, bool)>, CatalogError> {
    let kept = wanted
        .platform
        .cache
        .get(&key(wanted.owner, &wanted.conversation.id))
        .await;
    let kept = match kept {
        Ok(Some(kept)) => kept,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::debug!(%error, "the context of a conversation is built anew");
            return Ok(None);
        }
    };
    let Ok(mut entry) = serde_json::from_slice::<Entry>(&kept) else {
        // Of another version of the program.
        return Ok(None);
    };
    let fits = entry.strategy == wanted.strategy
        && entry.model.as_deref() == model
        && entry.upto <= wanted.upto;
    if !fits {
        return Ok(None);
    }
    if entry.upto == wanted.upto {
        count("found");
        return Ok(Some((entry, true)));
    }
    let mut since = wanted
        .platform
        .catalog
        .last_messages_after(wanted.owner, &wanted.conversation.id, entry.upto, LOOKED_AT)
        .await?;
    since.retain(|message| message.seq <= wanted.upto);
    if !follows(&entry, &since) {
        return Ok(None);
    }
    entry.upto = wanted.upto;
    entry.turns.extend(turns(&since));
    count("extended");
    Ok(Some((entry, is_settled(&since))))
}

/// Whether these messages are the next ones. A further answer to the last question would take the place of one that is kept,
/// which may have been cut for its length; so the first has to be a question.
fn follows(entry: &Entry, since: &[StoredMessage]) -> bool {
    let first_turn = turns(since).into_iter().next();
    since
        .first()
        .is_some_and(|first| first.seq == entry.upto + 1)
        && first_turn.is_some_and(|first| first.turn.role == HistoryRole::User)
}

fn is_settled(messages: &[StoredMessage]) -> bool {
    messages
        .iter()
        .all(|message| message.state != MessageState::Writing)
}

/// From the catalog: all that is looked at, before anything is chosen.
async fn built(
    wanted: &Wanted<'_>,
    model: Option<String>,
    degraded: &mut Vec<Value>,
) -> Result<(Entry, bool), CatalogError> {
    let (catalog, id) = (&wanted.platform.catalog, &wanted.conversation.id);
    let sums_up = matches!(wanted.strategy, ContextStrategy::Summary { .. });
    let summary = if sums_up {
        let summary = catalog.conversation_summary(wanted.owner, id).await?;
        // One that knows what is not to be told yet is of no use: the last question is answered once more.
        summary.filter(|summary| summary.seq <= wanted.upto)
    } else {
        None
    };
    let after = summary.as_ref().map_or(0, |summary| summary.seq);
    // A question that is answered again, with all answers that it has had, is behind `upto`.
    let mut messages = catalog
        .last_messages_after(wanted.owner, id, after, LOOKED_AT)
        .await?;
    if let Some(first) = messages
        .first()
        .filter(|first| sums_up && first.seq > after + 1)
    {
        degraded.push(json!({
            "retriever": "summary",
            "reason": format!(
                "the last {LOOKED_AT} messages are looked at: those before number {} that were not summed up yet are left out",
                first.seq
            ),
        }));
    }
    messages.retain(|message| message.seq <= wanted.upto);
    withhold(
        wanted.platform,
        &wanted.owner.tenant,
        &wanted.viewer,
        &mut messages,
    )
    .await?;
    count("built");
    let entry = Entry {
        upto: wanted.upto,
        strategy: wanted.strategy,
        model,
        summary: summary.map(|summary| (summary.text, summary.seq)),
        turns: turns(&messages),
    };
    Ok((entry, is_settled(&messages)))
}

async fn keep(wanted: &Wanted<'_>, entry: &Entry) {
    let Ok(value) = serde_json::to_vec(entry) else {
        return tracing::warn!("a context cannot be written as JSON");
    };
    let key = key(wanted.owner, &wanted.conversation.id);
    let kept = wanted.platform.cache.put(&key, Bytes::from(value), LIFE);
    if let Err(error) = kept.await {
        tracing::debug!(%error, "keep the context of a conversation");
    }
}

fn count(how: &'static str) {
    metrics::counter!("va_conversation_contexts_total", "how" => how).increment(1);
}

#[cfg(test)]
mod tests {
    use va_catalog::store::MessageRole;

    use super::*;

    fn message(seq: i64, role: MessageRole, state: MessageState) -> StoredMessage {
        StoredMessage {
            seq,
            ..StoredMessage::new(role, "x", state)
        }
    }

    #[test]
    fn an_entry_is_extended_by_what_follows_it_only() {
        use MessageRole::{Assistant, User};
        use MessageState::{Complete, Writing};
        let entry = Entry {
            upto: 2,
            strategy: ContextStrategy::Summary { tokens: 4_000 },
            model: Some("m".to_owned()),
            summary: Some(("so far".to_owned(), 1)),
            turns: turns(&[message(2, Assistant, Complete)]),
        };
        for (first, role, expected) in [(3, User, true), (4, User, false), (3, Assistant, false)] {
            let since = [message(first, role, Complete)];
            assert_eq!(follows(&entry, &since), expected, "{first} {role:?}");
        }
        assert!(!follows(&entry, &[]));
        assert!(is_settled(&[message(3, User, Complete)]));
        assert!(!is_settled(&[message(4, Assistant, Writing)]));
        let text = serde_json::to_vec(&entry).expect("JSON");
        let read: Entry = serde_json::from_slice(&text).expect("an entry");
        assert_eq!(read, entry);
    }
}
