//! The shared index of a collection: a list of immutable splits that many processes publish to, as one row of states.
//!
//! A split is an object with chunks of some documents, full text and vectors both. Every change of a collection's list is
//! one transaction that makes the next state, numbered by `seq`. States never change, so a reader takes a number `n` and
//! sees, whatever is published meanwhile:
//!
//! ```text
//!  the split S is part of n            S.created_seq <= n, and not S.removed_seq <= n
//!  document d of S is visible in n     S is part of n, and there is no entry (S, d) in split_dead with seq <= n
//! ```
//!
//! **Who wins.** What is published of a document carries its version, and a removal counts as newer than a write of the
//! same version, which it followed. Of two writes the newer version wins whichever is published first, and of equal ones
//! the later publish. So nobody has to be kept from publishing:
//!
//! - A replay after a crash publishes the same versions again: its split takes the documents over from the first one.
//! - A process that lost its partition and does not know it publishes versions that its successor has published too, or
//!   older ones. The same versions are the same chunks, whoever made them. Older ones, and writes of what was removed, are
//!   dead on arrival, because the document keeps its newest version here, also when it has no chunks any more. No fencing
//!   is needed, and no old version ever comes back.
//!
//! This rests on versions that grow with each upload of a document and never repeat, which [`Catalog::begin_versions`]
//! gives. They begin anew with a collection that is dropped and made again; what is late from its former life is known by
//! a version that the document has not been given yet.
//!
//! A **merge** replaces splits by one with the chunks of theirs that were visible in the state that it read. What died
//! since is dead in the new one too; if one of its inputs is gone, nothing happens.
//!
//! Removed splits stay here, and with them their objects, until [`Catalog::forget_splits`]: readers of earlier states may
//! still need them. The objects themselves, and what readers make of them, are others' business.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::documents::{IDS_PER_QUERY, parameters, read_id, read_number, value_rows};
use super::error::CatalogError;
use super::query::{Row, Transaction, Why, query};
use super::versions::ROWS_PER_INSERT;
use crate::ids::{CollectionName, CollectionRef, ContentHash, DocumentId, TenantId, Version};

/// A split within its collection: the number of the state that it came with.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SplitSeq(pub i64);

/// A stored split, before it is part of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSplit {
    pub object: ContentHash,
    /// Chunks in it.
    pub rows: u64,
    /// Size of the object.
    pub bytes: u64,
    /// Length of its vectors; `None` when it has none.
    pub dims: Option<u32>,
}

/// A split of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitInfo {
    pub seq: SplitSeq,
    pub split: NewSplit,
}

/// What became of a document in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitDocument {
    pub id: DocumentId,
    pub version: Version,
    /// It was removed; otherwise it was written, possibly without chunks.
    pub removed: bool,
    /// The split that is published has chunks of it.
    pub has_rows: bool,
}

/// What a publish did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// The newest state, which has it.
    pub seq: i64,
    /// Documents whose newest version is the published one.
    pub moved: u64,
    /// Documents of which a newer version was published before.
    pub outrun: u64,
}

/// A state of a collection, in relation to an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SplitState {
    pub seq: i64,
    /// All splits that are part of it.
    pub splits: Vec<SplitInfo>,
    /// What died in them since the earlier state.
    pub dead: Vec<(SplitSeq, DocumentId)>,
}

/// What the catalog knows of a document that is published.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// The newest published version, whether that was a removal, and the split with its chunks.
    published: Option<(Version, bool, Option<SplitSeq>)>,
    /// The newest version that was begun; `None` for a document that did not come as an upload.
    begun: Option<Version>,
}

/// What publishing a document does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is the newest; its chunks in this split die.
    Newest { dies: Option<SplitSeq> },
    /// A newer one is there, or it belongs to a collection of this name that was dropped.
    Outrun,
}

/// The rule of the module's head.
fn decide(new: &SplitDocument, held: Held) -> Outcome {
    let of_this_life = |version: Version| held.begun.is_none_or(|begun| version <= begun);
    if !of_this_life(new.version) {
        return Outcome::Outrun;
    }
    match held.published {
        Some((version, removed, _))
            if of_this_life(version) && (version, removed) > (new.version, new.removed) =>
        {
            Outcome::Outrun
        }
        Some((_, _, split)) => Outcome::Newest { dies: split },
        None => Outcome::Newest { dies: None },
    }
}

