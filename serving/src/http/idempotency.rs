//! `Idempotency-Key`: a POST that is sent again does not happen again, its first reply is given once more.
//!
//! ```text
//! POST with a key ──put_new──► `running TOKEN`, 30 s, renewed while the handler works
//!                                  │ reply below 500, not one that asks to try again
//!                                  ▼
//!                              sealed reply (status, some headers, body up to 1 MiB), 24 h
//! ```
//!
//! The name of the entry is tenant, caller, route and key, so nobody meets another one's. The same key with another
//! request is a conflict; while the first one runs, so is the same. A reply that says that it was not the request's fault
//! (5xx, 408, 409, 425, 429), a panic, and a process that dies let go of the key. The handler goes on when its client goes,
//! because that is when the client comes again.
//!
//! What is kept is sealed with the tenant's key (`Catalog::seal_outside`), since some replies show a secret once. A stream
//! and a longer reply are not kept, only that they were given: a repetition is told so. Calls without a credential have no
//! caller whose key it could be and are refused with one. Nothing is promised that cannot be kept: without the cache, or
//! without the master key, a request with a key is refused before it does anything.

mod fingerprint;
mod reply;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tracing::Instrument;
use va_catalog::TenantId;
use va_catalog::store::Principal;
use va_connectors::cache::{CacheError, CacheKey};

use self::fingerprint::{Fingerprint, Print};
use self::reply::Kept;
use super::{App, Problem};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_CHARS_MAX: usize = 255;
/// How long a reply is kept.
const KEPT: Duration = Duration::from_secs(86_400);
/// How long a process that says nothing more holds a key, and how often it says something.
const HELD: Duration = Duration::from_secs(30);
const RENEWED: Duration = Duration::from_secs(10);
/// In front of the token of whoever holds a key; what is sealed begins otherwise.
const RUNNING: &[u8] = b"running ";
/// How much of a request is read before its handler is called. Of more, the rest is looked at as it passes.
const READ_AHEAD: usize = 1 << 20;
/// How long to wait for the end of a request whose handler is done.
const END_WAIT: Duration = Duration::from_secs(5);

/// Answers a POST with an `Idempotency-Key` once; others pass.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST || !request.headers().contains_key(&KEY) {
        return next.run(request).await;
    }
    keyed(app, request, next)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

async fn keyed(app: App, request: Request, next: Next) -> Result<Response, Problem> {
    let key = key_of(request.headers())?;
    let Some(principal) = request.extensions().get::<Principal>().cloned() else {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency_not_supported",
            "this call is made without a credential, so there is nobody whose `Idempotency-Key` it could be; leave the header \
             out",
        ));
    };
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    let place = CacheKey::new(
        "idempotency",
        &principal.tenant,
        &[principal.actor(), route, &key],
    );
    let (parts, body) = request.into_parts();
    let incoming = read_ahead(Fingerprint::new(&parts), body).await?;
    let entry = Entry {
        running: [RUNNING, uuid::Uuid::now_v7().to_string().as_bytes()]
            .concat()
            .into(),
        app,
        tenant: principal.tenant.id().clone(),
        place,
    };
    // What could not be sealed afterwards is not begun.
    entry.seal(&[]).await?;
    match entry.claim().await? {
        Claim::Mine => count("begun"),
        Claim::Running => {
            count("in_progress");
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "idempotency_in_progress",
                "a request with this `Idempotency-Key` is being worked on; its reply can be had with the same request a \
                 little later",
            )
            .after(Duration::from_secs(1)));
        }
        Claim::Done(sealed) => {
            let kept = entry.open(&sealed).await?;
            let limit = entry.app.platform.settings.limits.upload_bytes_max;
            return kept_reply(kept, incoming, limit).await;
        }
    }
    let (body, print) = match incoming {
        Incoming::Whole { bytes, fingerprint } => (Body::from(bytes), Print::Known(fingerprint)),
        Incoming::Longer {
            begun,
            rest,
            fingerprint,
        } => fingerprint.follow(begun, rest),
    };
    let request = Request::from_parts(parts, body);
    let work = entry.run(request, next, print).in_current_span();
    match tokio::spawn(work).await {
        Ok(response) => Ok(response),
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(ended) => Err(Problem::internal(format!(
            "the request was given up: {ended}"
        ))),
    }
}

/// The key that was sent.
fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let mut values = headers.get_all(&KEY).iter();
    let key = values.next().map_or(&b""[..], HeaderValue::as_bytes);
    let fits = (1..=KEY_CHARS_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    let once = values.next().is_none();
    match std::str::from_utf8(key) {
        Ok(key) if fits && once => Ok(key.to_owned()),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_idempotency_key",
            format!(
                "an `Idempotency-Key` is 1 to {KEY_CHARS_MAX} visible ASCII characters without spaces, sent once; a UUID is a \
                 good one"
            ),
        )),
    }
}

