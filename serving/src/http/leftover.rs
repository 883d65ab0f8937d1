//! What is left of a request's body when its reply is there: it is read away, within bounds.
//!
//! A connection that is closed on unread bytes is reset, and the sender would see that instead of the reply. That concerns
//! every request that is refused before its body was looked at: without a credential, for a collection that is not there,
//! for its content type. Handlers need not think of it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};

/// How much of a body is read away that nobody asked for, and for how long.
const LEFT_BYTES_MAX: usize = 1 << 20;
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Reads away what nobody has read when the request is done with.
pub(super) async fn read_away(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let request = request.map(|body| Body::from_stream(Rest(Some(body.into_data_stream()))));
    next.run(request).await
}

/// A body that is read away when it is dropped before its end.
struct Rest(Option<BodyDataStream>);

impl Stream for Rest {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = body.poll_next_unpin(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if let Some(body) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // It ends with the connection, or by its own bounds.
            runtime.spawn(drain(body.map_err(std::io::Error::other), LEFT_BYTES_MAX));
        }
    }
}

/// Reads the rest of a refused body away, within bounds.
pub(super) async fn drain(
    mut body: impl Stream<Item = std::io::Result<Bytes>> + Unpin,
    bytes_max: usize,
) {
    let mut left = bytes_max;
    let read = async {
        while let Some(Ok(piece)) = body.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                return;
            }
        }
    };
    // Whoever sends more, or slower, finds the connection closed.
    let _ = tokio::time::timeout(DRAIN_WAIT, read).await;
}
