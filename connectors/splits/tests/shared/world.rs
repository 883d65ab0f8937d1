//! A catalog, an object store, and processes over them; documents with texts and vectors.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use va_catalog::chunk::batch_of;
use va_catalog::store::{Catalog, CollectionConfig};
use va_catalog::{
    ChunkId, ChunkOp, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter,
    TenantId, Version, chunk_schema,
};
use va_connectors::objects::{Objects, S3Options, Secret};
use va_fulltext::TextSnapshot;
use va_splits::{MergePolicy, SplitOptions, SplitStore, SplitView, SplitWriter};
use va_vector::{Metric, VectorSnapshot};

use crate::server::{self, Server};

pub const DIMS: usize = 4;
pub const K: usize = 500;

/// Where a test runs.
#[derive(Clone, Copy)]
pub enum On {
    /// A SQLite file and a directory.
    Local,
    /// The URLs of a PostgreSQL and an S3 server.
    Servers(&'static str, &'static str),
}

/// The servers of this test process; `None` where one is missing, which is told.
pub fn servers() -> Option<On> {
    static SERVERS: OnceLock<Result<[Server; 2], String>> = OnceLock::new();
    let servers =
        SERVERS.get_or_init(|| Ok([Server::start("postgres.sh")?, Server::start("s3.sh")?]));
    match servers {
        Ok([postgres, s3]) => Some(On::Servers(postgres.url(), s3.url())),
        Err(reason) => {
            server::skip(reason);
            None
        }
    }
}

/// What processes share.
pub struct World {
    pub on: On,
    pub folder: TempDir,
    pub help: CollectionRef,
    number: u32,
}

