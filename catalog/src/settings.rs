//! The configuration of the program: `va.yaml`, typed, with the environment over the file over the defaults.
//!
//! What the keys are and what goes together is here; how a file and a variable are read is in `read`.

mod cache;
mod identity;
pub mod llm;
pub mod rag;
mod read;
mod server;
mod telemetry;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::ids::CollectionName;

pub use cache::CacheSettings;
pub use identity::{IdentitySettings, OidcSettings, Registration};
pub use server::ServerSettings;
pub use telemetry::{LogFormat, LogLevel, Ratio, TelemetrySettings};

/// The configuration. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory that holds everything the platform stores.
    pub data: PathBuf,
    /// Address of the HTTP server.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Address of the PostgreSQL-wire server.
    #[serde(deserialize_with = "address")]
    pub pg_listen: SocketAddr,
    pub cache: CacheSettings,
    pub catalog: CatalogSettings,
    pub objects: ObjectSettings,
    pub indexes: IndexSettings,
    pub log: LogSettings,
    pub documents: DocumentSettings,
    pub conversations: ConversationSettings,
    pub limits: LimitSettings,
    pub llm: llm::LlmSettings,
    pub models: ModelSettings,
    pub parse: ParseSettings,
    pub rag: rag::RagSettings,
    pub search: SearchSettings,
    pub server: ServerSettings,
    pub telemetry: TelemetrySettings,
    pub identity: IdentitySettings,
    /// Folders that the server keeps in collections. Only in the file, not in the environment.
    pub folders: Vec<FolderSettings>,
}

/// A folder whose files are the documents of a collection, also when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FolderSettings {
    /// The folder; one that is not there yet is waited for.
    pub path: PathBuf,
    /// The collection; it is created when it does not exist.
    pub collection: String,
    /// Metadata of its documents, for filters.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

/// Where names and states are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogSettings {
    /// URL of a PostgreSQL database that several processes share, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`; the
    /// password may be left to `PGPASSWORD` or `~/.pgpass`. Also the path of a SQLite file. Without it, `catalog.db` in the
    /// data directory.
    pub url: Option<Secret>,
}

impl CatalogSettings {
    /// What [`Catalog::open`](crate::Catalog::open) takes, for the data directory `data`.
    pub fn location(&self, data: &Path) -> PathBuf {
        self.url
            .as_ref()
            .map_or_else(|| data.join("catalog.db"), |url| url.expose().into())
    }
}

/// Where the content of documents is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectSettings {
    /// `s3://BUCKET/PREFIX`, or the path of a directory. Without it, `objects` in the data directory. Keys, region and
    /// endpoint of S3 come from the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
    /// `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` for an endpoint without TLS.
    pub url: Option<String>,
}

/// The indexes: embedded in the data directory, or shared by several processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IndexSettings {
    /// Whether the indexes are splits in the object store that the catalog lists, so that any number of processes write and
    /// search them. Needs `catalog.url` and `objects.url`; for several processes those must be PostgreSQL and S3. The two
    /// forms do not see each other's chunks: after a change, index the documents again.
    pub shared: bool,
    /// Of shared indexes: how long a search may go on with the state it knows before it asks the catalog for a newer one,
    /// in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub refresh_ms: u64,
    /// Of shared indexes: what unpacked splits may take of the data directory, in bytes; those in use stay even if it is
    /// more.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub cache_bytes_max: u64,
}

/// A text that is not shown: it prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever must use it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The log: embedded in the data directory, or on Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Brokers of a Kafka cluster, `host:port`, separated by commas. With them the log is there, and the settings of the
    /// embedded one say nothing.
    pub brokers: Option<String>,
    /// How to use that cluster: `replication_factor`, `prefix`, `security`, `properties` and more, as the reference of the
    /// Kafka log lists them.
    pub kafka: KafkaMap,
    /// When commits reach the disk.
    pub durability: Durability,
    /// With `durability: interval`, the time between two syncs, in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub interval_ms: u64,
}

