//! Puts a [`Document`] together block by block and keeps its promises: order, no overlap, white space in between, and the
//! stack of headings above each block.
//!
//! Every parser writes through [`Builder`], so that none of them handles offsets. White space inside a block is the
//! parser's business.

use crate::document::{Block, BlockKind, Document, Format};
use crate::error::{LimitKind, ParseError};
use crate::input::Limits;

/// Rows that one table block holds before the table goes on in another block with the header row repeated: a sheet of a
/// million rows must not be one block.
const TABLE_ROWS_MAX: usize = 100;

pub(crate) struct Builder {
    limits: Limits,
    document: Document,
    /// Headings above the current position, outermost first, with their levels.
    headings: Vec<(u8, String)>,
    page: Option<u32>,
    /// Added to the level of each heading: the body of an e-mail is below its subject.
    level_base: u8,
}

impl Builder {
    pub(crate) fn new(format: Format, limits: &Limits) -> Self {
        Builder {
            limits: *limits,
            document: Document {
                format,
                encoding: None,
                title: None,
                text: String::new(),
                blocks: Vec::new(),
                pages: None,
                warnings: Vec::new(),
            },
            headings: Vec::new(),
            page: None,
            level_base: 0,
        }
    }

    pub(crate) fn set_encoding(&mut self, encoding: &str) {
        self.document.encoding = Some(encoding.to_owned());
    }

    /// Sets the document's title, unless it is blank or one is set already.
    pub(crate) fn set_title(&mut self, title: &str) {
        let title = collapse(title);
        if self.document.title.is_none() && !title.is_empty() {
            self.document.title = Some(title);
        }
    }

    /// Blocks from here on are on this page (1-based).
    pub(crate) fn set_page(&mut self, page: u32) {
        self.page = Some(page);
    }

    pub(crate) fn set_level_base(&mut self, level_base: u8) {
        self.level_base = level_base;
    }

    /// The number of pages, checked against the limit.
    pub(crate) fn set_pages(&mut self, pages: usize) -> Result<(), ParseError> {
        if pages > self.limits.pages_max {
            return Err(ParseError::TooLarge {
                kind: LimitKind::Pages,
                limit: self.limits.pages_max,
            });
        }
        self.document.pages = u32::try_from(pages).ok();
        Ok(())
    }

    pub(crate) fn warn(&mut self, warning: impl Into<String>) {
        self.document.warnings.push(warning.into());
    }

    /// Bytes of text so far.
    pub(crate) fn len(&self) -> usize {
        self.document.text.len()
    }

    /// Forgets the headings seen so far: what follows stands on its own (the next slide, the next sheet).
    pub(crate) fn clear_headings(&mut self) {
        self.headings.clear();
    }

    pub(crate) fn heading(&mut self, level: u8, text: &str) -> Result<(), ParseError> {
        let text = collapse(text);
        let level = level.max(1).saturating_add(self.level_base);
        if text.is_empty() {
            return Ok(());
        }
        while self.headings.last().is_some_and(|(open, _)| *open >= level) {
            self.headings.pop();
        }
        self.append(BlockKind::Heading(level), &text)?;
        self.headings.push((level, text));
        Ok(())
    }

    /// A paragraph or a list item; ends are trimmed, blank ones vanish.
    pub(crate) fn block(&mut self, kind: BlockKind, text: &str) -> Result<(), ParseError> {
        self.append(kind, text.trim())
    }

    pub(crate) fn paragraph(&mut self, text: &str) -> Result<(), ParseError> {
        self.block(BlockKind::Paragraph, text)
    }

    /// Preformatted text: only blank lines around it and white space at its end go.
    pub(crate) fn code(&mut self, text: &str) -> Result<(), ParseError> {
        let text = text.trim_end();
        let start = text
            .char_indices()
            .take_while(|(_, c)| c.is_whitespace())
            .filter(|(_, c)| *c == '\n')
            .last()
            .map_or(0, |(at, _)| at + 1);
        self.append(BlockKind::Code, &text[start..])
    }

