//! Users, roles, sessions, invites, signing keys and the audit trail, on both databases.

use crate::*;

on_both!(
    what_people_tell_is_sealed_and_found_by_address,
    a_tenant_keeps_an_owner,
    guesses_that_come_at_once_are_all_counted,
    a_refresh_token_is_exchanged_once,
    sessions_end_with_logout_password_and_user,
    roles_permit_what_they_say,
    an_invite_is_taken_once,
    signing_keys_take_turns,
    the_audit_trail_is_read_from_its_end,
    another_master_key_opens_nothing,
    what_has_ended_is_forgotten,
    what_is_kept_of_a_user_is_told_and_erased,
    accounts_of_others_are_linked_once,
    what_is_sealed_for_elsewhere_opens_for_its_tenant_and_place
);

/// Both at once, each in a task of its own.
async fn both<T: Send + 'static>(
    one: impl Future<Output = T> + Send + 'static,
    other: impl Future<Output = T> + Send + 'static,
) -> (T, T) {
    let (one, other) = (tokio::spawn(one), tokio::spawn(other));
    (one.await.expect("one"), other.await.expect("the other"))
}

fn roles(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn user(catalog: &Catalog, tenant: &TenantId, email: &str, names: &[&str]) -> User {
    let roles = roles(names);
    let new = NewUser {
        email,
        name: Some("安娜·李"),
        phone: Some("+86 138 0013 8000"),
        password_hash: Some("$argon2id$x"),
        roles: &roles,
        invite: None,
    };
    catalog.create_user(tenant, &new).await.expect("a user")
}

async fn what_people_tell_is_sealed_and_found_by_address(on: On) {
    let bench = Bench::unlocked(on).await;
    let catalog = &bench.catalog;
    let (a, b) = (TenantId::default_tenant(), tenant("乙"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let ann = user(catalog, &a, "Ann.Lee@Example.com", &["owner", "viewer"]).await;
    assert_eq!(ann.email, "Ann.Lee@Example.com");
    assert_eq!(ann.name.as_deref(), Some("安娜·李"));
    assert_eq!(
        (ann.roles.clone(), ann.created_at),
        (roles(&["owner", "viewer"]), 1_000)
    );
    assert_eq!(format!("{ann:?}"), format!("User({})", ann.id));
    let found = catalog
        .login_record(&a, " ann.lee@EXAMPLE.com ")
        .await
        .expect("a look");
    assert_eq!(found.expect("found").id, ann.id);
    assert!(
        catalog
            .login_record(&b, "ann.lee@example.com")
            .await
            .expect("a look")
            .is_none()
    );
    let injected = "x' OR '1'='1'; DROP TABLE users; --@x";
    assert!(
        catalog
            .login_record(&a, injected)
            .await
            .expect("a look")
            .is_none()
    );

    // The same address once a tenant, and nothing of one tenant in the other.
    let again = NewUser {
        email: "ANN.LEE@example.com",
        ..NewUser::default()
    };
    let twice = catalog
        .create_user(&a, &again)
        .await
        .expect_err("there is one");
    assert!(matches!(twice, CatalogError::Exists { .. }), "{twice}");
    assert!(!twice.to_string().to_lowercase().contains("lee"), "{twice}");
    let other = user(catalog, &b, "ann.lee@example.com", &[]).await;
    assert!(catalog.user(&b, &ann.id).await.is_err());
    let listed = catalog
        .users(&b, &Page::default())
        .await
        .expect("a page")
        .items;
    assert_eq!(listed, [catalog.user(&b, &other.id).await.expect("a user")]);
    let nobody = catalog
        .update_user(&b, &ann.id, &UserChange::default())
        .await;
    assert!(nobody.is_err());
    assert!(catalog.delete_user(&b, &ann.id).await.is_err());

    let preferences = serde_json::json!({"lang": "zh", "quote": "'; --"});
    let change = UserChange {
        name: Some(""),
        phone: Some("1"),
        preferences: preferences.as_object(),
        ..UserChange::default()
    };
    let changed = catalog
        .update_user(&a, &ann.id, &change)
        .await
        .expect("changed");
    assert_eq!((changed.name, changed.phone.as_deref()), (None, Some("1")));
    assert_eq!(serde_json::Value::Object(changed.preferences), preferences);
    assert_eq!(changed.roles, roles(&["owner", "viewer"]));
    let longest = "x".repeat(201);
    let long = UserChange {
        name: Some(&longest),
        ..UserChange::default()
    };
    assert!(catalog.update_user(&a, &ann.id, &long).await.is_err());

    // Restarted with the same key, and nothing readable in the database.
    let bench = bench.reopened().await;
    assert!(matches!(
        bench.catalog.user(&a, &ann.id).await,
        Err(CatalogError::Locked(_))
    ));
    let catalog = bench
        .catalog
        .unlocked(master(1))
        .await
        .expect("the key fits");
    assert_eq!(
        catalog.user(&a, &ann.id).await.expect("a user").email,
        "Ann.Lee@Example.com"
    );
    for needle in ["Ann.Lee", "ann.lee", "安娜", "13800"] {
        assert!(!stored(&bench, needle).await, "{needle} is in the database");
    }
    // The needle is found where it is not sealed.
    let description = catalog
        .create_tenant(&tenant("plain"), "a plain needle")
        .await;
    description.expect("a tenant");
    assert!(stored(&bench, "a plain needle").await);
}

/// Whether the database holds the text.
async fn stored(bench: &Bench, needle: &str) -> bool {
    if bench.location.starts_with("postgres") {
        let mut connection = PgConnection::connect(&bench.location)
            .await
            .expect("a connection");
        sqlx::query("SELECT set_config('va.tenant', '*', false)")
            .execute(&mut connection)
            .await
            .expect("set");
        let mut found = false;
        for table in [
            "tenants",
            "users",
            "audit_events",
            "data_keys",
            "sessions",
            "linked_logins",
        ] {
            let text = format!("SELECT COUNT(*) FROM {table} t WHERE t::text LIKE $1");
            let count: i64 = sqlx::query_scalar(&text)
                .bind(format!("%{needle}%"))
                .fetch_one(&mut connection)
                .await
                .expect("a count");
            found |= count > 0;
        }
        return found;
    }
    let needle = needle.as_bytes();
    std::fs::read_dir(bench.folder.path())
        .expect("a folder")
        .any(|entry| {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
            bytes.windows(needle.len()).any(|window| window == needle)
        })
}

async fn a_tenant_keeps_an_owner(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t) = (&bench.catalog, TenantId::default_tenant());
    let ann = user(catalog, &t, "ann@x", &["owner"]).await;
    let viewer = roles(&["viewer"]);
    let demoted = || UserChange {
        roles: Some(&viewer),
        ..UserChange::default()
    };
    let disabled = || UserChange {
        state: Some(UserState::Disabled),
        ..UserChange::default()
    };
    for change in [demoted(), disabled()] {
        let refused = catalog
            .update_user(&t, &ann.id, &change)
            .await
            .expect_err("the last");
        assert!(refused.to_string().contains("the last owner"), "{refused}");
    }
    assert!(catalog.delete_user(&t, &ann.id).await.is_err());
    // With two, both go at once in two processes, and one of them stays.
    let ben = user(catalog, &t, "ben@x", &["owner"]).await;
    let second = bench
        .second()
        .await
        .unlocked(master(1))
        .await
        .expect("the key fits");
    let first = catalog.clone();
    let (t1, t2, a, b) = (t.clone(), t.clone(), ann.id.clone(), ben.id.clone());
    let (left, right) = both(
        async move { first.delete_user(&t1, &a).await.is_ok() },
        async move { second.delete_user(&t2, &b).await.is_ok() },
    )
    .await;
    assert!(left != right, "{left} {right}");
    assert_eq!(
        catalog
            .users(&t, &Page::default())
            .await
            .expect("a page")
            .items
            .len(),
        1
    );
}

async fn guesses_that_come_at_once_are_all_counted(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t) = (&bench.catalog, TenantId::default_tenant());
    let ann = user(catalog, &t, "ann@x", &["viewer"]).await;
    let mut guesses = tokio::task::JoinSet::new();
    for _ in 0..9 {
        let (catalog, t, id) = (catalog.clone(), t.clone(), ann.id.clone());
        guesses.spawn(async move { catalog.login_failed(&t, &id, 10, 60_000).await });
    }
    for locked in guesses.join_all().await {
        assert_eq!(locked.expect("counted"), None);
    }
    let locked = catalog
        .login_failed(&t, &ann.id, 10, 60_000)
        .await
        .expect("counted");
    assert_eq!(locked, Some(61_000));
    assert_eq!(
        catalog
            .user(&t, &ann.id)
            .await
            .expect("a user")
            .locked_until,
        Some(61_000)
    );
    let unlock = UserChange {
        unlock: true,
        ..UserChange::default()
    };
    let unlocked = catalog
        .update_user(&t, &ann.id, &unlock)
        .await
        .expect("unlocked");
    assert_eq!(unlocked.locked_until, None);
    catalog
        .login_failed(&t, &ann.id, 2, 60_000)
        .await
        .expect("counted");
    catalog.login_succeeded(&t, &ann.id).await.expect("noted");
    let record = catalog
        .login_record(&t, "ann@x")
        .await
        .expect("a look")
        .expect("one");
    assert_eq!((record.failed_logins, record.locked_until), (0, None));
    assert_eq!(record.password_hash.as_deref(), Some("$argon2id$x"));
}

const DAY: i64 = 86_400_000;

async fn a_refresh_token_is_exchanged_once(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t) = (&bench.catalog, TenantId::default_tenant());
    let ann = user(catalog, &t, "ann@x", &["editor"]).await;
    let (id, first) = catalog
        .begin_session(&t, &ann.id, DAY)
        .await
        .expect("a session");
    assert!(first.expose().starts_with("vr_"));
    let Refreshed::Renewed { session, token } = catalog
        .refresh_session(first.expose(), DAY)
        .await
        .expect("an answer")
    else {
        panic!("a fresh token is exchanged");
    };
    assert_eq!(
        (&session.id, &session.user, session.tenant.id()),
        (&id, &ann.id, &t)
    );
    assert_eq!(session.permissions, BuiltInRole::Editor.permissions());
    assert_eq!(session.roles, roles(&["editor"]));
    for unknown in ["", "vr_", "vr_ AND 1=1", &token.expose()[1..]] {
        let answer = catalog
            .refresh_session(unknown, DAY)
            .await
            .expect("an answer");
        assert!(matches!(answer, Refreshed::Refused), "{unknown}");
    }
    // The first once more: the session ends, and its newest token with it.
    let answer = catalog
        .refresh_session(first.expose(), DAY)
        .await
        .expect("an answer");
    assert!(
        matches!(answer, Refreshed::Reused { ref user, .. } if *user == ann.id),
        "{answer:?}"
    );
    assert_eq!(catalog.session(&t, &id).await.expect("a look"), None);
    let answer = catalog
        .refresh_session(token.expose(), DAY)
        .await
        .expect("an answer");
    assert!(matches!(answer, Refreshed::Refused), "{answer:?}");

    // Shown by two at once, in two processes: one gets the successor, and the session ends.
    let (id, token) = catalog
        .begin_session(&t, &ann.id, DAY)
        .await
        .expect("a session");
    let second = bench
        .second()
        .await
        .unlocked(master(1))
        .await
        .expect("the key fits");
    let (first, shown) = (catalog.clone(), token.expose().to_owned());
    let also = shown.clone();
    let (left, right) = both(
        async move { first.refresh_session(&shown, DAY).await.expect("an answer") },
        async move { second.refresh_session(&also, DAY).await.expect("an answer") },
    )
    .await;
    let reused = [&left, &right]
        .iter()
        .filter(|a| matches!(a, Refreshed::Reused { .. }))
        .count();
    assert_eq!(reused, 1, "{left:?} {right:?}");
    assert_eq!(catalog.session(&t, &id).await.expect("a look"), None);

    // Time ends it too.
    let (id, token) = catalog
        .begin_session(&t, &ann.id, DAY)
        .await
        .expect("a session");
    bench.clock.store(1_000 + DAY, Ordering::SeqCst);
    assert_eq!(catalog.session(&t, &id).await.expect("a look"), None);
    let answer = catalog
        .refresh_session(token.expose(), DAY)
        .await
        .expect("an answer");
    assert!(matches!(answer, Refreshed::Refused), "{answer:?}");
}