/// A request's body, as far as it was read.
enum Incoming {
    Whole {
        bytes: Bytes,
        fingerprint: [u8; 32],
    },
    Longer {
        begun: Bytes,
        rest: BodyDataStream,
        /// Of nothing yet but the head.
        fingerprint: Fingerprint,
    },
}

async fn read_ahead(mut fingerprint: Fingerprint, body: Body) -> Result<Incoming, Problem> {
    let mut rest = body.into_data_stream();
    let mut begun = BytesMut::new();
    while begun.len() <= READ_AHEAD {
        match rest.next().await {
            Some(Ok(piece)) => begun.extend_from_slice(&piece),
            Some(Err(error)) => {
                return Err(Problem::invalid(format!("the body ended early: {error}")));
            }
            None => {
                fingerprint.add(&begun);
                return Ok(Incoming::Whole {
                    bytes: begun.freeze(),
                    fingerprint: fingerprint.finish(),
                });
            }
        }
    }
    Ok(Incoming::Longer {
        begun: begun.freeze(),
        rest,
        fingerprint,
    })
}

/// The fingerprint of a request that nobody works on.
async fn whole(incoming: Incoming, bytes_max: u64) -> Result<[u8; 32], Problem> {
    let (begun, mut rest, mut fingerprint) = match incoming {
        Incoming::Whole { fingerprint, .. } => return Ok(fingerprint),
        Incoming::Longer {
            begun,
            rest,
            fingerprint,
        } => (begun, rest, fingerprint),
    };
    // What is around an upload comes on top of it.
    let bytes_max = bytes_max.saturating_add(READ_AHEAD as u64);
    let mut bytes = begun.len() as u64;
    fingerprint.add(&begun);
    while let Some(piece) = rest.next().await {
        let piece =
            piece.map_err(|error| Problem::invalid(format!("the body ended early: {error}")))?;
        bytes += piece.len() as u64;
        if bytes > bytes_max {
            return Err(Problem::too_large(format!(
                "the body has more than {bytes_max} bytes"
            )));
        }
        fingerprint.add(&piece);
    }
    Ok(fingerprint.finish())
}

/// The first reply once more, if that was to this request.
async fn kept_reply(kept: Kept, incoming: Incoming, bytes_max: u64) -> Result<Response, Problem> {
    let fingerprint = whole(incoming, bytes_max).await?;
    if kept.fingerprint.is_some_and(|first| first != fingerprint) {
        count("conflict");
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "idempotency_conflict",
            "this `Idempotency-Key` was sent with another request (path, query or body differ) within the last 24 hours; use \
             a new key for a new request",
        ));
    }
    let Some(reply) = kept.reply else {
        count("not_kept");
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "idempotency_not_kept",
            "the request was answered before, but its reply was a stream or longer than 1 MiB, which is not kept; look at \
             what it made (of a chat, the messages of the conversation), or use a new key to do it again",
        ));
    };
    count("replayed");
    let mut response = reply.into_response();
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Whether the reply says that trying again may end otherwise.
fn lets_go(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429)
}

fn count(outcome: &'static str) {
    metrics::counter!("va_idempotent_requests_total", "outcome" => outcome).increment(1);
}

/// What a claim came to.
enum Claim {
    /// The request is this one's to work on.
    Mine,
    Running,
    /// What was kept, sealed.
    Done(Bytes),
}

/// The entry of one key, and what this request puts there while it runs.
struct Entry {
    app: App,
    tenant: TenantId,
    place: CacheKey,
    running: Bytes,
}

impl Entry {
    async fn claim(&self) -> Result<Claim, Problem> {
        let cache = &self.app.platform.cache;
        // Between the two steps an entry may end; then there is room for this one.
        for _ in 0..3 {
            let put = cache.put_new(&self.place, self.running.clone(), HELD).await;
            if put.map_err(unavailable)? {
                return Ok(Claim::Mine);
            }
            match cache.get(&self.place).await.map_err(unavailable)? {
                None => {}
                Some(held) if held.starts_with(RUNNING) => return Ok(Claim::Running),
                Some(sealed) => return Ok(Claim::Done(sealed)),
            }
        }
        Ok(Claim::Running)
    }

    async fn seal(&self, bytes: &[u8]) -> Result<String, Problem> {
        let catalog = &self.app.platform.catalog;
        let place = self.place.as_str();
        Ok(catalog.seal_outside(&self.tenant, place, bytes).await?)
    }

