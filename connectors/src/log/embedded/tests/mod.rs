//! The embedded log's tests: the conformance suite with both durabilities, and what only this log promises.

mod crash;
mod promises;
mod storage;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{Durability, EmbeddedLog, Options};
use crate::log::Log;

fn open(dir: &Path, durability: Durability) -> Arc<EmbeddedLog> {
    let options = Options {
        durability,
        ..Options::default()
    };
    EmbeddedLog::open(dir, options).unwrap()
}

const INTERVAL: Durability = Durability::Interval(Duration::from_millis(50));

mod every_commit {
    use super::*;

    async fn make() -> Option<(Arc<dyn Log>, TempDir)> {
        let dir = tempfile::tempdir().unwrap();
        Some((open(dir.path(), Durability::EveryCommit), dir))
    }

    crate::log_conformance!(make);
}

mod interval {
    use super::*;

    async fn make() -> Option<(Arc<dyn Log>, TempDir)> {
        let dir = tempfile::tempdir().unwrap();
        Some((open(dir.path(), INTERVAL), dir))
    }

    crate::log_conformance!(make);
}
