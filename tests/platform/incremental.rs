//! `va index` again and again on a folder that changes: unchanged, changed, moved, removed, interrupted, watched.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::server::{PATIENCE, Server, both, good, need_model, problem, run, va};

const FREEZE: &str = "# 冻结行或列作为标题\n\n如果工作表很长，可以冻结第一行。\n";
const PRINT: &str =
    "# 打印选定的区域\n\n选择要打印的单元格，然后打印。The code word is qxprinto.\n";
const CHART: &str = "# Inserting charts\n\nSelect the cells, then choose Insert - Chart. The code word is qxcharto.\n";

/// A server with one folder beside its data.
struct Bench {
    server: Server,
    dir: TempDir,
}

impl Bench {
    fn start() -> Self {
        let dir = tempdir().unwrap();
        std::fs::create_dir(dir.path().join("docs")).unwrap();
        let server = Server::start(&dir.path().join("data"));
        Self { server, dir }
    }

    fn docs(&self) -> PathBuf {
        self.dir.path().join("docs").canonicalize().unwrap()
    }

    fn write(&self, name: impl AsRef<Path>, text: impl AsRef<[u8]>) {
        let path = self.docs().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.docs().join(name)).unwrap();
    }

    fn uri(&self, name: &str) -> Value {
        json!(self.docs().join(name).to_str().unwrap())
    }

    fn command(&self, path: &Path, args: &[&str]) -> Command {
        let mut command = va(&self.dir.path().join("data"));
        command
            .arg("index")
            .arg(path)
            .args(["--collection", "c"])
            .args(args);
        command
    }

    /// What the command says that must succeed.
    fn index(&self, args: &[&str]) -> Value {
        let said = run(self.command(&self.docs(), args).arg("--json"));
        serde_json::from_str(&said).unwrap()
    }

    /// What the command says that must fail with code 1.
    fn index_fails(&self, args: &[&str]) -> (Value, String) {
        let output = self
            .command(&self.docs(), args)
            .arg("--json")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (said, String::from_utf8(output.stderr).unwrap())
    }

    /// Names of the documents that a search finds.
    fn found(&self, query: &str, mode: &str) -> BTreeSet<String> {
        let hits = self.server.search("c", query, mode);
        let names = hits.iter().map(|hit| hit["document"]["name"].as_str());
        names.map(|name| name.unwrap().to_owned()).collect()
    }

    /// Names of the documents in the vector index.
    fn names(&self) -> Vec<String> {
        let rows = self
            .server
            .sql("SELECT DISTINCT name FROM chunks.c ORDER BY 1");
        rows.iter()
            .map(|row| row[0].as_str().unwrap().to_owned())
            .collect()
    }

    /// Texts that the model had to embed since the server began.
    fn embedded(&self) -> u64 {
        let text = self.server.get("/metrics").send().unwrap().text().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("va_embed_cache_total{") && line.contains("\"miss\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0)
    }
}

/// The numbers of a report.
fn counts(said: &Value) -> [u64; 6] {
    let count = |field: &str| {
        let value = &said[field];
        value
            .as_u64()
            .unwrap_or_else(|| value.as_array().unwrap().len() as u64)
    };
    [
        "files",
        "indexed",
        "unchanged",
        "moved",
        "removed",
        "failed",
    ]
    .map(count)
}

