//! The network: from tokens to the scores of the next one.
//!
//! The decoders that Llama and Qwen2 share: RMS norm, rotary positions, attention of grouped heads, a gated layer; Qwen2 adds
//! biases and turns other pairs. What was worked out for earlier tokens is kept in a [`Cache`], so a further token costs one
//! pass. Runs on the threads of the `rayon` pool that it is called in. Why not `candle`: its fast paths are for rows that
//! are multiples of 256, which neither built-in model has (576 and 896), its 4-bit kernels beside those are scalar on x86, its
//! thread pool takes all processors, and it is 18 more crates; this is a page of arithmetic over `matrix.rs`. Compared
//! with llama.cpp token by token in `tests/generate.rs`.

use rayon::prelude::*;

use super::gguf::Gguf;
use super::matrix::{Matrix, Rounded, vector};
use crate::error::ModelError;

/// Partial sums of a product, so that the compiler may keep them in one register.
const LANES: usize = 8;
/// Multiplications of attention below which a second thread costs more than it does.
const PARALLEL_MIN: usize = 100_000;

/// The weights of a model.
#[derive(Debug)]
pub(super) struct Network {
    shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// Without it the embedding serves for the way out too.
    output: Option<Matrix>,
    /// By how much each pair of a head turns from one position to the next.
    turns: Vec<f32>,
}

/// Its sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub context: usize,
    pub vocabulary: usize,
    layers: usize,
    hidden: usize,
    heads: usize,
    /// Of keys and values; each serves several heads.
    kv_heads: usize,
    /// Numbers of a head.
    head: usize,
    inner: usize,
    epsilon: f32,
    pairs: Pairs,
}

/// Which numbers of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// Neighbours (Llama, as GGUF orders its rows).
    Neighbours,
    /// Those that are half a head apart (Qwen2).
    Halves,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A matrix and what is added.
#[derive(Debug)]
struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

/// What a conversation's tokens came to so far.
#[derive(Debug)]
pub(super) struct Cache {
    tokens: Vec<u32>,
    /// For each layer and key head, the numbers of each token one after another.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    head: usize,
}

impl Cache {
    /// Nothing yet.
    pub(super) fn new(shape: &Shape) -> Self {
        let parts = shape.layers * shape.kv_heads;
        Self {
            tokens: Vec::new(),
            keys: vec![Vec::new(); parts],
            values: vec![Vec::new(); parts],
            head: shape.head,
        }
    }

    /// How many tokens at the beginning are the same.
    pub(super) fn common(&self, tokens: &[u32]) -> usize {
        let pairs = self.tokens.iter().zip(tokens);
        pairs.take_while(|(a, b)| a == b).count()
    }

    /// Forgets all but the first tokens.
    pub(super) fn keep(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        let numbers = self.tokens.len() * self.head;
        for part in self.keys.iter_mut().chain(&mut self.values) {
            part.truncate(numbers);
        }
    }
}

