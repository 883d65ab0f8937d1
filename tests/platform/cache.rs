//! What the cache is for, as clients meet it: requests that happen once, limits that processes share, and what goes on when
//! the cache is gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::http::{RequestBuilder, Response};
use crate::identity::{call, log_in, make_user, text};
use crate::on_servers::servers;
use crate::server::{PATIENCE, Server, good, problem, skip, va};

/// 32 bytes, in base64.
const MASTER_KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn start(script: &str) -> Option<servers::Server> {
    match servers::Server::start(script) {
        Ok(server) => Some(server),
        Err(reason) => skip(&reason),
    }
}

/// `va up` with these settings in a file of its own.
fn up(data: &Path, settings: &Value) -> Server {
    std::fs::create_dir_all(data).unwrap();
    let config = data.join("va.yaml");
    std::fs::write(&config, settings.to_string()).unwrap();
    Server::start_as(va(data).env("VA_CONFIG", &config), data)
}

/// A POST of `credential` with an `Idempotency-Key`.
fn keyed(server: &Server, path: &str, credential: &str, key: &str, body: &Value) -> RequestBuilder {
    call(server, "POST", path, Some(credential))
        .header("idempotency-key", key)
        .json(body)
}

/// Status, whether it is a reply of before, and the body.
fn reply(request: RequestBuilder) -> (u16, bool, Value) {
    let response: Response = request.send().unwrap();
    let status = response.status().as_u16();
    let replayed = response.find_header("idempotency-replayed");
    let body = response.text().unwrap();
    let body = serde_json::from_str(&body).unwrap_or(Value::Null);
    (status, replayed.as_deref() == Some("true"), body)
}

/// Status and code of a refusal.
fn refused(request: RequestBuilder) -> (u16, String) {
    let (status, problem) = problem(request);
    (status, text(&problem["code"]))
}

const COLLECTIONS: &str = "/api/v1/collections";

#[test]
fn a_post_with_a_key_happens_once() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    let admin = server.key.clone();
    let (a, b) = (json!({"name": "a"}), json!({"name": "b"}));
    let first = reply(keyed(&server, COLLECTIONS, &admin, "k-1", &a));
    assert!(first.0 < 300 && !first.1, "{first:?}");
    let again = reply(keyed(&server, COLLECTIONS, &admin, "k-1", &a));
    assert_eq!(again, (first.0, true, first.2));
    // Without a key it happens again, and with another one.
    let exists = || (409, "exists".to_owned());
    assert_eq!(refused(server.post(COLLECTIONS).json(&a)), exists());
    let other_key = keyed(&server, COLLECTIONS, &admin, "k-2", &a);
    assert_eq!(refused(other_key), exists());
    // Nothing is kept of a conflict, since it may end otherwise next time.
    let role = json!({"name": "clerk", "permissions": ["search"]});
    let make_role = |key: &str| keyed(&server, "/api/v1/roles", &admin, key, &role);
    assert!(reply(make_role("k-1")).0 < 300);
    assert_eq!(refused(make_role("k-2")), exists());
    good(server.delete("/api/v1/roles/clerk"));
    let made = reply(make_role("k-2"));
    assert!(made.0 < 300 && !made.1, "{made:?}");

    // The same key for another body, or another query.
    let conflict = || (409, "idempotency_conflict".to_owned());
    let other_body = keyed(&server, COLLECTIONS, &admin, "k-1", &b);
    assert_eq!(refused(other_body), conflict());
    let path = format!("{COLLECTIONS}?x=1");
    assert_eq!(
        refused(keyed(&server, &path, &admin, "k-1", &a)),
        conflict()
    );

    // Of other callers and of other routes it is another key.
    make_user(&server, &admin, "ann@example.com", &["admin"]);
    let ann = text(&log_in(&server, "default", "ann@example.com")["access_token"]);
    let of_ann = reply(keyed(&server, COLLECTIONS, &ann, "k-1", &b));
    assert!(of_ann.0 < 300 && !of_ann.1, "{of_ann:?}");
    let query = json!({"query": "SELECT 1 AS one"});
    let sql = |server: &Server| reply(keyed(server, "/api/v1/sql", &admin, "k-1", &query));
    let (answered, repeated) = (sql(&server), sql(&server));
    assert_eq!((answered.0, answered.1), (200, false), "{answered:?}");
    assert_eq!(repeated, (200, true, answered.2));

    // A refusal for what the request says is a reply like others; its form is that of a problem.
    let unknown = json!({"name": "c", "color": "red"});
    let wrong = || keyed(&server, COLLECTIONS, &admin, "k-3", &unknown);
    let (status, said) = problem(wrong());
    assert!((400..500).contains(&status), "{said}");
    assert_eq!(problem(wrong()), (status, said));
    assert!(reply(wrong()).1);

    // What is shown once is shown again to who made it, and made once.
    let new = json!({"name": "robot", "scopes": ["read"]});
    let made = || reply(keyed(&server, "/api/v1/keys", &admin, "k-4", &new));
    let (made, shown_again) = (made(), made());
    assert!(made.0 < 300 && !made.1 && shown_again.1, "{}", made.0);
    assert_eq!(made.2["key"], shown_again.2["key"]);
    good(call(
        &server,
        "GET",
        COLLECTIONS,
        Some(&text(&made.2["key"])),
    ));
    let keys = good(server.get("/api/v1/keys"));
    let robots = keys["items"].as_array().unwrap().iter();
    assert_eq!(robots.filter(|key| key["name"] == "robot").count(), 1);
}

