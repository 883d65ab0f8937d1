//! What is asked of a model and what it answers, whatever the provider calls it.
//!
//! A reply is a stream of [`Event`]s also where it was not asked for as one, so that there is one path. What a provider
//! knows and this does not is kept in `extra` and handed on where the same protocol is spoken on both sides. Requests can be
//! written as JSON, for comparing them, and events also read from it, for keeping them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The protocol that a request came in, which `extra` is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Dialect {
    #[default]
    OpenAi,
    Anthropic,
}

/// A request for a reply to a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub tool_choice: Option<ToolChoice>,
    pub parallel_tool_calls: Option<bool>,
    pub response_format: Option<ResponseFormat>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// Of the reply.
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub seed: Option<i64>,
    /// Who is behind the request, for the provider; requests of one go to one deployment where that can be chosen.
    pub user: Option<String>,
    /// Whether the provider is asked for a stream.
    pub stream: bool,
    pub dialect: Dialect,
    pub extra: Map<String, Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: Vec<Part>,
    pub name: Option<String>,
    /// Of an assistant.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool: the call that this is the result of.
    pub tool_call_id: Option<String>,
    /// Anthropic's mark up to where its cache should keep the request, at the message's end: of a tool's result, or of a
    /// call.
    pub cache_control: Option<Value>,
}

impl Message {
    /// A message of text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Part::text(text)],
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            cache_control: None,
        }
    }

    /// All text of the message.
    pub fn plain(&self) -> String {
        self.content
            .iter()
            .filter_map(|part| match part {
                Part::Text { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Part {
    Text {
        text: String,
        /// Anthropic's mark up to where its cache should keep the request.
        cache_control: Option<Value>,
    },
    Image {
        /// `https:` or `data:`.
        url: String,
        detail: Option<String>,
        /// As of a text.
        cache_control: Option<Value>,
    },
    /// What only a provider of the request's own dialect understands, as it came.
    Other(Value),
}

impl Part {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            cache_control: None,
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    pub parameters: Value,
    pub strict: Option<bool>,
    pub cache_control: Option<Value>,
}

/// Whether the model has to call a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ToolChoice {
    Auto,
    None,
    /// One of them.
    Required,
    /// This one.
    Named(String),
}

/// What the reply has to look like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum ResponseFormat {
    Text,
    /// Any JSON object.
    Json,
    /// OpenAI's `json_schema`: `name`, `schema`, `strict`.
    JsonSchema(Value),
}

/// A call of a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// What the provider calls the reply. At most once, in front.
    Start {
        id: Option<String>,
        model: Option<String>,
    },
    Text {
        text: String,
        logprobs: Option<Value>,
    },
    /// What a reasoning model thinks, and Anthropic's signature under it.
    Reasoning {
        text: String,
        signature: Option<String>,
    },
    Refusal(String),
    /// A piece of a call; those of the same `index` are one call. Id and name come with its first piece.
    ToolCall {
        index: u32,
        id: Option<String>,
        name: Option<String>,
        arguments: String,
    },
    /// Why the reply ends.
    Finish {
        reason: FinishReason,
        /// The text that ended it, where the provider says so.
        stop: Option<String>,
    },
    /// As far as is known; the last one counts.
    Usage(Usage),
}

impl Event {
    /// Whether a client sees something of it, so that nobody else can take over.
    pub fn is_shown(&self) -> bool {
        match self {
            Self::Text { text, .. } | Self::Refusal(text) => !text.is_empty(),
            Self::Reasoning { text, signature } => !text.is_empty() || signature.is_some(),
            Self::ToolCall { .. } | Self::Finish { .. } => true,
            Self::Start { .. } | Self::Usage(_) => false,
        }
    }
}

/// Why a reply ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// It is complete.
    Stop,
    /// It is as long as it may be.
    Length,
    ToolCalls,
    /// The provider stopped it for its content.
    ContentFilter,
}

/// The tokens of a call; of voice models also what they hear and read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the request, those of `cached` and `cache_write` among them.
    pub input: u64,
    /// Of the request, found in the provider's cache.
    pub cached: u64,
    /// Of the request, put into the provider's cache.
    pub cache_write: u64,
    /// Of the reply, those of `reasoning` among them.
    pub output: u64,
    pub reasoning: u64,
    /// Of audio that was transcribed, begun ones counted.
    #[serde(default)]
    pub audio_seconds: u64,
    /// Of text that was read aloud.
    #[serde(default)]
    pub characters: u64,
    /// Whether these are our estimate, because the provider told none.
    pub estimated: bool,
}

/// A whole reply.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatReply {
    pub id: Option<String>,
    pub model: Option<String>,
    pub text: String,
    pub reasoning: String,
    pub signature: Option<String>,
    pub refusal: String,
    pub tool_calls: Vec<ToolCall>,
    pub finish: Option<FinishReason>,
    pub stop: Option<String>,
    pub usage: Usage,
    /// As OpenAI has them; of a reply that came in one piece.
    pub logprobs: Option<Value>,
}

impl ChatReply {
    /// Adds what came next.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Start { id, model } => {
                self.id.clone_from(id);
                self.model.clone_from(model);
            }
            Event::Text { text, logprobs } => {
                self.text.push_str(text);
                if logprobs.is_some() {
                    self.logprobs.clone_from(logprobs);
                }
            }
            Event::Reasoning { text, signature } => {
                self.reasoning.push_str(text);
                if signature.is_some() {
                    self.signature.clone_from(signature);
                }
            }
            Event::Refusal(text) => self.refusal.push_str(text),
            Event::ToolCall {
                index,
                id,
                name,
                arguments,
            } => {
                let at = *index as usize;
                // Providers number calls without gaps, so the bound is for those that do not.
                if at < 1_024 && self.tool_calls.len() <= at {
                    self.tool_calls.resize_with(at + 1, ToolCall::default);
                }
                if let Some(call) = self.tool_calls.get_mut(at) {
                    call.id.push_str(id.as_deref().unwrap_or_default());
                    call.name.push_str(name.as_deref().unwrap_or_default());
                    call.arguments.push_str(arguments);
                }
            }
            Event::Finish { reason, stop } => {
                self.finish = Some(*reason);
                self.stop.clone_from(stop);
            }
            Event::Usage(usage) => self.usage = *usage,
        }
    }
}

/// What a text to embed is: some models treat questions and passages differently.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InputType {
    Query,
    #[default]
    Passage,
}

/// A request for vectors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbedRequest {
    pub model: String,
    pub texts: Vec<String>,
    pub dimensions: Option<u32>,
    pub input_type: InputType,
    pub user: Option<String>,
}

/// Vectors in the order of the texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbedReply {
    pub vectors: Vec<Vec<f32>>,
    pub usage: Usage,
}

/// A request to order documents by how well they answer a query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RerankRequest {
    pub model: String,
    pub query: String,
    pub documents: Vec<String>,
    pub top_n: Option<u32>,
}

/// A document's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// In the request.
    pub index: usize,
    pub score: f64,
}

/// Documents, best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RerankReply {
    pub ranked: Vec<Ranked>,
    pub usage: Usage,
}
