//! Real servers for tests, started by the scripts beside this file. Included by path where a test needs one.
//!
//! A server lives as long as its script's standard input is open, so it goes with the test process however that ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running server.
pub struct Server {
    url: String,
    child: Child,
    /// `None` once it is closed, which ends the server.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `deploy/dev/SCRIPT`; an error is the reason why there is none. What follows the script's name goes to it.
    pub fn start(script: &str) -> Result<Self, String> {
        let mut words = script.split_whitespace();
        let script = words.next().unwrap_or_default();
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|folder| folder.join("deploy/dev").join(script))
            .find(|path| path.is_file())
            .ok_or_else(|| format!("deploy/dev/{script} is not there"))?;
        let mut child = Command::new(&path)
            .arg("run")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut url = String::new();
        output
            .read_line(&mut url)
            .map_err(|error| format!("{script}: {error}"))?;
        if url.is_empty() {
            let mut reason = String::new();
            let mut errors = child.stderr.take().expect("it is piped");
            // What can be read is the reason.
            let _ = errors.read_to_string(&mut reason);
            let _ = child.wait();
            return Err(format!("{script}: {}", reason.trim()));
        }
        Ok(Self {
            url: url.trim().to_owned(),
            child,
            input,
            output,
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops it (`halt`) or starts it again (`resume`), or what else the script does at a word, and waits until that is
    /// done.
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub fn tell(&mut self, command: &str) {
        self.ask(command);
    }

    /// [`Server::tell`], with what the script answers.
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub fn ask(&mut self, command: &str) -> String {
        let input = self.input.as_mut().expect("it is open until the end");
        writeln!(input, "{command}").expect("the script listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("an answer");
        assert!(!answer.is_empty(), "the script ended at `{command}`");
        answer.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        // It removes its data, for which a test that ends should wait.
        let _ = self.child.wait();
    }
}

/// Says why a test does not run; with `CI` set that is a failure.
#[allow(dead_code, reason = "some tests have one of their own")]
pub fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
    let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    assert!(!ci, "CI must have what this test needs: {reason}");
}
