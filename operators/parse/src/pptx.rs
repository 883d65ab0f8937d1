//! PowerPoint presentations (PPTX): a heading for each slide, its text in the order of the file, tables, speaker notes.

use quick_xml::events::{BytesStart, Event};

use crate::builder::{Builder, collapse};
use crate::document::{BlockKind, Format};
use crate::error::ParseError;
use crate::input::Limits;
use crate::ooxml::{Parts, Xml, attr, push_text};

pub(crate) fn parse(
    bytes: &[u8],
    limits: &Limits,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let mut parts = Parts::open(bytes, Format::Pptx, limits)?;
    parts.read_title(builder);
    let main = parts.main_part("ppt/presentation.xml")?;
    let Some(presentation) = parts.read(&main)? else {
        return Err(ParseError::corrupt(
            Format::Pptx,
            format!("part `{main}` is missing"),
        ));
    };
    let relationships = parts.relationships(&main)?;
    let slides: Vec<String> = slide_ids(&presentation)?
        .iter()
        .filter_map(|id| relationships.iter().find(|r| r.id == *id))
        .map(|r| r.target.clone())
        .collect();
    builder.set_pages(slides.len())?;
    for (idx, part) in slides.iter().enumerate() {
        let Some(xml) = parts.read(part)? else {
            builder.warn(format!("Slide {} is missing in the file.", idx + 1));
            continue;
        };
        builder.set_page(idx as u32 + 1);
        builder.clear_headings();
        write_slide(&read_shapes(&xml)?, builder)?;
        let notes = parts
            .relationships(part)?
            .into_iter()
            .find(|r| r.kind == "notesSlide");
        if let Some(notes) = notes
            && let Some(xml) = parts.read(&notes.target)?
        {
            write_notes(&read_shapes(&xml)?, builder)?;
        }
    }
    Ok(())
}

/// Relationship ids of the slides in the order of the show.
fn slide_ids(presentation: &str) -> Result<Vec<String>, ParseError> {
    let mut ids = Vec::new();
    let mut xml = Xml::new(presentation, Format::Pptx);
    while let Some(event) = xml.next()? {
        if let Event::Start(element) | Event::Empty(element) = &event
            && element.local_name().as_ref() == "sldId"
        {
            // Two attributes are called `id`; the one with a prefix is the relationship.
            let attrs = element.attributes().flatten();
            let id = attrs
                .filter(|attr| attr.key.prefix().is_some())
                .find(|attr| attr.key.local_name().as_ref() == "id");
            ids.extend(id.map(|id| id.value.to_string()));
        }
    }
    Ok(ids)
}

/// A text box, placeholder or table on a slide.
#[derive(Default)]
struct Shape {
    /// `title`, `body`, `sldNum`, ...; a placeholder without a type is a body.
    placeholder: Option<String>,
    paragraphs: Vec<String>,
    table: Option<Vec<Vec<String>>>,
}

impl Shape {
    fn is_title(&self) -> bool {
        matches!(self.placeholder.as_deref(), Some("title" | "ctrTitle"))
    }

    /// Slide number, date and footer are the same on every slide.
    fn is_furniture(&self) -> bool {
        matches!(
            self.placeholder.as_deref(),
            Some("sldNum" | "dt" | "ftr" | "hdr" | "sldImg")
        )
    }

    fn is_body(&self) -> bool {
        matches!(self.placeholder.as_deref(), Some("body" | "obj" | ""))
    }
}

fn write_slide(shapes: &[Shape], builder: &mut Builder) -> Result<(), ParseError> {
    for title in shapes.iter().filter(|shape| shape.is_title()) {
        builder.heading(1, &title.paragraphs.join(" "))?;
    }
    for shape in shapes
        .iter()
        .filter(|shape| !shape.is_title() && !shape.is_furniture())
    {
        // One line of text in a body placeholder is a statement, several are bullets.
        let lines = shape
            .paragraphs
            .iter()
            .filter(|text| !text.trim().is_empty());
        let bullets = shape.is_body() && lines.clone().nth(1).is_some();
        for text in lines {
            if bullets {
                builder.block(BlockKind::ListItem, &format!("- {}", text.trim()))?;
            } else {
                builder.paragraph(text)?;
            }
        }
        if let Some(rows) = &shape.table {
            builder.table(rows)?;
        }
    }
    Ok(())
}

fn write_notes(shapes: &[Shape], builder: &mut Builder) -> Result<(), ParseError> {
    for shape in shapes.iter().filter(|shape| shape.is_body()) {
        builder.paragraph(&shape.paragraphs.join("\n"))?;
    }
    Ok(())
}

fn read_shapes(xml: &str) -> Result<Vec<Shape>, ParseError> {
    let mut reader = Shapes::default();
    let mut xml = Xml::new(xml, Format::Pptx);
    let mut in_text = false;
    let mut skipped = 0usize;
    while let Some(event) = xml.next()? {
        match &event {
            Event::Start(element) => {
                // The fallback repeats the same content for old readers.
                if skipped > 0 || element.local_name().as_ref() == "Fallback" {
                    skipped += 1;
                    continue;
                }
                in_text = element.local_name().as_ref() == "t";
                reader.start(element);
            }
            Event::Empty(element) if skipped == 0 => reader.start(element),
            Event::End(_) if skipped > 0 => skipped -= 1,
            Event::End(element) => {
                in_text = false;
                reader.end(element.local_name().as_ref());
            }
            event if in_text => push_text(event, &mut reader.text),
            _ => {}
        }
    }
    Ok(reader.done)
}

#[derive(Default)]
struct Shapes {
    done: Vec<Shape>,
    shape: Shape,
    text: String,
}

impl Shapes {
    fn start(&mut self, element: &BytesStart<'_>) {
        match element.local_name().as_ref() {
            "sp" | "graphicFrame" => self.shape = Shape::default(),
            "ph" => self.shape.placeholder = Some(attr(element, "type").unwrap_or_default()),
            "p" => self.text.clear(),
            "br" => self.text.push('\n'),
            "tab" => self.text.push('\t'),
            "tbl" => self.shape.table = Some(Vec::new()),
            "tr" => {
                if let Some(rows) = &mut self.shape.table {
                    rows.push(Vec::new());
                }
            }
            "tc" => {
                if let Some(row) = self.shape.table.as_mut().and_then(|rows| rows.last_mut()) {
                    row.push(String::new());
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        match name {
            "p" => {
                let text = std::mem::take(&mut self.text);
                match self
                    .shape
                    .table
                    .as_mut()
                    .and_then(|rows| rows.last_mut())
                    .and_then(|row| row.last_mut())
                {
                    Some(cell) => {
                        cell.push_str(&collapse(&text));
                        cell.push(' ');
                    }
                    None => self.shape.paragraphs.push(text),
                }
            }
            "sp" | "graphicFrame" => self.done.push(std::mem::take(&mut self.shape)),
            _ => {}
        }
    }
}
