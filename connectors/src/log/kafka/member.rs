//! Membership: a consumer that holds a group's partitions and reads nothing of them.
//!
//! It lives on a thread of its own, so that heartbeats and rebalances go on while a pipeline is busy. Rebalancing is
//! cooperative: a partition that the group wants back is announced by [`Member::rebalance`] and given up by
//! [`Member::release`], after the caller committed; until then nobody else gets it. The brokers wait for
//! `rebalance_timeout_ms`, then go on without this member, whose commits are refused from then on.
//!
//! Where an assigned partition goes on, after what its former owner left unfinished, is the business of `positions.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, StreamConsumer,
};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use va_catalog::{Offset, TopicName, TopicPartition};

use super::client::{Quiet, Shared, lock, place, storage};
use super::commit::KafkaCommit;
use super::names::topic_name;
use super::positions::positions;
use super::producer::TransactionalProducer;
use crate::log::{Commit, GroupId, LogError, Member, Rebalance};

/// Counts assignments: a partition that was lost and came back has another number.
pub(super) type Epoch = u64;

/// What the group has decided about this member.
#[derive(Debug, Default)]
struct Assignment {
    epoch: Epoch,
    owned: BTreeMap<TopicPartition, Epoch>,
    /// Not told to the caller yet.
    assigned: BTreeSet<TopicPartition>,
    /// Not told to the caller yet.
    revoked: BTreeSet<TopicPartition>,
    /// Wanted back by the group; the list is handed over as a whole, once none is left that the caller holds.
    wanted: BTreeSet<TopicPartition>,
    held: BTreeSet<TopicPartition>,
    /// The group has decided at least once.
    decided: bool,
    /// The caller has been told at least once.
    told: bool,
    /// Give up at once what is wanted.
    closing: bool,
    /// Why the member can never again own anything: another process joined as the same instance, or it is not allowed.
    failed: Option<LogError>,
}

/// Receives the group's decisions, on the member's thread.
#[derive(Debug)]
pub(super) struct Listener {
    prefix: String,
    assignment: Mutex<Assignment>,
    changed: Notify,
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Listener {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let places = self.places(list);
        let result = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, places, list)
        } else if self.must_give_up_at_once(consumer) {
            self.lose(&places);
            consumer.incremental_unassign(list)
        } else {
            self.want_back(places)
                .map_or(Ok(()), |list| consumer.incremental_unassign(&list))
        };
        if let Err(error) = result {
            // The brokers see it as a member that does not answer and go on without it.
            tracing::warn!(%error, "a rebalance failed");
        }
        self.changed.notify_one();
    }
}

impl Listener {
    fn places(&self, list: &TopicPartitionList) -> Vec<TopicPartition> {
        list.elements()
            .iter()
            .filter_map(|e| Some(place(topic_name(&self.prefix, e.topic())?, e.partition())))
            .collect()
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        places: Vec<TopicPartition>,
        list: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        // It must not read: it stands at the end, and paused.
        list.set_all_offsets(KafkaOffset::End)?;
        consumer.incremental_assign(list)?;
        if list.count() > 0 {
            consumer.pause(list)?;
        }
        let mut assignment = lock(&self.assignment);
        assignment.decided = true;
        for place in places {
            assignment.epoch += 1;
            let epoch = assignment.epoch;
            assignment.owned.insert(place.clone(), epoch);
            assignment.assigned.insert(place);
        }
        Ok(())
    }

