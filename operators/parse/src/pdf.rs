//! PDF to blocks: what is drawn where, put back into lines, columns and paragraphs.
//!
//! `hayro-interpret` runs the page's drawing program and tells each glyph with its place and its Unicode text; `glyphs`
//! collects them, `layout` finds lines and reading order, `blocks` makes paragraphs, headings and code of the lines and
//! drops what repeats on every page. `outline` reads the bookmarks, which name the headings better than font sizes do.
//! Why this library: see `PDF.md` beside the crate. Text in pictures is not read.

mod blocks;
mod glyphs;
mod layout;
mod outline;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hayro_interpret::hayro_syntax::page::Page;
use hayro_interpret::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use hayro_interpret::kurbo::Affine;
use hayro_interpret::{
    Context, InterpreterCache, InterpreterSettings, TransformExt, interpret_page,
};

use crate::builder::{Builder, counted};
use crate::document::Format;
use crate::error::ParseError;
use glyphs::Collector;
use layout::Line;

pub(crate) fn parse(
    bytes: &[u8],
    text_bytes_max: usize,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let pdf = Pdf::new(bytes.to_vec()).map_err(load_error)?;
    let pages = pdf.pages();
    if pages.is_empty() {
        return Err(ParseError::corrupt(Format::Pdf, "no page was found"));
    }
    builder.set_pages(pages.len())?;
    if let Some(title) = pdf.metadata().title.as_deref() {
        builder.set_title(outline::useful_title(&outline::text_string(title)));
    }

    let cache = InterpreterCache::new();
    let mut lines: Vec<Vec<Line>> = Vec::with_capacity(pages.len());
    let mut problems = Problems::default();
    let mut size = 0;
    for (idx, page) in pages.iter().enumerate() {
        // One broken font or image must not cost the other pages.
        let read = catch_unwind(AssertUnwindSafe(|| read_page(page, &cache, &pdf)));
        let (page_lines, glyphs) = read.unwrap_or_default();
        problems.note(idx + 1, &page_lines, &glyphs);
        size += page_lines.iter().map(Line::len).sum::<usize>();
        lines.push(page_lines);
        if size > text_bytes_max {
            break;
        }
    }
    blocks::write(lines, &outline::read(&pdf), builder)?;
    problems.report(builder);
    Ok(())
}

/// What a page said beside its lines.
#[derive(Default)]
struct PageNotes {
    /// Glyphs drawn, and how many of them have no Unicode text.
    glyphs: usize,
    unmapped: usize,
    images: usize,
}

fn read_page<'a>(
    page: &Page<'a>,
    cache: &InterpreterCache<'a>,
    pdf: &'a Pdf,
) -> (Vec<Line>, PageNotes) {
    let (width, height) = page.render_dimensions();
    let transform: Affine = page.initial_transform(true).to_kurbo();
    let bounds = hayro_interpret::kurbo::Rect::new(0.0, 0.0, f64::from(width), f64::from(height));
    let mut context = Context::new(
        transform,
        bounds,
        cache,
        pdf.xref(),
        InterpreterSettings::default(),
    );
    let mut collector = Collector::new(bounds);
    interpret_page(page, &mut context, &mut collector);
    let notes = PageNotes {
        glyphs: collector.glyphs.len() + collector.unmapped,
        unmapped: collector.unmapped,
        images: collector.images,
    };
    (layout::lines(collector.glyphs, f64::from(height)), notes)
}

/// What users should know about pages that came out poorly.
#[derive(Default)]
struct Problems {
    scanned: Vec<usize>,
    unreadable: Vec<usize>,
    pages: usize,
}

impl Problems {
    fn note(&mut self, page: usize, lines: &[Line], notes: &PageNotes) {
        self.pages = page;
        if lines.is_empty() && notes.images > 0 {
            self.scanned.push(page);
        }
        if notes.unmapped * 4 > notes.glyphs {
            self.unreadable.push(page);
        }
    }

    fn report(&self, builder: &mut Builder) {
        let mut warn = |pages: &[usize], what: &str| {
            if !pages.is_empty() {
                let total = counted(self.pages, "page", "pages");
                builder.warn(format!(
                    "{} of {total} {what} (first: page {}).",
                    pages.len(),
                    pages[0]
                ));
            }
        };
        warn(
            &self.unreadable,
            "with a font that does not say which characters it draws: text is missing there",
        );
        warn(&self.scanned, "a picture without a text layer: not read");
    }
}

fn load_error(error: LoadPdfError) -> ParseError {
    match error {
        LoadPdfError::Decryption(DecryptionError::PasswordProtected) => ParseError::Encrypted {
            format: Format::Pdf,
        },
        LoadPdfError::Decryption(error) => ParseError::corrupt(
            Format::Pdf,
            format!("its encryption cannot be undone ({error:?})"),
        ),
        LoadPdfError::Invalid => ParseError::corrupt(
            Format::Pdf,
            "no table of contents of the file could be found or rebuilt",
        ),
    }
}
