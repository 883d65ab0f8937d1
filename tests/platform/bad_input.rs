//! Documents that are broken, hostile or too much, and what else goes wrong around them: each ends as a clear reason
//! at that document, everything else goes on.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::http::Client;
use crate::server::{PATIENCE, Server, both, corpus, good, need_model, problem, run, skip, va};

/// A server whose `va.yaml` is this.
fn server_with(dir: &Path, config: &str) -> Server {
    let file = dir.join("va.yaml");
    std::fs::write(&file, config).unwrap();
    Server::start_with(&dir.join("data"), &["--config", file.to_str().unwrap()])
}

#[test]
fn a_variable_that_makes_no_sense_is_named() {
    let dir = tempdir().unwrap();
    let no_text = OsStr::from_bytes(b"127.0.0.\xff:1");
    for (variable, value) in [
        ("VA_LISTEN", OsStr::new("here")),
        ("VA_PG_LISTEN", no_text),
        ("VA_SEARCH__K_MAX", OsStr::new("many")),
    ] {
        let mut command = va(dir.path());
        let command = command.args(["collection", "list"]).env(variable, value);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", both(&output));
        let named = format!("environment variable `{variable}`");
        assert!(both(&output).contains(&named), "{}", both(&output));
    }
}

/// The reason for which a document failed.
fn failure(reply: &Value) -> &str {
    assert_eq!(reply["state"], json!("FAILED"), "{reply}");
    reply["error"].as_str().unwrap()
}

/// A DOCX whose one part unpacks to `bytes` zeros.
fn zip_bomb(bytes: u64) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().large_file(true);
    zip.start_file("[Content_Types].xml", options).unwrap();
    zip.write_all(b"<Types/>").unwrap();
    zip.start_file("word/document.xml", options).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        zip.write_all(&zeros).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Processes whose parent is the server.
fn children(server: &Server) -> Vec<u32> {
    let parent = server.pid().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // "pid (name) state parent ...", where the name may hold anything.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        if fields.nth(1) == Some(&parent) {
            found.push(pid);
        }
    }
    found
}

fn metric(server: &Server, line: &str) -> u64 {
    let text = Client::new(PATIENCE)
        .get(&format!("{}/metrics", server.base))
        .send()
        .unwrap()
        .text()
        .unwrap();
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0)
}

