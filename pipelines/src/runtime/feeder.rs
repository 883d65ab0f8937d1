//! The feeder of one source: reads the partitions that the task owns and puts batches and barriers into the graph.
//!
//! One small reader per partition waits in a blocking fetch; the feeder merges them through a bounded channel, so a
//! slow graph holds the readers up. Messages of other programs are decoded by the readers, beside each other; one that
//! cannot be read is a dead letter of the source, in the checkpoint that moves past it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use va_catalog::{CheckpointSpec, Offset, TopicPartition};
use va_connectors::flow::FlowError;
use va_connectors::log::{FetchLimit, FetchedRecords, Log, LogError};
use va_endpoints::SourcePlan;
use va_formats::source::{RecordsReader, RecordsSpec};
use va_formats::{FormatError, fit_columns};
use va_operators::{Counts, DeadLetter, Message, Origin, RowOrigin};

use super::checkpoint::Ack;
use super::node::Report;
use super::traces::{Links, Work, trace_of};

/// Batches that readers may have fetched ahead.
const AHEAD: usize = 4;
/// How long one blocking fetch waits before it asks again; only bounds how long a lost wake-up could hurt.
const FETCH_WAIT: Duration = Duration::from_secs(30);

/// What the coordinator asks of a feeder.
#[derive(Debug)]
pub enum Command {
    /// Read these partitions too, from these offsets.
    Assign(Vec<(TopicPartition, Offset)>),
    /// Stop reading these partitions.
    Revoke(Vec<TopicPartition>),
    /// Emit nothing more; barriers still pass.
    Pause,
    Barrier(u64),
}

/// A batch from a reader, or why it cannot go on.
struct Fetched {
    partition: TopicPartition,
    reader: ReaderId,
    item: Result<Stored, LogError>,
}

struct Stored {
    rows: Part,
    /// Where to go on behind it.
    next: Offset,
    /// Rows before it that retention had removed.
    skipped: u64,
    /// Messages of this part that are no rows.
    letters: Vec<DeadLetter>,
    /// What they were sent in.
    trace: Option<SpanContext>,
}

/// Rows that were read together.
struct Part {
    batch: RecordBatch,
    /// Of the first row.
    base: Offset,
    /// Of each row, where they do not follow one another.
    offsets: Option<Vec<u64>>,
}

impl Part {
    fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        let aligned = self.base.0..self.base.0 + self.batch.num_rows() as u64;
        let (given, aligned) = match &self.offsets {
            Some(offsets) => (offsets.as_slice(), 0..0),
            None => (&[][..], aligned),
        };
        given.iter().copied().chain(aligned)
    }
}

/// Which reader a batch is from: a partition that is given up and comes back is read by another one, and what the first
/// left in the channel must not count for the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReaderId(u64);

/// Everything that a feeder works with.
pub struct Feeder {
    pub node: usize,
    pub plan: SourcePlan,
    pub checkpoint: CheckpointSpec,
    pub log: Arc<dyn Log>,
    pub outputs: Vec<mpsc::Sender<Message>>,
    pub tap: Arc<dyn Fn(&RecordBatch) + Send + Sync>,
    pub commands: mpsc::Receiver<Command>,
    pub reports: mpsc::Sender<Report>,
    pub cancelled: CancellationToken,
}

impl Feeder {
    /// Runs until cancelled or until the coordinator is gone.
    pub async fn run(self) {
        let node = self.node;
        let reports = self.reports.clone();
        let cancelled = self.cancelled.clone();
        let mut running = Running {
            feeder: self,
            readers: HashMap::new(),
            last_reader: 0,
            positions: HashMap::new(),
            paused: false,
            rows_out: 0,
            dead_lettered: 0,
            dead_letters: Vec::new(),
            rows_since_barrier: 0,
            first_row_at: None,
            links: Links::default(),
            wanted: false,
        };
        let result = tokio::select! {
            result = running.run() => result,
            () = cancelled.cancelled() => Ok(()),
        };
        running
            .readers
            .values()
            .for_each(|(_, reader)| reader.abort());
        if let Err(error) = result
            && !matches!(error, FlowError::Cancelled)
        {
            let _ = reports.send(Report::Failed { node, error }).await;
        }
    }
}

