//! The pipelines of a process: start, stop, restart on failure, status.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use va_catalog::{NodeName, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::flow::FlowError;
use va_connectors::log::{GroupId, Log, LogError, TopicConfig};

use super::stats::{NodeStats, Stats};
use super::tap::Taps;
use super::task::{self, Setup};
use crate::plan::Plan;
use crate::shuffle::is_internal_topic;

/// Pauses before a failed task starts again. After the last one it has failed, or, where the runtime is patient, the
/// last pause is repeated.
const RESTART_PAUSES_MS: [u64; 3] = [1_000, 2_000, 4_000];

/// A task that ran so long was well, also if it had nothing to do.
const HEALTHY_AFTER: Duration = Duration::from_secs(120);

/// The outside systems that pipelines run on.
#[derive(Clone)]
pub struct RuntimeConfig {
    pub log: Arc<dyn Log>,
    pub operators: va_operators::Resources,
    pub endpoints: va_endpoints::Resources,
    /// UTC milliseconds.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// How long a task may go on failing, without one checkpoint between, before its pipeline has failed. Zero, for
    /// stores of this process: after the third repetition. Servers elsewhere come back by themselves, and then everything
    /// must go on.
    pub patience: Duration,
}

/// Why a runtime call was refused.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("pipeline `{0}` is running already; stop it first")]
    Running(PipelineName),
    #[error("pipeline `{0}` is not running")]
    NotRunning(PipelineName),
    #[error("pipeline `{pipeline}` has no node `{node}`; it has {nodes}")]
    UnknownNode {
        pipeline: PipelineName,
        node: NodeName,
        nodes: String,
    },
    #[error("`{node}` of pipeline `{pipeline}` {message}")]
    Shuffle {
        pipeline: PipelineName,
        node: NodeName,
        message: String,
    },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What a pipeline is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PipelineState {
    Running,
    /// Waiting before the next attempt.
    Restarting {
        reason: String,
    },
    Stopped,
    /// Needs a person; the reason says what to look at.
    Failed {
        reason: String,
    },
}

/// A pipeline as `va pipeline status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineStatus {
    pub name: PipelineName,
    #[serde(flatten)]
    pub state: PipelineState,
    pub tasks: u32,
    /// Rows that the sources have not consumed yet, by partition.
    pub lag: BTreeMap<String, u64>,
    pub lag_rows: u64,
    pub nodes: BTreeMap<NodeName, NodeStats>,
    /// How full the queue between two nodes is, 0 to 1.
    pub queues: BTreeMap<String, f64>,
    /// Checkpoints at which rows were unaccounted for, since the pipeline was started in this process; must stay 0.
    pub conservation_violations: u64,
    pub last_checkpoint_at_ms: Option<i64>,
    pub last_checkpoint_seconds: Option<f64>,
    /// Changes of state that this process has still to restore; rows of their keys wait for it.
    pub state_restoring: u64,
}

struct Running {
    plan: Arc<Plan>,
    stop: CancellationToken,
    state: watch::Receiver<PipelineState>,
    stats: Arc<Stats>,
    supervisors: Vec<JoinHandle<()>>,
}

/// All pipelines of this process.
pub struct Runtime {
    config: RuntimeConfig,
    taps: Taps,
    pipelines: Mutex<HashMap<PipelineName, Running>>,
}

impl Runtime {
    pub fn new(config: RuntimeConfig) -> Self {
        Self {
            config,
            taps: Taps::default(),
            pipelines: Mutex::default(),
        }
    }

