//! The tokio task of one operator or sink: receives, aligns barriers, calls the component, acknowledges.

use arrow::record_batch::RecordBatch;
use futures::future::select_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use va_connectors::flow::{CheckpointId, FlowError, Sink};
use va_operators::{Counts, Cx, Message, Operator, Origin};

use super::checkpoint::Ack;
use super::traces::Work;

/// What a node tells the coordinator.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a checkpoint and node")]
pub enum Report {
    Ack {
        checkpoint: u64,
        ack: Ack,
    },
    /// A source has rows that wait for a checkpoint.
    Wanted,
    Failed {
        node: usize,
        error: FlowError,
    },
}

/// The receiving half of a node: one channel an input, barriers aligned.
pub struct Inputs {
    channels: Vec<mpsc::Receiver<Message>>,
    /// The barrier that an input has reached; it is not read before all inputs have.
    reached: Vec<Option<u64>>,
    rows: Vec<u64>,
}

/// What comes out of [`Inputs`].
pub enum Received {
    Batch {
        input: usize,
        batch: RecordBatch,
        origin: Option<Origin>,
    },
    /// All inputs have reached this barrier.
    Barrier(u64),
    /// Rows of newly assigned partitions may follow.
    Assigned,
    /// Every producer is gone.
    End,
}

impl Inputs {
    pub fn new(channels: Vec<mpsc::Receiver<Message>>) -> Self {
        let inputs = channels.len();
        Self {
            channels,
            reached: vec![None; inputs],
            rows: vec![0; inputs],
        }
    }

    /// Waits for the next batch or complete barrier.
    pub async fn next(&mut self) -> Received {
        loop {
            let open: Vec<_> = self
                .channels
                .iter_mut()
                .enumerate()
                .filter(|(input, _)| self.reached[*input].is_none())
                .map(|(input, channel)| Box::pin(async move { (input, channel.recv().await) }))
                .collect();
            let ((input, message), _, rest) = select_all(open).await;
            drop(rest);
            match message {
                Some(Message::Batch { batch, origin }) => {
                    self.rows[input] += batch.num_rows() as u64;
                    return Received::Batch {
                        input,
                        batch,
                        origin,
                    };
                }
                Some(Message::Barrier(id)) => {
                    self.reached[input] = Some(id);
                    if self.reached.iter().all(|reached| *reached == Some(id)) {
                        self.reached.fill(None);
                        return Received::Barrier(id);
                    }
                }
                Some(Message::Assigned) => return Received::Assigned,
                None => return Received::End,
            }
        }
    }
}

/// Runs an operator until its inputs end, it fails, or the task is cancelled.
pub async fn run_operator(
    node: usize,
    mut operator: Box<dyn Operator>,
    mut inputs: Inputs,
    mut cx: Cx,
    reports: mpsc::Sender<Report>,
    busy: metrics::Counter,
) {
    let work = async {
        let mut done: Option<Work> = None;
        loop {
            match inputs.next().await {
                Received::Batch {
                    input,
                    batch,
                    origin,
                } => {
                    cx.enter(&batch, origin);
                    let (started, rows) = (std::time::Instant::now(), batch.num_rows());
                    operator.on_batch(input, batch, &mut cx).await?;
                    busy.increment(started.elapsed().as_micros() as u64);
                    Work::add(&mut done, started, rows as u64);
                }
                Received::Barrier(checkpoint) => {
                    let started = std::time::Instant::now();
                    cx.enter_barrier();
                    operator.on_barrier(&mut cx).await?;
                    if done.is_some() {
                        Work::add(&mut done, started, 0);
                    }
                    let output = cx.leave_barrier(checkpoint).await?;
                    let ack = Ack {
                        node,
                        counts: output.counts,
                        rows_in: inputs.rows.clone(),
                        dead_letters: output.dead_letters,
                        state: output.state,
                        work: done.take(),
                        ..Ack::default()
                    };
                    report(&reports, Report::Ack { checkpoint, ack }).await?;
                }
                Received::Assigned => {
                    operator.on_assigned();
                    cx.assigned().await?;
                }
                Received::End => return Ok(()),
            }
        }
    };
    finish(node, work.await, &reports).await;
}

/// Runs a sink until its input ends, it fails, or the task is cancelled.
pub async fn run_sink(
    node: usize,
    mut sink: Box<dyn Sink>,
    mut inputs: Inputs,
    cancelled: CancellationToken,
    reports: mpsc::Sender<Report>,
    busy: metrics::Counter,
) {
    let work = async {
        let mut done: Option<Work> = None;
        loop {
            match inputs.next().await {
                Received::Batch { batch, .. } => {
                    let (started, rows) = (std::time::Instant::now(), batch.num_rows());
                    sink.write(batch).await?;
                    busy.increment(started.elapsed().as_micros() as u64);
                    Work::add(&mut done, started, rows as u64);
                }
                Received::Barrier(checkpoint) => {
                    let started = std::time::Instant::now();
                    let prepared = sink.prepare(CheckpointId(checkpoint)).await?;
                    busy.increment(started.elapsed().as_micros() as u64);
                    if done.is_some() {
                        Work::add(&mut done, started, 0);
                    }
                    let rows: u64 = inputs.rows.iter().sum();
                    let counts = Counts {
                        rows_in: rows,
                        passed: rows,
                        ..Counts::default()
                    };
                    let ack = Ack {
                        node,
                        counts,
                        rows_in: inputs.rows.clone(),
                        appends: prepared.appends,
                        collections: prepared.collections,
                        work: done.take(),
                        ..Ack::default()
                    };
                    report(&reports, Report::Ack { checkpoint, ack }).await?;
                }
                // Sinks keep nothing by key.
                Received::Assigned => {}
                Received::End => return Ok(()),
            }
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = cancelled.cancelled() => Ok(()),
    };
    finish(node, result, &reports).await;
}

async fn report(reports: &mpsc::Sender<Report>, report: Report) -> Result<(), FlowError> {
    reports.send(report).await.map_err(|_| FlowError::Cancelled)
}

async fn finish(node: usize, result: Result<(), FlowError>, reports: &mpsc::Sender<Report>) {
    match result {
        Ok(()) | Err(FlowError::Cancelled) => {}
        Err(error) => {
            // When the coordinator is gone, the task is being torn down and nobody needs the report.
            let _ = reports.send(Report::Failed { node, error }).await;
        }
    }
}
