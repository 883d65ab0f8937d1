//! A language model in the process: no provider, no key, no other server. What it says, counts and refuses, over HTTP.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;
use va_models::{GeneratorOptions, Generators, ModelStore, NoProgress, default_model_dir};

use crate::gateway::upstream::{Upstream, reply};
use crate::gateway::{chat, question, serve, until_sql};
use crate::server::{Server, good, skip};

const MODEL: &str = "smollm2-135m-instruct";

/// The model, or why there is none.
fn models() -> Option<Generators> {
    let store = ModelStore::open(default_model_dir()).unwrap();
    if let Err(error) = store.pull(MODEL, &NoProgress) {
        return skip(&format!("no language model: {error}"));
    }
    let options = GeneratorOptions {
        context_tokens: 512,
        conversations: 1,
    };
    Some(Generators::new(store, options))
}

fn small(data: &Path, more: &str) -> Server {
    serve(data, &format!("  local: {{context_tokens: 512}}\n{more}"))
}

fn greedy(more: Value) -> Value {
    let mut body = question(MODEL, json!({"temperature": 0, "max_tokens": 6}));
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

#[test]
fn it_answers_at_once_and_as_a_stream_and_counts_exactly() {
    let Some(models) = models() else { return };
    let data = tempdir().unwrap();
    let server = small(data.path(), "");
    let listed = good(server.get("/v1/models"));
    let listed = listed["data"].as_array().unwrap();
    let own = listed.iter().find(|model| model["id"] == MODEL).unwrap();
    assert_eq!(own["owned_by"], "local");
    // It is there, but nothing uses it unasked.
    let unnamed = json!({"messages": [{"role": "user", "content": "Say hi."}]});
    let unnamed = chat(&server, &unnamed);
    assert_ne!(unnamed.status, 200, "{}", unnamed.text);

    let asked = [json!({"role": "user", "content": "Say hi."})];
    let model = models.get(MODEL).unwrap();
    let prompt = model.prompt(&asked, &[]).unwrap().len();
    let answer = chat(&server, &greedy(json!({})));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.deployment, Some(format!("{MODEL}/local/{MODEL}")));
    let whole = answer.json();
    let said = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!said.is_empty());
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["prompt_tokens"], prompt);
    assert_eq!(whole["usage"]["completion_tokens"], 6);

    let streamed = chat(
        &server,
        &greedy(json!({"stream": true, "stream_options": {"include_usage": true}})),
    );
    assert_eq!(streamed.shown(), said);
    let events = streamed.events();
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["completion_tokens"], 6);
    // The prompt was known from before.
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], prompt - 1);

    // The beginning of its second word, say, ends it.
    let stop: String = said.chars().skip(3).take(3).collect();
    let stopped = chat(&server, &greedy(json!({"stop": [stop]})));
    let stopped = stopped.json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        stopped["choices"][0]["message"]["content"].as_str(),
        said.split(&stop).next()
    );

    // What it took is in the books, to the token: two replies of six, and the one that was stopped.
    let output = 12 + stopped["usage"]["completion_tokens"].as_u64().unwrap();
    until_sql(
        &server,
        "SELECT CAST(sum(payload['output_tokens']) AS BIGINT), count(*) FROM topic.\"llm.usage\" WHERE event_type = 'llm.settled'",
        &json!([[output, 3]]),
    );
}

#[test]
fn what_it_cannot_do_is_refused_or_done_elsewhere() {
    let Some(_) = models() else { return };
    let data = tempdir().unwrap();
    let other = Upstream::start(vec![reply("from the larger one", 3, 4)]);
    let more = format!(
        "  default_model: small
  providers: {{up: {{base_url: '{}'}}}}
  models:
    small: {{deployments: [{{provider: local, model: {MODEL}}}], context_window_fallbacks: [other], fallbacks: [other]}}
    other: {{deployments: [{{provider: up}}]}}",
        other.url()
    );
    let server = small(data.path(), &more);
    let words = json!([{"role": "user", "content": "word ".repeat(600)}]);
    let format = json!({"type": "json_object"});
    let tool =
        json!({"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}});
    for (what, need) in [
        ("length", json!({"messages": words})),
        ("JSON", json!({"response_format": format})),
        ("functions", json!({"tools": [tool]})),
    ] {
        let mut body = greedy(need.clone());
        body["model"] = json!("small");
        let answer = chat(&server, &body);
        assert_eq!(answer.status, 200, "{what}: {}", answer.text);
        assert_eq!(
            answer.deployment.as_deref(),
            Some("other/up/other"),
            "{what}"
        );
        // By its own name it has no stand-in, so the reason is told.
        let answer = chat(&server, &greedy(need));
        assert_eq!(answer.status, 400, "{what}: {}", answer.text);
        if what == "length" {
            assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
        }
    }
    // Named as the default, it answers who names none.
    let unnamed = json!({"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 3});
    let answer = chat(&server, &unnamed);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.deployment, Some(format!("small/local/{MODEL}")));
}
