//! Parsing in processes of their own, so that a document that loops, eats memory or breaks a parser costs that document
//! and nothing else.
//!
//! [`Parser`] is the seam. [`WorkerPool`] is what the platform uses: child processes of the same program, which run
//! [`run_worker`]. [`InProcess`] is for where no child can be started: tests of operators and of pipeline files.
//! What the bytes mean is `va-parse`'s business.
//!
//! ```text
//! operator ──► WorkerPool ──socket──► worker: reader thread ──► va_parse::parse     (memory limit)
//!                  ▲                                                  │
//!                  └── time limit; kills, replaces ◄──── document ────┘
//! ```

mod death;
mod frame;
mod in_process;
mod parser;
mod pool;
mod process;
mod worker;

pub use death::Death;
pub use in_process::InProcess;
pub use parser::{Failure, Parser, Source, Unavailable};
pub use pool::{PoolOptions, WorkerPool};
pub use worker::run_worker;
