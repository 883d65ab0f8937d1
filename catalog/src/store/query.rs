//! One statement, two databases: pools, transactions, queries and rows that are SQLite's or PostgreSQL's.
//!
//! Every statement of the catalog is written once, in SQL that both understand, with `$1` placeholders. That is possible
//! because the tables need two types only, whole numbers (`BIGINT`) and texts (`TEXT`), so a parameter is one of those or
//! NULL. sqlx brings an `Any` driver for the same purpose. It is not used: it connects by URL only, which leaves SQLite
//! without its journal and sync options and without paths that are no URL, and PostgreSQL without a way to keep the
//! password apart from what is shown; and it copies every row into a form of its own. What is here instead is a `match`
//! over two drivers in one place.
//!
//! A pool runs nothing by itself: [`Pool::rows_of`] and its siblings say whose rows a statement may see, and that is
//! what makes a place to run it ([`On`]). On PostgreSQL it becomes the setting that the policies of the tables ask for
//! (`migrations/postgres/0008_row_level_security.sql`), made anew before each use of a connection.
//!
//! Leaves opening and locking to `sqlite.rs`, `postgres.rs` and `database.rs`.

use std::borrow::Cow;
use std::pin::Pin;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::query::Query as DriverQuery;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{
    ColumnIndex, Database, Decode, Encode, PgConnection, Postgres, Row as _, Sqlite,
    SqliteConnection, Type,
};

use super::error::CatalogError;
use super::postgres;
use crate::ids::TenantId;

/// Whose rows a statement may see and write. PostgreSQL holds it to that; on SQLite only the statement itself does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Those of one tenant.
    Of(&'a TenantId),
    /// Those of every tenant.
    All,
    /// Those of tables that have no tenant, and of no other.
    Installation,
}

impl<'a> Rows<'a> {
    /// The value of the setting `va.tenant`. No tenant is called `*`, and none has an empty name.
    pub fn setting(self) -> &'a str {
        match self {
            Self::Of(tenant) => tenant.as_str(),
            Self::All => "*",
            Self::Installation => "",
        }
    }
}

/// Why a statement is not about one tenant. It decides nothing: it makes everybody who asks for all say it, where a
/// reader and `grep` find it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Why {
    /// The tenant is what is looked for, by a secret that only its holder has.
    Credential,
    /// Work for all tenants that no caller asked for: sweeping, merging, sending, forgetting.
    Chore,
    /// The list of tenants, for those who run the installation.
    Operator,
}

/// Connections to one of the two databases. Cloning shares them.
#[derive(Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    /// For statements about one tenant.
    pub fn rows_of<'a>(&'a self, tenant: &'a TenantId) -> On<'a> {
        self.on(Rows::Of(tenant))
    }

    /// For statements about all tenants.
    pub fn all_tenants(&self, _why: Why) -> On<'_> {
        self.on(Rows::All)
    }

    /// For statements about what belongs to no tenant: processes, leases, signing keys.
    pub fn installation(&self) -> On<'_> {
        self.on(Rows::Installation)
    }

    fn on<'a>(&'a self, rows: Rows<'a>) -> On<'a> {
        match self {
            Self::Sqlite(pool) => On::SqlitePool(pool),
            Self::Postgres(pool) => On::PostgresPool(pool, rows),
        }
    }

    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A transaction; dropped without [`Transaction::commit`], it is rolled back.
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    pub async fn commit(self) -> Result<(), CatalogError> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await?,
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }
}

/// Where a query runs, and for whom.
pub(crate) enum On<'a> {
    SqlitePool(&'a SqlitePool),
    PostgresPool(&'a PgPool, Rows<'a>),
    Sqlite(&'a mut SqliteConnection),
    Postgres(&'a mut PgConnection),
}

impl On<'_> {
    /// The same place once more, for several queries in a row.
    pub fn again(&mut self) -> On<'_> {
        match self {
            Self::SqlitePool(pool) => On::SqlitePool(pool),
            Self::PostgresPool(pool, rows) => On::PostgresPool(pool, *rows),
            Self::Sqlite(connection) => On::Sqlite(connection),
            Self::Postgres(connection) => On::Postgres(connection),
        }
    }
}

impl<'a> From<&'a mut Transaction> for On<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        match transaction {
            Transaction::Sqlite(transaction) => Self::Sqlite(transaction),
            Transaction::Postgres(transaction) => Self::Postgres(transaction),
        }
    }
}

