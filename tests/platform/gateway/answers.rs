//! Answers from documents in a model's words: what it writes is checked, and without it the documents speak.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::upstream::{Act, End, Upstream, failure, stream, text};
use super::{send, serve};
use crate::server::{Server, good, need_model};

const QUERY: &str = "/api/v1/rag/query";
const RETURNS: &str = "# Returns\n\nA parcel may be returned within thirty days. The refund is paid within five days.\n\n\
                       # 退货\n\n收到包裹后三十天内可以退货。退款在五个工作日内到账。\n";
const ASKED: &str = "Within how many days may a parcel be returned?";

fn world(dir: &std::path::Path, script: Vec<Act>) -> (Upstream, Server) {
    world_of(dir, script, "")
}

/// `more` is told of the deployment besides.
fn world_of(dir: &std::path::Path, script: Vec<Act>, more: &str) -> (Upstream, Server) {
    let upstream = Upstream::start(script);
    let llm = format!(
        "  default_model: chat
  providers: {{a: {{base_url: '{}'}}}}
  models: {{chat: {{deployments: [{{provider: a, model: m{more}}}]}}}}
  routing: {{backoff_ms: 10}}",
        upstream.url()
    );
    let server = serve(dir, &llm);
    server.create_collection("shop");
    server.upload("shop", "returns.md", RETURNS.into());
    (upstream, server)
}

fn ask(server: &Server, more: Value) -> Value {
    let mut body = json!({"question": ASKED, "collection": "shop"});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    good(server.post(QUERY).json(&body))
}

#[test]
fn a_model_writes_and_what_it_makes_up_is_marked() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    // Markers come torn apart, one names a source that is not there, and one sentence is made up.
    let words = [
        "A parcel may be returned within thir",
        "ty days [",
        "1]. Shipping is always free of charge [1]. ",
        "The moon pays [7].",
    ];
    let (upstream, server) = world(dir.path(), vec![stream(&words, 120, 30)]);
    let reply = ask(&server, json!({}));
    assert_eq!(
        (&reply["mode"], &reply["answered"]),
        (&json!("generated"), &json!(true)),
        "{reply}"
    );
    let citations = reply["citations"].as_array().unwrap();
    assert_eq!(citations.len(), 1, "{reply}");
    let quote = citations[0]["quote"].as_str().unwrap();
    assert!(quote.contains("within thirty days"), "{quote}");
    let bytes: Vec<usize> = serde_json::from_value(citations[0]["bytes"].clone()).unwrap();
    let chunk = citations[0]["chunk"]["text"].as_str().unwrap();
    assert_eq!(&chunk[bytes[0]..bytes[1]], quote);
    let unsupported: Vec<&str> = reply["unsupported"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["reason"].as_str().unwrap())
        .collect();
    assert_eq!(unsupported, ["not_in_source", "no_such_source"], "{reply}");
    assert!(
        !reply["answer"].as_str().unwrap().contains("[7]"),
        "{reply}"
    );
    assert_eq!(
        (
            &reply["usage"]["prompt_tokens"],
            &reply["usage"]["completion_tokens"]
        ),
        (&json!(120), &json!(30))
    );
    // The model was given the fenced source and the question, and nothing of it was kept from the books.
    let asked = &upstream.requests()[0];
    let prompt = asked["messages"].as_array().unwrap().last().unwrap()["content"]
        .as_str()
        .unwrap();
    assert!(
        prompt.contains("Source[1]: ") && prompt.ends_with(&format!("Question: {ASKED}")),
        "{prompt}"
    );
    let usage = good(server.get("/api/v1/llm/usage"));
    assert_eq!(usage["spent"]["calls"], 1, "{usage}");
    // Who wants the documents' own words gets them.
    let quoted = ask(&server, json!({"mode": "extractive"}));
    assert_eq!(
        (&quoted["mode"], &quoted["usage"]["total_tokens"]),
        (&json!("extractive"), &json!(0))
    );
    assert_eq!(upstream.requests().len(), 1);
}

