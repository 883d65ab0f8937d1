//! Queries end: at their deadline, at the memory bound, and EXPLAIN without having begun.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt;
use va_catalog::TenantId;
use va_sql::{SqlError, SqlLimits};

use crate::world::{World, scope};

/// More numbers than anyone counts within a test.
pub const ENDLESS: &str =
    "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value % 7 = 8";

/// More rows than anyone reads. The first come at once, so a client can tell that the query runs.
pub const ENDLESS_ROWS: &str = "SELECT value FROM generate_series(1, 1000000000000)";

async fn outcome(world: &World, sql: &str) -> Result<usize, SqlError> {
    let (_, rows) = world
        .engine
        .query(&scope(TenantId::default_tenant()), sql)
        .await?;
    let batches: Vec<_> = rows.try_collect().await?;
    Ok(batches.iter().map(|batch| batch.num_rows()).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_its_deadline() {
    let limits = SqlLimits {
        timeout: Duration::from_secs(1),
        ..SqlLimits::default()
    };
    let world = World::with_limits(limits).await;
    let error = outcome(&world, ENDLESS).await.unwrap_err();
    assert!(matches!(error, SqlError::Timeout { .. }), "{error}");
    assert_eq!(outcome(&world, "SELECT 1").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_the_memory_bound_and_gives_the_memory_back() {
    let limits = SqlLimits {
        memory_bytes: 4 << 20,
        ..SqlLimits::default()
    };
    let world = World::with_limits(limits).await;
    let sorted = |rows: u32| {
        format!("SELECT value FROM generate_series(1, {rows}) ORDER BY value % 1000 DESC")
    };
    for _ in 0..3 {
        let error = outcome(&world, &sorted(2_000_000)).await.unwrap_err();
        assert!(matches!(error, SqlError::Memory(_)), "{error}");
        assert_eq!(outcome(&world, &sorted(1_000)).await.unwrap(), 1_000);
    }
}

#[tokio::test]
async fn explain_does_not_search() {
    let world = World::new().await;
    let search = "SELECT * FROM hybrid_search('help', 'freeze', 5)";
    outcome(&world, &format!("EXPLAIN {search}")).await.unwrap();
    assert_eq!(world.searches.load(Ordering::SeqCst), 0);
    outcome(&world, search).await.unwrap();
    assert_eq!(world.searches.load(Ordering::SeqCst), 1);
}
