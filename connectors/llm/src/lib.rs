//! Models behind providers: one request and one stream of events for all of them, and the way to the one that answers.
//!
//! - `types` what is asked and answered, `audio` the same of voices, `error` why not
//! - `provider` the seam; `openai` and `anthropic` its implementations over `http` and `sse`
//! - `routing` the decisions (which deployment, wait, repeat, leave alone), pure; `router` acts on them
//! - `price` what a call costs
//!
//! Relies on `va_catalog::settings::llm` for the configuration. Leaves to others: who may call (`serving`), where usage is
//! written down ([`Ledger`] is told), and models in this process (`va-models`; `serving` makes a [`Provider`] of them).

mod anthropic;
mod audio;
mod build;
mod error;
mod http;
mod ledger;
mod openai;
pub mod price;
mod provider;
mod router;
pub mod routing;
pub mod sse;
mod stream;
mod types;

pub use audio::{
    AudioStream, SpeakReply, SpeakRequest, TranscribeReply, TranscribeRequest, wav_seconds,
};
pub use build::{BuildError, Parts, build};
pub use error::{ErrorKind, LlmError};
pub use ledger::{Attempt, Caller, Ledger, Outcome, Reservation, Took};
pub use price::PriceTable;
pub use provider::{Call, EventStream, Provider};
pub use router::{ModelInfo, RouteInfo, Router, SpeechStream, TokenCount};
pub use stream::ChatStream;
pub use types::{
    ChatReply, ChatRequest, Dialect, EmbedReply, EmbedRequest, Event, FinishReason, InputType,
    Message, Part, Ranked, RerankReply, RerankRequest, ResponseFormat, Role, Tool, ToolCall,
    ToolChoice, Usage,
};
