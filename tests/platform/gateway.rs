//! The model gateway: faults of providers, money, the protocols of clients, and the real thing, which is llama.cpp's server
//! behind it and the official clients of OpenAI and Anthropic before it.

#[path = "gateway/answers.rs"]
mod answers;
#[path = "gateway/audio.rs"]
mod audio;
#[path = "gateway/cache.rs"]
mod cache;
#[path = "gateway/clients.rs"]
mod clients;
#[path = "gateway/down.rs"]
mod down;
#[path = "gateway/faults.rs"]
mod faults;
#[path = "gateway/money.rs"]
mod money;
#[path = "gateway/protocols.rs"]
mod protocols;
#[path = "gateway/real.rs"]
mod real;
#[path = "gateway/search_help.rs"]
mod search_help;
#[path = "gateway/shapes.rs"]
mod shapes;
#[path = "gateway/upstream.rs"]
pub mod upstream;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::RequestBuilder;
use crate::server::{PATIENCE, Server, va};

/// A server with this section `llm` (YAML, indented by two) and nothing of the test machine's own providers.
pub fn serve(data: &Path, llm: &str) -> Server {
    let config = data.join("va.yaml");
    let text = if llm.is_empty() {
        String::new()
    } else {
        format!("llm:\n{llm}\n")
    };
    std::fs::write(&config, text).unwrap();
    let mut command = va(data);
    command.env("VA_CONFIG", &config);
    for variable in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"] {
        command.env_remove(variable);
    }
    Server::start_as(&mut command, data)
}

/// A question.
pub fn question(model: &str, more: Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Say hi."}]});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// The reply to a chat request: status, the headers that tell something, body.
pub fn chat(server: &Server, body: &Value) -> Reply {
    send(server.post("/v1/chat/completions").json(body))
}

pub struct Reply {
    pub status: u16,
    retry_after: Option<String>,
    pub deployment: Option<String>,
    overhead_ms: Option<f64>,
    cache: Option<String>,
    tokenizer: Option<String>,
    content_type: Option<String>,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// The data of a stream's events, as JSON where it is.
    pub fn events(&self) -> Vec<Value> {
        let data = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()))
            .collect()
    }

    /// The text that a stream of OpenAI's showed.
    pub fn shown(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect()
    }
}

fn send(request: RequestBuilder) -> Reply {
    let response = request.send().unwrap();
    let header = |name: &str| response.find_header(name);
    Reply {
        status: response.status().as_u16(),
        retry_after: header("retry-after"),
        deployment: header("x-va-deployment"),
        overhead_ms: header("x-va-overhead-ms").map(|ms| ms.parse().unwrap()),
        cache: header("x-va-cache"),
        tokenizer: header("x-va-tokenizer"),
        content_type: header("content-type"),
        text: response.text().unwrap(),
    }
}

/// Asks SQL again until the rows are as they should be.
pub fn until_sql(server: &Server, query: &str, expected: &Value) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = json!(server.sql(query));
        if rows == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "{query}\n{rows}, not {expected}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