impl Catalog {
    /// Makes `split` part of the collection (`None`: the checkpoint left no chunks) and the `documents` what the checkpoint
    /// made of them, in one transaction. A split that was published before is not published again.
    ///
    /// A collection that is not in the catalog, or is being removed, takes nothing in: `None`. Vectors of another length than
    /// those that are there are refused ([`CatalogError::Invalid`]): a search compares all with one query.
    pub async fn publish_split(
        &self,
        collection: &CollectionRef,
        split: Option<&NewSplit>,
        documents: &[SplitDocument],
    ) -> Result<Option<Published>, CatalogError> {
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let known = bound(
            "SELECT 1 FROM collections WHERE tenant_id = $1 AND name = $2 AND state = 'READY'",
            collection,
        )
        .fetch_optional(&mut transaction)
        .await?;
        if known.is_none() {
            return Ok(None);
        }
        let last = seq_of(&mut transaction, collection).await?;
        if let Some(split) = split
            && bound(
                "SELECT 1 FROM splits WHERE tenant_id = $1 AND collection = $2 AND object_hash = $3",
                collection,
            )
            .bind(split.object.as_str())
            .fetch_optional(&mut transaction)
            .await?
            .is_some()
        {
            return Ok(Some(Published {
                seq: last,
                ..Published::default()
            }));
        }
        if let Some(got) = split.and_then(|split| split.dims) {
            check_dims(&mut transaction, collection, got).await?;
        }
        let seq = last + 1;
        let held = held_of(&mut transaction, collection, documents).await?;
        let mut moved = Vec::with_capacity(documents.len());
        let mut dead = Vec::new();
        for document in documents {
            match decide(
                document,
                held.get(&document.id).copied().unwrap_or_default(),
            ) {
                Outcome::Newest { dies } => {
                    moved.push(document);
                    dead.extend(dies.map(|split| (split, document.id)));
                }
                Outcome::Outrun if document.has_rows => dead.push((SplitSeq(seq), document.id)),
                Outcome::Outrun => {}
            }
        }
        let published = Published {
            seq,
            moved: moved.len() as u64,
            outrun: (documents.len() - moved.len()) as u64,
        };
        // With none of its documents visible, nobody ever needs the split.
        let split = split.filter(|_| moved.iter().any(|document| document.has_rows));
        match split {
            Some(split) => {
                insert_split(&mut transaction, collection, seq, split, self.now_ms()).await?
            }
            None => dead.retain(|(split, _)| *split != SplitSeq(seq)),
        }
        insert_dead(&mut transaction, collection, &dead, seq).await?;
        upsert_documents(&mut transaction, collection, &moved, seq).await?;
        set_seq(&mut transaction, collection, seq).await?;
        transaction.commit().await?;
        Ok(Some(published))
    }

    /// The number of the collection's newest state; 0 when nothing was ever published to it.
    pub async fn split_seq(&self, collection: &CollectionRef) -> Result<i64, CatalogError> {
        let row = bound(
            "SELECT seq FROM split_states WHERE tenant_id = $1 AND collection = $2",
            collection,
        )
        .fetch_optional(self.read_of(&collection.tenant))
        .await?;
        row.map_or(Ok(0), |row| row.try_get("seq"))
    }

    /// The splits of the newest state.
    pub async fn splits(&self, collection: &CollectionRef) -> Result<Vec<SplitInfo>, CatalogError> {
        let rows = bound(
            "SELECT created_seq, object_hash, chunk_rows, bytes, dims FROM splits \
             WHERE tenant_id = $1 AND collection = $2 AND removed_seq IS NULL ORDER BY created_seq",
            collection,
        )
        .fetch_all(self.read_of(&collection.tenant))
        .await?;
        rows.iter().map(read_split).collect()
    }