async fn sessions_end_with_logout_password_and_user(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let ann = user(catalog, &t, "ann@x", &["viewer"]).await;
    let lives = async |id: &SessionId| catalog.session(&t, id).await.expect("a look").is_some();
    let begin = async || {
        catalog
            .begin_session(&t, &ann.id, DAY)
            .await
            .expect("a session")
            .0
    };
    let (one, two, three) = (begin().await, begin().await, begin().await);
    // Another tenant neither sees nor ends it.
    assert_eq!(catalog.session(&b, &one).await.expect("a look"), None);
    catalog
        .end_session(&b, &one, "logout")
        .await
        .expect("nothing");
    assert!(lives(&one).await);
    catalog
        .end_session(&t, &one, "logout")
        .await
        .expect("ended");
    assert!(!lives(&one).await && lives(&two).await);
    let changed = catalog
        .set_password(&t, &ann.id, "$argon2id$y", Some(two.as_str()))
        .await;
    changed.expect("changed");
    assert!(lives(&two).await && !lives(&three).await);
    let disabled = UserChange {
        state: Some(UserState::Disabled),
        ..UserChange::default()
    };
    catalog
        .update_user(&t, &ann.id, &disabled)
        .await
        .expect("disabled");
    assert!(!lives(&two).await);
    let four = begin().await;
    assert!(!lives(&four).await, "the user may not log in");
    catalog.delete_user(&t, &ann.id).await.expect("gone");
    assert!(!lives(&four).await);
    assert!(
        catalog
            .login_record(&t, "ann@x")
            .await
            .expect("a look")
            .is_none()
    );
}

