//! API keys and the admin key file.

use crate::*;

on_both!(
    keys_open_what_they_should,
    keys_have_limits_owners_and_an_end,
    the_admin_key_is_made_kept_and_replaced
);

async fn keys_open_what_they_should(on: On) {
    let bench = Bench::new(on).await;
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
    assert_eq!(
        (principal.tenant.id(), principal.key()),
        (&default, Some(&id))
    );
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

async fn keys_have_limits_owners_and_an_end(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, default) = (&bench.catalog, TenantId::default_tenant());
    let limits = KeyLimits {
        models: Some(vec!["qwen".to_owned()]),
        budget: Some(Budget {
            micros: 2_500_000,
            window: BudgetWindow::Month,
        }),
    };
    let mut new = NewKey {
        name: "gateway",
        permissions: [Permission::ModelsUse].into_iter().collect(),
        limits: limits.clone(),
        expires_at: Some(5_000),
        ..NewKey::default()
    };
    let (id, secret) = catalog
        .create_key_with(&default, &new)
        .await
        .expect("a key");
    let secret = secret.expose();
    let principal = catalog
        .check_key(secret)
        .await
        .expect("a check")
        .expect("one");
    assert_eq!(principal.limits, limits);
    assert_eq!(principal.permissions, new.permissions);
    assert!(!principal.allows(Scope::Read));
    let shown = catalog.key(&default, &id).await.expect("a key");
    assert_eq!(shown.prefix.as_deref(), Some(&secret[..11]));
    assert_eq!((shown.limits, shown.expires_at), (limits, Some(5_000)));
    bench.clock.store(5_000, Ordering::SeqCst);
    assert_eq!(catalog.check_key(secret).await.expect("a check"), None);
    assert!(
        catalog.create_key_with(&default, &new).await.is_err(),
        "it has ended already"
    );

    // A key of a user does what the user may do by now, and dies with the user.
    let roles = ["editor".to_owned()];
    let user = NewUser {
        email: "ann@example.com",
        roles: &roles,
        ..NewUser::default()
    };
    let user = catalog.create_user(&default, &user).await.expect("a user");
    new.user = Some(&user.id);
    (new.expires_at, new.scopes) = (None, BTreeSet::from([Scope::Admin]));
    let (_, secret) = catalog
        .create_key_with(&default, &new)
        .await
        .expect("a key");
    let may = async || {
        let principal = catalog.check_key(secret.expose()).await.expect("a check");
        principal.map(|principal| {
            assert_eq!(principal.user(), Some(&user.id));
            principal.permissions
        })
    };
    assert_eq!(may().await, Some(BuiltInRole::Editor.permissions()));
    let change = |roles| UserChange {
        roles,
        ..UserChange::default()
    };
    let viewer = ["viewer".to_owned()];
    let viewing = change(Some(&viewer));
    let changed = catalog.update_user(&default, &user.id, &viewing);
    changed.await.expect("changed");
    assert_eq!(may().await, Some(BuiltInRole::Viewer.permissions()));
    let disabled = UserChange {
        state: Some(UserState::Disabled),
        ..change(None)
    };
    let changed = catalog.update_user(&default, &user.id, &disabled).await;
    changed.expect("changed");
    assert_eq!(may().await, None);
    catalog.delete_user(&default, &user.id).await.expect("gone");
    assert_eq!(may().await, None);
}

async fn the_admin_key_is_made_kept_and_replaced(on: On) {
    let bench = Bench::new(on).await;
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
