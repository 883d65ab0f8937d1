//! Who may read which document, and how much a tenant may have, as people and programs meet it.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::identity::{call, log_in, make_user, server, text};
use crate::server::{Server, good, need_model, problem, run, va};

/// Stands in the restricted document only.
const SECRET: &str = "Zinnober";
const QUESTION: &str = "What is the salary band of the director?";

/// A user and what it calls with.
struct Person {
    id: String,
    token: String,
}

impl Person {
    fn new(server: &Server, name: &str, role: &str) -> Self {
        let email = format!("{name}@example.com");
        let id = make_user(server, &server.key, &email, &[role]);
        let token = text(&log_in(server, "default", &email)["access_token"]);
        Self { id, token }
    }
}

/// A collection with a document for Ann and one for everybody, of which the first answers the question best.
struct Files<'a> {
    server: &'a Server,
    collection: &'static str,
    ann: Person,
    bob: Person,
    secret: String,
}

impl<'a> Files<'a> {
    fn new(server: &'a Server, collection: &'static str, keyword_only: bool) -> Self {
        let (ann, bob) = (
            Person::new(server, "ann", "viewer"),
            Person::new(server, "bob", "viewer"),
        );
        let body = json!({"name": collection, "keyword_only": keyword_only});
        good(server.post("/api/v1/collections").json(&body));
        let open = "# Handbook\n\nThe director says where a salary is paid out. The canteen opens at noon.\n";
        server.upload(collection, "open.md", open.as_bytes().to_vec());
        let content = format!("# Salary bands\n\nThe salary band of the director is {SECRET}.\n");
        let readers = list(&[&format!("user:{}", ann.id)]);
        let path = documents(
            collection,
            &format!("?name=secret.md&wait=ready&readers={readers}"),
        );
        let upload = server
            .post(&path)
            .header("content-type", "application/octet-stream");
        let uploaded = good(upload.body(content.into_bytes()));
        assert_eq!(uploaded["state"], "READY", "{uploaded}");
        Self {
            server,
            collection,
            ann,
            bob,
            secret: text(&uploaded["id"]),
        }
    }

    /// Names of the documents found, best first.
    fn found(&self, credential: &str, mode: &str, k: u32) -> Vec<String> {
        let request =
            json!({"query": QUESTION, "collection": self.collection, "mode": mode, "k": k});
        let search = call(
            self.server,
            "POST",
            "/api/v1/retrieval/hybrid_search",
            Some(credential),
        );
        let reply = good(search.json(&request));
        assert_eq!(reply["degraded"], json!([]), "{reply}");
        let hits = reply["hits"].as_array().unwrap().iter();
        hits.map(|hit| text(&hit["document"]["name"])).collect()
    }

    fn answer(&self, credential: &str) -> Value {
        let question =
            json!({"question": QUESTION, "collection": self.collection, "mode": "extractive"});
        good(call(self.server, "POST", "/api/v1/rag/query", Some(credential)).json(&question))
    }

    /// The path of the restricted document, with what follows.
    fn path(&self, rest: &str) -> String {
        documents(self.collection, &format!("/{}{rest}", self.secret))
    }

    fn set_readers(&self, readers: &[&str], wait: &str) -> Value {
        let body = json!({"readers": readers});
        good(
            call(
                self.server,
                "PUT",
                &self.path(&format!("/readers{wait}")),
                Some(&self.server.key),
            )
            .json(&body),
        )
    }

