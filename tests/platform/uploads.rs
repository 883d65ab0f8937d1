//! Documents through the HTTP API: searchable soon, cited exactly, replaced, removed, refused with reasons.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::http::Client;
use crate::server::{PATIENCE, Server, corpus, good, need_model, problem};

const FREEZE: &str = "# 冻结行或列作为标题\n\n如果工作表很长，可以冻结第一行。选择“视图 - 冻结单元格”。\n\n\
    ## Freezing rows and columns\n\nSelect the row below the rows to freeze, then choose View - Freeze Rows and Columns.\n";

#[test]
fn a_document_is_searchable_cited_replaced_and_removed() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("帮助");
    let reply = server.upload("帮助", "freeze.md", FREEZE.into());
    assert_eq!(
        (&reply["state"], &reply["version"], &reply["outcome"]),
        (&json!("READY"), &json!(1), &json!("new"))
    );
    let id = reply["id"].as_str().unwrap().to_owned();

    for (query, mode) in [
        ("怎样冻结行", "hybrid"),
        ("freeze rows", "hybrid"),
        ("凍結列", "keyword"),
        ("froze the columns", "keyword"),
        ("固定表头不滚动", "vector"),
    ] {
        let hits = server.search("帮助", query, mode);
        assert_eq!(hits[0]["document"]["id"], json!(id), "{query} {mode}");
    }
    let hit = &server.search("帮助", "冻结", "hybrid")[0];
    cited_exactly(hit);
    assert_eq!(hit["document"]["title"], json!("冻结行或列作为标题"));
    assert!(
        hit["retrievers"]["keyword"]["rank"].is_u64()
            && hit["retrievers"]["vector"]["rank"].is_u64(),
        "{hit}"
    );

    // The same bytes are no work, other bytes are a new version that replaces the old one in both indexes.
    let again = server.upload("帮助", "freeze.md", FREEZE.into());
    assert_eq!(
        (&again["outcome"], &again["version"]),
        (&json!("unchanged"), &json!(1))
    );
    let changed = server.upload("帮助", "freeze.md", "# 打印\n\n打印选定的区域。".into());
    assert_eq!(
        (&changed["outcome"], &changed["version"], &changed["state"]),
        (&json!("changed"), &json!(2), &json!("READY"))
    );
    assert_eq!(
        server.search("帮助", "打印", "keyword")[0]["document"]["version"],
        json!(2)
    );
    assert!(server.search("帮助", "冻结", "keyword").is_empty());
    assert!(
        server
            .search("帮助", "冻结", "vector")
            .iter()
            .all(|hit| hit["document"]["version"] == 2)
    );
    let versions = good(server.get(&format!("/api/v1/collections/帮助/documents/{id}/versions")));
    assert_eq!(versions["items"].as_array().unwrap().len(), 2);

    good(server.delete(&format!("/api/v1/collections/帮助/documents/{id}")));
    server.until_indexed("帮助");
    assert!(server.search("帮助", "打印", "hybrid").is_empty());
    assert_eq!(
        problem(server.get(&format!("/api/v1/collections/帮助/documents/{id}"))).0,
        404
    );
}

/// The cited characters are where the citation says, and the highlights are words of the query.
fn cited_exactly(hit: &Value) {
    let chunk = &hit["chunk"];
    let text: Vec<char> = chunk["text"].as_str().unwrap().chars().collect();
    let (start, end) = (
        chunk["start"].as_u64().unwrap(),
        chunk["end"].as_u64().unwrap(),
    );
    assert_eq!(text.len() as u64, end - start);
    let marks: Vec<(usize, usize)> = serde_json::from_value(chunk["highlights"].clone()).unwrap();
    assert!(!marks.is_empty());
    for (from, to) in marks {
        let marked: String = text[from..to].iter().collect();
        assert!(marked.contains('冻') || marked.contains('结'), "{marked}");
    }
}

#[test]
fn a_pdf_and_office_files_are_searchable_by_multipart() {
    let (Some(()), Some(sample)) = (need_model(), corpus("sample")) else {
        return;
    };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("files");
    let files = std::fs::read_dir(sample.join("docs/files")).unwrap();
    let mut kinds = Vec::new();
    for file in files.map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let upload = server.post("/api/v1/collections/files/documents?wait=ready");
        let reply = good(upload.multipart("file", &name, std::fs::read(&file).unwrap()));
        assert_eq!(reply["state"], json!("READY"), "{name}: {reply}");
        kinds.push(name.rsplit('.').next().unwrap().to_owned());
    }
    kinds.sort();
    assert_eq!(kinds, ["docx", "pdf", "pptx"]);
    let hit = &server.search("files", "the crazy ones, the misfits, the rebels", "hybrid")[0];
    assert_eq!(
        (&hit["document"]["name"], &hit["chunk"]["page"]),
        (&json!("crazyones.pdf"), &json!(1))
    );
}

