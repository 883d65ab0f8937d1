//! Cancel requests: they come on a connection of their own and name another by its id and secret.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use datafusion_postgres::pgwire::api::cancel::CancelHandler;
use datafusion_postgres::pgwire::messages::cancel::CancelRequest;
use datafusion_postgres::pgwire::messages::startup::SecretKey;
use tokio_util::sync::CancellationToken;

type Running = Arc<Mutex<CancellationToken>>;

/// The connections that can be asked to cancel what they run.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    connections: Mutex<HashMap<i32, (SecretKey, Running)>>,
}

impl Cancels {
    /// Adds a connection until the returned handle is dropped.
    pub(super) fn register(self: &Arc<Self>, id: i32, secret: SecretKey) -> Cancellable {
        let running = Running::default();
        lock(&self.connections).insert(id, (secret, running.clone()));
        Cancellable {
            id,
            running,
            all: self.clone(),
        }
    }
}

#[async_trait]
impl CancelHandler for Cancels {
    async fn on_cancel_request(&self, request: CancelRequest) {
        if let Some((secret, running)) = lock(&self.connections).get(&request.pid)
            && secret.eq_value(&request.secret_key)
        {
            lock(running).cancel();
        }
    }
}

/// A connection's place among those that can be cancelled.
#[derive(Debug)]
pub(super) struct Cancellable {
    id: i32,
    running: Running,
    all: Arc<Cancels>,
}

impl Cancellable {
    /// The token of a query that begins now. A cancel request that came before it has no effect on it.
    pub(super) fn next_query(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *lock(&self.running) = token.clone();
        token
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        lock(&self.all.connections).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding these locks, and what they guard is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