async fn roles_permit_what_they_say(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let permissions: Permissions = [Permission::Search, Permission::AuditRead]
        .into_iter()
        .collect();
    let mut role = UserRole {
        name: "审计".to_owned(),
        description: "looks".to_owned(),
        permissions,
        built_in: false,
    };
    catalog.put_role(&t, &role, false).await.expect("a role");
    assert!(matches!(
        catalog.put_role(&t, &role, false).await,
        Err(CatalogError::Exists { .. })
    ));
    assert_eq!(catalog.role(&t, "审计").await.expect("a role"), role);
    assert!(catalog.role(&b, "审计").await.is_err());
    assert_eq!(catalog.roles(&t).await.expect("a list").len(), 5);
    assert_eq!(catalog.roles(&b).await.expect("a list").len(), 4);
    let ann = user(catalog, &t, "ann@x", &["审计", "viewer"]).await;
    let may = async || catalog.rights_of(&t, &ann.id).await.expect("rights").1;
    assert_eq!(
        may().await,
        permissions.union(BuiltInRole::Viewer.permissions())
    );
    let named = roles(&["审计"]);
    let elsewhere = NewUser {
        email: "ben@x",
        roles: &named,
        ..NewUser::default()
    };
    let refused = catalog
        .create_user(&b, &elsewhere)
        .await
        .expect_err("no such role");
    assert!(
        refused.to_string().contains("role `审计` does not exist"),
        "{refused}"
    );
    role.permissions = Permissions::NONE;
    catalog.put_role(&t, &role, true).await.expect("changed");
    assert_eq!(may().await, BuiltInRole::Viewer.permissions());
    let refused = catalog.delete_role(&t, "审计").await.expect_err("in use");
    assert!(refused.to_string().contains("in use"), "{refused}");
    let viewer = roles(&["viewer"]);
    let change = UserChange {
        roles: Some(&viewer),
        ..UserChange::default()
    };
    catalog
        .update_user(&t, &ann.id, &change)
        .await
        .expect("changed");
    assert!(catalog.delete_role(&b, "审计").await.is_err());
    catalog.delete_role(&t, "审计").await.expect("gone");
    for bad in ["owner", "", "a b", "x'; DROP TABLE roles; --"] {
        role.name = bad.to_owned();
        assert!(catalog.put_role(&t, &role, false).await.is_err(), "{bad}");
        assert!(catalog.delete_role(&t, bad).await.is_err(), "{bad}");
    }
}

