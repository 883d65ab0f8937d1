//! Conversations of a running server: what the model is told, stopping, clients that go, a kill in the middle, and what of
//! it is on the log.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::gateway::upstream::{Act, End, Upstream, stream, text as piece};
use crate::gateway::{serve, until_sql};
use crate::http::Client;
use crate::identity::{call, log_in, make_user, text};
use crate::server::{PATIENCE, Server, good, problem};

/// A server with one model, behind this upstream.
pub fn with_model(data: &std::path::Path, upstream: &Upstream) -> Server {
    let llm = format!(
        "  default_model: chat
  providers: {{a: {{base_url: '{}'}}}}
  models: {{chat: {{deployments: [{{provider: a, model: m}}]}}}}
  routing: {{backoff_ms: 10}}",
        upstream.url()
    );
    serve(data, &llm)
}

pub fn ask(server: &Server, body: Value) -> Value {
    good(server.post("/api/v1/chat").json(&body))
}

pub fn messages(server: &Server, conversation: &str) -> Vec<Value> {
    let path = format!("/api/v1/conversations/{conversation}/messages");
    let page = good(server.get(&path));
    page["items"].as_array().unwrap().clone()
}

/// Events of a stream: name and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let mut name = String::new();
    let mut events = Vec::new();
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("event: ") {
            told.clone_into(&mut name);
        } else if let Some(data) = line.strip_prefix("data: ") {
            let data = serde_json::from_str(data).unwrap_or_else(|_| json!(data));
            events.push((std::mem::take(&mut name), data));
        }
    }
    events
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// Each message of the conversation is told of exactly once.
fn each_message_is_on_the_log_once(server: &Server, conversation: &str) {
    let mut ids: Vec<String> = messages(server, conversation)
        .iter()
        .map(|message| text(&message["id"]))
        .collect();
    ids.sort();
    let expected: Vec<Value> = ids.iter().map(|id| json!([id, 1])).collect();
    let query = format!(
        "SELECT payload['message_id'], count(*) FROM topic.\"conversation.events\" \
         WHERE event_type = 'conversation.created' AND payload['conversation_id'] = '{conversation}' \
         AND payload['message_id'] IS NOT NULL GROUP BY 1 ORDER BY 1"
    );
    until_sql(server, &query, &json!(expected));
}

