//! The handle on the catalog database: opening, migrating, reading and writing.
//!
//! SQLite has one writer at a time, so writes go through a pool of one connection and queue there instead of failing
//! as busy; reads have their own connections and, in WAL mode, never wait for the writer. Every query names its
//! tenant; the few that do not end in `_all_tenants`, besides looking up a key, which is how a tenant is found.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Sqlite, Transaction};

use super::error::CatalogError;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// How long a write waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// Tells the time: UTC, milliseconds since 1970. Tests bring their own.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The catalog of one data directory. Cloning shares the connections.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) write: SqlitePool,
    pub(crate) read: SqlitePool,
    clock: Clock,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the database file (a path, or a URL that begins with `sqlite:`), makes it when there is none, brings it up to date and registers
    /// the default tenant and the built-in topics.
    pub async fn open(location: impl AsRef<Path>) -> Result<Self, CatalogError> {
        let clock = Arc::new(|| chrono::Utc::now().timestamp_millis());
        Self::open_with_clock(location, clock).await
    }

    /// [`Catalog::open`] with a clock of one's own.
    pub async fn open_with_clock(
        location: impl AsRef<Path>,
        clock: Clock,
    ) -> Result<Self, CatalogError> {
        let (options, path) = connect_options(location.as_ref())?;
        let opening = || format!("open the catalog `{path}`");
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            // A closed idle connection would have to be set up again, and gains nothing here.
            .idle_timeout(None)
            .max_lifetime(None)
            // On a full disk a commit can fail and its rollback too; a connection that still counts a transaction would
            // refuse every later one, so it gives way to a new one.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options.clone())
            .await
            .map_err(|error| CatalogError::storage(opening(), error))?;
        if let Err(error) = MIGRATIONS.run(&write).await {
            write.close().await;
            return Err(migration_error(&path, error));
        }
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.read_only(true))
            .await
            .map_err(|error| CatalogError::storage(opening(), error))?;
        let catalog = Self { write, read, clock };
        catalog.register_built_ins().await?;
        Ok(catalog)
    }

    /// Waits for running queries and closes the connections. Every committed write is safe without it.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    pub(crate) fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// A write transaction. It takes the database's write lock at once, so that what it reads cannot change before it
    /// writes, whichever process the other writer is in.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, CatalogError> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }
}

fn connect_options(location: &Path) -> Result<(SqliteConnectOptions, String), CatalogError> {
    let shown = location.display().to_string();
    let text = location.to_str().unwrap_or_default();
    let options = if text.starts_with("sqlite:") {
        if text.contains(":memory:") {
            return Err(CatalogError::Invalid(format!(
                "`{text}` is not kept: use the path of a file"
            )));
        }
        SqliteConnectOptions::from_str(text)
            .map_err(|error| CatalogError::Invalid(format!("`{text}`: {error}")))?
    } else if let Some((scheme, _)) = text.split_once("://") {
        return Err(CatalogError::Invalid(format!(
            "`{scheme}` is not a catalog database that this version can use: use a path or a URL that begins with `sqlite:`"
        )));
    } else {
        SqliteConnectOptions::new().filename(location)
    };
    if let Some(folder) = options.get_filename().parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            CatalogError::storage(format!("create the folder `{}`", folder.display()), error)
        })?;
    }
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // With every commit on disk, a document that was acknowledged is never forgotten, as in the log.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    Ok((options, shown))
}

fn migration_error(path: &str, error: MigrateError) -> CatalogError {
    match error {
        MigrateError::VersionMissing(found) => CatalogError::NewerDatabase {
            path: path.to_owned(),
            found,
            known: MIGRATIONS
                .iter()
                .map(|migration| migration.version)
                .max()
                .unwrap_or_default(),
        },
        other => CatalogError::storage(format!("bring the catalog `{path}` up to date"), other),
    }
}
