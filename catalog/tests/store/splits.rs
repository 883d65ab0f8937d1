//! States of a shared index: what each shows, who wins, and what two processes make of one collection at once.

use crate::*;

on_both!(
    a_state_shows_what_was_published_up_to_it,
    what_is_old_is_dead_on_arrival,
    a_removal_stays,
    publishing_again_changes_nothing,
    a_merge_keeps_what_died_meanwhile,
    a_merge_whose_input_is_gone_does_nothing,
    merges_take_turns,
    many_publish_at_once,
    a_dropped_collection_leaves_nothing_and_counts_on,
    objects_are_in_use_until_forgotten,
    many_documents_are_published_at_once,
);

fn document(uri: &str, version: u32) -> SplitDocument {
    SplitDocument {
        id: DocumentId::of(&collection("default", "帮助-2026"), uri),
        version: Version(version),
        removed: false,
        has_rows: true,
    }
}

fn removal(uri: &str, version: u32) -> SplitDocument {
    SplitDocument {
        removed: true,
        has_rows: false,
        ..document(uri, version)
    }
}

fn split(name: &str) -> NewSplit {
    NewSplit {
        object: hash(name),
        rows: 3,
        bytes: 1_000,
        dims: Some(4),
    }
}

/// Publishes `name` with documents; its number.
async fn publish(
    catalog: &Catalog,
    help: &CollectionRef,
    name: &str,
    documents: &[SplitDocument],
) -> i64 {
    let split = split(name);
    let rows = documents.iter().any(|document| document.has_rows);
    let published = catalog
        .publish_split(help, rows.then_some(&split), documents)
        .await;
    published.expect("published").expect("a collection").seq
}

/// The splits of the newest state, each with what is dead in it: `1:ab 2:` in the order of the splits.
async fn shown(catalog: &Catalog, help: &CollectionRef) -> String {
    let state = catalog.split_state(help, 0).await.expect("a state");
    let names = ["a", "b", "c", "d"];
    let part = |info: &SplitInfo| {
        let dead = names.iter().filter(|name| {
            let id = document(name, 1).id;
            state.dead.contains(&(info.seq, id))
        });
        format!("{}:{}", info.seq.0, dead.copied().collect::<String>())
    };
    let parts: Vec<_> = state.splits.iter().map(part).collect();
    parts.join(" ")
}

async fn a_state_shows_what_was_published_up_to_it(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    assert_eq!(catalog.split_seq(&help).await.expect("a number"), 0);
    assert_eq!(shown(catalog, &help).await, "");
    publish(catalog, &help, "s1", &[document("a", 1), document("b", 1)]).await;
    publish(catalog, &help, "s2", &[document("a", 2), document("c", 1)]).await;
    assert_eq!(shown(catalog, &help).await, "1:a 2:");
    // An empty document takes the chunks of its older version away.
    let empty = SplitDocument {
        has_rows: false,
        ..document("b", 2)
    };
    publish(catalog, &help, "-", &[empty]).await;
    assert_eq!(shown(catalog, &help).await, "1:ab 2:");

    let since = catalog.split_state(&help, 2).await.expect("a state");
    assert_eq!(since.seq, 3);
    assert_eq!(since.dead, [(SplitSeq(1), document("b", 1).id)]);
    assert_eq!(since.splits.len(), 2);
    assert_eq!(since.splits[0].split, split("s1"));
    let collections = catalog.split_collections_all_tenants().await;
    assert_eq!(collections.expect("collections"), [help]);
}

async fn what_is_old_is_dead_on_arrival(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    publish(catalog, &help, "new", &[document("a", 2)]).await;
    // The zombie's split also has a document that nobody else published.
    let late = [document("a", 1), document("b", 1)];
    publish(catalog, &help, "zombie", &late).await;
    assert_eq!(shown(catalog, &help).await, "1: 2:a");
    // With nothing visible in it the split is not there at all.
    publish(catalog, &help, "zombie 2", &[document("a", 1)]).await;
    assert_eq!(shown(catalog, &help).await, "1: 2:a");
    // A replay of the newest takes its place.
    publish(catalog, &help, "replay", &[document("a", 2)]).await;
    assert_eq!(shown(catalog, &help).await, "1:a 2:a 4:");
}

