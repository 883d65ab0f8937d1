//! `va collection`, `va document`, `va topic`, `va doctor`: thin clients of the HTTP resources.

use std::io::Read;

use clap::Subcommand;
use serde_json::{Map, Value, json};
use va_catalog::Reader;

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print, time};
use super::versions;

/// Collections.
#[derive(Subcommand)]
pub enum CollectionCommand {
    /// All collections with their counts.
    List {
        #[arg(long)]
        json: bool,
    },
    /// One collection.
    Show { name: String },
    /// Make an empty collection.
    Create {
        name: String,
        #[arg(long, default_value = "")]
        description: String,
        /// No vectors: indexing is much faster, and only keyword search finds the documents.
        #[arg(long)]
        keyword_only: bool,
    },
    /// Compare the catalog, the vector store and the full-text index: ids, versions, content.
    #[command(after_help = "Example: va collection verify help")]
    Verify {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Remove a collection, its documents and its indexes.
    Delete {
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub async fn collection(client: &Client, command: &CollectionCommand) -> Outcome<()> {
    match command {
        CollectionCommand::List { json } => {
            let list: Value = client.get("/api/v1/collections?limit=1000").await?;
            if *json {
                println!("{list}");
                return Ok(());
            }
            let rows = rows(&list, |c| {
                let state = |word: &str| cell(&c["states"].get(word).cloned().unwrap_or(json!(0)));
                vec![
                    cell(&c["name"]),
                    cell(&c["documents"]),
                    cell(&c["chunks"]),
                    state("READY"),
                    state("PROCESSING"),
                    state("FAILED"),
                    cell(&c["model"]),
                ]
            });
            print(
                &[
                    "NAME",
                    "DOCUMENTS",
                    "CHUNKS",
                    "READY",
                    "PROCESSING",
                    "FAILED",
                    "MODEL",
                ],
                &rows,
            );
            Ok(())
        }
        CollectionCommand::Show { name } => {
            show(client, &format!("/api/v1/collections/{}", encode(name))).await
        }
        CollectionCommand::Create {
            name,
            description,
            keyword_only,
        } => {
            client
                .post(
                    "/api/v1/collections",
                    &json!({"name": name, "description": description, "keyword_only": keyword_only}),
                )
                .await?;
            println!("Collection `{name}` is there.");
            Ok(())
        }
        CollectionCommand::Verify { name, json } => verify(client, name, *json).await,
        CollectionCommand::Delete { name, yes } => {
            if !yes {
                return Err(Failure::usage(format!(
                    "this removes `{name}` and all its documents; repeat it with --yes"
                )));
            }
            client
                .delete(&format!("/api/v1/collections/{}", encode(name)))
                .await?;
            println!("Collection `{name}` is gone.");
            Ok(())
        }
    }
}

/// Differences that are printed; `--json` has more.
const DIFFERENCES_SHOWN: usize = 20;

async fn verify(client: &Client, name: &str, json: bool) -> Outcome<()> {
    let path = format!("/api/v1/collections/{}/verify", encode(name));
    let report: Value = client.get(&path).await?;
    let ok = report["ok"] == true;
    if json {
        println!("{report}");
    } else {
        println!(
            "`{name}`: {} documents, {} chunks; {} in the vector store, {} in the full-text index; {} documents in work",
            cell(&report["documents"]),
            cell(&report["chunks"]),
            if report["vectors"].is_null() {
                "no vectors".to_owned()
            } else {
                cell(&report["vectors"])
            },
            cell(&report["texts"]),
            cell(&report["in_work"]),
        );
        let listed = report["listed"].as_array().into_iter().flatten();
        for difference in listed.take(DIFFERENCES_SHOWN) {
            let document = match difference["uri"].as_str() {
                Some(uri) => uri.to_owned(),
                None => cell(&difference["document"]),
            };
            println!(
                "  {:<10} {document}: {}",
                cell(&difference["kind"]),
                cell(&difference["detail"])
            );
        }
    }
    if ok {
        if !json {
            println!("Everything agrees.");
        }
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{} differences; please report this with the output of `va collection verify {name} --json`. \
         Uploading a changed document replaces what the indexes hold of it",
        report["differences"]
    )))
}

/// Documents of a collection.
#[derive(Subcommand)]
pub enum DocumentCommand {
    /// Documents, by URI.
    List {
        #[arg(long, short)]
        collection: String,
        /// UPLOADING, PROCESSING, READY or FAILED.
        #[arg(long)]
        state: Option<String>,
        /// Part of the name.
        #[arg(long)]
        name: Option<String>,
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[arg(long)]
        json: bool,
    },
    /// One document.
    Show {
        id: String,
        #[arg(long, short)]
        collection: String,
    },
    /// All versions of a document, newest first.
    Versions {
        id: String,
        #[arg(long, short)]
        collection: String,
        #[arg(long)]
        json: bool,
    },
    /// What changed in the text between two versions.
    #[command(after_help = "Example: va document diff ID --collection help --from 1 --to 3")]
    Diff {
        id: String,
        #[arg(long, short)]
        collection: String,
        /// The older version; the one before `--to` when left out.
        #[arg(long)]
        from: Option<u32>,
        /// The newer version; the one that search shows when left out.
        #[arg(long)]
        to: Option<u32>,
        #[arg(long)]
        json: bool,
    },
    /// Go back to an old version: a new version with its content.
    #[command(after_help = "Example: va document rollback ID --collection help --to 1")]
    Rollback {
        id: String,
        #[arg(long, short)]
        collection: String,
        /// The version whose content is wanted.
        #[arg(long)]
        to: u32,
        /// Do not wait until it is searchable.
        #[arg(long)]
        no_wait: bool,
        #[arg(long)]
        json: bool,
    },
    /// Who may read a document; with `--reader` or `--everybody`, say who may from now on.
    #[command(
        after_help = "Examples:\n  va document readers ID --collection help\n  va document readers ID --collection help --reader role:payroll --reader user:usr_1\n  va document readers ID --collection help --everybody"
    )]
    Readers {
        id: String,
        #[arg(long, short)]
        collection: String,
        /// `user:ID` or `role:NAME`; may be given several times.
        #[arg(long = "reader", value_name = "READER")]
        readers: Vec<Reader>,
        /// Everybody in the tenant who may read documents.
        #[arg(long, conflicts_with = "readers")]
        everybody: bool,
        /// Do not wait until it is in the indexes.
        #[arg(long)]
        no_wait: bool,
        #[arg(long)]
        json: bool,
    },
    /// Remove a document from the collection and both indexes.
    Delete {
        id: String,
        #[arg(long, short)]
        collection: String,
    },
}

