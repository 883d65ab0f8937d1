//! Accepts connections, at most so many, and ends them all when asked to stop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::pgwire::api::RandomPidSecretKeyGenerator;
use datafusion_postgres::pgwire::tokio::process_socket;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cancel::Cancels;
use super::connection::{Connection, Handlers};
use super::startup::KeyCheck;
use crate::engine::SqlEngine;

/// Sockets beyond those that are logged in: for logins that are going on, cancel requests, and refusals with a reason.
const SPARE_SOCKETS: usize = 16;
/// Accepting fails for a while when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a [`serve_postgres`] serves.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Connections that may be logged in at a time; one more is refused with SQLSTATE 53300. 64 unless set.
    pub connections_max: usize,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connections_max: 64,
        }
    }
}

/// Serves the PostgreSQL protocol on `listener` until `shutdown`; then ends every connection, with what it runs, and
/// returns.
pub async fn serve_postgres(
    engine: Arc<SqlEngine>,
    listener: TcpListener,
    auth: Arc<dyn KeyCheck>,
    options: PostgresOptions,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "API keys cross the network unencrypted: put TLS in front of the SQL port");
    }
    tracing::info!(%address, "serving the PostgreSQL protocol");
    let cancels = Arc::new(Cancels::default());
    let logins = Arc::new(Semaphore::new(options.connections_max));
    let ids = Arc::new(RandomPidSecretKeyGenerator::default());
    let parser = Arc::new(PostgresCompatibilityParser::new());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= options.connections_max + SPARE_SOCKETS {
            tracing::warn!(%peer, "too many connections, closed one that was not logged in");
            continue;
        }
        let connection = Connection::new(
            engine.clone(),
            auth.clone(),
            cancels.clone(),
            logins.clone(),
            ids.clone(),
            parser.clone(),
        );
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let handlers = Handlers(Arc::new(connection));
            tokio::select! {
                // Dropping the connection ends its query.
                () = shutdown.cancelled() => {}
                ended = process_socket(socket, None, handlers) => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "connection broken");
                    }
                }
            }
        });
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
    Ok(())
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection ended by a bug");
    }
}
