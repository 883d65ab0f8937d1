//! What goes wrong at providers, and what clients notice of it.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{
    Act, End, Upstream, done, event, failure, finish, reply, stream, text, usage,
};
use super::{Reply, chat, question, serve, until_sql};
use crate::server::Server;

/// A gateway to `chat` at provider `a`, with `other` at provider `b` in its place, in a hurry.
struct World {
    a: Upstream,
    b: Upstream,
    server: Server,
    _data: tempfile::TempDir,
}

fn world(a: Vec<Act>, routing: &str, deployment: &str) -> World {
    let data = tempdir().unwrap();
    let (a, b) = (
        Upstream::start(a),
        Upstream::start(vec![reply("from b", 5, 2)]),
    );
    let llm = format!(
        "  providers: {{a: {{base_url: '{}'}}, b: {{base_url: '{}'}}}}
  models:
    chat:
      deployments: [{{provider: a, model: m{deployment}}}]
      fallbacks: [other]
      context_window_fallbacks: [large]
      content_policy_fallbacks: [bold]
    other: {{deployments: [{{provider: b}}]}}
    large: {{deployments: [{{provider: b}}]}}
    bold: {{deployments: [{{provider: b}}]}}
    alone: {{deployments: [{{provider: a, model: m{deployment}}}]}}
  routing: {{backoff_ms: 10{routing}}}",
        a.url(),
        b.url()
    );
    let server = serve(data.path(), &llm);
    World {
        a,
        b,
        server,
        _data: data,
    }
}

impl World {
    fn ask(&self, model: &str, more: Value) -> Reply {
        chat(&self.server, &question(model, more))
    }
}

fn content(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"]["content"].clone()
}

#[test]
fn what_may_pass_is_repeated() {
    let script = vec![
        failure(500, "", "fault"),
        failure(429, "retry-after-ms: 5\r\n", "busy"),
        Act::Reply(200, "", "{\"garbage\"".into()),
        reply("at last", 7, 3),
    ];
    let world = world(script, "", "");
    let answer = world.ask("alone", json!({"temperature": 0.5, "logit_bias": {"5": 1}}));
    assert_eq!(content(&answer), "at last");
    assert_eq!(answer.json()["usage"]["total_tokens"], 10);
    assert_eq!(answer.json()["model"], "alone");
    assert_eq!(answer.deployment.as_deref(), Some("alone/a/m"));
    let overhead = answer.overhead_ms.unwrap();
    assert!(overhead < 1_000.0, "{overhead} ms");
    let requests = world.a.requests();
    assert_eq!(requests.len(), 4);
    // Parameters arrive, and those that we do not know too.
    assert_eq!(requests[3]["temperature"], 0.5);
    assert_eq!(requests[3]["logit_bias"], json!({"5": 1}));
    assert_eq!(requests[3]["model"], "m");
    until_sql(
        &world.server,
        "SELECT event_type, payload['attempt'], payload['outcome'] FROM topic.\"llm.usage\" ORDER BY 2, 1",
        &json!([
            ["llm.released", 1, "unavailable"],
            ["llm.reserved", 1, null],
            ["llm.released", 2, "rate_limited"],
            ["llm.reserved", 2, null],
            ["llm.released", 3, "stream_broken"],
            ["llm.reserved", 3, null],
            ["llm.reserved", 4, null],
            ["llm.settled", 4, "ok"],
        ]),
    );
}

#[test]
fn what_will_not_pass_is_told_at_once() {
    let world = world(vec![failure(400, "", "bad_tool")], "", "");
    let answer = world.ask("chat", json!({}));
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("chat/a/m") && message.contains("because of bad_tool"),
        "{message}"
    );
    assert_eq!((world.a.requests().len(), world.b.requests().len()), (1, 0));
}

#[test]
fn another_model_stands_in_and_the_broken_one_is_left_alone() {
    let broken = vec![failure(503, "", "down")];
    let rules = ", retries: 1, failures_calls_min: 4, cooldown_ms: 600000";
    let world = world(broken, rules, "");
    for _ in 0..4 {
        let answer = world.ask("chat", json!({}));
        assert_eq!(content(&answer), "from b");
        assert_eq!(answer.deployment.as_deref(), Some("other/b/other"));
    }
    // Two calls of two tries each opened the breaker; since then only `b` is asked.
    assert_eq!(world.a.requests().len(), 4);
    assert_eq!(world.b.requests().len(), 4);
    // `alone` is another deployment of the same provider, with a record of its own.
    for asked in [2, 4, 4] {
        let answer = world.ask("alone", json!({}));
        assert_eq!(answer.status, 503);
        assert_eq!(world.a.requests().len(), 4 + asked);
    }
    let answer = world.ask("alone", json!({}));
    assert!(answer.text.contains("left alone"), "{}", answer.text);
    let seconds: u64 = answer.retry_after.unwrap().parse().unwrap();
    assert!((500..=601).contains(&seconds), "{seconds}");
}

