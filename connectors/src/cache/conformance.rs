//! What every cache must do, as one function per behaviour. Each takes a world with an empty cache.
//!
//! [`cache_conformance!`](crate::cache_conformance) makes a test of each, as `log_conformance!` does for logs. Time is the
//! world's: a cache with a clock of the test's is told that it passes, a server is asked again until it has.

#![allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use va_catalog::TenantId;

use super::{Cache, CacheKey};

/// A cache, and how time passes for it.
#[derive(Clone)]
pub struct World {
    pub cache: Arc<dyn Cache>,
    /// Lets time pass; without it, real time does.
    pub pass: Option<Arc<dyn Fn(Duration) + Send + Sync>>,
}

/// Makes a `#[tokio::test]` of every behaviour, on a [`World`] made by `$make`: an async function without arguments that
/// returns it and something to keep until the test ends, or `None` when there can be no such cache here, having said why.
#[macro_export]
macro_rules! cache_conformance {
    ($make:path) => {
        $crate::cache_conformance! { @each $make;
            what_is_put_is_got, entries_end, a_replaced_entry_has_its_new_life,
            of_many_who_put_new_one_does, a_lock_is_let_go_of_by_its_holder_only,
            of_many_who_replace_one_does, counters_add_up, a_counter_ends_after_its_first_use,
            numbers_are_exact_and_nothing_else_counts, tenants_and_kinds_are_apart,
            large_and_odd_entries_come_back,
        }
    };
    (@each $make:path; $($behaviour:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let Some((world, _guard)) = $make().await else { return };
                $crate::cache::conformance::$behaviour(world).await;
            }
        )*
    };
}

/// A life that no test lives to see the end of.
const LONG: Duration = Duration::from_secs(3_600);
/// A life whose end is waited for.
const SHORT: Duration = Duration::from_millis(1);
/// The longest that anything may take; only a broken cache waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

fn key(name: &str) -> CacheKey {
    CacheKey::new("conformance", &TenantId::default_tenant(), &[name])
}

impl World {
    /// Waits until there is nothing at the key.
    async fn until_gone(&self, key: &CacheKey) {
        if let Some(pass) = &self.pass {
            pass(SHORT);
            assert_eq!(self.cache.get(key).await.unwrap(), None);
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.cache.get(key).await.unwrap().is_some() {
            assert!(Instant::now() < deadline, "{key:?} does not end");
            tokio::task::yield_now().await;
        }
    }
}

pub async fn what_is_put_is_got(world: World) {
    let cache = world.cache;
    assert_eq!(cache.get(&key("a")).await.unwrap(), None);
    cache.put(&key("a"), "1".into(), LONG).await.unwrap();
    cache.put(&key("b"), "2".into(), LONG).await.unwrap();
    assert_eq!(cache.get(&key("a")).await.unwrap(), Some("1".into()));
    cache.put(&key("a"), "3".into(), LONG).await.unwrap();
    assert_eq!(cache.get(&key("a")).await.unwrap(), Some("3".into()));
    cache.remove(&key("a")).await.unwrap();
    // Removing nothing is no error.
    cache.remove(&key("a")).await.unwrap();
    assert_eq!(cache.get(&key("a")).await.unwrap(), None);
    assert_eq!(cache.get(&key("b")).await.unwrap(), Some("2".into()));
    cache.ping().await.unwrap();
}

pub async fn entries_end(world: World) {
    let cache = &world.cache;
    cache.put(&key("long"), "1".into(), LONG).await.unwrap();
    cache.put(&key("short"), "1".into(), SHORT).await.unwrap();
    world.until_gone(&key("short")).await;
    // Where it ended, something new can be put, and nothing be let go of.
    let value = Bytes::from("1");
    assert!(!cache.remove_if(&key("short"), &value).await.unwrap());
    let replaced = cache.replace(&key("short"), &value, "2".into(), LONG).await;
    assert!(!replaced.unwrap());
    assert!(
        cache
            .put_new(&key("short"), "3".into(), LONG)
            .await
            .unwrap()
    );
    assert_eq!(cache.get(&key("long")).await.unwrap(), Some("1".into()));
    // No life at all is a very short one.
    cache
        .put(&key("none"), "1".into(), Duration::ZERO)
        .await
        .unwrap();
    world.until_gone(&key("none")).await;
}

pub async fn a_replaced_entry_has_its_new_life(world: World) {
    let cache = &world.cache;
    let old = Bytes::from("old");
    cache.put(&key("shorter"), old.clone(), LONG).await.unwrap();
    let replaced = cache
        .replace(&key("shorter"), &old, "new".into(), SHORT)
        .await;
    assert!(replaced.unwrap());
    world.until_gone(&key("shorter")).await;

    let day = 24 * LONG;
    cache.put(&key("longer"), old.clone(), LONG).await.unwrap();
    let replaced = cache.replace(&key("longer"), &old, "new".into(), day).await;
    assert!(replaced.unwrap());
    if let Some(pass) = &world.pass {
        pass(2 * LONG);
    }
    assert_eq!(cache.get(&key("longer")).await.unwrap(), Some("new".into()));
}

pub async fn of_many_who_put_new_one_does(world: World) {
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..50 {
        let cache = world.cache.clone();
        tries.spawn(async move {
            let value = Bytes::from(n.to_string());
            let first = cache.put_new(&key("lock"), value.clone(), LONG).await;
            first.unwrap().then_some(value)
        });
    }
    let holders: Vec<Bytes> = tries.join_all().await.into_iter().flatten().collect();
    assert_eq!(holders.len(), 1, "{holders:?}");
    let held = world.cache.get(&key("lock")).await.unwrap();
    assert_eq!(held.as_ref(), holders.first());
}

pub async fn a_lock_is_let_go_of_by_its_holder_only(world: World) {
    let cache = world.cache;
    let (mine, theirs) = (Bytes::from("mine"), Bytes::from("theirs"));
    assert!(!cache.remove_if(&key("lock"), &mine).await.unwrap());
    assert!(
        cache
            .put_new(&key("lock"), mine.clone(), LONG)
            .await
            .unwrap()
    );
    assert!(
        !cache
            .put_new(&key("lock"), theirs.clone(), LONG)
            .await
            .unwrap()
    );
    assert!(!cache.remove_if(&key("lock"), &theirs).await.unwrap());
    assert_eq!(cache.get(&key("lock")).await.unwrap(), Some(mine.clone()));
    assert!(cache.remove_if(&key("lock"), &mine).await.unwrap());
    assert!(cache.put_new(&key("lock"), theirs, LONG).await.unwrap());
    assert!(!cache.remove_if(&key("lock"), &mine).await.unwrap());
}

pub async fn of_many_who_replace_one_does(world: World) {
    let seen = Bytes::from("seen by all");
    world
        .cache
        .put(&key("version"), seen.clone(), LONG)
        .await
        .unwrap();
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (cache, seen) = (world.cache.clone(), seen.clone());
        tries.spawn(async move {
            let value = Bytes::from(n.to_string());
            cache
                .replace(&key("version"), &seen, value, LONG)
                .await
                .unwrap()
        });
    }
    let replaced = tries
        .join_all()
        .await
        .into_iter()
        .filter(|done| *done)
        .count();
    assert_eq!(replaced, 1);
    let absent = world
        .cache
        .replace(&key("absent"), &seen, "x".into(), LONG)
        .await;
    assert!(!absent.unwrap());
    assert_eq!(world.cache.get(&key("absent")).await.unwrap(), None);
}

