//! Embeddings from BERT encoders that run on our own forward pass (`bert/`).
//!
//! Tokens of several texts go through the encoder together without padding; pieces of about [`PIECE_TOKENS`] are spread
//! over the model threads, longest texts first, so that no thread is left with a long one at the end.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bert::e5s1::E5s1;
use crate::bert::safetensors::BertFiles;
use crate::bert::{Bert, Weights};
use crate::embedder::{Embedder, Role};
use crate::error::ModelError;
use crate::late::TokenVectors;
use crate::pooling::normalize;
use crate::spec::{EmbeddingSpec, Format};
use crate::tokenizer::TextTokenizer;
use crate::workers::{Workers, workers};

/// Tokens in one piece of work. Small enough for the caches and for fair sharing, large enough that reading the weights
/// costs little per token.
const PIECE_TOKENS: usize = 256;

/// Queries of at most this many tokens in total go to the thread that is kept for them.
const URGENT_TOKENS: usize = 128;

/// Questions whose vectors are kept, and the longest of them in bytes.
const ASKED: usize = 64;
const ASKED_BYTES_MAX: usize = 1_024;

/// Texts per piece of tokenising.
const TOKENIZE_PIECE: usize = 16;

/// A BERT encoder with its tokenizer.
pub struct NativeEmbedder {
    spec: EmbeddingSpec,
    bert: Bert,
    tokenizer: TextTokenizer,
    max_tokens: usize,
    passage_tokens: usize,
    fingerprint: String,
    /// The questions that were asked last: a search asks for the vector of a question, and those who compare what it found for
    /// that one or those of its tokens.
    asked: Mutex<VecDeque<Arc<Asked>>>,
}

/// A question's vectors.
struct Asked {
    text: String,
    whole: Vec<f32>,
    tokens: TokenVectors,
}

impl std::fmt::Debug for NativeEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "NativeEmbedder({}, {:?})",
            self.spec.name,
            self.bert.shape()
        )
    }
}

impl NativeEmbedder {
    /// Loads the model in `dir`.
    pub(crate) fn load(
        dir: &Path,
        format: Format,
        spec: EmbeddingSpec,
    ) -> Result<Self, ModelError> {
        let weights: Box<dyn Weights> = match format {
            Format::E5s1 => Box::new(E5s1::open(&dir.join("model.e5s1"))?),
            Format::Safetensors => Box::new(BertFiles::open(
                &dir.join("model.safetensors"),
                &dir.join("config.json"),
            )?),
            Format::Onnx => {
                return Err(ModelError::Format("an ONNX graph is not run here".into()));
            }
        };
        // Tokenizer and weights take about as long as each other to load.
        let (bert, tokenizer) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| TextTokenizer::open(&dir.join("tokenizer.json")));
            let bert = Bert::load(weights, spec.precision);
            let tokenizer = tokenizer
                .join()
                .unwrap_or_else(|_| Err(ModelError::Format("tokenizer cannot be read".into())));
            (bert, tokenizer)
        });
        let (bert, tokenizer) = (bert?, tokenizer?);
        let max_tokens = spec
            .max_tokens
            .unwrap_or(bert.shape().max_tokens)
            .min(bert.shape().max_tokens);
        Ok(Self {
            passage_tokens: spec.passage_tokens(max_tokens, &tokenizer)?,
            fingerprint: spec.fingerprint(dir, format)?,
            max_tokens,
            bert,
            tokenizer,
            spec,
            asked: Mutex::default(),
        })
    }

    /// The ids of the texts with the prefix of their role.
    fn ids(
        &self,
        workers: &Workers,
        texts: &[&str],
        role: Role,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let prefix = self.spec.prefix(role);
        let tokenize = |texts: &&[&str]| -> Result<Vec<Vec<u32>>, ModelError> {
            texts
                .iter()
                .map(|t| self.tokenizer.ids(prefix, t, self.max_tokens))
                .collect()
        };
        if texts.len() <= TOKENIZE_PIECE {
            return tokenize(&texts);
        }
        let pieces: Vec<&[&str]> = texts.chunks(TOKENIZE_PIECE).collect();
        let ids = workers.each(&pieces, tokenize)?;
        Ok(ids.into_iter().flatten().collect())
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<Arc<Asked>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vectors of `texts`, if they are one question of a usual length: both kinds come from the same computation.
    fn question(&self, texts: &[&str], role: Role) -> Result<Option<Arc<Asked>>, ModelError> {
        let [text] = texts else { return Ok(None) };
        if role != Role::Query || text.len() > ASKED_BYTES_MAX {
            return Ok(None);
        }
        let known = self
            .asked()
            .iter()
            .find(|asked| asked.text == *text)
            .cloned();
        if known.is_some() {
            return Ok(known);
        }
        let workers = workers()?;
        let ids = self.ids(workers, texts, role)?;
        let made = spread(workers, &ids, role, |piece| {
            let rows = self.bert.encode(piece)?;
            let whole = self.bert.pool(&rows, piece, self.spec.pooling);
            let tokens = self.tokens(&rows, piece, role)?;
            Ok(whole.into_iter().zip(tokens).collect())
        })?;
        let Some((mut whole, tokens)) = made.into_iter().next() else {
            return Ok(None);
        };
        normalize(&mut whole)?;
        let made = Arc::new(Asked {
            text: (*text).to_owned(),
            whole,
            tokens,
        });
        let mut asked = self.asked();
        asked.truncate(ASKED - 1);
        asked.push_front(made.clone());
        Ok(Some(made))
    }

    /// The tokens of words among `rows`, which are those of `piece`.
    fn tokens(
        &self,
        rows: &[f32],
        piece: &[&[u32]],
        role: Role,
    ) -> Result<Vec<TokenVectors>, ModelError> {
        let prefix = self.tokenizer.prefix(self.spec.prefix(role))?;
        let dims = self.dims();
        let mut rows = rows;
        let mut out = Vec::with_capacity(piece.len());
        for ids in piece {
            let (tokens, rest) = rows.split_at(ids.len() * dims);
            rows = rest;
            let keep = self.tokenizer.words(ids, &prefix);
            out.push(TokenVectors::of(tokens, dims, &keep)?);
        }
        Ok(out)
    }

    fn run(&self, pieces: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut vectors = self.bert.forward(pieces, self.spec.pooling)?;
        for vector in &mut vectors {
            normalize(vector)?;
        }
        Ok(vectors)
    }
}

