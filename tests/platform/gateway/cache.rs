//! Replies that are given again: to the same request, to a question that means the same, and what they cost.

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::upstream::{Act, End, Upstream, failure, reply, stream, text};
use super::{Reply, chat, question, send, serve, until_sql};
use crate::server::{Server, good, need_model};

fn world(cache: &str, script: Vec<Act>) -> (TempDir, Upstream, Server) {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(script);
    let llm = format!(
        "  default_model: chat
  providers: {{up: {{base_url: '{}'}}}}
  models:
    chat: {{aliases: [gpt-4o-mini], deployments: [{{provider: up, prices: [{{input: 1, output: 2}}]}}]}}
  routing: {{retries: 0, failures_calls_min: 1000}}
  cache: {cache}",
        upstream.url()
    );
    let server = serve(data.path(), &llm);
    (data, upstream, server)
}

fn content(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"]["content"].clone()
}

const EXACT: &str = "{exact: {enabled: true}}";

#[test]
fn the_same_request_gets_the_same_reply_and_costs_nothing() {
    let script = vec![
        reply("one", 1_000, 10),
        reply("two", 1_000, 10),
        reply("three", 1_000, 10),
        stream(&["fo", "ur"], 1_000, 10),
    ];
    let (_data, upstream, server) = world(EXACT, script);
    let body = question("chat", json!({"temperature": 0.7}));
    let first = chat(&server, &body);
    assert_eq!(
        (content(&first), first.cache.as_deref()),
        (json!("one"), Some("miss"))
    );
    let again = chat(&server, &body);
    assert_eq!(
        (content(&again), again.cache.as_deref()),
        (json!("one"), Some("exact"))
    );
    assert_eq!(again.deployment.as_deref(), Some("chat/up/chat"));
    assert_eq!(again.json()["usage"], first.json()["usage"]);

    // Under another name, as a stream, in another protocol: it is the same request.
    let alias = chat(
        &server,
        &question("gpt-4o-mini", json!({"temperature": 0.7})),
    );
    assert_eq!(alias.cache.as_deref(), Some("exact"), "{}", alias.text);
    let streamed = chat(
        &server,
        &question("chat", json!({"temperature": 0.7, "stream": true})),
    );
    assert_eq!(
        (streamed.shown().as_str(), streamed.cache.as_deref()),
        ("one", Some("exact"))
    );
    assert!(streamed.text.ends_with("data: [DONE]\n\n"));
    assert_eq!(upstream.requests().len(), 1);

    // Another request is another one.
    let other = chat(&server, &question("chat", json!({"temperature": 0.8})));
    assert_eq!(
        (content(&other), other.cache.as_deref()),
        (json!("two"), Some("miss"))
    );
    // A new reply is asked for, and kept instead of the old one.
    let fresh = send(
        server
            .post("/v1/chat/completions")
            .header("cache-control", "no-cache")
            .json(&body),
    );
    assert_eq!(
        (content(&fresh), fresh.cache.as_deref()),
        (json!("three"), Some("miss"))
    );
    assert_eq!(content(&chat(&server, &body)), "three");
    // One that is not to be kept.
    let private = question(
        "chat",
        json!({"temperature": 0.9, "stream": true, "cache": {"no_store": true}}),
    );
    let shown = chat(&server, &private);
    assert_eq!(
        (shown.shown().as_str(), shown.cache.as_deref()),
        ("four", None)
    );
    assert_eq!(chat(&server, &private).cache, None);
    assert_eq!(upstream.requests().len(), 5);
    // What is ours was not handed on.
    assert!(!json!(upstream.requests()).to_string().contains("no_store"));
    let wrong = chat(&server, &question("chat", json!({"cache": {"ttl": 5}})));
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["param"]),
        (400, &json!("cache.ttl"))
    );

    // 1,000 in and 10 out are 0.00102; nothing was paid for what was given again.
    until_sql(
        &server,
        "SELECT payload['outcome'], count(*), CAST(sum(payload['cost']) AS VARCHAR) FROM topic.\"llm.usage\" \
         WHERE event_type = 'llm.settled' GROUP BY 1 ORDER BY 1",
        &json!([["cached", 4, "0.000000000000"], ["ok", 5, "0.005100000000"]]),
    );
    let usage = good(server.get("/api/v1/llm/usage"));
    assert_eq!(
        (&usage["spent"]["total"], &usage["spent"]["reserved"]),
        (&json!("0.0051"), &json!("0"))
    );
}

