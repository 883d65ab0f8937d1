//! Unit tests inside pipeline files: input rows, expected rows, no server.
//!
//! A test runs the real runtime on a log of its own. Sinks are left out: rows that are expected of a node are collected
//! behind it through a topic, that is, as they were committed.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::BinaryBuilder;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use va_catalog::{
    Graph, Node, NodeName, Offset, Partition, PipelineName, Role, TopicName, TopicPartition,
};
use va_connectors::log::records::RecordsBuilder;
use va_connectors::log::{FetchLimit, Log, Target, TopicConfig};
use va_formats::source::RecordsSpec;

use crate::plan::{BuiltinNames, ChainedNames, Declared, Plan};
use crate::runtime::{PipelineState, Runtime, RuntimeConfig};

/// One entry of `tests:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    pub name: String,
    /// Texts to put into the object store, under their SHA-256, before the run.
    #[serde(default)]
    pub objects: Vec<String>,
    /// Rows of each source. For a source with a format they are written as messages in it, with `_key` as the key.
    #[serde(default)]
    pub input: BTreeMap<NodeName, Vec<Map<String, Value>>>,
    /// Messages of each source with a format, as texts: what a program wrote that knows nothing of the schema.
    #[serde(default)]
    pub messages: BTreeMap<NodeName, Vec<Text>>,
    /// Rows that each node must have emitted, in order; for a sink, that it must have received. Columns that are not
    /// named are not compared.
    #[serde(default)]
    pub expect: BTreeMap<NodeName, Vec<Map<String, Value>>>,
    /// Rows that must have gone to the dead-letter topic, in order; `reason` needs only be contained.
    #[serde(default)]
    pub dead_letters: Vec<ExpectedDeadLetter>,
}

/// A message that is text.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    #[serde(default)]
    pub key: Option<String>,
    #[serde(default)]
    pub value: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// A row that must have failed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedDeadLetter {
    pub operator: NodeName,
    pub reason: String,
}

impl Fixture {
    /// The `tests:` of a pipeline file; an error has the path below `tests`.
    pub fn list(tests: Option<&Value>) -> Result<Vec<Self>, (Vec<String>, String)> {
        let items = match tests {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err((Vec::new(), "`tests` is not a list".into())),
        };
        items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                serde_json::from_value(item.clone())
                    .map_err(|error| (vec![i.to_string()], format!("test: {error}")))
            })
            .collect()
    }
}

/// How a test ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub name: String,
    /// Empty when it passed; else one line a difference.
    pub differences: Vec<String>,
}

/// Runs one test of a pipeline on fresh outside systems (a temporary log, catalog and object store).
pub async fn run(plan: &Plan, fixture: &Fixture, config: RuntimeConfig) -> Outcome {
    let differences = match try_run(plan, fixture, config).await {
        Ok(differences) => differences,
        Err(error) => vec![error],
    };
    Outcome {
        name: fixture.name.clone(),
        differences,
    }
}

async fn try_run(
    plan: &Plan,
    fixture: &Fixture,
    config: RuntimeConfig,
) -> Result<Vec<String>, String> {
    let log = config.log.clone();
    for object in &fixture.objects {
        config
            .operators
            .objects
            .put_bytes(object.clone().into_bytes().into())
            .await
            .map_err(|error| format!("store an object: {error}"))?;
    }
    // One partition each: the rows keep their order, and all rows of a key are together.
    for source in plan.nodes.iter().filter_map(|node| node.source.as_ref()) {
        let config = TopicConfig {
            partitions: 1,
            ..TopicConfig::default()
        };
        log.create_topic(&source.topic, config)
            .await
            .map_err(|error| error.to_string())?;
    }
    for (source, rows) in &fixture.input {
        let source_plan = source_of(plan, source, "input")?;
        let batch = match &source_plan.records {
            None => rows_to_batch(&source_plan.schema, rows),
            Some(records) => encoded(&source_plan.topic, records, rows).await,
        };
        append(log.as_ref(), &source_plan.topic, batch)
            .await
            .map_err(|error| format!("input of `{source}`: {error}"))?;
    }
    for (source, texts) in &fixture.messages {
        let source_plan = source_of(plan, source, "messages")?;
        if source_plan.records.is_none() {
            return Err(format!("`messages` names `{source}`, which has no format"));
        }
        append(log.as_ref(), &source_plan.topic, Ok(messages(texts)))
            .await
            .map_err(|error| format!("messages of `{source}`: {error}"))?;
    }
    let collected = collecting(plan, fixture)?;
    let runtime = Runtime::new(config);
    let name = collected.graph.name.clone();
    runtime
        .start(collected.clone())
        .await
        .map_err(|error| error.to_string())?;
    let ran = until_caught_up(&runtime, &name).await;
    let stopped = runtime.stop(&name).await.map_err(|error| error.to_string());
    ran.and(stopped)?;

    let mut differences = Vec::new();
    for (node, expected) in &fixture.expect {
        let actual = rows_of(log.as_ref(), &collecting_topic(node)?).await?;
        compare(node.as_str(), expected, &actual, &mut differences);
    }
    let letters = rows_of(log.as_ref(), &plan.graph.dead_letter_topic()).await?;
    compare_dead_letters(&fixture.dead_letters, &letters, &mut differences);
    Ok(differences)
}

