//! Merging, while others publish and search.

use va_catalog::Filter;
use va_splits::{MergePolicy, SplitOptions};
use va_vector::{LanceOptions, Metric, VectorSnapshot, VectorStore};

use crate::world::*;

on_both!(
    many_become_few,
    a_view_outlives_a_merge_of_everything,
    a_merge_and_publishes_at_once,
    two_processes_merge_at_once,
    what_is_all_dead_goes,
    large_splits_get_an_index,
    publishing_sets_merges_off,
);

fn merging(fan_in: usize) -> SplitOptions {
    SplitOptions {
        merge: MergePolicy {
            fan_in,
            ..MergePolicy::default()
        },
        ..options()
    }
}

/// A process that merges when it is told to.
async fn merge(world: &World, name: &str) -> (usize, usize) {
    let process = world.process_with(name, merging(2)).await;
    let report = process.store.optimize(&world.help).await.expect("merged");
    (report.fragments_before, report.fragments_after)
}

async fn many_become_few(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    for n in 1..=5 {
        let own = document(help, &format!("d{n}"), 1, 2);
        process
            .checkpoint(&[own, document(help, "same", n, 1)])
            .await;
    }
    process.checkpoint(&[removal(help, "d3", 1)]).await;
    let expected = ["d1 1", "d2 1", "d4 1", "d5 1", "same 5"];
    assert_eq!(process.seen().await, expected);
    assert_eq!(merge(&world, "merger").await, (5, 1));
    assert_eq!(process.seen().await, expected);
    assert_eq!(process.view().await.splits(), 1);
    assert_eq!(world.process("late").await.seen().await, expected);
    // And on from there.
    process
        .checkpoint(&[document(help, "d1", 2, 1), removal(help, "same", 5)])
        .await;
    assert_eq!(process.seen().await, ["d1 2", "d2 1", "d4 1", "d5 1"]);
    assert_eq!(merge(&world, "merger").await, (2, 1));
    assert_eq!(process.seen().await, ["d1 2", "d2 1", "d4 1", "d5 1"]);
}

async fn a_view_outlives_a_merge_of_everything(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let (writer, reader) = (world.process("writer").await, world.process("reader").await);
    for n in 1..=3 {
        writer
            .checkpoint(&[document(help, &format!("d{n}"), 1, 2)])
            .await;
    }
    let held = reader.view().await;
    for n in 1..=3 {
        writer
            .checkpoint(&[document(help, &format!("d{n}"), 2, 1)])
            .await;
    }
    merge(&world, "merger").await;
    assert_eq!(reader.seen().await, ["d1 2", "d2 2", "d3 2"]);
    assert_eq!(seen(&held).await, ["d1 1", "d2 1", "d3 1"]);
    // A process that is behind may still fetch the old splits, until they are forgotten.
    let catalog = world.catalog().await;
    let hashes: Vec<_> = {
        let objects = world.objects().await;
        let mut all = Vec::new();
        for dir in 0..=255 {
            all.extend(objects.list(dir).await.expect("a list"));
        }
        all
    };
    let used = async || {
        let used = catalog.objects_in_use_all_tenants(&hashes, 20).await;
        used.expect("an answer").len()
    };
    assert_eq!(used().await, 7);
    assert_eq!(
        catalog.forget_splits(3_600_000).await.expect("an answer"),
        0
    );
    assert_eq!(catalog.forget_splits(-1_000).await.expect("an answer"), 6);
    assert_eq!(used().await, 1);
    assert_eq!(seen(&held).await, ["d1 1", "d2 1", "d3 1"]);
}

async fn a_merge_and_publishes_at_once(on: On) {
    let world = World::new(on).await;
    let help = world.help.clone();
    let (writer, merger) = (
        world.process("writer").await,
        world.process_with("merger", merging(2)).await,
    );
    for n in 0..4 {
        writer
            .checkpoint(&[document(&help, &format!("d{n}"), 1, 3)])
            .await;
    }
    let merges = {
        let (store, help) = (merger.store.clone(), help.clone());
        tokio::spawn(async move {
            for _ in 0..4 {
                store.optimize(&help).await.expect("merged");
            }
        })
    };
    let reader = world.process("reader").await;
    for version in 2..=5 {
        for n in 0..3 {
            let change = match (version, n) {
                (5, 2) => removal(&help, "d2", 4),
                _ => document(&help, &format!("d{n}"), version, 2),
            };
            writer.checkpoint(&[change]).await;
            assert!(reader.seen().await.len() >= 3);
        }
    }
    merges.await.expect("merges");
    let expected = ["d0 5", "d1 5", "d3 1"];
    assert_eq!(reader.seen().await, expected);
    merger.store.optimize(&help).await.expect("merged");
    assert_eq!(reader.seen().await, expected);
    assert_eq!(reader.view().await.splits(), 1);
}