pub async fn document(client: &Client, command: &DocumentCommand) -> Outcome<()> {
    let base = |collection: &str| format!("/api/v1/collections/{}/documents", encode(collection));
    match command {
        DocumentCommand::List {
            collection,
            state,
            name,
            limit,
            json,
        } => {
            let mut path = format!("{}?limit={limit}", base(collection));
            for (field, value) in [("state", state), ("name", name)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{field}={}", encode(value)));
                }
            }
            let list: Value = client.get(&path).await?;
            if *json {
                println!("{list}");
                return Ok(());
            }
            let rows = rows(&list, |d| {
                vec![
                    cell(&d["id"]),
                    cell(&d["version"]),
                    cell(&d["state"]),
                    cell(&d["chunks"]),
                    time(&d["updated_at"]),
                    cell(&d["name"]),
                    cell(&d["error"]),
                ]
            });
            print(
                &[
                    "ID",
                    "VERSION",
                    "STATE",
                    "CHUNKS",
                    "UPDATED (UTC)",
                    "NAME",
                    "ERROR",
                ],
                &rows,
            );
            if !list["cursor"].is_null() {
                println!("... more; raise --limit");
            }
            Ok(())
        }
        DocumentCommand::Show { id, collection } => {
            show(client, &format!("{}/{}", base(collection), encode(id))).await
        }
        DocumentCommand::Versions {
            id,
            collection,
            json,
        } => versions::versions(client, &versions::path(collection, id), *json).await,
        DocumentCommand::Diff {
            id,
            collection,
            from,
            to,
            json,
        } => versions::diff(client, &versions::path(collection, id), *from, *to, *json).await,
        DocumentCommand::Rollback {
            id,
            collection,
            to,
            no_wait,
            json,
        } => {
            let path = versions::path(collection, id);
            versions::rollback(client, &path, *to, *no_wait, *json).await
        }
        DocumentCommand::Readers {
            id,
            collection,
            readers,
            everybody,
            no_wait,
            json,
        } => {
            let path = format!("{}/{}", base(collection), encode(id));
            let reply = if readers.is_empty() && !everybody {
                client.get::<Value>(&path).await?
            } else {
                let wait = if *no_wait { "" } else { "?wait=ready" };
                let body = json!({"readers": readers});
                client.put(&format!("{path}/readers{wait}"), &body).await?
            };
            if *json {
                println!("{reply}");
            } else {
                let names = reply["readers"].as_array().into_iter().flatten();
                let names: Vec<String> = names.map(cell).collect();
                match names.as_slice() {
                    [] => println!("everybody in the tenant who may read documents"),
                    names => println!("{}", names.join("\n")),
                }
            }
            if reply["state"] == "FAILED" {
                return Err(Failure::failed(format!(
                    "the indexes could not take it in: {}; until they do, searches of those who may read it now may miss it",
                    cell(&reply["error"])
                )));
            }
            Ok(())
        }
        DocumentCommand::Delete { id, collection } => {
            client
                .delete(&format!("{}/{}", base(collection), encode(id)))
                .await?;
            println!("Document `{id}` is being removed.");
            Ok(())
        }
    }
}

