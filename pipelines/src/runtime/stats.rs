//! What is known of a running pipeline: for `va pipeline status`, `/metrics` and tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use va_catalog::NodeName;
use va_operators::{Counts, Message};

use super::checkpoint::Ack;
use crate::plan::Plan;

/// Rows through one node since the pipeline was started in this process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NodeStats {
    pub rows_in: u64,
    pub rows_out: u64,
    pub filtered: u64,
    pub dead_lettered: u64,
}

/// Progress of one pipeline, over all its tasks and restarts.
pub struct Stats {
    pipeline: String,
    inner: Mutex<Inner>,
    /// Number of committed checkpoints: changes wake whoever waits for progress.
    checkpoints: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<NodeName, NodeStats>,
    /// Counts of the running task at its last checkpoint; what is new since goes into `nodes`.
    seen: BTreeMap<NodeName, Counts>,
    edges: BTreeMap<(NodeName, NodeName), mpsc::WeakSender<Message>>,
    last_checkpoint_at_ms: Option<i64>,
    last_checkpoint_seconds: f64,
    violations: u64,
}

impl Stats {
    pub fn new(pipeline: String) -> Self {
        Self {
            pipeline,
            inner: Mutex::default(),
            checkpoints: watch::Sender::new(0),
        }
    }

    /// Notes an edge so that its fill can be shown.
    pub fn watch_edge(&self, from: &NodeName, to: &NodeName, sender: mpsc::WeakSender<Message>) {
        self.lock().edges.insert((from.clone(), to.clone()), sender);
    }

    /// A task starts again: its counts begin at 0.
    pub fn task_started(&self) {
        self.lock().seen.clear();
    }

    /// Notes a committed checkpoint.
    pub fn committed(&self, plan: &Plan, acks: &[Ack], now_ms: i64, seconds: f64) {
        let mut inner = self.lock();
        for (node, ack) in plan.nodes.iter().zip(acks) {
            let name = &node.node.name;
            let before = inner
                .seen
                .insert(name.clone(), ack.counts)
                .unwrap_or_default();
            let new = |now: u64, then: u64| now.saturating_sub(then);
            let rows_in = new(ack.counts.rows_in, before.rows_in);
            let rows_out = new(ack.counts.rows_out, before.rows_out);
            let filtered = new(ack.counts.filtered, before.filtered);
            let dead_lettered = new(ack.counts.dead_lettered, before.dead_lettered);
            let stats = inner.nodes.entry(name.clone()).or_default();
            stats.rows_in += rows_in;
            stats.rows_out += rows_out;
            stats.filtered += filtered;
            stats.dead_lettered += dead_lettered;
            for (outcome, rows) in [
                ("in", rows_in),
                ("out", rows_out),
                ("filtered", filtered),
                ("dead_lettered", dead_lettered),
            ] {
                metrics::counter!("va_pipeline_rows_total", "pipeline" => self.pipeline.clone(),
                    "node" => name.to_string(), "outcome" => outcome)
                .increment(rows);
            }
            metrics::gauge!("va_pipeline_rows_held", "pipeline" => self.pipeline.clone(), "node" => name.to_string())
                .set(ack.counts.held as f64);
        }
        for ((from, to), sender) in &inner.edges {
            metrics::gauge!("va_pipeline_queue_fill", "pipeline" => self.pipeline.clone(),
                "from" => from.to_string(), "to" => to.to_string())
            .set(fill(sender));
        }
        inner.last_checkpoint_at_ms = Some(now_ms);
        inner.last_checkpoint_seconds = seconds;
        drop(inner);
        metrics::histogram!("va_pipeline_checkpoint_seconds", "pipeline" => self.pipeline.clone())
            .record(seconds);
        self.checkpoints.send_modify(|n| *n += 1);
    }

    /// Notes a checkpoint at which rows were unaccounted for.
    pub fn violated(&self) {
        self.lock().violations += 1;
        metrics::counter!("va_pipeline_conservation_violations_total", "pipeline" => self.pipeline.clone())
            .increment(1);
    }

    /// Checkpoints at which rows were unaccounted for; 0 unless something is wrong.
    pub fn violations(&self) -> u64 {
        self.lock().violations
    }

    /// How full the queue between two nodes is, 0 to 1, by `from → to`.
    pub fn queues(&self) -> BTreeMap<String, f64> {
        let inner = self.lock();
        let edges = inner.edges.iter();
        edges
            .map(|((from, to), sender)| (format!("{from} → {to}"), fill(sender)))
            .collect()
    }

    /// Changes with every committed checkpoint.
    pub fn checkpoints(&self) -> watch::Receiver<u64> {
        self.checkpoints.subscribe()
    }

    /// Rows through every node so far.
    pub fn nodes(&self) -> BTreeMap<NodeName, NodeStats> {
        self.lock().nodes.clone()
    }

    /// When the last checkpoint was committed (UTC milliseconds), and how long it took (seconds).
    pub fn last_checkpoint(&self) -> Option<(i64, f64)> {
        let inner = self.lock();
        inner
            .last_checkpoint_at_ms
            .map(|at| (at, inner.last_checkpoint_seconds))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 0 for a queue whose nodes have ended.
fn fill(sender: &mpsc::WeakSender<Message>) -> f64 {
    sender.upgrade().map_or(0.0, |sender| {
        1.0 - sender.capacity() as f64 / sender.max_capacity().max(1) as f64
    })
}