/// Options of the Kafka log as they were written; they are checked when it is opened. They do not print, since a password
/// may be among them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct KafkaMap(pub Map<String, Value>);

impl fmt::Debug for KafkaMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// When commits of the log reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Each commit waits for the disk: loses nothing.
    EveryCommit,
    /// The disk is synced every `interval_ms`: a power cut loses at most that much, a crash of the program nothing.
    Interval,
}

/// Documents and their stored content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DocumentSettings {
    /// Time between two looks for stored content that no document needs any more, in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub sweep_interval_ms: u64,
    /// How many of a document's newest versions keep their content; of an older one that is superseded or failed only
    /// what was recorded stays, so it cannot be taken back.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub versions_max: u32,
}

/// Conversations and their messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConversationSettings {
    /// How many months of messages are kept before the current one (UTC); without it, all. A month that goes is noted in
    /// the audit trail of each tenant that had messages in it.
    pub keep_months: Option<NonZeroU32>,
}

/// What is refused for being too large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// The largest upload, in bytes.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub upload_bytes_max: u64,
    /// How many rows (on Kafka: records) a pipeline may be behind before what it reads takes nothing new: uploads and
    /// producers are told to come back later (429). Without it, nobody is.
    pub backlog_max: Option<NonZeroU64>,
    /// How many requests a tenant may make in a minute, over all its users and keys; more are told to come back later (429).
    /// With `cache.url` all processes count together, otherwise each for itself. Without it, as many as they like.
    pub requests_per_minute: Option<NonZeroU32>,
    /// The same for single tenants, by name, instead of `requests_per_minute`.
    pub requests_per_minute_of: BTreeMap<String, NonZeroU32>,
    /// The free space, in bytes, below which uploads are refused: indexing what was taken before needs it.
    pub disk_free_bytes_min: u64,
}

/// Local models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Directory of the model files; without it, one in the user's cache that all data directories share.
    pub dir: Option<PathBuf>,
    /// How long a model that nobody uses stays in memory, in milliseconds. It is loaded again when it is needed.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub idle_ms: u64,
}

/// What parsing one document may cost. A document that goes over a limit fails with the reason; others go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParseSettings {
    /// The longest time for one document, in milliseconds.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// The most memory that one parser process may allocate, in bytes.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub memory_bytes_max: u64,
    /// The longest text of one document, in bytes of UTF-8: it is cut into chunks and embedded as a whole.
    #[serde(deserialize_with = "positive_u64")]
    #[schemars(range(min = 1))]
    pub text_bytes_max: u64,
    /// The most parser processes at once; without it, one a processor.
    pub workers: Option<NonZeroU32>,
}

/// Search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SearchSettings {
    /// How many hits each retriever brings before they are fused; more when a query asks for more than that.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub candidates: u32,
    /// How many hits a query returns that does not say.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub k: u32,
    /// How many hits a query may ask for.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub k_max: u32,
    /// How the two lists of hits become one.
    pub fusion: FusionMethod,
    /// The constant of reciprocal rank fusion: the larger, the less the first ranks count.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub rrf_k: u32,
    /// How much the vectors count in the fusion, against `keyword_weight`.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub vector_weight: u32,
    /// How much the keywords count in the fusion, against `vector_weight`.
    #[serde(deserialize_with = "positive_u32")]
    #[schemars(range(min = 1))]
    pub keyword_weight: u32,
}

