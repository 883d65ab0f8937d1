//! Weights of a language model in memory, and products with them.
//!
//! GGUF has many ways to pack weights, and none of them is what a processor multiplies. All are unpacked at loading into the
//! same form: a signed byte for each weight, and for each group of 32 (or 16) a scale and, where the type has one, an offset:
//! `weight = scale * byte + offset`. That loses nothing of the file's types, and costs 1.25 bytes for each weight. Numbers
//! that go in are rounded to bytes per 32 as well, as llama.cpp does, so that all products are of whole numbers.
//!
//! The loops are plain, inside a [`SimdOp`], so that the compiler vectorises them for the instruction set that is found at
//! run time, without `unsafe` here. A product is cut into rows that the threads of the surrounding `rayon` pool share; a
//! row's sum does not depend on how, so results are the same with any number of threads.

use half::f16;
use rayon::prelude::*;
use rten_simd::{Isa, SimdOp};

use super::gguf::{Gguf, TensorInfo, bytes};
use crate::error::ModelError;

/// Numbers that share a scale on their way in.
const BLOCK: usize = 32;
/// Multiplications below which a second thread costs more than it does.
const PARALLEL_MIN: usize = 400_000;

/// A matrix of weights, row by row.
#[derive(Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    values: Vec<i8>,
    /// One for each `group` of a row.
    scales: Vec<f32>,
    /// One for each group, or none at all.
    offsets: Vec<f32>,
    group: usize,
}

/// Rows of numbers, rounded to bytes.
pub(super) struct Rounded {
    rows: usize,
    columns: usize,
    values: Vec<i8>,
    /// One for each block.
    scales: Vec<f32>,
    /// The sum of each block, for the offsets of weights.
    sums: Vec<f32>,
}

/// How a type of GGML packs weights: how many go into how many bytes, and what shares a scale.
struct Packing {
    weights: usize,
    bytes: usize,
    group: usize,
    has_offsets: bool,
    unpack: Unpack,
}

/// From packed bytes to values, scales and offsets.
type Unpack = fn(&[u8], &mut [i8], &mut [f32], &mut [f32]);

fn packing(kind: u32) -> Option<Packing> {
    fn of(
        weights: usize,
        bytes: usize,
        group: usize,
        has_offsets: bool,
        unpack: Unpack,
    ) -> Option<Packing> {
        Some(Packing {
            weights,
            bytes,
            group,
            has_offsets,
            unpack,
        })
    }
    match kind {
        2 => of(32, 18, 32, false, q4_0),
        3 => of(32, 20, 32, true, q4_1),
        6 => of(32, 22, 32, false, q5_0),
        7 => of(32, 24, 32, true, q5_1),
        8 => of(32, 34, 32, false, q8_0),
        12 => of(256, 144, 32, true, q4_k),
        13 => of(256, 176, 32, true, q5_k),
        14 => of(256, 210, 16, false, q6_k),
        _ => None,
    }
}

impl Matrix {
    /// Unpacks the tensor `name`, which must have this shape.
    pub(super) fn read(
        file: &[u8],
        gguf: &Gguf,
        name: &str,
        (rows, columns): (usize, usize),
    ) -> Result<Self, ModelError> {
        let info = find(gguf, name, &[columns, rows])?;
        let packing = packing(info.kind).ok_or_else(|| {
            ModelError::Format(format!(
                "tensor `{name}` has GGML type {}; supported are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
                info.kind
            ))
        })?;
        if !columns.is_multiple_of(packing.weights) {
            return Err(ModelError::Format(format!(
                "tensor `{name}` has rows of {columns}, which is no multiple of {}",
                packing.weights
            )));
        }
        let count = rows * columns;
        let packed = bytes(
            file,
            name,
            info.start,
            count / packing.weights * packing.bytes,
        )?;
        let groups = count / packing.group;
        let mut matrix = Self {
            rows,
            columns,
            values: vec![0; count],
            scales: vec![0.0; groups],
            // Also where there are none, so that one signature fits all; dropped below.
            offsets: vec![0.0; groups],
            group: packing.group,
        };
        let step = packing.weights / packing.group;
        let parts = packed.chunks_exact(packing.bytes);
        let values = matrix.values.chunks_exact_mut(packing.weights);
        let scales = matrix.scales.chunks_exact_mut(step);
        let offsets = matrix.offsets.chunks_exact_mut(step);
        for (((part, values), scales), offsets) in parts.zip(values).zip(scales).zip(offsets) {
            (packing.unpack)(part, values, scales, offsets);
        }
        if !packing.has_offsets {
            matrix.offsets = Vec::new();
        }
        Ok(matrix)
    }

