//! Connections of the HTTP API: taken up to a number, ended when no request comes of them, closed gently at the end.
//!
//! axum's own `serve` has no time-outs, so a client that sends a byte now and then would hold its connection for ever, and
//! enough of them would hold all. HTTP/1.1 only: a server that waits to see which version a client speaks waits without an
//! end. What a request may take once its head is there is the business of `leftover.rs` and `deadline.rs`.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use va_catalog::settings::ServerSettings;

/// How long to wait after a connection could not be taken, which is for want of file descriptors or memory.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `stopping`, then until the requests that are under way have their replies.
pub(super) async fn serve(
    router: Router,
    listener: TcpListener,
    settings: &ServerSettings,
    stopping: CancellationToken,
) {
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(settings.header_timeout_seconds));
    let room = Arc::new(Semaphore::new(settings.connections_max as usize));
    let connections = TaskTracker::new();
    let mut was_full = false;
    loop {
        let full = room.available_permits() == 0;
        if full && !was_full {
            tracing::warn!(
                "as many connections are open as `server.connections_max` permits: others wait until one ends"
            );
        }
        was_full = full;
        let Some((stream, address, place)) = next(&listener, &room, &stopping).await else {
            break;
        };
        // Events of a stream are small, and each is wanted at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %address, "a connection was gone at once");
            continue;
        }
        let answers = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            answers.call(request)
        });
        let connection = protocol
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let stopping = stopping.clone();
        connections.spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, %address, "a connection ended in the middle");
            }
            drop(place);
        });
    }
    // New connections are refused from here on.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// The next connection, once there is room for it. `None` when the server stops.
async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stopping: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, Place)> {
    let accept = async {
        // Nobody closes the semaphore.
        let place = room.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => return Some((stream, address, Place::taken(place))),
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "a connection could not be taken; is the limit of open files too low?");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        taken = accept => taken,
        () = stopping.cancelled() => None,
    }
}

/// The place of an open connection among all; free again when this is dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn taken(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("va_http_connections").increment(1.0);
        Self { _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("va_http_connections").decrement(1.0);
    }
}

/// Whether a connection was given up by the other side before it was taken.
fn is_of_the_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
