//! Scaled dot-product attention over texts that lie one after another in one buffer.
//!
//! Works in `f32` on one head of one text at a time (its scores fit the nearest caches). Relies on `rten-gemm` for the
//! two products and `rten-vecmath` for softmax; the scale is already in the queries.

use rten_gemm::{GemmInputA, GemmInputB, GemmOptions};
use rten_simd::SimdOp;
use rten_tensor::{Matrix, NdTensorView};
use rten_vecmath::Softmax;

use super::linear::Gemm;
use crate::error::ModelError;

/// Fills `context` (`[tokens, hidden]`) from `qkv` (`[tokens, 3 * hidden]`: query, key, value), each text of
/// `lengths` tokens seeing only itself.
pub fn attend(
    gemm: &Gemm,
    qkv: &[f32],
    lengths: &[usize],
    heads: usize,
    hidden: usize,
    context: &mut [f32],
) -> Result<(), ModelError> {
    let width = hidden / heads;
    let stride = 3 * hidden;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut scores = vec![0f32; longest * longest];
    let mut mixed = vec![0f32; longest * width];
    let mut start = 0;
    for &length in lengths {
        let text = &qkv[start * stride..(start + length) * stride];
        let out = &mut context[start * hidden..(start + length) * hidden];
        let scores = &mut scores[..length * length];
        let mixed = &mut mixed[..length * width];
        for head in 0..heads {
            let at = head * width;
            let query = strided(&text[at..], [length, width], [stride, 1])?;
            let key = strided(&text[hidden + at..], [width, length], [1, stride])?;
            let value = strided(&text[2 * hidden + at..], [length, width], [stride, 1])?;
            gemm.f32.gemm(
                scores,
                GemmInputA::Unpacked(query),
                GemmInputB::Unpacked(key),
                GemmOptions::default(),
            )?;
            for row in scores.chunks_exact_mut(length) {
                Softmax::new_mut(row).dispatch();
            }
            gemm.f32.gemm(
                mixed,
                GemmInputA::Unpacked(NdTensorView::from_data([length, length], &*scores)),
                GemmInputB::Unpacked(value),
                GemmOptions::default(),
            )?;
            for (row, mixed) in out.chunks_exact_mut(hidden).zip(mixed.chunks_exact(width)) {
                row[at..at + width].copy_from_slice(mixed);
            }
        }
        start += length;
    }
    Ok(())
}

fn strided(data: &[f32], shape: [usize; 2], strides: [usize; 2]) -> Result<Matrix<'_>, ModelError> {
    NdTensorView::from_slice_with_strides(shape, data, strides)
        .map_err(|e| ModelError::Format(format!("attention view: {e:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_sees_only_itself() {
        let (heads, hidden) = (2, 64);
        let width = hidden / heads;
        for lengths in [
            vec![1],
            vec![3],
            vec![16],
            vec![17],
            vec![70],
            vec![20, 5, 1, 33],
        ] {
            let tokens: usize = lengths.iter().sum();
            let qkv: Vec<f32> = (0..tokens * 3 * hidden)
                .map(|i| ((i * 7919 + i / 13) % 1009) as f32 / 1009.0 - 0.5)
                .collect();
            let mut found = vec![f32::NAN; tokens * hidden];
            attend(&Gemm::new(), &qkv, &lengths, heads, hidden, &mut found).unwrap();
            let at = |token: usize, part: usize, i: usize| qkv[(token * 3 + part) * hidden + i];
            let mut start = 0;
            for &length in &lengths {
                for query in start..start + length {
                    for head in 0..heads {
                        let dims = head * width..(head + 1) * width;
                        let weights: Vec<f32> = (start..start + length)
                            .map(|key| {
                                let score: f32 =
                                    dims.clone().map(|i| at(query, 0, i) * at(key, 1, i)).sum();
                                score.exp()
                            })
                            .collect();
                        let total: f32 = weights.iter().sum();
                        for i in dims {
                            let expected: f32 = (start..start + length)
                                .zip(&weights)
                                .map(|(key, w)| w / total * at(key, 2, i))
                                .sum();
                            let found = found[query * hidden + i];
                            assert!(
                                (found - expected).abs() < 1e-4,
                                "{lengths:?} token {query} value {i}: {found}, not {expected}"
                            );
                        }
                    }
                }
                start += length;
            }
        }
    }
}
