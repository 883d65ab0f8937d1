//! BERT encoders (also XLM-RoBERTa) run straight on the matrix kernels of `rten-gemm`.
//!
//! Why not as an ONNX graph: here a batch is the tokens of all texts one after another, without padding; activations
//! are quantised per token, so a text's vector does not depend on its neighbours; and the steps between two products
//! run row by row while the row is in cache. Measured against onnxruntime by `make bench NAME=embed`.
//!
//! Architecture: Devlin et al. 2018, "BERT", post-norm layers, exact GELU. Relies on [`Weights`] for the numbers
//! (`e5s1.rs`, `safetensors.rs`); leaves tokenising, batching and pooling choice to `native.rs`. A forward pass is
//! single-threaded: texts are spread over threads, which scales better than splitting the small matrices.

mod attention;
pub mod e5s1;
pub mod kernels;
pub mod linear;
pub mod safetensors;

use rten_simd::SimdUnaryOp;
use rten_vecmath::Gelu;

use crate::error::ModelError;
use crate::pooling::Pooling;
use attention::attend;
use kernels::{add_norm_row, add_row};
use linear::{Gemm, Linear, LinearScratch, Precision};

/// Rows that go through a linear layer at a time: the widest intermediate (rows x 4 x hidden x 4 bytes) stays in a
/// level-2 cache of 1 MiB.
const ROW_BLOCK: usize = 64;

/// The sizes of a BERT encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads per layer; divides `hidden`.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocab: usize,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// The position id of the first token: 0 for BERT, padding id + 1 for XLM-RoBERTa.
    pub first_position: usize,
    /// The epsilon of layer norm.
    pub eps: f32,
}

