//! The pool: as many workers as there are processors, started when there is work, ended when there has been none.
//!
//! A call shares its documents among lanes, one a worker. A lane sends the next small document while the one before is
//! parsed, so that a worker never waits for the pool. Everything happens inside the caller's future: the pool spawns
//! nothing, and a call that is dropped kills the workers it was using.
//!
//! A document whose worker died is tried once more, alone, on a fresh worker: somebody may have killed the process, or
//! documents before it may have used up its memory. One that ran out of time is not.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use va_parse::{Document, Limits};

use crate::death::Death;
use crate::parser::{Failure, Parser, Source, Unavailable};
use crate::process::{Worker, this_program};

/// Documents that a worker may have, the one being parsed included.
const DOCUMENTS_MAX: usize = 2;
/// Bytes that may be on their way to a worker beyond the document being parsed: they count towards its memory.
const BYTES_AHEAD: usize = 1 << 20;

/// What bounds the pool and each document.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Most processes at once.
    pub workers: usize,
    /// Longest time for one document.
    pub timeout: Duration,
    /// Most memory that one process may allocate.
    pub memory_bytes_max: u64,
    /// Of documents for which nothing else is said.
    pub limits: Limits,
}

/// Parses in child processes of this program, which must answer to `parse-worker` with [`crate::run_worker`].
pub struct WorkerPool {
    options: PoolOptions,
    program: PathBuf,
    /// One permit a process that works.
    working: Semaphore,
    /// The one used last is at the end.
    idle: Mutex<Vec<(Worker, Instant)>>,
}

impl WorkerPool {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// When it cannot be told which program this is.
    pub fn new(options: PoolOptions) -> Result<Self, Unavailable> {
        let program = this_program().map_err(|error| Unavailable(error.to_string()))?;
        Ok(Self {
            working: Semaphore::new(options.workers.max(1)),
            idle: Mutex::default(),
            program,
            options,
        })
    }

    /// Ends workers that have had nothing to do for so long; returns how many.
    pub fn end_idle(&self, unused: Duration) -> usize {
        let mut idle = self.idle();
        let before = idle.len();
        idle.retain(|(_, since)| since.elapsed() < unused);
        before - idle.len()
    }

    fn last_idle(&self) -> Option<(Worker, Instant)> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Worker, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_worker(&self, fresh: bool) -> Result<Worker, Unavailable> {
        if fresh {
            // Its place, so that there are never more processes than allowed.
            drop(self.last_idle());
        } else {
            while let Some((mut worker, _)) = self.last_idle() {
                if worker.is_alive() {
                    return Ok(worker);
                }
            }
        }
        Worker::start(&self.program, self.options.memory_bytes_max)
            .await
            .map_err(|error| Unavailable(error.to_string()))
    }

    /// Works on the documents of `call` until none waits.
    async fn lane(&self, call: &Call<'_>) -> Result<(), Unavailable> {
        let Ok(_permit) = self.working.acquire().await else {
            return Ok(());
        };
        let mut worker: Option<Worker> = None;
        while let Some(next) = call.next(None) {
            let mut current = match worker.take() {
                Some(worker) if worker.fresh || !next.again => worker,
                _ => self.take_worker(next.again).await?,
            };
            let mut sent = VecDeque::new();
            let mut waiting = Some(next);
            let broken = loop {
                if let Some(job) = waiting.take() {
                    let source = &call.documents[job.index];
                    sent.push_back(job);
                    let sending = current.send(source, call.limits);
                    match timeout(self.options.timeout, sending).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => break Some(Broken::Died(error)),
                        Err(_) => break Some(Broken::Late),
                    }
                }
                waiting = call.next(Some(&sent));
                if waiting.is_some() {
                    continue;
                }
                let Some(job) = sent.front() else {
                    break None;
                };
                let index = job.index;
                let started = Instant::now();
                match timeout(self.options.timeout, current.reply(call.limits)).await {
                    Ok(Ok(reply)) => {
                        sent.pop_front();
                        call.finish(index, reply.map_err(Failure::Refused), started);
                    }
                    Ok(Err(error)) => break Some(Broken::Died(error)),
                    Err(_) => break Some(Broken::Late),
                }
            };
            match broken {
                None => worker = Some(current),
                Some(broken) => {
                    let death = match broken {
                        Broken::Late => Death::Timeout(self.options.timeout),
                        Broken::Died(error) => current.autopsy(&error).await,
                    };
                    call.died(sent, death);
                }
            }
        }
        if let Some(worker) = worker {
            self.idle().push((worker, Instant::now()));
        }
        Ok(())
    }
}

