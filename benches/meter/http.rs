//! HTTP/1.1 as plainly as it can be spoken, so that what is measured is the server and not its clients: kept connections,
//! requests that were written once, replies that are read to their end.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::Failure;

/// What a reply's head says.
#[derive(Debug, Default)]
pub struct Head {
    pub status: u16,
    pub retry_after: Option<u64>,
    length: Option<usize>,
    chunked: bool,
    close: bool,
}

/// A connection that is kept from one request to the next.
pub struct Connection {
    to: Arc<str>,
    stream: Option<BufReader<TcpStream>>,
}

impl Connection {
    pub fn new(to: Arc<str>) -> Self {
        Self { to, stream: None }
    }

    /// Connects, unless it is connected.
    pub async fn open(&mut self) -> Result<(), Failure> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(&*self.to)
                .await
                .map_err(|error| format!("connect to {}: {error}", self.to))?;
            stream.set_nodelay(true)?;
            self.stream = Some(BufReader::with_capacity(16 << 10, stream));
        }
        Ok(())
    }

    /// Sends a request and reads the head of its reply.
    pub async fn send(&mut self, request: &[u8]) -> Result<Head, Failure> {
        self.open().await?;
        let stream = self.stream.as_mut().ok_or("there is no connection")?;
        stream.get_mut().write_all(request).await?;
        read_head(stream).await
    }

    /// Reads the body of the reply, piece by piece as it comes.
    pub async fn body(&mut self, head: &Head, mut piece: impl FnMut(&[u8])) -> Result<(), Failure> {
        let stream = self.stream.as_mut().ok_or("there is no connection")?;
        if head.chunked {
            let mut line = Vec::new();
            let mut data = Vec::new();
            loop {
                line.clear();
                stream.read_until(b'\n', &mut line).await?;
                let size = std::str::from_utf8(&line)?.trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| {
                    format!("`{size}` is no size of a chunk: the reply was cut off")
                })?;
                data.resize(size + 2, 0);
                stream.read_exact(&mut data).await?;
                if size == 0 {
                    break;
                }
                piece(&data[..size]);
            }
        } else if let Some(length) = head.length {
            let mut data = vec![0; length];
            stream.read_exact(&mut data).await?;
            piece(&data);
        } else {
            return Err("the reply does not say how long it is".into());
        }
        if head.close {
            self.stream = None;
        }
        Ok(())
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Result<Head, Failure> {
    let mut head = Head::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Err("the connection was closed before there was a reply".into());
        }
        let text = std::str::from_utf8(&line)?.trim_end();
        if head.status == 0 {
            let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            head.status = status.ok_or_else(|| format!("`{text}` is no reply"))?;
            continue;
        }
        if text.is_empty() {
            return Ok(head);
        }
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.length = value.parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("retry-after") {
            head.retry_after = value.parse().ok();
        }
    }
}

/// A request as it goes over the wire.
pub fn request(
    host: &str,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &str,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str("content-type: application/json\r\n");
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

/// How often `wanted` is in `data`.
pub fn count(data: &[u8], wanted: &[u8]) -> usize {
    if wanted.is_empty() {
        return 0;
    }
    data.windows(wanted.len())
        .filter(|window| *window == wanted)
        .count()
}
