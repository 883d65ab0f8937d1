//! One task: a pipeline's graph over a set of source partitions, and the coordinator that checkpoints it.
//!
//! The coordinator owns every tokio task of the graph and ends them all before it returns. It begins a checkpoint only
//! when the one before is committed, so at most one is in flight.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use va_catalog::{CollectionRef, Offset, Partition, Role, TopicPartition};
use va_connectors::flow::FlowError;
use va_connectors::log::{GroupId, Log, LogError, Member, Rebalance, Target, partition_of};
use va_endpoints::{SourcePlan, StartAt};
use va_operators::{Cx, DeadLetter, Message, State};

use super::checkpoint::{Ack, Pending, Progress, conservation, dead_letter_batch};
use super::feeder::{Command, Feeder};
use super::node::{Inputs, Report, run_operator, run_sink};
use super::stats::Stats;
use super::tap::Taps;
use super::traces;
use crate::plan::Plan;

/// Messages that may wait on one edge.
const EDGE_MESSAGES: usize = 2;
/// How long a stopping task waits for its last checkpoint; what is not in it is replayed at the next start.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Checkpoints between two removals of what was consumed of hidden topics.
const TRIM_EVERY: u32 = 100;
/// Pauses before a commit that did not happen is repeated.
const COMMIT_PAUSES_MS: [u64; 3] = [1_000, 2_000, 4_000];

/// Everything that a task works with.
#[derive(Clone)]
pub struct Setup {
    pub plan: Arc<Plan>,
    pub log: Arc<dyn Log>,
    pub operators: va_operators::Resources,
    pub endpoints: va_endpoints::Resources,
    pub taps: Taps,
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    pub stats: Arc<Stats>,
}

/// Runs the task until it is stopped or fails.
pub async fn run(setup: &Setup, stop: &CancellationToken) -> Result<(), FlowError> {
    let group = GroupId(setup.plan.graph.name.clone());
    let mut topics: Vec<_> = setup
        .plan
        .nodes
        .iter()
        .filter_map(|node| Some(node.source.as_ref()?.topic.clone()))
        .collect();
    topics.sort();
    topics.dedup();
    let member = setup
        .log
        .join(&group, &topics)
        .await
        .map_err(|error| FlowError::retriable("join the group", error))?;

    let cancelled = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let committed = Arc::new(AtomicU64::new(0));
    let started = start_nodes(setup, &group, &committed, &cancelled, &mut tasks);
    let result = match started {
        Ok((feeders, reports)) => {
            let mut coordinator = Coordinator {
                setup,
                group,
                member: member.as_ref(),
                feeders,
                pending: None,
                begun: None,
                progress: Progress::default(),
                committed,
                until_trim: TRIM_EVERY,
            };
            coordinator.run(reports, &mut tasks, stop).await
        }
        Err(error) => Err(error),
    };
    cancelled.cancel();
    while tasks.join_next().await.is_some() {}
    result
}

type Feeders = Vec<(usize, mpsc::Sender<Command>)>;