    /// Creates the topics that the pipeline needs and starts its tasks.
    pub async fn start(&self, plan: Plan) -> Result<(), RuntimeError> {
        let name = plan.graph.name.clone();
        self.refuse_running(&name)?;
        let plan = self.prepare(&plan).await?;
        self.refuse_running(&name)?;

        let plan = Arc::new(plan);
        let stop = CancellationToken::new();
        let stats = Arc::new(Stats::new(name.to_string()));
        let (state_tx, state) = watch::channel(PipelineState::Running);
        let state_tx = Arc::new(state_tx);
        let setup = Setup {
            plan: plan.clone(),
            log: self.config.log.clone(),
            operators: self.config.operators.clone(),
            endpoints: self.config.endpoints.clone(),
            taps: self.taps.clone(),
            clock: self.config.clock.clone(),
            stats: stats.clone(),
        };
        let patience = self.config.patience;
        let supervisors = (0..plan.graph.tasks.max(1))
            .map(|_| {
                let state = state_tx.clone();
                tokio::spawn(supervise(setup.clone(), stop.clone(), state, patience))
            })
            .collect();
        self.lock().insert(
            name,
            Running {
                plan,
                stop,
                state,
                stats,
                supervisors,
            },
        );
        Ok(())
    }

    /// Creates the topics that are missing, and cuts the graph where rows have to be brought together.
    async fn prepare(&self, plan: &Plan) -> Result<Plan, RuntimeError> {
        let log = &self.config.log;
        let mut partitions: HashMap<TopicName, u32> = log
            .topics()
            .await?
            .into_iter()
            .map(|(topic, config)| (topic, config.partitions))
            .collect();
        for (topic, _) in &plan.topics {
            if !partitions.contains_key(topic) {
                let config = TopicConfig::default();
                partitions.insert(topic.clone(), config.partitions);
                log.create_topic(topic, config).await?;
            }
        }
        let pipeline = &plan.graph.name;
        let refused = |node: &NodeName, message: String| RuntimeError::Shuffle {
            pipeline: pipeline.clone(),
            node: node.clone(),
            message,
        };
        let plan = plan
            .shuffled(&|topic| partitions.get(topic).copied())
            .map_err(|problems| {
                let first = &problems[0];
                refused(&first.node, first.problem.to_string())
            })?;
        for topic in &plan.internal {
            let there = partitions.get(&topic.name).copied();
            if let Some(there) = there.filter(|there| *there != topic.partitions) {
                let message = format!(
                    "has `partitions: {}`, but its topic `{}` has {there}, and keys would move; write `partitions: \
                     {there}`, or delete the pipeline once its lag is 0 and register it again",
                    topic.partitions, topic.name
                );
                return Err(refused(&topic.node, message));
            }
            let config = TopicConfig {
                partitions: topic.partitions,
                ..TopicConfig::default()
            };
            log.create_topic(&topic.name, config).await?;
        }
        if plan.has_keyed_state() {
            let aligned: Vec<u32> = plan.internal.iter().map(|topic| topic.partitions).collect();
            log.create_state(&GroupId(pipeline.clone()), &aligned)
                .await?;
        }
        Ok(plan)
    }