    fn check(&self, modes: &[&str]) {
        let (ann, bob) = (self.ann.token.as_str(), self.bob.token.as_str());
        for mode in modes {
            assert_eq!(self.found(ann, mode, 1), ["secret.md"], "{mode}");
            // One hit is asked for and one comes, the next best: nothing is taken out of a ranking afterwards.
            assert_eq!(self.found(bob, mode, 1), ["open.md"], "{mode}");
            assert_eq!(self.found(bob, mode, 10), ["open.md"], "{mode}");
        }
        let answer = self.answer(ann);
        assert_eq!(answer["citations"][0]["document"]["id"], json!(self.secret));
        assert!(answer["answer"].as_str().unwrap().contains(SECRET));
        let answer = self.answer(bob).to_string();
        assert!(
            !answer.contains(SECRET) && !answer.contains(&self.secret),
            "{answer}"
        );

        for rest in [
            "",
            "/versions",
            "/versions/1",
            "/versions/1/content",
            "/diff",
        ] {
            let (status, said) = problem(call(self.server, "GET", &self.path(rest), Some(bob)));
            assert_eq!(status, 404, "{rest}: {said}");
            // The very words of a document that never was.
            let never = documents(self.collection, &format!("/{}{rest}", "0".repeat(32)));
            let (status, other) = problem(call(self.server, "GET", &never, Some(bob)));
            let words = other.to_string().replace(&"0".repeat(32), &self.secret);
            assert_eq!((status, said.to_string()), (404, words), "{rest}");
        }
        assert_eq!(self.sees(bob), ["open.md"]);
        assert_eq!(self.sees(ann), ["open.md", "secret.md"]);
        assert_eq!(self.sees(&self.server.key), ["open.md", "secret.md"]);
        let shown = format!("/api/v1/collections/{}", self.collection);
        let counted = |credential| {
            good(call(self.server, "GET", &shown, Some(credential)))["documents"].clone()
        };
        assert_eq!((counted(bob), counted(ann)), (json!(1), json!(2)));
        let states = documents(self.collection, "/states");
        let states = call(self.server, "POST", &states, Some(bob));
        let states = good(states.json(&json!({"ids": [self.secret]})));
        assert_eq!(states["items"], json!([]));
    }

    /// Names of the documents that a list, and SQL, shows.
    fn sees(&self, credential: &str) -> Vec<String> {
        let names = |items: &Value, name: &dyn Fn(&Value) -> Value| {
            let items = items.as_array().unwrap().iter();
            let mut names: Vec<String> = items.map(|item| text(&name(item))).collect();
            names.sort();
            names.dedup();
            names
        };
        let path = documents(self.collection, "");
        let listed = good(call(self.server, "GET", &path, Some(credential)));
        let listed = names(&listed["items"], &|item| item["name"].clone());
        let sql = |query: String| {
            let asked = call(self.server, "POST", "/api/v1/sql", Some(credential));
            let reply = good(asked.json(&json!({"query": query})));
            names(&reply["rows"], &|row| row[0].clone())
        };
        let collection = self.collection;
        assert_eq!(
            sql(format!(
                "SELECT name FROM documents WHERE collection = '{collection}'"
            )),
            listed
        );
        assert_eq!(
            sql(format!(
                "SELECT name FROM hybrid_search('{collection}', 'salary director', 10)"
            )),
            listed
        );
        listed
    }
}

fn documents(collection: &str, rest: &str) -> String {
    format!("/api/v1/collections/{collection}/documents{rest}")
}

/// A JSON list of readers, as a query has it.
fn list(readers: &[&str]) -> String {
    json!(readers)
        .to_string()
        .replace('[', "%5B")
        .replace(']', "%5D")
        .replace('"', "%22")
}

#[test]
fn who_may_not_read_a_document_gets_the_next_best_by_words() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let files = Files::new(&server, "files", true);
    files.check(&["keyword", "hybrid"]);
    let (ann, bob) = (files.ann.token.as_str(), files.bob.token.as_str());
    let (for_ann, for_bob) = (
        format!("user:{}", files.ann.id),
        format!("user:{}", files.bob.id),
    );

    // What topics say of documents is not for those who do not see all.
    let topic = json!({"query": "SELECT * FROM topic.\"document.uploaded\""});
    let (status, _) = problem(call(&server, "POST", "/api/v1/sql", Some(bob)).json(&topic));
    assert_eq!(status, 422);
    let topic = "/api/v1/topics/document.uploaded/records";
    assert_eq!(problem(call(&server, "GET", topic, Some(bob))).0, 404);

    // A conversation of Ann, before she loses the document.
    let asked = json!({"message": QUESTION, "collection": "files"});
    let said = good(call(&server, "POST", "/api/v1/chat", Some(ann)).json(&asked));
    assert!(said["answer"].as_str().unwrap().contains(SECRET), "{said}");

    // Opened, it is found as soon as it is in the indexes; by a role too.
    let opened = files.set_readers(&[&for_ann, &for_bob], "?wait=ready");
    assert_eq!(
        (&opened["state"], &opened["outcome"]),
        (&json!("READY"), &json!("changed"))
    );
    assert_eq!(files.found(bob, "keyword", 1), ["secret.md"]);
    let shown = good(call(&server, "GET", &files.path(""), Some(bob)));
    assert_eq!(
        (&shown["version"], &shown["name"]),
        (&json!(2), &json!("secret.md"))
    );
    // Withdrawn, it is gone at once.
    files.set_readers(&[&for_bob], "");
    assert_eq!(files.found(ann, "keyword", 1), ["open.md"]);
    assert_eq!(
        problem(call(&server, "GET", &files.path(""), Some(ann))).0,
        404
    );
    let messages = format!(
        "/api/v1/conversations/{}/messages",
        text(&said["conversation_id"])
    );
    let messages = good(call(&server, "GET", &messages, Some(ann)));
    assert!(!messages.to_string().contains(SECRET), "{messages}");
    files.set_readers(&["role:viewer"], "?wait=ready");
    assert_eq!(files.found(ann, "keyword", 1), ["secret.md"]);
    files.set_readers(&[], "?wait=ready");
    assert_eq!(files.sees(bob), ["open.md", "secret.md"]);
}

