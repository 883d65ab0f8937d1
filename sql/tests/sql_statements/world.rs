//! A small platform on real stores: two tenants, documents in two languages, topics with old and new rows.
//!
//! Time stands still, so that what is expected can be written down. Search is not the platform's (that lives further
//! left): it counts, over the stored chunks, how many of the query's words or characters each holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use async_trait::async_trait;
use futures::TryStreamExt;
use tempfile::TempDir;
use va_catalog::chunk::{batch_of, records, vector_field};
use va_catalog::store::{CollectionConfig, Model, NewVersion, Retention, Scope, Topic, WireFormat};
use va_catalog::{
    Catalog, ChunkId, ChunkRecord, CollectionName, CollectionRef, ContentHash, DocumentId,
    DocumentRef, Internal, Partition, PipelineName, TenantId, TenantScope, TopicName, Version,
    Viewer, event,
};
use va_connectors::log::embedded::{EmbeddedLog, Options};
use va_connectors::log::{Log, Target, TopicConfig};
use va_sql::{Search, SearchRow, SqlEngine, SqlLimits, SqlServices};
use va_vector::{LanceStore, VectorStore};

const NOW: i64 = 1_700_000_000_000;
const DIMS: i32 = 4;

pub struct World {
    pub services: SqlServices,
    pub engine: Arc<SqlEngine>,
    /// How often a search ran.
    pub searches: Arc<AtomicUsize>,
    _folder: TempDir,
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// Whoever asks for the tenant.
pub fn scope(tenant: TenantId) -> TenantScope {
    TenantScope::internal(tenant, Internal::Test)
}

pub fn collection(tenant_name: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: tenant(tenant_name),
        collection: CollectionName::new(name).unwrap(),
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with_limits(SqlLimits::default()).await
    }

    pub async fn with_limits(limits: SqlLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(|| NOW);
        let catalog = Catalog::open_with_clock(folder.path().join("catalog.db"), clock.clone());
        let catalog = catalog.await.unwrap();
        let options = Options {
            clock,
            ..Options::default()
        };
        let log: Arc<dyn Log> = EmbeddedLog::open(&folder.path().join("log"), options).unwrap();
        let vectors: Arc<dyn VectorStore> = Arc::new(
            LanceStore::open(folder.path().join("vectors"))
                .await
                .unwrap(),
        );
        let searches = Arc::new(AtomicUsize::new(0));
        let services = SqlServices {
            catalog,
            log,
            vectors: vectors.clone(),
            search: Arc::new(CountingSearch {
                vectors,
                searches: searches.clone(),
            }),
        };
        let engine = Arc::new(SqlEngine::with_limits(services.clone(), limits).unwrap());
        let world = Self {
            services,
            engine,
            searches,
            _folder: folder,
        };
        world.fill().await;
        world
    }

    /// A key of the tenant that may read.
    pub async fn key(&self, tenant: &TenantId) -> String {
        let scopes = BTreeSet::from([Scope::Read]);
        let made = self.services.catalog.create_key(tenant, "psql", &scopes);
        made.await.unwrap().1.expose().to_owned()
    }

