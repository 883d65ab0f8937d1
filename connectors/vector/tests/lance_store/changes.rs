//! Reading while documents are replaced and files are merged.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use va_catalog::{ChunkId, DocumentId, Filter};
use va_vector::{Metric, VectorStore};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_never_see_a_half_replaced_document() {
    let dir = temp();
    // Compaction runs in between, again and again.
    let store = Arc::new(
        open_with(&dir, |options| {
            options.fragments_max = 5;
            options.sync = false;
        })
        .await,
    );
    let help = collection("default", "help");
    let mut random = Random(7);
    put(&store, &help, &sample(&help, &mut random, "a", 1, 4)).await;
    put(
        &store,
        &help,
        &sample(&help, &mut random, "bystander", 1, 3),
    )
    .await;

    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for by_search in [true, false] {
        let (store, help, done) = (store.clone(), help.clone(), done.clone());
        readers.push(tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                rounds += 1;
                let found: Vec<(DocumentId, u32)> = if by_search {
                    let query = vec![0.5; DIMS];
                    store
                        .search(&help, &query, 100, Metric::L2, &Filter::default())
                        .await
                        .expect("hits")
                        .into_iter()
                        .map(|hit| (hit.chunk.document.id, hit.chunk.document.version.0))
                        .collect()
                } else {
                    let snapshot = store.snapshot(&help).await.expect("a snapshot");
                    let keys = snapshot.expect("a table").chunk_keys().await;
                    let found = keys.expect("keys").into_iter();
                    found.map(|key| (key.document, key.version.0)).collect()
                };
                let (a, rest): (Vec<_>, Vec<_>) = found
                    .into_iter()
                    .partition(|(id, _)| *id == document(&help, "a"));
                let versions: BTreeSet<u32> = a.iter().map(|(_, version)| *version).collect();
                assert_eq!(
                    (versions.len(), a.len(), rest.len()),
                    (1, 4, 3),
                    "{versions:?}"
                );
                seen.extend(versions);
            }
            (rounds, seen.len())
        }));
    }
    let last = 60;
    for version in 2..=last {
        put(&store, &help, &sample(&help, &mut random, "a", version, 4)).await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        let (rounds, versions) = reader.await.expect("a reader");
        assert!(rounds >= 3 && versions >= 1);
    }
    store.settle(&help).await.expect("settled");
    assert_eq!(texts(&store, &help).await.len(), 7);
    assert_eq!(texts(&store, &help).await[0], format!("a v{last} #0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_stay_few_and_results_the_same() {
    let dir = temp();
    let store = open_with(&dir, |options| {
        options.fragments_max = 10;
        options.keep_versions = Duration::ZERO;
        options.sync = false;
    })
    .await;
    let help = collection("default", "help");
    let mut random = Random(8);
    let mut vectors = HashMap::new();
    let mut documents: HashMap<String, Vec<ChunkId>> = HashMap::new();
    for i in 0..200u32 {
        // Every fifth write replaces an older document.
        let name = format!("d{}", if i % 5 == 4 { i / 2 } else { i });
        let chunks = sample(&help, &mut random, &name, i + 1, 2);
        put(&store, &help, &chunks).await;
        for id in documents.remove(&name).unwrap_or_default() {
            vectors.remove(&id);
        }
        documents.insert(name, chunks.iter().map(|(record, _)| record.id).collect());
        vectors.extend(
            chunks
                .into_iter()
                .map(|(record, vector)| (record.id, vector)),
        );
        let fragments = store.fragments(&help).await.expect("fragments");
        assert!(fragments <= 60, "{fragments} fragments after {i} writes");
    }
    store.settle(&help).await.expect("settled");
    let fragments = store.fragments(&help).await.expect("fragments");
    assert!(fragments <= 22, "{fragments} fragments are left");
    assert_eq!(
        store.count(&help).await.expect("a count"),
        vectors.len() as u64
    );
    check_order(&store, &help, &vectors, &mut random).await;

    let report = store.optimize(&help).await.expect("optimized");
    assert_eq!(report.fragments_after, 1, "{report:?}");
    assert!(report.indexes.is_empty());
    check_order(&store, &help, &vectors, &mut random).await;
    check_order(&open(&dir).await, &help, &vectors, &mut random).await;
}
