//! `va pipeline`: checking, drawing and testing files needs no server; the rest talks to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;
use va_catalog::settings::Settings;
use va_connectors::flow::Names;
use va_parse_worker::{InProcess, Parser as _};
use va_pipelines::load::Loaded;
use va_pipelines::plan::BuiltinNames;
use va_pipelines::{draw, fixture};

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print, time};
use crate::platform::{Platform, Role, now_ms};

/// How to draw.
#[derive(Clone, Copy, ValueEnum)]
pub enum DrawFormat {
    Mermaid,
    Dot,
}

/// Pipelines.
#[derive(Subcommand)]
pub enum PipelineCommand {
    /// Check pipeline files: all problems at once, each with file:line:column and what to do.
    Validate {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// What each node does and the columns between nodes. A file, or the name of a registered pipeline.
    Explain {
        pipeline: String,
    },
    /// Draw a pipeline as Mermaid or Graphviz DOT. A file, or the name of a registered pipeline.
    Graph {
        pipeline: String,
        #[arg(long, value_enum, default_value = "mermaid")]
        format: DrawFormat,
    },
    /// Run the `tests:` of pipeline files, without a server.
    Test {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// All pipelines with their state and lag.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Rows through every node of a pipeline, lag, last checkpoint.
    Status {
        name: String,
        #[arg(long)]
        json: bool,
    },
    Top(super::top::Top),
    /// Register and start a pipeline file, or start a registered pipeline by name.
    Run {
        pipeline: String,
    },
    /// Stop a pipeline after a last checkpoint; `run` goes on where it was.
    Stop {
        name: String,
    },
    /// Remove a pipeline of yours.
    Delete {
        name: String,
    },
    /// Print live rows of a node until Ctrl-C.
    Tap {
        name: String,
        node: String,
        /// Stop after so many rows.
        #[arg(long)]
        limit: Option<u64>,
    },
}

impl PipelineCommand {
    /// Whether a server is needed; if not, [`local`] does it.
    pub fn needs_server(&self) -> bool {
        match self {
            Self::Validate { .. } | Self::Test { .. } => false,
            Self::Explain { pipeline } | Self::Graph { pipeline, .. } => {
                built_in(pipeline).is_none() && !is_file(pipeline)
            }
            _ => true,
        }
    }
}

fn is_file(pipeline: &str) -> bool {
    pipeline.ends_with(".yaml") || pipeline.ends_with(".yml") || Path::new(pipeline).is_file()
}

fn built_in(name: &str) -> Option<&'static str> {
    va_pipelines::definitions::builtin()
        .into_iter()
        .find(|(file, _)| file.strip_suffix(".yaml") == Some(name))
        .map(|(_, text)| text)
}

fn read(file: &Path) -> Outcome<String> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("`{}`: {error}", file.display())))
}

fn load(file: &str, text: &str, names: &dyn Names) -> Outcome<Loaded> {
    va_pipelines::load(file, text, names)
        .map_err(|diagnostics| Failure::failed(diagnostics.to_string()))
}

/// Commands on files.
pub async fn local(command: &PipelineCommand, settings: &Settings) -> Outcome<()> {
    match command {
        PipelineCommand::Validate { files } => {
            let mut problems = 0;
            for file in files {
                match va_pipelines::load(&file.display().to_string(), &read(file)?, &BuiltinNames) {
                    Ok(loaded) => println!(
                        "{}: pipeline `{}` is fine ({} nodes, {} tests)",
                        file.display(),
                        loaded.plan.graph.name,
                        loaded.plan.nodes.len(),
                        loaded.tests.len()
                    ),
                    Err(diagnostics) => {
                        problems += diagnostics.0.len();
                        eprintln!("{diagnostics}\n");
                    }
                }
            }
            if problems == 0 {
                Ok(())
            } else {
                Err(Failure::failed(""))
            }
        }
        PipelineCommand::Test { files } => test(files, settings).await,
        PipelineCommand::Explain { pipeline } => {
            print!("{}", draw::explain(&local_plan(pipeline)?.plan));
            Ok(())
        }
        PipelineCommand::Graph { pipeline, format } => {
            print!("{}", drawn(&local_plan(pipeline)?, *format));
            Ok(())
        }
        _ => Err(Failure::usage("this command needs a server")),
    }
}

