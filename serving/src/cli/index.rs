//! `va index`: files and URLs into a collection, with a progress bar; unchanged files cost a hash.
//!
//! Files are handed to the server through the upload API; parsing, embedding and indexing is the server's `index`
//! pipeline. So the command can be interrupted and repeated at any time: what was handed over is finished by the
//! server, what was not is found again by its missing hash.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::client::{Client, Failure, Outcome, encode};

/// Files checked in one call.
const CHECK_FILES: usize = 500;
/// Uploads at the same time.
const UPLOADS: usize = 4;
/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(250);

/// Index files, directories or URLs.
#[derive(Args)]
#[command(after_help = "Example: va index ./handbook --collection help --meta lang=zh")]
pub struct IndexArgs {
    /// Files, directories (searched through) or http(s) URLs.
    #[arg(required = true)]
    pub paths: Vec<String>,
    /// The collection; it is created when it does not exist.
    #[arg(long, short)]
    pub collection: String,
    /// Metadata for filters, `key=value`; may be given several times.
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    pub meta: Vec<String>,
    /// Do not wait until the documents are searchable.
    #[arg(long)]
    pub no_wait: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A file to index.
struct Item {
    uri: String,
    name: String,
    source: Source,
}

enum Source {
    File(PathBuf),
    Url,
}

/// What became of the files.
#[derive(Default)]
struct Tally {
    unchanged: u64,
    handed_over: u64,
    /// `(uri, reason)` of what could not be read or was not taken.
    refused: Vec<(String, String)>,
    /// `(uri, reason)` of what was handed over and could not be indexed.
    failed: Vec<(String, String)>,
    /// Documents that wait to be indexed.
    ids: HashSet<String>,
}

pub async fn index(client: &Client, args: &IndexArgs) -> Outcome<()> {
    let started = Instant::now();
    let meta = metadata(&args.meta)?;
    let (items, mut unreadable) = find(&args.paths)?;
    if items.is_empty() && unreadable.is_empty() {
        return Err(Failure::failed(format!(
            "no file under {}",
            args.paths.join(", ")
        )));
    }
    ensure_collection(client, &args.collection).await?;
    let bar = bar(items.len() as u64);
    let mut tally = Tally::default();
    tally.refused.append(&mut unreadable);
    let interrupted = tokio::select! {
        result = run(client, args, &meta, items, &bar, &mut tally) => { result?; false }
        () = super::up::wait_for_signal() => true,
    };
    bar.finish_and_clear();
    if interrupted {
        let who = if client.is_own() {
            "the next `va` command that holds this data directory"
        } else {
            "the server"
        };
        return Err(Failure::failed(format!(
            "interrupted; {} documents were handed over and are finished by {who}. Run the same command again to go on",
            tally.handed_over
        )));
    }
    report(args, &tally, started.elapsed())
}

async fn run(
    client: &Client,
    args: &IndexArgs,
    meta: &Value,
    items: Vec<Item>,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Outcome<()> {
    let base = format!("/api/v1/collections/{}/documents", encode(&args.collection));
    let (files, urls): (Vec<Item>, Vec<Item>) = items
        .into_iter()
        .partition(|item| matches!(item.source, Source::File(_)));
    bar.set_message("reading");
    let mut files = files.into_iter().peekable();
    while files.peek().is_some() {
        let batch: Vec<Item> = files.by_ref().take(CHECK_FILES).collect();
        let changed = changed_files(client, &base, batch, bar, tally).await?;
        upload_all(client, &base, meta, changed, bar, tally).await;
    }
    upload_all(client, &base, meta, urls, bar, tally).await;
    if !args.no_wait {
        wait(client, args, bar, tally).await?;
    }
    Ok(())
}

/// Hashes files and asks the server which it does not have.
async fn changed_files(
    client: &Client,
    base: &str,
    batch: Vec<Item>,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Outcome<Vec<Item>> {
    let hashed = tokio::task::spawn_blocking(move || {
        batch
            .into_iter()
            .map(|item| {
                let hash = hash(&item);
                (item, hash)
            })
            .collect::<Vec<_>>()
    })
    .await?;
    let mut known = Vec::new();
    for (item, hash) in hashed {
        match hash {
            Ok(hash) => known.push((item, hash)),
            Err(error) => {
                tally.refused.push((item.uri, format!("read: {error}")));
                bar.inc(1);
            }
        }
    }
    let asked: Vec<Value> = known
        .iter()
        .map(|(item, hash)| json!({"uri": item.uri, "hash": hash}))
        .collect();
    let reply = client
        .post(&format!("{base}/check"), &json!({"items": asked}))
        .await?;
    let unchanged: HashSet<String> = serde_json::from_value(reply["unchanged"].clone())?;
    let (same, changed): (Vec<_>, Vec<_>) = known
        .into_iter()
        .partition(|(item, _)| unchanged.contains(&item.uri));
    tally.unchanged += same.len() as u64;
    bar.inc(same.len() as u64);
    Ok(changed.into_iter().map(|(item, _)| item).collect())
}

fn hash(item: &Item) -> std::io::Result<String> {
    let Source::File(path) = &item.source else {
        return Ok(String::new());
    };
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

async fn upload_all(
    client: &Client,
    base: &str,
    meta: &Value,
    items: Vec<Item>,
    bar: &ProgressBar,
    tally: &mut Tally,
) {
    let mut results = futures::stream::iter(items)
        .map(|item| async move {
            let result = upload(client, base, meta, &item).await;
            (item.uri, result)
        })
        .buffer_unordered(UPLOADS);
    while let Some((uri, result)) = results.next().await {
        match result {
            Ok(reply) if reply["outcome"] == "unchanged" => {
                tally.unchanged += 1;
                bar.inc(1);
            }
            Ok(reply) => {
                tally.handed_over += 1;
                tally
                    .ids
                    .extend(reply["id"].as_str().map(ToOwned::to_owned));
                bar.set_message(format!("{} handed over", tally.handed_over));
            }
            Err(failure) => {
                tally.refused.push((uri, failure.message));
                bar.inc(1);
            }
        }
    }
}

async fn upload(client: &Client, base: &str, meta: &Value, item: &Item) -> Outcome<Value> {
    let mut path = format!(
        "{base}?name={}&uri={}&meta={}",
        encode(&item.name),
        encode(&item.uri),
        encode(&meta.to_string())
    );
    match &item.source {
        Source::File(file) => {
            let file = tokio::fs::File::open(file).await?;
            let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
            client.post_bytes(&path, body).await
        }
        Source::Url => {
            let (bytes, content_type) = client.download(&item.uri).await?;
            if let Some(content_type) = content_type {
                path.push_str(&format!("&content_type={}", encode(&content_type)));
            }
            client.post_bytes(&path, bytes).await
        }
    }
}

/// Follows the documents that were handed over until each is searchable or has failed.
async fn wait(
    client: &Client,
    args: &IndexArgs,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Outcome<()> {
    let collection = format!("/api/v1/collections/{}", encode(&args.collection));
    let done_before = bar.position();
    let wanted = tally.ids.len() as u64;
    let mut polls = tokio::time::interval(POLL);
    let mut polled: u64 = 0;
    while wanted > 0 {
        polls.tick().await;
        polled += 1;
        let state: Value = client.get(&collection).await?;
        let count = |word: &str| state["states"][word].as_u64().unwrap_or(0);
        let open = count("PROCESSING") + count("UPLOADING");
        bar.set_position(done_before + wanted.saturating_sub(open));
        bar.set_message(format!("{} chunks in the collection", state["chunks"]));
        if open == 0 {
            break;
        }
        if polled.is_multiple_of(8) {
            let pipeline: Value = client.get("/api/v1/pipelines/index").await?;
            match pipeline["state"].as_str() {
                Some("failed") => {
                    return Err(Failure::failed(format!(
                        "the index pipeline has failed: {}; nothing is lost: mend the cause, then `va pipeline run index`",
                        pipeline["reason"].as_str().unwrap_or_default()
                    )));
                }
                Some("restarting") => bar.set_message(format!(
                    "restarting: {}",
                    pipeline["reason"].as_str().unwrap_or_default()
                )),
                _ => {}
            }
        }
    }
    // Which of ours failed, and why.
    let mut cursor = String::new();
    loop {
        let page: Value = client
            .get(&format!(
                "{collection}/documents?state=FAILED&limit=500{cursor}"
            ))
            .await?;
        for document in page["items"].as_array().into_iter().flatten() {
            if document["id"]
                .as_str()
                .is_some_and(|id| tally.ids.contains(id))
            {
                let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
                tally.failed.push((text("uri"), text("error")));
            }
        }
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return Ok(()),
        }
    }
}

fn report(args: &IndexArgs, tally: &Tally, took: Duration) -> Outcome<()> {
    let seconds = took.as_secs_f64();
    let total = tally.unchanged + tally.handed_over + tally.refused.len() as u64;
    let good = tally.handed_over.saturating_sub(tally.failed.len() as u64);
    let failed: Vec<&(String, String)> = tally.refused.iter().chain(&tally.failed).collect();
    if args.json {
        let failed: Vec<Value> = failed
            .iter()
            .map(|(uri, reason)| json!({"uri": uri, "error": reason}))
            .collect();
        let indexed = if args.no_wait {
            Value::Null
        } else {
            json!(good)
        };
        println!(
            "{}",
            json!({
                "files": total, "indexed": indexed, "handed_over": tally.handed_over, "unchanged": tally.unchanged,
                "failed": failed, "seconds": seconds,
            })
        );
    } else {
        let verb = if args.no_wait {
            "handed over"
        } else {
            "indexed"
        };
        println!(
            "{total} files in {seconds:.1} s: {good} {verb}, {} unchanged, {} failed",
            tally.unchanged,
            failed.len()
        );
        for (uri, reason) in failed.iter().take(20) {
            eprintln!("  failed: {uri}\n          {reason}");
        }
        if failed.len() > 20 {
            let more = failed.len() - 20;
            eprintln!(
                "  and {more} more: va document list --collection {} --state FAILED",
                args.collection
            );
        }
    }
    // The lines above say it all.
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(""))
    }
}

async fn ensure_collection(client: &Client, name: &str) -> Outcome<()> {
    if client
        .find(&format!("/api/v1/collections/{}", encode(name)))
        .await?
        .is_none()
    {
        client
            .post("/api/v1/collections", &json!({"name": name}))
            .await?;
    }
    Ok(())
}

/// `key=value` words as a JSON object.
fn metadata(words: &[String]) -> Outcome<Value> {
    let mut fields = BTreeMap::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("`--meta {word}` is not key=value")))?;
        fields.insert(key, value);
    }
    Ok(json!(fields))
}

