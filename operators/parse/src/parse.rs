//! The front door: decide what the bytes are, hand them to the one parser for it, and never let a bug in a parser take
//! the process down.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::builder::Builder;
use crate::decode::decode;
use crate::detect::{self, Kind};
use crate::document::{Document, Format};
use crate::error::{LimitKind, ParseError};
use crate::input::{Input, Limits};
use crate::{csv, docx, email, html, json, man, markdown, pdf, pptx, text, xlsx};

/// Parses a document of any supported format.
///
/// Pure and synchronous: no files, no network, no clock. It may take seconds of processor time for a book, so callers
/// in async code run it on a pool for heavy work.
///
/// # Errors
/// See [`ParseError`]. A document that could be read in part is no error: it comes with
/// [`warnings`](Document::warnings). A panic inside a parser is caught and becomes [`ParseError::Panicked`].
pub fn parse(input: &Input, limits: &Limits) -> Result<Document, ParseError> {
    parse_nested(input, limits, 0)
}

/// [`parse`] for a file that was found inside another one, `depth` levels down.
pub(crate) fn parse_nested(
    input: &Input,
    limits: &Limits,
    depth: usize,
) -> Result<Document, ParseError> {
    if depth > limits.attachment_depth_max {
        return Err(ParseError::TooLarge {
            kind: LimitKind::AttachmentDepth,
            limit: limits.attachment_depth_max,
        });
    }
    // Text until shown otherwise: it is what the panic message names if detection itself fails.
    let format = Cell::new(Format::Text);
    let outcome = catch_unwind(AssertUnwindSafe(|| dispatch(input, limits, depth, &format)));
    let document = outcome.unwrap_or_else(|panic| {
        Err(ParseError::Panicked {
            format: format.get(),
            message: panic_message(panic.as_ref()),
        })
    })?;
    if document.blocks.is_empty() {
        // A warning says why better than we can: all pages are pictures, for one.
        let reason = document
            .warnings
            .last()
            .map(|warning| warning.trim_end_matches('.').to_owned());
        return Err(ParseError::Empty {
            reason: reason.unwrap_or_else(|| {
                format!(
                    "nothing to read was found in this `{}` document",
                    document.format
                )
            }),
        });
    }
    Ok(document)
}

fn dispatch(
    input: &Input,
    limits: &Limits,
    depth: usize,
    found: &Cell<Format>,
) -> Result<Document, ParseError> {
    let kind = detect::detect(input)?;
    let Kind::Container(format) = kind else {
        return parse_text(input, limits, depth, found);
    };
    found.set(format);
    let mut builder = Builder::new(format, limits);
    match format {
        Format::Pdf => pdf::parse(input.bytes, limits.text_bytes_max, &mut builder)?,
        Format::Docx => docx::parse(input.bytes, limits, &mut builder)?,
        Format::Pptx => pptx::parse(input.bytes, limits, &mut builder)?,
        Format::Xlsx => xlsx::parse(input.bytes, limits, &mut builder)?,
        _ => {
            return Err(ParseError::Unsupported {
                looks_like: format!("a `{format}` container"),
            });
        }
    }
    Ok(builder.finish())
}

fn parse_text(
    input: &Input,
    limits: &Limits,
    depth: usize,
    found: &Cell<Format>,
) -> Result<Document, ParseError> {
    let declared = detect::declared_charset(input).or_else(|| html::declared_charset(input.bytes));
    let decoded = decode(input.bytes, declared);
    // An e-mail is ASCII with parts in encodings of their own, so its bytes are parsed, even when they do not decode.
    let format = match &decoded {
        Some(decoded) => detect::text_format(input, &decoded.text),
        None if detect::has_ending(input.name, &["eml"]) => Format::Email,
        None => {
            return Err(ParseError::Unsupported {
                looks_like: "binary data that is no text in any known encoding".into(),
            });
        }
    };
    found.set(format);
    let mut builder = Builder::new(format, limits);
    let Some(decoded) = decoded.filter(|_| format != Format::Email) else {
        email::parse(input.bytes, limits, depth, &mut builder)?;
        return Ok(builder.finish());
    };
    decoded.report(&mut builder);
    match format {
        Format::Html => html::parse(&decoded.text, &mut builder)?,
        Format::Markdown => markdown::parse(&decoded.text, &mut builder)?,
        Format::Csv => csv::parse(&decoded.text, &mut builder)?,
        Format::Json => json::parse(&decoded.text, &mut builder)?,
        Format::Man => man::parse(&decoded.text, &mut builder)?,
        _ => text::parse(input.name, &decoded.text, &mut builder)?,
    }
    Ok(builder.finish())
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".into())
}
