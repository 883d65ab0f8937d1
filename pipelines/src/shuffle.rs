//! Bringing the rows of a key together: where an operator needs them in one task and they may be spread over partitions,
//! the graph is cut in front of it and sewn together by a hidden topic.
//!
//! ```text
//!  as declared:   orders ─────────────────────────────────────────────► by_country ─► countries
//!  as it runs:    orders ─► by_country.partial ─► by_country.repartition        by_country.repartitioned ─► by_country ─► ...
//!                           (what came since the            └─► topic <pipeline>.by_country.repartition ─┘   (adds up,
//!                            last checkpoint, by key)             (partitioned by the key)                    holds the state)
//! ```
//!
//! Both halves run in every task, which is a member of one consumer group for the sources and the hidden topics. So what
//! the first half sends is in the commit that consumes the rows it was made from, and what the second half makes of it
//! is in the commit that consumes it from the hidden topic: exactly once holds across, as it does between two pipelines.
//!
//! **Order.** Rows of a key keep the order that they have within a source partition: one task at a time reads it, what it
//! sends is in the order of its commits, and a key has one partition of the hidden topic. Between two source partitions
//! there is no order but that of the commits, so `last` is the last row of the source partition whose part was committed
//! last; it is the same for every reader of the result, and it may be another one in another run.
//!
//! All of it is pure; the runtime creates the topics.

use std::collections::BTreeSet;

use arrow::datatypes::SchemaRef;
use serde_json::json;
use va_catalog::{Graph, Node, NodeName, PipelineName, Role, TopicName};
use va_connectors::flow::Problem;
use va_operators::ByKey;

use crate::plan::{ChainedNames, Declared, NodeProblem, Plan, PlannedNode};

/// Ends the names of the hidden topics.
const SUFFIX: &str = ".repartition";

/// How many partitions a topic has; `None` when that is not known, or there is no such topic.
pub type Partitions<'a> = &'a dyn Fn(&TopicName) -> Option<u32>;

/// Rows of a key are to be brought together before a node.
#[derive(Debug, Clone)]
pub struct Shuffle {
    /// Position in [`Plan::nodes`].
    pub node: usize,
    pub by: ByKey,
    pub topic: TopicName,
    /// What the node's rows come from, in the end.
    pub sources: Vec<TopicName>,
}

/// A topic between two halves of an operator; users do not read it.
#[derive(Debug, Clone)]
pub struct InternalTopic {
    pub name: TopicName,
    pub partitions: u32,
    /// The operator that needs it.
    pub node: NodeName,
    /// Whether the operator's options say how many partitions.
    pub is_fixed: bool,
}

/// The topic that brings rows together before `node`. A node's dots become hyphens, so that the last two dots tell
/// pipeline and node apart and no two pipelines can share one.
fn topic_of(pipeline: &PipelineName, node: &NodeName) -> String {
    format!("{pipeline}.{}{SUFFIX}", node.as_str().replace('.', "-"))
}

/// Whether a topic belongs to a pipeline as the hidden topic of one of its nodes.
pub fn is_internal_topic(pipeline: &PipelineName, topic: &TopicName) -> bool {
    topic
        .as_str()
        .strip_suffix(SUFFIX)
        .and_then(|rest| rest.rsplit_once('.'))
        .is_some_and(|(owner, _)| owner == pipeline.as_str())
}

/// The nodes that come before a node that is cut.
const HIDDEN: [&str; 3] = ["partial", "repartition", "repartitioned"];

fn hidden(node: &NodeName, part: &str) -> String {
    format!("{node}.{part}")
}

/// What is wrong with the names that cutting would need; checked also where it may turn out that nothing is cut.
pub fn problems(plan: &Plan) -> Vec<NodeProblem> {
    let mut taken: BTreeSet<String> = plan
        .topics
        .iter()
        .map(|(topic, _)| topic.to_string())
        .collect();
    let mut problems = Vec::new();
    for (at, _) in needs(plan, &|_| None) {
        let node = &plan.nodes[at].node.name;
        let mut report = |message: String| {
            let hint = format!("give `{node}` another name: its rows are brought together by key");
            problems.push(NodeProblem {
                node: node.clone(),
                problem: Problem::new(&[], message).hint(hint),
            });
        };
        let topic = topic_of(&plan.graph.name, node);
        if let Err(error) = TopicName::new(topic.clone()) {
            report(format!("the topic that it needs: {error}"));
        } else if !taken.insert(topic.clone()) {
            report(format!("the topic `{topic}` that it needs is used already"));
        }
        for name in HIDDEN.map(|part| hidden(node, part)) {
            match NodeName::new(name) {
                Err(error) => report(format!("the node that it needs: {error}")),
                Ok(name) if plan.graph.node(&name).is_some() => {
                    report(format!("the node `{name}` that it needs is there already"));
                }
                Ok(_) => {}
            }
        }
    }
    problems
}

