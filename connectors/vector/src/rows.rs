//! Checks rows before they are stored: a wrong row must never reach a table, where every search would meet it.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Float32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use va_catalog::chunk::strings;
use va_catalog::{ChunkId, ChunkOp, CollectionRef, DocumentId, chunk_schema};

use crate::VectorError;

/// Columns of a chunk row that a table does not store, because they are the same on each of its rows.
const CONSTANT: [&str; 3] = ["op", "tenant_id", "collection"];

/// The columns that a table with vectors of this length stores: `chunk_schema` without `op`, `tenant_id` and
/// `collection`, `vector` last.
pub fn stored_schema(dims: usize) -> SchemaRef {
    let fields: Vec<_> = chunk_schema(Some(dims))
        .fields()
        .iter()
        .filter(|field| !CONSTANT.contains(&field.name().as_str()))
        .cloned()
        .collect();
    Arc::new(Schema::new(fields))
}

/// The length of the vectors in a column of this type, if it is one of vectors.
pub(crate) fn dims_of(column: &DataType) -> Option<usize> {
    match column {
        DataType::FixedSizeList(_, dims) => usize::try_from(*dims).ok(),
        _ => None,
    }
}

/// Rows ready to be stored.
pub(crate) struct Prepared {
    pub dims: usize,
    /// Of [`stored_schema`], at least one row.
    pub batch: RecordBatch,
    /// The documents that have a row.
    pub documents: HashSet<DocumentId>,
}

/// The `chunk` rows of `rows`, checked; `None` if there are none.
pub(crate) fn prepare(
    collection: &CollectionRef,
    documents: &[DocumentId],
    rows: &RecordBatch,
) -> Result<Option<Prepared>, VectorError> {
    let op = strings(rows, "op").map_err(VectorError::rows)?;
    let chunk = ChunkOp::Chunk.as_str();
    let keep = BooleanArray::from_iter((0..op.len()).map(|row| Some(op.value(row) == chunk)));
    if keep.true_count() == 0 {
        return Ok(None);
    }
    let rows = filter_record_batch(rows, &keep).map_err(VectorError::rows)?;

    for (name, expected) in [
        ("tenant_id", collection.tenant.as_str()),
        ("collection", collection.collection.as_str()),
    ] {
        let column = strings(&rows, name).map_err(VectorError::rows)?;
        if let Some(other) = column.iter().find(|value| *value != Some(expected)) {
            return Err(VectorError::Invalid(format!(
                "a chunk row has {name} `{}`, but is written to `{collection}`",
                other.unwrap_or_default()
            )));
        }
    }

    let schema = rows.schema();
    let dims = (schema.field_with_name("vector").ok())
        .and_then(|field| dims_of(field.data_type()))
        .filter(|dims| *dims > 0)
        .ok_or_else(|| {
            VectorError::Invalid(
                "chunk rows carry no `vector` column; put `embed` before the vector index"
                    .to_owned(),
            )
        })?;
    let schema = stored_schema(dims);
    let columns = schema
        .fields()
        .iter()
        .map(|field| va_catalog::chunk::column(&rows, field.name()).cloned())
        .collect::<Result<Vec<_>, ArrowError>>()
        .map_err(VectorError::rows)?;
    let batch = RecordBatch::try_new(schema, columns).map_err(VectorError::rows)?;
    let documents = check_ids(documents, &batch)?;
    check_vectors(&batch)?;
    Ok(Some(Prepared {
        dims,
        batch,
        documents,
    }))
}

/// Every row has its own id and belongs to one of `allowed`.
fn check_ids(
    allowed: &[DocumentId],
    batch: &RecordBatch,
) -> Result<HashSet<DocumentId>, VectorError> {
    let allowed: HashSet<DocumentId> = allowed.iter().copied().collect();
    let ids = strings(batch, "id").map_err(VectorError::rows)?;
    let document_ids = strings(batch, "document_id").map_err(VectorError::rows)?;
    let mut seen = HashSet::with_capacity(batch.num_rows());
    let mut documents = HashSet::new();
    for row in 0..batch.num_rows() {
        let invalid = |error: va_catalog::InvalidName| VectorError::Invalid(error.to_string());
        let id: ChunkId = ids.value(row).parse().map_err(invalid)?;
        let document: DocumentId = document_ids.value(row).parse().map_err(invalid)?;
        if !allowed.contains(&document) {
            return Err(VectorError::Invalid(format!(
                "chunk `{id}` is of document `{document}`, which is not among the documents being replaced"
            )));
        }
        if !seen.insert(id) {
            return Err(VectorError::Invalid(format!("chunk `{id}` is there twice")));
        }
        documents.insert(document);
    }
    Ok(documents)
}

/// Every row has a vector with a direction.
fn check_vectors(batch: &RecordBatch) -> Result<(), VectorError> {
    let ids = strings(batch, "id").map_err(VectorError::rows)?;
    let vectors: Option<&FixedSizeListArray> = batch
        .column_by_name("vector")
        .and_then(|column| column.as_fixed_size_list_opt());
    for row in 0..batch.num_rows() {
        let vector = vectors
            .filter(|vectors| vectors.is_valid(row))
            .map(|vectors| vectors.value(row));
        let problem = match vector
            .as_ref()
            .and_then(|v| v.as_primitive_opt::<Float32Type>())
        {
            Some(vector) => vector_problem(vector),
            None => Some("is missing"),
        };
        if let Some(problem) = problem {
            return Err(VectorError::Invalid(format!(
                "the vector of chunk `{}` {problem}",
                ids.value(row)
            )));
        }
    }
    Ok(())
}

fn vector_problem(vector: &Float32Array) -> Option<&'static str> {
    if vector.null_count() > 0 {
        return Some("has empty values");
    }
    slice_problem(vector.values())
}

/// Why distances to this vector mean nothing, if so.
pub(crate) fn slice_problem(vector: &[f32]) -> Option<&'static str> {
    if vector.iter().any(|value| !value.is_finite()) {
        Some("has values that are not finite")
    } else if vector.iter().all(|value| *value == 0.0) {
        Some("is zero, so it has no direction")
    } else {
        None
    }
}