    /// A row as numbers.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let groups = self.columns / self.group;
        let values = &self.values[row * self.columns..][..self.columns];
        for (i, out) in out.chunks_exact_mut(self.group).enumerate() {
            let at = row * groups + i;
            let offset = self.offsets.get(at).copied().unwrap_or_default();
            let values = &values[i * self.group..][..self.group];
            for (out, value) in out.iter_mut().zip(values) {
                *out = self.scales[at] * f32::from(*value) + offset;
            }
        }
    }

    /// The product of each row of `input` with each row of this: `input.rows` rows of `self.rows` numbers.
    pub(super) fn multiply(&self, input: &Rounded) -> Vec<f32> {
        debug_assert_eq!(self.columns, input.columns);
        let tokens = input.rows;
        // First by rows of weights, each of which is then read once for all of the input.
        let mut by_weight = vec![0.0; self.rows * tokens];
        let piece = if self.rows * self.columns * tokens < PARALLEL_MIN {
            self.rows
        } else {
            self.rows.div_ceil(rayon::current_num_threads() * 2)
        };
        by_weight
            .par_chunks_mut(piece.max(1) * tokens)
            .enumerate()
            .for_each(|(i, out)| {
                Rows {
                    weights: self,
                    input,
                    first: i * piece,
                    out,
                }
                .dispatch();
            });
        if tokens == 1 {
            return by_weight;
        }
        let mut out = vec![0.0; by_weight.len()];
        for (row, products) in by_weight.chunks_exact(tokens).enumerate() {
            for (token, product) in products.iter().enumerate() {
                out[token * self.rows + row] = *product;
            }
        }
        out
    }
}

/// A vector that the file holds as plain numbers.
pub(super) fn vector(
    file: &[u8],
    gguf: &Gguf,
    name: &str,
    length: usize,
) -> Result<Vec<f32>, ModelError> {
    let info = find(gguf, name, &[length])?;
    match info.kind {
        0 => {
            let (numbers, _) = bytes(file, name, info.start, length * 4)?.as_chunks::<4>();
            Ok(numbers.iter().map(|n| f32::from_le_bytes(*n)).collect())
        }
        1 => {
            let (numbers, _) = bytes(file, name, info.start, length * 2)?.as_chunks::<2>();
            Ok(numbers
                .iter()
                .map(|n| f16::from_le_bytes(*n).to_f32())
                .collect())
        }
        other => Err(ModelError::Format(format!(
            "tensor `{name}` has GGML type {other}; a vector must be F32 or F16"
        ))),
    }
}

fn find<'a>(gguf: &'a Gguf, name: &str, shape: &[usize]) -> Result<&'a TensorInfo, ModelError> {
    let info = gguf
        .tensor(name)
        .ok_or_else(|| ModelError::Format(format!("tensor `{name}` is missing")))?;
    if info.shape != shape {
        return Err(ModelError::Format(format!(
            "tensor `{name}` has shape {:?}, not {shape:?}",
            info.shape
        )));
    }
    Ok(info)
}

impl Rounded {
    /// Rounds rows of `columns` numbers, a multiple of 32.
    pub(super) fn of(numbers: &[f32], columns: usize) -> Self {
        let mut rounded = Self {
            rows: numbers.len() / columns,
            columns,
            values: vec![0; numbers.len()],
            scales: vec![0.0; numbers.len() / BLOCK],
            sums: vec![0.0; numbers.len() / BLOCK],
        };
        Round {
            numbers,
            rounded: &mut rounded,
        }
        .dispatch();
        rounded
    }
}

struct Round<'a> {
    numbers: &'a [f32],
    rounded: &'a mut Rounded,
}

impl SimdOp for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let (blocks, _) = self.numbers.as_chunks::<BLOCK>();
        let (values, _) = self.rounded.values.as_chunks_mut::<BLOCK>();
        for (i, (block, values)) in blocks.iter().zip(values).enumerate() {
            let mut most = 0f32;
            for number in block {
                most = if number.abs() > most {
                    number.abs()
                } else {
                    most
                };
            }
            let scale = most / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0i32;
            for (value, number) in values.iter_mut().zip(block) {
                *value = (number * inverse).round_ties_even() as i8;
                sum += i32::from(*value);
            }
            self.rounded.scales[i] = scale;
            self.rounded.sums[i] = scale * sum as f32;
        }
    }
}

