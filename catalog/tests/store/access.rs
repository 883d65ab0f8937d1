//! Readers of documents: who finds what in lists, what a change of readers is, what is inherited.

use crate::*;

on_both!(
    who_may_not_read_a_document_does_not_find_it,
    readers_stay_until_somebody_changes_them,
    a_change_of_readers_is_a_new_version,
    keys_that_are_the_platforms_are_refused,
);

fn readers(list: &[&str]) -> Readers {
    let list: Vec<Reader> = list.iter().map(|r| r.parse().expect("a reader")).collect();
    Readers::try_from(list).expect("readers")
}

fn only(list: &[&str]) -> Viewer {
    Viewer::Only(list.iter().map(|r| r.parse().expect("a reader")).collect())
}

fn restricted(uri: &str, content: &str, to: &[&str]) -> NewVersion {
    NewVersion {
        readers: Some(readers(to)),
        ..version_of(uri, content)
    }
}

async fn who_may_not_read_a_document_does_not_find_it(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    assert!(!catalog.is_restricted(&help).await.expect("a look"));
    let new = [
        version_of("file:///a", "a"),
        restricted("file:///b", "b", &["user:ann", "role:法务"]),
        restricted("file:///c", "c", &["role:Legal"]),
    ];
    let begun = catalog.begin_versions(&help, &new).await.expect("begun");
    let ids: Vec<DocumentId> = begun.iter().map(|begun| begun.id).collect();
    assert!(catalog.is_restricted(&help).await.expect("a look"));
    assert!(catalog.has_restricted(&help.tenant).await.expect("a look"));
    for (viewer, seen) in [
        (Viewer::Everything, "abc"),
        (only(&[]), "a"),
        (only(&["user:ann"]), "ab"),
        (only(&["user:bob", "role:法务"]), "ab"),
        // Names of roles are not the same in another case, and no part of a name is a name.
        (only(&["role:legal", "user:an"]), "a"),
        (only(&["user:ann", "role:Legal"]), "abc"),
        (only(&["user:%", "role:_"]), "a"),
    ] {
        let uris: Vec<String> = seen.chars().map(|c| format!("file:///{c}")).collect();
        let filter = DocumentFilter {
            viewer: viewer.clone(),
            ..DocumentFilter::default()
        };
        let listed = catalog.documents(&help, &filter, &Page::default()).await;
        let listed = listed.expect("a page").items.into_iter();
        assert_eq!(
            listed.map(|d| d.uri).collect::<Vec<_>>(),
            uris,
            "{viewer:?}"
        );
        let under = catalog
            .documents_under(&help, &viewer, "file:///", &Page::first(1000))
            .await
            .expect("a page");
        let under: Vec<String> = under.items.into_iter().map(|(_, uri)| uri).collect();
        assert_eq!(under, uris, "{viewer:?}");
        let counts = catalog.collection_counts(&help, &viewer).await;
        assert_eq!(counts.expect("counts").documents, uris.len() as u64);
        let hidden = catalog.hidden_among(&viewer, &help, &ids).await;
        assert_eq!(hidden.expect("a look").len(), 3 - uris.len(), "{viewer:?}");
        let hidden = catalog.hidden_documents(&viewer, &help.tenant).await;
        assert_eq!(hidden.expect("a look").len(), 3 - uris.len(), "{viewer:?}");
        let found = catalog.document_seen_by(&viewer, &help, ids[1]).await;
        assert_eq!(found.is_ok(), seen.contains('b'), "{viewer:?}");
    }
    // A page of one is followed by the next that may be seen; the cursor tells nothing of those between.
    let filter = DocumentFilter {
        viewer: only(&["role:Legal"]),
        ..DocumentFilter::default()
    };
    let first = catalog.documents(&help, &filter, &Page::first(1)).await;
    let first = first.expect("a page");
    let page = Page {
        cursor: first.next,
        ..Page::first(1)
    };
    let second = catalog.documents(&help, &filter, &page).await;
    assert_eq!(second.expect("a page").items[0].uri, "file:///c");
}

