//! Small file helpers: mapping and hashing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// Maps a model file for reading. Its pages are loaded on use and can be dropped by the system at any time.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(ModelError::io("open", path))?;
    // SAFETY: a mapping is undefined when another process changes the file meanwhile. Files of the store are never
    // written in place: they are moved in whole and replaced by a rename, which keeps the old contents for us. For a
    // directory of the user's own the same is asked for in the documentation of `load_embedder`.
    #[allow(unsafe_code)]
    unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))
}

/// The sha256 of a file, as lower-case hex.
pub(crate) fn sha256_file(path: &Path) -> Result<String, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file
            .read(&mut buffer)
            .map_err(ModelError::io("read", path))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