async fn a_removal_stays(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    publish(catalog, &help, "s1", &[document("a", 1), document("b", 1)]).await;
    publish(catalog, &help, "-", &[removal("a", 1)]).await;
    assert_eq!(shown(catalog, &help).await, "1:a");
    publish(
        catalog,
        &help,
        "late",
        &[document("a", 1), document("c", 1)],
    )
    .await;
    assert_eq!(shown(catalog, &help).await, "1:a 3:a");
    publish(catalog, &help, "again", &[document("a", 2)]).await;
    assert_eq!(shown(catalog, &help).await, "1:a 3:a 4:");
    publish(catalog, &help, "-", &[removal("a", 1)]).await;
    assert_eq!(shown(catalog, &help).await, "1:a 3:a 4:");
}

async fn publishing_again_changes_nothing(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let first = publish(catalog, &help, "s1", &[document("a", 1)]).await;
    assert_eq!(
        publish(catalog, &help, "s1", &[document("a", 1)]).await,
        first
    );
    let merged = catalog
        .merge_splits(&help, &[SplitSeq(1)], 1, Some(&split("m")))
        .await;
    assert_eq!(merged.expect("merged"), Some(2));
    assert_eq!(publish(catalog, &help, "s1", &[document("a", 1)]).await, 2);
    assert_eq!(shown(catalog, &help).await, "2:");
    let longer = NewSplit {
        dims: Some(5),
        ..split("longer")
    };
    let refused = catalog
        .publish_split(&help, Some(&longer), &[document("c", 1)])
        .await;
    let error = refused.expect_err("another length");
    assert!(error.to_string().contains("4 dimensions, got 5"), "{error}");
    let unknown = collection("default", "unknown");
    let published = catalog
        .publish_split(&unknown, Some(&split("s2")), &[])
        .await;
    assert_eq!(published.expect("an answer"), None);
}

async fn a_merge_keeps_what_died_meanwhile(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    publish(catalog, &help, "s1", &[document("a", 1), document("b", 1)]).await;
    publish(catalog, &help, "s2", &[document("a", 2), document("c", 1)]).await;
    // Read here; then `b` is replaced and `c` removed, which the output does not know.
    publish(catalog, &help, "s3", &[document("b", 2), removal("c", 1)]).await;
    let inputs = [SplitSeq(1), SplitSeq(2)];
    let merged = catalog
        .merge_splits(&help, &inputs, 2, Some(&split("m")))
        .await;
    assert_eq!(merged.expect("merged"), Some(4));
    assert_eq!(shown(catalog, &help).await, "3: 4:bc");
    // What is replaced after the merge dies in its output.
    publish(catalog, &help, "s5", &[document("a", 3)]).await;
    assert_eq!(shown(catalog, &help).await, "3: 4:abc 5:");
    // A merge of nothing but dead chunks leaves nothing.
    let merged = catalog.merge_splits(&help, &[SplitSeq(4)], 5, None).await;
    assert_eq!(merged.expect("merged"), Some(6));
    assert_eq!(shown(catalog, &help).await, "3: 5:");
}

async fn a_merge_whose_input_is_gone_does_nothing(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    for (name, uri) in [("s1", "a"), ("s2", "b"), ("s3", "c")] {
        publish(catalog, &help, name, &[document(uri, 1)]).await;
    }
    let merge = async |inputs: &[SplitSeq], name| {
        let merged = catalog
            .merge_splits(&help, inputs, 3, Some(&split(name)))
            .await;
        merged.expect("an answer")
    };
    assert_eq!(merge(&[SplitSeq(1), SplitSeq(2)], "m1").await, Some(4));
    assert_eq!(merge(&[SplitSeq(2), SplitSeq(3)], "m2").await, None);
    assert_eq!(shown(catalog, &help).await, "3: 4:");
    assert_eq!(catalog.split_seq(&help).await.expect("a number"), 4);
}

async fn merges_take_turns(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let (one, other) = (&bench.catalog, bench.second().await);
    publish(one, &help, "s1", &[document("a", 1)]).await;
    assert!(one.begin_merge(&help, 100).await.expect("an answer"));
    assert!(!other.begin_merge(&help, 100).await.expect("an answer"));
    // A process that died does not keep it.
    bench.clock.fetch_add(100, Ordering::SeqCst);
    assert!(other.begin_merge(&help, 100).await.expect("an answer"));
    other.end_merge(&help).await.expect("given back");
    assert!(one.begin_merge(&help, 100).await.expect("an answer"));
}