fn start_nodes(
    setup: &Setup,
    group: &GroupId,
    committed: &Arc<AtomicU64>,
    cancelled: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(Feeders, mpsc::Receiver<Report>), FlowError> {
    let plan = &setup.plan;
    let pipeline = plan.graph.name.to_string();
    // Each node has at most one report under way, plus one when it fails.
    let (report_tx, reports) = mpsc::channel(plan.nodes.len() * 2 + 2);
    let mut senders: Vec<Vec<mpsc::Sender<Message>>> =
        plan.nodes.iter().map(|_| Vec::new()).collect();
    let mut receivers: Vec<Vec<mpsc::Receiver<Message>>> =
        plan.nodes.iter().map(|_| Vec::new()).collect();
    for (at, node) in plan.nodes.iter().enumerate() {
        for &input in &node.inputs {
            let (tx, rx) = mpsc::channel(EDGE_MESSAGES);
            setup.stats.watch_edge(
                &plan.nodes[input].node.name,
                &node.node.name,
                tx.downgrade(),
            );
            senders[input].push(tx);
            receivers[at].push(rx);
        }
    }

    // Built before anything is spawned, so that a failed start leaves nothing behind.
    let mut feeders = Vec::new();
    let mut starts: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
    for (at, node) in plan.nodes.iter().enumerate() {
        let outputs = std::mem::take(&mut senders[at]);
        let inputs = Inputs::new(std::mem::take(&mut receivers[at]));
        let tap = setup.taps.publisher(&plan.graph.name, &node.node.name);
        let busy = metrics::counter!("va_pipeline_busy_microseconds_total",
            "pipeline" => pipeline.clone(), "node" => node.node.name.to_string());
        match node.node.role {
            Role::Source => {
                let (commands_tx, commands) = mpsc::channel(4);
                feeders.push((at, commands_tx));
                let source = node
                    .source
                    .clone()
                    .ok_or_else(|| FlowError::fatal("runtime", "a source has no plan"))?;
                let feeder = Feeder {
                    node: at,
                    plan: source,
                    checkpoint: plan.graph.checkpoint,
                    log: setup.log.clone(),
                    outputs,
                    tap,
                    commands,
                    reports: report_tx.clone(),
                    cancelled: cancelled.clone(),
                };
                starts.push(Box::pin(feeder.run()));
            }
            Role::Operator => {
                let entry = va_operators::registry::operator(&node.node.kind)
                    .ok_or_else(|| FlowError::fatal(&node.node.kind, "is not registered"))?;
                let operator =
                    (entry.build)(&node.node.options, &node.input_schemas, &setup.operators)?;
                let state = State::new(
                    setup.log.clone(),
                    group.clone(),
                    node.node.name.to_string(),
                    committed.clone(),
                );
                let cx = Cx::new(outputs, tap, state, setup.clock.clone(), cancelled.clone());
                starts.push(Box::pin(run_cancellable(
                    cancelled.clone(),
                    run_operator(at, operator, inputs, cx, report_tx.clone(), busy),
                )));
            }
            Role::Sink => {
                let entry = va_endpoints::registry::sink_entry(&node.node.kind)
                    .ok_or_else(|| FlowError::fatal(&node.node.kind, "is not registered"))?;
                let sink =
                    (entry.build)(&node.node.options, &node.input_schemas[0], &setup.endpoints)?;
                starts.push(Box::pin(run_sink(
                    at,
                    sink,
                    inputs,
                    cancelled.clone(),
                    report_tx.clone(),
                    busy,
                )));
            }
        }
    }
    for start in starts {
        tasks.spawn(start);
    }
    Ok((feeders, reports))
}

/// An operator that is inside a long call ends at its next await.
async fn run_cancellable(cancelled: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = cancelled.cancelled() => {}
    }
}

struct Coordinator<'a> {
    setup: &'a Setup,
    group: GroupId,
    member: &'a dyn Member,
    feeders: Feeders,
    /// The checkpoint in flight.
    pending: Option<Pending>,
    begun: Option<Instant>,
    progress: Progress,
    /// The last checkpoint that was committed, for the nodes' state.
    committed: Arc<AtomicU64>,
    /// Checkpoints until the hidden topics are trimmed.
    until_trim: u32,
}

