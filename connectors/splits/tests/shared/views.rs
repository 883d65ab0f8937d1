//! What searches see while several processes write.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use va_catalog::{CollectionName, CollectionRef, Filter};
use va_fulltext::TextSnapshot;
use va_splits::SplitOptions;
use va_vector::{Metric, VectorError, VectorSnapshot, VectorStore};

use crate::world::*;

on_both!(
    what_one_publishes_all_see,
    a_zombie_brings_nothing_back,
    what_a_failed_task_left_is_gone,
    two_tasks_write_one_collection,
    two_processes_write_one_collection,
    an_orphan_is_seen_by_nobody,
    a_collection_for_keywords_only,
    nothing_is_there_before_the_first,
    a_dropped_collection_is_gone_everywhere,
    rows_for_sql,
    vectors_of_another_length_are_refused,
    a_search_need_not_ask_each_time,
);

async fn what_one_publishes_all_see(on: On) {
    let world = World::new(on).await;
    let (writer, reader) = (world.process("writer").await, world.process("reader").await);
    let help = &world.help;
    writer
        .checkpoint(&[document(help, "a", 1, 2), document(help, "b", 1, 1)])
        .await;
    assert_eq!(reader.seen().await, ["a 1", "b 1"]);
    let before = reader.view().await;
    // Replaced, made empty, and new.
    let change = [
        document(help, "a", 2, 1),
        document(help, "b", 2, 0),
        document(help, "c", 1, 3),
    ];
    writer.checkpoint(&change).await;
    assert_eq!(reader.seen().await, ["a 2", "c 1"]);
    assert_eq!(writer.seen().await, ["a 2", "c 1"]);
    assert_eq!(
        seen(&before).await,
        ["a 1", "b 1"],
        "a view does not change"
    );
    writer.checkpoint(&[removal(help, "a", 2)]).await;
    assert_eq!(reader.seen().await, ["c 1"]);
    // A replay takes the place of what it repeats.
    writer.checkpoint(&change[2..]).await;
    assert_eq!(reader.seen().await, ["c 1"]);
    // A process that starts later sees the same.
    assert_eq!(world.process("late").await.seen().await, ["c 1"]);
}

async fn a_zombie_brings_nothing_back(on: On) {
    let world = World::new(on).await;
    let (zombie, owner) = (world.process("zombie").await, world.process("owner").await);
    let help = &world.help;
    owner
        .checkpoint(&[document(help, "a", 1, 1), document(help, "b", 1, 1)])
        .await;
    // It has prepared this, and is slow.
    zombie.apply(&together(&[
        document(help, "a", 1, 1),
        document(help, "b", 1, 1),
    ]));
    owner
        .checkpoint(&[document(help, "a", 2, 1), removal(help, "b", 1)])
        .await;
    let published = zombie
        .writer
        .publish(help)
        .await
        .expect("published")
        .expect("a state");
    assert_eq!((published.moved, published.outrun), (0, 2));
    for process in [&zombie, &owner] {
        assert_eq!(process.seen().await, ["a 2"]);
    }
}

async fn what_a_failed_task_left_is_gone(on: On) {
    let world = World::new(on).await;
    let process = world.process("one").await;
    let help = &world.help;
    // A task that failed between its sinks.
    let failed = process.store.writer();
    failed.apply_vectors(help, document(help, "a", 1, 1));
    drop(failed);
    process.checkpoint(&[document(help, "b", 1, 1)]).await;
    assert_eq!(process.seen().await, ["b 1"]);
    // Of a document that comes twice in a checkpoint the last counts.
    process.apply(&document(help, "a", 1, 2));
    process.apply(&document(help, "a", 2, 1));
    process.checkpoint(&[document(help, "c", 1, 1)]).await;
    assert_eq!(process.seen().await, ["a 2", "b 1", "c 1"]);
    let again = process.writer.publish(help).await.expect("nothing to do");
    assert_eq!(again, None);
}

async fn two_tasks_write_one_collection(on: On) {
    let world = World::new(on).await;
    let process = world.process("one").await;
    let help = &world.help;
    let (one, other) = (process.store.writer(), process.store.writer());
    let texts = |name| {
        document(help, name, 1, 1)
            .project(&without_vector())
            .expect("columns")
    };
    one.apply_texts(help, texts("a"));
    other.apply_texts(help, texts("b"));
    other.apply_vectors(help, document(help, "b", 1, 1));
    other.publish(help).await.expect("published");
    assert_eq!(
        process.seen().await,
        ["b 1"],
        "what one task publishes is its own"
    );
    one.apply_vectors(help, document(help, "a", 1, 1));
    one.publish(help).await.expect("published");
    assert_eq!(process.seen().await, ["a 1", "b 1"]);
}

