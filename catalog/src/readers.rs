//! Who may read a document, and as whom somebody reads.
//!
//! A document names its [`Readers`]; an empty list is everybody in the tenant who may read documents. A caller comes as a
//! [`Viewer`]. In the indexes both meet as reserved tags of the chunks, so that the condition is part of each query and
//! never a step after the ranking. Who is a viewer of what is decided in `store/principal.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{DataType, Fields, Schema};
use serde::{Deserialize, Serialize};

/// Keys of metadata and of filters that begin so are the platform's own.
pub const RESERVED: &str = "va.";
/// Where the readers travel beside a document's metadata, from the upload to the chunks: a JSON list.
pub const READERS_KEY: &str = "va.readers";
/// The tag of every chunk that not everybody may read. It has no `=`, so no metadata can make it.
pub const RESTRICTED_TAG: &str = "va.restricted";
/// Ends the name of a pipeline's topic of dead letters, see [`crate::graph::dead_letter_topic`].
const DEAD_LETTERS: &str = ".dead_letter";
/// Begins the tag of each reader.
const READER_TAG: &str = "va.reader=";

/// Readers of one document at most: whoever needs more makes a role.
pub const READERS_MAX: usize = 100;
/// Of one reader.
const READER_CHARS_MAX: usize = 200;

/// Somebody who may read a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reader {
    /// The user with that id.
    User(String),
    /// Whoever has the role, a built-in or one of the tenant's own.
    Role(String),
}

/// A text that names no reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReader {
    #[error(
        "`{0}` is no reader: use `user:` and the id of a user, or `role:` and the name of a role"
    )]
    Form(String),
    #[error("{0} readers: name at most {READERS_MAX}, or make a role and name that")]
    TooMany(usize),
    #[error("`{READERS_KEY}` is not a list of readers: {0}")]
    Stored(String),
}

impl FromStr for Reader {
    type Err = InvalidReader;

