//! Thousands of seeded schedules of checkpoint, commit, crash and rebalance, each repeatable to the step.
//!
//! What is simulated is the outside: a log with consumer groups whose commits fail, end in doubt or come too late, workers
//! that crash, freeze and come back as zombies, partitions that move. What decides is the real thing: [`Progress`],
//! [`Pending`], the `aggregate` operator and its [`State`]. The nodes around them are driven one message at a time, in
//! an order that the seed chooses, so that every interleaving of barriers, batches and assignments can come.
//!
//! After every commit the judge compares with a recomputation: offsets, outputs and totals belong together, nothing is
//! lost, nothing is twice. A failure names its seed; `VA_SIM_SEED=n` repeats it alone, `VA_SIM_SEEDS=n` runs more.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::flow::Append;
use va_connectors::log::{
    Commit, FetchLimit, Fetched, GroupId, Log, LogError, Member, StateKey, Target, TopicConfig,
    Watermarks, partition_of,
};
use va_connectors::objects::Objects;
use va_models::{Embedders, ModelStore};
use va_operators::{Cx, Message, Operator, Origin, Resources, RowOrigin, State};

use super::checkpoint::{Ack, Pending, Progress};

const PARTITIONS: usize = 3;
const WORKERS: usize = 3;
const KEYS: u64 = 7;
/// Steps with faults; afterwards everything heals and has to come to rest.
const STEPS: usize = 8_000;
/// More than any healed schedule needs.
const CALM_STEPS: usize = 200_000;
const COMMIT_TRIES: usize = 4;

#[test]
fn no_schedule_loses_or_doubles_anything() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let resources = Resources {
        objects: Objects::local(dir.path()).unwrap(),
        embedders: Arc::new(Embedders::new(ModelStore::open(dir.path()).unwrap())),
        parser: Arc::new(va_parse_worker::InProcess::default()),
    };
    let seeds = match number("VA_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VA_SIM_SEEDS").unwrap_or(400),
    };
    let mut seen = Seen::default();
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| Simulation::new(seed, &resources).run())) {
            Ok(one) => seen.add(&one),
            Err(_) => panic!("seed {seed} failed; repeat it with VA_SIM_SEED={seed}"),
        }
    }
    println!("{} schedules: {seen:?}", seeds.end - seeds.start);
    if seeds.end - seeds.start >= 100 {
        // A schedule without faults would prove nothing.
        let Seen {
            commits,
            fenced,
            doubtful,
            crashes,
            freezes,
            moves,
            retried,
            ..
        } = seen;
        assert!(
            [commits, fenced, doubtful, crashes, freezes, moves, retried]
                .iter()
                .all(|&n| n > 0),
            "{seen:?}"
        );
    }
}

/// What happened, to show that it did.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    rows: u64,
    commits: u64,
    retried: u64,
    doubtful: u64,
    fenced: u64,
    crashes: u64,
    freezes: u64,
    moves: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.commits += other.commits;
        self.retried += other.retried;
        self.doubtful += other.doubtful;
        self.fenced += other.fenced;
        self.crashes += other.crashes;
        self.freezes += other.freezes;
        self.moves += other.moves;
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// One session of a worker with the group; a worker that starts again is another member.
type MemberId = u64;

/// How many partitions a schedule uses: with few of them workers are left without any, and get some back later.
fn partitions_of(seed: u64) -> usize {
    1 + seed as usize % PARTITIONS
}

/// The log: input, outputs, state, group. Everything that survives.
#[derive(Default)]
struct World {
    partitions: usize,
    /// Grows with every change of membership, so that partitions also move between members that stay, and back.
    rotation: usize,
    input: [Vec<(String, i64)>; PARTITIONS],
    committed: [u64; PARTITIONS],
    /// What the stateless branch wrote, by partition: source offsets.
    copies: [Vec<u64>; PARTITIONS],
    totals: HashMap<String, (i64, i64)>,
    state: HashMap<StateKey, Bytes>,
    members: BTreeMap<MemberId, BTreeSet<usize>>,
    owner: [Option<MemberId>; PARTITIONS],
    mail: BTreeMap<MemberId, VecDeque<(Vec<usize>, Vec<usize>)>>,
    /// Commits that were neither confirmed nor refused: settled before anybody else gets the partitions.
    doubtful: BTreeMap<MemberId, Change>,
    seen: Seen,
}

