//! What `va pipeline validate` says about wrong files: `tests/data/validate/*.yaml` and the expected text beside them.
//!
//! `REWRITE_EXPECTED=1 cargo test` writes the texts anew; read the difference before committing it.

use std::path::Path;

use tempfile::tempdir;

use crate::server::{run, va};

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/validate");
    let data = tempdir().unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let name = file.file_name().unwrap();
        let output = va(data.path())
            .current_dir(&folder)
            .args(["pipeline", "validate"])
            .arg(name)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = file.with_extension("expected");
        if std::env::var_os("REWRITE_EXPECTED").is_some() {
            std::fs::write(&expected, &said).unwrap();
        }
        assert_eq!(
            said,
            std::fs::read_to_string(&expected).unwrap_or_default(),
            "{}",
            file.display()
        );
        assert_eq!(output.status.code(), Some(1));
    }
    // Checking touches no data directory.
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn a_good_file_is_drawn_and_explained() {
    let data = tempdir().unwrap();
    let mermaid = run(va(data.path()).args(["pipeline", "graph", "index"]));
    assert!(
        mermaid.starts_with("flowchart LR\n") && mermaid.contains("n0 --> n1"),
        "{mermaid}"
    );
    let dot = run(va(data.path()).args(["pipeline", "graph", "index", "--format", "dot"]));
    assert!(dot.starts_with("digraph \"index\" {"), "{dot}");
    let explained = run(va(data.path()).args(["pipeline", "explain", "index"]));
    assert!(
        explained.contains("vector: vector<float32, 384>"),
        "{explained}"
    );
}
