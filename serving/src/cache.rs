//! The cache of this process: in memory, or Redis, watched.
//!
//! When Redis is gone, callers get [`CacheError`] at once instead of each waiting for it, and decide themselves what to do
//! without. It is told once an outage: a log line, the gauge `va_cache_available`, `/readyz` (`degraded`), `va doctor`. One
//! task asks until it is back, and then everything is as before. [`Counters`] go on counting in this process meanwhile.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use va_catalog::settings::CacheSettings;
use va_connectors::cache::memory::MemoryCache;
use va_connectors::cache::{Cache, CacheError, CacheKey};

/// How often a cache that is gone is asked whether it is back.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// What counting in this process may take while the shared cache is gone.
const COUNTERS_BYTES: u64 = 16 << 20;

/// The cache that the settings name. An error is about the settings: a server that does not answer is no error.
pub async fn open(settings: &CacheSettings) -> Result<Arc<dyn Cache>, CacheError> {
    let Some(url) = &settings.url else {
        metrics::gauge!("va_cache_available").set(1.0);
        return Ok(Arc::new(MemoryCache::new(settings.max_bytes)));
    };
    let watched = Watched::new(redis(url.expose(), &settings.namespace)?);
    // When it is gone already, that is told now and not at the first request.
    match watched.ping().await {
        Ok(()) => metrics::gauge!("va_cache_available").set(1.0),
        Err(error) => tracing::debug!(%error, "the cache does not answer yet"),
    }
    Ok(watched)
}

#[cfg(feature = "redis")]
fn redis(url: &str, namespace: &str) -> Result<Arc<dyn Cache>, CacheError> {
    use va_connectors::cache::redis::RedisCache;
    Ok(Arc::new(RedisCache::open(url, namespace)?))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str, _: &str) -> Result<Arc<dyn Cache>, CacheError> {
    Err(CacheError(
        "`cache.url` is set, but this `va` was built without Redis; build it with `--features redis`, or `kafka`, as `make \
         release` does"
            .to_owned(),
    ))
}

/// A cache on a server, with the knowledge whether it is there.
pub struct Watched {
    inner: Arc<dyn Cache>,
    /// Why it is gone, while it is.
    gone: Mutex<Option<CacheError>>,
    /// For the task that waits until it is back, which is not to keep it alive.
    me: Weak<Self>,
}

impl Watched {
    pub fn new(inner: Arc<dyn Cache>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            inner,
            gone: Mutex::default(),
            me: me.clone(),
        })
    }

    fn gone(&self) -> std::sync::MutexGuard<'_, Option<CacheError>> {
        // It is replaced as a whole.
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error at once while it is gone.
    fn there(&self) -> Result<(), CacheError> {
        match &*self.gone() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// What came of a call. One that failed alone, or for what it asked, is no outage.
    async fn judged<T>(&self, result: Result<T, CacheError>) -> Result<T, CacheError> {
        if result.is_err()
            && let Err(error) = self.inner.ping().await
        {
            self.lost(error);
        }
        result
    }

    fn lost(&self, error: CacheError) {
        {
            let mut gone = self.gone();
            if gone.is_some() {
                return;
            }
            *gone = Some(error.clone());
        }
        metrics::gauge!("va_cache_available").set(0.0);
        metrics::counter!("va_cache_outages_total").increment(1);
        tracing::warn!(
            %error,
            "the cache is gone; requests go on without it, except those with an `Idempotency-Key`; it is asked until it is back"
        );
        tokio::spawn(until_back(self.me.clone()));
    }
}

/// Asks until the cache is back, or nobody wants it any more.
async fn until_back(watched: Weak<Watched>) {
    let mut ticks = tokio::time::interval(ASK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(watched) = watched.upgrade() else {
            return;
        };
        match watched.inner.ping().await {
            Ok(()) => {
                *watched.gone() = None;
                metrics::gauge!("va_cache_available").set(1.0);
                tracing::info!(cache = watched.inner.told(), "the cache is back");
                return;
            }
            // The newest reason is the one to tell.
            Err(error) => *watched.gone() = Some(error),
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.inner).finish()
    }
}

#[async_trait]
impl Cache for Watched {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, CacheError> {
        self.there()?;
        self.judged(self.inner.get(key).await).await
    }

    async fn put(&self, key: &CacheKey, value: Bytes, life: Duration) -> Result<(), CacheError> {
        self.there()?;
        self.judged(self.inner.put(key, value, life).await).await
    }

    async fn put_new(
        &self,
        key: &CacheKey,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        self.there()?;
        self.judged(self.inner.put_new(key, value, life).await)
            .await
    }

    async fn replace(
        &self,
        key: &CacheKey,
        expected: &Bytes,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        self.there()?;
        self.judged(self.inner.replace(key, expected, value, life).await)
            .await
    }

    async fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        self.there()?;
        self.judged(self.inner.remove(key).await).await
    }

    async fn remove_if(&self, key: &CacheKey, expected: &Bytes) -> Result<bool, CacheError> {
        self.there()?;
        self.judged(self.inner.remove_if(key, expected).await).await
    }

    async fn add(&self, key: &CacheKey, by: i64, life: Duration) -> Result<i64, CacheError> {
        self.there()?;
        self.judged(self.inner.add(key, by, life).await).await
    }

    /// Asks no server that is known to be gone: it is asked often enough.
    async fn ping(&self) -> Result<(), CacheError> {
        self.there()?;
        self.judged(self.inner.ping().await).await
    }

    fn told(&self) -> String {
        self.inner.told()
    }
}

