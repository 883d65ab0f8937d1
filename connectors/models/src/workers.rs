//! The threads that models run on: one per processor for bulk work, one more for queries.
//!
//! Each is a one-thread `rayon` pool, because the matrix kernels split their work over the pool that they are called
//! in, and a small matrix on one thread beats the same matrix on several. Bulk work enters a pool one piece at a time,
//! and short queries have a thread of their own, so that indexing never holds up a search for longer than the
//! operating system's time slice. Leaves the splitting into pieces to the caller.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::ModelError;

/// Environment variable that limits the bulk threads.
const THREADS: &str = "VA_MODEL_THREADS";

pub(crate) struct Workers {
    bulk: Vec<ThreadPool>,
    query: ThreadPool,
    next: AtomicUsize,
}

/// The threads of this process, started on first use.
pub(crate) fn workers() -> Result<&'static Workers, ModelError> {
    static WORKERS: OnceLock<Result<Workers, String>> = OnceLock::new();
    WORKERS
        .get_or_init(|| Workers::start().map_err(|e| e.to_string()))
        .as_ref()
        .map_err(|e| ModelError::Run(format!("start threads: {e}")))
}

/// How many threads bulk work, or a reply, may have: as many as there are processors, or as the environment says.
pub(crate) fn thread_count() -> usize {
    std::env::var(THREADS)
        .ok()
        .and_then(|v| v.parse::<usize>().ok())
        .filter(|&n| n > 0)
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1)
}

impl Workers {
    fn start() -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = thread_count();
        let one = |name: String| {
            ThreadPoolBuilder::new()
                .num_threads(1)
                .thread_name(move |_| name.clone())
                .build()
        };
        Ok(Self {
            bulk: (0..threads)
                .map(|i| one(format!("model-{i}")))
                .collect::<Result<_, _>>()?,
            query: one("model-query".to_owned())?,
            next: AtomicUsize::new(0),
        })
    }

    /// Runs one short, urgent piece of work.
    pub(crate) fn urgent<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.query.install(work)
    }

    /// Runs `work` on each piece, results in the order of `pieces`. The first error ends it.
    pub(crate) fn each<T: Sync, R: Send>(
        &self,
        pieces: &[T],
        work: impl Fn(&T) -> Result<R, ModelError> + Sync,
    ) -> Result<Vec<R>, ModelError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let pool = |i: usize| &self.bulk[(turn + i) % self.bulk.len()];
        if pieces.len() <= 1 || self.bulk.len() == 1 {
            return pieces.iter().map(|p| pool(0).install(|| work(p))).collect();
        }
        let taken = AtomicUsize::new(0);
        let run = |pool: &ThreadPool| -> Result<Vec<(usize, R)>, ModelError> {
            let mut done = Vec::new();
            loop {
                let i = taken.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = pieces.get(i) else {
                    return Ok(done);
                };
                match pool.install(|| work(piece)) {
                    Ok(result) => done.push((i, result)),
                    Err(error) => {
                        taken.store(pieces.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let parts = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..self.bulk.len().min(pieces.len()))
                .map(|i| {
                    let pool = pool(i);
                    let run = &run;
                    scope.spawn(move || run(pool))
                })
                .collect();
            handles
                .into_iter()
                .map(|h| {
                    h.join()
                        .unwrap_or_else(|_| Err(ModelError::Run("a model thread panicked".into())))
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        let mut all: Vec<(usize, R)> = parts.into_iter().flatten().collect();
        all.sort_unstable_by_key(|(i, _)| *i);
        Ok(all.into_iter().map(|(_, r)| r).collect())
    }
}