type Found = (Vec<Item>, Vec<(String, String)>);

/// The files under the paths, in order, and what could not be read.
fn find(paths: &[String]) -> Outcome<Found> {
    let mut items = Vec::new();
    let mut unreadable = Vec::new();
    let mut seen: HashMap<String, ()> = HashMap::new();
    for path in paths {
        if path.starts_with("http://") || path.starts_with("https://") {
            let name = path
                .rsplit('/')
                .find(|part| !part.is_empty())
                .unwrap_or(path)
                .to_owned();
            items.push(Item {
                uri: path.clone(),
                name,
                source: Source::Url,
            });
            continue;
        }
        let root = Path::new(path)
            .canonicalize()
            .map_err(|error| Failure::usage(format!("`{path}`: {error}")))?;
        for entry in WalkDir::new(&root).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let at = error.path().unwrap_or(&root).display().to_string();
                    unreadable.push((at, format!("read: {error}")));
                    continue;
                }
            };
            let hidden = entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
            if !entry.file_type().is_file() || hidden {
                continue;
            }
            let file = entry.path().to_path_buf();
            let name = match file.strip_prefix(&root) {
                Ok(inner) if !inner.as_os_str().is_empty() => inner.to_string_lossy().into_owned(),
                _ => entry.file_name().to_string_lossy().into_owned(),
            };
            let uri = file.to_string_lossy().into_owned();
            if seen.insert(uri.clone(), ()).is_none() {
                items.push(Item {
                    uri,
                    name,
                    source: Source::File(file),
                });
            }
        }
    }
    Ok((items, unreadable))
}

fn bar(files: u64) -> ProgressBar {
    let bar = ProgressBar::new(files);
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} files  {per_sec}  ETA {eta}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