impl World {
    pub async fn new(on: On) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        if let On::Servers(server, _) = on {
            let mut connection = PgConnection::connect(server).await.expect("a connection");
            sqlx::query(&format!("CREATE DATABASE shared_{number}"))
                .execute(&mut connection)
                .await
                .expect("a database");
        }
        let world = Self {
            on,
            folder: tempfile::tempdir().expect("a folder"),
            help: CollectionRef {
                tenant: TenantId::default_tenant(),
                collection: CollectionName::new("帮助").expect("a name"),
            },
            number,
        };
        let config = CollectionConfig::default();
        let created = world
            .catalog()
            .await
            .create_collection(&world.help, &config)
            .await;
        created.expect("a collection");
        world
    }

    pub async fn catalog(&self) -> Catalog {
        let location = match self.on {
            On::Local => self.folder.path().join("catalog.db"),
            On::Servers(server, _) => {
                let (server, _) = server.rsplit_once('/').expect("a database");
                format!("{server}/shared_{}", self.number).into()
            }
        };
        Catalog::open(location).await.expect("a catalog")
    }

    pub async fn objects(&self) -> Objects {
        let On::Servers(_, server) = self.on else {
            return Objects::local(&self.folder.path().join("objects")).expect("objects");
        };
        va_connectors::tls::install();
        // `http://KEY:SECRET@HOST:PORT/BUCKET`
        let url = server.strip_prefix("http://").expect("a URL");
        let (keys, place) = url.split_once('@').expect("keys");
        let (key, secret) = keys.split_once(':').expect("a secret");
        let (host, bucket) = place.split_once('/').expect("a bucket");
        let options = S3Options {
            endpoint: Some(format!("http://{host}")),
            access_key_id: Some(key.to_owned()),
            secret_access_key: Some(Secret::new(secret)),
            allow_http: true,
            ..S3Options::default()
        };
        let location = format!("s3://{bucket}/shared/{}", self.number);
        Objects::open(&location, &options).await.expect("objects")
    }

    /// A process of that name, with a cache of its own.
    pub async fn process(&self, name: &str) -> Process {
        self.process_with(name, options()).await
    }

    pub async fn process_with(&self, name: &str, options: SplitOptions) -> Process {
        let dir = self.cache_dir(name);
        let store = SplitStore::open(self.catalog().await, self.objects().await, dir, options);
        let store = store.await.expect("a store");
        Process {
            writer: store.writer(),
            store,
            help: self.help.clone(),
        }
    }

    /// A process whose catalog is closed after its first look.
    pub async fn process_closed(&self, name: &str) -> Process {
        let catalog = self.catalog().await;
        let dir = self.cache_dir(name);
        let patient = SplitOptions {
            refresh_ms: 3_600_000,
            ..options()
        };
        let store = SplitStore::open(catalog.clone(), self.objects().await, dir, patient).await;
        let store = store.expect("a store");
        store.view(&self.help).await.expect("a view");
        catalog.close().await;
        Process {
            writer: store.writer(),
            store,
            help: self.help.clone(),
        }
    }

    pub fn cache_dir(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

/// Every search asks for the newest state; nothing is merged unless it is asked for.
pub fn options() -> SplitOptions {
    SplitOptions {
        refresh_ms: 0,
        merge: MergePolicy {
            fan_in: usize::MAX,
            ..MergePolicy::default()
        },
        ..SplitOptions::default()
    }
}

/// What one process does.
pub struct Process {
    pub store: Arc<SplitStore>,
    pub writer: SplitWriter,
    pub help: CollectionRef,
}

impl Process {
    pub async fn view(&self) -> Arc<SplitView> {
        self.store.view(&self.help).await.expect("a view")
    }

    /// Hands rows of both sides over, as the sinks of a task do.
    pub fn apply(&self, rows: &RecordBatch) {
        self.writer.apply_vectors(&self.help, rows.clone());
        self.writer.apply_texts(
            &self.help,
            rows.project(&without_vector()).expect("columns"),
        );
    }

    /// A checkpoint; the number of the state it made.
    pub async fn checkpoint(&self, documents: &[RecordBatch]) -> i64 {
        self.apply(&together(documents));
        let published = self.writer.publish(&self.help).await.expect("published");
        published.expect("a collection").seq
    }

    /// `name version` of what a search finds, by each side; they must agree.
    pub async fn seen(&self) -> Vec<String> {
        let view = self.view().await;
        seen(&view).await
    }
}

pub fn without_vector() -> Vec<usize> {
    (0..chunk_schema(None).fields().len()).collect()
}

pub fn together(batches: &[RecordBatch]) -> RecordBatch {
    arrow::compute::concat_batches(&batches[0].schema(), batches).expect("rows")
}

/// The documents of a view, from a search of each side and from what each side lists.
pub async fn seen(view: &SplitView) -> Vec<String> {
    let of = |chunk: &ChunkRecord| format!("{} {}", chunk.document.name, chunk.document.version);
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let filter = Filter::default();
    let texts = TextSnapshot::search(view, "zebra", K, &filter).await;
    let texts = sorted(
        texts
            .expect("hits")
            .iter()
            .map(|hit| of(&hit.chunk))
            .collect(),
    );
    let vectors =
        VectorSnapshot::search(view, &[1.0, 0.5, 0.25, 0.1], K, Metric::Cosine, &filter).await;
    let vectors = sorted(
        vectors
            .expect("hits")
            .iter()
            .map(|hit| of(&hit.chunk))
            .collect(),
    );
    assert_eq!(texts, vectors, "the sides are of different states");
    let mut keys = TextSnapshot::chunk_keys(view).await.expect("keys");
    let mut others = VectorSnapshot::chunk_keys(view).await.expect("keys");
    keys.sort_by_key(|key| key.id);
    others.sort_by_key(|key| key.id);
    assert_eq!(keys, others);
    assert_eq!(keys.len(), texts.len());
    assert_eq!(view.count(), texts.len() as u64);
    assert_eq!(view.vector_count(), texts.len() as u64);
    let mut texts = texts;
    texts.dedup();
    texts
}

pub fn id(help: &CollectionRef, name: &str) -> DocumentId {
    DocumentId::of(help, name)
}

/// A document of `chunks` chunks as `embed` emits it: its own row, then its chunks.
pub fn document(help: &CollectionRef, name: &str, version: u32, chunks: u32) -> RecordBatch {
    document_of(
        help,
        name,
        version,
        &vec![format!("zebra {name}"); chunks as usize],
    )
}

/// A document with these chunks.
pub fn document_of(
    help: &CollectionRef,
    name: &str,
    version: u32,
    texts: &[String],
) -> RecordBatch {
    rows(help, name, version, ChunkOp::Document, texts)
}

/// The removal of a document.
pub fn removal(help: &CollectionRef, name: &str, version: u32) -> RecordBatch {
    rows(help, name, version, ChunkOp::Delete, &[])
}

fn rows(
    help: &CollectionRef,
    name: &str,
    version: u32,
    first: ChunkOp,
    texts: &[String],
) -> RecordBatch {
    let count = texts.len() as u32;
    let record = |index: u32, text: &str| ChunkRecord {
        id: ChunkId::of(help, id(help, name), Version(version), index),
        document: DocumentRef {
            id: id(help, name),
            name: name.into(),
            uri: format!("file:///{name}"),
            title: None,
            version: Version(version),
        },
        index,
        count,
        title_path: vec![],
        page: None,
        start: 0,
        end: 1,
        text: text.to_owned(),
        tokens: 1,
        tags: vec![
            format!("name={name}"),
            format!("even={}", index.is_multiple_of(2)),
        ],
    };
    // The first row is the document's.
    let mut records = vec![record(0, "")];
    records.extend(
        texts
            .iter()
            .zip(0..)
            .map(|(text, index)| record(index, text)),
    );
    let batch = batch_of(help, &records).expect("rows");
    let ops = std::iter::once(first).chain(texts.iter().map(|_| ChunkOp::Chunk));
    let ops = StringArray::from_iter_values(ops.map(ChunkOp::as_str));
    let mut columns = batch.columns().to_vec();
    columns[0] = Arc::new(ops);
    columns.push(vectors(&records));
    RecordBatch::try_new(chunk_schema(Some(DIMS)), columns).expect("rows")
}

/// A vector that depends on the chunk's id.
fn vectors(records: &[ChunkRecord]) -> ArrayRef {
    let values = records.iter().flat_map(|record| {
        let digest = record.digest();
        (0..DIMS).map(move |at| 0.1 + f32::from((digest >> (8 * at)) as u8) / 256.0)
    });
    let values = Float32Array::from_iter_values(values);
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let list = FixedSizeListArray::try_new(item, DIMS as i32, Arc::new(values), None);
    Arc::new(list.expect("vectors"))
}

/// Folders and files in a directory.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
