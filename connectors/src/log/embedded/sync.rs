//! The background sync of [`super::Durability::Interval`]: one thread, which ends with the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{Database, PersistMode};

use crate::log::LogError;

/// Syncs while it lives, and once more when dropped.
pub(super) struct SyncThread {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    /// Syncs `db` every `interval` when `dirty` says that there is something new.
    pub(super) fn start(
        db: Database,
        dirty: Arc<AtomicBool>,
        interval: Duration,
    ) -> Result<Self, LogError> {
        let (stop, stopped) = sync_channel::<()>(0);
        let thread = std::thread::Builder::new()
            .name("va-log-sync".to_owned())
            .spawn(move || {
                loop {
                    let last = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                    if dirty.swap(false, Ordering::AcqRel)
                        && let Err(error) = db.persist(PersistMode::SyncData)
                    {
                        // The store refuses every later write, so commits report it too.
                        tracing::error!(%error, "sync the log");
                        return;
                    }
                    if last {
                        return;
                    }
                }
            })
            .map_err(|e| LogError::Storage(format!("start the sync thread: {e}")))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which its own message told.
            let _ = thread.join();
        }
    }
}
