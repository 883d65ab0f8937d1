//! The folders of `va.yaml`: each is kept in its collection as long as the server runs.
//!
//! A folder that is not there yet, or goes away, is waited for; nothing is removed meanwhile. `va doctor` shows how
//! each stands.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use va_catalog::settings::FolderSettings;
use va_catalog::store::{CatalogError, CollectionConfig};
use va_catalog::{CollectionName, Internal, TenantScope};

use super::documents::SyncError;
use super::local::LocalDocuments;
use super::scan::{Root, Scan};
use super::sync::{Change, Progress, Tally, Wishes, sync};
use super::watch::Follower;
use crate::platform::Platform;

/// How often a folder that is not there is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// Time between two looks at documents under way.
const POLL: Duration = Duration::from_millis(250);

/// How a folder stands.
#[derive(Debug, Clone)]
struct Standing {
    path: PathBuf,
    collection: String,
    ok: bool,
    detail: String,
}

/// How the folders of the settings stand. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Folders(Arc<Mutex<Vec<Standing>>>);

impl Folders {
    /// For each folder a name, and what is good or bad about it.
    pub fn checks(&self) -> Vec<(String, Result<String, String>)> {
        let standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standings
            .iter()
            .map(|standing| {
                let name = format!("folder {}", standing.path.display());
                let detail = format!("{} (collection {})", standing.detail, standing.collection);
                (name, if standing.ok { Ok(detail) } else { Err(detail) })
            })
            .collect()
    }

    fn add(&self, folder: &FolderSettings) -> usize {
        let mut standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standings.push(Standing {
            path: folder.path.clone(),
            collection: folder.collection.clone(),
            ok: true,
            detail: "starting".to_owned(),
        });
        standings.len() - 1
    }

    fn set(&self, at: usize, result: Result<&str, &str>) {
        let mut standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = standings.get_mut(at) {
            standing.ok = result.is_ok();
            let (Ok(detail) | Err(detail)) = result;
            standing.detail = detail.to_owned();
        }
    }
}

/// Begins to keep the folders of the settings; ends when the platform stops.
pub fn start(platform: &Arc<Platform>) {
    for folder in platform.settings.folders.clone() {
        let at = platform.folders.add(&folder);
        let platform = platform.clone();
        tokio::spawn(async move {
            let stopping = platform.stopping().clone();
            tokio::select! {
                () = keep(&platform, &folder, at) => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

/// Keeps one folder, whatever happens to it.
async fn keep(platform: &Arc<Platform>, folder: &FolderSettings, at: usize) {
    let path = folder.path.display().to_string();
    let mut told = String::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Err(error) = keep_once(platform, folder, at).await else {
            told.clear();
            continue;
        };
        let message = error.to_string();
        platform.folders.set(at, Err(&message));
        // Told once, not every two seconds.
        if message != told {
            tracing::warn!(
                folder = path,
                collection = folder.collection,
                error = message,
                "a folder is not kept; it is tried again"
            );
            told = message;
        }
    }
}

/// Keeps the folder until it goes away.
async fn keep_once(
    platform: &Arc<Platform>,
    folder: &FolderSettings,
    at: usize,
) -> Result<(), SyncError> {
    let root = Root::open(&folder.path).map_err(|error| {
        SyncError(format!(
            "`{}`: {error}; it is waited for",
            folder.path.display()
        ))
    })?;
    let name = CollectionName::new(folder.collection.as_str()).map_err(SyncError::new)?;
    let collection =
        TenantScope::internal(platform.tenant.clone(), Internal::Chore).collection(name);
    match platform.catalog.collection(&collection).await {
        Err(CatalogError::NotFound { .. }) => {
            platform
                .catalog
                .create_collection(&collection, &new_collection()?)
                .await
                .map_err(SyncError::new)?;
        }
        other => {
            other.map_err(SyncError::new)?;
        }
    }
    let documents = LocalDocuments {
        platform,
        collection,
    };
    let wishes = Wishes {
        meta: folder.meta.clone(),
        keep_deleted: false,
        allow_empty: false,
        wait: true,
        poll: POLL,
    };
    let progress = Logged {
        collection: &folder.collection,
    };
    let mut follower = Follower::begin(&root)?;
    platform.folders.set(at, Ok("reading"));
    let listed = root.clone();
    let scan = tokio::task::spawn_blocking(move || {
        let mut scan = Scan::default();
        scan.add_root(&listed);
        scan
    })
    .await
    .map_err(SyncError::new)?;
    let tally = Tally::default();
    sync(&documents, scan, &wishes, &progress, &tally).await?;
    let report = tally.report().clone();
    tracing::info!(
        folder = %root.path().display(),
        collection = folder.collection,
        files = report.files,
        indexed = report.indexed,
        unchanged = report.unchanged,
        removed = report.removed.len(),
        failed = report.failed.len(),
        "a folder is kept"
    );
    let kept = format!("followed; {} files when last read as a whole", report.files);
    platform.folders.set(at, Ok(&kept));
    let trouble = |error: Option<&SyncError>| match error {
        Some(error) => {
            tracing::warn!(folder = %root.path().display(), %error, "changes of a folder wait; they are tried again");
            platform.folders.set(at, Err(&error.0));
        }
        None => platform.folders.set(at, Ok(&kept)),
    };
    follower
        .follow(&documents, &wishes, &progress, &trouble)
        .await;
    Ok(())
}

/// A collection as it is made when nothing is said about it.
fn new_collection() -> Result<CollectionConfig, SyncError> {
    let model = va_models::DEFAULT_EMBEDDER;
    let dims = va_models::dims_of(model).map_err(SyncError::new)?;
    Ok(CollectionConfig {
        model: Some(model.to_owned()),
        dims: Some(dims as u32),
        ..CollectionConfig::default()
    })
}

/// Changes as log lines.
struct Logged<'a> {
    collection: &'a str,
}

impl Progress for Logged<'_> {
    fn change(&self, change: &Change) {
        let collection = self.collection;
        match change {
            Change::Indexed { uri, version } => {
                tracing::debug!(collection, uri, %version, "indexed");
            }
            Change::Moved { from, to } => tracing::debug!(collection, from, to, "moved"),
            Change::Removed { uri } => tracing::debug!(collection, uri, "removed"),
            Change::Failed(note) => {
                tracing::warn!(
                    collection,
                    uri = note.uri,
                    reason = note.reason,
                    "a file of a folder was not indexed"
                );
            }
        }
    }
}
