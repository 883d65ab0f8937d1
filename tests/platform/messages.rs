//! Topics of messages that other programs write and read, and schemas that change while pipelines run. Each on both logs:
//! here on the embedded one, in `on_servers` on Kafka.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, both, good, problem, run, va};

fn produce(server: &Server, topic: &str, rows: &[Value]) {
    let mut child = va(&server.data)
        .args(["topic", "produce", topic, "--key", "id"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
}

/// The rows of a topic, by id, without what the log adds.
fn rows(server: &Server, topic: &str) -> Vec<Value> {
    let lines = run(va(&server.data).args(["topic", "consume", topic]));
    let mut rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.retain(|name, _| !name.starts_with('_') || name == "_key" || name == "_error");
    }
    rows.sort_by_key(|row| row["id"].to_string());
    rows
}

fn done(server: &Server, pipeline: &str) {
    server.until(&format!("/api/v1/pipelines/{pipeline}"), |p| {
        p["lag_rows"] == 0
    });
}

#[test]
fn messages_are_read_and_written_once() {
    check_messages(Server::start);
}

/// JSON in, Avro out and in again, JSON out; the platform is killed in between.
pub fn check_messages(start: impl Fn(&Path) -> Server) {
    const PIPELINE: &str = r#"pipeline: messages
sources:
  orders: {type: topic, topic: orders, metadata: [key]}
  again: {type: topic, topic: middle, format: {type: avro}, schema: {id: string!, amount: int64, note: string}}
operators:
  large: {type: filter, input: orders, where: amount > 100}
sinks:
  middle: {type: topic, input: large, topic: middle, format: {type: avro}, key: _key}
  out: {type: topic, input: again, topic: out, format: {type: json, nulls: true}, key: id}
"#;
    let dir = tempdir().unwrap();
    let mut server = start(dir.path());
    let create = [
        "topic",
        "create",
        "orders",
        "--format",
        "json",
        "id:string!",
        "amount:int64",
        "note:string",
    ];
    run(va(dir.path()).args(create));
    let described = run(va(dir.path()).args(["topic", "describe", "orders"]));
    assert!(described.contains("json"), "{described}");
    good(server.post("/api/v1/pipelines?file=x.yaml").body(PIPELINE));
    let mut expected = Vec::new();
    for round in 0..4 {
        let sent: Vec<Value> = (0..50)
            .map(|i| json!({"id": format!("键{round}-{i:02}"), "amount": i * 10, "note": "a\nb"}))
            .collect();
        produce(&server, "orders", &sent);
        let large = sent
            .iter()
            .filter(|row| row["amount"].as_i64().unwrap() > 100);
        expected.extend(large.map(|row| {
            let mut row = row.clone();
            row["_key"] = row["id"].clone();
            row
        }));
        server.kill();
        server = start(dir.path());
    }
    done(&server, "messages");
    done(&server, "messages");
    expected.sort_by_key(|row| row["id"].to_string());
    for topic in ["middle", "out"] {
        assert_eq!(rows(&server, topic), expected, "{topic}");
    }
    assert_eq!(rows(&server, "messages.dead_letter"), Vec::<Value>::new());
    let shown = good(server.get("/api/v1/topics/middle"));
    assert_eq!(shown["format"], json!("avro"), "{shown}");
    let (status, reply) = problem(
        server
            .post("/api/v1/topics/orders/records")
            .body(r#"{"id": "x", "amount": "many"}"#),
    );
    assert_eq!(status, 422, "{reply}");
    assert!(reply["detail"].to_string().contains("amount"), "{reply}");
}

#[test]
fn columns_come_and_go_while_pipelines_run() {
    check_evolution(Server::start);
}

/// A nullable column is added: readers of the old and of the new schema go on, with the rows of both. What would change a
/// meaning is refused.
pub fn check_evolution(start: impl Fn(&Path) -> Server) {
    let writer = |change: &str| {
        format!(
            "pipeline: writer\nsources: {{source: {{type: topic, topic: source}}}}\noperators: {{changed: {{type: map, input: source, {change}}}}}\n\
             sinks: {{events: {{type: topic, input: changed, topic: events, key: id}}}}\n"
        )
    };
    let reader = |name: &str, schema: &str| {
        format!(
            "pipeline: {name}\nsources: {{events: {{type: topic, topic: events{schema}}}}}\n\
             sinks: {{out: {{type: topic, input: events, topic: {name}-out, key: id}}}}\n"
        )
    };
    let dir = tempdir().unwrap();
    let server = start(dir.path());
    run(va(dir.path()).args([
        "topic",
        "create",
        "source",
        "id:string!",
        "n:int64",
        "note:string",
    ]));
    let post = |text: String| server.post("/api/v1/pipelines?file=x.yaml").body(text);
    good(post(writer("drop: [note]")));
    good(post(reader("old", ", schema: {id: string!, n: int64}")));
    good(post(reader(
        "new",
        ", schema: {id: string!, n: int64, country: string}",
    )));
    produce(
        &server,
        "source",
        &[json!({"id": "1", "n": 1}), json!({"id": "2", "n": 2})],
    );
    for pipeline in ["writer", "old", "new"] {
        done(&server, pipeline);
    }
    run(va(dir.path()).args(["pipeline", "stop", "writer"]));
    good(post(writer("drop: [note], set: {country: \"'中国'\"}")));
    produce(&server, "source", &[json!({"id": "3", "n": 3})]);
    for pipeline in ["writer", "old", "new"] {
        done(&server, pipeline);
    }
    // The other way round: a writer of the old schema after one of the new.
    run(va(dir.path()).args(["pipeline", "stop", "writer"]));
    good(post(writer("drop: [note]")));
    produce(&server, "source", &[json!({"id": "4", "n": 4})]);
    for pipeline in ["writer", "old", "new"] {
        done(&server, pipeline);
    }
    let old: Vec<Value> = (1..5)
        .map(|n| json!({"id": n.to_string(), "n": n}))
        .collect();
    assert_eq!(rows(&server, "old-out"), old);
    let new: Vec<Value> = (1..5)
        .map(|n| json!({"id": n.to_string(), "n": n, "country": if n == 3 { json!("中国") } else { Value::Null }}))
        .collect();
    assert_eq!(rows(&server, "new-out"), new);
    let shown = good(server.get("/api/v1/topics/events"));
    assert_eq!(
        shown["schema"],
        json!(["id: string!", "n: int64", "country: string"]),
        "{shown}"
    );

    run(va(dir.path()).args(["pipeline", "stop", "writer"]));
    let (status, reply) = problem(post(writer("drop: [note], set: {n: cast(n as varchar)}")));
    assert_eq!(status, 422, "{reply}");
    for part in ["column `n`", "was Int64 and would be Utf8", "cast"] {
        assert!(reply.to_string().contains(part), "{part}: {reply}");
    }
    let without_id = writer("drop: [note, id]").replace(", key: id", "");
    let (status, reply) = problem(post(without_id));
    assert_eq!(status, 422, "{reply}");
    assert!(
        reply.to_string().contains("column `id`") && reply.to_string().contains("would be gone"),
        "{reply}"
    );
    let (status, reply) = problem(post(reader("wrong", ", schema: {id: int64}")));
    assert_eq!(status, 422, "{reply}");
    assert!(
        reply
            .to_string()
            .contains("column `id` is Utf8 in the data and Int64 is wanted"),
        "{reply}"
    );
    let (status, reply) = problem(
        server
            .post("/api/v1/topics/events/records")
            .body(r#"{"id": "5", "n": "five"}"#),
    );
    assert_eq!(status, 422, "{reply}");
    assert!(
        reply["detail"].to_string().contains("column `n`"),
        "{reply}"
    );
}
