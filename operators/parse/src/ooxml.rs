//! The container of DOCX, PPTX and XLSX: a ZIP of XML parts that point at each other.
//!
//! Everything that is unpacked is counted against the limit as it comes out, because what a ZIP says about its own sizes
//! is written by whoever made the bomb.

use std::io::{Cursor, Read};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use zip::ZipArchive;

use crate::builder::Builder;
use crate::decode::decode;
use crate::document::Format;
use crate::error::{LimitKind, ParseError};
use crate::input::Limits;

pub(crate) struct Package<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
}

/// A pointer from one part to another.
pub(crate) struct Relationship {
    pub(crate) id: String,
    /// Last word of the type's URI: `slide`, `officeDocument`, ...
    pub(crate) kind: String,
    /// Name of the part in the package.
    pub(crate) target: String,
}

impl<'a> Package<'a> {
    /// Reads the directory; the error is the reason in words.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        Ok(Package { archive })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.archive
            .file_names_raw()
            .filter_map(|name| std::str::from_utf8(name).ok())
    }
}

/// The parts of one document, with the bytes that may still be unpacked.
pub(crate) struct Parts<'a> {
    package: Package<'a>,
    format: Format,
    left: usize,
    limit: usize,
}

impl<'a> Parts<'a> {
    pub(crate) fn open(
        bytes: &'a [u8],
        format: Format,
        limits: &Limits,
    ) -> Result<Self, ParseError> {
        let package = Package::open(bytes).map_err(|reason| ParseError::corrupt(format, reason))?;
        Ok(Parts {
            package,
            format,
            left: limits.unpacked_bytes_max,
            limit: limits.unpacked_bytes_max,
        })
    }

    /// Unpacks every part and throws it away, for readers that unpack by themselves without counting.
    pub(crate) fn check_unpacked_size(&mut self) -> Result<(), ParseError> {
        let names: Vec<String> = self.package.names().map(str::to_owned).collect();
        for name in names {
            self.copy(&name, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// A part as text; `None` if there is none of that name.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<String>, ParseError> {
        let mut bytes = Vec::new();
        if !self.copy(name, &mut bytes)? {
            return Ok(None);
        }
        match decode(&bytes, None) {
            Some(decoded) => Ok(Some(decoded.text.into_owned())),
            None if bytes.is_empty() => Ok(None),
            None => Err(ParseError::corrupt(
                self.format,
                format!("part `{name}` is not text"),
            )),
        }
    }

    fn copy(&mut self, name: &str, to: &mut impl std::io::Write) -> Result<bool, ParseError> {
        let format = self.format;
        let file = match self.package.archive.by_name(name) {
            Ok(file) => file,
            Err(zip::result::ZipError::FileNotFound) => return Ok(false),
            Err(error) => {
                return Err(ParseError::corrupt(
                    format,
                    format!("part `{name}`: {error}"),
                ));
            }
        };
        let allowed = self.left as u64;
        let copied = std::io::copy(&mut file.take(allowed + 1), to)
            .map_err(|error| ParseError::corrupt(format, format!("part `{name}`: {error}")))?;
        if copied > allowed {
            return Err(ParseError::TooLarge {
                kind: LimitKind::UnpackedBytes,
                limit: self.limit,
            });
        }
        self.left -= copied as usize;
        Ok(true)
    }

    /// What `part` points at; empty if it points nowhere. The package itself is the part `""`.
    pub(crate) fn relationships(&mut self, part: &str) -> Result<Vec<Relationship>, ParseError> {
        let (folder, file) = part.rsplit_once('/').unwrap_or(("", part));
        let folder_slash = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        let Some(xml) = self.read(&format!("{folder_slash}_rels/{file}.rels"))? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut xml = Xml::new(&xml, self.format);
        while let Some(event) = xml.next()? {
            if let Event::Start(element) | Event::Empty(element) = &event
                && element.local_name().as_ref() == "Relationship"
                && attr(element, "TargetMode").as_deref() != Some("External")
            {
                let kind = attr(element, "Type").unwrap_or_default();
                found.push(Relationship {
                    id: attr(element, "Id").unwrap_or_default(),
                    kind: kind.rsplit('/').next().unwrap_or_default().to_owned(),
                    target: resolve(folder, &attr(element, "Target").unwrap_or_default()),
                });
            }
        }
        Ok(found)
    }

    /// The main part, by the package's own pointer, or `usual` where that is missing.
    pub(crate) fn main_part(&mut self, usual: &str) -> Result<String, ParseError> {
        let relationships = self.relationships("")?;
        let main = relationships
            .into_iter()
            .find(|r| r.kind == "officeDocument");
        Ok(main.map_or_else(|| usual.to_owned(), |r| r.target))
    }

    /// Takes the title from the document's properties. Damage there is not worth losing the document for.
    pub(crate) fn read_title(&mut self, builder: &mut Builder) {
        let Ok(Some(xml)) = self.read("docProps/core.xml") else {
            return;
        };
        let mut xml = Xml::new(&xml, self.format);
        let mut inside = false;
        let mut title = String::new();
        while let Ok(Some(event)) = xml.next() {
            match &event {
                Event::Start(element) => inside = element.local_name().as_ref() == "title",
                Event::End(_) => inside = false,
                event if inside => push_text(event, &mut title),
                _ => {}
            }
        }
        // What office programs fill in by themselves names nothing.
        let generic = [
            "powerpoint presentation",
            "word document",
            "slide 1",
            "untitled",
            "演示文稿1",
        ];
        if !generic.contains(&title.trim().to_lowercase().as_str()) {
            builder.set_title(&title);
        }
    }
}

/// A target relative to the folder of the part that points at it, with `..` resolved.
fn resolve(folder: &str, target: &str) -> String {
    let mut path: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => folder.split('/').filter(|step| !step.is_empty()).collect(),
    };
    for step in target.split('/') {
        match step {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            step => path.push(step),
        }
    }
    path.join("/")
}

/// XML events with this crate's errors.
pub(crate) struct Xml<'a> {
    reader: Reader<&'a [u8]>,
    format: Format,
}

