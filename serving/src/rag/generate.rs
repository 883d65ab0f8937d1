//! The writer with a model: the gateway's reply to the context, sent on as it comes and checked like any other.
//!
//! The model is asked only when the sources hold an answer; otherwise the reply is that nothing was found, as without a
//! model. When it fails before anything was shown, the best sentences are quoted instead and the reply says so; after that,
//! the answer ends with the reason. Routing, limits and what it costs are the gateway's business.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use va_chunk::{Estimate, TokenCounter, sentences};
use va_llm::{Caller, ChatRequest, Event, FinishReason, Message, Role, Usage};

use super::answer::{Draft, Task, WriteError, Writer, Written};
use super::extract::{Extractive, quote};
use super::grade::Depth;
use super::request::HistoryRole;
use super::text::bare;
use crate::gateway::Gateway;

/// Tokens of an answer at most: about a page.
const ANSWER_TOKENS_MAX: u32 = 1_000;

/// The part of a small model's room that its answer gets at most, and the share of the rest that a context may fill: two
/// models do not count the same tokens in a text.
const ANSWER_PART: u32 = 3;
const CONTEXT_SHARE: f64 = 0.85;

/// A sentence that a model writes so often ends its answer: small models do not always find an end.
const REPEATED_MAX: usize = 3;
/// What is repeated in fewer letters than these (an item of a list, a word of a table) means nothing.
const REPEATED_LETTERS_MIN: usize = 12;

/// Lets a model write.
pub struct Generated {
    pub gateway: Arc<Gateway>,
    /// On whose behalf.
    pub caller: Caller,
    pub model: String,
    /// What the model is told besides: instructions and data about whoever asks, fenced. Not counted into the context's
    /// budget; whoever makes it keeps it short.
    pub about: Option<String>,
}

impl Generated {
    /// Tokens of an answer, of a model with so much room.
    fn answer_tokens(&self) -> u32 {
        let room = self.gateway.context_tokens(&self.model);
        room.map_or(ANSWER_TOKENS_MAX, |room| {
            ANSWER_TOKENS_MAX.min(room / ANSWER_PART)
        })
    }

    fn request(&self, task: &Task) -> ChatRequest {
        let context = &task.context;
        let instructions = match &self.about {
            None => context.instructions.to_owned(),
            Some(about) => format!("{}\n\n{about}", context.instructions),
        };
        let mut messages = vec![Message::text(Role::System, instructions)];
        messages.extend(context.history.iter().map(|turn| {
            let role = match turn.role {
                HistoryRole::User => Role::User,
                HistoryRole::Assistant => Role::Assistant,
            };
            Message::text(role, turn.content.as_str())
        }));
        messages.push(Message::text(Role::User, context.prompt.as_str()));
        ChatRequest {
            model: self.model.clone(),
            messages,
            // The sources say what is true; there is nothing to be inventive about.
            temperature: Some(0.0),
            max_tokens: Some(self.answer_tokens()),
            user: self.caller.user.clone(),
            stream: true,
            ..ChatRequest::default()
        }
    }
}

#[async_trait]
impl Writer for Generated {
    fn mode(&self) -> &'static str {
        "generated"
    }

    fn depth(&self) -> Depth {
        Depth::Verdict
    }

    fn context_tokens_max(&self) -> Option<usize> {
        let room = self.gateway.context_tokens(&self.model)? - self.answer_tokens();
        let about = self
            .about
            .as_deref()
            .map_or(0, |about| Estimate.count(about));
        let left = (f64::from(room) * CONTEXT_SHARE) as usize;
        Some(left.saturating_sub(about))
    }

    async fn write(&self, task: &Task, draft: &mut Draft<'_>) -> Result<Written, WriteError> {
        if !task.grade.answerable() {
            return Extractive.write(task, draft).await;
        }
        let mut reply = match self.gateway.chat(&self.caller, &self.request(task)).await {
            Ok(reply) => reply,
            Err(error) => return quote_instead(task, draft, error.message).await,
        };
        let mut shown = false;
        let mut refused = String::new();
        let mut finish = None;
        let mut usage = Usage::default();
        let mut said = String::new();
        let mut repeated = false;
        while let Some(event) = reply.next().await {
            match event {
                Ok(Event::Text { text, .. }) if !text.is_empty() => {
                    shown = true;
                    draft.text(&text).await?;
                    said.push_str(&text);
                    if text.contains(['.', '!', '?', '。', '！', '？', '\n']) && repeats(&said) {
                        // Dropped, which ends the call.
                        repeated = true;
                        break;
                    }
                }
                Ok(Event::Refusal(text)) => refused.push_str(&text),
                Ok(Event::Finish { reason, .. }) => finish = Some(reason),
                Ok(Event::Usage(told)) => usage = told,
                Ok(_) => {}
                Err(error) if shown => return Err(WriteError::Failed(error.message)),
                Err(error) => return quote_instead(task, draft, error.message).await,
            }
        }
        let (prompt_tokens, completion_tokens) = (usage.input, usage.output);
        let mut written = if shown {
            let cut = match finish {
                _ if repeated => Some("the model repeated itself, so its answer was ended there"),
                Some(FinishReason::Length) => Some("the answer is as long as it may be"),
                Some(FinishReason::ContentFilter) => Some("the provider ended the answer"),
                _ => None,
            };
            Written {
                answered: true,
                trouble: cut.map(str::to_owned),
                ..Written::default()
            }
        } else {
            let reason = if refused.is_empty() {
                "the model wrote nothing".to_owned()
            } else {
                format!("the model refused: {refused}")
            };
            quote_instead(task, draft, reason).await?
        };
        (written.prompt_tokens, written.completion_tokens) = (prompt_tokens, completion_tokens);
        Ok(written)
    }
}

/// Whether the last sentence of the text has been said too often.
fn repeats(text: &str) -> bool {
    let mut said: Vec<String> = sentences(text)
        .map(|range| bare(&text[range]))
        .filter(|sentence| sentence.chars().count() >= REPEATED_LETTERS_MIN)
        .collect();
    let Some(last) = said.pop() else {
        return false;
    };
    said.iter().filter(|sentence| **sentence == last).count() + 1 >= REPEATED_MAX
}

/// The best sentences, where a model was to write and could not.
async fn quote_instead(
    task: &Task,
    draft: &mut Draft<'_>,
    reason: String,
) -> Result<Written, WriteError> {
    let whole;
    let grade = if task.grade.whole {
        &task.grade
    } else {
        whole = task.grader.whole(&task.context.sources).await;
        whole.as_ref().unwrap_or(&task.grade)
    };
    let written = quote(task, grade, draft).await?;
    Ok(Written {
        mode: Some(Extractive.mode()),
        trouble: Some(format!(
            "sentences of the documents are quoted instead of an answer in the model's words: {reason}"
        )),
        ..written
    })
}

#[cfg(test)]
mod tests {
    use super::repeats;

    #[test]
    fn what_is_said_again_and_again_is_seen() {
        let once = "Select the row below. Choose View - Freeze.\n";
        assert!(!repeats(once));
        assert!(!repeats(&once.repeat(2)));
        assert!(repeats(&once.repeat(3)));
        assert!(repeats(
            "如果要冻结行，请选择下面的一行。".repeat(3).as_str()
        ));
        // Short ones are repeated for good reasons, and what comes after a repetition is new.
        assert!(!repeats(&"Click OK.\n".repeat(5)));
        assert!(!repeats(&format!(
            "{}Then something else is said.",
            once.repeat(3)
        )));
    }
}
