//! Logging in, tokens, keys, roles, registration: what people and programs meet at the door of a running server.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::http::{Client, RequestBuilder};
use crate::server::{PATIENCE, Server, both, good, problem, run, va};

const PASSWORD: &str = "correct horse 电池";

/// A server with these identity settings, as environment.
pub fn server(data: &Path, settings: &[(&str, &str)]) -> Server {
    let mut command = va(data);
    // What it asks is on this machine.
    command.env("NO_PROXY", "127.0.0.1");
    for (name, value) in settings {
        command.env(format!("VA_IDENTITY__{name}"), value);
    }
    Server::start_as(&mut command, data)
}

/// A call with a credential, or without.
pub fn call(server: &Server, method: &str, path: &str, credential: Option<&str>) -> RequestBuilder {
    let request = Client::new(PATIENCE).request(method, &format!("{}{path}", server.base));
    match credential {
        Some(credential) => request.bearer_auth(credential),
        None => request,
    }
}

/// Makes a user of the key's tenant; returns the id.
pub fn make_user(server: &Server, key: &str, email: &str, roles: &[&str]) -> String {
    let body = json!({"email": email, "password": PASSWORD, "roles": roles, "name": "Ann 李"});
    let user = good(call(server, "POST", "/api/v1/users", Some(key)).json(&body));
    text(&user["id"])
}

/// Logs in; the whole reply.
pub fn log_in(server: &Server, tenant: &str, email: &str) -> Value {
    let body = json!({"tenant": tenant, "email": email, "password": PASSWORD});
    good(call(server, "POST", "/api/v1/auth/login", None).json(&body))
}

pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a text, not {value}"))
        .to_owned()
}

/// Status and code of a refusal.
fn refused(request: RequestBuilder) -> (u16, String) {
    let (status, problem) = problem(request);
    (status, text(&problem["code"]))
}

