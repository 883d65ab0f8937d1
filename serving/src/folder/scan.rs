//! Finding the files of a folder.
//!
//! What is found: regular files and links to files, under their path as URI. What is not: names that begin with a dot
//! and what lies in such folders; links to folders, which are not followed, so that no loop can arise; devices, sockets
//! and pipes. A name that is not UTF-8 is refused, because a URI is text. What cannot be read is told and does not
//! stop the rest; what vanishes meanwhile is as if it had not been there.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

/// A file to index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    pub uri: String,
    /// The path inside the folder.
    pub name: String,
    pub path: PathBuf,
}

/// Something about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The path, with replacement characters where it is not UTF-8.
    pub uri: String,
    pub reason: String,
}

/// A folder that is kept, by its canonical path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
    uri: String,
}

impl Root {
    /// The folder at `path`, which must be there and have a UTF-8 path.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        if !path.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let uri = path
            .to_str()
            .ok_or_else(|| std::io::Error::other("the path is not UTF-8; rename the folder"))?
            .to_owned();
        Ok(Self { path, uri })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A part of the file system whose documents are to be what the files are: a path, and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    pub uri: String,
    /// A whole folder, of which it would be odd to find nothing.
    pub whole: bool,
}

impl Area {
    /// Whether the URI is the path or lies below it.
    pub fn holds(&self, uri: &str) -> bool {
        lies_in(uri, &self.uri)
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Scan {
    pub files: Vec<FoundFile>,
    pub areas: Vec<Area>,
    /// What could not be read or cannot be indexed.
    pub refused: Vec<Note>,
    /// What is passed over on purpose, and why.
    pub skipped: Vec<Note>,
    /// Paths below which nothing is known.
    pub unread: Vec<String>,
    seen: HashSet<String>,
}

impl Scan {
    /// Adds a whole folder.
    pub fn add_root(&mut self, root: &Root) {
        self.areas.push(Area {
            uri: root.uri.clone(),
            whole: true,
        });
        self.walk(root, &root.path);
    }

    /// Adds what is at a path in the folder now: a file, a folder, or nothing any more.
    pub fn add_part(&mut self, root: &Root, path: &Path) {
        if path == root.path {
            return self.add_root(root);
        }
        let (Ok(inner), Some(uri)) = (path.strip_prefix(&root.path), path.to_str()) else {
            return;
        };
        if inner.iter().any(hidden) {
            return;
        }
        self.areas.push(Area {
            uri: uri.to_owned(),
            whole: false,
        });
        if path.symlink_metadata().is_ok() {
            self.walk(root, path);
        }
    }

    /// Adds a single file; its neighbours are no concern.
    pub fn add_file(&mut self, path: &Path) -> std::io::Result<()> {
        let path = path.canonicalize()?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        self.push(path, name);
        Ok(())
    }

    /// Whether nothing is known about the URI because something above it could not be read.
    pub fn is_unread(&self, uri: &str) -> bool {
        self.unread.iter().any(|unread| lies_in(uri, unread))
    }

    fn walk(&mut self, root: &Root, from: &Path) {
        let entries = WalkDir::new(from)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        for entry in entries {
            match entry {
                Ok(entry) => self.take(root, &entry),
                Err(error) => {
                    let vanished = error
                        .io_error()
                        .is_some_and(|error| error.kind() == ErrorKind::NotFound);
                    if !vanished {
                        let at = error.path().unwrap_or(from).to_string_lossy().into_owned();
                        self.unread.push(at.clone());
                        let reason = error
                            .io_error()
                            .map_or_else(|| error.to_string(), ToString::to_string);
                        let reason = format!("read: {reason}");
                        self.refused.push(Note { uri: at, reason });
                    }
                }
            }
        }
    }

    fn take(&mut self, root: &Root, entry: &DirEntry) {
        let kind = entry.file_type();
        if kind.is_dir() {
            return;
        }
        let path = entry.path();
        let reason = if kind.is_file() {
            None
        } else if kind.is_symlink() {
            match path.metadata() {
                Ok(target) if target.is_file() => None,
                Ok(target) if target.is_dir() => Some("a link to a folder is not followed".into()),
                Ok(_) => Some("a link to something that is not a file".into()),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    Some("a link to something that is not there".into())
                }
                Err(error) => Some(format!("a link that cannot be followed: {error}")),
            }
        } else {
            Some("not a regular file".to_owned())
        };
        match reason {
            Some(reason) => self.skipped.push(Note {
                uri: path.to_string_lossy().into_owned(),
                reason,
            }),
            None => {
                let name = match path.strip_prefix(&root.path) {
                    Ok(inner) => inner.to_string_lossy().into_owned(),
                    Err(_) => entry.file_name().to_string_lossy().into_owned(),
                };
                self.push(path.to_owned(), name);
            }
        }
    }

    fn push(&mut self, path: PathBuf, name: String) {
        let Some(uri) = path.to_str().map(ToOwned::to_owned) else {
            self.refused.push(Note {
                uri: path.to_string_lossy().into_owned(),
                reason: "the name is not UTF-8, so that it cannot be a URI; rename the file".into(),
            });
            return;
        };
        if self.seen.insert(uri.clone()) {
            self.files.push(FoundFile { uri, name, path });
        }
    }
}

/// Whether a name begins with a dot.
pub(super) fn hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn lies_in(uri: &str, area: &str) -> bool {
    match uri.strip_prefix(area) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || area.ends_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn scan(root: &Path) -> Scan {
        let mut scan = Scan::default();
        scan.add_root(&Root::open(root).unwrap());
        scan
    }

    #[test]
    fn files_and_links_to_files_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b 空格.md", "a\nb.md", ".hidden.md"] {
            std::fs::write(at(name), "x").unwrap();
        }
        for name in ["sub", ".git"] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("c.md"), "x").unwrap();
        }
        std::os::unix::fs::symlink(at("sub/c.md"), at("link.md")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("sub/loop")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("broken.md")).unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff.md"));
        std::fs::write(odd, "x").unwrap();

        let found = scan(dir.path());
        let names: Vec<&str> = found.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a\nb.md", "b 空格.md", "link.md", "sub/c.md"]);
        assert_eq!(found.refused.len(), 1);
        assert!(found.refused[0].uri.ends_with("\u{fffd}.md"));
        assert!(found.refused[0].reason.contains("not UTF-8"));
        let skipped: Vec<&str> = found
            .skipped
            .iter()
            .map(|note| note.reason.as_str())
            .collect();
        assert_eq!(
            skipped,
            [
                "a link to something that is not there",
                "a link to a folder is not followed"
            ]
        );
    }

    #[test]
    fn a_part_is_what_is_there_now() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(root.path().join("a/.b")).unwrap();
        std::fs::write(root.path().join("a/x.md"), "x").unwrap();
        std::fs::write(root.path().join("a/.b/y.md"), "x").unwrap();
        let part = |name: &str| {
            let mut scan = Scan::default();
            scan.add_part(&root, &root.path().join(name));
            (scan.files.len(), scan.areas.len())
        };
        assert_eq!(part("a"), (1, 1));
        assert_eq!(part("a/x.md"), (1, 1));
        assert_eq!(part("a/gone.md"), (0, 1));
        assert_eq!(part("a/.b"), (0, 0));
        assert_eq!(part("a/.b/y.md"), (0, 0));
    }

    #[test]
    fn an_area_holds_what_lies_in_it() {
        let area = |uri: &str| Area {
            uri: uri.into(),
            whole: true,
        };
        assert!(area("/docs").holds("/docs/a.md"));
        assert!(area("/docs").holds("/docs"));
        assert!(!area("/docs").holds("/docs2/a.md"));
        assert!(area("/").holds("/a.md"));
    }
}