impl Coordinator<'_> {
    async fn run(
        &mut self,
        mut reports: mpsc::Receiver<Report>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), FlowError> {
        let mut deadline: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => self.on_report(report).await?,
                    None => return Err(FlowError::fatal("runtime", "every node has ended")),
                },
                Some(ended) = tasks.join_next() => {
                    // A bug in a component, not bad data; without this the graph would wait for its ack for ever.
                    if let Err(error) = ended {
                        return Err(FlowError::fatal("runtime", format!("a node panicked: {error}")));
                    }
                }
                rebalance = self.member.rebalance(), if deadline.is_none() => {
                    let rebalance = rebalance.map_err(|error| FlowError::retriable("rebalance", error))?;
                    self.on_rebalance(rebalance).await?;
                }
                () = stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(tokio::time::Instant::now() + STOP_WAIT);
                    self.tell_all(|| Command::Pause).await?;
                    self.want().await?;
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    tracing::warn!(pipeline = %self.group, "stopped before the last checkpoint; its rows are replayed at the next start");
                    return Ok(());
                }
            }
            if deadline.is_some() && self.progress.is_idle() {
                return Ok(());
            }
        }
    }

    async fn on_report(&mut self, report: Report) -> Result<(), FlowError> {
        match report {
            Report::Wanted => self.want().await,
            Report::Failed { node, error } => {
                let name = &self.setup.plan.nodes[node].node.name;
                Err(match error {
                    FlowError::Retriable { component, message } => FlowError::Retriable {
                        component: format!("{name}: {component}"),
                        message,
                    },
                    FlowError::Fatal { component, message } => FlowError::Fatal {
                        component: format!("{name}: {component}"),
                        message,
                    },
                    FlowError::Cancelled => FlowError::Cancelled,
                })
            }
            Report::Ack { checkpoint, ack } => {
                let Some(pending) = self
                    .pending
                    .as_mut()
                    .filter(|pending| pending.id == checkpoint)
                else {
                    return Err(FlowError::fatal(
                        "runtime",
                        format!("an ack for checkpoint {checkpoint}, which is not in flight"),
                    ));
                };
                let Some(acks) = pending.arrived(ack) else {
                    return Ok(());
                };
                self.pending = None;
                let consumed = self.consumed_of_hidden(&acks);
                self.commit(acks).await?;
                self.trim(consumed).await;
                // Before partitions are released: from then on another task may change their keys.
                self.committed.store(checkpoint, Ordering::Release);
                let (released, next) = self.progress.committed();
                if !released.is_empty() {
                    self.member
                        .release(&released)
                        .await
                        .map_err(|error| FlowError::retriable("release partitions", error))?;
                }
                self.begin(next).await
            }
        }
    }

    /// Begins a checkpoint, or notes that one is wanted after the one in flight.
    async fn want(&mut self) -> Result<(), FlowError> {
        let next = self.progress.want();
        self.begin(next).await
    }

    async fn begin(&mut self, checkpoint: Option<u64>) -> Result<(), FlowError> {
        let Some(id) = checkpoint else { return Ok(()) };
        self.pending = Some(Pending::new(id, self.setup.plan.nodes.len()));
        self.begun = Some(Instant::now());
        self.tell_all(|| Command::Barrier(id)).await
    }

    async fn on_rebalance(&mut self, rebalance: Rebalance) -> Result<(), FlowError> {
        tracing::debug!(pipeline = %self.group, assigned = rebalance.assigned.len(), revoked = rebalance.revoked.len(), "rebalanced");
        for (node, feeder) in &self.feeders {
            let source = self.setup.plan.nodes[*node].source.as_ref();
            let mine = |partition: &TopicPartition| {
                source.is_some_and(|source| source.topic == partition.topic)
            };
            let start_at = source.map(|source| source.start_at).unwrap_or_default();
            let mut assigned = Vec::new();
            for (partition, offset) in rebalance
                .assigned
                .iter()
                .filter(|(partition, _)| mine(partition))
            {
                assigned.push((
                    partition.clone(),
                    self.start_of(partition, *offset, start_at).await?,
                ));
            }
            if let Some(source) = source {
                self.restore(source, &assigned);
            }
            let revoked: Vec<_> = rebalance
                .revoked
                .iter()
                .filter(|p| mine(p))
                .cloned()
                .collect();
            for command in [Command::Revoke(revoked), Command::Assign(assigned)] {
                feeder
                    .send(command)
                    .await
                    .map_err(|_| FlowError::Cancelled)?;
            }
        }
        if !rebalance.revoked.is_empty() {
            // What was read of them must be committed before somebody else may own them.
            let next = self.progress.revoke(rebalance.revoked);
            self.begin(next).await?;
        }
        Ok(())
    }

    /// Where to begin: the committed offset, else where the source says.
    async fn start_of(
        &self,
        partition: &TopicPartition,
        offset: Offset,
        start_at: StartAt,
    ) -> Result<Offset, FlowError> {
        let retriable = |error: LogError| FlowError::retriable("read the committed offset", error);
        if start_at == StartAt::Latest
            && self
                .setup
                .log
                .committed(&self.group, partition)
                .await
                .map_err(retriable)?
                .is_none()
        {
            return Ok(self
                .setup
                .log
                .watermarks(partition)
                .await
                .map_err(retriable)?
                .high);
        }
        Ok(offset)
    }

    async fn tell_all(&self, command: impl Fn() -> Command) -> Result<(), FlowError> {
        for (_, feeder) in &self.feeders {
            feeder
                .send(command())
                .await
                .map_err(|_| FlowError::Cancelled)?;
        }
        Ok(())
    }

    /// Where hidden topics have been consumed to, when they are due to be trimmed.
    fn consumed_of_hidden(&mut self, acks: &[Ack]) -> Vec<(TopicPartition, Offset)> {
        let hidden = &self.setup.plan.internal;
        self.until_trim -= 1;
        if self.until_trim > 0 {
            return Vec::new();
        }
        self.until_trim = TRIM_EVERY;
        acks.iter()
            .flat_map(|ack| &ack.offsets)
            .filter(|(place, _)| hidden.iter().any(|topic| topic.name == place.topic))
            .cloned()
            .collect()
    }

    /// Retention does it where this cannot.
    async fn trim(&self, consumed: Vec<(TopicPartition, Offset)>) {
        if consumed.is_empty() {
            return;
        }
        if let Err(error) = self.setup.log.trim(&consumed).await {
            tracing::debug!(pipeline = %self.group, %error, "consumed rows stay for now");
        }
    }

    /// Brings the state near that the rows of new partitions will need.
    fn restore(&self, source: &SourcePlan, assigned: &[(TopicPartition, Offset)]) {
        if assigned.is_empty() || !self.setup.plan.has_keyed_state() {
            return;
        }
        let hidden = &self.setup.plan.internal;
        match hidden.iter().find(|topic| topic.name == source.topic) {
            Some(topic) => {
                let partitions: Vec<Partition> =
                    assigned.iter().map(|(place, _)| place.partition).collect();
                self.setup
                    .log
                    .restore_state(&self.group, &partitions, topic.partitions);
            }
            // Rows come as the source has them: which keys they have nobody knows.
            None if hidden.is_empty() => {
                self.setup
                    .log
                    .restore_state(&self.group, &[Partition(0)], 1);
            }
            None => {}
        }
    }

    /// Shows what the checkpoint changed in indexes, then the one commit: appends, dead letters, offsets, state.
    async fn commit(&mut self, acks: Vec<Ack>) -> Result<(), FlowError> {
        let setup = self.setup;
        let pipeline = &setup.plan.graph.name;
        if let Err(message) = conservation(&setup.plan, &acks) {
            setup.stats.violated();
            return Err(FlowError::fatal("conservation", message));
        }
        let dead_letters = self.dead_letters(&acks)?;
        let touched: BTreeSet<&CollectionRef> =
            acks.iter().flat_map(|ack| &ack.collections).collect();
        let touched: Vec<CollectionRef> = touched.into_iter().cloned().collect();
        let checkpoint = format!("{pipeline} {}", self.progress.last());
        setup
            .endpoints
            .indexes
            .publish(&touched, &checkpoint)
            .await
            .map_err(|error| FlowError::retriable("publish the indexes", error))?;
        let mut pauses = COMMIT_PAUSES_MS.iter();
        loop {
            let mut commit = self.member.begin();
            for ack in &acks {
                for append in &ack.appends {
                    commit.append(&append.topic, append.target.clone(), append.batch.clone());
                }
                for (partition, next) in &ack.offsets {
                    commit.consumed(partition, *next);
                }
                for (key, value) in &ack.state {
                    match value {
                        Some(value) => commit.put(key.clone(), value.clone()),
                        None => commit.delete(key.clone()),
                    }
                }
            }
            if let Some((target, batch)) = &dead_letters {
                commit.append(
                    &setup.plan.graph.dead_letter_topic(),
                    target.clone(),
                    batch.clone(),
                );
            }
            match commit.finish().await {
                Ok(_) => break,
                Err(LogError::Retriable(message)) => match pauses.next() {
                    Some(pause) => {
                        tracing::warn!(%pipeline, message, pause_ms = pause, "the commit is repeated");
                        tokio::time::sleep(Duration::from_millis(*pause)).await;
                    }
                    None => return Err(FlowError::retriable("commit", message)),
                },
                Err(error) => return Err(FlowError::retriable("commit", error)),
            }
        }
        let begun = self.begun.take();
        let seconds = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let now_ms = (setup.clock)();
        setup.stats.committed(&setup.plan, &acks, now_ms, seconds);
        let now = UNIX_EPOCH + Duration::from_millis(now_ms.unsigned_abs());
        traces::tell(&setup.plan, &acks, begun, now);
        Ok(())
    }

    fn dead_letters(
        &self,
        acks: &[Ack],
    ) -> Result<Option<(Target, arrow::record_batch::RecordBatch)>, FlowError> {
        let plan = &self.setup.plan;
        let letters: Vec<(&str, &DeadLetter)> = acks
            .iter()
            .flat_map(|ack| {
                let operator = plan.nodes[ack.node].node.name.as_str();
                ack.dead_letters
                    .iter()
                    .map(move |letter| (operator, letter))
            })
            .collect();
        let Some((_, first)) = letters.first() else {
            return Ok(None);
        };
        // One partition a checkpoint keeps the batch whole; the source partition spreads them.
        let target = match &first.partition {
            Some(partition) => Target::Key(Bytes::from(partition.to_string().into_bytes())),
            None => Target::Partition(Partition(partition_of(b"", 1).0)),
        };
        let batch = dead_letter_batch(&plan.graph.name, &letters, (self.setup.clock)())?;
        for (operator, letter) in &letters {
            tracing::info!(pipeline = %plan.graph.name, operator, reason = letter.reason, "a row goes to the dead-letter topic");
        }
        Ok(Some((target, batch)))
    }
}