    async fn open(&self, sealed: &Bytes) -> Result<Kept, Problem> {
        let sealed = std::str::from_utf8(sealed)
            .map_err(|_| Problem::internal("what is kept of a request is no text"))?;
        let catalog = &self.app.platform.catalog;
        let opened = catalog
            .open_outside(&self.tenant, self.place.as_str(), sealed)
            .await?;
        Kept::read(&opened.into()).map_err(Problem::internal)
    }

    /// Calls the handler and keeps what it answers.
    async fn run(self, request: Request, next: Next, print: Print) -> Response {
        let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
        let handled = tokio::select! {
            handled = handled => handled,
            never = self.renew() => match never {},
        };
        match handled {
            Ok(response) => self.settle(response, print).await,
            Err(panic) => {
                self.release().await;
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Says now and then that the work goes on.
    async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEWED).await;
            let cache = &self.app.platform.cache;
            let running = self.running.clone();
            let renewed = cache
                .replace(&self.place, &self.running, running, HELD)
                .await;
            match renewed {
                Ok(true) => {}
                Ok(false) => tracing::warn!("the `Idempotency-Key` of a running request was lost"),
                Err(error) => tracing::debug!(%error, "renew an `Idempotency-Key`"),
            }
        }
    }

    async fn settle(self, response: Response, print: Print) -> Response {
        let status = response.status();
        if lets_go(status) {
            self.release().await;
            return response;
        }
        let fingerprint = match print {
            Print::Known(fingerprint) => Some(fingerprint),
            Print::Later(print) => end_of(print).await,
        };
        if fingerprint.is_none() && status.is_client_error() {
            // It was refused before it was read, so it did nothing, and a repetition could not be told from another one.
            self.release().await;
            return response;
        }
        let (response, reply) = reply::read(response).await;
        let kept = Kept { fingerprint, reply };
        match self.keep(&kept).await {
            Ok(true) => count("kept"),
            Ok(false) => {
                count("lost");
                tracing::warn!(
                    "a reply could not be kept for its `Idempotency-Key`: the key was lost meanwhile"
                );
            }
            Err(problem) => {
                count("lost");
                tracing::warn!(
                    reason = problem.detail(),
                    "a reply could not be kept for its `Idempotency-Key`"
                );
            }
        }
        response
    }

    async fn keep(&self, kept: &Kept) -> Result<bool, Problem> {
        let sealed = self.seal(&kept.write()).await?;
        let cache = &self.app.platform.cache;
        cache
            .replace(&self.place, &self.running, sealed.into(), KEPT)
            .await
            .map_err(unavailable)
    }

    /// Lets somebody try again. Where that fails, the key comes free when it is not renewed.
    async fn release(&self) {
        count("released");
        let cache = &self.app.platform.cache;
        if let Err(error) = cache.remove_if(&self.place, &self.running).await {
            tracing::debug!(%error, "let go of an `Idempotency-Key`; it ends by itself");
        }
    }
}

/// The fingerprint of a request that was looked at while its handler read it; `None` when it was not read to its end.
async fn end_of(print: oneshot::Receiver<[u8; 32]>) -> Option<[u8; 32]> {
    tokio::time::timeout(END_WAIT, print).await.ok()?.ok()
}

fn unavailable(error: CacheError) -> Problem {
    // Told in the log, once an outage; clients need not know the server.
    tracing::debug!(%error, "a request with an `Idempotency-Key`");
    count("unavailable");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "cache_unavailable",
        "the cache that remembers requests by their `Idempotency-Key` is gone, so it cannot be promised that this one happens \
         once: try again later, or leave the header out",
    )
    .after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_ascii_and_sent_once() {
        let headers = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(KEY, HeaderValue::from_bytes(value).unwrap());
            }
            key_of(&headers).ok()
        };
        let long = [b'k'; KEY_CHARS_MAX + 1];
        for good in ["a", "018f-42", "\"quoted\"", "a:b%c"] {
            assert_eq!(headers(&[good.as_bytes()]).as_deref(), Some(good));
        }
        assert!(headers(&[&long[1..]]).is_some());
        for bad in [&b""[..], b"a b", b"a\tb", "如何".as_bytes(), &long] {
            assert_eq!(headers(&[bad]), None, "{bad:?}");
        }
        assert_eq!(headers(&[b"a", b"a"]), None);
    }

    #[test]
    fn only_replies_that_are_the_requests_own_are_kept() {
        for status in [200, 201, 202, 204, 303, 400, 403, 404, 422] {
            assert!(!lets_go(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [408, 409, 425, 429, 500, 502, 503, 507] {
            assert!(lets_go(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
