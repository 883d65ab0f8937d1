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
    Commit, FetchLimit, Fetched, FetchedRecords, GroupId, Log, LogError, Member, StateKey, Target,
    TopicConfig, Watermarks, partition_of,
};
use va_connectors::objects::Objects;
use va_models::{Embedders, ModelStore};
use va_operators::{Cx, Message, Operator, Origin, Resources, RowOrigin, State};

use super::checkpoint::{Ack, Pending, Progress};

mod log;
mod worker;
mod world;

use log::SimulatedLog;
use worker::{Asked, Told, Worker};
use world::{Change, MemberId, World, change_of, partitions_of, place_of};

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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Committed,
    Retriable,
    Fenced,
    Doubtful,
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

fn group() -> GroupId {
    GroupId(PipelineName::new("simulated").unwrap())
}

fn part(partition: usize) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("input").unwrap(),
        partition: Partition(partition as u32),
    }
}
