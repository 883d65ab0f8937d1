//! Where the indexes of collections lie: `DIR/TENANT/COLLECTION`, each with its name in `collection.json`.
//!
//! Names are checked by the catalog (letters of any script, digits, `.`, `_`, `-`), so they are safe as file names;
//! only long ones are not, and those become a hash. Names never begin with `~`, which marks what is not a collection.

use std::fs;
use std::path::{Path, PathBuf};

use va_catalog::CollectionRef;

use crate::seam::TextError;

/// File systems allow 255 bytes; some room is left for a prefix.
const FILE_NAME_BYTES_MAX: usize = 200;
const NAME_FILE: &str = "collection.json";
/// Tantivy's list of segments: it is there when the index is.
const META_FILE: &str = "meta.json";
const DROPPED_PREFIX: &str = "~dropped-";

pub(crate) struct IndexDirectory {
    root: PathBuf,
}

impl IndexDirectory {
    /// Opens the directory, creating it if missing, and removes what a crash left of dropped collections.
    pub fn open(root: PathBuf) -> Result<Self, TextError> {
        create_dir(&root)?;
        let directory = Self { root };
        for dir in directory.collection_dirs()? {
            if file_name(&dir).starts_with(DROPPED_PREFIX) {
                remove_dir(&dir)?;
            }
        }
        Ok(directory)
    }

    /// Whether the collection has an index.
    pub fn exists(&self, name: &CollectionRef) -> bool {
        self.path(name).join(META_FILE).exists()
    }

    /// The collection's directory, made if missing.
    pub fn create(&self, name: &CollectionRef) -> Result<PathBuf, TextError> {
        let dir = self.path(name);
        let file = dir.join(NAME_FILE);
        if !file.exists() {
            create_dir(&dir)?;
            let json = serde_json::to_vec(name).map_err(TextError::Record)?;
            fs::write(&file, json).map_err(|source| TextError::Io {
                doing: "write",
                path: file,
                source,
            })?;
        }
        Ok(dir)
    }

    /// Removes the collection's directory. It is renamed first, so that a crash leaves no half of an index.
    pub fn remove(&self, name: &CollectionRef) -> Result<(), TextError> {
        let dir = self.path(name);
        let dropped = dir.with_file_name(format!("{DROPPED_PREFIX}{}", file_name(&dir)));
        if dropped.exists() {
            remove_dir(&dropped)?;
        }
        fs::rename(&dir, &dropped).map_err(|source| TextError::Io {
            doing: "rename",
            path: dir,
            source,
        })?;
        remove_dir(&dropped)
    }

    /// The collections that have an index, sorted.
    pub fn collections(&self) -> Result<Vec<CollectionRef>, TextError> {
        let mut names = Vec::new();
        for dir in self.collection_dirs()? {
            if file_name(&dir).starts_with(DROPPED_PREFIX) || !dir.join(META_FILE).exists() {
                continue;
            }
            let path = dir.join(NAME_FILE);
            let json = fs::read(&path).map_err(|source| TextError::Io {
                doing: "read",
                path,
                source,
            })?;
            names.push(serde_json::from_slice(&json).map_err(TextError::Record)?);
        }
        names.sort();
        Ok(names)
    }

    fn path(&self, name: &CollectionRef) -> PathBuf {
        self.root
            .join(safe(name.tenant.as_str()))
            .join(safe(name.collection.as_str()))
    }

    /// All directories two levels down.
    fn collection_dirs(&self) -> Result<Vec<PathBuf>, TextError> {
        let mut dirs = Vec::new();
        for tenant in sub_dirs(&self.root)? {
            dirs.extend(sub_dirs(&tenant)?);
        }
        Ok(dirs)
    }
}

/// A checked name as file name.
fn safe(name: &str) -> String {
    if name.len() <= FILE_NAME_BYTES_MAX {
        name.to_owned()
    } else {
        format!("~{}", blake3::hash(name.as_bytes()).to_hex())
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn sub_dirs(dir: &Path) -> Result<Vec<PathBuf>, TextError> {
    let error = |source| TextError::Io {
        doing: "list",
        path: dir.to_owned(),
        source,
    };
    let mut dirs = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    Ok(dirs)
}

fn create_dir(dir: &Path) -> Result<(), TextError> {
    fs::create_dir_all(dir).map_err(|source| TextError::Io {
        doing: "create directory",
        path: dir.to_owned(),
        source,
    })
}

fn remove_dir(dir: &Path) -> Result<(), TextError> {
    fs::remove_dir_all(dir).map_err(|source| TextError::Io {
        doing: "remove directory",
        path: dir.to_owned(),
        source,
    })
}
