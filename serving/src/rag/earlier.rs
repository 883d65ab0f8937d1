//! What was found for earlier questions and searches: the last resort when neither index can be searched.
//!
//! In memory, of this process, bounded in number and size. What comes from here may have been changed or deleted since; the
//! answer says so. The key holds everything that decides what somebody may see: the tenant, who looks, and the filter.
//! Whoever recalls something leaves out what was withdrawn since.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use va_catalog::{TenantScope, Viewer};

use super::request::Ask;
use super::retrieve::Source;
use super::text::bare;
use crate::freshness::AsOf;
use crate::retrieval::{Hit, SearchRequest};

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

impl Remembered {
    /// Bytes of its text.
    pub fn bytes(&self) -> usize {
        self.sources.iter().map(|s| s.chunk.text.len()).sum()
    }
}

/// What was found by a search.
#[derive(Debug, Clone)]
pub struct RememberedHits {
    pub hits: Vec<Hit>,
    pub as_of: AsOf,
    /// UTC milliseconds.
    pub at_ms: i64,
}

impl RememberedHits {
    /// Bytes of its text.
    pub fn bytes(&self) -> usize {
        self.hits.iter().map(|h| h.chunk.text.len()).sum()
    }
}

/// The last ones of a kind.
pub struct Earlier<T>(Mutex<VecDeque<(Key, usize, T)>>);

impl<T> Default for Earlier<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// What makes two questions the same one.
#[derive(PartialEq, Eq, Clone)]
pub struct Key(String);

impl Key {
    pub fn of(tenant: &TenantScope, ask: &Ask, standalone: &str) -> Self {
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

    /// The same of a search.
    pub fn of_search(tenant: &TenantScope, viewer: &Viewer, request: &SearchRequest) -> Self {
        let filter: Vec<Vec<String>> = request.filter.groups().collect();
        let readers = viewer.tags();
        Self(format!(
            "{tenant}\n{}\n{:?}\n{:?}\n{filter:?}\n{readers:?}\n{}",
            request.collection,
            request.k,
            request.mode,
            bare(&request.query)
        ))
    }
}

impl<T: Clone> Earlier<T> {
    /// Remembers what was found, which has `bytes` of text; the oldest go.
    pub fn remember(&self, key: Key, bytes: usize, found: T) {
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
    pub fn recall(&self, key: &Key) -> Option<T> {
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
    use va_catalog::{Internal, TenantId};

    fn key(tenant: &str, question: &str) -> Key {
        key_of(tenant, Viewer::Everything, question)
    }

    fn key_of(tenant: &str, viewer: Viewer, question: &str) -> Key {
        let request = json!({"question": question, "collection": "c", "filter": {"lang": "zh"}});
        let request: RagRequest = serde_json::from_value(request).expect("a request");
        let ask = request.check(viewer).expect("a good request");
        let tenant = TenantId::new(tenant).expect("a name");
        Key::of(
            &TenantScope::internal(tenant, Internal::Test),
            &ask,
            question,
        )
    }

    #[test]
    fn remembers_within_bounds_and_for_one_tenant() {
        let earlier = Earlier::default();
        let remember = |key: Key, text: &str| {
            let found = Remembered {
                sources: vec![source("a", 1, text)],
                as_of: None,
                at_ms: 1,
            };
            earlier.remember(key, found.bytes(), found);
        };
        remember(key("t", "How?"), "x");
        assert!(earlier.recall(&key("t", "how")).is_some());
        assert!(earlier.recall(&key("u", "how")).is_none());
        let nobody = Viewer::Only(Default::default());
        assert!(earlier.recall(&key_of("t", nobody, "how")).is_none());
        for i in 0..QUESTIONS_MAX {
            remember(key("t", &format!("q{i}")), "x");
        }
        assert!(earlier.recall(&key("t", "how")).is_none());
        remember(key("t", "large"), &"x".repeat(BYTES_MAX));
        assert!(earlier.recall(&key("t", "q5")).is_none());
        assert!(earlier.recall(&key("t", "large")).is_some());
    }

    #[test]
    fn searches_differ_by_all_that_decides_what_they_find() {
        let key = |tenant: &str, more: serde_json::Value| {
            let mut request = json!({"query": "How?", "collection": "c"});
            if let (Some(request), Some(more)) = (request.as_object_mut(), more.as_object()) {
                request.extend(more.clone());
            }
            let request: SearchRequest = serde_json::from_value(request).expect("a request");
            let tenant = TenantId::new(tenant).expect("a name");
            let scope = TenantScope::internal(tenant, Internal::Test);
            Key::of_search(&scope, &Viewer::Everything, &request).0
        };
        let plain = key("t", json!({}));
        assert_eq!(plain, key("t", json!({"query": " how ", "explain": true})));
        for (tenant, more) in [
            ("u", json!({})),
            ("t", json!({"collection": "d"})),
            ("t", json!({"k": 5})),
            ("t", json!({"mode": "vector"})),
            ("t", json!({"filter": {"lang": "zh"}})),
            ("t", json!({"query": "why"})),
        ] {
            assert_ne!(plain, key(tenant, more.clone()), "{tenant} {more}");
        }
    }
}
