//! The catalog store as its users see it: a database file, several tenants, several tasks, restarts.

mod database;
mod documents;
mod keys;
mod objects;
mod tenancy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;
use va_catalog::store::*;
use va_catalog::*;

/// A catalog in a folder of its own whose clock stands still until it is moved.
struct Bench {
    catalog: Catalog,
    clock: Arc<AtomicI64>,
    folder: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(AtomicI64::new(1_000));
        let catalog = open(&folder, &clock).await;
        Self {
            catalog,
            clock,
            folder,
        }
    }

    async fn with_collection() -> (Self, CollectionRef) {
        let bench = Self::new().await;
        let collection = collection("default", "帮助-2026");
        bench
            .catalog
            .create_collection(&collection, &CollectionConfig::default())
            .await
            .expect("a collection");
        (bench, collection)
    }

    async fn reopened(self) -> Self {
        self.catalog.close().await;
        let catalog = open(&self.folder, &self.clock).await;
        Self { catalog, ..self }
    }
}

async fn open(folder: &TempDir, clock: &Arc<AtomicI64>) -> Catalog {
    let clock = Arc::clone(clock);
    Catalog::open_with_clock(
        folder.path().join("catalog.db"),
        Arc::new(move || clock.load(Ordering::SeqCst)),
    )
    .await
    .expect("a catalog")
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a valid name")
}

fn collection(tenant_name: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: tenant(tenant_name),
        collection: CollectionName::new(name).expect("a valid name"),
    }
}

/// Not the hash of the content, but different contents have different ones, and 64 hexadecimal digits are enough here.
fn hash(content: &str) -> ContentHash {
    let digits: String = content
        .bytes()
        .chain(std::iter::repeat(0))
        .take(32)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ContentHash::new(digits).expect("a hash")
}

fn version_of(uri: &str, content: &str) -> NewVersion {
    NewVersion {
        uri: uri.to_owned(),
        name: uri.rsplit('/').next().unwrap_or(uri).to_owned(),
        content_type: Some("text/html".to_owned()),
        content_hash: hash(content),
        size: content.len() as u64,
        metadata: BTreeMap::from([("语言".to_owned(), "中文".to_owned())]),
    }
}

fn outcome(begun: Begun) -> (u32, BeginOutcome, DocumentState) {
    (begun.version.0, begun.outcome, begun.state)
}
