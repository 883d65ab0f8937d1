//! Processes that share a catalog: who is seen, and who holds a lease.

use std::time::Duration;

use serde_json::json;

use crate::*;

on_both!(
    processes_are_seen_until_they_go_or_fall_silent,
    a_lease_has_one_holder,
    one_of_many_gets_a_lease,
);

fn process(id: &str) -> Process {
    Process {
        id: id.to_owned(),
        role: "worker".to_owned(),
        host: "host".to_owned(),
        pid: 7,
        version: "0.1.0".to_owned(),
        report: json!({"rows": 1}),
        started_at: 5,
        seen_at: 0,
    }
}

async fn processes_are_seen_until_they_go_or_fall_silent(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let seen = async || {
        catalog
            .processes(Duration::from_secs(10))
            .await
            .expect("a list")
    };
    for id in ["a", "b"] {
        catalog.report_process(&process(id)).await.expect("noted");
    }
    let at = |seen_at, report| Process {
        seen_at,
        report,
        ..process("a")
    };
    let both = seen().await;
    assert_eq!((both.len(), &both[0]), (2, &at(1_000, json!({"rows": 1}))));

    bench.clock.store(12_000, Ordering::SeqCst);
    let again = Process {
        report: json!({"rows": 2}),
        ..process("a")
    };
    catalog.report_process(&again).await.expect("noted");
    assert_eq!(seen().await, [at(12_000, json!({"rows": 2}))]);
    catalog.forget_process("a").await.expect("gone");
    assert_eq!(seen().await, []);
}

async fn a_lease_has_one_holder(on: On) {
    let bench = Bench::new(on).await;
    let lease = async |holder: &str| {
        let length = Duration::from_secs(10);
        bench
            .catalog
            .lease("sweep", holder, length)
            .await
            .expect("an answer")
    };
    assert!(lease("a").await && lease("a").await);
    assert!(!lease("b").await);
    // It ends by itself ...
    bench.clock.store(11_000, Ordering::SeqCst);
    assert!(lease("b").await && !lease("a").await);
    // ... with its holder's word ...
    bench
        .catalog
        .end_lease("sweep", "a")
        .await
        .expect("nothing to do");
    assert!(!lease("a").await);
    bench.catalog.end_lease("sweep", "b").await.expect("ended");
    assert!(lease("a").await);
    // ... and with its holder.
    bench.catalog.forget_process("a").await.expect("gone");
    assert!(lease("b").await);
}

async fn one_of_many_gets_a_lease(on: On) {
    let bench = Bench::new(on).await;
    let handles = [bench.catalog.clone(), bench.second().await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let catalog = handles[n % 2].clone();
        tasks.spawn(async move {
            let length = Duration::from_secs(10);
            catalog
                .lease("sweep", &n.to_string(), length)
                .await
                .expect("an answer")
        });
    }
    let taken = tasks.join_all().await;
    assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
}
