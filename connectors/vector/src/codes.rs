//! The vectors of one partition of an index, as numbers of 16 bits in two planes, and the search among them.
//!
//! The high plane has a byte for each number: what a search reads of every vector, a quarter of the floats. The low plane
//! has what that byte is off by and is read for those that may be among the nearest, whose scores are then as good as those
//! of the floats to about a millionth: each number is off by a 508th of a step at most, where the step is a 127th of the
//! largest number. Uniform scalar quantisation with a scale for each vector; the second plane is the
//! residual, as in multi-stage quantisation (Juang and Gray, 1982).
//!
//! Which partitions are searched, and where they come from, is the business of `parts`.

use lance_linalg::distance::dot_u8::dot_u8;

/// Steps of the high plane on either side of zero.
const STEPS: f32 = 127.0;
/// Parts of a step that the low plane counts in.
const FINE: f32 = 254.0;
/// What is added to a number of the high plane so that it has no sign.
const ZERO: i64 = 128;
/// Partial sums of a product of floats, which the compiler may not reorder itself: one AVX-512 register.
const LANES: usize = 16;

/// The rows of a partition and their vectors, each of length one.
pub(crate) struct Codes {
    dims: usize,
    rows: Box<[u64]>,
    /// Size of a step of each vector.
    scales: Box<[f32]>,
    /// Sum of the bytes of each vector in the high plane.
    sums: Box<[u32]>,
    high: Box<[u8]>,
    low: Box<[i8]>,
    /// Length of the most that the high plane leaves out of a vector.
    left_out: f32,
}

impl Codes {
    /// Of these rows and their vectors, one after the other, of `dims` numbers each.
    pub fn new(dims: usize, rows: &[u64], vectors: &[f32]) -> Self {
        let mut codes = Self {
            dims,
            rows: rows.into(),
            scales: vec![0.0; rows.len()].into(),
            sums: vec![0; rows.len()].into(),
            high: vec![ZERO as u8; rows.len() * dims].into(),
            low: vec![0; rows.len() * dims].into(),
            left_out: 0.0,
        };
        for (row, vector) in vectors.chunks_exact(dims).take(rows.len()).enumerate() {
            let at = row * dims..(row + 1) * dims;
            let high = &mut codes.high[at.clone()];
            let (scale, left_out) = coarse(vector, high);
            codes.scales[row] = scale;
            codes.left_out = codes.left_out.max(left_out);
            codes.sums[row] = sum(high);
            for ((low, high), value) in codes.low[at].iter_mut().zip(&*high).zip(vector) {
                let whole = f32::from(i16::from(*high) - ZERO as i16);
                *low = ((value / scale - whole) * FINE).round_ties_even() as i8;
            }
        }
        codes
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        (self.rows.len() * (2 * self.dims + 16) + size_of::<Self>()) as u64
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The product of a row with the query, from both planes.
    fn product(&self, row: usize, query: &[f32]) -> f32 {
        let at = row * self.dims..(row + 1) * self.dims;
        let mut sums = [0f32; LANES];
        let high = self.high[at.clone()].chunks(LANES);
        let low = self.low[at].chunks(LANES);
        for ((high, low), query) in high.zip(low).zip(query.chunks(LANES)) {
            for (lane, sum) in sums.iter_mut().enumerate().take(query.len()) {
                let whole = f32::from(i16::from(high[lane]) - ZERO as i16);
                *sum += (whole + f32::from(low[lane]) / FINE) * query[lane];
            }
        }
        self.scales[row] * sums.iter().sum::<f32>()
    }
}

/// What is looked for.
pub(crate) struct Wanted {
    /// Of length one.
    vector: Vec<f32>,
    bytes: Vec<u8>,
    scale: f32,
    left_out: f32,
    /// What the product of its bytes with those of a row has too much, whatever the row.
    excess: i64,
}

impl Wanted {
    /// Near to this vector; `None` if it has no direction.
    pub fn new(vector: &[f32]) -> Option<Self> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if !length.is_normal() {
            return None;
        }
        let vector: Vec<f32> = vector.iter().map(|x| x / length).collect();
        let mut bytes = vec![0; vector.len()];
        let (scale, left_out) = coarse(&vector, &mut bytes);
        // (a + z)(b + z) = ab + z(a + z) + z(b + z) - zz, summed over all numbers.
        let excess = ZERO * i64::from(sum(&bytes)) - ZERO * ZERO * vector.len() as i64;
        Some(Self {
            vector,
            bytes,
            scale,
            left_out,
            excess,
        })
    }