#[test]
fn damaged_documents_fail_with_reasons_and_the_others_are_indexed() {
    let (Some(()), Some(pypdf), Some(sample)) = (need_model(), corpus("pypdf"), corpus("sample"))
    else {
        return;
    };
    let dir = tempdir().unwrap();
    let docs = dir.path().join("docs");
    std::fs::create_dir(&docs).unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(docs.join(name), bytes).unwrap();
    let pdf = std::fs::read(sample.join("docs/files/crazyones.pdf")).unwrap();
    put("truncated.pdf", &pdf[..pdf.len() / 3]);
    let encrypted = pypdf.join("docs/resources/encryption/r4-aes-user-password.pdf");
    put("encrypted.pdf", &std::fs::read(encrypted).unwrap());
    put("bomb.docx", &zip_bomb(1 << 30));
    put("empty.md", b"");
    let binary: Vec<u8> = (0..20_000_u32).map(|i| (i * i % 251) as u8).collect();
    put("binary.txt", &binary);
    put("broken.docx", b"PK\x03\x04 this is not an archive");
    let (gbk, _, _) = encoding_rs::GBK
        .encode("冻结首行以后，滚动表格时标题一直可见。\n\n打印区域可以在格式菜单里设置。\n");
    put("gbk.txt", &gbk);
    put(
        "good.md",
        "# 透视表\n\n选择“插入”，然后选择“透视表”。\n".as_bytes(),
    );

    let data = dir.path().join("data");
    let server = Server::start(&data);
    let mut index = va(&data);
    index
        .arg("index")
        .arg(&docs)
        .args(["--collection", "c", "--json"]);
    let output = index.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    // Nothing was taken from the memory of the server itself.
    assert!(resident(server.pid()) < 3 << 30);

    let list = good(server.get("/api/v1/collections/c/documents"));
    let reason = |name: &str| {
        let items = list["items"].as_array().unwrap();
        let found = items
            .iter()
            .find(|d| d["name"].as_str().unwrap().ends_with(name));
        let found = found.unwrap_or_else(|| panic!("{name} is not in {list}"));
        match found["state"].as_str().unwrap() {
            "FAILED" => found["error"].as_str().unwrap().to_owned(),
            state => state.to_owned(),
        }
    };
    for (name, expected) in [
        ("truncated.pdf", "`pdf` document is damaged"),
        (
            "encrypted.pdf",
            "`pdf` document is encrypted with a password",
        ),
        (
            "bomb.docx",
            "document is too large: it has more than 268435456 bytes when unpacked",
        ),
        ("empty.md", "document has no text"),
        ("binary.txt", "file type is not supported"),
        (
            "broken.docx",
            "it looks like a damaged ZIP archive or Office document",
        ),
        ("gbk.txt", "READY"),
        ("good.md", "READY"),
    ] {
        assert!(reason(name).contains(expected), "{name}: {}", reason(name));
    }
    let hits = server.search("c", "冻结首行", "hybrid");
    assert!(
        hits[0]["document"]["name"]
            .as_str()
            .unwrap()
            .ends_with("gbk.txt"),
        "{hits:?}"
    );

    // Each is in the dead-letter topic too, with the operator, the reason and the event that it came with.
    let letters = server.sql(
        "SELECT payload['operator'], payload['reason'], payload['row_json'] FROM topic.\"index.dead_letter\"",
    );
    assert_eq!(letters.len(), 6, "{letters:?}");
    for name in [
        "truncated.pdf",
        "encrypted.pdf",
        "bomb.docx",
        "empty.md",
        "binary.txt",
        "broken.docx",
    ] {
        let letter = letters
            .iter()
            .find(|letter| letter[2].as_str().unwrap().contains(name))
            .unwrap_or_else(|| panic!("{name} is not in {letters:?}"));
        assert_eq!(letter[0], json!("parse"));
        assert_eq!(
            format!("parse: {}", letter[1].as_str().unwrap()),
            reason(name)
        );
    }
}

#[test]
fn a_parser_that_takes_too_long_is_stopped() {
    let (Some(()), Some(manual)) = (need_model(), corpus("debian-reference-zh-cn")) else {
        return;
    };
    let pdf = std::fs::read(manual.join("docs/debian-reference.zh-cn.pdf")).unwrap();
    let dir = tempdir().unwrap();
    let server = server_with(dir.path(), "parse: {timeout_ms: 300}\n");
    server.create_collection("c");
    let reply = server.upload("c", "manual.pdf", pdf);
    assert!(
        failure(&reply).contains(
            "parsing took longer than 300 ms; split the document, or raise `parse.timeout_ms`"
        ),
        "{reply}"
    );
    let reply = server.upload("c", "good.md", "# 透视表\n\n插入透视表。".into());
    assert_eq!(reply["state"], json!("READY"), "{reply}");
    assert_eq!(
        metric(&server, "va_parse_worker_restarts_total{cause=\"timeout\"}"),
        1
    );
}

#[test]
fn a_parser_that_takes_too_much_memory_is_stopped() {
    let (Some(()), Some(manual)) = (need_model(), corpus("debian-reference-zh-cn")) else {
        return;
    };
    let pdf = std::fs::read(manual.join("docs/debian-reference.zh-cn.pdf")).unwrap();
    let dir = tempdir().unwrap();
    let server = server_with(dir.path(), "parse: {memory_bytes_max: 12582912}\n");
    server.create_collection("c");
    let reply = server.upload("c", "manual.pdf", pdf);
    assert!(
        failure(&reply).contains("parsing needed more than 12 MiB of memory; split the document, or raise `parse.memory_bytes_max`"),
        "{reply}"
    );
    let reply = server.upload("c", "good.md", "# 透视表\n\n插入透视表。".into());
    assert_eq!(reply["state"], json!("READY"), "{reply}");
}

