//! The seam that every operator implements, and the context through which alone it reaches outside.
//!
//! An operator sees batches, barriers and its context. It never reads the clock, spawns tasks, or opens connections
//! after `build`; the runtime in `va-pipelines` calls it, checks its row counts and commits its state.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::RandomState;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use va_catalog::{Offset, Role, TopicPartition};
use va_connectors::flow::{Description, FlowError, Names, Problem};
use va_connectors::log::{GroupId, Log, StateKey};
use va_connectors::objects::Objects;
use va_models::Embedders;
use va_parse_worker::Parser;

/// What operators are built with: the outside systems that they may use.
#[derive(Clone)]
pub struct Resources {
    pub objects: Objects,
    pub embedders: Arc<Embedders>,
    pub parser: Arc<dyn Parser>,
}

/// The declared half of an operator: its options, as users write them.
///
/// The struct is the only source of truth for the options: its doc comments are the reference page, its JSON Schema is
/// what `va pipeline validate` checks. Unknown fields must be refused (`#[serde(deny_unknown_fields)]`).
pub trait OperatorSpec: DeserializeOwned + JsonSchema + Send + 'static {
    /// The word after `type:`; also the name of the file.
    const KIND: &'static str;
    /// `include_str!` of `operators/examples/<kind>.yaml`.
    const EXAMPLE: &'static str;

    /// Pure: the schema of what it emits, or every problem with these options on these inputs.
    fn output(&self, inputs: &[SchemaRef], names: &dyn Names) -> Result<SchemaRef, Vec<Problem>>;

    /// Pure: whether all rows of a key must come to one task, and how. Where they are spread over partitions, the plan
    /// brings them together through a topic (`va_pipelines::shuffle`).
    fn by_key(&self) -> Option<ByKey> {
        None
    }

    /// Pure: whether the column comes out of it with the value that the row came in with. Then rows that were together by
    /// this column still are.
    fn keeps(&self, _column: &str) -> bool {
        false
    }

    /// May open what it needs; starts nothing. Only called after `output` was fine.
    fn build(
        self,
        inputs: &[SchemaRef],
        resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError>;
}

/// How an operator is cut in two where the rows of a key have to be brought together first:
/// `before -> topic, partitioned by the key -> after`. Both halves run in every task, in the same commits.
#[derive(Debug, Clone, PartialEq)]
pub struct ByKey {
    /// The columns that make the key; none: all rows are one key. They are columns of the input and of what `before` emits.
    pub columns: Vec<String>,
    /// Partitions of the topic, where the user says how many.
    pub partitions: Option<u32>,
    /// Options of the half that makes fewer rows of many, before they are sent. `None`: rows are sent as they are.
    pub before: Option<Value>,
    /// Options of the half that holds the state and takes the place of the whole. Its state must be that of the whole,
    /// because a pipeline can change between being cut and not.
    pub after: Value,
}