pub async fn counters_add_up(world: World) {
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let cache = world.cache.clone();
        tries.spawn(async move { cache.add(&key("count"), 2, LONG).await.unwrap() });
    }
    let mut seen = tries.join_all().await;
    seen.sort_unstable();
    // Nobody sees what another one sees.
    assert_eq!(seen, (1..=50).map(|n| 2 * n).collect::<Vec<i64>>());
    assert_eq!(
        world.cache.add(&key("count"), -150, LONG).await.unwrap(),
        -50
    );
    assert_eq!(
        world.cache.get(&key("count")).await.unwrap(),
        Some("-50".into())
    );
}

pub async fn a_counter_ends_after_its_first_use(world: World) {
    let cache = &world.cache;
    assert_eq!(cache.add(&key("window"), 1, SHORT).await.unwrap(), 1);
    if let Some(pass) = &world.pass {
        // Later uses do not make it live longer.
        assert_eq!(cache.add(&key("window"), 1, LONG).await.unwrap(), 2);
        pass(SHORT);
    } else {
        world.until_gone(&key("window")).await;
    }
    assert_eq!(cache.add(&key("window"), 1, LONG).await.unwrap(), 1);
    // Nor shorter.
    assert_eq!(cache.add(&key("window"), 1, SHORT).await.unwrap(), 2);
    if let Some(pass) = &world.pass {
        pass(SHORT * 2);
    }
    assert_eq!(cache.add(&key("window"), 1, SHORT).await.unwrap(), 3);
}

pub async fn numbers_are_exact_and_nothing_else_counts(world: World) {
    let cache = world.cache;
    // Beyond what a floating-point number holds.
    let large = (1_i64 << 53) + 1;
    assert_eq!(cache.add(&key("large"), large, LONG).await.unwrap(), large);
    assert_eq!(cache.add(&key("large"), 2, LONG).await.unwrap(), large + 2);
    cache.add(&key("full"), i64::MAX, LONG).await.unwrap();
    cache.add(&key("full"), 1, LONG).await.unwrap_err();
    assert_eq!(
        cache.get(&key("full")).await.unwrap(),
        Some(i64::MAX.to_string().into())
    );
    cache.put(&key("text"), "three".into(), LONG).await.unwrap();
    cache.add(&key("text"), 1, LONG).await.unwrap_err();
    assert_eq!(cache.get(&key("text")).await.unwrap(), Some("three".into()));
    // The cache is as good as before.
    cache.put(&key("number"), "3".into(), LONG).await.unwrap();
    assert_eq!(cache.add(&key("number"), 1, LONG).await.unwrap(), 4);
}

pub async fn tenants_and_kinds_are_apart(world: World) {
    let cache = world.cache;
    let (one, other) = (TenantId::default_tenant(), TenantId::new("other").unwrap());
    let keys = [
        CacheKey::new("a", &one, &["x"]),
        CacheKey::new("a", &other, &["x"]),
        CacheKey::new("b", &one, &["x"]),
        CacheKey::new("a", &one, &["x", ""]),
        CacheKey::new("a", &one, &["x:"]),
    ];
    for (n, key) in keys.iter().enumerate() {
        assert!(
            cache
                .put_new(key, n.to_string().into(), LONG)
                .await
                .unwrap()
        );
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(cache.get(key).await.unwrap(), Some(n.to_string().into()));
    }
}

pub async fn large_and_odd_entries_come_back(world: World) {
    let cache = world.cache;
    let every_byte: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    for (name, value) in [
        ("如何 100% \r\n*1", Bytes::from(every_byte)),
        ("", Bytes::new()),
        ("{tag}", Bytes::from("$5\r\nhello\r\n")),
    ] {
        cache.put(&key(name), value.clone(), LONG).await.unwrap();
        assert_eq!(cache.get(&key(name)).await.unwrap(), Some(value.clone()));
        assert!(cache.remove_if(&key(name), &value).await.unwrap());
    }
}
