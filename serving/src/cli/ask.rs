//! `va ask`: a cited answer, as it is written. `va chat`: the same as a conversation.

use std::io::Write;
use std::path::Path;

use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::client::{Client, Failure, Outcome, encode};
use super::search::{filter, only_collection};
use super::table::printable;

/// Turns of a conversation that are sent along: more than the server looks at would only cost time.
const TURNS_SENT: usize = 12;

/// Ask a question; the answer quotes the documents and says where each sentence stands.
#[derive(Args)]
#[command(after_help = "Example: va ask '如何冻结行或列？' --collection help")]
pub struct AskArgs {
    pub question: String,
    /// The collection; may be left out when there is only one.
    #[arg(long, short)]
    pub collection: Option<String>,
    /// Passages that the answer may be made from, 1 to 20; 6 when left out.
    #[arg(short)]
    pub k: Option<u32>,
    /// Only chunks with this metadata, `key=value`; several values of one key are alternatives.
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Wait until everything that was uploaded before the question can be found.
    #[arg(long)]
    pub fresh: bool,
    /// Show how the answer came about.
    #[arg(long)]
    pub explain: bool,
    /// Who writes: `auto` (a model where one is configured), `extractive` (sentences of the documents), `generated`.
    #[arg(long)]
    pub mode: Option<String>,
    /// The model that writes.
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub search: SearchArgs,
    #[arg(long)]
    pub json: bool,
}

/// How passages are searched for; what is left out is as the server's settings say.
#[derive(Args)]
pub struct SearchArgs {
    /// How passages are put in order: `none`, `late` (token by token), `llm`, `provider:MODEL`.
    #[arg(long, value_name = "METHOD")]
    pub rerank: Option<String>,
    /// Who makes the queries: `rules` or `model`.
    #[arg(long, value_name = "BY")]
    pub rewrite: Option<String>,
    /// Whether a model makes up a passage to search with.
    #[arg(long, value_name = "BOOL")]
    pub hyde: Option<bool>,
}

impl SearchArgs {
    /// Adds to a request what was said.
    pub fn add_to(&self, request: &mut Value) {
        if let Some(rerank) = &self.rerank {
            request["rerank"] = json!(rerank);
        }
        if let Some(rewrite) = &self.rewrite {
            request["rewrite"] = json!(rewrite);
        }
        if let Some(hyde) = self.hyde {
            request["hyde"] = json!(hyde);
        }
    }
}

/// Ask in a conversation: a follow-up is understood from what was asked before.
#[derive(Args)]
#[command(after_help = "Example: va chat --collection help")]
pub struct ChatArgs {
    /// The collection; may be left out when there is only one.
    #[arg(long, short)]
    pub collection: Option<String>,
    /// Passages that an answer may be made from, 1 to 20; 6 when left out.
    #[arg(short)]
    pub k: Option<u32>,
}

pub async fn ask(client: &Client, args: &AskArgs) -> Outcome<()> {
    let collection = chosen(client, args.collection.as_ref()).await?;
    let mut request = json!({
        "question": args.question, "collection": collection, "filter": filter(&args.filter)?,
        "explain": args.explain,
    });
    if let Some(k) = args.k {
        request["k"] = json!(k);
    }
    if let Some(mode) = &args.mode {
        request["mode"] = json!(mode);
    }
    if let Some(model) = &args.model {
        request["model"] = json!(model);
    }
    args.search.add_to(&mut request);
    if args.fresh {
        request["min_freshness"] = json!("now");
    }
    if args.json {
        println!("{}", client.post("/api/v1/rag/query", &request).await?);
        return Ok(());
    }
    let told = stream(client, &request).await?;
    told.print_sources(&collection);
    if args.explain {
        told.print_trace();
    }
    Ok(())
}

