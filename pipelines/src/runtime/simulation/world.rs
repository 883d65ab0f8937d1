//! The world of a simulation: input, outputs, state and the consumer group. The judge is in [`World::apply`].

use super::*;

/// One session of a worker with the group; a worker that starts again is another member.
pub(super) type MemberId = u64;

/// How many partitions a schedule uses: with few of them workers are left without any, and get some back later.
pub(super) fn partitions_of(seed: u64) -> usize {
    1 + seed as usize % PARTITIONS
}

/// The log: input, outputs, state, group. Everything that survives.
#[derive(Default)]
pub(super) struct World {
    pub(super) partitions: usize,
    /// Grows with every change of membership, so that partitions also move between members that stay, and back.
    pub(super) rotation: usize,
    pub(super) input: [Vec<(String, i64)>; PARTITIONS],
    pub(super) committed: [u64; PARTITIONS],
    /// What the stateless branch wrote, by partition: source offsets.
    pub(super) copies: [Vec<u64>; PARTITIONS],
    pub(super) totals: HashMap<String, (i64, i64)>,
    pub(super) state: HashMap<StateKey, Bytes>,
    pub(super) members: BTreeMap<MemberId, BTreeSet<usize>>,
    pub(super) owner: [Option<MemberId>; PARTITIONS],
    pub(super) mail: BTreeMap<MemberId, VecDeque<(Vec<usize>, Vec<usize>)>>,
    /// Commits that were neither confirmed nor refused: settled before anybody else gets the partitions.
    pub(super) doubtful: BTreeMap<MemberId, Change>,
    pub(super) seen: Seen,
}

/// What a commit holds.
#[derive(Clone, Default)]
pub(super) struct Change {
    pub(super) offsets: Vec<(usize, u64)>,
    pub(super) copies: Vec<(usize, u64)>,
    pub(super) totals: Vec<(String, i64, i64)>,
    pub(super) state: Vec<(StateKey, Option<Bytes>)>,
}

impl World {
    pub(super) fn apply(&mut self, change: Change) {
        self.seen.commits += 1;
        for (partition, next) in change.offsets {
            let from = self.committed[partition];
            assert!(
                next >= from,
                "partition {partition} goes back from {from} to {next}"
            );
            let rows: Vec<u64> = change
                .copies
                .iter()
                .filter(|copy| copy.0 == partition)
                .map(|copy| copy.1)
                .collect();
            let expected: Vec<u64> = (from..next).collect();
            assert_eq!(
                rows, expected,
                "outputs and offsets of partition {partition}"
            );
            self.copies[partition].extend(rows);
            self.committed[partition] = next;
        }
        for (key, value) in change.state {
            match value {
                Some(value) => self.state.insert(key, value),
                None => self.state.remove(&key),
            };
        }
        for (key, count, sum) in change.totals {
            assert_eq!((count, sum), self.recomputed(&key), "totals of `{key}`");
            self.totals.insert(key, (count, sum));
        }
    }

    /// Count and sum of a key over everything that is committed.
    pub(super) fn recomputed(&self, key: &str) -> (i64, i64) {
        let partition = place_of(key, self.partitions);
        self.input[partition][..self.committed[partition] as usize]
            .iter()
            .filter(|row| row.0 == key)
            .fold((0, 0), |(count, sum), row| (count + 1, sum + row.1))
    }

    pub(super) fn join(&mut self, member: MemberId) {
        self.members.insert(member, BTreeSet::new());
        self.mail.insert(member, VecDeque::new());
        self.rotation += 1;
        self.settle();
    }

    /// A member is gone, or held to be: what it left in doubt is settled first, as a fence does.
    pub(super) fn expel(&mut self, member: MemberId, rng: &mut Rng) {
        if self.members.remove(&member).is_none() {
            return;
        }
        if let Some(change) = self.doubtful.remove(&member)
            && rng.percent(50)
        {
            self.apply(change);
        }
        self.mail.remove(&member);
        self.rotation += 1;
        for owner in &mut self.owner {
            if *owner == Some(member) {
                *owner = None;
            }
        }
        self.settle();
    }

    pub(super) fn release(&mut self, member: MemberId, partitions: &[usize]) {
        for &partition in partitions {
            if self.owner[partition] == Some(member) {
                self.owner[partition] = None;
            }
            if let Some(told) = self.members.get_mut(&member) {
                told.remove(&partition);
            }
        }
        self.settle();
    }

    /// Partition i belongs to member i, rotated, modulo their number; a partition with an owner is asked for first.
    pub(super) fn settle(&mut self) {
        let members: Vec<MemberId> = self.members.keys().copied().collect();
        if members.is_empty() {
            return;
        }
        for partition in 0..self.partitions {
            let target = members[(partition + self.rotation) % members.len()];
            match self.owner[partition] {
                Some(owner) if owner == target => {}
                Some(owner) => {
                    let asked = self.mail[&owner]
                        .iter()
                        .any(|mail| mail.1.contains(&partition));
                    let told = self.members[&owner].contains(&partition);
                    if told && !asked {
                        self.members.get_mut(&owner).unwrap().remove(&partition);
                        self.mail
                            .get_mut(&owner)
                            .unwrap()
                            .push_back((vec![], vec![partition]));
                    }
                }
                None => {
                    self.seen.moves += 1;
                    self.owner[partition] = Some(target);
                    self.members.get_mut(&target).unwrap().insert(partition);
                    self.mail
                        .get_mut(&target)
                        .unwrap()
                        .push_back((vec![partition], vec![]));
                }
            }
        }
    }
}

pub(super) fn place_of(key: &str, partitions: usize) -> usize {
    partition_of(key.as_bytes(), partitions as u32).0 as usize
}

/// The commit, as the coordinator puts it together.
pub(super) fn change_of(acks: &[Ack]) -> Change {
    let mut change = Change::default();
    for ack in acks {
        change.offsets.extend(
            ack.offsets
                .iter()
                .map(|(p, next)| (p.partition.0 as usize, next.0)),
        );
        change.state.extend(ack.state.iter().cloned());
        for append in &ack.appends {
            let column = |at: usize| append.batch.column(at).as_primitive::<Int64Type>().clone();
            for row in 0..append.batch.num_rows() {
                if append.topic.as_str() == "copies" {
                    change
                        .copies
                        .push((column(2).value(row) as usize, column(3).value(row) as u64));
                } else {
                    let key = append
                        .batch
                        .column(0)
                        .as_string::<i32>()
                        .value(row)
                        .to_owned();
                    change
                        .totals
                        .push((key, column(1).value(row), column(2).value(row)));
                }
            }
        }
    }
    change
}
