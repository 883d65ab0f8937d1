//! How `va.yaml` and the environment become settings: places of errors in the file, variables over keys.
//!
//! The environment variable of a key is `VA_`, then the key in capitals, with `__` between section and key:
//! `search.k_max` is `VA_SEARCH__K_MAX`, `log.kafka.prefix` is `VA_LOG__KAFKA__PREFIX`, `listen` is `VA_LISTEN`. Variables
//! that begin with `VA_` and hold no `__` are looked at only when they name a key, because others (`VA_SERVER`, `VA_TOKEN`)
//! are the command line's.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Place, Settings, SettingsError};

/// The settings that a file holds.
pub(super) fn file(path: &Path, text: &str) -> Result<Settings, SettingsError> {
    // A file of comments only is one without settings.
    let empty = text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if empty {
        return Ok(Settings::default());
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) = error
            .location()
            .map_or((0, 0), |location| (location.line(), location.column()));
        let message = error.to_string();
        // The place is told once, in front.
        let told = format!(" at line {line}, column {column}");
        let message = message.strip_suffix(&told).unwrap_or(&message);
        SettingsError::Invalid {
            place: Place::File {
                path: path.to_owned(),
                line,
                column,
            },
            problem: with_line(text, line, message),
        }
    })
}

/// The message, with the text of that line where it does not tell the key and the value itself.
fn with_line(text: &str, line: u64, message: &str) -> String {
    let setting = usize::try_from(line)
        .ok()
        .and_then(|line| text.lines().nth(line.checked_sub(1)?))
        .map(str::trim);
    let told = |setting: &str| {
        setting
            .split(':')
            .all(|part| message.contains(part.trim().trim_matches(['"', '\''])))
    };
    match setting {
        // A URL may hold a password.
        Some(setting) if !told(setting) && !setting.contains("://") => {
            format!("`{setting}`: {message}")
        }
        _ => message.to_owned(),
    }
}

/// The settings with one variable applied.
pub(super) fn overlay(
    settings: Settings,
    variable: &str,
    value: &str,
) -> Result<Settings, SettingsError> {
    let invalid = |problem: String| SettingsError::Invalid {
        place: Place::Environment {
            variable: variable.to_owned(),
        },
        problem,
    };
    let name = variable
        .strip_prefix("VA_")
        .unwrap_or(variable)
        .to_lowercase();
    let tree = serde_json::to_value(&settings).map_err(|error| invalid(error.to_string()))?;
    let Value::Object(tree) = tree else {
        return Ok(settings);
    };
    let (section, key) = match name.split_once("__") {
        Some((section, key)) => (Some(section), key),
        // A section is no key: `VA_LOG` is not ours.
        None if tree.get(&name).is_some_and(|value| !value.is_object()) => (None, name.as_str()),
        None => return Ok(settings),
    };
    let known = match section {
        Some(section) => tree
            .get(section)
            .and_then(Value::as_object)
            .ok_or_else(|| {
                let sections = tree.iter().filter(|(_, value)| value.is_object());
                invalid(format!(
                    "there is no section `{section}`: use {}",
                    list(sections.map(|(name, _)| name))
                ))
            })?,
        None => &tree,
    };
    // `VA_LOG__KAFKA__COMPRESSION`: behind a key that holds a group of options, one of them.
    let (key, inner) = match key.split_once("__") {
        Some((group, inner)) if known.get(group).is_some_and(Value::is_object) => {
            (group, inner.split("__").collect())
        }
        _ => (key, Vec::new()),
    };
    if !known.contains_key(key) {
        return Err(invalid(format!(
            "there is no key `{key}` in section `{}`: use {}",
            section.unwrap_or_default(),
            list(known.keys())
        )));
    }
    // The value has no type of its own, so it is read as a number or a yes where that is wanted, and as text where it is not.
    let number = value.trim().parse::<u64>().ok().map(Value::from);
    let flag = value.trim().parse::<bool>().ok().map(Value::from);
    let text = Value::String(value.to_owned());
    let candidates = [number, flag, Some(text)].into_iter().flatten();
    let mut first_error = None;
    for candidate in candidates {
        let candidate = match inner.as_slice() {
            [] => candidate,
            inner => within(
                known.get(key).cloned().unwrap_or_default(),
                inner,
                candidate,
            ),
        };
        match serde_json::from_value(Value::Object(with(&tree, section, key, candidate))) {
            Ok(settings) => return Ok(settings),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let problem = first_error.map_or_else(String::new, |error| error.to_string());
    let path: Vec<&str> = section.into_iter().chain([key]).chain(inner).collect();
    let path = path.join(".");
    Err(invalid(format!("`{path}`: {problem}")))
}

/// A group of options with one of them, however deep, set.
fn within(group: Value, path: &[&str], value: Value) -> Value {
    let [key, rest @ ..] = path else {
        return value;
    };
    let mut options = match group {
        Value::Object(options) => options,
        _ => Map::new(),
    };
    let inner = options.remove(*key).unwrap_or_default();
    options.insert((*key).to_owned(), within(inner, rest, value));
    Value::Object(options)
}

/// The whole configuration with one key set.
fn with(
    tree: &Map<String, Value>,
    section: Option<&str>,
    key: &str,
    value: Value,
) -> Map<String, Value> {
    let mut tree = tree.clone();
    let target = match section {
        Some(section) => tree.get_mut(section).and_then(Value::as_object_mut),
        None => Some(&mut tree),
    };
    if let Some(target) = target {
        target.insert(key.to_owned(), value);
    }
    tree
}

/// The names, for an error that says what there is.
fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    names.join(", ")
}
