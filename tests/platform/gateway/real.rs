//! The real thing: llama.cpp's server with a real model as provider. Clients before the gateway are `clients`' business.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Upstream, reply};
use super::{chat, question, send, serve};
use crate::server::{Server, skip};

pub(crate) use crate::servers as real_server;

/// llama.cpp's server; `None` where it is not installed.
pub fn llama() -> Option<real_server::Server> {
    match real_server::Server::start("llama.sh") {
        Ok(server) => Some(server),
        Err(reason) => skip(&reason),
    }
}

/// A gateway to it, in both protocols, with another one in its place.
pub fn gateway(data: &std::path::Path, llama: &str, other: &Upstream) -> Server {
    let base = llama.trim_end_matches("/v1");
    let llm = format!(
        "  default_model: smollm2
  providers:
    llama: {{base_url: '{llama}'}}
    messages: {{kind: anthropic, base_url: '{base}'}}
    other: {{base_url: '{}'}}
  models:
    smollm2: {{deployments: [{{provider: llama, prices: [{{input: 0.1, output: 0.2}}]}}], fallbacks: [other]}}
    claude-local: {{deployments: [{{provider: messages, model: smollm2}}]}}
    other: {{deployments: [{{provider: other}}]}}
  routing: {{retries: 1, backoff_ms: 10}}",
        other.url()
    );
    serve(data, &llm)
}

#[test]
fn a_real_model_answers_in_every_protocol_and_is_replaced_when_it_is_gone() {
    let Some(mut llama) = llama() else { return };
    let data = tempdir().unwrap();
    let other = Upstream::start(vec![reply("from the other one", 3, 4)]);
    let server = gateway(data.path(), llama.url(), &other);
    let hurry = json!({"max_tokens": 6, "temperature": 0, "seed": 1});

    let answer = chat(&server, &question("smollm2", hurry.clone()));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let whole = answer.json();
    let said = whole["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!said.is_empty());
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 6);

    let mut streamed = hurry.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = chat(&server, &question("smollm2", streamed));
    assert_eq!(answer.shown(), said, "the same model, seed and temperature");
    let events = answer.events();
    assert_eq!(events[events.len() - 2]["usage"]["completion_tokens"], 6);

    // JSON by a schema: the grammar is enforced by the server, so it arrived there.
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema}});
    let answer = chat(
        &server,
        &question(
            "smollm2",
            json!({"response_format": format, "temperature": 0, "max_tokens": 60}),
        ),
    );
    let content = answer.json()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let city: Value =
        serde_json::from_str(&content).unwrap_or_else(|_| panic!("no JSON: {content}"));
    assert!(city["city"].is_string());

    // Anthropic's protocol towards us over OpenAI's towards the model, over Anthropic's towards it, and the other way round.
    for model in ["smollm2", "claude-local"] {
        for stream in [false, true] {
            let body = json!({"model": model, "max_tokens": 6, "temperature": 0, "stream": stream,
                "messages": [{"role": "user", "content": "Say hi."}]});
            let answer = send(server.post("/v1/messages").json(&body));
            assert_eq!(answer.status, 200, "{model}: {}", answer.text);
            let (text, tokens) = if stream {
                let events = answer.events();
                let text: String = events
                    .iter()
                    .filter_map(|event| event["delta"]["text"].as_str())
                    .collect();
                (
                    text,
                    events[events.len() - 2]["usage"]["output_tokens"].clone(),
                )
            } else {
                let message = answer.json();
                assert_eq!(message["stop_reason"], "max_tokens");
                let text = message["content"][0]["text"].as_str().unwrap().to_owned();
                (text, message["usage"]["output_tokens"].clone())
            };
            assert!(!text.is_empty(), "{model}");
            assert_eq!(tokens, 6, "{model}");
        }
    }
    let answer = chat(&server, &question("claude-local", hurry.clone()));
    assert_eq!(answer.json()["usage"]["completion_tokens"], 6);

    // Too long for it: its own words for that are understood.
    let long =
        json!({"messages": [{"role": "user", "content": "word ".repeat(3_000)}], "max_tokens": 5});
    let answer = chat(&server, &question("claude-local", long));
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );

    // The plug is pulled, and comes back.
    llama.tell("halt");
    let answer = chat(&server, &question("smollm2", hurry.clone()));
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        "from the other one"
    );
    assert_eq!(answer.deployment.as_deref(), Some("other/other/other"));
    llama.tell("resume");
    let answer = chat(&server, &question("smollm2", hurry));
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        said.as_str()
    );
}