#[test]
fn requests_are_refused_with_reasons() {
    let dir = tempdir().unwrap();
    std::fs::write(
        dir.path().join("va.yaml"),
        "limits: {upload_bytes_max: 2000000}\n",
    )
    .unwrap();
    let data = dir.path().join("data");
    // A small limit, so that the test need not send 100 MB.
    let server = Server::start_with(
        &data,
        &["--config", dir.path().join("va.yaml").to_str().unwrap()],
    );
    server.create_collection("c");
    let client = Client::new(PATIENCE);

    let (status, reply) = problem(client.get(&format!("{}/api/v1/collections", server.base)));
    assert_eq!((status, &reply["code"]), (401, &json!("unauthorized")));
    let wrong = client
        .get(&format!("{}/api/v1/collections", server.base))
        .bearer_auth("va_wrong");
    assert_eq!(problem(wrong).0, 401);
    assert_eq!(
        client
            .get(&format!("{}/healthz", server.base))
            .send()
            .unwrap()
            .status(),
        200
    );

    let too_large = server
        .post("/api/v1/collections/c/documents?name=a.txt")
        .body(vec![b'x'; 2_000_001]);
    let (status, reply) = problem(too_large);
    assert_eq!(status, 413);
    assert!(
        reply["detail"].as_str().unwrap().contains("2000000"),
        "{reply}"
    );
    // Without a length the limit is found while reading.
    let piece = vec![b'x'; 500_000];
    let (status, _) = problem(
        server
            .post("/api/v1/collections/c/documents?name=a.txt")
            .stream(vec![piece; 6]),
    );
    assert_eq!(status, 413);

    let (status, reply) = problem(
        server
            .post("/api/v1/collections/nope/documents?name=a.txt")
            .body("x"),
    );
    assert_eq!((status, &reply["code"]), (404, &json!("not_found")));
    let search = |body: Value| problem(server.post("/api/v1/retrieval/hybrid_search").json(&body));
    assert_eq!(
        search(json!({"query": "x", "collection": "c", "k": 1001})).0,
        400
    );
    assert_eq!(search(json!({"query": " ", "collection": "c"})).0, 400);
    assert_eq!(search(json!({"query": "x", "collection": "nope"})).0, 404);
    assert_eq!(problem(server.get("/api/v1/nothing")).0, 404);
    let (status, reply) = problem(
        server
            .post("/api/v1/sql")
            .json(&json!({"query": "DROP TABLE documents"})),
    );
    assert_eq!(status, 422, "{reply}");

    let metrics = client
        .get(&format!("{}/metrics", server.base))
        .send()
        .unwrap()
        .text()
        .unwrap();
    for name in [
        "va_http_requests_total",
        "va_pipeline_lag_rows",
        "va_http_request_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} is missing");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(data.join("admin.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// Without its embedding model the vector side cannot answer; the keyword side does, and the reply says so.
#[test]
fn one_side_answers_when_the_other_cannot() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data);
    server.create_collection("c");
    server.upload("c", "freeze.md", FREEZE.into());
    drop(server);

    let config = dir.path().join("va.yaml");
    std::fs::write(
        &config,
        format!("models: {{dir: {}/none}}\n", dir.path().display()),
    )
    .unwrap();
    let server = Server::start_with(&data, &["--config", config.to_str().unwrap()]);
    let search = |mode: &str| {
        let request = json!({"query": "冻结行", "collection": "c", "mode": mode});
        server
            .post("/api/v1/retrieval/hybrid_search")
            .json(&request)
    };
    let reply = good(search("hybrid"));
    assert_eq!(reply["hits"][0]["document"]["name"], json!("freeze.md"));
    assert_eq!(
        reply["degraded"][0]["retriever"],
        json!("vector"),
        "{reply}"
    );
    assert!(
        reply["degraded"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("va model pull"),
        "{reply}"
    );
    let (status, reply) = problem(search("vector"));
    assert_eq!((status, &reply["code"]), (503, &json!("unavailable")));
}
