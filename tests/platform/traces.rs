//! Traces, as a collector gets them: of a question with its steps and its model, of an upload and the pipeline behind it,
//! and that nobody notices when the collector is gone.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::gateway::upstream::{Act, Upstream, stream};
use crate::server::{PATIENCE, Server, good, need_model, va};

const QUERY: &str = "/api/v1/rag/query";
const RETURNS: &str = "# Returns\n\nA parcel may be returned within thirty days. The refund is paid within five days.\n";
const ASKED: &str = "Within how many days may a parcel be returned?";

/// A server that sends its traces there.
fn traced(data: &Path, endpoint: &str, config: &str) -> Server {
    let file = data.join("va.yaml");
    std::fs::write(&file, config).unwrap();
    let mut command = va(data);
    command
        .env("VA_CONFIG", &file)
        .env("VA_TELEMETRY__OTLP_ENDPOINT", endpoint);
    for variable in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"] {
        command.env_remove(variable);
    }
    Server::start_as(&mut command, data)
}

/// A caller's trace and its span in it.
struct Caller {
    trace: &'static str,
    span: &'static str,
}

impl Caller {
    fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.span)
    }
}

/// One span as it was sent.
#[derive(Debug, Clone)]
struct Sent(Value);

impl Sent {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text("name")
    }

    fn attributes(&self) -> BTreeMap<&str, &Value> {
        let attributes = self.0["attributes"].as_array().unwrap().iter();
        attributes
            .map(|one| (one["key"].as_str().unwrap(), &one["value"]))
            .collect()
    }

    /// An attribute that must be there.
    fn attribute(&self, key: &str) -> &Value {
        let attributes = self.attributes();
        attributes
            .get(key)
            .unwrap_or_else(|| panic!("no `{key}` in {attributes:?}"))
    }

    fn links_to(&self, trace: &str) -> bool {
        let links = self.0["links"].as_array().unwrap();
        links.iter().any(|link| link["traceId"] == trace)
    }
}

/// A collector.
struct Collector(Upstream);

impl Collector {
    fn start() -> Self {
        Self(Upstream::start(vec![Act::Reply(200, "", "{}".to_owned())]))
    }

    fn url(&self) -> String {
        self.0.url().trim_end_matches("/v1").to_owned()
    }

    /// What was sent so far.
    fn spans(&self) -> Vec<Sent> {
        let mut spans = Vec::new();
        for body in self.0.requests() {
            let resource = &body["resourceSpans"][0];
            let attributes = &resource["resource"]["attributes"];
            assert_eq!(
                attributes[0],
                json!({"key": "service.name", "value": {"stringValue": "va"}})
            );
            let sent = resource["scopeSpans"][0]["spans"].as_array().unwrap();
            spans.extend(sent.iter().cloned().map(Sent));
        }
        spans
    }

    /// Waits until these spans are there.
    fn until(&self, mut done: impl FnMut(&[Sent]) -> bool) -> Vec<Sent> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if done(&spans) {
                return spans;
            }
            let names: Vec<&str> = spans.iter().map(Sent::name).collect();
            assert!(Instant::now() < deadline, "still {names:?}");
            // Batches are sent about every second.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

fn named<'a>(spans: &'a [Sent], trace: &str, name: &str) -> Option<&'a Sent> {
    spans
        .iter()
        .find(|span| span.text("traceId") == trace && span.name() == name)
}