    /// The newest state, with what died since state `since` (0: ever).
    pub async fn split_state(
        &self,
        collection: &CollectionRef,
        since: i64,
    ) -> Result<SplitState, CatalogError> {
        // A state never changes, so the three answers fit together although others publish in between.
        let seq = self.split_seq(collection).await?;
        let rows = bound(
            "SELECT created_seq, object_hash, chunk_rows, bytes, dims FROM splits \
             WHERE tenant_id = $1 AND collection = $2 AND created_seq <= $3 \
               AND (removed_seq IS NULL OR removed_seq > $3) ORDER BY created_seq",
            collection,
        )
        .bind(seq)
        .fetch_all(self.read_of(&collection.tenant))
        .await?;
        let splits = rows.iter().map(read_split).collect::<Result<_, _>>()?;
        let rows = bound(
            "SELECT d.split, d.document_id FROM split_dead d \
             JOIN splits s ON s.tenant_id = d.tenant_id AND s.collection = d.collection AND s.created_seq = d.split \
             WHERE d.tenant_id = $1 AND d.collection = $2 AND d.seq > $4 AND d.seq <= $3 \
               AND (s.removed_seq IS NULL OR s.removed_seq > $3)",
            collection,
        )
        .bind(seq)
        .bind(since)
        .fetch_all(self.read_of(&collection.tenant))
        .await?;
        let dead = rows
            .iter()
            .map(|row| {
                Ok((
                    SplitSeq(row.try_get("split")?),
                    read_id(row, "document_id")?,
                ))
            })
            .collect::<Result<_, CatalogError>>()?;
        Ok(SplitState { seq, splits, dead })
    }

    /// Replaces the splits `inputs` by `output`, which has their chunks that were visible in state `read_at` (`None`: there
    /// were none). Returns the new state's number, or `None`, and nothing changed, when an input is not part of the
    /// collection any more.
    pub async fn merge_splits(
        &self,
        collection: &CollectionRef,
        inputs: &[SplitSeq],
        read_at: i64,
        output: Option<&NewSplit>,
    ) -> Result<Option<i64>, CatalogError> {
        if inputs.is_empty() || inputs.len() > IDS_PER_QUERY {
            return Err(CatalogError::Invalid(format!(
                "a merge of {} splits: use 1 to {IDS_PER_QUERY}",
                inputs.len()
            )));
        }
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let seq = seq_of(&mut transaction, collection).await? + 1;
        let removed = over_splits(
            &mut transaction,
            "UPDATE splits SET removed_seq = $3, removed_at = $4 \
             WHERE tenant_id = $1 AND collection = $2 AND removed_seq IS NULL AND created_seq IN (SPLITS)",
            collection,
            &[seq, now],
            inputs,
        )
        .await?;
        if removed != inputs.len() as u64 {
            return Ok(None);
        }
        if let Some(output) = output {
            insert_split(&mut transaction, collection, seq, output, now).await?;
            // A document has chunks in one split only, so it is here once.
            over_splits(
                &mut transaction,
                "INSERT INTO split_dead (tenant_id, collection, split, document_id, seq) \
                 SELECT tenant_id, collection, CAST($3 AS BIGINT), document_id, CAST($3 AS BIGINT) FROM split_dead \
                 WHERE tenant_id = $1 AND collection = $2 AND seq > $4 AND split IN (SPLITS)",
                collection,
                &[seq, read_at],
                inputs,
            )
            .await?;
            over_splits(
                &mut transaction,
                "UPDATE split_documents SET split = $3 WHERE tenant_id = $1 AND collection = $2 AND split IN (SPLITS)",
                collection,
                &[seq],
                inputs,
            )
            .await?;
        }
        set_seq(&mut transaction, collection, seq).await?;
        transaction.commit().await?;
        Ok(Some(seq))
    }

    /// Takes the merge of the collection for `for_ms`, unless another process has it. Merges are right without; this
    /// saves two processes from doing the same work. Give it back by [`Catalog::end_merge`].
    pub async fn begin_merge(
        &self,
        collection: &CollectionRef,
        for_ms: i64,
    ) -> Result<bool, CatalogError> {
        let now = self.now_ms();
        let taken = bound(
            "UPDATE split_states SET merging_until = $3 \
             WHERE tenant_id = $1 AND collection = $2 AND merging_until <= $4",
            collection,
        )
        .bind(now + for_ms)
        .bind(now)
        .execute(self.write_of(&collection.tenant))
        .await?;
        Ok(taken > 0)
    }

