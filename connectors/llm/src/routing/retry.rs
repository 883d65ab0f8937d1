//! What to do after a failed call.

use std::time::Duration;

use crate::error::{ErrorKind, LlmError};

/// How often and after which pauses a call is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRules {
    pub retries: u32,
    /// Before the first repetition; each further one is twice as long.
    pub backoff: Duration,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The same deployment, after a pause.
    Repeat(Duration),
    /// The next deployment, or else another model.
    Next,
    /// A model with more room.
    LargerModel,
    /// A model that may take this content.
    OtherPolicy,
    /// Nobody else would do better.
    GiveUp,
}

impl RetryRules {
    /// The pause before repetition number `repeated` + 1, give or take a fifth, so that many callers do not come back at
    /// the same time.
    fn pause(&self, repeated: u32, chance: u64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << repeated.min(16));
        doubled.saturating_mul((800 + chance % 401) as u32) / 1_000
    }

    /// The longest pause that is waited for because a provider asks for it: that before the last repetition.
    fn longest(&self) -> Duration {
        self.backoff
            .saturating_mul(1 << self.retries.saturating_sub(1).min(16))
    }
}

/// Whether the failure lies with the deployment, so that it counts against it.
pub fn blames_deployment(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::StreamBroken
            | ErrorKind::Credentials
    )
}

/// What to do after this failure, when `repeated` repetitions have been made. `others`: whether another deployment of the
/// model could be asked now.
pub fn step(
    rules: &RetryRules,
    error: &LlmError,
    repeated: u32,
    others: bool,
    chance: u64,
) -> Step {
    match error.kind {
        ErrorKind::BadRequest
        | ErrorKind::Budget
        | ErrorKind::Forbidden
        | ErrorKind::NotConfigured => Step::GiveUp,
        ErrorKind::ContextWindow => Step::LargerModel,
        ErrorKind::ContentPolicy => Step::OtherPolicy,
        // A time-out has cost a minute already; asking the same again would cost one more.
        ErrorKind::Credentials
        | ErrorKind::UnknownModel
        | ErrorKind::Unsupported
        | ErrorKind::Timeout => Step::Next,
        ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::StreamBroken => {
            // Another one has its own limits.
            let elsewhere = others && error.kind == ErrorKind::RateLimited;
            let asked = error.retry_after.unwrap_or_default();
            if repeated >= rules.retries || elsewhere || asked > rules.longest() {
                Step::Next
            } else {
                Step::Repeat(rules.pause(repeated, chance).max(asked))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: RetryRules = RetryRules {
        retries: 3,
        backoff: Duration::from_secs(1),
    };

    fn after(kind: ErrorKind, retry_after: Option<u64>, repeated: u32, others: bool) -> Step {
        let error = LlmError::new(kind, "x").after(retry_after.map(Duration::from_secs));
        // 200 of 401: no more and no less.
        step(&RULES, &error, repeated, others, 200)
    }

    #[test]
    fn what_may_pass_is_repeated_after_1_2_and_4_seconds() {
        for kind in [
            ErrorKind::Unavailable,
            ErrorKind::StreamBroken,
            ErrorKind::RateLimited,
        ] {
            let steps: Vec<_> = (0..4).map(|n| after(kind, None, n, false)).collect();
            let pause = |s| Step::Repeat(Duration::from_secs(s));
            assert_eq!(
                steps,
                [pause(1), pause(2), pause(4), Step::Next],
                "{kind:?}"
            );
        }
        let error = LlmError::new(ErrorKind::Unavailable, "x");
        for (chance, ms) in [(0, 800), (400, 1_200), (401, 800)] {
            let expected = Step::Repeat(Duration::from_millis(ms));
            assert_eq!(step(&RULES, &error, 0, true, chance), expected);
        }
    }

    #[test]
    fn retry_after_is_waited_for_when_it_is_short_and_nobody_else_can_answer() {
        let limited = ErrorKind::RateLimited;
        assert_eq!(
            after(limited, Some(3), 0, false),
            Step::Repeat(Duration::from_secs(3))
        );
        assert_eq!(after(limited, Some(3), 0, true), Step::Next);
        assert_eq!(after(limited, Some(5), 0, false), Step::Next);
        assert_eq!(
            after(ErrorKind::Unavailable, Some(2), 0, true),
            Step::Repeat(Duration::from_secs(2))
        );
    }

    #[test]
    fn what_will_not_pass_is_not_repeated() {
        for (kind, expected) in [
            (ErrorKind::BadRequest, Step::GiveUp),
            (ErrorKind::Budget, Step::GiveUp),
            (ErrorKind::Forbidden, Step::GiveUp),
            (ErrorKind::ContextWindow, Step::LargerModel),
            (ErrorKind::ContentPolicy, Step::OtherPolicy),
            (ErrorKind::Credentials, Step::Next),
            (ErrorKind::Timeout, Step::Next),
            (ErrorKind::UnknownModel, Step::Next),
        ] {
            assert_eq!(after(kind, None, 0, false), expected, "{kind:?}");
        }
        let never = RetryRules {
            retries: 0,
            ..RULES
        };
        let error = LlmError::new(ErrorKind::Unavailable, "x");
        assert_eq!(step(&never, &error, 0, false, 0), Step::Next);
    }
}
