//! One worker of a simulation: feeder, operator and sinks, driven one message at a time.

use super::*;

/// One incarnation of a worker: coordinator, feeder, operator and two sinks.
pub(super) struct Worker {
    pub(super) member: MemberId,
    pub(super) frozen_until: usize,
    pub(super) stopping: bool,
    pub(super) progress: Progress,
    pub(super) committed: Arc<AtomicU64>,
    pub(super) pending: Option<Pending>,
    pub(super) reports: VecDeque<Told>,
    pub(super) commands: VecDeque<Asked>,
    pub(super) feeder: Feeder,
    pub(super) to_operator: VecDeque<Message>,
    pub(super) to_copies: VecDeque<Message>,
    pub(super) operator: Box<dyn Operator>,
    pub(super) cx: Cx,
    pub(super) from_operator: mpsc::Receiver<Message>,
    pub(super) to_totals: VecDeque<Message>,
    pub(super) copies: Vec<RecordBatch>,
    pub(super) totals: Vec<RecordBatch>,
}

#[expect(clippy::large_enum_variant, reason = "one a checkpoint and node")]
pub(super) enum Told {
    Wanted,
    Ack(u64, Ack),
}

pub(super) enum Asked {
    Assign(Vec<(usize, u64)>),
    Revoke(Vec<usize>),
    Pause,
    Barrier(u64),
}

#[derive(Default)]
pub(super) struct Feeder {
    /// By partition: which reader, and the next offset that it fetches.
    pub(super) readers: BTreeMap<usize, (u64, u64)>,
    pub(super) last_reader: u64,
    pub(super) positions: BTreeMap<usize, u64>,
    /// Partition, reader, base, rows.
    pub(super) fetched: VecDeque<(usize, u64, u64, u64)>,
    pub(super) paused: bool,
    pub(super) wanted: bool,
    pub(super) rows: u64,
}

impl Worker {
    pub(super) fn new(member: MemberId, log: Arc<dyn Log>, resources: &Resources) -> Self {
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

    pub(super) fn begin(&mut self, checkpoint: Option<u64>) {
        if let Some(id) = checkpoint {
            self.pending = Some(Pending::new(id, 4));
            self.commands.push_back(Asked::Barrier(id));
        }
    }

    pub(super) fn take_mail(&mut self, world: &Mutex<World>) -> bool {
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

    pub(super) fn send(&mut self, message: &Message) {
        self.to_operator.push_back(message.clone());
        self.to_copies.push_back(message.clone());
    }

    pub(super) fn feed_command(&mut self) -> bool {
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

    pub(super) fn fetch(&mut self, world: &Mutex<World>, rng: &mut Rng) -> bool {
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

    pub(super) fn feed_batch(&mut self, world: &Mutex<World>) -> bool {
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

    pub(super) fn run_operator(&mut self) -> bool {
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

    pub(super) fn run_copies(&mut self) -> bool {
        run_sink(
            2,
            "copies",
            &mut self.to_copies,
            &mut self.copies,
            &mut self.reports,
        );
        true
    }

    pub(super) fn run_totals(&mut self) -> bool {
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

pub(super) fn run_sink(
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

pub(super) fn input_schema() -> SchemaRef {
    let whole = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        whole("value"),
        whole("partition"),
        whole("offset"),
    ]))
}

pub(super) fn batch_of(partition: usize, base: u64, rows: &[(String, i64)]) -> RecordBatch {
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
