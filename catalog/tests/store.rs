//! The catalog store as its users see it: a database file, several tenants, several tasks, restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::Connection;
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

#[tokio::test]
async fn a_document_lives() {
    use BeginOutcome::*;
    use DocumentState::*;
    let (bench, help) = Bench::with_collection().await;
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
    let counts = catalog.collection_counts(&help).await.expect("counts");
    assert_eq!((counts.documents, counts.chunks), (1, 9));
    assert_eq!(counts.by_state, BTreeMap::from([(Ready, 1)]));

    // Removed, then uploaded again before the removal is done: the new version survives the news of it.
    let deleting = catalog.delete_document(&help, id).await.expect("deleting");
    assert_eq!((deleting.version, deleting.state), (Version(4), Deleting));
    assert!(
        catalog
            .documents_under(&help, "file:///")
            .await
            .expect("documents")
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
        catalog.collection_counts(&help).await.expect("counts"),
        CollectionCounts::default()
    );

    // Version numbers never repeat, so that chunk ids do not either.
    let sixth = catalog.begin_version(&help, &version_of(uri, "four")).await;
    assert_eq!(outcome(sixth.expect("begun")), (6, New, Uploading));
}

#[tokio::test]
async fn bulk_finds_new_changed_unchanged_and_gone() {
    let (bench, help) = Bench::with_collection().await;
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
    let counts = catalog.collection_counts(&help).await.expect("counts");
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
        .documents_under(&help, "file:///docs/09")
        .await
        .expect("documents");
    assert_eq!(under.len(), 100);
    let ids: Vec<_> = under.iter().map(|(id, _)| *id).collect();
    let removed = catalog
        .delete_documents(&help, &ids)
        .await
        .expect("deleting");
    assert_eq!(removed.len(), 100);
    assert_eq!(
        catalog
            .documents_under(&help, "file:///docs/")
            .await
            .expect("documents")
            .len(),
        900
    );
    let pending = catalog
        .pending_documents_all_tenants(10_000)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_winner_per_content() {
    let (bench, help) = Bench::with_collection().await;
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

#[tokio::test]
async fn a_tenant_sees_only_its_own() {
    let (bench, help) = Bench::with_collection().await;
    let catalog = &bench.catalog;
    let begun = catalog
        .begin_version(&help, &version_of("file:///a", "a"))
        .await
        .expect("begun");
    let pipeline = PipelineName::new("index").expect("a valid name");
    catalog
        .put_pipeline(&help.tenant, &pipeline, "name: index", None)
        .await
        .expect("a pipeline");
    let model = Model {
        name: "e5".into(),
        reference: "e5-small".into(),
        dims: Some(384),
        fingerprint: None,
        last_used_at: None,
    };
    catalog
        .put_model(&help.tenant, &model)
        .await
        .expect("a model");
    catalog
        .put_setting(&help.tenant, "theme", Some("dark"))
        .await
        .expect("a setting");
    let scopes = BTreeSet::from([Scope::Read]);
    let (key, _) = catalog
        .create_key(&help.tenant, "a", &scopes)
        .await
        .expect("a key");

    let other = collection("别的", "帮助-2026");
    let unknown = catalog
        .create_collection(&other, &CollectionConfig::default())
        .await;
    assert!(matches!(
        unknown,
        Err(CatalogError::NotFound { kind: "tenant", .. })
    ));
    catalog
        .create_tenant(&other.tenant, "")
        .await
        .expect("a tenant");
    let twice = catalog
        .create_tenant(&other.tenant, "")
        .await
        .expect_err("there is one");
    assert_eq!(twice.to_string(), "tenant `别的` exists already");

    let page = Page::default();
    let t = &other.tenant;
    assert!(
        catalog
            .collections(t, &page)
            .await
            .expect("a page")
            .items
            .is_empty()
    );
    assert!(catalog.collection(&other).await.is_err());
    assert!(catalog.collection_counts(&other).await.is_err());
    assert!(
        catalog
            .documents(&other, &DocumentFilter::default(), &page)
            .await
            .is_err()
    );
    assert!(
        catalog
            .begin_version(&other, &version_of("file:///a", "a"))
            .await
            .is_err()
    );
    catalog
        .create_collection(&other, &CollectionConfig::default())
        .await
        .expect("a collection");
    assert!(catalog.document(&other, begun.id).await.is_err());
    assert!(catalog.document_versions(&other, begun.id).await.is_err());
    assert!(catalog.delete_document(&other, begun.id).await.is_err());
    assert!(
        catalog
            .set_failed(&other, begun.id, Version(1), "x")
            .await
            .is_err()
    );
    assert!(
        catalog
            .documents_by_id(&other, &[begun.id])
            .await
            .expect("a list")
            .is_empty()
    );
    assert!(
        catalog
            .documents_under(&other, "")
            .await
            .expect("a list")
            .is_empty()
    );
    let contents = [("file:///a".to_owned(), hash("a"))];
    assert!(
        catalog
            .unchanged(&other, &contents)
            .await
            .expect("a list")
            .is_empty()
    );
    assert_eq!(
        catalog
            .unchanged(&help, &contents)
            .await
            .expect("a list")
            .len(),
        1
    );
    assert!(catalog.pipeline(t, &pipeline).await.is_err());
    assert!(catalog.pipeline_versions(t, &pipeline).await.is_err());
    assert!(
        catalog
            .pipelines(t, &page)
            .await
            .expect("a page")
            .items
            .is_empty()
    );
    assert!(catalog.delete_pipeline(t, &pipeline).await.is_err());
    assert!(catalog.model(t, "e5").await.is_err());
    assert!(
        catalog
            .models(t, &page)
            .await
            .expect("a page")
            .items
            .is_empty()
    );
    assert_eq!(catalog.setting(t, "theme").await.expect("a look"), None);
    assert!(
        catalog
            .keys(t, &page)
            .await
            .expect("a page")
            .items
            .is_empty()
    );
    assert!(catalog.revoke_key(t, &key).await.is_err());
    // Dropping the one leaves the other.
    catalog.delete_collection(&other).await.expect("deleting");
    catalog.drop_collection(&other).await.expect("dropped");
    assert_eq!(
        catalog
            .document(&help, begun.id)
            .await
            .expect("a document")
            .state,
        DocumentState::Uploading
    );
}

#[tokio::test]
async fn pages_are_stable_and_filters_work() {
    let (bench, help) = Bench::with_collection().await;
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
            state: None,
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
        name: None,
        state: Some(DocumentState::Failed),
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

#[tokio::test]
async fn a_collection_comes_and_goes() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let help = collection("default", "help");
    let config = CollectionConfig {
        model: Some("e5".into()),
        dims: Some(384),
        chunking: serde_json::from_str(r#"{"tokens_max":256}"#).expect("an object"),
        description: "手册".into(),
    };
    let made = catalog
        .create_collection(&help, &config)
        .await
        .expect("a collection");
    assert_eq!(made.config, config);
    let twice = catalog
        .create_collection(&help, &config)
        .await
        .expect_err("there is one");
    assert_eq!(twice.to_string(), "collection `help` exists already");
    let no_dims = CollectionConfig {
        dims: None,
        ..config.clone()
    };
    let error = catalog
        .create_collection(&collection("default", "b"), &no_dims)
        .await
        .expect_err("dims are missing");
    assert!(error.to_string().contains("needs `dims`"), "{error}");

    catalog
        .begin_version(&help, &version_of("file:///a", "a"))
        .await
        .expect("begun");
    let early = catalog
        .drop_collection(&help)
        .await
        .expect_err("not marked");
    assert!(matches!(early, CatalogError::Conflict { .. }), "{early}");
    catalog.delete_collection(&help).await.expect("deleting");
    assert!(catalog.collection(&help).await.is_err());
    assert!(catalog.create_collection(&help, &config).await.is_err());
    assert!(
        catalog
            .begin_version(&help, &version_of("file:///b", "b"))
            .await
            .is_err()
    );

    let bench = bench.reopened().await;
    let left = bench
        .catalog
        .deleting_collections_all_tenants()
        .await
        .expect("a list");
    assert_eq!(left, [help.clone()]);
    bench.catalog.drop_collection(&help).await.expect("dropped");
    bench
        .catalog
        .drop_collection(&help)
        .await
        .expect("repeating is no error");
    bench
        .catalog
        .create_collection(&help, &config)
        .await
        .expect("the name is free");
    assert_eq!(
        bench
            .catalog
            .collection_counts(&help)
            .await
            .expect("counts")
            .documents,
        0
    );
}

#[tokio::test]
async fn pipelines_keep_their_history() {
    let bench = Bench::new().await;
    let tenant = TenantId::default_tenant();
    let name = PipelineName::new("索引").expect("a valid name");
    for (definition, version) in [("a: 1", 1), ("a: 1", 1), ("a: 2", 2), ("a: 1", 3)] {
        let put = bench
            .catalog
            .put_pipeline(&tenant, &name, definition, Some("index.yaml"))
            .await;
        assert_eq!(put.expect("a version"), Version(version));
    }
    bench
        .catalog
        .set_desired_state(&tenant, &name, DesiredState::Paused)
        .await
        .expect("set");
    let bench = bench.reopened().await;
    let catalog = &bench.catalog;
    let pipeline = catalog.pipeline(&tenant, &name).await.expect("a pipeline");
    assert_eq!(
        (
            pipeline.version,
            pipeline.definition.as_str(),
            pipeline.desired_state
        ),
        (Version(3), "a: 1", DesiredState::Paused)
    );
    assert_eq!(
        catalog
            .pipeline_versions(&tenant, &name)
            .await
            .expect("versions")
            .len(),
        3
    );
    assert_eq!(
        catalog
            .pipelines(&tenant, &Page::default())
            .await
            .expect("a page")
            .items,
        [pipeline]
    );
    catalog
        .delete_pipeline(&tenant, &name)
        .await
        .expect("deleted");
    assert!(catalog.delete_pipeline(&tenant, &name).await.is_err());
}

#[tokio::test]
async fn topics_models_and_settings_survive_a_restart() {
    let bench = Bench::new().await;
    let default = TenantId::default_tenant();
    let topic = Topic {
        name: TopicName::new("订单").expect("a valid name"),
        partitions: 6,
        retention: Retention {
            ms: None,
            bytes: Some(1 << 30),
        },
        wire_format: WireFormat::ArrowIpc,
        schema: Some(chunk_schema(Some(8))),
        description: "订单".into(),
    };
    bench
        .catalog
        .create_topic(&default, &topic)
        .await
        .expect("a topic");
    let twice = bench
        .catalog
        .create_topic(&default, &topic)
        .await
        .expect_err("there is one");
    assert_eq!(twice.to_string(), "topic `订单` exists already");
    let model = Model {
        name: "e5".into(),
        reference: "./e5".into(),
        dims: Some(384),
        fingerprint: Some("abc".into()),
        last_used_at: None,
    };
    bench
        .catalog
        .put_model(&default, &model)
        .await
        .expect("a model");
    bench
        .catalog
        .touch_model(&default, "e5")
        .await
        .expect("touched");
    bench
        .catalog
        .put_model(&default, &model)
        .await
        .expect("a model");
    bench
        .catalog
        .put_setting(&default, "主题", Some("深"))
        .await
        .expect("set");
    bench
        .catalog
        .put_setting(&default, "b", Some("1"))
        .await
        .expect("set");
    bench
        .catalog
        .put_setting(&default, "b", None)
        .await
        .expect("removed");

    let bench = bench.reopened().await;
    let catalog = &bench.catalog;
    assert_eq!(
        catalog.topic(&default, &topic.name).await.expect("a topic"),
        topic
    );
    let topics = catalog
        .topics(&default, &Page::default())
        .await
        .expect("a page")
        .items;
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(
        names,
        [event::DOCUMENT_INDEXED, event::DOCUMENT_UPLOADED, "订单"]
    );
    assert_eq!(topics[1].schema, Some(event::document_uploaded_schema()));
    assert_eq!(
        catalog
            .model(&default, "e5")
            .await
            .expect("a model")
            .last_used_at,
        Some(1_000)
    );
    assert_eq!(
        catalog.settings(&default).await.expect("settings"),
        BTreeMap::from([("主题".into(), "深".into())])
    );
}

#[tokio::test]
async fn keys_open_what_they_should() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let default = TenantId::default_tenant();
    let scopes = BTreeSet::from([Scope::Write]);
    let (id, secret) = catalog
        .create_key(&default, "indexer", &scopes)
        .await
        .expect("a key");
    assert!(secret.expose().starts_with("va_") && secret.expose().len() == 46);
    assert_eq!(format!("{secret:?}"), "va_***");
    let principal = catalog
        .check_key(secret.expose())
        .await
        .expect("a check")
        .expect("a principal");
    assert_eq!((&principal.tenant, &principal.key_id), (&default, &id));
    assert!(
        principal.allows(Scope::Read)
            && principal.allows(Scope::Write)
            && !principal.allows(Scope::Admin)
    );
    let mut wrong = secret.expose().to_owned();
    wrong.replace_range(45.., if wrong.ends_with('A') { "E" } else { "A" });
    for bad in [
        "",
        "va_",
        &wrong,
        &secret.expose()[1..],
        "va_ééééééééééééééééééééé文",
    ] {
        assert_eq!(
            catalog.check_key(bad).await.expect("a check"),
            None,
            "{bad}"
        );
    }
    let listed = catalog
        .keys(&default, &Page::default())
        .await
        .expect("a page")
        .items;
    assert_eq!((listed.len(), listed[0].last_used_at), (1, Some(1_000)));
    bench.clock.store(30_000, Ordering::SeqCst);
    catalog
        .check_key(secret.expose())
        .await
        .expect("a check")
        .expect("a principal");
    let listed = catalog
        .keys(&default, &Page::default())
        .await
        .expect("a page")
        .items;
    assert_eq!(
        listed[0].last_used_at,
        Some(1_000),
        "noted at most once a minute"
    );
    assert!(catalog.create_key(&default, " ", &scopes).await.is_err());
    assert!(
        catalog
            .create_key(&default, "x", &BTreeSet::new())
            .await
            .is_err()
    );

    catalog.revoke_key(&default, &id).await.expect("revoked");
    catalog
        .revoke_key(&default, &id)
        .await
        .expect("repeating is no error");
    assert_eq!(
        catalog.check_key(secret.expose()).await.expect("a check"),
        None
    );
    // Nothing of the key is in the database files.
    for entry in std::fs::read_dir(bench.folder.path()).expect("a folder") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
        let needle = &secret.expose().as_bytes()[3..];
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
}

#[tokio::test]
async fn the_admin_key_is_made_kept_and_replaced() {
    let bench = Bench::new().await;
    let data = bench.folder.path().to_owned();
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path)
            .expect("a key")
            .trim()
            .to_owned()
    };
    let path = bench.catalog.ensure_admin_key(&data).await.expect("a key");
    assert_eq!(path, data.join("admin.key"));
    let first = read(&path);

    let bench = bench.reopened().await;
    let catalog = &bench.catalog;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &std::path::Path| {
            std::fs::metadata(path)
                .expect("a file")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode(&path), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
            .expect("permissions");
        catalog.ensure_admin_key(&data).await.expect("a key");
        assert_eq!(mode(&path), 0o600);
    }
    catalog.ensure_admin_key(&data).await.expect("a key");
    assert_eq!(read(&path), first, "a key that works stays");
    let principal = catalog
        .check_key(&first)
        .await
        .expect("a check")
        .expect("a principal");
    assert!(principal.allows(Scope::Admin));

    std::fs::remove_file(&path).expect("removed");
    catalog.ensure_admin_key(&data).await.expect("a key");
    let second = read(&path);
    assert_eq!(catalog.check_key(&first).await.expect("a check"), None);
    assert!(catalog.check_key(&second).await.expect("a check").is_some());
    std::fs::write(&path, "garbage").expect("written");
    catalog.ensure_admin_key(&data).await.expect("a key");
    assert_eq!(catalog.check_key(&second).await.expect("a check"), None);
    assert!(
        catalog
            .check_key(&read(&path))
            .await
            .expect("a check")
            .is_some()
    );
}

