//! Dead letters: listed, shown, and retried exactly once, for documents and for users' own rows.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, both, good, need_model, problem, run, va};

const BROKEN_PDF: &[u8] = b"%PDF-1.7\nthis is where the pages should be";

fn letters(server: &Server, pipeline: &str, query: &str) -> Vec<Value> {
    let path = format!("/api/v1/pipelines/{pipeline}/dlq?{query}");
    good(server.get(&path))["items"].as_array().unwrap().clone()
}

/// Hands a document over without waiting; returns its id.
fn hand_over(server: &Server, name: &str, bytes: Vec<u8>) -> String {
    let reply = good(
        server
            .post(&format!("/api/v1/collections/c/documents?name={name}"))
            .header("content-type", "application/octet-stream")
            .body(bytes),
    );
    reply["id"].as_str().unwrap().to_owned()
}

fn until_state(server: &Server, id: &str, state: &str) -> Value {
    let path = format!("/api/v1/collections/c/documents/{id}");
    server.until(&path, |document| document["state"] == state)
}

/// The only stored object whose content is this.
fn object(data: &Path, content: &str) -> PathBuf {
    let mut found = walkdir::WalkDir::new(data.join("objects"))
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.is_file() && std::fs::read(path).unwrap() == content.as_bytes());
    let object = found.next().unwrap();
    assert!(found.next().is_none());
    object
}

/// A retry by the command line that must not succeed; returns what it said.
fn refused(server: &Server, args: &[&str]) -> String {
    let output = va(&server.data)
        .args(["dlq", "retry"])
        .args(args)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    both(&output)
}

#[test]
fn a_document_is_ready_once_its_trouble_is_mended_and_retried() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let text = "# 冻结\n\n冻结第一行。";
    // The content is damaged after it was taken and before it is read.
    good(server.post("/api/v1/pipelines/index/stop"));
    let damaged = hand_over(&server, "freeze.md", text.into());
    let stored = object(dir.path(), text);
    std::fs::write(&stored, "rotten").unwrap();
    good(server.post("/api/v1/pipelines/index/start"));
    let document = until_state(&server, &damaged, "FAILED");
    assert!(
        document["error"].as_str().unwrap().contains("is damaged"),
        "{document}"
    );
    let broken = hand_over(&server, "broken.pdf", BROKEN_PDF.into());
    until_state(&server, &broken, "FAILED");

    let listed = letters(&server, "index", "");
    assert_eq!(listed.len(), 2, "{listed:?}");
    let (first, second) = (&listed[0], &listed[1]);
    assert_eq!(first["document"]["name"], json!("freeze.md"));
    assert_eq!(first["source"]["topic"], json!("document.uploaded"));
    assert!(first["source"]["offset"].is_u64());
    assert_eq!(second["document"]["name"], json!("broken.pdf"));
    let only = letters(&server, "index", "reason=ITS+CONTENT");
    assert_eq!(only, std::slice::from_ref(first));
    let paged = good(server.get("/api/v1/pipelines/index/dlq?limit=1"));
    assert_eq!(paged["items"], json!([first]));
    let cursor = paged["cursor"].as_str().unwrap();
    assert_eq!(
        letters(&server, "index", &format!("cursor={cursor}")),
        std::slice::from_ref(second)
    );

    let said = run(va(dir.path()).args(["dlq", "ls", "index"]));
    assert!(
        said.contains("freeze.md") && said.contains("is damaged"),
        "{said}"
    );
    let said = run(va(dir.path()).args(["dlq", "ls", "index", "--summary"]));
    assert_eq!(said.lines().count(), 3, "{said}");
    let (first, second) = (
        first["id"].as_str().unwrap(),
        second["id"].as_str().unwrap(),
    );
    let said = run(va(dir.path()).args(["dlq", "show", "index", first]));
    assert!(said.contains("content_hash"), "{said}");
    let failed = run(va(dir.path()).args(["document", "list", "-c", "c", "--state", "FAILED"]));
    assert!(
        failed.contains("freeze.md") && failed.contains("broken.pdf"),
        "{failed}"
    );

    std::fs::write(&stored, text).unwrap();
    let said = run(va(dir.path()).args(["dlq", "retry", "index", first]));
    assert!(said.contains("1 retried"), "{said}");
    until_state(&server, &damaged, "READY");
    assert_eq!(
        server.search("c", "冻结", "hybrid")[0]["document"]["id"],
        json!(damaged)
    );
    let said = refused(&server, &["index", first]);
    assert!(said.contains("it was retried already"), "{said}");
    assert_eq!(letters(&server, "index", "")[0]["id"], json!(second));
    let all = letters(&server, "index", "all=true");
    assert!(
        all[0]["retried_at"].is_i64() && all[1]["retried_at"].is_null(),
        "{all:?}"
    );

    // What is still broken fails again: a new letter, the old one is done with.
    let said = run(va(dir.path()).args(["dlq", "retry", "index", "--all"]));
    assert!(said.contains("1 retried, 0 skipped"), "{said}");
    server.until("/api/v1/pipelines/index/dlq", |list| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|letter| letter["id"] != second)
    });
    until_state(&server, &broken, "FAILED");
    let left = letters(&server, "index", "");
    assert_eq!(left.len(), 1, "{left:?}");

    // A version that was overtaken, and a document that is gone, are not tried again.
    let again = left[0]["id"].as_str().unwrap();
    server.upload("c", "broken.pdf", "now it is text".into());
    assert!(refused(&server, &["index", again]).contains("overtaken by version 2"));
    good(server.delete(&format!("/api/v1/collections/c/documents/{broken}")));
    server.until_indexed("c");
    assert!(refused(&server, &["index", again]).contains("the document was removed"));
    assert!(refused(&server, &["index", "0-999"]).contains("no dead letter `0-999`"));
    assert_eq!(problem(server.get("/api/v1/pipelines/nope/dlq")).0, 404);
    let wrong = server.post("/api/v1/pipelines/index/dlq/retry");
    assert_eq!(problem(wrong.json(&json!({"ids": ["x"]}))).0, 422);
    let wrong = server.post("/api/v1/pipelines/index/dlq/retry");
    assert_eq!(
        problem(wrong.json(&json!({"ids": [first], "all": true}))).0,
        400
    );
}

