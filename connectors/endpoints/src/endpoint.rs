//! What a source or a sink must be to be registered.
//!
//! Every source is a topic of the log or becomes one: whatever comes in from outside is appended first, so that it can
//! be replayed. A source therefore only says what to read; the runtime reads.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use va_catalog::store::Catalog;
use va_catalog::{Role, TopicName};
use va_connectors::flow::{Description, FlowError, Names, Problem, Sink};
use va_connectors::log::Log;
use va_formats::FormatSpec;
use va_formats::source::RecordsSpec;

use crate::indexes::Indexes;

/// The outside systems that sinks write to.
#[derive(Clone)]
pub struct Resources {
    pub log: Arc<dyn Log>,
    pub catalog: Catalog,
    pub indexes: Arc<Indexes>,
}

impl Resources {
    /// The same systems for one run of a task, see [`Indexes::for_task`].
    pub fn for_task(&self) -> Self {
        Self {
            indexes: self.indexes.for_task(),
            ..self.clone()
        }
    }
}

/// Where a group that has no committed offset begins.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the oldest row that is kept.
    #[default]
    Earliest,
    /// At rows that arrive from now on.
    Latest,
}

/// What a source reads.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    pub topic: TopicName,
    pub schema: SchemaRef,
    pub start_at: StartAt,
    /// Rows in which these columns are equal are in one partition. `None` when nothing is known of it.
    pub keyed_by: Option<Vec<String>>,
    /// Most rows in one batch.
    pub batch_rows_max: usize,
    /// How the messages of other programs become these rows; `None` for a topic of this platform's own batches.
    pub records: Option<RecordsSpec>,
}

impl SourcePlan {
    /// The schema that the topic itself has: without what is read beside the payload.
    pub fn topic_schema(&self) -> &SchemaRef {
        self.records
            .as_ref()
            .map_or(&self.schema, |records| &records.columns)
    }

    /// The format of the topic's messages, when it has one.
    pub fn format(&self) -> Option<&FormatSpec> {
        self.records.as_ref().map(|records| &records.format)
    }
}

/// What a sink needs before it runs.
#[derive(Debug, Clone, Default)]
pub struct SinkPlan {
    /// A topic that must exist, with this schema; the runtime creates it.
    pub topic: Option<(TopicName, SchemaRef)>,
    /// The format of that topic's messages; `None` for this platform's own batches.
    pub format: Option<FormatSpec>,
}

/// The declared half of a source.
pub trait SourceSpec: DeserializeOwned + JsonSchema {
    /// The word after `type:`.
    const KIND: &'static str;
    const EXAMPLE: &'static str;

    /// Pure: what it reads, or every problem with these options.
    fn plan(&self, names: &dyn Names) -> Result<SourcePlan, Vec<Problem>>;
}

/// The declared half of a sink.
pub trait SinkSpec: DeserializeOwned + JsonSchema {
    /// The word after `type:`.
    const KIND: &'static str;
    const EXAMPLE: &'static str;

    /// Pure: what it needs, or every problem with these options on this input.
    fn plan(&self, input: &SchemaRef, names: &dyn Names) -> Result<SinkPlan, Vec<Problem>>;

    /// May open what it needs; starts nothing. Only called after `plan` was fine.
    fn build(self, input: &SchemaRef, resources: &Resources) -> Result<Box<dyn Sink>, FlowError>;
}

/// A registered source.
#[derive(Clone, Copy)]
pub struct SourceEntry {
    pub description: Description,
    pub plan: fn(&Value, &dyn Names) -> Result<SourcePlan, Vec<Problem>>,
}

/// A registered sink.
#[derive(Clone, Copy)]
pub struct SinkEntry {
    pub description: Description,
    pub plan: fn(&Value, &SchemaRef, &dyn Names) -> Result<SinkPlan, Vec<Problem>>,
    pub build: fn(&Value, &SchemaRef, &Resources) -> Result<Box<dyn Sink>, FlowError>,
}

/// The registry line of a source.
pub fn source<S: SourceSpec>(summary: &'static str) -> SourceEntry {
    SourceEntry {
        description: describe::<S>(S::KIND, Role::Source, summary, S::EXAMPLE),
        plan: |options, names| options_of::<S>(options)?.plan(names),
    }
}

/// The registry line of a sink.
pub fn sink<S: SinkSpec>(summary: &'static str) -> SinkEntry {
    SinkEntry {
        description: describe::<S>(S::KIND, Role::Sink, summary, S::EXAMPLE),
        plan: |options, input, names| options_of::<S>(options)?.plan(input, names),
        build: |options, input, resources| {
            options_of::<S>(options)
                .map_err(|problems| FlowError::fatal(S::KIND, &problems[0]))?
                .build(input, resources)
        },
    }
}

fn describe<S: JsonSchema>(
    kind: &'static str,
    role: Role,
    summary: &'static str,
    example: &'static str,
) -> Description {
    Description {
        kind,
        role,
        summary,
        example,
        options: || schemars::schema_for!(S).to_value(),
    }
}

fn options_of<S: DeserializeOwned>(options: &Value) -> Result<S, Vec<Problem>> {
    serde_json::from_value(options.clone())
        .map_err(|error| vec![Problem::new(&[], error.to_string())])
}
