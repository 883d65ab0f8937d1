//! `va index`: files, folders and URLs into a collection; unchanged files cost a hash, gone ones are removed.
//!
//! Files are handed to the server through the upload API; parsing, embedding and indexing is the server's `index`
//! pipeline. So the command can be interrupted and repeated at any time: what was handed over is finished by the
//! server, what was not is found again by its missing hash. How a collection is kept like a folder is in
//! [`crate::folder`]; here are the options, the way over HTTP and what is shown.

mod remote;
mod show;
mod urls;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use va_catalog::{Reader, Readers};

use self::remote::RemoteDocuments;
use self::show::Bar;
use super::client::{Client, Failure, Outcome, encode};
use crate::folder::{self, Follower, Root, Scan, Tally, Wishes};

/// How often progress is asked for: a change should show soon.
const POLL: Duration = Duration::from_millis(50);

/// Index files, directories or URLs, and keep the collection like the directories.
#[derive(Args)]
#[command(after_help = "\
Of a directory, documents whose file is gone are removed from search, after everything new is searchable. Left out are \
names that begin with a dot, and links to directories; links to files are followed. A document's URI is the file's \
path, so a directory that another machine indexed under the same path is taken for the same one.

Examples:
  va index ./handbook --collection help --meta lang=zh
  va index ./salaries --collection help --reader role:payroll
  va index ./handbook --collection help --dry-run
  va index ./handbook --collection help --watch")]
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
    /// Who may read the documents, `user:ID` or `role:NAME`; may be given several times. Left out, a new document is
    /// everybody's in the tenant, and one that is there keeps its readers.
    #[arg(long = "reader", value_name = "READER")]
    pub readers: Vec<Reader>,
    /// Say what would happen, and change nothing.
    #[arg(long, conflicts_with_all = ["watch", "no_wait"])]
    pub dry_run: bool,
    /// Go on after it: index, move and remove as the directories change, until Ctrl-C.
    #[arg(long, conflicts_with = "no_wait")]
    pub watch: bool,
    /// Leave documents whose file is gone.
    #[arg(long)]
    pub keep_deleted: bool,
    /// Remove documents also when a directory holds no file at all any more.
    #[arg(long)]
    pub allow_empty: bool,
    /// Do not wait until the documents are searchable. A renamed file may be missing from search for a moment.
    #[arg(long)]
    pub no_wait: bool,
    /// Print the result as JSON; with `--watch`, one object a line.
    #[arg(long)]
    pub json: bool,
}

/// What the paths of the command are.
struct Given {
    roots: Vec<Root>,
    files: Vec<std::path::PathBuf>,
    urls: Vec<String>,
}

pub async fn index(client: &Client, args: &IndexArgs) -> Outcome<()> {
    let started = Instant::now();
    let meta = metadata(&args.meta)?;
    let given = given(args)?;
    let exists = collection_exists(client, args).await?;
    let readers = match args.readers.as_slice() {
        [] => None,
        readers => Some(
            Readers::try_from(readers.to_vec())
                .map_err(|error| Failure::usage(format!("`--reader`: {error}")))?,
        ),
    };
    let documents = RemoteDocuments::new(client, &args.collection, exists, readers);
    let wishes = Wishes {
        meta,
        keep_deleted: args.keep_deleted,
        allow_empty: args.allow_empty,
        wait: !args.no_wait,
        poll: POLL,
    };
    // Listening begins before reading, so that no change falls in between.
    let followers = if args.watch {
        let listening = given.roots.iter().map(Follower::begin);
        listening.collect::<Result<Vec<_>, _>>()?
    } else {
        Vec::new()
    };
    let scan = scan(&given).await?;
    let bar = Bar::new((scan.files.len() + scan.refused.len() + given.urls.len()) as u64);
    if args.dry_run {
        let plan = folder::plan(&documents, scan, &wishes, &bar).await;
        bar.clear();
        return show::plan(args, &plan?, &given.urls);
    }
    let tally = Tally::default();
    let run = async {
        folder::sync(&documents, scan, &wishes, &bar, &tally).await?;
        if !given.urls.is_empty() {
            urls::index(client, &documents, &wishes, &given.urls, &bar, &tally).await?;
        }
        Outcome::Ok(())
    };
    let interrupted = tokio::select! {
        result = run => { bar.clear(); result?; false }
        () = super::up::wait_for_signal() => { bar.clear(); true }
    };
    let report = tally.report().clone();
    if interrupted {
        let who = if client.is_own() {
            "the next `va` command that holds this data directory"
        } else {
            "the server"
        };
        return Err(Failure::failed(format!(
            "interrupted; {} documents were handed over and are finished by {who}. Run the same command again to go on",
            report.handed_over
        )));
    }
    if report.files == 0 && report.removed.is_empty() && !args.watch {
        return Err(Failure::failed(format!(
            "no file under {}",
            args.paths.join(", ")
        )));
    }
    let shown = show::report(args, &report, started.elapsed());
    if !args.watch {
        return shown;
    }
    // What failed was told, and is tried again when it changes.
    watch::until_signal(&documents, given.roots, followers, wishes, args.json).await
}

/// Sorts the paths; what is not there is a wrong command.
fn given(args: &IndexArgs) -> Outcome<Given> {
    let mut given = Given {
        roots: Vec::new(),
        files: Vec::new(),
        urls: Vec::new(),
    };
    for path in &args.paths {
        if path.starts_with("http://") || path.starts_with("https://") {
            given.urls.push(path.clone());
            continue;
        }
        let wrong = |error: std::io::Error| Failure::usage(format!("`{path}`: {error}"));
        if Path::new(path).metadata().map_err(wrong)?.is_dir() {
            given
                .roots
                .push(Root::open(Path::new(path)).map_err(wrong)?);
        } else {
            given.files.push(path.into());
        }
    }
    if args.watch && given.roots.len() < args.paths.len() {
        return Err(Failure::usage(
            "`--watch` follows directories: give directories only, and index files and URLs without it",
        ));
    }
    Ok(given)
}

async fn scan(given: &Given) -> Outcome<Scan> {
    let (roots, files) = (given.roots.clone(), given.files.clone());
    tokio::task::spawn_blocking(move || {
        let mut scan = Scan::default();
        for root in &roots {
            scan.add_root(root);
        }
        for file in &files {
            scan.add_file(file)
                .map_err(|error| Failure::usage(format!("`{}`: {error}", file.display())))?;
        }
        Ok(scan)
    })
    .await?
}

/// Whether the collection is there; it is made, unless nothing is to be changed.
async fn collection_exists(client: &Client, args: &IndexArgs) -> Outcome<bool> {
    let path = format!("/api/v1/collections/{}", encode(&args.collection));
    if client.find(&path).await?.is_some() {
        return Ok(true);
    }
    if args.dry_run {
        return Ok(false);
    }
    client
        .post("/api/v1/collections", &json!({"name": args.collection}))
        .await?;
    Ok(true)
}

/// `key=value` words as fields.
fn metadata(words: &[String]) -> Outcome<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("`--meta {word}` is not key=value")))?;
        fields.insert(key.to_owned(), value.to_owned());
    }
    Ok(fields)
}

/// Metadata as a value of a query.
fn meta_json(meta: &BTreeMap<String, String>) -> Value {
    json!(meta)
}