/// Topics of the log.
#[derive(Subcommand)]
pub enum TopicCommand {
    /// All topics.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Schema, offsets and consumer groups of a topic.
    Describe { name: String },
    /// Make a topic, e.g. `va topic create orders id:string! price:float64`.
    Create {
        name: String,
        /// Columns, `name:type`; `!` at the end means never null.
        #[arg(required = true)]
        columns: Vec<String>,
        #[arg(long)]
        partitions: Option<u32>,
        #[arg(long)]
        retention_ms: Option<u64>,
        /// What the messages are when other programs write or read them: `json`, `avro`, `protobuf`, `arrow`, or its
        /// options, e.g. '{"type": "json", "lines": true}'. A topic that is there already is taken as it is.
        #[arg(long)]
        format: Option<String>,
    },
    /// Append JSON rows, one a line, from a file or standard input.
    Produce {
        name: String,
        /// A file; standard input when left out.
        file: Option<String>,
        /// Column whose value chooses the partition.
        #[arg(long)]
        key: Option<String>,
    },
    /// Print rows as JSON lines.
    Consume {
        name: String,
        /// earliest, latest or an offset.
        #[arg(long, default_value = "earliest")]
        from: String,
        #[arg(long)]
        partition: Option<u32>,
        #[arg(long)]
        limit: Option<u64>,
        /// Go on with new rows.
        #[arg(long)]
        follow: bool,
    },
    /// Remove a topic and its rows.
    Delete {
        name: String,
        #[arg(long)]
        yes: bool,
    },
}