/// Killed in the middle of retries, again and again: no document stays under way, and each retry of a letter has put
/// its row into the log once.
#[test]
fn a_killed_retry_is_finished_and_happens_once() {
    let dir = tempdir().unwrap();
    let mut server = Server::start(dir.path());
    server.create_collection("c");
    for i in 0..8 {
        hand_over(
            &server,
            &format!("b{i}.pdf"),
            [BROKEN_PDF, &[b'0' + i]].concat(),
        );
    }
    server.until_indexed("c");
    for round in 0..4 {
        let post = server
            .post("/api/v1/pipelines/index/dlq/retry")
            .json(&json!({"all": true}));
        let asked = std::thread::spawn(move || post.send().is_ok());
        // Each round the kill comes later: by as many looks at the state.
        for _ in 0..round {
            good(server.get("/api/v1/collections/c"));
        }
        server.kill();
        let _ = asked.join().unwrap();
        server = Server::start(dir.path());
        server.until_indexed("c");
    }
    server.until("/api/v1/pipelines/index", |p| p["lag_rows"] == 0);
    server.until("/api/v1/pipelines/document_state", |p| p["lag_rows"] == 0);
    let collection = server.until_indexed("c");
    assert_eq!(collection["states"], json!({"FAILED": 8}), "{collection}");
    let all = letters(&server, "index", "all=true&limit=1000");
    let retried = all.iter().filter(|letter| letter["retried_at"].is_i64());
    let events = server.sql("SELECT count(*) FROM topic.\"document.uploaded\"");
    assert_eq!(events[0][0], json!(8 + retried.count()));
    // Every event failed, so every event has its letter.
    assert_eq!(events[0][0], json!(all.len()));
}

const PIPELINE: &str = "\
pipeline: amounts
sources:
  orders: {type: topic, topic: orders}