/// How the hits of the vectors and those of the keywords become one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FusionMethod {
    /// By their ranks (reciprocal rank fusion): needs no tuning to a corpus.
    #[default]
    Rrf,
    /// By their scores, brought to one scale: a hit that stands out keeps its lead. Better on the labelled questions of
    /// BENCHMARKS.md.
    Scores,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: PathBuf::from("va-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            pg_listen: SocketAddr::from(([127, 0, 0, 1], 5439)),
            cache: CacheSettings::default(),
            catalog: CatalogSettings::default(),
            objects: ObjectSettings::default(),
            indexes: IndexSettings::default(),
            log: LogSettings::default(),
            documents: DocumentSettings::default(),
            conversations: ConversationSettings::default(),
            limits: LimitSettings::default(),
            llm: llm::LlmSettings::default(),
            models: ModelSettings::default(),
            parse: ParseSettings::default(),
            rag: rag::RagSettings::default(),
            search: SearchSettings::default(),
            server: ServerSettings::default(),
            telemetry: TelemetrySettings::default(),
            identity: IdentitySettings::default(),
            folders: Vec::new(),
        }
    }
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self {
            shared: false,
            refresh_ms: 500,
            cache_bytes_max: 20 << 30,
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            brokers: None,
            kafka: KafkaMap::default(),
            durability: Durability::EveryCommit,
            interval_ms: 1000,
        }
    }
}

impl Default for DocumentSettings {
    fn default() -> Self {
        Self {
            sweep_interval_ms: 60_000,
            versions_max: 20,
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            upload_bytes_max: 100 * 1024 * 1024,
            backlog_max: None,
            requests_per_minute: None,
            requests_per_minute_of: BTreeMap::new(),
            disk_free_bytes_min: 256 * 1024 * 1024,
        }
    }
}

impl Default for ParseSettings {
    fn default() -> Self {
        Self {
            timeout_ms: 60_000,
            memory_bytes_max: 1 << 30,
            text_bytes_max: 16 << 20,
            workers: None,
        }
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            dir: None,
            idle_ms: 600_000,
        }
    }
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            candidates: 20,
            k: 5,
            k_max: 1000,
            fusion: FusionMethod::default(),
            // Measured on labelled questions, see BENCHMARKS.md: `make bench NAME=search`.
            rrf_k: 20,
            vector_weight: 2,
            keyword_weight: 3,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("read the configuration `{path}`: {source}", path = path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// `problem` names the key or the value and what is allowed.
    #[error("{place}: {problem}")]
    Invalid { place: Place, problem: String },
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Line and column from 1; 0 when the problem is not at one place.
    File {
        path: PathBuf,
        line: u64,
        column: u64,
    },
    Environment {
        variable: String,
    },
    /// The combination of several places.
    Combined,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                path,
                line: 0,
                column: _,
            } => path.display().fmt(f),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable `{variable}`"),
            Self::Combined => f.write_str("configuration"),
        }
    }
}

impl Settings {
    /// Reads the file, if there is one to read, and lays the environment over it.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
                path: path.to_owned(),
                source,
            })?;
            settings = read::file(path, &text)?;
        }
        // Sorted, so that the same environment always gives the same first error.
        let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with("VA_")).collect();
        variables.sort();
        for (name, value) in variables {
            settings = read::overlay(settings, &name, &value)?;
        }
        settings.check()?;
        Ok(settings)
    }

    /// The JSON Schema of `va.yaml`.
    pub fn json_schema() -> schemars::Schema {
        schemars::schema_for!(Self)
    }

    /// What no single value can break.
    fn check(&self) -> Result<(), SettingsError> {
        let search = &self.search;
        let problem = if search.k > search.k_max {
            format!(
                "`search.k` is {} but `search.k_max` is {}: use at most that",
                search.k, search.k_max
            )
        } else if self.listen == self.pg_listen && self.listen.port() != 0 {
            format!(
                "`listen` and `pg_listen` are both {}: use two ports",
                self.listen
            )
        } else if self.indexes.shared && (self.catalog.url.is_none() || self.objects.url.is_none())
        {
            "`indexes.shared` is true, but what is shared is not: set `catalog.url` (PostgreSQL) and `objects.url` (S3) too"
                .to_owned()
        } else if let Some(problem) = self.rag.problem() {
            problem
        } else if let Some(problem) = self.cache.problem() {
            problem
        } else if let Some(problem) = self.folders.iter().find_map(FolderSettings::problem) {
            problem
        } else if let problems = self.llm.problems()
            && !problems.is_empty()
        {
            problems.join("; ")
        } else {
            return Ok(());
        };
        Err(SettingsError::Invalid {
            place: Place::Combined,
            problem,
        })
    }
}

