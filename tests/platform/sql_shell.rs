//! `va sql` on a terminal: editing, completion, history over sessions, errors that do not end it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, skip, va};

const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

/// Runs `va sql` on a terminal; returns what it showed.
fn shell(data: &Path, state: &Path, steps: &[(&str, &str)]) -> String {
    let steps: Vec<Value> = steps
        .iter()
        .map(|(what, text)| json!({*what: text}))
        .collect();
    let mut child = Command::new("python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/platform/sql_shell.py"
        ))
        .arg(va(data).get_program())
        .arg("sql")
        .env_remove("VA_SERVER")
        .env_remove("VA_TOKEN")
        .env("VA_DATA", data)
        .env("XDG_STATE_HOME", state)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(json!(steps).to_string().as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    shown
}

#[test]
fn the_shell_edits_completes_and_remembers() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3, which drives the terminal, is not there").unwrap_or(());
    }
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    let state = dir.path().join("state");
    let first = shell(
        &server.data,
        &state,
        &[
            ("expect", "va> "),
            // A keyword, completed; a statement over two lines.
            ("send", "sel\t"),
            ("expect", "SELECT"),
            ("send", " 20 + 1\r"),
            ("send", "AS twenty_one;\r"),
            ("expect", "twenty_one\n21"),
            ("expect", "(1 row"),
            ("expect", "va> "),
            // The beginning of the line is forgotten and put there.
            ("send", "ELECT 30 + 1 AS thirty_one;"),
            ("send", CTRL_A),
            ("send", "S\r"),
            ("expect", "thirty_one\n31"),
            ("expect", "va> "),
            // A column and a table.
            ("send", "SELECT '冻结' AS word, current_\t"),
            ("expect", "current_version"),
            ("send", " FROM docu\t"),
            ("expect", "document"),
            ("send", "s;\r"),
            ("expect", "(0 rows"),
            ("expect", "va> "),
            // A word behind a wide space.
            ("send", "SELECT '冻结\u{3000}limi\t"),
            ("expect", "\u{3000}LIMIT"),
            ("send", CTRL_C),
            ("expect", "va> "),
            ("send", "SELECT nothing_like_it FROM documents;\r"),
            ("expect", "error: "),
            ("expect", "va> "),
            ("send", "SELECT half"),
            ("send", CTRL_C),
            ("expect", "va> "),
            ("send", "SELECT 40 + 1 AS forty_one;\r"),
            ("expect", "forty_one\n41"),
            ("expect", "va> "),
            ("send", "\\q\r"),
        ],
    );
    assert!(!first.contains("panicked"), "{first}");

    let history = state.join("voiceassistant/sql_history");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&history).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    shell(
        &server.data,
        &state,
        &[
            ("expect", "va> "),
            ("send", UP),
            ("expect", "SELECT 40 + 1 AS forty_one;"),
            ("send", "\r"),
            ("expect", "forty_one\n41"),
            ("expect", "va> "),
            ("send", CTRL_D),
        ],
    );
    let text = std::fs::read_to_string(&history).unwrap();
    assert_eq!(text.matches("forty_one").count(), 1, "{text}");
}
