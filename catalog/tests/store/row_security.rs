//! Row-level security: what PostgreSQL itself shows and takes of two tenants, asked with statements that name none.
//!
//! The tables are asked of the database, so one that a later migration adds without a policy fails here.

use crate::*;

/// Tables that belong to the installation, and why they need no policy.
const WITHOUT_TENANT: [(&str, &str); 4] = [
    ("_sqlx_migrations", "which migrations ran"),
    ("leases", "which process does a chore"),
    ("processes", "what processes tell of themselves"),
    ("signing_keys", "one set of keys signs for every tenant"),
];

/// A table whose rows are of tenants.
struct Table {
    name: String,
    /// The column that says whose a row is.
    owner: &'static str,
    /// Names, and whether each is a number.
    columns: Vec<(String, bool)>,
}

impl Table {
    /// What stands in that column for the tenant.
    fn owned_by(&self, tenant: &str) -> String {
        match self.owner {
            "session_id" => text_of(tenant),
            _ => tenant.to_owned(),
        }
    }

    /// A row of the tenant. All its texts but the owner are `text`, so rows that refer to each other do.
    fn insert(&self, tenant: &str, text: &str) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let values: Vec<String> = self
            .columns
            .iter()
            .map(|(name, number)| match (name == self.owner, number) {
                (true, _) => format!("'{}'", self.owned_by(tenant)),
                (false, true) => "1".to_owned(),
                (false, false) => format!("'{text}'"),
            })
            .collect();
        format!(
            "INSERT INTO {} ({}) VALUES ({})",
            self.name,
            names.join(", "),
            values.join(", ")
        )
    }
}

/// All texts of the row that a tenant has in each table.
fn text_of(tenant: &str) -> String {
    format!("of {tenant}")
}

/// Every table of the catalog but those without a tenant. The rows of a partition are those of its table.
async fn tables(connection: &mut PgConnection) -> Vec<Table> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT c.table_name::text, c.column_name::text, c.data_type::text FROM information_schema.columns c \
         JOIN information_schema.tables t ON t.table_schema = c.table_schema AND t.table_name = c.table_name \
         WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE' \
         AND NOT EXISTS (SELECT FROM pg_class p WHERE p.relname = c.table_name AND p.relispartition) ORDER BY c.table_name, c.ordinal_position",
    )
    .fetch_all(connection)
    .await
    .expect("the columns");
    let mut columns: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for (table, column, kind) in rows {
        let number = match kind.as_str() {
            "bigint" => true,
            "text" => false,
            // The migrations' own table.
            _ if WITHOUT_TENANT.iter().any(|(name, _)| *name == table) => continue,
            other => panic!("{table}.{column} is a {other}: the catalog has numbers and texts"),
        };
        columns.entry(table).or_default().push((column, number));
    }
    columns
        .into_iter()
        .filter(|(table, _)| WITHOUT_TENANT.iter().all(|(name, _)| name != table))
        .map(|(name, columns)| {
            let has = |wanted: &str| columns.iter().any(|(column, _)| column == wanted);
            let owner = if has("tenant_id") {
                "tenant_id"
            } else if name == "tenants" {
                "name"
            } else if has("session_id") {
                "session_id"
            } else {
                panic!(
                    "`{name}` does not say whose its rows are: give it a `tenant_id` and a policy, or list it here"
                )
            };
            Table {
                owner,
                columns,
                name,
            }
        })
        .collect()
}

/// A connection as the catalog's role, about the rows of `tenant`; `None`: it says nothing.
async fn about(url: &str, tenant: Option<&str>) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    if let Some(tenant) = tenant {
        sqlx::query("SELECT set_config('va.tenant', $1, false)")
            .bind(tenant)
            .execute(&mut connection)
            .await
            .expect("set");
    }
    connection
}

/// How many rows the connection sees of whom.
async fn seen(connection: &mut PgConnection, table: &Table) -> BTreeMap<String, i64> {
    let Table { name, owner, .. } = table;
    let statement = format!("SELECT {owner}, COUNT(*) FROM {name} GROUP BY {owner}");
    let rows: Vec<(String, i64)> = sqlx::query_as(&statement)
        .fetch_all(connection)
        .await
        .expect("a count");
    rows.into_iter().collect()
}

async fn changed(connection: &mut PgConnection, statement: &str) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(statement).execute(connection).await?;
    Ok(done.rows_affected())
}

/// It has to be refused by a policy; another refusal would prove nothing.
async fn refused(connection: &mut PgConnection, statement: &str) {
    let error = changed(connection, statement)
        .await
        .expect_err(statement)
        .to_string();
    assert!(error.contains("row-level security"), "{statement}: {error}");
}

/// The server's superuser, whom no policy binds.
fn as_superuser(url: &str) -> String {
    url.replacen("//va:", "//admin:", 1)
}

/// A catalog's database with a row of the tenants `a` and `b` in every table.
async fn filled(server: &str) -> (String, Vec<Table>) {
    let url = new_database(server, "").await;
    let catalog = Catalog::open(&url).await.expect("a catalog");
    catalog.close().await;
    let mut connection = about(&as_superuser(&url), None).await;
    let tables = tables(&mut connection).await;
    // The rows refer to each other; in this mode their order does not matter.
    changed(&mut connection, "SET session_replication_role = replica")
        .await
        .expect("set");
    for table in &tables {
        for tenant in ["a", "b"] {
            changed(&mut connection, &table.insert(tenant, &text_of(tenant)))
                .await
                .expect("a row");
        }
    }
    (url, tables)
}

