//! A reply as server-sent events, in whichever words the [`Writer`] puts it.
//!
//! A piece is written when the client has taken the one before, so a slow client slows the provider and no memory grows.
//! When nothing comes for a while there is a heartbeat. A client that goes away drops the body, and with it the call.

use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use va_llm::{ChatStream, Event, LlmError};

/// How long a stream is silent before a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Puts a reply into a protocol's words.
pub(super) trait Writer: Send + 'static {
    /// A piece of the reply; the first call comes with the first one.
    fn event(&mut self, event: Event, out: &mut String);
    /// The reply is complete.
    fn end(&mut self, out: &mut String);
    /// It broke off.
    fn broken(&mut self, error: &LlmError, out: &mut String);
    /// Something that clients pass over.
    fn heartbeat(&self) -> &'static str {
        ": keep-alive\n\n"
    }
}

/// The response that writes the reply while it comes.
pub(super) fn response(stream: ChatStream, writer: impl Writer) -> Response {
    let info = stream.info.clone();
    let pieces = futures::stream::unfold(Some((stream, writer)), |state| async move {
        let (mut stream, mut writer) = state?;
        let mut out = String::new();
        loop {
            match tokio::time::timeout(HEARTBEAT, stream.next()).await {
                Ok(Some(Ok(event))) => writer.event(event, &mut out),
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, deployment = stream.info.deployment, "a stream broke off");
                    writer.broken(&error, &mut out);
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(out)), None));
                }
                Ok(None) => {
                    writer.end(&mut out);
                    return Some((Ok(Bytes::from(out)), None));
                }
                Err(_) => out.push_str(writer.heartbeat()),
            }
            // Some events say nothing in some protocols.
            if !out.is_empty() {
                return Some((Ok(Bytes::from(out)), Some((stream, writer))));
            }
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather a reply would take the stream out of it.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    super::told(response, &info)
}

/// Writes an event without a name.
pub(super) fn data(value: &Value, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "data: {value}\n\n");
}

/// Writes an event whose name is its `type`.
pub(super) fn named(value: &Value, out: &mut String) {
    let name = value["type"].as_str().unwrap_or_default();
    let _ = write!(out, "event: {name}\ndata: {value}\n\n");
}
