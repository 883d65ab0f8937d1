//! The endpoints as clients find them: credentials, shapes of replies and errors, what needs no provider.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Act, End, Upstream, done, finish, reply, stream, text, usage};
use super::{chat, question, send, serve};
use crate::http::Client;
use crate::server::{PATIENCE, Server, good, need_model, problem};

fn one(act: Act) -> (tempfile::TempDir, Upstream, Server) {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![act]);
    let llm = format!(
        "  default_model: chat
  providers: {{up: {{base_url: '{}', api_key: sk-test, headers: {{x-team: voice}}}}}}
  models:
    chat: {{aliases: [gpt-4o-mini], deployments: [{{provider: up}}]}}
    'free-*': {{deployments: [{{provider: up}}]}}",
        upstream.url()
    );
    let server = serve(data.path(), &llm);
    (data, upstream, server)
}

#[test]
fn without_a_provider_it_says_what_to_configure() {
    let data = tempdir().unwrap();
    let server = serve(data.path(), "");
    let answer = chat(&server, &question("gpt-4o", json!({})));
    assert_eq!(answer.status, 503);
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("server_error"), &json!("no_provider"))
    );
    for word in [
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "ANTHROPIC_API_KEY",
        "va.yaml",
    ] {
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let request = server
        .post("/v1/chat/completions")
        .json(&question("x", json!({})));
    assert_eq!(request.send().unwrap().header("x-should-retry"), "false");
    // The alias of ours answers as the rest of our API does.
    let (status, problem) = problem(
        server
            .post("/api/v1/llm/chat")
            .json(&question("x", json!({}))),
    );
    assert_eq!((status, &problem["code"]), (503, &json!("no_provider")));
    // The embedding models of this process are there all the same.
    let models = good(server.get("/v1/models"));
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert!(ids.contains(&json!("multilingual-e5-small")), "{ids:?}");
}

#[test]
fn the_environment_alone_makes_a_provider() {
    let data = tempdir().unwrap();
    let upstream = Upstream::start(vec![reply("hello", 3, 1)]);
    let mut command = crate::server::va(data.path());
    command
        .env_remove("OPENAI_API_KEY")
        .env_remove("ANTHROPIC_API_KEY")
        .env("OPENAI_BASE_URL", upstream.url());
    let server = Server::start_as(&mut command, data.path());
    let answer = chat(&server, &question("any/model", json!({})));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "hello");
    assert_eq!(upstream.requests()[0]["model"], "any/model");
}

