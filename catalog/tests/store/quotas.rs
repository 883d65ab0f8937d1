//! How much a tenant may have: each quota holds, also when many ask at once.

use crate::sharing::at_once;
use crate::*;

on_both!(
    every_quota_is_held,
    what_there_is_no_room_for_is_refused_alone,
    many_at_once_do_not_exceed_a_quota,
);

async fn limit(catalog: &Catalog, tenant: &TenantId, quota: Quota, limit: Option<u64>) {
    let changes = BTreeMap::from([(quota, limit)]);
    let set = catalog.set_quotas(tenant, &changes).await.expect("set");
    assert_eq!(set.get(&quota).copied(), limit);
}

fn exceeded<T: std::fmt::Debug>(outcome: Result<T, CatalogError>) -> (Quota, u64, u64) {
    match outcome {
        Err(CatalogError::QuotaExceeded {
            quota, limit, used, ..
        }) => (quota, limit, used),
        other => panic!("no quota was exceeded: {other:?}"),
    }
}

async fn every_quota_is_held(on: On) {
    let bench = Bench::unlocked(on).await;
    let catalog = &bench.catalog;
    let shop = tenant("shop");
    catalog.create_tenant(&shop, "").await.expect("a tenant");
    assert_eq!(catalog.quotas(&shop).await.expect("quotas"), Quotas::new());
    assert!(catalog.quotas(&tenant("none")).await.is_err());
    for quota in [
        Quota::Collections,
        Quota::Users,
        Quota::Keys,
        Quota::Conversations,
    ] {
        limit(catalog, &shop, quota, Some(1)).await;
    }
    let config = CollectionConfig::default();
    let (one, two) = (collection("shop", "one"), collection("shop", "two"));
    catalog.create_collection(&one, &config).await.expect("one");
    let refused = catalog.create_collection(&two, &config).await;
    assert_eq!(exceeded(refused), (Quota::Collections, 1, 1));
    let again = catalog.create_collection(&one, &config).await;
    assert!(
        matches!(again, Err(CatalogError::Exists { .. })),
        "{again:?}"
    );
    catalog.delete_collection(&one).await.expect("hidden");
    catalog
        .create_collection(&two, &config)
        .await
        .expect("room again");

    let user = |email: &'static str| NewUser {
        email,
        ..NewUser::default()
    };
    catalog
        .create_user(&shop, &user("ann@example.com"))
        .await
        .expect("a user");
    let refused = catalog.create_user(&shop, &user("bob@example.com")).await;
    assert_eq!(exceeded(refused), (Quota::Users, 1, 1));

    let scopes = BTreeSet::from([Scope::Read]);
    let (key, _) = catalog
        .create_key(&shop, "one", &scopes)
        .await
        .expect("a key");
    let refused = catalog.create_key(&shop, "two", &scopes).await;
    assert_eq!(exceeded(refused), (Quota::Keys, 1, 1));
    catalog.revoke_key(&shop, &key).await.expect("revoked");
    catalog
        .create_key(&shop, "two", &scopes)
        .await
        .expect("room again");

    let owner = Owner {
        tenant: TenantScope::internal(shop.clone(), Internal::Test),
        id: "usr_1".into(),
    };
    catalog
        .create_conversation(&owner, "", None, None)
        .await
        .expect("a conversation");
    let refused = catalog.create_conversation(&owner, "", None, None).await;
    assert_eq!(exceeded(refused), (Quota::Conversations, 1, 1));
    // Another tenant has its own room.
    let elsewhere = collection("default", "two");
    catalog
        .create_collection(&elsewhere, &config)
        .await
        .expect("no quota there");
    let usage = catalog.usage(&shop).await.expect("usage");
    let expected = [
        (Quota::Documents, 0),
        (Quota::StorageBytes, 0),
        (Quota::Collections, 1),
        (Quota::Users, 1),
        (Quota::Keys, 1),
        (Quota::Conversations, 1),
    ];
    assert_eq!(usage, BTreeMap::from(expected));
    limit(catalog, &shop, Quota::Conversations, None).await;
    catalog
        .create_conversation(&owner, "", None, None)
        .await
        .expect("no limit now");
    let quotas = catalog.quotas(&shop).await.expect("quotas");
    assert_eq!(quotas.get(&Quota::Users), Some(&1), "the others stay");
}

