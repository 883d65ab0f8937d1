//! Documents to text: every file format and encoding behind one pure function, [`parse`].
//!
//! It relies on nothing outside the bytes it is given: no files, no network, no clock. Cutting the result into chunks and
//! everything that comes after is left to the operators that use it.

mod builder;
mod csv;
mod decode;
mod detect;
pub mod document;
mod docx;
mod email;
mod error;
mod html;
mod input;
mod json;
mod man;
mod markdown;
mod ooxml;
mod parse;
mod pdf;
mod pptx;
mod text;
mod xlsx;

pub use document::{Block, BlockKind, Document, Format};
pub use error::{LimitKind, ParseError};
pub use input::{Input, Limits};
pub use parse::parse;
