//! Replacing documents in one commit.
//!
//! New documents are appended. When a document has rows already, one Lance transaction of the kind `Update` (the one
//! that Lance's own update and merge-insert use) marks the old rows as deleted and adds the new file: the manifest that
//! makes the new rows visible is the manifest that hides the old ones, so no reader can see both or neither. Unlike
//! merge-insert this does not join the table with the rows; it only looks for the old rows by document id.
//!
//! Compaction commits between two writes, never inside one (the writer lock), so conflicts come only from index builds
//! or another process. They are retried with the rows already written.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::{
    CommitBuilder, DeleteBuilder, InsertBuilder, UncommittedDelete, WriteMode, WriteParams,
};
use lance::table::format::Fragment;
use va_catalog::{CollectionRef, DocumentId};

use crate::VectorError;
use crate::embedded::LanceStore;
use crate::rows::{Prepared, prepare};
use crate::table::{OpenTable, Writer};
use crate::{sync, upkeep};

const ATTEMPTS: usize = 8;

pub(crate) async fn apply(
    store: &LanceStore,
    collection: &CollectionRef,
    documents: &[DocumentId],
    rows: &RecordBatch,
) -> Result<(), VectorError> {
    let prepared = prepare(collection, documents, rows)?;
    // Dropping a collection takes it away from those who wait to write; they make it again.
    for _ in 0..ATTEMPTS {
        let table = match &prepared {
            Some(prepared) => store.table_or_create(collection, prepared.dims).await?,
            None => match store.table(collection).await? {
                Some(table) => table,
                None => return Ok(()),
            },
        };
        let fragments = {
            let mut writer = table.writer.lock().await;
            if writer.dropped {
                continue;
            }
            write(store, &table, &mut writer, documents, prepared.as_ref()).await?
        };
        return upkeep::after_commit(store.options(), &table, fragments).await;
    }
    Err(VectorError::Busy {
        collection: collection.clone(),
        action: "writing",
        attempts: ATTEMPTS,
    })
}

/// Commits and returns how many fragments the table then has.
async fn write(
    store: &LanceStore,
    table: &OpenTable,
    writer: &mut Writer,
    documents: &[DocumentId],
    prepared: Option<&Prepared>,
) -> Result<usize, VectorError> {
    let started = Instant::now();
    if let Some(prepared) = prepared {
        table.check_dims(&*table.snapshot().await?, prepared.dims)?;
    }
    // Taken out until the commit has succeeded: after an error, or when the caller gives up in the middle, nobody knows
    // what is stored.
    let mut present = match writer.present.take() {
        Some(present) => present,
        None => {
            table.refresh().await?;
            table.document_ids(&*table.snapshot().await?).await?
        }
    };
    let mut replaced: Vec<DocumentId> = Vec::new();
    let mut seen = HashSet::new();
    for document in documents {
        if present.contains(document) && seen.insert(document) {
            replaced.push(*document);
        }
    }

    let fragments = if replaced.is_empty() && prepared.is_none() {
        table.snapshot().await?.count_fragments()
    } else {
        let batch = prepared.map(|prepared| &prepared.batch);
        let dataset = commit(store, table, &replaced, batch).await?;
        let fragments = dataset.count_fragments();
        table.publish(dataset)?;
        fragments
    };

    for document in &replaced {
        present.remove(document);
    }
    if let Some(prepared) = prepared {
        present.extend(prepared.documents.iter().copied());
        metrics::counter!("va_vector_applied_rows_total")
            .increment(prepared.batch.num_rows() as u64);
    }
    writer.present = Some(present);
    metrics::histogram!("va_vector_apply_seconds").record(started.elapsed().as_secs_f64());
    Ok(fragments)
}

