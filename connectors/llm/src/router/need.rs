//! What a request needs of a deployment, as far as can be told before it is sent.
//!
//! Tokens are estimated here without a model's tokenizer: four letters each, or one character of Chinese and its like. What
//! they are used for (room, reservations, choice) bears that; what is charged is what the provider counts.

use va_catalog::settings::llm::{Capability, ModelUse};

use super::Router;
use crate::error::LlmError;
use crate::types::{ChatRequest, Part, ResponseFormat, Usage};

/// What a picture takes, about.
const IMAGE_TOKENS: u64 = 1_000;

/// What a request needs, whatever it is for.
#[derive(Default)]
pub(super) struct Need<'a> {
    pub model: &'a str,
    pub used_for: ModelUse,
    pub capabilities: Vec<Capability>,
    pub input_tokens: u64,
    /// Of the reply; `None` where the request does not say.
    pub output_tokens: Option<u64>,
    /// Requests of one user go to one deployment.
    pub user: Option<&'a str>,
    /// Of the audio, at most.
    pub audio_seconds: u64,
    /// That are read aloud.
    pub characters: u64,
}

impl Router {
    pub(super) fn chat_need<'a>(&'a self, request: &'a ChatRequest) -> Result<Need<'a>, LlmError> {
        let mut capabilities = Vec::new();
        if !request.tools.is_empty() {
            capabilities.push(Capability::Tools);
        }
        let mut input_tokens = 0;
        for message in &request.messages {
            input_tokens += 4;
            for part in &message.content {
                input_tokens += match part {
                    Part::Text { text, .. } => tokens(text),
                    Part::Image { .. } => {
                        if !capabilities.contains(&Capability::Vision) {
                            capabilities.push(Capability::Vision);
                        }
                        IMAGE_TOKENS
                    }
                    Part::Other(value) => tokens(&value.to_string()),
                };
            }
            for call in &message.tool_calls {
                input_tokens += tokens(&call.arguments) + 8;
            }
        }
        for tool in &request.tools {
            input_tokens += tokens(&tool.parameters.to_string())
                + tokens(tool.description.as_deref().unwrap_or_default())
                + 8;
        }
        if matches!(
            request.response_format,
            Some(ResponseFormat::Json | ResponseFormat::JsonSchema(_))
        ) {
            capabilities.push(Capability::Json);
        }
        let model = if request.model.is_empty() {
            self.default_model().ok_or_else(|| {
                LlmError::bad("the request names no `model`, and `llm.default_model` is not set")
            })?
        } else {
            request.model.as_str()
        };
        Ok(Need {
            model,
            used_for: ModelUse::Chat,
            capabilities,
            input_tokens,
            output_tokens: request.max_tokens.map(u64::from),
            // OpenAI's word for requests that share a beginning: they go to one deployment too.
            user: request.user.as_deref().or_else(|| {
                let key = request.extra.get("prompt_cache_key");
                key.and_then(serde_json::Value::as_str)
            }),
            ..Need::default()
        })
    }
}

/// What the provider counted, or else our estimate.
pub(super) fn counted(usage: Usage, input: u64) -> Usage {
    if usage.input > 0 {
        return usage;
    }
    Usage {
        input,
        estimated: true,
        ..usage
    }
}

/// About how many tokens a text has: four letters each, or one character of Chinese and its like.
pub(crate) fn tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let others = text.chars().filter(|c| !c.is_ascii()).count() as u64;
    ascii.div_ceil(4) + others
}