/// What a small model is given fits into it, with room for its answer, instead of being refused.
#[test]
fn a_context_is_no_larger_than_its_model() {
    let Some(()) = need_model() else { return };
    let filler =
        "Steam the fish for eight minutes over high heat, then let it rest beside the rice. ";
    for (more, room) in [("", None), (", context_tokens: 1200", Some(1_200))] {
        let dir = tempdir().unwrap();
        let script = vec![stream(
            &["A parcel may be returned within thirty days [1]."],
            1,
            1,
        )];
        let (upstream, server) = world_of(dir.path(), script, more);
        for number in 0..6 {
            let text = format!(
                "# Parcels {number}\n\nA parcel may be returned. {}",
                filler.repeat(15)
            );
            server.upload("shop", &format!("{number}.md"), text.into_bytes());
        }
        let reply = ask(&server, json!({}));
        assert_eq!(reply["mode"], "generated", "{reply}");
        let used = reply["usage"]["context_tokens"].as_u64().unwrap();
        let answer = upstream.requests()[0]["max_tokens"].as_u64().unwrap();
        match room {
            None => assert!(used > 1_200 && answer == 1_000, "{used} and {answer}"),
            Some(room) => assert!(
                used + answer <= room && used > room / 4,
                "{used} and {answer}"
            ),
        }
    }
}

#[test]
fn a_question_that_the_documents_do_not_answer_is_not_put_to_the_model() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let (upstream, server) = world(dir.path(), vec![stream(&["I know it all."], 1, 1)]);
    let reply = ask(
        &server,
        json!({"question": "Who composed the opera Turandot?"}),
    );
    assert_eq!(
        (&reply["answered"], &reply["citations"]),
        (&json!(false), &json!([])),
        "{reply}"
    );
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn without_its_model_an_answer_quotes_and_says_so() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let (_, server) = world(dir.path(), vec![failure(500, "", "overheated")]);
    let reply = ask(&server, json!({}));
    assert_eq!(
        (&reply["mode"], &reply["answered"]),
        (&json!("extractive"), &json!(true)),
        "{reply}"
    );
    assert_eq!(reply["degraded"][0]["retriever"], "model", "{reply}");
    assert!(
        reply["answer"]
            .as_str()
            .unwrap()
            .contains("within thirty days"),
        "{reply}"
    );
}

#[test]
fn a_model_that_repeats_itself_is_ended() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let words = ["A parcel may be returned within thirty days [1]. "; 50];
    let (_, server) = world(dir.path(), vec![stream(&words, 120, 30)]);
    let reply = ask(&server, json!({}));
    let answer = reply["answer"].as_str().unwrap();
    assert_eq!(answer.matches("thirty days").count(), 3, "{reply}");
    assert_eq!(reply["mode"], "generated", "{reply}");
    let reason = reply["degraded"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("repeated itself"), "{reason}");
}

#[test]
fn a_model_that_breaks_off_ends_the_stream_with_the_reason() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let begun = vec![text("A parcel may be returned within ")];
    let (_, server) = world(dir.path(), vec![Act::Stream(begun, End::Cut)]);
    let body = json!({"question": ASKED, "collection": "shop", "stream": true});
    let reply = send(server.post(QUERY).json(&body));
    let names: Vec<&str> = reply
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(
        names,
        ["message.start", "retrieval", "delta", "error"],
        "{}",
        reply.text
    );
    assert!(
        reply.text.trim_end().ends_with("data: [DONE]"),
        "{}",
        reply.text
    );
}

#[test]
fn a_model_that_is_asked_for_and_not_there_is_named() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let server = serve(dir.path(), "");
    server.create_collection("shop");
    let body = json!({"question": ASKED, "collection": "shop", "mode": "generated"});
    let reply = send(server.post(QUERY).json(&body));
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (503, &json!("no_provider")),
        "{}",
        reply.text
    );
}
