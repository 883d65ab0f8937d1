//! A model that helps to search: it rewrites questions and puts passages in order. What its replies mean is the caller's.
//!
//! Calls go through the gateway, on behalf of whoever asks, so limits, budgets and the books are the same as for answers.
//! Each has a time limit. A call that fails costs nothing but its time: callers go on without it and say so.

use std::time::Duration;

use tokio::time::timeout;
use va_llm::{Caller, ChatRequest, Message, RerankReply, RerankRequest, Role};

use super::request::Ask;
use crate::gateway::Gateway;
use crate::platform::Platform;

/// What stands behind a model's thoughts where they are written into the reply.
const THOUGHT: &str = "</think>";

/// The model that helps with one question.
pub struct Helper<'a> {
    gateway: &'a Gateway,
    caller: &'a Caller,
    /// For chat; `None` where none is configured.
    model: Option<&'a str>,
    time_max: Duration,
}

/// What the model said.
#[derive(Debug)]
pub struct Said {
    /// Without its thoughts.
    pub text: String,
    /// That it was given and gave.
    pub tokens: u64,
}

impl<'a> Helper<'a> {
    /// `rag.model`, or else the gateway's default, or else the model that the request names to write.
    pub fn new(platform: &'a Platform, caller: &'a Caller, ask: &'a Ask) -> Self {
        let (settings, gateway) = (&platform.settings.rag, &*platform.gateway);
        let named = settings.model.as_deref();
        let model = named.or(gateway.default_model()).or(ask.model.as_deref());
        Self {
            gateway,
            caller,
            model: model.filter(|_| gateway.is_configured()),
            time_max: Duration::from_millis(settings.model_time_max_ms),
        }
    }

    /// How long one call may take.
    pub fn time_max(&self) -> Duration {
        self.time_max
    }

    /// Asks the model for a reply of at most `tokens_max` tokens.
    ///
    /// # Errors
    /// Why there is none, for people: no model, a limit or budget, a provider's failure, no time left, an empty reply.
    pub async fn ask(
        &self,
        instructions: &str,
        prompt: String,
        tokens_max: u32,
    ) -> Result<Said, String> {
        let Some(model) = self.model else {
            return Err(
                "no model is configured: name one in `rag.model` or `llm.default_model` (docs/gateway.md)".to_owned(),
            );
        };
        let request = ChatRequest {
            model: model.to_owned(),
            messages: vec![
                Message::text(Role::System, instructions),
                Message::text(Role::User, prompt),
            ],
            temperature: Some(0.0),
            max_tokens: Some(tokens_max),
            user: self.caller.user.clone(),
            ..ChatRequest::default()
        };
        let call = self.gateway.complete(self.caller, &request);
        let (reply, _) = match timeout(self.time_max, call).await {
            Ok(done) => done.map_err(|error| error.message)?,
            Err(_) => return Err(self.too_late(model)),
        };
        let text = reply.text.as_str();
        let text = text.rsplit(THOUGHT).next().unwrap_or(text).trim();
        if text.is_empty() {
            let said = match reply.refusal.trim() {
                "" => "nothing".to_owned(),
                refusal => format!("no: {refusal}"),
            };
            return Err(format!("the model `{model}` said {said}"));
        }
        Ok(Said {
            text: text.to_owned(),
            tokens: reply.usage.input + reply.usage.output,
        })
    }

    /// Asks the re-ranking model `model` how well each of `documents` answers `query`.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub async fn rank(
        &self,
        model: &str,
        query: &str,
        documents: Vec<String>,
    ) -> Result<RerankReply, String> {
        let request = RerankRequest {
            model: model.to_owned(),
            query: query.to_owned(),
            documents,
            top_n: None,
        };
        let call = self.gateway.rerank(self.caller, &request);
        match timeout(self.time_max, call).await {
            Ok(done) => done.map(|(reply, _)| reply).map_err(|error| error.message),
            Err(_) => Err(self.too_late(model)),
        }
    }

    fn too_late(&self, model: &str) -> String {
        format!(
            "the model `{model}` has not replied within {} ms (`rag.model_time_max_ms`)",
            self.time_max.as_millis()
        )
    }
}
