//! The embedded implementation: one tantivy index per collection, in `DIR/TENANT/COLLECTION`.
//!
//! A search opens exactly one index, so it cannot see another tenant's chunks. The commit token lives in tantivy's
//! commit payload, which is replaced in one atomic step with the list of segments. Everything blocks, so every call
//! runs on the blocking pool. Where indexes lie on disk is left to [`crate::directory`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use tantivy::directory::MmapDirectory;
use tantivy::indexer::IndexWriterOptions;
use tantivy::schema::Schema;
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyError, Term};
use va_catalog::chunk::{records, strings};
use va_catalog::{ChunkOp, CollectionRef, DocumentId};

use crate::analysis::{Analysis, TantivyTokenizer};
use crate::directory::IndexDirectory;
use crate::query::Ranking;
use crate::schema::{Fields, schema};
use crate::seam::{TextError, TextIndex, TextSnapshot};
use crate::snapshot::TantivySnapshot;

/// Writers that stay open between commits. A writer at work may hold up to its memory budget.
const WRITERS_MAX: usize = 8;
const WRITER_BUDGET_BYTES: usize = 50_000_000;
/// What each further writer gets when all the others hold uncommitted chunks and cannot be closed; tantivy's minimum.
const SMALL_WRITER_BUDGET_BYTES: usize = 15_000_000;
/// Collections that stay open for searching. Each holds file mappings.
const OPEN_MAX: usize = 256;

/// Full-text indexes below one directory. Clones share them.
#[derive(Clone)]
pub struct TantivyIndex {
    shared: Arc<Shared>,
}

struct Shared {
    directory: IndexDirectory,
    analysis: Analysis,
    ranking: Ranking,
    open: Mutex<HashMap<CollectionRef, Arc<Collection>>>,
    /// Counts uses, to tell which collection was used least recently.
    clock: AtomicU64,
}

struct Collection {
    index: Index,
    reader: IndexReader,
    fields: Fields,
    used_at: AtomicU64,
    slot: Mutex<Slot>,
}

/// The writing side of a collection.
#[derive(Default)]
struct Slot {
    writer: Option<IndexWriter>,
    /// Chunks were applied since the last commit.
    dirty: bool,
    /// A write failed, see [`TextError::Lost`].
    lost: bool,
    /// The collection was dropped: whoever still holds it must open it anew.
    dropped: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is consistent at every step that can panic, so a poisoned lock is usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TantivyIndex {
    /// Opens the indexes below `dir`, which is created if missing. Indexes are opened when they are used.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, TextError> {
        Self::open_with(dir, Analysis::default(), Ranking::default())
    }

    /// As [`TantivyIndex::open`], for comparing ways of analysis and ranking. An index that was made with another
    /// analysis is refused as outdated.
    pub fn open_with(
        dir: impl Into<PathBuf>,
        analysis: Analysis,
        ranking: Ranking,
    ) -> Result<Self, TextError> {
        Ok(Self {
            shared: Arc::new(Shared {
                directory: IndexDirectory::open(dir.into())?,
                analysis,
                ranking,
                open: Mutex::default(),
                clock: AtomicU64::new(0),
            }),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, TextError> + Send + 'static,
    ) -> Result<T, TextError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await?
    }
}

#[async_trait]
impl TextIndex for TantivyIndex {
    async fn apply(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<(), TextError> {
        let (name, documents, rows) = (collection.clone(), documents.to_vec(), rows.clone());
        self.blocking(move |shared| shared.apply(&name, &documents, &rows))
            .await
    }

    async fn commit(&self, collection: &CollectionRef, token: &str) -> Result<(), TextError> {
        let (name, token) = (collection.clone(), token.to_owned());
        self.blocking(move |shared| shared.commit(&name, &token))
            .await
    }

    async fn rollback(&self, collection: &CollectionRef) -> Result<(), TextError> {
        let name = collection.clone();
        self.blocking(move |shared| shared.rollback(&name)).await
    }

    async fn committed(&self, collection: &CollectionRef) -> Result<Option<String>, TextError> {
        let name = collection.clone();
        self.blocking(move |shared| match shared.existing(&name)? {
            Some(collection) => Ok(collection.index.load_metas()?.payload),
            None => Ok(None),
        })
        .await
    }

    async fn snapshot(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<dyn TextSnapshot>>, TextError> {
        let name = collection.clone();
        self.blocking(move |shared| shared.snapshot(&name)).await
    }

    async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), TextError> {
        let name = collection.clone();
        self.blocking(move |shared| shared.drop_collection(&name))
            .await
    }

    async fn collections(&self) -> Result<Vec<CollectionRef>, TextError> {
        self.blocking(|shared| shared.directory.collections()).await
    }
}

impl Shared {
    /// The collection if it has an index.
    fn existing(&self, name: &CollectionRef) -> Result<Option<Arc<Collection>>, TextError> {
        self.collection(name, false)
    }