    fn from_str(text: &str) -> Result<Self, InvalidReader> {
        let wrong = || InvalidReader::Form(text.chars().take(READER_CHARS_MAX).collect());
        let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
        let bad = |c: char| c.is_control() || c.is_whitespace();
        if name.is_empty() || name.chars().count() > READER_CHARS_MAX || name.contains(bad) {
            return Err(wrong());
        }
        match kind {
            "user" => Ok(Self::User(name.to_owned())),
            "role" => Ok(Self::Role(name.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Reader {
    type Error = InvalidReader;

    fn try_from(text: String) -> Result<Self, InvalidReader> {
        text.parse()
    }
}

impl From<Reader> for String {
    fn from(reader: Reader) -> Self {
        reader.to_string()
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Role(name) => write!(f, "role:{name}"),
        }
    }
}

/// Those who may read a document; none named: everybody in the tenant who may read documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Reader>", into = "Vec<Reader>")]
pub struct Readers(BTreeSet<Reader>);

impl TryFrom<Vec<Reader>> for Readers {
    type Error = InvalidReader;

    fn try_from(readers: Vec<Reader>) -> Result<Self, InvalidReader> {
        let readers: BTreeSet<Reader> = readers.into_iter().collect();
        if readers.len() > READERS_MAX {
            return Err(InvalidReader::TooMany(readers.len()));
        }
        Ok(Self(readers))
    }
}

impl From<Readers> for Vec<Reader> {
    fn from(readers: Readers) -> Self {
        readers.0.into_iter().collect()
    }
}

impl Readers {
    /// Whether nobody is named, so that everybody in the tenant may read.
    pub fn is_everybody(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Reader> {
        self.0.iter()
    }

    /// Those that metadata carry, as [`Readers::put_into`] wrote them; none: everybody.
    pub fn carried_by(carried: Option<&str>) -> Result<Self, InvalidReader> {
        match carried {
            None => Ok(Self::default()),
            Some(text) => {
                serde_json::from_str(text).map_err(|error| InvalidReader::Stored(error.to_string()))
            }
        }
    }

    /// Adds the readers to the metadata of a document on its way to the indexes.
    pub fn put_into(&self, metadata: &mut BTreeMap<String, String>) {
        if !self.is_everybody() {
            let list: Vec<String> = self.0.iter().map(Reader::to_string).collect();
            metadata.insert(
                READERS_KEY.to_owned(),
                serde_json::Value::from(list).to_string(),
            );
        }
    }

    /// The tags of the document's chunks; none where everybody may read.
    pub fn tags(&self) -> Vec<String> {
        if self.is_everybody() {
            return Vec::new();
        }
        let readers = self.0.iter().map(tag_of);
        std::iter::once(RESTRICTED_TAG.to_owned())
            .chain(readers)
            .collect()
    }
}

fn tag_of(reader: &Reader) -> String {
    format!("{READER_TAG}{reader}")
}

/// As whom somebody reads documents of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Viewer {
    /// Whoever keeps the documents, and the platform itself: sees all.
    #[default]
    Everything,
    /// Sees what everybody may read, and what names one of these.
    Only(BTreeSet<Reader>),
}

impl Viewer {
    /// Whether a document with these readers is there for the viewer.
    pub fn sees(&self, readers: &Readers) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(own) => readers.is_everybody() || readers.0.iter().any(|r| own.contains(r)),
        }
    }

    /// The tags of which a restricted chunk must have one; `None` where there is no condition.
    pub fn tags(&self) -> Option<Vec<String>> {
        match self {
            Self::Everything => None,
            Self::Only(own) => Some(own.iter().map(tag_of).collect()),
        }
    }
}

/// Whether the rows of a topic are of documents, or may hold any row at all, as dead letters do. Where a tenant has
/// documents that not everybody may read, only whoever sees everything reads such a topic.
pub fn tells_of_documents(topic: &str, schema: Option<&Schema>) -> bool {
    let has_id = |fields: &Fields| fields.find("document_id").is_some();
    topic.ends_with(DEAD_LETTERS)
        || schema.is_some_and(|schema| {
            let payload = schema.field_with_name("payload").ok();
            let inner = payload.is_some_and(|payload| match payload.data_type() {
                DataType::Struct(fields) => has_id(fields),
                _ => false,
            });
            inner || has_id(schema.fields())
        })
}

/// Refuses keys that belong to the platform.
///
/// # Errors
/// The first such key, and what to do.
pub fn check_keys<'a>(keys: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
    match keys.into_iter().find(|key| key.starts_with(RESERVED)) {
        Some(key) => Err(format!(
            "the key `{key}` begins with `{RESERVED}`, which is kept for the platform: use another; who may read a document \
             is told by its `readers`"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readers(list: &[&str]) -> Readers {
        serde_json::from_value(serde_json::json!(list)).expect("readers")
    }

    #[test]
    fn a_reader_is_a_user_or_a_role() {
        for text in ["user:usr_1", "role:viewer", "role:法务", "user:a:b"] {
            let reader: Reader = text.parse().expect("a reader");
            assert_eq!(reader.to_string(), text);
        }
        for wrong in ["", "usr_1", "user:", "group:a", "user:a b", "role:a\nb"] {
            let error = wrong.parse::<Reader>().expect_err("refused");
            assert!(error.to_string().contains("use `user:`"), "{error}");
        }
        let many: Vec<String> = (0..=READERS_MAX).map(|i| format!("user:{i}")).collect();
        let error = serde_json::from_value::<Readers>(serde_json::json!(many));
        let error = error.expect_err("too many");
        assert!(error.to_string().contains("101 readers"), "{error}");
    }

    #[test]
    fn readers_travel_with_metadata_and_become_tags() {
        let mut metadata = BTreeMap::from([("lang".to_owned(), "zh".to_owned())]);
        Readers::default().put_into(&mut metadata);
        assert_eq!(metadata.len(), 1, "everybody needs no word");
        let some = readers(&["role:legal", "user:usr_1"]);
        some.put_into(&mut metadata);
        let carried = metadata.get(READERS_KEY).map(String::as_str);
        assert_eq!(Readers::carried_by(carried), Ok(some.clone()));
        assert_eq!(
            some.tags(),
            [
                "va.restricted",
                "va.reader=user:usr_1",
                "va.reader=role:legal"
            ]
        );
        assert_eq!(Readers::default().tags(), Vec::<String>::new());
        assert!(Readers::carried_by(Some("everybody")).is_err());
        assert!(check_keys(metadata.keys()).is_err());
    }

    #[test]
    fn topics_of_documents_are_known_by_their_columns() {
        for (topic, schema, tells) in [
            (
                "document.uploaded",
                Some(crate::event::document_uploaded_schema()),
                true,
            ),
            ("chunks", Some(crate::chunk::chunk_schema(None)), true),
            ("index.dead_letter", None, true),
            ("orders", None, false),
            (
                "events",
                Some(crate::event::conversation_events_schema()),
                false,
            ),
        ] {
            assert_eq!(
                tells_of_documents(topic, schema.as_deref()),
                tells,
                "{topic}"
            );
        }
        let topic = crate::graph::dead_letter_topic(
            &crate::ids::PipelineName::new("index").expect("a name"),
        );
        assert!(topic.as_str().ends_with(DEAD_LETTERS));
    }

    #[test]
    fn a_viewer_sees_what_is_everybodys_and_its_own() {
        let ann = Viewer::Only([Reader::User("ann".into()), Reader::Role("legal".into())].into());
        for (list, seen) in [
            (&[][..], true),
            (&["user:ann"], true),
            (&["role:legal", "user:bob"], true),
            (&["user:bob"], false),
            (&["role:ann"], false),
        ] {
            assert_eq!(ann.sees(&readers(list)), seen, "{list:?}");
            assert!(Viewer::Everything.sees(&readers(list)));
        }
        assert!(!Viewer::Only(BTreeSet::new()).sees(&readers(&["user:ann"])));
    }
}