#[test]
fn a_collection_follows_its_folder() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("freeze.md", FREEZE);
    bench.write("sub/print.md", PRINT);
    bench.write("chart.md", CHART);

    // What would happen, and that nothing did.
    let plan = bench.index(&["--dry-run"]);
    assert_eq!(plan["new"].as_array().unwrap().len(), 3, "{plan}");
    assert_eq!(
        problem(bench.server.get("/api/v1/collections/c")).0,
        404,
        "a dry run made the collection"
    );

    assert_eq!(counts(&bench.index(&[])), [3, 3, 0, 0, 0, 0]);
    assert_eq!(bench.names(), ["chart.md", "freeze.md", "sub/print.md"]);
    let embedded = bench.embedded();
    assert_eq!(counts(&bench.index(&[])), [3, 0, 3, 0, 0, 0]);
    assert_eq!(bench.embedded(), embedded);

    // Changed, moved, removed, all at once.
    let two_parts = format!("{FREEZE}\n## 取消\n\n取消冻结：选择“视图 - 取消”。qxundoo\n");
    bench.write("freeze.md", two_parts);
    std::fs::rename(
        bench.docs().join("sub/print.md"),
        bench.docs().join("sub/打印 2.md"),
    )
    .unwrap();
    bench.remove("chart.md");
    let plan = bench.index(&["--dry-run"]);
    assert_eq!(plan["changed"], json!([bench.uri("freeze.md")]), "{plan}");
    assert_eq!(plan["removed"], json!([bench.uri("chart.md")]), "{plan}");
    assert_eq!(
        plan["moved"],
        json!([{"from": bench.uri("sub/print.md"), "to": bench.uri("sub/打印 2.md")}]),
        "{plan}"
    );
    assert_eq!(plan["new"], json!([]), "{plan}");
    assert_eq!(bench.names(), ["chart.md", "freeze.md", "sub/print.md"]);
    let told = run(&mut bench.command(&bench.docs(), &["--dry-run"]));
    assert!(
        told.contains("0 new, 1 changed, 1 moved, 1 removed, 0 unchanged"),
        "{told}"
    );

    let said = bench.index(&[]);
    assert_eq!(counts(&said), [2, 1, 0, 1, 1, 0], "{said}");
    assert_eq!(bench.names(), ["freeze.md", "sub/打印 2.md"]);
    for mode in ["keyword", "vector"] {
        assert!(bench.found("qxundoo", mode).contains("freeze.md"), "{mode}");
        assert!(bench.found("qxprinto", mode).contains("sub/打印 2.md"));
        let gone = bench.found("qxcharto insert chart", mode);
        assert!(!gone.contains("chart.md"), "{mode}: {gone:?}");
        assert!(!bench.found("qxprinto", mode).contains("sub/print.md"));
    }
    // The moved text was known; of the changed one, only what is new had to be embedded.
    assert_eq!(bench.embedded(), embedded + 1);

    let rows = bench
        .server
        .sql("SELECT count(*), count(DISTINCT document_id) FROM chunks.c");
    let collection = good(bench.server.get("/api/v1/collections/c"));
    assert_eq!(
        (&rows[0][0], &rows[0][1]),
        (&collection["chunks"], &json!(2)),
        "{collection}"
    );

    // What was removed comes back as new.
    bench.write("chart.md", CHART);
    assert_eq!(counts(&bench.index(&[])), [3, 1, 2, 0, 0, 0]);
    assert!(bench.found("qxcharto", "keyword").contains("chart.md"));
}

#[test]
fn nothing_is_removed_that_was_not_meant() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("freeze.md", FREEZE);
    bench.write("other/print.md", PRINT);
    bench.index(&[]);

    // A single file says nothing about its neighbours, nor a folder about its siblings.
    bench.remove("other/print.md");
    bench.write("freeze.md", CHART);
    let path = bench.docs().join("freeze.md");
    let said: Value = serde_json::from_str(&run(&mut bench.command(&path, &["--json"]))).unwrap();
    assert_eq!(counts(&said), [1, 1, 0, 0, 0, 0], "{said}");
    std::fs::create_dir(bench.docs().join("oth")).unwrap();
    bench.write("oth/x.md", FREEZE);
    let part = bench.docs().join("oth");
    run(&mut bench.command(&part, &[]));
    assert_eq!(bench.names(), ["freeze.md", "other/print.md", "x.md"]);

    // Left when asked, and when the whole folder looks empty.
    let said = bench.index(&["--keep-deleted"]);
    assert_eq!(counts(&said)[4], 0, "{said}");
    std::fs::remove_dir_all(bench.docs().join("oth")).unwrap();
    bench.remove("freeze.md");
    let (_, error) = bench.index_fails(&[]);
    assert!(
        error.contains("holds no file, but the collection holds 3 documents")
            && error.contains("--allow-empty"),
        "{error}"
    );
    assert_eq!(bench.names().len(), 3);
    let said = bench.index(&["--allow-empty"]);
    assert_eq!(counts(&said), [0, 0, 0, 0, 3, 0], "{said}");
    assert!(bench.names().is_empty());
    for mode in ["keyword", "vector"] {
        assert!(bench.found("冻结", mode).is_empty(), "{mode}");
    }
    // Then there is nothing at all to do.
    let (_, error) = bench.index_fails(&[]);
    assert!(error.contains("no file under"), "{error}");
}