#[test]
fn a_stream_from_the_cache_has_the_pieces_that_it_had() {
    let (_data, upstream, server) = world(EXACT, vec![stream(&["Hel", "lo", "!"], 7, 3)]);
    let body = question(
        "chat",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let pieces = |reply: &Reply| -> Vec<Value> {
        let events = reply.events();
        let deltas = events
            .iter()
            .map(|event| event["choices"][0]["delta"].clone());
        deltas.collect()
    };
    let first = chat(&server, &body);
    let again = chat(&server, &body);
    assert_eq!(
        (first.shown().as_str(), first.cache.as_deref()),
        ("Hello!", Some("miss"))
    );
    assert_eq!(again.cache.as_deref(), Some("exact"));
    assert_eq!(pieces(&again), pieces(&first));
    assert_eq!(upstream.requests().len(), 1);
    // Anthropic's clients are in another dialect, whose requests are others.
    let asked =
        json!({"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}]});
    let message = || send(server.post("/v1/messages").json(&asked));
    assert_eq!(message().cache.as_deref(), Some("miss"));
    let kept = message();
    assert_eq!(kept.cache.as_deref(), Some("exact"));
    assert_eq!(kept.json()["content"][0]["text"], "Hello!");
}

#[test]
fn what_is_no_whole_reply_is_not_kept() {
    let script = vec![
        Act::Stream(vec![text("half")], End::Cut),
        failure(500, "", "overheated"),
        reply("whole", 3, 1),
    ];
    let (_data, upstream, server) = world(EXACT, script);
    let body = question("chat", json!({"stream": true}));
    assert_eq!(chat(&server, &body).shown(), "half");
    assert_eq!(chat(&server, &body).status, 503);
    assert_eq!(chat(&server, &body).shown(), "whole");
    let kept = chat(&server, &body);
    assert_eq!(
        (kept.shown().as_str(), kept.cache.as_deref()),
        ("whole", Some("exact"))
    );
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn without_the_setting_nothing_is_kept() {
    let (_data, upstream, server) = world("{}", vec![reply("hi", 3, 1)]);
    for _ in 0..2 {
        let answer = chat(&server, &question("chat", json!({})));
        assert_eq!((content(&answer), answer.cache), (json!("hi"), None));
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_question_that_means_the_same_gets_the_same_reply() {
    let Some(()) = need_model() else { return };
    let (_data, upstream, server) = world(
        "{semantic: {enabled: true, similarity: 0.9}}",
        vec![
            reply("thirty days", 9, 2),
            reply("forty days", 9, 2),
            reply("by post", 9, 2),
            reply("as JSON", 9, 2),
            reply("to Mars", 9, 2),
        ],
    );
    let ask = |system: &str, words: &str, more: Value| {
        let messages =
            json!([{"role": "system", "content": system}, {"role": "user", "content": words}]);
        let mut body = json!({"model": "chat", "messages": messages});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = chat(&server, &body);
        (content(&answer), answer.cache.unwrap())
    };
    let told = |text: &str, cache: &str| (json!(text), cache.to_owned());
    let none = || json!({});
    let shop = "You answer for a shop.";
    let first = "Within how many days may a parcel of 2024 be returned?";
    assert_eq!(ask(shop, first, none()), told("thirty days", "miss"));
    let near = "within how many days may a parcel of 2024 be returned";
    assert_eq!(ask(shop, near, none()), told("thirty days", "semantic"));
    // Another number, another matter, another form, another context: asked anew.
    let number = "Within how many days may a parcel of 2025 be returned?";
    assert_eq!(ask(shop, number, none()), told("forty days", "miss"));
    let matter = "2024 年买的打印机没有纸了怎么办？";
    assert_eq!(ask(shop, matter, none()), told("by post", "miss"));
    let form = json!({"response_format": {"type": "json_object"}});
    assert_eq!(ask(shop, first, form), told("as JSON", "miss"));
    assert_eq!(ask("You joke.", first, none()), told("to Mars", "miss"));
    assert_eq!(upstream.requests().len(), 5);
}

#[test]
fn a_model_that_cannot_compare_is_told_at_the_start() {
    let data = tempdir().unwrap();
    let config = data.path().join("va.yaml");
    std::fs::write(
        &config,
        "llm: {cache: {semantic: {enabled: true, model: nothing}}}\n",
    )
    .unwrap();
    let mut command = crate::server::va(data.path());
    let output = command
        .args(["up", "--listen", "127.0.0.1:0"])
        .env("VA_CONFIG", &config)
        .output()
        .unwrap();
    let said = crate::server::both(&output);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("`llm.cache.semantic.model` is `nothing`")
            && said.contains("multilingual-e5-small"),
        "{said}"
    );
}