async fn two_processes_merge_at_once(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let writer = world.process("writer").await;
    for n in 0..6 {
        writer
            .checkpoint(&[document(help, &format!("d{n}"), 1, 1)])
            .await;
    }
    let processes = [
        world.process_with("m0", merging(2)).await,
        world.process_with("m1", merging(2)).await,
    ];
    let merge = |process: &Process| {
        let (store, help) = (process.store.clone(), help.clone());
        tokio::spawn(async move { store.optimize(&help).await.expect("merged") })
    };
    let [one, other] = [merge(&processes[0]), merge(&processes[1])];
    one.await.expect("a merge");
    other.await.expect("a merge");
    assert_eq!(writer.view().await.splits(), 1);
    assert_eq!(writer.seen().await.len(), 6);
}

async fn what_is_all_dead_goes(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    process.checkpoint(&[document(help, "a", 1, 5)]).await;
    process.checkpoint(&[removal(help, "a", 1)]).await;
    assert_eq!(process.view().await.splits(), 1);
    assert_eq!(merge(&world, "merger").await, (1, 0));
    assert_eq!(process.seen().await, Vec::<String>::new());
    assert_eq!(process.view().await.splits(), 0);
    // The removal is still known.
    process.checkpoint(&[document(help, "a", 1, 5)]).await;
    assert_eq!(process.seen().await, Vec::<String>::new());
    process.checkpoint(&[document(help, "a", 2, 1)]).await;
    assert_eq!(process.seen().await, ["a 2"]);
}

async fn large_splits_get_an_index(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let with_index = SplitOptions {
        vectors: LanceOptions {
            index_rows_min: 300,
            // As many as there are, so that nothing is missed.
            nprobes: Some(64),
            ..LanceOptions::default()
        },
        ..merging(2)
    };
    let process = world.process_with("one", with_index.clone()).await;
    let quiet = world.process("quiet").await;
    for n in 0..4 {
        let documents: Vec<_> = (0..10)
            .map(|m| document(help, &format!("d{n}-{m}"), 1, 10))
            .collect();
        quiet.checkpoint(&documents).await;
    }
    process.store.optimize(help).await.expect("merged");
    let view = process.view().await;
    assert_eq!(view.splits(), 1);
    let dir = world.cache_dir("one");
    let indexes = entries(&dir)
        .iter()
        .filter(|name| dir.join(name).join("vectors/_indices").exists())
        .count();
    assert_eq!(indexes, 1, "the merged one");
    assert_eq!(process.seen().await.len(), 40);
    // What dies in it is left out before the nearest are chosen, also with an index.
    let gone: Vec<_> = (0..10)
        .map(|m| removal(help, &format!("d0-{m}"), 1))
        .collect();
    quiet.checkpoint(&gone).await;
    assert_eq!(process.seen().await.len(), 30);
    let view = process.view().await;
    let (query, filter) = ([1.0, 0.5, 0.25, 0.1], Filter::default());
    let hits = VectorSnapshot::search(&*view, &query, 250, Metric::Cosine, &filter).await;
    assert_eq!(hits.expect("hits").len(), 250);
}

async fn publishing_sets_merges_off(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let options = SplitOptions {
        merge: MergePolicy {
            splits_max: 8,
            ..MergePolicy::default()
        },
        ..options()
    };
    let process = world.process_with("one", options).await;
    for n in 0..20 {
        process
            .checkpoint(&[document(help, &format!("d{n:02}"), 1, 1)])
            .await;
        // A writer that is far ahead has waited.
        assert!(process.view().await.splits() <= 10);
    }
    process.store.optimize(help).await.expect("merged");
    assert!(process.view().await.splits() < 4);
    assert_eq!(process.seen().await.len(), 20);
}