impl Embedder for NativeEmbedder {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn dims(&self) -> usize {
        self.bert.shape().hidden
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
        if let Some(asked) = self.question(texts, role)? {
            return Ok(vec![asked.whole.clone()]);
        }
        let workers = workers()?;
        let ids = self.ids(workers, texts, role)?;
        spread(workers, &ids, role, |piece| self.run(piece))
    }

    fn token_vectors(&self, texts: &[&str], role: Role) -> Result<Vec<TokenVectors>, ModelError> {
        if let Some(asked) = self.question(texts, role)? {
            return Ok(vec![asked.tokens.clone()]);
        }
        let workers = workers()?;
        let ids = self.ids(workers, texts, role)?;
        spread(workers, &ids, role, |piece| {
            self.tokens(&self.bert.encode(piece)?, piece, role)
        })
    }
}

/// Runs `work` on pieces of about [`PIECE_TOKENS`] over the threads; what it gives for each text, in the order of the texts.
fn spread<R: Default + Send>(
    workers: &Workers,
    ids: &[Vec<u32>],
    role: Role,
    work: impl Fn(&[&[u32]]) -> Result<Vec<R>, ModelError> + Sync,
) -> Result<Vec<R>, ModelError> {
    if role == Role::Query && ids.iter().map(Vec::len).sum::<usize>() <= URGENT_TOKENS {
        let all: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        return workers.urgent(|| work(&all));
    }
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(ids[i].len()));
    let mut pieces: Vec<Vec<usize>> = Vec::new();
    let mut tokens = PIECE_TOKENS;
    for i in order {
        match pieces.last_mut() {
            Some(piece) if tokens + ids[i].len() <= PIECE_TOKENS => piece.push(i),
            _ => {
                pieces.push(vec![i]);
                tokens = 0;
            }
        }
        tokens += ids[i].len();
    }
    let done = workers.each(&pieces, |piece| {
        let sequences: Vec<&[u32]> = piece.iter().map(|&i| ids[i].as_slice()).collect();
        work(&sequences)
    })?;
    let mut out: Vec<R> = std::iter::repeat_with(R::default).take(ids.len()).collect();
    for (i, result) in pieces.into_iter().flatten().zip(done.into_iter().flatten()) {
        out[i] = result;
    }
    Ok(out)
}
