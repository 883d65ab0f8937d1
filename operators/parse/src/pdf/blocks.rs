//! From lines to paragraphs, headings, list items and code, without the headers and footers that repeat.

use std::collections::HashMap;

use super::layout::{Cell, Line, median};
use super::outline::{self, Outline};
use crate::builder::Builder;
use crate::document::BlockKind;
use crate::error::ParseError;
use crate::html::is_cjk;

/// Part of the page's height, at the top and at the bottom, where running headers and footers stand.
const MARGIN: f64 = 0.1;
/// A line longer than this is no heading whatever its size.
const HEADING_CHARS_MAX: usize = 120;

pub(super) fn write(
    pages: Vec<Vec<Line>>,
    outline: &Outline,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let furniture = furniture(&pages);
    let body_size = body_size(&pages);
    let levels = heading_levels(&pages, body_size);
    for (idx, lines) in pages.into_iter().enumerate() {
        builder.set_page(idx as u32 + 1);
        let lines: Vec<Line> = lines
            .into_iter()
            .filter(|line| margin_key(line).is_none_or(|key| !furniture.contains_key(&key)))
            .collect();
        let shape = Shape::of(&lines);
        let mut rest = lines.as_slice();
        while !rest.is_empty() {
            let (count, kind) = next_block(rest, &shape, outline, &levels);
            let (block, tail) = rest.split_at(count);
            rest = tail;
            match kind {
                BlockKind::Heading(level) => builder.heading(level, &join(block))?,
                BlockKind::Code => builder.code(&code(block))?,
                BlockKind::Table => {
                    builder.table(
                        block
                            .iter()
                            .map(|line| line.cells.iter().map(|cell| &cell.text)),
                    )?;
                }
                kind => builder.block(kind, &join(block))?,
            }
        }
    }
    Ok(())
}

/// What is usual on a page.
struct Shape {
    /// Distance of base lines.
    spacing: f64,
    /// Right edge of each column.
    right: HashMap<usize, f64>,
}

impl Shape {
    fn of(lines: &[Line]) -> Self {
        let gaps = lines
            .windows(2)
            .map(|pair| pair[1].y - pair[0].y)
            .filter(|gap| *gap > 0.0);
        let mut right: HashMap<usize, f64> = HashMap::new();
        for line in lines {
            let edge = right.entry(line.column).or_insert(line.x1);
            *edge = edge.max(line.x1);
        }
        Shape {
            spacing: median(gaps),
            right,
        }
    }
}

/// Where a line in the margin stands and what it says but for numbers: page numbers differ, running titles do not.
fn margin_key(line: &Line) -> Option<(String, i64)> {
    let at = line.y / line.page_height;
    if line.turned || (MARGIN..1.0 - MARGIN).contains(&at) {
        return None;
    }
    let mut key = String::new();
    for word in line.text.split_whitespace() {
        let is_roman = word.chars().all(|c| "ivxlcIVXLC".contains(c));
        for c in word.chars() {
            let c = if c.is_numeric() || is_roman { '#' } else { c };
            if !(c == '#' && key.ends_with('#')) {
                key.push(c);
            }
        }
    }
    Some((key, line.y.round() as i64))
}

/// Lines that stand in the same place of the margin on at least three pages and a tenth of all.
fn furniture(pages: &[Vec<Line>]) -> HashMap<(String, i64), usize> {
    let mut seen: HashMap<(String, i64), usize> = HashMap::new();
    for line in pages.iter().flatten() {
        if let Some(key) = margin_key(line) {
            *seen.entry(key).or_default() += 1;
        }
    }
    let enough = (pages.len() / 20).clamp(3, 8);
    seen.retain(|_, count| *count >= enough);
    seen
}

