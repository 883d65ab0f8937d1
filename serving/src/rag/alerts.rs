//! Alerts about what answers are made with and what fails: an event of `platform.alert` when it begins to, one when it is
//! back. Retrievers, the comparing of sentences, and the model that writes are told of apart ([`Part`]).
//!
//! Told once a change, not once a question, and in the background: a question does not wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use va_catalog::CollectionRef;

use crate::backlog::raise;
use crate::platform::Platform;
use crate::retrieval::Degraded;

/// Collections whose alerts are kept in mind; more of them are told anew each time.
const SUBJECTS_MAX: usize = 10_000;

/// What an alert is about. Each is looked at at another time of an answer, so each has a state of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Retrieval,
    Sentences,
    /// Whoever writes.
    Model,
}

impl Part {
    /// What the event calls it.
    fn code(self) -> &'static str {
        match self {
            Self::Retrieval => "retrieval",
            Self::Sentences => "sentences",
            Self::Model => "answer_model",
        }
    }
}

/// What has been reported as failing, of each collection.
#[derive(Default)]
pub struct Alerts(Mutex<BTreeMap<(String, Part), String>>);

/// The retrievers among what is missing, and the comparing of sentences where that fails by itself: without the model of the
/// vectors both are told of as one.
pub fn of_search(degraded: &[Degraded]) -> [(Part, Vec<Degraded>); 2] {
    let of = |names: &[&str]| -> Vec<Degraded> {
        let faults = degraded.iter().filter(|d| names.contains(&d.retriever));
        faults.cloned().collect()
    };
    let retrieval = of(&["vector", "keyword", "all"]);
    let sentences = match retrieval.iter().any(|d| d.retriever == "vector") {
        true => Vec::new(),
        false => of(&["sentences"]),
    };
    [(Part::Retrieval, retrieval), (Part::Sentences, sentences)]
}

impl Alerts {
    /// Tells what has changed for a part of a collection's answers, given all that is wrong with it now.
    pub fn look(
        &self,
        platform: &Arc<Platform>,
        collection: &CollectionRef,
        part: Part,
        degraded: &[Degraded],
    ) {
        let subject = collection.to_string();
        let key = (subject.clone(), part);
        let failing: Vec<&str> = degraded.iter().map(|d| d.retriever).collect();
        let failing = failing.join(", ");
        let before = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if failing.is_empty() {
                known.remove(&key)
            } else {
                if known.len() >= SUBJECTS_MAX {
                    known.clear();
                }
                known.insert(key, failing.clone())
            }
        };
        let (state, detail) = match (before.as_deref(), failing.is_empty()) {
            (None, true) => return,
            (Some(before), false) if before == failing => return,
            (_, true) => ("cleared", "it answers again".to_owned()),
            (_, false) => {
                let reasons = degraded
                    .iter()
                    .map(|d| format!("{}: {}", d.retriever, d.reason));
                ("raised", reasons.collect::<Vec<_>>().join("; "))
            }
        };
        let platform = platform.clone();
        // Ends with its one commit; on a log that is away, with the log's own patience.
        tokio::spawn(async move { raise(&platform, part.code(), &subject, state, &detail).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_of_once() {
        for (missing, expected) in [
            (vec![], "; "),
            // Without the model of the vectors sentences cannot be compared either: that is one fault.
            (vec!["vector", "sentences"], "vector; "),
            (vec!["sentences"], "; sentences"),
            (vec!["keyword", "sentences"], "keyword; sentences"),
            // What one request asked for is no fault of the platform.
            (vec!["freshness", "rerank", "rewrite", "hyde"], "; "),
        ] {
            let degraded: Vec<Degraded> = missing
                .iter()
                .map(|retriever| Degraded {
                    retriever,
                    reason: String::new(),
                })
                .collect();
            let parts = of_search(&degraded).map(|(_, faults)| {
                let names: Vec<&str> = faults.iter().map(|d| d.retriever).collect();
                names.join(", ")
            });
            assert_eq!(parts.join("; "), expected, "{missing:?}");
        }
    }
}