async fn an_invite_is_taken_once(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let (secret, expires_at) = catalog
        .create_invite(&t, &roles(&["editor"]), "key_1", 60_000)
        .await
        .expect("an invite");
    let invite = catalog
        .invite(secret.expose())
        .await
        .expect("a look")
        .expect("one");
    assert_eq!((invite.tenant, invite.expires_at), (t.clone(), expires_at));
    let editor = roles(&["editor"]);
    let shown = secret.expose().to_owned();
    let new = NewUser {
        email: "eve@x",
        roles: &editor,
        invite: Some(&shown),
        ..NewUser::default()
    };
    assert!(
        catalog.create_user(&b, &new).await.is_err(),
        "it is another tenant's"
    );
    // Two at once: one of them becomes a user.
    let join = |email: &'static str, catalog: Catalog| {
        let (t, invite) = (t.clone(), shown.clone());
        async move {
            let editor = roles(&["editor"]);
            let new = NewUser {
                email,
                roles: &editor,
                invite: Some(&invite),
                ..NewUser::default()
            };
            catalog.create_user(&t, &new).await.is_ok()
        }
    };
    let second = bench
        .second()
        .await
        .unlocked(master(1))
        .await
        .expect("the key fits");
    let (left, right) = both(join("ann@x", catalog.clone()), join("ben@x", second)).await;
    assert!(left != right, "{left} {right}");
    assert_eq!(catalog.invite(&shown).await.expect("a look"), None);
    let (secret, _) = catalog
        .create_invite(&t, &editor, "key_1", 60_000)
        .await
        .expect("an invite");
    bench.clock.store(61_000, Ordering::SeqCst);
    assert_eq!(catalog.invite(secret.expose()).await.expect("a look"), None);
    assert!(
        catalog
            .create_invite(&t, &roles(&["god"]), "key_1", 1)
            .await
            .is_err()
    );
    assert!(catalog.create_invite(&t, &[], "key_1", 1).await.is_err());
}

