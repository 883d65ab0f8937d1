//! Why a call to a model failed, by what whoever called can do about it.

use std::fmt;
use std::time::Duration;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The provider, or our own limit for it, takes no more now.
    RateLimited,
    /// Request and reply do not fit into the model.
    ContextWindow,
    /// The provider refuses the content.
    ContentPolicy,
    /// The request is wrong; nobody else would take it either.
    BadRequest,
    /// There is no such model.
    UnknownModel,
    /// The provider does not accept our credentials, or our account has no money.
    Credentials,
    /// No answer in time.
    Timeout,
    /// The provider cannot be reached, or has a fault of its own.
    Unavailable,
    /// A stream ended before its end, or made no sense.
    StreamBroken,
    /// Nobody here can do what the request needs.
    Unsupported,
    /// The caller's budget is used up.
    Budget,
    /// The caller may not use this model.
    Forbidden,
    /// No provider is configured.
    NotConfigured,
}

impl ErrorKind {
    /// A word for metrics and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::ContextWindow => "context_window",
            Self::ContentPolicy => "content_policy",
            Self::BadRequest => "bad_request",
            Self::UnknownModel => "unknown_model",
            Self::Credentials => "credentials",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::StreamBroken => "stream_broken",
            Self::Unsupported => "unsupported",
            Self::Budget => "budget",
            Self::Forbidden => "forbidden",
            Self::NotConfigured => "not_configured",
        }
    }
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlmError {
    pub kind: ErrorKind,
    /// For people: what happened and what to do.
    pub message: String,
    /// When it is worth to try again, if that is known.
    pub retry_after: Option<Duration>,
    /// The provider's HTTP status.
    pub status: Option<u16>,
}

impl LlmError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            status: None,
        }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadRequest, message)
    }

    #[must_use]
    pub fn after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// With a place in front: `openai/gpt: ...`.
    #[must_use]
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for LlmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for LlmError {}