operators:
  wanted: {type: filter, input: orders, where: id <> 'unwanted'}
  parsed: {type: map, input: wanted, set: {amount: cast(amount as bigint)}}
sinks:
  out: {type: topic, input: parsed, topic: amounts, key: id}
";

fn produce(server: &Server, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    good(server.post("/api/v1/topics/orders/records").body(text));
}

fn ids(server: &Server) -> Vec<String> {
    let text = run(va(&server.data).args(["topic", "consume", "amounts"]));
    let mut ids: Vec<String> = text
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    ids
}

fn run_pipeline(server: &Server, definition: &str) {
    let file = server.data.join("amounts.yaml");
    std::fs::write(&file, definition).unwrap();
    run(va(&server.data).args(["pipeline", "run"]).arg(&file));
}

#[test]
fn rows_go_through_a_mended_pipeline_once() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    run(va(dir.path()).args([
        "topic",
        "create",
        "orders",
        "id:string!",
        "amount:string",
        "--partitions",
        "1",
    ]));
    run_pipeline(&server, PIPELINE);
    let order = |id: &str, amount: &str| json!({"id": id, "amount": amount});
    produce(
        &server,
        &[
            order("a", "1"),
            order("unwanted", "many"),
            order("bad", "twelve"),
            order("b", "2"),
            order("worse", "lots"),
        ],
    );
    server.until("/api/v1/pipelines/amounts", |p| p["lag_rows"] == 0);
    assert_eq!(ids(&server), ["a", "b"]);

    // The letters name their source rows exactly, although a filter came before.
    let found = letters(&server, "amounts", "operator=parsed");
    let offsets: Vec<&Value> = found.iter().map(|l| &l["source"]["offset"]).collect();
    assert_eq!(offsets, [&json!(2), &json!(4)], "{found:?}");
    let shown = good(server.get(&format!(
        "/api/v1/pipelines/amounts/dlq/{}",
        found[0]["id"].as_str().unwrap()
    )));
    assert_eq!(shown["row"], json!({"id": "bad", "amount": "twelve"}));
    assert!(!shown["row_ipc"].as_str().unwrap().is_empty());

    run_pipeline(
        &server,
        &PIPELINE.replace("cast(amount as bigint)", "try_cast(amount as bigint)"),
    );
    let said = run(va(dir.path()).args(["dlq", "retry", "amounts", "--all", "--reason", "twelve"]));
    assert!(said.contains("1 retried, 0 skipped"), "{said}");
    // The reply was a promise.
    server.kill();
    let server = Server::start(dir.path());
    server.until("/api/v1/pipelines/amounts", |p| p["lag_rows"] == 0);
    assert_eq!(ids(&server), ["a", "b", "bad"]);
    for expected in ["1 retried, 0 skipped", "0 retried, 0 skipped"] {
        let said = run(va(dir.path()).args(["dlq", "retry", "amounts", "--all"]));
        assert!(said.contains(expected), "{said}");
    }
    server.until("/api/v1/pipelines/amounts", |p| p["lag_rows"] == 0);
    assert_eq!(ids(&server), ["a", "b", "bad", "worse"]);
    assert!(letters(&server, "amounts", "").is_empty());
    assert_eq!(letters(&server, "amounts", "all=true").len(), 2);
}

#[test]
fn a_row_that_retention_removed_is_said_to_be_gone() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    run(va(dir.path()).args([
        "topic",
        "create",
        "orders",
        "id:string!",
        "amount:string",
        "--retention-ms",
        "1",
    ]));
    run_pipeline(&server, PIPELINE);
    produce(&server, &[json!({"id": "bad", "amount": "twelve"})]);
    server.until("/api/v1/pipelines/amounts/dlq", |list| {
        list["items"] != json!([])
    });
    server.kill();
    // Retention is enforced at the start.
    let server = Server::start(dir.path());
    server.until("/api/v1/topics/orders", |topic| topic["rows"] == 0);
    let letter = letters(&server, "amounts", "")[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let said = refused(&server, &["amounts", &letter]);
    assert!(said.contains("retention has removed it"), "{said}");
    assert_eq!(letters(&server, "amounts", "").len(), 1);
}