    /// Ends the membership when the error is one that does not pass.
    fn failed(&self, error: &KafkaError) {
        let forbidden = matches!(
            error.rdkafka_error_code(),
            Some(Code::GroupAuthorizationFailed | Code::TopicAuthorizationFailed)
        );
        if forbidden || matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            let mut assignment = lock(&self.assignment);
            assignment.owned.clear();
            assignment.failed = Some(storage("membership of the group ended", error));
            drop(assignment);
            self.changed.notify_one();
        }
    }

    fn must_give_up_at_once(&self, consumer: &BaseConsumer<Self>) -> bool {
        lock(&self.assignment).closing || consumer.assignment_lost()
    }

    /// The partitions belong to somebody else already.
    fn lose(&self, places: &[TopicPartition]) {
        let mut assignment = lock(&self.assignment);
        for place in places {
            assignment.owned.remove(place);
            assignment.held.remove(place);
            assignment.wanted.remove(place);
            if !assignment.assigned.remove(place) {
                assignment.revoked.insert(place.clone());
            }
        }
    }

    /// Returns what can be handed over now.
    fn want_back(&self, places: Vec<TopicPartition>) -> Option<TopicPartitionList> {
        let mut assignment = lock(&self.assignment);
        for place in places {
            assignment.wanted.insert(place.clone());
            // What the caller does not know of it need not give up.
            if assignment.assigned.remove(&place) || !assignment.owned.contains_key(&place) {
                assignment.owned.remove(&place);
            } else {
                assignment.held.insert(place.clone());
                assignment.revoked.insert(place);
            }
        }
        self.handover(&mut assignment)
    }

    fn handover(&self, assignment: &mut Assignment) -> Option<TopicPartitionList> {
        if !assignment.held.is_empty() || assignment.wanted.is_empty() {
            return None;
        }
        let mut list = TopicPartitionList::new();
        for place in std::mem::take(&mut assignment.wanted) {
            // Cannot be too long: the name came from the cluster.
            if let Ok(topic) = super::names::kafka_topic(&self.prefix, &place.topic) {
                list.add_partition(&topic, place.partition.0 as i32);
            }
        }
        Some(list)
    }
}

/// What a member and its commits share.
pub(super) struct Membership {
    pub(super) group: GroupId,
    pub(super) transactional_id: String,
    listener: Arc<Handle>,
    /// One transaction at a time.
    pub(super) producer: Arc<tokio::sync::Mutex<Option<TransactionalProducer>>>,
}

/// The consumer until the member leaves.
struct Handle {
    group: GroupId,
    consumer: Mutex<Option<Arc<StreamConsumer<Listener>>>>,
    left: CancellationToken,
    leave: CancellationToken,
}

impl Handle {
    fn consumer(&self) -> Option<Arc<StreamConsumer<Listener>>> {
        lock(&self.consumer).clone()
    }
}

impl Membership {
    /// The number of the assignment that the partition is owned by.
    pub(super) fn epoch(&self, place: &TopicPartition) -> Option<Epoch> {
        let consumer = self.listener.consumer()?;
        lock(&consumer.context().assignment)
            .owned
            .get(place)
            .copied()
    }

    /// The member and generation that the brokers compare.
    pub(super) fn group_metadata(&self) -> Option<ConsumerGroupMetadata> {
        self.listener.consumer()?.group_metadata()
    }

    fn leave(&self) {
        let consumer = lock(&self.listener.consumer).take();
        if let Some(consumer) = consumer {
            let list = {
                let mut assignment = lock(&consumer.context().assignment);
                assignment.closing = true;
                assignment.owned.clear();
                assignment.held.clear();
                consumer.context().handover(&mut assignment)
            };
            if let Some(list) = list
                && let Err(error) = consumer.incremental_unassign(&list)
            {
                tracing::debug!(%error, "give up partitions");
            }
        }
        self.listener.leave.cancel();
    }
}

/// Members of this process that are leaving or may leave.
#[derive(Default)]
pub(super) struct Members {
    all: Mutex<Vec<Weak<Handle>>>,
}

impl Members {
    /// Waits until the group's members of this process that were dropped have left, at most so long.
    pub(super) async fn wait_for_leavers(&self, group: &GroupId, at_most: Duration) {
        let leavers: Vec<CancellationToken> = {
            let mut all = lock(&self.all);
            all.retain(|handle| handle.strong_count() > 0);
            all.iter()
                .filter_map(Weak::upgrade)
                .filter(|handle| handle.group == *group && handle.leave.is_cancelled())
                .map(|handle| handle.left.clone())
                .collect()
        };
        let all_left = futures::future::join_all(leavers.iter().map(CancellationToken::cancelled));
        let _ = tokio::time::timeout(at_most, all_left).await;
    }
}

