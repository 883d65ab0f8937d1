//! Chunk rows: the unit that is embedded, written to both indexes, found by search and cited in answers.
//!
//! The Arrow schema and the Rust struct say the same thing; conversion between them lives here and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};

use crate::event::string_list;
use crate::ids::{ChunkId, DocumentId, Version};
use crate::readers::{Viewer, check_keys};

/// What a chunk row asks of the indexes.
///
/// A document arrives as one `document` row followed by its `chunk` rows, all before the same checkpoint barrier; a
/// removed document as one `delete` row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkOp {
    /// Replace whatever the indexes hold of this document by the chunk rows that follow.
    Document,
    /// One chunk.
    Chunk,
    /// Remove the document.
    Delete,
}

impl ChunkOp {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Chunk => "chunk",
            Self::Delete => "delete",
        }
    }

    /// `None` for an unknown word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Document, Self::Chunk, Self::Delete]
            .into_iter()
            .find(|op| op.as_str() == word)
    }
}

/// The document that a chunk belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentRef {
    pub id: DocumentId,
    pub name: String,
    /// The path or URL that was indexed.
    pub uri: String,
    pub title: Option<String>,
    pub version: Version,
}

/// One stored chunk, as search returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkRecord {
    pub id: ChunkId,
    pub document: DocumentRef,
    /// Position in the document, from 0.
    pub index: u32,
    /// How many chunks the document has.
    pub count: u32,
    pub title_path: Vec<String>,
    /// 1-based; `None` where the format has no pages.
    pub page: Option<u32>,
    /// Offsets in Unicode characters into the document's parsed text, end exclusive.
    pub start: u64,
    pub end: u64,
    pub text: String,
    /// Length in tokens of the embedding model; without vectors an estimate.
    pub tokens: u32,
    /// What filters match: `key=value`, from the document's metadata, plus `format=...`, `name=...`, `uri=...` and
    /// `document_id=...`. Where not everybody may read the document, also who may ([`crate::readers`]).
    pub tags: Vec<String>,
}

/// What is needed of a stored chunk to compare two indexes: that both hold it, for the same version, with the same
/// content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkKey {
    pub id: ChunkId,
    pub document: DocumentId,
    pub version: Version,
    /// [`ChunkRecord::digest`].
    pub digest: u64,
}

impl ChunkRecord {
    /// A hash of everything that search returns of the chunk.
    pub fn digest(&self) -> u64 {
        // A record of strings and numbers always has a JSON form; should it ever not, the two sides still agree.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let hash = blake3::hash(&json);
        let (first, _) = hash.as_bytes().split_at(8);
        first
            .iter()
            .fold(0, |digest, byte| digest << 8 | u64::from(*byte))
    }

    /// What [`ChunkKey`] says of this chunk.
    pub fn key(&self) -> ChunkKey {
        ChunkKey {
            id: self.id,
            document: self.document.id,
            version: self.document.version,
            digest: self.digest(),
        }
    }
}

