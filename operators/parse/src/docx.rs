//! Word documents (DOCX, strict and transitional): headings by style, lists, tables, footnotes.
//!
//! Headers, footers, comments and deleted text are left out: they are not what the document says.

use std::collections::HashMap;

use quick_xml::events::{BytesStart, Event};

use crate::builder::Builder;
use crate::document::{BlockKind, Format};
use crate::error::ParseError;
use crate::input::Limits;
use crate::ooxml::{Parts, Xml, attr, is_on, push_text};

pub(crate) fn parse(
    bytes: &[u8],
    limits: &Limits,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let mut parts = Parts::open(bytes, Format::Docx, limits)?;
    parts.read_title(builder);
    let main = parts.main_part("word/document.xml")?;
    let relationships = parts.relationships(&main)?;
    let mut part_of = |kind: &str| match relationships.iter().find(|r| r.kind == kind) {
        Some(relationship) => parts.read(&relationship.target),
        None => Ok(None),
    };
    let styles = match part_of("styles")? {
        Some(xml) => read_styles(&xml)?,
        None => HashMap::new(),
    };
    let notes = [part_of("footnotes")?, part_of("endnotes")?];
    let Some(body) = parts.read(&main)? else {
        return Err(ParseError::corrupt(
            Format::Docx,
            format!("part `{main}` is missing"),
        ));
    };
    Body::new(&styles, builder).run(&body)?;
    builder.clear_headings();
    for xml in notes.into_iter().flatten() {
        Body::new(&styles, builder).run(&xml)?;
    }
    Ok(())
}

/// What a paragraph style means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Plain,
    Title,
    Heading(u8),
    ListItem,
    Code,
}

/// A style as it is declared; most of it may come from the style it is based on.
#[derive(Default)]
struct Style {
    name: String,
    based_on: Option<String>,
    outline: Option<u8>,
    numbered: bool,
}

fn read_styles(xml: &str) -> Result<HashMap<String, Role>, ParseError> {
    let mut styles: HashMap<String, Style> = HashMap::new();
    let mut current: Option<(String, Style)> = None;
    let mut xml = Xml::new(xml, Format::Docx);
    while let Some(event) = xml.next()? {
        match &event {
            Event::Start(element) | Event::Empty(element) => {
                if element.local_name().as_ref() == "style" {
                    current = Some((
                        attr(element, "styleId").unwrap_or_default(),
                        Style::default(),
                    ));
                }
                let Some((_, style)) = &mut current else {
                    continue;
                };
                match element.local_name().as_ref() {
                    "name" => style.name = attr(element, "val").unwrap_or_default().to_lowercase(),
                    "basedOn" => style.based_on = attr(element, "val"),
                    "outlineLvl" => style.outline = outline_level(element),
                    "numPr" => style.numbered = true,
                    _ => {}
                }
            }
            Event::End(element) if element.local_name().as_ref() == "style" => {
                styles.extend(current.take())
            }
            _ => {}
        }
    }
    Ok(styles
        .keys()
        .map(|id| (id.clone(), role(id, &styles)))
        .collect())
}

/// Follows the chain of styles until one says what it is.
fn role(id: &str, styles: &HashMap<String, Style>) -> Role {
    let mut next = Some(id);
    // Longer chains are loops.
    for _ in 0..16 {
        let Some(style) = next.and_then(|id| styles.get(id)) else {
            break;
        };
        let name = style.name.as_str();
        if let Some(level) = name
            .strip_prefix("heading ")
            .and_then(|level| level.trim().parse().ok())
        {
            return Role::Heading(level);
        }
        if let Some(level) = style.outline {
            return Role::Heading(level);
        }
        if name == "title" {
            return Role::Title;
        }
        if style.numbered || name.starts_with("list bullet") || name.starts_with("list number") {
            return Role::ListItem;
        }
        if ["code", "preformatted", "source text", "macro"]
            .iter()
            .any(|word| name.contains(word))
        {
            return Role::Code;
        }
        next = style.based_on.as_deref();
    }
    Role::Plain
}

/// The outline level as a heading level; Word's tenth level is body text.
fn outline_level(element: &BytesStart<'_>) -> Option<u8> {
    let level: u8 = attr(element, "val")?.parse().ok()?;
    (level < 9).then_some(level + 1)
}

struct Body<'a> {
    styles: &'a HashMap<String, Role>,
    builder: &'a mut Builder,
    /// Open paragraphs; more than one where a text box sits in a paragraph.
    paragraphs: Vec<Paragraph>,
    tables: Vec<Table>,
    /// Lines of code so far: each is a paragraph of its own in the file.
    code: String,
}

struct Paragraph {
    role: Role,
    text: String,
}

#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
}

impl<'a> Body<'a> {
    fn new(styles: &'a HashMap<String, Role>, builder: &'a mut Builder) -> Self {
        Body {
            styles,
            builder,
            paragraphs: Vec::new(),
            tables: Vec::new(),
            code: String::new(),
        }
    }

