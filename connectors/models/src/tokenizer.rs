//! A model's own tokenizer, for counting and for feeding the model.
//!
//! Relies on the `tokenizers` crate and a `tokenizer.json`. Truncation and padding written in that file are switched
//! off: a chunker must see the true count. Safe to call from many threads at once.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::error::ModelError;

/// Splits text into the tokens of one model.
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Ids that the model wants before and after each text.
    before: Vec<u32>,
    after: Vec<u32>,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextTokenizer({} words)", self.vocab())
    }
}

impl TextTokenizer {
    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let fail =
            |e: tokenizers::Error| ModelError::Format(format!("tokenizer {}: {e}", path.display()));
        let mut inner = Tokenizer::from_file(path).map_err(fail)?;
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        // The special tokens are found by comparing; a letter and a character that no vocabulary holds also prove
        // that later calls cannot fail for want of an unknown token.
        let probe = "a \u{10FFFD}";
        let bare = inner.encode_fast(probe, false).map_err(fail)?;
        let full = inner.encode_fast(probe, true).map_err(fail)?;
        let (bare, full) = (bare.get_ids(), full.get_ids());
        let start = full
            .windows(bare.len().max(1))
            .position(|w| w == bare)
            .ok_or_else(|| {
                ModelError::Format(format!(
                    "tokenizer {}: special tokens are not simply before and after the text",
                    path.display()
                ))
            })?;
        Ok(Self {
            before: full[..start].to_vec(),
            after: full[start + bare.len()..].to_vec(),
            inner,
        })
    }

    /// Number of words that it knows.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Number of special tokens that are added to every text.
    pub fn special_tokens(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Number of tokens of `text` alone: without special tokens, without prefix, never truncated.
    pub fn count(&self, text: &str) -> usize {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => encoding.len(),
            // Not seen since `open` probed the tokenizer. A character is at most a token or so: a safe upper bound.
            Err(_) => text.chars().count(),
        }
    }

    /// The byte range in `text` of each of the [`count`](Self::count) tokens, in order, at character boundaries.
    ///
    /// White space may lie between ranges. Two tokens that one character was spelt out into share its range; a token
    /// without text of its own (a word-start marker) has an empty range.
    pub fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        match self.inner.encode(text, false) {
            Ok(encoding) => encoding.get_offsets().to_vec(),
            Err(_) => text
                .char_indices()
                .map(|(i, c)| (i, i + c.len_utf8()))
                .collect(),
        }
    }

    /// The ids to feed the model for `prefix` + `text`: special tokens included, at most `max` in total, the end of
    /// the text being dropped.
    pub(crate) fn ids(&self, prefix: &str, text: &str, max: usize) -> Result<Vec<u32>, ModelError> {
        let joined;
        let whole = if prefix.is_empty() {
            text
        } else {
            joined = format!("{prefix}{text}");
            &joined
        };
        let encoding = self
            .inner
            .encode_fast(whole, false)
            .map_err(|e| ModelError::Input(format!("tokenize: {e}")))?;
        let content = encoding.get_ids();
        let room = max.saturating_sub(self.special_tokens());
        let mut ids = Vec::with_capacity(content.len().min(room) + self.special_tokens());
        ids.extend_from_slice(&self.before);
        ids.extend_from_slice(&content[..content.len().min(room)]);
        ids.extend_from_slice(&self.after);
        Ok(ids)
    }
}
