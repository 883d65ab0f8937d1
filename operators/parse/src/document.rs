//! What a parsed document is: plain text, and blocks that say what each stretch of that text was.
//!
//! Every parser produces this and the chunker reads nothing else, so a new format costs one parser.
//! Offsets are byte offsets into [`Document::text`]; turning them into character offsets for clients
//! is left to the chunk operator.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A document after parsing. `blocks` are in reading order, do not overlap, and lie on character boundaries of `text`;
/// what is between two blocks is white space only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What the bytes turned out to be, decided by content first and by name second.
    pub format: Format,
    /// Character encoding that the text was decoded from, where the format has one (`GB18030`, `UTF-8`, ...).
    pub encoding: Option<String>,
    /// The document's own title (metadata or first heading), if it has one.
    pub title: Option<String>,
    /// The whole text, UTF-8, line ends `\n`, Unicode as found (no width or script folding: that is the index's job).
    pub text: String,
    pub blocks: Vec<Block>,
    /// Number of pages, slides or sheets where the format has them.
    pub pages: Option<u32>,
    /// What was survived: a page without text layer, an undecodable byte. Shown to users, in English, one sentence each.
    pub warnings: Vec<String>,
}

/// A stretch of [`Document::text`] of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub kind: BlockKind,
    /// Byte range in [`Document::text`], on character boundaries.
    pub range: Range<usize>,
    /// 1-based page, slide or sheet number; `None` where the format has none.
    pub page: Option<u32>,
    /// Headings above this block, outermost first; for a heading, without itself.
    pub title_path: Vec<String>,
}

/// What a block is. The chunker never cuts inside a table row or a code line when it can avoid it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "level")]
pub enum BlockKind {
    /// 1 is the outermost level.
    Heading(u8),
    Paragraph,
    ListItem,
    /// A whole table, one line a row, cells separated by ` | `; the first line is the header row where the table has one.
    Table,
    /// Preformatted text; line breaks and indentation are kept.
    Code,
}

/// The file formats that can be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Pdf,
    Docx,
    Pptx,
    Xlsx,
    Text,
    Markdown,
    Html,
    Csv,
    Json,
    Email,
    /// Unix manual page in roff.
    Man,
}

impl fmt::Display for Format {
    /// The name that is also used in JSON: `pdf`, `docx`, ...
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Pdf => "pdf",
            Format::Docx => "docx",
            Format::Pptx => "pptx",
            Format::Xlsx => "xlsx",
            Format::Text => "text",
            Format::Markdown => "markdown",
            Format::Html => "html",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Email => "email",
            Format::Man => "man",
        })
    }
}
