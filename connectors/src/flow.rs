//! What every pipeline component is: a description, a pure plan, and (for sinks) a running half.
//!
//! Three phases. *Describe and plan* do no I/O and report every problem at once, so that checking a pipeline needs no
//! server. *Build* may open what it needs and starts nothing. *Run* happens inside the pipeline runtime, which owns the
//! tasks. The `Operator` trait is in `va-operators`; registered sources and sinks are in `va-endpoints`.

use std::fmt;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use serde_json::Value;
use va_catalog::{CollectionRef, Role, TopicName};

use crate::log::Target;

/// A registered component as users see it: in `va pipeline` tools, the reference page and the editor.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The word after `type:`.
    pub kind: &'static str,
    pub role: Role,
    /// The first sentence of its documentation.
    pub summary: &'static str,
    /// A complete small pipeline that uses it, with tests; shown in the docs and executed.
    pub example: &'static str,
    /// JSON Schema of its options.
    pub options: fn() -> Value,
}

/// Something wrong with a node's options or with what flows into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the options, outermost first; empty means the node as a whole, `["input"]` its input.
    pub path: Vec<String>,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(path: &[&str], message: impl Into<String>) -> Self {
        Self {
            path: path.iter().map(|&part| part.to_owned()).collect(),
            message: message.into(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join("."))?;
        }
        f.write_str(&self.message)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// What a plan may know of the outside: names and shapes, nothing live.
pub trait Names: Send + Sync {
    /// Schema of a topic that the catalog knows.
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef>;

    /// The format of a topic's messages as the catalog has it, as in `format:` of a source; `None` when it holds this
    /// platform's own batches, or is not known.
    fn topic_format(&self, _topic: &TopicName) -> Option<Value> {
        None
    }

    /// All topics that the catalog knows, for suggestions.
    fn topics(&self) -> Vec<TopicName>;
}

/// Which way a component failed, by what the runtime must do about it. A row that is bad is not an error: it goes to
/// the dead-letter topic.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FlowError {
    /// An outside system did not do its part; the task restarts from its last checkpoint after a pause.
    #[error("{component}: {message}")]
    Retriable { component: String, message: String },
    /// Repeating would fail again; the pipeline stops and says why.
    #[error("{component}: {message}")]
    Fatal { component: String, message: String },
    /// The task was asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl FlowError {
    pub fn retriable(component: impl Into<String>, error: impl fmt::Display) -> Self {
        Self::Retriable {
            component: component.into(),
            message: error.to_string(),
        }
    }

    pub fn fatal(component: impl Into<String>, error: impl fmt::Display) -> Self {
        Self::Fatal {
            component: component.into(),
            message: error.to_string(),
        }
    }
}

impl From<arrow::error::ArrowError> for FlowError {
    /// Schemas were checked before the start, so a kernel that refuses a batch is our own fault.
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::fatal("arrow", error)
    }
}

/// Number of a checkpoint within one run of a task, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId(pub u64);

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Rows that a sink wants appended to the log in the checkpoint's own commit.
#[derive(Debug, Clone)]
pub struct Append {
    pub topic: TopicName,
    pub target: Target,
    pub batch: RecordBatch,
}

/// What a sink hands over at a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    pub appends: Vec<Append>,
    /// Collections whose indexes this checkpoint changes. The runtime shows them to searches when every sink is
    /// prepared, so that all indexes of a collection change at once.
    pub collections: Vec<CollectionRef>,
}

/// The running half of a sink.
///
/// Order of calls: any number of `write`, then `prepare`, and so on. After a crash, everything since the last committed
/// checkpoint is written again, perhaps in other batches: so either the rows carry deterministic ids and a repeated
/// write changes nothing (indexes, tables), or they go through [`Append`] into the commit itself (topics).
#[async_trait]
pub trait Sink: Send {
    /// Takes rows; may buffer them until `prepare`. May block for as long as the outside system pushes back.
    async fn write(&mut self, batch: RecordBatch) -> Result<(), FlowError>;

    /// Brings everything written so far to where only the checkpoint's own commits are missing (that of the collections
    /// it names, then that of the log), and hands over what belongs into them.
    async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Prepared, FlowError>;
}