#[test]
fn a_failed_file_is_tried_again_and_can_go() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("good.md", FREEZE);
    bench.write("broken.pdf", "%PDF-1.7\nthis is no PDF");
    let (said, _) = bench.index_fails(&[]);
    assert_eq!(counts(&said), [2, 1, 0, 0, 0, 1], "{said}");
    assert_eq!(said["failed"][0]["uri"], bench.uri("broken.pdf"));
    assert!(!said["failed"][0]["error"].as_str().unwrap().is_empty());
    let (said, _) = bench.index_fails(&[]);
    assert_eq!(counts(&said), [2, 0, 1, 0, 0, 1], "{said}");

    bench.remove("broken.pdf");
    let said = bench.index(&[]);
    assert_eq!(counts(&said), [1, 0, 1, 0, 1, 0], "{said}");
    let states = good(bench.server.get("/api/v1/collections/c"))["states"].clone();
    assert_eq!(states, json!({"READY": 1}));
}

#[test]
fn an_interrupted_run_is_taken_up_and_waited_for() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    const FILES: u64 = 60;
    for n in 0..FILES {
        bench.write(
            format!("{n}.md"),
            format!("# 文档 {n}\n\n第 {n} 个文档。\n"),
        );
    }
    let mut child = bench
        .command(&bench.docs(), &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    bench.server.until("/api/v1/collections", |list| {
        list["items"].as_array().unwrap().iter().any(|c| {
            let count = |state: &str| c["states"][state].as_u64().unwrap_or(0);
            count("PROCESSING") + count("READY") > 0
        })
    });
    interrupt(&mut child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    assert!(both(&output).contains("Run the same command again"));

    let said = bench.index(&[]);
    let [files, indexed, unchanged, _, _, failed] = counts(&said);
    assert_eq!(
        (files, indexed + unchanged, failed),
        (FILES, FILES, 0),
        "{said}"
    );
    // It did not come back before all were searchable, whoever had handed them over.
    let states = good(bench.server.get("/api/v1/collections/c"))["states"].clone();
    assert_eq!(states, json!({"READY": FILES}));

    // The same after a run that was told not to wait.
    for n in 0..FILES {
        bench.write(
            format!("{n}.md"),
            format!("# Document {n}\n\nNumber {n}.\n"),
        );
    }
    let said = bench.index(&["--no-wait"]);
    assert_eq!(
        (&said["indexed"], &said["handed_over"]),
        (&Value::Null, &json!(FILES))
    );
    assert_eq!(counts(&bench.index(&[])), [FILES, 0, FILES, 0, 0, 0]);
    let rows = bench
        .server
        .sql("SELECT count(*) FROM chunks.c WHERE text LIKE '%Number%'");
    assert_eq!(rows[0][0], json!(FILES));
}

#[test]
fn hard_names_and_files() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("空格 and space.md", FREEZE);
    bench.write("line\nbreak \x1b[31m.md", PRINT);
    bench.write(".hidden/never.md", CHART);
    bench.write("target.md", CHART);
    bench.write(OsStr::from_bytes(b"\xffodd.md"), CHART);
    symlink(bench.docs().join("target.md"), bench.docs().join("link.md")).unwrap();
    symlink(bench.docs(), bench.docs().join("loop")).unwrap();
    // Opens, and every read of it fails, for root too.
    symlink("/proc/self/mem", bench.docs().join("unreadable.md")).unwrap();
    let huge = std::fs::File::create(bench.docs().join("huge.txt")).unwrap();
    huge.set_len(101 << 20).unwrap();

    let (said, error) = bench.index_fails(&[]);
    assert_eq!(counts(&said), [7, 4, 0, 0, 0, 3], "{said} {error}");
    let reason = |part: &str| {
        let failed = said["failed"].as_array().unwrap();
        let note = failed
            .iter()
            .find(|note| note["uri"].as_str().unwrap().contains(part));
        note.unwrap()["error"].as_str().unwrap().to_owned()
    };
    assert!(reason("\u{fffd}odd.md").contains("not UTF-8"));
    assert!(reason("unreadable.md").starts_with("read: "));
    assert!(reason("huge.txt").contains("100 MB"));
    assert_eq!(said["skipped"][0]["uri"], bench.uri("loop"));
    assert_eq!(
        bench.names(),
        [
            "line\nbreak \u{1b}[31m.md",
            "link.md",
            "target.md",
            "空格 and space.md"
        ]
    );
    // On the terminal nothing of a name gets through that could steer it.
    let output = bench.command(&bench.docs(), &[]).output().unwrap();
    let told = both(&output);
    assert!(
        !told.contains('\u{1b}') && told.contains("odd.md"),
        "{told}"
    );

    // Files that go are gone, also those that could not be indexed, and a link with nothing behind it.
    for name in ["target.md", "unreadable.md", "huge.txt"] {
        bench.remove(name);
    }
    std::fs::remove_file(bench.docs().join(OsStr::from_bytes(b"\xffodd.md"))).unwrap();
    let said = bench.index(&[]);
    assert_eq!(counts(&said), [2, 0, 2, 0, 2, 0], "{said}");
}

