//! Room on the disk that holds the data: new work is refused before it runs out, and what failed for want of room goes
//! on when there is some again.
//!
//! The stores survive a full disk, but the log writes nothing more until a restart once a write has failed. So uploads
//! are refused while less than `limits.disk_free_bytes_min` is free, which leaves room for indexing what was taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use va_catalog::PipelineName;
use va_pipelines::runtime::PipelineState;

use crate::platform::Platform;

/// How often pipelines that failed for want of room are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// With less free than this, in bytes, nothing is tried again, whatever is configured.
const FREE_AGAIN_MIN: u64 = 4 << 20;

/// The disk of the data directory.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
    free_min: u64,
}

/// There is no room; nothing of what was asked for is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk that holds `{dir}` is full ({free} MiB are free, {min} MiB are needed): make room there, then try again; \
     documents that were taken before are safe and are indexed when there is room",
    dir = dir.display(), free = free >> 20, min = min >> 20
)]
pub struct DiskFull {
    dir: PathBuf,
    /// In bytes.
    free: u64,
    min: u64,
}

impl Disk {
    /// `free_min`: bytes below which nothing new is taken.
    pub fn new(dir: &Path, free_min: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            free_min,
        }
    }

    /// Whether something new may be taken. A disk that cannot be asked is no reason to refuse.
    pub fn room(&self) -> Result<(), DiskFull> {
        match self.free() {
            Ok((free, _)) if free < self.free_min => Err(self.full()),
            _ => Ok(()),
        }
    }

    /// Whether trying again makes sense.
    pub fn has_room_again(&self) -> bool {
        self.free()
            .is_ok_and(|(free, _)| free >= self.free_min.max(FREE_AGAIN_MIN))
    }

    /// What to say after a write found no room.
    pub fn full(&self) -> DiskFull {
        DiskFull {
            dir: self.dir.clone(),
            free: self.free().map_or(0, |(free, _)| free),
            min: self.free_min.max(FREE_AGAIN_MIN),
        }
    }

    /// What `va doctor` says: well, or nearly full, or full.
    pub fn health(&self) -> Result<String, String> {
        let (free, size) = self.free().map_err(|error| {
            format!(
                "ask for the free space of `{}`: {error}",
                self.dir.display()
            )
        })?;
        let said = format!("{} MiB of {} MiB free", free >> 20, size >> 20);
        let rule = format!(
            "uploads are refused below {} MiB (`limits.disk_free_bytes_min`); make room on the disk that holds `{}`",
            self.free_min >> 20,
            self.dir.display()
        );
        if free < self.free_min.max(FREE_AGAIN_MIN) {
            Err(format!("full: {said}; {rule}"))
        } else if free < self.free_min.saturating_mul(2) {
            Err(format!("nearly full: {said}; {rule}"))
        } else {
            Ok(said)
        }
    }

    /// Bytes that may be used, and the size of the whole.
    fn free(&self) -> std::io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok((
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        ))
    }
}

/// Whether an error is about a full disk. Several stores hand their errors on as text only: the operating system's words
/// (ENOSPC, EDQUOT) and SQLite's are what they have in common.
pub fn is_full(error: &str) -> bool {
    [
        "(os error 28)",
        "(os error 122)",
        "database or disk is full",
    ]
    .iter()
    .any(|words| error.contains(words))
}

/// Starts pipelines again that failed because the disk was full, once there is room.
pub async fn watch(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => return,
        }
        if !platform.disk.has_room_again() {
            continue;
        }
        for name in platform.runtime.names() {
            if failed_for_room(&platform, &name).await {
                start_again(&platform, &name).await;
            }
        }
    }
}

async fn failed_for_room(platform: &Platform, name: &PipelineName) -> bool {
    match platform
        .runtime
        .status(name)
        .await
        .map(|status| status.state)
    {
        Ok(PipelineState::Failed { reason }) => is_full(&reason),
        _ => false,
    }
}

async fn start_again(platform: &Platform, name: &PipelineName) {
    let Some(plan) = platform.runtime.plan(name) else {
        return;
    };
    // Somebody may have stopped it meanwhile; then it stays stopped.
    if platform.runtime.stop(name).await.is_err() {
        return;
    }
    match platform.run(plan.as_ref().clone()).await {
        Ok(()) => {
            tracing::info!(pipeline = %name, "there is room on the disk again: the pipeline goes on")
        }
        Err(error) => {
            tracing::error!(pipeline = %name, error, "there is room on the disk again, but the pipeline did not start")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_well_nearly_full_or_full() {
        let dir = tempfile::tempdir().expect("a folder");
        let (free, _) = Disk::new(dir.path(), 0).free().expect("an answer");
        let with = |free_min| Disk::new(dir.path(), free_min);
        assert!(with(0).room().is_ok() && with(0).health().is_ok());
        let nearly = with(free / 3 * 2);
        assert!(nearly.room().is_ok());
        assert!(
            nearly
                .health()
                .is_err_and(|said| said.contains("nearly full"))
        );
        let full = with(u64::MAX);
        assert!(full.health().is_err_and(|said| said.starts_with("full")));
        let refused = full.room().expect_err("refused").to_string();
        assert!(
            refused.contains(&dir.path().display().to_string()),
            "{refused}"
        );
        assert!(is_full(&std::io::Error::from_raw_os_error(28).to_string()));
        assert!(!is_full(&std::io::Error::from_raw_os_error(2).to_string()));
    }
}
