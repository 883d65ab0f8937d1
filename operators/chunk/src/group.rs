//! Units to sections, and sections to groups: what may share a chunk.
//!
//! A section is one or more headings that follow each other downwards, and the text up to the next heading. It is a
//! group of its own, so no chunk crosses a heading, except that
//! - a section below `tokens_min`, or a heading without text, is joined to the next section when that is a sibling or
//!   lies below it (an introduction before the first subsection), as long as the group is below `tokens_min`;
//! - what is still tiny then is joined to the group before it, if that ends with a sibling or a section above.

use std::ops::Range;

use va_parse::BlockKind;

use crate::options::Limits;
use crate::units::{Flow, Stretch, Unit};

#[derive(Debug)]
pub(crate) struct Section {
    /// Its units.
    pub units: Range<usize>,
    /// Titles above its text, its own headings included, each on one line.
    pub path: Vec<String>,
    tokens: usize,
    /// Has headings and nothing else.
    bare: bool,
}

/// The sections of a document, which cover all units in order.
pub(crate) fn sections(text: &str, stretches: &[Stretch<'_>], units: &[Unit]) -> Vec<Section> {
    let mut found: Vec<Section> = Vec::new();
    // Level of the last heading while its section has no text yet, and the path of the text of the section.
    let mut open_level: Option<u8> = None;
    let mut text_path: Option<&[String]> = None;
    for stretch in stretches {
        if stretch.units.is_empty() {
            continue;
        }
        let tokens = units[stretch.units.clone()]
            .iter()
            .map(|unit| unit.tokens as usize)
            .sum::<usize>();
        let (starts, path) = match stretch.kind {
            BlockKind::Heading(level) => {
                let goes_down = open_level.is_some_and(|above| level > above);
                let mut path = path_of(stretch.title_path.unwrap_or_default());
                path.push(one_line(&text[stretch.range.clone()]));
                open_level = Some(level);
                text_path = None;
                (!goes_down, Some(path))
            }
            _ => {
                let moved = match (text_path, stretch.title_path) {
                    (Some(before), Some(now)) => before != now,
                    _ => false,
                };
                let first = text_path.is_none();
                open_level = None;
                text_path = stretch.title_path.or(text_path);
                let path = if moved || first {
                    stretch.title_path.map(path_of)
                } else {
                    None
                };
                (moved, path)
            }
        };
        let bare = matches!(stretch.kind, BlockKind::Heading(_));
        match found.last_mut() {
            Some(section) if !starts => {
                section.units.end = stretch.units.end;
                section.tokens += tokens;
                section.bare &= bare;
                if let Some(path) = path {
                    section.path = path;
                }
            }
            _ => found.push(Section {
                units: stretch.units.clone(),
                path: path.unwrap_or_default(),
                tokens,
                bare,
            }),
        }
    }
    found
}

/// Ranges of sections that are packed together, in order, covering all.
pub(crate) fn groups(sections: &[Section], limits: &Limits) -> Vec<Range<usize>> {
    struct Group {
        sections: Range<usize>,
        tokens: usize,
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut at = 0;
    while at < sections.len() {
        let mut group = Group {
            sections: at..at + 1,
            tokens: sections[at].tokens,
        };
        while let Some(next) = sections.get(group.sections.end) {
            let last = &sections[group.sections.end - 1];
            let below = next.path.starts_with(&last.path);
            let fits = group.tokens + next.tokens <= limits.tokens_max;
            let tiny = group.tokens < limits.tokens_min;
            let joins = match (last.bare, tiny) {
                (true, _) => below || siblings(last, next),
                (false, true) => below || (fits && siblings(last, next)),
                (false, false) => false,
            };
            if !joins {
                break;
            }
            group.sections.end += 1;
            group.tokens += next.tokens;
        }
        at = group.sections.end;
        let first = &sections[group.sections.start];
        match groups.last_mut() {
            Some(before)
                if group.tokens < limits.tokens_min
                    && before.tokens + group.tokens <= limits.tokens_max
                    && related(&sections[before.sections.clone()], first) =>
            {
                before.sections.end = group.sections.end;
                before.tokens += group.tokens;
            }
            _ => groups.push(group),
        }
    }
    groups.into_iter().map(|group| group.sections).collect()
}

/// Same parent. Sections without titles are not siblings of those with.
fn siblings(a: &Section, b: &Section) -> bool {
    match (a.path.split_last(), b.path.split_last()) {
        (Some((_, above_a)), Some((_, above_b))) => above_a == above_b,
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Does a section of `before` stand above `section` or beside it? Only the ends are looked at: groups can be long.
fn related(before: &[Section], section: &Section) -> bool {
    [before.first(), before.last()]
        .into_iter()
        .flatten()
        .any(|other| {
            siblings(other, section)
                || (!other.path.is_empty() && section.path.starts_with(&other.path))
        })
}

/// The titles of a chunk with units of `sections`: what their paths have in common, or if that is nothing the first
/// path that there is, since a chunk that crosses headings has them in its text.
pub(crate) fn common_path(sections: &[Section]) -> &[String] {
    let Some((first, rest)) = sections.split_first() else {
        return &[];
    };
    let mut length = first.path.len();
    for section in rest {
        let same = first
            .path
            .iter()
            .zip(&section.path)
            .take_while(|(a, b)| a == b)
            .count();
        length = length.min(same);
    }
    if length > 0 {
        return &first.path[..length];
    }
    sections
        .iter()
        .map(|section| section.path.as_slice())
        .find(|path| !path.is_empty())
        .unwrap_or_default()
}

/// The titles that stand above the first unit of `units`: `path` without the headings that open the chunk.
pub(crate) fn path_above<'a>(path: &'a [String], units: &[Unit]) -> &'a [String] {
    let mut headings = 0;
    let mut last = None;
    for unit in units.iter().take_while(|unit| unit.flow == Flow::Heading) {
        headings += usize::from(last != Some(unit.stretch));
        last = Some(unit.stretch);
    }
    &path[..path.len().saturating_sub(headings)]
}

/// A title on one line. No real title is longer than the bound, and each chunk carries its titles: what a broken document
/// calls a heading may be a megabyte.
fn one_line(title: &str) -> String {
    const BYTES_MAX: usize = 400;
    let mut line = String::new();
    for word in title[..title.floor_char_boundary(BYTES_MAX)].split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

fn path_of(titles: &[String]) -> Vec<String> {
    titles.iter().map(|title| one_line(title)).collect()
}