#[test]
fn a_user_logs_in_refreshes_changes_and_leaves() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let admin = server.key.clone();
    let ann = make_user(&server, &admin, "Ann@Example.com", &["editor"]);
    let first = log_in(&server, "default", " ann@example.COM");
    assert_eq!(
        (&first["token_type"], &first["expires_in"]),
        (&json!("Bearer"), &json!(900))
    );
    assert_eq!(
        (&first["user"]["id"], &first["user"]["email"]),
        (&json!(ann), &json!("Ann@Example.com"))
    );
    assert!(
        !first.to_string().contains("argon2"),
        "no hash leaves the server"
    );
    let token = text(&first["access_token"]);

    // Who am I, and what may I do?
    let verified = good(call(&server, "POST", "/api/v1/auth/verify", Some(&token)));
    assert_eq!(
        (&verified["kind"], &verified["subject"]),
        (&json!("user"), &json!(ann))
    );
    assert_eq!(
        (&verified["tenant"], &verified["roles"]),
        (&json!("default"), &json!(["editor"]))
    );
    let may = |permission: &str, credential: &str, user: Option<&str>| {
        let body = json!({"permission": permission, "user": user});
        good(call(&server, "POST", "/api/v1/auth/check", Some(credential)).json(&body))["allowed"]
            .clone()
    };
    assert_eq!(may("documents.write", &token, None), json!(true));
    assert_eq!(may("users.manage", &token, None), json!(false));
    assert_eq!(may("documents.write", &admin, Some(&ann)), json!(true));
    let other = json!({"permission": "search", "user": ann});
    let asked = call(&server, "POST", "/api/v1/auth/check", Some(&token)).json(&other);
    assert_eq!(
        refused(asked),
        (403, "forbidden".to_owned()),
        "asking about others is more"
    );
    good(call(&server, "GET", "/api/v1/collections", Some(&token)));
    let denied = call(&server, "GET", "/api/v1/users", Some(&token));
    assert_eq!(refused(denied), (403, "forbidden".to_owned()));
    // Clients of Anthropic's API send their key so.
    let header = call(&server, "GET", "/api/v1/collections", None).header("x-api-key", &admin);
    good(header);

    // Profile and preferences.
    let me = good(
        call(&server, "PATCH", "/api/v1/users/me", Some(&token)).json(&json!({"phone": "+86 10"})),
    );
    assert_eq!(
        (&me["phone"], &me["name"]),
        (&json!("+86 10"), &json!("Ann 李"))
    );
    let preferences = json!({"语言": "zh", "theme": {"dark": true}});
    good(call(&server, "PUT", "/api/v1/users/me/preferences", Some(&token)).json(&preferences));
    let me = good(call(&server, "GET", "/api/v1/users/me", Some(&token)));
    assert_eq!(me["preferences"], preferences);
    let export = good(call(
        &server,
        "GET",
        "/api/v1/users/me/export",
        Some(&token),
    ));
    assert_eq!(export["user"]["email"], json!("Ann@Example.com"));
    assert!(
        export["sessions"].as_array().unwrap().len() == 1 && !export.to_string().contains("argon2"),
        "{export}"
    );
    let no_user = call(&server, "GET", "/api/v1/users/me", Some(&admin));
    assert_eq!(refused(no_user), (409, "no_user".to_owned()));

    // A refresh token works once; its second use ends the session, at once and for everybody.
    let refresh = |token: &Value| {
        call(&server, "POST", "/api/v1/auth/refresh", None).json(&json!({"refresh_token": token}))
    };
    let second = good(refresh(&first["refresh_token"]));
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    let renewed = text(&second["access_token"]);
    good(call(&server, "GET", "/api/v1/users/me", Some(&renewed)));
    assert_eq!(
        refused(refresh(&first["refresh_token"])),
        (401, "refresh_token_reused".to_owned())
    );
    assert_eq!(
        refused(refresh(&second["refresh_token"])),
        (401, "invalid_refresh_token".to_owned())
    );
    for ended in [&token, &renewed] {
        let asked = call(&server, "GET", "/api/v1/users/me", Some(ended));
        assert_eq!(refused(asked), (401, "unauthorized".to_owned()));
    }

    // Logging out ends this session and no other.
    let (one, two) = (
        log_in(&server, "default", "ann@example.com"),
        log_in(&server, "default", "ann@example.com"),
    );
    let (here, there) = (text(&one["access_token"]), text(&two["access_token"]));
    good(call(&server, "POST", "/api/v1/auth/logout", Some(&here)));
    assert_eq!(
        refused(call(&server, "GET", "/api/v1/users/me", Some(&here))).0,
        401
    );
    assert_eq!(refused(refresh(&one["refresh_token"])).0, 401);
    // A new password ends every session but the one that it was changed in.
    let three = text(&log_in(&server, "default", "ann@example.com")["access_token"]);
    let change = |current: &str, new: &str| {
        let body = json!({"current": current, "new": new});
        call(&server, "POST", "/api/v1/auth/password", Some(&there)).json(&body)
    };
    assert_eq!(
        refused(change("wrong", "another password")),
        (401, "invalid_credentials".to_owned())
    );
    assert_eq!(
        refused(change(PASSWORD, "short")),
        (422, "weak_password".to_owned())
    );
    good(change(PASSWORD, "another password"));
    good(call(&server, "GET", "/api/v1/users/me", Some(&there)));
    assert_eq!(
        refused(call(&server, "GET", "/api/v1/users/me", Some(&three))).0,
        401
    );
    let old = json!({"email": "ann@example.com", "password": PASSWORD});
    let again = call(&server, "POST", "/api/v1/auth/login", None).json(&old);
    assert_eq!(refused(again), (401, "invalid_credentials".to_owned()));

    // All of it is in the trail, without a word about the person.
    let trail = good(call(
        &server,
        "GET",
        "/api/v1/audit?limit=1000",
        Some(&admin),
    ));
    for action in [
        "user.create",
        "auth.login",
        "auth.refresh",
        "auth.logout",
        "auth.password",
    ] {
        let found = trail["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["action"] == action);
        assert!(found, "{action} is not in {trail}");
    }
    let said = trail.to_string().to_lowercase();
    assert!(
        !said.contains("example.com") && !said.contains("password\":") && !said.contains("李"),
        "{said}"
    );
    // Nor is it in the files of the data directory.
    server.kill();
    for name in ["catalog.db", "catalog.db-wal"] {
        let Ok(bytes) = std::fs::read(dir.path().join(name)) else {
            continue;
        };
        for needle in [
            "nn@Example.com",
            "nn@example.com",
            "+86 10",
            "Ann 李",
            PASSWORD,
        ] {
            let needle = needle.as_bytes();
            assert!(
                !bytes.windows(needle.len()).any(|w| w == needle),
                "{needle:?} is in {name}"
            );
        }
    }
}

