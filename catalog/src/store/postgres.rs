//! The catalog on a PostgreSQL server, for any number of processes on any number of machines.
//!
//! One bounded pool serves reads and writes. A connection is asked whether it still works before it is used, so after a
//! restart of the server only what ran during it fails, as retriable. Writers take turns by advisory locks, see
//! `database.rs`; one that stands still inside a transaction is cut off by the server, so that it cannot hold up the
//! others for ever. Nothing here, and no error, shows a password.
//!
//! Every table with a tenant has a policy that shows the rows of the tenant in the setting `va.tenant` and no others;
//! without the setting, none. [`acquire`] and [`begin`] make it, each time: what an earlier user of the connection left
//! there is never trusted. In a transaction it costs nothing, it travels with the request for the lock; otherwise it is
//! one round trip. It belongs to the session, so between this program and the server may be no pooler that gives each
//! statement another one (PgBouncer: `pool_mode = session`).
//!
//! The policies are forced on the owner of the tables too, because the program is the owner: it makes them. A superuser
//! and a role with BYPASSRLS see everything whatever a table says, and are told so when the catalog is opened. Becoming a
//! lesser role on each connection (`SET ROLE`) would cover them as well, and is not done: a role is the whole server's and
//! not the database's, so making it, and granting it what each migration adds, would race between installations that share
//! a server and outlive them; and a role of one's own is one statement of the administrator.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Postgres, Row};

use super::database::{Part, migration_error};
use super::error::CatalogError;
use super::query::Rows;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

/// The oldest server that the tests have run on.
const SERVER_VERSION_MIN: u32 = 15;
/// Of one process; a server permits 100 if nobody changed that.
const CONNECTIONS: u32 = 8;
/// How long to wait for a connection: as long as a restart of the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How a write transaction begins. At this isolation each statement sees what was committed before it, above all what the
/// holders of the lock before us committed; the server's default may be another. The wait for the lock has an end, and so
/// has the patience with a process that took it and then says nothing (stopped, or cut off from the network).
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '30s'";
/// Other processes may be bringing the database up to date.
const MIGRATION_LOCK: &str = "SET lock_timeout = '60s'";
/// What a URL may set after its `?`. sqlx would log others, with values that may be secrets, and go on.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// The pool of an up-to-date database.
pub(super) async fn open(url: &str) -> Result<PgPool, CatalogError> {
    let options = connect_options(url)?;
    let place = Place::of(&options);
    // A single connection tells what is wrong at once; a pool would try again until it gives up without a reason.
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect());
    let mut connection = match connecting.await {
        Ok(connected) => connected.map_err(|error| place.error(error))?,
        Err(_) => return Err(place.error(sqlx::Error::PoolTimedOut)),
    };
    let prepared = prepare(&mut connection, &place).await;
    // Whatever became of it: closing ends the locks that it may still hold.
    let _ = connection.close().await;
    prepared?;
    Ok(PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        // The question below takes its place.
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move { Ok(is_outside_transaction(connection).await.unwrap_or(false)) })
        })
        .connect_lazy_with(options))
}

/// Whether the connection answers and is in no transaction. It can be in one when a call was cancelled while it began it:
/// the driver does not know, and what is written next would be undone. In a transaction the time of `now()` stands still.
/// The question is sent as plain text, because a prepared one is itself two messages with a time each.
async fn is_outside_transaction(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    connection
        .fetch_one("SELECT now() = statement_timestamp()")
        .await?
        .try_get(0)
}

/// A connection that sees and writes these rows only.
pub(super) async fn acquire(
    pool: &PgPool,
    rows: Rows<'_>,
) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    sqlx::query("SELECT set_config('va.tenant', $1, false)")
        .bind(rows.setting())
        .execute(&mut *connection)
        .await?;
    Ok(connection)
}

/// A transaction that has the lock of `part`, and sees and writes the rows of its tenant only.
pub(super) async fn begin(
    pool: &PgPool,
    part: Part<'_>,
) -> Result<sqlx::Transaction<'static, Postgres>, CatalogError> {
    let mut transaction = pool.begin_with(BEGIN).await?;
    sqlx::query("SELECT set_config('va.tenant', $1, true), pg_advisory_xact_lock($2)")
        .bind(part.rows().setting())
        .bind(lock_of(part))
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

