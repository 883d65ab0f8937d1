//! Finding the server, or being it: every command talks HTTP, to a remote server, to the process that holds the data
//! directory, or to the platform brought up in this very process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use va_catalog::settings::Settings;

pub use crate::percent::encode;

use super::up::{Booted, boot};
use crate::platform::{OpenError, Role};

/// What commands report: the message and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    /// The command was right and could not be done.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }

    /// The command was wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 2,
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = inner.source();
        }
        Self::failed(message)
    }
}

pub type Outcome<T> = Result<T, Failure>;

/// A connection to a server.
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
    /// The platform, when it runs in this process.
    own: Option<Booted>,
}

/// Where to look for a server.
pub struct Target {
    pub settings: Settings,
    pub server: Option<String>,
    pub token: Option<String>,
}

impl Client {
    /// Connects; brings the platform up when nobody holds the data directory.
    pub async fn connect(target: Target) -> Outcome<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()?;
        if let Some(server) = target.server {
            let token = match target.token {
                Some(token) => token,
                None => read_key(&target.settings.data.join("admin.key"))
                    .map_err(|_| Failure::usage("`--server` needs a key: set VA_TOKEN"))?,
            };
            return Ok(Self {
                http,
                base: server.trim_end_matches('/').to_owned(),
                token,
                own: None,
            });
        }
        let data = target.settings.data.clone();
        // Another process may be on its way up or down; a few looks tell.
        let mut looks = tokio::time::interval(Duration::from_millis(250));
        for _ in 0..40 {
            looks.tick().await;
            if let Some(base) = running(&http, &data).await {
                let token = read_key(&data.join("admin.key"))?;
                return Ok(Self {
                    http,
                    base,
                    token,
                    own: None,
                });
            }
            let mut settings = target.settings.clone();
            settings.listen = ([127, 0, 0, 1], 0).into();
            // With stores that others use, too, one command is no reason to move partitions.
            let shared = settings.indexes.shared;
            let role = if shared { Role::Serve } else { Role::Up };
            match boot(settings, role, None).await {
                Ok(own) => {
                    let token = read_key(&own.platform.admin_key)?;
                    return Ok(Self {
                        http,
                        base: format!("http://{}", own.address),
                        token,
                        own: Some(own),
                    });
                }
                Err(OpenError::InUse { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::failed(format!(
            "`{}` is held by another process that does not answer; look for a `va` process, or start `va up` anew",
            data.display()
        )))
    }

    /// Whether the platform runs in this process.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Ends the connection; stops the platform when it is our own.
    pub async fn close(self) {
        if let Some(own) = self.own {
            own.stop().await;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
    }

    /// `GET` of a JSON resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        read(self.request(Method::GET, path)).await
    }

    /// `GET` that may find nothing.
    pub async fn find(&self, path: &str) -> Outcome<Option<Value>> {
        let response = self.request(Method::GET, path).send().await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(good(response).await?.json().await?))
    }

    /// `POST` of JSON.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Outcome<Value> {
        read(self.request(Method::POST, path).json(body)).await
    }

    /// `PATCH` of JSON.
    pub async fn patch(&self, path: &str, body: &impl Serialize) -> Outcome<Value> {
        read(self.request(Method::PATCH, path).json(body)).await
    }

    /// `PUT` of JSON.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Outcome<Value> {
        read(self.request(Method::PUT, path).json(body)).await
    }

    /// `POST` of JSON, with a reply of a known shape.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Outcome<T> {
        read(self.request(Method::POST, path).json(body)).await
    }

    /// `POST` of bytes, with a reply of a known shape.
    pub async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Outcome<T> {
        read(
            self.request(Method::POST, path)
                .header("content-type", content_type)
                .body(body),
        )
        .await
    }

    /// `POST` of text.
    pub async fn post_text(&self, path: &str, body: String) -> Outcome<Value> {
        read(
            self.request(Method::POST, path)
                .header("content-type", "text/plain; charset=utf-8")
                .body(body),
        )
        .await
    }

    /// `DELETE`; the reply's body, if it has one.
    pub async fn delete(&self, path: &str) -> Outcome<Value> {
        let response = good(self.request(Method::DELETE, path).send().await?).await?;
        let bytes = response.bytes().await?;
        if bytes.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_slice(&bytes)?)
        }
    }

    /// Calls `each` with every line of an NDJSON reply, as it comes.
    pub async fn lines(&self, path: &str, mut each: impl FnMut(Value)) -> Outcome<()> {
        let response = good(self.request(Method::GET, path).send().await?).await?;
        let mut pieces = response.bytes_stream();
        let mut rest: Vec<u8> = Vec::new();
        while let Some(piece) = pieces.next().await {
            rest.extend_from_slice(&piece?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Ok(value) = serde_json::from_slice(&line) {
                    each(value);
                }
            }
        }
        Ok(())
    }

    /// `POST` of JSON with a reply of server-sent events: calls `each` with the name and the data of every one, as it comes.
    pub async fn events(
        &self,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(&str, Value),
    ) -> Outcome<()> {
        let request = self.request(Method::POST, path).json(body);
        let response = good(request.header("accept", "text/event-stream").send().await?).await?;
        let mut pieces = response.bytes_stream();
        let mut events = Events::default();
        while let Some(piece) = pieces.next().await {
            events.rest.extend_from_slice(&piece?);
            while let Some((name, data)) = events.next() {
                if data == "[DONE]" {
                    return Ok(());
                }
                each(&name, serde_json::from_str(&data)?);
            }
        }
        Err(Failure::failed(
            "the connection ended before the answer did; ask again",
        ))
    }

    /// Downloads a URL that is not the server's.
    pub async fn download(&self, url: &str) -> Outcome<(bytes::Bytes, Option<String>)> {
        let response = self.http.get(url).send().await?.error_for_status()?;
        let content_type = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned);
        Ok((response.bytes().await?, content_type))
    }
}

