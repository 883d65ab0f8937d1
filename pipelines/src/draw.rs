//! Drawing and explaining a plan: Mermaid, DOT, and text with the schemas between nodes.

use std::fmt::Write;

use va_catalog::Role;
use va_connectors::schema::schema_lines;

use crate::plan::{Plan, PlannedNode};
use crate::shuffle::Shuffle;

/// A Mermaid flowchart.
pub fn mermaid(plan: &Plan) -> String {
    let mut out = String::from("flowchart LR\n");
    for (i, node) in plan.nodes.iter().enumerate() {
        let label = format!("{}<br/>{}", node.node.name, detail(node));
        let shape = match node.node.role {
            Role::Source => format!("n{i}([\"{label}\"])"),
            Role::Operator => format!("n{i}[\"{label}\"]"),
            Role::Sink => format!("n{i}[(\"{label}\")]"),
        };
        let _ = writeln!(out, "    {shape}");
    }
    let shuffles = plan.shuffles(&|_| None);
    for (i, node) in plan.nodes.iter().enumerate() {
        for input in &node.inputs {
            let _ = match key_of(&shuffles, i) {
                Some(key) => writeln!(out, "    n{input} -->|\"by {key}\"| n{i}"),
                None => writeln!(out, "    n{input} --> n{i}"),
            };
        }
    }
    out
}

/// A Graphviz digraph.
pub fn dot(plan: &Plan) -> String {
    let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n", plan.graph.name);
    for (i, node) in plan.nodes.iter().enumerate() {
        let shape = match node.node.role {
            Role::Source => "ellipse",
            Role::Operator => "box",
            Role::Sink => "cylinder",
        };
        let _ = writeln!(
            out,
            "  n{i} [shape={shape}, label=\"{}\\n{}\"];",
            node.node.name,
            detail(node)
        );
    }
    let shuffles = plan.shuffles(&|_| None);
    for (i, node) in plan.nodes.iter().enumerate() {
        for input in &node.inputs {
            let _ = match key_of(&shuffles, i) {
                Some(key) => writeln!(out, "  n{input} -> n{i} [label=\"by {key}\"];"),
                None => writeln!(out, "  n{input} -> n{i};"),
            };
        }
    }
    out.push_str("}\n");
    out
}

/// The key by which rows are brought together before node `at`.
fn key_of(shuffles: &[Shuffle], at: usize) -> Option<String> {
    let shuffle = shuffles.iter().find(|shuffle| shuffle.node == at)?;
    Some(match shuffle.by.columns.as_slice() {
        [] => "one key".to_owned(),
        columns => columns.join(", "),
    })
}

fn detail(node: &PlannedNode) -> String {
    match node
        .node
        .options
        .get("topic")
        .and_then(|topic| topic.as_str())
    {
        Some(topic) => format!("{} {topic}", node.node.kind),
        None => node.node.kind.clone(),
    }
}

/// What each node does, with its options and the columns that it emits.
pub fn explain(plan: &Plan) -> String {
    let graph = &plan.graph;
    let mut out = format!("pipeline {}", graph.name);
    if !graph.description.is_empty() {
        let _ = write!(out, ": {}", graph.description);
    }
    let _ = writeln!(
        out,
        "\n  checkpoint every {} ms or {} rows, {} task{}\n  rows that fail go to {}",
        graph.checkpoint.interval_ms,
        graph.checkpoint.rows_max,
        graph.tasks,
        if graph.tasks == 1 { "" } else { "s" },
        graph.dead_letter_topic()
    );
    let shuffles = plan.shuffles(&|_| None);
    for (at, node) in plan.nodes.iter().enumerate() {
        let role = match node.node.role {
            Role::Source => "source",
            Role::Operator => "operator",
            Role::Sink => "sink",
        };
        let _ = write!(out, "\n{role} {} ({})", node.node.name, node.node.kind);
        let inputs: Vec<&str> = node
            .node
            .inputs
            .iter()
            .map(|input| input.as_str())
            .collect();
        if !inputs.is_empty() {
            let _ = write!(out, " <- {}", inputs.join(", "));
        }
        out.push('\n');
        if let Some(options) = node.node.options.as_object() {
            for (option, value) in options {
                let _ = writeln!(out, "    {option}: {value}");
            }
        }
        if let Some(shuffle) = shuffles.iter().find(|shuffle| shuffle.node == at) {
            let _ = writeln!(out, "  {}", brought_together(shuffle));
        }
        if let Some(schema) = &node.output {
            let _ = writeln!(out, "  emits");
            for line in schema_lines(schema) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    out
}

/// Whether it happens depends on the log, which explaining does not ask.
fn brought_together(shuffle: &Shuffle) -> String {
    let what = match shuffle.by.columns.as_slice() {
        [] => "all rows are brought together".to_owned(),
        columns => format!("rows are brought together by {}", columns.join(", ")),
    };
    let how = if shuffle.by.before.is_some() {
        ", added up beforehand,"
    } else {
        ""
    };
    let mut sources = shuffle.sources.clone();
    sources.sort();
    sources.dedup();
    let sources: Vec<&str> = sources.iter().map(|topic| topic.as_str()).collect();
    format!(
        "{what}{how} through the topic {}; not where {} has one partition",
        shuffle.topic,
        sources.join(", ")
    )
}
