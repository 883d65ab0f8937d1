//! YAML to a checked plan, or to every problem at once, each with its place in the file and what to do.
//!
//! The shape of the file and the graph's structure are checked here; options against the components' JSON Schemas;
//! what flows between nodes by [`Plan::new`]. A part that is wrong does not hide problems in the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};
use va_catalog::{CheckpointSpec, Graph, Node, NodeName, PipelineName, Role};
use va_connectors::flow::Names;

use crate::fixture::Fixture;
use crate::plan::Plan;
use crate::registry::{component, components};
use crate::source_text::{Position, SourceText};

/// One problem, with its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    pub message: String,
    pub hint: Option<String>,
    /// The offending line of the file.
    pub text: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )?;
        let number = self.line.to_string();
        writeln!(f, "  {number} | {}", self.text)?;
        // As wide as the text before it, so that the mark stands below the place also after Chinese text.
        let before: String = self
            .text
            .chars()
            .take(self.column.saturating_sub(1))
            .map(blank)
            .collect();
        write!(f, "  {} | {before}^", " ".repeat(number.len()))?;
        self.hint.as_ref().map_or(Ok(()), |hint| {
            write!(f, "\n  {} = help: {hint}", " ".repeat(number.len()))
        })
    }
}

fn blank(c: char) -> char {
    match c {
        '\t' => '\t',
        c if c > '\u{2e7f}' => '\u{3000}',
        _ => ' ',
    }
}

/// All problems of a file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.0 {
            writeln!(f, "{diagnostic}")?;
        }
        write!(
            f,
            "{} problem{}",
            self.0.len(),
            if self.0.len() == 1 { "" } else { "s" }
        )
    }
}

/// A pipeline file that is fine.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub plan: Plan,
    pub tests: Vec<Fixture>,
}

const TOP_FIELDS: [&str; 8] = [
    "pipeline",
    "description",
    "checkpoint",
    "tasks",
    "sources",
    "operators",
    "sinks",
    "tests",
];
const SECTIONS: [(&str, Role); 3] = [
    ("sources", Role::Source),
    ("operators", Role::Operator),
    ("sinks", Role::Sink),
];

/// Reads and checks a pipeline. `file` is only used in messages.
pub fn load(file: &str, text: &str, names: &dyn Names) -> Result<Loaded, Diagnostics> {
    let mut loader = Loader {
        file,
        text,
        source: SourceText::default(),
        problems: Vec::new(),
        nodes: BTreeMap::new(),
    };
    match SourceText::parse(text) {
        Ok(source) => loader.source = source,
        Err((position, message)) => {
            loader.report(position, format!("not YAML: {message}"), None);
            return Err(loader.finish());
        }
    }
    loader.load(names).ok_or_else(|| loader.finish())
}

struct Loader<'a> {
    file: &'a str,
    text: &'a str,
    source: SourceText,
    problems: Vec<Diagnostic>,
    /// Path of every declared node.
    nodes: BTreeMap<NodeName, Vec<String>>,
}

