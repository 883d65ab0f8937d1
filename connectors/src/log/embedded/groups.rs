//! Consumer groups as plain data: who owns what, what each member has been told, and what changes next.
//!
//! No I/O and no waiting here; [`super::member`] is the shell. A partition has one owner at every moment. It changes
//! owner only when the owner released it, left, or had not been told of it yet, so that two members never both read it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::watch;
use va_catalog::{TopicName, TopicPartition};

use super::assign::{MemberId, assign};
use crate::log::GroupId;

/// Counts every change of any group. A commit remembers it from when it was told of a consumed offset, so that a
/// partition that was lost and won again before the commit finished counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Epoch(pub u64);

/// All groups that have members.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: HashMap<GroupId, Group>,
    epoch: Epoch,
    next_member: u64,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, MemberView>,
    /// Who reads it now, and since when.
    owned: BTreeMap<TopicPartition, (MemberId, Epoch)>,
    /// Who shall read it.
    target: BTreeMap<TopicPartition, MemberId>,
    changed: watch::Sender<Epoch>,
    epoch: Epoch,
}

/// What one member knows.
#[derive(Debug, Default)]
struct MemberView {
    topics: BTreeSet<TopicName>,
    /// Told as assigned and not released.
    told: BTreeSet<TopicPartition>,
    /// Told as revoked and not released.
    revoking: BTreeSet<TopicPartition>,
    /// Deleted with their topic; the member has to hear of it.
    vanished: BTreeSet<TopicPartition>,
    started: bool,
}

/// What a member has not been told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub assigned: Vec<TopicPartition>,
    pub revoked: Vec<TopicPartition>,
    /// The member has never been told anything: it gets an answer even if it is empty.
    pub first: bool,
    /// To be given back to [`Groups::acknowledge`].
    pub epoch: Epoch,
}

impl Change {
    pub(super) fn is_due(&self) -> bool {
        self.first || !self.assigned.is_empty() || !self.revoked.is_empty()
    }
}

impl Groups {
    /// Partition counts of all topics are `topics`.
    pub(super) fn join(
        &mut self,
        group: &GroupId,
        subscribed: &[TopicName],
        topics: &BTreeMap<TopicName, u32>,
    ) -> (MemberId, watch::Receiver<Epoch>) {
        self.next_member += 1;
        let id = MemberId(self.next_member);
        let entry = self.groups.entry(group.clone()).or_default();
        entry.members.insert(
            id,
            MemberView {
                topics: subscribed.iter().cloned().collect(),
                ..MemberView::default()
            },
        );
        let changed = entry.changed.subscribe();
        entry.settle(topics, next(&mut self.epoch));
        (id, changed)
    }

    pub(super) fn leave(
        &mut self,
        group: &GroupId,
        member: MemberId,
        topics: &BTreeMap<TopicName, u32>,
    ) {
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        entry.members.remove(&member);
        if entry.members.is_empty() {
            self.groups.remove(group);
        } else {
            entry.settle(topics, next(&mut self.epoch));
        }
    }

    pub(super) fn release(
        &mut self,
        group: &GroupId,
        member: MemberId,
        partitions: &[TopicPartition],
        topics: &BTreeMap<TopicName, u32>,
    ) {
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        for partition in partitions {
            if entry.owner(partition) == Some(member) {
                entry.owned.remove(partition);
            }
            if let Some(view) = entry.members.get_mut(&member) {
                view.told.remove(partition);
                view.revoking.remove(partition);
            }
        }
        entry.settle(topics, next(&mut self.epoch));
    }

    /// A topic was created or deleted.
    pub(super) fn topics_changed(&mut self, topics: &BTreeMap<TopicName, u32>) {
        for entry in self.groups.values_mut() {
            entry.settle(topics, next(&mut self.epoch));
        }
    }

