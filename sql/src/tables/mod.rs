//! The tables of a session. Each file is one kind; all are scanned as streams that begin when the query runs.

pub(crate) mod catalog;
pub(crate) mod chunks;
mod stream;
pub(crate) mod topics;

pub(crate) use stream::{Part, equal_to, part, project, projected, stream_plan};