    /// A table given as rows of cells; white space inside a cell becomes one space, rows without text vanish, trailing
    /// empty cells too. A long table becomes several blocks that each begin with the first row.
    pub(crate) fn table<R, C>(&mut self, rows: R) -> Result<(), ParseError>
    where
        R: IntoIterator<Item = C>,
        C: IntoIterator,
        C::Item: AsRef<str>,
    {
        let mut header: Option<String> = None;
        let mut lines = 0;
        let mut table = String::new();
        for row in rows {
            let Some(line) = table_line(row) else {
                continue;
            };
            if lines == TABLE_ROWS_MAX {
                self.append(BlockKind::Table, &table)?;
                table.clear();
                table.push_str(header.as_deref().unwrap_or_default());
                lines = 1;
            }
            if header.is_none() {
                header = Some(line.clone());
            }
            if !table.is_empty() {
                table.push('\n');
            }
            table.push_str(&line);
            lines += 1;
            self.check_len(table.len())?;
        }
        self.append(BlockKind::Table, &table)
    }

    /// Takes over the blocks and warnings of another document, its headings moved `levels` down.
    pub(crate) fn append_document(
        &mut self,
        inner: &Document,
        levels: u8,
    ) -> Result<(), ParseError> {
        let base = self.level_base;
        self.level_base += levels;
        for block in &inner.blocks {
            let text = &inner.text[block.range.clone()];
            match block.kind {
                BlockKind::Heading(level) => self.heading(level, text)?,
                BlockKind::Code => self.code(text)?,
                kind => self.block(kind, text)?,
            }
        }
        self.level_base = base;
        self.document
            .warnings
            .extend(inner.warnings.iter().cloned());
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Document {
        if self.document.title.is_none() {
            let first = self
                .document
                .blocks
                .iter()
                .find(|block| matches!(block.kind, BlockKind::Heading(_)));
            self.document.title =
                first.map(|block| self.document.text[block.range.clone()].to_owned());
        }
        self.document
    }

    fn append(&mut self, kind: BlockKind, text: &str) -> Result<(), ParseError> {
        // Control characters mean nothing in text and break what comes after (a NUL ends strings elsewhere).
        let noise = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        if text.contains(noise) {
            return self.append(kind, text.replace(noise, "").trim_end());
        }
        if text.trim().is_empty() {
            return Ok(());
        }
        self.check_len(text.len())?;
        let document = &mut self.document;
        if let Some(last) = document.blocks.last() {
            // A list reads as one thing; everything else is set apart by an empty line.
            let in_list = last.kind == BlockKind::ListItem && kind == BlockKind::ListItem;
            document.text.push_str(if in_list { "\n" } else { "\n\n" });
        }
        let start = document.text.len();
        document.text.push_str(text);
        let range = start..document.text.len();
        document.blocks.push(Block {
            kind,
            range,
            page: self.page,
            title_path: self
                .headings
                .iter()
                .map(|(_, title)| title.clone())
                .collect(),
        });
        Ok(())
    }

    fn check_len(&self, more: usize) -> Result<(), ParseError> {
        if self.document.text.len() + more > self.limits.text_bytes_max {
            return Err(ParseError::TooLarge {
                kind: LimitKind::TextBytes,
                limit: self.limits.text_bytes_max,
            });
        }
        Ok(())
    }
}

/// One row of a table as a line, `None` when no cell has text.
fn table_line<C>(row: C) -> Option<String>
where
    C: IntoIterator,
    C::Item: AsRef<str>,
{
    let mut line = String::new();
    let mut end = 0;
    for (idx, cell) in row.into_iter().enumerate() {
        if idx > 0 {
            line.push_str(" | ");
        }
        let start = line.len();
        push_collapsed(&mut line, cell.as_ref());
        if line.len() > start {
            end = line.len();
        }
    }
    line.truncate(end);
    (end > 0).then_some(line)
}

/// Runs of white space become one space, none is left at the ends.
pub(crate) fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_collapsed(&mut out, text);
    out
}

fn push_collapsed(out: &mut String, text: &str) {
    let start = out.len();
    for word in text.split_whitespace() {
        if out.len() > start {
            out.push(' ');
        }
        out.push_str(word);
    }
}

/// The sentence for `count` of something that could not be read, for warnings.
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
