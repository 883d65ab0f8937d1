//! The client's half of the PostgreSQL protocol, message by message, for what `psql` cannot be made to do.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Wire {
    socket: TcpStream,
    /// What a cancel request must name.
    pub id_and_secret: Vec<u8>,
}

impl Wire {
    /// Connects and sends the password, without waiting for the answer to it.
    pub async fn dial(port: u16, user: &str, password: &str) -> Self {
        let mut wire = Self {
            socket: TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
            id_and_secret: Vec::new(),
        };
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend(format!("user\0{user}\0database\0va\0\0").bytes());
        wire.send_bare(&startup).await;
        assert_eq!(
            wire.receive().await.unwrap().0,
            b'R',
            "asked for a password"
        );
        wire.send(b'p', &text(password)).await;
        wire
    }

    /// Connects, and returns once the server is ready; or its error.
    pub async fn connect(port: u16, user: &str, password: &str) -> Result<Self, String> {
        let mut wire = Self::dial(port, user, password).await;
        wire.rows().await.map(|_| wire)
    }

    pub async fn cancel(port: u16, id_and_secret: &[u8]) {
        let mut wire = Self {
            socket: TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
            id_and_secret: Vec::new(),
        };
        let code = 80_877_102u32.to_be_bytes();
        wire.send_bare(&[&code[..], id_and_secret].concat()).await;
        assert!(wire.receive().await.is_none());
    }

    async fn send_bare(&mut self, body: &[u8]) {
        let length = (body.len() as u32 + 4).to_be_bytes();
        let message = [&length[..], body].concat();
        self.socket.write_all(&message).await.unwrap();
    }

    pub async fn send(&mut self, kind: u8, body: &[u8]) {
        let length = (body.len() as u32 + 4).to_be_bytes();
        let message = [&[kind][..], &length, body].concat();
        // The server may have closed the connection, which the next read shows.
        let _ = self.socket.write_all(&message).await;
    }

    /// The next message; `None` when the server has closed the connection.
    pub async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.socket.read_u8().await.ok()?;
        let length = self.socket.read_u32().await.ok()? as usize;
        let mut body = vec![0; length - 4];
        self.socket.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    /// A query by the simple protocol.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.send(b'Q', &text(sql)).await;
        self.rows().await
    }

    /// A query by the extended protocol; parameters and values are text.
    pub async fn bound(&mut self, sql: &str, values: &[&str]) -> Result<Vec<String>, String> {
        self.send(b'P', &[&text("")[..], &text(sql), &[0, 0]].concat())
            .await;
        let mut bind = [&text("")[..], &text(""), &[0, 0]].concat();
        bind.extend((values.len() as u16).to_be_bytes());
        for value in values {
            bind.extend((value.len() as u32).to_be_bytes());
            bind.extend(value.bytes());
        }
        bind.extend([0, 0]);
        self.send(b'B', &bind).await;
        self.send(b'D', b"P\0").await;
        self.send(b'E', &[&text("")[..], &[0, 0, 0, 0]].concat())
            .await;
        self.send(b'S', b"").await;
        self.rows().await
    }

    /// Rows until the server is ready again; the error that came meanwhile, if one did.
    pub async fn rows(&mut self) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            match self.receive().await {
                Some((b'Z', _)) if error.is_none() => return Ok(rows),
                Some((b'Z', _)) => return Err(error.unwrap_or_default()),
                Some((b'D', body)) => rows.push(row(&body)),
                Some((b'E', body)) => error = Some(error_text(&body)),
                Some((b'K', body)) => self.id_and_secret = body,
                Some(_) => {}
                None => return Err(error.unwrap_or_else(|| "closed".to_owned())),
            }
        }
    }
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}

/// The values of a row, in text format.
fn row(body: &[u8]) -> String {
    let mut values = Vec::new();
    let mut rest = &body[2..];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        let (value, after) = after.split_at(length.max(0) as usize);
        values.push(match length {
            -1 => "NULL".to_owned(),
            _ => String::from_utf8_lossy(value).into_owned(),
        });
        rest = after;
    }
    values.join(" | ")
}

/// `SEVERITY CODE message`.
fn error_text(body: &[u8]) -> String {
    let field = |kind: u8| {
        body.split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&kind))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    format!("{} {} {}", field(b'S'), field(b'C'), field(b'M'))
}
