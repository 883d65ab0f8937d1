//! A drawing device that draws nothing and writes down every glyph: its text, where it is and how large.

use std::collections::HashSet;

use hayro_interpret::font::{Glyph as FontGlyph, GlyphRun};
use hayro_interpret::hayro_cmap::BfString;
use hayro_interpret::kurbo::{Affine, BezPath, Point, Rect};
use hayro_interpret::{
    BlendMode, ClipPath, Device, DrawMode, DrawProps, Image, ImageDrawProps, SoftMask,
};

/// Glyph space: a font's units for one em.
const UNITS_PER_EM: f64 = 1000.0;

/// A glyph as drawn, in points, y downwards from the top of the page.
#[derive(Debug, Clone)]
pub(super) struct Glyph {
    pub(super) text: String,
    /// Start on the base line.
    pub(super) x: f64,
    pub(super) y: f64,
    /// How far the glyph moves the pen along its direction.
    pub(super) advance: f64,
    /// Height of one em.
    pub(super) size: f64,
    /// Direction of writing in quarter turns: 0 is left to right, 1 is downwards.
    pub(super) turn: u8,
}

pub(super) struct Collector {
    pub(super) glyphs: Vec<Glyph>,
    /// Glyphs without Unicode text.
    pub(super) unmapped: usize,
    pub(super) images: usize,
    bounds: Rect,
    /// Places of glyphs so far. Bold type is faked by drawing text twice, shadows too.
    seen: HashSet<(char, i64, i64)>,
}

impl Collector {
    pub(super) fn new(page: Rect) -> Self {
        Collector {
            glyphs: Vec::new(),
            unmapped: 0,
            images: 0,
            // Text outside the page is never seen; a little tolerance for sloppy boxes.
            bounds: page.inflate(8.0, 8.0),
            seen: HashSet::new(),
        }
    }

    fn push(&mut self, text: String, advance_units: Option<f32>, place: Affine) {
        let origin = place * Point::ORIGIN;
        let along = place * Point::new(UNITS_PER_EM, 0.0) - origin;
        let up = place * Point::new(0.0, UNITS_PER_EM) - origin;
        let size = up.hypot();
        if !size.is_finite() || size < 0.1 || !self.bounds.contains(origin) {
            return;
        }
        let first = text.chars().next().unwrap_or(' ');
        if first != ' ' && self.is_repeated(first, origin, size) {
            return;
        }
        let units = advance_units.map_or(0.5, |units| f64::from(units) / UNITS_PER_EM);
        let turn = (along.atan2() / std::f64::consts::FRAC_PI_2).round() as i64;
        self.glyphs.push(Glyph {
            text,
            x: origin.x,
            y: origin.y,
            advance: along.hypot() * units,
            size,
            turn: turn.rem_euclid(4) as u8,
        });
    }

    fn is_repeated(&mut self, c: char, at: Point, size: f64) -> bool {
        let cell = (size * 0.06).max(0.05);
        let (x, y) = ((at.x / cell).round() as i64, (at.y / cell).round() as i64);
        let near = (x - 1..=x + 1).any(|x| (y - 1..=y + 1).any(|y| self.seen.contains(&(c, x, y))));
        self.seen.insert((c, x, y));
        near
    }
}

impl<'a> Device<'a> for Collector {
    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, _: &DrawMode) {
        for glyph in run.glyphs() {
            let advance = match &**glyph {
                FontGlyph::Outline(outline) => outline.advance_width(),
                FontGlyph::Type3(type3) => type3.advance_width(),
            };
            let text = match glyph.as_unicode() {
                Some(BfString::Char(c)) => c.to_string(),
                Some(BfString::String(text)) => text,
                None => {
                    self.unmapped += 1;
                    continue;
                }
            };
            let text = readable(text);
            if !text.is_empty() {
                self.push(text, advance, props.transform * glyph.transform());
            }
        }
    }

    fn draw_image(&mut self, _: Image<'a, '_>, _: ImageDrawProps<'a>) {
        self.images += 1;
    }

    fn draw_path(&mut self, _: &BezPath, _: DrawProps<'a>, _: &DrawMode) {}
    fn draw_rect(&mut self, _: &Rect, _: DrawProps<'a>, _: &DrawMode) {}
    fn push_clip_path(&mut self, _: &ClipPath) {}
    fn push_clip_rect(&mut self, _: &Rect) {}
    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}
    fn pop_clip(&mut self) {}
    fn pop_transparency_group(&mut self) {}
}

/// Undoes what only type-setting put in: ligatures become letters, soft hyphens and control characters go.
fn readable(text: String) -> String {
    let special = |c: char| {
        matches!(
            c,
            '\u{FB00}'..='\u{FB06}' | '\u{AD}' | '\u{A0}' | '\u{200B}'
        ) || c.is_control()
    };
    if !text.contains(special) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        match c {
            '\u{FB00}' => out.push_str("ff"),
            '\u{FB01}' => out.push_str("fi"),
            '\u{FB02}' => out.push_str("fl"),
            '\u{FB03}' => out.push_str("ffi"),
            '\u{FB04}' => out.push_str("ffl"),
            '\u{FB05}' | '\u{FB06}' => out.push_str("st"),
            '\u{A0}' | '\t' | '\n' | '\r' => out.push(' '),
            // A soft hyphen is drawn only where a word is broken.
            '\u{AD}' => out.push('-'),
            '\u{200B}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}
