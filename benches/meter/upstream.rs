//! A model that costs nothing: speaks OpenAI's chat completions, answers at once with words that are always the same.
//!
//! What stands in front of it is then all that a measurement sees. The base URL chooses how it streams: `/fast/v1` all at
//! once, `/steady-MS-COUNT/v1` one piece every MS milliseconds, COUNT times.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

use crate::Failure;

/// What it always says.
const WORDS: [&str; 4] = ["It is said ", "in the help", " how that is done", " [1]."];

/// Listens until this process ends.
pub async fn start() -> Result<Value, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes is none of its business.
            tokio::spawn(async move { serve(stream).await.ok() });
        }
    });
    Ok(json!({"address": address}))
}

/// How a reply is streamed.
#[derive(Clone, Copy)]
struct Pace {
    every: Duration,
    pieces: usize,
}

impl Pace {
    fn of(path: &str) -> Option<Self> {
        let (_, rest) = path.split_once("/steady-")?;
        let (every, rest) = rest.split_once('-')?;
        let (pieces, _) = rest.split_once('/')?;
        Some(Self {
            every: Duration::from_millis(every.parse().ok()?),
            pieces: pieces.parse().ok()?,
        })
    }
}

async fn serve(stream: TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let whole = whole();
    let at_once: Vec<u8> = [events(WORDS.iter().copied()), ending()].concat();
    let mut line = Vec::new();
    let mut body = Vec::new();
    loop {
        let (mut path, mut length) = (String::new(), 0_usize);
        loop {
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let text = std::str::from_utf8(&line)?.trim_end();
            if path.is_empty() {
                text.split(' ').nth(1).unwrap_or("/").clone_into(&mut path);
            } else if text.is_empty() {
                break;
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).await?;
        let out = stream.get_mut();
        if !is_streamed(&body) {
            out.write_all(&whole).await?;
            continue;
        }
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        match Pace::of(&path) {
            None => out.write_all(&at_once).await?,
            Some(pace) => {
                let piece = events(["word "].into_iter());
                let mut ticks = tokio::time::interval(pace.every);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                for _ in 0..pace.pieces {
                    ticks.tick().await;
                    out.write_all(&piece).await?;
                }
                out.write_all(&ending()).await?;
            }
        }
    }
}

/// Whether a stream is wanted, whatever the spaces.
fn is_streamed(body: &[u8]) -> bool {
    super::http::count(body, b"\"stream\":true") + super::http::count(body, b"\"stream\": true") > 0
}

fn whole() -> Vec<u8> {
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS.concat()}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
    })
    .to_string();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn events<'a>(words: impl Iterator<Item = &'a str>) -> Vec<u8> {
    words
        .flat_map(|word| {
            chunk(&json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": null}]}))
        })
        .collect()
}

fn ending() -> Vec<u8> {
    let finish = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21}});
    let done = framed("data: [DONE]\n\n");
    [chunk(&finish), chunk(&usage), done, b"0\r\n\r\n".to_vec()].concat()
}

fn chunk(value: &Value) -> Vec<u8> {
    framed(&format!("data: {value}\n\n"))
}

fn framed(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