#[test]
fn keys_that_cannot_be_honoured_are_refused() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    let admin = server.key.clone();
    let long = "k".repeat(256);
    for bad in ["", "a b", long.as_str()] {
        let request = keyed(&server, COLLECTIONS, &admin, bad, &json!({"name": "a"}));
        let expected = (400, "invalid_idempotency_key".to_owned());
        assert_eq!(refused(request), expected, "{bad:?}");
    }
    let login = json!({"email": "ann@example.com", "password": "wrong password"});
    let login = call(&server, "POST", "/api/v1/auth/login", None)
        .header("idempotency-key", "k")
        .json(&login);
    let expected = (400, "idempotency_not_supported".to_owned());
    assert_eq!(refused(login), expected);
    // Reading happens again anyway.
    good(server.get(COLLECTIONS).header("idempotency-key", ""));
}

/// The beginning of an upload with a key, whose end is still to come: 2 MiB that no parser reads.
fn half_an_upload(server: &Server, key: &str) -> (TcpStream, Vec<u8>) {
    let body = vec![0; 2 << 20];
    let mut stream = TcpStream::connect(server.base.trim_start_matches("http://")).unwrap();
    write!(
        stream,
        "POST {} HTTP/1.1\r\nHost: va\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {key}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        upload_path(key),
        server.key,
        body.len(),
    )
    .unwrap();
    let (begin, end) = body.split_at(body.len() - 1_000);
    stream.write_all(begin).unwrap();
    (stream, end.to_vec())
}

fn upload_path(key: &str) -> String {
    format!("/api/v1/collections/c/documents?name={key}.bin")
}

fn upload(server: &Server, key: &str, bytes: Vec<u8>) -> RequestBuilder {
    server
        .post(&upload_path(key))
        .header("idempotency-key", key)
        .header("content-type", "application/octet-stream")
        .body(bytes)
}

/// Waits until the server works on `count` requests with keys, or has.
fn until_begun(server: &Server, count: u64) {
    let wanted = format!("va_idempotent_requests_total{{outcome=\"begun\"}} {count}");
    until(|| {
        let metrics = server.get("/metrics").send().unwrap().text().unwrap();
        metrics.lines().any(|line| line == wanted)
    });
}

fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_request_that_is_under_way_is_not_begun_again_and_one_that_broke_off_is() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path());
    server.create_collection("c");
    let (mut stream, end) = half_an_upload(&server, "k-1");
    until_begun(&server, 1);
    let early = upload(&server, "k-1", vec![0; 2 << 20]).send().unwrap();
    assert_eq!(early.status(), 409);
    assert!(early.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(early.text().unwrap().contains("idempotency_in_progress"));
    stream.write_all(&end).unwrap();
    let mut first = String::new();
    stream.read_to_string(&mut first).unwrap();
    assert!(first.starts_with("HTTP/1.1 202"), "{first}");
    let again = reply(upload(&server, "k-1", vec![0; 2 << 20]));
    assert!(again.0 == 202 && again.1, "{again:?}");
    assert!(first.contains(&text(&again.2["id"])), "{first}");
    let other = upload(&server, "k-1", vec![1; 2 << 20]);
    assert_eq!(refused(other), (409, "idempotency_conflict".to_owned()));

    // A form is the same form when it is sent again, also with another boundary.
    let form = |boundary: &str| {
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"b.bin\"\r\n\r\n{}\r\n--{boundary}--\r\n",
            "\0".repeat(2 << 20)
        );
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = server.post("/api/v1/collections/c/documents");
        reply(
            request
                .header("idempotency-key", "k-form")
                .header("content-type", &kind)
                .body(body),
        )
    };
    let (first, again) = (form("first-boundary"), form("another-boundary"));
    assert!(first.0 == 202 && !first.1, "{first:?}");
    assert_eq!(again, (202, true, first.2));

    // Whose sender goes before it is whole has done nothing, and its key is free.
    let (stream, _) = half_an_upload(&server, "k-2");
    until_begun(&server, 3);
    drop(stream);
    until(|| {
        let (status, replayed, body) = reply(upload(&server, "k-2", vec![0; 2 << 20]));
        assert!(!replayed, "{body}");
        assert!(
            status == 202 || body["code"] == "idempotency_in_progress",
            "{body}"
        );
        status == 202
    });
}

/// Limits of one process.
#[test]
fn a_tenant_may_make_so_many_requests_a_minute() {
    let dir = tempdir().unwrap();
    let settings = json!({"limits": {"requests_per_minute_of": {"shop": 5}}});
    let server = up(dir.path(), &settings);
    let made = good(
        server
            .post("/api/v1/tenants")
            .json(&json!({"name": "shop"})),
    );
    let shop = text(&made["key"]);
    check_limit(&[&server], &shop);
    // Others are not limited.
    for _ in 0..12 {
        good(server.get(COLLECTIONS));
    }
}

/// Of eleven requests, in at most two minutes, five or ten pass, whichever process is asked.
fn check_limit(servers: &[&Server], credential: &str) {
    let mut passed = 0;
    for n in 0..11 {
        let server = servers[n % servers.len()];
        let response = call(server, "GET", COLLECTIONS, Some(credential))
            .send()
            .unwrap();
        assert_eq!(response.header("x-ratelimit-limit"), "5");
        let remaining: u64 = response.header("x-ratelimit-remaining").parse().unwrap();
        let reset: u64 = response.header("x-ratelimit-reset").parse().unwrap();
        assert!(remaining < 5 && (1..=60).contains(&reset));
        if response.status() == 429 {
            assert_eq!(response.header("retry-after"), reset.to_string());
            let said = response.text().unwrap();
            assert!(said.contains("rate_limited"), "{said}");
        } else {
            assert!(response.status().is_success());
            passed += 1;
        }
    }
    assert!((5..=10).contains(&passed), "{passed} passed");
}