#[test]
fn tokens_that_were_not_issued_here_open_nothing() {
    let dir = tempdir().unwrap();
    let settings = [("ACCESS_SECONDS", "2"), ("CLOCK_SKEW_SECONDS", "0")];
    let server = server(dir.path(), &settings);
    make_user(&server, &server.key, "ann@x", &["owner"]);
    let token = text(&log_in(&server, "default", "ann@x")["access_token"]);
    let parts: Vec<&str> = token.split('.').collect();
    let decoded = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let (header, claims) = (decoded(parts[0]), decoded(parts[1]));
    for claim in [
        "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "tenant", "roles",
    ] {
        assert!(!claims[claim].is_null(), "{claim} is missing: {claims}");
    }
    let mut elsewhere = claims.clone();
    elsewhere["tenant"] = json!("other");
    let mut for_ever = claims.clone();
    for_ever["exp"] = json!(9_999_999_999_i64);
    let none = encoded(&json!({"alg": "none", "typ": "JWT"}));
    let hmac = encoded(&json!({"alg": "HS256", "typ": "JWT", "kid": header["kid"]}));
    let forged = [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{hmac}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], encoded(&elsewhere), parts[2]),
        format!("{}.{}.{}", parts[0], encoded(&for_ever), parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        "a.b.c".to_owned(),
        "..".to_owned(),
        "va_' OR 1=1; --".to_owned(),
        "x".repeat(7_000),
    ];
    for forged in forged {
        let asked = call(&server, "GET", "/api/v1/users/me", Some(&forged));
        assert_eq!(refused(asked), (401, "unauthorized".to_owned()), "{forged}");
    }
    // The right one, until its time is over.
    let deadline = Instant::now() + PATIENCE;
    let (status, said) = loop {
        let response = call(&server, "GET", "/api/v1/users/me", Some(&token))
            .send()
            .unwrap();
        let status = response.status().as_u16();
        if status != 200 {
            break (status, response.text().unwrap());
        }
        assert!(Instant::now() < deadline, "the token never expires");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert!(status == 401 && said.contains("expired"), "{status} {said}");

    // Keys take turns; what the old one signed stays good.
    let set = |server: &Server| good(call(server, "GET", "/.well-known/jwks.json", None));
    let old = set(&server)["keys"][0]["kid"].clone();
    assert_eq!(old, header["kid"]);
    let before = text(&log_in(&server, "default", "ann@x")["access_token"]);
    let new = good(call(
        &server,
        "POST",
        "/api/v1/auth/rotate",
        Some(&server.key),
    ))["kid"]
        .clone();
    let after = text(&log_in(&server, "default", "ann@x")["access_token"]);
    assert_eq!(decoded(after.split('.').next().unwrap())["kid"], new);
    for token in [&before, &after] {
        good(call(&server, "GET", "/api/v1/users/me", Some(token)));
    }
    let kids: Vec<Value> = set(&server)["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["kid"].clone())
        .collect();
    assert_eq!(kids, [new, old]);
}

#[test]
fn guessing_is_slow_and_tells_nothing() {
    let dir = tempdir().unwrap();
    let settings = [
        ("LOCKOUT_FAILURES", "3"),
        ("LOCKOUT_SECONDS", "600"),
        ("ATTEMPTS_PER_MINUTE", "12"),
    ];
    let server = server(dir.path(), &settings);
    let ann = make_user(&server, &server.key, "ann@x", &["viewer"]);
    let guess = |email: &str, password: &str| {
        let body = json!({"email": email, "password": password});
        call(&server, "POST", "/api/v1/auth/login", None).json(&body)
    };
    // A real account and an invented one look alike, up to the lockout.
    let mut said = Vec::new();
    for email in ["ann@x", "nobody@x"] {
        for expected in [401, 401, 401, 429] {
            let (status, mut problem) = problem(guess(email, "guess"));
            assert_eq!(status, expected, "{email}: {problem}");
            // Seconds may differ.
            problem["detail"] = json!(
                problem["detail"]
                    .as_str()
                    .unwrap()
                    .replace(char::is_numeric, "")
            );
            said.push(problem);
        }
    }
    assert_eq!(said[..4], said[4..]);
    // Locked means also the right password, and says when to come back.
    let response = guess("ann@x", PASSWORD).send().unwrap();
    assert_eq!(response.status().as_u16(), 429);
    let after: u64 = response.header("retry-after").parse().unwrap();
    assert!((1..=601).contains(&after), "{after}");
    let change = json!({"unlock": true});
    good(
        call(
            &server,
            "PATCH",
            &format!("/api/v1/users/{ann}"),
            Some(&server.key),
        )
        .json(&change),
    );
    good(guess("ann@x", PASSWORD));
    // Nine and one made ten; two more, and this address has to wait.
    for _ in 0..2 {
        assert_eq!(refused(guess("other@x", "guess")).0, 401);
    }
    let response = guess("ann@x", PASSWORD).send().unwrap();
    assert_eq!(response.status().as_u16(), 429);
    assert!((1..=61).contains(&response.header("retry-after").parse::<u64>().unwrap()));
    assert!(response.text().unwrap().contains("too_many_attempts"));
    // Others who have a credential are not concerned.
    good(server.get("/api/v1/collections"));
    // No one sends a great deal without a credential.
    let long = json!({"email": "a@b", "password": "x".repeat(100_000)});
    let response = call(&server, "POST", "/api/v1/auth/login", None)
        .json(&long)
        .send()
        .unwrap();
    assert_eq!(response.status().as_u16(), 413);
}

#[test]
fn who_may_register_is_a_setting() {
    let dir = tempdir().unwrap();
    let body = |tenant: Option<&str>, invite: Option<&str>, email: &str| json!({"email": email, "password": PASSWORD, "tenant": tenant, "invite": invite});
    let register = |server: &Server, body: &Value| {
        call(server, "POST", "/api/v1/auth/register", None).json(body)
    };
    // By default with an invite, into its tenant and its roles, once.
    let one = server(dir.path(), &[]);
    let closed = (403, "registration_closed".to_owned());
    assert_eq!(
        refused(register(&one, &body(Some("mine"), None, "eve@x"))),
        closed
    );
    let mut invited = va(dir.path());
    let invite = run(invited.args(["user", "invite", "--role", "viewer"]));
    let invite = Some(invite.trim());
    assert_eq!(
        refused(register(&one, &body(Some("other"), invite, "ann@x"))),
        closed
    );
    let weak = json!({"email": "ann@x", "password": "short", "invite": invite});
    assert_eq!(
        refused(register(&one, &weak)),
        (422, "weak_password".to_owned())
    );
    let joined = good(register(&one, &body(None, invite, "ann@x")));
    assert_eq!(
        (&joined["tenant"], &joined["user"]["roles"]),
        (&json!("default"), &json!(["viewer"]))
    );
    good(call(
        &one,
        "GET",
        "/api/v1/collections",
        Some(joined["access_token"].as_str().unwrap()),
    ));
    assert_eq!(
        refused(register(&one, &body(None, invite, "ben@x"))),
        closed
    );
    one.kill();

    // Open: a new tenant of one's own, never somebody else's.
    let two = server(dir.path(), &[("REGISTRATION", "open")]);
    let owner = good(register(&two, &body(Some("店铺"), None, "eve@x")));
    assert_eq!(
        (&owner["tenant"], &owner["user"]["roles"]),
        (&json!("店铺"), &json!(["owner"]))
    );
    let token = text(&owner["access_token"]);
    let list = good(call(&two, "GET", "/api/v1/tenants", Some(&token)));
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    for taken in ["店铺", "default"] {
        let again = register(&two, &body(Some(taken), None, "mallory@x"));
        assert_eq!(refused(again), (409, "exists".to_owned()), "{taken}");
    }
    assert_eq!(
        refused(register(&two, &body(None, None, "mallory@x"))).0,
        400
    );
    assert_eq!(
        refused(register(&two, &body(Some("no good"), None, "mallory@x"))).0,
        422
    );
    assert_eq!(
        refused(register(&two, &body(Some("fine"), None, "no address"))).0,
        400
    );
    // The owner of a tenant is no operator of the installation.
    for (method, path) in [
        ("GET", "/api/v1/status"),
        ("POST", "/api/v1/tenants"),
        ("GET", "/api/v1/topics"),
    ] {
        let denied = call(&two, method, path, Some(&token)).json(&json!({"name": "x"}));
        assert_eq!(
            refused(denied),
            (403, "operators_only".to_owned()),
            "{path}"
        );
    }
    two.kill();

    let three = server(dir.path(), &[("REGISTRATION", "closed")]);
    let invite = run(va(dir.path()).args(["user", "invite"]));
    assert_eq!(
        refused(register(&three, &body(None, Some(invite.trim()), "zoe@x"))),
        closed
    );
    log_in(&three, "店铺", "eve@x");
}

#[test]
fn nobody_hands_out_more_than_they_have() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let owner_id = make_user(&server, &server.key, "owner@x", &["owner"]);
    let admin_id = make_user(&server, &server.key, "admin@x", &["admin"]);
    let token = |email: &str| text(&log_in(&server, "default", email)["access_token"]);
    let admin = token("admin@x");
    let forbidden = (403, "forbidden".to_owned());
    let post = |path: &str, body: Value| call(&server, "POST", path, Some(&admin)).json(&body);
    let patch = |id: &str, body: Value| {
        call(
            &server,
            "PATCH",
            &format!("/api/v1/users/{id}"),
            Some(&admin),
        )
        .json(&body)
    };
    let user = |roles: &[&str]| json!({"email": "new@x", "roles": roles});
    assert_eq!(
        refused(post("/api/v1/users", user(&["viewer", "owner"]))),
        forbidden
    );
    assert_eq!(
        refused(post("/api/v1/users/invites", json!({"roles": ["owner"]}))),
        forbidden
    );
    assert_eq!(
        refused(patch(&admin_id, json!({"roles": ["owner"]}))),
        forbidden
    );
    assert_eq!(
        refused(patch(&owner_id, json!({"password": "taken over now"}))),
        forbidden
    );
    assert_eq!(
        refused(patch(&owner_id, json!({"state": "DISABLED"}))),
        forbidden
    );
    let doomed = call(
        &server,
        "DELETE",
        &format!("/api/v1/users/{owner_id}"),
        Some(&admin),
    );
    assert_eq!(refused(doomed), forbidden);
    let role = json!({"name": "sneaky", "permissions": ["platform.manage"]});
    assert_eq!(refused(post("/api/v1/roles", role)), forbidden);
    assert_eq!(
        refused(post(
            "/api/v1/keys",
            json!({"name": "k", "scopes": ["admin"]})
        )),
        forbidden
    );
    assert_eq!(refused(post("/api/v1/users", user(&["nonsense"]))).0, 400);
    // Not even the operators' key may leave a tenant without an owner.
    let last = call(
        &server,
        "DELETE",
        &format!("/api/v1/users/{owner_id}"),
        Some(&server.key),
    );
    assert_eq!(refused(last), (409, "conflict".to_owned()));

    // What they have, they hand out: a role of the tenant's own, a key of their own.
    let role =
        json!({"name": "leser", "description": "reads", "permissions": ["collections.read"]});
    good(post("/api/v1/roles", role));
    let id = text(
        &good(post(
            "/api/v1/users",
            json!({"email": "new@x", "password": PASSWORD, "roles": ["leser"]}),
        ))["id"],
    );
    let reader = token("new@x");
    good(call(&server, "GET", "/api/v1/collections", Some(&reader)));
    assert_eq!(
        refused(
            call(&server, "POST", "/api/v1/sql", Some(&reader)).json(&json!({"query": "SELECT 1"}))
        ),
        forbidden
    );
    // A role that changes, and one that is lost, count at once.
    let wider = json!({"permissions": ["collections.read", "sql.read"]});
    good(call(&server, "PUT", "/api/v1/roles/leser", Some(&admin)).json(&wider));
    good(call(&server, "POST", "/api/v1/sql", Some(&reader)).json(&json!({"query": "SELECT 1"})));
    assert_eq!(
        refused(call(&server, "DELETE", "/api/v1/roles/leser", Some(&admin))).0,
        409
    );
    good(patch(&id, json!({"roles": []})));
    assert_eq!(
        refused(call(&server, "GET", "/api/v1/collections", Some(&reader))),
        forbidden
    );
    good(patch(&id, json!({"state": "DISABLED"})));
    assert_eq!(
        refused(call(&server, "GET", "/api/v1/users/me", Some(&reader))).0,
        401
    );

    // Keys: the secret once, then only its beginning; a user's key shrinks and dies with the user.
    let made = good(post(
        "/api/v1/keys",
        json!({
            "name": "bot", "scopes": ["read"], "permissions": ["models.use"], "models": ["qwen"],
            "budget": {"micros": 5_000_000, "window": "day"},
        }),
    ));
    let (key, key_id) = (text(&made["key"]), text(&made["id"]));
    assert!(
        key.starts_with(made["prefix"].as_str().unwrap()) && made["user"] == json!(admin_id),
        "{made}"
    );
    let listed = good(call(
        &server,
        "GET",
        "/api/v1/keys?limit=1000",
        Some(&admin),
    ))
    .to_string();
    assert!(
        listed.contains(&key_id) && !listed.contains(&key),
        "{listed}"
    );
    let verified = good(call(&server, "POST", "/api/v1/auth/verify", Some(&key)));
    assert_eq!(
        (&verified["kind"], &verified["models"]),
        (&json!("key"), &json!(["qwen"]))
    );
    assert_eq!(
        verified["budget"],
        json!({"micros": 5_000_000, "window": "day"})
    );
    good(
        call(
            &server,
            "PATCH",
            &format!("/api/v1/users/{admin_id}"),
            Some(&server.key),
        )
        .json(&json!({"roles": ["leser"]})),
    );
    good(call(&server, "GET", "/api/v1/collections", Some(&key)));
    assert_eq!(
        refused(
            call(
                &server,
                "POST",
                "/api/v1/retrieval/hybrid_search",
                Some(&key)
            )
            .json(&json!({}))
        ),
        forbidden
    );
    good(call(
        &server,
        "DELETE",
        &format!("/api/v1/keys/{key_id}"),
        Some(&server.key),
    ));
    assert_eq!(
        refused(call(&server, "GET", "/api/v1/collections", Some(&key))).0,
        401
    );
    let past = json!({"name": "k", "scopes": ["read"], "expires_at": 1});
    assert_eq!(
        refused(call(&server, "POST", "/api/v1/keys", Some(&server.key)).json(&past)).0,
        400
    );
    let unknown = json!({"name": "k", "permissions": ["everything"]});
    assert_eq!(
        refused(call(&server, "POST", "/api/v1/keys", Some(&server.key)).json(&unknown)).0,
        422
    );
}