fn local_plan(pipeline: &str) -> Outcome<Loaded> {
    match built_in(pipeline) {
        Some(text) => load(pipeline, text, &BuiltinNames),
        None => load(pipeline, &read(Path::new(pipeline))?, &BuiltinNames),
    }
}

fn drawn(loaded: &Loaded, format: DrawFormat) -> String {
    match format {
        DrawFormat::Mermaid => draw::mermaid(&loaded.plan),
        DrawFormat::Dot => draw::dot(&loaded.plan),
    }
}

/// Each test gets a platform of its own in a temporary directory, so that tests cannot see each other.
async fn test(files: &[PathBuf], settings: &Settings) -> Outcome<()> {
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let name = file.display().to_string();
        let loaded = load(&name, &read(file)?, &BuiltinNames)?;
        if loaded.tests.is_empty() {
            println!("{name}: no tests");
        }
        for one in &loaded.tests {
            let outcome = run_test(&loaded, one, settings).await?;
            if outcome.differences.is_empty() {
                passed += 1;
                println!("ok    {name}: {}", outcome.name);
            } else {
                failed += 1;
                println!("FAIL  {name}: {}", outcome.name);
                for difference in outcome.differences {
                    println!("      {difference}");
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::failed(""))
    }
}

/// Runs one test of a loaded pipeline.
pub async fn run_test(
    loaded: &Loaded,
    one: &fixture::Fixture,
    settings: &Settings,
) -> Outcome<fixture::Outcome> {
    let dir = tempfile::tempdir()?;
    let settings = Settings {
        data: dir.path().join("data"),
        // A test leaves nothing behind where real pipelines run.
        catalog: Default::default(),
        objects: Default::default(),
        log: Default::default(),
        ..settings.clone()
    };
    let platform = Platform::open(settings, Role::Up).await?;
    let config = va_pipelines::RuntimeConfig {
        log: platform.log.clone(),
        operators: va_operators::Resources {
            objects: platform.objects.clone(),
            embedders: platform.embedders.clone(),
            // The rows of a test are small, and the program that runs it need not be `va`.
            parser: Arc::new(InProcess {
                limits: platform.parser.limits(),
            }),
        },
        endpoints: va_endpoints::Resources {
            log: platform.log.clone(),
            catalog: platform.catalog.clone(),
            indexes: platform.indexes.clone(),
        },
        clock: Arc::new(now_ms),
        patience: Duration::ZERO,
    };
    let outcome = fixture::run(&loaded.plan, one, config).await;
    platform.stop().await;
    Ok(outcome)
}

/// Commands that talk to the server.
pub async fn remote(client: &Client, command: &PipelineCommand) -> Outcome<()> {
    let path = |name: &str| format!("/api/v1/pipelines/{}", encode(name));
    match command {
        PipelineCommand::List { json } => {
            let list: Value = client.get("/api/v1/pipelines").await?;
            if *json {
                println!("{list}");
                return Ok(());
            }
            let rows: Vec<Vec<String>> = list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|p| {
                    vec![
                        cell(&p["name"]),
                        cell(&p["version"]),
                        cell(&p["state"]),
                        cell(&p["lag_rows"]),
                        time(&p["last_checkpoint_at_ms"]),
                        cell(&p["reason"]),
                    ]
                })
                .collect();
            print(
                &[
                    "NAME",
                    "VERSION",
                    "STATE",
                    "LAG",
                    "LAST CHECKPOINT (UTC)",
                    "REASON",
                ],
                &rows,
            );
            Ok(())
        }
        PipelineCommand::Status { name, json } => {
            let status: Value = client.get(&path(name)).await?;
            if *json {
                println!("{status}");
            } else {
                print_status(&status);
            }
            Ok(())
        }
        PipelineCommand::Top(top) => super::top::run(client, top).await,
        PipelineCommand::Run { pipeline } => {
            let status = if is_file(pipeline) {
                let text = read(Path::new(pipeline))?;
                client
                    .post_text(
                        &format!("/api/v1/pipelines?file={}", encode(pipeline)),
                        text,
                    )
                    .await?
            } else {
                client
                    .post(&format!("{}/start", path(pipeline)), &Value::Null)
                    .await?
            };
            println!(
                "Pipeline `{}` (version {}) is {}.",
                cell(&status["name"]),
                status["version"],
                cell(&status["state"])
            );
            if client.is_own() {
                println!("It runs in this process; stop with Ctrl-C.");
                super::up::wait_for_signal().await;
            }
            Ok(())
        }
        PipelineCommand::Stop { name } => {
            client
                .post(&format!("{}/stop", path(name)), &Value::Null)
                .await?;
            println!("Pipeline `{name}` is stopped.");
            Ok(())
        }
        PipelineCommand::Delete { name } => {
            client.delete(&path(name)).await?;
            println!("Pipeline `{name}` is gone.");
            Ok(())
        }
        PipelineCommand::Tap { name, node, limit } => {
            let limit = limit
                .map(|limit| format!("&limit={limit}"))
                .unwrap_or_default();
            let path = format!("{}/tap?node={}{limit}", path(name), encode(node));
            let rows = client.lines(&path, |row| println!("{row}"));
            tokio::select! {
                result = rows => result,
                () = super::up::wait_for_signal() => Ok(()),
            }
        }
        PipelineCommand::Explain { pipeline } => {
            let loaded = registered(client, pipeline).await?;
            print!("{}", draw::explain(&loaded.plan));
            Ok(())
        }
        PipelineCommand::Graph { pipeline, format } => {
            print!("{}", drawn(&registered(client, pipeline).await?, *format));
            Ok(())
        }
        PipelineCommand::Validate { .. } | PipelineCommand::Test { .. } => Ok(()),
    }
}