fn source_of<'a>(
    plan: &'a Plan,
    source: &NodeName,
    named: &str,
) -> Result<&'a va_endpoints::SourcePlan, String> {
    plan.nodes
        .iter()
        .find(|node| &node.node.name == source)
        .and_then(|node| node.source.as_ref())
        .ok_or_else(|| format!("`{named}` names `{source}`, which is not a source"))
}

/// Rows as messages in the source's format.
async fn encoded(
    topic: &TopicName,
    records: &RecordsSpec,
    rows: &[Map<String, Value>],
) -> Result<RecordBatch, String> {
    let mut rows = rows.to_vec();
    let mut keys = BinaryBuilder::new();
    for row in &mut rows {
        let key = row.remove("_key");
        keys.append_option(key.as_ref().and_then(Value::as_str));
    }
    let batch = rows_to_batch(&records.columns, &rows)?;
    let mut encoder = records
        .format
        .encoder(&records.columns, topic)
        .map_err(|error| error.to_string())?;
    encoder.prepare().await.map_err(|error| error.to_string())?;
    let encoded = encoder.encode(&batch).map_err(|error| error.to_string())?;
    let keys = encoded.by_row.then(|| keys.finish());
    Ok(va_connectors::log::records::of_payloads(
        encoded.payloads,
        keys,
    ))
}

fn messages(texts: &[Text]) -> RecordBatch {
    let mut builder = RecordsBuilder::with_capacity(texts.len(), 0);
    for text in texts {
        let headers = text
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.as_bytes())));
        let bytes = |text: &'_ Option<String>| text.clone().map(String::into_bytes);
        let (key, value) = (bytes(&text.key), bytes(&text.value));
        builder.push(key.as_deref(), value.as_deref(), None, headers);
    }
    builder.finish()
}

/// The plan with its sinks replaced by topics behind the nodes that the test looks at.
fn collecting(plan: &Plan, fixture: &Fixture) -> Result<Plan, String> {
    let mut nodes: Vec<Node> = plan
        .graph
        .nodes
        .iter()
        .filter(|node| node.role != Role::Sink)
        .cloned()
        .collect();
    let known = nodes.len();
    for expected in fixture.expect.keys() {
        let node = plan
            .graph
            .node(expected)
            .ok_or_else(|| format!("`expect` names `{expected}`, which does not exist"))?;
        let input = if node.role == Role::Sink {
            node.inputs[0].clone()
        } else {
            node.name.clone()
        };
        let name =
            NodeName::new(format!("collect.{expected}")).map_err(|error| error.to_string())?;
        let options = json!({"topic": collecting_topic(expected)?.as_str()});
        nodes.push(Node {
            name,
            role: Role::Sink,
            kind: "topic".into(),
            inputs: vec![input],
            options,
        });
    }
    // Operators must still run when nothing is expected of them: what they dead-letter is.
    for node in &plan.graph.nodes[..] {
        if node.role == Role::Sink && nodes[known..].iter().all(|sink| sink.inputs != node.inputs) {
            let name = NodeName::new(format!("discard.{}", node.name))
                .map_err(|error| error.to_string())?;
            let options = json!({"topic": format!("discard.{}", node.name)});
            nodes.push(Node {
                name,
                role: Role::Sink,
                kind: "topic".into(),
                inputs: node.inputs.clone(),
                options,
            });
        }
    }
    let graph = Graph {
        nodes,
        ..plan.graph.clone()
    };
    let declared: Vec<_> = plan.topics.clone();
    let names = ChainedNames(vec![Arc::new(BuiltinNames), Arc::new(Declared(declared))]);
    Plan::new(graph, &names).map_err(|problems| {
        problems
            .iter()
            .map(|found| format!("{}: {}", found.node, found.problem))
            .collect::<Vec<_>>()
            .join("; ")
    })
}

fn collecting_topic(node: &NodeName) -> Result<TopicName, String> {
    TopicName::new(format!("collect.{node}")).map_err(|error| error.to_string())
}

