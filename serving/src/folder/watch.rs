//! Following a folder: what changes is brought into the collection a moment later.
//!
//! The operating system tells which paths changed ([`super::listen`]); that is only a hint where to look. After a moment
//! of quiet, [`sync()`] runs over just those paths as they are then: so temporary files of editors come and go unseen,
//! a rename is seen as one, and a file that is still being written is simply indexed again. When hints were lost, or
//! there are too many, the whole folder is looked at. When the folder itself goes away, nothing is removed: its return
//! is waited for.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::documents::{Documents, SyncError};
use super::listen::{Changes, Listener};
use super::scan::{Root, Scan};
use super::sync::{Progress, Tally, Wishes, sync};

/// So long nothing may have changed before changes are looked at ...
const QUIET: Duration = Duration::from_millis(200);
/// ... but no longer than this after the first.
const QUIET_MAX: Duration = Duration::from_millis(800);
/// How often it is checked that the folder is still the same.
const ROOT_LOOK: Duration = Duration::from_secs(2);
/// Wait after a failure, doubled up to the longer.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Which folder it is, so that another one at the same path is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok().filter(std::fs::Metadata::is_dir)?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// Hears of the changes of one folder from the moment it is made.
pub struct Follower {
    root: Root,
    identity: Option<Identity>,
    listener: Listener,
}

impl Follower {
    /// Begins to listen. Look at the whole folder after this, so that nothing falls in between.
    pub fn begin(root: &Root) -> Result<Self, SyncError> {
        Ok(Self {
            root: root.clone(),
            identity: Identity::of(root.path()),
            listener: Listener::begin(root.path())?,
        })
    }

    /// Applies changes as they come, until the folder is gone, or the call is dropped. `trouble` is told when changes
    /// cannot be applied and are tried again, and when that is over.
    pub async fn follow(
        &mut self,
        documents: &dyn Documents,
        wishes: &Wishes,
        progress: &dyn Progress,
        trouble: &(dyn Fn(Option<&SyncError>) + Send + Sync),
    ) {
        let mut retry = RETRY;
        let mut in_trouble = false;
        let mut changes = Changes::default();
        loop {
            let heard = self.changed(&mut changes).await;
            if !self.is_there() {
                return;
            }
            let result = match heard {
                Ok(()) => {
                    progress.begin();
                    let (root, changed) = (self.root.clone(), changes.clone());
                    let scan = tokio::task::spawn_blocking(move || scan_of(&root, &changed)).await;
                    match scan {
                        // The folder may have gone while it was looked at.
                        Ok(_) if !self.is_there() => return,
                        Ok(scan) => {
                            sync(documents, scan, wishes, progress, &Tally::default()).await
                        }
                        Err(error) => Err(SyncError::new(error)),
                    }
                }
                Err(error) => {
                    changes.add_all();
                    Err(error)
                }
            };
            match result {
                Ok(()) => {
                    changes = Changes::default();
                    if in_trouble {
                        trouble(None);
                    }
                    (retry, in_trouble) = (RETRY, false);
                }
                // They are kept, and applied with what changes until then.
                Err(error) => {
                    if !in_trouble {
                        trouble(Some(&error));
                    }
                    in_trouble = true;
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn is_there(&self) -> bool {
        self.identity.is_some() && Identity::of(self.root.path()) == self.identity
    }

    /// Waits for a change, if none waits, and then for quiet. Returns early when the folder is gone.
    async fn changed(&mut self, changes: &mut Changes) -> Result<(), SyncError> {
        while changes.is_empty() && self.is_there() {
            if let Ok(heard) = tokio::time::timeout(ROOT_LOOK, self.listener.hear(changes)).await {
                heard?;
            }
        }
        let first = Instant::now();
        while first.elapsed() < QUIET_MAX {
            match tokio::time::timeout(QUIET, self.listener.hear(changes)).await {
                Ok(heard) => heard?,
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// The changed paths as they are now; one inside another is looked at with it.
fn scan_of(root: &Root, changes: &Changes) -> Scan {
    let mut scan = Scan::default();
    if changes.all {
        scan.add_root(root);
        return scan;
    }
    let mut above: Option<&Path> = None;
    for path in &changes.paths {
        // In order, a folder comes before what is in it. The root itself changes with everything in it.
        if path == root.path() || above.is_some_and(|above| path.starts_with(above)) {
            continue;
        }
        above = Some(path);
        scan.add_part(root, path);
    }
    scan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_changed_folder_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/b.md"), "x").unwrap();
        std::fs::write(root.path().join("a.md"), "x").unwrap();
        let paths = ["", "a", "a/b.md", "a.md", "gone"].map(|name| match name {
            "" => root.path().to_owned(),
            name => root.path().join(name),
        });
        let changes = Changes {
            paths: paths.into(),
            all: false,
        };
        let scan = scan_of(&root, &changes);
        assert_eq!((scan.files.len(), scan.areas.len()), (2, 3));
    }
}
