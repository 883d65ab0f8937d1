//! Tenants, collections, pipelines, topics, models and settings.

use crate::*;

on_both!(
    a_tenant_sees_only_its_own,
    a_collection_comes_and_goes,
    pipelines_keep_their_history,
    topics_models_and_settings_survive_a_restart
);

async fn a_tenant_sees_only_its_own(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
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
    assert!(
        catalog
            .collection_counts(&other, &Viewer::Everything)
            .await
            .is_err()
    );
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
            .documents_under(&other, &Viewer::Everything, "", &Page::first(1000))
            .await
            .expect("a list")
            .items
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

async fn a_collection_comes_and_goes(on: On) {
    let bench = Bench::new(on).await;
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
    assert_eq!(left, std::slice::from_ref(&help));
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
            .collection_counts(&help, &Viewer::Everything)
            .await
            .expect("counts")
            .documents,
        0
    );
}

async fn pipelines_keep_their_history(on: On) {
    let bench = Bench::new(on).await;
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

async fn topics_models_and_settings_survive_a_restart(on: On) {
    let bench = Bench::new(on).await;
    let default = TenantId::default_tenant();
    let topic = Topic {
        name: TopicName::new("订单").expect("a valid name"),
        partitions: 6,
        retention: Retention {
            ms: None,
            bytes: Some(1 << 30),
        },
        wire_format: WireFormat::Messages(serde_json::json!({"type": "avro", "schema": "订单"})),
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
        [
            event::CONVERSATION_EVENTS,
            event::DOCUMENT_INDEXED,
            event::DOCUMENT_UPLOADED,
            event::LLM_USAGE,
            event::PLATFORM_ALERT,
            "订单"
        ]
    );
    assert_eq!(topics[2].schema, Some(event::document_uploaded_schema()));
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
