//! Plain text: paragraphs at empty lines. Program source is kept as it stands.

use crate::builder::Builder;
use crate::detect::has_ending;
use crate::document::BlockKind;
use crate::error::ParseError;

/// Endings of files whose line breaks and indentation carry meaning.
const SOURCE: &[&str] = &[
    "c", "cc", "conf", "cpp", "cs", "css", "go", "h", "hpp", "ini", "java", "js", "jsx", "kt", "log", "lua", "php", "pl",
    "proto", "ps1", "py", "r", "rb", "rs", "scala", "sh", "sql", "swift", "toml", "ts", "tsx", "xml", "yaml", "yml",
];

pub(crate) fn parse(name: &str, text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let code = has_ending(name, SOURCE);
    for paragraph in paragraphs(text) {
        if code {
            builder.code(paragraph)?;
        } else {
            builder.block(BlockKind::Paragraph, paragraph)?;
        }
    }
    Ok(())
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