/// The operators whose rows of a key may be spread over several tasks, as far as is known of topics.
fn needs(plan: &Plan, partitions: Partitions<'_>) -> Vec<(usize, ByKey)> {
    let mut needs = Vec::new();
    // For each node the columns by which its output is together: all rows in which they are equal are in one task. No
    // columns: all rows are.
    let mut together: Vec<Option<Vec<String>>> = Vec::with_capacity(plan.nodes.len());
    for (at, node) in plan.nodes.iter().enumerate() {
        let by = match &node.source {
            Some(source) if partitions(&source.topic) == Some(1) => Some(Vec::new()),
            Some(source) => source.keyed_by.clone(),
            None => operator(node).and_then(|operator| {
                let mut by = node
                    .inputs
                    .first()
                    .and_then(|&input| together[input].clone());
                if let Some(key) = (operator.by_key)(&node.node.options) {
                    let is_together = by
                        .as_ref()
                        .is_some_and(|by| by.iter().all(|column| key.columns.contains(column)));
                    if !is_together {
                        by = Some(key.columns.clone());
                        needs.push((at, key));
                    }
                }
                by.filter(|by| {
                    by.iter()
                        .all(|column| (operator.keeps)(&node.node.options, column))
                })
            }),
        };
        together.push(by);
    }
    needs
}

fn operator(node: &PlannedNode) -> Option<va_operators::OperatorEntry> {
    (node.node.role == Role::Operator)
        .then(|| va_operators::registry::operator(&node.node.kind))
        .flatten()
}

impl Plan {
    /// Where rows have to be brought together, given what is known of topics. A hidden topic that is there already stays
    /// in use: rows may wait in it.
    pub fn shuffles(&self, partitions: Partitions<'_>) -> Vec<Shuffle> {
        let pipeline = &self.graph.name;
        let topic = |at: usize| TopicName::new(topic_of(pipeline, &self.nodes[at].node.name)).ok();
        let in_use: BTreeSet<usize> = needs(self, &|_| None)
            .into_iter()
            .map(|(at, _)| at)
            .filter(|&at| topic(at).is_some_and(|topic| partitions(&topic).is_some()))
            .collect();
        let needed: BTreeSet<usize> = needs(self, partitions)
            .into_iter()
            .map(|(at, _)| at)
            .collect();
        needs(self, &|_| None)
            .into_iter()
            .filter(|(at, _)| needed.contains(at) || in_use.contains(at))
            .filter_map(|(node, by)| {
                Some(Shuffle {
                    node,
                    by,
                    topic: topic(node)?,
                    sources: self.sources_of(node),
                })
            })
            .collect()
    }

    /// Whether an operator keeps state by key.
    pub fn has_keyed_state(&self) -> bool {
        self.nodes.iter().any(|node| {
            operator(node).is_some_and(|operator| (operator.by_key)(&node.node.options).is_some())
        })
    }

    fn sources_of(&self, node: usize) -> Vec<TopicName> {
        let node = &self.nodes[node];
        match &node.source {
            Some(source) => vec![source.topic.clone()],
            None => node
                .inputs
                .iter()
                .flat_map(|&at| self.sources_of(at))
                .collect(),
        }
    }

    /// The plan as it runs: every shuffle becomes a hidden topic with a node on each side. Planning the result again
    /// changes nothing.
    pub fn shuffled(&self, partitions: Partitions<'_>) -> Result<Self, Vec<NodeProblem>> {
        let shuffles = self.shuffles(partitions);
        if shuffles.is_empty() {
            return Ok(self.clone());
        }
        let mut nodes: Vec<Node> = Vec::new();
        let mut declared = self.topics.clone();
        let mut internal = Vec::new();
        // In the plan's order, so that a hidden source comes after the sources that feed it: lag relies on it.
        for (at, planned) in self.nodes.iter().enumerate() {
            let mut node = planned.node.clone();
            if let Some(shuffle) = shuffles.iter().find(|shuffle| shuffle.node == at) {
                let schema = self
                    .cut(shuffle, &mut node, &mut nodes)
                    .map_err(|problem| {
                        vec![NodeProblem {
                            node: planned.node.name.clone(),
                            problem,
                        }]
                    })?;
                declared.push((shuffle.topic.clone(), schema));
                internal.push(shuffle.internal(&node.name, partitions));
            }
            nodes.push(node);
        }
        let graph = Graph {
            nodes,
            ..self.graph.clone()
        };
        let names = ChainedNames(vec![std::sync::Arc::new(Declared(declared))]);
        let mut plan = Self::new(graph, &names)?;
        plan.topics.retain(|(topic, _)| {
            internal
                .iter()
                .all(|internal: &InternalTopic| internal.name != *topic)
        });
        plan.internal = internal;
        Ok(plan)
    }

