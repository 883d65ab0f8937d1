//! One linear layer, `y = x W^T + b`, with 8-bit or 32-bit weights packed once for the matrix kernels.
//!
//! 8 bit: weights are symmetric with one scale per output, activations are quantised per row while running (the
//! scheme of dynamic quantisation). Relies on `rten-gemm` for the product; what happens to a finished row is passed in
//! as a closure, so that it runs while the row is still in the nearest cache.

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

use super::kernels::{Columns, RowQuant, dequantize_row, quantize_row};
use crate::error::ModelError;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 8-bit weights and activations in the linear layers: about twice as fast and a quarter of the memory.
    #[default]
    Int8,
    /// 32-bit floats throughout.
    F32,
}

/// The matrix kernels that fit this processor: always the same ones, so weights packed with one `Gemm` fit another.
/// Cheap to make, and made per forward pass because it cannot move between threads.
pub struct Gemm {
    int8: GemmExecutor<u8, i8, i32>,
    pub(super) f32: GemmExecutor<f32, f32, f32>,
}

impl Gemm {
    /// Picks the kernels for this processor.
    pub fn new() -> Self {
        Self {
            int8: GemmExecutor::default(),
            f32: GemmExecutor::default(),
        }
    }
}

/// Weights and bias of one layer.
pub struct Linear {
    inputs: usize,
    outputs: usize,
    bias: Vec<f32>,
    weights: Weights,
}

enum Weights {
    Int8 {
        packed: PackedBMatrix<i8>,
        scales: Vec<f32>,
        /// Sum of the weights of each output, which the zero points of the inputs are multiplied with.
        sums: Vec<i32>,
    },
    F32(PackedBMatrix<f32>),
}

/// Buffers that a forward pass reuses from layer to layer.
#[derive(Default)]
pub struct LinearScratch {
    bytes: Vec<u8>,
    quants: Vec<RowQuant>,
    acc: Vec<i32>,
}

impl Linear {
    /// Packs `weights` (`[outputs, inputs]`, row by row) for the kernels in `gemm`.
    ///
    /// # Errors
    /// When the sizes of `weights` and `bias` do not fit each other.
    pub fn new(
        gemm: &Gemm,
        precision: Precision,
        weights: &[f32],
        bias: Vec<f32>,
        inputs: usize,
    ) -> Result<Self, ModelError> {
        let outputs = bias.len();
        if weights.len() != outputs * inputs {
            return Err(ModelError::Format(format!(
                "linear layer has {} weights; {outputs} outputs of {inputs} inputs need {}",
                weights.len(),
                outputs * inputs
            )));
        }
        let weights = match precision {
            Precision::Int8 => {
                // Kernels without a real 8-bit dot product add pairs in 16 bits; 7-bit weights keep these from
                // saturating.
                let limit = if gemm.int8.may_saturate() {
                    63.0
                } else {
                    127.0
                };
                let mut scales = Vec::with_capacity(outputs);
                let mut sums = Vec::with_capacity(outputs);
                let mut bytes: Vec<i8> = Vec::with_capacity(weights.len());
                for row in weights.chunks_exact(inputs) {
                    let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
                    let scale = if largest > 0.0 { largest / limit } else { 1.0 };
                    scales.push(scale);
                    bytes.extend(row.iter().map(|w| (w / scale).round_ties_even() as i8));
                    sums.push(
                        bytes[bytes.len() - inputs..]
                            .iter()
                            .map(|&b| i32::from(b))
                            .sum(),
                    );
                }
                let view = NdTensorView::from_data([outputs, inputs], bytes.as_slice());
                Weights::Int8 {
                    packed: gemm.int8.prepack_b(view.transposed()),
                    scales,
                    sums,
                }
            }
            Precision::F32 => {
                let view = NdTensorView::from_data([outputs, inputs], weights);
                Weights::F32(gemm.f32.prepack_b(view.transposed()))
            }
        };
        Ok(Self {
            inputs,
            outputs,
            bias,
            weights,
        })
    }

