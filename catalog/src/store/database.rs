//! The handle on the catalog database: opening it, and taking turns at writing.
//!
//! Every query names its tenant; the few that do not end in `_all_tenants`, besides looking up a key, an
//! invite or a refresh token, which is how a tenant is found. Nobody gets at a pool: [`Catalog::read_of`],
//! [`Catalog::read_all`], [`Catalog::begin`] and the others say whose rows a statement is for, and PostgreSQL shows it no
//! others. What a connection is and how a statement runs is `query.rs`'s business.
//!
//! What must hold when two processes write at once:
//!
//! - A version number of a document is given once, and the newest content of a document is begun once
//!   (`begin_versions` reads the newest version, then writes the next).
//! - The state of a version goes only where the decision on it, made from what was read, permits (`apply_news`).
//! - Nothing is begun in a collection that is being removed, and a collection goes with all its documents
//!   (`begin_versions`, `delete_collection`, `drop_collection`).
//! - A version number of a pipeline is given once; a pipeline goes with all its versions (`put_pipeline`,
//!   `delete_pipeline`).
//! - The states of a shared index are made one after the other, and each is whole (`publish_split`, `merge_splits`,
//!   `drop_splits`, `forget_splits`).
//! - Nobody has more than the quotas of the tenant permit (`begin_versions`, `create_collection`, `create_user`,
//!   `create_key`, `create_conversation`, `begin_conversation`; `quotas.rs` says how).
//! - A change of readers begins from the newest content (`change_readers`).
//! - A data directory has one admin key (`ensure_admin_key`).
//! - A tenant that has an owner keeps one (`update_user`, `delete_user`); an invite is taken once (`create_user`), a refresh
//!   token is exchanged once (`refresh_session`), and one key signs at a time (`signing_key`).
//! - Messages of a conversation are numbered without a gap, each number is given once also when the message is gone, and each
//!   is written with its event (`begin_answer`, `begin_conversation`, `finish_answer`); an answer ends once.
//! - Months of messages are made once and go once (`keep_message_months_all_tenants`).
//!
//! Each spans several rows or several statements, so its writers take turns: [`Catalog::begin`] waits for the lock of the
//! [`Part`] they write. SQLite has one lock for all. On PostgreSQL it is an advisory lock that ends with the transaction;
//! statements after it see everything that earlier holders committed, so none of these transactions can fail for being
//! outrun and be tried again, as serialisable ones would where everybody writes into one collection. Writes of a single
//! row that decide nothing (a setting, a model, the last use of a key) do without.

use std::path::Path;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};

use super::error::CatalogError;
use super::query::{On, Pool, Rows, Transaction, Why};
use super::seal::MasterKey;
use super::{postgres, sqlite};
use crate::ids::{CollectionRef, TenantId};

/// Tells the time: UTC, milliseconds since 1970. Tests bring their own.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The catalog: of one data directory in a file, or of many processes on a PostgreSQL server. Cloning shares the
/// connections.
#[derive(Clone)]
pub struct Catalog {
    write: Pool,
    read: Pool,
    pub(super) clock: Clock,
    /// What opens people's data; see [`Catalog::unlocked`].
    master: Option<Arc<MasterKey>>,
}