/// The type size of most of the text.
fn body_size(pages: &[Vec<Line>]) -> f64 {
    let mut sizes: HashMap<i64, usize> = HashMap::new();
    for line in pages.iter().flatten() {
        *sizes.entry(size_step(line.size)).or_default() += line.len();
    }
    let most = sizes
        .into_iter()
        .max_by_key(|(size, count)| (*count, *size));
    most.map_or(0.0, |(size, _)| size as f64 / 2.0)
}

/// Sizes in half points: the same style comes out slightly different here and there.
fn size_step(size: f64) -> i64 {
    (size * 2.0).round() as i64
}

/// Type sizes clearly above that of the text, as heading levels: the largest is 1.
fn heading_levels(pages: &[Vec<Line>], body_size: f64) -> HashMap<i64, u8> {
    let mut sizes: Vec<i64> = pages
        .iter()
        .flatten()
        .filter(|line| {
            line.size > body_size * 1.15 && line.text.chars().count() <= HEADING_CHARS_MAX
        })
        .map(|line| size_step(line.size))
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.dedup();
    sizes
        .into_iter()
        .zip((1..=6).chain(std::iter::repeat(6)))
        .collect()
}

/// How many of the lines belong together, and what they are.
fn next_block(
    lines: &[Line],
    shape: &Shape,
    outline: &Outline,
    levels: &HashMap<i64, u8>,
) -> (usize, BlockKind) {
    if let Some(heading) = heading(lines, outline, levels) {
        return heading;
    }
    if lines[0].mono {
        let count = code_len(lines);
        return (count, BlockKind::Code);
    }
    let rows = table_len(lines);
    if rows > 1 {
        return (rows, BlockKind::Table);
    }
    let mut count = 1;
    while count < lines.len() {
        let ends = ends_paragraph(&lines[count - 1], &lines[count], shape)
            || lines[count].mono
            || table_len(&lines[count..]) > 1
            || heading(&lines[count..], outline, levels).is_some();
        if ends {
            break;
        }
        count += 1;
    }
    let kind = if is_item(&lines[0].text) {
        BlockKind::ListItem
    } else {
        BlockKind::Paragraph
    };
    (count, kind)
}

/// A heading of one or two lines: named by a bookmark, or set in larger type.
fn heading(
    lines: &[Line],
    outline: &Outline,
    levels: &HashMap<i64, u8>,
) -> Option<(usize, BlockKind)> {
    let first = &lines[0];
    if first.text.chars().count() > HEADING_CHARS_MAX
        || !first.text.contains(char::is_alphabetic)
        || first.turned
    {
        return None;
    }
    if !outline.is_empty() {
        let mut key = String::new();
        for (idx, line) in lines.iter().take(3).enumerate() {
            key.push_str(&outline::key(&line.text));
            let level = outline
                .get(&key)
                .or_else(|| outline.get(without_number(&key)));
            if let Some(level) = level {
                return Some((idx + 1, BlockKind::Heading(*level)));
            }
        }
        return None;
    }
    let size = size_step(first.size);
    let level = *levels.get(&size)?;
    let same = lines
        .iter()
        .take(3)
        .take_while(|line| size_step(line.size) == size && line.column == first.column);
    // More lines than a heading has: a leaflet in large type.
    let count = same.count();
    (count <= 2).then_some((count, BlockKind::Heading(level)))
}

/// The heading on the page often has a number that the bookmark lacks.
fn without_number(key: &str) -> &str {
    key.trim_start_matches(|c: char| c.is_ascii_digit())
}

/// Lines that are cut by gaps at the same places. Cells that are empty in a row are not known as such, so a row with
/// fewer cells than the header is shown as it is.
fn table_len(lines: &[Line]) -> usize {
    let aligned = |a: &Line, b: &Line| {
        let near = |x: f64, y: f64| (x - y).abs() < a.size * 0.8;
        // The first cell stands at the margin in any text.
        let meets = |cell: &Cell| {
            b.cells[1..]
                .iter()
                .any(|other| near(cell.x0, other.x0) || near(cell.x1, other.x1))
        };
        a.cells[1..].iter().any(meets)
    };
    let is_row = |line: &Line| line.cells.len() > 1 && !line.mono && !line.turned;
    if !is_row(&lines[0]) {
        return 0;
    }
    let pairs = lines.windows(2).take_while(|pair| {
        let gap = pair[1].y - pair[0].y;
        is_row(&pair[1]) && aligned(&pair[0], &pair[1]) && gap > 0.0 && gap < pair[0].size * 4.0
    });
    1 + pairs.count()
}

