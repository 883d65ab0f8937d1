//! A pipeline as data: what YAML and SQL both become, and what is validated, drawn, explained and run.
//!
//! Plain values only. Whether the graph makes sense (kinds, options, schemas, cycles) is decided in `pipelines`, which
//! knows the registered components.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{NodeName, PipelineName, TopicName};

/// A declared dataflow: named nodes, each naming its inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    pub name: PipelineName,
    pub description: String,
    pub checkpoint: CheckpointSpec,
    /// How many tasks share the partitions of the sources.
    pub tasks: u32,
    /// In declaration order: sources, operators, sinks.
    pub nodes: Vec<Node>,
}

/// One source, operator or sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub role: Role,
    /// The registered component, e.g. `parse`.
    pub kind: String,
    /// Empty for a source.
    pub inputs: Vec<NodeName>,
    /// The component's own options, an object; checked against its schema.
    pub options: Value,
}

/// What a node does at the graph's border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Source,
    Operator,
    Sink,
}

/// When the runtime cuts a checkpoint: whichever comes first, and at once when the sources have nothing more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSpec {
    /// Longest time between two checkpoints while there is input, in milliseconds.
    pub interval_ms: u64,
    /// Most source rows in one checkpoint.
    pub rows_max: u64,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self {
            interval_ms: 100,
            rows_max: 8_192,
        }
    }
}

impl Graph {
    /// The node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| &node.name == name)
    }

    /// The nodes that read from `name`.
    pub fn consumers<'a>(&'a self, name: &'a NodeName) -> impl Iterator<Item = &'a Node> {
        self.nodes
            .iter()
            .filter(move |node| node.inputs.contains(name))
    }

    /// Where rows that failed go: `<pipeline>.dead_letter`.
    pub fn dead_letter_topic(&self) -> TopicName {
        dead_letter_topic(&self.name)
    }
}

/// The dead-letter topic of a pipeline.
pub fn dead_letter_topic(pipeline: &PipelineName) -> TopicName {
    TopicName::new(format!("{pipeline}.dead_letter")).unwrap_or_else(|_| {
        // Only a pipeline name of over 116 characters gets here; its tail keeps it unique enough to be found.
        let tail: String = pipeline.as_str().chars().take(100).collect();
        TopicName::new(format!("{tail}.dead_letter"))
            .expect("100 valid characters and a suffix are a valid name")
    })
}