/// Server-sent events from bytes as they come.
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
    name: String,
    data: String,
}

impl Events {
    /// The next whole event's name and data; comments (heartbeats) are none.
    fn next(&mut self) -> Option<(String, String)> {
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.name),
                "data" => {
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                }
                "" if line.is_empty() && !self.data.is_empty() => {
                    return Some((
                        std::mem::take(&mut self.name),
                        std::mem::take(&mut self.data),
                    ));
                }
                _ => {}
            }
        }
        None
    }
}

async fn read<T: DeserializeOwned>(request: RequestBuilder) -> Outcome<T> {
    Ok(good(send_when_taken(request).await?).await?.json().await?)
}

/// How long a command waits, all in all, for a server that asks it to come back later.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Sends, and sends again while the server says 429 and when to come back. A body that is a stream goes only once.
async fn send_when_taken(mut request: RequestBuilder) -> Outcome<reqwest::Response> {
    let mut waited = Duration::ZERO;
    loop {
        let again = request.try_clone();
        let response = request.send().await?;
        if response.status() != StatusCode::TOO_MANY_REQUESTS {
            return Ok(response);
        }
        let after = response.headers().get(reqwest::header::RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
        let (Some(again), Some(after)) = (again, after.map(Duration::from_secs)) else {
            return Ok(response);
        };
        if waited > PATIENCE {
            return Ok(response);
        }
        if waited.is_zero() {
            let problem: Value = response.json().await.unwrap_or_default();
            let detail = problem["detail"].as_str().unwrap_or("the server is busy");
            eprintln!("waiting: {detail}");
        }
        tokio::time::sleep(after).await;
        waited += after.max(Duration::from_millis(1));
        request = again;
    }
}

/// The reply, or its problem as a failure.
async fn good(response: reqwest::Response) -> Outcome<reqwest::Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    let problem: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let message = match (problem["diagnostics"].as_str(), problem["detail"].as_str()) {
        (Some(diagnostics), _) => diagnostics.to_owned(),
        (None, Some(detail)) => detail.to_owned(),
        (None, None) => format!("{status}: {text}"),
    };
    Err(Failure::failed(message))
}

/// Address of the server that holds the data directory, if one does and answers.
async fn running(http: &reqwest::Client, data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join("server.json")).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    let base = value["address"].as_str()?.to_owned();
    let alive = http
        .get(format!("{base}/healthz"))
        .timeout(Duration::from_secs(3))
        .send()
        .await;
    alive
        .is_ok_and(|response| response.status().is_success())
        .then_some(base)
}

fn read_key(path: &PathBuf) -> Outcome<String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::failed(format!("read the key in `{}`: {error}", path.display()))
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_any_pieces() {
        let wire = ": heartbeat\n\nid: 0\nevent: delta\ndata: {\"text\":\"冻\"}\n\ndata: a\r\ndata: b\r\n\r\ndata: [DONE]\n\n";
        let mut events = Events::default();
        let mut found = Vec::new();
        for byte in wire.bytes() {
            events.rest.push(byte);
            found.extend(events.next());
        }
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(n, d)| (n.as_str(), d.as_str()))
            .collect();
        assert_eq!(
            found,
            [("delta", "{\"text\":\"冻\"}"), ("", "a\nb"), ("", "[DONE]")]
        );
    }
}
