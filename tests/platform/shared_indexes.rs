//! The platform on shared indexes: what holds with the embedded ones holds with splits, also after `kill -9`. With several
//! processes and real servers they are tested in `connectors/splits/tests`.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::crash::{DOCUMENTS, chunks, found_by_keyword, hand_over, uncrashed};
use crate::server::{Server, good, need_model, va};

/// `va up` with shared indexes, over a catalog and objects that only it uses.
fn up(data: &Path) -> Server {
    let config = data.join("va.yaml");
    let settings = json!({
        "catalog": {"url": data.join("shared.db")},
        "objects": {"url": data.join("shared")},
        "indexes": {"shared": true},
        // All the time: it must know what is a split.
        "documents": {"sweep_interval_ms": 5},
    });
    std::fs::write(&config, settings.to_string()).unwrap();
    Server::start_as(va(data).env("VA_CONFIG", config), data)
}

fn verified(server: &Server, collection: &str, chunks: usize) {
    let report = good(server.get(&format!("/api/v1/collections/{collection}/verify")));
    assert_eq!(
        (&report["ok"], &report["vectors"], &report["texts"]),
        (&json!(true), &json!(chunks), &json!(chunks)),
        "{report}"
    );
}

#[test]
fn a_killed_server_with_shared_indexes_loses_and_doubles_nothing() {
    let Some(()) = need_model() else { return };
    let calm = tempdir().unwrap();
    let expected = uncrashed(calm.path());

    let dir = tempdir().unwrap();
    let mut handed_over = 0;
    for ready in [1, 21] {
        let server = up(dir.path());
        if handed_over == 0 {
            server.create_collection("c");
        }
        handed_over = hand_over(&server, handed_over);
        server.until("/api/v1/collections/c", |c: &Value| {
            c["states"]["READY"].as_u64().unwrap_or(0) >= ready
        });
        server.kill();
    }
    let server = up(dir.path());
    assert_eq!(hand_over(&server, handed_over), DOCUMENTS);
    server.until_indexed("c");
    assert_eq!((chunks(&server), found_by_keyword(&server)), expected);
    verified(&server, "c", expected.0.len());
    assert!(!dir.path().join("vectors").exists() && !dir.path().join("texts").exists());

    // A copy of the splits is kept here only; without it they are fetched again.
    server.kill();
    std::fs::remove_dir_all(dir.path().join("splits")).unwrap();
    let server = up(dir.path());
    assert_eq!((chunks(&server), found_by_keyword(&server)), expected);
    let hits = server.search("c", "冻结第 7 行", "hybrid");
    assert!(!hits.is_empty());
}

#[test]
fn documents_and_collections_come_go_and_come_again() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = up(dir.path());
    let names = |server: &Server| -> Vec<(String, u64)> {
        let hits = server.search("c", "冻结第一行", "hybrid");
        let mut names: Vec<_> = hits
            .iter()
            .map(|hit| {
                let document = &hit["document"];
                let name = document["name"].as_str().unwrap().to_owned();
                (name, document["version"].as_u64().unwrap())
            })
            .collect();
        names.sort();
        names
    };
    for life in 1..=2 {
        server.create_collection("c");
        let first = server.upload("c", "a.md", format!("# 冻结第一行 {life}").into());
        server.upload("c", "b.md", "# 冻结第一行和第二行".into());
        for version in 2..=3 {
            let text = format!("# 冻结第一行 {life}，第 {version} 次");
            server.upload("c", "a.md", text.into());
        }
        let expected = [("a.md".to_owned(), 3), ("b.md".to_owned(), 1)];
        assert_eq!(names(&server), expected);
        verified(&server, "c", 2);
        let id = first["id"].as_str().unwrap();
        good(server.delete(&format!("/api/v1/collections/c/documents/{id}")));
        server.until_indexed("c");
        assert_eq!(names(&server), expected[1..]);
        verified(&server, "c", 1);
        server.upload("c", "a.md", format!("# 冻结第一行 {life}").into());
        assert_eq!(names(&server)[0], ("a.md".to_owned(), 4));
        good(server.delete("/api/v1/collections/c"));
    }
    let metrics = server.get("/metrics").send().unwrap().text().unwrap();
    assert!(metrics.contains("va_splits_published_total"), "{metrics}");
}
