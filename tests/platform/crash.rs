//! `kill -9` of the server while it indexes: after a restart both indexes hold what an uncrashed run holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::server::{Server, good, need_model};

const DOCUMENTS: usize = 40;

/// A word that only document `i` has.
fn word(i: usize) -> String {
    let letter = |n: usize| char::from(b"bcdfghjkmn"[n]);
    format!("qx{}{}o", letter(i / 10), letter(i % 10))
}

fn text(i: usize) -> String {
    let word = word(i);
    format!(
        "# 文档 {i}\n\n本文档的代号是 {word}。冻结第 {i} 行，然后打印。\n\n## Section\n\nDocument number {i} is about topic{}y.\n",
        i % 7
    )
}

/// Hands documents over without waiting; a refused connection is the crash.
fn hand_over(server: &Server, from: usize) -> usize {
    for i in from..DOCUMENTS {
        let path = format!("/api/v1/collections/c/documents?name=d{i}.md");
        let sent = server
            .post(&path)
            .header("content-type", "application/octet-stream")
            .body(text(i))
            .send();
        if !sent.is_ok_and(|response| response.status().is_success()) {
            return i;
        }
    }
    DOCUMENTS
}

/// Every chunk in the vector table: id to text.
fn chunks(server: &Server) -> BTreeMap<String, String> {
    let rows = server.sql("SELECT id, text FROM chunks.c");
    let count = rows.len();
    let map: BTreeMap<String, String> = rows
        .into_iter()
        .map(|row| {
            (
                row[0].as_str().unwrap().to_owned(),
                row[1].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    assert_eq!(map.len(), count, "a chunk is there twice");
    map
}

/// Ids of the chunks that the full-text index finds for every document's own word.
fn found_by_keyword(server: &Server) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..DOCUMENTS {
        let hits = server.search("c", &word(i), "keyword");
        assert_eq!(hits.len(), 1, "document {i}: {hits:?}");
        assert_eq!(hits[0]["document"]["name"], format!("d{i}.md"));
        ids.push(hits[0]["chunk"]["id"].as_str().unwrap().to_owned());
    }
    ids
}

fn uncrashed(dir: &Path) -> (BTreeMap<String, String>, Vec<String>) {
    let server = Server::start(dir);
    server.create_collection("c");
    assert_eq!(hand_over(&server, 0), DOCUMENTS);
    server.until_indexed("c");
    (chunks(&server), found_by_keyword(&server))
}

#[test]
fn a_killed_server_loses_and_doubles_nothing() {
    let Some(()) = need_model() else { return };
    let calm = tempdir().unwrap();
    let expected = uncrashed(calm.path());

    let dir = tempdir().unwrap();
    // How many documents are ready when the process is killed: early, in the middle, late.
    let mut handed_over = 0;
    for ready in [1, 13, 29] {
        let server = Server::start(dir.path());
        if handed_over == 0 {
            server.create_collection("c");
        }
        handed_over = hand_over(&server, handed_over);
        server.until("/api/v1/collections/c", |c: &Value| {
            c["states"]["READY"].as_u64().unwrap_or(0) >= ready
        });
        server.kill();
    }
    let server = Server::start(dir.path());
    assert_eq!(hand_over(&server, handed_over), DOCUMENTS);
    let collection = server.until_indexed("c");
    assert_eq!(
        collection["states"]["READY"].as_u64(),
        Some(DOCUMENTS as u64),
        "{collection}"
    );
    assert_eq!((chunks(&server), found_by_keyword(&server)), expected);

    // Every event of the log was consumed, and each document was announced for its one version.
    let status = good(server.get("/api/v1/pipelines/index"));
    assert_eq!(
        (&status["lag_rows"], &status["state"]),
        (&Value::from(0), &Value::from("running")),
        "{status}"
    );
    let announced = server.sql(
        "SELECT payload['document_id'] AS document, count(*) AS n FROM topic.\"document.indexed\" GROUP BY 1 HAVING count(*) > 1",
    );
    assert!(announced.is_empty(), "announced twice: {announced:?}");
}