struct Running {
    feeder: Feeder,
    readers: HashMap<TopicPartition, (ReaderId, JoinHandle<()>)>,
    last_reader: u64,
    /// Next offset to emit.
    positions: HashMap<TopicPartition, Offset>,
    paused: bool,
    rows_out: u64,
    dead_lettered: u64,
    /// For the next barrier.
    dead_letters: Vec<DeadLetter>,
    rows_since_barrier: u64,
    first_row_at: Option<Instant>,
    /// The traces that the rows since the last barrier came with.
    links: Links,
    /// A checkpoint was asked for and its barrier has not come yet.
    wanted: bool,
}

impl Running {
    async fn run(&mut self) -> Result<(), FlowError> {
        let (fetched_tx, mut fetched) = mpsc::channel::<Fetched>(AHEAD);
        // A batch that was taken out of the channel but belongs to the next message.
        let mut next: Option<Fetched> = None;
        loop {
            let due = self
                .first_row_at
                .map(|at| at + Duration::from_millis(self.feeder.checkpoint.interval_ms));
            tokio::select! {
                biased;
                command = self.feeder.commands.recv() => match command {
                    Some(command) => self.obey(command, &fetched_tx).await?,
                    None => return Ok(()),
                },
                () = sleep_until(due), if !self.wanted => self.want().await?,
                item = take(&mut next, &mut fetched), if !self.paused => {
                    if let Some(item) = item {
                        next = self.emit(item, &mut fetched).await?;
                    }
                    let full = self.rows_since_barrier >= self.feeder.checkpoint.rows_max;
                    let idle = next.is_none() && fetched.is_empty();
                    if self.rows_since_barrier > 0 && !self.wanted && (full || idle) {
                        self.want().await?;
                    }
                }
            }
        }
    }

    async fn want(&mut self) -> Result<(), FlowError> {
        self.wanted = true;
        self.feeder
            .reports
            .send(Report::Wanted)
            .await
            .map_err(|_| FlowError::Cancelled)
    }

    async fn obey(
        &mut self,
        command: Command,
        fetched: &mpsc::Sender<Fetched>,
    ) -> Result<(), FlowError> {
        match command {
            Command::Assign(partitions) => {
                if !partitions.is_empty() {
                    self.send(Message::Assigned).await?;
                }
                for (partition, from) in partitions {
                    self.positions.insert(partition.clone(), from);
                    self.last_reader += 1;
                    let id = ReaderId(self.last_reader);
                    let reader = read(
                        self.feeder.log.clone(),
                        self.feeder.plan.clone(),
                        partition.clone(),
                        id,
                        from,
                        fetched.clone(),
                    );
                    self.readers.insert(partition, (id, tokio::spawn(reader)));
                }
            }
            Command::Revoke(partitions) => {
                for partition in partitions {
                    if let Some((_, reader)) = self.readers.remove(&partition) {
                        reader.abort();
                    }
                }
            }
            Command::Pause => self.paused = true,
            Command::Barrier(checkpoint) => {
                self.send(Message::Barrier(checkpoint)).await?;
                let rows = std::mem::take(&mut self.rows_since_barrier);
                let first = self.first_row_at.take();
                self.wanted = false;
                let ack = Ack {
                    node: self.feeder.node,
                    counts: Counts {
                        rows_out: self.rows_out,
                        dead_lettered: self.dead_lettered,
                        ..Counts::default()
                    },
                    dead_letters: std::mem::take(&mut self.dead_letters),
                    offsets: self
                        .positions
                        .iter()
                        .map(|(p, o)| (p.clone(), *o))
                        .collect(),
                    links: std::mem::take(&mut self.links),
                    work: first.map(|first| Work::reading(first.into_std(), rows)),
                    ..Ack::default()
                };
                // Partitions that were given up belong to this checkpoint for the last time.
                self.positions
                    .retain(|partition, _| self.readers.contains_key(partition));
                let report = Report::Ack { checkpoint, ack };
                self.feeder
                    .reports
                    .send(report)
                    .await
                    .map_err(|_| FlowError::Cancelled)?;
            }
        }
        Ok(())
    }

    fn is_read_by(&self, fetched: &Fetched) -> bool {
        self.readers
            .get(&fetched.partition)
            .is_some_and(|(reader, _)| *reader == fetched.reader)
    }