async fn append(
    log: &dyn Log,
    topic: &TopicName,
    batch: Result<RecordBatch, String>,
) -> Result<(), String> {
    let batch = batch?;
    let mut commit = log.begin();
    commit.append(topic, Target::Partition(Partition(0)), batch);
    commit
        .finish()
        .await
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// JSON objects as a batch; a field that the schema does not have is an error.
pub fn rows_to_batch(
    schema: &SchemaRef,
    rows: &[Map<String, Value>],
) -> Result<RecordBatch, String> {
    let text: String = rows
        .iter()
        .map(|row| format!("{}\n", Value::Object(row.clone())))
        .collect();
    let mut reader = arrow::json::ReaderBuilder::new(schema.clone())
        .with_strict_mode(true)
        .with_batch_size(rows.len().max(1))
        .build(Cursor::new(text))
        .map_err(|error| error.to_string())?;
    match reader.next() {
        Some(batch) => batch.map_err(|error| error.to_string()),
        None => Ok(RecordBatch::new_empty(schema.clone())),
    }
}

/// A batch as JSON objects, nulls included.
pub fn batch_to_rows(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    writer
        .write(batch)
        .and_then(|()| writer.finish())
        .map_err(|error| error.to_string())?;
    let bytes = writer.into_inner();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

async fn until_caught_up(runtime: &Runtime, name: &PipelineName) -> Result<(), String> {
    let mut checkpoints = runtime
        .checkpoints(name)
        .map_err(|error| error.to_string())?;
    loop {
        checkpoints.borrow_and_update();
        let status = runtime
            .status(name)
            .await
            .map_err(|error| error.to_string())?;
        match status.state {
            PipelineState::Failed { reason } | PipelineState::Restarting { reason } => {
                return Err(reason);
            }
            PipelineState::Running | PipelineState::Stopped if status.lag_rows == 0 => {
                return Ok(());
            }
            PipelineState::Running | PipelineState::Stopped => {}
        }
        // A failure makes no checkpoint, so the state is looked at now and then as well.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(200), checkpoints.changed())
            .await;
    }
}

async fn rows_of(log: &dyn Log, topic: &TopicName) -> Result<Vec<Map<String, Value>>, String> {
    let topics = log.topics().await.map_err(|error| error.to_string())?;
    let partitions = topics
        .iter()
        .find(|(name, _)| name == topic)
        .map_or(0, |(_, config)| config.partitions);
    let mut batches: Vec<(i64, Offset, RecordBatch)> = Vec::new();
    for partition in (0..partitions).map(Partition) {
        let partition = TopicPartition {
            topic: topic.clone(),
            partition,
        };
        let mut from = Offset(0);
        loop {
            let fetched = log
                .fetch(
                    &partition,
                    from,
                    FetchLimit::default(),
                    std::time::Duration::ZERO,
                )
                .await
                .map_err(|error| error.to_string())?;
            if fetched.batches.is_empty() {
                break;
            }
            batches.extend(
                fetched
                    .batches
                    .into_iter()
                    .map(|b| (b.appended_at_ms, b.base, b.batch)),
            );
            from = fetched.next;
        }
    }
    batches.sort_by_key(|(at, base, _)| (*at, *base));
    let mut rows = Vec::new();
    for (_, _, batch) in batches {
        rows.extend(batch_to_rows(&batch)?);
    }
    Ok(rows)
}

fn compare(
    node: &str,
    expected: &[Map<String, Value>],
    actual: &[Map<String, Value>],
    out: &mut Vec<String>,
) {
    if expected.len() != actual.len() {
        out.push(format!(
            "`{node}`: {} rows expected, {} came",
            expected.len(),
            actual.len()
        ));
    }
    for (i, row) in expected.iter().enumerate() {
        let Some(got) = actual.get(i) else {
            out.push(format!(
                "`{node}` row {i}: {} is missing",
                Value::Object(row.clone())
            ));
            continue;
        };
        for (column, value) in row {
            let found = got.get(column).unwrap_or(&Value::Null);
            if !same(value, found) {
                out.push(format!(
                    "`{node}` row {i}, `{column}`: {value} expected, {found} came"
                ));
            }
        }
    }
    for row in actual.iter().skip(expected.len()) {
        out.push(format!(
            "`{node}`: unexpected {}",
            Value::Object(row.clone())
        ));
    }
}

/// Equal, where 1 and 1.0 are the same number and a mapping is compared in the fields that are named.
fn same(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => a
            .iter()
            .all(|(key, value)| same(value, b.get(key).unwrap_or(&Value::Null))),
        (a, b) => a == b,
    }
}

fn compare_dead_letters(
    expected: &[ExpectedDeadLetter],
    actual: &[Map<String, Value>],
    out: &mut Vec<String>,
) {
    let found: Vec<(&str, &str)> = actual
        .iter()
        .map(|row| {
            let field = |name: &str| row["payload"][name].as_str().unwrap_or_default();
            (field("operator"), field("reason"))
        })
        .collect();
    if expected.len() != found.len() {
        out.push(format!(
            "{} dead letters expected, {} came: {found:?}",
            expected.len(),
            found.len()
        ));
        return;
    }
    for (expected, (operator, reason)) in expected.iter().zip(found) {
        if expected.operator.as_str() != operator || !reason.contains(&expected.reason) {
            out.push(format!(
                "dead letter: `{}` with `{}` expected, `{operator}` with `{reason}` came",
                expected.operator, expected.reason
            ));
        }
    }
}
