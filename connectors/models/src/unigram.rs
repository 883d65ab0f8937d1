//! Unigram tokenization (Kudo 2018) for tokenizers of the XLM-R family, many times faster than the general library.
//!
//! A chunker counts every sentence and most candidates of a chunk, so counting is as hot as parsing. The library follows
//! the offsets of every character and looks pieces up in nested hash maps; here is one pass of normalisation into a
//! reused buffer, and one double array for the pieces. The result is the same, token for token: a test compares both on
//! every document of the corpora. [`Unigram::read`] answers `None` for a tokenizer of any other make, and
//! [`Unigram::tokens`] for a text with special tokens in it; those, and offsets, are left to the library.

use std::cell::RefCell;
use std::collections::HashMap;

use cedarwood::Cedar;
use serde::Deserialize;
use spm_precompiled::Precompiled;
use unicode_segmentation::UnicodeSegmentation;

/// What stands for a space, and begins every word.
const WORD_START: &str = "\u{2581}";
/// What an unknown character costs beside the least likely piece, as SentencePiece has it.
const UNKNOWN_PENALTY: f64 = 10.0;

/// The pieces of a model and how text is normalised before it is cut into them.
pub(crate) struct Unigram {
    pieces: Cedar,
    scores: Vec<f64>,
    unknown: u32,
    unknown_score: f64,
    charsmap: Precompiled,
    /// What the map makes of plain characters (see [`plain`]), where that is anything else.
    changed: HashMap<char, Box<str>>,
    /// Texts that are tokens of their own wherever they occur.
    special: Vec<String>,
    /// By id: whether the piece has a letter or digit.
    wordy: Vec<bool>,
    /// Number of different tokens.
    pub vocab: usize,
    /// Ids that the model wants before and after each text.
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

#[derive(Deserialize)]
struct File {
    added_tokens: Vec<Added>,
    normalizer: Normalizer,
    pre_tokenizer: Metaspace,
    model: Model,
    post_processor: Template,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Normalizer {
    normalizers: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    Precompiled(Precompiled),
    Replace { pattern: Pattern, content: String },
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Metaspace {
    Metaspace {
        replacement: String,
        #[serde(default)]
        add_prefix_space: Option<bool>,
        #[serde(default)]
        prepend_scheme: Option<String>,
        #[serde(default)]
        split: Option<bool>,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Model {
    Unigram {
        unk_id: u32,
        vocab: Vec<(String, f64)>,
        #[serde(default)]
        byte_fallback: bool,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Template {
    TemplateProcessing {
        single: Vec<Part>,
        special_tokens: HashMap<String, Special>,
    },
}

#[derive(Deserialize)]
enum Part {
    SpecialToken { id: String },
    Sequence {},
}

#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    normal: String,
    best: Vec<Best>,
    ids: Vec<u32>,
}

/// The best way to cut what ends at a byte.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    /// Where its last piece begins; [`u32::MAX`] when nothing ends here.
    start: u32,
    id: u32,
}

const NOWHERE: Best = Best {
    score: 0.0,
    start: u32::MAX,
    id: 0,
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Unigram {
    /// Reads a `tokenizer.json`. `None` when it describes anything but a unigram model over SentencePiece's own
    /// normalisation with words marked at their start.
    pub fn read(json: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(json).ok()?;
        let [Step::Precompiled(charsmap), spaces] =
            <[Step; 2]>::try_from(file.normalizer.normalizers).ok()?
        else {
            return None;
        };
        let Step::Replace {
            pattern: Pattern::Regex(pattern),
            content,
        } = spaces
        else {
            return None;
        };
        let Metaspace::Metaspace {
            replacement,
            add_prefix_space,
            prepend_scheme,
            split,
        } = file.pre_tokenizer;
        let marked = add_prefix_space.unwrap_or(true)
            && prepend_scheme.is_none_or(|scheme| scheme == "always");
        let Model::Unigram {
            unk_id: unknown,
            vocab,
            byte_fallback,
        } = file.model;
        if (pattern.as_str(), content.as_str(), replacement.as_str()) != (" {2,}", " ", WORD_START)
            || !(marked && split.unwrap_or(true))
            || byte_fallback
            || unknown as usize >= vocab.len()
        {
            return None;
        }
        let Template::TemplateProcessing {
            single,
            special_tokens,
        } = file.post_processor;
        let (mut before, mut after, mut text_seen) = (Vec::new(), Vec::new(), false);
        for part in single {
            match part {
                Part::Sequence {} if text_seen => return None,
                Part::Sequence {} => text_seen = true,
                Part::SpecialToken { id } => {
                    let side = if text_seen { &mut after } else { &mut before };
                    side.extend(&special_tokens.get(&id)?.ids);
                }
            }
        }

        let mut pieces = Cedar::new();
        for (id, (piece, _)) in vocab.iter().enumerate() {
            // A piece that is there twice keeps its last id. The array cannot hold the empty one, nor a zero byte.
            if !piece.is_empty() && !piece.contains('\0') {
                pieces.update(piece, i32::try_from(id).ok()?);
            }
        }
        let least = vocab
            .iter()
            .map(|(_, score)| *score)
            .fold(f64::INFINITY, f64::min);
        let changed = (0..=0xFFFF)
            .filter_map(char::from_u32)
            .filter(|c| plain(*c))
            .filter_map(|c| Some((c, charsmap.transform(c.encode_utf8(&mut [0; 4]))?.into())))
            .collect();
        let added = file
            .added_tokens
            .iter()
            .filter(|token| token.id as usize >= vocab.len())
            .count();
        let wordy = vocab
            .iter()
            .map(|(piece, _)| piece.chars().any(char::is_alphanumeric))
            .collect();
        Some(Self {
            wordy,
            scores: vocab.iter().map(|(_, score)| *score).collect(),
            vocab: vocab.len() + added,
            pieces,
            unknown,
            unknown_score: least - UNKNOWN_PENALTY,
            charsmap,
            changed,
            special: file
                .added_tokens
                .into_iter()
                .map(|token| token.content)
                .collect(),
            before,
            after,
        })
    }

    /// Whether a token has a letter or digit; a special one that is no piece has none.
    pub fn is_word(&self, id: u32) -> bool {
        self.wordy.get(id as usize).copied().unwrap_or(false)
    }

    /// Calls `with` with the ids of the tokens of `text`. `None` when the text holds a special token.
    pub fn tokens<T>(&self, text: &str, with: impl FnOnce(&[u32]) -> T) -> Option<T> {
        if self.special.iter().any(|special| text.contains(special)) {
            return None;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normal, best, ids } = scratch;
            normal.clear();
            ids.clear();
            self.normalise(text, normal);
            if !normal.is_empty() && !normal.starts_with(WORD_START) {
                normal.insert_str(0, WORD_START);
            }
            let mut rest = normal.as_str();
            while let Some(first) = rest.chars().next() {
                let end = rest[first.len_utf8()..]
                    .find(WORD_START)
                    .map_or(rest.len(), |at| first.len_utf8() + at);
                self.cut(&rest[..end], best, ids);
                rest = &rest[end..];
            }
            Some(with(ids))
        })
    }

    /// SentencePiece's character map, applied to grapheme clusters of fewer than six bytes and else to characters; then
    /// runs of spaces as one, and spaces as word starts.
    fn normalise(&self, text: &str, normal: &mut String) {
        let mut after_space = false;
        let mut push = |c: char| {
            if c != ' ' {
                normal.push(c);
            } else if !after_space {
                normal.push_str(WORD_START);
            }
            after_space = c == ' ';
        };
        let mut chars = text.char_indices().peekable();
        while let Some((start, c)) = chars.next() {
            if plain(c) && chars.peek().is_none_or(|(_, next)| plain(*next)) {
                match self.changed.get(&c) {
                    None => push(c),
                    Some(into) => into.chars().for_each(&mut push),
                }
                continue;
            }
            // Up to where two plain characters meet, the clusters have to be found.
            let mut end = start + c.len_utf8();
            let mut before_plain = plain(c);
            while let Some(&(at, c)) = chars.peek() {
                if plain(c) && before_plain {
                    break;
                }
                before_plain = plain(c);
                end = at + c.len_utf8();
                chars.next();
            }
            for cluster in text[start..end].graphemes(true) {
                if cluster.len() < 6
                    && let Some(into) = self.charsmap.transform(cluster)
                {
                    into.chars().for_each(&mut push);
                    continue;
                }
                for (at, c) in cluster.char_indices() {
                    match self.charsmap.transform(&cluster[at..at + c.len_utf8()]) {
                        Some(into) => into.chars().for_each(&mut push),
                        None => push(c),
                    }
                }
            }
        }
    }

    /// The pieces of the most likely cut of a word (Viterbi); unknown characters that follow each other are one token.
    fn cut(&self, word: &str, best: &mut Vec<Best>, ids: &mut Vec<u32>) {
        best.clear();
        best.resize(word.len() + 1, NOWHERE);
        best[0].start = 0;
        for (start, c) in word.char_indices() {
            let so_far = best[start].score;
            let mut alone = false;
            let mut offer = |end: usize, score: f64, id: u32| {
                let score = so_far + score;
                let there = &mut best[end];
                if there.start == u32::MAX || score > there.score {
                    *there = Best {
                        score,
                        start: start as u32,
                        id,
                    };
                }
            };
            for (id, last) in self.pieces.common_prefix_iter(&word[start..]) {
                alone |= last + 1 == c.len_utf8();
                offer(start + last + 1, self.scores[id as usize], id as u32);
            }
            if !alone {
                offer(start + c.len_utf8(), self.unknown_score, self.unknown);
            }
        }
        let first = ids.len();
        let mut end = word.len();
        while end > 0 {
            let piece = best[end];
            let fused = piece.id == self.unknown && ids[first..].last() == Some(&self.unknown);
            if !fused {
                ids.push(piece.id);
            }
            end = piece.start as usize;
        }
        ids[first..].reverse();
    }
}

/// Is it a grapheme cluster of its own between others of its kind? True for what most Chinese and English text is made
/// of; nothing here combines with, joins or extends a neighbour (UAX 29).
fn plain(c: char) -> bool {
    matches!(c,
        '\t' | '\n' | ' '..='~' | 'À'..='ž' | '\u{2010}'..='\u{2027}'
        | '\u{3000}'..='\u{3020}' | 'ぁ'..='ゖ' | 'ァ'..='ヺ'
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '！'..='～')
}