    fn collection(
        &self,
        name: &CollectionRef,
        create: bool,
    ) -> Result<Option<Arc<Collection>>, TextError> {
        let mut open = lock(&self.open);
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if let Some(collection) = open.get(name) {
            collection.used_at.store(now, Ordering::Relaxed);
            return Ok(Some(collection.clone()));
        }
        if !create && !self.directory.exists(name) {
            return Ok(None);
        }
        let (schema, fields) = schema(self.analysis);
        let dir = self.directory.create(name)?;
        let index = open_index(name, dir, schema)?;
        let analyser = TextAnalyzer::from(TantivyTokenizer(self.analysis));
        index.tokenizers().register(&self.analysis.name(), analyser);
        // Commits happen in this process, which reloads after each; watching files would cost a thread an index.
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
        let collection = Arc::new(Collection {
            reader: reader.try_into()?,
            index,
            fields,
            used_at: AtomicU64::new(now),
            slot: Mutex::default(),
        });
        if open.len() >= OPEN_MAX {
            close_least_used(&mut open);
        }
        open.insert(name.clone(), collection.clone());
        Ok(Some(collection))
    }

    /// Runs `work` on the writing side of a collection, which is created if missing.
    fn write<T>(
        &self,
        name: &CollectionRef,
        work: impl FnOnce(&Collection, &mut Slot) -> Result<T, TextError>,
    ) -> Result<T, TextError> {
        loop {
            let Some(collection) = self.collection(name, true)? else {
                continue;
            };
            // Whoever drops a collection also forgets it, so the next round opens a new one.
            let mut slot = lock(&collection.slot);
            if !slot.dropped {
                return work(&collection, &mut slot);
            }
        }
    }

    fn apply(
        &self,
        name: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<(), TextError> {
        check_collection(name, rows)?;
        let documents: HashSet<_> = documents.iter().copied().collect();
        let mut chunks = records(rows)?;
        // Should a chunk be there twice, the last one wins, as it would in two batches.
        let mut seen = HashSet::new();
        chunks.reverse();
        chunks.retain(|chunk| seen.insert(chunk.id));
        chunks.reverse();
        if documents.is_empty() && chunks.is_empty() {
            return Ok(());
        }
        let writers = self.make_room(name);
        self.write(name, |collection, slot| {
            let fields = &collection.fields;
            let mut added = Vec::with_capacity(chunks.len());
            let mut replaced: Vec<_> = documents
                .iter()
                .map(|id| Term::from_field_text(fields.document_id, &id.to_string()))
                .collect();
            for chunk in &chunks {
                if !documents.contains(&chunk.document.id) {
                    let id = chunk.id.to_string();
                    replaced.push(Term::from_field_text(fields.chunk_id, &id));
                }
                added.push(fields.document(chunk)?);
            }
            collection.with_writer(name, slot, writers, |writer| {
                for term in replaced {
                    writer.delete_term(term);
                }
                for document in added {
                    writer.add_document(document)?;
                }
                Ok(())
            })?;
            slot.dirty = true;
            Ok(())
        })
    }

    fn commit(&self, name: &CollectionRef, token: &str) -> Result<(), TextError> {
        let writers = self.make_room(name);
        self.write(name, |collection, slot| {
            let committed = collection.index.load_metas()?.payload;
            if !slot.dirty && !slot.lost && committed.as_deref() == Some(token) {
                return Ok(());
            }
            collection.with_writer(name, slot, writers, |writer| {
                let mut commit = writer.prepare_commit()?;
                commit.set_payload(token);
                commit.commit().map(drop)
            })?;
            slot.dirty = false;
            Ok(collection.reader.reload()?)
        })
    }

    fn rollback(&self, name: &CollectionRef) -> Result<(), TextError> {
        let Some(collection) = self.existing(name)? else {
            return Ok(());
        };
        let mut slot = lock(&collection.slot);
        if slot.dirty || slot.lost {
            slot.writer = None;
            slot.dirty = false;
            slot.lost = false;
        }
        Ok(())
    }

    fn snapshot(&self, name: &CollectionRef) -> Result<Option<Arc<dyn TextSnapshot>>, TextError> {
        let Some(collection) = self.existing(name)? else {
            return Ok(None);
        };
        Ok(Some(Arc::new(TantivySnapshot {
            searcher: collection.reader.searcher(),
            fields: collection.fields.clone(),
            analysis: self.analysis,
            ranking: self.ranking,
        })))
    }

    fn drop_collection(&self, name: &CollectionRef) -> Result<(), TextError> {
        // Held to the end, so that nobody opens the directory that is going away. An index that cannot be opened can
        // still be dropped.
        let mut open = lock(&self.open);
        let collection = open.get(name).cloned();
        let mut slot = collection.as_ref().map(|collection| lock(&collection.slot));
        if let Some(slot) = &mut slot {
            // Before the files go: dropping the writer ends its threads.
            slot.writer = None;
            slot.dropped = true;
        }
        open.remove(name);
        match self.directory.exists(name) {
            true => self.directory.remove(name),
            false => Ok(()),
        }
    }

    /// Closes writers that have nothing uncommitted, least recently used first, until there is room for one more.
    /// Returns how many other writers stay open.
    fn make_room(&self, name: &CollectionRef) -> usize {
        let mut others: Vec<_> = lock(&self.open)
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(_, collection)| collection.clone())
            .collect();
        others.sort_by_key(|collection| collection.used_at.load(Ordering::Relaxed));
        let has_writer = |collection: &Arc<Collection>| match collection.slot.try_lock() {
            Ok(slot) => slot.writer.is_some(),
            // Locked means being written right now.
            Err(_) => true,
        };
        let mut writers = others.iter().filter(|c| has_writer(c)).count();
        for collection in others {
            if writers < WRITERS_MAX {
                break;
            }
            let Ok(mut slot) = collection.slot.try_lock() else {
                continue;
            };
            if slot.dirty {
                continue;
            }
            if let Some(writer) = slot.writer.take() {
                writers -= 1;
                if let Err(error) = writer.wait_merging_threads() {
                    // Merging only saves space and time; the next writer tries again.
                    tracing::warn!(%error, "cannot finish merging a full-text index");
                }
            }
        }
        writers
    }
}

impl Collection {
    /// Runs `work` on the writer, opening it first if needed. `others` is how many writers are open besides.
    fn with_writer(
        &self,
        name: &CollectionRef,
        slot: &mut Slot,
        others: usize,
        work: impl FnOnce(&mut IndexWriter) -> tantivy::Result<()>,
    ) -> Result<(), TextError> {
        if slot.lost {
            return Err(TextError::Lost {
                collection: name.clone(),
            });
        }
        let mut writer = match slot.writer.take() {
            Some(writer) => writer,
            None => self.open_writer(name, others)?,
        };
        match work(&mut writer) {
            Ok(()) => {
                slot.writer = Some(writer);
                Ok(())
            }
            Err(error) => {
                // What it held is gone with it; nobody may commit as if it were not.
                slot.lost = true;
                Err(error.into())
            }
        }
    }

