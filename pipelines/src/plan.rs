//! A checked graph: every node's schemas, in an order in which inputs come first.
//!
//! Planning is pure: it asks the components and [`Names`], and collects every problem instead of stopping at the first.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use va_catalog::event::{
    CONVERSATION_EVENTS, DOCUMENT_INDEXED, DOCUMENT_UPLOADED, LLM_USAGE, PLATFORM_ALERT,
    conversation_events_schema, dead_letter_schema, llm_usage_schema, platform_alert_schema,
};
use va_catalog::event::{document_indexed_schema, document_uploaded_schema};
use va_catalog::{Graph, Node, NodeName, Role, TopicName};
use va_connectors::flow::{Names, Problem};
use va_endpoints::SourcePlan;
use va_formats::FormatSpec;

use crate::shuffle::{self, InternalTopic};

/// A graph that can run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub graph: Graph,
    /// In an order in which every node comes after its inputs.
    pub nodes: Vec<PlannedNode>,
    /// Topics that must exist before the start, with their schemas.
    pub topics: Vec<(TopicName, SchemaRef)>,
    /// Topics between two halves of an operator, in a plan [as it runs](Plan::shuffled).
    pub internal: Vec<InternalTopic>,
    /// Those among them that sinks write, with the columns that are written.
    pub writes: Vec<(TopicName, SchemaRef)>,
    /// The formats of those among them that hold messages of others.
    pub formats: Vec<(TopicName, FormatSpec)>,
}

/// A node with what flows in and out.
#[derive(Debug, Clone)]
pub struct PlannedNode {
    pub node: Node,
    /// Positions of its inputs in [`Plan::nodes`].
    pub inputs: Vec<usize>,
    pub input_schemas: Vec<SchemaRef>,
    /// `None` for a sink.
    pub output: Option<SchemaRef>,
    /// What a source reads.
    pub source: Option<SourcePlan>,
}

/// A problem and the node that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProblem {
    pub node: NodeName,
    pub problem: Problem,
}