async fn signing_keys_take_turns(on: On) {
    let bench = Bench::unlocked(on).await;
    let catalog = &bench.catalog;
    let times = SigningTimes {
        signs_ms: 10_000,
        verifies_ms: 5_000,
    };
    let second = bench
        .second()
        .await
        .unlocked(master(1))
        .await
        .expect("the key fits");
    let (first, other) = (catalog.clone(), second.clone());
    let (left, right) = both(
        async move { first.signing_key(times, false).await.expect("a key").id },
        async move { other.signing_key(times, false).await.expect("a key").id },
    )
    .await;
    assert_eq!(left, right, "two processes sign with one key");
    let signature = catalog
        .signing_key(times, false)
        .await
        .expect("a key")
        .pair
        .sign(b"x");
    let keys = second.verifying_keys_all_tenants().await.expect("keys");
    assert_eq!(
        (keys.len(), keys[0].signs_until, keys[0].verifies_until),
        (1, 11_000, 16_000)
    );
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &keys[0].public_key)
        .verify(b"x", signature.as_ref())
        .expect("the public half fits");
    // A new one by its time, and one by wish; the old ones are believed for a while.
    bench.clock.store(11_000, Ordering::SeqCst);
    let next = second.signing_key(times, false).await.expect("a key").id;
    assert_ne!(next, left);
    let wished = second.signing_key(times, true).await.expect("a key").id;
    assert_eq!(
        catalog.signing_key(times, false).await.expect("a key").id,
        wished
    );
    let ids = async || {
        let keys = catalog.verifying_keys_all_tenants().await.expect("keys");
        keys.into_iter().map(|key| key.id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, [wished.clone(), next.clone(), left]);
    bench.clock.store(16_000, Ordering::SeqCst);
    assert_eq!(ids().await, [wished, next]);
}