#[tokio::test]
async fn every_table_with_a_tenant_has_a_policy_that_binds_its_owner() {
    let Some(server) = postgres_server() else {
        return;
    };
    let (url, tables) = filled(server).await;
    let mut connection = about(&url, None).await;
    let bound: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace \
         AND c.relrowsecurity AND c.relforcerowsecurity AND NOT c.relispartition \
         AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) ORDER BY c.relname",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the tables");
    let bound: BTreeSet<&str> = bound.iter().map(String::as_str).collect();
    let expected: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(bound, expected);
    assert!(expected.contains("api_keys") && expected.contains("refresh_tokens"));
    assert!(expected.contains("messages"));
    // Whoever names a partition meets a policy too.
    let open: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace \
         AND c.relispartition AND c.relkind = 'r' AND NOT (c.relrowsecurity AND c.relforcerowsecurity \
         AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the partitions");
    assert_eq!(open, [""; 0]);
}

#[tokio::test]
async fn who_does_not_say_for_whom_sees_nothing() {
    let Some(server) = postgres_server() else {
        return;
    };
    let (url, tables) = filled(server).await;
    // Not set, and what a transaction that set it leaves behind.
    for tenant in [None, Some("")] {
        let mut connection = about(&url, tenant).await;
        for table in &tables {
            let rows = seen(&mut connection, table).await;
            assert!(rows.is_empty(), "{}: {rows:?}", table.name);
            refused(&mut connection, &table.insert("a", "new")).await;
        }
    }
    let mut connection = about(&url, Some("*")).await;
    for table in &tables {
        let rows = seen(&mut connection, table).await;
        for tenant in ["a", "b"] {
            let owner = table.owned_by(tenant);
            assert_eq!(rows.get(&owner), Some(&1), "{}", table.name);
        }
    }
}

#[tokio::test]
async fn a_tenant_neither_sees_nor_touches_rows_of_another() {
    let Some(server) = postgres_server() else {
        return;
    };
    let (url, tables) = filled(server).await;
    let mut connection = about(&url, Some("a")).await;
    for table in &tables {
        let Table { name, owner, .. } = table;
        let (own, other) = (table.owned_by("a"), table.owned_by("b"));
        let rows = seen(&mut connection, table).await;
        assert_eq!(rows, BTreeMap::from([(own.clone(), 1)]), "{name}");
        // Statements that forgot their condition reach the own row only.
        let all = format!("UPDATE {name} SET {owner} = {owner}");
        assert_eq!(changed(&mut connection, &all).await.expect("updated"), 1);
        for statement in [
            format!("UPDATE {name} SET {owner} = {owner} WHERE {owner} = '{other}'"),
            format!("DELETE FROM {name} WHERE {owner} = '{other}'"),
        ] {
            let reached = changed(&mut connection, &statement).await;
            assert_eq!(reached.expect("no row"), 0, "{statement}");
        }
        refused(&mut connection, &table.insert("b", "new")).await;
        let given_away = format!("UPDATE {name} SET {owner} = '{other}'");
        refused(&mut connection, &given_away).await;
    }
    let mut connection = about(&url, Some("b")).await;
    for table in &tables {
        let rows = seen(&mut connection, table).await;
        let own = table.owned_by("b");
        assert_eq!(rows, BTreeMap::from([(own, 1)]), "{}", table.name);
    }
}

#[tokio::test]
async fn a_connection_keeps_no_earlier_tenant() {
    let Some(server) = postgres_server() else {
        return;
    };
    let url = new_database(server, "").await;
    let catalog = Catalog::open(&url).await.expect("a catalog");
    let tenants = ["a", "b"].map(tenant);
    for tenant in &tenants {
        catalog.create_tenant(tenant, "").await.expect("a tenant");
    }
    // One after the other, so all on the same connection; with transactions and all tenants' rows in between.
    for round in 0..3 {
        for tenant in &tenants {
            let value = format!("{tenant} {round}");
            let put = catalog.put_setting(tenant, "theme", Some(&value)).await;
            put.expect("set");
            let roles = catalog.roles(tenant).await.expect("roles");
            assert!(!roles.is_empty());
            let page = Page::first(10);
            let listed = catalog.tenants_all_tenants(&page).await.expect("tenants");
            assert_eq!(listed.items.len(), 3);
            let key = catalog
                .create_key(tenant, "reader", &BTreeSet::from([Scope::Read]))
                .await;
            let (_, secret) = key.expect("a key");
            let principal = catalog.check_key(secret.expose()).await.expect("looked up");
            assert_eq!(principal.expect("known").tenant, *tenant);
            let stored = catalog.setting(tenant, "theme").await.expect("looked up");
            assert_eq!(stored, Some(value));
        }
    }
    let theirs = catalog.keys(&tenants[0], &Page::first(10)).await;
    assert_eq!(theirs.expect("keys").items.len(), 3);
}

#[tokio::test]
async fn a_role_that_is_above_the_policies_is_told() {
    let Some(server) = postgres_server() else {
        return;
    };
    let url = new_database(server, "").await;
    let catalog = Catalog::open(&url).await.expect("a catalog");
    let role = catalog.role_above_row_security().await;
    assert_eq!(role.expect("asked"), None);
    let catalog = Catalog::open(as_superuser(&url)).await.expect("a catalog");
    let role = catalog.role_above_row_security().await.expect("asked");
    let (role, hint) = role.expect("a superuser");
    assert_eq!(role, "admin");
    assert!(
        hint.contains("NOSUPERUSER NOBYPASSRLS") && hint.contains("instead of `admin`"),
        "{hint}"
    );
}
