//! How many tokens a request has: as the provider counts them where it can, or else as we estimate them.

use super::{Router, need::Need, within};
use crate::error::{ErrorKind, LlmError};
use crate::ledger::Caller;
use crate::provider::Call;
use crate::types::ChatRequest;

/// The tokens of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCount {
    pub tokens: u64,
    /// The deployment whose tokenizer counted; `None` when they are estimated.
    pub counted_by: Option<String>,
    /// Why a provider that could have counted did not.
    pub trouble: Option<String>,
}

impl Router {
    /// Counts the tokens of a request. Nothing is reserved, since providers count for nothing; their limits for it are
    /// others than those for replies, so those are left alone too.
    pub async fn count_tokens(
        &self,
        caller: &Caller,
        request: &ChatRequest,
    ) -> Result<TokenCount, LlmError> {
        let need: Need<'_> = self.chat_need(request)?;
        let group = self.permitted(caller, &need)?;
        let mut trouble: Option<String> = None;
        for deployment in &group.deployments {
            if !deployment.can(&need.capabilities) || !deployment.admits(&self.rules) {
                continue;
            }
            let model = deployment.upstream(need.model);
            let call = Call {
                model: &model,
                output_tokens_max: deployment.output_tokens_max,
            };
            let counted = deployment.provider.count_tokens(call, request);
            match within(self.rules.timeout, counted).await {
                Ok(tokens) => {
                    return Ok(TokenCount {
                        tokens,
                        counted_by: Some(deployment.name.clone()),
                        trouble: None,
                    });
                }
                Err(error) if error.kind == ErrorKind::Unsupported => {}
                Err(error) if error.kind == ErrorKind::BadRequest => {
                    return Err(error.at(&deployment.name));
                }
                Err(error) => {
                    let error = error.at(&deployment.name);
                    tracing::warn!(%error, request = caller.request_id, "count tokens");
                    trouble.get_or_insert(error.message);
                }
            }
        }
        Ok(TokenCount {
            tokens: need.input_tokens,
            counted_by: None,
            trouble,
        })
    }
}
