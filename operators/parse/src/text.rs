//! Plain text: paragraphs at empty lines. Program source is kept as it stands.

use crate::builder::Builder;
use crate::detect::has_ending;
use crate::document::BlockKind;
use crate::error::ParseError;

/// Endings of files whose line breaks and indentation carry meaning.
const SOURCE: &[&str] = &[
    "c", "cc", "conf", "cpp", "cs", "css", "go", "h", "hpp", "ini", "java", "js", "jsx", "kt",
    "log", "lua", "php", "pl", "proto", "ps1", "py", "r", "rb", "rs", "scala", "sh", "sql",
    "swift", "toml", "ts", "tsx", "xml", "yaml", "yml",
];

pub(crate) fn parse(name: &str, text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let code = has_ending(name, SOURCE);
    for paragraph in paragraphs(text) {
        let indented = paragraph
            .lines()
            .filter(|line| !line.trim().is_empty())
            .all(|line| line.starts_with("    ") || line.starts_with('\t'));
        if code || indented {
            builder.code(paragraph)?;
        } else if let Some((level, title, rest)) = underlined(paragraph) {
            builder.heading(level, title)?;
            builder.paragraph(rest)?;
        } else {
            builder.block(BlockKind::Paragraph, paragraph)?;
        }
    }
    Ok(())
}

/// A title underlined with a row of one character, as in text files and reStructuredText, and what follows it.
fn underlined(paragraph: &str) -> Option<(u8, &str, &str)> {
    let (title, rest) = paragraph.trim_start_matches('\n').split_once('\n')?;
    let (line, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    let line = line.trim_end();
    let level = match line.chars().next()? {
        '=' => 1,
        '-' => 2,
        '~' | '^' => 3,
        _ => return None,
    };
    let even = line.chars().all(|c| line.starts_with(c)) && line.len() >= 3;
    // A rule below a long text is a rule.
    (even && title.chars().count() <= 100 && title.chars().any(char::is_alphanumeric))
        .then_some((level, title, rest))
}

/// Stretches between empty lines (white space does not count as content), with form feeds as breaks too.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len();
        let mut seen = false;
        let mut at = 0;
        for line in rest.split_inclusive(['\n', '\u{c}']) {
            if line.trim().is_empty() && seen {
                end = at;
                break;
            }
            seen |= !line.trim().is_empty();
            at += line.len();
            if line.ends_with('\u{c}') && seen {
                end = at;
                break;
            }
        }
        let (paragraph, tail) = rest.split_at(end);
        rest = tail;
        Some(paragraph)
    })
}
