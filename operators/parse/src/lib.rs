//! Documents to text: every file format and encoding behind one pure function.

pub mod document;

pub use document::{Block, BlockKind, Document, Format};
