//! The catalog in a file: SQLite, for one data directory and the processes that share it.
//!
//! SQLite has one writer at a time, so writes go through a pool of one connection and queue there instead of failing as
//! busy; reads have their own connections and, in WAL mode, never wait for the writer.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::database::migration_error;
use super::error::CatalogError;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// How long a write waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// The pool for writes and the pool for reads of an up-to-date database.
pub(super) async fn open(location: &Path) -> Result<(SqlitePool, SqlitePool), CatalogError> {
    let (options, path) = connect_options(location)?;
    let opening = || format!("open the catalog `{path}`");
    let write = SqlitePoolOptions::new()
        .max_connections(1)
        // A file does not go away as a server does: asking it first would be one more way to another thread and back.
        .test_before_acquire(false)
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
        return Err(migration_error(&path, &MIGRATIONS, error));
    }
    let read = SqlitePoolOptions::new()
        .max_connections(READERS)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.read_only(true))
        .await
        .map_err(|error| CatalogError::storage(opening(), error))?;
    Ok((write, read))
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