pub async fn topic(client: &Client, command: &TopicCommand) -> Outcome<()> {
    let path = |name: &str| format!("/api/v1/topics/{}", encode(name));
    match command {
        TopicCommand::List { json } => {
            let list: Value = client.get("/api/v1/topics").await?;
            if *json {
                println!("{list}");
                return Ok(());
            }
            let rows = rows(&list, |t| {
                vec![
                    cell(&t["name"]),
                    cell(&t["partitions"]),
                    cell(&t["rows"]),
                    cell(&t["description"]),
                ]
            });
            print(&["NAME", "PARTITIONS", "ROWS", "DESCRIPTION"], &rows);
            Ok(())
        }
        TopicCommand::Describe { name } => show(client, &path(name)).await,
        TopicCommand::Create {
            name,
            columns,
            partitions,
            retention_ms,
            format,
        } => {
            let mut schema = Map::new();
            for column in columns {
                let (column, kind) = column.split_once(':').ok_or_else(|| {
                    Failure::usage(format!("`{column}` is not name:type, e.g. id:string"))
                })?;
                schema.insert(column.to_owned(), json!(kind));
            }
            let mut body = json!({"name": name, "schema": schema});
            if let Some(partitions) = partitions {
                body["partitions"] = json!(partitions);
            }
            if let Some(retention_ms) = retention_ms {
                body["retention_ms"] = json!(retention_ms);
            }
            if let Some(format) = format {
                body["format"] = match format.trim_start().starts_with('{') {
                    true => serde_json::from_str(format)
                        .map_err(|e| Failure::usage(format!("`--format` is no JSON: {e}")))?,
                    false => json!({"type": format}),
                };
            }
            client.post("/api/v1/topics", &body).await?;
            println!("Topic `{name}` is there.");
            Ok(())
        }
        TopicCommand::Produce { name, file, key } => {
            let mut text = String::new();
            match file {
                Some(file) => {
                    text = std::fs::read_to_string(file)
                        .map_err(|e| Failure::usage(format!("`{file}`: {e}")))?
                }
                None => {
                    std::io::stdin().read_to_string(&mut text)?;
                }
            }
            let key = key
                .as_ref()
                .map(|key| format!("?key={}", encode(key)))
                .unwrap_or_default();
            let reply = client
                .post_text(&format!("{}/records{key}", path(name)), text)
                .await?;
            println!("{} rows appended.", reply["appended"]);
            Ok(())
        }
        TopicCommand::Consume {
            name,
            from,
            partition,
            limit,
            follow,
        } => {
            let mut query = format!(
                "{}/records?from={}&follow={follow}",
                path(name),
                encode(from)
            );
            for (field, value) in [("partition", partition.map(u64::from)), ("limit", *limit)] {
                if let Some(value) = value {
                    query.push_str(&format!("&{field}={value}"));
                }
            }
            client.lines(&query, |row| println!("{row}")).await
        }
        TopicCommand::Delete { name, yes } => {
            if !yes {
                return Err(Failure::usage(format!(
                    "this removes topic `{name}` and its rows; repeat it with --yes"
                )));
            }
            client.delete(&path(name)).await?;
            println!("Topic `{name}` is gone.");
            Ok(())
        }
    }
}

/// `va doctor`: what works and what does not; fails when something does not.
pub async fn doctor(client: &Client, json: bool) -> Outcome<()> {
    let status: Value = client.get("/api/v1/status").await?;
    if json {
        println!("{status}");
    } else {
        println!(
            "va {} on {}",
            cell(&status["version"]),
            cell(&status["data"])
        );
        for check in status["checks"].as_array().into_iter().flatten() {
            let mark = if check["ok"] == true { "ok  " } else { "FAIL" };
            println!(
                "{mark}  {:<26} {}",
                cell(&check["name"]),
                cell(&check["detail"])
            );
        }
    }
    let bad = status["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["ok"] != true)
        .count();
    if bad == 0 {
        Ok(())
    } else {
        Err(Failure::failed(format!("{bad} checks failed")))
    }
}

async fn show(client: &Client, path: &str) -> Outcome<()> {
    let value: Value = client.get(path).await?;
    println!("{}", serde_json::to_string_pretty(&value)?);
    Ok(())
}

fn rows(list: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(row)
        .collect()
}
