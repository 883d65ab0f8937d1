//! Strings outside the page content: bookmarks, and the title in the document's properties.

use std::collections::{HashMap, HashSet};

use encoding_rs::{UTF_16BE, UTF_16LE, WINDOWS_1252};
use hayro_interpret::hayro_syntax::Pdf;
use hayro_interpret::hayro_syntax::object::{self, Dict};

use crate::decode::decode_as;

/// Bookmarks read at most; more is a loop or no outline anybody made by hand.
const ENTRIES_MAX: usize = 50_000;

/// Titles of the bookmarks with their level (1 is outermost), keyed by [`key`].
pub(super) type Outline = HashMap<String, u8>;

/// Reads the bookmarks; none, or damaged ones, give an empty outline.
pub(super) fn read(pdf: &Pdf) -> Outline {
    let mut outline = Outline::new();
    let root = pdf.xref().get::<Dict<'_>>(pdf.xref().root_id());
    let first = root
        .and_then(|root| root.get::<Dict<'_>>("Outlines"))
        .and_then(|o| o.get::<Dict<'_>>("First"));
    let mut todo: Vec<(Dict<'_>, u8)> = first.map(|first| (first, 1)).into_iter().collect();
    let mut seen = HashSet::new();
    while let Some((entry, level)) = todo.pop() {
        if seen.len() >= ENTRIES_MAX || !seen.insert(entry.data().as_ptr()) {
            break;
        }
        if let Some(title) = entry.get::<object::String<'_>>("Title") {
            let title = key(&text_string(title.as_bytes()));
            if !title.is_empty() {
                outline.entry(title).or_insert(level);
            }
        }
        todo.extend(entry.get::<Dict<'_>>("Next").map(|next| (next, level)));
        todo.extend(
            entry
                .get::<Dict<'_>>("First")
                .map(|first| (first, level.saturating_add(1))),
        );
    }
    outline
}

/// What a heading on the page and its bookmark have in common: letters and digits, without case and white space. Numbers
/// in front are often only on the page.
pub(super) fn key(title: &str) -> String {
    title
        .chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// A PDF text string: UTF-16 or UTF-8 with a mark, otherwise PDFDocEncoding, which is close to Windows-1252.
pub(super) fn text_string(bytes: &[u8]) -> String {
    let (text, _) = if bytes.starts_with(b"\xfe\xff") {
        decode_as(bytes, UTF_16BE)
    } else if bytes.starts_with(b"\xff\xfe") {
        decode_as(bytes, UTF_16LE)
    } else {
        match std::str::from_utf8(bytes) {
            Ok(text) => return text.trim_start_matches('\u{feff}').to_owned(),
            Err(_) => decode_as(bytes, WINDOWS_1252),
        }
    };
    text.into_owned()
}

/// The title without what programs put there; empty if nothing remains.
pub(super) fn useful_title(title: &str) -> &str {
    let title = title.trim().trim_end_matches('\0');
    let title = title.strip_prefix("Microsoft Word - ").unwrap_or(title);
    let title = title
        .strip_prefix("Microsoft PowerPoint - ")
        .unwrap_or(title);
    let is_file = [
        ".doc", ".docx", ".ppt", ".pptx", ".tex", ".dvi", ".indd", ".xls", ".qxd",
    ]
    .iter()
    .any(|ending| title.to_ascii_lowercase().ends_with(ending));
    if is_file || title.eq_ignore_ascii_case("untitled") || !title.contains(char::is_alphanumeric) {
        ""
    } else {
        title
    }
}
