//! Objects: the bytes of documents, stored under the hash of their content.
//!
//! The same content is stored once, and a stored object never changes. Relies on `object_store`, so that a directory
//! and S3 are alike (`objects/s3.rs` opens the latter); a directory is also synced, so that a document whose upload was
//! acknowledged survives a power cut. Who may see an object, and whether it is still needed, is the catalog's business;
//! that a removal never takes an object from under an upload of the same content is ours.
//!
//! Within one process `objects/uses.rs` sees to that, and a directory has one process. A bucket may have several, so there
//! an upload always writes, also what is there already: that makes the object young again, and a young object is not
//! removed ([`YOUNG_FOR`]), whatever the catalog of the remover knew. Overwriting is harmless, because what has the same
//! name has the same content; so no store needs to support conditional writes, and two writers of the same both succeed.
//!
//! Half an object is never seen: what fits into one part is one request under its final name; what does not is uploaded
//! in parts, which nobody sees before the last, under `incoming/`, and copied to its name by the store.

mod directory;
mod recent;
pub mod s3;
mod uses;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path as FilePath, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, pin_mut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, WriteMultipart};
use sha2::{Digest, Sha256};
use va_catalog::ContentHash;
pub use va_catalog::settings::Secret;

use self::recent::Recent;
pub use self::s3::S3Options;
use self::uses::{Kept, Uses};

/// Where uploads are before their hash is known.
const INCOMING: &str = "incoming";
/// Bytes of one part; S3 wants at least 5 MiB.
const PART_BYTES: usize = 5 << 20;
/// Objects of one batch that are on their way to a bucket at once.
const WRITERS: usize = 16;
/// Parts on their way at once: with [`PART_BYTES`] it bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 2;

/// How long an object in a bucket is safe from removal after it was written, even if nothing seems to need it: longer than
/// an upload takes from its object to its catalog entry, and than clocks differ.
const YOUNG_FOR: Duration = Duration::from_secs(3_600);
/// After this an upload under `incoming/` of a bucket is one whose process died.
const UNFINISHED_FOR: Duration = Duration::from_secs(24 * 3_600);

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

/// A stored object. It is not removed as long as this, or a clone of it, lives: hold it until the catalog has a version
/// that refers to the object.
#[derive(Debug, Clone)]
pub struct StoredObject {
    pub hash: ContentHash,
    /// In bytes.
    pub size: u64,
    _kept: Arc<Kept>,
}

impl PartialEq for StoredObject {
    fn eq(&self, other: &Self) -> bool {
        (&self.hash, self.size) == (&other.hash, other.size)
    }
}

impl Eq for StoredObject {}

/// A content-addressed store of objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Of a directory: its files are synced by path.
    root: Option<PathBuf>,
    /// Objects that were written more recently are not removed.
    young_for: Duration,
    /// Shared by the clones.
    uses: Arc<Uses>,
    recent: Arc<Recent>,
    abandoned: Arc<Abandoned>,
}

/// Uploads in parts whose calls were cancelled: dropping cannot wait for the store, so the next upload tells it.
#[derive(Debug, Default)]
struct Abandoned(Mutex<Vec<WriteMultipart>>);

impl Abandoned {
    async fn abort_all(&self) {
        let writers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for writer in writers {
            abort(writer).await;
        }
    }
}

/// An upload in parts that is under way.
struct Upload {
    /// `None` once it has been finished or aborted.
    writer: Option<WriteMultipart>,
    /// `None` for a directory, where dropping is enough: it removes the file.
    abandoned: Option<Arc<Abandoned>>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(writer), Some(abandoned)) = (self.writer.take(), &self.abandoned) {
            let mut abandoned = abandoned.0.lock().unwrap_or_else(PoisonError::into_inner);
            abandoned.push(writer);
        }
    }
}

impl Objects {
    /// Objects in a directory, which is created when needed.
    pub fn local(dir: &FilePath) -> Result<Self, ObjectError> {
        std::fs::create_dir_all(dir).map_err(|e| {
            ObjectError::Storage(format!("create directory `{}`: {e}", dir.display()))
        })?;
        let store = LocalFileSystem::new_with_prefix(dir)?;
        Ok(Self {
            root: Some(dir.to_owned()),
            young_for: Duration::ZERO,
            ..Self::new(Arc::new(store))
        })
    }

