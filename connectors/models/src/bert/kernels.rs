//! The row operations between matrix products: quantise, dequantise, add + layer norm.
//!
//! Each is a plain loop inside a [`SimdOp`], so that the compiler vectorises it for the instruction set that is found
//! at run time (AVX-512, AVX2, NEON or none) without `unsafe` here. Reductions keep [`LANES`] partial results, because
//! floating-point sums may not be re-ordered by the compiler. Relies on `rten-simd` for the dispatch only.

use rten_simd::{Isa, SimdOp};

/// Partial results per reduction: one AVX-512 register of `f32`.
const LANES: usize = 16;

/// How a row of bytes maps back to numbers: `(byte - zero_point) * scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowQuant {
    /// Size of one step.
    pub scale: f32,
    /// The byte that stands for zero.
    pub zero_point: u8,
}

/// Quantises one row to unsigned bytes over its own range (which always includes zero).
///
/// A scale per row, not per batch, keeps the result of a text independent of the texts that it is batched with.
/// `src` and `dst` have the same length.
pub fn quantize_row(src: &[f32], dst: &mut [u8]) -> RowQuant {
    QuantizeRow { src, dst }.dispatch()
}

/// What belongs to the columns of a quantised product.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// Size of one step of the weights.
    pub scales: &'a [f32],
    /// Sum of the quantised weights.
    pub sums: &'a [i32],
    /// Added to the result.
    pub bias: &'a [f32],
}

/// `out = (acc - zero_point * sums) * (row scale * scales) + bias`, element by element; all slices have the same length.
pub fn dequantize_row(acc: &[i32], quant: RowQuant, columns: Columns<'_>, out: &mut [f32]) {
    DequantizeRow {
        acc,
        quant,
        columns,
        out,
    }
    .dispatch()
}

/// `x = layer_norm(x + y) * weight + bias`, all slices of the same length. `y` may be empty (nothing is added).
pub fn add_norm_row(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    AddNormRow {
        x,
        y,
        weight,
        bias,
        eps,
    }
    .dispatch()
}

/// `sum += row`, element by element.
pub fn add_row(sum: &mut [f32], row: &[f32]) {
    AddRow { sum, row }.dispatch()
}

struct QuantizeRow<'a> {
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl SimdOp for QuantizeRow<'_> {
    type Output = RowQuant;

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> RowQuant {
        let mut low = [0f32; LANES];
        let mut high = [0f32; LANES];
        let (chunks, rest) = self.src.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
                high[i] = if chunk[i] > high[i] {
                    chunk[i]
                } else {
                    high[i]
                };
            }
        }
        let mut min = 0f32;
        let mut max = 0f32;
        for i in 0..LANES {
            min = min.min(low[i]);
            max = max.max(high[i]);
        }
        for &v in rest {
            min = min.min(v);
            max = max.max(v);
        }
        let range = max - min;
        if range <= 0.0 {
            self.dst.fill(0);
            return RowQuant {
                scale: 1.0,
                zero_point: 0,
            };
        }
        let inv = 255.0 / range;
        let zero = (-min * inv).round_ties_even().clamp(0.0, 255.0);
        // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the number: cheaper than a saturating cast.
        const MAGIC: f32 = 12_582_912.0;
        for (d, &s) in self.dst.iter_mut().zip(self.src) {
            let q = s * inv + zero;
            let q = if q < 0.0 { 0.0 } else { q };
            let q = if q > 255.0 { 255.0 } else { q };
            *d = (q + MAGIC).to_bits() as u8;
        }
        RowQuant {
            scale: range / 255.0,
            zero_point: zero as u8,
        }
    }
}

struct DequantizeRow<'a> {
    acc: &'a [i32],
    quant: RowQuant,
    columns: Columns<'a>,
    out: &'a mut [f32],
}

impl SimdOp for DequantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let n = self.out.len();
        let Columns { scales, sums, bias } = self.columns;
        let (acc, scales, sums, bias) = (&self.acc[..n], &scales[..n], &sums[..n], &bias[..n]);
        let zero = i32::from(self.quant.zero_point);
        for i in 0..n {
            // Cannot overflow: at most 255 * 127 * inputs each. Wrapping, so that checked builds vectorise it too.
            let product = acc[i].wrapping_sub(sums[i].wrapping_mul(zero));
            self.out[i] = product as f32 * (self.quant.scale * scales[i]) + bias[i];
        }
    }
}

struct AddNormRow<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl SimdOp for AddNormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let n = self.x.len();
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
        let mean = sum_with(self.x, |v| v) / n as f32;
        let variance = sum_with(self.x, |v| (v - mean) * (v - mean)) / n as f32;
        let inv = 1.0 / (variance + self.eps).sqrt();
        let (weight, bias) = (&self.weight[..n], &self.bias[..n]);
        for i in 0..n {
            self.x[i] = (self.x[i] - mean) * inv * weight[i] + bias[i];
        }
    }
}

#[inline(always)]
fn sum_with(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&v| f(v)).sum::<f32>()
}

struct AddRow<'a> {
    sum: &'a mut [f32],
    row: &'a [f32],
}

impl SimdOp for AddRow<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for (s, &r) in self.sum.iter_mut().zip(self.row) {
            *s += r;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_rows_come_back_within_half_a_step() {
        for row in [
            (0..100)
                .map(|i| (i as f32 * 0.37).sin() * 3.0)
                .collect::<Vec<_>>(),
            vec![5.0; 33],
            vec![-2.5, -1.0, -0.25],
            vec![0.0; 20],
        ] {
            let mut bytes = vec![0u8; row.len()];
            let q = quantize_row(&row, &mut bytes);
            for (&b, &v) in bytes.iter().zip(&row) {
                let back = (b as f32 - q.zero_point as f32) * q.scale;
                assert!((back - v).abs() <= q.scale * 1.01, "{v} became {back}");
            }
        }
    }

    #[test]
    fn norm_has_zero_mean_and_unit_variance() {
        let mut x: Vec<f32> = (0..50).map(|i| i as f32).collect();
        let y = vec![1.0; 50];
        add_norm_row(&mut x, &y, &[1.0; 50], &[0.0; 50], 1e-12);
        let mean = x.iter().sum::<f32>() / 50.0;
        let var = x.iter().map(|v| v * v).sum::<f32>() / 50.0;
        assert!(mean.abs() < 1e-5 && (var - 1.0).abs() < 1e-4);
    }
}
