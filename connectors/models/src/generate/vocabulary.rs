//! The words of a language model: from text to tokens and back.
//!
//! A GGUF file holds vocabulary and merges of a byte-level BPE; the cutting is the `tokenizers` crate's. Special tokens (those
//! that begin and end messages) are found here and not there, because only the prompt's own frame may hold them: what a
//! user wrote is text, whatever it looks like ([`Vocabulary::guard`]). Texts are not normalised first, as in llama.cpp: the
//! file does not say how. Leaves sampling and streaming to others.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::gguf::Gguf;
use crate::error::ModelError;

/// The types of tokens that are not spelt.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Tokens that end a reply in all models that have them, beside those that the file names.
const ENDS: [&str; 5] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "</s>",
];

/// Around the number of a guarded text: characters that Unicode keeps free of meaning.
const GUARD: (char, char) = ('\u{FDD0}', '\u{FDD1}');

/// Cuts a text between numbers for Qwen2, as its authors published it.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary of one model.
pub(super) struct Vocabulary {
    bpe: Tokenizer,
    /// The bytes of each token; of special ones, what it is called.
    bytes: Vec<Vec<u8>>,
    /// Special tokens by what they are called.
    special: Vec<(String, u32)>,
    /// Which tokens are not shown.
    hidden: Vec<bool>,
    begin: Option<u32>,
    ends: Vec<u32>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({} words)", self.bytes.len())
    }
}

/// Texts of users that hold what only the frame of a prompt may: a stand-in goes through the template in their place.
#[derive(Debug, Default)]
pub(super) struct Guarded(Vec<String>);

impl Vocabulary {
    /// Reads a vocabulary.
    pub(super) fn read(gguf: &Gguf) -> Result<Self, ModelError> {
        let kind = gguf.text("tokenizer.ggml.model")?;
        if kind != "gpt2" {
            return Err(ModelError::Format(format!(
                "GGUF file: tokenizer `{kind}`; supported is `gpt2` (byte-level BPE)"
            )));
        }
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        if tokens.len() != kinds.len() {
            return Err(ModelError::Format(format!(
                "GGUF file: {} tokens, but {} types of tokens",
                tokens.len(),
                kinds.len()
            )));
        }
        let letters = letters();
        let mut bytes = Vec::with_capacity(tokens.len());
        let mut special = Vec::new();
        for ((token, text), kind) in (0u32..).zip(tokens).zip(kinds) {
            let is_special = matches!(*kind, CONTROL | USER_DEFINED);
            if is_special && !text.is_empty() {
                special.push((text.clone(), token));
            }
            let spelt: Option<Vec<u8>> = text
                .chars()
                .map(|letter| letters.get(&letter).copied())
                .collect();
            bytes.push(match spelt {
                Some(spelt) if !is_special => spelt,
                _ => text.as_bytes().to_vec(),
            });
        }
        // Of two that begin alike, the longer one is meant.
        special.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let named = |key: &str| gguf.size_if(key).and_then(|id| u32::try_from(id).ok());
        let mut ends: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
            .into_iter()
            .filter_map(named)
            .collect();
        let by_name = special
            .iter()
            .filter(|(text, _)| ENDS.contains(&text.as_str()));
        ends.extend(by_name.map(|(_, token)| *token));
        let begins = gguf.bool_if("tokenizer.ggml.add_bos_token") == Some(true);
        Ok(Self {
            bpe: bpe(gguf, tokens)?,
            hidden: kinds
                .iter()
                .map(|kind| matches!(*kind, CONTROL | UNUSED))
                .collect(),
            begin: named("tokenizer.ggml.bos_token_id").filter(|_| begins),
            bytes,
            special,
            ends,
        })
    }

    /// How many tokens the text has; special ones in it are text.
    pub(super) fn count(&self, text: &str) -> Result<usize, ModelError> {
        self.spell(text).map(|tokens| tokens.len())
    }

    /// The tokens of a text; special ones in it are text.
    pub(super) fn spell(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut tokens = Vec::new();
        self.spell_into(text, &mut tokens)?;
        Ok(tokens)
    }