/// The role that the connections have, when the server lets it see every row whatever the policies say.
pub(super) async fn bypassing_role(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    let row = connection
        .fetch_optional(
            "SELECT rolname::text AS role FROM pg_catalog.pg_roles \
             WHERE rolname = current_user AND (rolsuper OR rolbypassrls)",
        )
        .await?;
    row.map(|row| row.try_get("role")).transpose()
}

/// A number for the part, the same in every process. Two parts with the same number, if there ever were, would only take
/// turns needlessly.
fn lock_of(part: Part<'_>) -> i64 {
    let name = match part {
        Part::Collection(collection) => format!("va catalog collection {collection}"),
        Part::Tenant(tenant) => format!("va catalog tenant {tenant}"),
        Part::Tenants => "va catalog tenants".to_owned(),
    };
    let digest = blake3::hash(name.as_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&digest.as_bytes()[..8]);
    i64::from_le_bytes(number)
}

/// What to do about a role that sees every row.
pub(super) fn row_security_hint(role: &str) -> String {
    format!(
        "make a role for the catalog, `CREATE ROLE va LOGIN PASSWORD '...' NOSUPERUSER NOBYPASSRLS`, give it the database \
         and its tables (`ALTER DATABASE ... OWNER TO va`, `ALTER TABLE ... OWNER TO va`), and name it instead of `{role}` \
         in `catalog.url`"
    )
}

/// Checks the server and brings the tables up to date; of several processes that start at once, one does it.
async fn prepare(connection: &mut PgConnection, place: &Place) -> Result<(), CatalogError> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num') AS version, current_setting('server_encoding') AS encoding",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| place.error(error))?;
    let version: String = row.try_get("version")?;
    let encoding: String = row.try_get("encoding")?;
    place.check_server(&version, &encoding)?;
    let bypassing = bypassing_role(connection)
        .await
        .map_err(|error| place.error(error))?;
    if let Some(role) = bypassing {
        tracing::warn!(
            catalog = %place.shown(),
            %role,
            "the server does not hold this role to row-level security, so only the statements keep tenants apart: {}",
            row_security_hint(&role)
        );
    }
    sqlx::query(MIGRATION_LOCK)
        .execute(&mut *connection)
        .await
        .map_err(|error| place.error(error))?;
    // A migration may change rows of every tenant.
    sqlx::query("SELECT set_config('va.tenant', $1, false)")
        .bind(Rows::All.setting())
        .execute(&mut *connection)
        .await
        .map_err(|error| place.error(error))?;
    // `run` cannot be used in a task that moves between threads: its future is not seen to be `Send`.
    match MIGRATIONS.run_direct(connection).await {
        Ok(()) => Ok(()),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(place.error(error))
        }
        Err(error) => Err(migration_error(&place.shown(), &MIGRATIONS, error)),
    }
}

fn connect_options(url: &str) -> Result<PgConnectOptions, CatalogError> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    for parameter in parameters.split('&').filter(|part| !part.is_empty()) {
        let name = parameter
            .split_once('=')
            .map_or(parameter, |(name, _)| name);
        let known = PARAMETERS.contains(&name) || name.starts_with("options[");
        if !known {
            return Err(CatalogError::Invalid(format!(
                "the catalog URL sets `{name}`, which is not known: use {}",
                PARAMETERS.join(", ")
            )));
        }
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        CatalogError::Invalid(format!(
            "the catalog URL is not one of PostgreSQL: {error}; use postgres://USER:PASSWORD@HOST:PORT/DATABASE"
        ))
    })?;
    Ok(match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("va catalog"),
    })
}

/// Which database, for messages.
struct Place {
    host: String,
    port: u16,
    user: String,
    database: String,
}

impl Place {
    fn of(options: &PgConnectOptions) -> Self {
        let user = options.get_username().to_owned();
        Self {
            host: options.get_host().to_owned(),
            port: options.get_port(),
            database: options.get_database().unwrap_or(&user).to_owned(),
            user,
        }
    }

    fn shown(&self) -> String {
        let Self {
            host,
            port,
            user,
            database,
        } = self;
        format!("postgres://{user}@{host}:{port}/{database}")
    }

    fn check_server(&self, version: &str, encoding: &str) -> Result<(), CatalogError> {
        // 150018 is 15.18.
        let major = version.parse::<u32>().unwrap_or_default() / 10_000;
        let problem = if major < SERVER_VERSION_MIN {
            format!("the server is PostgreSQL {major}: use {SERVER_VERSION_MIN} or newer")
        } else if encoding != "UTF8" {
            format!(
                "the database has the encoding {encoding}: make one with `CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0`",
                self.database
            )
        } else {
            return Ok(());
        };
        Err(CatalogError::storage(self.action(), problem))
    }

