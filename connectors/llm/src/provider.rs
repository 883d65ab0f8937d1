//! The seam to those who run models.

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::audio::{SpeakReply, SpeakRequest, TranscribeReply, TranscribeRequest};
use crate::error::{ErrorKind, LlmError};
use crate::types::{ChatRequest, EmbedReply, EmbedRequest, Event, RerankReply, RerankRequest};

/// A reply as it comes. Dropping it ends the call.
pub type EventStream = BoxStream<'static, Result<Event, LlmError>>;

/// What a deployment adds to a request.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The provider's name of the model.
    pub model: &'a str,
    /// The longest reply of this model, where a protocol wants one and the request names none.
    pub output_tokens_max: Option<u32>,
}

/// Somebody who runs models. Calls may be made from many tasks at once; one that is dropped is over.
///
/// An implementation makes one attempt: it repeats nothing, and leaves time limits to the router.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Asks for a reply. A failure before the first piece is an error here or the stream's first item.
    async fn chat(&self, call: Call<'_>, request: &ChatRequest) -> Result<EventStream, LlmError>;

    /// Asks for vectors, one a text and in their order.
    async fn embed(
        &self,
        _call: Call<'_>,
        _request: &EmbedRequest,
    ) -> Result<EmbedReply, LlmError> {
        Err(unsupported("embeddings"))
    }

    /// Asks for an order of documents.
    async fn rerank(
        &self,
        _call: Call<'_>,
        _request: &RerankRequest,
    ) -> Result<RerankReply, LlmError> {
        Err(unsupported("reranking"))
    }

    /// Asks how many tokens a request has, with this model's own tokenizer. Costs nothing.
    async fn count_tokens(&self, _call: Call<'_>, _request: &ChatRequest) -> Result<u64, LlmError> {
        Err(unsupported("counting tokens"))
    }

    /// Asks for the text of what was said.
    async fn transcribe(
        &self,
        _call: Call<'_>,
        _request: &TranscribeRequest,
    ) -> Result<TranscribeReply, LlmError> {
        Err(unsupported("transcriptions"))
    }

    /// Asks for a text to be read aloud.
    async fn speak(
        &self,
        _call: Call<'_>,
        _request: &SpeakRequest,
    ) -> Result<SpeakReply, LlmError> {
        Err(unsupported("speech"))
    }
}

fn unsupported(what: &str) -> LlmError {
    LlmError::new(
        ErrorKind::Unsupported,
        format!("this provider does not offer {what}; use a model of another one"),
    )
}
