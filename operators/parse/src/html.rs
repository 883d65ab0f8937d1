//! HTML to blocks, as a reader sees the page: headings, paragraphs, lists, tables and preformatted text, without the
//! site around it.
//!
//! The tree comes from `html5ever` (so broken markup reads as in a browser), what to leave out from `boilerplate`. No
//! step recurses, so depth of nesting cannot exhaust the stack.

mod boilerplate;
mod dom;

use crate::builder::Builder;
use crate::document::BlockKind;
use crate::error::ParseError;
use dom::{Data, Dom, NodeId, ROOT};

/// Where the charset declaration must stand.
const CHARSET_BYTES: usize = 2048;

/// Elements that begin and end a block. Everything else is part of a line.
const BLOCK: &[&str] = &[
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "center",
    "dd",
    "details",
    "dir",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hgroup",
    "hr",
    "html",
    "legend",
    "li",
    "main",
    "ol",
    "option",
    "p",
    "pre",
    "listing",
    "xmp",
    "section",
    "summary",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "ul",
];

/// Writes the blocks of a page. A page that would be empty without its menus is read with them.
pub(crate) fn parse(text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let dom = Dom::parse(text);
    if let Some(title) = dom.find("title") {
        builder.set_title(&plain_text(&dom, title, true));
    }
    let before = builder.len();
    let main = dom
        .descendants(ROOT)
        .find(|node| dom.name(*node) == "main" || dom.attr(*node, "role") == Some("main"));
    if let Some(main) = main {
        Walk::new(&dom, builder, false).run(main)?;
    }
    for with_furniture in [false, true] {
        if builder.len() == before {
            Walk::new(&dom, builder, with_furniture).run(ROOT)?;
        }
    }
    Ok(())
}

/// The charset that the page declares in its XML declaration or a `meta` element.
pub(crate) fn declared_charset(bytes: &[u8]) -> Option<&str> {
    let head = &bytes[..bytes.len().min(CHARSET_BYTES)];
    if !head.contains(&b'<') {
        return None;
    }
    let find = |from: usize, needle: &[u8]| {
        let rest = head.get(from..)?;
        let at = rest
            .windows(needle.len())
            .position(|w| w.eq_ignore_ascii_case(needle))?;
        Some(from + at + needle.len())
    };
    let declaration = head
        .starts_with(b"<?xml")
        .then(|| find(0, b"encoding="))
        .flatten();
    let at = declaration.or_else(|| find(find(0, b"<meta")?, b"charset="))?;
    let value = &head[at..];
    let is_label = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':');
    let start = value.iter().take(3).position(is_label)?;
    let len = value[start..].iter().take_while(|b| is_label(b)).count();
    std::str::from_utf8(&value[start..start + len]).ok()
}

/// Going through the tree, in document order.
struct Walk<'a> {
    dom: &'a Dom,
    builder: &'a mut Builder,
    with_furniture: bool,
    /// The block being collected.
    line: Line,
    /// What the block becomes, by the innermost element that says so.
    kinds: Vec<BlockKind>,
    lists: Vec<List>,
    /// Written before the next block: the bullet or number of a list item.
    marker: Option<String>,
}

struct List {
    /// The next number, `None` for bullets.
    number: Option<u64>,
}

enum Step {
    Enter(NodeId),
    Leave(NodeId),
}

impl<'a> Walk<'a> {
    fn new(dom: &'a Dom, builder: &'a mut Builder, with_furniture: bool) -> Self {
        Walk {
            dom,
            builder,
            with_furniture,
            line: Line::default(),
            kinds: Vec::new(),
            lists: Vec::new(),
            marker: None,
        }
    }