async fn readers_stay_until_somebody_changes_them(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let uri = "file:///a";
    let begun = catalog
        .begin_version(&help, &restricted(uri, "one", &["user:ann"]))
        .await
        .expect("begun");
    // The same file again, and a changed one, by somebody who says nothing of readers.
    let same = catalog.begin_version(&help, &version_of(uri, "one")).await;
    assert_eq!(same.expect("begun").outcome, BeginOutcome::Unchanged);
    let changed = catalog.begin_version(&help, &version_of(uri, "two")).await;
    assert_eq!(changed.expect("begun").version, Version(2));
    let shown = catalog.document(&help, begun.id).await.expect("there");
    assert_eq!(shown.readers, readers(&["user:ann"]));
    let held = catalog.live_contents(&help, &[uri]).await.expect("held");
    assert_eq!(
        held[0].as_ref().map(|held| held.readers.clone()),
        Some(readers(&["user:ann"]))
    );
    // The same content for others is a new version, so that the indexes learn of it.
    let opened = catalog
        .begin_version(&help, &restricted(uri, "two", &[]))
        .await
        .expect("begun");
    assert_eq!(
        (opened.version, opened.outcome),
        (Version(3), BeginOutcome::Changed)
    );
    // A version that failed keeps its readers for the next try.
    let failed = News::Failed { reason: "x".into() };
    let news = [
        (begun.id, Version(4), News::Processing),
        (begun.id, Version(4), failed),
    ];
    let closed = restricted(uri, "three", &["user:bob"]);
    catalog.begin_version(&help, &closed).await.expect("begun");
    for applied in catalog.apply_news(&help, &news).await.expect("applied") {
        applied.expect("taken in");
    }
    let again = catalog.begin_version(&help, &version_of(uri, "four")).await;
    assert_eq!(again.expect("begun").version, Version(5));
    let shown = catalog.document(&help, begun.id).await.expect("there");
    assert_eq!(shown.readers, readers(&["user:bob"]));
    // After a removal it is another document.
    let gone = catalog.delete_documents(&help, &[begun.id]).await;
    assert_eq!(gone.expect("marked").len(), 1);
    let hidden = catalog.hidden_documents(&only(&[]), &help.tenant).await;
    assert_eq!(hidden.expect("a look").len(), 1, "until it is gone");
    let new = catalog.begin_version(&help, &version_of(uri, "five")).await;
    assert_eq!(new.expect("begun").outcome, BeginOutcome::New);
    let shown = catalog.document(&help, begun.id).await.expect("there");
    assert!(shown.readers.is_everybody());
}

async fn a_change_of_readers_is_a_new_version(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let first = version_of("file:///a", "one");
    let begun = catalog.begin_version(&help, &first).await.expect("begun");
    let to = readers(&["role:viewer"]);
    let changed = catalog.change_readers(&help, begun.id, &to).await;
    let changed = changed.expect("changed");
    assert_eq!(
        outcome(changed),
        (2, BeginOutcome::Changed, DocumentState::Uploading)
    );
    let same = catalog.change_readers(&help, begun.id, &to).await;
    assert_eq!(same.expect("a look").outcome, BeginOutcome::Unchanged);
    let shown = catalog.document(&help, begun.id).await.expect("there");
    assert_eq!(
        (shown.content_hash, shown.metadata, shown.readers),
        (first.content_hash, first.metadata, to.clone())
    );
    let elsewhere = collection("default", "elsewhere");
    assert!(
        catalog
            .change_readers(&elsewhere, begun.id, &to)
            .await
            .is_err()
    );
    catalog
        .delete_documents(&help, &[begun.id])
        .await
        .expect("marked");
    let gone = catalog.change_readers(&help, begun.id, &to).await;
    let gone = gone.expect_err("it is going");
    assert!(matches!(gone, CatalogError::NotFound { .. }), "{gone}");
    let tenant = &help.tenant;
    catalog.check_readers(tenant, &to).await.expect("a role");
    for (list, said) in [
        ("role:nobody", "role `nobody` does not exist"),
        ("user:usr_none", "reader `user:usr_none` does not exist"),
    ] {
        let error = catalog.check_readers(tenant, &readers(&[list])).await;
        let error = error.expect_err("a slip").to_string();
        assert!(error.contains(said), "{error}");
    }
}

async fn keys_that_are_the_platforms_are_refused(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    for key in ["va.readers", "va.restricted", "va.reader"] {
        let mut new = version_of("file:///a", "a");
        new.metadata.insert(key.into(), "user:ann".into());
        let error = bench.catalog.begin_version(&help, &new).await;
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
        assert!(error.contains("file:///a"), "{error}");
    }
}
