//! Embeddings from any ONNX graph of a text encoder, run by `rten`.
//!
//! The graph takes `input_ids` and `attention_mask` (and may take `token_type_ids`), each `[batch, length]`, and yields
//! either token vectors `[batch, length, width]`, which are pooled here, or one vector per text `[batch, width]`. Texts
//! are sorted by length, so that little is padded.

use std::path::Path;

use rten::{Model, NodeId, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};

use crate::embedder::{Embedder, Role};
use crate::error::ModelError;
use crate::late::TokenVectors;
use crate::pooling::normalize;
use crate::spec::{EmbeddingSpec, Format};
use crate::tokenizer::TextTokenizer;

/// Tokens per run, padding included.
const BATCH_TOKENS: usize = 2048;

/// The longest input when nothing says otherwise.
const DEFAULT_MAX_TOKENS: usize = 512;

/// An ONNX text encoder with its tokenizer.
pub struct OnnxEmbedder {
    spec: EmbeddingSpec,
    model: Model,
    tokenizer: TextTokenizer,
    inputs: Vec<(NodeId, Input)>,
    output: NodeId,
    /// Where the vectors of the tokens are, if anywhere.
    tokens: NodeId,
    dims: usize,
    max_tokens: usize,
    passage_tokens: usize,
    fingerprint: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Input {
    Ids,
    Mask,
    Types,
}

impl std::fmt::Debug for OnnxEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OnnxEmbedder({}, {} dims)", self.spec.name, self.dims)
    }
}

impl OnnxEmbedder {
    /// Loads the model in `dir` and runs it once, which tells the width of its vectors.
    pub(crate) fn load(dir: &Path, spec: EmbeddingSpec) -> Result<Self, ModelError> {
        let path = dir.join("model.onnx");
        let model = Model::load_file(&path)
            .map_err(|e| ModelError::Format(format!("{}: {e}", path.display())))?;
        let mut inputs = Vec::new();
        for &id in model.input_ids() {
            let name = model
                .node_info(id)
                .and_then(|n| n.name().map(str::to_owned))
                .unwrap_or_default();
            inputs.push((
                id,
                match name.as_str() {
                    "input_ids" => Input::Ids,
                    "attention_mask" => Input::Mask,
                    "token_type_ids" => Input::Types,
                    _ => {
                        return Err(ModelError::Format(format!(
                            "{}: input `{name}` is not known; known are input_ids, attention_mask, token_type_ids",
                            path.display()
                        )));
                    }
                },
            ));
        }
        if !inputs.iter().any(|(_, i)| *i == Input::Ids) {
            return Err(ModelError::Format(format!(
                "{}: no input `input_ids`",
                path.display()
            )));
        }
        let output = [
            "sentence_embedding",
            "last_hidden_state",
            "token_embeddings",
        ]
        .iter()
        .find_map(|name| model.find_node(name))
        .or_else(|| model.output_ids().first().copied())
        .ok_or_else(|| ModelError::Format(format!("{}: no output", path.display())))?;
        let tokens = ["last_hidden_state", "token_embeddings"]
            .iter()
            .find_map(|name| model.find_node(name))
            .unwrap_or(output);
        let tokenizer = TextTokenizer::open(&dir.join("tokenizer.json"))?;
        let max_tokens = spec.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let mut this = Self {
            passage_tokens: spec.passage_tokens(max_tokens, &tokenizer)?,
            fingerprint: spec.fingerprint(dir, Format::Onnx)?,
            dims: 0,
            spec,
            model,
            tokenizer,
            inputs,
            output,
            tokens,
            max_tokens,
        };
        this.dims = this
            .embed(&["a"], Role::Passage)?
            .first()
            .map_or(0, Vec::len);
        Ok(this)
    }

    /// Runs `run` on batches of texts of about the same length; what it gives for each text, in order.
    fn batched<R: Default>(
        &self,
        texts: &[&str],
        role: Role,
        run: impl Fn(&[&[u32]]) -> Result<Vec<R>, ModelError>,
    ) -> Result<Vec<R>, ModelError> {
        let prefix = self.spec.prefix(role);
        let ids = texts
            .iter()
            .map(|t| {
                let ids = self.tokenizer.ids(prefix, t, self.max_tokens)?;
                if ids.is_empty() {
                    return Err(ModelError::Input(
                        "an empty text has no tokens in this model".to_owned(),
                    ));
                }
                Ok(ids)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(ids[i].len()));
        let mut out: Vec<R> = std::iter::repeat_with(R::default).take(ids.len()).collect();
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let fit = (BATCH_TOKENS / ids[longest].len()).clamp(1, rest.len());
            let (batch, later) = rest.split_at(fit);
            rest = later;
            let sequences: Vec<&[u32]> = batch.iter().map(|&i| ids[i].as_slice()).collect();
            for (&i, result) in batch.iter().zip(run(&sequences)?) {
                out[i] = result;
            }
        }
        Ok(out)
    }