    fn spell_into(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), ModelError> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .bpe
            .encode_fast(text, false)
            .map_err(|error| ModelError::Input(format!("tokenize: {error}")))?;
        tokens.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// A text of a user, with stand-ins for what looks like a special token.
    pub(super) fn guard(&self, text: &str, guarded: &mut Guarded) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = if first == GUARD.0 || first == GUARD.1 {
                Some(first.len_utf8())
            } else {
                self.special_at(rest).map(|(text, _)| text.len())
            };
            match length {
                Some(length) => {
                    out.push(GUARD.0);
                    out.push_str(&guarded.0.len().to_string());
                    out.push(GUARD.1);
                    guarded.0.push(rest[..length].to_owned());
                    rest = &rest[length..];
                }
                None => {
                    out.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        out
    }

    /// The tokens of a prompt: special tokens where the frame has them, text where a stand-in is.
    pub(super) fn prompt(&self, rendered: &str, guarded: &Guarded) -> Result<Vec<u32>, ModelError> {
        let mut tokens: Vec<u32> = self.begin.into_iter().collect();
        // Text that belongs together is spelt together: a stand-in's with what is around it.
        let mut plain = String::new();
        let mut rest = rendered;
        while let Some(first) = rest.chars().next() {
            if first == GUARD.0
                && let Some(end) = rest.find(GUARD.1)
            {
                let number = rest[first.len_utf8()..end].parse::<usize>();
                let text = number.ok().and_then(|number| guarded.0.get(number));
                plain.push_str(text.ok_or_else(|| {
                    ModelError::Format("the chat template changed a text of a message".to_owned())
                })?);
                rest = &rest[end + GUARD.1.len_utf8()..];
            } else if let Some((text, token)) = self.special_at(rest) {
                self.spell_into(&plain, &mut tokens)?;
                plain.clear();
                // A model that has its beginning added may have it in the template as well.
                if self.begin != Some(*token) || tokens.len() != 1 {
                    tokens.push(*token);
                }
                rest = &rest[text.len()..];
            } else {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        self.spell_into(&plain, &mut tokens)?;
        Ok(tokens)
    }

    fn special_at(&self, text: &str) -> Option<&(String, u32)> {
        self.special
            .iter()
            .find(|(special, _)| text.starts_with(special.as_str()))
    }

    /// What is shown of a token; nothing of those that frame messages.
    pub(super) fn shown(&self, token: u32) -> &[u8] {
        let at = token as usize;
        match (self.hidden.get(at), self.bytes.get(at)) {
            (Some(false), Some(bytes)) => bytes,
            _ => &[],
        }
    }

    /// Whether a reply ends with this token.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }
}

/// The BPE of the vocabulary, through the form that the library reads.
fn bpe(gguf: &Gguf, tokens: &[String]) -> Result<Tokenizer, ModelError> {
    let cut = match gguf.text("tokenizer.ggml.pre")? {
        "smollm" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        ]}),
        "gpt-2" => {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true})
        }
        "qwen2" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]}),
        other => {
            return Err(ModelError::Format(format!(
                "GGUF file: texts are cut as in `{other}`; supported are `smollm`, `gpt-2` and `qwen2`"
            )));
        }
    };
    let ids = tokens.iter().zip(0u32..);
    let vocabulary: Map<String, Value> = ids
        .map(|(token, id)| (token.clone(), Value::from(id)))
        .collect();
    let merges = gguf.texts("tokenizer.ggml.merges")?;
    let form = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": cut,
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        },
    });
    let fail = |error: &dyn std::fmt::Display| {
        ModelError::Format(format!("GGUF file: its tokenizer: {error}"))
    };
    let form = serde_json::to_vec(&form).map_err(|error| fail(&error))?;
    Tokenizer::from_bytes(form).map_err(|error| fail(&error))
}

/// The byte that each letter of a byte-level vocabulary stands for: printable ones for themselves, the others by letters
/// from 256 on, in order.
fn letters() -> HashMap<char, u8> {
    let mut letters = HashMap::new();
    let mut next = 256u32;
    for byte in 0..=255u8 {
        let is_plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let letter = if is_plain {
            Some(char::from(byte))
        } else {
            next += 1;
            char::from_u32(next - 1)
        };
        letters.extend(letter.map(|letter| (letter, byte)));
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_a_letter() {
        let letters = letters();
        assert_eq!(letters.len(), 256);
        assert_eq!(letters[&'A'], b'A');
        assert_eq!(letters[&'Ġ'], b' ');
        assert_eq!(letters[&'Ċ'], b'\n');
    }
}