/// The running half of an operator.
#[async_trait]
pub trait Operator: Send {
    /// Takes one batch from input number `input` and emits what it makes of it through `cx`.
    ///
    /// Every row of `batch` must be accounted for with `cx`: emitted one to one, or reported by [`Cx::passed`] (it was
    /// turned into any number of rows, none included), [`Cx::filtered`], [`Cx::dead_letter`] or [`Cx::held`].
    async fn on_batch(
        &mut self,
        input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError>;

    /// The task has been given more partitions, whose rows may follow. Another task may have changed the state of their
    /// keys since this one last saw it: forget what is kept in memory of state that was handed over at a barrier.
    fn on_assigned(&mut self) {}

    /// Called at every checkpoint, after all rows before the barrier and before any after it. Emit what must be part
    /// of the checkpoint; rows that were held and are now let go are reported by [`Cx::released`].
    async fn on_barrier(&mut self, _cx: &mut Cx) -> Result<(), FlowError> {
        Ok(())
    }
}

/// A registered operator.
#[derive(Clone, Copy)]
pub struct OperatorEntry {
    pub description: Description,
    pub output: fn(&Value, &[SchemaRef], &dyn Names) -> Result<SchemaRef, Vec<Problem>>,
    /// `None` also for options that are wrong, which `output` says.
    pub by_key: fn(&Value) -> Option<ByKey>,
    pub keeps: fn(&Value, &str) -> bool,
    pub build: fn(&Value, &[SchemaRef], &Resources) -> Result<Box<dyn Operator>, FlowError>,
}

/// The registry line of an operator.
pub fn entry<S: OperatorSpec>(summary: &'static str) -> OperatorEntry {
    OperatorEntry {
        description: Description {
            kind: S::KIND,
            role: Role::Operator,
            summary,
            example: S::EXAMPLE,
            options: || schemars::schema_for!(S).to_value(),
        },
        output: |options, inputs, names| options_of::<S>(options)?.output(inputs, names),
        by_key: |options| options_of::<S>(options).ok()?.by_key(),
        keeps: |options, column| {
            options_of::<S>(options).is_ok_and(|options| options.keeps(column))
        },
        build: |options, inputs, resources| {
            options_of::<S>(options)
                .map_err(|problems| FlowError::fatal(S::KIND, problems_text(&problems)))?
                .build(inputs, resources)
        },
    }
}

fn options_of<S: DeserializeOwned>(options: &Value) -> Result<S, Vec<Problem>> {
    serde_json::from_value(options.clone())
        .map_err(|error| vec![Problem::new(&[], error.to_string())])
}

fn problems_text(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Where rows came from: kept along the graph so that a dead letter can name its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub partition: TopicPartition,
    /// Offset of the first source row that the batch was made from.
    pub base: Offset,
    pub rows: RowOrigin,
}

/// Which source row each row of a batch was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrigin {
    /// Row `i` is source row `base + i`.
    Aligned,
    /// Row `i` was made from the source row at the `i`th of these offsets.
    At(Arc<[u64]>),
    /// One source row was made into many, or many into one.
    Unknown,
}

impl Origin {
    /// The source row of row `row`; `None` when it is not known: a wrong offset would be worse.
    fn offset(&self, row: usize) -> Option<Offset> {
        match &self.rows {
            RowOrigin::Aligned => Some(Offset(self.base.0 + row as u64)),
            RowOrigin::At(offsets) => offsets.get(row).copied().map(Offset),
            RowOrigin::Unknown => None,
        }
    }
}

/// What flows along an edge.
#[derive(Debug, Clone)]
pub enum Message {
    Batch {
        batch: RecordBatch,
        origin: Option<Origin>,
    },
    /// A checkpoint: everything before it belongs to the checkpoint, nothing after it does.
    Barrier(u64),
    /// Rows of newly assigned partitions may follow.
    Assigned,
}

/// A row that failed.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// One row.
    pub row: RecordBatch,
    pub reason: String,
    pub partition: Option<TopicPartition>,
    /// Of the source row, where each row still comes from exactly one.
    pub offset: Option<Offset>,
}

/// Where the rows of an operator went. At a barrier `rows_in + released = passed + filtered + dead_lettered + held`
/// must hold, where everything is counted in *input* rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub rows_in: u64,
    /// Rows sent to each consumer.
    pub rows_out: u64,
    pub passed: u64,
    pub filtered: u64,
    pub dead_lettered: u64,
    /// Kept inside beyond the barrier, in the operator's state.
    pub held: u64,
}

impl Counts {
    /// Whether every input row is accounted for.
    pub fn conserved(&self) -> bool {
        self.rows_in == self.passed + self.filtered + self.dead_lettered + self.held
    }
}

/// An operator's only way to the outside: emitting, dead letters, state, time, cancellation.
pub struct Cx {
    outputs: Vec<mpsc::Sender<Message>>,
    tap: Arc<dyn Fn(&RecordBatch) + Send + Sync>,
    origin: Option<Origin>,
    /// Rows of the batch that is being worked on.
    input_rows: usize,
    counts: Counts,
    dead_letters: Vec<DeadLetter>,
    state: State,
    clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    cancelled: CancellationToken,
}

impl Cx {
    /// For the runtime: a context for one node of one task.
    pub fn new(
        outputs: Vec<mpsc::Sender<Message>>,
        tap: Arc<dyn Fn(&RecordBatch) + Send + Sync>,
        state: State,
        clock: Arc<dyn Fn() -> i64 + Send + Sync>,
        cancelled: CancellationToken,
    ) -> Self {
        Self {
            outputs,
            tap,
            origin: None,
            input_rows: 0,
            counts: Counts::default(),
            dead_letters: Vec::new(),
            state,
            clock,
            cancelled,
        }
    }