impl Loader<'_> {
    fn load(&mut self, names: &dyn Names) -> Option<Loaded> {
        let Value::Object(top) = std::mem::take(&mut self.source.value) else {
            self.report_at(
                &[],
                "a pipeline is a mapping",
                Some("begin with `pipeline: <name>`".into()),
            );
            return None;
        };
        for field in top
            .keys()
            .filter(|field| !TOP_FIELDS.contains(&field.as_str()))
        {
            let hint = suggest(field, TOP_FIELDS)
                .unwrap_or_else(|| format!("the fields are {}", quoted(TOP_FIELDS)));
            self.report_key(&[field], format!("unknown field `{field}`"), Some(hint));
        }
        let name = self.name_of(&top);
        let description = self.text_field(&top, "description").unwrap_or_default();
        let checkpoint = self.checkpoint(&top);
        let tasks = self.number(&top, "tasks", 1, 64).unwrap_or(1) as u32;

        let mut nodes: Vec<Node> = Vec::new();
        for (section, role) in SECTIONS {
            match top.get(section) {
                None | Some(Value::Null) => {}
                Some(Value::Object(entries)) => {
                    for (name, body) in entries {
                        nodes.extend(self.node(section, role, name, body));
                    }
                }
                Some(_) => self.report_at(
                    &[section],
                    &format!("`{section}` is not a mapping"),
                    Some(format!(
                        "write `{section}:` and below it `<name>: {{type: ...}}`"
                    )),
                ),
            }
        }
        for (section, what) in [
            ("sources", "nothing to read from"),
            ("sinks", "nowhere to write to"),
        ] {
            if top.get(section).is_none_or(Value::is_null) {
                self.report_at(&[], &format!("no `{section}`: there is {what}"), None);
            }
        }
        self.check_structure(&mut nodes);
        let tests = match Fixture::list(top.get("tests")) {
            Ok(tests) => tests,
            Err((path, message)) => {
                let path: Vec<String> = std::iter::once("tests".to_owned()).chain(path).collect();
                let position = self.source.value_at(&path);
                self.report(position, message, None);
                Vec::new()
            }
        };

        let graph = Graph {
            name: name.clone()?,
            description,
            checkpoint,
            tasks,
            nodes,
        };
        let plan = match Plan::new(graph, names) {
            Ok(plan) => Some(plan),
            Err(problems) => {
                for found in problems {
                    let mut path = self.nodes.get(&found.node).cloned().unwrap_or_default();
                    path.extend(found.problem.path.iter().cloned());
                    let position = self.source.value_at(&path);
                    self.report(position, found.problem.message, found.problem.hint);
                }
                None
            }
        };
        if self.problems.is_empty() {
            Some(Loaded { plan: plan?, tests })
        } else {
            None
        }
    }

    fn name_of(&mut self, top: &Map<String, Value>) -> Option<PipelineName> {
        let Some(text) = top.get("pipeline") else {
            self.report_at(
                &[],
                "the field `pipeline` is missing",
                Some("begin with `pipeline: <name>`".into()),
            );
            // The rest is checked under some name.
            return PipelineName::new("unnamed").ok();
        };
        let name = text
            .as_str()
            .map(ToOwned::to_owned)
            .unwrap_or_else(|| text.to_string());
        PipelineName::new(name)
            .map_err(|error| self.report_at(&["pipeline"], &error.to_string(), None))
            .ok()
    }

    fn text_field(&mut self, top: &Map<String, Value>, field: &str) -> Option<String> {
        match top.get(field)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.report_at(
                    &[field],
                    &format!("`{field}` is {}, not text", type_word(other)),
                    None,
                );
                None
            }
        }
    }

    fn number(
        &mut self,
        fields: &Map<String, Value>,
        field: &str,
        min: u64,
        max: u64,
    ) -> Option<u64> {
        let value = fields.get(field)?;
        let number = value.as_u64().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            let path: Vec<&str> = if ["interval_ms", "rows_max"].contains(&field) {
                vec!["checkpoint", field]
            } else {
                vec![field]
            };
            self.report_at(
                &path,
                &format!("`{field}` is {value}"),
                Some(format!("use a whole number from {min} to {max}")),
            );
        }
        number
    }

    fn checkpoint(&mut self, top: &Map<String, Value>) -> CheckpointSpec {
        let mut spec = CheckpointSpec::default();
        match top.get("checkpoint") {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) => {
                let known = ["interval_ms", "rows_max"];
                for field in fields
                    .keys()
                    .filter(|field| !known.contains(&field.as_str()))
                {
                    let hint = suggest(field, known)
                        .unwrap_or_else(|| format!("the fields are {}", quoted(known)));
                    self.report_key(
                        &["checkpoint", field],
                        format!("unknown field `{field}` in `checkpoint`"),
                        Some(hint),
                    );
                }
                spec.interval_ms = self
                    .number(fields, "interval_ms", 1, 3_600_000)
                    .unwrap_or(spec.interval_ms);
                spec.rows_max = self
                    .number(fields, "rows_max", 1, 100_000_000)
                    .unwrap_or(spec.rows_max);
            }
            Some(other) => {
                let message = format!("`checkpoint` is {}, not a mapping", type_word(other));
                self.report_at(
                    &["checkpoint"],
                    &message,
                    Some("write `checkpoint: {interval_ms: 100}`".into()),
                );
            }
        }
        spec
    }

    /// One node; `None` when it cannot take part in further checks.
    fn node(&mut self, section: &str, role: Role, name: &str, body: &Value) -> Option<Node> {
        let path = [section, name];
        let node_name = match NodeName::new(name) {
            Ok(node_name) => node_name,
            Err(error) => {
                self.report_key(&path, error.to_string(), None);
                return None;
            }
        };
        if let Some(other) = self.nodes.get(&node_name) {
            let message = format!("`{name}` is declared in `{}` already", other[0]);
            self.report_key(
                &path,
                message,
                Some("names are unique in a pipeline".into()),
            );
            return None;
        }
        self.nodes.insert(
            node_name.clone(),
            path.iter().map(|&part| part.to_owned()).collect(),
        );
        let Value::Object(fields) = body else {
            self.report_at(
                &path,
                &format!("`{name}` is {}, not a mapping", type_word(body)),
                Some("write `{type: ...}`".into()),
            );
            return None;
        };
        let kind = self.kind_of(role, &path, fields);
        let inputs = self.inputs_of(role, &path, fields);
        let options: Map<String, Value> = fields
            .iter()
            .filter(|(field, _)| *field != "type" && (role == Role::Source || *field != "input"))
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect();
        let kind = kind?;
        let before = self.problems.len();
        self.check_options(role, &kind, &path, &options);
        let inputs = inputs?;
        if self.problems.len() > before {
            return None;
        }
        Some(Node {
            name: node_name,
            role,
            kind,
            inputs,
            options: Value::Object(options),
        })
    }

    fn kind_of(
        &mut self,
        role: Role,
        path: &[&str],
        fields: &Map<String, Value>,
    ) -> Option<String> {
        let kinds: Vec<&str> = components()
            .iter()
            .filter(|c| c.role == role)
            .map(|c| c.kind)
            .collect();
        let Some(kind) = fields.get("type") else {
            self.report_key(
                path,
                format!("`{}` has no `type`", path[1]),
                Some(format!("use {}", quoted(kinds))),
            );
            return None;
        };
        let Some(kind) = kind.as_str() else {
            self.report_at(
                &[path[0], path[1], "type"],
                &format!("`type` is {}, not a word", type_word(kind)),
                None,
            );
            return None;
        };
        if component(role, kind).is_none() {
            let elsewhere = SECTIONS
                .iter()
                .find(|(_, other)| *other != role && component(*other, kind).is_some());
            let hint = match elsewhere {
                Some((section, _)) => format!("`{kind}` belongs under `{section}`"),
                None => suggest(kind, kinds.iter().copied())
                    .unwrap_or_else(|| format!("use {}", quoted(kinds))),
            };
            let word = match role {
                Role::Source => "source",
                Role::Operator => "operator",
                Role::Sink => "sink",
            };
            self.report_at(
                &[path[0], path[1], "type"],
                &format!("unknown {word} `{kind}`"),
                Some(hint),
            );
            return None;
        }
        Some(kind.to_owned())
    }

    fn inputs_of(
        &mut self,
        role: Role,
        path: &[&str],
        fields: &Map<String, Value>,
    ) -> Option<Vec<NodeName>> {
        if role == Role::Source {
            return Some(Vec::new());
        }
        let at = [path[0], path[1], "input"];
        let words: Vec<&Value> = match fields.get("input") {
            None | Some(Value::Null) => {
                let hint = "name the source or operator that it reads from: `input: <name>`";
                self.report_key(
                    path,
                    format!("`{}` has no `input`", path[1]),
                    Some(hint.into()),
                );
                return None;
            }
            Some(Value::Array(words)) => words.iter().collect(),
            Some(word) => vec![word],
        };
        // No operator has several inputs yet; a union is several operators into one topic.
        if words.len() != 1 {
            self.report_at(
                &at,
                &format!("`{}` takes one input, not {}", path[1], words.len()),
                None,
            );
            return None;
        }
        let mut names = Vec::new();
        for word in words {
            match word.as_str().map(NodeName::new) {
                Some(Ok(name)) => names.push(name),
                Some(Err(error)) => self.report_at(&at, &error.to_string(), None),
                None => self.report_at(
                    &at,
                    &format!("`input` is {}, not a name", type_word(word)),
                    None,
                ),
            }
        }
        (!names.is_empty()).then_some(names)
    }

    fn check_options(
        &mut self,
        role: Role,
        kind: &str,
        path: &[&str],
        options: &Map<String, Value>,
    ) {
        let Some(description) = component(role, kind) else {
            return;
        };
        let schema = (description.options)();
        let Ok(validator) = jsonschema::validator_for(&schema) else {
            return;
        };
        let known: Vec<String> = schema["properties"]
            .as_object()
            .map(|p| p.keys().cloned().collect())
            .unwrap_or_default();
        let instance = Value::Object(options.clone());
        let mut found: Vec<(Vec<String>, bool, String, Option<String>)> = Vec::new();
        for error in validator.iter_errors(&instance) {
            let inner: Vec<String> = error
                .instance_path()
                .as_str()
                .split('/')
                .filter(|part| !part.is_empty())
                .map(|part| part.replace("~1", "/").replace("~0", "~"))
                .collect();
            let at = |more: &[String]| -> Vec<String> {
                path.iter()
                    .map(|&p| p.to_owned())
                    .chain(inner.iter().cloned())
                    .chain(more.iter().cloned())
                    .collect()
            };
            match error.kind() {
                ValidationErrorKind::AdditionalProperties { unexpected } => {
                    for field in unexpected {
                        let hint =
                            suggest(field, known.iter().map(String::as_str)).unwrap_or_else(|| {
                                if known.is_empty() {
                                    format!("`{kind}` has no options")
                                } else {
                                    format!(
                                        "the options are {}",
                                        quoted(known.iter().map(String::as_str))
                                    )
                                }
                            });
                        let message = format!("unknown field `{field}` in `{kind}`");
                        found.push((at(std::slice::from_ref(field)), true, message, Some(hint)));
                    }
                }
                ValidationErrorKind::Required { property } => {
                    let property = property.as_str().unwrap_or_default();
                    let says = schema["properties"][property]["description"]
                        .as_str()
                        .map(first_sentence);
                    found.push((
                        at(&[]),
                        true,
                        format!("`{}` needs the field `{property}`", path[1]),
                        says,
                    ));
                }
                _ => {
                    let field = inner.join(".");
                    let says = inner
                        .first()
                        .and_then(|first| schema["properties"][first]["description"].as_str());
                    found.push((
                        at(&[]),
                        false,
                        format!("`{field}`: {error}"),
                        says.map(first_sentence),
                    ));
                }
            }
        }
        for (path, key, message, hint) in found {
            let position = if key {
                self.source.key(&path)
            } else {
                self.source.value_at(&path)
            };
            self.report(position, message, hint);
        }
    }

    /// Inputs that do not exist, cycles, rows that reach no sink. Nodes that cannot be planned are taken out.
    fn check_structure(&mut self, nodes: &mut Vec<Node>) {
        let sinks: BTreeSet<NodeName> = nodes
            .iter()
            .filter(|node| node.role == Role::Sink)
            .map(|node| node.name.clone())
            .collect();
        let readable: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, path)| path[0] != "sinks")
            .map(|(name, _)| name.to_string())
            .collect();
        for node in nodes.iter() {
            for input in &node.inputs {
                let mut path = self.nodes[&node.name].clone();
                path.push("input".into());
                let position = self.source.value_at(&path);
                if sinks.contains(input) {
                    let hint = "a sink has no output; read from what it reads";
                    self.report(
                        position,
                        format!("`{}` reads from the sink `{input}`", node.name),
                        Some(hint.into()),
                    );
                } else if !self.nodes.contains_key(input) {
                    let known = || readable.iter().map(String::as_str);
                    let hint = suggest(input.as_str(), known())
                        .unwrap_or_else(|| format!("there is {}", quoted(known())));
                    self.report(
                        position,
                        format!("`{}` reads from `{input}`, which does not exist", node.name),
                        Some(hint),
                    );
                }
            }
        }

        let cyclic = cycle_members(nodes);
        if !cyclic.is_empty() {
            let names: Vec<&str> = cyclic.iter().map(NodeName::as_str).collect();
            let first = self.nodes[&cyclic[0]].clone();
            let position = self.source.key(&first);
            self.report(
                position,
                format!("a cycle: {} read from each other", quoted(names)),
                Some("break it; a loop goes through a topic".into()),
            );
        }

        // A node reaches a sink when one of its consumers does.
        let mut reaches: BTreeSet<NodeName> = sinks;
        loop {
            let more: Vec<NodeName> = nodes
                .iter()
                .filter(|node| reaches.contains(&node.name))
                .flat_map(|node| node.inputs.iter())
                .filter(|input| !reaches.contains(*input))
                .cloned()
                .collect();
            if more.is_empty() {
                break;
            }
            reaches.extend(more);
        }
        for node in nodes
            .iter()
            .filter(|node| !reaches.contains(&node.name) && !cyclic.contains(&node.name))
        {
            // Silent when a consumer was taken out for another problem: the file says that it is read.
            if self.some_are_broken(nodes) {
                continue;
            }
            let position = self.source.key(&self.nodes[&node.name]);
            self.report(
                position,
                format!("unreachable: rows of `{}` reach no sink", node.name),
                Some("name it as the `input` of an operator or sink, or remove it".into()),
            );
        }
        nodes.retain(|node| !cyclic.contains(&node.name));
    }

    /// Whether a declared node was taken out for problems of its own; it may be the missing reader.
    fn some_are_broken(&self, nodes: &[Node]) -> bool {
        self.nodes
            .keys()
            .any(|declared| nodes.iter().all(|node| &node.name != declared))
    }

    fn report_key(&mut self, path: &[&str], message: String, hint: Option<String>) {
        let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
        let position = self.source.key(&path);
        self.report(position, message, hint);
    }

    fn report_at(&mut self, path: &[&str], message: &str, hint: Option<String>) {
        let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
        let position = self.source.value_at(&path);
        self.report(position, message.to_owned(), hint);
    }

    fn report(&mut self, position: Position, message: String, hint: Option<String>) {
        let text = self
            .text
            .lines()
            .nth(position.line.saturating_sub(1))
            .unwrap_or_default()
            .trim_end()
            .to_owned();
        self.problems.push(Diagnostic {
            file: self.file.to_owned(),
            line: position.line,
            column: position.column,
            message,
            hint,
            text,
        });
    }

    fn finish(&mut self) -> Diagnostics {
        let mut problems = std::mem::take(&mut self.problems);
        problems.sort();
        problems.dedup();
        Diagnostics(problems)
    }
}

/// Nodes that cannot be put behind their inputs although every input exists.
fn cycle_members(nodes: &[Node]) -> Vec<NodeName> {
    let mut left: Vec<&Node> = nodes.iter().collect();
    loop {
        let names: BTreeSet<&NodeName> = left.iter().map(|node| &node.name).collect();
        // First those that nothing left reads from or that read from nothing left: they are on no cycle.
        let next: Vec<&Node> = left
            .iter()
            .filter(|node| {
                node.inputs.iter().any(|input| names.contains(input))
                    && left.iter().any(|other| other.inputs.contains(&node.name))
            })
            .copied()
            .collect();
        if next.len() == left.len() {
            return left.into_iter().map(|node| node.name.clone()).collect();
        }
        left = next;
    }
}

fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words
        .into_iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// Up to the first full stop that is not part of `e.g.`.
fn first_sentence(text: &str) -> String {
    let end = text
        .match_indices(". ")
        .map(|(at, _)| at)
        .find(|&at| !text[..at].ends_with("e.g"))
        .unwrap_or(text.len());
    text[..end]
        .replace('\n', " ")
        .trim_end_matches('.')
        .to_owned()
}
