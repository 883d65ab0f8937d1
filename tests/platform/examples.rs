//! Every registered component has an example, every example passes, and every file is registered.

use std::path::Path;

use va_catalog::Role;
use va_catalog::settings::Settings;
use va_pipelines::plan::BuiltinNames;
use va_pipelines::registry::components;

use crate::server::need_model;

#[test]
fn examples_of_all_components_pass() {
    let Some(()) = need_model() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut failed = Vec::new();
    for component in components() {
        let name = format!("{} ({:?})", component.kind, component.role);
        assert!(!component.summary.is_empty(), "{name} has no summary");
        let loaded = va_pipelines::load(
            &format!("{}.yaml", component.kind),
            component.example,
            &BuiltinNames,
        )
        .unwrap_or_else(|diagnostics| panic!("{name}:\n{diagnostics}"));
        let uses = loaded
            .plan
            .graph
            .nodes
            .iter()
            .any(|node| node.kind == component.kind && node.role == component.role);
        assert!(uses, "the example of {name} does not use it");
        assert!(
            !loaded.tests.is_empty(),
            "the example of {name} has no tests"
        );
        for test in &loaded.tests {
            let outcome = runtime
                .block_on(va_serving::cli::pipeline::run_test(
                    &loaded,
                    test,
                    &Settings::default(),
                ))
                .unwrap_or_else(|failure| panic!("{name}: {}", failure.message));
            if !outcome.differences.is_empty() {
                failed.push(format!(
                    "{name}: {}\n  {}",
                    outcome.name,
                    outcome.differences.join("\n  ")
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The formats are no components of a pipeline but options of some: each has an example of its own.
#[test]
fn examples_of_all_formats_pass() {
    let Some(()) = need_model() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = root.join("connectors/formats/examples");
    let mut failed = Vec::new();
    for kind in va_formats::FormatSpec::KINDS {
        let file = folder.join(format!("{kind}.yaml"));
        let text = std::fs::read_to_string(&file).unwrap();
        let loaded = va_pipelines::load(&format!("{kind}.yaml"), &text, &BuiltinNames)
            .unwrap_or_else(|diagnostics| panic!("{kind}:\n{diagnostics}"));
        assert!(
            !loaded.tests.is_empty(),
            "the example of {kind} has no tests"
        );
        for test in &loaded.tests {
            let outcome = runtime
                .block_on(va_serving::cli::pipeline::run_test(
                    &loaded,
                    test,
                    &Settings::default(),
                ))
                .unwrap_or_else(|failure| panic!("{kind}: {}", failure.message));
            if !outcome.differences.is_empty() {
                failed.push(format!(
                    "{kind}: {}\n  {}",
                    outcome.name,
                    outcome.differences.join("\n  ")
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(
        files,
        va_formats::FormatSpec::KINDS.len(),
        "a file without its format"
    );
}

#[test]
fn built_in_pipelines_are_valid() {
    for (file, text) in va_pipelines::definitions::builtin() {
        va_pipelines::load(file, text, &BuiltinNames)
            .unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
    }
}

/// A file without its line in the registry is never compiled, and its tests never run.
#[test]
fn every_file_is_registered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let registered: Vec<(Role, &str)> = components().iter().map(|c| (c.role, c.kind)).collect();
    let shared = [
        "lib",
        "operator",
        "registry",
        "expression",
        "parsed",
        "shape",
        "changes",
        "endpoint",
        "indexes",
        "news",
        "pair",
        "repartition",
    ];
    for folder in ["operators/src", "connectors/endpoints/src"] {
        for file in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = file
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .trim_end_matches(".rs")
                .to_owned();
            if !shared.contains(&name.as_str()) {
                assert!(
                    registered.iter().any(|(_, kind)| *kind == name),
                    "{folder}/{name}.rs is not registered"
                );
            }
        }
    }
    for (folder, what) in [
        ("operators/examples", "operator"),
        ("connectors/endpoints/examples", "endpoint"),
    ] {
        for file in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = file
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .trim_end_matches(".yaml")
                .to_owned();
            assert!(
                registered.iter().any(|(_, kind)| *kind == name),
                "{folder}/{name}.yaml: no such {what}"
            );
        }
    }
}
