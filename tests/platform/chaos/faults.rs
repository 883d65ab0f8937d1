//! What goes wrong, and when: a plan made of a seed.

use std::fmt;
use std::time::Duration;

/// SplitMix64: a run can be repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// Which way of a commit is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The broker never hears that the transaction ends.
    Request,
    /// It commits, and nobody hears of that.
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a worker, which comes back after `away`.
    KillWorker { worker: usize, away: Duration },
    /// `kill -9` of two workers at once.
    KillTwo { spared: usize, away: Duration },
    /// SIGSTOP of a worker for longer than its session: others own its partitions when it goes on.
    FreezeWorker { worker: usize, away: Duration },
    /// `kill -9` of one broker of three.
    KillBroker { broker: usize, away: Duration },
    /// The connections to a broker are cut in the middle of a commit, and stay so for `away`.
    CutCommit {
        broker: usize,
        way: Way,
        away: Duration,
    },
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillWorker { .. } => "kill -9 of a worker",
            Self::KillTwo { .. } => "kill -9 of two workers",
            Self::FreezeWorker { .. } => "SIGSTOP of a worker, longer than its session",
            Self::KillBroker { .. } => "kill -9 of a broker",
            Self::CutCommit {
                way: Way::Request, ..
            } => "commit cut off: request lost",
            Self::CutCommit {
                way: Way::Response, ..
            } => "commit cut off: answer lost",
        }
    }

    /// Processes that got SIGKILL.
    pub fn kills(&self) -> usize {
        match self {
            Self::KillWorker { .. } | Self::KillBroker { .. } => 1,
            Self::KillTwo { .. } => 2,
            Self::FreezeWorker { .. } | Self::CutCommit { .. } => 0,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::KillWorker { worker, away } | Self::FreezeWorker { worker, away } => {
                write!(f, " (worker {}, {away:.1?})", worker + 1)
            }
            Self::KillTwo { spared, away } => write!(f, " (all but {}, {away:.1?})", spared + 1),
            Self::KillBroker { broker, away } | Self::CutCommit { broker, away, .. } => {
                write!(f, " (broker {}, {away:.1?})", broker + 1)
            }
        }
    }
}

/// `count` faults. The first six are one of each kind, kills of workers before the others.
pub fn plan(count: usize, random: &mut Random) -> Vec<Fault> {
    let mut kinds: Vec<u64> = (0..6).collect();
    for at in (3..kinds.len()).rev() {
        kinds.swap(at, 2 + random.below(at as u64 - 1) as usize);
    }
    (0..count)
        .map(|at| {
            let kind = match kinds.get(at) {
                Some(kind) => *kind,
                // Most are kills of workers: they are what happens most, and what costs least time.
                None => [0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5][random.below(12) as usize],
            };
            let one = random.below(3) as usize;
            match kind {
                0 => Fault::KillWorker {
                    worker: one,
                    away: random.between(0, 2_000),
                },
                1 => Fault::KillTwo {
                    spared: one,
                    away: random.between(0, 2_000),
                },
                2 => Fault::FreezeWorker {
                    worker: one,
                    away: random.between(5_000, 8_000),
                },
                3 => Fault::KillBroker {
                    broker: one,
                    away: random.between(500, 4_000),
                },
                4 => Fault::CutCommit {
                    broker: one,
                    way: Way::Request,
                    away: random.between(500, 3_000),
                },
                _ => Fault::CutCommit {
                    broker: one,
                    way: Way::Response,
                    away: random.between(500, 3_000),
                },
            }
        })
        .collect()
}
