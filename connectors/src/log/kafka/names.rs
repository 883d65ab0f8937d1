//! Our names and offsets as Kafka's. Pure functions; what is written here is what is stored in the cluster.
//!
//! Kafka allows ASCII letters, digits, `.`, `_` and `-` in a topic's name, ours allow letters of any script. An ASCII
//! name stays as it is, so that others find it; another one is `u8.` and its UTF-8 with `_XX` for each byte that Kafka
//! does not allow.

use std::fmt::Write;

use va_catalog::{Offset, TopicName};

use crate::log::LogError;

/// Kafka's own limit.
const TOPIC_BYTES_MAX: usize = 249;
const ESCAPED: &str = "u8.";
/// Begins the names of the topics that hold state; they are not listed as topics.
const STATE: &str = "va.state.";

/// A topic's name in the cluster.
pub(super) fn kafka_topic(prefix: &str, topic: &TopicName) -> Result<String, LogError> {
    bounded(format!("{prefix}{}", escape(topic.as_str())))
}

/// The topic that holds a group's state.
pub(super) fn state_topic(prefix: &str, group: &str) -> Result<String, LogError> {
    bounded(format!("{prefix}{STATE}{}", escape(group)))
}

fn bounded(name: String) -> Result<String, LogError> {
    if name.len() <= TOPIC_BYTES_MAX {
        Ok(name)
    } else {
        Err(LogError::Config(format!(
            "the name `{name}` is too long for Kafka: {} bytes, at most {TOPIC_BYTES_MAX}; use a shorter one",
            name.len()
        )))
    }
}

/// Our name of a topic in the cluster; `None` when it is not one of this log's.
pub(super) fn topic_name(prefix: &str, kafka: &str) -> Option<TopicName> {
    let name = kafka.strip_prefix(prefix)?;
    if name.starts_with(STATE) || name.starts_with("__") {
        return None;
    }
    TopicName::new(unescape(name)?).ok()
}

fn escape(name: &str) -> String {
    if name.is_ascii() && !name.starts_with(ESCAPED) {
        return name.to_owned();
    }
    let mut escaped = ESCAPED.to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-') {
            escaped.push(byte as char);
        } else {
            let _ = write!(escaped, "_{byte:02X}");
        }
    }
    escaped
}

fn unescape(name: &str) -> Option<String> {
    let Some(escaped) = name.strip_prefix(ESCAPED) else {
        return Some(name.to_owned());
    };
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'_' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Bits of an offset that name the row. The rest, 48 bits, are enough for 280 trillion records; and an offset stays
/// exact in a JavaScript number up to 137 billion records of a partition.
const ROW_BITS: u32 = 16;
/// Most rows in one record.
pub(super) const ROWS_MAX: usize = 1 << ROW_BITS;

/// A row's place: the record's offset in Kafka, and the row in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub record: i64,
    pub row: u32,
}

impl Position {
    /// The first row of a record.
    pub(super) fn start_of(record: i64) -> Self {
        Self { record, row: 0 }
    }

    pub(super) fn of(offset: Offset) -> Self {
        Self {
            record: (offset.0 >> ROW_BITS) as i64,
            row: (offset.0 & (ROWS_MAX as u64 - 1)) as u32,
        }
    }

    /// Negative records are Kafka's way to say that there is none.
    pub(super) fn offset(self) -> Offset {
        Offset(((self.record.max(0) as u64) << ROW_BITS) | u64::from(self.row))
    }
}

/// What is kept with a committed offset: the row, who committed it, and whether the offset was forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct OffsetNote {
    pub row: u32,
    /// Transactional id of the member.
    pub producer: Option<String>,
    /// Kafka's clients cannot delete one offset of a group, so a reset says that it does not count.
    pub forgotten: bool,
}

impl OffsetNote {
    pub(super) fn encode(&self) -> String {
        let mut note = format!("va1 row={}", self.row);
        if self.forgotten {
            note.push_str(" forgotten");
        }
        if let Some(producer) = &self.producer {
            let _ = write!(note, " by={producer}");
        }
        note
    }

    /// Another client's note says nothing to us.
    pub(super) fn decode(note: &str) -> Self {
        let mut decoded = Self::default();
        let Some(mut rest) = note.strip_prefix("va1 ") else {
            return decoded;
        };
        if let Some((before, producer)) = rest.split_once(" by=") {
            decoded.producer = Some(producer.to_owned());
            rest = before;
        }
        for word in rest.split(' ') {
            match word.split_once('=') {
                Some(("row", row)) => decoded.row = row.parse().unwrap_or(0),
                None if word == "forgotten" => decoded.forgotten = true,
                _ => {}
            }
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (name, kafka) in [
            ("events", "p.events"),
            ("a_b.c-1", "p.a_b.c-1"),
            ("events.事件", "p.u8.events._E4_BA_8B_E4_BB_B6"),
            ("u8.x_y", "p.u8.u8.x_5Fy"),
        ] {
            let name = TopicName::new(name).unwrap();
            assert_eq!(kafka_topic("p.", &name).unwrap(), kafka);
            assert_eq!(topic_name("p.", kafka), Some(name));
        }
        for foreign in ["events", "p.va.state.index", "p.__x", "p.u8._E4", "p.u8._"] {
            assert_eq!(topic_name("p.", foreign), None, "{foreign}");
        }
        let long = TopicName::new("事".repeat(100)).unwrap();
        assert!(kafka_topic("", &long).is_err());
    }

    #[test]
    fn positions_come_back_in_order() {
        let mut last = None;
        for (record, row) in [(0, 0), (0, 1), (0, 65_535), (1, 0), (1 << 40, 7)] {
            let offset = Position { record, row }.offset();
            assert_eq!(Position::of(offset), Position { record, row });
            assert!(last < Some(offset));
            last = Some(offset);
        }
        assert_eq!(Position::start_of(-1001).offset(), Offset(0));
    }

    #[test]
    fn notes_come_back() {
        for note in [
            OffsetNote::default(),
            OffsetNote {
                row: 7,
                producer: Some("p.index 组 by=x".to_owned()),
                forgotten: false,
            },
            OffsetNote {
                row: 0,
                producer: None,
                forgotten: true,
            },
        ] {
            assert_eq!(OffsetNote::decode(&note.encode()), note);
        }
        assert_eq!(OffsetNote::decode("somebody else's"), OffsetNote::default());
    }
}