#[test]
fn a_folder_that_cannot_be_read_loses_nothing() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("open.md", FREEZE);
    bench.write("closed/a.md", PRINT);
    bench.index(&[]);
    // Root reads everything, so the command runs as nobody, with a copy of the program where nobody may run it.
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let at = |name: &str| bench.dir.path().join(name);
    let open = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(bench.dir.path(), 0o755);
    open(&bench.docs().join("closed"), 0o000);
    let program = Path::new(env!("CARGO_BIN_EXE_va"));
    let mut command = if root {
        let copy = at("va");
        if std::fs::hard_link(program, &copy).is_err() {
            std::fs::copy(program, &copy).unwrap();
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(copy);
        command
    } else {
        Command::new(program)
    };
    let output = command
        .current_dir(bench.docs())
        .env("VA_SERVER", &bench.server.base)
        .env("VA_TOKEN", &bench.server.key)
        .args(["index", ".", "--collection", "c", "--json"])
        .output()
        .unwrap();
    open(&bench.docs().join("closed"), 0o755);
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(counts(&said), [2, 0, 1, 0, 0, 1], "{said}");
    assert_eq!(said["failed"][0]["uri"], bench.uri("closed"));
    assert_eq!(bench.names(), ["closed/a.md", "open.md"]);
}

#[test]
fn a_file_that_grows_is_indexed_as_it_was_and_then_as_it_is() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    let path = bench.docs().join("grows.txt");
    std::fs::write(&path, "first line\n").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            for n in 0..500 {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                writeln!(file, "line {n}").unwrap();
            }
        });
        let said = bench.index(&["--no-wait"]);
        done.store(true, Ordering::Relaxed);
        assert_eq!(
            (&said["files"], &said["handed_over"], &said["failed"]),
            (&json!(1), &json!(1), &json!([])),
            "{said}"
        );
    });
    std::fs::write(&path, "the end: qxendo\n").unwrap();
    assert_eq!(counts(&bench.index(&[])), [1, 1, 0, 0, 0, 0]);
    assert!(bench.found("qxendo", "keyword").contains("grows.txt"));
}