async fn commit(
    store: &LanceStore,
    table: &OpenTable,
    replaced: &[DocumentId],
    batch: Option<&RecordBatch>,
) -> Result<Dataset, VectorError> {
    let mut added: Option<Vec<Fragment>> = None;
    for attempt in 0..ATTEMPTS {
        let dataset = table.snapshot().await?;
        let new_fragments = match (added.take(), batch) {
            (Some(fragments), _) => fragments,
            (None, Some(batch)) => {
                let fragments = insert(table, &dataset, batch).await?;
                if store.options().sync {
                    sync::fragments(&table.path, &fragments)
                        .await
                        .map_err(|error| table.error("writing", error))?;
                }
                fragments
            }
            (None, None) => Vec::new(),
        };
        added = Some(new_fragments.clone());

        let deleted = if replaced.is_empty() {
            None
        } else {
            let builder = DeleteBuilder::new(dataset.clone(), of_documents(replaced));
            Some(
                builder
                    .execute_uncommitted()
                    .await
                    .map_err(|error| table.error("writing", error))?,
            )
        };
        let mut builder = CommitBuilder::new(dataset.clone()).with_skip_auto_cleanup(true);
        let operation = match deleted {
            None => Operation::Append {
                fragments: new_fragments,
            },
            Some(deleted) => {
                let UncommittedDelete {
                    transaction,
                    affected_rows,
                    ..
                } = deleted;
                if let Some(rows) = affected_rows {
                    builder = builder.with_affected_rows(rows);
                }
                let operation = replacement(&dataset, transaction.operation, new_fragments)
                    .ok_or_else(|| {
                        table.error("writing", "a delete did not make a delete operation")
                    })?;
                if store.options().sync
                    && let Operation::Update {
                        updated_fragments, ..
                    } = &operation
                {
                    let updated: Vec<Fragment> = updated_fragments
                        .iter()
                        .map(|fragment| Fragment {
                            // Its data is on the disk since it was added; only the deletion file is new.
                            files: Vec::new(),
                            ..fragment.clone()
                        })
                        .collect();
                    sync::fragments(&table.path, &updated)
                        .await
                        .map_err(|error| table.error("writing", error))?;
                }
                operation
            }
        };

        let transaction = Transaction::new(dataset.version().version, operation, None);
        match builder.execute(transaction).await {
            Ok(dataset) => {
                if store.options().sync
                    && let Some(name) = dataset.manifest_location().path.filename()
                {
                    sync::manifest(&table.path, name)
                        .await
                        .map_err(|error| table.error("writing", error))?;
                }
                return Ok(dataset);
            }
            Err(error) if is_conflict(&error) => {
                metrics::counter!("va_vector_conflicts_total").increment(1);
                tracing::debug!(collection = %table.collection, attempt, %error, "commit conflict");
                tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
                table.refresh().await?;
            }
            Err(error) => return Err(table.error("writing", error)),
        }
    }
    Err(VectorError::Busy {
        collection: table.collection.clone(),
        action: "writing",
        attempts: ATTEMPTS,
    })
}

/// Writes a data file that no version names yet.
async fn insert(
    table: &OpenTable,
    dataset: &Arc<Dataset>,
    batch: &RecordBatch,
) -> Result<Vec<Fragment>, VectorError> {
    let params = WriteParams {
        mode: WriteMode::Append,
        ..WriteParams::default()
    };
    let transaction = InsertBuilder::new(dataset.clone())
        .with_params(&params)
        .execute_uncommitted(vec![batch.clone()])
        .await
        .map_err(|error| table.error("writing", error))?;
    match transaction.operation {
        Operation::Append { fragments } => Ok(fragments),
        other => Err(table.error("writing", format!("an append made the operation `{other}`"))),
    }
}

/// The delete `operation`, which also adds `new_fragments`; `None` if it is not a delete.
fn replacement(
    dataset: &Dataset,
    operation: Operation,
    new_fragments: Vec<Fragment>,
) -> Option<Operation> {
    let Operation::Delete {
        updated_fragments,
        deleted_fragment_ids,
        ..
    } = operation
    else {
        return None;
    };
    Some(Operation::Update {
        removed_fragment_ids: deleted_fragment_ids,
        updated_fragments,
        new_fragments,
        // No column changes its type or its file.
        fields_modified: Vec::new(),
        compacted_sstables: Vec::new(),
        // Whole rows are new, so no index may claim to cover the new fragments.
        fields_for_preserving_frag_bitmap: dataset
            .schema()
            .fields_pre_order()
            .filter_map(|field| u32::try_from(field.id).ok())
            .collect(),
        update_mode: Some(UpdateMode::RewriteRows),
        inserted_rows_filter: None,
        updated_fragment_offsets: None,
    })
}

fn of_documents(documents: &[DocumentId]) -> String {
    let ids: Vec<String> = documents.iter().map(|id| format!("'{id}'")).collect();
    format!("document_id IN ({})", ids.join(", "))
}

/// Whether somebody else's commit came first, so that ours was not made.
pub(crate) fn is_conflict(error: &lance::Error) -> bool {
    matches!(
        error,
        lance::Error::RetryableCommitConflict { .. }
            | lance::Error::CommitConflict { .. }
            | lance::Error::TooMuchWriteContention { .. }
    )
}
