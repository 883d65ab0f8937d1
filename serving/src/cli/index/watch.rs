//! `va index --watch`: following the directories after the first run, one line a change.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::remote::RemoteDocuments;
use crate::cli::client::Outcome;
use crate::cli::table::printable;
use crate::cli::up::wait_for_signal;
use crate::folder::{Change, Follower, Progress, Root, Scan, SyncError, Tally, Wishes, sync};

/// How often a directory that has gone is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Follows until Ctrl-C.
pub async fn until_signal(
    documents: &RemoteDocuments<'_>,
    roots: Vec<Root>,
    followers: Vec<Follower>,
    wishes: Wishes,
    json: bool,
) -> Outcome<()> {
    if !json {
        println!("Following {} directories. Stop with Ctrl-C.", roots.len());
    }
    let kept = roots
        .into_iter()
        .zip(followers)
        .map(|(root, follower)| keep(documents, root, follower, &wishes, json));
    tokio::select! {
        _ = futures::future::join_all(kept) => {}
        () = wait_for_signal() => {}
    }
    Ok(())
}

async fn keep(
    documents: &RemoteDocuments<'_>,
    root: Root,
    mut follower: Follower,
    wishes: &Wishes,
    json: bool,
) {
    let path = root.path().to_owned();
    let shown = printable(&path.to_string_lossy());
    let progress = Lines {
        root: &path,
        json,
        began: Mutex::new(Instant::now()),
    };
    let trouble = |error: Option<&SyncError>| match error {
        Some(error) => eprintln!("warning: changes wait and are tried again: {error}"),
        None => eprintln!("the changes that waited are applied"),
    };
    loop {
        follower
            .follow(documents, wishes, &progress, &trouble)
            .await;
        eprintln!("warning: `{shown}` is gone; nothing is removed, its return is waited for");
        let mut looks = tokio::time::interval(LOOK);
        follower = loop {
            looks.tick().await;
            match back(documents, &path, wishes, &progress).await {
                Ok(Some(follower)) => break follower,
                Ok(None) => {}
                Err(error) => eprintln!("warning: {error}"),
            }
        };
        eprintln!("`{shown}` is back");
    }
}

/// Takes up a directory that is there again, as a whole; `None` while it is not.
async fn back(
    documents: &RemoteDocuments<'_>,
    path: &Path,
    wishes: &Wishes,
    progress: &dyn Progress,
) -> Result<Option<Follower>, SyncError> {
    let Ok(root) = Root::open(path) else {
        return Ok(None);
    };
    let follower = Follower::begin(&root)?;
    let scan = tokio::task::spawn_blocking(move || {
        let mut scan = Scan::default();
        scan.add_root(&root);
        scan
    })
    .await
    .map_err(SyncError::new)?;
    sync(documents, scan, wishes, progress, &Tally::default()).await?;
    Ok(Some(follower))
}

/// One line a change.
struct Lines<'a> {
    root: &'a Path,
    json: bool,
    began: Mutex<Instant>,
}

impl Lines<'_> {
    /// The path inside the directory, where it lies inside.
    fn short(&self, uri: &str) -> String {
        let path = Path::new(uri);
        let inner = path.strip_prefix(self.root).unwrap_or(path);
        printable(&inner.to_string_lossy())
    }
}

impl Progress for Lines<'_> {
    fn begin(&self) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn change(&self, change: &Change) {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            let line = match change {
                Change::Indexed { uri, version } => {
                    json!({"change": "indexed", "uri": uri, "version": version, "seconds": seconds})
                }
                Change::Moved { from, to } => {
                    json!({"change": "moved", "uri": to, "from": from, "seconds": seconds})
                }
                Change::Removed { uri } => {
                    json!({"change": "removed", "uri": uri, "seconds": seconds})
                }
                Change::Failed(note) => {
                    json!({"change": "failed", "uri": note.uri, "error": note.reason})
                }
            };
            println!("{line}");
            return;
        }
        match change {
            Change::Indexed { uri, version } => {
                println!("indexed {} (v{version}) {seconds:.2} s", self.short(uri));
            }
            Change::Moved { from, to } => {
                println!(
                    "moved   {} -> {} {seconds:.2} s",
                    self.short(from),
                    self.short(to)
                );
            }
            Change::Removed { uri } => println!("removed {} {seconds:.2} s", self.short(uri)),
            Change::Failed(note) => {
                eprintln!(
                    "failed  {}: {}",
                    self.short(&note.uri),
                    printable(&note.reason)
                );
            }
        }
    }
}