#[test]
fn a_provider_that_is_not_there_is_replaced() {
    // The port was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let data = tempdir().unwrap();
    let b = Upstream::start(vec![reply("from b", 5, 2)]);
    let llm = format!(
        "  providers: {{gone: {{base_url: 'http://127.0.0.1:{port}/v1'}}, b: {{base_url: '{}'}}}}
  models:
    chat: {{strategy: cost, deployments: [{{provider: gone}}, {{provider: b, prices: [{{input: 1}}]}}]}}
  routing: {{retries: 0}}",
        b.url()
    );
    let server = serve(data.path(), &llm);
    let answer = chat(&server, &question("chat", json!({})));
    assert_eq!(content(&answer), "from b");
    assert_eq!(answer.deployment.as_deref(), Some("chat/b/chat"));
}

#[test]
fn a_stream_is_handed_on_as_it_is() {
    let script = vec![stream(&["你", "好", " there"], 9, 4)];
    let world = world(script, "", "");
    let answer = world.ask("chat", json!({"stream": true}));
    assert_eq!(
        (answer.status, answer.shown().as_str()),
        (200, "你好 there")
    );
    assert!(answer.text.ends_with("data: [DONE]\n\n"));
    assert!(!answer.text.contains("usage"), "nobody asked for it");
    let answer = world.ask(
        "chat",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let events = answer.events();
    let last = &events[events.len() - 2];
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        (
            &last["usage"]["prompt_tokens"],
            &last["usage"]["completion_tokens"]
        ),
        (&json!(9), &json!(4))
    );
    assert!(
        events[..events.len() - 2]
            .iter()
            .all(|event| event["usage"].is_null())
    );
    // Providers are always asked to count.
    assert_eq!(
        world.a.requests()[0]["stream_options"],
        json!({"include_usage": true})
    );
}