    fn run(mut self, root: NodeId) -> Result<(), ParseError> {
        let mut steps = vec![Step::Enter(root)];
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave(node) => self.leave(node)?,
                Step::Enter(node) => {
                    if self.enter(node)? {
                        steps.push(Step::Leave(node));
                        steps.extend(
                            self.dom
                                .children(node)
                                .iter()
                                .rev()
                                .map(|child| Step::Enter(*child)),
                        );
                    }
                }
            }
        }
        self.flush()
    }

    /// Returns whether to go on into the children.
    fn enter(&mut self, node: NodeId) -> Result<bool, ParseError> {
        let dom = self.dom;
        if let Data::Text(text) = &dom.nodes[node].data {
            if self.kinds.last() == Some(&BlockKind::Code) {
                self.line.push_raw(text);
            } else {
                self.line.push(text);
            }
            return Ok(false);
        }
        if boilerplate::is_hard(dom, node)
            || (!self.with_furniture && boilerplate::is_furniture(dom, node))
        {
            return Ok(false);
        }
        let name = dom.name(node);
        if name == "br" {
            self.line.push_break();
            return Ok(false);
        }
        if !BLOCK.contains(&name) {
            return Ok(true);
        }
        self.flush()?;
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self
                .kinds
                .push(BlockKind::Heading(name.as_bytes()[1] - b'0')),
            "pre" | "listing" | "xmp" => self.kinds.push(BlockKind::Code),
            "ul" | "dir" => self.lists.push(List { number: None }),
            "ol" => {
                let start = dom
                    .attr(node, "start")
                    .and_then(|start| start.trim().parse().ok());
                self.lists.push(List {
                    number: Some(start.unwrap_or(1)),
                });
            }
            "li" => {
                self.marker = Some(
                    match self.lists.last_mut().and_then(|list| list.number.as_mut()) {
                        Some(number) => {
                            *number += 1;
                            format!("{}. ", *number - 1)
                        }
                        None => "- ".to_owned(),
                    },
                );
                self.kinds.push(BlockKind::ListItem);
            }
            "table" if is_data_table(dom, node) => {
                self.table(node)?;
                return Ok(false);
            }
            _ => {}
        }
        Ok(true)
    }

    fn leave(&mut self, node: NodeId) -> Result<(), ParseError> {
        let name = self.dom.name(node);
        if !BLOCK.contains(&name) {
            return Ok(());
        }
        self.flush()?;
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "pre" | "listing" | "xmp" => {
                self.kinds.pop();
            }
            "li" => {
                self.kinds.pop();
                self.marker = None;
            }
            "ul" | "ol" | "dir" => {
                self.lists.pop();
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the current block.
    fn flush(&mut self) -> Result<(), ParseError> {
        let text = self.line.take();
        if text.trim().is_empty() {
            return Ok(());
        }
        match self.kinds.last().copied().unwrap_or(BlockKind::Paragraph) {
            BlockKind::Heading(level) => self.builder.heading(level, &text),
            BlockKind::Code => self.builder.code(&text),
            kind => match self.marker.take() {
                Some(marker) => self
                    .builder
                    .block(kind, &format!("{marker}{}", text.trim())),
                None => self.builder.block(kind, &text),
            },
        }
    }

    fn table(&mut self, table: NodeId) -> Result<(), ParseError> {
        let dom = self.dom;
        let caption = dom
            .descendants(table)
            .find(|node| dom.name(*node) == "caption");
        if let Some(caption) = caption {
            self.builder
                .paragraph(&plain_text(dom, caption, self.with_furniture))?;
        }
        let rows = dom
            .descendants(table)
            .filter(|node| dom.name(*node) == "tr");
        let with_furniture = self.with_furniture;
        self.builder.table(rows.map(|row| {
            let cells = dom
                .children(row)
                .iter()
                .filter(|cell| matches!(dom.name(**cell), "td" | "th"));
            cells.map(move |cell| plain_text(dom, *cell, with_furniture))
        }))
    }
}

/// A table that holds data and does not merely place things on the page: no tables, headings or code inside, and at
/// least two cells with text in some row.
fn is_data_table(dom: &Dom, table: NodeId) -> bool {
    let inside = |name: &str| {
        matches!(
            name,
            "table" | "pre" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6"
        )
    };
    if dom.descendants(table).any(|node| inside(dom.name(node))) {
        return false;
    }
    let rows = dom
        .descendants(table)
        .filter(|node| dom.name(*node) == "tr");
    let has_text = |cell: NodeId| {
        dom.descendants(cell).any(
            |node| matches!(&dom.nodes[node].data, Data::Text(text) if !text.trim().is_empty()),
        )
    };
    rows.into_iter().any(|row| {
        let cells = dom
            .children(row)
            .iter()
            .filter(|cell| matches!(dom.name(**cell), "td" | "th"));
        cells.filter(|cell| has_text(**cell)).nth(1).is_some()
    })
}

/// All text below a node as one line.
fn plain_text(dom: &Dom, node: NodeId, with_furniture: bool) -> String {
    let mut line = Line::default();
    let mut stack: Vec<NodeId> = dom.children(node).iter().rev().copied().collect();
    while let Some(node) = stack.pop() {
        if let Data::Text(text) = &dom.nodes[node].data {
            line.push(text);
            continue;
        }
        if boilerplate::is_hard(dom, node)
            || (!with_furniture && boilerplate::is_furniture(dom, node))
        {
            continue;
        }
        let name = dom.name(node);
        if name == "br" || BLOCK.contains(&name) {
            line.push(" ");
        }
        stack.extend(dom.children(node).iter().rev());
    }
    line.take()
}

/// Text being collected, with HTML's rule for white space: any run is one space, and none at the ends.
#[derive(Default)]
struct Line {
    text: String,
    /// White space was seen and not written yet.
    space: Space,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    #[default]
    None,
    /// A line end in the source. It separates words, but Chinese has no spaces between words, so there it is only the
    /// author's line width.
    SourceLine,
    Word,
    Break,
}

impl Line {
    fn push(&mut self, text: &str) {
        let mut rest = text;
        loop {
            let word = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
            let white = &rest[..rest.len() - word.len()];
            if !white.is_empty() {
                let space = if white.contains('\n') {
                    Space::SourceLine
                } else {
                    Space::Word
                };
                self.space = self.space.max(space);
            }
            if word.is_empty() {
                return;
            }
            let end = word
                .find([' ', '\t', '\n', '\r', '\u{c}'])
                .unwrap_or(word.len());
            self.push_word(&word[..end]);
            rest = &word[end..];
        }
    }

    fn push_word(&mut self, word: &str) {
        let joins = self.text.chars().next_back().is_some_and(is_cjk)
            && word.chars().next().is_some_and(is_cjk);
        match std::mem::take(&mut self.space) {
            _ if self.text.is_empty() || self.text.ends_with('\n') => {}
            Space::Word => self.text.push(' '),
            Space::SourceLine if !joins => self.text.push(' '),
            Space::Break => self.text.push('\n'),
            _ => {}
        }
        self.text.push_str(word);
    }

    fn push_raw(&mut self, text: &str) {
        if std::mem::take(&mut self.space) == Space::Break {
            self.text.push('\n');
        }
        self.text.push_str(text);
    }

    fn push_break(&mut self) {
        if self.space == Space::Break {
            self.text.push('\n');
        }
        self.space = Space::Break;
    }

    fn take(&mut self) -> String {
        self.space = Space::None;
        std::mem::take(&mut self.text)
    }
}

/// Whether the character belongs to a script that is written without spaces: Chinese and Japanese, with their
/// punctuation and full-width forms. Korean has spaces.
pub(crate) fn is_cjk(c: char) -> bool {
    matches!(c,
        '\u{2E80}'..='\u{30FF}' | '\u{3100}'..='\u{312F}' | '\u{31A0}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{FE30}'..='\u{FE4F}' | '\u{FF00}'..='\u{FF60}' | '\u{FFE0}'..='\u{FFE6}'
        | '\u{20000}'..='\u{3FFFF}')
}
