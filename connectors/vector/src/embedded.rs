//! [`LanceStore`]: LanceDB tables in a directory.
//!
//! This file opens and reads tables; `apply` writes them, `upkeep` keeps them fast.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use lancedb::DistanceType;
use tokio::sync::RwLock;
use va_catalog::{ChunkId, ChunkRecord, CollectionRef, DocumentId};

use crate::ids::KnownRows;
use crate::names::{collection_in, collection_of, table_name};
use crate::parts::Parts;
use crate::reader::Reader;
use crate::rows::stored_schema;
use crate::snapshot::LanceSnapshot;
use crate::store::{ChunkStream, Metric, OptimizeReport, VectorSnapshot, VectorStore};
use crate::table::OpenTable;
use crate::{VectorError, apply, upkeep};

/// The kind of vector index that large tables get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// Partitions of whole vectors: exact distances, reads `nprobes` partitions.
    #[default]
    IvfFlat,
    /// A graph over vectors of one byte per dimension; candidates are ranked again by their whole vectors. Faster and
    /// smaller to search, slower to build.
    IvfHnswSq,
}

/// How a [`LanceStore`] works.
#[derive(Debug, Clone)]
pub struct LanceOptions {
    /// Files that come together before they are merged in the background.
    pub fragments_max: usize,
    /// How long a version that was replaced stays readable: the longest time a scan may take.
    pub keep_versions: Duration,
    /// From this many rows on, `optimize` builds indexes; below, every search compares all vectors, which is exact.
    pub index_rows_min: u64,
    pub index_kind: IndexKind,
    /// The metric that the index is built for; a search with the other one compares all vectors.
    pub index_metric: Metric,
    /// Partitions of the index that a search reads at least. More finds more of the true neighbours and takes longer.
    /// `None` leaves it to LanceDB.
    pub nprobes: Option<usize>,
    /// Memory for metadata and index parts that Lance keeps between searches, in bytes, and as much again for the vectors that
    /// searches without conditions read, at two bytes a number.
    pub cache_bytes: usize,
    /// Whether a commit reaches the disk before `apply` returns. Without, it survives a crash of the process, but not a
    /// power cut.
    pub sync: bool,
}

impl Default for LanceOptions {
    fn default() -> Self {
        Self {
            fragments_max: 40,
            keep_versions: upkeep::KEEP_VERSIONS,
            index_rows_min: 20_000,
            index_kind: IndexKind::default(),
            index_metric: Metric::Cosine,
            nprobes: Some(24),
            cache_bytes: 512 << 20,
            sync: true,
        }
    }
}

impl Metric {
    pub(crate) fn distance(self) -> DistanceType {
        match self {
            Self::Cosine => DistanceType::Cosine,
            Self::L2 => DistanceType::L2,
        }
    }

    /// Lance's cosine distance is 1 - cosine, its L2 distance the square of the Euclidean one.
    pub(crate) fn score(self, distance: f32) -> f32 {
        match self {
            Self::Cosine => 1.0 - distance,
            Self::L2 => -distance.max(0.0).sqrt(),
        }
    }
}

/// Vectors in LanceDB tables, one a collection, in a local directory.
pub struct LanceStore {
    dir: PathBuf,
    connection: lancedb::Connection,
    options: Arc<LanceOptions>,
    tables: RwLock<HashMap<CollectionRef, Arc<OpenTable>>>,
    known: KnownRows,
    parts: Arc<Parts>,
}

