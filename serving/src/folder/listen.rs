//! Hearing from the operating system which paths of a folder change.
//!
//! What is heard is a hint where to look, never what happened. Nothing is read ahead: until somebody listens, the
//! kernel's own bounded queue holds the events, and when that overflows, everything may have changed. Directories that
//! appear are listened to as soon as they are heard of; the hint names the directory, so what came into it before is
//! found by looking at it.

use std::collections::BTreeSet;
use std::path::PathBuf;

#[cfg(target_os = "linux")]
pub use self::linux::Listener;
#[cfg(not(target_os = "linux"))]
pub use self::polling::Listener;

/// Beyond so many changed paths the whole folder is looked at: it bounds what is remembered.
const PATHS_MAX: usize = 10_000;

/// Where something has changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    pub paths: BTreeSet<PathBuf>,
    /// Everything may have changed.
    pub all: bool,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        !self.all && self.paths.is_empty()
    }

    fn add(&mut self, path: PathBuf) {
        if self.all {
            return;
        }
        self.paths.insert(path);
        if self.paths.len() > PATHS_MAX {
            self.add_all();
        }
    }

    pub fn add_all(&mut self) {
        self.all = true;
        self.paths.clear();
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::ffi::OsString;
    use std::io::{Error, ErrorKind};
    use std::path::{Path, PathBuf};

    use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
    use tokio::io::unix::AsyncFd;
    use walkdir::WalkDir;

    use super::Changes;
    use crate::folder::SyncError;
    use crate::folder::scan::hidden;

    /// Room for some hundred events.
    const BUFFER_BYTES: usize = 64 << 10;

    /// Hears of one folder and what is in it, through inotify.
    pub struct Listener {
        root: PathBuf,
        inotify: AsyncFd<Inotify>,
        folders: HashMap<WatchDescriptor, PathBuf>,
        buffer: Vec<u8>,
    }

    impl Listener {
        /// Listens from now on.
        #[expect(
            deprecated,
            reason = "the replacement is unsafe code; an `Inotify` owns its descriptor as long as it lives"
        )]
        pub fn begin(root: &Path) -> Result<Self, SyncError> {
            let failed = |error: Error| SyncError(format!("watch `{}`: {error}", root.display()));
            let inotify = AsyncFd::new(Inotify::init().map_err(failed)?).map_err(failed)?;
            let mut listener = Self {
                root: root.to_owned(),
                inotify,
                folders: HashMap::new(),
                buffer: vec![0; BUFFER_BYTES],
            };
            listener.add_folders(root.to_owned())?;
            Ok(listener)
        }

        /// Waits until something is heard and adds it. Nothing is lost when the call is dropped.
        pub async fn hear(&mut self, changes: &mut Changes) -> Result<(), SyncError> {
            let events = loop {
                let mut ready = self.inotify.readable_mut().await.map_err(SyncError::new)?;
                let buffer = &mut self.buffer;
                let read = ready.try_io(|inotify| {
                    let events = inotify.get_mut().read_events(buffer)?;
                    let owned =
                        events.map(|event| (event.wd, event.mask, event.name.map(OsString::from)));
                    Ok(owned.collect::<Vec<_>>())
                });
                match read {
                    Ok(events) => break events.map_err(SyncError::new)?,
                    // It was not ready after all.
                    Err(_) => continue,
                }
            };
            for (descriptor, mask, name) in events {
                if mask.contains(EventMask::Q_OVERFLOW) {
                    changes.add_all();
                    self.add_folders(self.root.clone())?;
                    continue;
                }
                if mask.contains(EventMask::IGNORED) {
                    self.folders.remove(&descriptor);
                    continue;
                }
                let (Some(folder), Some(name)) = (self.folders.get(&descriptor), name) else {
                    continue;
                };
                if hidden(&name) {
                    continue;
                }
                let path = folder.join(name);
                changes.add(path.clone());
                if mask.contains(EventMask::ISDIR) {
                    if mask.contains(EventMask::MOVED_FROM) {
                        self.forget(&path);
                    } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
                        self.add_folders(path)?;
                    }
                }
            }
            Ok(())
        }

        /// Listens to a folder and those in it. What cannot be read is the business of who looks at it.
        fn add_folders(&mut self, from: PathBuf) -> Result<(), SyncError> {
            let mask = WatchMask::CREATE
                | WatchMask::DELETE
                | WatchMask::MOVE
                | WatchMask::MODIFY
                | WatchMask::CLOSE_WRITE
                | WatchMask::ATTRIB
                | WatchMask::ONLYDIR
                | WatchMask::DONT_FOLLOW
                | WatchMask::EXCL_UNLINK;
            let entries = WalkDir::new(from)
                .into_iter()
                .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
            let mut watches = self.inotify.get_ref().watches();
            for entry in entries.flatten().filter(|entry| entry.file_type().is_dir()) {
                match watches.add(entry.path(), mask) {
                    Ok(descriptor) => {
                        self.folders.insert(descriptor, entry.into_path());
                    }
                    Err(error) if error.kind() == ErrorKind::StorageFull => {
                        return Err(SyncError(format!(
                            "watch `{}`: the system's limit of watched directories is reached; raise it: \
                             sysctl fs.inotify.max_user_watches=1048576",
                            entry.path().display()
                        )));
                    }
                    // Gone again, or not to be read.
                    Err(_) => {}
                }
            }
            Ok(())
        }

        /// A folder that moved away: where it goes, inside the root, it is heard of under its new path.
        fn forget(&mut self, path: &Path) {
            let inside: Vec<WatchDescriptor> = self
                .folders
                .iter()
                .filter(|(_, folder)| folder.starts_with(path))
                .map(|(descriptor, _)| descriptor.clone())
                .collect();
            let mut watches = self.inotify.get_ref().watches();
            for descriptor in inside {
                self.folders.remove(&descriptor);
                // Gone already is as good.
                let _ = watches.remove(descriptor);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod polling {
    use std::path::Path;
    use std::time::Duration;

    use super::Changes;
    use crate::folder::SyncError;

    /// How often everything is looked at where the system is not asked for changes.
    const LOOK: Duration = Duration::from_secs(2);

    /// Takes everything to have changed, again and again: unchanged files cost a hash.
    pub struct Listener(());

    impl Listener {
        pub fn begin(_root: &Path) -> Result<Self, SyncError> {
            Ok(Self(()))
        }

        pub async fn hear(&mut self, changes: &mut Changes) -> Result<(), SyncError> {
            tokio::time::sleep(LOOK).await;
            changes.add_all();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hints_become_one_look_at_everything() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        for n in 0..PATHS_MAX {
            changes.add(format!("/d/{n}").into());
        }
        assert_eq!((changes.paths.len(), changes.all), (PATHS_MAX, false));
        changes.add("/d/one more".into());
        changes.add("/d/another".into());
        assert_eq!((changes.paths.len(), changes.all), (0, true));
    }
}
