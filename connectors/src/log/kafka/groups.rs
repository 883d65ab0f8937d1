//! Offsets of groups, asked for and set without joining them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use va_catalog::{Offset, PipelineName, TopicPartition};

use super::client::{Quiet, Shared, lock, storage};
use super::names::{OffsetNote, Position};
use crate::log::{GroupId, LogError};

/// Clients that are kept; each has a connection.
const CLIENTS_MAX: usize = 16;

/// Between two questions to a coordinator that is not the coordinator any more, or not yet.
const MOVING_PAUSE: Duration = Duration::from_millis(20);

fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress
        )
    )
}

/// One client for each group that was asked about, the one that was used last at the end.
#[derive(Default)]
pub(super) struct GroupClients {
    clients: Mutex<Vec<(String, Arc<BaseConsumer<Quiet>>)>>,
}

/// A committed position.
#[derive(Debug, Clone)]
pub(super) struct Committed {
    pub position: Position,
    /// Transactional id of who committed it.
    pub producer: Option<String>,
}

impl Shared {
    /// May block when a client is closed.
    fn group_client(&self, group: &GroupId) -> Result<Arc<BaseConsumer<Quiet>>, LogError> {
        let id = self.group_id(group);
        let mut clients = lock(&self.groups.clients);
        let found = clients.iter().position(|(name, _)| *name == id);
        let client = match found {
            Some(index) => clients.remove(index).1,
            None => Arc::new(
                BaseConsumer::from_config_and_context(&self.options.group(&id), Quiet)
                    .map_err(|e| LogError::Config(format!("kafka: {e}")))?,
            ),
        };
        clients.push((id, Arc::clone(&client)));
        let oldest = (clients.len() > CLIENTS_MAX).then(|| clients.remove(0));
        drop(clients);
        drop(oldest);
        // What the library has to say waits in its queue until somebody polls.
        while client.poll(Duration::ZERO).is_some() {}
        Ok(client)
    }

    /// Committed positions of several partitions, in their order. Blocks. Waits for transactions that are about to
    /// change one, until they end or `timeout` has passed.
    pub(super) fn committed_positions(
        &self,
        group: &GroupId,
        places: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let client = self.group_client(group)?;
        self.positions_from(&client, group, places, timeout)
    }

    /// The same without waiting: a transaction may be about to change them. Blocks.
    pub(super) fn unstable_positions(
        &self,
        group: &GroupId,
        places: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let mut config = self.options.group(&self.group_id(group));
        config.set("isolation.level", "read_uncommitted");
        let client = BaseConsumer::from_config_and_context(&config, Quiet)
            .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
        self.positions_from(&client, group, places, self.timeout())
    }

    fn positions_from(
        &self,
        client: &BaseConsumer<Quiet>,
        group: &GroupId,
        places: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let mut list = TopicPartitionList::with_capacity(places.len());
        for place in places {
            list.add_partition(&self.kafka_topic(&place.topic)?, place.partition.0 as i32);
        }
        let what = format!("ask for the offsets of group `{group}`");
        let deadline = Instant::now() + timeout;
        let found = loop {
            match client.committed_offsets(list.clone(), timeout) {
                // The group is new, or its coordinator has just moved: the next one is about to answer.
                Err(error) if is_moving(&error) && Instant::now() < deadline => {
                    std::thread::park_timeout(MOVING_PAUSE);
                }
                other => break other.map_err(|e| storage(&what, &e))?,
            }
        };
        let mut positions = Vec::with_capacity(places.len());
        for place in places {
            let topic = self.kafka_topic(&place.topic)?;
            let Some(element) = found.find_partition(&topic, place.partition.0 as i32) else {
                positions.push(None);
                continue;
            };
            element.error().map_err(|e| self.lost(place, &what, &e))?;
            let note = OffsetNote::decode(element.metadata());
            positions.push(match element.offset() {
                KafkaOffset::Offset(record) if !note.forgotten => Some(Committed {
                    position: Position {
                        record,
                        row: note.row,
                    },
                    producer: note.producer,
                }),
                _ => None,
            });
        }
        Ok(positions)
    }

    /// See [`crate::log::Log::committed`].
    pub(super) async fn committed(
        self: &Arc<Self>,
        group: &GroupId,
        place: &TopicPartition,
    ) -> Result<Option<Offset>, LogError> {
        self.open()?;
        let (asked, wanted) = (group.clone(), place.clone());
        let committed = self
            .blocking(move |shared| {
                shared.producers.settle(&shared.options)?;
                shared.place(&wanted)?;
                let timeout = shared.timeout();
                shared.committed_positions(&asked, std::slice::from_ref(&wanted), timeout)
            })
            .await?
            .pop()
            .flatten();
        match committed {
            None => Ok(None),
            Some(committed) => Ok(Some(self.settle_position(place, committed.position).await?)),
        }
    }

    /// See [`crate::log::Log::groups`]. Blocks.
    pub(super) fn all_groups(&self) -> Result<Vec<GroupId>, LogError> {
        let list = self
            .admin
            .inner()
            .fetch_group_list(None, self.timeout())
            .map_err(|e| storage("ask for the groups", &e))?;
        let groups: BTreeSet<GroupId> = list
            .groups()
            .iter()
            .filter_map(|group| group.name().strip_prefix(&self.options.prefix))
            .filter_map(|name| PipelineName::new(name).ok())
            .map(GroupId)
            .collect();
        Ok(groups.into_iter().collect())
    }

    /// Client ids of the group's members, as the brokers know them. Blocks.
    pub(super) fn group_members(&self, group: &GroupId) -> Result<Vec<String>, LogError> {
        let id = self.group_id(group);
        let list = self
            .admin
            .inner()
            .fetch_group_list(Some(&id), self.timeout())
            .map_err(|e| storage(&format!("ask for the members of group `{group}`"), &e))?;
        Ok(list
            .groups()
            .iter()
            .filter(|found| found.name() == id)
            .flat_map(|found| found.members())
            .map(|member| member.client_id().to_owned())
            .collect())
    }

    /// See [`crate::log::Log::reset_group`].
    pub(super) async fn reset_group(
        self: &Arc<Self>,
        group: &GroupId,
        offsets: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError> {
        self.open()?;
        // A member of this process that was dropped just now.
        self.members.wait_for_leavers(group, self.timeout()).await;
        let group = group.clone();
        self.blocking(move |shared| {
            shared.producers.settle(&shared.options)?;
            if !shared.group_members(&group)?.is_empty() {
                return Err(LogError::Config(format!(
                    "group `{group}` has members; stop its pipeline, then reset it"
                )));
            }
            let mut list = TopicPartitionList::with_capacity(offsets.len());
            for (place, offset) in &offsets {
                let topic = shared.place(place)?;
                let position = offset.map_or(Position::start_of(0), Position::of);
                let note = OffsetNote {
                    row: position.row,
                    producer: None,
                    forgotten: offset.is_none(),
                };
                let mut element = list.add_partition(&topic, place.partition.0 as i32);
                element
                    .set_offset(KafkaOffset::Offset(position.record))
                    .map_err(|e| storage("set an offset", &e))?;
                element.set_metadata(note.encode());
            }
            if offsets.is_empty() {
                return Ok(());
            }
            shared
                .group_client(&group)?
                .commit(&list, CommitMode::Sync)
                .map_err(|e| storage(&format!("reset group `{group}`"), &e))
        })
        .await
    }
}
