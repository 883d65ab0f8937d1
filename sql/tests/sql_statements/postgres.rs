//! The PostgreSQL server, by real `psql` and message by message.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use va_catalog::TenantId;
use va_sql::{PostgresOptions, serve_postgres};

use crate::limits::{ENDLESS, ENDLESS_ROWS};
use crate::wire::Wire;
use crate::world::{World, tenant};

struct Server {
    world: World,
    port: u16,
    /// Of the default tenant.
    key: String,
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(options: PostgresOptions) -> Self {
        let world = World::new().await;
        let key = world.key(&TenantId::default_tenant()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve_postgres(
            world.engine.clone(),
            listener,
            Arc::new(world.services.catalog.clone()),
            options,
            shutdown.clone(),
        ));
        Self {
            world,
            port,
            key,
            shutdown,
            task,
        }
    }

    async fn connect(&self) -> Wire {
        Wire::connect(self.port, "default", &self.key)
            .await
            .unwrap()
    }

    async fn psql(&self, user: &str, password: &str, command: &str) -> Output {
        Command::new("psql")
            .args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", user, "-d", "va"])
            .args(["-p", &self.port.to_string(), "-c", command])
            .env("PGPASSWORD", password)
            .env("PGCLIENTENCODING", "UTF8")
            .output()
            .await
            .unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// False, and says so, when there is no `psql`.
async fn has_psql() -> bool {
    let found = Command::new("psql").arg("--version").output().await.is_ok();
    if !found {
        println!("SKIPPED: no psql (Debian package postgresql-client)");
        let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
        assert!(!ci, "psql is missing");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_searches_lists_and_is_told_what_is_wrong() {
    if !has_psql().await {
        return;
    }
    let server = Server::start(PostgresOptions::default()).await;
    let b_key = server.world.key(&tenant("b")).await;

    let default = |command| server.psql("default", &server.key, command);
    // What is asked, and lines that must be in the answer, in this order.
    let answers = [
        (
            "SELECT name, score FROM hybrid_search('help', '冻结行', 5)",
            vec!["freeze.html|1"],
        ),
        (
            "SELECT text FROM chunks.\"帮助\"",
            vec!["冻结行使表头总是可见。"],
        ),
        (
            "SELECT event_id, payload FROM topic.\"document.indexed\" ORDER BY _offset",
            vec!["e1|", "e3|"],
        ),
        (
            "\\dt",
            vec!["public|collections|table", "public|models|table"],
        ),
        ("\\dt chunks.*", vec!["chunks|help|table"]),
        // The emulated `pg_catalog` calls timestamps text; the values themselves arrive as timestamps.
        ("\\d models", vec!["name|text", "last_used_at|text"]),
        ("\\dn", vec!["chunks|", "public|"]),
        ("BEGIN; SELECT 1; COMMIT", vec!["BEGIN", "1", "COMMIT"]),
        ("SHOW server_version", vec!["datafusion"]),
        ("SELECT current_database()", vec!["va"]),
    ];
    for (command, lines) in answers {
        let output = default(command).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {errors}");
        let mut rest = text.as_str();
        for line in lines {
            let at = rest.find(line);
            let at = at.unwrap_or_else(|| panic!("{command}: no `{line}` in\n{text}{errors}"));
            rest = &rest[at..];
        }
    }

    let errors = [
        (
            default("SELECT * FROM hybrid_search('hlp', 'x')").await,
            "collection `hlp` does not exist; did you mean `help`?",
        ),
        (
            default("CREATE TABLE t (a INT)").await,
            "`CREATE TABLE t` is refused",
        ),
        (
            default("SET datafusion.runtime.memory_limit = '100G'").await,
            "is refused",
        ),
        (
            server.psql("default", "va_wrong", "SELECT 1").await,
            "password authentication failed for user \"default\"",
        ),
        (
            server.psql("default", &b_key, "SELECT 1").await,
            "password authentication failed for user \"default\"",
        ),
        (
            server.psql("nobody", &server.key, "SELECT 1").await,
            "password authentication failed for user \"nobody\"",
        ),
    ];
    for (output, message) in errors {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(message),
            "{message}: {text}"
        );
    }

    let output = server
        .psql("b", &b_key, "SELECT text FROM chunks.help")
        .await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.trim(), "rows that only b may see");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_take_parameters_everywhere() {
    let server = Server::start(PostgresOptions::default()).await;
    let mut wire = server.connect().await;
    let search = "SELECT name, rank FROM hybrid_search($1, $2, $3) WHERE score > $4";
    let cases: [(&str, &[&str], Result<&[&str], &str>); 8] = [
        (
            search,
            &["help", "print", "5", "0.5"],
            Ok(&["print.html | 1"]),
        ),
        (search, &["帮助", "冻结", "1", "0"], Ok(&["冻结.html | 1"])),
        (search, &["help", "print", "0", "0.5"], Err("use 1 to 1000")),
        (
            search,
            &["hlp", "print", "5", "0.5"],
            Err("did you mean `help`"),
        ),
        (
            "SELECT name FROM documents WHERE state = $1 LIMIT $2",
            &["FAILED", "3"],
            // DataFusion does not infer the type of a parameter there: a driver must send it as an integer.
            Err("Expected LIMIT to be an integer"),
        ),
        ("SELECT $1::int + 1", &["41"], Ok(&["42"])),
        ("INSERT INTO models VALUES ($1)", &["x"], Err("is refused")),
        ("SET statement_timeout = '5s'", &[], Ok(&[])),
    ];
    for (sql, values, expected) in cases {
        let got = wire.bound(sql, values).await;
        match expected {
            Ok(rows) => assert_eq!(got.unwrap(), rows, "{sql}"),
            Err(part) => {
                let error = got.expect_err(sql);
                assert!(error.contains(part), "{sql}: {error}");
            }
        }
    }
    server.stop().await;
}

/// The protocol library goes on reading after it refused a password; what comes then must not be run.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_without_a_login() {
    let server = Server::start(PostgresOptions::default()).await;
    let mut wire = Wire::dial(server.port, "default", "va_wrong").await;
    let search = "SELECT * FROM hybrid_search('help', 'freeze', 5)\0";
    wire.send(b'Q', search.as_bytes()).await;
    wire.send(b'P', &[b"\0", search.as_bytes(), &[0, 0]].concat())
        .await;
    let mut answers = Vec::new();
    while let Some((kind, _)) = wire.receive().await {
        answers.push(kind);
    }
    assert_eq!(answers.first(), Some(&b'E'), "{answers:?}");
    assert!(
        !answers.contains(&b'D') && !answers.contains(&b'1'),
        "{answers:?}"
    );
    assert_eq!(server.world.searches.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_query_can_be_cancelled_or_time_out_and_the_connection_goes_on() {
    let server = Server::start(PostgresOptions::default()).await;
    let mut wire = server.connect().await;
    let id_and_secret = wire.id_and_secret.clone();
    // Somebody else's secret does nothing: what follows would otherwise be cancelled, too.
    let mut wrong = id_and_secret.clone();
    wrong[7] ^= 1;
    Wire::cancel(server.port, &wrong).await;

    wire.send(b'Q', &[ENDLESS_ROWS.as_bytes(), b"\0"].concat())
        .await;
    // The description of the rows comes with the first of them, so the query runs.
    assert_eq!(wire.receive().await.map(|(kind, _)| kind), Some(b'T'));
    Wire::cancel(server.port, &id_and_secret).await;
    let error = wire.rows().await.unwrap_err();
    assert_eq!(error, "ERROR 57014 the query was cancelled");

    wire.query("SET statement_timeout = '100ms'").await.unwrap();
    let error = wire.query(ENDLESS).await.unwrap_err();
    assert!(
        error.starts_with("ERROR 57014 the query took longer"),
        "{error}"
    );
    assert_eq!(wire.query("SELECT 1").await, Ok(vec!["1".to_owned()]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_and_all_end_at_shutdown() {
    let options = PostgresOptions { connections_max: 2 };
    let server = Server::start(options).await;
    let mut first = server.connect().await;
    let second = server.connect().await;
    let refused = Wire::connect(server.port, "default", &server.key)
        .await
        .err();
    assert!(refused.is_some_and(|error| error.starts_with("FATAL 53300 too many connections")));

    // A closed connection makes room: the server says so by closing its end.
    let mut second = second;
    second.send(b'X', b"").await;
    assert!(second.receive().await.is_none());
    let mut third = loop {
        if let Ok(wire) = Wire::connect(server.port, "default", &server.key).await {
            break wire;
        }
    };
    assert_eq!(third.query("SELECT 1").await, Ok(vec!["1".to_owned()]));

    first
        .send(b'Q', &[ENDLESS_ROWS.as_bytes(), b"\0"].concat())
        .await;
    assert_eq!(first.receive().await.map(|(kind, _)| kind), Some(b'T'));
    server.stop().await;
    // What was sent before the end may still arrive.
    while first.receive().await.is_some() {}
    assert!(third.receive().await.is_none());
}
