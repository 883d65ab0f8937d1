//! Users' pipelines: declared in YAML, fed by topics, watched, stopped and started, exactly once.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, both, good, problem, run, va};

const PIPELINE: &str = "\
pipeline: large-orders
sources:
  orders: {type: topic, topic: orders}
operators:
  parsed: {type: map, input: orders, set: {amount: cast(amount as bigint)}}
  large: {type: filter, input: parsed, where: amount > 100}
sinks:
  out: {type: topic, input: large, topic: large_orders, key: id}
";

fn produce(server: &Server, rows: &[Value]) {
    let mut child = va(&server.data)
        .args(["topic", "produce", "orders", "--key", "id"])
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

fn ids(text: &str) -> Vec<String> {
    let mut ids: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_pipeline_is_declared_run_tapped_stopped_and_goes_on() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    run(va(dir.path()).args(["topic", "create", "orders", "id:string!", "amount:string"]));
    let file = dir.path().join("large.yaml");
    std::fs::write(&file, PIPELINE).unwrap();
    let said = run(va(dir.path()).args(["pipeline", "run"]).arg(&file));
    assert!(
        said.contains("`large-orders` (version 1) is running"),
        "{said}"
    );

    let mut tap = va(dir.path())
        .args(["pipeline", "tap", "large-orders", "large", "--limit", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A tap shows what comes after it is attached, so rows are sent until it has seen one.
    let mut sent = 0;
    while tap.try_wait().unwrap().is_none() {
        produce(
            &server,
            &[json!({"id": format!("t{sent:04}"), "amount": "500"})],
        );
        sent += 1;
        server.until("/api/v1/pipelines/large-orders", |p| p["lag_rows"] == 0);
    }
    let row: Value = serde_json::from_slice(&tap.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(row["amount"], json!(500));

    let rows: Vec<Value> = (0..300)
        .map(|i| json!({"id": format!("o{i:04}"), "amount": if i % 3 == 0 { "150" } else { "50" }}))
        .collect();
    produce(&server, &rows);
    produce(
        &server,
        &[
            json!({"id": "bad", "amount": "many"}),
            json!({"id": "null", "amount": null}),
        ],
    );
    run(va(dir.path()).args(["pipeline", "stop", "large-orders"]));
    produce(&server, &[json!({"id": "while-stopped", "amount": "101"})]);
    run(va(dir.path()).args(["pipeline", "run", "large-orders"]));
    server.until("/api/v1/pipelines/large-orders", |p| p["lag_rows"] == 0);

    let mut expected: Vec<String> = (0..300).step_by(3).map(|i| format!("o{i:04}")).collect();
    expected.extend((0..sent).map(|i| format!("t{i:04}")));
    expected.push("while-stopped".into());
    expected.sort();
    assert_eq!(
        ids(&run(va(dir.path()).args([
            "topic",
            "consume",
            "large_orders"
        ]))),
        expected
    );

    let letters = run(va(dir.path()).args(["topic", "consume", "large-orders.dead_letter"]));
    let letter: Value = serde_json::from_str(letters.trim()).unwrap();
    assert_eq!(letter["payload"]["operator"], json!("parsed"));
    assert!(
        letter["payload"]["reason"]
            .as_str()
            .unwrap()
            .contains("many"),
        "{letter}"
    );
    assert!(
        letter["payload"]["row_json"]
            .as_str()
            .unwrap()
            .contains("bad"),
        "{letter}"
    );
    assert_eq!(letter["payload"]["source_topic"], json!("orders"));

    // The same table in SQL.
    let rows = server.sql("SELECT count(*) FROM topic.large_orders");
    assert_eq!(rows[0][0], json!(expected.len()));
    let listed = run(va(dir.path()).args(["pipeline", "list"]));
    for name in ["index", "document_state", "large-orders"] {
        assert!(
            listed
                .lines()
                .any(|line| line.starts_with(name) && line.contains("running")),
            "{listed}"
        );
    }
}

/// A pipeline runs again, where it was, when the platform comes up again; also after `kill -9`.
#[test]
fn a_running_pipeline_survives_the_process() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    run(va(dir.path()).args(["topic", "create", "orders", "id:string!", "amount:string"]));
    let created = server
        .post("/api/v1/pipelines?file=x.yaml")
        .header("content-type", "text/plain")
        .body(PIPELINE);
    good(created);
    let mut expected = Vec::new();
    let mut server = server;
    for round in 0..4 {
        let rows: Vec<Value> = (0..50)
            .map(|i| {
                let id = format!("r{round}-{i:02}");
                expected.push(id.clone());
                json!({"id": id, "amount": "101"})
            })
            .collect();
        produce(&server, &rows);
        server.kill();
        server = Server::start(dir.path());
    }
    server.until("/api/v1/pipelines/large-orders", |p| p["lag_rows"] == 0);
    assert_eq!(
        ids(&run(va(dir.path()).args([
            "topic",
            "consume",
            "large_orders"
        ]))),
        expected
    );
}

/// State and output change in one commit: after any number of `kill -9`, totals are those of all rows, each once.
#[test]
fn running_totals_are_exact_after_kills() {
    check_running_totals(Server::start);
}

/// Running totals of orders by city.
pub const TOTALS: &str = r"pipeline: totals
sources: {orders: {type: topic, topic: orders}}
operators:
  totals:
    type: aggregate
    input: orders
    group_by: [city]
    compute: {orders: count(), total: sum(amount), latest: last(id)}
sinks: {out: {type: topic, input: totals, topic: totals, key: city}}
";

/// The same for a platform that `start` brings up on a data directory, wherever its log is.
pub fn check_running_totals(start: impl Fn(&Path) -> Server) {
    let dir = tempdir().unwrap();
    let mut server = start(dir.path());
    run(va(dir.path()).args([
        "topic",
        "create",
        "orders",
        "id:string!",
        "city:string",
        "amount:int64",
    ]));
    good(server.post("/api/v1/pipelines?file=x.yaml").body(TOTALS));
    let cities = ["北京", "Paris", "上海"];
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..5_i64 {
        let rows: Vec<Value> = (0..60_i64)
            .map(|i| {
                let city = cities[(i % 3) as usize];
                let id = format!("r{round}-{i:02}");
                let total: &mut (i64, i64) = expected.entry(city).or_default();
                *total = (total.0 + 1, total.1 + i * round);
                json!({"id": id, "city": city, "amount": i * round})
            })
            .collect();
        produce(&server, &rows);
        server.kill();
        server = start(dir.path());
    }
    server.until("/api/v1/pipelines/totals", |p| p["lag_rows"] == 0);
    let mut last = std::collections::BTreeMap::new();
    let lines = run(va(dir.path()).args(["topic", "consume", "totals"]));
    for line in lines.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let city = cities.iter().find(|city| row["city"] == **city).unwrap();
        let now = (
            row["orders"].as_i64().unwrap(),
            row["total"].as_i64().unwrap(),
        );
        // Nothing is taken back and nothing told twice.
        let before = last.insert(*city, now).unwrap_or_default();
        assert!(
            now.0 > before.0 && now.1 >= before.1,
            "{city}: {before:?}, then {now:?}"
        );
    }
    assert_eq!(last, expected);
}

#[test]
fn wrong_pipelines_and_rows_are_refused() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    let wrong = PIPELINE.replace("amount > 100", "amuont > 100");
    let (status, reply) = problem(server.post("/api/v1/pipelines?file=w.yaml").body(wrong));
    assert_eq!((status, &reply["code"]), (422, &json!("invalid_pipeline")));
    assert!(
        reply["diagnostics"].as_str().unwrap().contains("w.yaml:3:"),
        "{reply}"
    );
    let (status, _) = problem(
        server
            .post("/api/v1/pipelines")
            .body(PIPELINE.replace("large-orders", "index")),
    );
    assert!(status == 409 || status == 422);

    run(va(dir.path()).args(["topic", "create", "orders", "id:string!", "amount:string"]));
    let rows = "{\"id\": \"a\"}\n{\"id\": null}\n";
    let (status, reply) = problem(server.post("/api/v1/topics/orders/records").body(rows));
    assert_eq!(status, 422);
    assert!(
        reply["detail"].as_str().unwrap().starts_with("line 2"),
        "{reply}"
    );
    // All or none.
    assert_eq!(good(server.get("/api/v1/topics/orders"))["rows"], json!(0));
}
