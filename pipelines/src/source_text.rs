//! YAML with positions: a JSON value, and for every path in it where it stands in the file.

use std::collections::HashMap;

use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScalarOwned, YamlDataOwned};
use serde_json::{Map, Number, Value};

/// A position in a file, both 1-based; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// A parsed YAML document.
#[derive(Debug, Default)]
pub struct SourceText {
    pub value: Value,
    /// Where the key (or list item) at a path begins, and where its value does.
    positions: HashMap<Vec<String>, (Position, Position)>,
}

impl SourceText {
    /// Parses one YAML document; the error says where it is not YAML.
    pub fn parse(text: &str) -> Result<Self, (Position, String)> {
        let documents = MarkedYamlOwned::load_from_str(text).map_err(|error| {
            let marker = error.marker();
            (
                Position {
                    line: marker.line(),
                    column: marker.col() + 1,
                },
                error.info().to_owned(),
            )
        })?;
        let mut parsed = Self::default();
        match documents.len() {
            0 => {}
            1 => {
                let mut path = Vec::new();
                parsed.value = convert(&documents[0], &mut path, &mut parsed.positions)?;
            }
            n => {
                let start = position(&documents[1]);
                return Err((
                    start,
                    format!("the file holds {n} documents; put each pipeline in a file of its own"),
                ));
            }
        }
        Ok(parsed)
    }

    /// Where the key at `path` stands; the nearest parent's when there is no such key.
    pub fn key(&self, path: &[String]) -> Position {
        self.nearest(path).0
    }

    /// Where the value at `path` stands; the nearest parent's key when there is no such value.
    pub fn value_at(&self, path: &[String]) -> Position {
        match self.positions.get(path) {
            Some((_, value)) => *value,
            None => self.key(path),
        }
    }

    fn nearest(&self, path: &[String]) -> (Position, Position) {
        (0..=path.len())
            .rev()
            .find_map(|length| self.positions.get(&path[..length]))
            .copied()
            .unwrap_or((
                Position { line: 1, column: 1 },
                Position { line: 1, column: 1 },
            ))
    }
}

fn position(node: &MarkedYamlOwned) -> Position {
    Position {
        line: node.span.start.line(),
        column: node.span.start.col() + 1,
    }
}

fn convert(
    node: &MarkedYamlOwned,
    path: &mut Vec<String>,
    positions: &mut HashMap<Vec<String>, (Position, Position)>,
) -> Result<Value, (Position, String)> {
    let here = position(node);
    let key = positions.get(path.as_slice()).map_or(here, |(key, _)| *key);
    positions.insert(path.clone(), (key, here));
    Ok(match &node.data {
        YamlDataOwned::Value(scalar) => match scalar {
            ScalarOwned::Null => Value::Null,
            ScalarOwned::Boolean(value) => Value::Bool(*value),
            ScalarOwned::Integer(value) => Value::from(*value),
            ScalarOwned::FloatingPoint(value) => {
                Number::from_f64(value.into_inner()).map_or(Value::Null, Value::Number)
            }
            ScalarOwned::String(text) => Value::String(text.clone()),
        },
        YamlDataOwned::Sequence(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                path.push(i.to_string());
                values.push(convert(item, path, positions)?);
                path.pop();
            }
            Value::Array(values)
        }
        YamlDataOwned::Mapping(entries) => {
            let mut values = Map::new();
            for (key, value) in entries {
                let name = match &key.data {
                    YamlDataOwned::Value(ScalarOwned::String(name)) => name.clone(),
                    YamlDataOwned::Value(ScalarOwned::Integer(number)) => number.to_string(),
                    YamlDataOwned::Value(ScalarOwned::Boolean(word)) => word.to_string(),
                    _ => return Err((position(key), "a key must be a plain word".to_owned())),
                };
                path.push(name.clone());
                positions.insert(path.clone(), (position(key), position(value)));
                values.insert(name, convert(value, path, positions)?);
                path.pop();
            }
            Value::Object(values)
        }
        YamlDataOwned::Tagged(_, inner) => convert(inner, path, positions)?,
        YamlDataOwned::Representation(..) | YamlDataOwned::Alias(_) | YamlDataOwned::BadValue => {
            return Err((here, "this value cannot be read".to_owned()));
        }
    })
}