    pub(super) fn has_members(&self, group: &GroupId) -> bool {
        self.groups.contains_key(group)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the member has owned the partition without a break since before `epoch`.
    pub(super) fn owns_since(
        &self,
        group: &GroupId,
        member: MemberId,
        partition: &TopicPartition,
        epoch: Epoch,
    ) -> bool {
        self.groups
            .get(group)
            .and_then(|entry| entry.owned.get(partition))
            .is_some_and(|(owner, since)| *owner == member && *since <= epoch)
    }

    /// What the member has to be told. Changes nothing, so that a cancelled wait loses nothing.
    pub(super) fn change(&self, group: &GroupId, member: MemberId) -> Option<Change> {
        let entry = self.groups.get(group)?;
        let view = entry.members.get(&member)?;
        let mut change = Change {
            assigned: Vec::new(),
            revoked: view.vanished.iter().cloned().collect(),
            first: !view.started,
            epoch: entry.epoch,
        };
        if !change.revoked.is_empty() {
            // Alone: a topic that was deleted and created again is first given up, then assigned.
            return Some(change);
        }
        for (partition, (owner, _)) in &entry.owned {
            if *owner != member {
                continue;
            }
            if !view.told.contains(partition) {
                change.assigned.push(partition.clone());
            } else if entry.target.get(partition) != Some(&member)
                && !view.revoking.contains(partition)
            {
                change.revoked.push(partition.clone());
            }
        }
        Some(change)
    }

    /// The member is being told `change`. False when the group has changed since: then ask again.
    pub(super) fn acknowledge(
        &mut self,
        group: &GroupId,
        member: MemberId,
        change: &Change,
    ) -> bool {
        let Some(entry) = self.groups.get_mut(group) else {
            return false;
        };
        if entry.epoch != change.epoch {
            return false;
        }
        let Some(view) = entry.members.get_mut(&member) else {
            return false;
        };
        view.started = true;
        view.told.extend(change.assigned.iter().cloned());
        for partition in &change.revoked {
            if !view.vanished.remove(partition) {
                view.revoking.insert(partition.clone());
            }
        }
        true
    }
}

fn next(epoch: &mut Epoch) -> Epoch {
    epoch.0 += 1;
    *epoch
}

impl Group {
    fn owner(&self, partition: &TopicPartition) -> Option<MemberId> {
        self.owned.get(partition).map(|(owner, _)| *owner)
    }

    /// Computes the target again and hands over what may be handed over.
    fn settle(&mut self, topics: &BTreeMap<TopicName, u32>, epoch: Epoch) {
        let exists = |p: &TopicPartition| topics.get(&p.topic).is_some_and(|n| p.partition.0 < *n);
        self.owned
            .retain(|p, (owner, _)| exists(p) && self.members.contains_key(owner));
        for view in self.members.values_mut() {
            let gone: Vec<_> = view.told.iter().filter(|p| !exists(p)).cloned().collect();
            for partition in gone {
                view.told.remove(&partition);
                if !view.revoking.remove(&partition) {
                    view.vanished.insert(partition);
                }
            }
        }

        let subscriptions = self
            .members
            .iter()
            .map(|(id, view)| (*id, view.topics.clone()))
            .collect();
        self.target = assign(topics, &subscriptions, &self.target);

        for (partition, member) in &self.target {
            let may_move = match self.owned.get(partition) {
                None => true,
                Some((owner, _)) if owner == member => false,
                Some((owner, _)) => !self.members[owner].told.contains(partition),
            };
            if may_move {
                self.owned.insert(partition.clone(), (*member, epoch));
            }
        }
        self.epoch = epoch;
        self.changed.send_replace(epoch);
    }
}

#[cfg(test)]
mod tests {
    use va_catalog::{Partition, PipelineName};

    use super::*;

    struct World {
        groups: Groups,
        group: GroupId,
        topics: BTreeMap<TopicName, u32>,
    }

    impl World {
        fn new(partitions: u32) -> Self {
            Self {
                groups: Groups::default(),
                group: GroupId(PipelineName::new("g").expect("valid")),
                topics: BTreeMap::from([(Self::topic(), partitions)]),
            }
        }