    /// Sends rows on; waits while a consumer is behind. Does not account for input rows, see [`Cx::passed`].
    pub async fn emit(&mut self, batch: RecordBatch) -> Result<(), FlowError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let origin = self.origin.clone().map(|origin| Origin {
            rows: RowOrigin::Unknown,
            ..origin
        });
        self.emit_with(batch, origin).await
    }

    /// [`Cx::emit`] for rows that were each made from one input row: row `i` from input row `rows[i]`, in order. Dead
    /// letters further down the graph then name the exact source row, and can be retried.
    pub async fn emit_from(&mut self, batch: RecordBatch, rows: &[usize]) -> Result<(), FlowError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let origin = self.origin.clone().map(|origin| {
            let whole = rows.len() == self.input_rows;
            let offsets = || -> Option<Arc<[u64]>> {
                rows.iter()
                    .map(|&row| Some(origin.offset(row)?.0))
                    .collect()
            };
            let rows = match &origin.rows {
                same if whole => same.clone(),
                _ => offsets().map_or(RowOrigin::Unknown, RowOrigin::At),
            };
            Origin { rows, ..origin }
        });
        self.emit_with(batch, origin).await
    }

    async fn emit_with(
        &mut self,
        batch: RecordBatch,
        origin: Option<Origin>,
    ) -> Result<(), FlowError> {
        self.counts.rows_out += batch.num_rows() as u64;
        (self.tap)(&batch);
        self.send(Message::Batch { batch, origin }).await
    }

    /// `rows` input rows were turned into what was emitted.
    pub fn passed(&mut self, rows: usize) {
        self.counts.passed += rows as u64;
    }

    /// `rows` input rows were dropped on purpose, as declared.
    pub fn filtered(&mut self, rows: usize) {
        self.counts.filtered += rows as u64;
    }

    /// `rows` input rows are kept in state beyond the next barrier.
    pub fn held(&mut self, rows: usize) {
        self.counts.held += rows as u64;
    }

    /// `rows` rows that were held before have now passed.
    pub fn released(&mut self, rows: usize) {
        self.counts.held -= rows as u64;
        self.counts.passed += rows as u64;
    }

    /// Row `row` of the *input* batch failed: it goes to the pipeline's dead-letter topic, with the reason, in the
    /// checkpoint's commit.
    pub fn dead_letter(&mut self, input: &RecordBatch, row: usize, reason: impl Into<String>) {
        self.counts.dead_lettered += 1;
        let origin = self.origin.as_ref();
        let partition = origin.map(|origin| origin.partition.clone());
        let offset = origin.and_then(|origin| origin.offset(row));
        self.dead_letters.push(DeadLetter {
            row: input.slice(row, 1),
            reason: reason.into(),
            partition,
            offset,
        });
    }

    /// Keyed state of this operator.
    pub fn state(&mut self) -> &mut State {
        &mut self.state
    }

    /// Processing time, UTC milliseconds. Comes from outside so that runs can be repeated exactly.
    pub fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// Fires when the task must stop; long work should look at it between steps.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// For the runtime: begins a batch.
    pub fn enter(&mut self, batch: &RecordBatch, origin: Option<Origin>) {
        self.counts.rows_in += batch.num_rows() as u64;
        self.input_rows = batch.num_rows();
        self.origin = origin;
    }

    /// For the runtime: tells consumers that rows of newly assigned partitions may follow.
    pub async fn assigned(&mut self) -> Result<(), FlowError> {
        self.send(Message::Assigned).await
    }

    /// For the runtime: begins a barrier; what is emitted now has no single origin.
    pub fn enter_barrier(&mut self) {
        self.origin = None;
    }

    /// For the runtime: sends the barrier on and hands over what belongs into the commit.
    pub async fn leave_barrier(&mut self, id: u64) -> Result<BarrierOutput, FlowError> {
        self.send(Message::Barrier(id)).await?;
        Ok(BarrierOutput {
            counts: self.counts,
            dead_letters: std::mem::take(&mut self.dead_letters),
            state: self.state.hand_over(id),
        })
    }

    async fn send(&mut self, message: Message) -> Result<(), FlowError> {
        for output in &self.outputs {
            tokio::select! {
                sent = output.send(message.clone()) => sent.map_err(|_| FlowError::Cancelled)?,
                () = self.cancelled.cancelled() => return Err(FlowError::Cancelled),
            }
        }
        Ok(())
    }
}