#[test]
fn without_its_master_key_a_server_answers_keys_and_says_why_nobody_logs_in() {
    let dir = tempdir().unwrap();
    let first = server(dir.path(), &[]);
    make_user(&first, &first.key, "ann@x", &["viewer"]);
    let token = text(&log_in(&first, "default", "ann@x")["access_token"]);
    first.kill();
    let file = dir.path().join("master.key");
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let second = server(dir.path(), &[]);
    let body = json!({"email": "ann@x", "password": PASSWORD});
    let login = || call(&second, "POST", "/api/v1/auth/login", None).json(&body);
    assert_eq!(refused(login()), (503, "identity_locked".to_owned()));
    assert_eq!(
        refused(second.get("/api/v1/users")),
        (503, "identity_locked".to_owned())
    );
    good(second.get("/api/v1/collections"));
    // What is signed already can be verified without it.
    good(call(&second, "GET", "/api/v1/collections", Some(&token)));
    assert!(!file.exists(), "no other key is made over what is lost");
    let output = va(dir.path()).arg("doctor").output().unwrap();
    assert!(
        !output.status.success() && both(&output).contains("identity.master_key"),
        "{}",
        both(&output)
    );
    second.kill();
    // Given as a setting, it opens again.
    let third = server(dir.path(), &[("MASTER_KEY", kept.trim())]);
    log_in(&third, "default", "ann@x");
    third.kill();
    let mut wrong = va(dir.path());
    wrong
        .env("VA_IDENTITY__MASTER_KEY", "not a key")
        .args(["up", "--listen", "127.0.0.1:0"]);
    let output = wrong.output().unwrap();
    let said = both(&output);
    assert!(
        !output.status.success() && said.contains("`identity.master_key`"),
        "{said}"
    );
    assert!(!said.contains("not a key"), "{said}");
}

