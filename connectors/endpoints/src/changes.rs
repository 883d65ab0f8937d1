//! Chunk rows on their way into an index: gathered per collection and document until the checkpoint.
//!
//! Both index sinks use it, so that both apply exactly the same changes.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use va_catalog::chunk::strings;
use va_catalog::{ChunkOp, CollectionName, CollectionRef, DocumentId, TenantId};
use va_connectors::flow::FlowError;

/// What one collection's index must become: `documents` hold exactly the `chunk` rows of `rows`. Before them is the
/// `document` or `delete` row of each, which tells the version.
pub struct Change {
    pub collection: CollectionRef,
    pub documents: Vec<DocumentId>,
    pub rows: RecordBatch,
}

/// Documents since the last checkpoint; of a document that came twice only the last state is kept.
#[derive(Default)]
pub struct Changes {
    documents: BTreeMap<(CollectionRef, DocumentId), Vec<RecordBatch>>,
    vectors_only: bool,
}

impl Changes {
    /// Changes of an index of vectors: chunks of a collection without vectors are left out, so that their documents
    /// have nothing there.
    pub fn of_vectors() -> Self {
        Self {
            vectors_only: true,
            ..Self::default()
        }
    }

    /// Takes chunk rows, in order.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<(), FlowError> {
        let vectors = booleans(batch, "vectors")?;
        let left_out = |row: usize| {
            self.vectors_only && vectors.is_some_and(|v| v.is_valid(row) && !v.value(row))
        };
        let op = strings(batch, "op")?;
        let tenant = strings(batch, "tenant_id")?;
        let collection = strings(batch, "collection")?;
        let document = strings(batch, "document_id")?;
        let bad = |error: va_catalog::InvalidName| FlowError::fatal("index sink", error);
        let mut row = 0;
        while row < batch.num_rows() {
            let key = (
                CollectionRef {
                    tenant: TenantId::new(tenant.value(row)).map_err(bad)?,
                    collection: CollectionName::new(collection.value(row)).map_err(bad)?,
                },
                document.value(row).parse::<DocumentId>().map_err(bad)?,
            );
            match ChunkOp::parse(op.value(row)) {
                Some(ChunkOp::Document | ChunkOp::Delete) => {
                    self.documents.insert(key, vec![batch.slice(row, 1)]);
                    row += 1;
                }
                Some(ChunkOp::Chunk) => {
                    let same = |at: &usize| {
                        op.value(*at) == ChunkOp::Chunk.as_str()
                            && document.value(*at) == document.value(row)
                            && collection.value(*at) == collection.value(row)
                            && tenant.value(*at) == tenant.value(row)
                    };
                    let end = (row..batch.num_rows()).take_while(same).count() + row;
                    let chunks = self.documents.entry(key).or_default();
                    if !left_out(row) {
                        chunks.push(batch.slice(row, end - row));
                    }
                    row = end;
                }
                None => {
                    return Err(FlowError::fatal(
                        "index sink",
                        format!(
                            "`op` is `{}`; it must be document, chunk or delete",
                            op.value(row)
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Everything gathered, one change a collection.
    pub fn take(&mut self) -> Result<Vec<Change>, FlowError> {
        let mut by_collection: BTreeMap<CollectionRef, (Vec<DocumentId>, Vec<RecordBatch>)> =
            BTreeMap::new();
        for ((collection, document), batches) in std::mem::take(&mut self.documents) {
            let (documents, rows) = by_collection.entry(collection).or_default();
            documents.push(document);
            rows.extend(batches);
        }
        by_collection
            .into_iter()
            .map(|(collection, (documents, batches))| {
                let rows = match batches.first() {
                    Some(first) => stored_columns(&concat_batches(&first.schema(), &batches)?)?,
                    None => RecordBatch::new_empty(va_catalog::chunk_schema(None)),
                };
                Ok(Change {
                    collection,
                    documents,
                    rows,
                })
            })
            .collect()
    }
}

/// The columns that the indexes keep; what operators needed besides ends here.
fn stored_columns(rows: &RecordBatch) -> Result<RecordBatch, FlowError> {
    let schema = rows.schema();
    let mut kept = Vec::new();
    for field in va_catalog::chunk_schema(None).fields() {
        kept.push(schema.index_of(field.name())?);
    }
    kept.extend(schema.index_of("vector").ok());
    Ok(rows.project(&kept)?)
}

/// A column of yes or no; `None` when the rows do not have it.
fn booleans<'a>(batch: &'a RecordBatch, name: &str) -> Result<Option<&'a BooleanArray>, FlowError> {
    let Some(column) = batch.column_by_name(name) else {
        return Ok(None);
    };
    match column.as_boolean_opt() {
        Some(values) => Ok(Some(values)),
        None => Err(FlowError::fatal(
            "index sink",
            format!("column `{name}` is {}, not Boolean", column.data_type()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use va_catalog::chunk::{batch_of, records};
    use va_catalog::{ChunkId, ChunkRecord, DocumentRef, Version};

    fn chunk(collection: &CollectionRef, uri: &str, version: u32) -> ChunkRecord {
        let id = DocumentId::of(collection, uri);
        ChunkRecord {
            id: ChunkId::of(collection, id, Version(version), 0),
            document: DocumentRef {
                id,
                name: uri.into(),
                uri: uri.into(),
                title: None,
                version: Version(version),
            },
            index: 0,
            count: 1,
            title_path: vec![],
            page: None,
            start: 0,
            end: 1,
            text: "x".into(),
            tokens: 1,
            tags: vec![],
        }
    }

    fn with_op(batch: &RecordBatch, ops: &[&str]) -> RecordBatch {
        let mut columns = batch.columns().to_vec();
        columns[0] = std::sync::Arc::new(arrow::array::StringArray::from(ops.to_vec()));
        RecordBatch::try_new(batch.schema(), columns).expect("the same schema")
    }

    #[test]
    fn the_last_state_of_a_document_wins() {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        };
        let rows: Vec<_> = [("a", 1), ("a", 1), ("b", 1), ("b", 1), ("a", 2), ("a", 2)]
            .map(|(u, v)| chunk(&collection, u, v))
            .into();
        let batch = with_op(
            &batch_of(&collection, &rows).expect("a batch"),
            &[
                "document", "chunk", "document", "chunk", "document", "chunk",
            ],
        );
        let mut changes = Changes::default();
        changes.push(&batch).expect("good rows");
        let taken = changes.take().expect("changes");
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].documents.len(), 2);
        let mut versions: Vec<_> = records(&taken[0].rows)
            .expect("records")
            .iter()
            .map(|r| (r.document.uri.clone(), r.document.version.0))
            .collect();
        versions.sort();
        assert_eq!(versions, [("a".to_owned(), 2), ("b".to_owned(), 1)]);

        changes
            .push(&with_op(
                &batch.slice(0, 3),
                &["document", "chunk", "delete"],
            ))
            .expect("good rows");
        changes
            .push(&with_op(&batch.slice(4, 1), &["delete"]))
            .expect("good rows");
        let taken = changes.take().expect("changes");
        let chunks = records(&taken[0].rows).expect("records");
        assert_eq!((taken[0].documents.len(), chunks.len()), (2, 0));
        assert_eq!(taken[0].rows.num_rows(), 2, "both are still told");
        assert!(changes.take().expect("nothing").is_empty());
    }
}
