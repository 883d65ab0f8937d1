//! Which member of a group gets which partition: a pure function, balanced and sticky.
//!
//! Sticky means that a partition stays with its member unless moving it makes the group more even, so that a change of
//! membership moves as little as possible.

use std::collections::{BTreeMap, BTreeSet};

use va_catalog::{Partition, TopicName, TopicPartition};

/// A member's number, given in order of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MemberId(pub u64);

/// Shares the partitions of `topics` (name to count) among the `members` that subscribe to them, beginning from the
/// `former` assignment. A partition without a subscriber is left out. The same input gives the same result.
pub(super) fn assign(
    topics: &BTreeMap<TopicName, u32>,
    members: &BTreeMap<MemberId, BTreeSet<TopicName>>,
    former: &BTreeMap<TopicPartition, MemberId>,
) -> BTreeMap<TopicPartition, MemberId> {
    let wants = |member: &MemberId, topic: &TopicName| {
        members
            .get(member)
            .is_some_and(|topics| topics.contains(topic))
    };
    let mut shares: Shares = members.keys().map(|id| (*id, BTreeSet::new())).collect();
    let mut free = Vec::new();
    for (topic, count) in topics {
        for partition in (0..*count).map(Partition) {
            let partition = TopicPartition {
                topic: topic.clone(),
                partition,
            };
            match former.get(&partition) {
                Some(member) if wants(member, topic) => {
                    shares.entry(*member).or_default().insert(partition);
                }
                _ => free.push(partition),
            }
        }
    }

    for partition in free {
        let lightest = shares
            .iter_mut()
            .filter(|(member, _)| wants(member, &partition.topic))
            .min_by_key(|(member, share)| (share.len(), **member));
        if let Some((_, share)) = lightest {
            share.insert(partition);
        }
    }

    // Every move lowers the sum of squares of the shares' sizes, so this ends.
    while let Some((partition, from, to)) = better(&shares, wants) {
        shares.entry(from).or_default().remove(&partition);
        shares.entry(to).or_default().insert(partition);
    }
    shares
        .into_iter()
        .flat_map(|(member, share)| share.into_iter().map(move |p| (p, member)))
        .collect()
}

type Shares = BTreeMap<MemberId, BTreeSet<TopicPartition>>;

/// A move from the heaviest possible member to the lightest possible one that makes them more even.
fn better(
    shares: &Shares,
    wants: impl Fn(&MemberId, &TopicName) -> bool,
) -> Option<(TopicPartition, MemberId, MemberId)> {
    let mut by_weight: Vec<_> = shares.iter().collect();
    by_weight.sort_by_key(|(member, share)| (share.len(), **member));
    for (from, heavy) in by_weight.iter().rev() {
        for (to, light) in &by_weight {
            if light.len() + 1 >= heavy.len() {
                break;
            }
            if let Some(partition) = heavy.iter().rev().find(|p| wants(to, &p.topic)) {
                return Some((partition.clone(), **from, **to));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).expect("a valid name")
    }

    fn group(members: &[(u64, &[&str])]) -> BTreeMap<MemberId, BTreeSet<TopicName>> {
        members
            .iter()
            .map(|(id, topics)| (MemberId(*id), topics.iter().map(|t| topic(t)).collect()))
            .collect()
    }

    fn loads(result: &BTreeMap<TopicPartition, MemberId>) -> Vec<(u64, usize)> {
        let mut loads = BTreeMap::new();
        for member in result.values() {
            *loads.entry(member.0).or_insert(0) += 1;
        }
        loads.into_iter().collect()
    }

    #[test]
    fn shares_are_even_and_moves_are_few() {
        let topics = BTreeMap::from([(topic("a"), 6)]);
        let one = assign(&topics, &group(&[(1, &["a"])]), &BTreeMap::new());
        assert_eq!(loads(&one), [(1, 6)]);
        let two = assign(&topics, &group(&[(1, &["a"]), (2, &["a"])]), &one);
        assert_eq!(loads(&two), [(1, 3), (2, 3)]);
        let three = assign(
            &topics,
            &group(&[(1, &["a"]), (2, &["a"]), (3, &["a"])]),
            &two,
        );
        assert_eq!(loads(&three), [(1, 2), (2, 2), (3, 2)]);
        let moved = two.iter().filter(|(p, m)| three[*p] != **m).count();
        assert_eq!(moved, 2, "only what the third member gets moves");
        // The second leaves: the others keep all they had.
        let left = assign(&topics, &group(&[(1, &["a"]), (3, &["a"])]), &three);
        assert_eq!(loads(&left), [(1, 3), (3, 3)]);
        assert!(
            three
                .iter()
                .all(|(p, m)| *m == MemberId(2) || left[p] == *m)
        );
    }

    #[test]
    fn subscriptions_are_respected() {
        let topics = BTreeMap::from([(topic("a"), 4), (topic("b"), 2)]);
        let members = group(&[(1, &["a"]), (2, &["a", "b"]), (3, &["none"])]);
        let result = assign(&topics, &members, &BTreeMap::new());
        assert_eq!(loads(&result), [(1, 3), (2, 3)]);
        assert!(
            result
                .iter()
                .all(|(p, m)| p.topic == topic("a") || *m == MemberId(2))
        );
        let nobody = assign(&topics, &group(&[]), &result);
        assert!(nobody.is_empty());
    }

    #[test]
    fn more_members_than_partitions_leaves_some_idle() {
        let topics = BTreeMap::from([(topic("a"), 2)]);
        let members = group(&[(1, &["a"]), (2, &["a"]), (3, &["a"])]);
        assert_eq!(
            loads(&assign(&topics, &members, &BTreeMap::new())),
            [(1, 1), (2, 1)]
        );
    }

    /// Every history of joins and leaves keeps: each partition once, loads within one, nothing moves without need.
    #[test]
    fn any_history_stays_balanced() {
        let topics = BTreeMap::from([(topic("a"), 7), (topic("b"), 5)]);
        for seed in 0..50_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut members = BTreeMap::new();
            let mut result = BTreeMap::new();
            for step in 0..20 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let id = MemberId(random % 6);
                if members.remove(&id).is_none() {
                    members.insert(id, BTreeSet::from([topic("a"), topic("b")]));
                }
                let next = assign(&topics, &members, &result);
                let context = format!("seed {seed} step {step}");
                if members.is_empty() {
                    assert!(next.is_empty(), "{context}");
                } else {
                    assert_eq!(next.len(), 12, "{context}");
                    let floor = 12 / members.len();
                    let ceiling = 12_usize.div_ceil(members.len());
                    for member in members.keys() {
                        let load = next.values().filter(|m| *m == member).count();
                        assert!((floor..=ceiling).contains(&load), "{context}: {load}");
                    }
                }
                assert_eq!(assign(&topics, &members, &next), next, "{context}: stable");
                result = next;
            }
        }
    }
}
