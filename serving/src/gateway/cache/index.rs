//! Which question means the same as one that was answered: the nearest of a tenant's, within the same context.
//!
//! Plain data; a tenant has so many entries and no more, the oldest go first. Numbers must be the same: vectors say of
//! "in 2024" and "in 2025" that they are nearly one.

use std::collections::{HashMap, VecDeque};

use va_connectors::cache::CacheKey;

use super::key::Question;

/// Tenants whose questions are remembered; of more, those that were silent longest are forgotten.
const TENANTS_MAX: usize = 256;

/// What a question means.
#[derive(Debug, Clone)]
pub(super) struct Meaning {
    question: Question,
    /// Of length 1.
    vector: Vec<f32>,
    numbers: Vec<String>,
}

impl Meaning {
    pub(super) fn new(question: Question, vector: Vec<f32>) -> Self {
        Self {
            numbers: numbers(&question.text),
            question,
            vector,
        }
    }

    pub(super) fn context(&self) -> &str {
        &self.question.context
    }

    pub(super) fn text(&self) -> &str {
        &self.question.text
    }

    fn cosine(&self, other: &Self) -> f32 {
        let products = self.vector.iter().zip(&other.vector).map(|(a, b)| a * b);
        products.sum()
    }
}

/// The numbers of a text, in their order.
fn numbers(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_numeric())
        .filter(|number| !number.is_empty())
        .map(str::to_owned)
        .collect()
}

#[derive(Debug)]
struct Entry {
    meaning: Meaning,
    key: CacheKey,
    until_ms: i64,
}

/// The questions that were answered, by tenant.
#[derive(Debug)]
pub(super) struct Index {
    entries_max: usize,
    tenants: HashMap<String, VecDeque<Entry>>,
}

impl Index {
    pub(super) fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            tenants: HashMap::new(),
        }
    }

    /// The reply to the nearest question, if it is near enough.
    pub(super) fn nearest(
        &self,
        tenant: &str,
        asked: &Meaning,
        similarity: f32,
        now_ms: i64,
    ) -> Option<CacheKey> {
        let entries = self.tenants.get(tenant)?;
        entries
            .iter()
            .filter(|entry| {
                entry.until_ms > now_ms
                    && entry.meaning.question.context == asked.question.context
                    && entry.meaning.numbers == asked.numbers
                    && entry.meaning.vector.len() == asked.vector.len()
            })
            .map(|entry| (entry.meaning.cosine(asked), entry))
            .filter(|(cosine, _)| *cosine >= similarity)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, entry)| entry.key.clone())
    }

    /// Remembers a question whose reply is kept under `key`.
    pub(super) fn remember(
        &mut self,
        tenant: &str,
        meaning: Meaning,
        key: CacheKey,
        until_ms: i64,
        now_ms: i64,
    ) {
        if !self.tenants.contains_key(tenant) && self.tenants.len() >= TENANTS_MAX {
            let silent = self
                .tenants
                .iter()
                .min_by_key(|(_, entries)| entries.back().map(|entry| entry.until_ms))
                .map(|(tenant, _)| tenant.clone());
            if let Some(silent) = silent {
                self.tenants.remove(&silent);
            }
        }
        let entries = self.tenants.entry(tenant.to_owned()).or_default();
        entries.retain(|entry| entry.until_ms > now_ms && entry.key != key);
        while entries.len() >= self.entries_max {
            entries.pop_front();
        }
        entries.push_back(Entry {
            meaning,
            key,
            until_ms,
        });
    }

    /// Forgets a question whose reply is not kept any more.
    pub(super) fn forget(&mut self, tenant: &str, key: &CacheKey) {
        if let Some(entries) = self.tenants.get_mut(tenant) {
            entries.retain(|entry| entry.key != *key);
        }
    }
}

#[cfg(test)]
mod tests {
    use va_catalog::TenantId;

    use super::*;

    fn meaning(context: &str, text: &str, degrees: f32) -> Meaning {
        let question = Question {
            context: context.into(),
            text: text.into(),
        };
        let (sin, cos) = degrees.to_radians().sin_cos();
        Meaning::new(question, vec![cos, sin])
    }

    fn key(name: &str) -> CacheKey {
        CacheKey::new("reply-similar", &TenantId::default_tenant(), &[name])
    }

    #[test]
    fn the_nearest_question_of_the_same_tenant_context_and_numbers_is_found() {
        let mut index = Index::new(10);
        for (tenant, context, text, degrees, name) in [
            ("a", "c", "in 2024", 0.0, "a"),
            ("a", "c", "in 2024 too", 8.0, "b"),
            ("a", "d", "in 2024", 5.0, "other context"),
            ("b", "c", "in 2024", 5.0, "other tenant"),
            ("a", "c", "in 2025", 5.0, "other numbers"),
        ] {
            index.remember(tenant, meaning(context, text, degrees), key(name), 1_000, 0);
        }
        let near = |degrees: f32, text: &str, now: i64| {
            // 0.99 are about 8 degrees.
            index.nearest("a", &meaning("c", text, degrees), 0.99, now)
        };
        assert_eq!(near(5.0, "2024?", 999), Some(key("b")));
        assert_eq!(near(3.0, "2024?", 999), Some(key("a")));
        assert_eq!(near(5.0, "2024?", 1_000), None, "its life is over");
        assert_eq!(near(17.0, "2024?", 0), None, "too far");
        assert_eq!(near(5.0, "when?", 0), None);
        assert_eq!(index.nearest("c", &meaning("c", "2024", 5.0), 0.9, 0), None);
        index.forget("a", &key("b"));
        assert_eq!(
            index.nearest("a", &meaning("c", "2024?", 5.0), 0.99, 0),
            Some(key("a"))
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut index = Index::new(3);
        for n in 0..10 {
            let name = n.to_string();
            index.remember("a", meaning("c", "x", 0.0), key(&name), 100, 0);
        }
        assert_eq!(index.tenants["a"].len(), 3);
        // The same question again takes the place of itself.
        index.remember("a", meaning("c", "x", 0.0), key("9"), 100, 0);
        assert_eq!(index.tenants["a"].len(), 3);
        // What is over makes room.
        index.remember("a", meaning("c", "x", 0.0), key("10"), 300, 200);
        assert_eq!(index.tenants["a"].len(), 1);
        for n in 0..300 {
            let tenant = format!("t{n}");
            index.remember(&tenant, meaning("c", "x", 0.0), key("k"), 400 + n, 200);
        }
        assert_eq!(index.tenants.len(), TENANTS_MAX);
        assert!(!index.tenants.contains_key("a") && index.tenants.contains_key("t299"));
    }
}
