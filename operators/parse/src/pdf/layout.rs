//! From glyphs to lines in reading order.
//!
//! Glyphs that follow each other on a base line make a segment; segments are ordered by cutting the page at its white
//! gaps again and again (the recursive X-Y cut of Nagy and Seth, 1984): a gap from top to bottom with running text on
//! both sides separates columns, otherwise the widest gap from side to side separates what is above from what is below.

use super::glyphs::Glyph;
use crate::html::is_cjk;

/// Gap between glyphs, in em, from which a word ends.
const WORD_GAP: f64 = 0.17;
/// Gap, in em, from which a segment ends: a column, a tab stop, a table cell.
const SEGMENT_GAP: f64 = 1.4;
/// Part of an em that base lines of one line may differ by (superscripts stay in their line).
const LINE_TOLERANCE: f64 = 0.4;

/// A line of text, in points, y downwards.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) x0: f64,
    pub(super) x1: f64,
    /// Base line.
    pub(super) y: f64,
    pub(super) size: f64,
    /// All letters are equally wide: typewriter type, so probably program code.
    pub(super) mono: bool,
    /// Height of the page that the line is on.
    pub(super) page_height: f64,
    /// Lines of one column share the number.
    pub(super) column: usize,
    pub(super) turned: bool,
    /// Parts of the line with wide gaps between them; more than one if the line may be a row of a table.
    pub(super) cells: Vec<Cell>,
}

#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) x0: f64,
    pub(super) x1: f64,
    pub(super) text: String,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }
}

/// A stretch of one line without large gaps.
#[derive(Debug, Clone)]
struct Segment {
    glyphs: Vec<Glyph>,
    x0: f64,
    x1: f64,
    y: f64,
    size: f64,
}

impl Segment {
    fn top(&self) -> f64 {
        self.y - self.size * 0.75
    }

    fn bottom(&self) -> f64 {
        self.y + self.size * 0.2
    }
}

/// The lines of a page in reading order; text that runs in another direction comes last.
pub(super) fn lines(glyphs: Vec<Glyph>, page_height: f64) -> Vec<Line> {
    let mut lines = Vec::new();
    for turn in 0..4 {
        let turned: Vec<Glyph> = glyphs
            .iter()
            .filter(|g| g.turn == turn)
            .map(|g| upright(g, turn))
            .collect();
        if turned.is_empty() {
            continue;
        }
        let segments = merge_overlapping(segments(turned));
        let mut columns = 0;
        for leaf in order(segments) {
            columns += 1;
            for line in leaf_lines(leaf) {
                lines.extend(write_line(line, page_height, columns, turn != 0));
            }
        }
    }
    lines
}

/// Turns the page so that this glyph runs from left to right.
fn upright(glyph: &Glyph, turn: u8) -> Glyph {
    let (x, y) = match turn {
        0 => (glyph.x, glyph.y),
        1 => (glyph.y, -glyph.x),
        2 => (-glyph.x, -glyph.y),
        _ => (-glyph.y, glyph.x),
    };
    Glyph {
        x,
        y,
        ..glyph.clone()
    }
}

/// Joins glyphs that follow each other in the file and on the line.
fn segments(glyphs: Vec<Glyph>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for glyph in glyphs {
        let end = glyph.x + glyph.advance;
        if let Some(last) = segments.last_mut() {
            let size = last.size.max(glyph.size);
            let gap = glyph.x - last.x1;
            let same_line = (glyph.y - last.y).abs() < size * LINE_TOLERANCE;
            // Kerning and accents step back a little; a new line or column steps back a lot.
            if same_line && gap > -0.5 * size && gap < SEGMENT_GAP * size {
                last.x1 = last.x1.max(end);
                last.size = size;
                last.glyphs.push(glyph);
                continue;
            }
        }
        segments.push(Segment {
            x0: glyph.x,
            x1: end,
            y: glyph.y,
            size: glyph.size,
            glyphs: vec![glyph],
        });
    }
    segments.retain(|segment| {
        segment
            .glyphs
            .iter()
            .any(|glyph| !glyph.text.trim().is_empty())
    });
    for segment in &mut segments {
        trim(segment);
    }
    segments
}

/// Blank glyphs at the ends would fill the gaps that layout looks for.
fn trim(segment: &mut Segment) {
    let blank = |glyph: &Glyph| glyph.text.trim().is_empty();
    while segment.glyphs.last().is_some_and(blank) {
        segment.glyphs.pop();
    }
    let leading = segment
        .glyphs
        .iter()
        .take_while(|glyph| blank(glyph))
        .count();
    segment.glyphs.drain(..leading);
    let ends = segment.glyphs.iter().map(|glyph| glyph.x + glyph.advance);
    segment.x1 = ends.fold(f64::MIN, f64::max);
    segment.x0 = segment
        .glyphs
        .iter()
        .map(|glyph| glyph.x)
        .fold(f64::MAX, f64::min);
}