impl LanceStore {
    /// Opens the store in `dir`, which is made if it does not exist.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, VectorError> {
        Self::open_with(dir, LanceOptions::default()).await
    }

    pub async fn open_with(
        dir: impl AsRef<Path>,
        options: LanceOptions,
    ) -> Result<Self, VectorError> {
        let dir = dir.as_ref();
        let fail =
            |action, source: Box<dyn std::error::Error + Send + Sync>| VectorError::Directory {
                dir: dir.display().to_string(),
                action,
                source,
            };
        std::fs::create_dir_all(dir).map_err(|error| fail("making the directory", error.into()))?;
        let dir = dir
            .canonicalize()
            .map_err(|error| fail("finding the directory", error.into()))?;
        let uri = dir
            .to_str()
            .ok_or_else(|| fail("naming the directory", "the path is not UTF-8".into()))?;
        let session = lancedb::Session::new(
            options.cache_bytes / 4 * 3,
            options.cache_bytes / 4,
            Arc::default(),
        );
        let parts = Arc::new(Parts::new(&options));
        let connection = lancedb::connect(uri)
            .session(Arc::new(session))
            .execute()
            .await
            .map_err(|error| fail("opening the store", error.into()))?;
        Ok(Self {
            dir,
            connection,
            options: Arc::new(options),
            tables: RwLock::default(),
            known: KnownRows::default(),
            parts,
        })
    }

    /// Waits until no compaction of the collection is running.
    pub async fn settle(&self, collection: &CollectionRef) -> Result<(), VectorError> {
        if let Some(table) = self.table(collection).await? {
            drop(table.upkeep.lock().await);
        }
        Ok(())
    }

    /// How many files the collection's rows are spread over.
    pub async fn fragments(&self, collection: &CollectionRef) -> Result<usize, VectorError> {
        match self.table(collection).await? {
            Some(table) => Ok(table.snapshot().await?.count_fragments()),
            None => Ok(0),
        }
    }

    pub(crate) fn options(&self) -> &Arc<LanceOptions> {
        &self.options
    }

    /// The collection's table; `None` if it does not exist.
    pub(crate) async fn table(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<OpenTable>>, VectorError> {
        self.find(collection, None).await
    }

    /// The collection's table, made for vectors of `dims` dimensions if it does not exist.
    pub(crate) async fn table_or_create(
        &self,
        collection: &CollectionRef,
        dims: usize,
    ) -> Result<Arc<OpenTable>, VectorError> {
        self.find(collection, Some(dims))
            .await?
            .ok_or_else(|| VectorError::storage(collection, "making", "the table was not made"))
    }

    async fn find(
        &self,
        collection: &CollectionRef,
        create: Option<usize>,
    ) -> Result<Option<Arc<OpenTable>>, VectorError> {
        if let Some(table) = self.tables.read().await.get(collection) {
            return Ok(Some(table.clone()));
        }
        let mut tables = self.tables.write().await;
        if let Some(table) = tables.get(collection) {
            return Ok(Some(table.clone()));
        }
        let name = table_name(collection);
        let table = match self.connection.open_table(&name.name).execute().await {
            Ok(table) => table,
            Err(lancedb::Error::TableNotFound { .. }) => {
                let Some(dims) = create else { return Ok(None) };
                let fields = stored_schema(dims).fields().clone();
                let schema = Arc::new(Schema::new_with_metadata(fields, name.metadata));
                self.connection
                    .create_empty_table(&name.name, schema)
                    .execute()
                    .await
                    .map_err(|error| VectorError::storage(collection, "making", error))?
            }
            Err(error) => return Err(VectorError::storage(collection, "opening", error)),
        };
        let path = self.dir.join(format!("{}.lance", name.name));
        let table = Arc::new(OpenTable::new(
            collection.clone(),
            path,
            table,
            self.known.dataset(),
            self.parts.clone(),
        ));
        tables.insert(collection.clone(), table.clone());
        Ok(Some(table))
    }

    /// The newest rows; `None` if the collection does not exist.
    async fn reader(&self, collection: &CollectionRef) -> Result<Option<Reader>, VectorError> {
        let Some(table) = self.table(collection).await? else {
            return Ok(None);
        };
        Ok(Some(Reader {
            collection: collection.clone(),
            dataset: table.snapshot().await?,
            ids: table.ids.clone(),
            parts: table.parts.clone(),
            options: self.options.clone(),
            mask: None,
        }))
    }

    fn directory_error(&self, action: &'static str, error: lancedb::Error) -> VectorError {
        VectorError::Directory {
            dir: self.dir.display().to_string(),
            action,
            source: error.into(),
        }
    }
}

