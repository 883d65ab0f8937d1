//! A `va up` of a test's own: a child process on free ports with its data in a temporary directory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Client, RequestBuilder, Response};

/// Longest wait for anything that should happen; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The embedding model, or why there is none.
pub fn need_model() -> Option<()> {
    let store = va_models::ModelStore::open(va_models::default_model_dir()).unwrap();
    match store.pull(va_models::DEFAULT_EMBEDDER, &va_models::NoProgress) {
        Ok(_) => Some(()),
        Err(error) => skip(&format!("no embedding model: {error}")),
    }
}

/// Says why a test does not run; fails where everything must be there.
pub fn skip<T>(reason: &str) -> Option<T> {
    assert!(
        std::env::var_os("CI").is_none(),
        "CI must have what this test needs: {reason}"
    );
    println!("SKIPPED: {reason}");
    None
}

/// `deploy/dev/fetch-corpora.sh` puts corpora here.
pub fn corpus(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("VA_CORPORA")
        .map(PathBuf::from)
        .or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
            Some(cache.join("voiceassistant/corpora"))
        })?;
    let dir = root.join(name);
    if dir.is_dir() {
        Some(dir)
    } else {
        skip(&format!(
            "the corpus `{name}` is not there: deploy/dev/fetch-corpora.sh {name}"
        ))
    }
}

/// The `va` command on a data directory.
pub fn va(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_va"));
    command
        .env_remove("VA_SERVER")
        .env_remove("VA_TOKEN")
        .env("VA_DATA", data)
        .env("NO_COLOR", "1");
    command
}

/// Standard output of a command that must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command said, for messages.
pub fn both(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A running server.
pub struct Server {
    pub data: PathBuf,
    pub base: String,
    pub pg_port: u16,
    pub key: String,
    http: Client,
    child: Child,
}

impl Server {
    /// Starts `va up` and waits until it is ready.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// The same with more arguments.
    pub fn start_with(data: &Path, args: &[&str]) -> Self {
        Self::start_as(va(data).args(args), data)
    }

    /// The same with a `va` whose arguments and environment have been set already.
    pub fn start_as(va: &mut std::process::Command, data: &Path) -> Self {
        Self::start_role("up", va, data)
    }

    /// The same for another role that serves.
    pub fn start_role(role: &str, va: &mut std::process::Command, data: &Path) -> Self {
        let mut child = va
            .args([
                role,
                "--listen",
                "127.0.0.1:0",
                "--pg-listen",
                "127.0.0.1:0",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut base, mut pg_port) = (None, None);
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some(at) = line.find("http://") {
                base = line[at..].split_whitespace().next().map(ToOwned::to_owned);
            }
            if let Some((_, rest)) = line.split_once(" -p ") {
                pg_port = rest
                    .split_whitespace()
                    .next()
                    .and_then(|port| port.parse().ok());
            }
            if line.starts_with("Stop with") {
                break;
            }
        }
        // Whatever is printed later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let key = std::fs::read_to_string(data.join("admin.key"))
            .unwrap()
            .trim()
            .to_owned();
        let http = Client::new(PATIENCE);
        Self {
            data: data.to_owned(),
            base: base.expect("an address"),
            pg_port: pg_port.expect("a port"),
            key,
            http,
            child,
        }
    }

    /// Of the server's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no goodbye.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http
            .get(&format!("{}{path}", self.base))
            .bearer_auth(&self.key)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.http
            .post(&format!("{}{path}", self.base))
            .bearer_auth(&self.key)
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.http
            .delete(&format!("{}{path}", self.base))
            .bearer_auth(&self.key)
    }

    pub fn create_collection(&self, name: &str) {
        good(
            self.post("/api/v1/collections")
                .json(&json!({"name": name})),
        );
    }

    /// Uploads and waits until the document is searchable or has failed.
    pub fn upload(&self, collection: &str, name: &str, bytes: Vec<u8>) -> Value {
        let path = format!("/api/v1/collections/{collection}/documents?name={name}&wait=ready");
        good(
            self.post(&path)
                .header("content-type", "application/octet-stream")
                .body(bytes),
        )
    }

    pub fn search(&self, collection: &str, query: &str, mode: &str) -> Vec<Value> {
        let request = json!({"query": query, "collection": collection, "mode": mode});
        let reply = good(self.post("/api/v1/retrieval/hybrid_search").json(&request));
        assert_eq!(reply["degraded"], json!([]), "{reply}");
        reply["hits"].as_array().unwrap().clone()
    }

    pub fn sql(&self, query: &str) -> Vec<Vec<Value>> {
        let reply = good(self.post("/api/v1/sql").json(&json!({"query": query})));
        serde_json::from_value(reply["rows"].clone()).unwrap()
    }

    /// Asks again until `done` says so.
    pub fn until(&self, path: &str, mut done: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = good(self.get(path));
            if done(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "still {value}");
            // The server has the same processors.
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until no document of the collection is under way.
    pub fn until_indexed(&self, collection: &str) -> Value {
        self.until(&format!("/api/v1/collections/{collection}"), |c| {
            let count = |state: &str| c["states"][state].as_u64().unwrap_or(0);
            count("UPLOADING") + count("PROCESSING") + count("DELETING") == 0
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `va worker`: no API, only a process.
pub struct Worker {
    command: Command,
    child: Child,
}

impl Worker {
    /// Starts it and waits until it says that it is up.
    pub fn start(data: &Path, config: &Path, environment: Vec<(&'static str, String)>) -> Self {
        let mut command = va(data);
        command
            .env("VA_CONFIG", config)
            .envs(environment)
            .arg("worker");
        command.stdout(Stdio::piped()).stderr(worker_log());
        let child = Self::run(&mut command);
        Self { command, child }
    }

    fn run(command: &mut Command) -> Child {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.by_ref().map_while(Result::ok);
        let up = lines.any(|line| line.starts_with("Stop with"));
        assert!(up, "a worker did not start: {command:?}");
        child
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Worker::kill`].
    pub fn revive(&mut self) {
        self.child = Self::run(&mut self.command);
    }

    /// Sends a signal, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Fails when it has ended by itself.
    pub fn must_live(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "a worker ended by itself: {ended:?}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where workers log to: the file that `VA_WORKER_LOG` names, when somebody wants to read it.
fn worker_log() -> Stdio {
    match std::env::var_os("VA_WORKER_LOG") {
        Some(path) => Stdio::from(
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap(),
        ),
        None => Stdio::null(),
    }
}

/// JSON of a reply that must be good.
pub fn good(request: RequestBuilder) -> Value {
    let response = request.send().unwrap();
    let status = response.status();
    let text = response.text().unwrap();
    assert!(status.is_success(), "{status}: {text}");
    if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

/// Status and JSON of a reply that must be a problem.
pub fn problem(request: RequestBuilder) -> (u16, Value) {
    let response: Response = request.send().unwrap();
    let status = response.status();
    assert!(!status.is_success(), "{status}");
    let kind = response.content_type();
    assert_eq!(kind, "application/problem+json");
    let value: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
    assert_eq!(value["status"], json!(status.as_u16()));
    (status.as_u16(), value)
}
