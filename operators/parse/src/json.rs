//! JSON and JSON Lines as text that people and search engines can read: `path.to.key: value` lines, one block a record.

use serde_json::{Deserializer, Map, Value};

use crate::builder::Builder;
use crate::document::Format;
use crate::error::ParseError;

/// Keys whose value names a record, best first.
const TITLE_KEYS: [&str; 4] = ["title", "name", "subject", "id"];
/// Objects below this depth are written as dotted paths and not as sections.
const SECTION_DEPTH_MAX: u8 = 3;

pub(crate) fn parse(text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let values = Deserializer::from_str(text).into_iter::<Value>();
    let mut count = 0;
    for value in values {
        match value {
            Ok(value) => {
                if count == 0
                    && let Some(title) = value
                        .as_object()
                        .and_then(|object| object.get("title"))
                        .and_then(Value::as_str)
                {
                    builder.set_title(title);
                }
                top_level(&value, builder)?;
                count += 1;
            }
            // Records before a damaged end (a log cut in the middle) are worth keeping.
            Err(error) if count > 1 => {
                builder.warn(format!("The file ends in the middle of its data: {error}."));
                break;
            }
            Err(error) => return Err(ParseError::corrupt(Format::Json, error)),
        }
    }
    Ok(())
}

fn top_level(value: &Value, builder: &mut Builder) -> Result<(), ParseError> {
    match value {
        Value::Object(object) => section(object, 1, builder),
        Value::Array(items) => records(items, "", builder),
        scalar => builder.paragraph(&scalar_text(scalar)),
    }
}

/// An object as a section: its plain values as one block of lines, then each larger value under a heading of its key.
fn section(
    object: &Map<String, Value>,
    level: u8,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let mut lines = String::new();
    for (key, value) in object {
        if !is_large(value) {
            write_lines(key, value, &mut lines);
        }
    }
    builder.paragraph(&lines)?;
    for (key, value) in object.iter().filter(|(_, value)| is_large(value)) {
        match value {
            Value::Object(inner) if level < SECTION_DEPTH_MAX => {
                builder.heading(level, key)?;
                section(inner, level + 1, builder)?;
            }
            Value::Array(items) => {
                builder.heading(level, key)?;
                records(items, "", builder)?;
            }
            other => {
                let mut lines = String::new();
                write_lines(key, other, &mut lines);
                builder.paragraph(&lines)?;
            }
        }
    }
    Ok(())
}

/// A list: one block for each record, plain values together.
fn records(items: &[Value], path: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let mut plain = String::new();
    for item in items {
        let mut lines = String::new();
        write_lines(path, item, &mut lines);
        if item.is_object() || item.is_array() {
            builder.paragraph(&plain)?;
            plain.clear();
            builder.paragraph(&lines)?;
        } else {
            plain.push_str(&lines);
        }
    }
    builder.paragraph(&plain)
}

/// Whether a value deserves a section: it holds objects, or many values.
fn is_large(value: &Value) -> bool {
    match value {
        Value::Object(object) => {
            object.len() > 3 || object.values().any(|v| v.is_object() || v.is_array())
        }
        Value::Array(items) => items.iter().any(|item| item.is_object() || item.is_array()),
        _ => false,
    }
}

/// `path: value` for each plain value below. Depth is bounded by the JSON parser's own recursion limit (128).
fn write_lines(path: &str, value: &Value, out: &mut String) {
    let join = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    match value {
        Value::Object(object) => {
            // What names the record comes first, so that a cut-off view still shows it.
            let titles = TITLE_KEYS
                .iter()
                .filter_map(|key| object.get_key_value(*key));
            let rest = object
                .iter()
                .filter(|(key, _)| !TITLE_KEYS.contains(&key.as_str()));
            for (key, value) in titles.chain(rest) {
                write_lines(&join(key), value, out);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (idx, item) in items.iter().enumerate() {
                write_lines(&join(&(idx + 1).to_string()), item, out);
            }
        }
        Value::Array(items) => {
            let values: Vec<String> = items.iter().map(scalar_text).collect();
            write_line(path, &values.join(", "), out);
        }
        scalar => write_line(path, &scalar_text(scalar), out),
    }
}

fn write_line(path: &str, value: &str, out: &mut String) {
    if !path.is_empty() {
        out.push_str(path);
        out.push_str(": ");
    }
    out.push_str(value);
    out.push('\n');
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
