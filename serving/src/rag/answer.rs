//! The seam for whoever writes answers, and the draft that they write into.
//!
//! A writer emits pieces: text as it comes, with markers `[n]`, `来源[n]` or `Source[n]`, or a verbatim quote of a source.
//! Everything goes through the [`Checker`] on its way to the client, so no writer can cite what is not there. The channel
//! to the client is bounded: a slow reader slows the writer.

use std::ops::Range;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::cite::{Checker, Finding};
use super::context::Context;
use super::flow::{Event, Grader};
use super::grade::{Depth, Grade};
use super::text::Lang;

/// What there is to be answered.
pub struct Task {
    /// As it was asked.
    pub question: String,
    /// As it would be asked without the conversation.
    pub standalone: String,
    pub lang: Lang,
    /// For people: where was searched.
    pub collection: String,
    pub context: Context,
    /// As deep as the writer needs it.
    pub grade: Grade,
    /// For more of it.
    pub grader: Grader,
}

/// What a writer did.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// False when it said that nothing was found.
    pub answered: bool,
    /// Tokens that a model was given and gave; 0 without one.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// How it was written, where that is not the writer's own mode.
    pub mode: Option<&'static str>,
    /// What went wrong with the model that did not cost the answer.
    pub trouble: Option<String>,
}

/// Nobody reads the answer any more: the writer stops.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// Why there is no (whole) answer.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Gone(#[from] Gone),
    /// What was written before stays.
    #[error("{0}")]
    Failed(String),
}

/// Somebody who writes answers.
#[async_trait]
pub trait Writer: Send + Sync {
    /// What the reply says of how it was made: `extractive`, or `generated` by a model.
    fn mode(&self) -> &'static str;

    /// What it has to know of the sources' sentences.
    fn depth(&self) -> Depth {
        Depth::Order
    }

    /// Tokens of the context at most, as the collection's model counts them; `None` where it does not matter or is not known.
    fn context_tokens_max(&self) -> Option<usize> {
        None
    }

    /// Writes the answer to `task`. Called once, when the sources are there; `task.grade` tells whether they hold an
    /// answer. Must not outlive an error of the draft. Whatever is CPU-bound goes through `spawn_blocking`.
    async fn write(&self, task: &Task, draft: &mut Draft<'_>) -> Result<Written, WriteError>;
}

/// An answer that is being written.
pub struct Draft<'a> {
    checker: Checker<'a>,
    events: &'a mpsc::Sender<Event>,
    unsupported: Vec<super::cite::Unsupported>,
    citations: usize,
}

impl<'a> Draft<'a> {
    pub(super) fn new(task: &'a Task, events: &'a mpsc::Sender<Event>) -> Self {
        Self {
            checker: Checker::new(&task.context.sources),
            events,
            unsupported: Vec::new(),
            citations: 0,
        }
    }

    /// Text of the answer, in pieces of any length; markers may be torn apart between them.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn text(&mut self, delta: &str) -> Result<(), Gone> {
        let findings = self.checker.text(delta);
        self.send(findings).await
    }

    /// Bytes of a source's text as a sentence of the answer, with its citation after it. What looks like a marker in it
    /// is none.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn quote(
        &mut self,
        source: usize,
        range: Range<usize>,
        before: &str,
    ) -> Result<(), Gone> {
        let findings = self.checker.quote(source, range, before);
        self.send(findings).await
    }

    /// Something said about the answer, which claims nothing and needs no source.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn notice(&mut self, text: &str) -> Result<(), Gone> {
        let findings = self.checker.notice(text);
        self.send(findings).await
    }

    /// Ends the answer: what is still open is checked.
    pub(super) async fn finish(&mut self) -> Result<(Vec<super::cite::Unsupported>, usize), Gone> {
        let findings = self.checker.finish();
        self.send(findings).await?;
        Ok((std::mem::take(&mut self.unsupported), self.citations))
    }

    async fn send(&mut self, findings: Vec<Finding>) -> Result<(), Gone> {
        for finding in findings {
            let event = match finding {
                Finding::Text(text) => Event::Delta(text),
                Finding::Citation(citation) => {
                    self.citations += 1;
                    Event::Citation(citation)
                }
                Finding::Unsupported(unsupported) => {
                    self.unsupported.push(unsupported);
                    continue;
                }
            };
            self.events.send(event).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}