impl Network {
    /// Reads the weights of a model of a known architecture.
    pub(super) fn read(file: &[u8], gguf: &Gguf) -> Result<Self, ModelError> {
        let shape = Shape::read(gguf)?;
        let (hidden, inner) = (shape.hidden, shape.inner);
        let kv = shape.kv_heads * shape.head;
        let matrix = |name: &str, rows: usize, columns: usize| {
            Matrix::read(file, gguf, name, (rows, columns))
        };
        let linear = |name: String, rows: usize, columns: usize| -> Result<Linear, ModelError> {
            let bias = format!("{name}.bias");
            Ok(Linear {
                matrix: matrix(&format!("{name}.weight"), rows, columns)?,
                bias: match gguf.tensor(&bias) {
                    Some(_) => Some(vector(file, gguf, &bias, rows)?),
                    None => None,
                },
            })
        };
        let mut layers = Vec::new();
        for i in 0..shape.layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            layers.push(Layer {
                attention_norm: vector(file, gguf, &name("attn_norm.weight"), hidden)?,
                query: linear(name("attn_q"), shape.heads * shape.head, hidden)?,
                key: linear(name("attn_k"), kv, hidden)?,
                value: linear(name("attn_v"), kv, hidden)?,
                output: linear(name("attn_output"), hidden, shape.heads * shape.head)?,
                norm: vector(file, gguf, &name("ffn_norm.weight"), hidden)?,
                gate: linear(name("ffn_gate"), inner, hidden)?,
                up: linear(name("ffn_up"), inner, hidden)?,
                down: linear(name("ffn_down"), hidden, inner)?,
            });
        }
        let output = match gguf.tensor("output.weight") {
            Some(_) => Some(matrix("output.weight", shape.vocabulary, hidden)?),
            None => None,
        };
        let architecture = gguf.text("general.architecture")?;
        let base = gguf.float(&format!("{architecture}.rope.freq_base"))?;
        let turns = (0..shape.head / 2)
            .map(|i| base.powf(-2.0 * i as f64 / shape.head as f64) as f32)
            .collect();
        Ok(Self {
            embedding: matrix("token_embd.weight", shape.vocabulary, hidden)?,
            norm: vector(file, gguf, "output_norm.weight", hidden)?,
            shape,
            layers,
            output,
            turns,
        })
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Adds `tokens`, of which there is at least one, to the cache; the scores of what may follow the last of them.
    pub(super) fn scores(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, ModelError> {
        let state = self.advance(tokens, cache)?;
        let hidden = self.shape.hidden;
        let last = &state[state.len() - hidden..];
        let last = normed(last, &self.norm, self.shape.epsilon);
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        Ok(output.multiply(&Rounded::of(&last, hidden)))
    }

    /// Adds `tokens`, of which there is at least one, to the cache; what they came to behind the last layer.
    pub(super) fn advance(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
    ) -> Result<Vec<f32>, ModelError> {
        let Shape {
            hidden,
            heads,
            kv_heads,
            head,
            inner,
            epsilon,
            ..
        } = self.shape;
        let mut state = vec![0.0; tokens.len() * hidden];
        for (token, row) in tokens.iter().zip(state.chunks_exact_mut(hidden)) {
            let token = *token as usize;
            if token >= self.embedding.rows {
                return Err(ModelError::Input(format!(
                    "token {token} is none of the {} of the vocabulary",
                    self.embedding.rows
                )));
            }
            self.embedding.row(token, row);
        }
        let start = cache.tokens.len();
        let turned = self.turned(start, tokens.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let input = Rounded::of(&normed(&state, &layer.attention_norm, epsilon), hidden);
            let mut query = layer.query.apply(&input);
            let mut key = layer.key.apply(&input);
            let value = layer.value.apply(&input);
            self.turn(&mut query, heads, &turned);
            self.turn(&mut key, kv_heads, &turned);
            let parts = i * kv_heads..(i + 1) * kv_heads;
            append(&mut cache.keys[parts.clone()], &key, head);
            append(&mut cache.values[parts.clone()], &value, head);
            let (keys, values) = (&cache.keys[parts.clone()], &cache.values[parts]);
            let mixed = self.attend(&query, keys, values, start);
            add(
                &mut state,
                &layer.output.apply(&Rounded::of(&mixed, heads * head)),
            );
            let input = Rounded::of(&normed(&state, &layer.norm, epsilon), hidden);
            let mut gated = layer.gate.apply(&input);
            for (gate, up) in gated.iter_mut().zip(layer.up.apply(&input)) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
            add(&mut state, &layer.down.apply(&Rounded::of(&gated, inner)));
        }
        cache.tokens.extend_from_slice(tokens);
        Ok(state)
    }

    /// Sine and cosine for each pair at each position.
    fn turned(&self, start: usize, count: usize) -> Vec<(f32, f32)> {
        (start..start + count)
            .flat_map(|at| {
                let turns = self.turns.iter();
                turns.map(move |turn| (at as f32 * turn).sin_cos())
            })
            .collect()
    }

    /// Turns the heads of each token to its position.
    fn turn(&self, numbers: &mut [f32], heads: usize, turned: &[(f32, f32)]) {
        let head = self.shape.head;
        let half = head / 2;
        let tokens = numbers.chunks_exact_mut(heads * head);
        for (token, turned) in tokens.zip(turned.chunks_exact(half)) {
            for head in token.chunks_exact_mut(head) {
                for (i, (sine, cosine)) in turned.iter().enumerate() {
                    let (a, b) = match self.shape.pairs {
                        Pairs::Neighbours => (2 * i, 2 * i + 1),
                        Pairs::Halves => (i, i + half),
                    };
                    let (x, y) = (head[a], head[b]);
                    head[a] = x * cosine - y * sine;
                    head[b] = x * sine + y * cosine;
                }
            }
        }
    }

    /// What each head of each new token takes from the tokens up to it.
    fn attend(
        &self,
        query: &[f32],
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
        start: usize,
    ) -> Vec<f32> {
        let Shape {
            heads,
            kv_heads,
            head,
            ..
        } = self.shape;
        let scale = 1.0 / (head as f32).sqrt();
        let mut out = vec![0.0; query.len()];
        let one = |(i, out): (usize, &mut [f32])| {
            let (token, of) = (i / heads, i % heads * kv_heads / heads);
            let query = &query[i * head..][..head];
            let seen = (start + token + 1) * head;
            let keys = keys[of][..seen].chunks_exact(head);
            let mut weights: Vec<f32> = keys.map(|key| dot(query, key) * scale).collect();
            softmax(&mut weights);
            let values = values[of][..seen].chunks_exact(head);
            for (weight, value) in weights.iter().zip(values) {
                for (out, value) in out.iter_mut().zip(value) {
                    *out += weight * value;
                }
            }
        };
        let end = start + query.len() / (heads * head);
        if query.len() * end < PARALLEL_MIN {
            out.chunks_exact_mut(head).enumerate().for_each(one);
        } else {
            out.par_chunks_exact_mut(head).enumerate().for_each(one);
        }
        out
    }
}

impl Shape {
    fn read(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = gguf.text("general.architecture")?;
        let pairs = match architecture {
            "llama" => Pairs::Neighbours,
            "qwen2" => Pairs::Halves,
            other => {
                return Err(ModelError::Format(format!(
                    "GGUF file: architecture `{other}`; supported are `llama` and `qwen2`"
                )));
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let unsupported = |what: &str| {
            Err(ModelError::Format(format!(
                "GGUF file: {what}, which is not supported"
            )))
        };
        // Silently leaving these out would give replies that look right and are not.
        if gguf.tensor("rope_freqs.weight").is_some()
            || gguf
                .text_if(&key("rope.scaling.type"))
                .is_some_and(|kind| kind != "none")
        {
            return unsupported("scaled positions");
        }
        if gguf
            .size_if(&key("expert_count"))
            .is_some_and(|count| count > 0)
        {
            return unsupported("a mixture of experts");
        }
        let (hidden, heads) = (
            gguf.size(&key("embedding_length"))?,
            gguf.size(&key("attention.head_count"))?,
        );
        let shape = Self {
            context: gguf.size(&key("context_length"))?,
            vocabulary: gguf.texts("tokenizer.ggml.tokens")?.len(),
            layers: gguf.size(&key("block_count"))?,
            hidden,
            heads,
            kv_heads: gguf
                .size_if(&key("attention.head_count_kv"))
                .unwrap_or(heads),
            head: gguf
                .size_if(&key("attention.key_length"))
                .unwrap_or_else(|| hidden.checked_div(heads).unwrap_or_default()),
            inner: gguf.size(&key("feed_forward_length"))?,
            epsilon: gguf.float(&key("attention.layer_norm_rms_epsilon"))? as f32,
            pairs,
        };
        let turned = gguf.size_if(&key("rope.dimension_count"));
        if shape.head == 0
            || shape.kv_heads == 0
            || !shape.head.is_multiple_of(2)
            || !shape.heads.is_multiple_of(shape.kv_heads)
            || turned.is_some_and(|turned| turned != shape.head)
        {
            return unsupported(&format!("heads of the shape {shape:?}"));
        }
        Ok(shape)
    }
}

impl Linear {
    fn apply(&self, input: &Rounded) -> Vec<f32> {
        let mut out = self.matrix.multiply(input);
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(bias.len()) {
                add(row, bias);
            }
        }
        out
    }
}

/// Adds each token's numbers to the parts of its heads.
fn append(parts: &mut [Vec<f32>], numbers: &[f32], head: usize) {
    for token in numbers.chunks_exact(parts.len() * head) {
        for (part, head) in parts.iter_mut().zip(token.chunks_exact(head)) {
            part.extend_from_slice(head);
        }
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Each row over the root of its mean square, times `weights`.
fn normed(rows: &[f32], weights: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    let width = weights.len();
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let inverse = 1.0 / (dot(row, row) / width as f32 + epsilon).sqrt();
        for ((out, number), weight) in out.iter_mut().zip(row).zip(weights) {
            *out = number * inverse * weight;
        }
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

fn softmax(numbers: &mut [f32]) {
    let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for number in numbers.iter_mut() {
        *number = (*number - most).exp();
        sum += *number;
    }
    for number in numbers {
        *number /= sum;
    }
}
