//! Alerts about retrievers that cannot answer: an event of `platform.alert` when one begins to fail, one when it is back.
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

/// The retrievers of each collection that have been reported as failing.
#[derive(Default)]
pub struct Alerts(Mutex<BTreeMap<String, String>>);

impl Alerts {
    /// Tells what has changed for a collection, given all that is wrong with it now.
    pub fn look(
        &self,
        platform: &Arc<Platform>,
        collection: &CollectionRef,
        degraded: &[Degraded],
    ) {
        let subject = collection.to_string();
        let failing: Vec<&str> = degraded.iter().map(|d| d.retriever).collect();
        let failing = failing.join(", ");
        let before = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if failing.is_empty() {
                known.remove(&subject)
            } else {
                if known.len() >= SUBJECTS_MAX {
                    known.clear();
                }
                known.insert(subject.clone(), failing.clone())
            }
        };
        let (state, detail) = match (before.as_deref(), failing.is_empty()) {
            (None, true) => return,
            (Some(before), false) if before == failing => return,
            (_, true) => ("cleared", "every retriever answers again".to_owned()),
            (_, false) => {
                let reasons = degraded
                    .iter()
                    .map(|d| format!("{}: {}", d.retriever, d.reason));
                ("raised", reasons.collect::<Vec<_>>().join("; "))
            }
        };
        let platform = platform.clone();
        // Ends with its one commit; on a log that is away, with the log's own patience.
        tokio::spawn(async move { raise(&platform, "retrieval", &subject, state, &detail).await });
    }
}
