//! What providers get to see: addresses, credentials and habits of each kind, and marks of their caches.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Act, Upstream, reply};
use super::{chat, question, send, serve};

#[test]
fn each_kind_is_addressed_as_it_wants_to_be() {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![reply("hi", 3, 1)]);
    let root = upstream.url().trim_end_matches("/v1").to_owned();
    let llm = format!(
        "  providers:
    versioned: {{kind: azure, base_url: '{root}', api_key: sk-1, api_version: 2024-10-21}}
    azure: {{kind: azure, base_url: '{root}/', api_key: sk-2}}
    qwen: {{kind: qwen, base_url: '{root}/compatible-mode/v1', api_key: sk-3}}
    ernie: {{kind: ernie, base_url: '{root}/v2', api_key: sk-4}}
    openai: {{base_url: '{root}/v1', api_key: sk-5, headers: {{x-team: voice}}}}
  models:
    versioned: {{deployments: [{{provider: versioned, model: gpt-prod}}]}}
    azure: {{deployments: [{{provider: azure, model: gpt-prod}}]}}
    qwen: {{deployments: [{{provider: qwen, model: qwen-plus}}]}}
    ernie: {{deployments: [{{provider: ernie, model: ernie-4.5}}]}}
    openai: {{deployments: [{{provider: openai, model: gpt}}]}}"
    );
    let server = serve(data.path(), &llm);
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let more = json!({"max_tokens": 5, "temperature": 2, "seed": 7, "tools": [tool], "tool_choice": "required",
        "prompt_cache_key": "shop"});
    for (model, path, header, limit, temperature, choice, seed) in [
        (
            "versioned",
            "/openai/deployments/gpt-prod/chat/completions?api-version=2024-10-21",
            "api-key: sk-1",
            "max_completion_tokens",
            2.0,
            "required",
            json!(7),
        ),
        (
            "azure",
            "/openai/v1/chat/completions",
            "api-key: sk-2",
            "max_completion_tokens",
            2.0,
            "required",
            json!(7),
        ),
        (
            "qwen",
            "/compatible-mode/v1/chat/completions",
            "authorization: Bearer sk-3",
            "max_tokens",
            1.99,
            "auto",
            json!(7),
        ),
        (
            "ernie",
            "/v2/chat/completions",
            "authorization: Bearer sk-4",
            "max_tokens",
            1.0,
            "auto",
            Value::Null,
        ),
        (
            "openai",
            "/v1/chat/completions",
            "x-team: voice",
            "max_tokens",
            2.0,
            "required",
            json!(7),
        ),
    ] {
        let answer = chat(&server, &question(model, more.clone()));
        assert_eq!(answer.status, 200, "{model}: {}", answer.text);
        let head = upstream.heads().pop().unwrap();
        assert!(
            head.starts_with(&format!("POST {path} HTTP/1.1\n")),
            "{model}: {head}"
        );
        assert!(head.contains(&format!("{header}\n")), "{model}: {head}");
        assert_eq!(
            head.contains("authorization:"),
            !model.contains("azure") && model != "versioned",
            "{model}: {head}"
        );
        let body = upstream.requests().pop().unwrap();
        assert_eq!(body[limit], 5, "{model}: {body}");
        assert_eq!(body["temperature"], temperature, "{model}");
        assert_eq!(body["tool_choice"], choice, "{model}");
        assert_eq!(body["seed"], seed, "{model}");
        assert_eq!(body["prompt_cache_key"], "shop", "{model}");
    }
}

#[test]
fn what_a_provider_had_in_its_cache_is_told_and_priced() {
    let data = tempdir().unwrap();
    let openai = json!({"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 800}}});
    let anthropic = json!({"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 50, "cache_read_input_tokens": 900, "cache_creation_input_tokens": 50, "output_tokens": 10}});
    let counted = json!({"input_tokens": 321});
    let a = Upstream::start(vec![Act::Reply(200, "", openai.to_string())]);
    let b = Upstream::start(vec![
        Act::Reply(200, "", anthropic.to_string()),
        Act::Reply(200, "", anthropic.to_string()),
        Act::Reply(200, "", counted.to_string()),
        Act::Reply(500, "", String::new()),
    ]);
    let llm = format!(
        "  providers: {{a: {{base_url: '{}'}}, b: {{kind: anthropic, base_url: '{}'}}}}
  models:
    gpt: {{deployments: [{{provider: a, prices: [{{input: 1, output: 2, cached: 0.5}}]}}]}}
    claude: {{deployments: [{{provider: b, prices: [{{input: 3, output: 15, cached: 0.3, cache_write: 3.75}}]}}]}}
  routing: {{retries: 0}}",
        a.url(),
        b.url()
    );
    let server = serve(data.path(), &llm);
    let answer = chat(&server, &question("gpt", json!({})));
    assert_eq!(
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"],
        800
    );

    let mark = json!({"type": "ephemeral"});
    let asked = json!({"model": "claude", "max_tokens": 20,
        "system": [{"type": "text", "text": "Long rules.", "cache_control": mark}],
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}, "cache_control": mark}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "rain", "cache_control": mark}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": mark}]});
    let message = send(server.post("/v1/messages").json(&asked));
    let usage = &message.json()["usage"];
    assert_eq!(
        (
            &usage["input_tokens"],
            &usage["cache_read_input_tokens"],
            &usage["cache_creation_input_tokens"]
        ),
        (&json!(50), &json!(900), &json!(50)),
        "{}",
        message.text
    );
    let sent = &b.requests()[0];
    for place in [
        &sent["system"][0],
        &sent["messages"][1]["content"][0],
        &sent["messages"][2]["content"][0],
        &sent["tools"][0],
    ] {
        assert_eq!(place["cache_control"], mark, "{sent}");
    }
    // To a client of OpenAI the same is told in its words.
    let answer = chat(&server, &question("claude", json!({})));
    let usage = &answer.json()["usage"];
    assert_eq!(usage["prompt_tokens"], 1_000, "{usage}");
    assert_eq!(
        usage["prompt_tokens_details"],
        json!({"cached_tokens": 900, "cache_write_tokens": 50})
    );
    // 200 x 1 + 800 x 0.5 + 10 x 2, and twice 50 x 3 + 900 x 0.3 + 50 x 3.75 + 10 x 15, in millionths.
    let spent = crate::server::good(server.get("/api/v1/llm/usage"));
    assert_eq!(spent["spent"]["total"], "0.002135", "{spent}");

    // Tokens are counted by the provider that can, or else estimated; which of both is told.
    let mut body = asked;
    body.as_object_mut().unwrap().remove("max_tokens");
    let count = || send(server.post("/v1/messages/count_tokens").json(&body));
    let answer = count();
    assert_eq!(answer.json(), counted);
    assert_eq!(answer.tokenizer.as_deref(), Some("claude/b/claude"));
    assert!(b.heads()[2].starts_with("POST /v1/messages/count_tokens "));
    let failed = count();
    assert_eq!(
        failed.tokenizer.as_deref(),
        Some("estimate; the provider failed")
    );
    assert!(failed.json()["input_tokens"].as_u64().unwrap() > 10);
    body["model"] = json!("gpt");
    let estimated = send(server.post("/v1/messages/count_tokens").json(&body));
    assert_eq!(estimated.tokenizer.as_deref(), Some("estimate"));
    assert_eq!(estimated.json(), failed.json());
    body["model"] = json!("nothing");
    let unknown = send(server.post("/v1/messages/count_tokens").json(&body));
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );
}