/// The work on an answer begins while its rows are written down; a model is asked when they are there.
#[test]
fn no_model_is_asked_for_a_conversation_without_room() {
    let upstream = Upstream::start(vec![stream(&["first"], 5, 2), stream(&["second"], 5, 2)]);
    let data = tempdir().unwrap();
    let server = with_model(data.path(), &upstream);
    let limits = json!({"conversations": 1});
    let quotas = "/api/v1/tenants/default/quotas";
    good(call(&server, "PATCH", quotas, Some(&server.key)).json(&limits));
    let first = ask(&server, json!({"message": "hello"}));
    for _ in 0..5 {
        let (status, said) = problem(
            server
                .post("/api/v1/chat")
                .json(&json!({"message": "more"})),
        );
        assert_eq!(
            (status, &said["code"]),
            (403, &json!("quota_exceeded")),
            "{said}"
        );
    }
    let conversation = &first["conversation_id"];
    let second = ask(
        &server,
        json!({"message": "again", "conversation": conversation}),
    );
    assert_eq!(second["answer"], json!("second"), "{second}");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_conversation_is_remembered_searched_and_judged() {
    let upstream = Upstream::start(vec![
        stream(&["冻结", "第一行"], 5, 2),
        stream(&["on the View tab"], 9, 4),
        stream(&["another way"], 9, 2),
    ]);
    let data = tempdir().unwrap();
    let server = with_model(data.path(), &upstream);
    let first = ask(&server, json!({"message": "表格里怎么做?"}));
    assert_eq!(
        (&first["answer"], &first["mode"], &first["state"]),
        (&json!("冻结第一行"), &json!("chat"), &json!("complete")),
        "{first}"
    );
    let conversation = text(&first["conversation_id"]);
    let second = ask(
        &server,
        json!({"message": "Where is that?", "conversation": conversation, "context": {"strategy": "sliding"}}),
    );
    assert_eq!(second["usage"]["total_tokens"], json!(13), "{second}");
    let told = &upstream.requests()[1]["messages"];
    let told: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|message| (text(&message["role"]), message["content"].to_string()))
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].1.contains("表格里怎么做?") && told[1].1.contains("冻结第一行"));
    assert_eq!(told[1].0, "assistant");

    let path = format!("/api/v1/conversations/{conversation}");
    let again = good(server.post(&format!("{path}/regenerate")).json(&json!({})));
    assert_eq!(again["answer"], json!("another way"), "{again}");
    assert_eq!(again["question_id"], Value::Null, "{again}");
    // Asked with what was said before the question, not with the answer that was not wanted.
    let asked = upstream.requests()[2]["messages"].to_string();
    assert!(asked.contains("Where is that?") && !asked.contains("View tab"));
    let stored = messages(&server, &conversation);
    let roles: Vec<_> = stored.iter().map(|one| text(&one["role"])).collect();
    assert_eq!(
        roles,
        ["user", "assistant", "user", "assistant", "assistant"]
    );
    assert_eq!(good(server.get(&path))["title"], json!("表格里怎么做?"));

    for (search, found) in [("冻结第一行", 1), ("VIEW TAB", 1), ("nowhere", 0)] {
        let encoded: String = search.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let listed = good(server.get(&format!("/api/v1/conversations?q={encoded}")));
        let items = listed["items"].as_array().unwrap();
        assert_eq!(items.len(), found, "{search}: {listed}");
    }

    let feedback = format!("{path}/messages/{}/feedback", text(&again["message_id"]));
    let said = json!({"feedback": "up", "comment": "很好"});
    let put = |key: &str| call(&server, "PUT", &feedback, Some(key)).json(&said);
    assert_eq!(good(put(&server.key))["feedback"], json!("up"));
    each_message_is_on_the_log_once(&server, &conversation);
    let query = "SELECT payload['feedback'], payload['kind'] FROM topic.\"conversation.events\" \
                 WHERE event_type = 'conversation.feedback'";
    until_sql(&server, query, &json!([["up", "feedback"]]));

    // Another user of the tenant, even its owner, finds nothing of it.
    make_user(&server, &server.key, "bob@example.com", &["owner"]);
    let bob = text(&log_in(&server, "default", "bob@example.com")["access_token"]);
    for (method, path) in [
        ("GET", path.clone()),
        ("GET", format!("{path}/messages")),
        ("POST", format!("{path}/stop")),
        ("DELETE", path.clone()),
    ] {
        let (status, body) = problem(call(&server, method, &path, Some(&bob)));
        assert_eq!(status, 404, "{method} {path}: {body}");
    }
    assert_eq!(problem(put(&bob)).0, 404);
    let chat = json!({"message": "x", "conversation": conversation});
    let chat = call(&server, "POST", "/api/v1/chat", Some(&bob)).json(&chat);
    assert_eq!(problem(chat).0, 404);
    let listed = good(call(&server, "GET", "/api/v1/conversations", Some(&bob)));
    assert_eq!(listed["items"], json!([]));

    good(server.delete(&path));
    assert_eq!(problem(server.get(&path)).0, 404);
}

#[test]
fn an_answer_that_is_stopped_keeps_what_was_produced() {
    let half = vec![piece("half an "), piece("answer")];
    let upstream = Upstream::start(vec![Act::Stream(half, End::Silence)]);
    let data = tempdir().unwrap();
    let server = with_model(data.path(), &upstream);
    let made = good(server.post("/api/v1/conversations").json(&json!({})));
    let conversation = text(&made["id"]);
    let path = format!("/api/v1/conversations/{conversation}");
    // The reply has begun when its head is there; its client goes without reading on.
    let body = json!({"message": "hi", "conversation": conversation, "stream": true});
    drop(server.post("/api/v1/chat").json(&body).send().unwrap());
    let written = |page: &Value| page["items"][1]["content"] == json!("half an answer");
    let page = server.until(&format!("{path}/messages"), written);
    assert_eq!(page["items"][1]["state"], json!("writing"), "{page}");
    let (status, body) = problem(
        server
            .post("/api/v1/chat")
            .json(&json!({"message": "and?", "conversation": conversation})),
    );
    assert_eq!((status, &body["code"]), (409, &json!("answer_running")));

    let stopped = good(server.post(&format!("{path}/stop")));
    assert_eq!(stopped, json!({"stopped": 1}));
    upstream.until_gone();
    let ended = |page: &Value| page["items"][1]["state"] == json!("partial");
    let page = server.until(&format!("{path}/messages"), ended);
    let answer = &page["items"][1];
    assert_eq!(answer["content"], json!("half an answer"), "{page}");
    assert_eq!(answer["reason"], json!("it was stopped"), "{page}");

    // Whoever lost the stream gets what was saved.
    let replay = format!("{path}/messages/{}/events", text(&answer["id"]));
    let replay = server.get(&replay).header("last-event-id", "1");
    let told = events(&replay.send().unwrap().text().unwrap());
    assert_eq!(
        names(&told),
        ["message.start", "delta", "usage", "done", ""],
        "{told:?}"
    );
    assert_eq!(told[1].1["text"], json!("half an answer"));
    each_message_is_on_the_log_once(&server, &conversation);
}

