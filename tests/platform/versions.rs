//! Versions of documents: compared, downloaded, taken back; their stored content goes when nobody needs it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::http::Client;
use crate::server::{PATIENCE, Server, both, good, need_model, problem, run, va};

const FIRST: &str = "# 打印\n\n打印选定的区域。\n\n页眉在每一页上方。\n\n页脚在每一页下方。\n";
const SECOND: &str =
    "# 打印\n\n打印整个工作表。\n\n页眉在每一页上方。\n\n页脚在每一页下方。\n\n最后检查预览。\n";

#[test]
fn versions_are_compared_downloaded_and_taken_back() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let upload = |text: &str, meta: Value| {
        let meta = meta.to_string().replace('"', "%22");
        let path = format!(
            "/api/v1/collections/c/documents?name=手册/print.md&uri=print&wait=ready&meta={meta}&content_type=text/markdown"
        );
        good(server.post(&path).body(text.to_owned()))
    };
    let first = upload(FIRST, json!({"edition": "1"}));
    let id = first["id"].as_str().unwrap().to_owned();
    let base = format!("/api/v1/collections/c/documents/{id}");
    let (status, reply) = problem(server.get(&format!("{base}/diff")));
    assert_eq!(status, 409, "{reply}");
    upload(SECOND, json!({"edition": "2"}));

    let said = run(va(dir.path()).args(["document", "diff", &id, "-c", "c"]));
    assert!(
        said.starts_with("--- 手册/print.md (version 1)\n+++ "),
        "{said}"
    );
    for line in [
        "-打印选定的区域。",
        "+打印整个工作表。",
        " 页眉在每一页上方。",
        "+最后检查预览。",
    ] {
        assert!(said.lines().any(|l| l == line), "{line} is not in\n{said}");
    }
    let back = good(server.get(&format!("{base}/diff?from=2&to=1")));
    assert!(
        back["diff"]
            .as_str()
            .unwrap()
            .contains("\n+打印选定的区域。\n"),
        "{back}"
    );

    let content = server
        .get(&format!("{base}/versions/1/content"))
        .send()
        .unwrap();
    assert_eq!(content.content_type(), "text/markdown");
    assert!(
        content
            .header("content-disposition")
            .ends_with("filename*=UTF-8''print.md")
    );
    assert_eq!(content.header("x-content-type-options"), "nosniff");
    assert_eq!(content.text().unwrap(), FIRST);
    let one = good(server.get(&format!("{base}/versions/1")));
    assert_eq!(
        (&one["state"], &one["metadata"]),
        (&json!("SUPERSEDED"), &json!({"edition": "1"}))
    );

    let rollback = ["document", "rollback", &id, "-c", "c", "--to", "1"];
    let said = run(va(dir.path()).args(rollback));
    assert_eq!(said, "Version 3 has the content of version 1: READY\n");
    let hits = server.search("c", "选定的区域", "keyword");
    assert_eq!(hits[0]["document"]["version"], json!(3));
    assert!(server.search("c", "预览", "keyword").is_empty());
    assert_eq!(good(server.get(&base))["metadata"], json!({"edition": "1"}));
    let said = run(va(dir.path()).args(rollback));
    assert_eq!(said, "Version 3 has the content of version 1 already.\n");
    let same = good(server.get(&format!("{base}/diff?from=1&to=3")));
    assert_eq!((&same["diff"], &same["added"]), (&json!(""), &json!(0)));
    let listed = run(va(dir.path()).args(["document", "versions", &id, "-c", "c"]));
    let states: Vec<&str> = listed
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(states, ["READY", "SUPERSEDED", "SUPERSEDED"], "{listed}");

    // What is no text cannot be compared, and what does not exist is named.
    let broken = good(
        server
            .post("/api/v1/collections/c/documents?name=手册/print.md&uri=print&wait=ready")
            .header("content-type", "application/pdf")
            .body(b"%PDF-1.7\nbroken".to_vec()),
    );
    assert_eq!(
        (&broken["state"], &broken["version"]),
        (&json!("FAILED"), &json!(4))
    );
    let (status, reply) = problem(server.get(&format!("{base}/diff?to=4")));
    assert_eq!(status, 422);
    assert!(
        reply["detail"]
            .as_str()
            .unwrap()
            .contains("version 4 cannot be read as text"),
        "{reply}"
    );
    let output = va(dir.path())
        .args(["document", "rollback", &id, "-c", "c", "--to", "9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        both(&output).contains("no version 9; it has 1, 2, 3, 4"),
        "{}",
        both(&output)
    );
}

