//! Many small objects into a directory at once, durable when the call returns.
//!
//! The content before the name: a name never leads to half a file. So all files are written under other names, synced,
//! renamed, and the names are synced. A file system is synced as a whole ([`sync_together`]) where that is to be had and
//! there are enough files to make it pay: a file that is synced alone costs about a millisecond of waiting for the disk
//! and more processor time than writing it. What else waits to be written to the same file system is written then too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::INCOMING;

/// Fewer files than this are synced one by one, whatever else the file system has to write.
const TOGETHER_FILES: usize = if cfg!(target_os = "linux") {
    8
} else {
    usize::MAX
};

/// Stores contents, by their hashes, at the places of those.
pub(super) fn put_all(root: &Path, contents: &BTreeMap<String, Bytes>) -> io::Result<()> {
    if contents.is_empty() {
        return Ok(());
    }
    let incoming = root.join(INCOMING);
    std::fs::create_dir_all(&incoming)?;
    let mut batch = Batch {
        // Opened before anything is written: the sync tells of errors since then.
        root: File::open(root)?,
        together: contents.len() >= TOGETHER_FILES,
        moves: Vec::with_capacity(contents.len()),
    };
    let mut dirs = BTreeSet::from([root.to_owned()]);
    for (hash, bytes) in contents {
        let (dir, rest) = hash.split_at(2);
        let dir = root.join(dir);
        let target = dir.join(rest);
        // What is there already may be of a call that has not synced its name yet.
        dirs.insert(dir);
        if !target.exists() {
            batch.write(
                incoming.join(uuid::Uuid::now_v7().simple().to_string()),
                target,
                bytes,
            )?;
        }
    }
    batch.move_in(&dirs)
}

/// Files that are written and have no lasting names yet. Dropped before they have, they are removed.
struct Batch {
    root: File,
    together: bool,
    /// From, to.
    moves: Vec<(PathBuf, PathBuf)>,
}

impl Batch {
    fn write(&mut self, temporary: PathBuf, target: PathBuf, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        self.moves.push((temporary, target));
        file.write_all(bytes)?;
        if !self.together {
            file.sync_all()?;
        }
        Ok(())
    }

    /// Gives the files their names. `dirs`: every directory that holds one of them, and the one above those.
    fn move_in(mut self, dirs: &BTreeSet<PathBuf>) -> io::Result<()> {
        if self.together && !self.moves.is_empty() {
            sync_together(&self.root)?;
        }
        for dir in dirs {
            std::fs::create_dir_all(dir)?;
        }
        while let Some((temporary, target)) = self.moves.last() {
            std::fs::rename(temporary, target)?;
            self.moves.pop();
        }
        if self.together {
            return sync_together(&self.root);
        }
        for dir in dirs {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for (temporary, _) in &self.moves {
            // The error that led here is the one to tell.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Syncs everything of the file system that holds the file.
#[cfg(target_os = "linux")]
fn sync_together(file: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_together(_: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