    /// Lets other processes merge the collection.
    pub async fn end_merge(&self, collection: &CollectionRef) -> Result<(), CatalogError> {
        bound(
            "UPDATE split_states SET merging_until = 0 WHERE tenant_id = $1 AND collection = $2",
            collection,
        )
        .execute(self.write_of(&collection.tenant))
        .await?;
        Ok(())
    }

    /// Removes every split of the collection, and what is known of its documents. Its state counts on, so that nobody
    /// takes a state of a later collection of this name for one of this. Repeating it is no error.
    pub async fn drop_splits(&self, collection: &CollectionRef) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Collection(collection)).await?;
        let seq = seq_of(&mut transaction, collection).await?;
        if seq == 0 {
            return Ok(());
        }
        let seq = seq + 1;
        bound(
            "UPDATE splits SET removed_seq = $3, removed_at = $4 \
             WHERE tenant_id = $1 AND collection = $2 AND removed_seq IS NULL",
            collection,
        )
        .bind(seq)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        bound(
            "DELETE FROM split_documents WHERE tenant_id = $1 AND collection = $2",
            collection,
        )
        .execute(&mut transaction)
        .await?;
        set_seq(&mut transaction, collection, seq).await?;
        transaction.commit().await
    }

    /// Forgets splits that were removed more than `kept_ms` ago, at most 500 at a time; returns how many. Their objects are
    /// not in use any more.
    pub async fn forget_splits(&self, kept_ms: i64) -> Result<u64, CatalogError> {
        let rows = query(
            "SELECT tenant_id, collection, created_seq FROM splits WHERE removed_at IS NOT NULL AND removed_at < $1 \
             ORDER BY removed_at LIMIT 500",
        )
        .bind(self.now_ms() - kept_ms)
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        let mut by_collection: BTreeMap<CollectionRef, Vec<SplitSeq>> = BTreeMap::new();
        for row in &rows {
            let collection = read_collection_ref(row)?;
            let splits = by_collection.entry(collection).or_default();
            splits.push(SplitSeq(row.try_get("created_seq")?));
        }
        for (collection, splits) in &by_collection {
            let mut transaction = self.begin(Part::Collection(collection)).await?;
            for statement in [
                "DELETE FROM split_dead WHERE tenant_id = $1 AND collection = $2 AND split IN (SPLITS)",
                "DELETE FROM splits WHERE tenant_id = $1 AND collection = $2 AND removed_seq IS NOT NULL \
                 AND created_seq IN (SPLITS)",
            ] {
                over_splits(&mut transaction, statement, collection, &[], splits).await?;
            }
            transaction.commit().await?;
        }
        Ok(rows.len() as u64)
    }

    /// Collections that have splits, in order.
    pub async fn split_collections_all_tenants(&self) -> Result<Vec<CollectionRef>, CatalogError> {
        let rows = query(
            "SELECT DISTINCT tenant_id, collection FROM splits WHERE removed_seq IS NULL ORDER BY tenant_id, collection",
        )
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        rows.iter().map(read_collection_ref).collect()
    }

    /// Those of the objects that are splits, or were not long ago.
    pub async fn split_objects_all_tenants(
        &self,
        objects: &[ContentHash],
    ) -> Result<BTreeSet<ContentHash>, CatalogError> {
        let mut found = BTreeSet::new();
        for part in objects.chunks(IDS_PER_QUERY) {
            let statement = format!(
                "SELECT DISTINCT object_hash FROM splits WHERE object_hash IN ({})",
                parameters(1, part.len())
            );
            let mut query = query(&statement);
            for hash in part {
                query = query.bind(hash.as_str());
            }
            for row in query.fetch_all(self.read_all(Why::Chore)).await? {
                found.insert(ContentHash::new(row.try_get::<String>("object_hash")?)?);
            }
        }
        Ok(found)
    }
}

/// A statement whose first two parameters are the collection's.
fn bound<'q>(statement: &'q str, collection: &'q CollectionRef) -> super::query::Query<'q> {
    query(statement)
        .bind(collection.tenant.as_str())
        .bind(collection.collection.as_str())
}

