//! When every model fails: people get a sentence that is marked as such, programs the error, operators an alert.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Upstream, failure, reply};
use super::{chat, question, send, serve, until_sql};
use crate::server::{Server, good};

const ALERTS: &str = "SELECT payload['state'], payload['subject'] FROM topic.\"platform.alert\" \
                      WHERE payload['alert'] = 'model' ORDER BY _offset";

fn settings(upstream: &Upstream, more: &str) -> String {
    format!(
        "  default_model: chat
  providers: {{a: {{base_url: '{}'}}}}
  models: {{chat: {{deployments: [{{provider: a, model: m}}]}}}}
  routing: {{retries: 0, failures_calls_min: 1000}}{more}",
        upstream.url()
    )
}

fn ask(server: &Server, message: &str) -> Value {
    good(
        server
            .post("/api/v1/chat")
            .json(&json!({"message": message, "stream": false})),
    )
}

#[test]
fn people_get_the_template_and_operators_an_alert() {
    let data = tempdir().unwrap();
    let down = failure(500, "", "overheated");
    let script = vec![
        down.clone(),
        down.clone(),
        down.clone(),
        reply("hello", 3, 1),
    ];
    let upstream = Upstream::start(script);
    let server = serve(
        data.path(),
        &settings(&upstream, "\n  template_reply: {en: 'Later, please.'}"),
    );
    let answer = ask(&server, "Say hi.");
    assert_eq!(answer["answer"], "Later, please.", "{answer}");
    assert_eq!(
        (&answer["answered_by"], &answer["answered"]),
        (&json!("template"), &json!(false)),
        "{answer}"
    );
    assert_eq!(answer["degraded"][0]["retriever"], "model", "{answer}");
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.contains("because of overheated"), "{reason}");
    // In the language of the question; this text is the default.
    let answer = ask(&server, "你好，请问今天能退货吗？");
    assert!(
        answer["answer"].as_str().unwrap().contains("请稍后再试"),
        "{answer}"
    );
    // A program gets the error, which it can read.
    let refused = chat(&server, &question("chat", json!({})));
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (503, &json!("provider_unavailable"))
    );
    // Three failures within a minute are one alert.
    until_sql(&server, ALERTS, &json!([["raised", "chat"]]));
    let answer = ask(&server, "Say hi.");
    assert_eq!(
        (&answer["answer"], &answer["answered_by"]),
        (&json!("hello"), &json!("generated"))
    );
    until_sql(
        &server,
        ALERTS,
        &json!([["raised", "chat"], ["cleared", "chat"]]),
    );
    let metrics = send(server.get("/metrics")).text;
    assert!(
        metrics.contains("va_llm_all_failed_total{model=\"chat\"} 3"),
        "{metrics}"
    );
}

#[test]
fn without_a_template_people_get_the_error_too() {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![
        failure(500, "", "overheated"),
        failure(400, "", "odd"),
    ]);
    let server = serve(
        data.path(),
        &settings(&upstream, "\n  template_reply: {en: '', zh: ''}"),
    );
    let body = json!({"message": "Say hi.", "stream": false});
    let answer = send(server.post("/api/v1/chat").json(&body));
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert_eq!(answer.json()["code"], "provider_unavailable");
}

#[test]
fn a_request_that_is_wrong_is_no_outage() {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![
        failure(400, "", "odd"),
        failure(500, "", "overheated"),
    ]);
    let server = serve(data.path(), &settings(&upstream, ""));
    assert_eq!(chat(&server, &question("chat", json!({}))).status, 400);
    let body = json!({"message": "Say hi.", "stream": false});
    let answer = send(server.post("/api/v1/chat").json(&body));
    assert_eq!(answer.status, 200, "{}", answer.text);
    // The first failure was told to nobody: the second one is the first alert.
    until_sql(&server, ALERTS, &json!([["raised", "chat"]]));
}
