//! Rows of the `parse` operator: between Rust structs and the Arrow schema `parsed_schema`.
//!
//! One row is one document. Only `parse` writes these rows and only `chunk` reads them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, LargeStringArray, ListArray, RecordBatch, StringArray,
    StructArray, UInt8Array, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, UInt8Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use va_catalog::chunk::{column, string_items, string_lists, strings, u32s};
use va_catalog::event::{block_fields, parsed_schema};
use va_parse::{Block, BlockKind};

/// One document on its way from `parse` to `chunk`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedRow {
    /// `upsert` or `delete`.
    pub op: String,
    pub tenant_id: String,
    pub collection: String,
    pub document_id: String,
    pub version: u32,
    pub name: String,
    pub uri: String,
    pub format: Option<String>,
    pub encoding: Option<String>,
    pub title: Option<String>,
    pub pages: Option<u32>,
    /// JSON object of strings.
    pub metadata: String,
    /// Whether it gets vectors; `None` means that it does.
    pub vectors: Option<bool>,
    pub text: String,
    pub blocks: Vec<Block>,
}

/// Rows as a batch of `parsed_schema`.
pub fn to_batch(rows: &[ParsedRow]) -> Result<RecordBatch, ArrowError> {
    let text = |f: fn(&ParsedRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(f)))
    };
    let maybe = |f: fn(&ParsedRow) -> Option<&str>| -> ArrayRef {
        Arc::new(StringArray::from_iter(rows.iter().map(f)))
    };
    RecordBatch::try_new(
        parsed_schema(),
        vec![
            text(|r| &r.op),
            text(|r| &r.tenant_id),
            text(|r| &r.collection),
            text(|r| &r.document_id),
            Arc::new(UInt32Array::from_iter_values(
                rows.iter().map(|r| r.version),
            )),
            text(|r| &r.name),
            text(|r| &r.uri),
            maybe(|r| r.format.as_deref()),
            maybe(|r| r.encoding.as_deref()),
            maybe(|r| r.title.as_deref()),
            Arc::new(UInt32Array::from_iter(rows.iter().map(|r| r.pages))),
            text(|r| &r.metadata),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|r| r.vectors))),
            Arc::new(LargeStringArray::from_iter_values(
                rows.iter().map(|r| &r.text),
            )),
            block_lists(rows)?,
        ],
    )
}

fn block_lists(rows: &[ParsedRow]) -> Result<ArrayRef, ArrowError> {
    let all: Vec<&Block> = rows.iter().flat_map(|row| &row.blocks).collect();
    let blocks = || all.iter();
    let fields = block_fields();
    let structs = StructArray::try_new(
        fields.clone(),
        vec![
            Arc::new(StringArray::from_iter_values(
                blocks().map(|b| kind_word(b.kind)),
            )),
            Arc::new(UInt8Array::from_iter(blocks().map(|b| match b.kind {
                BlockKind::Heading(level) => Some(level),
                _ => None,
            }))),
            Arc::new(UInt64Array::from_iter_values(
                blocks().map(|b| b.range.start as u64),
            )),
            Arc::new(UInt64Array::from_iter_values(
                blocks().map(|b| b.range.end as u64),
            )),
            Arc::new(UInt32Array::from_iter(blocks().map(|b| b.page))),
            string_lists(blocks().map(|b| b.title_path.as_slice())),
        ],
        None,
    )?;
    let item = Arc::new(Field::new("item", DataType::Struct(fields), false));
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| row.blocks.len()));
    Ok(Arc::new(ListArray::try_new(
        item,
        offsets,
        Arc::new(structs),
        None,
    )?))
}