pub async fn chat(client: &Client, args: &ChatArgs) -> Outcome<()> {
    let collection = chosen(client, args.collection.as_ref()).await?;
    let mut editor = DefaultEditor::new()?;
    let mut history: Vec<Value> = Vec::new();
    println!("Asking `{collection}`. /new begins anew, /quit or Ctrl-D leaves.");
    loop {
        let line = match editor.readline("? ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let question = line.trim();
        match question {
            "" => continue,
            "/quit" | "/exit" | "\\q" => return Ok(()),
            "/new" => {
                history.clear();
                println!("A new conversation.");
                continue;
            }
            _ => {}
        }
        editor.add_history_entry(question)?;
        let mut request =
            json!({"question": question, "collection": collection, "history": history});
        if let Some(k) = args.k {
            request["k"] = json!(k);
        }
        let told = tokio::select! {
            told = stream(client, &request) => told,
            _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        };
        match told {
            Ok(told) => {
                told.print_sources(&collection);
                println!();
                history.push(json!({"role": "user", "content": question}));
                history.push(json!({"role": "assistant", "content": told.answer}));
                let old = history.len().saturating_sub(TURNS_SENT);
                history.drain(..old);
            }
            Err(failure) => eprintln!("error: {}", failure.message),
        }
    }
}

async fn chosen(client: &Client, collection: Option<&String>) -> Outcome<String> {
    match collection {
        Some(collection) => Ok(collection.clone()),
        None => only_collection(client).await,
    }
}

/// What an answer said.
#[derive(Default)]
struct Told {
    answer: String,
    citations: Vec<Value>,
    done: Value,
    failed: Option<String>,
}

/// Asks, and prints the answer as it comes.
async fn stream(client: &Client, request: &Value) -> Outcome<Told> {
    let mut told = Told::default();
    client
        .events("/api/v1/rag/query", request, |name, data| match name {
            "delta" => {
                let text = data["text"].as_str().unwrap_or_default();
                told.answer.push_str(text);
                // Documents cannot steer the terminal; lines stay lines.
                let lines: Vec<String> = text.split('\n').map(printable).collect();
                print!("{}", lines.join("\n"));
                // A reader that has gone is noticed by the next `print`.
                let _ = std::io::stdout().flush();
            }
            "citation" => told.citations.push(data),
            "done" => told.done = data,
            "error" => told.failed = Some(said(&data["detail"]).to_owned()),
            _ => {}
        })
        .await?;
    if !told.answer.is_empty() {
        println!();
    }
    if let Some(reason) = told.failed {
        return Err(Failure::failed(reason));
    }
    for degraded in told.done["degraded"].as_array().into_iter().flatten() {
        eprintln!(
            "warning: {}: {}",
            said(&degraded["retriever"]),
            said(&degraded["reason"])
        );
    }
    for sentence in told.done["unsupported"].as_array().into_iter().flatten() {
        eprintln!("warning: no source supports: {}", said(&sentence["text"]));
    }
    Ok(told)
}

impl Told {
    /// The cited places below the answer, each number once with all its quotes.
    fn print_sources(&self, collection: &str) {
        let mut numbers: Vec<u64> = self
            .citations
            .iter()
            .filter_map(|c| c["n"].as_u64())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        for n in numbers {
            let mut of_source = self.citations.iter().filter(|c| c["n"] == n).peekable();
            let Some(first) = of_source.peek().copied() else {
                continue;
            };
            let (document, chunk) = (&first["document"], &first["chunk"]);
            let title = document["title"]
                .as_str()
                .unwrap_or(said(&document["name"]));
            let path = chunk["title_path"].as_array().into_iter().flatten();
            let path: Vec<&str> = path.filter_map(Value::as_str).collect();
            let mut place = vec![
                said(&document["name"]).to_owned(),
                format!("v{}", document["version"]),
            ];
            if let Some(page) = chunk["page"].as_u64() {
                place.push(format!("page {page}"));
            }
            if !path.is_empty() {
                place.push(path.join(" > "));
            }
            println!("\n[{n}] {}", printable(title));
            println!("    {}", printable(&place.join(" · ")));
            for citation in of_source {
                let words: Vec<&str> = said(&citation["quote"]).split_whitespace().collect();
                println!("    “{}”", printable(&words.join(" ")));
            }
            println!(
                "    open: {}",
                printable(&opening(document, chunk, collection))
            );
        }
    }

    fn print_trace(&self) {
        let trace = &self.done["trace"];
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        println!();
        for query in trace["queries"].as_array().into_iter().flatten() {
            println!(
                "query (round {}, {}): {}  |  keywords: {}  |  {} hits in {:.1} ms",
                query["round"],
                said(&query["why"]),
                printable(said(&query["text"])),
                printable(said(&query["keywords"])),
                query["hits"],
                number(&query["took_ms"])
            );
        }
        for source in trace["sources"].as_array().into_iter().flatten() {
            let name = printable(said(&source["document"]["name"]));
            let from = match source["reranked"]["from"].as_u64() {
                Some(from) => format!(", was {from}"),
                None => String::new(),
            };
            println!(
                "source [{}{from}] {:.4}  {name}",
                source["n"],
                number(&source["score"])
            );
        }
        if let Some(method) = trace["rerank"]["method"].as_str() {
            let rerank = &trace["rerank"];
            println!(
                "re-ranked by {}: {} of {} judged in {:.1} ms  {}",
                printable(method),
                rerank["judged"],
                rerank["candidates"],
                number(&rerank["took_ms"]),
                printable(said(&rerank["note"]))
            );
        }
        for sentence in self.done["sentences"].as_array().into_iter().flatten() {
            println!(
                "sentence [{}] {:.3} (similarity {:.3}, words {:.3}): {}",
                sentence["n"],
                number(&sentence["score"]),
                number(&sentence["similarity"]),
                number(&sentence["coverage"]),
                printable(said(&sentence["text"]))
            );
        }
        let (grade, took) = (&trace["grade"], &trace["took_ms"]);
        println!(
            "best {:.3}, needed {:.3}; retrieval {:.1} ms, sentences {:.1} ms, whole {:.1} ms",
            number(&grade["evidence"]),
            number(&grade["threshold"]),
            number(&took["retrieval"]),
            number(&took["grade"]),
            number(&took["total"])
        );
    }
}

/// What shows the cited document: its address, at the page; or the command that tells where it is.
fn opening(document: &Value, chunk: &Value, collection: &str) -> String {
    let uri = said(&document["uri"]);
    let page = chunk["page"]
        .as_u64()
        .map_or(String::new(), |page| format!("#page={page}"));
    if uri.starts_with("http://") || uri.starts_with("https://") || uri.starts_with("file://") {
        return format!("{uri}{page}");
    }
    match Path::new(uri).canonicalize() {
        Ok(path) => {
            let path = path.to_string_lossy();
            let parts: Vec<String> = path.split('/').map(encode).collect();
            format!("file://{}{page}", parts.join("/"))
        }
        Err(_) => format!(
            "va document show {} --collection {collection}",
            said(&document["id"])
        ),
    }
}

fn said(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