    async fn fill(&self) {
        let catalog = &self.services.catalog;
        let (default, b) = (TenantId::default_tenant(), tenant("b"));
        catalog.create_tenant(&b, "the other one").await.unwrap();
        for name in ["default", "b"] {
            self.make_collection(&collection(name, "help"), true).await;
        }
        self.make_collection(&collection("default", "帮助"), true)
            .await;
        self.make_collection(&collection("default", "leer"), false)
            .await;
        let help = collection("default", "help");
        self.index(
            &help,
            "freeze.html",
            "Freezing Rows",
            &[
                "To freeze rows or columns, choose View - Freeze Rows and Columns.",
                "冻结行或列：选择“视图”-“冻结行和列”。",
            ],
        )
        .await;
        self.index(
            &help,
            "print.html",
            "Printing",
            &["Choose File - Print to print a sheet."],
        )
        .await;
        self.index(
            &collection("default", "帮助"),
            "冻结.html",
            "冻结行",
            &["冻结行使表头总是可见。"],
        )
        .await;
        self.index(
            &collection("b", "help"),
            "secret.html",
            "b",
            &["rows that only b may see"],
        )
        .await;
        let broken = self.begin(&help, "broken.pdf").await;
        catalog
            .set_failed(&help, broken.0, broken.1, "not a PDF file")
            .await
            .unwrap();

        let model = Model {
            name: "e5".to_owned(),
            reference: "multilingual-e5-small".to_owned(),
            dims: Some(384),
            fingerprint: None,
            last_used_at: Some(NOW),
        };
        catalog.put_model(&default, &model).await.unwrap();
        for (owner, name) in [(&default, "index"), (&b, "mine")] {
            let name = PipelineName::new(name).unwrap();
            let yaml = "name: x\n";
            catalog
                .put_pipeline(owner, &name, yaml, None)
                .await
                .unwrap();
        }
        // Declared by the tenant, but without a column that says whose the rows are.
        let clicks = Topic {
            name: TopicName::new("clicks").unwrap(),
            partitions: 1,
            retention: Retention::default(),
            wire_format: WireFormat::Batches,
            schema: Some(Arc::new(Schema::new(vec![Field::new(
                "page",
                DataType::Utf8,
                false,
            )]))),
            description: String::new(),
        };
        catalog.create_topic(&b, &clicks).await.unwrap();
        self.append("clicks", vec![("page", strings(&["/secret"]))])
            .await;

        let indexed = |owners: &[&str], from: u32| {
            let ids: Vec<String> = (0..owners.len() as u32)
                .map(|i| format!("e{}", from + i))
                .collect();
            event_batch(&ids, owners)
        };
        self.append_batch(
            event::DOCUMENT_INDEXED,
            indexed(&["default", "b", "default"], 1),
        )
        .await;
        self.append_batch(event::DOCUMENT_INDEXED, indexed(&["b"], 4))
            .await;
        // In the log only, as a connector would write it; its rows gained a column, and one changed its type.
        self.append("orders", vec![("id", strings(&["1", "2"]))])
            .await;
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![3]));
        self.append("orders", vec![("id", numbers), ("note", strings(&["new"]))])
            .await;
        // Of every tenant, with an owner on each row.
        self.append(
            "shared",
            vec![
                ("tenant_id", strings(&["default", "b"])),
                ("v", strings(&["x", "y"])),
            ],
        )
        .await;
    }

    async fn make_collection(&self, collection: &CollectionRef, vectors: bool) {
        let config = CollectionConfig {
            model: vectors.then(|| "e5".to_owned()),
            dims: vectors.then_some(DIMS as u32),
            ..CollectionConfig::default()
        };
        let made = self.services.catalog.create_collection(collection, &config);
        made.await.unwrap();
    }

    async fn begin(&self, collection: &CollectionRef, name: &str) -> (DocumentId, Version) {
        let new = NewVersion {
            uri: format!("file:///{name}"),
            name: name.to_owned(),
            content_type: None,
            content_hash: ContentHash::new("ab".repeat(32)).unwrap(),
            size: 100,
            metadata: BTreeMap::from([("lang".to_owned(), "mixed".to_owned())]),
            readers: None,
        };
        let begun = self.services.catalog.begin_version(collection, &new);
        let begun = begun.await.unwrap();
        (begun.id, begun.version)
    }

    async fn index(&self, collection: &CollectionRef, name: &str, title: &str, texts: &[&str]) {
        let (id, version) = self.begin(collection, name).await;
        let chunks: Vec<ChunkRecord> = (0u32..)
            .zip(texts)
            .map(|(index, text)| ChunkRecord {
                id: ChunkId::of(collection, id, version, index),
                document: DocumentRef {
                    id,
                    name: name.to_owned(),
                    uri: format!("file:///{name}"),
                    title: Some(title.to_owned()),
                    version,
                },
                index,
                count: texts.len() as u32,
                title_path: vec![title.to_owned()],
                page: None,
                start: 0,
                end: text.chars().count() as u64,
                text: (*text).to_owned(),
                tokens: 10,
                tags: vec![format!("name={name}")],
            })
            .collect();
        let rows = with_vectors(&batch_of(collection, &chunks).unwrap());
        let vectors = &self.services.vectors;
        vectors.apply(collection, &[id], &rows).await.unwrap();
        self.services
            .catalog
            .set_ready(
                collection,
                id,
                version,
                Some(title.to_owned()),
                texts.len() as u32,
            )
            .await
            .unwrap();
    }

    async fn append(&self, topic: &str, columns: Vec<(&str, ArrayRef)>) {
        self.append_batch(topic, RecordBatch::try_from_iter(columns).unwrap())
            .await;
    }

    async fn append_batch(&self, topic: &str, batch: RecordBatch) {
        let topic = TopicName::new(topic).unwrap();
        let config = TopicConfig {
            partitions: 1,
            ..TopicConfig::default()
        };
        let log = &self.services.log;
        log.create_topic(&topic, config).await.unwrap();
        let mut commit = log.begin();
        commit.append(&topic, Target::Partition(Partition(0)), batch);
        commit.finish().await.unwrap();
    }
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// Rows of `document.indexed`.
fn event_batch(ids: &[String], owners: &[&str]) -> RecordBatch {
    let schema = event::document_indexed_schema();
    let rows = ids.len();
    let DataType::Struct(fields) = schema.field(5).data_type().clone() else {
        panic!("the payload is a struct");
    };
    let payload: Vec<ArrayRef> = fields
        .iter()
        .map(|field| match field.data_type() {
            DataType::UInt32 => Arc::new(UInt32Array::from(vec![1; rows])) as ArrayRef,
            _ => Arc::new(StringArray::from(vec![
                format!("the {}", field.name());
                rows
            ])),
        })
        .collect();
    RecordBatch::try_new(
        schema,
        vec![
            Arc::new(StringArray::from(ids.to_vec())),
            Arc::new(StringArray::from(vec![event::DOCUMENT_INDEXED; rows])),
            strings(owners),
            Arc::new(StringArray::from(vec![None::<&str>; rows])),
            Arc::new(TimestampMillisecondArray::from(vec![NOW; rows]).with_timezone("UTC")),
            Arc::new(StructArray::new(fields, payload, None)),
        ],
    )
    .unwrap()
}