/// What an operator contributes to a checkpoint.
#[derive(Debug, Default)]
pub struct BarrierOutput {
    /// Since the start of the task.
    pub counts: Counts,
    pub dead_letters: Vec<DeadLetter>,
    /// `None` deletes.
    pub state: Vec<(StateKey, Option<Bytes>)>,
}

/// One operator's keyed state: committed values of the log, under the changes since.
pub struct State {
    log: Arc<dyn Log>,
    group: GroupId,
    namespace: String,
    /// Changes since the last barrier ...
    pending: HashMap<Bytes, Option<Bytes>, RandomState>,
    /// ... and those handed to the checkpoint that is being committed. The runtime begins a checkpoint only when the one
    /// before is committed, so two generations are enough.
    committing: HashMap<Bytes, Option<Bytes>, RandomState>,
    /// The checkpoint of `committing`.
    handed_over: u64,
    /// The task's last committed checkpoint. What belongs to it is the log's business again: the partition may have
    /// moved, and another task may have written the key since.
    committed: Arc<AtomicU64>,
}

impl State {
    /// For the runtime: the state of one node. `committed` is the task's last committed checkpoint, 0 before the first.
    pub fn new(
        log: Arc<dyn Log>,
        group: GroupId,
        namespace: String,
        committed: Arc<AtomicU64>,
    ) -> Self {
        Self {
            log,
            group,
            namespace,
            pending: HashMap::default(),
            committing: HashMap::default(),
            handed_over: 0,
            committed,
        }
    }

    /// The value as this operator last wrote it.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, FlowError> {
        let in_flight = self.handed_over > self.committed.load(Ordering::Acquire);
        let committing = in_flight.then(|| self.committing.get(key)).flatten();
        if let Some(value) = self.pending.get(key).or(committing) {
            return Ok(value.clone());
        }
        self.log
            .state_get(&self.key(Bytes::copy_from_slice(key)))
            .await
            .map_err(|error| FlowError::retriable("state", error))
    }

    /// [`State::get`] for several keys, in their order, in one go.
    pub async fn get_many(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, FlowError> {
        let in_flight = self.handed_over > self.committed.load(Ordering::Acquire);
        let here = |key: &Bytes| {
            let committing = in_flight.then(|| self.committing.get(key)).flatten();
            self.pending.get(key).or(committing).cloned()
        };
        let mut values: Vec<Option<Option<Bytes>>> = keys.iter().map(here).collect();
        let asked: Vec<Bytes> = keys
            .iter()
            .zip(&values)
            .filter(|(_, value)| value.is_none())
            .map(|(key, _)| key.clone())
            .collect();
        if !asked.is_empty() {
            let found = self
                .log
                .state_get_many(&self.group, &self.namespace, &asked)
                .await
                .map_err(|error| FlowError::retriable("state", error))?;
            let open = values.iter_mut().filter(|value| value.is_none());
            for (value, found) in open.zip(found) {
                *value = Some(found);
            }
        }
        Ok(values.into_iter().map(Option::flatten).collect())
    }

    /// Writes; becomes durable with the next checkpoint.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.pending.insert(key.into(), Some(value.into()));
    }

    /// Deletes; becomes durable with the next checkpoint.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.pending.insert(key.into(), None);
    }

    fn hand_over(&mut self, checkpoint: u64) -> Vec<(StateKey, Option<Bytes>)> {
        self.handed_over = checkpoint;
        self.committing = std::mem::take(&mut self.pending);
        self.committing
            .iter()
            .map(|(key, value)| (self.key(key.clone()), value.clone()))
            .collect()
    }

    fn key(&self, key: Bytes) -> StateKey {
        StateKey {
            group: self.group.clone(),
            namespace: self.namespace.clone(),
            key,
        }
    }
}