impl FolderSettings {
    fn problem(&self) -> Option<String> {
        let folder = self.path.display();
        if self.path.as_os_str().is_empty() {
            return Some("a folder of `folders` has no `path`".to_owned());
        }
        let error = CollectionName::new(self.collection.as_str()).err()?;
        Some(format!("`folders`, path `{folder}`: {error}"))
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "`{text}` is not an address: use IP:PORT, for example 127.0.0.1:8080 or 0.0.0.0:8080"
        ))
    })
}

fn positive_u32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = positive_u64(deserializer)?;
    u32::try_from(number)
        .map_err(|_| D::Error::custom(format!("{number} is too large: use 1 to {}", u32::MAX)))
}

fn positive_u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is too small: use at least 1")),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("va.yaml");
        std::fs::write(&path, text).expect("a file");
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::load(Some(&path), env).map_err(|error| {
            let folder = format!("{}/", folder.path().display());
            error.to_string().replace(&folder, "")
        })
    }

    #[test]
    fn environment_over_file_over_defaults() {
        let defaults = load("# nothing yet\n", &[]).expect("settings");
        assert_eq!(defaults, Settings::default());
        assert_eq!(defaults.models.dir, None);

        let settings = load(
            "data: 数据\nlog:\n  durability: interval\nsearch: {k: 7, rrf_k: 10}\n\
             folders: [{path: ./手册, collection: 帮助, meta: {lang: zh}}]\n",
            &[
                ("VA_SEARCH__K", "9"),
                ("VA_LISTEN", "0.0.0.0:80"),
                ("VA_MODELS__DIR", "2026"),
                ("VA_TELEMETRY__LOG_FORMAT", "text"),
                ("VA_LOG__KAFKA__REPLICATION_FACTOR", "1"),
                ("VA_RAG__RERANK__METHOD", "provider:ranker"),
                ("VA_RAG__RERANK__CANDIDATES", "9"),
                ("VA_RAG__HYDE", "true"),
                ("VA_LOG__KAFKA__SECURITY__SASL__USERNAME", "va"),
                ("VA_LOG__KAFKA__SECURITY__TLS", "true"),
                ("VA_TOKEN", "va_secret"),
                ("VA_LOG", "debug"),
                ("HOME", "elsewhere"),
            ],
        )
        .expect("settings");
        assert_eq!(settings.data, Path::new("数据"));
        let kafka = serde_json::json!({"replication_factor": 1, "security": {"sasl": {"username": "va"}, "tls": true}});
        assert_eq!(Value::Object(settings.log.kafka.0.clone()), kafka);
        assert_eq!(settings.log.durability, Durability::Interval);
        let rerank = &settings.rag.rerank;
        assert_eq!(rerank.method.to_string(), "provider:ranker");
        assert!(rerank.candidates == 9 && settings.rag.hyde);
        // Variables over the file leave the list as it is.
        assert_eq!(settings.folders[0].path, Path::new("./手册"));
        assert_eq!(settings.folders[0].meta["lang"], "zh");
        assert_eq!((settings.search.k, settings.search.rrf_k), (9, 10));
        assert_eq!(settings.listen.to_string(), "0.0.0.0:80");
        assert_eq!(settings.models.dir.as_deref(), Some(Path::new("2026")));
        assert_eq!(settings.telemetry.log_format, LogFormat::Text);
    }

    #[test]
    fn a_shared_catalog_has_a_url_that_is_not_shown() {
        let data = Path::new("data");
        let settings = load("", &[]).expect("settings");
        assert_eq!(
            settings.catalog.location(data),
            Path::new("data/catalog.db")
        );
        let url = "postgres://ann:s3cret@db/shop";
        let text = format!("catalog:\n  url: {url}\n");
        for settings in [load(&text, &[]), load("", &[("VA_CATALOG__URL", url)])] {
            let settings = settings.expect("settings");
            assert_eq!(settings.catalog.location(data), Path::new(url));
            assert!(!format!("{settings:?}").contains("s3cret"));
        }
        let error = load(&format!("catalog: {{url: [{url}]}}\n"), &[]).expect_err("a list");
        assert!(error.contains("va.yaml:1"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn indexes_are_shared_over_what_is_shared() {
        let text = "catalog: {url: postgres://db/va}\nobjects: {url: s3://bucket/va}\n";
        let settings = load(text, &[("VA_INDEXES__SHARED", "true")]).expect("settings");
        assert!(settings.indexes.shared);
        assert!(!load(text, &[]).expect("settings").indexes.shared);
    }

    #[test]
    fn errors_name_the_place_and_what_is_allowed() {
        let check = |text: &str, env: &[(&str, &str)], expected: &[&str]| {
            let error = load(text, env).expect_err(text);
            for part in expected {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
        };
        check(
            "log:\n  durabilty: interval\n",
            &[],
            &["va.yaml:2:3", "durabilty", "durability", "interval_ms"],
        );
        check(
            "log:\n  durability: never\n",
            &[],
            &[
                "va.yaml:2:15",
                "durability",
                "never",
                "every_commit",
                "interval",
            ],
        );
        check(
            "listen: here\n",
            &[],
            &["va.yaml:1:9", "listen", "here", "use IP:PORT"],
        );
        check(
            "search:\n  k: 0\n",
            &[],
            &["va.yaml:2", "`k: 0`", "use at least 1"],
        );
        check(
            "search:\n  k: many\n",
            &[],
            &["va.yaml:2:6: `k: many`: invalid u64"],
        );
        check(
            "folders: [{path: docs, collection: a b}]\n",
            &[],
            &["`folders`, path `docs`", "`a b`", "collection name"],
        );
        check(
            "folders: [{path: docs}]\n",
            &[],
            &["va.yaml:1", "collection"],
        );
        check(
            "search: {k: 2000}\n",
            &[],
            &["`search.k` is 2000 but `search.k_max` is 1000"],
        );
        check(
            "rag: {rerank: {method: best}}\n",
            &[],
            &["va.yaml:1", "`best`", "use `none`, `late`, `llm`"],
        );
        check(
            "rag: {rerank: {candidates: 101}}\n",
            &[],
            &["`rag.rerank.candidates` is 101: use 2 to 100"],
        );
        check(
            "indexes: {shared: true}\nobjects: {url: s3://b/p}\n",
            &[],
            &["configuration: `indexes.shared`", "`catalog.url`"],
        );
        check(
            "",
            &[("VA_INDEXES__SHARED", "perhaps")],
            &["`VA_INDEXES__SHARED`", "`indexes.shared`", "boolean"],
        );
        check("a: [\n", &[], &["va.yaml:"]);
        check(
            "",
            &[("VA_SEARCH__KAY", "1")],
            &[
                "variable `VA_SEARCH__KAY`",
                "no key `kay`",
                "`candidates`, `k`, `k_max`, `fusion`, `rrf_k`, `vector_weight`, `keyword_weight`",
            ],
        );
        check(
            "",
            &[("VA_SERCH__K", "1")],
            &["no section `serch`", "`search`"],
        );
        check(
            "",
            &[("VA_TELEMETRY__LEVEL", "loud")],
            &[
                "`VA_TELEMETRY__LEVEL`",
                "`telemetry.level`",
                "loud",
                "`trace`",
            ],
        );
        check(
            "",
            &[("VA_SEARCH__K", "-1")],
            &["`VA_SEARCH__K`", "`search.k`"],
        );
        assert!(Settings::load(Some(Path::new("no/such.yaml")), std::iter::empty()).is_err());
    }

    #[test]
    fn the_schema_knows_every_key() {
        let schema = Settings::json_schema().to_value().to_string();
        for key in [
            "pg_listen",
            "interval_ms",
            "upload_bytes_max",
            "idle_ms",
            "k_max",
            "log_format",
            "every_commit",
        ] {
            assert!(schema.contains(key), "{key}");
        }
    }
}