    fn open_writer(&self, name: &CollectionRef, others: usize) -> Result<IndexWriter, TextError> {
        let budget = match others < WRITERS_MAX {
            true => WRITER_BUDGET_BYTES,
            false => SMALL_WRITER_BUDGET_BYTES,
        };
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(budget)
            .build();
        self.index
            .writer_with_options(options)
            .map_err(|error| match error {
                TantivyError::LockFailure(..) => TextError::Busy {
                    collection: name.clone(),
                },
                other => other.into(),
            })
    }
}

fn open_index(name: &CollectionRef, dir: PathBuf, schema: Schema) -> Result<Index, TextError> {
    let directory = MmapDirectory::open(dir).map_err(TantivyError::from)?;
    Index::open_or_create(directory, schema).map_err(|error| match error {
        TantivyError::SchemaError(_) => TextError::Outdated {
            collection: name.clone(),
        },
        other => other.into(),
    })
}

/// Closes the collection that nobody uses for longest, if there is one. Those with a writer stay.
fn close_least_used(open: &mut HashMap<CollectionRef, Arc<Collection>>) {
    let idle = open.iter().filter(|(_, collection)| {
        Arc::strong_count(collection) == 1
            && (collection.slot.try_lock()).is_ok_and(|slot| slot.writer.is_none() && !slot.lost)
    });
    let least = idle.min_by_key(|(_, collection)| collection.used_at.load(Ordering::Relaxed));
    if let Some(name) = least.map(|(name, _)| name.clone()) {
        open.remove(&name);
    }
}

/// Refuses chunk rows that belong elsewhere: a mistake in a pipeline must not show one tenant's text to another.
fn check_collection(name: &CollectionRef, rows: &RecordBatch) -> Result<(), TextError> {
    let (tenants, collections) = (strings(rows, "tenant_id")?, strings(rows, "collection")?);
    let ops = strings(rows, "op")?;
    for row in 0..rows.num_rows() {
        let (tenant, collection) = (tenants.value(row), collections.value(row));
        if ops.value(row) == ChunkOp::Chunk.as_str()
            && (tenant != name.tenant.as_str() || collection != name.collection.as_str())
        {
            return Err(TextError::WrongCollection {
                expected: name.to_string(),
                found: format!("{tenant}/{collection}"),
            });
        }
    }
    Ok(())
}
