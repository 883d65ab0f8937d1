//! Sending spans: OTLP as JSON over HTTP, which every collector and Jaeger take at port 4318.
//!
//! A batch is tried a few times and then given up, counted: traces are for looking at, nobody may wait for them. That a
//! receiver is gone is logged once, and once that it is back.
//!
//! See <https://opentelemetry.io/docs/specs/otlp/>.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanId, SpanKind, Status};
use opentelemetry::{Array, KeyValue, Value as Attribute};
use opentelemetry_sdk::trace::SpanData;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use va_connectors::http::reasons;

/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before a batch is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// Counts spans that nobody will see.
pub fn dropped(reason: &'static str, spans: u64) {
    metrics::counter!("va_trace_spans_dropped_total", "reason" => reason).increment(spans);
}

/// Sends spans to one receiver.
pub struct Exporter {
    client: Client,
    endpoint: Url,
    /// Who sends.
    resource: Value,
    /// The last batch was not taken.
    failing: bool,
}

/// Why a batch was not taken.
struct Refused {
    why: String,
    /// Whether the same batch may be taken a little later.
    again: bool,
}

impl Exporter {
    /// Connects to nobody yet.
    pub fn new(endpoint: Url, headers: HeaderMap, service: &str) -> Result<Self, String> {
        let client = va_connectors::http::client(&endpoint)
            .timeout(TIMEOUT)
            .default_headers(headers)
            .build()
            .map_err(|error| format!("make an HTTP client for traces: {error}"))?;
        let resource = [
            KeyValue::new("service.name", service.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ];
        Ok(Self {
            client,
            endpoint,
            resource: json!({"attributes": attributes(&resource)}),
            failing: false,
        })
    }

    /// Sends spans, or counts them as dropped. When the process is `closing`, there is no second try.
    pub async fn send(&mut self, spans: &[SpanData], closing: &CancellationToken) {
        let body = self.body(spans).to_string();
        let mut pauses = PAUSES.iter();
        let refused = loop {
            let refused = match self.post(body.clone()).await {
                Ok(rejected) => {
                    self.taken(spans.len() as u64, rejected);
                    return;
                }
                Err(refused) => refused,
            };
            let Some(pause) = pauses.next().filter(|_| refused.again) else {
                break refused;
            };
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                () = closing.cancelled() => break refused,
            }
        };
        dropped("export_failed", spans.len() as u64);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                reason = refused.why,
                "traces are not taken; they are dropped until they are"
            );
        }
    }

    fn taken(&mut self, spans: u64, rejected: u64) {
        if rejected > 0 {
            dropped("rejected", rejected);
        }
        metrics::counter!("va_trace_spans_exported_total")
            .increment(spans.saturating_sub(rejected));
        if std::mem::take(&mut self.failing) {
            tracing::info!("traces are taken again");
        }
    }

    /// How many of the spans were rejected.
    async fn post(&self, body: String) -> Result<u64, Refused> {
        let request = self
            .client
            .post(self.endpoint.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| Refused {
            why: reasons(&error),
            again: true,
        })?;
        let status = response.status().as_u16();
        if !response.status().is_success() {
            return Err(Refused {
                why: format!("the receiver answered {status}"),
                again: [429, 502, 503, 504].contains(&status),
            });
        }
        // A reply that cannot be read is no failure of the batch, which was taken.
        let reply: Value = response.json().await.unwrap_or_default();
        let rejected = &reply["partialSuccess"]["rejectedSpans"];
        let text = rejected.as_str().and_then(|number| number.parse().ok());
        Ok(rejected.as_u64().or(text).unwrap_or_default())
    }

    fn body(&self, spans: &[SpanData]) -> Value {
        let spans: Vec<Value> = spans.iter().map(span).collect();
        let scope = json!({"name": "va", "version": env!("CARGO_PKG_VERSION")});
        json!({"resourceSpans": [{
            "resource": self.resource,
            "scopeSpans": [{"scope": scope, "spans": spans}],
        }]})
    }
}

fn span(span: &SpanData) -> Value {
    let (code, message) = match &span.status {
        Status::Unset => (0, ""),
        Status::Ok => (1, ""),
        Status::Error { description } => (2, description.as_ref()),
    };
    let mut told = json!({
        "traceId": span.span_context.trace_id().to_string(),
        "spanId": span.span_context.span_id().to_string(),
        "flags": span.span_context.trace_flags().to_u8(),
        "name": span.name,
        "kind": kind(&span.span_kind),
        "startTimeUnixNano": nanos(span.start_time),
        "endTimeUnixNano": nanos(span.end_time),
        "attributes": attributes(&span.attributes),
        "droppedAttributesCount": span.dropped_attributes_count,
        "events": span.events.iter().map(event).collect::<Vec<_>>(),
        "droppedEventsCount": span.events.dropped_count,
        "links": span.links.iter().map(link).collect::<Vec<_>>(),
        "droppedLinksCount": span.links.dropped_count,
        "status": {"code": code, "message": message},
    });
    if span.parent_span_id != SpanId::INVALID {
        told["parentSpanId"] = span.parent_span_id.to_string().into();
    }
    told
}

fn kind(kind: &SpanKind) -> u8 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn event(event: &Event) -> Value {
    json!({
        "timeUnixNano": nanos(event.timestamp),
        "name": event.name,
        "attributes": attributes(&event.attributes),
        "droppedAttributesCount": event.dropped_attributes_count,
    })
}

fn link(link: &Link) -> Value {
    json!({
        "traceId": link.span_context.trace_id().to_string(),
        "spanId": link.span_context.span_id().to_string(),
        "flags": link.span_context.trace_flags().to_u8(),
        "attributes": attributes(&link.attributes),
    })
}

fn attributes(attributes: &[KeyValue]) -> Vec<Value> {
    let told = |attribute: &KeyValue| json!({"key": attribute.key.as_str(), "value": any(&attribute.value)});
    attributes.iter().map(told).collect()
}

/// A value; 64-bit numbers are texts in JSON, as Protobuf has it.
fn any(value: &Attribute) -> Value {
    match value {
        Attribute::Bool(yes) => json!({"boolValue": yes}),
        Attribute::I64(number) => json!({"intValue": number.to_string()}),
        Attribute::F64(number) => json!({"doubleValue": number}),
        Attribute::String(text) => json!({"stringValue": text.as_str()}),
        Attribute::Array(Array::Bool(all)) => array(all.iter().copied()),
        Attribute::Array(Array::I64(all)) => array(all.iter().copied()),
        Attribute::Array(Array::F64(all)) => array(all.iter().copied()),
        Attribute::Array(Array::String(all)) => array(all.iter().cloned()),
        // What later versions of the library may add has a text, too.
        other => json!({"stringValue": other.to_string()}),
    }
}

fn array<T: Into<Attribute>>(values: impl Iterator<Item = T>) -> Value {
    let values: Vec<Value> = values.map(|value| any(&value.into())).collect();
    json!({"arrayValue": {"values": values}})
}

fn nanos(time: SystemTime) -> String {
    // A clock before 1970 is no reason to lose the span.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}
