//! The seam between the `parse` operator and whatever does the parsing.

use async_trait::async_trait;
use bytes::Bytes;
use va_parse::{Document, Input, LimitKind, Limits, ParseError};

use crate::death::Death;

/// A document to parse.
#[derive(Debug, Clone)]
pub struct Source {
    /// File name or path; see [`Input::name`].
    pub name: String,
    /// See [`Input::content_type`].
    pub content_type: Option<String>,
    pub bytes: Bytes,
}

impl Source {
    pub(crate) fn input(&self) -> Input<'_> {
        Input {
            name: &self.name,
            content_type: self.content_type.as_deref(),
            bytes: &self.bytes,
        }
    }
}

/// Why a document has no text: its own problem, told to the person who owns it. Parsing it again would end the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}{hint}", hint = hint(.0))]
    Refused(ParseError),
    /// The parser did not live to say.
    #[error(transparent)]
    Died(Death),
}

impl Failure {
    /// One word, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Refused(error) => error.kind(),
            Failure::Died(death) => death.kind(),
        }
    }
}

fn hint(error: &ParseError) -> &'static str {
    match error {
        ParseError::TooLarge {
            kind: LimitKind::TextBytes,
            ..
        } => "; split it, or raise `parse.text_bytes_max` in the configuration",
        _ => "",
    }
}

/// Parsing is not possible at all, for reasons that have nothing to do with the documents; worth another try later.
#[derive(Debug, Clone, thiserror::Error)]
#[error("start a parser process: {0}")]
pub struct Unavailable(pub String);

/// Turns documents into text.
#[async_trait]
pub trait Parser: Send + Sync {
    /// Parses several documents, at the same time as far as there are processors. The outcomes are in the order of
    /// `documents`. Dropping the call ends the work.
    async fn parse(
        &self,
        documents: Vec<Source>,
        limits: &Limits,
    ) -> Result<Vec<Result<Document, Failure>>, Unavailable>;

    /// The limits of documents for which nothing else is said.
    fn limits(&self) -> Limits;
}