/// Counts in the cache, and in this process alone while that is gone.
#[derive(Debug)]
pub struct Counters {
    cache: Arc<dyn Cache>,
    here: MemoryCache,
}

impl Counters {
    pub fn new(cache: Arc<dyn Cache>) -> Self {
        Self {
            cache,
            here: MemoryCache::new(COUNTERS_BYTES),
        }
    }

    /// One more, and how many it are now.
    pub async fn count(&self, key: &CacheKey, life: Duration) -> i64 {
        match self.cache.add(key, 1, life).await {
            Ok(count) => count,
            // The outage is told by the cache. Here nothing can fail but a number beyond 64 bits.
            Err(_) => self.here.add(key, 1, life).await.unwrap_or(i64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use va_catalog::TenantId;

    use super::*;

    /// A cache that a test takes away.
    #[derive(Debug)]
    struct Moody {
        kept: MemoryCache,
        gone: AtomicBool,
        asked: AtomicU32,
    }

    impl Moody {
        fn ask(&self) -> Result<(), CacheError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.gone.load(Ordering::SeqCst) {
                return Err(CacheError("it went away".to_owned()));
            }
            Ok(())
        }
    }

    #[async_trait]
    impl Cache for Moody {
        async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, CacheError> {
            self.ask()?;
            self.kept.get(key).await
        }

        async fn put(
            &self,
            key: &CacheKey,
            value: Bytes,
            life: Duration,
        ) -> Result<(), CacheError> {
            self.ask()?;
            self.kept.put(key, value, life).await
        }

        async fn put_new(
            &self,
            key: &CacheKey,
            value: Bytes,
            life: Duration,
        ) -> Result<bool, CacheError> {
            self.ask()?;
            self.kept.put_new(key, value, life).await
        }

        async fn replace(
            &self,
            key: &CacheKey,
            expected: &Bytes,
            value: Bytes,
            life: Duration,
        ) -> Result<bool, CacheError> {
            self.ask()?;
            self.kept.replace(key, expected, value, life).await
        }

        async fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
            self.ask()?;
            self.kept.remove(key).await
        }

        async fn remove_if(&self, key: &CacheKey, expected: &Bytes) -> Result<bool, CacheError> {
            self.ask()?;
            self.kept.remove_if(key, expected).await
        }

        async fn add(&self, key: &CacheKey, by: i64, life: Duration) -> Result<i64, CacheError> {
            self.ask()?;
            self.kept.add(key, by, life).await
        }

        async fn ping(&self) -> Result<(), CacheError> {
            self.ask()
        }

        fn told(&self) -> String {
            "a moody cache".to_owned()
        }
    }

    async fn until_there(cache: &dyn Cache) {
        let there = async {
            while cache.ping().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), there).await;
        waited.expect("it comes back by itself");
    }

    fn moody() -> Arc<Moody> {
        Arc::new(Moody {
            kept: MemoryCache::new(16 << 20),
            gone: AtomicBool::new(false),
            asked: AtomicU32::new(0),
        })
    }

    #[tokio::test]
    async fn a_cache_that_is_gone_is_not_asked_by_callers_and_comes_back_by_itself() {
        let inner = moody();
        let watched = Watched::new(inner.clone());
        let key = CacheKey::new("test", &TenantId::default_tenant(), &["a"]);
        let life = Duration::from_secs(3_600);
        watched.put(&key, "text".into(), life).await.unwrap();
        // A call that fails for what it asks is no outage.
        watched.add(&key, 1, life).await.unwrap_err();
        assert_eq!(watched.get(&key).await.unwrap(), Some("text".into()));

        inner.gone.store(true, Ordering::SeqCst);
        watched.get(&key).await.unwrap_err();
        let asked = inner.asked.load(Ordering::SeqCst);
        for _ in 0..1_000 {
            let error = watched.get(&key).await.unwrap_err().to_string();
            assert!(error.contains("it went away"), "{error}");
        }
        watched.ping().await.unwrap_err();
        assert_eq!(inner.asked.load(Ordering::SeqCst), asked);

        inner.gone.store(false, Ordering::SeqCst);
        until_there(&*watched).await;
        assert_eq!(watched.get(&key).await.unwrap(), Some("text".into()));
    }

    #[tokio::test]
    async fn counters_count_here_while_the_cache_is_gone() {
        let inner = moody();
        let watched = Watched::new(inner.clone());
        let counters = Counters::new(watched.clone());
        let key = CacheKey::new("test", &TenantId::default_tenant(), &["a"]);
        let life = Duration::from_secs(60);
        assert_eq!(counters.count(&key, life).await, 1);
        assert_eq!(counters.count(&key, life).await, 2);
        inner.gone.store(true, Ordering::SeqCst);
        assert_eq!(counters.count(&key, life).await, 1);
        assert_eq!(counters.count(&key, life).await, 2);
        inner.gone.store(false, Ordering::SeqCst);
        until_there(&*watched).await;
        assert_eq!(counters.count(&key, life).await, 3);
    }
}