/// Refuses vectors of another length than those of the collection.
async fn check_dims(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    got: u32,
) -> Result<(), CatalogError> {
    let row = bound(
        "SELECT dims FROM splits WHERE tenant_id = $1 AND collection = $2 AND removed_seq IS NULL AND dims <> $3 LIMIT 1",
        collection,
    )
    .bind(i64::from(got))
    .fetch_optional(&mut *transaction)
    .await?;
    match row {
        Some(row) => Err(CatalogError::Invalid(format!(
            "collection `{}` holds vectors of {} dimensions, got {got}; use the model it was indexed with, or re-index it \
             with the new one",
            collection.collection,
            row.try_get::<i64>("dims")?
        ))),
        None => Ok(()),
    }
}

/// Runs a statement over `splits`, named SPLITS in it; the `numbers` are its parameters from the third on.
async fn over_splits(
    transaction: &mut Transaction,
    statement: &str,
    collection: &CollectionRef,
    numbers: &[i64],
    splits: &[SplitSeq],
) -> Result<u64, CatalogError> {
    let list = parameters(3 + numbers.len(), splits.len());
    let statement = statement.replace("SPLITS", &list);
    let mut query = bound(&statement, collection);
    for number in numbers
        .iter()
        .copied()
        .chain(splits.iter().map(|split| split.0))
    {
        query = query.bind(number);
    }
    query.execute(&mut *transaction).await
}

