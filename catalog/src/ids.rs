//! Identifiers as types, so that a tenant can never be passed where a topic is meant.
//!
//! Names that users choose are checked once, when they are made; ids of documents and chunks are derived from what
//! they identify, so that a replay after a crash makes the same ids again and a write by id is idempotent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that breaks the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {kind} name: {rule}")]
pub struct InvalidName {
    pub kind: &'static str,
    pub value: String,
    pub rule: &'static str,
}

const NAME_RULE: &str =
    "use 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter, a digit or `_`";

fn check_name(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let ok = (1..=128).contains(&value.chars().count())
        && value
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && value
            .chars()
            .next()
            .is_some_and(|c| c.is_alphanumeric() || c == '_');
    if ok {
        Ok(())
    } else {
        Err(InvalidName {
            kind,
            value: value.to_owned(),
            rule: NAME_RULE,
        })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the name: 1 to 128 letters (Chinese ones too), digits, `.`, `_`, `-`.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                check_name($kind, &value)?;
                Ok(Self(value))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// The owner of data. Every stored row and every call carries one.
    TenantId, "tenant"
);
name_type!(
    /// A collection of documents inside a tenant.
    CollectionName, "collection"
);
name_type!(
    /// A pipeline; also the name of its consumer group.
    PipelineName, "pipeline"
);
name_type!(
    /// A source, operator or sink inside a pipeline.
    NodeName, "node"
);
name_type!(
    /// A topic of the log.
    TopicName, "topic"
);

impl TenantId {
    /// The tenant that a new data directory starts with.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

/// A collection together with its tenant: the only way to name a collection to a store, so that no read or write can
/// forget the tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CollectionRef {
    pub tenant: TenantId,
    pub collection: CollectionName,
}

impl fmt::Display for CollectionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.collection)
    }
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            fn derive(parts: &[&[u8]]) -> Self {
                let mut hasher = blake3::Hasher::new();
                for part in parts {
                    // The length goes first, so that ("ab", "c") and ("a", "bc") differ.
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                }
                let mut id = [0; 16];
                id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let invalid = || InvalidName {
                    kind: stringify!($name),
                    value: value.to_owned(),
                    rule: "use 32 hexadecimal digits",
                };
                if value.len() != 32 || !value.is_ascii() {
                    return Err(invalid());
                }
                let mut id = [0; 16];
                for (i, byte) in id.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&value[2 * i..2 * i + 2], 16).map_err(|_| invalid())?;
                }
                Ok(Self(id))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

hash_id!(
    /// A document: derived from tenant, collection and the URI it was indexed from (BLAKE3, first 128 bits).
    DocumentId
);
hash_id!(
    /// A chunk: derived from tenant, collection, document, version and its position in the document.
    ChunkId
);

impl DocumentId {
    /// The id of the document that came from `uri`; the same URI in the same collection is the same document.
    pub fn of(collection: &CollectionRef, uri: &str) -> Self {
        Self::derive(&[
            b"document",
            collection.tenant.as_str().as_bytes(),
            collection.collection.as_str().as_bytes(),
            uri.as_bytes(),
        ])
    }
}

impl ChunkId {
    /// The id of chunk number `index` (from 0) of one version of a document.
    pub fn of(
        collection: &CollectionRef,
        document: DocumentId,
        version: Version,
        index: u32,
    ) -> Self {
        Self::derive(&[
            b"chunk",
            collection.tenant.as_str().as_bytes(),
            collection.collection.as_str().as_bytes(),
            &document.0,
            &version.0.to_le_bytes(),
            &index.to_le_bytes(),
        ])
    }
}

/// SHA-256 of a document's bytes, as 64 hexadecimal digits: the key of the stored object, and how an unchanged file is
/// recognised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(String);

impl ContentHash {
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
        let value = value.into();
        if value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(value.to_ascii_lowercase()))
        } else {
            Err(InvalidName {
                kind: "content hash",
                value,
                rule: "use 64 hexadecimal digits",
            })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContentHash {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        Self::new(value)
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> String {
        hash.0
    }
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number_type!(
    /// A document's version, counted from 1.
    Version, u32
);
number_type!(
    /// A partition of a topic, counted from 0.
    Partition, u32
);
number_type!(
    /// A row's position in a partition, counted from 0. A consumed offset is the *next* row to read.
    Offset, u64
);

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    pub topic: TopicName,
    pub partition: Partition,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help() -> CollectionRef {
        CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("help").expect("a valid name"),
        }
    }

    #[test]
    fn names_are_checked_and_may_be_chinese() {
        assert!(CollectionName::new("帮助-2026").is_ok());
        for bad in ["", "a/b", "..", "a b", "-x", "a\n"] {
            let error = CollectionName::new(bad).expect_err(bad);
            assert!(
                error.to_string().contains("is not a valid collection name"),
                "{error}"
            );
        }
    }

    #[test]
    fn derived_ids_are_stable_and_survive_text() {
        let document = DocumentId::of(&help(), "file:///a.html");
        // Pinned: a changed derivation would orphan every stored chunk. The value is that of BLAKE3's Python binding over
        // the same length-prefixed parts.
        assert_eq!(document.to_string(), "7d990fd4e20ec2fcf20b4c8581cf5d45");
        assert_eq!(document.to_string().parse(), Ok(document));
        let first = ChunkId::of(&help(), document, Version(1), 0);
        assert_ne!(first, ChunkId::of(&help(), document, Version(2), 0));
        assert_ne!(first, ChunkId::of(&help(), document, Version(1), 1));
        assert!("5fb9".parse::<DocumentId>().is_err());
        assert!("é".repeat(16).parse::<DocumentId>().is_err());
    }
}
