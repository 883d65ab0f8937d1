//! The built-in pipelines: the same YAML that users write, compiled in.

/// What `va index` and uploads run.
pub const INDEX: &str = include_str!("../definitions/index.yaml");
/// Tells the catalog what became of documents.
pub const DOCUMENT_STATE: &str = include_str!("../definitions/document_state.yaml");

/// File name and text of every built-in pipeline.
pub fn builtin() -> [(&'static str, &'static str); 2] {
    [
        ("index.yaml", INDEX),
        ("document_state.yaml", DOCUMENT_STATE),
    ]
}
