//! Late interaction: comparing two texts token by token instead of vector by vector.
//!
//! [`max_sim`] is the score of ColBERT (Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via
//! Contextualized Late Interaction over BERT", SIGIR 2020), as a mean instead of a sum, so that long questions and short ones
//! are on one scale. Passages are kept with 8 bits a number, a quarter of the memory; what that changes is less than two
//! passages ever differ by (ColBERTv2, Santhanam et al., NAACL 2022, goes to 2 bits).
//!
//! Pure arithmetic. Leaves making the vectors to the [`Embedder`](crate::Embedder), keeping them to the caller.

use crate::error::ModelError;
use crate::pooling::normalize;

/// The vectors of a text's tokens, each of length 1, in the order of the text: a matrix `[tokens, dims]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenVectors {
    dims: usize,
    /// Row by row.
    values: Vec<f32>,
}

impl TokenVectors {
    /// From rows of `dims` values each, which are scaled to length 1.
    ///
    /// # Errors
    /// When `values` is not a number of whole rows, or a row has no direction: zeros, or a number that is not finite.
    pub fn new(dims: usize, mut values: Vec<f32>) -> Result<Self, ModelError> {
        if dims == 0 || !values.len().is_multiple_of(dims) {
            return Err(ModelError::Input(format!(
                "{} values are not rows of {dims}",
                values.len()
            )));
        }
        for row in values.chunks_exact_mut(dims) {
            normalize(row)?;
        }
        Ok(Self { dims, values })
    }

    /// The rows `keep` of `rows`, which has `dims` values a row.
    pub(crate) fn of(rows: &[f32], dims: usize, keep: &[usize]) -> Result<Self, ModelError> {
        let mut values = Vec::with_capacity(keep.len() * dims);
        for &at in keep {
            let row = rows.get(at * dims..(at + 1) * dims).ok_or_else(|| {
                ModelError::Run(format!("the model gave no vector for token {at} of a text"))
            })?;
            values.extend_from_slice(row);
        }
        Self::new(dims, values)
    }

    /// Width of a row.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.values.len() / self.dims.max(1)
    }

    /// Whether the text has no token that says anything.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The vectors of the tokens.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dims.max(1))
    }

    /// The same with 8 bits a number.
    pub fn pack(&self) -> PackedTokens {
        let mut packed = PackedTokens {
            dims: self.dims,
            scales: Vec::with_capacity(self.len()),
            values: Vec::with_capacity(self.values.len()),
        };
        for row in self.rows() {
            let largest = row.iter().fold(0f32, |most, value| most.max(value.abs()));
            // A row has length 1, so its largest value is not zero.
            let scale = largest / f32::from(i8::MAX);
            packed.scales.push(scale);
            let values = row.iter().map(|value| (value / scale).round() as i8);
            packed.values.extend(values);
        }
        packed
    }
}

/// Token vectors with 8 bits a number and one scale a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedTokens {
    dims: usize,
    scales: Vec<f32>,
    values: Vec<i8>,
}

impl PackedTokens {
    /// What they take in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.values.len() + self.scales.len() * size_of::<f32>()
    }
}

/// How well a passage answers a query: the mean over the query's tokens of the cosine of the passage's nearest token, from -1
/// to 1. `None` where either has no token, or their widths differ.
pub fn max_sim(query: &TokenVectors, passage: &PackedTokens) -> Option<f64> {
    if query.is_empty() || passage.scales.is_empty() || query.dims != passage.dims {
        return None;
    }
    let nearest = |token: &[f32]| {
        let rows = passage.values.chunks_exact(passage.dims);
        let cosines = rows
            .zip(&passage.scales)
            .map(|(row, scale)| dot(token, row) * scale);
        f64::from(cosines.fold(f32::NEG_INFINITY, f32::max))
    };
    Some(query.rows().map(nearest).sum::<f64>() / query.len() as f64)
}

/// The product of two rows. Sums run side by side, so that the compiler can use vector instructions.
fn dot(a: &[f32], b: &[i8]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(a, b)| a * f32::from(*b)).sum();
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * f32::from(*b);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of two values.
    fn tokens(rows: &[[f32; 2]]) -> TokenVectors {
        TokenVectors::new(2, rows.concat()).unwrap()
    }

    #[test]
    fn each_token_of_the_query_takes_its_nearest() {
        let query = tokens(&[[1.0, 0.0], [0.0, 1.0]]);
        for (passage, expected) in [
            (vec![[2.0, 0.0], [0.0, 3.0]], 1.0),
            // One word is there, the other is not.
            (vec![[5.0, 0.0]], 0.5),
            (vec![[-1.0, 0.0]], -0.5),
            // 3-4-5: the only token is at 0.6 and 0.8.
            (vec![[3.0, 4.0]], 0.7),
            // More words take nothing away.
            (vec![[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 1.0),
        ] {
            let score = max_sim(&query, &tokens(&passage).pack()).unwrap();
            assert!((score - expected).abs() < 0.01, "{passage:?}: {score}");
        }
    }

    #[test]
    fn what_cannot_be_compared_has_no_score() {
        let query = tokens(&[[1.0, 0.0]]);
        assert_eq!(max_sim(&query, &tokens(&[]).pack()), None);
        assert_eq!(max_sim(&tokens(&[]), &query.pack()), None);
        let wide = TokenVectors::new(3, vec![1.0, 0.0, 0.0]).unwrap();
        assert_eq!(max_sim(&query, &wide.pack()), None);
        assert!(TokenVectors::new(2, vec![1.0]).is_err());
        assert!(TokenVectors::new(2, vec![0.0, 0.0]).is_err());
        assert!(TokenVectors::new(0, Vec::new()).is_err());
    }

    #[test]
    fn packing_changes_little() {
        // Wider than the lanes and no multiple of them, by a fixed walk.
        let mut at = 7_u32;
        let mut values = Vec::new();
        for _ in 0..40 * 37 {
            at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            values.push((at >> 8) as f32 / (1 << 23) as f32 - 1.0);
        }
        let all = TokenVectors::new(37, values).unwrap();
        let packed = all.pack();
        assert_eq!(all.len(), 40);
        assert!(packed.bytes() < 40 * 37 * 2, "{}", packed.bytes());
        let score = max_sim(&all, &packed).unwrap();
        assert!((score - 1.0).abs() < 0.005, "{score}");
    }
}
