//! A document's life, one at a time and in bulk.

use crate::*;

on_both!(
    a_document_lives,
    bulk_finds_new_changed_unchanged_and_gone,
    one_winner_per_content,
    pages_are_stable_and_filters_work
);

async fn a_document_lives(on: On) {
    use BeginOutcome::*;
    use DocumentState::*;
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let uri = "file:///帮助/冻结行.html";

    let begun = catalog
        .begin_version(&help, &version_of(uri, "one"))
        .await
        .expect("begun");
    assert_eq!(outcome(begun), (1, New, Uploading));
    assert_eq!(begun.id, DocumentId::of(&help, uri));
    let id = begun.id;
    let again = catalog
        .begin_version(&help, &version_of(uri, "one"))
        .await
        .expect("begun");
    assert_eq!(outcome(again), (1, Unchanged, Uploading));

    let v1 = Version(1);
    bench.clock.store(2_000, Ordering::SeqCst);
    assert_eq!(
        catalog
            .set_processing(&help, id, v1)
            .await
            .expect("applied"),
        Applied::Changed
    );
    let title = Some("冻结行或列".to_owned());
    let ready = catalog.set_ready(&help, id, v1, title.clone(), 3).await;
    assert_eq!(ready.expect("applied"), Applied::Changed);
    let ready = catalog.set_ready(&help, id, v1, title.clone(), 3).await;
    assert_eq!(ready.expect("applied"), Applied::Repeated);
    let conflict = catalog
        .set_failed(&help, id, v1, "late")
        .await
        .expect_err("a ready version cannot fail");
    assert_eq!(
        conflict.to_string(),
        format!(
            "document `{id} version 1` is READY and cannot become FAILED; from READY it can become SUPERSEDED, DELETING"
        )
    );

    let shown = catalog.document(&help, id).await.expect("a document");
    assert_eq!(
        shown,
        DocumentInfo {
            id,
            name: "冻结行.html".into(),
            uri: uri.into(),
            version: v1,
            state: Ready,
            current_version: Some(v1),
            error: None,
            chunks: 3,
            title,
            size: 3,
            content_type: Some("text/html".into()),
            content_hash: hash("one"),
            metadata: BTreeMap::from([("语言".into(), "中文".into())]),
            readers: Readers::default(),
            created_at: 1_000,
            updated_at: 2_000,
        }
    );

    // A changed file that cannot be parsed: the old version stays the one that search shows.
    let begun = catalog
        .begin_version(&help, &version_of(uri, "two"))
        .await
        .expect("begun");
    assert_eq!(outcome(begun), (2, Changed, Uploading));
    catalog
        .set_failed(&help, id, Version(2), "encrypted")
        .await
        .expect("applied");
    let shown = catalog.document(&help, id).await.expect("a document");
    assert_eq!(
        (
            shown.version,
            shown.state,
            shown.error.as_deref(),
            shown.current_version
        ),
        (Version(2), Failed, Some("encrypted"), Some(v1))
    );
    // The failed content again is tried again; the old content again is what there is.
    let back = catalog.begin_version(&help, &version_of(uri, "one")).await;
    assert_eq!(outcome(back.expect("begun")), (1, Unchanged, Ready));
    let third = catalog.begin_version(&help, &version_of(uri, "two")).await;
    assert_eq!(outcome(third.expect("begun")), (3, Changed, Uploading));

    // Version 4 overtakes version 3, whose news comes late.
    let fourth = catalog.begin_version(&help, &version_of(uri, "four")).await;
    assert_eq!(outcome(fourth.expect("begun")), (4, Changed, Uploading));
    catalog
        .set_processing(&help, id, Version(3))
        .await
        .expect("applied");
    let ready = catalog.set_ready(&help, id, Version(4), None, 9).await;
    assert_eq!(ready.expect("applied"), Applied::Changed);
    let late = catalog.set_ready(&help, id, Version(3), None, 1).await;
    assert_eq!(late.expect("applied"), Applied::Late);
    let states: Vec<_> = catalog
        .document_versions(&help, id)
        .await
        .expect("versions")
        .into_iter()
        .map(|version| (version.version.0, version.state))
        .collect();
    assert_eq!(
        states,
        [(4, Ready), (3, Superseded), (2, Failed), (1, Superseded)]
    );
    let counts = catalog
        .collection_counts(&help, &Viewer::Everything)
        .await
        .expect("counts");
    assert_eq!((counts.documents, counts.chunks), (1, 9));
    assert_eq!(counts.by_state, BTreeMap::from([(Ready, 1)]));

    // Removed, then uploaded again before the removal is done: the new version survives the news of it.
    let deleting = catalog.delete_document(&help, id).await.expect("deleting");
    assert_eq!((deleting.version, deleting.state), (Version(4), Deleting));
    assert!(
        catalog
            .documents_under(&help, &Viewer::Everything, "file:///", &Page::first(1000))
            .await
            .expect("documents")
            .items
            .is_empty()
    );
    let fifth = catalog.begin_version(&help, &version_of(uri, "four")).await;
    assert_eq!(outcome(fifth.expect("begun")), (5, New, Uploading));
    let gone = catalog.set_deleted(&help, id, Version(4)).await;
    assert_eq!(gone.expect("applied"), Applied::Changed);
    let shown = catalog.document(&help, id).await.expect("a document");
    assert_eq!(
        (shown.version, shown.state, shown.current_version),
        (Version(5), Uploading, None)
    );

    let deleting = catalog.delete_document(&help, id).await.expect("deleting");
    let late = catalog.set_ready(&help, id, Version(5), None, 1).await;
    assert_eq!(late.expect("applied"), Applied::Late);
    catalog
        .set_deleted(&help, id, deleting.version)
        .await
        .expect("applied");
    let gone = catalog.document(&help, id).await.expect_err("it is gone");
    assert!(
        matches!(
            gone,
            CatalogError::NotFound {
                kind: "document",
                ..
            }
        ),
        "{gone}"
    );
    assert_eq!(
        catalog
            .collection_counts(&help, &Viewer::Everything)
            .await
            .expect("counts"),
        CollectionCounts::default()
    );

    // Version numbers never repeat, so that chunk ids do not either.
    let sixth = catalog.begin_version(&help, &version_of(uri, "four")).await;
    assert_eq!(outcome(sixth.expect("begun")), (6, New, Uploading));
}