#[test]
fn who_may_not_read_a_document_gets_the_next_best_by_meaning() {
    if need_model().is_none() {
        return;
    }
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let files = Files::new(&server, "files", false);
    files.check(&["keyword", "vector", "hybrid"]);
    let chunks = json!({"query": "SELECT DISTINCT name FROM chunks.files"});
    let seen = |credential: &str| {
        let asked = call(&server, "POST", "/api/v1/sql", Some(credential)).json(&chunks);
        good(asked)["rows"].as_array().unwrap().len()
    };
    assert_eq!((seen(&files.bob.token), seen(&files.ann.token)), (1, 2));
    files.set_readers(&[], "?wait=ready");
    assert_eq!(files.found(&files.bob.token, "vector", 1), ["secret.md"]);
}

#[test]
fn nobody_writes_over_what_they_may_not_read_or_locks_themselves_out() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let files = Files::new(&server, "files", true);
    let carl = Person::new(&server, "carl", "editor");
    let upload = |credential: &str, name: &str, rest: &str| {
        let path = documents("files", &format!("?name={name}&wait=ready{rest}"));
        call(&server, "POST", &path, Some(credential))
            .header("content-type", "application/octet-stream")
            .body(b"# Salary\n\nNothing to see.\n".to_vec())
    };
    let code = |request| {
        let (status, problem) = problem(request);
        (status, text(&problem["code"]))
    };
    let forbidden = (403, "forbidden".to_owned());
    let invalid = (400, "invalid_request".to_owned());
    assert_eq!(code(upload(&carl.token, "secret.md", "")), forbidden);
    let delete = call(&server, "DELETE", &files.path(""), Some(&carl.token));
    assert_eq!(code(delete).0, 404);
    let doomed = json!({"ids": [files.secret]});
    let delete = call(
        &server,
        "POST",
        &documents("files", "/delete"),
        Some(&carl.token),
    );
    assert_eq!(good(delete.json(&doomed))["deleted"], json!([]));
    let change = json!({"readers": []});
    let change = call(&server, "PUT", &files.path("/readers"), Some(&carl.token)).json(&change);
    assert_eq!(code(change).0, 404);

    // Names that do not exist, keys that are the platform's, and readers without the writer.
    for rest in [
        format!("&readers={}", list(&["role:nobody"])),
        format!("&readers={}", list(&["user:usr_none"])),
        format!("&readers={}", list(&["everybody"])),
        format!("&readers={}", list(&[&format!("user:{}", files.ann.id)])),
        "&meta=%7B%22va.restricted%22:%22no%22%7D".to_owned(),
    ] {
        assert_eq!(
            code(upload(&carl.token, "new.md", &rest)),
            invalid,
            "{rest}"
        );
    }
    let filter =
        json!({"query": "salary", "collection": "files", "filter": {"va.reader": "user:x"}});
    let search = call(
        &server,
        "POST",
        "/api/v1/retrieval/hybrid_search",
        Some(&carl.token),
    );
    assert_eq!(code(search.json(&filter)), invalid);

    // A program that keeps the collection changes the content; the readers stay.
    let key = json!({"name": "keeper", "scopes": ["write"]});
    let key = text(&good(server.post("/api/v1/keys").json(&key))["key"]);
    assert_eq!(good(upload(&key, "secret.md", ""))["version"], json!(2));
    let shown = good(server.get(&files.path("")));
    assert_eq!(shown["readers"], json!([format!("user:{}", files.ann.id)]));
    assert_eq!(files.found(&files.bob.token, "keyword", 1), ["open.md"]);
    // A key that only reads is nobody; a key of Ann is Ann.
    let read = json!({"name": "reader", "scopes": ["read"]});
    let nobody = text(&good(server.post("/api/v1/keys").json(&read))["key"]);
    assert_eq!(files.sees(&nobody), ["open.md"]);

    // The command line: what a folder's documents are to be, and who may read one.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(
        folder.join("plan.md"),
        "# Plan\n\nThe salary of the director grows.\n",
    )
    .unwrap();
    let data = dir.path();
    let index = |readers: &[&str]| {
        let mut index = va(data);
        index
            .arg("index")
            .arg(&folder)
            .args(["--collection", "files"]);
        for reader in readers {
            index.args(["--reader", reader]);
        }
        run(&mut index)
    };
    index(&["role:editor"]);
    assert_eq!(files.sees(&files.bob.token), ["open.md"]);
    assert_eq!(files.sees(&carl.token), ["open.md", "plan.md"]);
    // The same files for others are changed files; without a word about readers they are the same.
    index(&["role:viewer"]);
    index(&[]);
    assert_eq!(files.sees(&files.bob.token), ["open.md", "plan.md"]);
    let told = run(va(data).args([
        "document",
        "readers",
        &files.secret,
        "--collection",
        "files",
    ]));
    assert_eq!(told.trim(), format!("user:{}", files.ann.id));
    run(va(data)
        .args([
            "document",
            "readers",
            &files.secret,
            "--collection",
            "files",
        ])
        .arg("--everybody"));
    assert_eq!(files.sees(&nobody), ["open.md", "secret.md"]);
}

