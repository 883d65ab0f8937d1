//! Clients that know nothing of us, before the gateway with a real model behind it: those of OpenAI and Anthropic for Python
//! and for Node, and LangChain's; and the LiteLLM proxy behind it, which speaks Anthropic's Messages without being Anthropic.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::tempdir;

use super::real::{gateway, llama, real_server};
use super::upstream::{Act, End, Upstream, done, event, finish, usage};
use super::{chat, question, send, serve};
use crate::server::{need_model, skip};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What `llm-clients.sh` says of a client; `None` where it is not installed.
fn client(which: &str) -> Option<String> {
    let found = Command::new(format!("{ROOT}/deploy/dev/llm-clients.sh"))
        .arg(which)
        .output()
        .unwrap();
    if !found.status.success() {
        return skip(String::from_utf8_lossy(&found.stderr).trim());
    }
    Some(String::from_utf8(found.stdout).unwrap().trim().to_owned())
}

/// Runs a client against a gateway to a real model, `smollm2`, and to one that always calls a function, `other`.
fn run(client: &mut Command) {
    let Some(()) = need_model() else { return };
    let Some(llama) = llama() else { return };
    let data = tempdir().unwrap();
    let call = |function: Value| {
        let calls = json!([{"index": 0, "function": function}]);
        json!({"id": "1", "choices": [{"index": 0, "delta": {"tool_calls": calls}}]})
    };
    let mut first = call(json!({"name": "get_weather", "arguments": ""}));
    let begun = &mut first["choices"][0]["delta"];
    begun["role"] = json!("assistant");
    begun["tool_calls"][0]["id"] = json!("call_1");
    begun["tool_calls"][0]["type"] = json!("function");
    let pieces = vec![
        event(&first),
        event(&call(json!({"arguments": "{\"city\": \"Paris\"}"}))),
        finish("tool_calls"),
        usage(20, 9),
        done(),
    ];
    let tools = Upstream::start(vec![Act::Stream(pieces, End::Whole)]);
    let server = gateway(data.path(), llama.url(), &tools);
    let output = client
        .env("VA_TEST_BASE", &server.base)
        .env("VA_TEST_KEY", &server.key)
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", crate::server::both(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("all of it works"), "{said}");
}

#[test]
fn the_official_clients_for_python_work_unchanged() {
    let Some(python) = client("python") else {
        return;
    };
    run(Command::new(python).arg(format!("{ROOT}/tests/platform/gateway/clients.py")));
}

#[test]
fn the_official_clients_for_node_work_unchanged() {
    let Some(folder) = client("node") else { return };
    run(Command::new("node")
        .arg(format!("{ROOT}/tests/platform/gateway/clients.mjs"))
        // Where its modules are.
        .current_dir(folder));
}

#[test]
fn langchain_works_unchanged() {
    let Some(python) = client("langchain") else {
        return;
    };
    run(Command::new(python)
        .arg(format!("{ROOT}/tests/platform/gateway/langchain_client.py"))
        // It tells nobody of its runs unless it is asked to.
        .env_remove("LANGSMITH_TRACING"));
}

#[test]
fn a_proxy_that_speaks_messages_is_a_provider() {
    let Some(llama) = llama() else { return };
    let proxy = match real_server::Server::start(&format!("litellm.sh {}", llama.url())) {
        Ok(proxy) => proxy,
        Err(reason) => return skip(&reason).unwrap_or(()),
    };
    let data = tempdir().unwrap();
    let llm = format!(
        "  providers:
    proxy: {{kind: anthropic, base_url: '{0}', api_key: sk-litellm}}
    stranger: {{kind: anthropic, base_url: '{0}', api_key: sk-wrong}}
  models:
    smollm2: {{deployments: [{{provider: proxy}}]}}
    closed: {{deployments: [{{provider: stranger, model: smollm2}}]}}
  routing: {{retries: 0}}",
        proxy.url()
    );
    let server = serve(data.path(), &llm);
    let hurry = json!({"max_tokens": 6, "temperature": 0});
    let whole = chat(&server, &question("smollm2", hurry.clone()));
    assert_eq!(whole.status, 200, "{}", whole.text);
    let value = whole.json();
    let said = value["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!said.is_empty());
    assert_eq!(value["choices"][0]["finish_reason"], "length");
    assert_eq!(value["usage"]["completion_tokens"], 6);

    let mut streamed = hurry;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = chat(&server, &question("smollm2", streamed));
    assert_eq!(answer.shown(), said, "{}", answer.text);
    let events = answer.events();
    let counted = &events[events.len() - 2]["usage"];
    assert_eq!(counted["completion_tokens"], 6, "{}", answer.text);
    assert_eq!(counted["prompt_tokens"], value["usage"]["prompt_tokens"]);

    // Its count of tokens, under its name.
    let body = json!({"model": "smollm2", "messages": [{"role": "user", "content": "Say hi."}]});
    let count = send(server.post("/v1/messages/count_tokens").json(&body));
    assert!(count.json()["input_tokens"].as_u64().unwrap() > 0);
    assert_eq!(count.tokenizer.as_deref(), Some("smollm2/proxy/smollm2"));

    // Keys are in its database, of which it has none here; its own words for that reach the client, and who said them.
    let answer = chat(&server, &question("closed", json!({"max_tokens": 6})));
    assert_eq!(answer.status, 400, "{}", answer.text);
    let message = answer.json()["error"]["message"].clone();
    let told = message.as_str().unwrap();
    assert!(
        told.starts_with("closed/stranger/smollm2: the provider answered 400"),
        "{told}"
    );
}
