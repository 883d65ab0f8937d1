//! `va search`: hits with citations, highlighted.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, Failure, Outcome};

/// Which retrievers answer.
#[derive(Clone, Copy, ValueEnum)]
pub enum ModeArg {
    Hybrid,
    Vector,
    Keyword,
}

/// Search a collection.
#[derive(Args)]
#[command(after_help = "Example: va search '如何冻结行或列' --collection help --explain")]
pub struct SearchArgs {
    pub query: String,
    /// The collection; may be left out when there is only one.
    #[arg(long, short)]
    pub collection: Option<String>,
    /// Hits wanted, 1 to 1000.
    #[arg(short, default_value_t = 5)]
    pub k: u32,
    #[arg(long, value_enum, default_value = "hybrid")]
    pub mode: ModeArg,
    /// Only chunks with this metadata, `key=value`; several values of one key are alternatives.
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Show both ranks and scores and how they were fused.
    #[arg(long)]
    pub explain: bool,
    #[arg(long)]
    pub json: bool,
}

pub async fn search(client: &Client, args: &SearchArgs) -> Outcome<()> {
    let collection = match &args.collection {
        Some(collection) => collection.clone(),
        None => only_collection(client).await?,
    };
    let mode = match args.mode {
        ModeArg::Hybrid => "hybrid",
        ModeArg::Vector => "vector",
        ModeArg::Keyword => "keyword",
    };
    let request = json!({
        "query": args.query, "collection": collection, "k": args.k, "mode": mode,
        "filter": filter(&args.filter)?, "explain": args.explain,
    });
    let reply = client
        .post("/api/v1/retrieval/hybrid_search", &request)
        .await?;
    if args.json {
        println!("{reply}");
        return Ok(());
    }
    for degraded in reply["degraded"].as_array().into_iter().flatten() {
        eprintln!(
            "warning: the {} retriever could not answer: {}",
            text(&degraded["retriever"]),
            text(&degraded["reason"])
        );
    }
    let hits = reply["hits"].as_array().cloned().unwrap_or_default();
    for hit in &hits {
        print_hit(hit, args.explain);
    }
    if hits.is_empty() {
        println!("Nothing found in `{collection}`.");
    }
    if args.explain {
        print_explain(&reply);
    }
    Ok(())
}

fn print_hit(hit: &Value, explain: bool) {
    let (document, chunk) = (&hit["document"], &hit["chunk"]);
    let title = document["title"]
        .as_str()
        .unwrap_or_else(|| document["name"].as_str().unwrap_or_default());
    println!(
        "{}. {}  ({:.4})",
        hit["rank"],
        title,
        hit["score"].as_f64().unwrap_or_default()
    );
    let mut place = vec![format!("v{}", document["version"])];
    let path: Vec<&str> = chunk["title_path"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !path.is_empty() {
        place.push(path.join(" > "));
    }
    if let Some(page) = chunk["page"].as_u64() {
        place.push(format!("page {page}"));
    }
    place.push(format!("characters {}-{}", chunk["start"], chunk["end"]));
    println!("   {}", text(&document["uri"]));
    println!("   {}", place.join(" · "));
    println!("   {}", marked(&chunk["snippet"]));
    if explain {
        let side = |name: &str| match hit["retrievers"][name]["rank"].as_u64() {
            Some(rank) => format!(
                "{name} #{rank} ({:.4})",
                hit["retrievers"][name]["score"]
                    .as_f64()
                    .unwrap_or_default()
            ),
            None => format!("{name} not among the candidates"),
        };
        println!("   {} · {}", side("vector"), side("keyword"));
    }
    println!();
}

fn print_explain(reply: &Value) {
    let explain = &reply["explain"];
    println!(
        "score = {}; model {}",
        text(&explain["fusion"]),
        text(&explain["model"])
    );
    for side in ["vector", "keyword"] {
        if let Some(found) = explain[side]["candidates"].as_u64() {
            println!(
                "{side}: {found} candidates in {:.1} ms",
                explain[side]["took_ms"].as_f64().unwrap_or_default()
            );
        }
    }
    println!(
        "whole: {:.1} ms",
        reply["took_ms"].as_f64().unwrap_or_default()
    );
}

/// The snippet on one line, its highlights bold on a terminal and in brackets elsewhere.
fn marked(snippet: &Value) -> String {
    let (on, off) = if std::io::stdout().is_terminal() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("[", "]")
    };
    let mut out = String::new();
    let ranges: Vec<(usize, usize)> =
        serde_json::from_value(snippet["highlights"].clone()).unwrap_or_default();
    for (at, c) in text(&snippet["text"]).chars().enumerate() {
        if ranges.iter().any(|(start, _)| *start == at) {
            out.push_str(on);
        }
        out.push(if c.is_whitespace() { ' ' } else { c });
        if ranges.iter().any(|(_, end)| *end == at + 1) {
            out.push_str(off);
        }
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The collection, when there is only one.
pub(super) async fn only_collection(client: &Client) -> Outcome<String> {
    let list: Value = client.get("/api/v1/collections").await?;
    let names: Vec<&str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect();
    match names.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(Failure::failed(
            "there is no collection yet; make one with `va index DIR --collection NAME`",
        )),
        many => Err(Failure::usage(format!(
            "say which with --collection: {}",
            many.join(", ")
        ))),
    }
}

/// `key=value` words as a filter.
pub(super) fn filter(words: &[String]) -> Outcome<Value> {
    let mut fields: Map<String, Value> = Map::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("`--filter {word}` is not key=value")))?;
        match fields.entry(key).or_insert_with(|| json!([])) {
            Value::Array(values) => values.push(json!(value)),
            other => *other = json!([value]),
        }
    }
    Ok(Value::Object(fields))
}