    /// How much better two rows may look by their bytes, against each other, than they are.
    ///
    /// What is left out of a vector has no direction of its own, so its product with another, of length one, is spread
    /// around zero with the deviation length / sqrt(numbers): seven deviations, which one row in millions exceeds. Of few
    /// numbers no more than the lengths allow.
    fn margin(&self, codes: &Codes) -> f32 {
        let (query, row) = (self.left_out, codes.left_out);
        let deviation = (query.hypot(row)) / (self.vector.len() as f32).sqrt();
        let most = query + row + query * row;
        (7.0 * deviation).min(2.0 * most)
    }

    /// Of length one.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }
}

/// Rounds a vector to bytes; returns the size of a step, and the length of what is left out.
fn coarse(vector: &[f32], bytes: &mut [u8]) -> (f32, f32) {
    let largest = vector.iter().fold(0f32, |most, x| most.max(x.abs()));
    let scale = if largest > 0.0 { largest / STEPS } else { 1.0 };
    let mut left_out = 0.0;
    for (byte, value) in bytes.iter_mut().zip(vector) {
        let whole = (value / scale).round_ties_even();
        *byte = (whole as i16 + ZERO as i16) as u8;
        left_out += (value - whole * scale).powi(2);
    }
    (scale, left_out.sqrt())
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().copied().map(u32::from).sum()
}

/// The `k` rows of some of these partitions, which `turn` names, that are nearest by cosine, with it, of those that are
/// `visible`. In no order.
///
/// Their bytes choose all that may be among them, and both planes the nearest of these.
pub(crate) fn nearest(
    partitions: &[std::sync::Arc<Codes>],
    turn: impl Iterator<Item = usize>,
    wanted: &Wanted,
    k: usize,
    visible: impl Fn(u64) -> bool,
) -> Vec<(f32, u64)> {
    let mut best = Best::of(k);
    for partition in turn {
        let codes = &partitions[partition];
        best.margin = best.margin.max(wanted.margin(codes));
        for (row, bytes) in codes.high.chunks_exact(codes.dims).enumerate() {
            // The sum of as many products of two bytes as a vector may have numbers fits 32 bits.
            let product = i64::from(dot_u8(bytes, &wanted.bytes));
            let product = product - wanted.excess - ZERO * i64::from(codes.sums[row]);
            let score = product as f32 * (codes.scales[row] * wanted.scale);
            if score >= best.floor && visible(codes.rows[row]) {
                best.add(score, (partition, row));
            }
        }
    }
    let found = best.found.into_iter();
    let mut found: Vec<(f32, u64)> = found
        .map(|(_, (partition, row))| {
            let codes = &partitions[partition];
            (codes.product(row, &wanted.vector), codes.rows[row])
        })
        .collect();
    top(&mut found, k);
    found
}

/// Keeps the `k` best; of equal ones those with the smaller number.
pub(crate) fn top(found: &mut Vec<(f32, u64)>, k: usize) {
    if found.len() > k {
        found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        found.truncate(k);
    }
}

/// Whatever may be among the `k` best so far.
struct Best {
    k: usize,
    margin: f32,
    /// What is worse than this is not among them.
    floor: f32,
    found: Vec<(f32, (usize, usize))>,
    /// As many are looked through again.
    full: usize,
}

