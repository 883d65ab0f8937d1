//! A provider that misbehaves as it is told: an HTTP server of the test's own that speaks OpenAI's protocol.
//!
//! It is for faults only, which no real server has on demand; what works is tested with a real one. Each request takes the
//! next act of the script; the last one is repeated.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

use crate::server::PATIENCE;

/// What is done with a request.
#[derive(Clone)]
pub enum Act {
    /// A reply in one piece: status, more header lines, body.
    Reply(u16, &'static str, String),
    /// A stream of these pieces, and how it ends.
    Stream(Vec<String>, End),
    /// Something that is no text: content type and bytes.
    Bytes(&'static str, Vec<u8>),
}

/// How a stream ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    /// The connection is cut in the middle.
    Cut,
    /// Nothing more comes, for as long as the client waits.
    Silence,
}

struct Shared {
    script: Vec<Act>,
    requests: Mutex<Vec<Value>>,
    heads: Mutex<Vec<String>>,
    /// How many clients went away from a silent stream.
    gone: Mutex<usize>,
    news: Condvar,
    asked: Condvar,
}

/// The server. Its threads end with the test's process.
pub struct Upstream {
    port: u16,
    shared: Arc<Shared>,
}

impl Upstream {
    pub fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            script,
            requests: Mutex::default(),
            heads: Mutex::default(),
            gone: Mutex::default(),
            news: Condvar::new(),
            asked: Condvar::new(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || answer(&shared, connection));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// The bodies of the requests so far; one that is no JSON is a text.
    pub fn requests(&self) -> Vec<Value> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Waits until there were so many.
    pub fn until_asked(&self, count: usize) {
        let requests = self.shared.requests.lock().unwrap();
        let waited = self
            .shared
            .asked
            .wait_timeout_while(requests, PATIENCE, |requests| requests.len() < count)
            .unwrap();
        assert!(!waited.1.timed_out(), "{} requests came", waited.0.len());
    }

    /// Their first lines and headers, a line each, names in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Waits until a client has gone away from a silent stream.
    pub fn until_gone(&self) {
        let gone = self.shared.gone.lock().unwrap();
        let waited = self
            .shared
            .news
            .wait_timeout_while(gone, PATIENCE, |gone| *gone == 0)
            .unwrap();
        assert!(!waited.1.timed_out(), "the client is still there");
    }
}

fn answer(shared: &Shared, mut connection: TcpStream) {
    let Some((head, body)) = read_request(&connection) else {
        return;
    };
    let act = {
        shared.heads.lock().unwrap().push(head);
        let mut requests = shared.requests.lock().unwrap();
        requests.push(body);
        shared.asked.notify_all();
        let at = (requests.len() - 1).min(shared.script.len() - 1);
        shared.script[at].clone()
    };
    // A client that has gone is no failure of this server.
    let _ = perform(shared, &mut connection, act);
}

fn read_request(connection: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(connection);
    let mut length = 0;
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = match line.trim_end().split_once(": ") {
            Some((name, value)) => format!("{}: {value}", name.to_ascii_lowercase()),
            None => line.trim_end().to_owned(),
        };
        if line.is_empty() {
            break;
        }
        head.push_str(&line);
        head.push('\n');
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let text = || String::from_utf8_lossy(&body).into_owned().into();
    Some((
        head,
        serde_json::from_slice(&body).unwrap_or_else(|_| text()),
    ))
}

fn perform(shared: &Shared, connection: &mut TcpStream, act: Act) -> std::io::Result<()> {
    match act {
        Act::Reply(status, headers, body) => write!(
            connection,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ),
        Act::Bytes(kind, bytes) => {
            write!(
                connection,
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                bytes.len()
            )?;
            connection.write_all(&bytes)
        }
        Act::Stream(pieces, end) => {
            write!(
                connection,
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            )?;
            for piece in pieces {
                write!(connection, "{:x}\r\n{piece}\r\n", piece.len())?;
                connection.flush()?;
            }
            match end {
                End::Whole => write!(connection, "0\r\n\r\n"),
                End::Cut => Ok(()),
                End::Silence => {
                    // Nothing is sent any more, so what can be read is the end.
                    let mut byte = [0];
                    while connection.read(&mut byte)? > 0 {}
                    *shared.gone.lock().unwrap() += 1;
                    shared.news.notify_all();
                    Ok(())
                }
            }
        }
    }
}

/// A reply in one piece with this text and usage.
pub fn reply(text: &str, input: u64, output: u64) -> Act {
    let body = json!({
        "id": "up-1", "object": "chat.completion", "created": 1, "model": "upstream",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output},
    });
    Act::Reply(200, "", body.to_string())
}

/// A failure as OpenAI words it.
pub fn failure(status: u16, headers: &'static str, code: &str) -> Act {
    let body =
        json!({"error": {"message": format!("because of {code}"), "type": "x", "code": code}});
    Act::Reply(status, headers, body.to_string())
}

/// A piece of a stream with this text.
pub fn text(text: &str) -> String {
    event(
        &json!({"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "upstream",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}),
    )
}

/// The piece that ends a reply.
pub fn finish(reason: &str) -> String {
    event(&json!({"id": "up-1", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
}

/// The piece that tells the tokens, behind the end.
pub fn usage(input: u64, output: u64) -> String {
    event(
        &json!({"id": "up-1", "choices": [], "usage": {"prompt_tokens": input, "completion_tokens": output}}),
    )
}

pub fn done() -> String {
    "data: [DONE]\n\n".to_owned()
}

pub fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// A whole stream.
pub fn stream(words: &[&str], input: u64, output: u64) -> Act {
    let mut pieces: Vec<String> = words.iter().map(|word| text(word)).collect();
    pieces.extend([finish("stop"), usage(input, output), done()]);
    Act::Stream(pieces, End::Whole)
}