#[test]
fn many_documents_in_one_request() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.server.create_collection("c");
    let bulk = |items: Value, files: &[&str]| {
        let boundary = "va-test-boundary-91c2";
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"items\"\r\n\r\n{items}"
        );
        for file in files {
            body += &format!(
                "\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{file}"
            );
        }
        body += &format!("\r\n--{boundary}--\r\n");
        bench
            .server
            .post("/api/v1/collections/c/documents/bulk")
            .header(
                "content-type",
                &format!("multipart/form-data; boundary={boundary}"),
            )
            .body(body)
    };
    let item = |uri: &str| json!({"uri": uri, "name": uri, "meta": {"lang": "zh"}});
    let reply = good(bulk(
        json!([item("a.md"), item(""), item("b.md"), item("a.md")]),
        &[FREEZE, "x", PRINT, CHART],
    ));
    let outcomes: Vec<&Value> = reply["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["outcome"])
        .collect();
    assert_eq!(
        outcomes,
        [
            &json!("new"),
            &Value::Null,
            &json!("new"),
            &json!("changed")
        ],
        "{reply}"
    );
    assert!(reply["items"][1]["error"].as_str().unwrap().contains("uri"));
    assert_eq!(reply["items"][3]["version"], json!(2));
    bench.server.until_indexed("c");
    assert_eq!(bench.names(), ["a.md", "b.md"]);
    assert!(bench.found("qxcharto", "keyword").contains("a.md"));

    let (status, reply) = problem(bulk(json!([item("a"), item("b")]), &["x"]));
    assert_eq!(status, 400);
    assert!(
        reply["detail"]
            .as_str()
            .unwrap()
            .contains("2 items but 1 parts"),
        "{reply}"
    );
    assert_eq!(problem(bulk(json!([item("a")]), &["x", "y"])).0, 400);
    let many: Vec<Value> = (0..201).map(|n| item(&n.to_string())).collect();
    assert_eq!(problem(bulk(json!(many), &["x"; 201])).0, 400);
    let large = "x".repeat(17 << 20);
    let (status, reply) = problem(bulk(json!([item("a"), item("b")]), &[&large, &large]));
    assert_eq!(
        (status, &reply["code"]),
        (413, &json!("too_large")),
        "{reply}"
    );
    assert_eq!(bench.names(), ["a.md", "b.md"]);
}

