//! The platform of one process: opens every store, starts the pipelines where they run, and stops in order.
//!
//! [`Role`] says what of it a process does: all of it, the pipelines only, or everything but the pipelines. What only one
//! of several processes has to do is done under a lease of the catalog.
//!
//! Layout of the data directory: `catalog.db` and `objects/` (unless the settings name servers for them), `log/`, `vectors/` and `texts/` (`splits/` where the indexes are shared), `admin.key`, `master.key`, `server.json`
//! (where the process that holds it listens) and `lock`.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use tokio_util::sync::CancellationToken;
use va_catalog::settings::llm::LlmSettings;
use va_catalog::settings::{
    Durability, IndexSettings, KafkaMap, LogSettings, ParseSettings, Settings,
};
use va_catalog::store::{Catalog, Page, Retention, Topic, WireFormat, built_in_topics};
use va_catalog::{CollectionRef, PipelineName, TenantId, TopicName};
use va_connectors::cache::Cache;
use va_connectors::flow::Names;
use va_connectors::log::embedded::{EmbeddedLog, Options as LogOptions};
use va_connectors::log::{Log, TopicConfig};
use va_connectors::objects::{Objects, S3Options};
use va_endpoints::Indexes;
use va_fulltext::{TantivyIndex, TextIndex};
use va_models::{Embedders, ModelStore};
use va_parse_worker::{PoolOptions, WorkerPool};
use va_pipelines::plan::{BuiltinNames, ChainedNames};
use va_pipelines::{Diagnostics, Plan, Runtime, RuntimeConfig};
use va_splits::{SplitOptions, SplitStore};
use va_vector::{LanceStore, VectorStore};

use crate::disk::Disk;
use crate::gateway::Gateway;
use crate::identity::Identity;

/// How long a parser process without work is kept.
const PARSER_IDLE: Duration = Duration::from_secs(60);
/// How often idle models and processes, and expired rows, are looked for; more often when models may not stay as long.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The same where indexes are shared: each checkpoint of each worker adds a split, which a search has to look into.
const MERGE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a server elsewhere may be away before pipelines give up.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// How often a process that shares its stores looks for what a dead one left undone, and how long it does so alone.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(90);

/// Why an answer is partial that nobody writes any more.
const ABANDONED: &str = "the server ended while it was written";

/// What a process does of the platform's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All of it: `va up`, and commands that find no server.
    Up,
    /// Pipelines: `va worker`. Any number of them share the partitions.
    Worker,
    /// The APIs: `va serve`. Any number of them.
    Serve,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Worker => "worker",
            Self::Serve => "serve",
        }
    }

    pub fn runs_pipelines(self) -> bool {
        self != Self::Serve
    }
}

/// Every open part of the platform.
pub struct Platform {
    pub role: Role,
    /// Names this process among all that share its stores.
    pub process: String,
    pub settings: Settings,
    pub data: PathBuf,
    pub tenant: TenantId,
    pub catalog: Catalog,
    /// What is kept for a while and may be lost.
    pub cache: Arc<dyn Cache>,
    /// What is counted for limits.
    pub counters: crate::cache::Counters,
    pub identity: Identity,
    pub log: Arc<dyn Log>,
    pub objects: Objects,
    pub indexes: Arc<Indexes>,
    pub embedders: Arc<Embedders>,
    /// Models behind providers.
    pub gateway: Arc<Gateway>,
    pub parser: Arc<WorkerPool>,
    pub disk: Disk,
    pub runtime: Runtime,
    pub admin_key: PathBuf,
    pub started_at_ms: i64,
    /// Which topics take nothing new, because their readers are too far behind.
    pub backlog: crate::backlog::Backlog,
    /// Which users' pipelines run here.
    pub deployment: crate::deployment::Deployment,
    /// How far `index` is behind, as last asked.
    pub(crate) freshness: crate::freshness::Freshness,
    /// Answers of conversations that are being written here.
    pub conversations: crate::conversations::Conversations,
    /// What answering keeps between questions.
    pub answers: crate::rag::Answers,
    /// Held while dead letters are retried: one retry at a time.
    pub(crate) retrying: tokio::sync::Mutex<()>,
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
        "`{data}` is in use by {holder}; talk to that one (commands find it by themselves) or stop it first",
        data = data.display()
    )]
    InUse { data: PathBuf, holder: String },
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

