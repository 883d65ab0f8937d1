//! Why a document could not be parsed, in the words that the person who owns the file needs.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::document::Format;

/// What users are told when a file is of no use to us.
pub(crate) const SUPPORTED: &str = "PDF, DOCX, PPTX, XLSX, plain text, Markdown, HTML, CSV, JSON, e-mail (.eml), manual page (roff)";

/// Why a document could not be parsed. It is always the document's problem and never worth a retry with the same bytes,
/// except [`ParseError::Panicked`], which is a bug of ours or of a library.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ParseError {
    /// The bytes are of a kind that is not read.
    #[error("file type is not supported: it looks like {looks_like}; supported are {SUPPORTED}")]
    Unsupported { looks_like: String },
    /// The document opens with a password only.
    #[error(
        "`{format}` document is encrypted with a password; save it without one and upload it again"
    )]
    Encrypted { format: Format },
    /// The bytes claim to be of a format and break its rules so badly that no text can be trusted.
    #[error("`{format}` document is damaged: {reason}")]
    Corrupt { format: Format, reason: String },
    /// A bound of [`Limits`](crate::Limits) was hit.
    #[error("document is too large: it has more than {limit} {kind}")]
    TooLarge { kind: LimitKind, limit: usize },
    /// The document is sound and holds no text.
    #[error("document has no text: {reason}")]
    Empty { reason: String },
    /// The parser itself failed on these bytes.
    #[error("parser for `{format}` failed on this document: {message}")]
    Panicked { format: Format, message: String },
}

impl ParseError {
    pub(crate) fn corrupt(format: Format, reason: impl fmt::Display) -> Self {
        ParseError::Corrupt {
            format,
            reason: reason.to_string(),
        }
    }

    /// The variant's name in snake case, for metrics and summaries.
    pub fn kind(&self) -> &'static str {
        match self {
            ParseError::Unsupported { .. } => "unsupported",
            ParseError::Encrypted { .. } => "encrypted",
            ParseError::Corrupt { .. } => "corrupt",
            ParseError::TooLarge { .. } => "too_large",
            ParseError::Empty { .. } => "empty",
            ParseError::Panicked { .. } => "panicked",
        }
    }
}

/// Which bound of [`Limits`](crate::Limits) was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitKind {
    TextBytes,
    UnpackedBytes,
    Pages,
    /// Files packed into each other, see `attachment_depth_max`.
    AttachmentDepth,
    /// What says where each heading, paragraph and table is, on its way out of the process that parsed it.
    StructureBytes,
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitKind::TextBytes => "bytes of text",
            LimitKind::UnpackedBytes => "bytes when unpacked",
            LimitKind::Pages => "pages, slides or sheets",
            LimitKind::AttachmentDepth => "levels of attached e-mails",
            LimitKind::StructureBytes => {
                "bytes of headings, paragraphs and tables to keep track of"
            }
        })
    }
}