impl Best {
    fn of(k: usize) -> Self {
        let full = (4 * k).max(256);
        Self {
            k: k.max(1),
            margin: 0.0,
            floor: f32::NEG_INFINITY,
            found: Vec::with_capacity(full),
            full,
        }
    }

    fn add(&mut self, score: f32, row: (usize, usize)) {
        self.found.push((score, row));
        if self.found.len() == self.full {
            let (_, last, _) = self
                .found
                .select_nth_unstable_by(self.k - 1, |a, b| b.0.total_cmp(&a.0));
            self.floor = last.0 - self.margin;
            self.found.retain(|(score, _)| *score >= self.floor);
            // Where many are alike, all of them stay.
            self.full = self.full.max(2 * self.found.len());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// Numbers between -1 and 1, the same in every run.
    pub fn random(state: &mut u64) -> f32 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn unit(mut vector: Vec<f32>) -> Vec<f32> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    /// Vectors that are much alike, as those of a model are: the differences of their scores are small.
    pub fn alike(state: &mut u64, dims: usize) -> Vec<f32> {
        unit((0..dims).map(|i| (i % 5) as f32 + random(state)).collect())
    }

    #[test]
    fn scores_are_those_of_the_floats_and_nothing_nearer_is_missed() {
        let mut state = 7;
        for dims in [1, 3, 8, 64, 100, 384, 1024] {
            // The more numbers, the smaller they are, and the steps with them.
            let close = 4e-5 / (dims as f32).sqrt() + 2e-6;
            let rows: Vec<Vec<f32>> = (0..3000).map(|_| alike(&mut state, dims)).collect();
            let parts: Vec<Arc<Codes>> = rows
                .chunks(700)
                .enumerate()
                .map(|(part, rows)| {
                    let numbers: Vec<u64> = (0..rows.len() as u64)
                        .map(|i| part as u64 * 700 + i)
                        .collect();
                    Arc::new(Codes::new(dims, &numbers, &rows.concat()))
                })
                .collect();
            for k in [1, 20] {
                let query: Vec<f32> = alike(&mut state, dims).iter().map(|x| x * 3.0).collect();
                let wanted = Wanted::new(&query).expect("a direction");
                let odd = |row: u64| row % 2 == 1;
                let mut found = nearest(&parts, 0..parts.len(), &wanted, k, odd);
                found.sort_by(|a, b| b.0.total_cmp(&a.0));
                let dot = |row: u64| -> f32 {
                    let pairs = rows[row as usize].iter().zip(wanted.vector());
                    pairs.map(|(a, b)| a * b).sum()
                };
                let mut all: Vec<f32> = (0..3000).filter(|row| odd(*row)).map(dot).collect();
                all.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(found.len(), k);
                for ((score, row), expected) in found.iter().zip(all) {
                    assert!(odd(*row), "{row}");
                    assert!(
                        (score - dot(*row)).abs() < close,
                        "{dims}: {score} {}",
                        dot(*row)
                    );
                    assert!(
                        (score - expected).abs() < close,
                        "{dims}: {score} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_vector_without_direction_is_no_query() {
        assert!(Wanted::new(&[0.0; 8]).is_none());
        assert!(Wanted::new(&[f32::NAN; 8]).is_none());
        assert!(Wanted::new(&[f32::MAX; 8]).is_none());
    }

    #[test]
    fn rows_without_direction_are_found_last() {
        let codes = Codes::new(2, &[4, 5, 6], &[0.0, 0.0, 1.0, 0.0, -1.0, 0.0]);
        assert_eq!(codes.len(), 3);
        let wanted = Wanted::new(&[2.0, 0.0]).expect("a direction");
        let found = nearest(&[Arc::new(codes)], 0..1, &wanted, 2, |_| true);
        assert_eq!(found, [(1.0, 5), (0.0, 4)]);
    }
}
