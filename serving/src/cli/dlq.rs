//! `va dlq`: the rows that a pipeline could not process.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print, time};

/// Dead letters: rows that a pipeline could not process.
#[derive(Subcommand)]
pub enum DlqCommand {
    /// The letters of a pipeline that were not retried, oldest first.
    #[command(after_help = "Example: va dlq ls index --reason damaged")]
    Ls {
        pipeline: String,
        #[command(flatten)]
        narrow: Narrow,
        /// Also letters that were retried.
        #[arg(long)]
        all: bool,
        /// Count letters by operator and reason.
        #[arg(long)]
        summary: bool,
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Where the page before ended.
        #[arg(long, conflicts_with = "summary")]
        cursor: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Everything about one letter, with the whole row.
    #[command(after_help = "Example: va dlq show index 0-17")]
    Show {
        pipeline: String,
        /// As `ls` shows it: partition-offset.
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Append the source rows of letters to their topic again, each once.
    ///
    /// The row goes through the whole pipeline again, and through every other pipeline that reads the topic.
    #[command(
        after_help = "Examples:\n  va dlq retry index 0-17 2-3\n  va dlq retry orders --all --operator parsed"
    )]
    Retry {
        pipeline: String,
        /// As `ls` shows them: partition-offset.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All letters that were not retried.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        narrow: Narrow,
        #[arg(long)]
        json: bool,
    },
}

/// Narrows down which letters are meant.
#[derive(Args)]
pub struct Narrow {
    /// Part of the reason.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Name of the operator.
    #[arg(long, value_name = "NODE")]
    operator: Option<String>,
}

pub async fn dlq(client: &Client, command: &DlqCommand) -> Outcome<()> {
    let base = |pipeline: &str| format!("/api/v1/pipelines/{}/dlq", encode(pipeline));
    match command {
        DlqCommand::Ls {
            pipeline,
            narrow,
            all,
            summary,
            limit,
            cursor,
            json,
        } => {
            let mut path = format!(
                "{}?all={all}&summary={summary}&limit={limit}",
                base(pipeline)
            );
            for (field, value) in [
                ("reason", &narrow.reason),
                ("operator", &narrow.operator),
                ("cursor", cursor),
            ] {
                if let Some(value) = value {
                    path.push_str(&format!("&{field}={}", encode(value)));
                }
            }
            let list: Value = client.get(&path).await?;
            if *json {
                println!("{list}");
            } else if *summary {
                print_summary(&list);
            } else {
                print_list(&list, *all);
            }
            Ok(())
        }
        DlqCommand::Show { pipeline, id, json } => {
            let letter: Value = client
                .get(&format!("{}/{}", base(pipeline), encode(id)))
                .await?;
            if *json {
                println!("{letter}");
            } else {
                print_letter(&letter)?;
            }
            Ok(())
        }
        DlqCommand::Retry {
            pipeline,
            ids,
            all,
            narrow,
            json,
        } => {
            if !all && (narrow.reason.is_some() || narrow.operator.is_some()) {
                return Err(Failure::usage(
                    "`--reason` and `--operator` narrow down `--all`; ids need no narrowing",
                ));
            }
            let wanted = if *all {
                json!({"all": true, "operator": narrow.operator, "reason": narrow.reason})
            } else {
                json!({"ids": ids})
            };
            let outcome = client
                .post(&format!("{}/retry", base(pipeline)), &wanted)
                .await?;
            if *json {
                println!("{outcome}");
            } else {
                println!(
                    "{} retried, {} skipped",
                    outcome["retried"], outcome["skipped"]
                );
                for skipped in outcome["reasons"].as_array().into_iter().flatten() {
                    eprintln!(
                        "  skipped {}: {}",
                        cell(&skipped["id"]),
                        cell(&skipped["reason"])
                    );
                }
            }
            // Who names letters expects them to be retried; `--all` takes what can be.
            if *all || outcome["skipped"] == 0 {
                Ok(())
            } else {
                Err(Failure::failed(""))
            }
        }
    }
}

fn print_list(list: &Value, all: bool) {
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|letter| {
            let mut row = vec![
                cell(&letter["id"]),
                time(&letter["failed_at"]),
                cell(&letter["operator"]),
                source(&letter["source"]),
                cell(&letter["document"]["name"]),
            ];
            if all {
                row.push(time(&letter["retried_at"]));
            }
            row.push(cell(&letter["reason"]));
            row
        })
        .collect();
    let mut header = vec!["ID", "FAILED (UTC)", "OPERATOR", "SOURCE", "DOCUMENT"];
    if all {
        header.push("RETRIED (UTC)");
    }
    header.push("REASON");
    print(&header, &rows);
    if let Some(cursor) = list["cursor"].as_str() {
        println!("... more: --cursor {cursor}");
    }
}

fn print_summary(list: &Value) {
    let rows: Vec<Vec<String>> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|count| {
            vec![
                cell(&count["letters"]),
                cell(&count["operator"]),
                time(&count["first_at"]),
                time(&count["last_at"]),
                cell(&count["reason"]),
            ]
        })
        .collect();
    print(
        &["LETTERS", "OPERATOR", "FIRST (UTC)", "LAST (UTC)", "REASON"],
        &rows,
    );
}

fn print_letter(letter: &Value) -> Outcome<()> {
    let document = &letter["document"];
    let lines = [
        ("id", cell(&letter["id"])),
        ("failed (UTC)", time(&letter["failed_at"])),
        ("retried (UTC)", time(&letter["retried_at"])),
        ("operator", cell(&letter["operator"])),
        ("reason", cell(&letter["reason"])),
        ("source", source(&letter["source"])),
        ("document", cell(&document["name"])),
        ("  uri", cell(&document["uri"])),
        ("  collection", cell(&document["collection"])),
        ("  id", cell(&document["id"])),
        ("  version", cell(&document["version"])),
    ];
    for (label, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        println!("{label:<14} {value}");
    }
    println!(
        "{:<14} {}",
        "row",
        serde_json::to_string_pretty(&letter["row"])?
    );
    Ok(())
}

/// `topic/partition@offset`; without an offset where it is not known.
fn source(source: &Value) -> String {
    if source.is_null() {
        return String::new();
    }
    let offset = source["offset"]
        .as_u64()
        .map(|offset| format!("@{offset}"))
        .unwrap_or_default();
    format!("{}/{}{offset}", cell(&source["topic"]), source["partition"])
}