#[test]
fn a_reader_follows_an_answer_from_where_it_left_off() {
    let half = vec![piece("one "), piece("two")];
    let upstream = Upstream::start(vec![Act::Stream(half, End::Silence)]);
    let data = tempdir().unwrap();
    let server = with_model(data.path(), &upstream);
    let made = good(server.post("/api/v1/conversations").json(&json!({})));
    let path = format!("/api/v1/conversations/{}", text(&made["id"]));
    let body = json!({"message": "hi", "conversation": made["id"], "stream": true});
    drop(server.post("/api/v1/chat").json(&body).send().unwrap());
    let written = |page: &Value| page["items"][1]["content"] == json!("one two");
    let page = server.until(&format!("{path}/messages"), written);
    // Event 0 is the start, 1 the first word.
    let follow = format!("{path}/messages/{}/events", text(&page["items"][1]["id"]));
    let following = Client::new(PATIENCE)
        .get(&format!("{}{follow}", server.base))
        .bearer_auth(&server.key)
        .header("last-event-id", "1")
        .send()
        .unwrap();
    good(server.post(&format!("{path}/stop")));
    let told = events(&following.text().unwrap());
    assert_eq!(names(&told), ["delta", "done", ""], "{told:?}");
    assert_eq!(told[0].1["text"], json!("two"));
    assert_eq!(told[1].1["state"], json!("partial"));
}

#[test]
fn a_kill_loses_no_event_and_repeats_none() {
    let words = stream(&["ok"], 1, 1);
    let silent = Act::Stream(vec![piece("so far")], End::Silence);
    let upstream = Upstream::start(vec![words.clone(), words, silent]);
    let data = tempdir().unwrap();
    let server = with_model(data.path(), &upstream);
    let first = ask(&server, json!({"message": "a"}));
    let conversation = text(&first["conversation_id"]);
    ask(
        &server,
        json!({"message": "b", "conversation": conversation}),
    );
    let body = json!({"message": "c", "conversation": conversation, "stream": true});
    drop(server.post("/api/v1/chat").json(&body).send().unwrap());
    let path = format!("/api/v1/conversations/{conversation}/messages");
    server.until(&path, |page| page["items"][5]["content"] == json!("so far"));
    server.kill();

    let server = with_model(data.path(), &upstream);
    let stored = messages(&server, &conversation);
    assert_eq!(stored.len(), 6, "{stored:?}");
    assert_eq!(
        (&stored[5]["state"], &stored[5]["content"]),
        (&json!("partial"), &json!("so far"))
    );
    assert_eq!(
        stored[5]["reason"],
        json!("the server ended while it was written")
    );
    each_message_is_on_the_log_once(&server, &conversation);
    let query = "SELECT payload['state'], count(*) FROM topic.\"conversation.events\" \
                 WHERE event_type = 'conversation.finished' GROUP BY 1 ORDER BY 1";
    until_sql(&server, query, &json!([["complete", 2], ["partial", 1]]));
}

#[test]
fn without_a_model_documents_answer_and_nothing_else() {
    let data = tempdir().unwrap();
    let server = serve(data.path(), "");
    let body = json!({"name": "hilfe", "keyword_only": true});
    good(server.post("/api/v1/collections").json(&body));
    let document =
        "# Freeze panes\n\nTo freeze the first row, choose Freeze First Row on the View tab.\n";
    server.upload("hilfe", "freeze.md", document.as_bytes().to_vec());
    let (status, body) = problem(server.post("/api/v1/chat").json(&json!({"message": "hi"})));
    assert_eq!((status, &body["code"]), (503, &json!("no_provider")));
    let listed = good(server.get("/api/v1/conversations"));
    assert_eq!(listed["items"], json!([]), "a refusal begins nothing");

    let question = "How do I freeze the first row?";
    let body = json!({"message": question, "collection": "hilfe", "mode": "agent", "stream": true});
    let reply = server.post("/api/v1/chat").json(&body).send().unwrap();
    let told = events(&reply.text().unwrap());
    assert_eq!(told[0].0, "message.start");
    assert_eq!(told[0].1["mode"], json!("rag"));
    assert_eq!(told[1].0, "retrieval");
    let (name, done) = &told[told.len() - 2];
    assert_eq!(name, "done");
    assert_eq!(done["degraded"][0]["retriever"], json!("agent"), "{done}");
    assert_eq!(done["answered_by"], json!("extractive"), "{done}");
    assert_eq!(told[told.len() - 1].1, json!("[DONE]"));
    let stored = messages(&server, &text(&told[0].1["conversation_id"]));
    let answer = text(&stored[1]["content"]);
    assert!(answer.contains("Freeze First Row"), "{answer}");
    assert!(!stored[1]["citations"].as_array().unwrap().is_empty());
}
