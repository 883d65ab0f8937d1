//! Who calls, and where it is written down what a call takes.
//!
//! Before a deployment is asked, what it may cost at most is reserved; after it the reservation is settled with what it
//! did cost, or released. The budget is thus asked again for each deployment that is tried.

use std::time::Duration;

use async_trait::async_trait;
use va_catalog::TenantScope;

use crate::error::{ErrorKind, LlmError};
use crate::types::Usage;

/// On whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub tenant: TenantScope,
    /// The id of the key that it came with.
    pub key: Option<String>,
    pub user: Option<String>,
    /// Models that it may ask for; `None` is all.
    pub models: Option<Vec<String>>,
    /// Budgets of the key or the user, beside those of the settings.
    pub budgets: Vec<va_catalog::settings::llm::BudgetSettings>,
    /// Names the request in events and logs.
    pub request_id: String,
}

/// One try of one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// From 1, of all tries of the request.
    pub number: u32,
    /// What was asked for.
    pub model: String,
    /// `model/provider/upstream model`.
    pub deployment: String,
    pub provider: String,
    /// The provider's name of the model.
    pub upstream_model: String,
    /// What it takes at most, as far as can be told.
    pub most: Usage,
    /// What that costs, in pico-units.
    pub most_cost: i128,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// A reply that was kept was given again: nobody was asked, and nothing was taken.
    Cached,
    /// The client went away.
    Cancelled,
    Failed(ErrorKind),
}

impl Outcome {
    /// A word for metrics and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Cached => "cached",
            Self::Cancelled => "cancelled",
            Self::Failed(kind) => kind.as_str(),
        }
    }
}

/// What was reserved for a try. Exactly one of its two ends comes.
pub trait Reservation: Send + Sync {
    /// The call took this, and it cost so many pico-units. Never blocks.
    fn settle(self: Box<Self>, usage: Usage, cost: i128, outcome: Outcome, took: Took);
    /// The call took nothing. Never blocks.
    fn release(self: Box<Self>, outcome: Outcome, took: Took);
}

/// How long a try took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    pub whole: Duration,
    pub first_token: Option<Duration>,
}

/// Writes down what calls take, and refuses those for which there is no money.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// [`ErrorKind::Budget`] when a budget of the caller does not allow it.
    async fn reserve(
        &self,
        caller: &Caller,
        attempt: Attempt,
    ) -> Result<Box<dyn Reservation>, LlmError>;
}
