//! A model's own tokenizer, for counting and for feeding the model.
//!
//! Relies on a `tokenizer.json`: read by [`Unigram`] where that knows its kind, else by the `tokenizers` crate, which is
//! loaded only when it is needed. Truncation and padding written in that file are switched off: a chunker must see the
//! true count. Safe to call from many threads at once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokenizers::Tokenizer;

use crate::error::ModelError;
use crate::unigram::Unigram;

/// Splits text into the tokens of one model.
pub struct TextTokenizer {
    path: PathBuf,
    fast: Option<Unigram>,
    /// The library's, with its error as text; always there without `fast`.
    library: OnceLock<Result<Tokenizer, String>>,
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
        let fail = |e: &dyn std::fmt::Display| {
            ModelError::Format(format!("tokenizer {}: {e}", path.display()))
        };
        let json = std::fs::read(path).map_err(|e| fail(&e))?;
        if let Some(fast) = Unigram::read(&json) {
            return Ok(Self {
                path: path.to_owned(),
                before: fast.before.clone(),
                after: fast.after.clone(),
                fast: Some(fast),
                library: OnceLock::new(),
            });
        }
        drop(json);
        let inner = load(path).map_err(|e| fail(&e))?;
        // The special tokens are found by comparing; a letter and a character that no vocabulary holds also prove
        // that later calls cannot fail for want of an unknown token.
        let probe = "a \u{10FFFD}";
        let bare = inner.encode_fast(probe, false).map_err(|e| fail(&e))?;
        let full = inner.encode_fast(probe, true).map_err(|e| fail(&e))?;
        let (bare, full) = (bare.get_ids(), full.get_ids());
        let start = full
            .windows(bare.len().max(1))
            .position(|w| w == bare)
            .ok_or_else(|| fail(&"special tokens are not simply before and after the text"))?;
        Ok(Self {
            path: path.to_owned(),
            fast: None,
            before: full[..start].to_vec(),
            after: full[start + bare.len()..].to_vec(),
            library: OnceLock::from(Ok(inner)),
        })
    }

    fn library(&self) -> Result<&Tokenizer, ModelError> {
        self.library
            .get_or_init(|| {
                load(&self.path).inspect_err(
                    |error| tracing::warn!(path = %self.path.display(), %error, "load tokenizer"),
                )
            })
            .as_ref()
            .map_err(|e| ModelError::Format(format!("tokenizer {}: {e}", self.path.display())))
    }

    /// Number of words that it knows.
    pub fn vocab(&self) -> usize {
        match (&self.fast, self.library.get()) {
            (Some(fast), _) => fast.vocab,
            (None, Some(Ok(library))) => library.get_vocab_size(true),
            (None, _) => 0,
        }
    }

    /// Number of special tokens that are added to every text.
    pub fn special_tokens(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Number of tokens of `text` alone: without special tokens, without prefix, never truncated.
    pub fn count(&self, text: &str) -> usize {
        if let Some(count) = self
            .fast
            .as_ref()
            .and_then(|fast| fast.tokens(text, <[u32]>::len))
        {
            return count;
        }
        match self.encode(text) {
            Ok(encoding) => encoding.len(),
            // Not seen since `open`. A character is at most a token or so: a safe upper bound.
            Err(_) => text.chars().count(),
        }
    }

    fn encode(&self, text: &str) -> Result<tokenizers::Encoding, ModelError> {
        self.library()?
            .encode_fast(text, false)
            .map_err(|e| ModelError::Input(format!("tokenize: {e}")))
    }

    /// The byte range in `text` of each of the [`count`](Self::count) tokens, in order, at character boundaries.
    ///
    /// White space may lie between ranges. Two tokens that one character was spelt out into share its range; a token
    /// without text of its own (a word-start marker) has an empty range.
    pub fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        let encoding = self.library().map(|library| library.encode(text, false));
        match encoding {
            Ok(Ok(encoding)) => encoding.get_offsets().to_vec(),
            _ => text
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
        let room = max.saturating_sub(self.special_tokens());
        let framed = |content: &[u32]| {
            let mut ids = Vec::with_capacity(content.len().min(room) + self.special_tokens());
            ids.extend_from_slice(&self.before);
            ids.extend_from_slice(&content[..content.len().min(room)]);
            ids.extend_from_slice(&self.after);
            ids
        };
        if let Some(ids) = self
            .fast
            .as_ref()
            .and_then(|fast| fast.tokens(whole, framed))
        {
            return Ok(ids);
        }
        Ok(framed(self.encode(whole)?.get_ids()))
    }

    /// The tokens of `prefix` alone, as [`words`](Self::words) wants them.
    pub(crate) fn prefix(&self, prefix: &str) -> Result<Vec<u32>, ModelError> {
        let ids = self.ids("", prefix, usize::MAX)?;
        Ok(ids[self.before.len()..ids.len() - self.after.len()].to_vec())
    }

    /// Which of the `ids` of a text (from [`ids`](Self::ids)) say something of it: all but special tokens, those of its
    /// `prefix`, and those without a letter or digit.
    pub(crate) fn words(&self, ids: &[u32], prefix: &[u32]) -> Vec<usize> {
        let start = self.before.len().min(ids.len());
        let end = ids.len().saturating_sub(self.after.len()).max(start);
        // The last token of a prefix may be another one where text follows.
        let same = |(a, b): &(&u32, &u32)| a == b;
        let start = start + ids[start..end].iter().zip(prefix).take_while(same).count();
        (start..end).filter(|&at| self.is_word(ids[at])).collect()
    }

    fn is_word(&self, id: u32) -> bool {
        match &self.fast {
            Some(fast) => fast.is_word(id),
            None => self
                .library()
                .ok()
                .and_then(|library| library.id_to_token(id))
                .is_some_and(|token| token.chars().any(char::is_alphanumeric)),
        }
    }
}

