//! The entry point: a document's text and blocks to chunks with their offsets, titles and page.

use std::ops::Range;

use va_parse::{Block, BlockKind};

use crate::group::{common_path, groups, path_above, sections};
use crate::options::{ChunkOptions, Limits};
use crate::pack::{Packed, Packer};
use crate::units::{Stretch, Unit, stretches, units};

/// Counts tokens as the embedding model does. The special tokens that a model adds around each text are not counted.
///
/// Must be a function of the text alone. Called with a few kilobytes at most, several times per chunk.
pub trait TokenCounter {
    /// Number of tokens of `text`.
    fn count(&self, text: &str) -> usize;

    /// Byte offsets of the tokens of `text`, in order. Offsets inside a character are taken for its start.
    fn offsets(&self, text: &str) -> Vec<(usize, usize)>;
}

/// A stretch of a document that is embedded, indexed and cited as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Exactly the document's text at `bytes`; begins and ends with visible text (or the indentation of code).
    pub text: String,
    /// Byte range in the document's text.
    pub bytes: Range<usize>,
    /// The same in Unicode characters (scalar values).
    pub chars: Range<usize>,
    /// Tokens of `text` alone.
    pub tokens: usize,
    /// Titles of the section of this chunk, outermost first, headings inside the chunk included. For a chunk of several
    /// tiny sections what they have in common, or if that is nothing, the first titles in it.
    pub title_path: Vec<String>,
    /// Titles above the chunk that are not in its text, joined by ` > `, for embedding before the text. The outermost
    /// are left out where they would take more than a quarter of `tokens_max`.
    pub context: Option<String>,
    /// Header row of the table in whose middle the chunk starts. Its tokens and those of `text` are within `tokens_max`.
    pub prefix: Option<String>,
    /// Page on which the chunk starts.
    pub page: Option<u32>,
    /// Kinds of the blocks that it has parts of, each once, in order of appearance.
    pub kinds: Vec<BlockKind>,
}

impl Chunk {
    /// What to embed: context, prefix and text, each on a line of its own.
    pub fn embedding_text(&self) -> String {
        let mut text = String::new();
        for part in [&self.context, &self.prefix].into_iter().flatten() {
            text.push_str(part);
            text.push('\n');
        }
        text.push_str(&self.text);
        text
    }
}

/// Cuts a document into chunks.
///
/// Holds for any input, also for blocks that break the rules of [`va_parse::Document`]:
/// - every character that is not white space is in a chunk; starts grow from chunk to chunk;
/// - a chunk has at most `tokens_max` tokens, unless it is a single character with more;
/// - the time is linear in the text and the number of blocks, calls of the counter included; the result depends on
///   nothing but the arguments.
///
/// Options out of range are clamped; [`ChunkOptions::validate`] tells a user about them.
pub fn chunk(
    text: &str,
    blocks: &[Block],
    options: &ChunkOptions,
    counter: &dyn TokenCounter,
) -> Vec<Chunk> {
    let limits = Limits::new(options);
    let mut stretches = stretches(text, blocks);
    let units = units(text, &mut stretches, &limits, counter);
    let sections = sections(text, &stretches, &units);
    let mut section_of = vec![0; units.len()];
    for (number, section) in sections.iter().enumerate() {
        section_of[section.units.clone()].fill(number as u32);
    }

    let packer = Packer::new(text, &stretches, &units, &section_of, &limits, counter);
    let mut packed = Vec::new();
    for group in groups(&sections, &limits) {
        let first = sections[group.start].units.start;
        let last = sections[group.end - 1].units.end;
        packer.pack(first..last, &mut packed);
    }

    let mut position = Position::default();
    let mut titles = Titles {
        counter,
        tokens_max: limits.tokens_max / 4,
        path: Vec::new(),
        context: None,
    };
    let build = |packed: Packed| {
        let parts = &units[packed.units.clone()];
        let bytes = parts[0].start..parts[parts.len() - 1].end;
        let touched =
            section_of[packed.units.start] as usize..section_of[packed.units.end - 1] as usize + 1;
        let touched = &sections[touched];
        let context = options
            .with_headings
            .then(|| titles.context(path_above(&touched[0].path, parts)))
            .flatten();
        Chunk {
            text: text[bytes.clone()].to_owned(),
            chars: position.chars(text, &bytes),
            bytes,
            tokens: packed.tokens,
            title_path: common_path(touched).to_vec(),
            context,
            prefix: packed
                .header
                .map(|header| text[units[header].start..units[header].end].to_owned()),
            page: stretches[parts[0].stretch as usize].page,
            kinds: kinds(parts, &stretches),
        }
    };
    packed.into_iter().map(build).collect()
}

fn kinds(parts: &[Unit], stretches: &[Stretch<'_>]) -> Vec<BlockKind> {
    let mut kinds = Vec::new();
    for unit in parts {
        let kind = stretches[unit.stretch as usize].kind;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// Byte to character offsets, for ranges whose starts grow: one pass over the text.
#[derive(Default)]
struct Position {
    byte: usize,
    char: usize,
}

impl Position {
    fn chars(&mut self, text: &str, bytes: &Range<usize>) -> Range<usize> {
        self.char += text[self.byte..bytes.start].chars().count();
        self.byte = bytes.start;
        self.char..self.char + text[bytes.clone()].chars().count()
    }
}

/// Joins titles, and remembers the last result because neighbours mostly have the same.
struct Titles<'a> {
    counter: &'a dyn TokenCounter,
    tokens_max: usize,
    path: Vec<String>,
    context: Option<String>,
}

impl Titles<'_> {
    fn context(&mut self, path: &[String]) -> Option<String> {
        if self.path != path {
            self.path = path.to_vec();
            self.context = self.join(path);
        }
        self.context.clone()
    }

    fn join(&self, path: &[String]) -> Option<String> {
        // No title of real text is longer; what is, does not go through the counter. Nor do more than the innermost eight.
        let bytes_max = self.tokens_max * 16;
        let short = path
            .iter()
            .rev()
            .take_while(|title| title.len() <= bytes_max)
            .take(8)
            .count();
        (path.len() - short..path.len())
            .map(|first| path[first..].join(" > "))
            .find(|context| self.counter.count(context) <= self.tokens_max)
    }
}