        fn topic() -> TopicName {
            TopicName::new("t").expect("valid")
        }

        fn part(n: u32) -> TopicPartition {
            TopicPartition {
                topic: Self::topic(),
                partition: Partition(n),
            }
        }

        fn join(&mut self) -> MemberId {
            self.groups
                .join(&self.group, &[Self::topic()], &self.topics)
                .0
        }

        fn tell(&mut self, member: MemberId) -> (Vec<u32>, Vec<u32>) {
            let change = self.groups.change(&self.group, member).expect("a member");
            assert!(self.groups.acknowledge(&self.group, member, &change));
            let numbers = |list: Vec<TopicPartition>| list.iter().map(|p| p.partition.0).collect();
            (numbers(change.assigned), numbers(change.revoked))
        }

        fn release(&mut self, member: MemberId, partition: u32) {
            self.groups
                .release(&self.group, member, &[Self::part(partition)], &self.topics);
        }
    }

    #[test]
    fn a_partition_moves_only_after_release() {
        let mut world = World::new(2);
        let first = world.join();
        assert_eq!(world.tell(first), (vec![0, 1], vec![]));
        let began = world.groups.epoch();
        let second = world.join();
        assert_eq!(world.tell(second), (vec![], vec![]));
        assert_eq!(world.tell(first), (vec![], vec![1]));
        assert_eq!(
            world.tell(first),
            (vec![], vec![]),
            "a revocation is told once"
        );
        let owns = |w: &World, m| w.groups.owns_since(&w.group, m, &World::part(1), began);
        assert!(owns(&world, first), "until release the old owner commits");
        world.release(first, 1);
        assert!(!owns(&world, first));
        assert_eq!(world.tell(second), (vec![1], vec![]));
        assert!(!owns(&world, second), "it was not the owner back then");
    }

    #[test]
    fn what_was_never_told_moves_at_once() {
        let mut world = World::new(2);
        let _silent = world.join();
        let second = world.join();
        assert_eq!(world.tell(second), (vec![1], vec![]));
    }

    #[test]
    fn leaving_moves_everything_at_once() {
        let mut world = World::new(2);
        let first = world.join();
        world.tell(first);
        let second = world.join();
        world.tell(second);
        let (group, topics) = (world.group.clone(), world.topics.clone());
        world.groups.leave(&group, first, &topics);
        assert_eq!(world.tell(second), (vec![0, 1], vec![]));
        world.groups.leave(&group, second, &topics);
        assert!(!world.groups.has_members(&group));
    }

    #[test]
    fn a_revocation_outlives_the_member_that_caused_it() {
        let mut world = World::new(2);
        let first = world.join();
        world.tell(first);
        let second = world.join();
        assert_eq!(world.tell(first), (vec![], vec![1]));
        let (group, topics) = (world.group.clone(), world.topics.clone());
        world.groups.leave(&group, second, &topics);
        let began = world.groups.epoch();
        world.release(first, 1);
        assert_eq!(world.tell(first), (vec![1], vec![]));
        assert!(
            !world
                .groups
                .owns_since(&group, first, &World::part(1), began),
            "lost and won again is lost"
        );
    }

    #[test]
    fn a_deleted_topic_is_given_up_before_it_comes_back() {
        let mut world = World::new(1);
        let first = world.join();
        world.tell(first);
        world.groups.topics_changed(&BTreeMap::new());
        let topics = world.topics.clone();
        world.groups.topics_changed(&topics);
        assert_eq!(world.tell(first), (vec![], vec![0]));
        assert_eq!(world.tell(first), (vec![0], vec![]));
    }

    #[test]
    fn an_outdated_change_is_not_acknowledged() {
        let mut world = World::new(2);
        let first = world.join();
        let change = world
            .groups
            .change(&world.group, first)
            .expect("first change");
        world.join();
        let group = world.group.clone();
        assert!(!world.groups.acknowledge(&group, first, &change));
    }
}