    /// Runs one batch of token ids; one vector a text.
    fn run(&self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut vectors = self.pool(&self.run_to(self.output, batch)?, batch)?;
        for vector in &mut vectors {
            normalize(vector)?;
        }
        Ok(vectors)
    }

    /// Runs one batch of token ids; the vectors of the tokens of each text that say something.
    fn run_tokens(
        &self,
        batch: &[&[u32]],
        prefix: &[u32],
    ) -> Result<Vec<TokenVectors>, ModelError> {
        let output = self.run_to(self.tokens, batch)?;
        let shape = output.shape().to_vec();
        let [texts, length, width] = shape[..] else {
            return Err(ModelError::NoTokenVectors {
                name: self.spec.name.clone(),
            });
        };
        if texts != batch.len() || length == 0 || width == 0 {
            return Err(ModelError::Run(format!(
                "the graph yields shape [{texts}, {length}, {width}] for {} texts; expected is [texts, tokens, width]",
                batch.len()
            )));
        }
        let data = output.to_contiguous();
        data.data()
            .chunks_exact(length * width)
            .zip(batch)
            .map(|(rows, ids)| TokenVectors::of(rows, width, &self.tokenizer.words(ids, prefix)))
            .collect()
    }

    /// Runs the graph up to one of its nodes.
    fn run_to(&self, node: NodeId, batch: &[&[u32]]) -> Result<Tensor<f32>, ModelError> {
        let length = batch.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let shape = [batch.len(), length];
        let mut ids = vec![0i32; batch.len() * length];
        let mut mask = vec![0i32; batch.len() * length];
        for ((text, ids), mask) in batch
            .iter()
            .zip(ids.chunks_exact_mut(length))
            .zip(mask.chunks_exact_mut(length))
        {
            for (to, &from) in ids.iter_mut().zip(*text) {
                *to = from as i32;
            }
            mask[..text.len()].fill(1);
        }
        let types = vec![0i32; batch.len() * length];
        let inputs = self
            .inputs
            .iter()
            .map(|(id, input)| {
                let data = match input {
                    Input::Ids => &ids,
                    Input::Mask => &mask,
                    Input::Types => &types,
                };
                (
                    *id,
                    ValueOrView::from(NdTensor::from_data(shape, data.clone())),
                )
            })
            .collect();
        self.model
            .run(inputs, &[node], None)
            .map_err(|e| ModelError::Run(e.to_string()))?
            .into_iter()
            .next()
            .and_then(|v| v.into_tensor::<f32>())
            .ok_or_else(|| ModelError::Run("the graph yields no 32-bit floats".to_owned()))
    }

    fn pool(&self, output: &Tensor<f32>, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let shape = output.shape().to_vec();
        let data = output.to_contiguous();
        let data = data.data();
        match shape[..] {
            [texts, width] if texts == batch.len() && width > 0 => {
                Ok(data.chunks_exact(width).map(<[f32]>::to_vec).collect())
            }
            [texts, length, width] if texts == batch.len() && width > 0 && length > 0 => Ok(data
                .chunks_exact(length * width)
                .zip(batch)
                .map(|(rows, ids)| {
                    self.spec
                        .pooling
                        .pool(&rows[..ids.len().min(length) * width], width)
                })
                .collect()),
            _ => Err(ModelError::Run(format!(
                "the graph yields shape {shape:?} for {} texts; expected is [texts, width] or [texts, tokens, width]",
                batch.len()
            ))),
        }
    }
}

impl Embedder for OnnxEmbedder {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn dims(&self) -> usize {
        self.dims
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn passage_tokens(&self) -> usize {
        self.passage_tokens
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    fn embed(&self, texts: &[&str], role: Role) -> Result<Vec<Vec<f32>>, ModelError> {
        self.batched(texts, role, |batch| self.run(batch))
    }

    fn token_vectors(&self, texts: &[&str], role: Role) -> Result<Vec<TokenVectors>, ModelError> {
        let prefix = self.tokenizer.prefix(self.spec.prefix(role))?;
        self.batched(texts, role, |batch| self.run_tokens(batch, &prefix))
    }
}
