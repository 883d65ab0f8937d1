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
type Fetched = (TopicPartition, Result<(Offset, RecordBatch, u64), LogError>);

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
        running.readers.values().for_each(JoinHandle::abort);
        if let Err(error) = result
            && !matches!(error, FlowError::Cancelled)
        {
            let _ = reports.send(Report::Failed { node, error }).await;
        }
    }
}

struct Running {
    feeder: Feeder,
    readers: HashMap<TopicPartition, JoinHandle<()>>,
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
                    if let Some((partition, item)) = item {
                        next = self.emit(partition, item, &mut fetched).await?;
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
                for (partition, from) in partitions {
                    self.positions.insert(partition.clone(), from);
                    let rows = self.feeder.plan.batch_rows_max;
                    let reader = read(
                        self.feeder.log.clone(),
                        partition.clone(),
                        from,
                        rows,
                        fetched.clone(),
                    );
                    self.readers.insert(partition, tokio::spawn(reader));
                }
            }
            Command::Revoke(partitions) => {
                for partition in partitions {
                    if let Some(reader) = self.readers.remove(&partition) {
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

    /// Emits a batch, together with those of the same partition that wait right behind it.
    async fn emit(
        &mut self,
        partition: TopicPartition,
        item: Result<(Offset, RecordBatch, u64), LogError>,
        fetched: &mut mpsc::Receiver<Fetched>,
    ) -> Result<Option<Fetched>, FlowError> {
        let (base, batch, skipped) =
            item.map_err(|error| FlowError::retriable(format!("read {partition}"), error))?;
        // A reader that was revoked may have left a batch in the channel.
        if !self.readers.contains_key(&partition) {
            return Ok(None);
        }
        if skipped > 0 {
            metrics::counter!("va_pipeline_rows_expired_total", "topic" => partition.topic.to_string())
                .increment(skipped);
            tracing::warn!(%partition, skipped, "retention removed rows before this pipeline read them");
        }
        let mut rows = batch.num_rows();
        let mut batches = vec![batch];
        let mut left = None;
        while rows < self.feeder.plan.batch_rows_max {
            match fetched.try_recv() {
                Ok((other, Ok((_, more, 0))))
                    if other == partition
                        && rows + more.num_rows() <= self.feeder.plan.batch_rows_max =>
                {
                    rows += more.num_rows();
                    batches.push(more);
                }
                Ok(other) => {
                    left = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let batch = match batches.as_slice() {
            [one] => one.clone(),
            many => concat_batches(&many[0].schema(), many)?,
        };
        (self.feeder.tap)(&batch);
        let origin = Origin {
            partition: partition.clone(),
            base,
            rows: RowOrigin::Aligned,
        };
        self.send(Message::Batch {
            batch,
            origin: Some(origin),
        })
        .await?;
        self.rows_out += rows as u64;
        self.rows_since_barrier += rows as u64;
        self.first_row_at.get_or_insert_with(Instant::now);
        self.positions
            .insert(partition, Offset(base.0 + rows as u64));
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
                let _ = fetched.send((partition, Err(error))).await;
                return;
            }
        };
        let mut skipped = result.skipped;
        for stored in result.batches {
            for start in (0..stored.batch.num_rows()).step_by(rows) {
                let part = stored
                    .batch
                    .slice(start, rows.min(stored.batch.num_rows() - start));
                let item = Ok((
                    Offset(stored.base.0 + start as u64),
                    part,
                    std::mem::take(&mut skipped),
                ));
                if fetched.send((partition.clone(), item)).await.is_err() {
                    return;
                }
            }
        }
        from = result.next;
    }
}