#[test]
fn a_stream_that_fails_before_anything_was_shown_goes_on_elsewhere() {
    let role = || {
        event(&json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    };
    for (name, act) in [
        ("cut", Act::Stream(vec![role()], End::Cut)),
        ("empty", Act::Stream(vec![], End::Whole)),
        (
            "garbage",
            Act::Stream(vec!["data: {\"choices\": [\n\n".into()], End::Whole),
        ),
        (
            "an error in a good stream",
            Act::Stream(
                vec![role(), event(&json!({"error": {"message": "overloaded"}}))],
                End::Whole,
            ),
        ),
        (
            "silence",
            Act::Stream(vec![": still here\n\n".into(), role()], End::Silence),
        ),
    ] {
        let world = world(vec![act], ", retries: 0, first_token_timeout_ms: 300", "");
        let answer = world.ask("chat", json!({"stream": true}));
        assert_eq!(
            (answer.status, answer.shown().as_str()),
            (200, "from b"),
            "{name}: {}",
            answer.text
        );
        assert!(answer.text.ends_with("data: [DONE]\n\n"), "{name}");
    }
}

#[test]
fn a_stream_that_fails_after_something_was_shown_ends_with_the_reason() {
    for (name, pieces, end, reason) in [
        ("cut", vec![text("half")], End::Cut, "broke off"),
        (
            "no end",
            vec![text("half")],
            End::Whole,
            "before the reply was complete",
        ),
        (
            "garbage",
            vec![text("half"), "data: }\n\n".into()],
            End::Whole,
            "not JSON",
        ),
        (
            "error",
            vec![
                text("half"),
                event(&json!({"error": {"message": "overloaded"}})),
            ],
            End::Whole,
            "overloaded",
        ),
        (
            "silence",
            vec![text("half")],
            End::Silence,
            "nothing more of the stream within 300 ms",
        ),
    ] {
        let world = world(vec![Act::Stream(pieces, end)], ", timeout_ms: 300", "");
        let answer = world.ask("chat", json!({"stream": true}));
        assert_eq!(
            (answer.status, answer.shown().as_str()),
            (200, "half"),
            "{name}"
        );
        let events = answer.events();
        let error = &events[events.len() - 2]["error"];
        assert!(
            error["message"].as_str().unwrap().contains(reason),
            "{name}: {error}"
        );
        assert_eq!(events[events.len() - 1], "[DONE]", "{name}");
        assert_eq!(
            (world.a.requests().len(), world.b.requests().len()),
            (1, 0),
            "{name}"
        );
        // What was shown is charged.
        until_sql(
            &world.server,
            "SELECT event_type, payload['output_tokens'] > 0 FROM topic.\"llm.usage\" ORDER BY 1",
            &json!([["llm.reserved", true], ["llm.settled", true]]),
        );
    }
}

#[test]
fn a_client_that_goes_ends_the_call() {
    let act = Act::Stream(vec![text("half of it")], End::Silence);
    let world = world(vec![act], "", "");
    let request = world.server.post("/v1/chat/completions");
    let response = request
        .json(&question("chat", json!({"stream": true})))
        .send()
        .unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    world.a.until_gone();
    until_sql(
        &world.server,
        "SELECT payload['outcome'], payload['estimated'], payload['input_tokens'] > 0 FROM topic.\"llm.usage\" WHERE event_type = 'llm.settled'",
        &json!([["cancelled", true, true]]),
    );
}

#[test]
fn a_provider_at_its_limit_is_told_with_its_time() {
    let limited = vec![failure(429, "retry-after: 30\r\n", "rate_limit_exceeded")];
    let world = world(limited, "", "");
    let answer = world.ask("alone", json!({}));
    assert_eq!(
        (answer.status, answer.retry_after.as_deref()),
        (429, Some("30"))
    );
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    // It wants to be left alone, so it is not asked again, and others stand in.
    assert_eq!(world.ask("alone", json!({})).status, 503);
    assert_eq!(content(&world.ask("chat", json!({}))), "from b");
    assert_eq!(world.a.requests().len(), 2);
}

#[test]
fn our_own_limits_queue_and_refuse() {
    let slow = Act::Stream(vec![text("slow")], End::Silence);
    let world = world(
        vec![slow, reply("fast", 1, 1)],
        ", queue_max: 1, queue_wait_ms: 200",
        ", concurrent: 1",
    );
    let held = world.server.post("/v1/chat/completions");
    let held = held
        .json(&question("alone", json!({"stream": true})))
        .send()
        .unwrap();
    let answer = world.ask("alone", json!({}));
    assert_eq!(
        (answer.status, answer.retry_after.as_deref()),
        (429, Some("1")),
        "{}",
        answer.text
    );
    assert!(
        answer.text.contains("no room for 200 ms"),
        "{}",
        answer.text
    );
    drop(held);
    world.a.until_gone();
    assert_eq!(content(&world.ask("alone", json!({}))), "fast");
}

#[test]
fn what_is_too_long_or_refused_goes_to_a_model_that_takes_it() {
    for (code, deployment) in [
        ("context_length_exceeded", "large/b/large"),
        ("content_filter", "bold/b/bold"),
    ] {
        let world = world(vec![failure(400, "", code)], "", "");
        let answer = world.ask("chat", json!({}));
        assert_eq!(content(&answer), "from b");
        assert_eq!(answer.deployment.as_deref(), Some(deployment));
        let answer = world.ask("alone", json!({}));
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!(code))
        );
    }
    // Known beforehand, it is not even sent.
    let world = world(vec![reply("short", 1, 1)], "", ", context_tokens: 100");
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(1_000)}]});
    let answer = world.ask("chat", long.clone());
    assert_eq!(answer.deployment.as_deref(), Some("large/b/large"));
    let answer = world.ask("alone", long);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(world.a.requests().len(), 0);
}

#[test]
fn calls_of_functions_go_through_both_ways() {
    let call =
        |piece: Value| event(&json!({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}));
    let pieces = vec![
        call(
            json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}),
        ),
        call(json!({"index": 0, "function": {"arguments": "{\"city\":"}})),
        call(json!({"index": 0, "function": {"arguments": "\"Paris\"}"}})),
        finish("tool_calls"),
        usage(20, 9),
        done(),
    ];
    let world = world(vec![Act::Stream(pieces, End::Whole)], "", "");
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    let answer = world.ask(
        "chat",
        json!({"stream": true, "tools": tools, "tool_choice": "required"}),
    );
    let calls: Vec<Value> = answer
        .events()
        .iter()
        .filter_map(|event| {
            event["choices"][0]["delta"]["tool_calls"][0]
                .as_object()
                .cloned()
        })
        .map(Value::Object)
        .collect();
    assert_eq!(calls[0]["id"], "call_1");
    assert_eq!(calls[0]["function"]["name"], "weather");
    let arguments: String = calls
        .iter()
        .filter_map(|call| call["function"]["arguments"].as_str())
        .collect();
    assert_eq!(arguments, "{\"city\":\"Paris\"}");
    let sent = &world.a.requests()[0];
    assert_eq!(
        (&sent["tools"], &sent["tool_choice"]),
        (&tools, &json!("required"))
    );

    // The same reply in Anthropic's words.
    let body = json!({"model": "chat", "max_tokens": 50, "stream": true, "messages": [{"role": "user", "content": "?"}],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}});
    let answer = super::send(world.server.post("/v1/messages").json(&body));
    let pieces: String = answer
        .events()
        .iter()
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(pieces, "{\"city\":\"Paris\"}");
    assert_eq!(world.a.requests()[1]["tools"], tools);
}
