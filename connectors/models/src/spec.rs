//! How an embedding model is to be used: prefixes, pooling, longest input, precision; and which files it consists of.
//!
//! For a model of the lock file this comes from there; for a directory of one's own from the files that
//! sentence-transformers writes, overridden by `va-model.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bert::linear::Precision;
use crate::embedder::Role;
use crate::error::ModelError;
use crate::files::map_file;
use crate::pooling::Pooling;
use crate::tokenizer::TextTokenizer;

/// Changes when the arithmetic changes, so that cached vectors are made anew.
const ARITHMETIC: &str = "va-embed-1";

/// Settings of an embedding model. `va-model.json` in a model directory has these fields (all optional), e.g.
/// `{"query_prefix": "query: ", "passage_prefix": "passage: ", "pooling": "mean", "max_tokens": 512}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddingSpec {
    /// The name shown to users.
    pub name: String,
    /// Put before a query.
    pub query_prefix: String,
    /// Put before a passage.
    pub passage_prefix: String,
    /// From token vectors to one vector.
    pub pooling: Pooling,
    /// Longest input in tokens; the model's own limit when absent.
    pub max_tokens: Option<usize>,
    /// Arithmetic of the linear layers (safetensors only; an ONNX graph has its own).
    pub precision: Precision,
    /// Hash of the files, when it is known without reading them.
    #[serde(skip)]
    pub files_hash: Option<String>,
}

impl Default for EmbeddingSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            query_prefix: String::new(),
            passage_prefix: String::new(),
            pooling: Pooling::Mean,
            max_tokens: None,
            // A model of one's own was not compared with its 32-bit self by our tests: exact unless asked otherwise.
            precision: Precision::F32,
            files_hash: None,
        }
    }
}

/// What a model directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `model.e5s1`
    E5s1,
    /// `model.safetensors` and `config.json`
    Safetensors,
    /// `model.onnx`
    Onnx,
}

impl Format {
    pub(crate) fn of_directory(dir: &Path) -> Result<Self, ModelError> {
        let found = [
            ("model.e5s1", Format::E5s1),
            ("model.onnx", Format::Onnx),
            ("model.safetensors", Format::Safetensors),
        ]
        .into_iter()
        .find(|(file, _)| dir.join(file).is_file());
        let Some((_, format)) = found else {
            return Err(ModelError::Format(format!(
                "{} holds no model; expected is model.onnx or model.safetensors (with config.json)",
                dir.display()
            )));
        };
        for file in format.files() {
            if !dir.join(file).is_file() {
                return Err(ModelError::Format(format!(
                    "{} lacks {file}",
                    dir.display()
                )));
            }
        }
        Ok(format)
    }

    fn files(self) -> &'static [&'static str] {
        match self {
            Format::E5s1 => &["model.e5s1", "tokenizer.json"],
            Format::Safetensors => &["model.safetensors", "config.json", "tokenizer.json"],
            Format::Onnx => &["model.onnx", "tokenizer.json"],
        }
    }
}

impl EmbeddingSpec {
    /// Gathers the settings of a directory of one's own.
    pub(crate) fn of_directory(name: &str, dir: &Path) -> Result<Self, ModelError> {
        let mut spec = match read_json(&dir.join("va-model.json"))? {
            Some(value) => serde_json::from_value::<EmbeddingSpec>(value.clone())
                .map_err(|e| {
                    ModelError::Format(format!("{}: {e}", dir.join("va-model.json").display()))
                })
                .map(|spec| (spec, value)),
            None => Ok((EmbeddingSpec::default(), serde_json::Value::Null)),
        }
        .and_then(|(mut spec, given)| {
            if given.get("pooling").is_none()
                && let Some(pooling) = read_json(&dir.join("1_Pooling/config.json"))?
            {
                spec.pooling = pooling_of(&pooling)?;
            }
            if let Some(prompts) = read_json(&dir.join("config_sentence_transformers.json"))? {
                let prompt = |key: &str| prompts["prompts"][key].as_str().map(str::to_owned);
                if given.get("query_prefix").is_none() {
                    spec.query_prefix = prompt("query").unwrap_or_default();
                }
                if given.get("passage_prefix").is_none() {
                    spec.passage_prefix = prompt("passage")
                        .or_else(|| prompt("document"))
                        .unwrap_or_default();
                }
            }
            if spec.max_tokens.is_none()
                && let Some(config) = read_json(&dir.join("sentence_bert_config.json"))?
            {
                spec.max_tokens = config["max_seq_length"].as_u64().map(|n| n as usize);
            }
            Ok(spec)
        })?;
        if spec.name.is_empty() {
            spec.name = name.to_owned();
        }
        Ok(spec)
    }

    /// The prefix of a role.
    pub(crate) fn prefix(&self, role: Role) -> &str {
        match role {
            Role::Query => &self.query_prefix,
            Role::Passage => &self.passage_prefix,
        }
    }

    /// Tokens of a passage that fit into `max_tokens`.
    pub(crate) fn passage_tokens(
        &self,
        max_tokens: usize,
        tokenizer: &TextTokenizer,
    ) -> Result<usize, ModelError> {
        let taken = tokenizer.special_tokens() + tokenizer.count(&self.passage_prefix);
        match max_tokens.checked_sub(taken) {
            Some(left) if left > 0 => Ok(left),
            _ => Err(ModelError::Format(format!(
                "at most {max_tokens} tokens, of which special tokens and prefix take {taken}: nothing is left for text"
            ))),
        }
    }

    /// Hash of everything that a vector depends on.
    pub(crate) fn fingerprint(&self, dir: &Path, format: Format) -> Result<String, ModelError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ARITHMETIC.as_bytes());
        let settings = EmbeddingSpec {
            name: String::new(),
            ..self.clone()
        };
        hasher.update(
            serde_json::to_string(&settings)
                .unwrap_or_default()
                .as_bytes(),
        );
        match &self.files_hash {
            Some(hash) => {
                hasher.update(hash.as_bytes());
            }
            None => {
                for file in format.files() {
                    hasher.update(file.as_bytes());
                    hasher.update(blake3::hash(&map_file(&dir.join(file))?).as_bytes());
                }
            }
        }
        Ok(hasher.finalize().to_hex()[..32].to_owned())
    }
}

fn pooling_of(config: &serde_json::Value) -> Result<Pooling, ModelError> {
    let on = |key: &str| config[key].as_bool().unwrap_or(false);
    if on("pooling_mode_cls_token") {
        Ok(Pooling::Cls)
    } else if on("pooling_mode_mean_tokens") {
        Ok(Pooling::Mean)
    } else {
        Err(ModelError::Format(
            "1_Pooling/config.json asks for a pooling that is not supported; supported are mean and cls".to_owned(),
        ))
    }
}

/// Reads a JSON file; `None` when there is none.
fn read_json(path: &Path) -> Result<Option<serde_json::Value>, ModelError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| ModelError::Format(format!("{}: {e}", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::io("read", path)(e)),
    }
}