/// Joins segments that touch on one line although the file draws them at different times (words in bold drawn later,
/// every glyph placed on its own in no order).
fn merge_overlapping(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_by(|a, b| a.y.total_cmp(&b.y).then(a.x0.total_cmp(&b.x0)));
    let mut merged: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        let touching = merged.iter().rposition(|other| {
            let size = other.size.min(segment.size);
            let apart = (segment.x0 - other.x1).max(other.x0 - segment.x1);
            (other.y - segment.y).abs() < size * LINE_TOLERANCE && apart < size * 0.6
        });
        // Only the neighbourhood matters: lines above are done.
        let start = merged.len().saturating_sub(64);
        match touching.filter(|at| *at >= start) {
            Some(at) => {
                let other = &mut merged[at];
                other.x0 = other.x0.min(segment.x0);
                other.x1 = other.x1.max(segment.x1);
                other.size = other.size.max(segment.size);
                other.glyphs.extend(segment.glyphs);
            }
            None => merged.push(segment),
        }
    }
    for segment in &mut merged {
        segment.glyphs.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    merged
}

/// Cuts the page into pieces in reading order. A work list instead of recursion: pages can be made of slivers.
fn order(segments: Vec<Segment>) -> Vec<Vec<Segment>> {
    let mut done = Vec::new();
    let mut todo = vec![segments];
    while let Some(piece) = todo.pop() {
        if piece.is_empty() {
            continue;
        }
        if let Some((left, right)) = split_columns(&piece) {
            todo.push(right);
            todo.push(left);
        } else if let Some((above, below)) = split_rows(&piece) {
            todo.push(below);
            todo.push(above);
        } else {
            done.push(piece);
        }
    }
    done
}

/// A white gap from top to bottom with running text on both sides.
fn split_columns(piece: &[Segment]) -> Option<(Vec<Segment>, Vec<Segment>)> {
    if piece.len() < 6 {
        return None;
    }
    let size = median(piece.iter().map(|segment| segment.size));
    let mut spans: Vec<(f64, f64)> = piece
        .iter()
        .map(|segment| (segment.x0, segment.x1))
        .collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut end = spans[0].1;
    for (x0, x1) in spans {
        if x0 - end > size * 0.8 {
            let cut = (end + x0) / 2.0;
            let (left, right): (Vec<_>, Vec<_>) =
                piece.iter().cloned().partition(|segment| segment.x0 < cut);
            if is_running_text(&left) && is_running_text(&right) {
                return Some((left, right));
            }
        }
        end = end.max(x1);
    }
    None
}

/// Whether these are the lines of a text and not the cells of a table: several lines, mostly long, and mostly as wide as
/// the column.
fn is_running_text(segments: &[Segment]) -> bool {
    if segments.len() < 3 {
        return false;
    }
    let width = segments.iter().map(|s| s.x1).fold(f64::MIN, f64::max)
        - segments.iter().map(|s| s.x0).fold(f64::MAX, f64::min);
    let full = segments
        .iter()
        .filter(|s| s.x1 - s.x0 > width * 0.6 && s.x1 - s.x0 > s.size * 7.0)
        .count();
    full * 2 > segments.len()
}

/// The widest gap from side to side, if there is one that is more than the distance of two lines.
fn split_rows(piece: &[Segment]) -> Option<(Vec<Segment>, Vec<Segment>)> {
    let mut sorted: Vec<&Segment> = piece.iter().collect();
    sorted.sort_by(|a, b| a.top().total_cmp(&b.top()));
    let mut bottom = sorted[0].bottom();
    let mut widest: Option<(f64, f64)> = None;
    for segment in &sorted[1..] {
        let gap = segment.top() - bottom;
        if gap > segment.size * 0.25 && widest.is_none_or(|(width, _)| gap > width) {
            widest = Some((gap, (segment.top() + bottom) / 2.0));
        }
        bottom = bottom.max(segment.bottom());
    }
    let (_, cut) = widest?;
    Some(
        piece
            .iter()
            .cloned()
            .partition(|segment| segment.top() < cut),
    )
}

/// The segments of a piece that cannot be cut further, line by line.
fn leaf_lines(mut leaf: Vec<Segment>) -> Vec<Vec<Segment>> {
    leaf.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut lines: Vec<Vec<Segment>> = Vec::new();
    for segment in leaf {
        match lines.last_mut() {
            Some(line)
                if (line[0].y - segment.y).abs()
                    < segment.size.min(line[0].size) * LINE_TOLERANCE =>
            {
                line.push(segment);
            }
            _ => lines.push(vec![segment]),
        }
    }
    for line in &mut lines {
        line.sort_by(|a, b| a.x0.total_cmp(&b.x0));
    }
    lines
}