#[test]
fn a_question_is_one_trace_from_its_caller_to_the_model() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let collector = Collector::start();
    let provider = Upstream::start(vec![stream(
        &["A parcel may be returned within thirty days [1]."],
        120,
        30,
    )]);
    let config = format!(
        "llm:
  default_model: chat
  providers: {{a: {{base_url: '{}', api_key: sk-hidden}}}}
  models: {{chat: {{deployments: [{{provider: a, model: m}}]}}}}\n",
        provider.url()
    );
    let server = traced(dir.path(), &collector.url(), &config);
    server.create_collection("shop");
    server.upload("shop", "returns.md", RETURNS.into());

    let caller = Caller {
        trace: "0af7651916cd43dd8448eb211c80319c",
        span: "b7ad6b7169203331",
    };
    let response = server
        .post(QUERY)
        .header("traceparent", &caller.traceparent())
        .json(&json!({"question": ASKED, "collection": "shop"}))
        .send()
        .unwrap();
    let told = response.header("traceparent");
    let reply: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
    assert_eq!(reply["mode"], "generated", "{reply}");

    let request = "POST /api/v1/rag/query";
    let spans = collector.until(|spans| named(spans, caller.trace, request).is_some());
    let root = named(&spans, caller.trace, request).unwrap();
    assert_eq!(root.text("parentSpanId"), caller.span);
    assert_eq!(root.0["kind"], 2);
    assert_eq!(
        told,
        format!("00-{}-{}-01", caller.trace, root.text("spanId"))
    );
    for (key, value) in [
        ("http.request.method", json!({"stringValue": "POST"})),
        ("http.route", json!({"stringValue": QUERY})),
        ("http.response.status_code", json!({"intValue": "200"})),
    ] {
        assert_eq!(*root.attribute(key), value, "{key}");
    }

    // Whose child each span is.
    for (name, parent) in [
        ("rag.rewrite", request),
        ("rag.retrieve", request),
        ("retrieval.vector", "rag.retrieve"),
        ("retrieval.keyword", "rag.retrieve"),
        ("rag.rerank", request),
        ("rag.grade", request),
        ("rag.write", request),
        ("chat m", "rag.write"),
    ] {
        let span = named(&spans, caller.trace, name).unwrap_or_else(|| panic!("no `{name}`"));
        let parents: Vec<&str> = spans
            .iter()
            .filter(|parent| parent.text("spanId") == span.text("parentSpanId"))
            .map(Sent::name)
            .collect();
        assert_eq!(parents, [parent], "of {name}");
    }
    let call = named(&spans, caller.trace, "chat m").unwrap();
    for (key, value) in [
        ("gen_ai.system", json!({"stringValue": "a"})),
        ("gen_ai.request.model", json!({"stringValue": "m"})),
        ("gen_ai.usage.input_tokens", json!({"intValue": "120"})),
        ("gen_ai.usage.output_tokens", json!({"intValue": "30"})),
    ] {
        assert_eq!(*call.attribute(key), value, "{key}");
    }
    assert_eq!(call.0["kind"], 3);
    // The provider can go on from there.
    let parent = format!(
        "traceparent: 00-{}-{}-01",
        caller.trace,
        call.text("spanId")
    );
    let heads = provider.heads();
    assert!(heads.iter().all(|head| head.contains(&parent)), "{heads:?}");

    let all = format!("{spans:?}");
    for private in [
        "parcel",
        "returned",
        "returns.md",
        "sk-hidden",
        server.key.as_str(),
    ] {
        assert!(!all.contains(private), "`{private}` is in a trace");
    }
}

#[test]
fn what_indexes_an_upload_links_to_its_trace() {
    let Some(()) = need_model() else { return };
    let dir = tempdir().unwrap();
    let collector = Collector::start();
    let server = traced(dir.path(), &collector.url(), "");
    server.create_collection("shop");
    let caller = Caller {
        trace: "1af7651916cd43dd8448eb211c80319c",
        span: "c7ad6b7169203331",
    };
    good(
        server
            .post("/api/v1/collections/shop/documents?name=returns.md&wait=ready")
            .header("content-type", "application/octet-stream")
            .header("traceparent", &caller.traceparent())
            .body(RETURNS),
    );

    let indexed = |span: &Sent| span.name() == "process index" && span.links_to(caller.trace);
    let spans = collector.until(|spans| spans.iter().any(indexed));
    // The event was sent in the trace of the request.
    let sent = named(&spans, caller.trace, "send document.uploaded").unwrap();
    assert_eq!(sent.0["kind"], 4);
    let pipeline = spans.iter().find(|span| indexed(span)).unwrap();
    assert_ne!(pipeline.text("traceId"), caller.trace);
    let link = &pipeline.0["links"][0];
    assert_eq!(link["spanId"], sent.text("spanId"));
    assert_eq!(
        *pipeline.attribute("messaging.batch.message_count"),
        json!({"intValue": "1"})
    );
    let nodes: Vec<&str> = spans
        .iter()
        .filter(|span| span.text("parentSpanId") == pipeline.text("spanId"))
        .map(Sent::name)
        .collect();
    for node in [
        "uploads",
        "parse",
        "chunk",
        "embed",
        "vectors",
        "texts",
        "checkpoint",
    ] {
        assert!(nodes.contains(&node), "no `{node}` in {nodes:?}");
    }

    // Supervisors that ask all the time leave no traces.
    let probes = spans.iter().filter(|span| span.name().contains("/readyz"));
    assert_eq!(probes.count(), 0);
}

#[test]
fn a_collector_that_is_gone_is_nobodys_trouble() {
    let dir = tempdir().unwrap();
    // A port that was free a moment ago, where nobody listens.
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let server = traced(dir.path(), &format!("http://127.0.0.1:{port}"), "");
    server.create_collection("shop");
    let deadline = Instant::now() + PATIENCE;
    loop {
        good(server.get("/api/v1/collections/shop"));
        let metrics = server.get("/metrics").send().unwrap().text().unwrap();
        let dropped = metrics
            .lines()
            .filter(|line| line.starts_with("va_trace_spans_dropped_total{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>();
        if dropped > 0.0 {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is counted: {metrics}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
