//! Two handles on one database, as two processes have: nothing is lost, nothing is given out twice.

use std::task::Poll;

use crate::*;

on_both!(
    versions_are_given_once,
    news_and_uploads_take_turns,
    pipelines_keep_every_definition,
    a_collection_that_goes_takes_nothing_in,
    columns_of_all_who_add_some_are_kept,
    keys_of_two_processes_work,
    a_new_database_is_opened_by_many_at_once,
    a_call_that_is_cancelled_anywhere_spoils_nothing,
);

/// Runs `one` for 0..count, half of them with each handle, all at once; the results in any order.
pub async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    handles: &[Catalog; 2],
    count: usize,
    one: impl Fn(Catalog, usize) -> F,
) -> Vec<T> {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..count {
        tasks.spawn(one(handles[n % 2].clone(), n));
    }
    tasks.join_all().await
}

async fn versions_are_given_once(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let collection = help.clone();
    let begun = at_once(&handles, 40, move |catalog, n| {
        let collection = collection.clone();
        async move {
            let new = version_of("file:///a", &format!("content {n}"));
            catalog
                .begin_version(&collection, &new)
                .await
                .expect("begun")
        }
    })
    .await;
    let numbers: BTreeSet<_> = begun.iter().map(|begun| begun.version.0).collect();
    assert_eq!(numbers, (1..=40).collect());
    let newest = bench
        .catalog
        .document(&help, begun[0].id)
        .await
        .expect("a document");
    assert_eq!(newest.version, Version(40));
}

