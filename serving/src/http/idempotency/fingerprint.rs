//! What tells one request from another: path, query, content type and body, hashed, also while the body passes.
//!
//! The boundary of a multipart body is left out, because clients make a new one each time they send the same form.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

/// A shorter boundary may be part of a text by chance, and is left where it is.
const BOUNDARY_CHARS_MIN: usize = 8;
/// What may be left of a body that its handler has understood: the end of a form, the last chunk.
const LEFT_BYTES_MAX: usize = 64 << 10;
const LEFT_WAIT: Duration = Duration::from_secs(5);

/// The fingerprint of a request, now or when it has been read.
pub enum Print {
    Known([u8; 32]),
    /// Never comes when the request is not read to its end.
    Later(oneshot::Receiver<[u8; 32]>),
}

/// The hash of a request so far.
pub struct Fingerprint {
    hash: Sha256,
    boundary: Vec<u8>,
    /// The end of what was read, which may be the beginning of a boundary.
    held: Vec<u8>,
}

impl Fingerprint {
    /// That of the head.
    pub fn new(parts: &Parts) -> Self {
        let content_type = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let (kind, boundary) = without_boundary(content_type);
        let target = parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let mut hash = Sha256::new();
        for part in [target, kind] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self {
            hash,
            boundary: boundary.as_bytes().to_vec(),
            held: Vec::new(),
        }
    }

    /// The next piece of the body; where pieces end makes no difference.
    pub fn add(&mut self, piece: &[u8]) {
        let length = self.boundary.len();
        if length == 0 {
            self.hash.update(piece);
            return;
        }
        self.held.extend_from_slice(piece);
        let mut from = 0;
        while let Some(at) = self.held[from..]
            .windows(length)
            .position(|window| window == self.boundary)
        {
            self.hash.update(&self.held[from..from + at]);
            self.hash.update(b"\0boundary\0");
            from += at + length;
        }
        // What is left and shorter than a boundary may become one.
        let sure = self.held.len().saturating_sub(length - 1).max(from);
        self.hash.update(&self.held[from..sure]);
        self.held.drain(..sure);
    }

    pub fn finish(mut self) -> [u8; 32] {
        self.hash.update(&self.held);
        self.hash.finalize().into()
    }

    /// The body of what was read already and the rest, looked at as it is read.
    pub fn follow(self, begun: Bytes, rest: BodyDataStream) -> (Body, Print) {
        let (end, print) = oneshot::channel();
        let body = stream::iter([Ok(begun)]).chain(rest);
        let followed = Followed(Some(Following {
            body: Box::pin(body),
            fingerprint: self,
            end,
        }));
        (Body::from_stream(followed), Print::Later(print))
    }
}

/// A content type without its boundary, and the boundary where it is left out of the body.
fn without_boundary(content_type: &str) -> (&str, &str) {
    let Some((kind, parameters)) = content_type.split_once(';') else {
        return (content_type, "");
    };
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary")
            .then(|| value.trim_matches('"'))
    });
    match boundary {
        Some(boundary) if boundary.len() >= BOUNDARY_CHARS_MIN => (kind, boundary),
        _ => (content_type, ""),
    }
}

/// A body and the hash of what has passed; `None` when it has ended.
struct Followed(Option<Following>);

struct Following {
    body: Pin<Box<dyn Stream<Item = Result<Bytes, axum::Error>> + Send>>,
    fingerprint: Fingerprint,
    end: oneshot::Sender<[u8; 32]>,
}

impl Following {
    fn finish(self) {
        // Nobody waits any more when the request was refused.
        let _ = self.end.send(self.fingerprint.finish());
    }
}

impl Stream for Followed {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(following) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = following.body.as_mut().poll_next(cx);
        match &polled {
            Poll::Ready(Some(Ok(piece))) => following.fingerprint.add(piece),
            Poll::Ready(Some(Err(_))) => self.0 = None,
            Poll::Ready(None) => {
                if let Some(following) = self.0.take() {
                    following.finish();
                }
            }
            Poll::Pending => {}
        }
        polled
    }
}