/// Products of some rows of weights, from `first` on, with all rows of the input.
struct Rows<'a> {
    weights: &'a Matrix,
    input: &'a Rounded,
    first: usize,
    /// As many numbers for each row of weights as the input has rows.
    out: &'a mut [f32],
}

impl SimdOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let (matrix, input) = (self.weights, self.input);
        let columns = matrix.columns;
        let (groups, blocks) = (columns / matrix.group, columns / BLOCK);
        for (i, out) in self.out.chunks_exact_mut(input.rows).enumerate() {
            let row = self.first + i;
            let (weights, _) = matrix.values[row * columns..][..columns].as_chunks::<BLOCK>();
            let scales = &matrix.scales[row * groups..][..groups];
            let offsets = matrix.offsets.get(row * groups..(row + 1) * groups);
            for (token, out) in out.iter_mut().enumerate() {
                let (values, _) = input.values[token * columns..][..columns].as_chunks::<BLOCK>();
                let steps = &input.scales[token * blocks..][..blocks];
                let mut sum = 0f32;
                if matrix.group == BLOCK {
                    for (((weights, values), scale), step) in
                        weights.iter().zip(values).zip(scales).zip(steps)
                    {
                        sum += product(weights, values) as f32 * (scale * step);
                    }
                } else {
                    let (pairs, _) = scales.as_chunks::<2>();
                    for (((weights, values), pair), step) in
                        weights.iter().zip(values).zip(pairs).zip(steps)
                    {
                        let (left, right) = halves(weights, values);
                        sum += (left as f32 * pair[0] + right as f32 * pair[1]) * step;
                    }
                }
                if let Some(offsets) = offsets {
                    let sums = &input.sums[token * blocks..][..blocks];
                    for (offset, block) in offsets.iter().zip(sums) {
                        sum += offset * block;
                    }
                }
                *out = sum;
            }
        }
    }
}

#[inline(always)]
fn product(a: &[i8; BLOCK], b: &[i8; BLOCK]) -> i32 {
    let mut sum = 0;
    for i in 0..BLOCK {
        sum += i32::from(a[i]) * i32::from(b[i]);
    }
    sum
}

#[inline(always)]
fn halves(a: &[i8; BLOCK], b: &[i8; BLOCK]) -> (i32, i32) {
    let (mut left, mut right) = (0, 0);
    for i in 0..BLOCK / 2 {
        left += i32::from(a[i]) * i32::from(b[i]);
    }
    for i in BLOCK / 2..BLOCK {
        right += i32::from(a[i]) * i32::from(b[i]);
    }
    (left, right)
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Sixteen bytes hold the low halves of 32 weights: the first sixteen below, the others above.
fn nibbles(packed: &[u8], values: &mut [i8]) {
    let (low, high) = values.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
        *low = (byte & 15) as i8;
        *high = (byte >> 4) as i8;
    }
}

/// The fifth bit of each of 32 weights.
fn fifth(packed: &[u8], values: &mut [i8]) {
    for (i, value) in values.iter_mut().enumerate() {
        *value |= ((packed[i / 8] >> (i % 8) & 1) << 4) as i8;
    }
}

fn q4_0(packed: &[u8], values: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = half(packed, 0);
    nibbles(&packed[2..18], values);
    values.iter_mut().for_each(|value| *value -= 8);
}

fn q4_1(packed: &[u8], values: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    scales[0] = half(packed, 0);
    offsets[0] = half(packed, 2);
    nibbles(&packed[4..20], values);
}

fn q5_0(packed: &[u8], values: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = half(packed, 0);
    nibbles(&packed[6..22], values);
    fifth(&packed[2..6], values);
    values.iter_mut().for_each(|value| *value -= 16);
}

fn q5_1(packed: &[u8], values: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    scales[0] = half(packed, 0);
    offsets[0] = half(packed, 2);
    nibbles(&packed[8..24], values);
    fifth(&packed[4..8], values);
}

fn q8_0(packed: &[u8], values: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = half(packed, 0);
    for (value, byte) in values.iter_mut().zip(&packed[2..34]) {
        *value = byte.cast_signed();
    }
}