#[test]
fn a_watched_folder_is_followed() {
    let Some(()) = need_model() else { return };
    let bench = Bench::start();
    bench.write("freeze.md", FREEZE);
    let mut child = bench
        .command(&bench.docs(), &["--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_of(&mut child);
    let first: Value = lines.recv_timeout(PATIENCE).unwrap();
    assert_eq!(counts(&first), [1, 1, 0, 0, 0, 0], "{first}");
    let next = |change: &str, name: &str| {
        let line: Value = lines.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            (&line["change"], &line["uri"]),
            (&json!(change), &bench.uri(name)),
            "{line}"
        );
        line
    };

    bench.write("print.md", PRINT);
    next("indexed", "print.md");
    assert!(bench.found("qxprinto", "keyword").contains("print.md"));
    // As editors do: another file takes its place.
    bench.write(".print.md.swp", CHART);
    std::fs::rename(
        bench.docs().join(".print.md.swp"),
        bench.docs().join("print.md"),
    )
    .unwrap();
    assert_eq!(next("indexed", "print.md")["version"], json!(2));
    // In a folder that is new itself.
    bench.write("new/deep/chart.md", FREEZE);
    next("indexed", "new/deep/chart.md");
    bench.write("new/deep/print.md", PRINT);
    next("indexed", "new/deep/print.md");
    // A whole folder moves: everything in it does.
    std::fs::rename(bench.docs().join("new"), bench.docs().join("old")).unwrap();
    let mut moved = BTreeSet::new();
    while moved.len() < 2 {
        let line: Value = lines.recv_timeout(PATIENCE).unwrap();
        match line["change"].as_str().unwrap() {
            "moved" => assert!(moved.insert(line["uri"].to_string())),
            other => assert_eq!(other, "indexed", "{line}"),
        }
    }
    assert_eq!(
        bench.names(),
        [
            "freeze.md",
            "old/deep/chart.md",
            "old/deep/print.md",
            "print.md"
        ]
    );
    bench.remove("freeze.md");
    next("removed", "freeze.md");
    assert!(!bench.found("冻结", "vector").contains("freeze.md"));
    std::fs::remove_dir_all(bench.docs().join("old")).unwrap();
    next("removed", "old/deep/chart.md");
    next("removed", "old/deep/print.md");

    interrupt(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(bench.names(), ["print.md"]);
}

#[test]
fn a_server_keeps_the_folders_of_its_settings() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let docs = dir.path().join("handbook");
    let config = dir.path().join("va.yaml");
    std::fs::write(
        &config,
        format!(
            "folders:\n  - path: {}\n    collection: 手册\n    meta: {{lang: zh}}\n",
            docs.display()
        ),
    )
    .unwrap();
    let data = dir.path().join("data");
    let server = Server::start_with(&data, &["--config", config.to_str().unwrap()]);
    let folder = |status: &Value| {
        let checks = status["checks"].as_array().unwrap();
        let folder = checks
            .iter()
            .find(|check| check["name"].as_str().unwrap().starts_with("folder "));
        folder.cloned().unwrap_or(Value::Null)
    };
    // It is not there yet, and that is no reason not to start.
    let status = server.until("/api/v1/status", |status| {
        folder(status)["ok"] == json!(false)
    });
    assert!(
        folder(&status)["detail"]
            .as_str()
            .unwrap()
            .contains("waited for"),
        "{status}"
    );
    std::fs::create_dir(&docs).unwrap();
    std::fs::write(docs.join("freeze.md"), FREEZE).unwrap();
    server.until("/api/v1/status", |status| {
        folder(status)["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("followed"))
    });
    let collection = server.until("/api/v1/collections/手册", |c| c["states"]["READY"] == 1);
    assert_eq!(collection["documents"], json!(1));
    std::fs::write(docs.join("chart.md"), CHART).unwrap();
    std::fs::remove_file(docs.join("freeze.md")).unwrap();
    server.until("/api/v1/collections/手册/documents", |list| {
        let items = list["items"].as_array().unwrap();
        items.len() == 1 && items[0]["name"] == "chart.md" && items[0]["state"] == "READY"
    });
    let hits = server.search("手册", "qxcharto", "keyword");
    assert_eq!(hits[0]["document"]["name"], json!("chart.md"));
    drop(server);

    // What changed while it was down is found at the next start.
    std::fs::rename(docs.join("chart.md"), docs.join("charts.md")).unwrap();
    let server = Server::start_with(&data, &["--config", config.to_str().unwrap()]);
    server.until("/api/v1/collections/手册/documents", |list| {
        let items = list["items"].as_array().unwrap();
        items.len() == 1 && items[0]["name"] == "charts.md" && items[0]["state"] == "READY"
    });
}

/// Ctrl-C.
fn interrupt(child: &mut Child) {
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
}

/// JSON lines of a child, as they come.
fn lines_of(child: &mut Child) -> Receiver<Value> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (lines, received) = sync_channel(100);
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let value = serde_json::from_str(&line).unwrap_or(json!(line));
            if lines.send(value).is_err() {
                return;
            }
        }
    });
    received
}