    /// Emits a batch, together with those of the same partition that wait right behind it.
    async fn emit(
        &mut self,
        first: Fetched,
        fetched: &mut mpsc::Receiver<Fetched>,
    ) -> Result<Option<Fetched>, FlowError> {
        if !self.is_read_by(&first) {
            return Ok(None);
        }
        let Fetched {
            partition,
            reader,
            item,
        } = first;
        let Stored {
            rows: part,
            mut next,
            skipped,
            letters,
            trace,
        } = item.map_err(|error| FlowError::retriable(format!("read {partition}"), error))?;
        if skipped > 0 {
            metrics::counter!("va_pipeline_rows_expired_total", "topic" => partition.topic.to_string())
                .increment(skipped);
            tracing::warn!(%partition, skipped, "retention removed rows before this pipeline read them");
        }
        let rows_max = self.feeder.plan.batch_rows_max;
        let mut rows = part.batch.num_rows();
        let mut parts = vec![part];
        let mut failed = letters;
        self.links.add(trace);
        let mut left = None;
        while rows < rows_max {
            match fetched.try_recv() {
                Ok(Fetched {
                    reader: same,
                    item:
                        Ok(Stored {
                            rows: part,
                            next: behind,
                            skipped: 0,
                            letters,
                            trace,
                        }),
                    ..
                }) if same == reader && rows + part.batch.num_rows() <= rows_max => {
                    rows += part.batch.num_rows();
                    next = behind;
                    parts.push(part);
                    failed.extend(letters);
                    self.links.add(trace);
                }
                Ok(other) => {
                    left = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        self.dead_lettered += failed.len() as u64;
        self.rows_since_barrier += failed.len() as u64;
        self.dead_letters.extend(failed);
        parts.retain(|part| part.batch.num_rows() > 0);
        if let Some(base) = parts.first().map(|part| part.base) {
            let origin = Origin {
                partition: partition.clone(),
                base,
                rows: origin_of(&parts),
            };
            let batch = match parts.as_slice() {
                [one] => one.batch.clone(),
                many => {
                    let batches = many.iter().map(|part| &part.batch);
                    concat_batches(&many[0].batch.schema(), batches)?
                }
            };
            (self.feeder.tap)(&batch);
            self.send(Message::Batch {
                batch,
                origin: Some(origin),
            })
            .await?;
        }
        self.rows_out += rows as u64;
        self.rows_since_barrier += rows as u64;
        self.first_row_at.get_or_insert_with(Instant::now);
        self.positions.insert(partition, next);
        Ok(left)
    }

    async fn send(&self, message: Message) -> Result<(), FlowError> {
        for output in &self.feeder.outputs {
            output
                .send(message.clone())
                .await
                .map_err(|_| FlowError::Cancelled)?;
        }
        Ok(())
    }
}

/// Which offset each row of the parts has; a log may leave gaps between what it stored together.
fn origin_of(parts: &[Part]) -> RowOrigin {
    let end = |part: &Part| part.base.0 + part.batch.num_rows() as u64;
    let aligned = parts.iter().all(|part| part.offsets.is_none());
    if aligned && parts.windows(2).all(|pair| end(&pair[0]) == pair[1].base.0) {
        return RowOrigin::Aligned;
    }
    RowOrigin::At(parts.iter().flat_map(Part::offsets).collect())
}

async fn take(
    next: &mut Option<Fetched>,
    fetched: &mut mpsc::Receiver<Fetched>,
) -> Option<Fetched> {
    match next.take() {
        Some(item) => Some(item),
        None => fetched.recv().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Reads one partition for ever.
async fn read(
    log: Arc<dyn Log>,
    plan: SourcePlan,
    partition: TopicPartition,
    reader: ReaderId,
    from: Offset,
    fetched: mpsc::Sender<Fetched>,
) {
    let to = Readings {
        partition,
        reader,
        fetched,
    };
    let rows = plan.batch_rows_max;
    let result = match &plan.records {
        None => read_batches(log, from, rows, &plan.schema, &to).await,
        Some(records) => read_records(log, from, rows, records, &to).await,
    };
    if let Err(error) = result {
        // Without a receiver the feeder has ended, and with it the need.
        let _ = to.send(Err(error)).await;
    }
}

/// Where a reader's parts go.
struct Readings {
    partition: TopicPartition,
    reader: ReaderId,
    fetched: mpsc::Sender<Fetched>,
}

impl Readings {
    /// False when nobody wants more.
    async fn send(&self, item: Result<Stored, LogError>) -> bool {
        let item = Fetched {
            partition: self.partition.clone(),
            reader: self.reader,
            item,
        };
        self.fetched.send(item).await.is_ok()
    }
}

/// Reads batches of this platform, in parts of at most `rows` rows, until nobody wants more. One that was written with
/// another schema is brought into the source's; where that cannot be, its rows are dead letters.
async fn read_batches(
    log: Arc<dyn Log>,
    mut from: Offset,
    rows: usize,
    schema: &SchemaRef,
    to: &Readings,
) -> Result<(), LogError> {
    let limit = FetchLimit {
        rows,
        ..FetchLimit::default()
    };
    loop {
        let result = log.fetch(&to.partition, from, limit, FETCH_WAIT).await?;
        let mut skipped = result.skipped;
        for stored in result.batches {
            let trace = trace_of(&stored.batch);
            for start in (0..stored.batch.num_rows()).step_by(rows) {
                let part = stored
                    .batch
                    .slice(start, rows.min(stored.batch.num_rows() - start));
                let base = Offset(stored.base.0 + start as u64);
                let next = Offset(base.0 + part.num_rows() as u64);
                let mut letters = Vec::new();
                let batch = if has_columns(&part, schema) {
                    part
                } else {
                    match fit_columns(&part, schema) {
                        Ok(batch) => batch,
                        Err(reason) => {
                            letters.extend((0..part.num_rows()).map(|row| DeadLetter {
                                row: part.slice(row, 1),
                                reason: reason.clone(),
                                partition: Some(to.partition.clone()),
                                offset: Some(Offset(base.0 + row as u64)),
                            }));
                            RecordBatch::new_empty(schema.clone())
                        }
                    }
                };
                let item = Stored {
                    next,
                    rows: Part {
                        batch,
                        base,
                        offsets: None,
                    },
                    skipped: std::mem::take(&mut skipped),
                    letters,
                    trace: trace.clone(),
                };
                if !to.send(Ok(item)).await {
                    return Ok(());
                }
            }
        }
        from = result.next;
    }
}

/// Whether the batch has just these columns. Nothing is asked of nulls: that is what writing it has checked.
fn has_columns(batch: &RecordBatch, schema: &SchemaRef) -> bool {
    let found = batch.schema_ref().fields();
    found.len() == schema.fields().len()
        && found
            .iter()
            .zip(schema.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type())
}

/// Reads messages of other programs and decodes them, until nobody wants more.
async fn read_records(
    log: Arc<dyn Log>,
    mut from: Offset,
    rows: usize,
    spec: &RecordsSpec,
    to: &Readings,
) -> Result<(), LogError> {
    let limit = FetchLimit {
        rows,
        ..FetchLimit::default()
    };
    let wrong = |error: FormatError| LogError::Config(error.to_string());
    let mut reader = spec.reader().map_err(wrong)?;
    loop {
        let result = log
            .fetch_records(&to.partition, from, limit, FETCH_WAIT)
            .await?;
        from = result.next;
        if result.batch.num_rows() == 0 {
            continue;
        }
        // An outside system that does not answer: the task starts again from its last checkpoint, after a pause.
        reader.prepare(&result.batch).await.map_err(wrong)?;
        let partition = to.partition.clone();
        let decoding = tokio::task::spawn_blocking(move || {
            let read = stored(&mut reader, partition, result);
            (reader, read)
        });
        let (back, read) = decoding
            .await
            .map_err(|e| LogError::Corrupt(format!("decoding ended early: {e}")))?;
        reader = back;
        // In one part, also when messages hold many rows each: a position can only be between messages.
        if !to.send(Ok(read.map_err(wrong)?)).await {
            return Ok(());
        }
    }
}

/// Decodes what was fetched. Takes time on the CPU.
fn stored(
    reader: &mut RecordsReader,
    partition: TopicPartition,
    fetched: FetchedRecords,
) -> Result<Stored, FormatError> {
    let FetchedRecords {
        batch,
        offsets,
        next,
        skipped,
        ..
    } = fetched;
    let rows = reader.read(&batch, partition.partition, &offsets)?;
    let of_rows: Vec<u64> = match &rows.records {
        Some(records) => records
            .iter()
            .map(|record| offsets[*record as usize].0)
            .collect(),
        None => offsets.iter().map(|offset| offset.0).collect(),
    };
    let base = Offset(of_rows.first().copied().unwrap_or(next.0));
    let is_aligned = of_rows
        .iter()
        .enumerate()
        .all(|(i, offset)| *offset == base.0 + i as u64);
    let letters = rows.failures.into_iter().map(|failure| DeadLetter {
        row: batch.slice(failure.payload, 1),
        reason: failure.reason,
        partition: Some(partition.clone()),
        offset: offsets.get(failure.payload).copied(),
    });
    Ok(Stored {
        letters: letters.collect(),
        rows: Part {
            batch: rows.batch,
            base,
            offsets: (!is_aligned).then_some(of_rows),
        },
        next,
        skipped,
        // Each message has one of its own in its headers, which is the rows' business (`_headers`).
        trace: None,
    })
}
