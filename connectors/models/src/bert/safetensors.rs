//! Reads a BERT or XLM-RoBERTa encoder from a Hugging Face directory: `config.json` and `model.safetensors`.
//!
//! Relies on the `safetensors` crate for the container. Tensors may be `F32`, `F16` or `BF16`, and may carry a prefix
//! (`bert.`, `roberta.`, `0.auto_model.`) before the names of `BertModel`. Variants that need other arithmetic (relative
//! positions, other activations) are refused by name rather than run wrongly.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{Shape, Weights, WordTable};
use crate::error::ModelError;
use crate::files::map_file;

const WORDS: &str = "embeddings.word_embeddings.weight";

#[derive(Clone, Copy)]
enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
        }
    }

    fn decode(self, data: &[u8], out: &mut [f32]) {
        match self {
            Kind::F32 => {
                for (o, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Kind::F16 => {
                for (o, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            Kind::Bf16 => {
                for (o, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    kind: Kind,
    values: usize,
    offset: usize,
}

/// The part of `config.json` that matters.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    pad_token_id: Option<usize>,
}

/// An open model directory; tensors are decoded on request.
pub struct BertFiles {
    map: Mmap,
    shape: Shape,
    entries: HashMap<String, Entry>,
}

impl BertFiles {
    /// Maps `weights` and reads `config`.
    pub fn open(weights: &Path, config: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read(config).map_err(ModelError::io("read", config))?;
        let shape = serde_json::from_slice(&text)
            .map_err(|e| e.to_string())
            .and_then(shape)
            .map_err(|e| ModelError::Format(format!("{}: {e}", config.display())))?;
        let map = map_file(weights)?;
        let entries =
            entries(&map).map_err(|e| ModelError::Format(format!("{}: {e}", weights.display())))?;
        Ok(Self {
            map,
            shape,
            entries,
        })
    }

    fn entry(&self, name: &str) -> Result<Entry, ModelError> {
        self.entries
            .get(name)
            .copied()
            .ok_or_else(|| ModelError::Format(format!("tensor `{name}` is absent")))
    }
}

fn shape(config: Config) -> Result<Shape, String> {
    let first_position = match config.model_type.as_str() {
        "bert" => 0,
        "xlm-roberta" | "roberta" => config.pad_token_id.unwrap_or(1) + 1,
        other => {
            return Err(format!(
                "model type `{other}` is not supported; supported are bert, roberta, xlm-roberta, and any model as ONNX"
            ));
        }
    };
    match config.hidden_act.as_deref() {
        None | Some("gelu") => {}
        Some(other) => {
            return Err(format!(
                "activation `{other}` is not supported; supported is gelu"
            ));
        }
    }
    match config.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(format!(
                "positions of type `{other}` are not supported; supported is absolute"
            ));
        }
    }
    Ok(Shape {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        vocab: config.vocab_size,
        max_tokens: config
            .max_position_embeddings
            .saturating_sub(first_position),
        first_position,
        eps: config.layer_norm_eps,
    })
}

fn entries(map: &Mmap) -> Result<HashMap<String, Entry>, String> {
    let tensors = SafeTensors::deserialize(map).map_err(|e| e.to_string())?;
    let prefix = tensors
        .names()
        .iter()
        .find_map(|name| name.strip_suffix(WORDS))
        .ok_or_else(|| format!("no tensor `{WORDS}`: not a BERT encoder"))?
        .to_owned();
    let mut out = HashMap::new();
    for (name, tensor) in tensors.iter() {
        let Some(name) = name.strip_prefix(&prefix) else {
            continue;
        };
        let kind = match tensor.dtype() {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            // Position ids and the like: not a weight.
            _ => continue,
        };
        out.insert(
            name.to_owned(),
            Entry {
                kind,
                values: tensor.data().len() / kind.size(),
                offset: tensor.data().as_ptr() as usize - map.as_ptr() as usize,
            },
        );
    }
    Ok(out)
}

impl Weights for BertFiles {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn tensor(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let entry = self.entry(name)?;
        if entry.values < len {
            return Err(ModelError::Format(format!(
                "tensor `{name}` has {} values, {len} are needed",
                entry.values
            )));
        }
        let mut out = vec![0f32; len];
        entry.kind.decode(
            &self.map[entry.offset..entry.offset + len * entry.kind.size()],
            &mut out,
        );
        Ok(out)
    }

    fn words(self: Box<Self>) -> Result<Box<dyn WordTable>, ModelError> {
        let entry = self.entry(WORDS)?;
        if entry.values != self.shape.vocab * self.shape.hidden {
            return Err(ModelError::Format(format!(
                "word table has {} values, {} x {} are needed",
                entry.values, self.shape.vocab, self.shape.hidden
            )));
        }
        Ok(Box::new(MappedWords {
            row_bytes: self.shape.hidden * entry.kind.size(),
            kind: entry.kind,
            offset: entry.offset,
            map: self.map,
        }))
    }
}

struct MappedWords {
    map: Mmap,
    kind: Kind,
    offset: usize,
    row_bytes: usize,
}

impl WordTable for MappedWords {
    fn read(&self, id: u32, out: &mut [f32]) {
        let at = self.offset + id as usize * self.row_bytes;
        self.kind.decode(&self.map[at..at + self.row_bytes], out);
    }
}
