//! The whole platform in one process: opens every store under one data directory, starts the built-in pipelines and
//! stops them in order.
//!
//! Layout of the data directory: `catalog.db`, `log/`, `objects/`, `vectors/`, `texts/`, `admin.key`, `server.json`
//! (where the process that holds it listens) and `lock`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use tokio_util::sync::CancellationToken;
use va_catalog::settings::{Durability, Settings};
use va_catalog::store::{
    Catalog, DesiredState, Page, Retention, Topic, WireFormat, built_in_topics,
};
use va_catalog::{PipelineName, TenantId, TopicName};
use va_connectors::flow::Names;
use va_connectors::log::embedded::{EmbeddedLog, Options as LogOptions};
use va_connectors::log::{Log, TopicConfig};
use va_connectors::objects::Objects;
use va_fulltext::{TantivyIndex, TextIndex};
use va_models::{Embedders, ModelStore};
use va_pipelines::plan::{BuiltinNames, ChainedNames};
use va_pipelines::{Diagnostics, Plan, Runtime, RuntimeConfig};
use va_vector::{LanceStore, VectorStore};

/// How long an unused model stays in memory.
const MODEL_IDLE: Duration = Duration::from_secs(600);
/// How often idle models and expired rows are looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Every open part of the platform.
pub struct Platform {
    pub settings: Settings,
    pub data: PathBuf,
    pub tenant: TenantId,
    pub catalog: Catalog,
    pub log: Arc<dyn Log>,
    pub objects: Objects,
    pub vectors: Arc<dyn VectorStore>,
    pub texts: Arc<dyn TextIndex>,
    pub embedders: Arc<Embedders>,
    pub runtime: Runtime,
    pub admin_key: PathBuf,
    pub started_at_ms: i64,
    /// How the folders of the settings stand.
    pub folders: crate::folder::served::Folders,
    shutdown: CancellationToken,
    /// Held as long as the platform lives; the operating system lets go of it when the process dies.
    _lock: File,
}