async fn two_processes_write_one_collection(on: On) {
    let world = World::new(on).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in ["w0", "w1"] {
        let (process, help) = (world.process(writer).await, world.help.clone());
        tasks.spawn(async move {
            for version in 1..=6 {
                // One document each, and one that both fight for.
                let own = document(&help, writer, version, 1);
                process
                    .checkpoint(&[own, document(&help, "both", version, 2)])
                    .await;
            }
        });
    }
    let reader = world.process("reader").await;
    let mut states = BTreeSet::new();
    while !tasks.is_empty() {
        let view = reader.view().await;
        // Also in the middle: one version of each, the same on both sides.
        let names = seen(&view).await;
        let documents: BTreeSet<_> = names.iter().map(|name| name.split(' ').next()).collect();
        assert_eq!(documents.len(), names.len(), "{names:?}");
        states.insert(view.seq());
        while let Some(done) = tasks.try_join_next() {
            done.expect("a writer");
        }
    }
    assert_eq!(reader.seen().await, ["both 6", "w0 6", "w1 6"]);
    assert_eq!(reader.view().await.seq(), 12);
    assert!(!states.is_empty());
}

async fn an_orphan_is_seen_by_nobody(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    process.checkpoint(&[document(help, "a", 1, 1)]).await;
    let objects = world.objects().await;
    let all = async || {
        let mut found = Vec::new();
        for dir in 0..=255 {
            found.extend(objects.list(dir).await.expect("a list"));
        }
        found
    };
    let before = all().await;
    // The upload is done, and the catalog is not there any more: what a crash between the two leaves.
    let catalog = world.catalog().await;
    let broken = world.process_closed("two").await;
    broken.apply(&document(help, "b", 1, 1));
    broken.writer.publish(help).await.expect_err("no catalog");
    let orphans: Vec<_> = all()
        .await
        .into_iter()
        .filter(|hash| !before.contains(hash))
        .collect();
    assert_eq!(orphans.len(), 1);
    assert_eq!(world.process("three").await.seen().await, ["a 1"]);
    let used = catalog.objects_in_use_all_tenants(&orphans, 20).await;
    assert!(used.expect("an answer").is_empty());
    let used = catalog.objects_in_use_all_tenants(&before, 20).await;
    assert_eq!(used.expect("an answer").len(), before.len());
    // It is done again.
    process.checkpoint(&[document(help, "b", 1, 1)]).await;
    assert_eq!(process.seen().await, ["a 1", "b 1"]);
}

async fn a_collection_for_keywords_only(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    let rows = document_of(help, "a", 1, &["冻结行或列，作为表头".to_owned()]);
    let rows = rows.project(&without_vector()).expect("columns");
    // The sink of vectors hands the document over without chunks.
    process
        .writer
        .apply_vectors(help, document(help, "a", 1, 0));
    process.writer.apply_texts(help, rows);
    process.writer.publish(help).await.expect("published");
    let view = process.view().await;
    assert!(!view.has_vectors());
    assert_eq!(view.dims(), None);
    for (query, hits) in [("冻结行", 1), ("表头", 1), ("打印", 0)] {
        let found = TextSnapshot::search(&*view, query, 5, &Default::default()).await;
        assert_eq!(found.expect("hits").len(), hits, "{query}");
    }
    let snapshot = process.store.snapshot(help).await.expect("an answer");
    let snapshot = snapshot.expect("a version, for upkeep");
    assert!(snapshot.chunk_keys().await.expect("keys").is_empty());
    assert!(
        process
            .store
            .scan(help, None, None, None)
            .await
            .expect("an answer")
            .is_none()
    );
    assert_eq!(process.store.schema(help).await.expect("an answer"), None);
    process.checkpoint(&[removal(help, "a", 1)]).await;
    assert_eq!(process.seen().await, Vec::<String>::new());
}

