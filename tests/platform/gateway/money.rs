//! Money: what is kept, what is on the log, and what is read from it again are the same to the last token.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Act, End, Upstream, failure, reply, stream, text};
use super::{chat, question, serve, until_sql};
use crate::server::{Server, good};

const PRICES: &str = "[{input: 0.15, output: 0.6, cached: 0.075}]";

fn settings(upstream: &Upstream, budgets: &str) -> String {
    format!(
        "  providers: {{up: {{base_url: '{}'}}}}
  models:
    chat: {{deployments: [{{provider: up, prices: {PRICES}}}]}}
    free: {{deployments: [{{provider: up, prices: [{{input: 0, output: 0}}]}}]}}
  routing: {{backoff_ms: 1, retries: 1, failures_calls_min: 1000}}
  budgets: {budgets}
  currency: EUR",
        upstream.url()
    )
}

fn spent(server: &Server) -> Value {
    good(server.get("/api/v1/llm/usage"))
}

/// The sum of all that was settled, as SQL has it.
const SETTLED: &str = "SELECT CAST(sum(payload['cost']) AS VARCHAR), count(*) FROM topic.\"llm.usage\" WHERE event_type = 'llm.settled'";

#[test]
fn the_books_and_the_log_agree_also_after_a_crash() {
    let data = tempdir().unwrap();
    // In turns: a reply, a stream, a failure.
    let mut script = Vec::new();
    for n in 0..10 {
        script.push(reply("ok", 1_000 + n, 10 + n));
        script.push(stream(&["a", "b"], 500 + n, n));
        script.push(failure(500, "", "fault"));
    }
    script.push(Act::Stream(vec![text("half")], End::Silence));
    let upstream = Upstream::start(script);
    let llm = settings(&upstream, "[{amount: 100}, {amount: 1, window: day}]");
    let server = serve(data.path(), &llm);
    for _ in 0..10 {
        assert_eq!(chat(&server, &question("chat", json!({}))).status, 200);
        let streamed = chat(&server, &question("chat", json!({"stream": true})));
        assert_eq!(streamed.shown(), "ab");
    }
    // Each failure was repeated, so that the next reply came; three acts went to two calls.
    let asked = upstream.requests().len() as u64;
    let mut pico = 0;
    let mut calls = 0;
    for at in 0..asked {
        let n = at / 3;
        match at % 3 {
            0 => pico += (1_000 + n) * 150_000 + (10 + n) * 600_000,
            1 => pico += (500 + n) * 150_000 + n * 600_000,
            _ => continue,
        }
        calls += 1;
    }
    assert_eq!(calls, 20);
    let total = format!("0.{pico:012}");
    until_sql(&server, SETTLED, &json!([[total, calls]]));
    let usage = spent(&server);
    assert_eq!(usage["currency"], "EUR");
    let kept = usage["spent"]["total"].as_str().unwrap().to_owned();
    assert_eq!(kept, total.trim_end_matches('0'));
    assert_eq!(
        (&usage["spent"]["calls"], &usage["spent"]["reserved"]),
        (&json!(calls), &json!("0"))
    );
    assert_eq!(usage["budgets"][0]["spent"], kept.as_str());
    assert_eq!(usage["budgets"][1]["window"], "day");

    // One call is under way when the process is killed: a failure, and then the stream that stays silent.
    let body = question("chat", json!({"stream": true, "max_tokens": 1_000}));
    let held = server
        .post("/v1/chat/completions")
        .json(&body)
        .send()
        .unwrap();
    assert_eq!(upstream.requests().len(), 31);
    let before = spent(&server);
    let reserved = before["spent"]["reserved"].clone();
    assert_ne!(reserved, "0");
    until_sql(
        &server,
        "SELECT count(*) FROM topic.\"llm.usage\" WHERE event_type = 'llm.reserved'",
        &json!([[31]]),
    );
    server.kill();
    drop(held);

    // The books are read again, and what was under way counts with what was reserved for it.
    let server = serve(data.path(), &llm);
    let after = spent(&server);
    assert_eq!(after["spent"]["reserved"], "0");
    let pico = |value: &Value| -> u128 {
        let text = value.as_str().unwrap();
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        format!("{whole}{part:0<12}").parse().unwrap()
    };
    let expected = pico(&before["spent"]["total"]) + pico(&reserved);
    assert_eq!(pico(&after["spent"]["total"]), expected);
    let calls = before["spent"]["calls"].as_u64().unwrap() + 1;
    until_sql(
        &server,
        SETTLED,
        &json!([[format!("0.{expected:012}"), calls]]),
    );
    until_sql(
        &server,
        "SELECT payload['outcome'] FROM topic.\"llm.usage\" WHERE payload['outcome'] = 'lost'",
        &json!([["lost"]]),
    );
    // Once more: nothing is left open, so nothing changes.
    drop(server);
    let server = serve(data.path(), &llm);
    assert_eq!(spent(&server)["spent"]["total"], after["spent"]["total"]);
}

#[test]
fn a_budget_is_not_exceeded_and_says_when_it_is_used_up() {
    let data = tempdir().unwrap();
    // 1,000 in and 100 out cost 0.00015 + 0.00006.
    let upstream = Upstream::start(vec![reply("ok", 1_000, 100)]);
    let llm = settings(&upstream, "[{amount: 0.0005, window: day}]");
    let server = serve(data.path(), &llm);
    let asked = json!({"max_tokens": 100});
    for _ in 0..2 {
        assert_eq!(chat(&server, &question("chat", asked.clone())).status, 200);
    }
    // 0.00042 are spent; a reply of 1,000 tokens may cost 0.0006.
    let answer = chat(&server, &question("chat", json!({"max_tokens": 1_000})));
    assert_eq!(answer.status, 429, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("insufficient_quota"), &json!("insufficient_quota"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("0.0005 EUR") && message.contains("0.00042 are spent"),
        "{message}"
    );
    let seconds: u64 = answer.retry_after.unwrap().parse().unwrap();
    assert!(seconds <= 24 * 3_600, "{seconds}");
    assert_eq!(upstream.requests().len(), 2);
    // A short one still fits, and what is free is free.
    assert_eq!(chat(&server, &question("chat", asked.clone())).status, 200);
    assert_eq!(chat(&server, &question("chat", asked)).status, 429);
    assert_eq!(chat(&server, &question("free", json!({}))).status, 200);
    assert_eq!(spent(&server)["budgets"][0]["spent"], "0.00063");

    // Also a stream is refused before it begins, with a status.
    let answer = chat(&server, &question("chat", json!({"stream": true})));
    assert_eq!(answer.status, 429);
}

#[test]
fn a_hundred_calls_at_once_reserve_no_more_than_there_is() {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![reply("ok", 1_000, 100)]);
    // Each reserves about 0.00006 and takes 0.00021, as the provider counts more than we estimated.
    let llm = settings(&upstream, "[{amount: 0.001}]");
    let server = serve(data.path(), &llm);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| chat(&server, &question("chat", json!({"max_tokens": 100}))).status)
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let good = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(good + refused, 100, "{statuses:?}");
    // No more at a time than what was reserved for each allows.
    assert!((1..=16).contains(&good), "{good} of 100 were let through");
    let usage = spent(&server);
    assert_eq!(
        (&usage["spent"]["calls"], &usage["spent"]["reserved"]),
        (&json!(good), &json!("0"))
    );
}
