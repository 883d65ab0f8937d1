//! Objects: the bytes of documents, stored under the hash of their content.
//!
//! The same content is stored once, and a stored object never changes. Relies on `object_store`, so that a directory
//! and S3 are alike; a directory is also synced, so that a document whose upload was acknowledged survives a power cut.
//! Who may see an object, and when it may go, is the catalog's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, pin_mut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, WriteMultipart};
use sha2::{Digest, Sha256};
use va_catalog::ContentHash;

/// Where uploads are before their hash is known.
const INCOMING: &str = "incoming";
/// Bytes of one part; S3 wants at least 5 MiB.
const PART_BYTES: usize = 5 << 20;
/// Files of one batch that are written and synced at once: waiting for the disk together, they share its flushes.
const WRITERS: usize = 16;
/// Parts on their way at once: with [`PART_BYTES`] it bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 2;

/// What went wrong with an object.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The user's problem: nothing was stored.
    #[error("the file is larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    /// The sender broke off: nothing was stored.
    #[error("read the upload: {0}")]
    Upload(String),
    #[error("object `{0}` does not exist")]
    NotFound(ContentHash),
    #[error("object `{expected}` is damaged: its content has the hash `{found}`")]
    Corrupt {
        expected: ContentHash,
        found: String,
    },
    #[error("object storage: {0}")]
    Storage(String),
}

impl From<StoreError> for ObjectError {
    fn from(error: StoreError) -> Self {
        Self::Storage(error.to_string())
    }
}

/// A stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    pub hash: ContentHash,
    /// In bytes.
    pub size: u64,
}

/// A content-addressed store of objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Of a directory: its files are synced by path.
    root: Option<PathBuf>,
}

impl Objects {
    /// Objects in a directory, which is created when needed.
    pub fn local(dir: &FilePath) -> Result<Self, ObjectError> {
        std::fs::create_dir_all(dir).map_err(|e| {
            ObjectError::Storage(format!("create directory `{}`: {e}", dir.display()))
        })?;
        let store = LocalFileSystem::new_with_prefix(dir)?;
        Ok(Self {
            store: Arc::new(store),
            root: Some(dir.to_owned()),
        })
    }

