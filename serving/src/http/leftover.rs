//! The bodies of requests, from the outside: one that stands still ends its request, and what is left of one when its reply
//! is there is read away, within bounds.
//!
//! A connection that is closed on unread bytes is reset, and the sender would see that instead of the reply. That concerns
//! every request that is refused before its body was looked at: without a credential, for a collection that is not there,
//! for its content type. Handlers need not think of it, and neither of clients that stop sending.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::time::{Instant, Sleep};

use super::Problem;

/// How much of a body is read away that nobody asked for, and for how long.
const LEFT_BYTES_MAX: usize = 16 << 20;
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Less than this is no progress: who sends a byte now and then stands still.
const PROGRESS_BYTES_MIN: usize = 4 << 10;

/// Ends a request whose body stands still for as long as `patience`, and reads away what nobody has read when a request is
/// done with.
pub(super) async fn read_away(
    State(patience): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let stalled = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| {
        Body::from_stream(Rest {
            body: Some(body.into_data_stream()),
            progress: Progress::new(patience),
            stalled: stalled.clone(),
            waiting: None,
        })
    });
    let response = next.run(request).await;
    if !stalled.load(Ordering::Acquire) || response.status().is_success() {
        return response;
    }
    // Whatever the handler made of it.
    let mut response = Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        format!(
            "the body of the request stood still for {} s, so nothing of it was taken: send it again",
            patience.as_secs()
        ),
    )
    .into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A body that ends when it stands still, and is read away when it is dropped before its end.
struct Rest {
    body: Option<BodyDataStream>,
    progress: Progress,
    stalled: Arc<AtomicBool>,
    /// Since when it is waited for, and what ends that.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Whether a sender gets on: how long it was waited for, and what came, since it last did.
struct Progress {
    patience: Duration,
    waited: Duration,
    received: usize,
}

impl Progress {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// How much longer it may be waited for.
    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.waited)
    }

    /// A piece came after it was waited for so long.
    fn arrived(&mut self, bytes: usize, waited: Duration) {
        self.received += bytes;
        self.waited += waited;
        if self.received >= PROGRESS_BYTES_MIN {
            (self.received, self.waited) = (0, Duration::ZERO);
        }
    }
}

impl Stream for Rest {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let polled = body.poll_next_unpin(cx);
        let left = this.progress.left();
        match &polled {
            // Only what the sender takes counts, not what the reader does with it.
            Poll::Pending => {
                let (_, timer) = this
                    .waiting
                    .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.stalled.store(true, Ordering::Release);
                this.body = None;
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Poll::Ready(Some(Err(axum::Error::new(error))));
            }
            Poll::Ready(Some(Ok(piece))) => {
                let waiting = this.waiting.take();
                let waited = waiting.map_or(Duration::ZERO, |(since, _)| since.elapsed());
                this.progress.arrived(piece.len(), waited);
            }
            Poll::Ready(None | Some(Err(_))) => this.body = None,
        }
        polled
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let second = Duration::from_secs(1);
        let mut progress = Progress::new(30 * second);
        for _ in 0..100 {
            progress.arrived(PROGRESS_BYTES_MIN, 29 * second);
            assert_eq!(progress.left(), 30 * second);
        }
        for left in [23, 16, 9, 2, 0] {
            progress.arrived(1, 7 * second);
            assert_eq!(progress.left(), left * second);
        }
    }

    #[tokio::test]
    async fn a_body_ends_when_it_stands_still() {
        let pieces = ["a", "b"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let pieces = futures::stream::iter(pieces).chain(futures::stream::pending());
        let stalled = Arc::new(AtomicBool::new(false));
        let rest = Rest {
            body: Some(Body::from_stream(pieces).into_data_stream()),
            progress: Progress::new(Duration::from_millis(1)),
            stalled: stalled.clone(),
            waiting: None,
        };
        let read: Vec<_> = rest.map(|piece| piece.is_ok()).collect().await;
        assert_eq!(read, [true, true, false]);
        assert!(stalled.load(Ordering::Acquire));
    }
}