/// Lines of typewriter type; one that has too few letters to tell goes with its neighbours.
fn code_len(lines: &[Line]) -> usize {
    let mut count = 1;
    while count < lines.len() {
        let line = &lines[count];
        let far = line.y - lines[count - 1].y > line.size * 3.0 || line.y < lines[count - 1].y;
        let undecided = line.text.chars().filter(char::is_ascii_alphabetic).count() < 4;
        let next_mono = lines.get(count + 1).is_some_and(|next| next.mono);
        if far || !(line.mono || undecided && next_mono) {
            break;
        }
        count += 1;
    }
    count
}

/// Code with its indentation, measured in letters from the leftmost line.
fn code(lines: &[Line]) -> String {
    let left = lines.iter().map(|line| line.x0).fold(f64::MAX, f64::min);
    let mut out = String::new();
    for line in lines {
        let letters = line.text.chars().count().max(1) as f64;
        let width = ((line.x1 - line.x0) / letters).max(1.0);
        let indent = ((line.x0 - left) / width).round().clamp(0.0, 80.0) as usize;
        out.extend(std::iter::repeat_n(' ', indent));
        out.push_str(&line.text);
        out.push('\n');
    }
    out
}

fn ends_paragraph(last: &Line, next: &Line, shape: &Shape) -> bool {
    let spacing = shape.spacing;
    let right = shape.right.get(&last.column).copied().unwrap_or(last.x1);
    let gap = next.y - last.y;
    let size = last.size.max(next.size);
    // The first line of the next column goes on with the text, a line further up does not.
    if last.column != next.column && (gap < 0.0 || gap > size * 2.2) || last.turned != next.turned {
        return true;
    }
    if gap > (spacing * 1.35).max(size * 1.3) && gap > size * 1.7 || gap < 0.0 {
        return true;
    }
    if (last.size - next.size).abs() > size * 0.15 || is_item(&next.text) {
        return true;
    }
    let indented = next.x0 > last.x0 + size * 0.9 && next.x0 < last.x0 + size * 6.0;
    let ends = last.text.ends_with([
        '.', '!', '?', ':', '。', '！', '？', '：', '”', '"', '；', ';',
    ]);
    // A last line stops before the edge, or the next one begins further right.
    let short = last.x1 < right - size * 4.0;
    ends && (short || indented) || short && last.x1 < right - (right - last.x0) * 0.45
}

/// Whether a line begins like an item of a list.
fn is_item(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next().unwrap_or(' ');
    if "•◦▪■●○‣⁃∙·➢➔✓❖".contains(first) {
        return true;
    }
    if matches!(first, '-' | '–' | '—' | '*') {
        return chars.next() == Some(' ');
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &text[digits..];
    (1..=2).contains(&digits)
        && (rest.starts_with(". ") || rest.starts_with(") ") || rest.starts_with('、'))
}

/// Lines as running text: words broken at the line end become whole, Chinese lines meet without a space.
fn join(lines: &[Line]) -> String {
    let mut out = String::new();
    for line in lines {
        let next = line.text.chars().next();
        let last = out.chars().next_back();
        if let (Some(last), Some(next)) = (last, next) {
            let before_hyphen = out.chars().rev().nth(1);
            if last == '-' && before_hyphen.is_some_and(char::is_alphabetic) && next.is_lowercase()
            {
                out.pop();
            } else if !(is_cjk(last) && is_cjk(next)) {
                out.push(' ');
            }
        }
        out.push_str(&line.text);
    }
    out
}