/// Row `row` of a batch of `parsed_schema`.
pub fn from_batch(batch: &RecordBatch, row: usize) -> Result<ParsedRow, ArrowError> {
    let text = |name: &str| strings(batch, name).map(|array| array.value(row).to_owned());
    let maybe = |name: &str| {
        strings(batch, name).map(|array| array.is_valid(row).then(|| array.value(row).to_owned()))
    };
    let pages = u32s(batch, "pages")?;
    Ok(ParsedRow {
        op: text("op")?,
        tenant_id: text("tenant_id")?,
        collection: text("collection")?,
        document_id: text("document_id")?,
        version: u32s(batch, "version")?.value(row),
        name: text("name")?,
        uri: text("uri")?,
        format: maybe("format")?,
        encoding: maybe("encoding")?,
        title: maybe("title")?,
        pages: pages.is_valid(row).then(|| pages.value(row)),
        metadata: text("metadata")?,
        vectors: yes_or_no(batch, "vectors", row)?,
        text: column(batch, "text")?
            .as_string_opt::<i64>()
            .ok_or_else(|| ArrowError::SchemaError("column `text` is not LargeUtf8".into()))?
            .value(row)
            .to_owned(),
        blocks: blocks_of(column(batch, "blocks")?, row)?,
    })
}

/// A nullable column of yes or no. Rows that were written before there was this column have no value in it.
pub(crate) fn yes_or_no(
    batch: &RecordBatch,
    name: &str,
    row: usize,
) -> Result<Option<bool>, ArrowError> {
    let Some(column) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let values = column
        .as_boolean_opt()
        .ok_or_else(|| ArrowError::SchemaError(format!("column `{name}` is not Boolean")))?;
    Ok(values.is_valid(row).then(|| values.value(row)))
}

fn blocks_of(lists: &ArrayRef, row: usize) -> Result<Vec<Block>, ArrowError> {
    let damaged =
        || ArrowError::SchemaError("column `blocks` does not have the schema of `parse`".into());
    let list = lists.as_list_opt::<i32>().ok_or_else(damaged)?.value(row);
    let structs = list.as_struct_opt().ok_or_else(damaged)?;
    let child = |name: &str| structs.column_by_name(name).ok_or_else(damaged);
    let kind = child("kind")?.as_string_opt::<i32>().ok_or_else(damaged)?;
    let level = child("level")?
        .as_primitive_opt::<UInt8Type>()
        .ok_or_else(damaged)?;
    let start = child("start")?
        .as_primitive_opt::<UInt64Type>()
        .ok_or_else(damaged)?;
    let end = child("end")?
        .as_primitive_opt::<UInt64Type>()
        .ok_or_else(damaged)?;
    let page = child("page")?
        .as_primitive_opt::<UInt32Type>()
        .ok_or_else(damaged)?;
    let title_path = child("title_path")?;
    (0..structs.len())
        .map(|i| {
            Ok(Block {
                kind: kind_of(kind.value(i), level.is_valid(i).then(|| level.value(i)))
                    .ok_or_else(damaged)?,
                range: start.value(i) as usize..end.value(i) as usize,
                page: page.is_valid(i).then(|| page.value(i)),
                title_path: string_items(title_path, i)?,
            })
        })
        .collect()
}

fn kind_word(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Heading(_) => "heading",
        BlockKind::Paragraph => "paragraph",
        BlockKind::ListItem => "list_item",
        BlockKind::Table => "table",
        BlockKind::Code => "code",
    }
}

fn kind_of(word: &str, level: Option<u8>) -> Option<BlockKind> {
    Some(match word {
        "heading" => BlockKind::Heading(level?),
        "paragraph" => BlockKind::Paragraph,
        "list_item" => BlockKind::ListItem,
        "table" => BlockKind::Table,
        "code" => BlockKind::Code,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_arrow() {
        let block = |kind, range, page, path: &[&str]| Block {
            kind,
            range,
            page,
            title_path: path.iter().map(|&p| p.to_owned()).collect(),
        };
        let rows = vec![
            ParsedRow {
                op: "upsert".into(),
                text: "标题\n正文".into(),
                title: Some("标题".into()),
                pages: Some(1),
                blocks: vec![
                    block(BlockKind::Heading(1), 0..6, Some(1), &[]),
                    block(BlockKind::Paragraph, 7..13, None, &["标题"]),
                ],
                ..ParsedRow::default()
            },
            ParsedRow {
                op: "delete".into(),
                ..ParsedRow::default()
            },
        ];
        let batch = to_batch(&rows).expect("a batch");
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(&from_batch(&batch, i).expect("a row"), row);
        }
    }
}