/// What [`Member::rebalance`] has to do next.
enum Due {
    Tell(Rebalance),
    /// Positions of these have to be found first.
    Resolve(BTreeMap<TopicPartition, Epoch>),
    Nothing,
}

/// A member of a consumer group.
pub(super) struct KafkaMember {
    shared: Arc<Shared>,
    pub(super) membership: Arc<Membership>,
    /// Taken by drop, before the thread lets go of its own: closing the consumer blocks.
    listener: Option<Arc<StreamConsumer<Listener>>>,
    /// Under way, whether or not somebody waits for it: [`Member::rebalance`] is cancelled whenever its caller has
    /// something else to do, and would begin anew each time.
    resolving: tokio::sync::Mutex<Option<Resolving>>,
}

/// Positions that are being looked up.
struct Resolving {
    asked: BTreeMap<TopicPartition, Epoch>,
    positions: JoinHandle<Result<Vec<(TopicPartition, Offset)>, LogError>>,
}

impl KafkaMember {
    pub(super) async fn join(
        shared: Arc<Shared>,
        group: &GroupId,
        topics: &[TopicName],
    ) -> Result<Self, LogError> {
        shared.open()?;
        let wanted = topics.to_vec();
        let names: Vec<String> = shared
            .blocking(move |shared| {
                wanted
                    .iter()
                    .map(|topic| {
                        shared
                            .partitions(topic)
                            .and_then(|_| shared.kafka_topic(topic))
                    })
                    .collect()
            })
            .await?;
        let instance = shared
            .options
            .instance
            .clone()
            .unwrap_or_else(|| Uuid::now_v7().simple().to_string());
        let group_id = shared.group_id(group);
        let transactional_id = format!("{}va.member.{group}.{instance}", shared.options.prefix);
        let context = Listener {
            prefix: shared.options.prefix.clone(),
            assignment: Mutex::default(),
            changed: Notify::new(),
        };
        let config = shared.options.member(&group_id, &transactional_id);
        let consumer: StreamConsumer<Listener> =
            StreamConsumer::from_config_and_context(&config, context)
                .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
        let consumer = Arc::new(consumer);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        consumer
            .subscribe(&names)
            .map_err(|e| storage(&format!("join group `{group}`"), &e))?;
        let handle = Arc::new(Handle {
            group: group.clone(),
            consumer: Mutex::new(Some(Arc::clone(&consumer))),
            left: CancellationToken::new(),
            leave: CancellationToken::new(),
        });
        lock(&shared.members.all).push(Arc::downgrade(&handle));
        if shared.options.standby {
            shared.stand_by(group, handle.leave.clone());
        }
        hold_membership(Arc::clone(&consumer), Arc::clone(&handle))?;
        Ok(Self {
            membership: Arc::new(Membership {
                group: group.clone(),
                transactional_id,
                listener: handle,
                producer: Arc::default(),
            }),
            listener: Some(consumer),
            resolving: tokio::sync::Mutex::default(),
            shared,
        })
    }

    fn consumer(&self) -> &Arc<StreamConsumer<Listener>> {
        self.listener.as_ref().expect("taken only by drop")
    }

    fn listener(&self) -> &Listener {
        self.consumer().context()
    }

    /// What the caller has to hear of the assignment. What is to be given up comes first, it waits for nothing.
    fn due(&self) -> Result<Due, LogError> {
        let mut assignment = lock(&self.listener().assignment);
        if let Some(error) = &assignment.failed {
            return Err(error.clone());
        }
        if !assignment.revoked.is_empty() {
            let revoked = std::mem::take(&mut assignment.revoked);
            return Ok(Due::Tell(Rebalance {
                assigned: Vec::new(),
                revoked: revoked.into_iter().collect(),
            }));
        }
        if !assignment.assigned.is_empty() {
            let asked = (assignment.assigned.iter())
                .filter_map(|place| Some((place.clone(), *assignment.owned.get(place)?)))
                .collect();
            return Ok(Due::Resolve(asked));
        }
        if assignment.decided && !std::mem::replace(&mut assignment.told, true) {
            return Ok(Due::Tell(Rebalance::default()));
        }
        Ok(Due::Nothing)
    }
}