async fn seq_of(
    transaction: &mut Transaction,
    collection: &CollectionRef,
) -> Result<i64, CatalogError> {
    let row = bound(
        "SELECT seq FROM split_states WHERE tenant_id = $1 AND collection = $2",
        collection,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    row.map_or(Ok(0), |row| row.try_get("seq"))
}

async fn set_seq(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    seq: i64,
) -> Result<(), CatalogError> {
    bound(
        "INSERT INTO split_states (tenant_id, collection, seq, merging_until) VALUES ($1, $2, $3, 0) \
         ON CONFLICT (tenant_id, collection) DO UPDATE SET seq = excluded.seq",
        collection,
    )
    .bind(seq)
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// What is known of the documents; nothing is left out.
async fn held_of(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    documents: &[SplitDocument],
) -> Result<BTreeMap<DocumentId, Held>, CatalogError> {
    let mut held: BTreeMap<DocumentId, Held> = BTreeMap::new();
    for part in documents.chunks(IDS_PER_QUERY) {
        let list = parameters(3, part.len());
        let published = format!(
            "SELECT document_id, split, version, removed FROM split_documents \
             WHERE tenant_id = $1 AND collection = $2 AND document_id IN ({list})"
        );
        let begun = format!(
            "SELECT id, latest_version FROM documents WHERE tenant_id = $1 AND collection = $2 AND id IN ({list})"
        );
        let with_ids = |statement| {
            part.iter()
                .fold(bound(statement, collection), |query, document| {
                    query.bind(document.id.to_string())
                })
        };
        for row in with_ids(&published).fetch_all(&mut *transaction).await? {
            let version = Version(read_number(&row, "version")?);
            let removed = row.try_get::<i64>("removed")? != 0;
            let split = row.try_get::<Option<i64>>("split")?.map(SplitSeq);
            held.entry(read_id(&row, "document_id")?)
                .or_default()
                .published = Some((version, removed, split));
        }
        for row in with_ids(&begun).fetch_all(&mut *transaction).await? {
            let version = Version(read_number(&row, "latest_version")?);
            held.entry(read_id(&row, "id")?).or_default().begun = Some(version);
        }
    }
    Ok(held)
}

async fn insert_split(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    seq: i64,
    split: &NewSplit,
    now: i64,
) -> Result<(), CatalogError> {
    bound(
        "INSERT INTO splits (tenant_id, collection, created_seq, object_hash, chunk_rows, bytes, dims, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        collection,
    )
    .bind(seq)
    .bind(split.object.as_str())
    .bind(number(split.rows)?)
    .bind(number(split.bytes)?)
    .bind(split.dims.map(i64::from))
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

async fn insert_dead(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    dead: &[(SplitSeq, DocumentId)],
    seq: i64,
) -> Result<(), CatalogError> {
    for part in dead.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO split_dead (tenant_id, collection, split, document_id, seq) VALUES {}",
            value_rows(1, part.len(), 5)
        );
        let mut query = query(&statement);
        for (split, document) in part {
            query = query
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(split.0)
                .bind(document.to_string())
                .bind(seq);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

async fn upsert_documents(
    transaction: &mut Transaction,
    collection: &CollectionRef,
    documents: &[&SplitDocument],
    seq: i64,
) -> Result<(), CatalogError> {
    for part in documents.chunks(ROWS_PER_INSERT) {
        let statement = format!(
            "INSERT INTO split_documents (tenant_id, collection, document_id, split, version, removed, seq) VALUES {} \
             ON CONFLICT (tenant_id, collection, document_id) DO UPDATE SET split = excluded.split, \
             version = excluded.version, removed = excluded.removed, seq = excluded.seq",
            value_rows(1, part.len(), 7)
        );
        let mut query = query(&statement);
        for document in part {
            query = query
                .bind(collection.tenant.as_str())
                .bind(collection.collection.as_str())
                .bind(document.id.to_string())
                .bind(document.has_rows.then_some(seq))
                .bind(i64::from(document.version.0))
                .bind(i64::from(document.removed))
                .bind(seq);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

fn number(number: u64) -> Result<i64, CatalogError> {
    i64::try_from(number).map_err(|_| CatalogError::Invalid(format!("{number} is too large")))
}

fn read_split(row: &Row) -> Result<SplitInfo, CatalogError> {
    let unsigned = |column| {
        let number: i64 = row.try_get(column)?;
        u64::try_from(number).map_err(|_| CatalogError::corrupt(column, number))
    };
    let dims = row.try_get::<Option<i64>>("dims")?;
    Ok(SplitInfo {
        seq: SplitSeq(row.try_get("created_seq")?),
        split: NewSplit {
            object: ContentHash::new(row.try_get::<String>("object_hash")?)?,
            rows: unsigned("chunk_rows")?,
            bytes: unsigned("bytes")?,
            dims: dims
                .map(|dims| u32::try_from(dims).map_err(|_| CatalogError::corrupt("dims", dims)))
                .transpose()?,
        },
    })
}

fn read_collection_ref(row: &Row) -> Result<CollectionRef, CatalogError> {
    Ok(CollectionRef {
        tenant: TenantId::new(row.try_get::<String>("tenant_id")?)?,
        collection: CollectionName::new(row.try_get::<String>("collection")?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is held, as `version`, `version-` for a removal, or nothing; the newest begun version; what is published; what
    /// becomes of it.
    #[test]
    fn the_newest_version_wins_and_a_removal_ends_its_own() {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        };
        let id = DocumentId::of(&collection, "a");
        let read = |word: &str| {
            let version = word.trim_end_matches('-').parse().expect("a version");
            (Version(version), word.ends_with('-'))
        };
        for (held, begun, new, wins) in [
            ("", None, "1", true),
            ("", None, "1-", true),
            ("1", None, "2", true),
            ("2", None, "1", false),
            // A replay.
            ("1", None, "1", true),
            ("1-", None, "1-", true),
            // A removal is of the version that it followed.
            ("1", None, "1-", true),
            ("1-", None, "1", false),
            ("1-", None, "2", true),
            ("2", None, "1-", false),
            // The collection was made anew: version 5 is of its former life.
            ("", Some(1), "5", false),
            ("5", Some(1), "1", true),
            ("5-", Some(1), "1", true),
            ("1", Some(2), "2", true),
            ("2", Some(2), "1", false),
        ] {
            let split = Some(SplitSeq(7));
            let published = (!held.is_empty()).then(|| {
                let (version, removed) = read(held);
                (version, removed, split)
            });
            let known = Held {
                published,
                begun: begun.map(Version),
            };
            let (version, removed) = read(new);
            let document = SplitDocument {
                id,
                version,
                removed,
                has_rows: !removed,
            };
            let expected = match wins {
                true => Outcome::Newest {
                    dies: published.and(split),
                },
                false => Outcome::Outrun,
            };
            assert_eq!(
                decide(&document, known),
                expected,
                "held `{held}`, new `{new}`, begun {begun:?}"
            );
        }
    }
}