#[test]
fn a_parser_that_is_killed_loses_nothing() {
    let (Some(()), Some(manual)) = (need_model(), corpus("debian-reference-zh-cn")) else {
        return;
    };
    let pdf = std::fs::read(manual.join("docs/debian-reference.zh-cn.pdf")).unwrap();
    let dir = tempdir().unwrap();
    let server = server_with(dir.path(), "parse: {workers: 1}\n");
    let by_words = json!({"name": "c", "keyword_only": true});
    good(server.post("/api/v1/collections").json(&by_words));
    // The same document with a last line of its own: another document to the server.
    let upload = |name: &str| {
        let path = format!("/api/v1/collections/c/documents?name={name}.pdf");
        let body = [&pdf, b"\n%".as_slice(), name.as_bytes()].concat();
        let request = server.post(&path);
        good(
            request
                .header("content-type", "application/octet-stream")
                .body(body),
        );
    };
    let kills = || metric(&server, "va_parse_worker_restarts_total{cause=\"signal\"}");
    // One that starts is let alone: it has no document to lose yet, which is not counted.
    let kill_all = || {
        let mut parsers = children(&server);
        parsers.retain(|pid| processor_ticks(*pid) > 10);
        for pid in parsers {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
    };
    // Whether a kill meets a document in work is a matter of moments on a busy machine: what it missed is uploaded anew,
    // until one document was tried again and is there, and another has failed because that was killed, too.
    let deadline = Instant::now() + PATIENCE;
    for document in 0.. {
        let (before, name) = (kills(), format!("once-{document}"));
        upload(&name);
        while kills() == before && is_on_its_way(&server, &name) {
            assert!(Instant::now() < deadline, "none was parsed after a kill");
            kill_all();
        }
        let parsed = was_parsed(&server, &name);
        if kills() > before && parsed {
            break;
        }
    }
    for document in 0.. {
        let name = format!("twice-{document}");
        upload(&name);
        while is_on_its_way(&server, &name) {
            assert!(Instant::now() < deadline, "none was killed twice");
            kill_all();
        }
        if !was_parsed(&server, &name) {
            break;
        }
    }

    // A server that is killed takes its parsers with it, in the middle of a document.
    upload("last");
    let deadline = Instant::now() + PATIENCE;
    let parsers = loop {
        let parsers = children(&server);
        if !parsers.is_empty() {
            break parsers;
        }
        assert!(Instant::now() < deadline, "no parser process was started");
    };
    server.kill();
    for pid in parsers {
        while is_running(pid) {
            assert!(Instant::now() < deadline, "parser {pid} is still there");
            std::thread::yield_now();
        }
    }
}

/// The document of this name, if it is listed.
fn document(server: &Server, name: &str) -> Option<Value> {
    let listed = good(server.get("/api/v1/collections/c/documents?limit=100"));
    let items = listed["items"].as_array().unwrap();
    let name = format!("{name}.pdf");
    items.iter().find(|item| item["name"] == name).cloned()
}

fn is_on_its_way(server: &Server, name: &str) -> bool {
    document(server, name)
        .is_none_or(|document| document["state"] != "READY" && document["state"] != "FAILED")
}

/// Waits for a document: whether it is READY. One that is FAILED must be so because its parser was killed twice.
fn was_parsed(server: &Server, name: &str) -> bool {
    server.until_indexed("c");
    let document = document(server, name).unwrap();
    if document["state"] == "READY" {
        return true;
    }
    let killed = "the parser process was killed twice by signal 9";
    assert!(failure(&document).contains(killed), "{document}");
    false
}

/// Processor time that a process has had, in hundredths of a second.
fn processor_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// Whether a process is there and has not ended; one that nobody asks after stays in the list as a zombie.
fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

#[test]
fn more_than_fits_is_refused_with_the_limit() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let upload = || server.post("/api/v1/collections/c/documents?name=large.txt&wait=ready");
    let (status, reply) = problem(upload().body(vec![b'x'; 101 << 20]));
    assert_eq!((status, &reply["code"]), (413, &json!("too_large")));
    let limit = "a document may have at most 104857600 bytes (100 MB)";
    assert_eq!(reply["detail"], json!(limit));
    let (status, reply) = problem(upload().stream(vec![vec![b'x'; 1 << 20]; 101]));
    assert_eq!((status, &reply["detail"]), (413, &json!(limit)));

    // Less than that, and still more text than is cut and embedded as one document.
    let line = "冻结行以后可以滚动表格，标题一直可见。\n\n";
    let reply = good(upload().body(line.repeat((50 << 20) / line.len())));
    assert!(
        failure(&reply).contains(
            "it has more than 16777216 bytes of text; split it, or raise `parse.text_bytes_max`"
        ),
        "{reply}"
    );
    let objects = server.data.join("objects/incoming");
    let left = std::fs::read_dir(objects).map_or(0, |files| files.count());
    assert_eq!(left, 0, "refused uploads are still there");
}