/// What a commit holds.
#[derive(Clone, Default)]
struct Change {
    offsets: Vec<(usize, u64)>,
    copies: Vec<(usize, u64)>,
    totals: Vec<(String, i64, i64)>,
    state: Vec<(StateKey, Option<Bytes>)>,
}

impl World {
    fn apply(&mut self, change: Change) {
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
    fn recomputed(&self, key: &str) -> (i64, i64) {
        let partition = place_of(key, self.partitions);
        self.input[partition][..self.committed[partition] as usize]
            .iter()
            .filter(|row| row.0 == key)
            .fold((0, 0), |(count, sum), row| (count + 1, sum + row.1))
    }

    fn join(&mut self, member: MemberId) {
        self.members.insert(member, BTreeSet::new());
        self.mail.insert(member, VecDeque::new());
        self.rotation += 1;
        self.settle();
    }

    /// A member is gone, or held to be: what it left in doubt is settled first, as a fence does.
    fn expel(&mut self, member: MemberId, rng: &mut Rng) {
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

    fn release(&mut self, member: MemberId, partitions: &[usize]) {
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
    fn settle(&mut self) {
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

fn place_of(key: &str, partitions: usize) -> usize {
    partition_of(key.as_bytes(), partitions as u32).0 as usize
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Committed,
    Retriable,
    Fenced,
    Doubtful,
}

/// One incarnation of a worker: coordinator, feeder, operator and two sinks.
struct Worker {
    member: MemberId,
    frozen_until: usize,
    stopping: bool,
    progress: Progress,
    committed: Arc<AtomicU64>,
    pending: Option<Pending>,
    reports: VecDeque<Told>,
    commands: VecDeque<Asked>,
    feeder: Feeder,
    to_operator: VecDeque<Message>,
    to_copies: VecDeque<Message>,
    operator: Box<dyn Operator>,
    cx: Cx,
    from_operator: mpsc::Receiver<Message>,
    to_totals: VecDeque<Message>,
    copies: Vec<RecordBatch>,
    totals: Vec<RecordBatch>,
}

enum Told {
    Wanted,
    Ack(u64, Ack),
}

enum Asked {
    Assign(Vec<(usize, u64)>),
    Revoke(Vec<usize>),
    Pause,
    Barrier(u64),
}

#[derive(Default)]
struct Feeder {
    /// By partition: which reader, and the next offset that it fetches.
    readers: BTreeMap<usize, (u64, u64)>,
    last_reader: u64,
    positions: BTreeMap<usize, u64>,
    /// Partition, reader, base, rows.
    fetched: VecDeque<(usize, u64, u64, u64)>,
    paused: bool,
    wanted: bool,
    rows: u64,
}

struct Simulation<'a> {
    seed: u64,
    rng: Rng,
    world: Arc<Mutex<World>>,
    workers: Vec<Option<Worker>>,
    /// Members of workers that crashed; the group learns of it later.
    ghosts: Vec<MemberId>,
    members: u64,
    resources: &'a Resources,
    faults: bool,
}

impl<'a> Simulation<'a> {
    fn new(seed: u64, resources: &'a Resources) -> Self {
        let world = World {
            partitions: partitions_of(seed),
            ..World::default()
        };
        Self {
            seed,
            rng: Rng(seed),
            world: Arc::new(Mutex::new(world)),
            workers: (0..WORKERS).map(|_| None).collect(),
            ghosts: Vec::new(),
            members: 0,
            resources,
            faults: true,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn run(mut self) -> Seen {
        for step in 0..STEPS {
            self.disturb(step);
            self.advance(step);
        }
        // Heal: who is frozen wakes up, who is dead is started, ghosts are noticed.
        self.faults = false;
        for ghost in std::mem::take(&mut self.ghosts) {
            self.with_world(|world, rng| world.expel(ghost, rng));
        }
        for slot in 0..WORKERS {
            if let Some(worker) = &mut self.workers[slot] {
                worker.frozen_until = 0;
            } else {
                self.start(slot);
            }
        }
        for step in STEPS..STEPS + CALM_STEPS {
            self.advance(step);
            if self.workers.iter().any(Option::is_none) {
                (0..WORKERS)
                    .filter(|&slot| self.workers[slot].is_none())
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|slot| self.start(slot));
            }
            let world = self.world();
            if (0..PARTITIONS).all(|p| world.committed[p] == world.input[p].len() as u64) {
                break;
            }
        }
        self.judge()
    }

    /// Everything went through, once and in order.
    fn judge(&self) -> Seen {
        let mut world = self.world();
        for partition in 0..PARTITIONS {
            let all: Vec<u64> = (0..world.input[partition].len() as u64).collect();
            assert_eq!(
                world.copies[partition], all,
                "partition {partition} of seed {}",
                self.seed
            );
        }
        let keys: BTreeSet<String> = world
            .input
            .iter()
            .flatten()
            .map(|row| row.0.clone())
            .collect();
        for key in keys {
            assert_eq!(
                world.totals.get(&key),
                Some(&world.recomputed(&key)),
                "`{key}` of seed {}",
                self.seed
            );
        }
        world.seen.rows = world.input.iter().map(|rows| rows.len() as u64).sum();
        world.seen
    }

    fn with_world<T>(&mut self, with: impl FnOnce(&mut World, &mut Rng) -> T) -> T {
        let world = self.world.clone();
        let mut world = world
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        with(&mut world, &mut self.rng)
    }

    /// The outside: new rows, crashes, freezes, the group noticing them, restarts, orderly stops.
    fn disturb(&mut self, step: usize) {
        if self.rng.percent(4) {
            let key = format!("k{}", self.rng.below(KEYS));
            let value = self.rng.below(100) as i64;
            let mut world = self.world();
            let place = place_of(&key, world.partitions);
            world.input[place].push((key, value));
        }
        let slot = self.rng.below(WORKERS as u64) as usize;
        match (self.rng.below(1_000), &mut self.workers[slot]) {
            (0, worker @ Some(_)) => {
                if let Some(worker) = worker.take() {
                    self.ghosts.push(worker.member);
                    self.world().seen.crashes += 1;
                }
            }
            (1, Some(worker)) => {
                worker.frozen_until = step + 20 + self.rng.below(600) as usize;
                self.world().seen.freezes += 1;
            }
            (2, Some(worker)) if !worker.stopping => {
                worker.stopping = true;
                worker.commands.push_back(Asked::Pause);
                let next = worker.progress.want();
                worker.begin(next);
            }
            (3..=40, None) => self.start(slot),
            _ => {}
        }
        // Session time-outs: of the dead, and of those that have been silent for long.
        if self.rng.percent(3)
            && let Some(ghost) = self.ghosts.pop()
        {
            self.with_world(|world, rng| world.expel(ghost, rng));
        }
        if self.rng.percent(2) {
            let frozen = self
                .workers
                .iter()
                .flatten()
                .find(|worker| worker.frozen_until > step);
            if let Some(member) = frozen.map(|worker| worker.member) {
                self.with_world(|world, rng| world.expel(member, rng));
            }
        }
    }

    fn start(&mut self, slot: usize) {
        self.members += 1;
        let member = self.members;
        self.world().join(member);
        let log: Arc<dyn Log> = Arc::new(SimulatedLog(self.world.clone()));
        self.workers[slot] = Some(Worker::new(member, log, self.resources));
    }

    /// One message of one worker.
    fn advance(&mut self, step: usize) {
        let slot = self.rng.below(WORKERS as u64) as usize;
        let Some(mut worker) = self.workers[slot].take() else {
            return;
        };
        if worker.frozen_until > step {
            self.workers[slot] = Some(worker);
            return;
        }
        let alive = match self.rng.below(8) {
            0 => worker.take_mail(&self.world),
            1 => worker.feed_command(),
            2 => worker.fetch(&self.world, &mut self.rng),
            3 => worker.feed_batch(&self.world),
            4 => worker.run_operator(),
            5 => worker.run_copies(),
            6 => worker.run_totals(),
            _ => self.coordinate(&mut worker),
        };
        if worker.stopping && worker.progress.is_idle() && worker.commands.is_empty() {
            let member = worker.member;
            self.with_world(|world, rng| world.expel(member, rng));
        } else if alive {
            self.workers[slot] = Some(worker);
        } else {
            // The task failed and its member leaves; the supervisor starts another one.
            let member = worker.member;
            self.with_world(|world, rng| world.expel(member, rng));
            self.start(slot);
        }
    }

    /// What the coordinator does with one report. False: the task ends with an error.
    fn coordinate(&mut self, worker: &mut Worker) -> bool {
        match worker.reports.pop_front() {
            None => true,
            Some(Told::Wanted) => {
                let next = worker.progress.want();
                worker.begin(next);
                true
            }
            Some(Told::Ack(checkpoint, ack)) => {
                let pending = worker
                    .pending
                    .as_mut()
                    .filter(|pending| pending.id == checkpoint);
                let Some(acks) = pending.expect("a checkpoint in flight").arrived(ack) else {
                    return true;
                };
                worker.pending = None;
                let change = change_of(&acks);
                let mut tries = 0;
                let ended = loop {
                    tries += 1;
                    let ended = self.commit(worker.member, &change);
                    if ended != Ended::Retriable || tries == COMMIT_TRIES {
                        break ended;
                    }
                };
                if ended != Ended::Committed {
                    return false;
                }
                worker.committed.store(checkpoint, Ordering::Release);
                let (released, next) = worker.progress.committed();
                let released: Vec<usize> =
                    released.iter().map(|p| p.partition.0 as usize).collect();
                for partition in &released {
                    assert!(
                        !worker.feeder.positions.contains_key(partition),
                        "partition {partition} is given up before its last rows are committed"
                    );
                }
                self.world().release(worker.member, &released);
                worker.begin(next);
                true
            }
        }
    }

    fn commit(&mut self, member: MemberId, change: &Change) -> Ended {
        let faults = self.faults;
        self.with_world(|world, rng| {
            let owns = change
                .offsets
                .iter()
                .all(|(p, _)| world.owner[*p] == Some(member));
            if !owns || !world.members.contains_key(&member) {
                world.seen.fenced += 1;
                return Ended::Fenced;
            }
            match rng.below(100) {
                0..=7 if faults => {
                    world.seen.retried += 1;
                    Ended::Retriable
                }
                8..=15 if faults => {
                    world.seen.doubtful += 1;
                    world.doubtful.insert(member, change.clone());
                    Ended::Doubtful
                }
                _ => {
                    world.apply(change.clone());
                    Ended::Committed
                }
            }
        })
    }
}

impl Worker {
    fn new(member: MemberId, log: Arc<dyn Log>, resources: &Resources) -> Self {
        let entry = va_operators::registry::operator("aggregate").unwrap();
        let options =
            json!({"group_by": ["key"], "compute": {"n": "count()", "sum": "sum(value)"}});
        let operator = (entry.build)(&options, &[input_schema()], resources).unwrap();
        let committed = Arc::new(AtomicU64::new(0));
        let state = State::new(log, group(), "totals".into(), committed.clone());
        let (to, from_operator) = mpsc::channel(1_024);
        let cx = Cx::new(
            vec![to],
            Arc::new(|_| {}),
            state,
            Arc::new(|| 0),
            CancellationToken::new(),
        );
        Self {
            member,
            frozen_until: 0,
            stopping: false,
            progress: Progress::default(),
            committed,
            pending: None,
            reports: VecDeque::new(),
            commands: VecDeque::new(),
            feeder: Feeder::default(),
            to_operator: VecDeque::new(),
            to_copies: VecDeque::new(),
            operator,
            cx,
            from_operator,
            to_totals: VecDeque::new(),
            copies: Vec::new(),
            totals: Vec::new(),
        }
    }

    fn begin(&mut self, checkpoint: Option<u64>) {
        if let Some(id) = checkpoint {
            self.pending = Some(Pending::new(id, 4));
            self.commands.push_back(Asked::Barrier(id));
        }
    }

    fn take_mail(&mut self, world: &Mutex<World>) -> bool {
        let mut world = world.lock().unwrap();
        if !world.members.contains_key(&self.member) {
            // A heartbeat is refused: the group went on without this worker.
            return false;
        }
        let Some((assigned, revoked)) = world
            .mail
            .get_mut(&self.member)
            .and_then(VecDeque::pop_front)
        else {
            return true;
        };
        let assigned = assigned
            .into_iter()
            .map(|p| (p, world.committed[p]))
            .collect::<Vec<_>>();
        drop(world);
        self.commands.push_back(Asked::Revoke(revoked.clone()));
        self.commands.push_back(Asked::Assign(assigned));
        if !revoked.is_empty() {
            let next = self
                .progress
                .revoke(revoked.into_iter().map(part).collect());
            self.begin(next);
        }
        true
    }

    fn send(&mut self, message: &Message) {
        self.to_operator.push_back(message.clone());
        self.to_copies.push_back(message.clone());
    }

    fn feed_command(&mut self) -> bool {
        match self.commands.pop_front() {
            None => {}
            Some(Asked::Assign(partitions)) => {
                if !partitions.is_empty() {
                    self.send(&Message::Assigned);
                }
                for (partition, from) in partitions {
                    self.feeder.last_reader += 1;
                    self.feeder.positions.insert(partition, from);
                    self.feeder
                        .readers
                        .insert(partition, (self.feeder.last_reader, from));
                }
            }
            Some(Asked::Revoke(partitions)) => {
                for partition in partitions {
                    self.feeder.readers.remove(&partition);
                }
            }
            Some(Asked::Pause) => self.feeder.paused = true,
            Some(Asked::Barrier(id)) => {
                self.send(&Message::Barrier(id));
                self.feeder.wanted = false;
                self.feeder.rows = 0;
                let offsets = self
                    .feeder
                    .positions
                    .iter()
                    .map(|(&p, &next)| (part(p), Offset(next)))
                    .collect();
                let ack = Ack {
                    node: 0,
                    offsets,
                    ..Ack::default()
                };
                let readers = &self.feeder.readers;
                self.feeder
                    .positions
                    .retain(|partition, _| readers.contains_key(partition));
                self.reports.push_back(Told::Ack(id, ack));
            }
        }
        true
    }

    fn fetch(&mut self, world: &Mutex<World>, rng: &mut Rng) -> bool {
        let world = world.lock().unwrap();
        let partition = rng.below(PARTITIONS as u64) as usize;
        if self.feeder.fetched.len() < 4
            && let Some((reader, next)) = self.feeder.readers.get_mut(&partition)
        {
            let there = world.input[partition].len() as u64;
            let rows = (1 + rng.below(4)).min(there.saturating_sub(*next));
            if rows > 0 {
                self.feeder
                    .fetched
                    .push_back((partition, *reader, *next, rows));
                *next += rows;
            }
        }
        true
    }

    fn feed_batch(&mut self, world: &Mutex<World>) -> bool {
        if self.feeder.paused {
            return true;
        }
        let Some((partition, reader, base, rows)) = self.feeder.fetched.pop_front() else {
            return true;
        };
        let known = self.feeder.readers.get(&partition);
        if known.is_some_and(|known| known.0 == reader) {
            let input = world.lock().unwrap().input[partition]
                [base as usize..(base + rows) as usize]
                .to_vec();
            let origin = Origin {
                partition: part(partition),
                base: Offset(base),
                rows: RowOrigin::Aligned,
            };
            self.send(&Message::Batch {
                batch: batch_of(partition, base, &input),
                origin: Some(origin),
            });
            self.feeder.positions.insert(partition, base + rows);
            self.feeder.rows += rows;
        }
        // Also after a batch of a former reader, which may have been the last one in the channel.
        let due = self.feeder.rows > 3 || self.feeder.fetched.is_empty();
        if !self.feeder.wanted && self.feeder.rows > 0 && due {
            self.feeder.wanted = true;
            self.reports.push_back(Told::Wanted);
        }
        true
    }

    fn run_operator(&mut self) -> bool {
        match self.to_operator.pop_front() {
            None => return true,
            Some(Message::Batch { batch, origin }) => {
                self.cx.enter(&batch, origin);
                block_on(self.operator.on_batch(0, batch, &mut self.cx)).unwrap();
            }
            Some(Message::Assigned) => {
                self.operator.on_assigned();
                block_on(self.cx.assigned()).unwrap();
            }
            Some(Message::Barrier(id)) => {
                self.cx.enter_barrier();
                block_on(self.operator.on_barrier(&mut self.cx)).unwrap();
                let output = block_on(self.cx.leave_barrier(id)).unwrap();
                assert!(output.counts.conserved());
                let ack = Ack {
                    node: 1,
                    state: output.state,
                    ..Ack::default()
                };
                self.reports.push_back(Told::Ack(id, ack));
            }
        }
        while let Ok(message) = self.from_operator.try_recv() {
            self.to_totals.push_back(message);
        }
        true
    }

    fn run_copies(&mut self) -> bool {
        run_sink(
            2,
            "copies",
            &mut self.to_copies,
            &mut self.copies,
            &mut self.reports,
        );
        true
    }

    fn run_totals(&mut self) -> bool {
        run_sink(
            3,
            "totals",
            &mut self.to_totals,
            &mut self.totals,
            &mut self.reports,
        );
        true
    }
}

fn run_sink(
    node: usize,
    topic: &str,
    messages: &mut VecDeque<Message>,
    held: &mut Vec<RecordBatch>,
    reports: &mut VecDeque<Told>,
) {
    match messages.pop_front() {
        None | Some(Message::Assigned) => {}
        Some(Message::Batch { batch, .. }) => held.push(batch),
        Some(Message::Barrier(id)) => {
            let topic = TopicName::new(topic).unwrap();
            let appends = std::mem::take(held)
                .into_iter()
                .map(|batch| Append {
                    topic: topic.clone(),
                    target: Target::Partition(Partition(0)),
                    batch,
                })
                .collect();
            reports.push_back(Told::Ack(
                id,
                Ack {
                    node,
                    appends,
                    ..Ack::default()
                },
            ));
        }
    }
}

/// The commit, as the coordinator puts it together.
fn change_of(acks: &[Ack]) -> Change {
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

fn input_schema() -> SchemaRef {
    let whole = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        whole("value"),
        whole("partition"),
        whole("offset"),
    ]))
}

fn batch_of(partition: usize, base: u64, rows: &[(String, i64)]) -> RecordBatch {
    let count = rows.len() as i64;
    RecordBatch::try_new(
        input_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(Int64Array::from(vec![partition as i64; rows.len()])),
            Arc::new(Int64Array::from_iter_values(
                base as i64..base as i64 + count,
            )),
        ],
    )
    .unwrap()
}

fn group() -> GroupId {
    GroupId(PipelineName::new("simulated").unwrap())
}

fn part(partition: usize) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("input").unwrap(),
        partition: Partition(partition as u32),
    }
}

