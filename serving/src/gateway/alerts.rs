//! Alerts about models that nobody answers for: an event of `platform.alert` when all of a model's deployments and stand-ins
//! fail, at most one a minute and model, and one when it answers again.
//!
//! Told in the background: a call does not wait for it. Which failures count is [`is_all_failed`]; what a request itself is
//! to blame for is none.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use va_llm::ErrorKind;

/// How often the same model is told about.
const EVERY_MS: i64 = 60_000;

/// Whether the failure is one of those who run the models, not of the request or its caller.
pub(super) fn is_all_failed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::RateLimited
            | ErrorKind::Credentials
            | ErrorKind::Timeout
            | ErrorKind::Unavailable
            | ErrorKind::StreamBroken
    )
}

#[derive(Debug, Clone, Copy)]
struct State {
    told_at_ms: i64,
    /// Whether those who listen think that it fails.
    is_raised: bool,
}

/// The models that have failed. There are no more of them than the settings have.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<BTreeMap<String, State>>);

impl Failing {
    /// Nobody answered for the model. Whether that is to be told.
    pub(super) fn failed(&self, model: &str, now_ms: i64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get_mut(model) {
            Some(state) if now_ms.saturating_sub(state.told_at_ms) < EVERY_MS => false,
            Some(state) => {
                *state = State {
                    told_at_ms: now_ms,
                    is_raised: true,
                };
                true
            }
            None => {
                let state = State {
                    told_at_ms: now_ms,
                    is_raised: true,
                };
                known.insert(model.to_owned(), state);
                true
            }
        }
    }

    /// The model answered. Whether that is news.
    pub(super) fn answered(&self, model: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get_mut(model)
            .is_some_and(|state| std::mem::replace(&mut state.is_raised, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_told_about_once_a_minute_and_when_it_is_back() {
        let failing = Failing::default();
        assert!(!failing.answered("chat"));
        assert!(failing.failed("chat", 1_000));
        assert!(!failing.failed("chat", 60_999));
        assert!(failing.failed("other", 2_000), "each for itself");
        assert!(failing.failed("chat", 61_000), "it still fails");
        assert!(failing.answered("chat"));
        assert!(!failing.answered("chat"));
        // To and fro within a minute is not told each time, neither there nor back.
        assert!(!failing.failed("chat", 61_500));
        assert!(!failing.answered("chat"));
        assert!(failing.failed("chat", 121_000));
    }
}