/// The six bits of scale and of offset of each of eight groups, from twelve bytes.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, offset) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(offset))
}

fn q4_k(packed: &[u8], values: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    let (scale, offset) = (half(packed, 0), half(packed, 2));
    for group in 0..8 {
        let (scale_bits, offset_bits) = six_bits(&packed[4..16], group);
        scales[group] = scale * scale_bits;
        offsets[group] = -offset * offset_bits;
        let bytes = &packed[16 + group / 2 * 32..][..32];
        for (value, byte) in values[group * 32..][..32].iter_mut().zip(bytes) {
            *value = (byte >> (group % 2 * 4) & 15) as i8;
        }
    }
}

fn q5_k(packed: &[u8], values: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    let (scale, offset) = (half(packed, 0), half(packed, 2));
    let high = &packed[16..48];
    for group in 0..8 {
        let (scale_bits, offset_bits) = six_bits(&packed[4..16], group);
        scales[group] = scale * scale_bits;
        offsets[group] = -offset * offset_bits;
        let bytes = &packed[48 + group / 2 * 32..][..32];
        let values = &mut values[group * 32..][..32];
        for ((value, byte), high) in values.iter_mut().zip(bytes).zip(high) {
            let low = byte >> (group % 2 * 4) & 15;
            *value = (low | (high >> group & 1) << 4) as i8;
        }
    }
}

fn q6_k(packed: &[u8], values: &mut [i8], scales: &mut [f32], _: &mut [f32]) {
    let scale = half(packed, 208);
    for (out, byte) in scales.iter_mut().zip(&packed[192..208]) {
        *out = scale * f32::from(byte.cast_signed());
    }
    // Two halves of 128, each in four quarters of 32 that share bytes.
    for (i, value) in values.iter_mut().enumerate() {
        let (part, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let low = packed[part * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        let high = packed[128 + part * 32 + at] >> (quarter * 2) & 3;
        *value = (low | high << 4) as i8 - 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<u8> {
        let mut state = 7u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// Of each type: what `row` gives is what a product with unit vectors gives, and the whole product is near the one in
    /// floating point.
    #[test]
    fn products_are_those_of_the_unpacked_rows() {
        for kind in [2, 3, 6, 7, 8, 12, 13, 14] {
            let packing = packing(kind).unwrap();
            let (rows, columns) = (3, 512);
            let count = rows * columns / packing.weights;
            let mut file = noise(count * packing.bytes);
            // Scales that are numbers: the noise could be infinite.
            for part in file.chunks_exact_mut(packing.bytes) {
                let places: &[usize] = match kind {
                    14 => &[208],
                    3 | 7 | 12 | 13 => &[0, 2],
                    _ => &[0],
                };
                for at in places {
                    part[*at..at + 2].copy_from_slice(&f16::from_f32(0.02).to_le_bytes());
                }
            }
            let groups = rows * columns / packing.group;
            let step = packing.weights / packing.group;
            let mut matrix = Matrix {
                rows,
                columns,
                values: vec![0; rows * columns],
                scales: vec![0.0; groups],
                offsets: vec![0.0; groups],
                group: packing.group,
            };
            for (i, part) in file.chunks_exact(packing.bytes).enumerate() {
                (packing.unpack)(
                    part,
                    &mut matrix.values[i * packing.weights..][..packing.weights],
                    &mut matrix.scales[i * step..][..step],
                    &mut matrix.offsets[i * step..][..step],
                );
            }
            if !packing.has_offsets {
                matrix.offsets.clear();
            }
            let numbers: Vec<f32> = noise(2 * columns)
                .into_iter()
                .map(|byte| f32::from(byte) / 128.0 - 1.0)
                .collect();
            let products = matrix.multiply(&Rounded::of(&numbers, columns));
            let mut row = vec![0.0; columns];
            for (i, product) in products.iter().enumerate() {
                matrix.row(i % rows, &mut row);
                let numbers = &numbers[i / rows * columns..][..columns];
                let exact: f32 = row.iter().zip(numbers).map(|(a, b)| a * b).sum();
                let size: f32 = row.iter().zip(numbers).map(|(a, b)| (a * b).abs()).sum();
                assert!(
                    (product - exact).abs() < size / 200.0 + 1e-6,
                    "type {kind}: {product}, exactly {exact}"
                );
            }
        }
    }
}