/// The member's thread: it serves heartbeats and rebalances until the member leaves, then leaves the group.
fn hold_membership(
    consumer: Arc<StreamConsumer<Listener>>,
    handle: Arc<Handle>,
) -> Result<(), LogError> {
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("va-kafka-member".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        received = consumer.recv() => {
                            // Paused partitions give nothing but errors of the connection, which passes.
                            if let Err(error) = received {
                                tracing::debug!(%error, "membership");
                                consumer.context().failed(&error);
                            }
                        }
                        () = handle.leave.cancelled() => break,
                    }
                }
            });
            // The last one to let go closes the consumer, which leaves the group.
            drop(consumer);
            handle.left.cancel();
        })
        .map(drop)
        .map_err(|e| LogError::Storage(format!("start a thread: {e}")))
}

#[async_trait]
impl Member for KafkaMember {
    async fn rebalance(&self) -> Result<Rebalance, LogError> {
        loop {
            let asked = match self.due()? {
                Due::Tell(rebalance) => return Ok(rebalance),
                Due::Resolve(asked) => asked,
                Due::Nothing => {
                    tokio::select! {
                        () = self.listener().changed.notified() => continue,
                        () = self.shared.closed.cancelled() => return Err(LogError::Closed),
                    }
                }
            };
            let mut resolving = self.resolving.lock().await;
            let under_way = resolving.get_or_insert_with(|| {
                let places = asked.keys().cloned().collect();
                let (shared, membership) = (Arc::clone(&self.shared), Arc::clone(&self.membership));
                Resolving {
                    asked,
                    positions: tokio::spawn(positions(shared, membership, places)),
                }
            });
            let found = tokio::select! {
                found = &mut under_way.positions => found,
                // Perhaps a partition is wanted back, which is not to wait.
                () = self.listener().changed.notified() => continue,
                () = self.shared.closed.cancelled() => return Err(LogError::Closed),
            };
            // From here on there is no waiting: what is taken is returned.
            let asked = resolving.take().map(|it| it.asked).unwrap_or_default();
            let found = found.unwrap_or_else(|error| {
                Err(LogError::Storage(format!("look positions up: {error}")))
            })?;
            let mut assignment = lock(&self.listener().assignment);
            // One that was lost and came back meanwhile may have moved on: it is looked up again.
            let same = |place: &TopicPartition| assignment.owned.get(place) == asked.get(place);
            let mut assigned = found;
            assigned.retain(|(place, _)| assignment.assigned.contains(place) && same(place));
            for (place, _) in &assigned {
                assignment.assigned.remove(place);
            }
            if !assigned.is_empty() {
                assignment.told = true;
                return Ok(Rebalance {
                    assigned,
                    revoked: Vec::new(),
                });
            }
        }
    }

    async fn release(&self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let list = {
            let mut assignment = lock(&self.listener().assignment);
            for place in partitions {
                assignment.owned.remove(place);
                assignment.held.remove(place);
                assignment.assigned.remove(place);
            }
            self.listener().handover(&mut assignment)
        };
        let Some(list) = list else { return Ok(()) };
        let consumer = Arc::clone(self.consumer());
        self.shared
            .blocking(move |_| {
                consumer
                    .incremental_unassign(&list)
                    .map_err(|e| storage("give up partitions", &e))
            })
            .await
    }

    fn begin(&self) -> Box<dyn Commit> {
        Box::new(KafkaCommit::new(
            Arc::clone(&self.shared),
            Some(Arc::clone(&self.membership)),
        ))
    }
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        if let Some(resolving) = self.resolving.get_mut().take() {
            resolving.positions.abort();
        }
        self.listener = None;
        self.membership.leave();
    }
}
