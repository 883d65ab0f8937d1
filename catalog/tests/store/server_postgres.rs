//! What only a server can do: be absent, refuse, be of another kind, and restart in the middle.

use std::error::Error;

use crate::*;

/// The error's whole chain, as logs may show it.
async fn refusal(url: &str) -> String {
    let error = Catalog::open(url).await.expect_err("it cannot be opened");
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text} {error} {error:?}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn errors_say_what_to_do_and_show_no_password() {
    let Some(server) = postgres_server() else {
        return;
    };
    let password = server
        .split_once("va:")
        .and_then(|(_, rest)| rest.split_once('@'))
        .expect("a URL with a password")
        .0;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("an address").port();
    drop(closed);
    let ascii = new_database(server, "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await;
    let cases = [
        (
            format!("postgres://va:{password}@127.0.0.1:{port}/postgres"),
            format!(
                "open the catalog `postgres://va@127.0.0.1:{port}/postgres`: nothing listens at 127.0.0.1:{port}"
            ),
        ),
        (
            server.replace(password, "wrong-secret"),
            "the password of user `va` is wrong or missing: give it in the URL, in `PGPASSWORD`"
                .to_owned(),
        ),
        (
            server.replace("va:", "nobody-here:"),
            "the password of user `nobody-here` is wrong".to_owned(),
        ),
        (
            database_url(server, "shop"),
            "make it with `CREATE DATABASE shop ENCODING 'UTF8'".to_owned(),
        ),
        (ascii, "the database has the encoding SQL_ASCII".to_owned()),
        (format!("{server}?sslmode=require"), "`sslmode`".to_owned()),
        (
            format!("{server}?pasword={password}"),
            "sets `pasword`, which is not known".to_owned(),
        ),
        (
            format!("postgres://va:{password}@127.0.0.1:many/postgres"),
            "not one of PostgreSQL: ".to_owned(),
        ),
    ];
    for (url, expected) in cases {
        let text = refusal(&url).await;
        assert!(text.contains(&expected), "`{expected}` is not in: {text}");
        assert!(!text.contains(password), "{text}");
        assert!(!text.contains("wrong-secret"), "{text}");
    }
}

#[tokio::test]
async fn a_user_without_rights_is_told() {
    let Some(server) = postgres_server() else {
        return;
    };
    let url = new_database(server, "").await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    sqlx::query("CREATE ROLE guest LOGIN PASSWORD 'guest-secret'")
        .execute(&mut connection)
        .await
        .expect("a role");
    let (_, place) = url.split_once('@').expect("a URL with a user");
    let text = refusal(&format!("postgres://guest:guest-secret@{place}")).await;
    assert!(
        text.contains("user `guest` may not make the tables"),
        "{text}"
    );
    assert!(!text.contains("guest-secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_are_bounded_and_shared_by_clones() {
    let Some(server) = postgres_server() else {
        return;
    };
    let url = new_database(server, "").await;
    let catalog = Catalog::open(&url).await.expect("a catalog");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            let tenant = TenantId::default_tenant();
            let setting = format!("setting {n}");
            catalog
                .put_setting(&tenant, &setting, Some("on"))
                .await
                .expect("set");
        });
    }
    tasks.join_all().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let mut open = async || -> Vec<i32> {
        sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'va catalog' \
             ORDER BY pid",
        )
        .fetch_all(&mut connection)
        .await
        .expect("process ids")
    };
    let before = open().await;
    assert!((1..=8).contains(&before.len()), "{before:?}");
    // They are used again, not made anew: that would cost more than most queries.
    for _ in 0..30 {
        let settings = catalog.settings(&TenantId::default_tenant()).await;
        assert_eq!(settings.expect("settings").len(), 100);
    }
    assert_eq!(open().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_of_the_server_is_survived() {
    // A server of its own: the others go on with theirs. Over TLS, as to a server elsewhere.
    if postgres_server().is_none() {
        return;
    }
    let mut server = Server::start("postgres.sh tls").expect("a server");
    let clock = Arc::new(AtomicI64::new(1_000));
    let url = |mode| format!("{}?sslmode={mode}", server.url());
    let text = refusal(&url("verify-full")).await;
    assert!(text.contains("check its certificate"), "{text}");
    let catalog = open(&url("require"), &clock).await;
    let help = collection("default", "help");
    let config = CollectionConfig::default();
    catalog
        .create_collection(&help, &config)
        .await
        .expect("a collection");
    let begin = async |content: &str| {
        catalog
            .begin_version(&help, &version_of("file:///a", content))
            .await
    };
    begin("one").await.expect("begun");

    // Restarted between two calls: nobody notices.
    server.tell("halt");
    server.tell("resume");
    assert_eq!(begin("two").await.expect("begun").version, Version(2));
    assert!(catalog.collection(&help).await.is_ok());

    // A call that waits for its turn when the server stops fails, and says that trying again is right.
    let mut holder = PgConnection::connect(server.url())
        .await
        .expect("a connection");
    sqlx::raw_sql(
        "BEGIN; LOCK TABLE document_versions, documents, collections IN ACCESS EXCLUSIVE MODE",
    )
    .execute(&mut holder)
    .await
    .expect("locked");
    let waiting = {
        let (catalog, help) = (catalog.clone(), help.clone());
        tokio::spawn(async move {
            catalog
                .begin_version(&help, &version_of("file:///a", "three"))
                .await
        })
    };
    // It waits when the server says that one does. Asked by another connection, because within a transaction the answer
    // stays the first one.
    let mut observer = PgConnection::connect(server.url())
        .await
        .expect("a connection");
    let waits = "SELECT COUNT(*) FROM pg_stat_activity \
                 WHERE application_name = 'va catalog' AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waits)
        .fetch_one(&mut observer)
        .await
        .expect("a count")
        == 0
    {
        assert!(!waiting.is_finished(), "it did not wait");
        tokio::task::yield_now().await;
    }
    server.tell("halt");
    let error = waiting.await.expect("a task").expect_err("it was stopped");
    assert!(error.is_retriable(), "{error:?}");
    server.tell("resume");
    assert_eq!(begin("three").await.expect("begun").version, Version(3));
}

#[tokio::test]
async fn texts_with_the_character_that_postgres_cannot_hold_are_stored_without_it() {
    let Some(server) = postgres_server() else {
        return;
    };
    let (bench, help) = Bench::with_collection(On::Postgres(server)).await;
    let begun = bench
        .catalog
        .begin_version(&help, &version_of("file:///a", "a"))
        .await
        .expect("begun");
    bench
        .catalog
        .set_ready(&help, begun.id, begun.version, Some("a\0b".into()), 1)
        .await
        .expect("applied");
    let shown = bench.catalog.document(&help, begun.id).await;
    assert_eq!(
        shown.expect("a document").title.as_deref(),
        Some("a\u{FFFD}b")
    );
}
