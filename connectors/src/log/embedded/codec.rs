//! Keys and values of the keyspaces. Pure functions; the layout here is what is on disk, so a change needs a new
//! [`FORMAT`].
//!
//! Integers in keys are big endian, so that the order of keys is the order of offsets. Names cannot hold a zero byte
//! (the catalog checks them), so a zero byte ends a name.

use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use va_catalog::{Offset, Partition, TopicName};
use xxhash_rust::xxh3::xxh3_64;

use crate::log::{GroupId, LogError, StateKey};

/// Version of the layout, stored in the `meta` keyspace.
pub(super) const FORMAT: u32 = 1;
/// `fjall` refuses longer keys with a panic.
pub(super) const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Lengths are stored as 32 bits.
pub(super) const VALUE_BYTES_MAX: usize = u32::MAX as usize;
/// Checksum and padding before the IPC stream; 16 bytes keep the arrays behind it aligned.
const HEADER_BYTES: usize = 16;

/// A topic's number in keys; never used again after the topic is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TopicId(pub u32);

/// Key of a batch, in `index` and in `batches`.
pub(super) fn batch_key(topic: TopicId, partition: Partition, base: Offset) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&topic.0.to_be_bytes());
    key[4..8].copy_from_slice(&partition.0.to_be_bytes());
    key[8..].copy_from_slice(&base.0.to_be_bytes());
    key
}

/// The base offset in a batch's key.
pub(super) fn base_of(key: &[u8]) -> Option<Offset> {
    let base = key.get(8..16)?.try_into().ok()?;
    Some(Offset(u64::from_be_bytes(base)))
}

/// What is known of a batch without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchEntry {
    pub appended_at_ms: i64,
    pub rows: u32,
    pub bytes: u32,
}

impl BatchEntry {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.appended_at_ms.to_le_bytes());
        value[8..12].copy_from_slice(&self.rows.to_le_bytes());
        value[12..].copy_from_slice(&self.bytes.to_le_bytes());
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        Some(Self {
            appended_at_ms: i64::from_le_bytes(value.get(..8)?.try_into().ok()?),
            rows: u32::from_le_bytes(value.get(8..12)?.try_into().ok()?),
            bytes: u32::from_le_bytes(value.get(12..16)?.try_into().ok()?),
        })
    }
}

/// What is known of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Marks {
    pub low: u64,
    pub high: u64,
    /// Stored bytes of the batches between them.
    pub bytes: u64,
    /// When the newest batch was appended; times never go back within a partition, so `offset_at` can search.
    pub last_ms: i64,
}

impl Marks {
    pub(super) fn encode(self) -> [u8; 32] {
        let mut value = [0; 32];
        value[..8].copy_from_slice(&self.low.to_le_bytes());
        value[8..16].copy_from_slice(&self.high.to_le_bytes());
        value[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        value[24..].copy_from_slice(&self.last_ms.to_le_bytes());
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let word = |i: usize| -> Option<[u8; 8]> { value.get(i..i + 8)?.try_into().ok() };
        Some(Self {
            low: u64::from_le_bytes(word(0)?),
            high: u64::from_le_bytes(word(8)?),
            bytes: u64::from_le_bytes(word(16)?),
            last_ms: i64::from_le_bytes(word(24)?),
        })
    }
}

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const NEXT_TOPIC_KEY: &[u8] = b"next-topic";
pub(super) const TOPIC_PREFIX: &[u8] = b"topic/";

pub(super) fn topic_key(topic: &TopicName) -> Vec<u8> {
    [TOPIC_PREFIX, topic.as_str().as_bytes()].concat()
}

pub(super) fn marks_key(topic: TopicId, partition: Partition) -> Vec<u8> {
    [
        b"marks/".as_slice(),
        &topic.0.to_be_bytes(),
        &partition.0.to_be_bytes(),
    ]
    .concat()
}

/// Prefix of everything that a group committed.
pub(super) fn group_prefix(group: &GroupId) -> Vec<u8> {
    [group.0.as_str().as_bytes(), &[0]].concat()
}

pub(super) fn offset_key(group: &GroupId, topic: &TopicName, partition: Partition) -> Vec<u8> {
    let mut key = group_prefix(group);
    key.extend_from_slice(topic.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

/// Group and topic in an offset's key.
pub(super) fn offset_key_parts(key: &[u8]) -> Option<(&str, &str)> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let group = std::str::from_utf8(parts.next()?).ok()?;
    let topic = std::str::from_utf8(parts.next()?).ok()?;
    Some((group, topic))
}

/// Prefix of a namespace's state. A namespace is any text, so its length goes first.
pub(super) fn state_prefix(group: &GroupId, namespace: &str) -> Vec<u8> {
    let mut key = group_prefix(group);
    key.extend_from_slice(&(namespace.len() as u32).to_be_bytes());
    key.extend_from_slice(namespace.as_bytes());
    key
}

pub(super) fn state_key(key: &StateKey) -> Vec<u8> {
    let mut bytes = state_prefix(&key.group, &key.namespace);
    bytes.extend_from_slice(&key.key);
    bytes
}

/// A batch as a value: room for the checksum, then an Arrow IPC stream with its schema. [`seal`] completes it.
pub(super) fn encode_batch(batch: &RecordBatch) -> Result<Vec<u8>, LogError> {
    let refuse = |e: &dyn std::fmt::Display| LogError::Config(format!("encode a batch: {e}"));
    let mut value = Vec::with_capacity(HEADER_BYTES + 1024 + batch.get_array_memory_size());
    value.resize(HEADER_BYTES, 0);
    let mut writer =
        StreamWriter::try_new(&mut value, batch.schema_ref()).map_err(|e| refuse(&e))?;
    writer.write(batch).map_err(|e| refuse(&e))?;
    writer.finish().map_err(|e| refuse(&e))?;
    drop(writer);
    if value.len() > VALUE_BYTES_MAX {
        return Err(LogError::Config(format!(
            "a batch of {} bytes is too large: at most {VALUE_BYTES_MAX}",
            value.len()
        )));
    }
    Ok(value)
}

/// Writes the checksum, once the key is known.
pub(super) fn seal(key: &[u8], value: &mut [u8]) {
    let (header, stream) = value.split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(&checksum(key, stream).to_le_bytes());
}

/// Reads a value back, without copying its arrays. The error says what is wrong, not where.
pub(super) fn decode_batch(key: &[u8], value: Bytes) -> Result<RecordBatch, String> {
    if value.len() < HEADER_BYTES {
        return Err(format!("{} bytes are too short for a batch", value.len()));
    }
    let stream = value.slice(HEADER_BYTES..);
    if value[..8] != checksum(key, &stream).to_le_bytes() {
        return Err("its checksum does not match".to_owned());
    }
    let mut buffer = Buffer::from(stream);
    let mut decoder = StreamDecoder::new();
    match decoder.decode(&mut buffer) {
        Ok(Some(batch)) => Ok(batch),
        Ok(None) => Err("it holds no batch".to_owned()),
        Err(e) => Err(format!("it is not an arrow stream: {e}")),
    }
}

/// Covers the key too, so that a value under a wrong key is found.
fn checksum(key: &[u8], stream: &[u8]) -> u64 {
    xxh3_64(stream).wrapping_add(xxh3_64(key))
}