    fn error(&self, error: sqlx::Error) -> CatalogError {
        match self.hint(&error) {
            Some(hint) => CatalogError::storage(
                self.action(),
                Hinted {
                    hint,
                    source: error,
                },
            ),
            None => CatalogError::storage(self.action(), error),
        }
    }

    fn action(&self) -> String {
        format!("open the catalog `{}`", self.shown())
    }

    fn tls_hint(&self) -> String {
        format!(
            "the TLS of {} is not what `sslmode` asks for: check its certificate and the URL's `sslmode` and `sslrootcert`",
            self.host
        )
    }

    /// What to do about it.
    fn hint(&self, error: &sqlx::Error) -> Option<String> {
        let Self {
            host,
            port,
            user,
            database,
        } = self;
        Some(match error {
            sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                format!(
                    "nothing listens at {host}:{port}: start PostgreSQL there or correct the URL"
                )
            }
            sqlx::Error::Tls(_) => self.tls_hint(),
            // A certificate that rustls does not accept.
            sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.tls_hint()
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => {
                format!("{host}:{port} cannot be reached: check host, port and network")
            }
            sqlx::Error::Database(error) => match error.code()?.as_ref() {
                "28P01" => format!(
                    "the password of user `{user}` is wrong or missing: give it in the URL, in `PGPASSWORD` or in `~/.pgpass`"
                ),
                "28000" => format!(
                    "the server does not let user `{user}` in from here: create the user, or see its pg_hba.conf"
                ),
                "3D000" => format!(
                    "make it with `CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0`, or correct the URL"
                ),
                "42501" => format!(
                    "user `{user}` may not make the tables: as their administrator run `ALTER DATABASE {database} OWNER TO {user}`"
                ),
                "53300" => {
                    "the server has no connection to spare: raise its `max_connections`".to_owned()
                }
                "55P03" => {
                    "another process is bringing the catalog up to date: try again when it is done"
                        .to_owned()
                }
                "57P03" => "the server is starting or stopping: try again".to_owned(),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// An error of the driver, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{hint} ({source})")]
struct Hinted {
    hint: String,
    source: sqlx::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Place {
        Place::of(&connect_options(url).expect("a URL"))
    }

    #[test]
    fn no_password_is_shown() {
        let place = place("postgres://ann:s3cret@db.example:6432/shop?sslmode=disable");
        assert_eq!(place.shown(), "postgres://ann@db.example:6432/shop");
        let bad = [
            "postgres://ann:s3cret@db:port/shop",
            "postgres://ann:s3cret@db/shop?pasword=s3cret",
            "postgres://ann:s3cret@db/shop?sslmode=s3cret-mode",
        ];
        for url in bad {
            let error = connect_options(url).map(drop).expect_err(url).to_string();
            let secret = error.contains("s3cret") && !error.contains("s3cret-mode");
            assert!(!secret, "{error}");
        }
    }

    #[test]
    fn an_old_server_and_another_encoding_are_refused() {
        let place = place("postgres://ann@db/shop");
        assert!(place.check_server("150018", "UTF8").is_ok());
        assert!(place.check_server("180000", "UTF8").is_ok());
        for (version, encoding, expected) in [
            ("140022", "UTF8", "PostgreSQL 14: use 15 or newer"),
            ("160001", "SQL_ASCII", "encoding SQL_ASCII"),
        ] {
            let error = place
                .check_server(version, encoding)
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(
                error.starts_with("open the catalog `postgres://ann@db:5432/shop`: "),
                "{error}"
            );
        }
    }

    #[test]
    fn parts_have_locks_of_their_own() {
        use crate::ids::{CollectionName, CollectionRef, TenantId};
        let tenant = TenantId::default_tenant();
        let collection = |name: &str| CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new(name).expect("a valid name"),
        };
        let (a, b) = (collection("a"), collection("b"));
        let locks = [
            lock_of(Part::Collection(&a)),
            lock_of(Part::Collection(&b)),
            lock_of(Part::Tenant(&tenant)),
            lock_of(Part::Tenants),
        ];
        let different: std::collections::BTreeSet<_> = locks.iter().collect();
        assert_eq!(different.len(), locks.len());
        // Programs of several versions share a database, so the number may never change.
        assert_eq!(locks[3], 360_775_855_293_050_641);
    }
}