/// Arrow schema of chunk rows.
///
/// With `dims`, a nullable column `vector: FixedSizeList<Float32, dims>` follows (null on rows that are not chunks).
/// On `document` and `delete` rows `id` and `text` are empty, `chunk_index`, `start`, `end` and `tokens` are 0.
pub fn chunk_schema(dims: Option<usize>) -> SchemaRef {
    let mut fields = vec![
        Field::new("op", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, false),
        Field::new("tenant_id", DataType::Utf8, false),
        Field::new("collection", DataType::Utf8, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("version", DataType::UInt32, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("uri", DataType::Utf8, false),
        Field::new("title", DataType::Utf8, true),
        Field::new("chunk_index", DataType::UInt32, false),
        Field::new("chunk_count", DataType::UInt32, false),
        Field::new("title_path", string_list(), false),
        Field::new("page", DataType::UInt32, true),
        Field::new("start", DataType::UInt64, false),
        Field::new("end", DataType::UInt64, false),
        Field::new("tokens", DataType::UInt32, false),
        Field::new("tags", string_list(), false),
        Field::new("text", DataType::Utf8, false),
    ];
    if let Some(dims) = dims {
        fields.push(vector_field(dims));
    }
    Arc::new(Schema::new(fields))
}

/// The column that `embed` adds.
pub fn vector_field(dims: usize) -> Field {
    let item = Field::new("item", DataType::Float32, true);
    Field::new(
        "vector",
        DataType::FixedSizeList(Arc::new(item), dims as i32),
        true,
    )
}

/// Chunk rows (without `op`, `tenant_id`, `collection`, `vector` mattering) as records.
///
/// Reads by column name, so a projection that keeps the columns of [`ChunkRecord`] is enough. Rows whose `op` is not
/// `chunk` are skipped when the column is there.
pub fn records(batch: &RecordBatch) -> Result<Vec<ChunkRecord>, ArrowError> {
    let id = strings(batch, "id")?;
    let document_id = strings(batch, "document_id")?;
    let version = u32s(batch, "version")?;
    let name = strings(batch, "name")?;
    let uri = strings(batch, "uri")?;
    let title = strings(batch, "title")?;
    let index = u32s(batch, "chunk_index")?;
    let count = u32s(batch, "chunk_count")?;
    let title_path = column(batch, "title_path")?;
    let page = u32s(batch, "page")?;
    let start = u64s(batch, "start")?;
    let end = u64s(batch, "end")?;
    let tokens = u32s(batch, "tokens")?;
    let tags = column(batch, "tags")?;
    let text = strings(batch, "text")?;
    let op = batch
        .column_by_name("op")
        .map(|_| strings(batch, "op"))
        .transpose()?;
    let bad = |error: crate::ids::InvalidName| ArrowError::InvalidArgumentError(error.to_string());

    let mut records = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        if op.is_some_and(|op| op.value(row) != ChunkOp::Chunk.as_str()) {
            continue;
        }
        records.push(ChunkRecord {
            id: id.value(row).parse().map_err(bad)?,
            document: DocumentRef {
                id: document_id.value(row).parse().map_err(bad)?,
                name: name.value(row).to_owned(),
                uri: uri.value(row).to_owned(),
                title: title.is_valid(row).then(|| title.value(row).to_owned()),
                version: Version(version.value(row)),
            },
            index: index.value(row),
            count: count.value(row),
            title_path: string_items(title_path, row)?,
            page: page.is_valid(row).then(|| page.value(row)),
            start: start.value(row),
            end: end.value(row),
            text: text.value(row).to_owned(),
            tokens: tokens.value(row),
            tags: string_items(tags, row)?,
        });
    }
    Ok(records)
}

/// Records as chunk rows (`op` = `chunk`) of one collection, without vectors.
pub fn batch_of(
    collection: &crate::ids::CollectionRef,
    records: &[ChunkRecord],
) -> Result<RecordBatch, ArrowError> {
    let text = |f: &dyn Fn(&ChunkRecord) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(records.iter().map(f)))
    };
    let u32s = |f: &dyn Fn(&ChunkRecord) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(records.iter().map(f)))
    };
    let u64s = |f: &dyn Fn(&ChunkRecord) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(records.iter().map(f)))
    };
    RecordBatch::try_new(
        chunk_schema(None),
        vec![
            text(&|_| ChunkOp::Chunk.as_str().to_owned()),
            text(&|r| r.id.to_string()),
            text(&|_| collection.tenant.to_string()),
            text(&|_| collection.collection.to_string()),
            text(&|r| r.document.id.to_string()),
            u32s(&|r| r.document.version.0),
            text(&|r| r.document.name.clone()),
            text(&|r| r.document.uri.clone()),
            Arc::new(StringArray::from_iter(
                records.iter().map(|r| r.document.title.as_deref()),
            )),
            u32s(&|r| r.index),
            u32s(&|r| r.count),
            string_lists(records.iter().map(|r| r.title_path.as_slice())),
            Arc::new(UInt32Array::from_iter(records.iter().map(|r| r.page))),
            u64s(&|r| r.start),
            u64s(&|r| r.end),
            u32s(&|r| r.tokens),
            string_lists(records.iter().map(|r| r.tags.as_slice())),
            text(&|r| r.text.clone()),
        ],
    )
}

/// A `List<Utf8>` array with non-null items, one list a row.
pub fn string_lists<'a>(rows: impl Iterator<Item = &'a [String]>) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new()).with_field(Field::new(
        "item",
        DataType::Utf8,
        false,
    ));
    for row in rows {
        for item in row {
            builder.values().append_value(item);
        }
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// The column of that name.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("column `{name}` is missing")))
}

/// The column of that name as `Utf8`.
pub fn strings<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, ArrowError> {
    let array = column(batch, name)?;
    array
        .as_string_opt::<i32>()
        .ok_or_else(|| wrong_type(name, "Utf8", array))
}

/// The column of that name as `UInt32`.
pub fn u32s<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a UInt32Array, ArrowError> {
    let array = column(batch, name)?;
    array
        .as_primitive_opt::<UInt32Type>()
        .ok_or_else(|| wrong_type(name, "UInt32", array))
}

/// The column of that name as `UInt64`.
pub fn u64s<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a UInt64Array, ArrowError> {
    let array = column(batch, name)?;
    array
        .as_primitive_opt::<UInt64Type>()
        .ok_or_else(|| wrong_type(name, "UInt64", array))
}

