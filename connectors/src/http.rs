//! What our HTTP clients have in common: when a proxy lies between, and how a failure is told.

use reqwest::{ClientBuilder, Error, Url};

/// A client for the server at this URL. Where that is on this machine, no proxy lies between.
pub fn client(url: &Url) -> ClientBuilder {
    crate::tls::install();
    let host = url.host_str().unwrap_or_default();
    if host.starts_with("127.") || ["localhost", "[::1]"].contains(&host) {
        ClientBuilder::new().no_proxy()
    } else {
        ClientBuilder::new()
    }
}

/// What caused the error, without the URL, which may hold a password or a key.
pub fn reasons(error: &Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() {
        "no connection".to_owned()
    } else {
        text
    }
}
