//! Opening, reopening and migrating.

use sqlx::SqliteConnection;

use crate::*;

on_both!(opening_is_repeatable_and_refuses_what_is_newer);

async fn opening_is_repeatable_and_refuses_what_is_newer(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let second = bench.second().await;
    assert!(second.collection(&help).await.is_ok());
    second
        .begin_version(&help, &version_of("file:///a", "a"))
        .await
        .expect("begun");
    bench
        .catalog
        .begin_version(&help, &version_of("file:///b", "b"))
        .await
        .expect("begun");
    second.close().await;
    let bench = bench.reopened().await.reopened().await;
    assert_eq!(
        bench
            .catalog
            .collection_counts(&help, &Viewer::Everything)
            .await
            .expect("counts")
            .documents,
        2
    );
    bench.catalog.close().await;

    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9001, 'later', TRUE, ";
    match on {
        On::Sqlite => {
            let mut connection = SqliteConnection::connect(&bench.location)
                .await
                .expect("a connection");
            sqlx::query(&format!("{later} X'00', 0)"))
                .execute(&mut connection)
                .await
                .expect("inserted");
            connection.close().await.expect("closed");
        }
        On::Postgres(_) => {
            let mut connection = PgConnection::connect(&bench.location)
                .await
                .expect("a connection");
            sqlx::query(&format!("{later} '\\x00', 0)"))
                .execute(&mut connection)
                .await
                .expect("inserted");
        }
    }
    let error = Catalog::open(&bench.location)
        .await
        .expect_err("it is newer");
    assert!(
        matches!(
            error,
            CatalogError::NewerDatabase {
                found: 9001,
                known: 10,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[tokio::test]
async fn a_location_is_a_path_or_a_known_url() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("catalog.db");
    let by_path = Catalog::open(&path).await.expect("a catalog");
    by_path.close().await;
    let by_url = Catalog::open(format!("sqlite:{}", path.display())).await;
    assert!(!by_url.expect("a catalog").is_shared());

    let error = Catalog::open("mysql://root:secret@localhost/va")
        .await
        .expect_err("another database");
    assert_eq!(
        error.to_string(),
        "`mysql` is not a catalog database that this version can use: use a path or a URL that begins with `sqlite:` or \
         `postgres://`"
    );
    let text = folder.path().join("text.db");
    std::fs::write(&text, "not a database, but long enough to look at").expect("written");
    let error = Catalog::open(text).await.expect_err("not a database");
    assert!(matches!(error, CatalogError::Storage { .. }), "{error}");
}

/// File name -> table -> column names and types, read from the migrations as text.
fn tables(folder: &str) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let folder = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let text = std::fs::read_to_string(entry.path()).expect("a migration");
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut table = None;
        for line in text.lines().map(|line| line.replace(" COLLATE \"C\"", "")) {
            if let Some(name) = line.strip_prefix("CREATE TABLE ") {
                table = Some(name.trim_end_matches(" (").to_owned());
            } else if line.starts_with(')') {
                table = None;
            } else if let Some(table) = &table {
                let column = line.trim().trim_end_matches(',').to_owned();
                tables.entry(table.clone()).or_default().push(column);
            } else if is_about_rights(&line) {
                // SQLite has nothing like it.
            } else if line.starts_with("CREATE") || line.starts_with("ALTER") {
                tables
                    .entry("other statements".into())
                    .or_default()
                    .push(line);
            }
        }
        files.insert(entry.file_name().to_string_lossy().into_owned(), tables);
    }
    files
}

fn is_about_rights(line: &str) -> bool {
    line.contains("ROW LEVEL SECURITY") || line.starts_with("CREATE POLICY")
}

#[test]
fn both_databases_have_the_same_tables() {
    let (mut sqlite, mut postgres) = (tables("sqlite"), tables("postgres"));
    assert_eq!(sqlite["0001_catalog.sql"].len(), 11);
    // Only PostgreSQL has partitions, for which it makes the table of messages anew; that both keep the same of messages is
    // shown by `message_months.rs`.
    for tables in [&mut sqlite, &mut postgres] {
        tables
            .remove("0010_message_partitions.sql")
            .expect("both have it");
    }
    assert_eq!(sqlite, postgres);
}