/// Writes the glyphs of a line as text, spaces where the gaps are. `None` if nothing is left.
fn write_line(
    segments: Vec<Segment>,
    page_height: f64,
    column: usize,
    turned: bool,
) -> Option<Line> {
    // The type size of a line is that of most of its letters.
    let size = median(
        segments
            .iter()
            .flat_map(|segment| &segment.glyphs)
            .map(|glyph| glyph.size),
    );
    let mut widths = Widths::default();
    let mut cells: Vec<Cell> = Vec::new();
    for segment in &segments {
        let text = write_segment(segment, size, &mut widths);
        if text.is_empty() {
            continue;
        }
        match cells.last_mut() {
            Some(cell) if segment.x0 - cell.x1 < size * SEGMENT_GAP => {
                cell.text.push(' ');
                cell.text.push_str(&text);
                cell.x1 = cell.x1.max(segment.x1);
            }
            _ => cells.push(Cell {
                x0: segment.x0,
                x1: segment.x1,
                text,
            }),
        }
    }
    for cell in &mut cells {
        let title = cell.text.trim_end_matches(is_leader);
        if cell.text[title.len()..]
            .chars()
            .filter(|c| *c != ' ')
            .count()
            >= 4
            && !title.is_empty()
        {
            cell.text.truncate(title.len());
        }
    }
    if let Some(cell) = cells.last_mut()
        && let Some((title, number)) = split_leader(&cell.text)
    {
        let number = Cell {
            x0: cell.x1,
            x1: cell.x1,
            text: number,
        };
        cell.text = title;
        cells.push(number);
    }
    let text = cells
        .iter()
        .map(|cell| cell.text.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    let starts_ascii = text.starts_with(|c: char| c.is_ascii());
    (!text.is_empty()).then(|| Line {
        text,
        x0: segments[0].x0,
        x1: segments
            .iter()
            .map(|segment| segment.x1)
            .fold(f64::MIN, f64::max),
        y: segments[0].y,
        size,
        mono: widths.is_mono() && starts_ascii,
        page_height,
        column,
        turned,
        cells,
    })
}

/// What rows of leader dots are made of.
fn is_leader(c: char) -> bool {
    matches!(c, '.' | '…' | '·' | ' ')
}

/// An entry of a table of contents: a row of dots leads from the title to the page number. Returns both.
fn split_leader(text: &str) -> Option<(String, String)> {
    let number = text.rsplit(is_leader).next()?;
    let rest = &text[..text.len() - number.len()];
    let title = rest.trim_end_matches(is_leader);
    let dots = rest[title.len()..].chars().filter(|c| *c != ' ').count();
    let is_entry = dots >= 4 && !title.is_empty() && (1..=6).contains(&number.len());
    is_entry.then(|| (title.to_owned(), number.to_owned()))
}

fn write_segment(segment: &Segment, line_size: f64, widths: &mut Widths) -> String {
    let mut text = String::new();
    let mut end: Option<f64> = None;
    for glyph in &segment.glyphs {
        let blank = glyph.text.trim().is_empty();
        if let Some(end) = end {
            let gap = (glyph.x - end) / glyph.size.max(line_size * 0.5);
            let cjk = text.chars().next_back().is_some_and(is_cjk)
                && glyph.text.chars().next().is_some_and(is_cjk);
            // Chinese type is spread to fill the line, so only a gap as wide as a character counts there.
            let limit = if cjk { 0.9 } else { WORD_GAP };
            if (gap > limit || blank) && !text.is_empty() && !text.ends_with(' ') {
                text.push(' ');
            }
        }
        if !blank {
            text.push_str(&glyph.text);
            widths.add(glyph);
        }
        end = Some(end.unwrap_or(f64::MIN).max(glyph.x + glyph.advance));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Whether letters that are unequal in printed type are equally wide here.
#[derive(Default)]
struct Widths {
    /// Width in em of the first letter seen.
    width: Option<f64>,
    uneven: bool,
    /// Kinds of letters seen: narrow, wide and other.
    kinds: [bool; 3],
    ascii: usize,
    cjk: usize,
}

impl Widths {
    fn add(&mut self, glyph: &Glyph) {
        let Some(c) = glyph.text.chars().next() else {
            return;
        };
        self.cjk += usize::from(is_cjk(c));
        if !c.is_ascii_graphic() {
            return;
        }
        let width = glyph.advance / glyph.size;
        let known = *self.width.get_or_insert(width);
        self.uneven |= (known - width).abs() > 0.01;
        let kind = match c {
            'i' | 'l' | 'j' | 't' | 'f' | 'r' | '.' | ',' | ':' | ';' | '|' | '\'' | '!' | '('
            | ')' | '[' | ']' => 0,
            'm' | 'w' | 'M' | 'W' | '@' | '%' => 1,
            _ => 2,
        };
        self.kinds[kind] = true;
        self.ascii += 1;
    }

    /// Chinese in between is a comment or a quotation in code as long as there is little of it.
    fn is_mono(&self) -> bool {
        let kinds = self.kinds.iter().filter(|seen| **seen).count();
        self.ascii >= 4 && !self.uneven && kinds >= 2 && self.cjk * 3 <= self.ascii
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