#[test]
fn a_second_process_on_one_data_directory_says_who_holds_it() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let started = Instant::now();
    let mut second = va(dir.path());
    second.args([
        "up",
        "--listen",
        "127.0.0.1:0",
        "--pg-listen",
        "127.0.0.1:0",
    ]);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in [
        dir.path().file_name().unwrap().to_str().unwrap(),
        &format!("in use by the `va` process {}", server.pid()),
        &server.base,
    ] {
        assert!(said.contains(part), "`{part}` is missing: {said}");
    }
    assert!(started.elapsed().as_secs() < 20, "it waited");
    // Other commands talk to the one that holds it.
    let listed = run(va(dir.path()).args(["collection", "list"]));
    assert!(listed.contains('c'), "{listed}");
}

/// A small disk of its own; unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        let dir = tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "va-test"])
            .arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => skip(&format!("cannot mount a small disk: {}", both(&output))),
            Err(error) => skip(&format!("cannot mount a small disk: {error}")),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server may still be ending.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

impl SmallDisk {
    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves so many bytes free. What takes the others is the file `ballast`.
    fn fill(&self, leave: u64) {
        let free = || {
            let found = rustix::fs::statvfs(self.path()).unwrap();
            found.f_bavail * found.f_frsize
        };
        let mut ballast = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("ballast"))
            .unwrap();
        while free() > leave {
            let piece = (free() - leave).min(1 << 20) as usize;
            if ballast.write_all(&vec![1; piece]).is_err() {
                return;
            }
        }
    }
}

/// What `va doctor` says about one thing: fine or not, and why.
fn check(server: &Server, name: &str) -> (bool, String) {
    let status = good(server.get("/api/v1/status"));
    let checks = status["checks"].as_array().unwrap();
    let check = checks
        .iter()
        .find(|check| check["name"] == json!(name))
        .unwrap();
    (
        check["ok"].as_bool().unwrap(),
        check["detail"].as_str().unwrap().to_owned(),
    )
}

