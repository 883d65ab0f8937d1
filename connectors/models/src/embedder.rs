//! What a text-embedding model offers, and how one is found by name or path.
//!
//! Two implementations: `native.rs` (BERT encoders from safetensors or E5S1) and `onnx.rs` (any ONNX graph). Leaves
//! fetching to `store.rs`, caching of vectors to the caller (with [`Embedder::fingerprint`] in the key).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ModelError;
use crate::late::TokenVectors;
use crate::native::NativeEmbedder;
use crate::onnx::OnnxEmbedder;
use crate::spec::{EmbeddingSpec, Format};
use crate::store::ModelStore;
use crate::tokenizer::TextTokenizer;

/// What a text is: some models put another prefix before a question than before a passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Something that is searched for.
    Query,
    /// Something that is found.
    Passage,
}

/// A loaded text-embedding model. Calls may come from many threads at once.
pub trait Embedder: Send + Sync + std::fmt::Debug {
    /// The name in the lock file, or the path it was loaded from.
    fn name(&self) -> &str;
    /// Length of the vectors.
    fn dims(&self) -> usize;
    /// Longest input in tokens, special tokens and prefix included; longer texts lose their end.
    fn max_tokens(&self) -> usize;
    /// The tokens of a passage that fit: [`max_tokens`](Self::max_tokens) less special tokens and prefix. A chunker
    /// that stays within it loses nothing.
    fn passage_tokens(&self) -> usize;
    /// Changes whenever the vectors may change: a hash of weights, tokenizer, settings and arithmetic.
    fn fingerprint(&self) -> &str;
    /// The model's own tokenizer.
    fn tokenizer(&self) -> &TextTokenizer;
    /// One vector of length 1 per text, in order. The prefix is added here.
    ///
    /// Blocks the calling thread: on an async runtime call it through `spawn_blocking`.
    ///
    /// # Errors
    /// When the model yields a number that is not finite, or the runtime fails.
    fn embed(&self, texts: &[&str], role: Role) -> Result<Vec<Vec<f32>>, ModelError>;
    /// The vectors of each text's tokens, `[tokens, dims]` with rows of length 1, for comparing texts token by token
    /// ([`max_sim`](crate::max_sim)). The prefix is added here as in [`embed`](Self::embed), but left out of the result, as
    /// are special tokens and tokens without a letter or digit: they would match everywhere. A text of punctuation alone
    /// has no rows.
    ///
    /// Costs as much as [`embed`](Self::embed), and blocks as it does.
    ///
    /// # Errors
    /// Those of [`embed`](Self::embed); when the model yields one vector for a whole text only.
    fn token_vectors(&self, texts: &[&str], role: Role) -> Result<Vec<TokenVectors>, ModelError>;
}

/// Loads a model: a name from the lock file that was pulled, or the path of a directory with a model of one's own.
///
/// Such a directory holds `tokenizer.json` and either `model.onnx` (inputs `input_ids`, `attention_mask`, optionally
/// `token_type_ids`) or `model.safetensors` with `config.json` (BERT, RoBERTa, XLM-RoBERTa). Pooling, prefixes and the
/// longest input are taken from the files that sentence-transformers writes; `va-model.json` overrides them (see
/// [`EmbeddingSpec`]). Do not change the files while they are loaded.
///
/// # Errors
/// When the model is unknown, not pulled, damaged, or of a kind that cannot be run.
pub fn load_embedder(reference: &str, store: &ModelStore) -> Result<Arc<dyn Embedder>, ModelError> {
    let (dir, spec) = find(reference, store)?;
    let started = std::time::Instant::now();
    let embedder: Arc<dyn Embedder> = match Format::of_directory(&dir)? {
        Format::Onnx => Arc::new(OnnxEmbedder::load(&dir, spec)?),
        format => Arc::new(NativeEmbedder::load(&dir, format, spec)?),
    };
    tracing::info!(
        model = embedder.name(),
        dims = embedder.dims(),
        took_ms = started.elapsed().as_millis() as u64,
        "embedding model loaded"
    );
    Ok(embedder)
}

/// The tokenizer of a model alone, without its weights: for counting. `reference` as for [`load_embedder`].
///
/// # Errors
/// When the model is unknown, not pulled or damaged.
pub(crate) fn load_tokenizer(
    reference: &str,
    store: &ModelStore,
) -> Result<TextTokenizer, ModelError> {
    let (dir, _) = find(reference, store)?;
    TextTokenizer::open(&dir.join("tokenizer.json"))
}

fn find(reference: &str, store: &ModelStore) -> Result<(PathBuf, EmbeddingSpec), ModelError> {
    if store.lock().get(reference).is_some() {
        store.embedding(reference)
    } else if Path::new(reference).is_dir() {
        let dir = Path::new(reference).to_path_buf();
        let spec = EmbeddingSpec::of_directory(reference, &dir)?;
        Ok((dir, spec))
    } else {
        Err(ModelError::Unknown {
            name: reference.to_owned(),
            known: store.lock().names(),
        })
    }
}
