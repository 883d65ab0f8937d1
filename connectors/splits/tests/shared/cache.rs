//! The local copies of splits.

use va_splits::SplitOptions;

use crate::world::*;

on_both!(
    what_is_not_in_use_makes_room,
    half_of_a_split_is_fetched_again,
    a_process_keeps_what_it_fetched,
);

/// Splits in the cache, by their folders.
fn cached(world: &World, name: &str) -> usize {
    let entries = entries(&world.cache_dir(name));
    assert!(
        entries.iter().all(|name| !name.starts_with('~')),
        "{entries:?}"
    );
    entries.len()
}

async fn what_is_not_in_use_makes_room(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let writer = world.process("writer").await;
    let small = SplitOptions {
        cache_bytes_max: 1,
        ..options()
    };
    let reader = world.process_with("reader", small).await;
    for n in 1..=3 {
        writer
            .checkpoint(&[
                document(help, "a", n, 1),
                document(help, &format!("d{n}"), 1, 1),
            ])
            .await;
    }
    assert_eq!(reader.seen().await, ["a 3", "d1 1", "d2 1", "d3 1"]);
    // Everything is in use, so everything is there.
    assert_eq!(cached(&world, "reader"), 3);
    let held = reader.view().await;
    let catalog = world.catalog().await;
    catalog.delete_collection(help).await.expect("marked");
    writer.store.drop_collection(help).await.expect("dropped");
    assert_eq!(reader.seen().await, Vec::<String>::new());
    assert_eq!(cached(&world, "reader"), 3, "a search still reads them");
    assert_eq!(seen(&held).await, ["a 3", "d1 1", "d2 1", "d3 1"]);
    drop(held);
    reader.store.drop_collection(help).await.expect("dropped");
    assert_eq!(cached(&world, "reader"), 0);
    // The writer has room and keeps them.
    assert_eq!(cached(&world, "writer"), 3);
}

async fn half_of_a_split_is_fetched_again(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    world
        .process("writer")
        .await
        .checkpoint(&[document(help, "a", 1, 3)])
        .await;
    let reader = world.process("reader").await;
    assert_eq!(reader.seen().await, ["a 1"]);
    drop(reader);
    // A power cut took the end of a file; a kill left a folder that was being made.
    let dir = world.cache_dir("reader");
    let split = dir.join(&entries(&dir)[0]);
    let texts = split.join("texts");
    let file = entries(&texts)
        .into_iter()
        .find(|name| name.ends_with(".store"));
    let file = texts.join(file.expect("a store"));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(file)
        .expect("a file");
    file.set_len(1).expect("cut off");
    std::fs::create_dir(dir.join("~half")).expect("a folder");
    std::fs::write(dir.join("stray"), "x").expect("a file");

    let reader = world.process("reader").await;
    assert_eq!(entries(&dir), Vec::<String>::new());
    assert_eq!(reader.seen().await, ["a 1"]);
    assert_eq!(cached(&world, "reader"), 1);
}

async fn a_process_keeps_what_it_fetched(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let writer = world.process("writer").await;
    writer.checkpoint(&[document(help, "a", 1, 3)]).await;
    assert_eq!(world.process("reader").await.seen().await, ["a 1"]);
    // Nobody can fetch it any more.
    let objects = world.objects().await;
    for dir in 0..=255 {
        for hash in objects.list(dir).await.expect("a list") {
            objects.delete(&hash).await.expect("deleted");
        }
    }
    assert_eq!(world.process("reader").await.seen().await, ["a 1"]);
    assert_eq!(writer.seen().await, ["a 1"], "it made it");
    let other = world.process("other").await;
    let error = other
        .store
        .view(help)
        .await
        .err()
        .expect("nowhere to fetch it");
    assert!(error.to_string().contains("does not exist"), "{error}");
}
