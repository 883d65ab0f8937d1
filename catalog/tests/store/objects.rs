//! Which objects are needed, and how long versions took.

use crate::*;

on_both!(objects_are_needed_until_their_last_version_is_gone);

async fn objects_are_needed_until_their_last_version_is_gone(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let other = collection("default", "other");
    catalog
        .create_collection(&other, &CollectionConfig::default())
        .await
        .expect("a collection");
    let all = [hash("one"), hash("two"), hash("nobody's")];
    let used = async || {
        catalog
            .objects_in_use_all_tenants(&all, 20)
            .await
            .expect("hashes")
    };
    assert_eq!(
        catalog.oldest_pending_all_tenants().await.expect("a time"),
        None
    );
    let begin = async |collection: &CollectionRef, uri: &str, content: &str| {
        catalog
            .begin_version(collection, &version_of(uri, content))
            .await
            .expect("begun")
    };
    let a = begin(&help, "a", "one").await;
    begin(&other, "b", "one").await;
    assert_eq!(
        catalog.oldest_pending_all_tenants().await.expect("a time"),
        Some(1_000)
    );
    bench.clock.store(3_500, Ordering::SeqCst);
    catalog
        .set_ready(&help, a.id, a.version, None, 1)
        .await
        .expect("applied");
    let versions = [(a.id, a.version), (a.id, Version(9))];
    let ages = catalog
        .version_ages_ms(&help, &versions)
        .await
        .expect("ages");
    assert_eq!(ages, [2_500]);

    // Older versions and failed ones need theirs.
    let a2 = begin(&help, "a", "two").await;
    catalog
        .set_failed(&help, a2.id, a2.version, "broken")
        .await
        .expect("applied");
    let both = BTreeSet::from([hash("one"), hash("two")]);
    assert_eq!(used().await, both);
    let newest = catalog.objects_in_use_all_tenants(&all, 1).await;
    // The one that search shows is kept, however old.
    assert_eq!(newest.expect("hashes"), both);
    let a3 = begin(&help, "a", "nobody's").await;
    catalog
        .set_ready(&help, a3.id, a3.version, None, 1)
        .await
        .expect("applied");
    let newest = catalog.objects_in_use_all_tenants(&all, 1).await;
    let elsewhere = BTreeSet::from([hash("one"), hash("nobody's")]);
    assert_eq!(newest.expect("hashes"), elsewhere);
    let both = BTreeSet::from(all.clone());
    assert_eq!(used().await, both);
    catalog.delete_document(&help, a.id).await.expect("marked");
    assert_eq!(used().await, both, "its removal is under way");
    catalog
        .set_deleted(&help, a.id, a3.version)
        .await
        .expect("applied");
    assert_eq!(used().await, BTreeSet::from([hash("one")]));
    catalog.delete_collection(&other).await.expect("marked");
    assert_eq!(used().await, BTreeSet::from([hash("one")]));
    catalog.drop_collection(&other).await.expect("dropped");
    assert_eq!(used().await, BTreeSet::new());
    assert_eq!(
        catalog.oldest_pending_all_tenants().await.expect("a time"),
        None
    );
}