impl Plan {
    /// Plans a graph whose structure is sound (inputs exist, no cycle, kinds are registered: see `load`).
    pub fn new(graph: Graph, names: &dyn Names) -> Result<Self, Vec<NodeProblem>> {
        let mut problems = Vec::new();
        let mut nodes: Vec<PlannedNode> = Vec::new();
        let mut positions: HashMap<NodeName, usize> = HashMap::new();
        let mut topics = vec![(graph.dead_letter_topic(), dead_letter_schema())];
        let (mut writes, mut formats) = (Vec::new(), Vec::new());
        for node in in_order(&graph) {
            let inputs: Vec<usize> = node
                .inputs
                .iter()
                .filter_map(|name| positions.get(name).copied())
                .collect();
            // A node above has a problem; what flows in here is not known, and saying so again would be noise.
            if inputs.len() != node.inputs.len() {
                continue;
            }
            let input_schemas: Vec<SchemaRef> = inputs
                .iter()
                .filter_map(|&at| nodes[at].output.clone())
                .collect();
            // Reading from a sink; `load` has said so.
            if input_schemas.len() != inputs.len() {
                continue;
            }
            match plan_node(node, &input_schemas, names) {
                Ok((output, source, topic, format)) => {
                    let node = with_format(node, format.as_ref());
                    formats.extend(topic.as_ref().map(|(name, _)| name.clone()).zip(format));
                    if node.role == Role::Sink {
                        writes.extend(topic.clone());
                    }
                    topics.extend(topic);
                    positions.insert(node.name.clone(), nodes.len());
                    nodes.push(PlannedNode {
                        node,
                        inputs,
                        input_schemas,
                        output,
                        source,
                    });
                }
                Err(found) => problems.extend(found.into_iter().map(|problem| NodeProblem {
                    node: node.name.clone(),
                    problem,
                })),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let plan = Self {
            graph,
            nodes,
            topics,
            writes,
            formats,
            internal: Vec::new(),
        };
        match shuffle::problems(&plan) {
            problems if problems.is_empty() => Ok(plan),
            problems => Err(problems),
        }
    }

    /// Positions of the nodes that read from node number `at`, and which of their inputs it is.
    pub fn consumers(&self, at: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.nodes
            .iter()
            .enumerate()
            .flat_map(move |(consumer, node)| {
                node.inputs
                    .iter()
                    .enumerate()
                    .filter(move |(_, input)| **input == at)
                    .map(move |(i, _)| (consumer, i))
            })
    }
}

/// The node with the format that planning found for its topic: building it knows no catalog.
fn with_format(node: &Node, format: Option<&FormatSpec>) -> Node {
    let mut node = node.clone();
    if let (Role::Sink, Some(format), Some(options)) =
        (node.role, format, node.options.as_object_mut())
        && let Ok(format) = serde_json::to_value(format)
    {
        options.insert("format".to_owned(), format);
    }
    node
}

type Planned = (
    Option<SchemaRef>,
    Option<SourcePlan>,
    Option<(TopicName, SchemaRef)>,
    Option<FormatSpec>,
);

fn plan_node(
    node: &Node,
    inputs: &[SchemaRef],
    names: &dyn Names,
) -> Result<Planned, Vec<Problem>> {
    let unknown = || {
        vec![Problem::new(
            &["type"],
            format!("`{}` is not registered", node.kind),
        )]
    };
    match node.role {
        Role::Source => {
            let entry = va_endpoints::registry::source_entry(&node.kind).ok_or_else(unknown)?;
            let plan = (entry.plan)(&node.options, names)?;
            let topic = (plan.topic.clone(), plan.topic_schema().clone());
            let format = plan.format().cloned();
            Ok((Some(plan.schema.clone()), Some(plan), Some(topic), format))
        }
        Role::Operator => {
            let entry = va_operators::registry::operator(&node.kind).ok_or_else(unknown)?;
            Ok((
                Some((entry.output)(&node.options, inputs, names)?),
                None,
                None,
                None,
            ))
        }
        Role::Sink => {
            let entry = va_endpoints::registry::sink_entry(&node.kind).ok_or_else(unknown)?;
            let plan = (entry.plan)(&node.options, &inputs[0], names)?;
            Ok((None, None, plan.topic, plan.format))
        }
    }
}

/// The nodes in an order in which inputs come first; nodes on a cycle are left out.
fn in_order(graph: &Graph) -> Vec<&Node> {
    let mut placed: Vec<&Node> = Vec::new();
    loop {
        let next = graph.nodes.iter().find(|node| {
            placed.iter().all(|done| done.name != node.name)
                && node
                    .inputs
                    .iter()
                    .all(|input| placed.iter().any(|done| &done.name == input))
        });
        match next {
            Some(node) => placed.push(node),
            None => return placed,
        }
    }
}

/// The topics that every installation has, for checking a pipeline without a server.
pub struct BuiltinNames;

impl Names for BuiltinNames {
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef> {
        match topic.as_str() {
            CONVERSATION_EVENTS => Some(conversation_events_schema()),
            DOCUMENT_UPLOADED => Some(document_uploaded_schema()),
            DOCUMENT_INDEXED => Some(document_indexed_schema()),
            LLM_USAGE => Some(llm_usage_schema()),
            PLATFORM_ALERT => Some(platform_alert_schema()),
            other if other.ends_with(".dead_letter") => Some(dead_letter_schema()),
            _ => None,
        }
    }

    fn topics(&self) -> Vec<TopicName> {
        [
            CONVERSATION_EVENTS,
            DOCUMENT_UPLOADED,
            DOCUMENT_INDEXED,
            LLM_USAGE,
            PLATFORM_ALERT,
        ]
        .into_iter()
        .filter_map(|name| TopicName::new(name).ok())
        .collect()
    }
}

/// Names that several places know: the first answer counts.
pub struct ChainedNames(pub Vec<Arc<dyn Names>>);

impl Names for ChainedNames {
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef> {
        self.0.iter().find_map(|names| names.topic_schema(topic))
    }

    fn topic_format(&self, topic: &TopicName) -> Option<serde_json::Value> {
        self.0.iter().find_map(|names| names.topic_format(topic))
    }

    fn topics(&self) -> Vec<TopicName> {
        let mut topics: Vec<TopicName> = self.0.iter().flat_map(|names| names.topics()).collect();
        topics.sort();
        topics.dedup();
        topics
    }
}

/// Topics that a plan declares itself.
pub struct Declared(pub Vec<(TopicName, SchemaRef)>);

impl Names for Declared {
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef> {
        self.0
            .iter()
            .find(|(name, _)| name == topic)
            .map(|(_, schema)| schema.clone())
    }

    fn topics(&self) -> Vec<TopicName> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}