/// The log as the operator's state sees it; the rest goes through [`World`] directly.
struct SimulatedLog(Arc<Mutex<World>>);

fn elsewhere<T>() -> Result<T, LogError> {
    Err(LogError::Config("the simulation does this itself".into()))
}

#[async_trait]
impl Log for SimulatedLog {
    async fn state_get(&self, key: &StateKey) -> Result<Option<Bytes>, LogError> {
        let world = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(world.state.get(key).cloned())
    }

    async fn create_topic(&self, _: &TopicName, _: TopicConfig) -> Result<(), LogError> {
        elsewhere()
    }
    async fn delete_topic(&self, _: &TopicName) -> Result<(), LogError> {
        elsewhere()
    }
    async fn topics(&self) -> Result<Vec<(TopicName, TopicConfig)>, LogError> {
        elsewhere()
    }
    async fn watermarks(&self, _: &TopicPartition) -> Result<Watermarks, LogError> {
        elsewhere()
    }
    async fn offset_at(&self, _: &TopicPartition, _: i64) -> Result<Offset, LogError> {
        elsewhere()
    }
    async fn fetch(
        &self,
        _: &TopicPartition,
        _: Offset,
        _: FetchLimit,
        _: Duration,
    ) -> Result<Fetched, LogError> {
        elsewhere()
    }
    async fn committed(&self, _: &GroupId, _: &TopicPartition) -> Result<Option<Offset>, LogError> {
        elsewhere()
    }
    async fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        elsewhere()
    }
    async fn reset_group(
        &self,
        _: &GroupId,
        _: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError> {
        elsewhere()
    }
    async fn join(&self, _: &GroupId, _: &[TopicName]) -> Result<Box<dyn Member>, LogError> {
        elsewhere()
    }
    fn begin(&self) -> Box<dyn Commit> {
        panic!("the simulation does this itself")
    }
    async fn state_scan(
        &self,
        _: &GroupId,
        _: &str,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        elsewhere()
    }
    async fn enforce_retention(&self, _: i64) -> Result<u64, LogError> {
        elsewhere()
    }
    async fn close(&self) -> Result<(), LogError> {
        elsewhere()
    }
}
