//! A blocking HTTP client for tests, over the asynchronous one that the product uses anyway.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub struct Client(reqwest::Client);

pub struct RequestBuilder(reqwest::RequestBuilder);

pub struct Response(reqwest::Response);

impl Client {
    pub fn new(timeout: Duration) -> Self {
        va_connectors::tls::install();
        Self(
            reqwest::Client::builder()
                .no_proxy()
                .timeout(timeout)
                .build()
                .unwrap(),
        )
    }

    pub fn get(&self, url: &str) -> RequestBuilder {
        RequestBuilder(self.0.get(url))
    }

    pub fn post(&self, url: &str) -> RequestBuilder {
        RequestBuilder(self.0.post(url))
    }

    pub fn delete(&self, url: &str) -> RequestBuilder {
        RequestBuilder(self.0.delete(url))
    }
}

impl RequestBuilder {
    pub fn bearer_auth(self, key: &str) -> Self {
        Self(self.0.bearer_auth(key))
    }

    pub fn header(self, name: &str, value: &str) -> Self {
        Self(self.0.header(name, value))
    }

    pub fn json(self, body: &serde_json::Value) -> Self {
        Self(self.0.json(body))
    }

    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.body(body))
    }

    /// A body whose length is not announced.
    pub fn stream(self, pieces: Vec<Vec<u8>>) -> Self {
        let pieces = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        Self(self.0.body(reqwest::Body::wrap_stream(pieces)))
    }

    /// A form with one file.
    pub fn multipart(self, field: &str, file_name: &str, bytes: Vec<u8>) -> Self {
        let boundary = "va-test-boundary-7f3a";
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file_name}\"\r\n\r\n"
        )
        .into_bytes();
        body.extend(bytes);
        body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        self.header(
            "content-type",
            &format!("multipart/form-data; boundary={boundary}"),
        )
        .body(body)
    }

    pub fn send(self) -> reqwest::Result<Response> {
        RUNTIME
            .block_on(async { self.0.send().await })
            .map(Response)
    }
}

impl Response {
    pub fn status(&self) -> reqwest::StatusCode {
        self.0.status()
    }

    pub fn content_type(&self) -> String {
        self.0.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// A header that must be there.
    pub fn header(&self, name: &str) -> String {
        self.0.headers()[name].to_str().unwrap().to_owned()
    }

    /// A header that may be there.
    pub fn find_header(&self, name: &str) -> Option<String> {
        let value = self.0.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    }

    pub fn text(self) -> reqwest::Result<String> {
        RUNTIME.block_on(async { self.0.text().await })
    }
}