impl Drop for Followed {
    /// Who reads a form stops behind its last part, not at the end of the body.
    fn drop(&mut self) {
        if let Some(following) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(read_end(following));
        }
    }
}

async fn read_end(mut following: Following) {
    let read = async {
        let mut left = LEFT_BYTES_MAX;
        while let Some(piece) = following.body.next().await {
            let Ok(piece) = piece else { return false };
            if piece.len() > left {
                return false;
            }
            left -= piece.len();
            following.fingerprint.add(&piece);
        }
        true
    };
    let ended = tokio::time::timeout(LEFT_WAIT, read).await;
    if ended == Ok(true) {
        following.finish();
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(path: &str, content_type: &str) -> Parts {
        let request = Request::post(path).header(header::CONTENT_TYPE, content_type);
        request.body(()).unwrap().into_parts().0
    }

    fn print(path: &str, content_type: &str, body: &str, piece: usize) -> [u8; 32] {
        let mut fingerprint = Fingerprint::new(&parts(path, content_type));
        for piece in body.as_bytes().chunks(piece) {
            fingerprint.add(piece);
        }
        fingerprint.finish()
    }

    #[test]
    fn path_query_type_and_body_tell_requests_apart() {
        let same = print("/a?x=1", "application/json", "{}", 10);
        for (path, kind, body) in [
            ("/a?x=2", "application/json", "{}"),
            ("/a?x=1", "text/plain", "{}"),
            ("/a?x=1", "application/json", "{ }"),
            ("/a?x=1", "application/json", ""),
        ] {
            assert_ne!(print(path, kind, body, 10), same, "{path} {kind} {body}");
        }
        assert_eq!(print("/a?x=1", "application/json", "{}", 1), same);
    }

    #[test]
    fn a_form_is_the_same_with_another_boundary_however_it_is_cut() {
        let form = |boundary: &str, text: &str| {
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{text}\r\n--{boundary}--\r\n"
            )
        };
        let kind = |boundary: &str| format!("multipart/form-data; boundary={boundary}");
        let first = print(
            "/a",
            &kind("bbbbbbbba"),
            &form("bbbbbbbba", "text bbbb"),
            1_000,
        );
        let other = "y".repeat(13);
        let quoted = kind(&format!("\"{other}\""));
        for piece in 1..40 {
            let again = form(&other, "text bbbb");
            assert_eq!(print("/a", &quoted, &again, piece), first, "{piece}");
            let changed = form(&other, "text cccc");
            assert_ne!(print("/a", &quoted, &changed, piece), first, "{piece}");
        }
    }

    fn pieces(texts: &'static [&'static str]) -> BodyDataStream {
        let pieces = texts
            .iter()
            .map(|text| Ok::<_, axum::Error>(Bytes::from(*text)));
        Body::from_stream(stream::iter(pieces)).into_data_stream()
    }

    #[tokio::test]
    async fn a_body_is_followed_to_its_end_also_when_its_reader_stops_before() {
        let expected = print("/a", "text/plain", "one two three", 100);
        for read in 0..=4 {
            let fingerprint = Fingerprint::new(&parts("/a", "text/plain"));
            let (body, later) = fingerprint.follow("one ".into(), pieces(&["two ", "three"]));
            let mut body = body.into_data_stream();
            for _ in 0..read {
                let _ = body.next().await;
            }
            drop(body);
            let Print::Later(later) = later else {
                panic!("it is known later")
            };
            assert_eq!(later.await.unwrap(), expected, "{read}");
        }
    }

    #[tokio::test]
    async fn of_a_body_that_breaks_there_is_none() {
        let broken = stream::iter([Ok(Bytes::from("two")), Err(std::io::Error::other("gone"))]);
        let broken = Body::from_stream(broken).into_data_stream();
        let fingerprint = Fingerprint::new(&parts("/a", "text/plain"));
        let (body, later) = fingerprint.follow("one".into(), broken);
        drop(body);
        let Print::Later(later) = later else {
            panic!("it is known later")
        };
        assert!(later.await.is_err());
    }
}
