//! A split as one object: its files one after the other, behind a list of them.
//!
//! ```text
//!  8 bytes   VASPLIT and the version of this format
//!  4 bytes   length of the list, little endian
//!  list      JSON: each file's path, with `/`, and length
//!  files     their bytes, in the order of the list
//! ```
//!
//! Packing and unpacking hold a piece at a time. Whether the bytes are right is the object's hash to say.

use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::SplitError;

const MAGIC: &[u8; 8] = b"VASPLIT\x01";
/// A list is a few hundred bytes; more than this is no list.
const LIST_BYTES_MAX: u32 = 16 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// The files of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct List {
    files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    path: String,
    bytes: u64,
}

impl List {
    /// The files below a folder, but for locks and hidden files. Blocks.
    pub fn of(dir: &Path) -> Result<Self, SplitError> {
        let mut files = Vec::new();
        walk(dir, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Whether the folder has exactly these files, by their sizes. Blocks.
    pub fn is_whole(&self, dir: &Path) -> bool {
        self.files.iter().all(|file| {
            std::fs::metadata(dir.join(&file.path)).is_ok_and(|found| found.len() == file.bytes)
        })
    }
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<File>) -> Result<(), SplitError> {
    for entry in std::fs::read_dir(dir).map_err(SplitError::io("list", dir))? {
        let entry = entry.map_err(SplitError::io("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Of tantivy: `.managed.json` and locks say nothing to who only reads.
        if name.starts_with('.') {
            continue;
        }
        let path = match prefix {
            "" => name,
            prefix => format!("{prefix}/{name}"),
        };
        let found = entry.metadata().map_err(SplitError::io("read", dir))?;
        match found.is_dir() {
            true => walk(&entry.path(), &path, files)?,
            false => files.push(File {
                path,
                bytes: found.len(),
            }),
        }
    }
    Ok(())
}

/// The object of a folder whose files are these.
pub(crate) fn pack(
    dir: &Path,
    list: &List,
) -> Result<BoxStream<'static, std::io::Result<Bytes>>, SplitError> {
    let json = serde_json::to_vec(list).map_err(|error| SplitError::Damaged(error.to_string()))?;
    let mut head = BytesMut::from(&MAGIC[..]);
    head.extend_from_slice(&(json.len() as u32).to_le_bytes());
    head.extend_from_slice(&json);
    let head = futures::stream::iter([Ok(head.freeze())]);
    let paths: Vec<PathBuf> = list.files.iter().map(|file| dir.join(&file.path)).collect();
    let files = futures::stream::iter(paths)
        .then(tokio::fs::File::open)
        .map_ok(|file| ReaderStream::with_capacity(file, PIECE_BYTES))
        .try_flatten();
    Ok(head.chain(files).boxed())
}

/// Writes the files of an object into a folder, which must be empty. After an error it may hold some of them.
pub(crate) async fn unpack<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    object: impl Stream<Item = Result<Bytes, E>> + Send,
    dir: &Path,
) -> Result<List, SplitError> {
    let pieces = object.map_err(std::io::Error::other).boxed();
    let mut reader = StreamReader::new(pieces);
    let fail = |error: std::io::Error| SplitError::Damaged(error.to_string());
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).await.map_err(fail)?;
    if magic != *MAGIC {
        return Err(SplitError::Damaged("the object is no split".into()));
    }
    let length = reader.read_u32_le().await.map_err(fail)?;
    if length > LIST_BYTES_MAX {
        return Err(SplitError::Damaged(format!("a list of {length} bytes")));
    }
    let mut json = vec![0; length as usize];
    reader.read_exact(&mut json).await.map_err(fail)?;
    let list: List =
        serde_json::from_slice(&json).map_err(|error| SplitError::Damaged(error.to_string()))?;
    for file in &list.files {
        let relative = Path::new(&file.path);
        let mut parts = relative.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            let problem = format!("a file is named `{}`", file.path);
            return Err(SplitError::Damaged(problem));
        }
        let path = dir.join(relative);
        let io = |error| SplitError::io("write", &path)(error);
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(io)?;
        }
        let mut out = tokio::fs::File::create(&path).await.map_err(io)?;
        let mut part = (&mut reader).take(file.bytes);
        let copied = tokio::io::copy(&mut part, &mut out).await.map_err(io)?;
        if copied != file.bytes {
            return Err(SplitError::Damaged(format!("`{}` is cut off", file.path)));
        }
        out.flush().await.map_err(io)?;
    }
    // The end of the stream says whether all of it was right.
    let rest = reader.read_to_end(&mut Vec::new()).await.map_err(fail)?;
    match rest {
        0 => Ok(list),
        rest => Err(SplitError::Damaged(format!("{rest} bytes too many"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn object(dir: &Path) -> (List, Vec<u8>) {
        let list = List::of(dir).expect("a list");
        let pieces: Vec<Bytes> = pack(dir, &list)
            .expect("an object")
            .try_collect()
            .await
            .expect("pieces");
        (list, pieces.concat())
    }

    async fn unpacked(bytes: &[u8], dir: &Path) -> Result<List, String> {
        // In pieces that end anywhere.
        let pieces: Vec<_> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
        let stream = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        unpack(stream, dir).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_is_packed_is_unpacked() {
        let from = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(from.path().join("texts/深")).expect("folders");
        for (path, content) in [("texts/深/一", "冻结"), ("vectors", ""), (".lock", "x")] {
            std::fs::write(from.path().join(path), content).expect("a file");
        }
        let (list, bytes) = object(from.path()).await;
        assert_eq!(list.bytes(), 6);
        let to = tempfile::tempdir().expect("a folder");
        assert_eq!(unpacked(&bytes, to.path()).await, Ok(list.clone()));
        assert!(list.is_whole(to.path()));
        let text = std::fs::read_to_string(to.path().join("texts/深/一"));
        assert_eq!(text.expect("a file"), "冻结");
        assert!(!to.path().join(".lock").exists());
        std::fs::write(to.path().join("vectors"), "x").expect("a file");
        assert!(!list.is_whole(to.path()));
    }

    #[tokio::test]
    async fn what_is_no_split_is_refused() {
        let from = tempfile::tempdir().expect("a folder");
        std::fs::write(from.path().join("a"), "content").expect("a file");
        let (_, bytes) = object(from.path()).await;
        let outside = String::from_utf8(bytes.clone()).expect("text");
        let outside = outside.replace("\"a\"", "\"/\"");
        for (bytes, expected) in [
            (&bytes[..bytes.len() - 1], "cut off"),
            (&bytes[..5], "eof"),
            (&[&bytes[..], b"x"].concat(), "1 bytes too many"),
            (b"VASPLIT\x02more".as_slice(), "no split"),
            (outside.as_bytes(), "a file is named `/`"),
        ] {
            let to = tempfile::tempdir().expect("a folder");
            let error = unpacked(bytes, to.path()).await.expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