impl<'a> Xml<'a> {
    pub(crate) fn new(xml: &'a str, format: Format) -> Self {
        let mut reader = Reader::from_str(xml);
        // Real producers leave `<br>` open in places; only well-formed nesting of what we read matters.
        reader.config_mut().check_end_names = false;
        Xml { reader, format }
    }

    /// The next event, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Event<'a>>, ParseError> {
        match self.reader.read_event() {
            Ok(Event::Eof) => Ok(None),
            Ok(event) => Ok(Some(event)),
            Err(error) => {
                let at = self.reader.error_position();
                Err(ParseError::corrupt(
                    self.format,
                    format!("XML at byte {at}: {error}"),
                ))
            }
        }
    }
}

/// An attribute's value by its local name (prefixes differ between producers).
pub(crate) fn attr(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element
        .attributes()
        .flatten()
        .find(|attr| attr.key.local_name().as_ref() == name)?;
    quick_xml::escape::unescape(&found.value)
        .ok()
        .map(|value| value.into_owned())
}

/// An on/off property: present means on, unless its value says otherwise.
pub(crate) fn is_on(element: &BytesStart<'_>) -> bool {
    !matches!(attr(element, "val").as_deref(), Some("0" | "false" | "off"))
}

/// Adds the text of a text event, CDATA section or character reference.
pub(crate) fn push_text(event: &Event<'_>, out: &mut String) {
    match event {
        Event::Text(text) => out.push_str(&text.xml10_content()),
        Event::CData(text) => out.push_str(&text.xml10_content()),
        Event::GeneralRef(reference) => {
            if let Ok(Some(c)) = reference.resolve_char_ref() {
                out.push(c);
            } else if let Some(text) = quick_xml::escape::resolve_predefined_entity(reference) {
                out.push_str(text);
            }
        }
        _ => {}
    }
}