/// The versions of one document are indexed one after the other: its events have one key, so one partition.
#[test]
fn of_quick_versions_exactly_the_newest_is_found() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let words = ["alpaca", "badger", "cormorant", "dormouse", "ermine"];
    for word in words {
        let path = "/api/v1/collections/c/documents?name=animal.txt";
        good(
            server
                .post(path)
                .body(format!("The animal of the day is the {word}.")),
        );
    }
    server.until_indexed("c");
    assert_eq!(server.search("c", "ermine", "keyword").len(), 1);
    for word in &words[..4] {
        assert!(server.search("c", word, "keyword").is_empty(), "{word}");
    }
    let chunks = server.sql("SELECT version, text FROM chunks.c");
    assert_eq!(chunks.len(), 1, "{chunks:?}");
    assert_eq!(chunks[0][0], json!(5));
    assert!(chunks[0][1].as_str().unwrap().contains("ermine"));
    // They were announced in order, each once at most.
    let announced = server.sql(
        "SELECT payload['version'] AS version FROM topic.\"document.indexed\" ORDER BY _offset",
    );
    let versions: Vec<u64> = announced
        .iter()
        .map(|row| row[0].as_u64().unwrap())
        .collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(versions.last(), Some(&5));

    let metrics = Client::new(PATIENCE)
        .get(&format!("{}/metrics", server.base))
        .send()
        .unwrap()
        .text()
        .unwrap();
    for line in [
        "va_document_freshness_seconds_bucket{le=\"14400\"}",
        "va_document_oldest_pending_seconds 0",
        "va_pipeline_conservation_violations_total{pipeline=\"index\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

/// A server that looks for unneeded objects all the time.
fn sweeping(dir: &TempDir) -> Server {
    let config = dir.path().join("va.yaml");
    let settings = "documents: {sweep_interval_ms: 5, versions_max: 3}\n";
    std::fs::write(&config, settings).unwrap();
    Server::start_with(
        &dir.path().join("data"),
        &["--config", config.to_str().unwrap()],
    )
}

/// Contents of all stored objects, in order.
fn objects(data: &Path) -> Vec<String> {
    let mut found: Vec<String> = walkdir::WalkDir::new(data.join("objects"))
        .into_iter()
        .filter_map(|entry| std::fs::read(entry.ok()?.into_path()).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    found.sort();
    found
}

fn until_objects(server: &Server, expected: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while objects(&server.data) != expected {
        assert!(
            Instant::now() < deadline,
            "{expected:?}, but there are {:?}",
            objects(&server.data)
        );
        std::thread::yield_now();
    }
}

#[test]
fn content_is_kept_as_long_as_a_version_needs_it() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let incoming = dir.path().join("data/objects/incoming");
    std::fs::create_dir_all(&incoming).unwrap();
    std::fs::write(incoming.join("0197"), "of a process that died").unwrap();
    let server = sweeping(&dir);
    until_objects(&server, &[]);
    for name in ["a", "b"] {
        server.create_collection(name);
    }
    let id = |reply: Value| reply["id"].as_str().unwrap().to_owned();
    let one = id(server.upload("a", "one.txt", "shared words".into()));
    server.upload("b", "two.txt", "shared words".into());
    server.upload("a", "one.txt", "newer words".into());
    let other = id(server.upload("b", "other.txt", "other words".into()));

    // An upload that breaks off leaves nothing.
    let address = server.base.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).unwrap();
    write!(
        socket,
        "POST /api/v1/collections/a/documents?name=x.txt HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-length: 1000\r\n\r\nonly a part",
        server.key
    )
    .unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    // The server has given the request up when it closes the connection.
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    until_objects(&server, &["newer words", "other words", "shared words"]);

    good(server.delete(&format!("/api/v1/collections/b/documents/{other}")));
    until_objects(&server, &["newer words", "shared words"]);
    // `b` still has it, and so has history: version 1 of `one.txt` can be taken back.
    good(
        server
            .post(&format!(
                "/api/v1/collections/a/documents/{one}/rollback?wait=ready"
            ))
            .json(&json!({"version": 1})),
    );
    good(server.delete(&format!("/api/v1/collections/a/documents/{one}")));
    until_objects(&server, &["shared words"]);
    good(server.delete("/api/v1/collections/b"));
    until_objects(&server, &[]);
    // What was removed is stored anew.
    let again = server.upload("a", "three.txt", "shared words".into());
    assert_eq!(again["state"], json!("READY"));
    until_objects(&server, &["shared words"]);
}

#[test]
fn of_many_versions_the_newest_keep_their_content() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = sweeping(&dir);
    server.create_collection("a");
    let mut id = String::new();
    for word in ["one", "two", "three", "four", "five"] {
        let reply = server.upload("a", "words.txt", format!("the word {word}").into());
        id = reply["id"].as_str().unwrap().to_owned();
    }
    until_objects(
        &server,
        &["the word five", "the word four", "the word three"],
    );
    let base = format!("/api/v1/collections/a/documents/{id}");
    let version = |n: u32| good(server.get(&format!("{base}/versions/{n}")));
    assert_eq!(
        (&version(2)["content_stored"], &version(3)["content_stored"]),
        (&json!(false), &json!(true))
    );
    for request in [
        server
            .post(&format!("{base}/rollback"))
            .json(&json!({"version": 2})),
        server.get(&format!("{base}/diff?from=2")),
        server.get(&format!("{base}/versions/2/content")),
    ] {
        let (status, reply) = problem(request);
        assert_eq!((status, &reply["code"]), (410, &json!("gone")), "{reply}");
        assert!(
            reply["detail"]
                .as_str()
                .unwrap()
                .contains("newest 3 versions"),
            "{reply}"
        );
    }
    let back = server.post(&format!("{base}/rollback?wait=ready"));
    let back = good(back.json(&json!({"version": 3})));
    assert_eq!(
        (&back["version"], &back["state"]),
        (&json!(6), &json!("READY"))
    );
}

/// Uploads and removals of one content while the sweep runs all the time: no version loses its content.
#[test]
fn an_upload_and_a_sweep_of_one_content_do_not_collide() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = sweeping(&dir);
    server.create_collection("a");
    for round in 0..12 {
        let reply = server.upload("a", "same.txt", "the same words".into());
        assert_eq!(reply["state"], json!("READY"), "{round}: {reply}");
        let id = reply["id"].as_str().unwrap();
        good(server.delete(&format!("/api/v1/collections/a/documents/{id}")));
    }
    until_objects(&server, &[]);
    let letters = good(server.get("/api/v1/pipelines/index/dlq?all=true"));
    assert_eq!(letters["items"], json!([]));
}
