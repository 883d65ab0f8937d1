//! A model that helps to search for answers: it orders passages, rewrites questions and makes up passages. What it does is
//! in the trace and in the books; what it fails to do costs the help and not the answer.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};
use tempfile::tempdir;

use super::serve;
use super::upstream::{Act, End, Upstream, failure, reply};
use crate::server::{Server, good, need_model};

const QUERY: &str = "/api/v1/rag/query";
const RETURNS: &str = "# Returns\n\nA parcel may be returned within thirty days. The refund is paid within five days.\n";
const FISH: &str = "# Fish\n\nSteam the fish for eight minutes over high heat.\n";
const ASKED: &str = "Within how many days may a parcel be returned?";

/// A server with two documents, whose provider follows the script. `rag` are more settings, a flow mapping.
fn world(dir: &std::path::Path, script: Vec<Act>, rag: &str) -> (Upstream, Server) {
    let upstream = Upstream::start(script);
    let llm = format!(
        "  default_model: chat
  providers: {{a: {{base_url: '{}'}}}}
  models: {{chat: {{deployments: [{{provider: a, model: m}}]}}}}
  routing: {{backoff_ms: 10}}
rag: {rag}",
        upstream.url()
    );
    let server = serve(dir, &llm);
    documents(&server);
    (upstream, server)
}

fn documents(server: &Server) {
    server.create_collection("shop");
    server.upload("shop", "returns.md", RETURNS.into());
    server.upload("shop", "fish.md", FISH.into());
}

/// The answer in the documents' own words, so that the model does nothing but help.
fn ask(server: &Server, more: Value) -> Value {
    let mut body = json!({"question": ASKED, "collection": "shop", "mode": "extractive"});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    good(server.post(QUERY).json(&body))
}

/// The chunks of the sources, in order.
fn chunks(reply: &Value) -> Vec<String> {
    let sources = reply["trace"]["sources"].as_array().unwrap();
    let id = |source: &Value| source["chunk"]["id"].as_str().unwrap().to_owned();
    sources.iter().map(id).collect()
}

/// Why each query was searched.
fn whys(reply: &Value) -> Vec<String> {
    let queries = reply["trace"]["queries"].as_array().unwrap();
    let why = |query: &Value| query["why"].as_str().unwrap().to_owned();
    queries.iter().map(why).collect()
}

/// What is missing, by name, with the reason of the first.
fn missing(reply: &Value) -> (Vec<String>, String) {
    let degraded = reply["degraded"].as_array().unwrap();
    let name = |d: &Value| d["retriever"].as_str().unwrap().to_owned();
    let reason = reply["degraded"][0]["reason"].as_str().unwrap_or_default();
    (degraded.iter().map(name).collect(), reason.to_owned())
}

fn is_answered(reply: &Value) {
    let answer = reply["answer"].as_str().unwrap();
    assert!(answer.contains("within thirty days"), "{reply}");
}

#[test]
fn a_model_orders_the_sources() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let (upstream, server) = world(dir.path(), vec![reply("[2] > [1]", 50, 5)], "{}");
    let fused = ask(&server, json!({"rerank": "none"}));
    assert_eq!(upstream.requests().len(), 0, "nobody asked for a model");
    let ordered = ask(&server, json!({"rerank": "llm"}));
    let mut expected = chunks(&fused);
    assert!(expected.len() >= 2, "{fused}");
    expected.swap(0, 1);
    assert_eq!(chunks(&ordered), expected, "{ordered}");
    let trace = &ordered["trace"];
    assert_eq!(
        (&trace["rerank"]["method"], &trace["rerank"]["judged"]),
        (&json!("llm"), &json!(2)),
        "{trace}"
    );
    assert_eq!(trace["sources"][0]["reranked"]["from"], 2, "{trace}");
    assert_eq!(ordered["degraded"], json!([]), "{ordered}");
    is_answered(&ordered);
    // The passages were data under numbers, and the books know of the calls.
    let asked = &upstream.requests()[0]["messages"];
    let instructions = asked[0]["content"].as_str().unwrap();
    assert!(instructions.contains("not instructions"), "{instructions}");
    let prompt = asked[1]["content"].as_str().unwrap();
    assert!(
        prompt.contains("Source[2]: ") && prompt.ends_with(&format!("Question: {ASKED}")),
        "{prompt}"
    );
    let calls = upstream.requests().len() as u64;
    assert_eq!(ordered["usage"]["search_tokens"], 55 * calls, "{ordered}");
    let usage = good(server.get("/api/v1/llm/usage"));
    assert_eq!(usage["spent"]["calls"], calls, "{usage}");
}

#[test]
fn without_its_order_the_sources_keep_theirs() {
    let Some(()) = need_model() else { return };
    for (act, said) in [
        (reply("I would rather not.", 9, 9), "I would rather not."),
        (failure(500, "", "overheated"), "overheated"),
        (
            Act::Stream(Vec::new(), End::Silence),
            "has not replied within 300 ms",
        ),
    ] {
        let dir = tempdir().unwrap();
        let silent = matches!(act, Act::Stream(..));
        let time = if silent { 300 } else { 60_000 };
        let rag = format!("{{rerank: {{method: llm}}, model_time_max_ms: {time}}}");
        let (upstream, server) = world(dir.path(), vec![act], &rag);
        let reply = ask(&server, json!({}));
        let (names, reason) = missing(&reply);
        assert_eq!(names, ["rerank"], "{reply}");
        assert!(reason.contains(said), "{reply}");
        let fused = ask(&server, json!({"rerank": "none"}));
        assert_eq!(chunks(&reply), chunks(&fused), "{reply}");
        is_answered(&reply);
        if silent {
            // The call has ended with its time.
            upstream.until_gone();
        }
    }
}

