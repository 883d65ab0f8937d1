//! While documents change, every search sees exactly one version of each, the same in both indexes.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, good, need_model};

const CHANGES: u32 = 30;

fn text(version: u32) -> String {
    format!(
        "# 冻结行\n\n冻结第一行的说明，第 {version} 次修订。Freeze the first row, revision {version}.\n"
    )
}

/// The versions of the one document that a hybrid search sees: by the vectors, by the words.
fn seen(server: &Server) -> (Vec<Value>, Vec<Value>) {
    let request = json!({"query": "冻结行 freeze row", "collection": "c", "k": 20});
    let reply = good(
        server
            .post("/api/v1/retrieval/hybrid_search")
            .json(&request),
    );
    assert_eq!(reply["degraded"], json!([]), "{reply}");
    let by = |retriever: &str| {
        let hits = reply["hits"].as_array().unwrap().iter();
        hits.filter(|hit| !hit["retrievers"][retriever].is_null())
            .map(|hit| hit["document"]["version"].clone())
            .collect()
    };
    (by("vector"), by("keyword"))
}

#[test]
fn a_search_sees_one_version_in_both_indexes() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    server.upload("c", "a.md", text(1).into());

    let done = AtomicBool::new(false);
    let (searches, versions) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut versions = std::collections::BTreeSet::new();
            let mut searches = 0;
            while !done.load(Ordering::Relaxed) {
                let (vector, keyword) = seen(&server);
                assert_eq!(vector.len(), 1, "{vector:?}");
                assert_eq!(vector, keyword);
                versions.insert(vector[0].as_u64());
                searches += 1;
            }
            (searches, versions.len())
        });
        for version in 2..=CHANGES {
            let reply = server.upload("c", "a.md", text(version).into());
            assert_eq!(reply["version"], json!(version), "{reply}");
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    println!("{searches} searches saw {versions} of {CHANGES} versions");
    assert!(versions > 3, "the searches did not meet the changes");
    let last = vec![json!(CHANGES)];
    assert_eq!(seen(&server), (last.clone(), last));
}

/// A collection without vectors: found by words in every mode but `vector`, nothing embedded.
#[test]
fn a_keyword_only_collection_has_no_vectors() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    let body = json!({"name": "words", "keyword_only": true});
    let created = good(server.post("/api/v1/collections").json(&body));
    assert_eq!(
        (&created["keyword_only"], &created["model"]),
        (&json!(true), &Value::Null)
    );
    let reply = server.upload("words", "a.md", text(1).into());
    assert_eq!(reply["state"], json!("READY"), "{reply}");
    for mode in ["hybrid", "keyword"] {
        let hits = server.search("words", "冻结行", mode);
        assert_eq!(hits.len(), 1, "{mode}");
        assert!(hits[0]["retrievers"]["vector"].is_null());
    }
    let request = json!({"query": "x", "collection": "words", "mode": "vector"});
    let (status, problem) = crate::server::problem(
        server
            .post("/api/v1/retrieval/hybrid_search")
            .json(&request),
    );
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("keyword"));

    let metrics = server.get("/metrics").send().unwrap().text().unwrap();
    let embedded = metrics
        .lines()
        .find(|line| line.starts_with("va_embed_cache_total{outcome=\"miss\"}"));
    assert!(
        embedded.is_none_or(|line| line.ends_with(" 0")),
        "{embedded:?}"
    );
    let report = good(server.get("/api/v1/collections/words/verify"));
    assert_eq!(
        (&report["ok"], &report["vectors"], &report["texts"]),
        (&json!(true), &Value::Null, &json!(1)),
        "{report}"
    );
}