async fn bulk_finds_new_changed_unchanged_and_gone(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let uri = |n: usize| format!("file:///docs/{n:04}.html");
    let first: Vec<_> = (0..1000).map(|n| version_of(&uri(n), "same")).collect();
    let begun = catalog.begin_versions(&help, &first).await.expect("begun");
    assert!(begun.iter().all(|begun| begun.outcome == BeginOutcome::New));

    let news: Vec<_> = begun
        .iter()
        .flat_map(|begun| {
            let ready = News::Ready {
                title: None,
                chunks: 2,
            };
            [
                (begun.id, begun.version, News::Processing),
                (begun.id, begun.version, ready),
            ]
        })
        .collect();
    for result in catalog.apply_news(&help, &news).await.expect("applied") {
        assert_eq!(result.expect("applied"), Applied::Changed);
    }
    let counts = catalog
        .collection_counts(&help, &Viewer::Everything)
        .await
        .expect("counts");
    assert_eq!((counts.documents, counts.chunks), (1000, 2000));

    let contents: Vec<_> = (0..1500)
        .map(|n| {
            let content = if n % 10 == 0 { "other" } else { "same" };
            (uri(n), hash(content))
        })
        .collect();
    let unchanged = catalog
        .unchanged(&help, &contents)
        .await
        .expect("unchanged");
    assert_eq!(unchanged.len(), 900);
    assert!(
        unchanged
            .iter()
            .all(|document| document.state == DocumentState::Ready)
    );

    let second: Vec<_> = (0..20).map(|n| version_of(&uri(n * 5), "other")).collect();
    let begun = catalog.begin_versions(&help, &second).await.expect("begun");
    assert!(
        begun
            .iter()
            .all(|begun| begun.version == Version(2) && begun.outcome == BeginOutcome::Changed)
    );
    let twice = [
        version_of(&uri(1), "a"),
        version_of(&uri(1), "b"),
        version_of(&uri(1), "b"),
    ];
    let begun = catalog.begin_versions(&help, &twice).await.expect("begun");
    let versions: Vec<_> = begun
        .iter()
        .map(|begun| (begun.version.0, begun.outcome))
        .collect();
    assert_eq!(
        versions,
        [
            (2, BeginOutcome::Changed),
            (3, BeginOutcome::Changed),
            (3, BeginOutcome::Unchanged)
        ]
    );

    let under = catalog
        .documents_under(
            &help,
            &Viewer::Everything,
            "file:///docs/09",
            &Page::first(1000),
        )
        .await
        .expect("documents")
        .items;
    assert_eq!(under.len(), 100);
    let ids: Vec<_> = under.iter().map(|(id, _)| *id).collect();
    let removed = catalog
        .delete_documents(&help, &ids)
        .await
        .expect("deleting");
    assert_eq!(removed.len(), 100);
    assert_eq!(
        catalog
            .documents_under(
                &help,
                &Viewer::Everything,
                "file:///docs/",
                &Page::first(1000)
            )
            .await
            .expect("documents")
            .items
            .len(),
        900
    );
    let pending = catalog
        .pending_documents_all_tenants(10_000, std::time::Duration::ZERO)
        .await
        .expect("pending");
    // 100 on their way out, 20 and 2 begun.
    assert_eq!(pending.len(), 122);

    let too_many: Vec<_> = (0..1001).map(|n| version_of(&uri(n), "same")).collect();
    let error = catalog
        .begin_versions(&help, &too_many)
        .await
        .expect_err("too many");
    assert_eq!(
        error.to_string(),
        "1001 versions in one call: begin at most 1000"
    );
    let unknown = DocumentId::of(&help, "nowhere");
    let results = catalog
        .apply_news(
            &help,
            &[
                (unknown, Version(1), News::Processing),
                (ids[0], Version(1), News::Deleted),
            ],
        )
        .await
        .expect("applied");
    assert!(matches!(results[0], Err(CatalogError::NotFound { .. })));
    assert!(matches!(results[1], Ok(Applied::Changed)));
}