/// What a transaction writes. Writers of the same part take turns.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// A collection with its documents.
    Collection(&'a CollectionRef),
    /// Keys, users, sessions, pipelines and topics of a tenant.
    Tenant(&'a TenantId),
    /// Tenants, and what every tenant has.
    Tenants,
}

impl<'a> Part<'a> {
    /// Whose rows such a transaction sees.
    pub(super) fn rows(self) -> Rows<'a> {
        match self {
            Self::Collection(collection) => Rows::Of(&collection.tenant),
            Self::Tenant(tenant) => Rows::Of(tenant),
            Self::Tenants => Rows::All,
        }
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the database, brings it up to date and registers the default tenant and the built-in topics.
    ///
    /// `location` is the path of a SQLite file or a URL that begins with `sqlite:`, and the file is made when there is
    /// none; or it is a URL `postgres://USER:PASSWORD@HOST:PORT/DATABASE` (also `postgresql:`) of a PostgreSQL database
    /// that exists. What the URL leaves out comes from the usual variables (`PGHOST`, `PGPASSWORD`, ...) and the file
    /// `.pgpass`; parameters like `?sslmode=verify-full` follow it. No error shows the password.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Invalid`] for a location of another kind, [`CatalogError::NewerDatabase`], and
    /// [`CatalogError::Storage`] when the database cannot be opened, with what to do about it.
    pub async fn open(location: impl AsRef<Path>) -> Result<Self, CatalogError> {
        let clock = Arc::new(|| chrono::Utc::now().timestamp_millis());
        Self::open_with_clock(location, clock).await
    }

    /// [`Catalog::open`] with a clock of one's own.
    pub async fn open_with_clock(
        location: impl AsRef<Path>,
        clock: Clock,
    ) -> Result<Self, CatalogError> {
        let location = location.as_ref();
        let text = location.to_str().unwrap_or_default();
        let (write, read) = match text.split_once("://") {
            Some(("postgres" | "postgresql", _)) => {
                let pool = postgres::open(text).await?;
                (Pool::Postgres(pool.clone()), Pool::Postgres(pool))
            }
            // Only the scheme is shown: what follows may hold a password.
            Some((scheme, _)) if scheme != "sqlite" => {
                return Err(CatalogError::Invalid(format!(
                    "`{scheme}` is not a catalog database that this version can use: use a path or a URL that begins \
                     with `sqlite:` or `postgres://`"
                )));
            }
            _ => {
                let (write, read) = sqlite::open(location).await?;
                (Pool::Sqlite(write), Pool::Sqlite(read))
            }
        };
        let catalog = Self {
            write,
            read,
            clock,
            master: None,
        };
        catalog.register_built_ins().await?;
        Ok(catalog)
    }

    /// Whether several processes, each with a data directory of its own, may use this catalog at once.
    pub fn is_shared(&self) -> bool {
        matches!(self.write, Pool::Postgres(_))
    }

    /// Waits for running queries and closes the connections. Every committed write is safe without it.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// The role that this catalog is opened with, when its server shows it every row whatever the policies say, and what
    /// to do about it. `None`: row-level security is in force, or the database is a SQLite file, which has none.
    pub async fn role_above_row_security(&self) -> Result<Option<(String, String)>, CatalogError> {
        let Pool::Postgres(pool) = &self.read else {
            return Ok(None);
        };
        let mut connection = postgres::acquire(pool, Rows::Installation).await?;
        let role = postgres::bypassing_role(&mut connection).await?;
        Ok(role.map(|role| {
            let hint = postgres::row_security_hint(&role);
            (role, hint)
        }))
    }

    /// Where to read rows of a tenant.
    pub(super) fn read_of<'a>(&'a self, tenant: &'a TenantId) -> On<'a> {
        self.read.rows_of(tenant)
    }

    /// Where to write rows of a tenant, by one statement that decides nothing.
    pub(super) fn write_of<'a>(&'a self, tenant: &'a TenantId) -> On<'a> {
        self.write.rows_of(tenant)
    }

    /// Where to read rows of every tenant.
    pub(super) fn read_all(&self, why: Why) -> On<'_> {
        self.read.all_tenants(why)
    }

    /// Where to write rows of every tenant.
    pub(super) fn write_all(&self, why: Why) -> On<'_> {
        self.write.all_tenants(why)
    }

    /// Where to read what belongs to no tenant.
    pub(super) fn read_installation(&self) -> On<'_> {
        self.read.installation()
    }

    /// Where to write what belongs to no tenant.
    pub(super) fn write_installation(&self) -> On<'_> {
        self.write.installation()
    }

    /// The same connections with the key that opens people's data.
    pub(super) fn with_master(&self, master: MasterKey) -> Self {
        Self {
            master: Some(Arc::new(master)),
            ..self.clone()
        }
    }

    /// The key that opens people's data, if the catalog was opened with it.
    pub(super) fn master_key(&self) -> Option<&MasterKey> {
        self.master.as_deref()
    }

    pub(crate) fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// A write transaction. It waits at once for its turn at `part`, so that what it reads cannot change before it
    /// writes, whichever process the other writer is in. On SQLite that is the whole database. On PostgreSQL it sees the
    /// rows of the part's tenant only.
    pub(crate) async fn begin(&self, part: Part<'_>) -> Result<Transaction, CatalogError> {
        Ok(match &self.write {
            Pool::Sqlite(pool) => Transaction::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Pool::Postgres(pool) => Transaction::Postgres(postgres::begin(pool, part).await?),
        })
    }
}

/// Why `database` could not be brought up to date by `migrations`.
pub(super) fn migration_error(
    database: &str,
    migrations: &Migrator,
    error: MigrateError,
) -> CatalogError {
    match error {
        MigrateError::VersionMissing(found) => CatalogError::NewerDatabase {
            path: database.to_owned(),
            found,
            known: migrations
                .iter()
                .map(|migration| migration.version)
                .max()
                .unwrap_or_default(),
        },
        other => CatalogError::storage(format!("bring the catalog `{database}` up to date"), other),
    }
}
