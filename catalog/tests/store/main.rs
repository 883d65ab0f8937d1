//! The catalog store as its users see it: both databases, several tenants, several tasks and processes, restarts.
//!
//! Every test runs on a SQLite file and on a real PostgreSQL server, in a database of its own. [`on_both`] makes the two
//! tests out of one function.

/// A test on SQLite and one on PostgreSQL for each of the functions, which take an [`On`].
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    super::$test($crate::On::Sqlite).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    if let Some(server) = $crate::postgres_server() {
                        super::$test($crate::On::Postgres(server)).await;
                    }
                }
            )+
        }
    };
}

mod access;
mod conversations;
mod database;
mod documents;
mod identity;
mod keys;
mod message_months;
mod objects;
mod processes;
mod quotas;
mod row_security;
#[path = "../../../deploy/dev/server.rs"]
mod server;
mod server_postgres;
mod sharing;
mod splits;
mod summaries;
mod tenancy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use va_catalog::store::*;
use va_catalog::*;

use crate::server::Server;

/// The database that a test runs on.
#[derive(Clone, Copy)]
enum On {
    Sqlite,
    /// The URL of a server.
    Postgres(&'static str),
}

/// The URL of the one server of this test process; `None` where there is no PostgreSQL, which is told.
fn postgres_server() -> Option<&'static str> {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    match SERVER.get_or_init(|| Server::start("postgres.sh")) {
        Ok(server) => Some(server.url()),
        Err(reason) => {
            server::skip(reason);
            None
        }
    }
}

/// The URL of a new, empty database on the server.
async fn new_database(server: &str, options: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let mut connection = PgConnection::connect(server).await.expect("a connection");
    sqlx::query(&format!("CREATE DATABASE {name} {options}"))
        .execute(&mut connection)
        .await
        .expect("a database");
    connection.close().await.expect("closed");
    database_url(server, &name)
}

/// The server's URL with another database.
fn database_url(server: &str, name: &str) -> String {
    let (server, _) = server.rsplit_once('/').expect("a URL with a database");
    format!("{server}/{name}")
}

/// A catalog in a database of its own, and a folder, whose clock stands still until it is moved.
struct Bench {
    catalog: Catalog,
    clock: Arc<AtomicI64>,
    folder: TempDir,
    /// Path or URL.
    location: String,
}

impl Bench {
    async fn new(on: On) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let location = match on {
            On::Sqlite => folder.path().join("catalog.db").display().to_string(),
            On::Postgres(server) => new_database(server, "").await,
        };
        let clock = Arc::new(AtomicI64::new(1_000));
        let catalog = open(&location, &clock).await;
        Self {
            catalog,
            clock,
            folder,
            location,
        }
    }

    /// With a master key, as people's data needs it.
    async fn unlocked(on: On) -> Self {
        let bench = Self::new(on).await;
        let catalog = bench
            .catalog
            .unlocked(master(1))
            .await
            .expect("the key fits");
        Self { catalog, ..bench }
    }

    async fn with_collection(on: On) -> (Self, CollectionRef) {
        let bench = Self::new(on).await;
        let collection = collection("default", "帮助-2026");
        bench
            .catalog
            .create_collection(&collection, &CollectionConfig::default())
            .await
            .expect("a collection");
        (bench, collection)
    }

    async fn reopened(self) -> Self {
        self.catalog.close().await;
        let catalog = open(&self.location, &self.clock).await;
        Self { catalog, ..self }
    }

    /// A second handle on the same database, as another process would have.
    async fn second(&self) -> Catalog {
        open(&self.location, &self.clock).await
    }
}

/// A master key that is `byte` 32 times.
fn master(byte: u8) -> MasterKey {
    let text = ["AQEB", "AgIC"][usize::from(byte) - 1].repeat(10);
    let last = ["AQE=", "AgI="][usize::from(byte) - 1];
    MasterKey::parse(&format!("{text}{last}")).expect("a key")
}

async fn open(location: &str, clock: &Arc<AtomicI64>) -> Catalog {
    let clock = Arc::clone(clock);
    Catalog::open_with_clock(location, Arc::new(move || clock.load(Ordering::SeqCst)))
        .await
        .expect("a catalog")
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a valid name")
}

fn collection(tenant_name: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: tenant(tenant_name),
        collection: CollectionName::new(name).expect("a valid name"),
    }
}

/// Not the hash of the content, but different contents have different ones, and 64 hexadecimal digits are enough here.
fn hash(content: &str) -> ContentHash {
    let digits: String = content
        .bytes()
        .chain(std::iter::repeat(0))
        .take(32)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ContentHash::new(digits).expect("a hash")
}

fn version_of(uri: &str, content: &str) -> NewVersion {
    NewVersion {
        uri: uri.to_owned(),
        name: uri.rsplit('/').next().unwrap_or(uri).to_owned(),
        content_type: Some("text/html".to_owned()),
        content_hash: hash(content),
        size: content.len() as u64,
        metadata: BTreeMap::from([("语言".to_owned(), "中文".to_owned())]),
        readers: None,
    }
}

fn outcome(begun: Begun) -> (u32, BeginOutcome, DocumentState) {
    (begun.version.0, begun.outcome, begun.state)
}
