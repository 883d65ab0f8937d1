//! Everything that a pipeline can name, from the registries of operators and endpoints.

use va_catalog::Role;
use va_connectors::flow::Description;

/// All components, sources first.
pub fn components() -> Vec<Description> {
    let sources = va_endpoints::registry::sources()
        .into_iter()
        .map(|entry| entry.description);
    let operators = va_operators::registry::operators()
        .into_iter()
        .map(|entry| entry.description);
    let sinks = va_endpoints::registry::sinks()
        .into_iter()
        .map(|entry| entry.description);
    sources.chain(operators).chain(sinks).collect()
}

/// The component of that role and kind.
pub fn component(role: Role, kind: &str) -> Option<Description> {
    components()
        .into_iter()
        .find(|description| description.role == role && description.kind == kind)
}