#[test]
fn uploads_are_refused_before_the_disk_is_full() {
    let Some(disk) = SmallDisk::new("64m") else {
        return;
    };
    let config = tempdir().unwrap();
    let file = config.path().join("va.yaml");
    std::fs::write(&file, "limits: {disk_free_bytes_min: 33554432}\n").unwrap();
    let data = disk.path().join("data");
    let server = Server::start_with(&data, &["--config", file.to_str().unwrap()]);
    server.create_collection("c");
    assert!(check(&server, "disk").0 || check(&server, "disk").1.contains("nearly full"));
    disk.fill(20 << 20);
    let upload = server
        .post("/api/v1/collections/c/documents?name=a.md")
        .body("# a");
    let (status, reply) = problem(upload);
    assert_eq!((status, &reply["code"]), (507, &json!("disk_full")));
    let detail = reply["detail"].as_str().unwrap();
    let disk_named = format!(
        "the disk that holds `{}` is full",
        server.data.canonicalize().unwrap().display()
    );
    assert!(
        detail.contains(&disk_named) && detail.contains("make room there"),
        "{detail}"
    );
    let (ok, said) = check(&server, "disk");
    assert!(
        !ok && said.contains("full: ") && said.contains("limits.disk_free_bytes_min"),
        "{said}"
    );
    let output = va(&data).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    assert!(
        both(&output).contains("make room on the disk"),
        "{}",
        both(&output)
    );
}

#[test]
fn a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room() {
    let (Some(()), Some(disk)) = (need_model(), SmallDisk::new("96m")) else {
        return;
    };
    let config = tempdir().unwrap();
    let file = config.path().join("va.yaml");
    // Without a reserve, so that the stores themselves meet the full disk.
    std::fs::write(&file, "limits: {disk_free_bytes_min: 0}\n").unwrap();
    let data = disk.path().join("data");
    let start = || Server::start_with(&data, &["--config", file.to_str().unwrap()]);
    let mut server = start();
    server.create_collection("c");
    server.upload("c", "first.md", "# 透视表\n\n插入透视表。".into());
    disk.fill(2 << 20);

    // Large files with little text: the disk fills up, the model has little to do.
    let mut taken = Vec::new();
    let refused = loop {
        assert!(taken.len() < 100, "the disk does not fill up");
        let name = format!("d{}.html", taken.len());
        let filler = "x".repeat(150_000);
        let html = format!(
            "<html><body><!-- {filler} --><h1>第 {} 页</h1><p>冻结行</p></body></html>",
            taken.len()
        );
        let path = format!("/api/v1/collections/c/documents?name={name}");
        let sent = server
            .post(&path)
            .header("content-type", "text/html")
            .body(html);
        let reply = sent.send().unwrap();
        if !reply.status().is_success() {
            break (reply.status().as_u16(), reply.text().unwrap());
        }
        taken.push(name);
    };
    assert_eq!(refused.0, 507, "{}", refused.1);
    assert!(
        refused.1.contains("\"disk_full\"") && refused.1.contains("make room there"),
        "{}",
        refused.1
    );
    // To the last byte, while what was taken is being indexed.
    disk.fill(0);
    let (ok, said) = check(&server, "disk");
    assert!(!ok && said.contains("full"), "{said}");
    let refused = server
        .post("/api/v1/collections/c/documents?name=more.html")
        .body("<p>more</p>");
    assert_eq!(problem(refused).0, 507);
    // Searches go on.
    assert_eq!(
        server.search("c", "透视表", "hybrid")[0]["document"]["name"],
        json!("first.md")
    );

    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = good(server.get("/api/v1/collections/c"))["states"].clone();
        let ready = states["READY"].as_u64().unwrap_or(0) as usize;
        if ready > taken.len() {
            break;
        }
        // The log trusts a disk that failed it no more, and says what to do.
        let status = good(server.get("/api/v1/status")).to_string();
        assert!(Instant::now() < deadline, "still {states}: {status}");
        if status.contains("check the disk and restart") {
            drop(server);
            server = start();
        }
        std::thread::yield_now();
    }
    let listed = good(server.get("/api/v1/collections/c/documents?limit=200"));
    for name in taken {
        let mut items = listed["items"].as_array().unwrap().iter();
        let document = items.find(|document| document["name"] == json!(name));
        assert_eq!(document.unwrap()["state"], json!("READY"), "{name}");
    }
    run(va(&data).arg("doctor"));
}