async fn the_audit_trail_is_read_from_its_end(on: On) {
    let bench = Bench::new(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    for action in [
        "auth.login",
        "user.create",
        "x'); DROP TABLE audit_events; --",
    ] {
        let event = NewAuditEvent {
            actor: "usr_1",
            action,
            target: Some("usr_2"),
            succeeded: action != "user.create",
            ..NewAuditEvent::default()
        };
        catalog.note_audit(&t, &event).await.expect("noted");
    }
    let page = catalog
        .audit_events(&t, &Page::first(2))
        .await
        .expect("a page");
    let actions: Vec<&str> = page
        .items
        .iter()
        .map(|event| event.action.as_str())
        .collect();
    assert_eq!(actions, ["x'); DROP TABLE audit_events; --", "user.create"]);
    assert!(page.items[0].succeeded && !page.items[1].succeeded);
    let rest = Page {
        cursor: page.next,
        ..Page::first(2)
    };
    let rest = catalog.audit_events(&t, &rest).await.expect("a page");
    assert_eq!(
        (rest.items.len(), rest.items[0].action.as_str()),
        (1, "auth.login")
    );
    assert_eq!(rest.next, None);
    assert!(
        catalog
            .audit_events(&b, &Page::default())
            .await
            .expect("a page")
            .items
            .is_empty()
    );
}

async fn another_master_key_opens_nothing(on: On) {
    let bench = Bench::unlocked(on).await;
    let t = TenantId::default_tenant();
    let ann = user(&bench.catalog, &t, "ann@x", &[]).await;
    let second = bench.second().await;
    let refused = second.unlocked(master(2)).await.expect_err("another key");
    assert!(matches!(refused, CatalogError::Locked(_)), "{refused}");
    assert!(
        refused.to_string().contains("identity.master_key"),
        "{refused}"
    );
    // Without the key: keys work, people do not.
    let (_, secret) = second
        .create_key(&t, "k", &BTreeSet::from([Scope::Read]))
        .await
        .expect("a key");
    assert!(
        second
            .check_key(secret.expose())
            .await
            .expect("a check")
            .is_some()
    );
    assert!(matches!(
        second.user(&t, &ann.id).await,
        Err(CatalogError::Locked(_))
    ));
    let times = SigningTimes {
        signs_ms: 1,
        verifies_ms: 1,
    };
    assert!(matches!(
        second.signing_key(times, false).await,
        Err(CatalogError::Locked(_))
    ));

    let file = bench.folder.path().join("master.key");
    let made = MasterKey::ensure(&file).expect("a key");
    let again = MasterKey::ensure(&file).expect("the key");
    assert_eq!(made.fingerprint(), again.fingerprint());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&file)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::write(&file, "garbage").expect("written");
    let refused = MasterKey::ensure(&file).expect_err("no key");
    assert!(
        refused.to_string().contains("32 bytes in base64"),
        "{refused}"
    );
}

async fn what_has_ended_is_forgotten(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t) = (&bench.catalog, TenantId::default_tenant());
    let ann = user(catalog, &t, "ann@x", &["viewer"]).await;
    let (ended, _) = catalog
        .begin_session(&t, &ann.id, DAY)
        .await
        .expect("a session");
    catalog
        .end_session(&t, &ended, "logout")
        .await
        .expect("ended");
    let (lives, token) = catalog
        .begin_session(&t, &ann.id, 9 * DAY)
        .await
        .expect("a session");
    let renewed = catalog
        .refresh_session(token.expose(), 9 * DAY)
        .await
        .expect("renewed");
    let invited = catalog.create_invite(&t, &roles(&["viewer"]), "k", 1).await;
    invited.expect("an invite");
    let event = NewAuditEvent {
        actor: "a",
        action: "b",
        ..NewAuditEvent::default()
    };
    catalog.note_audit(&t, &event).await.expect("noted");
    assert_eq!(
        catalog
            .forget_ended_all_tenants(1_000, 1_000)
            .await
            .expect("nothing"),
        0
    );
    bench.clock.store(1_000 + 5 * DAY, Ordering::SeqCst);
    // The ended session with its token, the token that was exchanged, the invite; the trail stays.
    assert_eq!(
        catalog
            .forget_ended_all_tenants(2 * DAY, 0)
            .await
            .expect("some"),
        4
    );
    assert_eq!(
        catalog
            .audit_events(&t, &Page::default())
            .await
            .expect("a page")
            .items
            .len(),
        1
    );
    assert_eq!(
        catalog
            .forget_ended_all_tenants(0, 2 * DAY)
            .await
            .expect("one"),
        1
    );
    assert!(catalog.session(&t, &lives).await.expect("a look").is_some());
    let Refreshed::Renewed { token, .. } = renewed else {
        panic!("{renewed:?}");
    };
    let again = catalog
        .refresh_session(token.expose(), DAY)
        .await
        .expect("an answer");
    assert!(matches!(again, Refreshed::Renewed { .. }), "{again:?}");
    // A user can have only so many.
    for _ in 0..60 {
        catalog
            .begin_session(&t, &ann.id, DAY)
            .await
            .expect("a session");
    }
    assert_eq!(catalog.session(&t, &lives).await.expect("a look"), None);
}