/// The strings of one row of a `List<Utf8>` column.
pub fn string_items(lists: &ArrayRef, row: usize) -> Result<Vec<String>, ArrowError> {
    let lists = lists
        .as_list_opt::<i32>()
        .ok_or_else(|| wrong_type("list", "List<Utf8>", lists))?;
    let items = lists.value(row);
    let items = items
        .as_string_opt::<i32>()
        .ok_or_else(|| wrong_type("list item", "Utf8", &items))?;
    Ok(items.iter().flatten().map(str::to_owned).collect())
}

fn wrong_type(name: &str, wanted: &str, array: &ArrayRef) -> ArrowError {
    ArrowError::SchemaError(format!(
        "column `{name}` is {}, not {wanted}",
        array.data_type()
    ))
}

/// A condition on chunk tags: every key must have one of its values. Empty means everything.
///
/// Who looks is part of it, and comes from the code that knows the caller, never out of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filter {
    keys: BTreeMap<String, OneOrMany>,
    #[serde(skip)]
    viewer: Viewer,
}

impl From<BTreeMap<String, OneOrMany>> for Filter {
    /// A filter without a viewer: for code that looks on nobody's behalf.
    fn from(keys: BTreeMap<String, OneOrMany>) -> Self {
        Self {
            keys,
            viewer: Viewer::Everything,
        }
    }
}

/// A value or a list of values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Filter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.viewer == Viewer::Everything
    }

    /// The same filter, of which the viewer sees only what it may.
    #[must_use]
    pub fn seen_by(mut self, viewer: Viewer) -> Self {
        self.viewer = viewer;
        self
    }

    /// The tags of which a chunk that is not for everybody must have one; `None` when who looks does not matter.
    pub fn reader_tags(&self) -> Option<Vec<String>> {
        self.viewer.tags()
    }

    /// Refuses keys that are not for those who filter.
    ///
    /// # Errors
    /// The first such key.
    pub fn check(&self) -> Result<(), String> {
        check_keys(self.keys.keys())
    }

    /// The alternatives of each key as `key=value` tags: a chunk matches when it has at least one tag of every group.
    pub fn groups(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        self.keys.iter().map(|(key, values)| match values {
            OneOrMany::One(value) => vec![format!("{key}={value}")],
            OneOrMany::Many(values) => values
                .iter()
                .map(|value| format!("{key}={value}"))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CollectionName, CollectionRef, TenantId};

    #[test]
    fn records_survive_arrow() {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("帮助").expect("a valid name"),
        };
        let document = DocumentId::of(&collection, "file:///冻结.html");
        let record = |index: u32, page, title: Option<&str>| ChunkRecord {
            id: ChunkId::of(&collection, document, Version(3), index),
            document: DocumentRef {
                id: document,
                name: "冻结.html".into(),
                uri: "file:///冻结.html".into(),
                title: title.map(str::to_owned),
                version: Version(3),
            },
            index,
            count: 2,
            title_path: vec!["表格".into(), "冻结行或列".into()],
            page,
            start: 10,
            end: 14,
            text: "冻结行列".into(),
            tokens: 4,
            tags: vec!["lang=zh".into()],
        };
        let written = vec![record(0, None, None), record(1, Some(7), Some("标题"))];
        let batch = batch_of(&collection, &written).expect("a batch");
        assert_eq!(records(&batch).expect("records"), written);
        let without_tags = batch.project(&[1, 4]).expect("a projection");
        assert_eq!(
            records(&without_tags)
                .expect_err("columns are missing")
                .to_string(),
            "Schema error: column `version` is missing"
        );
    }

    #[test]
    fn filter_reads_one_or_many() {
        let filter: Filter =
            serde_json::from_str(r#"{"lang":"zh","format":["html","pdf"]}"#).expect("a filter");
        let groups: Vec<_> = filter.groups().collect();
        assert_eq!(
            groups,
            vec![
                vec!["format=html".to_owned(), "format=pdf".into()],
                vec!["lang=zh".into()]
            ]
        );
    }

    #[test]
    fn who_looks_is_no_part_of_the_json() {
        let viewer = Viewer::Only(Default::default());
        let filter = Filter::default().seen_by(viewer);
        assert!(!filter.is_empty());
        assert_eq!(filter.reader_tags(), Some(Vec::new()));
        assert_eq!(serde_json::to_string(&filter).expect("JSON"), "{}");
        let sent: Filter = serde_json::from_str(r#"{"viewer":"x"}"#).expect("a filter");
        assert_eq!(sent.reader_tags(), None);
        assert!(sent.check().is_ok());
        let forged: Filter = serde_json::from_str(r#"{"va.reader":"user:ann"}"#).expect("a filter");
        let error = forged.check().expect_err("a reserved key");
        assert!(error.contains("`va.reader`"), "{error}");
    }
}