/// A parameter. NULL has a type too: PostgreSQL wants one.
pub(crate) enum Value<'q> {
    Number(Option<i64>),
    Text(Option<Cow<'q, str>>),
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

impl<'q> From<&'q str> for Value<'q> {
    fn from(text: &'q str) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl<'q> From<&'q String> for Value<'q> {
    fn from(text: &'q String) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl<'q> From<Option<&'q str>> for Value<'q> {
    fn from(text: Option<&'q str>) -> Self {
        Self::Text(text.map(Cow::from))
    }
}

impl<'q> From<&'q Option<String>> for Value<'q> {
    fn from(text: &'q Option<String>) -> Self {
        text.as_deref().into()
    }
}

impl From<Option<String>> for Value<'_> {
    fn from(text: Option<String>) -> Self {
        Self::Text(text.map(Cow::from))
    }
}

/// A statement with its parameters.
pub(crate) struct Query<'q> {
    statement: &'q str,
    values: Vec<Value<'q>>,
}

/// A statement that both databases understand.
pub(crate) fn query(statement: &str) -> Query<'_> {
    Query {
        statement,
        values: Vec::new(),
    }
}

/// The places of the parameters of so many rows: `($1, $2), ($3, $4)`.
pub(crate) fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (1..=columns)
            .map(|column| format!("${}", row * columns + column))
            .collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// What a query gives. Boxed, so that the futures of callers, who move them between threads, know nothing of the drivers'
/// connections: whether those are `Send` for every lifetime is more than the compiler can see through several layers.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CatalogError>> + Send + 'a>>;

/// Runs the query by the method of that name, on whichever database it is for.
macro_rules! run {
    ($query:expr, $on:expr, $method:ident, $result:ident => $sqlite:expr, $postgres:expr) => {{
        let (query, on) = ($query, $on.into());
        Box::pin(async move {
            Ok(match on {
                On::SqlitePool(pool) => {
                    let $result = query.sqlite().$method(pool).await?;
                    $sqlite
                }
                On::Sqlite(connection) => {
                    let $result = query.sqlite().$method(connection).await?;
                    $sqlite
                }
                On::PostgresPool(pool, rows) => {
                    let mut connection = postgres::acquire(pool, rows).await?;
                    let $result = query.postgres().$method(&mut *connection).await?;
                    $postgres
                }
                On::Postgres(connection) => {
                    let $result = query.postgres().$method(connection).await?;
                    $postgres
                }
            })
        })
    }};
}

impl<'q> Query<'q> {
    /// The next parameter.
    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// The next parameters.
    pub fn bind_all(self, values: impl IntoIterator<Item = impl Into<Value<'q>>>) -> Self {
        values.into_iter().fold(self, Self::bind)
    }

    /// How many rows the statement wrote or removed.
    pub fn execute<'a>(self, on: impl Into<On<'a>>) -> Answer<'a, u64>
    where
        'q: 'a,
    {
        run!(self, on, execute, done => done.rows_affected(), done.rows_affected())
    }

    pub fn fetch_one<'a>(self, on: impl Into<On<'a>>) -> Answer<'a, Row>
    where
        'q: 'a,
    {
        run!(self, on, fetch_one, row => Row::Sqlite(row), Row::Postgres(row))
    }

    pub fn fetch_optional<'a>(self, on: impl Into<On<'a>>) -> Answer<'a, Option<Row>>
    where
        'q: 'a,
    {
        run!(self, on, fetch_optional, row => row.map(Row::Sqlite), row.map(Row::Postgres))
    }

    pub fn fetch_all<'a>(self, on: impl Into<On<'a>>) -> Answer<'a, Vec<Row>>
    where
        'q: 'a,
    {
        run!(self, on, fetch_all, rows =>
            rows.into_iter().map(Row::Sqlite).collect(),
            rows.into_iter().map(Row::Postgres).collect())
    }

    fn sqlite(self) -> DriverQuery<'q, Sqlite, <Sqlite as Database>::Arguments<'q>> {
        self.driver(|text| text)
    }

    fn postgres(self) -> DriverQuery<'q, Postgres, <Postgres as Database>::Arguments<'q>> {
        // No text of PostgreSQL can hold the character 0, and a title or a reason that a parser found may. Better such a
        // text without it than a batch of news that fails each time.
        self.driver(|text| match text.contains('\0') {
            true => text.replace('\0', "\u{FFFD}").into(),
            false => text,
        })
    }

    fn driver<DB: Database>(
        self,
        text: impl Fn(Cow<'q, str>) -> Cow<'q, str>,
    ) -> DriverQuery<'q, DB, DB::Arguments<'q>>
    where
        Option<i64>: Encode<'q, DB> + Type<DB> + 'q,
        Option<Cow<'q, str>>: Encode<'q, DB> + Type<DB> + 'q,
    {
        let mut query = sqlx::query(self.statement);
        for value in self.values {
            query = match value {
                Value::Number(number) => query.bind(number),
                Value::Text(value) => query.bind(value.map(&text)),
            };
        }
        query
    }
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The value of a column: `i64`, `String`, or an `Option` of one.
    pub fn try_get<'r, T>(&'r self, column: &str) -> Result<T, CatalogError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>,
        for<'c> &'c str: ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }
}