    /// Adds what comes before the node, and makes the node read from it. Returns what the topic holds.
    fn cut(
        &self,
        shuffle: &Shuffle,
        node: &mut Node,
        nodes: &mut Vec<Node>,
    ) -> Result<SchemaRef, Problem> {
        let [partial, sink, source] = HIDDEN.map(|part| {
            NodeName::new(hidden(&node.name, part))
                .map_err(|error| Problem::new(&[], error.to_string()))
        });
        let mut schema = self.nodes[shuffle.node].input_schemas[0].clone();
        let mut input = node.inputs.clone();
        if let Some(options) = &shuffle.by.before {
            let entry = va_operators::registry::operator(&node.kind)
                .ok_or_else(|| Problem::new(&["type"], "it is not registered"))?;
            schema = (entry.output)(options, &[schema], &ChainedNames(Vec::new()))
                .map_err(|mut problems| problems.remove(0))?;
            let partial = partial?;
            nodes.push(Node {
                name: partial.clone(),
                role: Role::Operator,
                kind: node.kind.clone(),
                inputs: input,
                options: options.clone(),
            });
            input = vec![partial];
        }
        let (topic, columns) = (shuffle.topic.as_str(), &shuffle.by.columns);
        nodes.push(Node {
            name: sink?,
            role: Role::Sink,
            kind: "repartition".into(),
            inputs: input,
            options: json!({"topic": topic, "columns": columns}),
        });
        let source = source?;
        nodes.push(Node {
            name: source.clone(),
            role: Role::Source,
            kind: "topic".into(),
            inputs: Vec::new(),
            options: json!({"topic": topic, "keyed_by": columns}),
        });
        node.inputs = vec![source];
        node.options = shuffle.by.after.clone();
        Ok(schema)
    }
}

