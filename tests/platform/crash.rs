//! `kill -9` of the server, or of `va index`, at any moment: afterwards both indexes hold what an uncrashed run holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, both, corpus, good, need_model, run, va};

pub const DOCUMENTS: usize = 40;

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
pub fn hand_over(server: &Server, from: usize) -> usize {
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
pub fn chunks(server: &Server) -> BTreeMap<String, String> {
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
pub fn found_by_keyword(server: &Server) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..DOCUMENTS {
        let hits = server.search("c", &word(i), "keyword");
        assert_eq!(hits.len(), 1, "document {i}: {hits:?}");
        assert_eq!(hits[0]["document"]["name"], format!("d{i}.md"));
        ids.push(hits[0]["chunk"]["id"].as_str().unwrap().to_owned());
    }
    ids
}

pub fn uncrashed(dir: &Path) -> (BTreeMap<String, String>, Vec<String>) {
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

/// Kills of one run of [`va_index_survives_kills_at_random_moments`].
const KILLS: u64 = 20;
/// Files that it indexes: every n-th of the sample, so that both languages and all kinds are there.
const EVERY: usize = 3;

/// A small real corpus: pages in both languages, a PDF, office files, and one file that cannot be read as text.
fn some_of(sample: &Path, to: &Path) -> usize {
    let docs = sample.join("docs");
    let mut files: Vec<PathBuf> = Vec::new();
    let mut folders = vec![docs.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    let office = |path: &Path| path.parent() == Some(&docs.join("files"));
    let kept = files.iter().enumerate();
    let kept = kept.filter(|(i, path)| i % EVERY == 0 || office(path));
    let mut count = 1;
    for (_, path) in kept {
        let copy = to.join(path.strip_prefix(&docs).unwrap());
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(path, copy).unwrap();
        count += 1;
    }
    std::fs::write(to.join("broken.docx"), b"PK\x03\x04 this is not a zip").unwrap();
    count
}

/// What a collection holds, and that catalog, vector store and full-text index agree on it.
fn verified(data: &Path) -> (Value, BTreeMap<String, String>) {
    let server = Server::start(data);
    let report: Value =
        serde_json::from_str(&run(va(data).args(["collection", "verify", "c", "--json"]))).unwrap();
    assert_eq!(
        (&report["ok"], &report["in_work"]),
        (&json!(true), &json!(0)),
        "{report}"
    );
    assert_eq!(report["vectors"], report["texts"], "{report}");
    let violations = server.get("/metrics").send().unwrap().text().unwrap();
    let violations = violations
        .lines()
        .find(|line| line.starts_with("va_pipeline_conservation_violations_total"));
    assert!(
        violations.is_none_or(|line| line.ends_with(" 0")),
        "{violations:?}"
    );
    (report["documents"].clone(), chunks(&server))
}

/// The next number of a fixed sequence (SplitMix64), so that a failing run can be repeated.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The command brings the platform up in its own process, so each kill takes the log, the catalog and both indexes
/// down in the middle of what they were doing.
#[test]
fn va_index_survives_kills_at_random_moments() {
    let (Some(()), Some(sample)) = (need_model(), corpus("sample")) else {
        return;
    };
    let dir = tempdir().unwrap();
    let docs = dir.path().join("docs");
    let files = some_of(&sample, &docs);
    let index = |data: &Path| {
        let mut command = va(data);
        command
            .arg("index")
            .arg(&docs)
            .args(["--collection", "c", "--json"]);
        command
    };
    // One file is broken on purpose, so the command reports a failure and indexes the rest.
    let to_the_end = |data: &Path| {
        let output = index(data).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let failed = said["failed"].as_array().unwrap();
        assert!(
            failed.len() == 1 && failed[0]["uri"].as_str().unwrap().ends_with("broken.docx"),
            "{said}"
        );
    };
    let calm = dir.path().join("calm");
    let started = Instant::now();
    to_the_end(&calm);
    let whole = started.elapsed();
    let expected = verified(&calm);
    assert_eq!(expected.0, json!(files - 1));

    let data = dir.path().join("killed");
    let seed = std::env::var("VA_TEST_SEED").map_or(20_261_124, |seed| seed.parse().unwrap());
    println!("VA_TEST_SEED={seed}");
    let mut random = seed;
    let mut killed = 0;
    // How far into a run it is killed at most. Runs are shorter when others have done most of it, and when the machine had
    // more to do at the first.
    let mut most = whole.mul_f64(0.4);
    for _ in 0..KILLS {
        let mut child = index(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From the first moment on, and long enough that the runs together come to the end of the corpus.
        let moment = most.mul_f64((next(&mut random) % 1_000) as f64 / 1_000.0);
        let deadline = Instant::now() + moment;
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        } else {
            most = most.mul_f64(0.7);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    println!("{killed} of {KILLS} runs were killed before they ended");
    assert!(killed >= 10, "the runs ended by themselves");
    to_the_end(&data);
    assert_eq!(verified(&data), expected);
}
