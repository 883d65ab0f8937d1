//! Blocks to units: the smallest stretches that chunks are made of, none above the token limit.
//!
//! A paragraph gives its sentences, a list its items, a table its rows, code its stanzas (lines between blank lines),
//! a heading itself. Text that no block covers is read as a paragraph, and blocks that overlap or leave the text are
//! cut back, so whatever the parser says, all visible text ends up in units.

use std::ops::Range;

use va_parse::{Block, BlockKind};

use crate::chunk::TokenCounter;
use crate::cut::{cut, trim};
use crate::options::Limits;
use crate::sentence::sentences;

/// What a unit is, as far as packing cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Heading,
    /// A whole sentence or list item: may be repeated as overlap.
    Sentence,
    Row,
    Code,
    /// A fragment of something that was too long.
    Fragment,
}

/// Byte range and tokens of a unit, never empty and without white space at its ends (indentation of code excepted).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    pub start: usize,
    pub end: usize,
    pub tokens: u32,
    /// Index into the stretches.
    pub stretch: u32,
    pub flow: Flow,
    /// Announces what follows (a heading, `as follows:`), so no chunk should end with it.
    pub keep_with_next: bool,
}

/// A block after repair, or a gap between blocks that has visible text.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    pub kind: BlockKind,
    pub range: Range<usize>,
    pub page: Option<u32>,
    /// `None` for a gap: it belongs to whatever section it is found in.
    pub title_path: Option<&'a [String]>,
    /// Its units.
    pub units: Range<usize>,
}

/// All visible text as stretches, in order.
pub(crate) fn stretches<'a>(text: &str, blocks: &'a [Block]) -> Vec<Stretch<'a>> {
    let mut found: Vec<Stretch<'a>> = Vec::with_capacity(blocks.len());
    let mut covered = 0;
    for block in blocks {
        let start = text.floor_char_boundary(block.range.start).max(covered);
        let end = text.ceil_char_boundary(block.range.end.min(text.len()));
        if end <= start {
            continue;
        }
        push_gap(text, covered..start, &mut found);
        found.push(Stretch {
            kind: block.kind,
            range: start..end,
            page: block.page,
            title_path: Some(&block.title_path),
            units: 0..0,
        });
        covered = end;
    }
    push_gap(text, covered..text.len(), &mut found);
    found
}

fn push_gap(text: &str, range: Range<usize>, found: &mut Vec<Stretch<'_>>) {
    let range = trim(text, range);
    if !range.is_empty() {
        found.push(Stretch {
            kind: BlockKind::Paragraph,
            range,
            page: found.last().and_then(|stretch| stretch.page),
            title_path: None,
            units: 0..0,
        });
    }
}

/// The units of all stretches; fills in [`Stretch::units`].
pub(crate) fn units(
    text: &str,
    stretches: &mut [Stretch<'_>],
    limits: &Limits,
    counter: &dyn TokenCounter,
) -> Vec<Unit> {
    let mut builder = Builder {
        text,
        limits,
        counter,
        stretch: 0,
        units: Vec::new(),
    };
    for (index, stretch) in stretches.iter_mut().enumerate() {
        builder.stretch = index as u32;
        let first = builder.units.len();
        let range = stretch.range.clone();
        match stretch.kind {
            BlockKind::Heading(_) => builder.push(range, Flow::Heading),
            BlockKind::Paragraph => builder.push_sentences(range),
            BlockKind::ListItem => builder.push_item(range),
            BlockKind::Table => builder.push_rows(range),
            BlockKind::Code => builder.push_code(range),
        }
        stretch.units = first..builder.units.len();
    }
    builder.units
}

struct Builder<'a> {
    text: &'a str,
    limits: &'a Limits,
    counter: &'a dyn TokenCounter,
    stretch: u32,
    units: Vec<Unit>,
}

impl Builder<'_> {
    /// One unit, or fragments of one that is too long.
    fn push(&mut self, range: Range<usize>, flow: Flow) {
        let (text, stretch, units) = (self.text, self.stretch, &mut self.units);
        let whole = trim(text, range.clone());
        cut(
            text,
            range,
            self.limits,
            self.counter,
            &mut |part, tokens| {
                let flow = if part == whole || flow == Flow::Heading {
                    flow
                } else {
                    Flow::Fragment
                };
                units.push(Unit {
                    start: part.start,
                    end: part.end,
                    tokens: tokens as u32,
                    stretch,
                    flow,
                    keep_with_next: flow == Flow::Heading,
                });
            },
        );
    }

    /// Pushes the range as one unit if it fits.
    fn push_whole(&mut self, range: Range<usize>, flow: Flow) -> bool {
        if range.len() > self.limits.bytes_max {
            return false;
        }
        let tokens = self.counter.count(&self.text[range.clone()]);
        if tokens > self.limits.tokens_max {
            return false;
        }
        self.units.push(Unit {
            start: range.start,
            end: range.end,
            tokens: tokens as u32,
            stretch: self.stretch,
            flow,
            keep_with_next: false,
        });
        true
    }

    fn push_sentences(&mut self, range: Range<usize>) {
        let text = self.text;
        for sentence in sentences(&text[range.clone()]) {
            self.push(
                range.start + sentence.start..range.start + sentence.end,
                Flow::Sentence,
            );
        }
        // `The steps are:`
        if let Some(last) = self.units.last_mut()
            && last.stretch == self.stretch
            && text[last.start..last.end].ends_with([':', '：'])
        {
            last.keep_with_next = true;
        }
    }

    fn push_item(&mut self, range: Range<usize>) {
        let range = trim(self.text, range);
        if !range.is_empty() && !self.push_whole(range.clone(), Flow::Sentence) {
            self.push_sentences(range);
        }
    }

    /// Rows. The header row says nothing without the rows below it.
    fn push_rows(&mut self, range: Range<usize>) {
        let text = self.text;
        let header = self.units.len();
        let mut start = range.start;
        for line in text[range].split_inclusive('\n') {
            self.push(start..start + line.len(), Flow::Row);
            start += line.len();
        }
        if self.units.len() > header + 1 {
            self.units[header].keep_with_next = true;
        }
    }

    /// Stanzas, or the lines of those that are too long.
    fn push_code(&mut self, range: Range<usize>) {
        let text = self.text;
        let mut stanza: Option<Range<usize>> = None;
        let mut start = range.start;
        for line in text[range].split_inclusive('\n') {
            let end = start + line.len();
            if line.trim().is_empty() {
                self.push_stanza(stanza.take());
            } else {
                let first = stanza.as_ref().map_or(start, |stanza| stanza.start);
                stanza = Some(first..start + line.trim_end().len());
            }
            start = end;
        }
        self.push_stanza(stanza);
    }

    fn push_stanza(&mut self, stanza: Option<Range<usize>>) {
        let Some(range) = stanza else { return };
        if self.push_whole(range.clone(), Flow::Code) {
            return;
        }
        let text = self.text;
        let mut start = range.start;
        for line in text[range].split_inclusive('\n') {
            let end = start + line.trim_end().len();
            if end > start && !self.push_whole(start..end, Flow::Code) {
                self.push(start..end, Flow::Code);
            }
            start += line.len();
        }
    }
}