/// Two processes with one catalog and one Redis: what one did, the other knows; without Redis they go on, and when it is
/// back they know again.
#[test]
fn processes_share_what_redis_keeps_and_go_on_without_it() {
    let Some(mut redis) = start("redis.sh") else {
        return;
    };
    let Some(database) = start("postgres.sh") else {
        return;
    };
    let dir = tempdir().unwrap();
    let settings = json!({
        "catalog": {"url": database.url()},
        "cache": {"url": redis.url()},
        "identity": {"master_key": MASTER_KEY, "attempts_per_minute": 4},
        "limits": {"requests_per_minute_of": {"shop": 5}},
    });
    let one = up(&dir.path().join("one"), &settings);
    let other = up(&dir.path().join("other"), &settings);
    let admin = one.key.clone();

    let a = json!({"name": "a"});
    let first = reply(keyed(&one, COLLECTIONS, &admin, "k-1", &a));
    assert!(first.0 < 300 && !first.1, "{first:?}");
    let again = reply(keyed(&other, COLLECTIONS, &admin, "k-1", &a));
    assert_eq!(again, (first.0, true, first.2));
    let conflict = keyed(&other, COLLECTIONS, &admin, "k-1", &json!({"name": "b"}));
    assert_eq!(refused(conflict), (409, "idempotency_conflict".to_owned()));
    let new = json!({"name": "robot", "scopes": ["read"]});
    let made = |server: &Server| reply(keyed(server, "/api/v1/keys", &admin, "k-2", &new));
    let (made, shown_again) = (made(&one), made(&other));
    assert!(shown_again.1);
    assert_eq!(made.2["key"], shown_again.2["key"]);

    // What is bounded is bounded for all of them together.
    let shop = json!({"name": "shop"});
    let shop = good(one.post("/api/v1/tenants").json(&shop));
    check_limit(&[&one, &other], &text(&shop["key"]));
    let mut tried = 0;
    let login = json!({"email": "nobody@example.com", "password": "some wrong password"});
    for n in 0..10 {
        let server = if n % 2 == 0 { &one } else { &other };
        let (status, said) = problem(call(server, "POST", "/api/v1/auth/login", None).json(&login));
        let code = text(&said["code"]);
        match (status, code.as_str()) {
            (401, _) | (429, "account_locked") => tried += 1,
            (429, "too_many_attempts") => {}
            other => panic!("{other:?}: {said}"),
        }
    }
    // Twice as many where a minute ends meanwhile.
    assert!((4..=8).contains(&tried), "{tried} were tried");

    redis.tell("halt");
    for server in [&one, &other] {
        let unavailable = keyed(server, COLLECTIONS, &admin, "k-3", &json!({"name": "c"}));
        let response = unavailable.send().unwrap();
        assert_eq!(response.status(), 503);
        assert!(response.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(response.text().unwrap().contains("cache_unavailable"));
        good(call(server, "GET", COLLECTIONS, Some(&admin)));
        let ready = good(server.get("/readyz"));
        assert_eq!(ready["status"], "degraded", "{ready}");
        let told = ready.to_string();
        let password = redis.url().split([':', '@']).nth(2).unwrap();
        assert!(
            told.contains("Redis at") && !told.contains(password),
            "{told}"
        );
    }
    let doctor = va(&one.data).arg("doctor").output().unwrap();
    assert!(!doctor.status.success());
    let doctor = crate::server::both(&doctor);
    assert!(
        doctor.contains("cache") && doctor.contains("Redis at"),
        "{doctor}"
    );
    // Nothing of the request that was refused has happened.
    good(one.post(COLLECTIONS).json(&json!({"name": "c"})));

    redis.tell("resume");
    for server in [&one, &other] {
        server.until("/readyz", |ready| ready["status"] == "ok");
    }
    let d = json!({"name": "d"});
    let first = reply(keyed(&other, COLLECTIONS, &admin, "k-4", &d));
    assert!(first.0 < 300 && !first.1, "{first:?}");
    assert!(reply(keyed(&one, COLLECTIONS, &admin, "k-4", &d)).1);
}
