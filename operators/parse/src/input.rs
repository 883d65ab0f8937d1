//! What a caller hands in: the bytes with what is known about them, and how much work they may cause.

use serde::{Deserialize, Serialize};

/// A file to parse.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// File name or path; only its ending is used, and only where the content does not decide.
    pub name: &'a str,
    /// The media type that came with the file (`text/html; charset=gbk`), if any. Its charset is believed when the bytes
    /// agree, its type is asked after the content and before the name.
    pub content_type: Option<&'a str>,
    pub bytes: &'a [u8],
}

/// Bounds on what one document may cost. A document that goes over one ends in
/// [`ParseError::TooLarge`](crate::ParseError::TooLarge); nothing is cut off silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of UTF-8 text that a document may come to.
    pub text_bytes_max: usize,
    /// Bytes that all members of a ZIP container (DOCX, PPTX, XLSX) may unpack to, counted while unpacking and not taken
    /// from what the container claims.
    pub unpacked_bytes_max: usize,
    /// Pages, slides or sheets.
    pub pages_max: usize,
    /// How deep files inside e-mails are followed (an e-mail in an e-mail in an e-mail).
    pub attachment_depth_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            text_bytes_max: 16 << 20,
            unpacked_bytes_max: 256 << 20,
            pages_max: 20_000,
            attachment_depth_max: 3,
        }
    }
}