/// The log that the settings name.
async fn open_log(settings: &LogSettings, data: &Path) -> Result<Arc<dyn Log>, OpenError> {
    if let Some(brokers) = &settings.brokers {
        return kafka_log(brokers, &settings.kafka, data).await;
    }
    let durability = match settings.durability {
        Durability::EveryCommit => va_connectors::log::embedded::Durability::EveryCommit,
        Durability::Interval => va_connectors::log::embedded::Durability::Interval(
            Duration::from_millis(settings.interval_ms),
        ),
    };
    let log_dir = data.join("log");
    let log = tokio::task::spawn_blocking(move || {
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
    Ok(log)
}

/// The indexes that the settings name.
async fn open_indexes(
    settings: &IndexSettings,
    data: &Path,
    catalog: &Catalog,
    objects: &Objects,
) -> Result<Arc<Indexes>, OpenError> {
    if settings.shared {
        let options = SplitOptions {
            refresh_ms: settings.refresh_ms,
            cache_bytes_max: settings.cache_bytes_max,
            ..SplitOptions::default()
        };
        let (catalog, objects) = (catalog.clone(), objects.clone());
        let splits = SplitStore::open(catalog, objects, data.join("splits"), options).await;
        return Ok(Arc::new(Indexes::shared(
            &splits.map_err(part("shared indexes"))?,
        )));
    }
    let vectors: Arc<dyn VectorStore> = Arc::new(
        LanceStore::open(data.join("vectors"))
            .await
            .map_err(part("vector store"))?,
    );
    let texts: Arc<dyn TextIndex> =
        Arc::new(TantivyIndex::open(data.join("texts")).map_err(part("full-text index"))?);
    Ok(Arc::new(Indexes::new(vectors, texts)))
}

#[cfg(feature = "kafka")]
async fn kafka_log(
    brokers: &str,
    options: &KafkaMap,
    data: &Path,
) -> Result<Arc<dyn Log>, OpenError> {
    use va_connectors::log::kafka::{KafkaLog, KafkaOptions};
    let mut options = options.0.clone();
    options.insert("brokers".into(), brokers.into());
    options
        .entry("state_dir")
        .or_insert_with(|| data.join("kafka-state").to_string_lossy().into());
    let options: KafkaOptions = serde_json::from_value(options.into())
        .map_err(|error| part("log")(format!("`log.kafka`: {error}")))?;
    Ok(KafkaLog::connect(options).await.map_err(part("log"))?)
}

#[cfg(not(feature = "kafka"))]
async fn kafka_log(_: &str, _: &KafkaMap, _: &Path) -> Result<Arc<dyn Log>, OpenError> {
    Err(part("log")(
        "`log.brokers` is set, but this `va` was built without Kafka; build it with `--features kafka`, as `make release` does",
    ))
}

impl Platform {
    /// Opens everything. Nothing runs yet: see [`Platform::start`].
    pub async fn open(settings: Settings, role: Role) -> Result<Arc<Self>, OpenError> {
        if role != Role::Up {
            require_servers(&settings, role)?;
        }
        let data = settings.data.clone();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        std::fs::create_dir_all(&data).map_err(io(&data))?;
        let data = data.canonicalize().map_err(io(&data))?;
        let lock = lock(&data)?;

        let catalog = Catalog::open(settings.catalog.location(&data))
            .await
            .map_err(part("catalog"))?;
        // A worker answers nobody, so it needs nobody's data.
        let (catalog, locked) = match role {
            Role::Worker => (catalog, None),
            _ => crate::identity::unlock(catalog, &settings.identity, &data)
                .await
                .map_err(part("catalog"))?,
        };
        let cache = crate::cache::open(&settings.cache)
            .await
            .map_err(part("cache"))?;
        // In memory there is nobody to count together with.
        let shared = settings.cache.url.is_some().then(|| cache.clone());
        let identity = Identity::new(catalog.clone(), settings.identity.clone(), locked, shared);
        let admin_key = if role == Role::Worker {
            // It answers nobody.
            data.join("admin.key")
        } else {
            let key = catalog.ensure_admin_key(&data).await;
            key.map_err(part("catalog"))?
        };
        let log = open_log(&settings.log, &data).await?;
        let objects = match &settings.objects.url {
            Some(url) => Objects::open(url, &S3Options::default()).await,
            None => Objects::local(&data.join("objects")),
        }
        .map_err(part("object store"))?;
        // Nobody uploads yet, so all of them are of a process that died.
        let unfinished = objects
            .remove_unfinished()
            .await
            .map_err(part("object store"))?;
        if unfinished > 0 {
            tracing::info!(
                files = unfinished,
                "removed uploads that a stop had interrupted"
            );
        }
        let indexes = open_indexes(&settings.indexes, &data, &catalog, &objects).await?;
        let models = ModelStore::open(
            settings
                .models
                .dir
                .clone()
                .unwrap_or_else(va_models::default_model_dir),
        )
        .map_err(part("model store"))?;
        let embedders = Arc::new(Embedders::new(models));
        let process = uuid::Uuid::now_v7().to_string();
        // A worker answers nobody, so it needs no keys of providers either.
        let llm = match role {
            Role::Worker => LlmSettings::default(),
            Role::Up | Role::Serve => settings
                .llm
                .clone()
                .or_environment(crate::gateway::variable),
        };
        let gateway = Gateway::new(
            &llm,
            embedders.clone(),
            log.clone(),
            cache.clone(),
            &process,
        );
        let gateway = Arc::new(gateway.map_err(part("model gateway"))?);
        let parser =
            Arc::new(WorkerPool::new(pool_options(&settings.parse)).map_err(part("parser"))?);

        let answers = crate::rag::Answers::open(&data).map_err(part("table of synonyms"))?;
        let disk = Disk::new(&data, settings.limits.disk_free_bytes_min);
        let runtime = Runtime::new(RuntimeConfig {
            log: log.clone(),
            operators: va_operators::Resources {
                objects: objects.clone(),
                embedders: embedders.clone(),
                parser: parser.clone(),
            },
            endpoints: va_endpoints::Resources {
                log: log.clone(),
                catalog: catalog.clone(),
                indexes: indexes.clone(),
            },
            clock: Arc::new(now_ms),
            patience: if settings.log.brokers.is_some() || catalog.is_shared() {
                PATIENCE
            } else {
                Duration::ZERO
            },
        });
        Ok(Arc::new(Self {
            role,
            process,
            settings,
            data,
            tenant: TenantId::default_tenant(),
            catalog,
            counters: crate::cache::Counters::new(cache.clone()),
            cache,
            identity,
            log,
            objects,
            indexes,
            embedders,
            gateway,
            parser,
            disk,
            runtime,
            admin_key,
            started_at_ms: now_ms(),
            backlog: crate::backlog::Backlog::default(),
            deployment: crate::deployment::Deployment::default(),
            freshness: crate::freshness::Freshness::default(),
            conversations: crate::conversations::Conversations::default(),
            answers,
            retrying: tokio::sync::Mutex::default(),
            folders: crate::folder::served::Folders::default(),
            shutdown: CancellationToken::new(),
            _lock: lock,
        }))
    }

    /// Creates the built-in topics, starts the built-in pipelines and those that were running, and begins upkeep.
    pub async fn start(self: &Arc<Self>) -> Result<(), OpenError> {
        let ahead = self.indexes.recover().await.map_err(part("indexes"))?;
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
        if self.role != Role::Worker {
            self.gateway.start(self);
        }
        if self.role.runs_pipelines() {
            for (file, text) in va_pipelines::definitions::builtin() {
                let loaded = va_pipelines::load(file, text, &BuiltinNames)?;
                self.run(loaded.plan).await.map_err(part("pipeline"))?;
            }
            crate::deployment::follow(self)
                .await
                .map_err(part("catalog"))?;
        }
        if self.catalog.is_shared() {
            tokio::spawn(crate::processes::run(self.clone()));
            tokio::spawn(crate::deployment::run(self.clone()));
            tokio::spawn(tidy(self.clone()));
        } else {
            // Nobody else uses these stores, so what is under way now was left so by a stop.
            crate::ingest::resume(self, Duration::ZERO)
                .await
                .map_err(part("catalog"))?;
            crate::dead_letters::resume(self)
                .await
                .map_err(part("dead letters"))?;
            self.catalog
                .end_abandoned_answers_all_tenants(i64::MAX, ABANDONED)
                .await
                .map_err(part("catalog"))?;
        }
        if !ahead.is_empty() {
            tokio::spawn(recovered(self.clone()));
        }
        tokio::spawn(upkeep(self.clone()));
        tokio::spawn(crate::disk::watch(self.clone()));
        if self.role != Role::Worker {
            tokio::spawn(crate::backlog::watch(self.clone()));
            tokio::spawn(crate::conversations::outbox::run(self.clone()));
            tokio::spawn(crate::conversations::months::run(self.clone()));
        }
        tokio::spawn(crate::sweep::run(self.clone()));
        Ok(())
    }

    /// Registers the topics of a plan and runs it.
    pub async fn run(&self, plan: Plan) -> Result<(), String> {
        for (name, schema) in &plan.topics {
            if self.catalog.topic(&self.tenant, name).await.is_err() {
                let mut topic = new_topic(name.clone(), schema.clone());
                let format = plan.formats.iter().find(|(topic, _)| topic == name);
                if let Some((_, format)) = format {
                    let options = serde_json::to_value(format).map_err(|e| e.to_string())?;
                    topic.wire_format = WireFormat::Messages(options);
                }
                match self.catalog.create_topic(&self.tenant, &topic).await {
                    // Another process that starts at the same moment was first.
                    Ok(()) | Err(va_catalog::store::CatalogError::Exists { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        for (name, columns) in &plan.writes {
            // What is new to the topic is known from now on: readers that declare nothing see it too.
            self.catalog
                .evolve_topic(&self.tenant, name, columns)
                .await
                .map_err(|error| error.to_string())?;
        }
        // An alert on its growth needs it to be there before it grows.
        metrics::counter!("va_pipeline_conservation_violations_total",
            "pipeline" => plan.graph.name.to_string())
        .increment(0);
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
                    .filter_map(|topic| Some((topic.name, topic.schema?, topic.wire_format))),
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

    /// Whether this process does what only one of several needs to do; for the next [`LEASE`] if so. May be true in
    /// two of them for a while (see [`Catalog::lease`]).
    pub async fn leads(&self, what: &str) -> bool {
        if !self.catalog.is_shared() {
            return true;
        }
        match self.catalog.lease(what, &self.process, LEASE).await {
            Ok(leads) => leads,
            Err(error) => {
                tracing::warn!(%error, what, "ask for the lease");
                false
            }
        }
    }

    /// Ends what [`Platform::leads`] began, for the next process.
    pub async fn lets_go(&self, what: &str) {
        if self.catalog.is_shared()
            && let Err(error) = self.catalog.end_lease(what, &self.process).await
        {
            tracing::debug!(%error, what, "give the lease back; it ends by itself");
        }
    }

    /// Stops pipelines after a last checkpoint and closes the stores.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.conversations.close().await;
        self.runtime.shutdown().await;
        if self.catalog.is_shared()
            && let Err(error) = self.catalog.forget_process(&self.process).await
        {
            tracing::debug!(%error, "say goodbye to the other processes");
        }
        self.parser.end_idle(Duration::ZERO);
        self.gateway.close().await;
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
        wire_format: WireFormat::Batches,
        schema: Some(schema),
        description: String::new(),
    }
}

struct CatalogNames(Vec<(TopicName, SchemaRef, WireFormat)>);

impl Names for CatalogNames {
    fn topic_schema(&self, topic: &TopicName) -> Option<SchemaRef> {
        self.0
            .iter()
            .find(|(name, ..)| name == topic)
            .map(|(_, schema, _)| schema.clone())
    }

    fn topic_format(&self, topic: &TopicName) -> Option<serde_json::Value> {
        self.0
            .iter()
            .find(|(name, ..)| name == topic)
            .and_then(|(.., format)| format.messages().cloned())
    }

    fn topics(&self) -> Vec<TopicName> {
        self.0.iter().map(|(name, ..)| name.clone()).collect()
    }
}

/// Who holds the data directory, as far as it has said so.
fn holder(data: &Path) -> String {
    let pid = std::fs::read_to_string(data.join("lock")).unwrap_or_default();
    let mut holder = match pid.trim() {
        "" => "another `va` process".to_owned(),
        pid => format!("the `va` process {pid}"),
    };
    let note = std::fs::read_to_string(data.join("server.json")).unwrap_or_default();
    let note: serde_json::Value = serde_json::from_str(&note).unwrap_or_default();
    // A killed process leaves its note behind.
    if pid.trim().parse().is_ok_and(|pid: u64| note["pid"] == pid)
        && let Some(address) = note["address"].as_str()
    {
        holder.push_str(&format!(" ({address})"));
    }
    holder
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
        Ok(()) => {
            // For the message that another process gives; the lock holds without it.
            let _ = std::fs::write(&path, std::process::id().to_string());
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            data: data.to_owned(),
            holder: holder(data),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// A process of a role needs stores that others reach, too. Says all that is missing.
fn require_servers(settings: &Settings, role: Role) -> Result<(), OpenError> {
    let mut missing = Vec::new();
    if settings.log.brokers.is_none() {
        missing.push("`log.brokers` (a Kafka cluster)");
    }
    if settings.catalog.url.is_none() {
        missing.push("`catalog.url` (a PostgreSQL database)");
    }
    if settings.objects.url.is_none() {
        missing.push("`objects.url` (a bucket)");
    }
    if !settings.indexes.shared {
        missing.push("`indexes.shared: true`");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(part("stores")(format!(
        "`va {role}` works with others on one set of stores, but the settings do not name {missing}; name them in va.yaml, \
         or use `va up`, which needs none",
        role = role.as_str(),
        missing = missing.join(", ")
    )))
}

/// Takes up what a process that died had begun, wherever it ran: uploads that did not reach the log, retries of dead
/// letters. One process at a time does it, and what it does again is harmless.
async fn tidy(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(TIDY_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.shutdown.cancelled() => return,
        }
        if !platform.leads("tidy").await {
            continue;
        }
        if let Err(error) = crate::ingest::resume(&platform, crate::ingest::ABANDONED_AFTER).await {
            tracing::warn!(%error, "take up uploads that a process left undone; it is tried again");
        }
        if let Err(error) = crate::dead_letters::resume(&platform).await {
            tracing::warn!(%error, "take up retries that a process left undone; it is tried again");
        }
        // No answer takes so long.
        let longest = crate::conversations::ANSWER_TIME_MAX * 2;
        let before = now_ms() - i64::try_from(longest.as_millis()).unwrap_or(i64::MAX);
        let ended = platform
            .catalog
            .end_abandoned_answers_all_tenants(before, ABANDONED);
        if let Err(error) = ended.await {
            tracing::warn!(%error, "end answers that a process left undone; it is tried again");
        }
    }
}

/// Lets searches go on to the newest state when the pipelines have done again what a crash left uncommitted.
async fn recovered(platform: Arc<Platform>) {
    let names = platform.runtime.names();
    for name in names {
        let Ok(mut checkpoints) = platform.runtime.checkpoints(&name) else {
            continue;
        };
        loop {
            checkpoints.borrow_and_update();
            // New rows may arrive all the time; what matters is that a checkpoint followed the start, or none was due.
            let status = platform.runtime.status(&name).await;
            let settled = *checkpoints.borrow() > 0 || status.is_ok_and(|s| s.lag_rows == 0);
            if settled {
                break;
            }
            tokio::select! {
                changed = checkpoints.changed() => if changed.is_err() { break },
                () = platform.shutdown.cancelled() => return,
            }
        }
    }
    platform.indexes.recovered().await;
}

fn pool_options(settings: &ParseSettings) -> PoolOptions {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    PoolOptions {
        workers: settings
            .workers
            .map_or_else(cores, |workers| workers.get() as usize),
        timeout: Duration::from_millis(settings.timeout_ms),
        memory_bytes_max: settings.memory_bytes_max,
        limits: va_parse::Limits {
            text_bytes_max: usize::try_from(settings.text_bytes_max).unwrap_or(usize::MAX),
            ..va_parse::Limits::default()
        },
    }
}

/// Retention, idle models, idle parsers and the files of the vector store, now and then.
async fn upkeep(platform: Arc<Platform>) {
    let model_idle = Duration::from_millis(platform.settings.models.idle_ms);
    let longest = if platform.settings.indexes.shared {
        MERGE_INTERVAL
    } else {
        UPKEEP_INTERVAL
    };
    let mut ticks = tokio::time::interval(model_idle.clamp(Duration::from_secs(1), longest));
    // After a busy while one look is enough, not one for each that was missed.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The state of each collection's vectors when they were last optimized.
    let mut optimized = HashMap::new();
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
        match platform.parser.end_idle(PARSER_IDLE) {
            0 => {}
            workers => tracing::debug!(workers, "idle parser processes ended"),
        }
        // Needed for Chinese words only, and as long as a model for the next time.
        if va_fulltext::unload_idle(model_idle) {
            tracing::debug!("idle dictionary of Chinese left memory");
        }
        let (embedders, gateway) = (platform.embedders.clone(), platform.gateway.clone());
        let unload = move || embedders.unload_idle(model_idle) + gateway.unload_idle(model_idle);
        match tokio::task::spawn_blocking(unload).await {
            Ok(0) | Err(_) => {}
            Ok(models) => tracing::info!(models, "idle models left memory"),
        }
        if platform.role != Role::Worker && platform.leads("identity").await {
            match platform.identity.tidy().await {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(rows, "ended sessions and old audit events are gone"),
                Err(error) => tracing::warn!(%error, "remove ended sessions; it is tried again"),
            }
        }
        // Searches are not to compete with merges.
        if platform.role.runs_pipelines() && platform.leads("optimize").await {
            optimize(&platform, &mut optimized).await;
        }
    }
}

/// Merges small files, removes old versions and builds or extends the vector index of every collection that has
/// changed. Searches and writes go on meanwhile.
async fn optimize(platform: &Platform, optimized: &mut HashMap<CollectionRef, u64>) {
    let vectors = &platform.indexes.vectors;
    let collections = match vectors.collections().await {
        Ok(collections) => collections,
        Err(error) => return tracing::warn!(%error, "list the collections to optimize"),
    };
    optimized.retain(|collection, _| collections.contains(collection));
    for collection in collections {
        if platform.shutdown.is_cancelled() {
            return;
        }
        let version = async || match vectors.snapshot(&collection).await {
            Ok(snapshot) => snapshot.map(|snapshot| snapshot.version()),
            Err(_) => None,
        };
        if version().await == optimized.get(&collection).copied() {
            continue;
        }
        match vectors.optimize(&collection).await {
            Ok(report) => {
                // Metrics are read without a credential, so they name no tenant's collection.
                let name = blind(&collection);
                metrics::gauge!("va_vector_fragments", "collection" => name)
                    .set(report.fragments_after as f64);
                if !report.indexes.is_empty() {
                    tracing::info!(%collection, indexes = ?report.indexes, "vector indexes were built or extended");
                }
                // Its own commits are no change.
                if let Some(version) = version().await {
                    optimized.insert(collection, version);
                }
            }
            Err(error) => {
                tracing::warn!(%collection, %error, "optimizing failed; it is tried again");
            }
        }
    }
}

/// Tells collections apart without naming them.
fn blind(collection: &CollectionRef) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("va metrics {collection}"));
    digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether a pipeline is one of ours, which users cannot change.
pub fn is_built_in(name: &PipelineName) -> bool {
    va_pipelines::definitions::builtin()
        .iter()
        .any(|(file, _)| file.strip_suffix(".yaml") == Some(name.as_str()))
}