enum Broken {
    Late,
    Died(std::io::Error),
}

#[async_trait]
impl Parser for WorkerPool {
    async fn parse(
        &self,
        documents: Vec<Source>,
        limits: &Limits,
    ) -> Result<Vec<Result<Document, Failure>>, Unavailable> {
        let lanes = self.options.workers.max(1).min(documents.len());
        let call = Call::new(&documents, limits, lanes);
        let mut lanes: FuturesUnordered<_> = (0..lanes).map(|_| self.lane(&call)).collect();
        // A lane that waits for a worker of somebody else's is not waited for.
        while !call.is_done()
            && let Some(lane) = lanes.next().await
        {
            lane?;
        }
        drop(lanes);
        Ok(call.outcomes())
    }

    fn limits(&self) -> Limits {
        self.options.limits
    }
}

/// A document of a call that waits for a worker.
#[derive(Debug, Clone, Copy)]
struct Job {
    index: usize,
    /// A worker died of it, perhaps.
    again: bool,
}

/// The documents of one call and what became of them.
struct Call<'a> {
    documents: &'a [Source],
    limits: &'a Limits,
    /// While fewer documents wait than this, each is left to the lane that is free first.
    lanes: usize,
    state: Mutex<CallState>,
}

struct CallState {
    waiting: VecDeque<Job>,
    outcomes: Vec<Option<Result<Document, Failure>>>,
    left: usize,
}

impl<'a> Call<'a> {
    fn new(documents: &'a [Source], limits: &'a Limits, lanes: usize) -> Self {
        let waiting = (0..documents.len()).map(|index| Job {
            index,
            again: false,
        });
        Self {
            documents,
            limits,
            lanes,
            state: Mutex::new(CallState {
                waiting: waiting.collect(),
                outcomes: documents.iter().map(|_| None).collect(),
                left: documents.len(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, CallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next document: the first for a lane without one, else one that may go to its worker ahead of time.
    fn next(&self, sent: Option<&VecDeque<Job>>) -> Option<Job> {
        let mut state = self.state();
        let job = *state.waiting.front()?;
        if let Some(sent) = sent.filter(|sent| !sent.is_empty()) {
            let ahead: usize = sent.iter().skip(1).map(|job| self.size(job)).sum();
            let alone = job.again || sent.iter().any(|job| job.again);
            if alone
                || sent.len() >= DOCUMENTS_MAX
                || state.waiting.len() < self.lanes
                || ahead + self.size(&job) > BYTES_AHEAD
            {
                return None;
            }
        } else if sent.is_some() && job.again {
            return None;
        }
        state.waiting.pop_front()
    }

    fn size(&self, job: &Job) -> usize {
        self.documents[job.index].bytes.len()
    }

    fn finish(&self, index: usize, outcome: Result<Document, Failure>, started: Instant) {
        let word = outcome.as_ref().map_or_else(Failure::kind, |_| "parsed");
        metrics::histogram!("va_parse_seconds", "outcome" => word)
            .record(started.elapsed().as_secs_f64());
        let mut state = self.state();
        state.outcomes[index] = Some(outcome);
        state.left -= 1;
    }

    /// The worker of these documents is gone: the first is what it was parsing, the others go back.
    fn died(&self, mut sent: VecDeque<Job>, death: Death) {
        metrics::counter!("va_parse_worker_restarts_total", "cause" => death.kind()).increment(1);
        let Some(first) = sent.pop_front() else {
            return;
        };
        let name = &self.documents[first.index].name;
        tracing::warn!(name, cause = death.kind(), "a parser process was lost");
        let give_up = first.again || matches!(death, Death::Timeout(_));
        {
            let mut state = self.state();
            for job in sent.into_iter().rev() {
                state.waiting.push_front(job);
            }
            if !give_up {
                state.waiting.push_back(Job {
                    again: true,
                    ..first
                });
                return;
            }
        }
        let mut state = self.state();
        state.outcomes[first.index] = Some(Err(Failure::Died(death)));
        state.left -= 1;
    }

    fn is_done(&self) -> bool {
        self.state().left == 0
    }

    fn outcomes(self) -> Vec<Result<Document, Failure>> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        state
            .outcomes
            .into_iter()
            .map(|outcome| {
                outcome.unwrap_or_else(|| {
                    Err(Failure::Died(Death::Ended("it was never started".into())))
                })
            })
            .collect()
    }
}
