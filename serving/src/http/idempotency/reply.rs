//! What is kept of a reply, and how it is written: a length, a head in JSON, the body as it was.

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

/// The longest body that is kept.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Headers that say something about the body or where it is; all others are of one exchange.
const HEADERS: [HeaderName; 7] = [
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LOCATION,
];

/// What is kept of a request that was answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the request. `None` when it succeeded without being read to its end, so that it cannot be compared.
    pub fingerprint: Option<[u8; 32]>,
    /// `None` when it is too long, or a stream.
    pub reply: Option<Reply>,
}

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// In front of the body.
#[derive(Serialize, Deserialize)]
struct Head {
    fingerprint: Option<[u8; 32]>,
    /// `None`: there is no reply.
    status: Option<u16>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Kept {
    pub fn write(&self) -> Vec<u8> {
        let mut head = Head {
            fingerprint: self.fingerprint,
            status: None,
            headers: Vec::new(),
        };
        let mut body = Bytes::new();
        if let Some(reply) = &self.reply {
            head.status = Some(reply.status.as_u16());
            let headers = reply.headers.iter();
            head.headers = headers
                .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                .collect();
            body = reply.body.clone();
        }
        let head = serde_json::to_vec(&head).expect("numbers and texts can be written as JSON");
        let length = u32::try_from(head.len()).expect("a few headers are short");
        let mut bytes = Vec::with_capacity(4 + head.len() + body.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// What [`Kept::write`] wrote; another version of the program may have.
    pub fn read(bytes: &Bytes) -> Result<Self, String> {
        let short = || "what is kept of a reply is cut off".to_owned();
        let mut rest = bytes.clone();
        if rest.len() < 4 {
            return Err(short());
        }
        let length = rest.get_u32_le() as usize;
        if rest.len() < length {
            return Err(short());
        }
        let head = rest.split_to(length);
        let head: Head = serde_json::from_slice(&head)
            .map_err(|error| format!("what is kept of a reply cannot be read: {error}"))?;
        let reply = match head.status {
            None => None,
            Some(status) => {
                let status = StatusCode::from_u16(status)
                    .map_err(|error| format!("the status of a kept reply: {error}"))?;
                let mut headers = HeaderMap::new();
                for (name, value) in head.headers {
                    let header = (
                        HeaderName::try_from(name).map_err(|error| error.to_string())?,
                        HeaderValue::try_from(value).map_err(|error| error.to_string())?,
                    );
                    headers.append(header.0, header.1);
                }
                Some(Reply {
                    status,
                    headers,
                    body: rest,
                })
            }
        };
        Ok(Self {
            fingerprint: head.fingerprint,
            reply,
        })
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The response, and what of it is kept; `None` for a stream, for one that is too long and for one that breaks.
pub async fn read(response: Response) -> (Response, Option<Reply>) {
    let (parts, body) = response.into_parts();
    let long = body.size_hint().lower() > BODY_BYTES_MAX as u64;
    if long || is_stream(&parts.headers) {
        return (Response::from_parts(parts, body), None);
    }
    let mut rest = body.into_data_stream();
    let mut begun = BytesMut::new();
    let broken = loop {
        if begun.len() > BODY_BYTES_MAX {
            break None;
        }
        match rest.next().await {
            Some(Ok(piece)) => begun.extend_from_slice(&piece),
            Some(Err(error)) => break Some(error),
            None => {
                let body = begun.freeze();
                let mut headers = HeaderMap::new();
                for name in &HEADERS {
                    for value in parts.headers.get_all(name) {
                        headers.append(name.clone(), value.clone());
                    }
                }
                let reply = Reply {
                    status: parts.status,
                    headers,
                    body: body.clone(),
                };
                return (Response::from_parts(parts, Body::from(body)), Some(reply));
            }
        }
    };
    // The client gets what it would have got.
    let begun = stream::iter([Ok(begun.freeze())].into_iter().chain(broken.map(Err)));
    let body = Body::from_stream(begun.chain(rest));
    (Response::from_parts(parts, body), None)
}

/// A reply whose pieces come when something happens.
fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    ["text/event-stream", "application/x-ndjson"]
        .iter()
        .any(|stream| kind.starts_with(stream))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    fn response(kind: &'static str, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::LOCATION, HeaderValue::from_static("/a"));
        headers.insert(header::SET_COOKIE, HeaderValue::from_static("secret"));
        response
    }

    async fn bytes(response: Response) -> Bytes {
        to_bytes(response.into_body(), usize::MAX).await.unwrap()
    }

    #[tokio::test]
    async fn a_reply_is_kept_and_comes_back_without_what_is_of_one_exchange() {
        let body = "{\"名\": 1}";
        let (given, kept) = read(response("application/json", Body::from(body))).await;
        assert_eq!(bytes(given).await, body);
        let kept = Kept {
            fingerprint: Some([7; 32]),
            reply: kept,
        };
        let again = Kept::read(&kept.write().into()).unwrap();
        assert_eq!(again, kept);
        let again = again.reply.unwrap().into_response();
        assert_eq!(again.status(), StatusCode::CREATED);
        assert_eq!(again.headers()[header::LOCATION], "/a");
        assert_eq!(again.headers()[header::CONTENT_TYPE], "application/json");
        assert!(!again.headers().contains_key(header::SET_COOKIE));
        assert_eq!(bytes(again).await, body);
    }

    #[tokio::test]
    async fn streams_and_long_replies_pass_unchanged_and_are_not_kept() {
        let long = Bytes::from(vec![b'x'; BODY_BYTES_MAX + 1]);
        let pieces: Vec<Result<Bytes, std::io::Error>> = long
            .chunks(1_000)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        for (kind, body, expected) in [
            ("application/json", Body::from(long.clone()), long.clone()),
            (
                "application/json",
                Body::from_stream(stream::iter(pieces)),
                long,
            ),
            (
                "text/event-stream; charset=utf-8",
                Body::from("data: 1"),
                "data: 1".into(),
            ),
        ] {
            let (given, kept) = read(response(kind, body)).await;
            assert_eq!(kept, None, "{kind}");
            assert_eq!(bytes(given).await, expected, "{kind}");
        }
        let nothing = Kept {
            fingerprint: None,
            reply: None,
        };
        assert_eq!(Kept::read(&nothing.write().into()).unwrap(), nothing);
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        for bytes in [&b""[..], b"\x01", b"\xff\xff\xff\x7f{}", b"\x02\0\0\0[]"] {
            assert!(
                Kept::read(&Bytes::copy_from_slice(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