#[test]
fn the_command_line_makes_tenants_users_and_keys() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let data = dir.path();
    let key = run(va(data).args(["tenant", "create", "shop", "--description", "the web shop"]));
    let key = key.trim();
    let as_shop = |args: &[&str]| {
        let mut command = va(data);
        command
            .env("VA_SERVER", &server.base)
            .env("VA_TOKEN", key)
            .args(args);
        command
    };
    let mut create = as_shop(&[
        "user", "create", "ann@x", "--role", "owner", "--name", "Ann",
    ]);
    let mut child = create
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{PASSWORD}\n").as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    let id = log_in(&server, "shop", "ann@x")["user"]["id"].clone();
    let list = run(&mut as_shop(&["user", "list"]));
    assert!(list.contains("ann@x") && list.contains("owner"), "{list}");
    let id = text(&id);
    run(&mut as_shop(&[
        "user",
        "create",
        "ben@x",
        "--role",
        "owner",
        "--no-password",
    ]));
    run(&mut as_shop(&["user", "disable", &id]));
    let body = json!({"tenant": "shop", "email": "ann@x", "password": PASSWORD});
    let login = || call(&server, "POST", "/api/v1/auth/login", None).json(&body);
    assert_eq!(refused(login()).0, 401);
    run(&mut as_shop(&["user", "enable", &id]));
    good(login());
    run(&mut as_shop(&["user", "roles", &id, "viewer", "editor"]));
    let shown: Value = serde_json::from_str(&run(&mut as_shop(&["user", "show", &id]))).unwrap();
    assert_eq!(shown["roles"], json!(["editor", "viewer"]));

    let made = run(&mut as_shop(&[
        "key",
        "create",
        "bot",
        "--scope",
        "read",
        "--expires-days",
        "1",
    ]));
    good(call(
        &server,
        "GET",
        "/api/v1/collections",
        Some(made.trim()),
    ));
    let keys: Value = serde_json::from_str(&run(&mut as_shop(&["key", "list", "--json"]))).unwrap();
    let bot = keys["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|k| k["name"] == "bot")
        .unwrap();
    run(&mut as_shop(&[
        "key",
        "revoke",
        bot["id"].as_str().unwrap(),
    ]));
    assert_eq!(
        refused(call(
            &server,
            "GET",
            "/api/v1/collections",
            Some(made.trim())
        ))
        .0,
        401
    );
    run(&mut as_shop(&["user", "delete", &id, "--yes"]));
    assert_eq!(refused(login()).0, 401);

    let own = run(&mut as_shop(&["tenant", "list"]));
    assert!(own.contains("shop") && !own.contains("default"), "{own}");
    let all = run(va(data).args(["tenant", "list"]));
    assert!(all.contains("shop") && all.contains("default"), "{all}");
    for wrong in [
        &["key", "create", "k"][..],
        &["user", "delete", "x"],
        &["tenant", "create", "a b"],
    ] {
        let output = as_shop(wrong).output().unwrap();
        assert!(
            !output.status.success() && !output.stderr.is_empty(),
            "{wrong:?}"
        );
    }
}