    /// Objects at a place that is configured: `s3://BUCKET/PREFIX`, which is asked once, or the path of a directory. Before
    /// the first of S3, [`crate::tls::install`] must have been called.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Storage`], with what to do: the bucket does not exist, access is denied, the store cannot be reached
    /// (after the retries that the options permit), the options contradict each other.
    pub async fn open(location: &str, options: &S3Options) -> Result<Self, ObjectError> {
        if location.starts_with("s3://") {
            return Ok(Self::new(s3::open(location, options).await?));
        }
        match location.split_once("://") {
            Some((scheme, _)) => Err(ObjectError::Storage(format!(
                "`{scheme}` is not an object storage that this version can use: use s3://BUCKET/PREFIX or the path of a \
                 directory"
            ))),
            None => Self::local(FilePath::new(location)),
        }
    }

    /// Objects in any other store, which processes may share.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            root: None,
            young_for: YOUNG_FOR,
            uses: Arc::default(),
            recent: Arc::default(),
            abandoned: Arc::default(),
        }
    }

    /// Stores what the stream brings, holding a few MiB of it at a time. Nothing is left behind when the stream fails or
    /// brings more than `bytes_max`; when the call is cancelled, what it had begun goes with the next upload, or with
    /// [`Objects::remove_unfinished`]. In a directory, content that is there already is not stored again.
    pub async fn put_stream<S, E>(
        &self,
        stream: S,
        bytes_max: u64,
    ) -> Result<StoredObject, ObjectError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        self.abandoned.abort_all().await;
        pin_mut!(stream);
        let mut content = Content::new(bytes_max);
        if self.root.is_none() {
            // What fits into one part needs no name before its own.
            let mut start = BytesMut::new();
            while let Some(piece) = content.next(&mut stream).await? {
                if start.is_empty() && piece.len() >= PART_BYTES {
                    return self.put_parts(piece, stream, content).await;
                }
                start.extend_from_slice(&piece);
                if start.len() >= PART_BYTES {
                    return self.put_parts(start.freeze(), stream, content).await;
                }
            }
            let (hash, size) = content.finish()?;
            return self.put_whole(hash, size, start.freeze()).await;
        }
        self.put_parts(Bytes::new(), stream, content).await
    }

    /// Stores `start` and what the stream still brings, part by part. S3 copies at most 5 GiB by one request, so what is
    /// larger than that fails there at the end.
    async fn put_parts<S, E>(
        &self,
        start: Bytes,
        mut stream: Pin<&mut S>,
        mut content: Content,
    ) -> Result<StoredObject, ObjectError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let incoming = Path::from_iter([INCOMING, &uuid::Uuid::now_v7().simple().to_string()]);
        let multipart = self.store.put_multipart(&incoming).await?;
        let mut upload = Upload {
            writer: Some(WriteMultipart::new_with_chunk_size(multipart, PART_BYTES)),
            abandoned: self.root.is_none().then(|| self.abandoned.clone()),
        };
        let copied = copy(start, &mut stream, &mut content, &mut upload).await;
        let finished = match upload.writer.take() {
            Some(writer) if copied.is_ok() => writer.finish().await.map(drop),
            Some(writer) => {
                abort(writer).await;
                Ok(())
            }
            None => Ok(()),
        };
        copied?;
        finished?;
        let (hash, size) = content.finish()?;
        let kept = Arc::new(self.uses.keep(&hash).await);
        let moved = self.take_in(&incoming, &hash).await;
        if moved.is_err() {
            // The first error is the one to tell.
            let _ = self.store.delete(&incoming).await;
        }
        moved.map(|()| StoredObject {
            hash,
            size,
            _kept: kept,
        })
    }

    /// Stores a content that is in memory by one request.
    async fn put_whole(
        &self,
        hash: ContentHash,
        size: u64,
        bytes: Bytes,
    ) -> Result<StoredObject, ObjectError> {
        let kept = Arc::new(self.uses.keep(&hash).await);
        self.store.put(&path_of(&hash), bytes.into()).await?;
        Ok(StoredObject {
            hash,
            size,
            _kept: kept,
        })
    }

    /// Stores bytes that are in memory already.
    pub async fn put_bytes(&self, bytes: Bytes) -> Result<StoredObject, ObjectError> {
        let whole = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(bytes) });
        self.put_stream(whole, u64::MAX).await
    }

    /// Stores many small contents; when it returns, all are durable. The results are in the order of `contents`. Costs
    /// a fraction of as many single calls, because the files are synced together. The next [`Objects::get`] of each may
    /// find it in memory.
    pub async fn put_all(&self, contents: Vec<Bytes>) -> Result<Vec<StoredObject>, ObjectError> {
        let hashed = blocking(move || {
            Ok(contents
                .into_iter()
                .map(|bytes| (hex(Sha256::digest(&bytes)), bytes))
                .collect::<Vec<_>>())
        })
        .await?;
        let mut stored = Vec::with_capacity(hashed.len());
        for (hash, bytes) in &hashed {
            let hash = ContentHash::new(hash.as_str())
                .map_err(|error| ObjectError::Storage(error.to_string()))?;
            stored.push(StoredObject {
                size: bytes.len() as u64,
                _kept: Arc::new(self.uses.keep(&hash).await),
                hash,
            });
        }
        // The same content twice is one file.
        let wanted: BTreeMap<String, Bytes> = hashed.into_iter().collect();
        match self.root.clone() {
            Some(root) => {
                let wanted = wanted.clone();
                blocking(move || directory::put_all(&root, &wanted)).await?
            }
            None => {
                let contents: Vec<Bytes> = wanted.values().cloned().collect();
                let mut puts = futures::stream::iter(contents)
                    .map(|bytes| self.put_bytes(bytes))
                    .buffer_unordered(WRITERS);
                while let Some(put) = puts.next().await {
                    put?;
                }
            }
        }
        self.recent.keep(wanted);
        Ok(stored)
    }

    /// The whole object, checked against its hash.
    pub async fn get(&self, hash: &ContentHash) -> Result<Bytes, ObjectError> {
        if let Some(bytes) = self.recent.take(hash) {
            return Ok(bytes);
        }
        let result = match self.store.get(&path_of(hash)).await {
            // Without its bucket an object is not gone, but out of reach.
            Err(error) if s3::is_missing_object(&error) => {
                return Err(ObjectError::NotFound(hash.clone()));
            }
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

    /// The whole object piece by piece, for objects that need not fit into memory. Only the end of the stream says that it
    /// has the right hash: the last item of a damaged one is [`ObjectError::Corrupt`].
    pub async fn read(
        &self,
        hash: &ContentHash,
    ) -> Result<impl Stream<Item = Result<Bytes, ObjectError>> + Send + use<>, ObjectError> {
        let result = match self.store.get(&path_of(hash)).await {
            Err(error) if s3::is_missing_object(&error) => {
                return Err(ObjectError::NotFound(hash.clone()));
            }
            other => other?,
        };
        let pieces = result.into_stream().boxed();
        let whole = (pieces, Sha256::new(), hash.clone());
        Ok(futures::stream::try_unfold(
            Some(whole),
            |state| async move {
                let Some((mut pieces, mut hasher, expected)) = state else {
                    return Ok(None);
                };
                if let Some(piece) = pieces.next().await {
                    let piece = piece?;
                    hasher.update(&piece);
                    return Ok(Some((piece, Some((pieces, hasher, expected)))));
                }
                let found = hex(hasher.finalize());
                match found == expected.as_str() {
                    true => Ok(None),
                    false => Err(ObjectError::Corrupt { expected, found }),
                }
            },
        ))
    }

    pub async fn exists(&self, hash: &ContentHash) -> Result<bool, ObjectError> {
        match self.store.head(&path_of(hash)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The objects in directory `dir`, one of 256 among which they are spread evenly.
    pub async fn list(&self, dir: u8) -> Result<Vec<ContentHash>, ObjectError> {
        let digits = format!("{dir:02x}");
        let mut found = Vec::new();
        let mut entries = self.store.list(Some(&Path::from(digits.as_str())));
        while let Some(entry) = entries.next().await {
            let rest = entry?.location.filename().unwrap_or_default().to_owned();
            // Whatever else lies there is not ours to judge.
            found.extend(ContentHash::new(format!("{digits}{rest}")).ok());
        }
        Ok(found)
    }

    /// Removes the object if no upload is about to rely on it and `used`, which is asked after that is certain, says
    /// that nothing refers to it. Whether it was removed.
    pub async fn remove_unless_used<E: From<ObjectError>>(
        &self,
        hash: &ContentHash,
        used: impl Future<Output = Result<bool, E>>,
    ) -> Result<bool, E> {
        let Some(_going) = self.uses.begin_removal(hash) else {
            return Ok(false);
        };
        if used.await? || self.is_young(hash).await? {
            return Ok(false);
        }
        self.delete(hash).await?;
        Ok(true)
    }

    /// Whether the object was written so recently that another process may be about to refer to it. What this cannot see
    /// is an upload of the same content that ends in the moment between this look and the removal.
    async fn is_young(&self, hash: &ContentHash) -> Result<bool, ObjectError> {
        if self.young_for.is_zero() {
            return Ok(false);
        }
        match self.store.head(&path_of(hash)).await {
            Ok(meta) => Ok(age(meta.last_modified.into()) < self.young_for),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the object, whoever may need it; one that is not there is no error.
    pub async fn delete(&self, hash: &ContentHash) -> Result<(), ObjectError> {
        self.recent.take(hash);
        match self.store.delete(&path_of(hash)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a killed process had begun to upload; returns how many files. Of a directory, whose owner calls this
    /// before it takes uploads, all of them; of a bucket those that are too old to be under way elsewhere. Parts that were
    /// never put together are not seen here: a rule of the bucket expires them (`AbortIncompleteMultipartUpload`).
    pub async fn remove_unfinished(&self) -> Result<usize, ObjectError> {
        let Some(incoming) = self.root.as_ref().map(|root| root.join(INCOMING)) else {
            let mut removed = 0;
            let mut entries = self.store.list(Some(&Path::from(INCOMING)));
            while let Some(entry) = entries.next().await {
                let entry = entry?;
                if age(entry.last_modified.into()) > UNFINISHED_FOR {
                    self.store.delete(&entry.location).await?;
                    removed += 1;
                }
            }
            return Ok(removed);
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
        // In a bucket it is written again, see the head of this file.
        if self.root.is_some() && self.exists(hash).await? {
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

/// What an upload has brought so far.
struct Content {
    hasher: Sha256,
    size: u64,
    bytes_max: u64,
}

impl Content {
    fn new(bytes_max: u64) -> Self {
        Self {
            hasher: Sha256::new(),
            size: 0,
            bytes_max,
        }
    }

    /// The next piece, counted and hashed; `None` at the end.
    async fn next<S, E>(&mut self, stream: &mut Pin<&mut S>) -> Result<Option<Bytes>, ObjectError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let Some(piece) = stream.next().await else {
            return Ok(None);
        };
        let piece = piece.map_err(|e| ObjectError::Upload(e.to_string()))?;
        self.size += piece.len() as u64;
        if self.size > self.bytes_max {
            return Err(ObjectError::TooLarge {
                limit: self.bytes_max,
            });
        }
        self.hasher.update(&piece);
        Ok(Some(piece))
    }

    fn finish(self) -> Result<(ContentHash, u64), ObjectError> {
        let hash = ContentHash::new(hex(self.hasher.finalize()))
            .map_err(|e| ObjectError::Storage(e.to_string()))?;
        Ok((hash, self.size))
    }
}

async fn copy<S, E>(
    start: Bytes,
    stream: &mut Pin<&mut S>,
    content: &mut Content,
    upload: &mut Upload,
) -> Result<(), ObjectError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: std::fmt::Display,
{
    let mut piece = Some(start);
    while let Some(bytes) = piece {
        if let Some(writer) = &mut upload.writer {
            writer.wait_for_capacity(PARTS_IN_FLIGHT).await?;
            writer.put(bytes);
        }
        piece = content.next(stream).await?;
    }
    Ok(())
}

async fn abort(writer: WriteMultipart) {
    if let Err(error) = writer.abort().await {
        tracing::warn!(%error, "remove an unfinished upload");
    }
}

/// How long ago that was; nothing for a time in the future, which another clock may tell.
fn age(written: SystemTime) -> Duration {
    SystemTime::now()
        .duration_since(written)
        .unwrap_or_default()
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
mod tests;