    /// Objects in any other store: S3 and its like.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, root: None }
    }

    /// Stores what the stream brings, holding a few MiB of it at a time. Nothing is left behind when the stream fails,
    /// brings more than `bytes_max`, or the call is cancelled. Content that is there already is not stored again.
    pub async fn put_stream<S, E>(
        &self,
        stream: S,
        bytes_max: u64,
    ) -> Result<StoredObject, ObjectError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let incoming = Path::from_iter([INCOMING, &uuid::Uuid::now_v7().simple().to_string()]);
        let upload = self.store.put_multipart(&incoming).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let object = match copy(stream, &mut writer, bytes_max).await {
            Ok(object) => object,
            Err(error) => {
                if let Err(abort) = writer.abort().await {
                    tracing::warn!(error = %abort, %incoming, "remove an unfinished upload");
                }
                return Err(error);
            }
        };
        writer.finish().await?;
        let moved = self.take_in(&incoming, &object.hash).await;
        if moved.is_err() {
            // The first error is the one to tell.
            let _ = self.store.delete(&incoming).await;
        }
        moved.map(|()| object)
    }

    /// Stores bytes that are in memory already.
    pub async fn put_bytes(&self, bytes: Bytes) -> Result<StoredObject, ObjectError> {
        let whole = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(bytes) });
        self.put_stream(whole, u64::MAX).await
    }

    /// Stores many small contents; when it returns, all are durable. The results are in the order of `contents`. Costs
    /// a fraction of as many single calls, because the files are synced side by side and each directory once.
    pub async fn put_all(&self, contents: Vec<Bytes>) -> Result<Vec<StoredObject>, ObjectError> {
        let hashed = blocking(move || {
            Ok(contents
                .into_iter()
                .map(|bytes| (hex(Sha256::digest(&bytes)), bytes))
                .collect::<Vec<_>>())
        })
        .await?;
        let stored = hashed
            .iter()
            .map(|(hash, bytes)| {
                Ok(StoredObject {
                    hash: ContentHash::new(hash.as_str())
                        .map_err(|e| ObjectError::Storage(e.to_string()))?,
                    size: bytes.len() as u64,
                })
            })
            .collect::<Result<Vec<_>, ObjectError>>()?;
        // The same content twice is one file.
        let wanted: BTreeMap<String, Bytes> = hashed.into_iter().collect();
        match self.root.clone() {
            Some(root) => put_files(root, wanted.into_iter().collect()).await?,
            None => {
                let mut puts = futures::stream::iter(wanted.into_values())
                    .map(|bytes| self.put_bytes(bytes))
                    .buffer_unordered(WRITERS);
                while let Some(put) = puts.next().await {
                    put?;
                }
            }
        }
        Ok(stored)
    }

    /// The whole object, checked against its hash.
    pub async fn get(&self, hash: &ContentHash) -> Result<Bytes, ObjectError> {
        let result = match self.store.get(&path_of(hash)).await {
            Err(StoreError::NotFound { .. }) => return Err(ObjectError::NotFound(hash.clone())),
            other => other?,
        };
        let bytes = result.bytes().await?;
        let found = hex(Sha256::digest(&bytes));
        if found != hash.as_str() {
            return Err(ObjectError::Corrupt {
                expected: hash.clone(),
                found,
            });
        }
        Ok(bytes)
    }

    pub async fn exists(&self, hash: &ContentHash) -> Result<bool, ObjectError> {
        match self.store.head(&path_of(hash)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the object; one that is not there is no error.
    pub async fn delete(&self, hash: &ContentHash) -> Result<(), ObjectError> {
        match self.store.delete(&path_of(hash)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a killed process had begun to upload to a directory; returns how many files. Only for the owner of
    /// the directory, before it takes uploads. Other stores expire unfinished uploads by their own rules.
    pub async fn remove_unfinished(&self) -> Result<usize, ObjectError> {
        let Some(incoming) = self.root.as_ref().map(|root| root.join(INCOMING)) else {
            return Ok(0);
        };
        blocking(move || {
            let entries = match std::fs::read_dir(&incoming) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                other => other?,
            };
            let mut removed = 0;
            for entry in entries {
                std::fs::remove_file(entry?.path())?;
                removed += 1;
            }
            Ok(removed)
        })
        .await
    }

    /// Moves a finished upload to the place of its hash.
    async fn take_in(&self, incoming: &Path, hash: &ContentHash) -> Result<(), ObjectError> {
        if self.exists(hash).await? {
            return Ok(self.store.delete(incoming).await?);
        }
        let target = path_of(hash);
        if let Some(root) = self.root.clone() {
            // The content before the name: a name never leads to half a file.
            let file = root.join(incoming.as_ref());
            blocking(move || std::fs::File::open(file)?.sync_all()).await?;
        }
        self.store.rename(incoming, &target).await?;
        if let Some(root) = self.root.clone() {
            blocking(move || {
                for dir in [root.join(&target.as_ref()[..2]), root] {
                    std::fs::File::open(dir)?.sync_all()?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// Writes contents to the places of their hashes, several at a time, then syncs the directories that got a new name.
async fn put_files(root: PathBuf, contents: Vec<(String, Bytes)>) -> Result<(), ObjectError> {
    let share = contents.len().div_ceil(WRITERS).max(1);
    let mut shares = Vec::with_capacity(WRITERS);
    let mut contents = contents.into_iter().peekable();
    while contents.peek().is_some() {
        let part: Vec<_> = contents.by_ref().take(share).collect();
        let root = root.clone();
        shares.push(tokio::spawn(blocking(move || {
            let mut dirs = BTreeSet::new();
            for (hash, bytes) in part {
                let (dir, rest) = hash.split_at(2);
                let dir = root.join(dir);
                let target = dir.join(rest);
                if target.exists() {
                    continue;
                }
                write_file(&root, &dir, &target, &bytes)?;
                dirs.insert(dir);
            }
            Ok(dirs)
        })));
    }
    let mut dirs = BTreeSet::new();
    let mut first_error = None;
    // Every share is waited for: none may go on writing after the call has failed.
    for share in shares {
        match share.await {
            Ok(Ok(written)) => dirs.extend(written),
            Ok(Err(error)) => first_error = first_error.or(Some(error)),
            Err(error) => {
                first_error = first_error.or_else(|| Some(ObjectError::Storage(error.to_string())));
            }
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    if dirs.is_empty() {
        return Ok(());
    }
    blocking(move || {
        for dir in dirs.into_iter().chain([root]) {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    })
    .await
}

/// The content before the name: a name never leads to half a file.
fn write_file(
    root: &FilePath,
    dir: &FilePath,
    target: &FilePath,
    bytes: &[u8],
) -> std::io::Result<()> {
    let incoming = root.join(INCOMING);
    std::fs::create_dir_all(&incoming)?;
    std::fs::create_dir_all(dir)?;
    let temporary = incoming.join(uuid::Uuid::now_v7().simple().to_string());
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, target)
    };
    write().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    })
}

async fn copy<S, E>(
    stream: S,
    writer: &mut WriteMultipart,
    bytes_max: u64,
) -> Result<StoredObject, ObjectError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: std::fmt::Display,
{
    pin_mut!(stream);
    let mut hasher = Sha256::new();
    let mut size = 0_u64;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| ObjectError::Upload(e.to_string()))?;
        size += piece.len() as u64;
        if size > bytes_max {
            return Err(ObjectError::TooLarge { limit: bytes_max });
        }
        hasher.update(&piece);
        writer.wait_for_capacity(PARTS_IN_FLIGHT).await?;
        writer.put(piece);
    }
    let hash = ContentHash::new(hex(hasher.finalize()))
        .map_err(|e| ObjectError::Storage(e.to_string()))?;
    Ok(StoredObject { hash, size })
}

/// Two digits as a directory, so that none grows too large.
fn path_of(hash: &ContentHash) -> Path {
    let (dir, rest) = hash.as_str().split_at(2);
    Path::from_iter([dir, rest])
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ObjectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ObjectError::Storage(e.to_string()))?
        .map_err(|e| ObjectError::Storage(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use object_store::memory::InMemory;

    use super::*;

    fn files(dir: &FilePath) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                found.push(path);
            }
        }
        found
    }

    fn pieces(
        total: usize,
        piece: usize,
    ) -> (Vec<u8>, impl Stream<Item = Result<Bytes, Infallible>>) {
        let whole: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
        let parts: Vec<_> = whole
            .chunks(piece)
            .map(|part| Ok(Bytes::copy_from_slice(part)))
            .collect();
        (whole, futures::stream::iter(parts))
    }

    #[tokio::test]
    async fn objects_come_back_by_their_hash() {
        let dir = tempfile::tempdir().unwrap();
        let stores = [
            Objects::local(dir.path()).unwrap(),
            Objects::new(Arc::new(InMemory::new())),
        ];
        for objects in stores {
            // More than two parts, and pieces that do not divide a part.
            for (total, piece) in [(0, 1), (1, 1), (100_000, 7_001), (11 << 20, 999_999)] {
                let (whole, stream) = pieces(total, piece);
                let stored = objects.put_stream(stream, total as u64).await.unwrap();
                assert_eq!(stored.size, total as u64);
                assert_eq!(stored.hash.as_str(), hex(Sha256::digest(&whole)));
                assert_eq!(objects.get(&stored.hash).await.unwrap(), whole);
                assert!(objects.exists(&stored.hash).await.unwrap());
                // The same again is the same object.
                let again = objects.put_bytes(whole.into()).await.unwrap();
                assert_eq!(again, stored);
            }
        }
        let found = files(dir.path());
        assert_eq!(found.len(), 4, "{found:?}");
        // SHA-256 of nothing, at the documented place.
        let empty = "e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(dir.path().join(empty).is_file());
    }

    #[tokio::test]
    async fn many_at_once_are_as_many_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let stores = [
            Objects::local(dir.path()).unwrap(),
            Objects::new(Arc::new(InMemory::new())),
        ];
        let contents: Vec<Bytes> = (0..100)
            .map(|n| Bytes::from(format!("content {}", n % 90)))
            .collect();
        for objects in stores {
            assert!(objects.put_all(Vec::new()).await.unwrap().is_empty());
            let one = objects.put_bytes(contents[3].clone()).await.unwrap();
            let stored = objects.put_all(contents.clone()).await.unwrap();
            assert_eq!(stored[3], one);
            for (object, bytes) in stored.iter().zip(&contents) {
                assert_eq!(objects.get(&object.hash).await.unwrap(), bytes);
            }
        }
        // Ten of the contents came twice, and nothing is left in between.
        assert_eq!(files(dir.path()).len(), 90);
    }

    #[tokio::test]
    async fn too_much_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::local(dir.path()).unwrap();
        for total in [1_001, 12 << 20] {
            let (_, stream) = pieces(total, 100_000);
            let limit = total as u64 - 1;
            let error = objects.put_stream(stream, limit).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::TooLarge { limit: l } if l == limit),
                "{error}"
            );
            assert!(error.to_string().contains(&limit.to_string()), "{error}");
        }
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_broken_upload_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::local(dir.path()).unwrap();
        let stream = futures::stream::iter([Ok(Bytes::from("half")), Err("connection reset")]);
        let error = objects.put_stream(stream, 100).await.unwrap_err();
        assert!(matches!(error, ObjectError::Upload(_)), "{error}");
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn missing_and_damaged_objects_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::local(dir.path()).unwrap();
        let stored = objects.put_bytes("文档".into()).await.unwrap();
        let path = files(dir.path()).remove(0);
        std::fs::write(&path, "tampered").unwrap();
        let error = objects.get(&stored.hash).await.unwrap_err();
        assert!(matches!(error, ObjectError::Corrupt { .. }), "{error}");

        objects.delete(&stored.hash).await.unwrap();
        objects.delete(&stored.hash).await.unwrap();
        assert!(!objects.exists(&stored.hash).await.unwrap());
        let error = objects.get(&stored.hash).await.unwrap_err();
        assert!(
            matches!(&error, ObjectError::NotFound(h) if *h == stored.hash),
            "{error}"
        );
    }

    #[tokio::test]
    async fn leftovers_of_a_killed_process_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::local(dir.path()).unwrap();
        assert_eq!(objects.remove_unfinished().await.unwrap(), 0);
        let stored = objects.put_bytes("kept".into()).await.unwrap();
        let incoming = dir.path().join(INCOMING);
        std::fs::create_dir_all(&incoming).unwrap();
        for name in ["whole", "part#1"] {
            std::fs::write(incoming.join(name), "x").unwrap();
        }
        assert_eq!(objects.remove_unfinished().await.unwrap(), 2);
        assert_eq!(files(dir.path()).len(), 1);
        assert_eq!(objects.get(&stored.hash).await.unwrap(), "kept");
    }
}