    /// Removes the topics between halves of the operators of a pipeline that was stopped, as far as all of their rows were
    /// consumed. One with rows stays: offsets and state of the pipeline stay too, so that it goes on where it was when it
    /// is registered again, and those rows are counted nowhere else.
    pub async fn delete_internal_topics(&self, name: &PipelineName) -> Result<(), RuntimeError> {
        self.refuse_running(name)?;
        let log = self.config.log.as_ref();
        let group = GroupId(name.clone());
        for (topic, config) in log.topics().await? {
            if !is_internal_topic(name, &topic) {
                continue;
            }
            let left: u64 = topic_lag(log, &group, &topic, config.partitions)
                .await?
                .into_iter()
                .map(|(_, lag)| lag)
                .sum();
            if left > 0 {
                tracing::warn!(%topic, left, "the topic stays: the pipeline has not consumed all of it");
                continue;
            }
            match log.delete_topic(&topic).await {
                Ok(()) | Err(LogError::UnknownTopic(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Stops a pipeline after a last checkpoint; it can be started again and goes on where it was.
    pub async fn stop(&self, name: &PipelineName) -> Result<(), RuntimeError> {
        let running = self
            .lock()
            .remove(name)
            .ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
        running.stop.cancel();
        for supervisor in running.supervisors {
            // A supervisor that panicked has nothing left to stop.
            let _ = supervisor.await;
        }
        Ok(())
    }

    /// Stops everything, all pipelines at once.
    pub async fn shutdown(&self) {
        let running: Vec<Running> = self.lock().drain().map(|(_, running)| running).collect();
        running.iter().for_each(|running| running.stop.cancel());
        for supervisor in running.into_iter().flat_map(|running| running.supervisors) {
            let _ = supervisor.await;
        }
    }

    /// The plan of a pipeline that was started.
    pub fn plan(&self, name: &PipelineName) -> Option<Arc<Plan>> {
        self.lock().get(name).map(|running| running.plan.clone())
    }

    /// Names of the pipelines that were started.
    pub fn names(&self) -> Vec<PipelineName> {
        let mut names: Vec<_> = self.lock().keys().cloned().collect();
        names.sort();
        names
    }

    /// Batches that a node emits from now on.
    pub fn tap(
        &self,
        name: &PipelineName,
        node: &NodeName,
    ) -> Result<broadcast::Receiver<RecordBatch>, RuntimeError> {
        let plan = self
            .plan(name)
            .ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
        if plan.graph.node(node).is_none() {
            let nodes: Vec<_> = plan
                .graph
                .nodes
                .iter()
                .map(|node| format!("`{}`", node.name))
                .collect();
            return Err(RuntimeError::UnknownNode {
                pipeline: name.clone(),
                node: node.clone(),
                nodes: nodes.join(", "),
            });
        }
        Ok(self.taps.subscribe(name, node))
    }

    /// Changes with every checkpoint of the pipeline.
    pub fn checkpoints(&self, name: &PipelineName) -> Result<watch::Receiver<u64>, RuntimeError> {
        self.lock()
            .get(name)
            .map(|running| running.stats.checkpoints())
            .ok_or_else(|| RuntimeError::NotRunning(name.clone()))
    }

    /// What a pipeline is doing and how far it is.
    pub async fn status(&self, name: &PipelineName) -> Result<PipelineStatus, RuntimeError> {
        let plan = self
            .plan(name)
            .ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
        let lag = lag(self.config.log.as_ref(), &plan).await?;
        let lag_rows = lag.values().sum();
        metrics::gauge!("va_pipeline_lag_rows", "pipeline" => name.to_string())
            .set(lag_rows as f64);
        Ok(PipelineStatus {
            lag,
            lag_rows,
            ..self.doing(name)?
        })
    }

    /// What a pipeline is doing in this process. Asks nobody: without lag.
    pub fn doing(&self, name: &PipelineName) -> Result<PipelineStatus, RuntimeError> {
        let (plan, state, stats) = {
            let pipelines = self.lock();
            let running = pipelines
                .get(name)
                .ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
            (
                running.plan.clone(),
                running.state.borrow().clone(),
                running.stats.clone(),
            )
        };
        let last = stats.last_checkpoint();
        Ok(PipelineStatus {
            name: name.clone(),
            state,
            tasks: plan.graph.tasks.max(1),
            lag: BTreeMap::new(),
            lag_rows: 0,
            nodes: stats.nodes(),
            queues: stats.queues(),
            conservation_violations: stats.violations(),
            last_checkpoint_at_ms: last.map(|(at, _)| at),
            last_checkpoint_seconds: last.map(|(_, seconds)| seconds),
            state_restoring: self.config.log.state_restoring(&GroupId(name.clone())),
        })
    }

    fn refuse_running(&self, name: &PipelineName) -> Result<(), RuntimeError> {
        if self.lock().contains_key(name) {
            Err(RuntimeError::Running(name.clone()))
        } else {
            Ok(())
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PipelineName, Running>> {
        self.pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows between what the group of a plan has consumed and the end of each source partition. A hidden source comes after
/// what feeds it, so that rows on their way from one to the other are seen at least once.
pub async fn lag(log: &dyn Log, plan: &Plan) -> Result<BTreeMap<String, u64>, LogError> {
    let group = GroupId(plan.graph.name.clone());
    let topics = log.topics().await?;
    let mut lag = BTreeMap::new();
    for source in plan.nodes.iter().filter_map(|node| node.source.as_ref()) {
        let partitions = topics
            .iter()
            .find(|(topic, _)| topic == &source.topic)
            .map_or(0, |(_, config)| config.partitions);
        let of_topic = topic_lag(log, &group, &source.topic, partitions).await?;
        lag.extend(
            of_topic
                .into_iter()
                .map(|(partition, lag)| (partition.to_string(), lag)),
        );
    }
    Ok(lag)
}

async fn topic_lag(
    log: &dyn Log,
    group: &GroupId,
    topic: &TopicName,
    partitions: u32,
) -> Result<Vec<(TopicPartition, u64)>, LogError> {
    let partition = |partition| TopicPartition {
        topic: topic.clone(),
        partition: Partition(partition),
    };
    let partitions: Vec<TopicPartition> = (0..partitions).map(partition).collect();
    let positions = log.positions(group, &partitions).await?;
    let lag = partitions.into_iter().zip(positions);
    Ok(lag
        .map(|(partition, (marks, committed))| {
            let next = committed.unwrap_or(marks.low).max(marks.low);
            (partition, log.distance(next, marks.high))
        })
        .collect())
}

/// Keeps one task running until it is stopped or beyond help.
async fn supervise(
    setup: Setup,
    stop: CancellationToken,
    state: Arc<watch::Sender<PipelineState>>,
    patience: Duration,
) {
    let pipeline = setup.plan.graph.name.clone();
    let mut attempt = 0;
    // Since when one attempt after the other has failed.
    let mut failing: Option<Instant> = None;
    loop {
        let started = Instant::now();
        setup.stats.task_started();
        let before = *setup.stats.checkpoints().borrow();
        state.send_replace(PipelineState::Running);
        let run = Setup {
            endpoints: setup.endpoints.for_task(),
            ..setup.clone()
        };
        let error = match task::run(&run, &stop).await {
            Ok(()) => {
                state.send_replace(PipelineState::Stopped);
                return;
            }
            Err(FlowError::Cancelled) if stop.is_cancelled() => {
                state.send_replace(PipelineState::Stopped);
                return;
            }
            // A node ended, and its neighbour was heard before its reason was. Nobody asked for a stop.
            Err(FlowError::Cancelled) => FlowError::retriable("runtime", "a node ended"),
            Err(error) => error,
        };
        if *setup.stats.checkpoints().borrow() > before || started.elapsed() > HEALTHY_AFTER {
            attempt = 0;
            failing = None;
        }
        let failing = *failing.get_or_insert_with(Instant::now);
        let reason = error.to_string();
        let pause = match &error {
            FlowError::Retriable { .. } => RESTART_PAUSES_MS.get(attempt).or_else(|| {
                let last = RESTART_PAUSES_MS.last();
                last.filter(|_| failing.elapsed() < patience)
            }),
            _ => None,
        };
        metrics::counter!("va_pipeline_failures_total", "pipeline" => pipeline.to_string())
            .increment(1);
        let Some(pause) = pause else {
            tracing::error!(%pipeline, reason, "the pipeline has failed");
            state.send_replace(PipelineState::Failed { reason });
            return;
        };
        tracing::warn!(%pipeline, reason, pause_ms = pause, "the pipeline restarts from its last checkpoint");
        state.send_replace(PipelineState::Restarting { reason });
        attempt += 1;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(*pause)) => {}
            () = stop.cancelled() => {
                state.send_replace(PipelineState::Stopped);
                return;
            }
        }
    }
}