/// Pipelines that start together each tell what they add to a topic.
async fn columns_of_all_who_add_some_are_kept(on: On) {
    use arrow::datatypes::{DataType, Field, Schema};
    let (bench, _) = Bench::with_collection(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let (tenant, name) = (
        TenantId::default_tenant(),
        TopicName::new("orders").expect("a name"),
    );
    let id = Field::new("id", DataType::Utf8, false);
    let topic = Topic {
        name: name.clone(),
        partitions: 1,
        retention: Retention {
            ms: None,
            bytes: None,
        },
        wire_format: WireFormat::Batches,
        schema: Some(Schema::new(vec![id.clone()]).into()),
        description: String::new(),
    };
    bench
        .catalog
        .create_topic(&tenant, &topic)
        .await
        .expect("a topic");
    let (of, column) = (name.clone(), move |n: usize| {
        Schema::new(vec![
            id.clone(),
            Field::new(format!("c{n}"), DataType::Int64, true),
        ])
    });
    at_once(&handles, 12, move |catalog, n| {
        let (name, rows) = (of.clone(), column(n));
        async move {
            let tenant = TenantId::default_tenant();
            catalog
                .evolve_topic(&tenant, &name, &rows)
                .await
                .expect("evolved");
        }
    })
    .await;
    let schema = bench
        .catalog
        .topic(&tenant, &name)
        .await
        .expect("a topic")
        .schema;
    assert_eq!(schema.expect("a schema").fields().len(), 13);
}

async fn news_and_uploads_take_turns(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    // Each task uploads a content and reports it ready, as a server and a worker do: the newest of a document wins,
    // whichever news comes last.
    let collection = help.clone();
    at_once(&handles, 40, move |catalog, n| {
        let collection = collection.clone();
        async move {
            let new = version_of(&format!("file:///{}", n % 4), &format!("content {n}"));
            let begun = catalog
                .begin_version(&collection, &new)
                .await
                .expect("begun");
            catalog
                .set_ready(&collection, begun.id, begun.version, None, 1)
                .await
                .expect("applied")
        }
    })
    .await;
    let documents = bench
        .catalog
        .documents(&help, &DocumentFilter::default(), &Page::default())
        .await
        .expect("a page")
        .items;
    assert_eq!(documents.len(), 4);
    for document in documents {
        assert_eq!(
            (document.version, document.state, document.current_version),
            (Version(10), DocumentState::Ready, Some(Version(10)))
        );
        let versions = bench
            .catalog
            .document_versions(&help, document.id)
            .await
            .expect("versions");
        let ready = versions
            .iter()
            .filter(|version| version.state == DocumentState::Ready);
        assert_eq!(ready.count(), 1, "{versions:?}");
    }
}

async fn pipelines_keep_every_definition(on: On) {
    let bench = Bench::new(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let name = PipelineName::new("index").expect("a valid name");
    let pipeline = name.clone();
    let versions = at_once(&handles, 30, move |catalog, n| {
        let name = pipeline.clone();
        async move {
            catalog
                .put_pipeline(
                    &TenantId::default_tenant(),
                    &name,
                    &format!("step: {n}"),
                    None,
                )
                .await
                .expect("a version")
                .0
        }
    })
    .await;
    assert_eq!(
        versions.into_iter().collect::<BTreeSet<_>>(),
        (1..=30).collect()
    );
    let kept = bench
        .catalog
        .pipeline_versions(&TenantId::default_tenant(), &name)
        .await
        .expect("versions");
    let definitions: BTreeSet<_> = kept.iter().map(|version| &version.definition).collect();
    assert_eq!(definitions.len(), 30);
}

async fn a_collection_that_goes_takes_nothing_in(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let collection = help.clone();
    // In the middle of many uploads, one asks for the collection to go.
    let outcomes = at_once(&handles, 40, move |catalog, n| {
        let collection = collection.clone();
        async move {
            if n == 20 {
                catalog
                    .delete_collection(&collection)
                    .await
                    .expect("marked");
                let documents = catalog
                    .pending_documents_all_tenants(1_000, std::time::Duration::ZERO)
                    .await;
                return Some(documents.expect("documents").len());
            }
            let new = version_of(&format!("file:///{n}"), "content");
            match catalog.begin_version(&collection, &new).await {
                Ok(_) | Err(CatalogError::NotFound { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    let at_the_mark = outcomes.into_iter().flatten().next().expect("one");
    let afterwards = bench
        .catalog
        .pending_documents_all_tenants(1_000, std::time::Duration::ZERO)
        .await
        .expect("documents");
    assert_eq!(afterwards.len(), at_the_mark, "one came in after the mark");
    handles[1].drop_collection(&help).await.expect("dropped");
}

async fn keys_of_two_processes_work(on: On) {
    let bench = Bench::new(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let keys = at_once(&handles, 20, |catalog, n| async move {
        let scopes = BTreeSet::from([Scope::Read]);
        catalog
            .create_key(&TenantId::default_tenant(), &format!("key {n}"), &scopes)
            .await
            .expect("a key")
    })
    .await;
    for (n, (id, secret)) in keys.iter().enumerate() {
        let principal = handles[n % 2].check_key(secret.expose()).await;
        assert_eq!(principal.expect("a check").expect("one").key(), Some(id));
    }
    let listed = bench
        .catalog
        .keys(&TenantId::default_tenant(), &Page::default())
        .await
        .expect("a page");
    assert_eq!(listed.items.len(), 20);

    if bench.catalog.is_shared() {
        // Each data directory has an admin key of its own, and a new one for one leaves the others.
        let other = tempfile::tempdir().expect("a folder");
        let here = handles[0]
            .ensure_admin_key(bench.folder.path())
            .await
            .expect("a key");
        let there = handles[1]
            .ensure_admin_key(other.path())
            .await
            .expect("a key");
        std::fs::remove_file(&there).expect("removed");
        handles[1]
            .ensure_admin_key(other.path())
            .await
            .expect("a key");
        for path in [here, there] {
            let secret = std::fs::read_to_string(path).expect("a file");
            let principal = handles[0].check_key(secret.trim()).await;
            assert!(principal.expect("a check").is_some());
        }
    }
}

async fn a_new_database_is_opened_by_many_at_once(on: On) {
    let folder = tempfile::tempdir().expect("a folder");
    let location = match on {
        // SQLite's file is made by one process, which the lock of the data directory sees to.
        On::Sqlite => {
            let path = folder.path().join("catalog.db").display().to_string();
            Catalog::open(&path).await.expect("a catalog").close().await;
            path
        }
        On::Postgres(server) => new_database(server, "").await,
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let location = location.clone();
        tasks.spawn(async move {
            let catalog = Catalog::open(location).await.expect("a catalog");
            let tenants = catalog.tenants_all_tenants(&Page::default()).await;
            tenants.expect("a page").items.len()
        });
    }
    assert_eq!(tasks.join_all().await, [1; 8]);
}

/// What the future gives, or nothing when it has not ended after that many polls: then it is dropped there.
async fn polled<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

async fn a_call_that_is_cancelled_anywhere_spoils_nothing(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let (catalog, other) = (&bench.catalog, bench.second().await);
    let mut ended = 0;
    for polls in 0..40 {
        let new = version_of(&format!("file:///{polls}"), "content");
        let begun = polled(polls, catalog.begin_version(&help, &new)).await;
        ended += usize::from(begun.is_some());
        // Goes over the connection that was left in the middle of something, and is written all the same.
        let setting = format!("after {polls}");
        catalog
            .put_setting(&help.tenant, &setting, Some("set"))
            .await
            .expect("set");
        let seen = other.setting(&help.tenant, &setting).await;
        assert_eq!(seen.expect("a look").as_deref(), Some("set"), "{polls}");
    }
    assert!((1..40).contains(&ended), "{ended}");
}
