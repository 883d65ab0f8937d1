//! Markdown (CommonMark with tables, task lists, footnotes and front matter) to blocks.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::builder::Builder;
use crate::document::BlockKind;
use crate::error::ParseError;
use crate::html;

pub(crate) fn parse(text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut state = State::default();
    for event in Parser::new_ext(text, options) {
        state.event(event, builder)?;
    }
    state.flush(builder)
}

#[derive(Default)]
struct State {
    /// The block being collected.
    line: String,
    heading: Option<u8>,
    lists: Vec<Option<u64>>,
    /// Depth of open list items; what is written inside one is a list item.
    items: usize,
    /// Written before the next block.
    marker: Option<String>,
    code: bool,
    metadata: bool,
    html: Option<String>,
    /// Rows of the open table; the last one is being filled, its last cell is `line`.
    rows: Option<Vec<Vec<String>>>,
}

impl State {
    fn event(&mut self, event: Event<'_>, builder: &mut Builder) -> Result<(), ParseError> {
        match event {
            Event::Start(tag) => self.start(tag, builder)?,
            Event::End(tag) => self.end(tag, builder)?,
            Event::Text(text)
            | Event::Code(text)
            | Event::InlineMath(text)
            | Event::DisplayMath(text) => {
                self.line.push_str(&text);
            }
            Event::Html(text) => match &mut self.html {
                Some(html) => html.push_str(&text),
                None => self.line.push_str(&text),
            },
            Event::SoftBreak => {
                // Whether a line end stands for a space is decided when the next character is known; a trailing marker
                // would complicate everything, so Chinese lines are joined by looking back only.
                if !self.line.chars().next_back().is_some_and(html::is_cjk) {
                    self.line.push(' ');
                }
            }
            Event::HardBreak => self.line.push('\n'),
            Event::InlineHtml(tag) if tag.starts_with("<br") => self.line.push('\n'),
            Event::FootnoteReference(name) => self.line.push_str(&format!("[{name}]")),
            Event::TaskListMarker(done) => self.line.push_str(if done { "[x] " } else { "[ ] " }),
            Event::Rule => self.flush(builder)?,
            Event::InlineHtml(_) => {}
        }
        Ok(())
    }

    fn start(&mut self, tag: Tag<'_>, builder: &mut Builder) -> Result<(), ParseError> {
        match tag {
            Tag::Heading { level, .. } => {
                self.flush(builder)?;
                self.heading = Some(level as u8);
            }
            Tag::CodeBlock(_) => {
                self.flush(builder)?;
                self.code = true;
            }
            Tag::HtmlBlock => {
                self.flush(builder)?;
                self.html = Some(String::new());
            }
            Tag::List(first) => {
                self.flush(builder)?;
                self.lists.push(first);
            }
            Tag::Item => {
                self.flush(builder)?;
                self.items += 1;
                self.marker = Some(match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "- ".to_owned(),
                });
            }
            Tag::FootnoteDefinition(name) => {
                self.flush(builder)?;
                self.marker = Some(format!("[{name}] "));
            }
            Tag::Table(_) => {
                self.flush(builder)?;
                self.rows = Some(Vec::new());
            }
            Tag::TableHead | Tag::TableRow => {
                if let Some(rows) = &mut self.rows {
                    rows.push(Vec::new());
                }
            }
            Tag::MetadataBlock(_) => self.metadata = true,
            Tag::Paragraph | Tag::BlockQuote(_) => self.flush(builder)?,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd, builder: &mut Builder) -> Result<(), ParseError> {
        match tag {
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.line);
                if let Some(row) = self.rows.as_mut().and_then(|rows| rows.last_mut()) {
                    row.push(cell);
                }
            }
            TagEnd::Table => {
                let rows = self.rows.take().unwrap_or_default();
                builder.table(rows)?;
            }
            TagEnd::HtmlBlock => {
                let fragment = self.html.take().unwrap_or_default();
                // A comment or an anchor alone would only cost a parse.
                if fragment.contains('>') {
                    html::parse(&fragment, builder)?;
                }
            }
            TagEnd::MetadataBlock(_) => {
                let front_matter = std::mem::take(&mut self.line);
                self.metadata = false;
                let title = front_matter.lines().find_map(|line| {
                    let (key, value) = line.split_once([':', '='])?;
                    (key.trim() == "title").then(|| value.trim().trim_matches(['"', '\'']))
                });
                builder.set_title(title.unwrap_or_default());
            }
            TagEnd::Item => {
                self.flush(builder)?;
                self.items = self.items.saturating_sub(1);
                self.marker = None;
            }
            TagEnd::List(_) => {
                self.flush(builder)?;
                self.lists.pop();
            }
            TagEnd::Paragraph
            | TagEnd::Heading(_)
            | TagEnd::CodeBlock
            | TagEnd::BlockQuote(_)
            | TagEnd::FootnoteDefinition => self.flush(builder)?,
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self, builder: &mut Builder) -> Result<(), ParseError> {
        let text = std::mem::take(&mut self.line);
        let heading = self.heading.take();
        let code = std::mem::take(&mut self.code);
        if text.trim().is_empty() {
            return Ok(());
        }
        if let Some(level) = heading {
            return builder.heading(level, &text);
        }
        if code {
            return builder.code(&text);
        }
        let kind = if self.items > 0 {
            BlockKind::ListItem
        } else {
            BlockKind::Paragraph
        };
        match self.marker.take() {
            Some(marker) => builder.block(kind, &format!("{marker}{}", text.trim())),
            None => builder.block(kind, &text),
        }
    }
}