async fn registered(client: &Client, name: &str) -> Outcome<Loaded> {
    let found: Value = client
        .get(&format!("/api/v1/pipelines/{}", encode(name)))
        .await?;
    load(
        name,
        found["definition"].as_str().unwrap_or_default(),
        &BuiltinNames,
    )
}

fn print_status(status: &Value) {
    println!(
        "{} (version {}): {}",
        cell(&status["name"]),
        status["version"],
        cell(&status["state"])
    );
    if let Some(reason) = status["reason"].as_str() {
        println!("  reason           {reason}");
    }
    println!("  lag              {} rows", status["lag_rows"]);
    if !status["last_checkpoint_at_ms"].is_null() {
        let took = status["last_checkpoint_seconds"]
            .as_f64()
            .unwrap_or_default();
        let age = (now_ms() - status["last_checkpoint_at_ms"].as_i64().unwrap_or_default()) / 1000;
        println!(
            "  last checkpoint  {} UTC ({age} s ago), took {took:.3} s",
            time(&status["last_checkpoint_at_ms"])
        );
    }
    if let Some(left @ 1..) = status["state_restoring"].as_u64() {
        println!("  state            being restored, {left} changes left");
    }
    if let Some(violations) = status["conservation_violations"].as_u64() {
        let verdict = match violations {
            0 => "every row is accounted for".to_owned(),
            n => format!("VIOLATED at {n} checkpoints"),
        };
        println!("  conservation     {verdict}");
    }
    let rows: Vec<Vec<String>> = status["nodes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(node, n)| {
            vec![
                node.clone(),
                cell(&n["rows_in"]),
                cell(&n["rows_out"]),
                cell(&n["filtered"]),
                cell(&n["dead_lettered"]),
            ]
        })
        .collect();
    if !rows.is_empty() {
        println!();
        print(&["NODE", "IN", "OUT", "FILTERED", "DEAD-LETTERED"], &rows);
    }
    let queues: Vec<Vec<String>> = status["queues"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(queue, fill)| {
            let percent = fill.as_f64().unwrap_or_default() * 100.0;
            vec![queue.clone(), format!("{percent:.0} %")]
        })
        .collect();
    if !queues.is_empty() {
        println!();
        print(&["QUEUE", "FULL"], &queues);
    }
    let processes: Vec<Vec<String>> = status["workers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|process| {
            let reason = process["reason"]
                .as_str()
                .map(|reason| format!(": {reason}"));
            vec![
                cell(&process["host"]),
                cell(&process["pid"]),
                cell(&process["role"]),
                cell(&process["version"]),
                cell(&process["state"]) + &reason.unwrap_or_default(),
            ]
        })
        .collect();
    if processes.len() > 1 || status["workers"][0]["role"] == "worker" {
        println!();
        print(&["HOST", "PROCESS", "ROLE", "VERSION", "STATE"], &processes);
    }
}