#[tokio::test]
async fn opening_is_repeatable_and_refuses_what_is_newer() {
    let (bench, help) = Bench::with_collection().await;
    let path = bench.folder.path().join("catalog.db");
    // A second handle on the same file, as another process would have, by URL this time.
    let url = format!("sqlite:{}", path.display());
    let second = Catalog::open(&url).await.expect("a catalog");
    assert!(second.collection(&help).await.is_ok());
    second
        .begin_version(&help, &version_of("file:///a", "a"))
        .await
        .expect("begun");
    bench
        .catalog
        .begin_version(&help, &version_of("file:///b", "b"))
        .await
        .expect("begun");
    second.close().await;
    let bench = bench.reopened().await.reopened().await;
    assert_eq!(
        bench
            .catalog
            .collection_counts(&help)
            .await
            .expect("counts")
            .documents,
        2
    );
    bench.catalog.close().await;

    let mut connection = sqlx::SqliteConnection::connect(&url)
        .await
        .expect("a connection");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9001, 'later', TRUE, X'00', 0)",
    )
    .execute(&mut connection)
    .await
    .expect("inserted");
    connection.close().await.expect("closed");
    let error = Catalog::open(&path).await.expect_err("it is newer");
    assert!(
        matches!(
            error,
            CatalogError::NewerDatabase {
                found: 9001,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("newer version"), "{error}");

    let error = Catalog::open("postgres://localhost/va")
        .await
        .expect_err("not yet");
    assert!(
        error.to_string().contains("begins with `sqlite:`"),
        "{error}"
    );
    std::fs::write(
        bench.folder.path().join("text.db"),
        "not a database, but long enough to look at",
    )
    .expect("written");
    let error = Catalog::open(bench.folder.path().join("text.db"))
        .await
        .expect_err("not a database");
    assert!(matches!(error, CatalogError::Storage { .. }), "{error}");
}

/// File name -> table -> column names and types, read from the migrations as text.
fn tables(folder: &str) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let folder = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let text = std::fs::read_to_string(entry.path()).expect("a migration");
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut table = None;
        for line in text.lines().map(|line| line.replace(" COLLATE \"C\"", "")) {
            if let Some(name) = line.strip_prefix("CREATE TABLE ") {
                table = Some(name.trim_end_matches(" (").to_owned());
            } else if line.starts_with(')') {
                table = None;
            } else if let Some(table) = &table {
                let column = line.trim().trim_end_matches(',').to_owned();
                tables.entry(table.clone()).or_default().push(column);
            } else if line.starts_with("CREATE") || line.starts_with("ALTER") {
                tables
                    .entry("other statements".into())
                    .or_default()
                    .push(line);
            }
        }
        files.insert(entry.file_name().to_string_lossy().into_owned(), tables);
    }
    files
}

#[test]
fn both_databases_have_the_same_tables() {
    let sqlite = tables("sqlite");
    assert_eq!(sqlite["0001_catalog.sql"].len(), 11);
    assert_eq!(sqlite, tables("postgres"));
}