    /// Number of values per output row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Runs the layer on `rows` (whole rows of `inputs` values) into `out`, calling `finish(row number, row)` on each
    /// output row.
    pub fn forward(
        &self,
        gemm: &Gemm,
        rows: &[f32],
        out: &mut [f32],
        scratch: &mut LinearScratch,
        mut finish: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), ModelError> {
        let count = rows.len() / self.inputs;
        match &self.weights {
            Weights::Int8 {
                packed,
                scales,
                sums,
            } => {
                scratch.bytes.resize(rows.len(), 0);
                scratch.acc.resize(count * self.outputs, 0);
                scratch.quants.clear();
                for (row, bytes) in rows
                    .chunks_exact(self.inputs)
                    .zip(scratch.bytes.chunks_exact_mut(self.inputs))
                {
                    scratch.quants.push(quantize_row(row, bytes));
                }
                gemm.int8.gemm(
                    &mut scratch.acc,
                    GemmInputA::Unpacked(NdTensorView::from_data(
                        [count, self.inputs],
                        scratch.bytes.as_slice(),
                    )),
                    GemmInputB::Packed(packed),
                    // Zero points are corrected for below: the kernels of rten-gemm 0.27 apply those of the first
                    // rows to all rows (`products_agree_with_the_definition` shows it).
                    GemmOptions::default(),
                )?;
                for (i, row) in out.chunks_exact_mut(self.outputs).enumerate() {
                    let acc = &scratch.acc[i * self.outputs..(i + 1) * self.outputs];
                    let columns = Columns {
                        scales,
                        sums,
                        bias: &self.bias,
                    };
                    dequantize_row(acc, scratch.quants[i], columns, row);
                    finish(i, row);
                }
            }
            Weights::F32(packed) => {
                gemm.f32.gemm(
                    out,
                    GemmInputA::Unpacked(NdTensorView::from_data([count, self.inputs], rows)),
                    GemmInputB::Packed(packed),
                    GemmOptions {
                        bias: Some(rten_gemm::BiasVector::Row(&self.bias)),
                        ..GemmOptions::default()
                    },
                )?;
                for (i, row) in out.chunks_exact_mut(self.outputs).enumerate() {
                    finish(i, row);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both precisions against the definition, for row counts around the sizes of kernel tiles.
    #[test]
    fn products_agree_with_the_definition() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        pool.install(|| {
            // One scratch for all, as in a forward pass: what an earlier layer left in it must not matter.
            let mut scratch = LinearScratch::default();
            for (inputs, outputs) in [(384, 1152), (384, 384), (384, 1536), (1536, 384), (33, 7)] {
                for rows in [1, 2, 15, 16, 17, 24, 63, 64] {
                    check(inputs, outputs, rows, &mut scratch);
                }
            }
        });
    }

    fn check(inputs: usize, outputs: usize, rows: usize, scratch: &mut LinearScratch) {
        let value = |i: usize| ((i * 7919 + i / 13) % 1009) as f32 / 504.5 - 1.0;
        let weights: Vec<f32> = (0..inputs * outputs).map(|i| value(i) * 0.1).collect();
        let bias: Vec<f32> = (0..outputs).map(value).collect();
        // Each row has a range of its own, so that a mix-up of rows shows.
        let x: Vec<f32> = (0..rows * inputs)
            .map(|i| value(i + 5) + (i / inputs % 5) as f32 * 0.3)
            .collect();
        let gemm = Gemm::new();
        for (precision, tolerance) in [(Precision::F32, 1e-3), (Precision::Int8, 0.2)] {
            let linear = Linear::new(&gemm, precision, &weights, bias.clone(), inputs).unwrap();
            let mut out = vec![0f32; rows * outputs];
            let mut finished = 0;
            linear
                .forward(&gemm, &x, &mut out, scratch, |_, _| {
                    finished += 1;
                })
                .unwrap();
            assert_eq!(finished, rows);
            for row in 0..rows {
                for col in 0..outputs {
                    let (x, w) = (&x[row * inputs..], &weights[col * inputs..]);
                    let expected: f32 = (0..inputs).map(|k| x[k] * w[k]).sum::<f32>() + bias[col];
                    let found = out[row * outputs + col];
                    assert!(
                        (found - expected).abs() < tolerance,
                        "{precision:?} {inputs}x{outputs} row {row} of {rows}, column {col}: {found}, not {expected}"
                    );
                }
            }
        }
    }
}