#[test]
fn keys_come_in_either_header_and_errors_in_either_shape() {
    let (_data, _upstream, server) = one(reply("hello", 3, 1));
    let client = Client::new(PATIENCE);
    let post = |path: &str| client.post(&format!("{}{path}", server.base));
    let body =
        json!({"model": "chat", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    for (path, key, status) in [
        ("/v1/chat/completions", None, 401),
        ("/v1/chat/completions", Some("va_wrong"), 401),
        ("/v1/messages", None, 401),
        ("/v1/messages", Some("wrong"), 401),
        ("/v1/messages", Some(server.key.as_str()), 200),
        ("/v1/chat/completions", Some(server.key.as_str()), 200),
    ] {
        let request = post(path).json(&body);
        let request = match key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        };
        let answer = send(request);
        assert_eq!(answer.status, status, "{path} {key:?}: {}", answer.text);
        if status == 401 && path == "/v1/messages" {
            assert_eq!(answer.json()["type"], "error");
            assert_eq!(answer.json()["error"]["type"], "authentication_error");
        } else if status == 401 {
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        }
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, part) in [
        ("", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("{\"messages\": []}", "`messages`"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"\u{0}\"}]}",
            "not JSON",
        ),
        (deep.as_str(), "not JSON"),
    ] {
        let answer = send(server.post("/v1/chat/completions").body(body.to_owned()));
        assert_eq!(answer.status, 400, "{}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
    let answer = send(
        server
            .post("/v1/messages")
            .json(&json!({"model": "chat", "messages": []})),
    );
    assert_eq!(
        (answer.status, &answer.json()["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
    let answer = send(
        server
            .post("/v1/chat/completions")
            .json(&question("gpt-9", json!({}))),
    );
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    assert!(answer.text.contains("`chat`"), "{}", answer.text);
}

#[test]
fn names_aliases_and_patterns_find_their_model() {
    let (_data, upstream, server) = one(reply("hello", 3, 1));
    let key = std::fs::read_to_string(server.data.join("admin.key")).unwrap();
    for (asked, sent) in [
        ("chat", "chat"),
        ("gpt-4o-mini", "chat"),
        ("free-7b", "free-7b"),
        ("", "chat"),
    ] {
        let answer = chat(&server, &question(asked, json!({})));
        assert_eq!(answer.status, 200, "{asked}: {}", answer.text);
        assert_eq!(upstream.requests().last().unwrap()["model"], sent);
    }
    assert!(!upstream.requests()[0].to_string().contains(key.trim()));
    let models = good(server.get("/v1/models"));
    let ids: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert!(
        ids.contains(&"chat") && ids.contains(&"gpt-4o-mini") && !ids.contains(&"free-*"),
        "{ids:?}"
    );
    assert_eq!(good(server.get("/v1/models/chat"))["owned_by"], "up");
    assert_eq!(send(server.get("/v1/models/nothing")).status, 404);
}

#[test]
fn the_other_endpoints_speak_their_protocols() {
    let (_data, _upstream, server) = one(stream(&["Hel", "lo"], 7, 2));
    let body = |more: Value| {
        let mut body = json!({"model": "chat", "stream": true});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let answer = send(
        server
            .post("/v1/completions")
            .json(&body(json!({"prompt": "Say"}))),
    );
    let texts: String = answer
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(texts, "Hello");
    assert!(answer.text.ends_with("data: [DONE]\n\n"));

    let asked = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "?"}]});
    let answer = send(server.post("/v1/messages").json(&body(asked)));
    let events = answer.events();
    let texts: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(texts, "Hello");
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events[events.len() - 1]["type"], "message_stop");
    assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 2);
    assert!(answer.text.starts_with("event: message_start\n"));

    let answer = send(
        server
            .post("/v1/responses")
            .json(&body(json!({"input": "?"}))),
    );
    let events = answer.events();
    let numbers: Vec<_> = events
        .iter()
        .map(|event| event["sequence_number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let last = &events[events.len() - 1];
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "Hello");
    assert_eq!(last["response"]["usage"]["total_tokens"], 9);

    let answer = send(
        server
            .post("/api/v1/llm/chat/stream")
            .json(&question("chat", json!({}))),
    );
    assert_eq!(answer.shown(), "Hello");
}

#[test]
fn what_a_provider_does_behind_the_end_is_its_own_business() {
    let pieces = vec![
        text("all of it"),
        finish("stop"),
        usage(4, 3),
        done(),
        "data: {\n\n".into(),
    ];
    let (_data, _upstream, server) = one(Act::Stream(pieces, End::Cut));
    let answer = chat(&server, &question("chat", json!({"stream": true})));
    assert_eq!(answer.shown(), "all of it");
    assert!(
        answer.text.ends_with("data: [DONE]\n\n") && !answer.text.contains("error"),
        "{}",
        answer.text
    );
}

#[test]
fn vectors_and_ranks_need_no_provider() {
    let Some(()) = need_model() else { return };
    let data = tempdir().unwrap();
    let server = serve(data.path(), "");
    let embed = |body: Value| send(server.post("/v1/embeddings").json(&body));
    let answer =
        embed(json!({"model": "multilingual-e5-small", "input": ["冻结行或列", "freeze rows"]}));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        answer.deployment.as_deref(),
        Some("multilingual-e5-small/local/multilingual-e5-small")
    );
    let value = answer.json();
    let vector = |at: usize| -> Vec<f32> {
        serde_json::from_value(value["data"][at]["embedding"].clone()).unwrap()
    };
    assert_eq!((vector(0).len(), vector(1).len()), (384, 384));
    let cosine: f32 = vector(0).iter().zip(vector(1)).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.8, "{cosine}");
    assert!(value["usage"]["prompt_tokens"].as_u64().unwrap() > 4);

    let answer = embed(json!({"input": "冻结行或列", "encoding_format": "base64"}));
    let text = answer.json()["data"][0]["embedding"]
        .as_str()
        .unwrap()
        .to_owned();
    // 384 numbers of four bytes.
    assert_eq!(text.len(), 384 * 4 / 3 * 4);

    for (body, status, part) in [
        (json!({"input": []}), 400, "holds 0 texts"),
        (json!({"input": ""}), 400, "`input[0]`: is empty"),
        (json!({"input": [1, 2]}), 400, "token ids"),
        (json!({"input": "x", "dimensions": 10}), 400, "have 384"),
        (
            json!({"input": "x", "model": "nothing"}),
            404,
            "multilingual-e5-small",
        ),
        (
            json!({"input": "x", "encoding_format": "hex"}),
            400,
            "`hex`",
        ),
    ] {
        let answer = embed(body.clone());
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(part), "{body}: {}", answer.text);
    }

    let body = json!({"query": "how to freeze rows", "top_n": 2, "return_documents": true, "documents": [
        "The printer is out of paper.", "冻结行或列，使其在滚动时保持可见。", {"text": "Freezing rows or columns as headers"}]});
    let ranked = good(server.post("/v1/rerank").json(&body));
    let indexes: Vec<_> = ranked["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indexes.len(), 2);
    assert!(!indexes.contains(&0), "{ranked}");
    assert!(ranked["results"][0]["document"]["text"].is_string());
}