#[test]
fn a_tenant_has_what_its_quotas_permit() {
    let dir = tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let made = json!({"name": "shop"});
    let key = text(&good(server.post("/api/v1/tenants").json(&made))["key"]);
    let quotas = "/api/v1/tenants/shop/quotas";
    let limits = json!({"documents": 2, "collections": 1});
    // The tenant sees its quotas and cannot set them.
    let own = call(&server, "PATCH", quotas, Some(&key)).json(&limits);
    assert_eq!(problem(own).0, 403);
    good(call(&server, "PATCH", quotas, Some(&server.key)).json(&limits));
    let seen = good(call(&server, "GET", quotas, Some(&key)));
    assert_eq!(seen["quotas"]["documents"], json!({"used": 0, "limit": 2}));
    assert_eq!(seen["quotas"]["users"]["limit"], Value::Null);

    let post = |path: &str, body: Value| call(&server, "POST", path, Some(&key)).json(&body);
    let collection = |name: &str| json!({"name": name, "keyword_only": true});
    good(post("/api/v1/collections", collection("goods")));
    let (status, said) = problem(post("/api/v1/collections", collection("more")));
    assert_eq!((status, &said["code"]), (403, &json!("quota_exceeded")));
    assert_eq!(
        said["quota"],
        json!({"name": "collections", "limit": 1, "used": 1})
    );

    // Of many at once, each that there is no room for is refused with its reason.
    let items: Vec<Value> = (0..4)
        .map(|n| json!({"uri": format!("{n}.md"), "name": format!("{n}.md")}))
        .collect();
    let mut body = format!(
        "--x\r\nContent-Disposition: form-data; name=\"items\"\r\n\r\n{}",
        json!(items)
    );
    for n in 0..4 {
        body.push_str(&format!(
            "\r\n--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n# Page {n}\n"
        ));
    }
    body.push_str("\r\n--x--\r\n");
    let bulk = call(
        &server,
        "POST",
        "/api/v1/collections/goods/documents/bulk",
        Some(&key),
    );
    let bulk = bulk
        .header("content-type", "multipart/form-data; boundary=x")
        .body(body.into_bytes());
    let taken = good(bulk);
    let taken = taken["items"].as_array().unwrap();
    let refused: Vec<&Value> = taken.iter().map(|item| &item["error"]).collect();
    assert_eq!((refused[0], refused[1]), (&Value::Null, &Value::Null));
    for reason in &refused[2..] {
        let reason = reason.as_str().unwrap();
        assert!(
            reason.contains("quota of documents is used up: it has 2 of 2"),
            "{reason}"
        );
    }

    let told = run(va(dir.path()).args(["tenant", "quota", "shop", "--documents", "unlimited"]));
    let line = told
        .lines()
        .find(|line| line.starts_with("documents"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["documents", "2", "unlimited"]);
    let upload = call(
        &server,
        "POST",
        "/api/v1/collections/goods/documents?name=more.md",
        Some(&key),
    );
    good(
        upload
            .header("content-type", "application/octet-stream")
            .body(b"# More\n".to_vec()),
    );
}
