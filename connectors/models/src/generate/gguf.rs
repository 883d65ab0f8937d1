//! Reads the container of a language model: metadata, and where each tensor's bytes are.
//!
//! GGUF versions 2 and 3, little-endian, from a mapped file. Every length is checked against what is left of the file before
//! anything is allocated, so a damaged or hostile file is an error, not a crash. Leaves what the values mean to
//! `network.rs`, `vocabulary.rs` and `template.rs`.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::ModelError;

/// Where the tensors begin is a multiple of this, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// More dimensions than this no tensor has.
const DIMENSIONS_MAX: u32 = 4;

/// A value of the metadata. What no reader here asks for (nested arrays) is not kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Other,
}

/// A tensor's type, shape and bytes.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    /// GGML's number of the type.
    pub kind: u32,
    /// Innermost dimension first, as the file has them.
    pub shape: Vec<usize>,
    /// Where its bytes begin in the file; how many there are follows from type and shape.
    pub start: usize,
}

/// What a file says about itself.
#[derive(Debug)]
pub(super) struct Gguf {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads the head of a file.
    pub(super) fn read(file: &[u8]) -> Result<Self, ModelError> {
        let mut cursor = Cursor { file, at: 0 };
        if cursor.take(4)? != b"GGUF" {
            return Err(bad("it does not begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(bad(&format!("version {version}; known are 2 and 3")));
        }
        let tensor_count = cursor.u64()?;
        let value_count = cursor.u64()?;
        let mut metadata = HashMap::new();
        for _ in 0..value_count {
            let name = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            metadata.insert(name, value);
        }
        let mut found = Vec::new();
        for _ in 0..tensor_count {
            let name = cursor.text()?;
            let dimensions = cursor.u32()?;
            if dimensions > DIMENSIONS_MAX {
                return Err(bad(&format!("tensor `{name}` has {dimensions} dimensions")));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                shape.push(size(cursor.u64()?)?);
            }
            let kind = cursor.u32()?;
            found.push((name, kind, shape, cursor.u64()?));
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(n)) => u64::try_from(*n)
                .ok()
                .filter(|n| n.is_power_of_two())
                .ok_or_else(|| bad(&format!("`general.alignment` is {n}")))?,
            _ => ALIGNMENT,
        };
        let data = (cursor.at as u64).next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        for (name, kind, shape, offset) in found {
            let start = data
                .checked_add(offset)
                .filter(|start| *start <= file.len() as u64)
                .ok_or_else(|| bad(&format!("tensor `{name}` lies behind the end of the file")))?;
            let start = size(start)?;
            tensors.insert(name, TensorInfo { kind, shape, start });
        }
        Ok(Self { metadata, tensors })
    }

    /// A tensor, if there is one of that name.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A text that must be there.
    pub(super) fn text(&self, key: &str) -> Result<&str, ModelError> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(missing(key, "a text")),
        }
    }

    /// A text that may be there.
    pub(super) fn text_if(&self, key: &str) -> Option<&str> {
        self.text(key).ok()
    }

    /// A size that must be there.
    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_if(key).ok_or_else(|| missing(key, "a size"))
    }

    /// A size that may be there.
    pub(super) fn size_if(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key) {
            Some(Value::Integer(n)) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A number that must be there.
    pub(super) fn float(&self, key: &str) -> Result<f64, ModelError> {
        match self.metadata.get(key) {
            Some(Value::Float(number)) => Ok(*number),
            _ => Err(missing(key, "a number")),
        }
    }

    /// A truth that may be there.
    pub(super) fn bool_if(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// A list of texts that must be there.
    pub(super) fn texts(&self, key: &str) -> Result<&[String], ModelError> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            _ => Err(missing(key, "a list of texts")),
        }
    }

    /// A list of numbers that must be there.
    pub(super) fn integers(&self, key: &str) -> Result<&[i64], ModelError> {
        match self.metadata.get(key) {
            Some(Value::Integers(numbers)) => Ok(numbers),
            _ => Err(missing(key, "a list of numbers")),
        }
    }
}

/// The bytes of a tensor whose length has been worked out.
pub(super) fn bytes<'a>(
    file: &'a [u8],
    name: &str,
    start: usize,
    length: usize,
) -> Result<&'a [u8], ModelError> {
    start
        .checked_add(length)
        .and_then(|end| file.get(Range { start, end }))
        .ok_or_else(|| {
            bad(&format!(
                "tensor `{name}` needs {length} bytes at {start}, but the file has {}",
                file.len()
            ))
        })
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ModelError> {
        let rest = &self.file[self.at..];
        let taken = rest.get(..length).ok_or_else(|| {
            bad(&format!(
                "{length} bytes wanted at {}, {} are left",
                self.at,
                rest.len()
            ))
        })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let length = size(self.u64()?)?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| bad("a text of it is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.take(1)? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => i64::try_from(self.u64()?).map_or(Value::Other, Value::Integer),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(bad(&format!("a value has the unknown type {other}"))),
        })
    }

    fn list(&mut self) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if kind == 9 {
            return Err(bad("a list of lists, which no known model has"));
        }
        let mut texts = Vec::new();
        let mut integers = Vec::new();
        // Each value takes bytes, so a count that is too large ends at the end of the file.
        for _ in 0..count {
            match self.value(kind)? {
                Value::Text(text) => texts.push(text),
                Value::Integer(number) => integers.push(number),
                _ => {}
            }
        }
        Ok(match kind {
            8 => Value::Texts(texts),
            0..=5 | 10 | 11 => Value::Integers(integers),
            _ => Value::Other,
        })
    }
}

fn size(n: u64) -> Result<usize, ModelError> {
    usize::try_from(n).map_err(|_| bad(&format!("a size of {n}")))
}

fn bad(reason: &str) -> ModelError {
    ModelError::Format(format!("GGUF file: {reason}"))
}

fn missing(key: &str, what: &str) -> ModelError {
    bad(&format!("`{key}` is missing or not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn small() -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        text(&mut file, "a.name");
        file.extend(8u32.to_le_bytes());
        text(&mut file, "字");
        text(&mut file, "a.list");
        file.extend(9u32.to_le_bytes());
        file.extend(4u32.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        file.extend(9u32.to_le_bytes());
        text(&mut file, "weights");
        file.extend(1u32.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(1f32.to_le_bytes());
        file.extend(2f32.to_le_bytes());
        file
    }

    #[test]
    fn a_head_is_read() {
        let file = small();
        let gguf = Gguf::read(&file).unwrap();
        assert_eq!(gguf.text("a.name").unwrap(), "字");
        assert_eq!(gguf.integers("a.list").unwrap(), [7, 9]);
        let tensor = gguf.tensor("weights").unwrap();
        assert_eq!((tensor.kind, tensor.shape.as_slice()), (0, &[2][..]));
        assert_eq!(bytes(&file, "weights", tensor.start, 8).unwrap().len(), 8);
        assert!(bytes(&file, "weights", tensor.start, 9).is_err());
        let error = gguf.size("b").unwrap_err().to_string();
        assert!(error.contains("`b` is missing"), "{error}");
    }

    /// Wherever a file is cut, it is an error; and a length that lies allocates nothing.
    #[test]
    fn damage_is_an_error() {
        let file = small();
        let head = file.len() - 32;
        for length in 0..head {
            assert!(Gguf::read(&file[..length]).is_err(), "cut at {length}");
        }
        let mut lies = file;
        lies[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Gguf::read(&lies).is_err());
    }
}