impl Shuffle {
    /// As many partitions as its user says, else as it has, else as the source with most.
    fn internal(&self, node: &NodeName, partitions: Partitions<'_>) -> InternalTopic {
        let of_sources = self.sources.iter().filter_map(partitions).max();
        let count = self
            .by
            .partitions
            .or_else(|| partitions(&self.topic))
            .or(of_sources)
            .unwrap_or(1);
        InternalTopic {
            name: self.topic.clone(),
            partitions: count,
            node: node.clone(),
            is_fixed: self.by.partitions.is_some(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use super::*;
    use crate::plan::BuiltinNames;

    const ORDERS: &str =
        "type: topic, topic: orders, schema: {id: string!, city: string, amount: int64}";

    fn plan(operators: &str, source: &str) -> Plan {
        let text = format!(
            "pipeline: p\nsources: {{orders: {{{ORDERS}{source}}}}}\noperators:\n{operators}\n\
             sinks: {{out: {{type: topic, input: last, topic: out}}}}\n"
        );
        crate::load("p.yaml", &text, &BuiltinNames)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .plan
    }

    fn cut(plan: &Plan, orders: u32) -> Vec<String> {
        let partitions = |topic: &TopicName| (topic.as_str() == "orders").then_some(orders);
        let shuffled = plan.shuffled(&partitions).unwrap();
        assert!(
            shuffled.shuffles(&partitions).is_empty(),
            "planned again it stays as it is"
        );
        shuffled
            .internal
            .iter()
            .map(|topic| format!("{} {}", topic.name, topic.partitions))
            .collect()
    }

    const COUNT: &str = "  last: {type: aggregate, input: orders, group_by: [city], compute: {n: count(), l: last(id)}}";

    #[test]
    fn rows_are_brought_together_where_they_may_be_apart() {
        let counted = plan(COUNT, "");
        assert_eq!(cut(&counted, 6), ["p.last.repartition 6"]);
        assert!(cut(&counted, 1).is_empty(), "one partition has all rows");
        assert!(
            cut(&plan(COUNT, ", keyed_by: [city]"), 6).is_empty(),
            "they are together already"
        );
        assert_eq!(cut(&plan(COUNT, ", keyed_by: [id]"), 6).len(), 1);
        let told = COUNT.replace("compute:", "partitions: 4, compute:");
        assert_eq!(cut(&plan(&told, ""), 6), ["p.last.repartition 4"]);
    }

    #[test]
    fn what_is_together_stays_together() {
        let between = |between: &str, last: &str| {
            let text = format!(
                "  by.city: {{type: aggregate, input: orders, group_by: [city], compute: {{n: count()}}}}\n\
                 \x20 between: {{{between}, input: by.city}}\n\
                 \x20 last: {{type: aggregate, input: between, group_by: [{last}], compute: {{m: max(n)}}}}"
            );
            cut(&plan(&text, ""), 3)
        };
        let both = ["p.by-city.repartition 3", "p.last.repartition 3"];
        let filter = "type: filter, where: n > 0";
        assert_eq!(between(filter, "city"), both[..1]);
        assert_eq!(between(filter, "\"city\", n"), both[..1], "a wider key");
        assert_eq!(between(filter, "n"), both);
        assert_eq!(
            between("type: map, set: {m: n}", "city"),
            both[..1],
            "the column is not touched"
        );
        assert_eq!(between("type: map, set: {city: upper(city)}", "city"), both);
    }

    #[test]
    fn the_halves_fit_the_whole() {
        let plan = plan(COUNT, "");
        let shuffled = plan.shuffled(&|_| Some(2)).unwrap();
        let names: Vec<&str> = shuffled
            .nodes
            .iter()
            .map(|node| node.node.name.as_str())
            .collect();
        let hidden = ["last.partial", "last.repartition", "last.repartitioned"];
        for name in hidden {
            assert!(names.contains(&name), "{names:?}");
        }
        let output = |plan: &Plan| {
            let node = plan
                .nodes
                .iter()
                .find(|node| node.node.name.as_str() == "last");
            node.unwrap().output.clone().unwrap()
        };
        assert_eq!(output(&plan), output(&shuffled));
        let topics = |plan: &Plan| {
            plan.topics
                .iter()
                .map(|(t, _)| t.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            topics(&plan),
            topics(&shuffled),
            "the hidden topic is no topic of the users"
        );
    }

    /// Rows may wait in it.
    #[test]
    fn a_hidden_topic_that_is_there_stays_in_use() {
        let plan = plan(COUNT, "");
        let partitions = |topic: &TopicName| match topic.as_str() {
            "orders" => Some(1),
            "p.last.repartition" => Some(5),
            _ => None,
        };
        let shuffled = plan.shuffled(&partitions).unwrap();
        assert_eq!(shuffled.internal[0].partitions, 5);
    }

    #[test]
    fn names_are_kept_apart() {
        let (p, ab) = (
            PipelineName::new("a").unwrap(),
            PipelineName::new("a.b").unwrap(),
        );
        let (c, bc) = (NodeName::new("c").unwrap(), NodeName::new("b.c").unwrap());
        assert_ne!(topic_of(&ab, &c), topic_of(&p, &bc));
        let topic = TopicName::new(topic_of(&ab, &c)).unwrap();
        assert!(is_internal_topic(&ab, &topic) && !is_internal_topic(&p, &topic));

        let clash = COUNT.replace("last:", "x.y:").replace(", l: last(id)", "")
            + "\n  x-y: {type: aggregate, input: orders, compute: {n: count()}}\
               \n  last: {type: filter, input: x.y, where: n > 0}\
               \n  x-y.partial: {type: filter, input: x-y, where: n > 0}";
        let text = format!(
            "pipeline: p\nsources: {{orders: {{{ORDERS}}}}}\noperators:\n{clash}\n\
             sinks:\n  out: {{type: topic, input: last, topic: out}}\n  o2: {{type: topic, input: x-y.partial, topic: o2}}\n"
        );
        let said = crate::load("p.yaml", &text, &BuiltinNames)
            .unwrap_err()
            .to_string();
        for part in [
            "the topic `p.x-y.repartition` that it needs is used already",
            "the node `x-y.partial` that it needs is there already",
        ] {
            assert!(said.contains(part), "{part} is missing in:\n{said}");
        }
    }

    #[test]
    fn explaining_says_it() {
        let plan = plan(COUNT, "");
        let said = crate::draw::explain(&plan);
        assert!(
            said.contains(
                "rows are brought together by city, added up beforehand, through the topic p.last.repartition; \
                 not where orders has one partition"
            ),
            "{said}"
        );
        assert!(crate::draw::mermaid(&plan).contains("n0 -->|\"by city\"| n1"));
        assert!(crate::draw::dot(&plan).contains("n0 -> n1 [label=\"by city\"]"));
    }
}