/// Where the numbers of an encoder come from. Names are those of Hugging Face's `BertModel`, e.g.
/// `encoder.layer.0.attention.self.query.weight`.
pub trait Weights {
    /// The sizes.
    fn shape(&self) -> &Shape;
    /// A tensor as `f32`, row by row, which must have `len` values.
    fn tensor(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError>;
    /// The word table, left in the memory-mapped file: only the rows that texts use are ever read.
    fn words(self: Box<Self>) -> Result<Box<dyn WordTable>, ModelError>;
}

/// Vectors by token id.
pub trait WordTable: Send + Sync {
    /// Writes the vector of `id` (below `vocab`) into `out` (`hidden` long).
    fn read(&self, id: u32, out: &mut [f32]);
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// A loaded encoder.
pub struct Bert {
    shape: Shape,
    words: Box<dyn WordTable>,
    /// Position plus token-type-0 vectors, one row per position.
    positions: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Loads and packs the weights.
    ///
    /// # Errors
    /// When a tensor is absent, has another size, or holds a number that is not finite.
    pub fn load(weights: Box<dyn Weights>, precision: Precision) -> Result<Self, ModelError> {
        let shape = weights.shape().clone();
        if shape.heads == 0 || !shape.hidden.is_multiple_of(shape.heads) {
            return Err(ModelError::Format(format!(
                "{} attention heads do not divide a width of {}",
                shape.heads, shape.hidden
            )));
        }
        let gemm = Gemm::new();
        let hidden = shape.hidden;
        let vector = |name: &str, len: usize| -> Result<Vec<f32>, ModelError> {
            let values = weights.tensor(name, len)?;
            match values.iter().find(|v| !v.is_finite()) {
                Some(v) => Err(ModelError::Format(format!("tensor `{name}` contains {v}"))),
                None => Ok(values),
            }
        };
        let norm = |name: &str| -> Result<Norm, ModelError> {
            Ok(Norm {
                weight: vector(&format!("{name}.weight"), hidden)?,
                bias: vector(&format!("{name}.bias"), hidden)?,
            })
        };
        let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear, ModelError> {
            let weight = vector(&format!("{name}.weight"), inputs * outputs)?;
            let bias = vector(&format!("{name}.bias"), outputs)?;
            Linear::new(&gemm, precision, &weight, bias, inputs)
        };

        let rows = shape.first_position + shape.max_tokens;
        let mut positions = vector("embeddings.position_embeddings.weight", rows * hidden)?;
        let types = weights.tensor("embeddings.token_type_embeddings.weight", hidden)?;
        for row in positions.chunks_exact_mut(hidden) {
            add_row(row, &types);
        }

        let scale = 1.0 / ((hidden / shape.heads) as f32).sqrt();
        let mut layers = Vec::with_capacity(shape.layers);
        for i in 0..shape.layers {
            let at = |part: &str| format!("encoder.layer.{i}.{part}");
            // One product for queries, keys and values. The attention scale goes into the query weights.
            let mut qkv = Vec::with_capacity(3 * hidden * hidden);
            let mut qkv_bias = Vec::with_capacity(3 * hidden);
            for (part, factor) in [("query", scale), ("key", 1.0), ("value", 1.0)] {
                let name = at(&format!("attention.self.{part}"));
                let weight = vector(&format!("{name}.weight"), hidden * hidden)?;
                let bias = vector(&format!("{name}.bias"), hidden)?;
                qkv.extend(weight.iter().map(|w| w * factor));
                qkv_bias.extend(bias.iter().map(|b| b * factor));
            }
            layers.push(Layer {
                qkv: Linear::new(&gemm, precision, &qkv, qkv_bias, hidden)?,
                attention_out: linear(&at("attention.output.dense"), hidden, hidden)?,
                attention_norm: norm(&at("attention.output.LayerNorm"))?,
                up: linear(&at("intermediate.dense"), hidden, shape.intermediate)?,
                down: linear(&at("output.dense"), shape.intermediate, hidden)?,
                norm: norm(&at("output.LayerNorm"))?,
            });
        }
        Ok(Self {
            embedding_norm: norm("embeddings.LayerNorm")?,
            positions,
            layers,
            words: weights.words()?,
            shape,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// One pooled (not normalised) vector per sequence of token ids, special tokens included.
    ///
    /// # Errors
    /// When a sequence is empty, too long, or holds an id beyond the word table.
    pub fn forward(
        &self,
        sequences: &[&[u32]],
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        Ok(self.pool(&self.encode(sequences)?, sequences, pooling))
    }

    /// The same from what [`encode`](Self::encode) gave for the sequences.
    pub fn pool(&self, encoded: &[f32], sequences: &[&[u32]], pooling: Pooling) -> Vec<Vec<f32>> {
        let hidden = self.shape.hidden;
        let mut rows = encoded;
        let mut out = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (tokens, rest) = rows.split_at(sequence.len() * hidden);
            rows = rest;
            out.push(pooling.pool(tokens, hidden));
        }
        out
    }

    /// The vector of each token, `hidden` wide and not normalised, of one sequence after the other.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn encode(&self, sequences: &[&[u32]]) -> Result<Vec<f32>, ModelError> {
        let hidden = self.shape.hidden;
        let lengths: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut x = self.look_up(sequences)?;
        let tokens = x.len() / hidden;

        let gemm = Gemm::new();
        let mut scratch = LinearScratch::default();
        let mut qkv = vec![0f32; tokens * 3 * hidden];
        let mut context = vec![0f32; tokens * hidden];
        let mut inner = vec![0f32; ROW_BLOCK.min(tokens) * self.shape.intermediate];
        let mut narrow = vec![0f32; ROW_BLOCK.min(tokens) * hidden];
        let eps = self.shape.eps;

        for layer in &self.layers {
            for (rows, out) in x
                .chunks(ROW_BLOCK * hidden)
                .zip(qkv.chunks_mut(ROW_BLOCK * 3 * hidden))
            {
                layer
                    .qkv
                    .forward(&gemm, rows, out, &mut scratch, |_, _| {})?;
            }
            attend(
                &gemm,
                &qkv,
                &lengths,
                self.shape.heads,
                hidden,
                &mut context,
            )?;
            for (rows, context) in x
                .chunks_mut(ROW_BLOCK * hidden)
                .zip(context.chunks(ROW_BLOCK * hidden))
            {
                let norm = &layer.attention_norm;
                layer.attention_out.forward(
                    &gemm,
                    context,
                    &mut narrow[..rows.len()],
                    &mut scratch,
                    |i, y| {
                        let x = &mut rows[i * hidden..(i + 1) * hidden];
                        add_norm_row(x, y, &norm.weight, &norm.bias, eps);
                    },
                )?;
                let inner = &mut inner[..rows.len() / hidden * layer.up.outputs()];
                layer
                    .up
                    .forward(&gemm, rows, inner, &mut scratch, |_, row| {
                        Gelu {}.map_mut(row);
                    })?;
                let norm = &layer.norm;
                layer.down.forward(
                    &gemm,
                    inner,
                    &mut narrow[..rows.len()],
                    &mut scratch,
                    |i, y| {
                        let x = &mut rows[i * hidden..(i + 1) * hidden];
                        add_norm_row(x, y, &norm.weight, &norm.bias, eps);
                    },
                )?;
            }
        }

        Ok(x)
    }

    /// The embedding layer: word + position + type, normalised.
    fn look_up(&self, sequences: &[&[u32]]) -> Result<Vec<f32>, ModelError> {
        let Shape {
            hidden,
            vocab,
            max_tokens,
            first_position,
            eps,
            ..
        } = self.shape;
        let tokens = sequences.iter().map(|s| s.len()).sum::<usize>();
        let mut x = vec![0f32; tokens * hidden];
        let mut rows = x.chunks_exact_mut(hidden);
        for sequence in sequences {
            if sequence.is_empty() || sequence.len() > max_tokens {
                return Err(ModelError::Input(format!(
                    "sequence of {} tokens; allowed are 1 to {max_tokens}",
                    sequence.len()
                )));
            }
            for (position, (&id, row)) in sequence.iter().zip(&mut rows).enumerate() {
                if id as usize >= vocab {
                    return Err(ModelError::Input(format!(
                        "token id {id} is beyond the {vocab} words of the model; model and tokenizer do not belong \
                         together"
                    )));
                }
                self.words.read(id, row);
                let at = (first_position + position) * hidden;
                let norm = &self.embedding_norm;
                add_norm_row(
                    row,
                    &self.positions[at..at + hidden],
                    &norm.weight,
                    &norm.bias,
                    eps,
                );
            }
        }
        Ok(x)
    }
}
