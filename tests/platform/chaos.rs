//! Chaos with an oracle: three workers under load lose processes, brokers and connections at seeded moments, and in the end
//! a judge compares what is there with what was acknowledged.
//!
//! ```text
//!  oracle ── events, documents ──► va serve ──► 3 brokers ◄── proxies ◄── 3 × va worker ──► PostgreSQL, S3
//!  (keeps what was acknowledged)                   ▲             ▲             ▲
//!                                                  └── faults ───┴─────────────┘
//! ```
//! What runs: (a) events are decoded, mapped one to one, and counted and summed by a key that is not the partition's; (b)
//! documents come, change and go in a collection with vectors and in one without. `make test` plays two, kills of workers;
//! `make chaos` plays hundreds and writes RELIABILITY.md.

#[path = "chaos/faults.rs"]
pub mod faults;
#[path = "chaos/oracle.rs"]
mod oracle;
#[path = "chaos/report.rs"]
mod report;
#[path = "chaos/world.rs"]
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::server::need_model;
use faults::{Random, plan};
use oracle::Oracle;
use report::{Played, Report};
use world::World;

/// Faults of a run in `make test`.
const FAULTS: usize = 2;

#[test]
fn nothing_is_lost_or_doubled_whatever_dies() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let seed = number("VA_CHAOS_SEED", 20_261_125);
    let count = number("VA_CHAOS_FAULTS", FAULTS as u64) as usize;
    // For machines that are needed for something else afterwards: what was played by then is judged.
    let limit = Duration::from_secs(60 * number("VA_CHAOS_MINUTES", 24 * 60));
    let Some(()) = need_model() else { return };
    let Some(mut world) = World::start() else {
        return;
    };
    println!("VA_CHAOS_SEED={seed} VA_CHAOS_FAULTS={count}");
    let started = Instant::now();
    let oracle = Oracle::begin(&world);
    let done = AtomicBool::new(false);
    let mut random = Random(seed);
    let mut played = Vec::new();
    std::thread::scope(|scope| {
        // Also when a step fails: the load must not go on for ever.
        let _end = Raise(&done);
        let load = [
            scope.spawn(|| oracle.events(&world.serve, &done)),
            scope.spawn(|| oracle.documents(&world.serve, &done)),
        ];
        for fault in plan(count, &mut random) {
            if started.elapsed() > limit {
                break;
            }
            let behind = world.ends();
            let at = Instant::now();
            world.faults.play(&fault, &mut random);
            let recovered = world.until_consumed(&behind, at);
            println!(
                "{:>6.1} s  {fault}: consumed again after {recovered:.1?}",
                started.elapsed().as_secs_f64()
            );
            played.push(Played { fault, recovered });
            world.faults.calm();
        }
        done.store(true, Ordering::SeqCst);
        for load in load {
            load.join().unwrap();
        }
    });
    let verdict = oracle.judge(&world);
    let report = Report {
        seed,
        played,
        verdict,
        took: started.elapsed(),
    };
    println!("{report}");
    if let Some(path) = std::env::var_os("VA_CHAOS_REPORT") {
        report.write(path.as_ref());
    }
    report.verdict.check();
}

/// Sets a flag when it goes.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Lets time pass for those who work; the tests' own steps wait for what they can see.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
