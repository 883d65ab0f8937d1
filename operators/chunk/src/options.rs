//! How large chunks are and how much they share; what is wrong with a set of options.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a document is cut. All sizes are in tokens of the embedding model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkOptions {
    /// No chunk is longer, its repeated table header included. Titles put before it for embedding come on top, at most
    /// a quarter of this; choose it so that 1.25 times it fits the model.
    pub tokens_max: usize,
    /// A section shorter than this is joined to a neighbouring section; a chunk is not cut so that less than this is left.
    pub tokens_min: usize,
    /// A chunk repeats the last whole sentences of the one before it in the same section, up to this many tokens. 0 for none.
    pub overlap_tokens: usize,
    /// Give each chunk the titles that stand above it as `context`, to be embedded with it.
    pub with_headings: bool,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self {
            tokens_max: 320,
            tokens_min: 48,
            overlap_tokens: 40,
            with_headings: true,
        }
    }
}

/// An option, or a pair of them, that makes no sense. The user's to mend; a retry is useless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("`tokens_max` is {0}, must be 16 to 8192; a sentence needs room")]
    TokensMax(usize),
    #[error("`tokens_min` is {0}, must be at most half of `tokens_max`, {1}")]
    TokensMin(usize, usize),
    #[error("`overlap_tokens` is {0}, must be at most half of `tokens_max`, {1}")]
    OverlapTokens(usize, usize),
}

impl ChunkOptions {
    /// Every problem at once; empty when all is well. [`crate::chunk`] itself accepts anything and clamps.
    pub fn validate(&self) -> Vec<OptionError> {
        let mut problems = Vec::new();
        if !(16..=8192).contains(&self.tokens_max) {
            problems.push(OptionError::TokensMax(self.tokens_max));
        }
        let half = self.tokens_max / 2;
        if self.tokens_min > half {
            problems.push(OptionError::TokensMin(self.tokens_min, half));
        }
        if self.overlap_tokens > half {
            problems.push(OptionError::OverlapTokens(self.overlap_tokens, half));
        }
        problems
    }
}

/// The options as the algorithm uses them: clamped to values with which it ends in linear time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub tokens_max: usize,
    pub tokens_min: usize,
    pub overlap_tokens: usize,
    /// No chunk is longer than this many bytes, whatever the counter says. A counter may take a megabyte without spaces
    /// for one unknown word, or blanks for nothing; and no call of it is given more than this, so one that is slower
    /// than linear does no harm. 16 bytes a token is several times what real text has.
    pub bytes_max: usize,
    /// Fragments of an oversized sentence are not made smaller than this many bytes. A fragment of so many bytes has
    /// hardly more tokens, so it fits and packing stays fine-grained.
    pub grain_bytes: usize,
}

impl Limits {
    pub fn new(options: &ChunkOptions) -> Self {
        let tokens_max = options.tokens_max.clamp(1, 1 << 20);
        Self {
            tokens_max,
            tokens_min: options.tokens_min.min(tokens_max / 2),
            overlap_tokens: options.overlap_tokens.min(tokens_max / 2),
            bytes_max: (tokens_max * 16).max(64),
            grain_bytes: (tokens_max / 2).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported() {
        let options = ChunkOptions {
            tokens_max: 10,
            tokens_min: 9,
            overlap_tokens: 8,
            with_headings: true,
        };
        let texts: Vec<String> = options.validate().iter().map(|e| e.to_string()).collect();
        assert_eq!(
            texts,
            [
                "`tokens_max` is 10, must be 16 to 8192; a sentence needs room",
                "`tokens_min` is 9, must be at most half of `tokens_max`, 5",
                "`overlap_tokens` is 8, must be at most half of `tokens_max`, 5",
            ]
        );
        assert!(ChunkOptions::default().validate().is_empty());
    }
}