async fn many_publish_at_once(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=20_u32 {
        let (catalog, help) = (handles[n as usize % 2].clone(), help.clone());
        tasks.spawn(async move {
            publish(&catalog, &help, &format!("split {n}"), &[document("a", n)]).await
        });
    }
    let numbers: BTreeSet<i64> = tasks.join_all().await.into_iter().collect();
    assert_eq!(numbers, (1..=20).collect());
    // The newest version is the one that is left, whatever the order was.
    let state = bench.catalog.split_state(&help, 0).await.expect("a state");
    let dead: BTreeSet<_> = state.dead.iter().map(|(split, _)| *split).collect();
    let live: Vec<_> = state
        .splits
        .iter()
        .filter(|info| !dead.contains(&info.seq))
        .collect();
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].split.object, hash("split 20"));
}

async fn a_dropped_collection_leaves_nothing_and_counts_on(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    publish(catalog, &help, "s1", &[document("a", 5)]).await;
    catalog.delete_collection(&help).await.expect("marked");
    // What comes late finds no collection.
    let late = catalog
        .publish_split(&help, Some(&split("late")), &[document("b", 1)])
        .await;
    assert_eq!(late.expect("an answer"), None);
    for _ in 0..2 {
        catalog.drop_splits(&help).await.expect("dropped");
    }
    catalog.drop_collection(&help).await.expect("dropped");
    assert_eq!(shown(catalog, &help).await, "");
    let config = CollectionConfig::default();
    catalog
        .create_collection(&help, &config)
        .await
        .expect("a collection");
    let seq = publish(catalog, &help, "s2", &[document("a", 1)]).await;
    assert!(seq > 2, "{seq}");
    assert_eq!(shown(catalog, &help).await, format!("{seq}:"));
    // What is late from the former life has a version that was not given yet; it is not newer than what is.
    let begun = catalog.begin_version(&help, &version_of("b", "x")).await;
    assert_eq!(begun.expect("begun").version, Version(1));
    publish(catalog, &help, "late", &[document("b", 5)]).await;
    assert_eq!(shown(catalog, &help).await, format!("{seq}:"));
    let last = publish(catalog, &help, "s3", &[document("b", 1)]).await;
    assert_eq!(shown(catalog, &help).await, format!("{seq}: {last}:"));
}

async fn objects_are_in_use_until_forgotten(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    publish(catalog, &help, "s1", &[document("a", 1)]).await;
    publish(catalog, &help, "s2", &[document("b", 1)]).await;
    let merged = catalog
        .merge_splits(&help, &[SplitSeq(1), SplitSeq(2)], 2, Some(&split("m")))
        .await;
    merged.expect("merged");
    let objects = ["s1", "s2", "m", "orphan"].map(hash);
    let in_use = async || {
        let used = catalog.objects_in_use_all_tenants(&objects, 20).await;
        used.expect("an answer").len()
    };
    assert_eq!(in_use().await, 3);
    bench.clock.fetch_add(1_000, Ordering::SeqCst);
    assert_eq!(catalog.forget_splits(1_000).await.expect("an answer"), 0);
    bench.clock.fetch_add(1, Ordering::SeqCst);
    assert_eq!(catalog.forget_splits(1_000).await.expect("an answer"), 2);
    assert_eq!(in_use().await, 1);
    assert_eq!(shown(catalog, &help).await, "3:");
}

async fn many_documents_are_published_at_once(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let documents = |version| -> Vec<SplitDocument> {
        (0..1_234)
            .map(|n| document(&format!("file:///{n}"), version))
            .collect()
    };
    publish(catalog, &help, "s1", &documents(1)).await;
    let published = catalog
        .publish_split(&help, Some(&split("s2")), &documents(2))
        .await;
    let published = published.expect("published").expect("a collection");
    assert_eq!((published.moved, published.outrun), (1_234, 0));
    let state = catalog.split_state(&help, 1).await.expect("a state");
    assert_eq!(state.dead.len(), 1_234);
}