/// The library's tokenizer of a file.
fn load(path: &Path) -> Result<Tokenizer, String> {
    let text = |e: tokenizers::Error| e.to_string();
    let mut tokenizer = Tokenizer::from_file(path).map_err(text)?;
    tokenizer.with_truncation(None).map_err(text)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelStore, NoProgress, default_model_dir};

    /// Everything that has its own path in [`Unigram`]: runs of spaces, words without a start, characters that the map
    /// changes, drops or spells out, clusters, unknown characters side by side, special tokens in the text.
    const CASES: &[&str] = &[
        "",
        " ",
        "   ",
        "a",
        " a",
        "a  b   c ",
        "\u{2581}a\u{2581}\u{2581}b",
        "如何冻结行或列？“冻结”——第１行…",
        "Ｆｕｌｌ　ｗｉｄｔｈ，ﬁne ½ №5 ㈱ ①",
        "a\tb\nc\r\nd\u{0}e\u{7f}\u{200b}f\u{ad}g",
        "e\u{301}e\u{301}\u{302}\u{303} 한글 ฉันกิน नमस्ते कि",
        "👩\u{200d}👩\u{200d}👧\u{200d}👦 👍🏽 🇨🇳 \u{10FFFD}\u{10FFFC}x\u{10FFFD}",
        "中\u{301}文\u{fe0f}字\u{200d}か\u{3099}カ\u{309a}",
        "before <s> after <mask>, 1 < 2 </s>",
        "https://例子.中国/a?b=c&d=%20 --flag=\"x y\" $HOME/.config C:\\dir",
        "supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaft",
    ];

    #[test]
    fn both_ways_give_the_same_tokens() {
        let store = ModelStore::open(default_model_dir()).unwrap();
        if let Err(error) = store.pull(crate::DEFAULT_EMBEDDER, &NoProgress) {
            assert!(
                std::env::var_os("CI").is_none(),
                "no model under CI: {error}"
            );
            eprintln!("SKIPPED: {error}");
            return;
        }
        let (dir, _) = store.embedding(crate::DEFAULT_EMBEDDER).unwrap();
        let tokenizer = TextTokenizer::open(&dir.join("tokenizer.json")).unwrap();
        assert!(tokenizer.fast.is_some(), "the file was not understood");
        let library = tokenizer.library().unwrap();
        assert_eq!(tokenizer.vocab(), library.get_vocab_size(true));
        let check = |text: &str| {
            let expected = library.encode_fast(text, true).unwrap();
            let got = tokenizer.ids("", text, usize::MAX).unwrap();
            assert_eq!(got, expected.get_ids(), "{text:?}");
            assert_eq!(tokenizer.count(text) + 2, got.len(), "{text:?}");
        };
        CASES.iter().for_each(|text| check(text));
        // Any two characters side by side, from everywhere in Unicode, by a fixed walk.
        let mut at = 1_u32;
        for _ in 0..2_000 {
            let mut text = String::new();
            for _ in 0..12 {
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let below = [0x80, 0x300, 0x3100, 0xA000, 0x2_0000][(at >> 8) as usize % 5];
                text.extend(char::from_u32((at >> 11) % below));
            }
            check(&text);
        }
        // The help pages, line by line, where they have been fetched.
        let Some(corpora) = std::env::var_os("VA_CORPORA") else {
            return;
        };
        let mut folders = vec![PathBuf::from(corpora).join("sample")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(text) = std::fs::read_to_string(&path) {
                    text.lines().for_each(check);
                }
            }
        }
    }
}