/// Why the platform did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "`{0}` is in use by another `va` process; talk to that one (commands find it by themselves) or stop it first"
    )]
    InUse(PathBuf),
    #[error("open `{path}`: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("open the {part}: {message}")]
    Part { part: &'static str, message: String },
    #[error("built-in pipeline: {0}")]
    Definition(#[from] Diagnostics),
}

fn part<E: std::fmt::Display>(part: &'static str) -> impl FnOnce(E) -> OpenError {
    move |error| OpenError::Part {
        part,
        message: error.to_string(),
    }
}

/// UTC milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

impl Platform {
    /// Opens everything. Nothing runs yet: see [`Platform::start`].
    pub async fn open(settings: Settings) -> Result<Arc<Self>, OpenError> {
        let data = settings.data.clone();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        std::fs::create_dir_all(&data).map_err(io(&data))?;
        let data = data.canonicalize().map_err(io(&data))?;
        let lock = lock(&data)?;

        let catalog = Catalog::open(data.join("catalog.db"))
            .await
            .map_err(part("catalog"))?;
        let admin_key = catalog
            .ensure_admin_key(&data)
            .await
            .map_err(part("catalog"))?;
        let durability = match settings.log.durability {
            Durability::EveryCommit => va_connectors::log::embedded::Durability::EveryCommit,
            Durability::Interval => va_connectors::log::embedded::Durability::Interval(
                Duration::from_millis(settings.log.interval_ms),
            ),
        };
        let log_dir = data.join("log");
        let log: Arc<dyn Log> = tokio::task::spawn_blocking(move || {
            EmbeddedLog::open(
                &log_dir,
                LogOptions {
                    durability,
                    ..LogOptions::default()
                },
            )
        })
        .await
        .map_err(part("log"))?
        .map_err(part("log"))?;
        let objects = Objects::local(&data.join("objects")).map_err(part("object store"))?;
        let vectors: Arc<dyn VectorStore> = Arc::new(
            LanceStore::open(data.join("vectors"))
                .await
                .map_err(part("vector store"))?,
        );
        let texts: Arc<dyn TextIndex> =
            Arc::new(TantivyIndex::open(data.join("texts")).map_err(part("full-text index"))?);
        let models = ModelStore::open(
            settings
                .models
                .dir
                .clone()
                .unwrap_or_else(va_models::default_model_dir),
        )
        .map_err(part("model store"))?;
        let embedders = Arc::new(Embedders::new(models));

        let runtime = Runtime::new(RuntimeConfig {
            log: log.clone(),
            operators: va_operators::Resources {
                objects: objects.clone(),
                embedders: embedders.clone(),
            },
            endpoints: va_endpoints::Resources {
                log: log.clone(),
                catalog: catalog.clone(),
                vectors: vectors.clone(),
                texts: texts.clone(),
            },
            clock: Arc::new(now_ms),
        });
        Ok(Arc::new(Self {
            settings,
            data,
            tenant: TenantId::default_tenant(),
            catalog,
            log,
            objects,
            vectors,
            texts,
            embedders,
            runtime,
            admin_key,
            started_at_ms: now_ms(),
            folders: crate::folder::served::Folders::default(),
            shutdown: CancellationToken::new(),
            _lock: lock,
        }))
    }

    /// Creates the built-in topics, starts the built-in pipelines and those that were running, and begins upkeep.
    pub async fn start(self: &Arc<Self>) -> Result<(), OpenError> {
        for topic in built_in_topics() {
            let config = TopicConfig {
                partitions: topic.partitions,
                retention_ms: topic.retention.ms,
                retention_bytes: topic.retention.bytes,
            };
            self.log
                .create_topic(&topic.name, config)
                .await
                .map_err(part("log"))?;
        }
        for (file, text) in va_pipelines::definitions::builtin() {
            let loaded = va_pipelines::load(file, text, &BuiltinNames)?;
            self.run(loaded.plan).await.map_err(part("pipeline"))?;
        }
        let names = self.names().await.map_err(part("catalog"))?;
        let mut page = Page::first(500);
        loop {
            let listing = self
                .catalog
                .pipelines(&self.tenant, &page)
                .await
                .map_err(part("catalog"))?;
            for pipeline in listing
                .items
                .iter()
                .filter(|p| p.desired_state == DesiredState::Running)
            {
                // A pipeline that does not start must not keep the platform down; its status says why.
                match va_pipelines::load(
                    pipeline.name.as_str(),
                    &pipeline.definition,
                    names.as_ref(),
                ) {
                    Ok(loaded) => {
                        if let Err(error) = self.run(loaded.plan).await {
                            tracing::error!(pipeline = %pipeline.name, %error, "a pipeline did not start");
                        }
                    }
                    Err(error) => {
                        tracing::error!(pipeline = %pipeline.name, %error, "a pipeline did not start");
                    }
                }
            }
            match listing.next {
                Some(cursor) => page.cursor = Some(cursor),
                None => break,
            }
        }
        crate::ingest::resume(self).await.map_err(part("catalog"))?;
        tokio::spawn(upkeep(self.clone()));
        Ok(())
    }

    /// Registers the topics of a plan and runs it.
    pub async fn run(&self, plan: Plan) -> Result<(), String> {
        for (name, schema) in &plan.topics {
            if self.catalog.topic(&self.tenant, name).await.is_err() {
                let topic = new_topic(name.clone(), schema.clone());
                self.catalog
                    .create_topic(&self.tenant, &topic)
                    .await
                    .map_err(|error| error.to_string())?;
            }
        }
        self.runtime
            .start(plan)
            .await
            .map_err(|error| error.to_string())
    }

    /// What pipelines can name: built-in topics and those of the catalog, as of now.
    pub async fn names(&self) -> Result<Arc<dyn Names>, va_catalog::store::CatalogError> {
        let mut topics = Vec::new();
        let mut page = Page::first(500);
        loop {
            let listing = self.catalog.topics(&self.tenant, &page).await?;
            topics.extend(
                listing
                    .items
                    .into_iter()
                    .filter_map(|topic| Some((topic.name, topic.schema?))),
            );
            match listing.next {
                Some(cursor) => page.cursor = Some(cursor),
                None => break,
            }
        }
        Ok(Arc::new(ChainedNames(vec![
            Arc::new(CatalogNames(topics)),
            Arc::new(BuiltinNames),
        ])))
    }

    /// Fires when the platform goes down.
    pub fn stopping(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Stops pipelines after a last checkpoint and closes the stores.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.runtime.shutdown().await;
        if let Err(error) = self.log.close().await {
            tracing::error!(%error, "the log did not close");
        }
        self.catalog.close().await;
        let _ = std::fs::remove_file(self.data.join("server.json"));
    }
}

/// A topic as pipelines and `va topic create` make it.
pub fn new_topic(name: TopicName, schema: SchemaRef) -> Topic {
    let config = TopicConfig::default();
    Topic {
        name,
        partitions: config.partitions,
        retention: Retention {
            ms: config.retention_ms,
            bytes: config.retention_bytes,
        },
        wire_format: WireFormat::ArrowIpc,
        schema: Some(schema),
        description: String::new(),
    }
}

struct CatalogNames(Vec<(TopicName, SchemaRef)>);

impl Names for CatalogNames {
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef> {
        self.0
            .iter()
            .find(|(name, _)| name == topic)
            .map(|(_, schema)| schema.clone())
    }

    fn topics(&self) -> Vec<TopicName> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

fn lock(data: &Path) -> Result<File, OpenError> {
    let path = data.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(data.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Retention and idle models, now and then.
async fn upkeep(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.shutdown.cancelled() => return,
        }
        match platform.log.enforce_retention(now_ms()).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "retention removed rows"),
            Err(error) => tracing::warn!(%error, "retention failed; it is tried again"),
        }
        let embedders = platform.embedders.clone();
        match tokio::task::spawn_blocking(move || embedders.unload_idle(MODEL_IDLE)).await {
            Ok(0) | Err(_) => {}
            Ok(models) => tracing::info!(models, "idle models left memory"),
        }
    }
}

/// Whether a pipeline is one of ours, which users cannot change.
pub fn is_built_in(name: &PipelineName) -> bool {
    va_pipelines::definitions::builtin()
        .iter()
        .any(|(file, _)| file.strip_suffix(".yaml") == Some(name.as_str()))
}
