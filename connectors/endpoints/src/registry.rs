//! All sources and sinks, in alphabetical order. Adding one is a file, its `mod` and its line here, and an example.

#[path = "document_failed.rs"]
pub mod document_failed;
#[path = "document_ready.rs"]
pub mod document_ready;
#[path = "lance.rs"]
pub mod lance;
#[path = "tantivy.rs"]
pub mod tantivy;
#[path = "topic.rs"]
pub mod topic;

use crate::endpoint::{SinkEntry, SourceEntry, sink, source};

/// Every source that a pipeline can name.
pub fn sources() -> Vec<SourceEntry> {
    vec![source::<topic::TopicSource>("Reads a topic of the log.")]
}

/// Every sink that a pipeline can name.
pub fn sinks() -> Vec<SinkEntry> {
    vec![
        sink::<document_failed::DocumentFailedSink>(
            "Marks documents failed in the catalog, from dead letters.",
        ),
        sink::<document_ready::DocumentReadySink>(
            "Marks documents ready in the catalog, from `document.indexed`.",
        ),
        sink::<lance::LanceSink>("Writes chunks with vectors to LanceDB."),
        sink::<tantivy::TantivySink>("Writes chunks to the full-text index."),
        sink::<topic::TopicSink>("Appends rows to a topic, in the checkpoint's own commit."),
    ]
}

/// The source of that kind.
pub fn source_entry(kind: &str) -> Option<SourceEntry> {
    sources()
        .into_iter()
        .find(|entry| entry.description.kind == kind)
}

/// The sink of that kind, also the one that only the graph names.
pub fn sink_entry(kind: &str) -> Option<SinkEntry> {
    sinks()
        .into_iter()
        .chain([crate::repartition::entry()])
        .find(|entry| entry.description.kind == kind)
}