    fn run(mut self, xml: &str) -> Result<(), ParseError> {
        let mut xml = Xml::new(xml, Format::Docx);
        let mut in_text = false;
        // Depth below an element whose content is not wanted.
        let mut skipped = 0usize;
        while let Some(event) = xml.next()? {
            match &event {
                Event::Start(element) => {
                    let name = element.local_name();
                    // The fallback repeats a drawing's text for old readers; moved text is also at its new place.
                    if skipped > 0
                        || matches!(name.as_ref(), "Fallback" | "moveFrom" | "del" | "rt")
                    {
                        skipped += 1;
                        continue;
                    }
                    in_text = name.as_ref() == "t";
                    self.start(element);
                }
                Event::Empty(element) if skipped == 0 => {
                    self.start(element);
                    if element.local_name().as_ref() == "p" {
                        self.end("p")?;
                    }
                }
                Event::End(_) if skipped > 0 => skipped -= 1,
                Event::End(element) => {
                    in_text = false;
                    self.end(element.local_name().as_ref())?;
                }
                event if in_text && skipped == 0 => {
                    if let Some(paragraph) = self.paragraphs.last_mut() {
                        push_text(event, &mut paragraph.text);
                    }
                }
                _ => {}
            }
        }
        self.flush_code()
    }

    fn start(&mut self, element: &BytesStart<'_>) {
        match element.local_name().as_ref() {
            "p" => self.paragraphs.push(Paragraph {
                role: Role::Plain,
                text: String::new(),
            }),
            "tbl" => self.tables.push(Table::default()),
            "tr" => {
                if let Some(table) = self.tables.last_mut() {
                    table.rows.push(Vec::new());
                }
            }
            "tc" => {
                if let Some(row) = self
                    .tables
                    .last_mut()
                    .and_then(|table| table.rows.last_mut())
                {
                    row.push(String::new());
                }
            }
            name => {
                let Some(paragraph) = self.paragraphs.last_mut() else {
                    return;
                };
                match name {
                    "pStyle" => {
                        let style = attr(element, "val").unwrap_or_default();
                        if let Some(role) = self.styles.get(&style) {
                            paragraph.role = *role;
                        }
                    }
                    "outlineLvl" => {
                        if let Some(level) = outline_level(element) {
                            paragraph.role = Role::Heading(level);
                        }
                    }
                    // List number 0 takes a paragraph out of the list of its style.
                    "numId"
                        if paragraph.role == Role::Plain
                            && attr(element, "val").as_deref() != Some("0") =>
                    {
                        paragraph.role = Role::ListItem;
                    }
                    "tab" if !paragraph.text.is_empty() => paragraph.text.push('\t'),
                    "br" | "cr" if is_on(element) => paragraph.text.push('\n'),
                    "noBreakHyphen" => paragraph.text.push('-'),
                    _ => {}
                }
            }
        }
    }

    fn end(&mut self, name: &str) -> Result<(), ParseError> {
        match name {
            "p" => match self.paragraphs.pop() {
                Some(paragraph) => self.paragraph(paragraph),
                None => Ok(()),
            },
            "tbl" => self.table(),
            _ => Ok(()),
        }
    }

    fn paragraph(&mut self, paragraph: Paragraph) -> Result<(), ParseError> {
        let cell = self
            .tables
            .last_mut()
            .and_then(|table| table.rows.last_mut())
            .and_then(|row| row.last_mut());
        if let Some(cell) = cell {
            cell.push_str(&paragraph.text);
            cell.push('\n');
            return Ok(());
        }
        if paragraph.role == Role::Code {
            self.code.push_str(&paragraph.text);
            self.code.push('\n');
            return Ok(());
        }
        self.flush_code()?;
        let text = paragraph.text.trim();
        match paragraph.role {
            Role::Title => {
                self.builder.set_title(text);
                self.builder.heading(1, text)
            }
            Role::Heading(level) => self.builder.heading(level, text),
            Role::ListItem if !text.is_empty() => self
                .builder
                .block(BlockKind::ListItem, &format!("- {text}")),
            _ => self.builder.paragraph(text),
        }
    }

    fn table(&mut self) -> Result<(), ParseError> {
        let Some(table) = self.tables.pop() else {
            return Ok(());
        };
        let outer = self
            .tables
            .last_mut()
            .and_then(|table| table.rows.last_mut())
            .and_then(|row| row.last_mut());
        if let Some(cell) = outer {
            for row in &table.rows {
                cell.push_str(&row.join(" "));
                cell.push('\n');
            }
            return Ok(());
        }
        self.flush_code()?;
        let filled = |row: &Vec<String>| row.iter().filter(|cell| !cell.trim().is_empty()).count();
        // A table of one column is a frame around text.
        if table.rows.iter().all(|row| filled(row) < 2) {
            for cell in table.rows.iter().flatten() {
                self.builder.paragraph(cell)?;
            }
            return Ok(());
        }
        self.builder.table(table.rows)
    }

    fn flush_code(&mut self) -> Result<(), ParseError> {
        let code = std::mem::take(&mut self.code);
        self.builder.code(&code)
    }
}
