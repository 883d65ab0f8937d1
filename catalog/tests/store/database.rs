//! Opening, reopening and migrating.

use sqlx::Connection;

use crate::*;

#[tokio::test]
async fn opening_is_repeatable_and_refuses_what_is_newer() {
    let (bench, help) = Bench::with_collection().await;
    let path = bench.folder.path().join("catalog.db");
    // A second handle on the same file, as another process would have, by URL this time.
    let url = format!("sqlite:{}", path.display());
    let second = Catalog::open(&url).await.expect("a catalog");
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
            .collection_counts(&help)
            .await
            .expect("counts")
            .documents,
        2
    );
    bench.catalog.close().await;

    let mut connection = sqlx::SqliteConnection::connect(&url)
        .await
        .expect("a connection");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9001, 'later', TRUE, X'00', 0)",
    )
    .execute(&mut connection)
    .await
    .expect("inserted");
    connection.close().await.expect("closed");
    let error = Catalog::open(&path).await.expect_err("it is newer");
    assert!(
        matches!(
            error,
            CatalogError::NewerDatabase {
                found: 9001,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("newer version"), "{error}");

    let error = Catalog::open("postgres://localhost/va")
        .await
        .expect_err("not yet");
    assert!(
        error.to_string().contains("begins with `sqlite:`"),
        "{error}"
    );
    std::fs::write(
        bench.folder.path().join("text.db"),
        "not a database, but long enough to look at",
    )
    .expect("written");
    let error = Catalog::open(bench.folder.path().join("text.db"))
        .await
        .expect_err("not a database");
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

#[test]
fn both_databases_have_the_same_tables() {
    let sqlite = tables("sqlite");
    assert_eq!(sqlite["0001_catalog.sql"].len(), 11);
    assert_eq!(sqlite, tables("postgres"));
}
