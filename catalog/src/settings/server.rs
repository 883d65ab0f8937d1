//! Settings of the HTTP server: how long it waits for its clients, and how many it has at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{positive_u32, positive_u64};

/// What clients of the HTTP API may cost while nothing comes of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// How long the head of a request may take to arrive, in seconds, from the connection or the last reply on. So a
    /// connection that is kept without requests is closed after it, too.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub header_timeout_seconds: u64,
    /// How long the body of a request may stand still, in seconds, before the request is refused (408).
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub body_timeout_seconds: u64,
    /// How long a reply may take to begin, in seconds, before the request is ended (504). Uploads, streams, calls of models
    /// and what waits on request are not bounded by it.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub request_timeout_seconds: u64,
    /// Connections at once. Further ones wait until one ends.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub connections_max: u32,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            header_timeout_seconds: 60,
            // Less than the next, so that who stops sending is told just that.
            body_timeout_seconds: 20,
            request_timeout_seconds: 30,
            connections_max: 8192,
        }
    }
}
