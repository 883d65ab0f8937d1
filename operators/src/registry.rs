//! All operators, in alphabetical order. Adding one is a file, its `mod` and its line here, and an example.

#[path = "aggregate.rs"]
pub mod aggregate;
#[path = "announce.rs"]
pub mod announce;
#[path = "chunk.rs"]
pub mod chunk;
#[path = "embed.rs"]
pub mod embed;
#[path = "filter.rs"]
pub mod filter;
#[path = "map.rs"]
pub mod map;
#[path = "parse.rs"]
pub mod parse;

use crate::operator::{OperatorEntry, entry};

/// Every operator that a pipeline can name.
pub fn operators() -> Vec<OperatorEntry> {
    vec![
        entry::<aggregate::AggregateSpec>("Running counts, sums, extremes and last values by key."),
        entry::<announce::AnnounceSpec>(
            "One `document.indexed` event for each document that is complete.",
        ),
        entry::<chunk::ChunkSpec>(
            "Cuts documents into chunks that keep sentences, headings, tables and code whole.",
        ),
        entry::<embed::EmbedSpec>("Adds a vector to every chunk, with a local model."),
        entry::<filter::FilterSpec>("Keeps the rows for which a SQL condition is true."),
        entry::<map::MapSpec>("Computes, renames and drops columns with SQL expressions."),
        entry::<parse::ParseSpec>(
            "Turns uploaded documents into text with headings, tables, pages and offsets.",
        ),
    ]
}

/// The operator of that kind.
pub fn operator(kind: &str) -> Option<OperatorEntry> {
    operators()
        .into_iter()
        .find(|entry| entry.description.kind == kind)
}
