//! The feeder of one source: reads the partitions that the task owns and puts batches and barriers into the graph.
//!
//! One small reader per partition waits in a blocking fetch; the feeder merges them through a bounded channel, so a
//! slow graph holds the readers up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use va_catalog::{CheckpointSpec, Offset, TopicPartition};
use va_connectors::flow::FlowError;
use va_connectors::log::{FetchLimit, Log, LogError};
use va_endpoints::SourcePlan;
use va_operators::{Counts, Message, Origin, RowOrigin};

use super::checkpoint::Ack;
use super::node::Report;

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
    /// Of the first row; the others follow without a gap.
    base: Offset,
    batch: RecordBatch,
    /// Rows before it that retention had removed.
    skipped: u64,
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
            rows_since_barrier: 0,
            first_row_at: None,
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
    rows_since_barrier: u64,
    first_row_at: Option<Instant>,
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
                    let rows = self.feeder.plan.batch_rows_max;
                    let reader = read(
                        self.feeder.log.clone(),
                        partition.clone(),
                        id,
                        from,
                        rows,
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
                self.rows_since_barrier = 0;
                self.first_row_at = None;
                self.wanted = false;
                let ack = Ack {
                    node: self.feeder.node,
                    counts: Counts {
                        rows_out: self.rows_out,
                        ..Counts::default()
                    },
                    offsets: self
                        .positions
                        .iter()
                        .map(|(p, o)| (p.clone(), *o))
                        .collect(),
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
            base,
            batch,
            skipped,
        } = item.map_err(|error| FlowError::retriable(format!("read {partition}"), error))?;
        if skipped > 0 {
            metrics::counter!("va_pipeline_rows_expired_total", "topic" => partition.topic.to_string())
                .increment(skipped);
            tracing::warn!(%partition, skipped, "retention removed rows before this pipeline read them");
        }
        let rows_max = self.feeder.plan.batch_rows_max;
        let mut rows = batch.num_rows();
        let mut parts = vec![(base, batch)];
        let mut left = None;
        while rows < rows_max {
            match fetched.try_recv() {
                Ok(Fetched {
                    reader: same,
                    item:
                        Ok(Stored {
                            base,
                            batch,
                            skipped: 0,
                        }),
                    ..
                }) if same == reader && rows + batch.num_rows() <= rows_max => {
                    rows += batch.num_rows();
                    parts.push((base, batch));
                }
                Ok(other) => {
                    left = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let next = parts.last().map_or(base, |(base, batch)| {
            Offset(base.0 + batch.num_rows() as u64)
        });
        let row_origin = origin_of(&parts);
        let batch = match parts.as_slice() {
            [(_, one)] => one.clone(),
            many => concat_batches(&many[0].1.schema(), many.iter().map(|(_, batch)| batch))?,
        };
        (self.feeder.tap)(&batch);
        let origin = Origin {
            partition: partition.clone(),
            base,
            rows: row_origin,
        };
        self.send(Message::Batch {
            batch,
            origin: Some(origin),
        })
        .await?;
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
fn origin_of(parts: &[(Offset, RecordBatch)]) -> RowOrigin {
    let end = |(base, batch): &(Offset, RecordBatch)| base.0 + batch.num_rows() as u64;
    if parts.windows(2).all(|pair| end(&pair[0]) == pair[1].0.0) {
        return RowOrigin::Aligned;
    }
    RowOrigin::At(parts.iter().flat_map(|part| part.0.0..end(part)).collect())
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

/// Reads one partition for ever, in batches of at most `rows` rows.
async fn read(
    log: Arc<dyn Log>,
    partition: TopicPartition,
    reader: ReaderId,
    mut from: Offset,
    rows: usize,
    fetched: mpsc::Sender<Fetched>,
) {
    loop {
        let limit = FetchLimit {
            rows,
            ..FetchLimit::default()
        };
        let result = match log.fetch(&partition, from, limit, FETCH_WAIT).await {
            Ok(result) => result,
            Err(error) => {
                let item = Err(error);
                // Without a receiver the feeder has ended, and with it the need.
                let _ = fetched
                    .send(Fetched {
                        partition,
                        reader,
                        item,
                    })
                    .await;
                return;
            }
        };
        let mut skipped = result.skipped;
        for stored in result.batches {
            for start in (0..stored.batch.num_rows()).step_by(rows) {
                let part = stored
                    .batch
                    .slice(start, rows.min(stored.batch.num_rows() - start));
                let item = Fetched {
                    partition: partition.clone(),
                    reader,
                    item: Ok(Stored {
                        base: Offset(stored.base.0 + start as u64),
                        batch: part,
                        skipped: std::mem::take(&mut skipped),
                    }),
                };
                if fetched.send(item).await.is_err() {
                    return;
                }
            }
        }
        from = result.next;
    }
}