async fn what_is_kept_of_a_user_is_told_and_erased(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let ann = user(catalog, &t, "ann@x", &["viewer"]).await.id;
    let ben = user(catalog, &t, "ben@x", &["viewer"]).await.id;
    for (id, action) in [(&ann, "auth.login"), (&ben, "auth.login")] {
        catalog.begin_session(&t, id, DAY).await.expect("a session");
        let key = NewKey {
            name: "mine",
            scopes: BTreeSet::from([Scope::Read]),
            user: Some(id),
            ..NewKey::default()
        };
        catalog.create_key_with(&t, &key).await.expect("a key");
        let event = NewAuditEvent {
            actor: "nobody",
            action,
            target: Some(id.as_str()),
            succeeded: true,
            address: Some("203.0.113.7"),
            ..NewAuditEvent::default()
        };
        catalog.note_audit(&t, &event).await.expect("noted");
    }
    let told = async |tenant: &TenantId, id: &UserId| {
        let sessions = catalog.sessions_of(tenant, id, 10).await.expect("a list");
        let keys = catalog.keys_of(tenant, id, 10).await.expect("a list");
        let events = catalog.audit_of(tenant, id, 10).await.expect("a list");
        let places = events
            .iter()
            .filter(|event| event.address.is_some())
            .count();
        (sessions.len(), keys.len(), events.len(), places)
    };
    assert_eq!(told(&t, &ann).await, (1, 1, 1, 1));
    assert_eq!(told(&b, &ann).await, (0, 0, 0, 0));
    catalog.delete_user(&t, &ann).await.expect("erased");
    // What happened stays, without where; the key stays as one that is revoked.
    assert_eq!(told(&t, &ann).await, (0, 1, 1, 0));
    let keys = catalog.keys_of(&t, &ann, 10).await.expect("a list");
    assert_eq!(keys[0].revoked_at, Some(1_000));
    assert_eq!(told(&t, &ben).await, (1, 1, 1, 1));
}

async fn accounts_of_others_are_linked_once(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, t, b) = (&bench.catalog, TenantId::default_tenant(), tenant("b"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let ann = user(catalog, &t, "ann@x", &[]).await.id;
    let ben = user(catalog, &t, "ben@x", &[]).await.id;
    let issuer = "https://id.example";
    let linked = async |tenant: &TenantId, issuer: &str, subject: &str| {
        let found = catalog.linked_user(tenant, issuer, subject).await;
        found.expect("a look").map(|(id, _)| id)
    };
    assert_eq!(linked(&t, issuer, "sub-1").await, None);
    catalog
        .link_user(&t, &ann, issuer, "sub-1")
        .await
        .expect("linked");
    let twice = catalog.link_user(&t, &ben, issuer, "sub-1").await;
    assert!(matches!(twice, Err(CatalogError::Exists { .. })));
    assert_eq!(linked(&t, issuer, "sub-1").await, Some(ann.clone()));
    // Another tenant, issuer or subject is another account.
    assert_eq!(linked(&b, issuer, "sub-1").await, None);
    assert_eq!(linked(&t, "https://id.example sub-1", "").await, None);
    assert_eq!(linked(&t, "https://other.example", "sub-1").await, None);
    assert_eq!(linked(&t, issuer, "SUB-1").await, None);
    assert!(!stored(&bench, "sub-1").await);
    catalog.delete_user(&t, &ann).await.expect("erased");
    assert_eq!(linked(&t, issuer, "sub-1").await, None);
}

async fn what_is_sealed_for_elsewhere_opens_for_its_tenant_and_place(on: On) {
    let bench = Bench::unlocked(on).await;
    let (catalog, place) = (&bench.catalog, "a cached reply");
    let (a, b) = (TenantId::default_tenant(), tenant("乙"));
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let bytes: Vec<u8> = (0..=255).collect();
    let sealed = catalog.seal_outside(&a, place, &bytes).await;
    let sealed = sealed.expect("sealed");
    let opened = catalog.open_outside(&a, place, &sealed).await;
    assert_eq!(opened.expect("opened"), bytes);
    for (tenant, place) in [(&b, place), (&a, "another reply")] {
        let opened = catalog.open_outside(tenant, place, &sealed).await;
        opened.expect_err("it belongs elsewhere");
    }
    // Without the master key nothing is sealed, and nothing is kept openly instead.
    let locked = bench.second().await;
    let refused = locked.seal_outside(&a, place, &bytes).await;
    assert!(matches!(refused, Err(CatalogError::Locked(_))));
    let refused = locked.open_outside(&a, place, &sealed).await;
    assert!(matches!(refused, Err(CatalogError::Locked(_))));
}