fn with_vectors(batch: &RecordBatch) -> RecordBatch {
    let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        (0..batch.num_rows()).map(|row| Some([1.0, row as f32, 0.5, 0.5].map(Some))),
        DIMS,
    );
    let mut fields: Vec<Field> = batch
        .schema()
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    fields.push(vector_field(DIMS as usize));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(vectors));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Ranks stored chunks by how many of the query's words (or, without spaces, characters) they hold.
struct CountingSearch {
    vectors: Arc<dyn VectorStore>,
    searches: Arc<AtomicUsize>,
}

#[async_trait]
impl Search for CountingSearch {
    async fn hybrid(
        &self,
        tenant: &TenantScope,
        _: &Viewer,
        collection: &CollectionName,
        query: &str,
        k: usize,
    ) -> Result<Vec<SearchRow>, String> {
        self.searches.fetch_add(1, Ordering::SeqCst);
        let collection = tenant.collection(collection.clone());
        let rows = self.vectors.scan(&collection, None, None, None).await;
        let Some(rows) = rows.map_err(|error| error.to_string())? else {
            return Ok(Vec::new());
        };
        let batches: Vec<RecordBatch> = rows
            .batches
            .try_collect()
            .await
            .map_err(|error| error.to_string())?;
        let query = query.to_lowercase();
        let parts: Vec<String> = match query.is_ascii() {
            true => query.split_whitespace().map(str::to_owned).collect(),
            false => query.chars().map(String::from).collect(),
        };
        let mut found = Vec::new();
        for batch in &batches {
            for chunk in records(batch).map_err(|error| error.to_string())? {
                let text = chunk.text.to_lowercase();
                let held = parts
                    .iter()
                    .filter(|part| text.contains(part.as_str()))
                    .count();
                if held > 0 {
                    found.push((held, chunk));
                }
            }
        }
        found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
        found.truncate(k);
        Ok((1u32..)
            .zip(found)
            .map(|(rank, (held, chunk))| SearchRow {
                rank,
                score: held as f64 / parts.len() as f64,
                document_id: chunk.document.id.to_string(),
                name: chunk.document.name,
                uri: chunk.document.uri,
                title: chunk.document.title,
                version: chunk.document.version.0,
                chunk_id: chunk.id.to_string(),
                title_path: chunk.title_path,
                page: chunk.page,
                start: chunk.start,
                end: chunk.end,
                text: chunk.text,
                vector_rank: None,
                keyword_rank: Some(rank),
            })
            .collect())
    }
}