#[async_trait]
impl VectorStore for LanceStore {
    async fn apply(
        &self,
        collection: &CollectionRef,
        documents: &[DocumentId],
        rows: &RecordBatch,
    ) -> Result<(), VectorError> {
        apply::apply(self, collection, documents, rows).await
    }

    async fn snapshot(
        &self,
        collection: &CollectionRef,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError> {
        let Some(table) = self.table(collection).await? else {
            return Ok(None);
        };
        let dataset = table.snapshot().await?;
        let snapshot = LanceSnapshot::new(&table, dataset, &self.options);
        Ok(Some(Arc::new(snapshot)))
    }

    async fn snapshot_at(
        &self,
        collection: &CollectionRef,
        version: u64,
    ) -> Result<Option<Arc<dyn VectorSnapshot>>, VectorError> {
        let Some(table) = self.table(collection).await? else {
            return Ok(None);
        };
        let newest = table.snapshot().await?;
        let dataset = match newest.checkout_version(version).await {
            Ok(dataset) => Arc::new(dataset),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(table.error("opening an earlier version", error)),
        };
        let snapshot = LanceSnapshot::new(&table, dataset, &self.options);
        Ok(Some(Arc::new(snapshot)))
    }

    async fn chunks(
        &self,
        collection: &CollectionRef,
        ids: &[ChunkId],
    ) -> Result<Vec<ChunkRecord>, VectorError> {
        let mut found = HashMap::with_capacity(ids.len());
        if let Some(reader) = self.reader(collection).await? {
            reader.find(ids, &mut found).await?;
        }
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    async fn count(&self, collection: &CollectionRef) -> Result<u64, VectorError> {
        let Some(table) = self.table(collection).await? else {
            return Ok(0);
        };
        let rows = table
            .snapshot()
            .await?
            .count_rows(None)
            .await
            .map_err(|error| table.error("counting", error))?;
        Ok(rows as u64)
    }

    async fn scan(
        &self,
        collection: &CollectionRef,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Option<ChunkStream>, VectorError> {
        match self.reader(collection).await? {
            Some(reader) => Ok(Some(reader.scan(columns, filter_sql, limit).await?)),
            None => Ok(None),
        }
    }

    async fn schema(&self, collection: &CollectionRef) -> Result<Option<SchemaRef>, VectorError> {
        let reader = self.reader(collection).await?;
        Ok(reader.map(|reader| reader.schema()))
    }

    async fn drop_collection(&self, collection: &CollectionRef) -> Result<(), VectorError> {
        let Some(table) = self.table(collection).await? else {
            return Ok(());
        };
        let _upkeep = table.upkeep.lock().await;
        let mut writer = table.writer.lock().await;
        let mut tables = self.tables.write().await;
        if writer.dropped {
            return Ok(());
        }
        self.connection
            .drop_table(table_name(collection).name, &[])
            .await
            .map_err(|error| table.error("dropping", error))?;
        writer.dropped = true;
        tables.remove(collection);
        Ok(())
    }

    async fn collections(&self) -> Result<Vec<CollectionRef>, VectorError> {
        let names = self
            .connection
            .table_names()
            .execute()
            .await
            .map_err(|error| self.directory_error("listing tables", error))?;
        let mut collections = Vec::with_capacity(names.len());
        for name in names {
            if let Some(collection) = collection_of(&name) {
                collections.push(collection);
                continue;
            }
            let schema = match self.connection.open_table(&name).execute().await {
                Ok(table) => table.schema().await,
                Err(error) => Err(error),
            };
            match schema {
                Ok(schema) => collections.extend(collection_in(schema.metadata())),
                // Dropped since it was listed.
                Err(lancedb::Error::TableNotFound { .. }) => {}
                Err(error) => return Err(self.directory_error("reading a table's name", error)),
            }
        }
        collections.sort();
        Ok(collections)
    }

    async fn optimize(&self, collection: &CollectionRef) -> Result<OptimizeReport, VectorError> {
        match self.table(collection).await? {
            Some(table) => upkeep::optimize(&self.options, &table).await,
            None => Ok(OptimizeReport::default()),
        }
    }
}