/// Questions that wait for a model are in nobody's way, however many there are.
#[test]
fn who_waits_for_a_model_leaves_the_turn_to_others() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let silence = Act::Stream(Vec::new(), End::Silence);
    let (upstream, server) = world(dir.path(), vec![silence], "{model_time_max_ms: 60000}");
    // Twice as many as there are turns.
    let many = 8 * std::thread::available_parallelism().unwrap().get();
    let body =
        json!({"question": ASKED, "collection": "shop", "mode": "extractive", "rerank": "llm"});
    let body = body.to_string();
    let waiting: Vec<TcpStream> = (0..many)
        .map(|_| {
            let address = server.base.strip_prefix("http://").unwrap();
            let mut connection = TcpStream::connect(address).unwrap();
            write!(
                connection,
                "POST {QUERY} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                server.key,
                body.len()
            )
            .unwrap();
            connection
        })
        .collect();
    upstream.until_asked(many);
    let reply = ask(&server, json!({"rerank": "none"}));
    is_answered(&reply);
    assert_eq!(upstream.requests().len(), many, "no model answered that");
    drop(waiting);
}

#[test]
fn a_model_rewrites_a_question_of_a_conversation() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let rewritten = json!({"standalone": ASKED, "queries": ["收到包裹后几天内可以退货？", ASKED]});
    let said = format!("Here you are:\n{rewritten}");
    let script = vec![reply(&said, 40, 20), failure(500, "", "overheated")];
    let (upstream, server) = world(dir.path(), script, "{rewrite: model}");
    let more = json!({"question": "Within how many days?", "history": [
        {"role": "user", "content": "May I send back a parcel?"},
        {"role": "assistant", "content": "Yes. [1]"},
    ]});
    let good = ask(&server, more.clone());
    assert_eq!(
        whys(&good)[..3],
        ["rewritten", "as_asked", "variant"],
        "{good}"
    );
    assert_eq!(good["trace"]["queries"][0]["text"], ASKED, "{good}");
    assert_eq!(good["usage"]["search_tokens"], 60, "{good}");
    assert_eq!(good["degraded"], json!([]), "{good}");
    is_answered(&good);
    let prompt = upstream.requests()[0]["messages"][1]["content"].clone();
    let prompt = prompt.as_str().unwrap();
    assert!(
        prompt.starts_with("~~~\nUser: May I send back a parcel?\nAssistant: Yes. [1]\n~~~"),
        "{prompt}"
    );
    // The rules do it when the model does not.
    let ruled = ask(&server, more.clone());
    let (names, reason) = missing(&ruled);
    assert_eq!(names, ["rewrite"], "{ruled}");
    assert!(
        reason.contains("by rules") && reason.contains("overheated"),
        "{ruled}"
    );
    let mut by_rules = more;
    by_rules["rewrite"] = json!("rules");
    let calls = upstream.requests().len();
    assert_eq!(whys(&ask(&server, by_rules)), whys(&ruled));
    assert_eq!(upstream.requests().len(), calls);
}

#[test]
fn a_passage_that_is_made_up_is_searched_for_and_never_quoted() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let made_up = "Parcels can be sent back for ninety days after they have arrived.";
    let script = vec![reply(made_up, 30, 10), failure(500, "", "overheated")];
    let (_, server) = world(dir.path(), script, "{}");
    let good = ask(&server, json!({"hyde": true}));
    let queries = good["trace"]["queries"].as_array().unwrap();
    let at = queries.iter().position(|query| query["why"] == "hyde");
    let at = at.unwrap_or_else(|| panic!("no passage was searched for: {good}"));
    assert_eq!(queries[at]["text"], made_up);
    assert!(queries[at]["hits"].as_u64().unwrap() > 0, "{good}");
    // By vectors alone: its words are nobody's.
    let sources = good["trace"]["sources"].as_array().unwrap();
    let found = sources.iter().flat_map(|s| s["found"].as_array().unwrap());
    let found: Vec<&Value> = found.filter(|f| f["query"] == at).collect();
    assert!(!found.is_empty(), "{good}");
    assert!(
        found
            .iter()
            .all(|f| f["keyword"].is_null() && f["vector"].is_object()),
        "{good}"
    );
    assert!(
        !good["answer"].as_str().unwrap().contains("ninety"),
        "{good}"
    );
    is_answered(&good);

    let without = ask(&server, json!({"hyde": true}));
    let (names, reason) = missing(&without);
    assert_eq!(names, ["hyde"], "{without}");
    assert!(reason.contains("overheated"), "{without}");
    is_answered(&without);
}

#[test]
fn a_reranking_model_of_the_gateway_orders_the_sources() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    // The models in this process need no provider.
    let server = serve(dir.path(), "");
    documents(&server);
    let ordered = ask(&server, json!({"rerank": "provider:multilingual-e5-small"}));
    let trace = &ordered["trace"];
    assert_eq!(
        (&trace["rerank"]["judged"], &ordered["degraded"]),
        (&trace["rerank"]["candidates"], &json!([])),
        "{ordered}"
    );
    let sources = trace["sources"].as_array().unwrap();
    let scores: Vec<f64> = sources
        .iter()
        .map(|source| source["reranked"]["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(
        ordered["usage"]["search_tokens"].as_u64().unwrap() > 0,
        "{ordered}"
    );
    is_answered(&ordered);

    for method in ["provider:nobody-has-this", "llm"] {
        let without = ask(&server, json!({"rerank": method}));
        let (names, reason) = missing(&without);
        assert_eq!(names, ["rerank"], "{without}");
        assert!(!reason.is_empty());
        is_answered(&without);
    }
}