async fn what_there_is_no_room_for_is_refused_alone(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let catalog = &bench.catalog;
    limit(catalog, &help.tenant, Quota::Documents, Some(2)).await;
    limit(catalog, &help.tenant, Quota::StorageBytes, Some(10)).await;
    let new = [
        version_of("file:///a", "aaaa"),
        version_of("file:///large", "more than ten bytes"),
        version_of("file:///b", "bbbb"),
        version_of("file:///c", "c"),
        // A document that is there needs room for what it grows by only.
        version_of("file:///a", "aaaaaa"),
    ];
    let begun = catalog.begin_versions_with_room(&help, &new).await;
    let mut begun = begun.expect("each has an outcome").into_iter();
    let mut next = || begun.next().expect("one in, one out");
    let first = next().expect("room");
    assert_eq!(exceeded(next()), (Quota::StorageBytes, 10, 4));
    next().expect("room");
    assert_eq!(exceeded(next()), (Quota::Documents, 2, 2));
    assert_eq!(next().expect("room").version, Version(2));
    let usage = catalog.usage(&help.tenant).await.expect("usage");
    assert_eq!(
        (usage[&Quota::Documents], usage[&Quota::StorageBytes]),
        (2, 10)
    );
    // All or none, where that was asked for.
    let both = [version_of("file:///b", "b"), version_of("file:///c", "c")];
    let refused = catalog.begin_versions(&help, &both).await;
    assert_eq!(exceeded(refused), (Quota::Documents, 2, 2));
    let usage = catalog.usage(&help.tenant).await.expect("usage");
    assert_eq!(usage[&Quota::StorageBytes], 10, "nothing was written");
    // What is on its way out makes room at once; what is there already costs nothing.
    catalog
        .delete_documents(&help, &[first.id])
        .await
        .expect("marked");
    catalog
        .begin_versions(&help, &both)
        .await
        .expect("room again");
    let same = catalog.begin_versions(&help, &both).await.expect("a look");
    assert!(same.iter().all(|b| b.outcome == BeginOutcome::Unchanged));
}

async fn many_at_once_do_not_exceed_a_quota(on: On) {
    let (bench, help) = Bench::with_collection(on).await;
    let other = collection("default", "other");
    let config = CollectionConfig::default();
    bench
        .catalog
        .create_collection(&other, &config)
        .await
        .expect("other");
    limit(&bench.catalog, &help.tenant, Quota::Documents, Some(7)).await;
    limit(&bench.catalog, &help.tenant, Quota::Keys, Some(5)).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    // Into two collections, whose writers do not wait for each other.
    let places = [help.clone(), other];
    let begun = at_once(&handles, 24, move |catalog, n| {
        let place = places[n / 2 % 2].clone();
        async move {
            let new = version_of(&format!("file:///{n}"), "x");
            catalog.begin_version(&place, &new).await
        }
    })
    .await;
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 7);
    for refused in begun.into_iter().filter(|begun| begun.is_err()) {
        assert_eq!(exceeded(refused), (Quota::Documents, 7, 7));
    }
    let keys = at_once(&handles, 12, move |catalog, n| async move {
        let scopes = BTreeSet::from([Scope::Read]);
        let tenant = TenantId::default_tenant();
        catalog
            .create_key(&tenant, &format!("key {n}"), &scopes)
            .await
    })
    .await;
    assert_eq!(keys.iter().filter(|key| key.is_ok()).count(), 5);
    let usage = bench.catalog.usage(&help.tenant).await.expect("usage");
    assert_eq!((usage[&Quota::Documents], usage[&Quota::Keys]), (7, 5));
}
