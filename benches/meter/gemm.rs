//! How fast the matrix kernels that the models use multiply bytes when nothing else is to be done, and how fast the
//! processor's clock runs meanwhile: the practical and the theoretical limit of an int8 model.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Failure;

/// `m x k` bytes times `k x n` bytes, again and again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    threads: usize,
    m: usize,
    n: usize,
    k: usize,
    seconds: f64,
}

pub fn run(asked: &Gemm) -> Result<Value, Failure> {
    let results: Vec<Result<(f64, f64), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..asked.threads.max(1))
            .map(|_| scope.spawn(|| one(asked).map_err(|error| error.to_string())))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a thread panicked".to_owned()))
            })
            .collect()
    });
    let (mut gops, mut ghz) = (0.0, 0f64);
    for result in results {
        let (rate, clock) = result?;
        gops += rate;
        ghz = ghz.max(clock);
    }
    Ok(json!({"gops": gops, "ghz": ghz}))
}

/// Billions of operations (a multiplication and an addition are two) and of clock ticks a second of one thread.
fn one(asked: &Gemm) -> Result<(f64, f64), Failure> {
    // The kernels spread their work over the pool that they are called in.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| {
        let executor = GemmExecutor::<u8, i8, i32>::default();
        let a: Vec<u8> = (0..asked.m * asked.k)
            .map(|i| (i * 7 % 251) as u8)
            .collect();
        let b: Vec<i8> = (0..asked.k * asked.n)
            .map(|i| (i * 5 % 127) as i8)
            .collect();
        let packed = executor.prepack_b(NdTensorView::from_data([asked.k, asked.n], b.as_slice()));
        let mut out = vec![0i32; asked.m * asked.n];
        let mut best = 0f64;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs_f64(asked.seconds) {
            let once = Instant::now();
            executor.gemm(
                &mut out,
                GemmInputA::Unpacked(NdTensorView::from_data([asked.m, asked.k], a.as_slice())),
                GemmInputB::Packed(&packed),
                GemmOptions::default(),
            )?;
            black_box(&out);
            let operations = 2.0 * (asked.m * asked.n * asked.k) as f64;
            best = best.max(operations / once.elapsed().as_secs_f64() / 1e9);
        }
        Ok((best, clock()))
    })
}

/// Clock rate in GHz, from a chain of squarings that each wait for the one before: three ticks for the multiplication
/// and one for the `or`, on every x86-64 processor of the last ten years. A product with a constant would not do: the
/// compiler multiplies the constants. Only an optimised build runs it as such; 0 elsewhere.
fn clock() -> f64 {
    if cfg!(debug_assertions) || !cfg!(target_arch = "x86_64") {
        return 0.0;
    }
    const STEPS: u64 = 20_000_000;
    let mut best = 0f64;
    for _ in 0..5 {
        let mut value = black_box(3u64);
        let started = Instant::now();
        for _ in 0..STEPS {
            value = value.wrapping_mul(value) | 1;
        }
        black_box(value);
        best = best.max(STEPS as f64 * 4.0 / started.elapsed().as_nanos() as f64);
    }
    best
}
