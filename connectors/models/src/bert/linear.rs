//! One linear layer, `y = x W^T + b`, with 8-bit or 32-bit weights packed once for the matrix kernels.
//!
//! 8 bit: weights are symmetric with one scale per output, activations are quantised per row while running (the
//! scheme of dynamic quantisation). Relies on `rten-gemm` for the product; what happens to a finished row is passed in
//! as a closure, so that it runs while the row is still in the nearest cache.

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix, QuantParams};
use rten_tensor::NdTensorView;

use super::kernels::{RowQuant, dequantize_row, quantize_row};
use crate::error::ModelError;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 8-bit weights and activations in the linear layers: about twice as fast and a quarter of the memory.
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
    },
    F32(PackedBMatrix<f32>),
}

/// Buffers that a forward pass reuses from layer to layer.
#[derive(Default)]
pub struct LinearScratch {
    bytes: Vec<u8>,
    quants: Vec<RowQuant>,
    zero_points: Vec<u8>,
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
                let mut bytes = Vec::with_capacity(weights.len());
                for row in weights.chunks_exact(inputs) {
                    let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
                    let scale = if largest > 0.0 { largest / limit } else { 1.0 };
                    scales.push(scale);
                    bytes.extend(row.iter().map(|w| (w / scale).round_ties_even() as i8));
                }
                let view = NdTensorView::from_data([outputs, inputs], bytes.as_slice());
                Weights::Int8 {
                    packed: gemm.int8.prepack_b(view.transposed()),
                    scales,
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
            Weights::Int8 { packed, scales } => {
                scratch.bytes.resize(rows.len(), 0);
                scratch.acc.resize(count * self.outputs, 0);
                scratch.quants.clear();
                scratch.zero_points.clear();
                for (row, bytes) in rows
                    .chunks_exact(self.inputs)
                    .zip(scratch.bytes.chunks_exact_mut(self.inputs))
                {
                    let quant = quantize_row(row, bytes);
                    scratch.quants.push(quant);
                    scratch.zero_points.push(quant.zero_point);
                }
                gemm.int8.gemm(
                    &mut scratch.acc,
                    GemmInputA::Unpacked(NdTensorView::from_data(
                        [count, self.inputs],
                        scratch.bytes.as_slice(),
                    )),
                    GemmInputB::Packed(packed),
                    GemmOptions {
                        a_quant: Some(QuantParams {
                            zero_point: &scratch.zero_points,
                        }),
                        ..GemmOptions::default()
                    },
                )?;
                for (i, row) in out.chunks_exact_mut(self.outputs).enumerate() {
                    let acc = &scratch.acc[i * self.outputs..(i + 1) * self.outputs];
                    dequantize_row(acc, scratch.quants[i].scale, scales, &self.bias, row);
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