async fn nothing_is_there_before_the_first(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    assert_eq!(process.seen().await, Vec::<String>::new());
    assert_eq!(process.view().await.seq(), 0);
    assert!(
        process
            .store
            .snapshot(help)
            .await
            .expect("an answer")
            .is_none()
    );
    assert_eq!(
        VectorStore::collections(&*process.store)
            .await
            .expect("names"),
        []
    );
    // The removal of a document that never was.
    process.checkpoint(&[removal(help, "a", 1)]).await;
    assert_eq!(process.seen().await, Vec::<String>::new());
    // A collection that is not in the catalog takes nothing in.
    let other = CollectionRef {
        collection: CollectionName::new("other").expect("a name"),
        ..help.clone()
    };
    process
        .writer
        .apply_texts(&other, document(&other, "a", 1, 1));
    assert_eq!(
        process.writer.publish(&other).await.expect("an answer"),
        None
    );
    assert_eq!(
        process.store.view(&other).await.expect("a view").splits(),
        0
    );
}

async fn a_dropped_collection_is_gone_everywhere(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let (one, other) = (world.process("one").await, world.process("other").await);
    one.checkpoint(&[document(help, "a", 3, 1)]).await;
    assert_eq!(other.seen().await, ["a 3"]);
    let catalog = world.catalog().await;
    catalog.delete_collection(help).await.expect("marked");
    one.store.drop_collection(help).await.expect("dropped");
    one.store.drop_collection(help).await.expect("repeated");
    catalog.drop_collection(help).await.expect("dropped");
    for process in [&one, &other] {
        assert_eq!(process.seen().await, Vec::<String>::new());
        assert_eq!(
            VectorStore::collections(&*process.store)
                .await
                .expect("names"),
            []
        );
    }
    // Made anew, versions begin anew.
    catalog
        .create_collection(help, &Default::default())
        .await
        .expect("a collection");
    one.checkpoint(&[document(help, "a", 1, 1)]).await;
    for process in [&one, &other] {
        assert_eq!(process.seen().await, ["a 1"]);
    }
}

async fn rows_for_sql(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    process
        .checkpoint(&[document(help, "a", 1, 3), document(help, "b", 1, 2)])
        .await;
    process
        .checkpoint(&[document(help, "b", 2, 4), document(help, "c", 1, 1)])
        .await;
    let scan = async |columns: &[&str], filter: Option<&str>, limit| {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        let scan = process
            .store
            .scan(help, Some(&columns), filter, limit)
            .await;
        let scan = scan.expect("rows").expect("a collection");
        assert_eq!(scan.schema.fields().len(), columns.len());
        let batches: Vec<_> = scan.batches.try_collect().await.expect("batches");
        batches.iter().map(|batch| batch.num_rows()).sum::<usize>()
    };
    assert_eq!(scan(&["name", "version"], None, None).await, 8);
    assert_eq!(scan(&[], None, None).await, 8);
    assert_eq!(scan(&["id"], None, Some(5)).await, 5);
    assert_eq!(scan(&["id"], Some("name = 'b'"), None).await, 4);
    assert_eq!(scan(&["id"], Some("name = 'b'"), Some(3)).await, 3);
    assert_eq!(process.store.count(help).await.expect("a count"), 8);
    let schema = process.store.schema(help).await.expect("a schema");
    assert_eq!(schema, Some(va_vector::stored_schema(DIMS)));
    let keys = VectorSnapshot::chunk_keys(&*process.view().await)
        .await
        .expect("keys");
    let mut ids: Vec<_> = keys.iter().map(|key| key.id).collect();
    ids.reverse();
    let chunks = process.store.chunks(help, &ids).await.expect("chunks");
    let found: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
    assert_eq!(found, ids);
    let snapshot = process
        .store
        .snapshot(help)
        .await
        .expect("read")
        .expect("a view");
    let again = process.store.snapshot_at(help, snapshot.version()).await;
    assert!(again.expect("read").is_some());
}

async fn vectors_of_another_length_are_refused(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    process.checkpoint(&[document(help, "a", 1, 1)]).await;
    let (view, filter) = (process.view().await, Filter::default());
    let found = VectorSnapshot::search(&*view, &[1.0], 3, Metric::Cosine, &filter).await;
    let error = found.expect_err("another length");
    assert!(
        matches!(error, VectorError::Dimensions { has: 4, got: 1, .. }),
        "{error}"
    );
}

async fn a_search_need_not_ask_each_time(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let patient = SplitOptions {
        refresh_ms: 3_600_000,
        ..options()
    };
    let (one, other) = (
        world.process_with("one", patient.clone()).await,
        world.process_with("other", patient).await,
    );
    one.checkpoint(&[document(help, "a", 1, 1)]).await;
    assert_eq!(other.seen().await, ["a 1"]);
    one.checkpoint(&[document(help, "a", 2, 1)]).await;
    assert_eq!(one.seen().await, ["a 2"], "what it published itself");
    assert_eq!(other.seen().await, ["a 1"], "it has asked not long ago");
}
