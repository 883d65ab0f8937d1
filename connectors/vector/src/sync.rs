//! Makes a commit survive a power cut.
//!
//! Lance leaves its files in the page cache. Data and deletion files are synced before the manifest that names them is
//! written, the manifest after: so a manifest on the disk never names files that are not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use lance::table::format::Fragment;

/// Syncs the data and deletion files of `fragments` (paths relative to the table) and their directories.
pub(crate) async fn fragments(table: &Path, fragments: &[Fragment]) -> io::Result<()> {
    let mut paths = Vec::new();
    for fragment in fragments {
        for file in &fragment.files {
            paths.push(table.join("data").join(&file.path));
        }
        if let Some(deletion) = &fragment.deletion_file {
            paths.push(table.join("_deletions").join(format!(
                "{}-{}-{}.{}",
                fragment.id,
                deletion.read_version,
                deletion.id,
                deletion.file_type.suffix()
            )));
        }
    }
    all(table, paths).await
}

/// Syncs one manifest.
pub(crate) async fn manifest(table: &Path, file_name: &str) -> io::Result<()> {
    all(table, vec![table.join("_versions").join(file_name)]).await
}

/// Syncs every file of the table's indexes.
pub(crate) async fn indexes(table: &Path) -> io::Result<()> {
    let root = table.join("_indices");
    let paths = blocking(move || {
        let mut paths = Vec::new();
        for index in std::fs::read_dir(root)? {
            for file in std::fs::read_dir(index?.path())? {
                paths.push(file?.path());
            }
        }
        Ok(paths)
    })
    .await?;
    all(table, paths).await
}

async fn all(table: &Path, paths: Vec<PathBuf>) -> io::Result<()> {
    let table = table.to_owned();
    blocking(move || {
        // The first commit also makes the table's directory and those in it.
        let mut directories: Vec<&Path> = table.parent().into_iter().collect();
        directories.push(&table);
        for path in &paths {
            File::open(path)?.sync_all()?;
            if let Some(directory) = path.parent()
                && !directories.contains(&directory)
            {
                directories.push(directory);
            }
        }
        // On Unix a new name is durable once its directory is synced; elsewhere a directory cannot be opened.
        #[cfg(unix)]
        for directory in directories {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