async fn one_winner_per_content(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let (catalog, help) = (bench.catalog.clone(), help.clone());
            tokio::spawn(async move {
                let new = version_of("file:///a", ["one", "two"][n % 2]);
                catalog.begin_version(&help, &new).await.expect("begun")
            })
        })
        .collect();
    let mut begun = Vec::new();
    for task in tasks {
        begun.push(task.await.expect("a task"));
    }
    // Contents alternate, so each change is a version; the same content in a row is one.
    let id = begun[0].id;
    let versions = bench
        .catalog
        .document_versions(&help, id)
        .await
        .expect("versions");
    let made: BTreeSet<_> = begun
        .iter()
        .filter(|begun| begun.outcome != BeginOutcome::Unchanged)
        .map(|begun| begun.version)
        .collect();
    let winners = begun
        .iter()
        .filter(|begun| begun.outcome != BeginOutcome::Unchanged)
        .count();
    assert_eq!(winners, made.len(), "no version was handed out twice");
    assert_eq!(
        made,
        versions.iter().map(|version| version.version).collect()
    );
    for pair in versions.windows(2) {
        assert_ne!(pair[0].content_hash, pair[1].content_hash);
    }

    let same: Vec<_> = (0..8)
        .map(|_| {
            let (catalog, help) = (bench.catalog.clone(), help.clone());
            tokio::spawn(async move {
                let new = version_of("file:///b", "same");
                catalog
                    .begin_version(&help, &new)
                    .await
                    .expect("begun")
                    .outcome
            })
        })
        .collect();
    let mut winners = 0;
    for task in same {
        winners += usize::from(task.await.expect("a task") == BeginOutcome::New);
    }
    assert_eq!(winners, 1);
}

async fn pages_are_stable_and_filters_work(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    let names = ["a_1.html", "A%2.html", "b!3.html", "中文.html", "文档.pdf"];
    let new: Vec<_> = names
        .iter()
        .map(|name| version_of(&format!("file:///{name}"), "x"))
        .collect();
    let begun = catalog.begin_versions(&help, &new).await.expect("begun");
    catalog
        .set_failed(&help, begun[4].id, Version(1), "broken")
        .await
        .expect("applied");

    let mut seen = Vec::new();
    let mut page = Page::first(2);
    loop {
        let listing = catalog
            .documents(&help, &DocumentFilter::default(), &page)
            .await
            .expect("a page");
        seen.extend(listing.items.into_iter().map(|document| document.name));
        // What comes in before the cursor or goes does not shift the pages.
        let early = format!("file:///!{}", seen.len());
        catalog
            .begin_version(&help, &version_of(&early, "x"))
            .await
            .expect("begun");
        match listing.next {
            Some(next) => page.cursor = Some(next),
            None => break,
        }
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(seen, sorted);

    for (name, expected) in [
        ("_", 1),
        ("%", 1),
        ("!3", 1),
        ("a", 2),
        ("HTML", 4),
        ("文", 2),
        ("\\", 0),
    ] {
        let filter = DocumentFilter {
            name: Some(name.into()),
            ..DocumentFilter::default()
        };
        let listing = catalog
            .documents(&help, &filter, &Page::default())
            .await
            .expect("a page");
        let found: Vec<_> = listing
            .items
            .iter()
            .filter(|document| names.contains(&document.name.as_str()))
            .collect();
        assert_eq!(found.len(), expected, "{name}");
    }
    let failed = DocumentFilter {
        state: Some(DocumentState::Failed),
        ..DocumentFilter::default()
    };
    let listing = catalog
        .documents(&help, &failed, &Page::default())
        .await
        .expect("a page");
    assert_eq!(listing.items.len(), 1);
    assert_eq!(listing.items[0].error.as_deref(), Some("broken"));
    for bad in [
        Page::first(0),
        Page::first(1001),
        Page {
            limit: 1,
            cursor: Some("?".into()),
        },
    ] {
        let error = catalog
            .documents(&help, &failed, &bad)
            .await
            .expect_err("a bad page");
        assert!(matches!(error, CatalogError::Invalid(_)), "{error}");
    }
}
