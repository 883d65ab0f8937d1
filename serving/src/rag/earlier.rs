//! What was found for earlier questions: the last resort when neither index can be searched.
//!
//! In memory, of this process, bounded in number and size. What comes from here may have been changed or deleted since; the
//! answer says so. The key holds everything that decides what somebody may see: the tenant, who looks, and the filter.
//! Whoever recalls something leaves out what was withdrawn since.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use va_catalog::TenantId;

use super::request::Ask;
use super::retrieve::Source;
use super::text::bare;
use crate::freshness::AsOf;

/// Questions that are remembered.
const QUESTIONS_MAX: usize = 256;
/// Bytes of text that are remembered of all of them.
const BYTES_MAX: usize = 8 << 20;

/// What was found for a question.
#[derive(Debug, Clone)]
pub struct Remembered {
    pub sources: Vec<Source>,
    pub as_of: Option<AsOf>,
    /// UTC milliseconds.
    pub at_ms: i64,
}

#[derive(Default)]
pub struct Earlier(Mutex<VecDeque<(Key, usize, Remembered)>>);

/// What makes two questions the same one.
#[derive(PartialEq, Eq, Clone)]
pub struct Key(String);

impl Key {
    pub fn of(tenant: &TenantId, ask: &Ask, standalone: &str) -> Self {
        // The order of a filter's keys is fixed, names hold no line break, so two keys differ where anything does.
        let filter: Vec<Vec<String>> = ask.filter.groups().collect();
        let readers = ask.viewer.tags();
        Self(format!(
            "{tenant}\n{}\n{}\n{filter:?}\n{readers:?}\n{}",
            ask.collection,
            ask.k,
            bare(standalone)
        ))
    }
}

impl Earlier {
    /// Remembers what was found; the oldest go.
    pub fn remember(&self, key: Key, found: Remembered) {
        let bytes = found.sources.iter().map(|s| s.chunk.text.len()).sum();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, ..)| *known != key);
        all.push_back((key, bytes, found));
        let mut sum: usize = all.iter().map(|(_, bytes, _)| bytes).sum();
        while all.len() > QUESTIONS_MAX || sum > BYTES_MAX {
            let Some((_, bytes, _)) = all.pop_front() else {
                break;
            };
            sum -= bytes;
        }
    }

    /// What was found for the same question, if it is remembered.
    pub fn recall(&self, key: &Key) -> Option<Remembered> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|(known, ..)| known == key)?;
        Some(found.2.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::request::RagRequest;
    use crate::rag::retrieve::tests::source;
    use serde_json::json;
    use va_catalog::Viewer;

    fn key(tenant: &str, question: &str) -> Key {
        key_of(tenant, Viewer::Everything, question)
    }

    fn key_of(tenant: &str, viewer: Viewer, question: &str) -> Key {
        let request = json!({"question": question, "collection": "c", "filter": {"lang": "zh"}});
        let request: RagRequest = serde_json::from_value(request).expect("a request");
        let ask = request.check(viewer).expect("a good request");
        Key::of(&TenantId::new(tenant).expect("a name"), &ask, question)
    }

    #[test]
    fn remembers_within_bounds_and_for_one_tenant() {
        let earlier = Earlier::default();
        let found = |text: &str| Remembered {
            sources: vec![source("a", 1, text)],
            as_of: None,
            at_ms: 1,
        };
        earlier.remember(key("t", "How?"), found("x"));
        assert!(earlier.recall(&key("t", "how")).is_some());
        assert!(earlier.recall(&key("u", "how")).is_none());
        let nobody = Viewer::Only(Default::default());
        assert!(earlier.recall(&key_of("t", nobody, "how")).is_none());
        for i in 0..QUESTIONS_MAX {
            earlier.remember(key("t", &format!("q{i}")), found("x"));
        }
        assert!(earlier.recall(&key("t", "how")).is_none());
        earlier.remember(key("t", "large"), found(&"x".repeat(BYTES_MAX)));
        assert!(earlier.recall(&key("t", "q5")).is_none());
        assert!(earlier.recall(&key("t", "large")).is_some());
    }
}
