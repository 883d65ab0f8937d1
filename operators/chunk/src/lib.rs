//! Parsed documents to chunks that keep sentences, headings, tables and code whole.
//!
//! One pure function, [`chunk`]: text and blocks in, exact slices of the text out. Tokens are counted by whatever
//! [`TokenCounter`] the caller brings (the embedding model's own tokenizer, or [`Estimate`]), so this crate knows no model. Ids, storage
//! and the decision which of `context` and `prefix` to embed are left to the chunk and embed operators.
//!
//! ```text
//! text, blocks ─ units ─► sentences, items, rows, stanzas, none above `tokens_max` (`sentence`, `cut`)
//!              ─ group ─► sections, tiny ones joined to a neighbour
//!              ─ pack  ─► runs of units, filled up to `tokens_max`, cut at the best border near the end
//!              ─ chunk ─► slices with offsets, titles and page
//! ```

mod chunk;
mod cut;
mod estimate;
mod group;
mod options;
mod pack;
mod sentence;
mod units;

pub use chunk::{Chunk, TokenCounter, chunk};
pub use estimate::Estimate;
pub use options::{ChunkOptions, OptionError};
pub use sentence::{Sentences, sentences};
