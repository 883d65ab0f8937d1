//! Traces of the process, to a collector or Jaeger: which spans, where they go, and that they cost nobody anything.
//!
//! ```text
//! span ends ─► queue (bounded, never waits) ─► one task: batches ─► otlp: POST, a few tries
//!                  └─ full: counted                                    └─ failed: counted
//! ```
//! The SDK decides what is sampled; its own processors and exporters are not used, because they do not tell what they
//! drop and bring an HTTP client of their own. Without an endpoint nothing of this exists, and spans with the target
//! [`TARGET`] are turned off where they are made.

mod otlp;

use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample, Span,
    SpanData, SpanProcessor,
};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Level, Metadata};
use va_catalog::settings::TelemetrySettings;
use va_connectors::trace::TARGET;

use otlp::Exporter;

/// Name of the span of an HTTP request, which is one of the log, too.
pub const REQUEST: &str = "request";

/// Spans that may wait; more of them are dropped.
const QUEUE: usize = 4_096;
/// Spans that are sent together.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for what is still to be sent.
const CLOSE_WAIT: Duration = Duration::from_secs(3);
/// Where a collector takes traces.
const PATH: &str = "/v1/traces";

/// The traces of a process, until they are closed.
pub struct Traces {
    provider: SdkTracerProvider,
    task: JoinHandle<()>,
    closing: CancellationToken,
}

impl Traces {
    /// Begins to send spans to where the settings or the environment say; `None` when neither does. Must be called in a
    /// runtime. Connects to nobody yet.
    ///
    /// # Errors
    /// When the endpoint is no URL, or the headers for it are none.
    pub fn start(settings: &TelemetrySettings) -> Result<Option<Self>, String> {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(endpoint) = endpoint(settings, variable)? else {
            return Ok(None);
        };
        let name = variable("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| "va".to_owned());
        let exporter = Exporter::new(endpoint, headers(variable)?, &name)?;
        let (spans_tx, spans) = mpsc::channel(QUEUE);
        let closing = CancellationToken::new();
        let task = tokio::spawn(send_on(spans, exporter, closing.clone()));
        let root = Root(Sampler::TraceIdRatioBased(settings.sample_ratio.get()));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            // Who sends is told by the exporter.
            .with_resource(Resource::builder_empty().build())
            .with_span_processor(Queue { spans: spans_tx })
            .build();
        // For what makes its spans when the work is done already: pipelines.
        opentelemetry::global::set_tracer_provider(provider.clone());
        Ok(Some(Self {
            provider,
            task,
            closing,
        }))
    }

    /// What makes the spans.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("va")
    }

    /// Sends what has ended, within [`CLOSE_WAIT`].
    pub async fn close(mut self) {
        self.closing.cancel();
        if tokio::time::timeout(CLOSE_WAIT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
            tracing::warn!("the last traces were not taken in time and are lost");
        }
    }
}

/// Whether a span is one of the traces; log events are none of theirs.
pub fn is_traced(metadata: &Metadata<'_>) -> bool {
    let is_request = || metadata.name() == REQUEST && metadata.target().starts_with("va_serving");
    metadata.is_span()
        && *metadata.level() <= Level::INFO
        && (metadata.target() == TARGET || is_request())
}

/// Where traces go.
fn endpoint(
    settings: &TelemetrySettings,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Url>, String> {
    const OF_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const OF_ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let given = |value: Option<String>| value.filter(|value| !value.trim().is_empty());
    let (name, value) = if let Some(value) = given(settings.otlp_endpoint.clone()) {
        ("telemetry.otlp_endpoint", value)
    } else if let Some(value) = given(variable(OF_TRACES)) {
        (OF_TRACES, value)
    } else if let Some(value) = given(variable(OF_ALL)) {
        (OF_ALL, value)
    } else {
        return Ok(None);
    };
    // Without the value, which may hold a password.
    let wrong = |why: &str| format!("`{name}`: {why}; use a URL like http://jaeger:4318");
    let mut url = Url::parse(value.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(wrong("it does not begin with http:// or https://"));
    }
    // The variable for traces alone is taken as it is, which is what its specification says.
    let path = url.path().trim_end_matches('/').to_owned();
    if name != OF_TRACES && !path.ends_with(PATH) {
        url.set_path(&format!("{path}{PATH}"));
    }
    Ok(Some(url))
}

/// What is sent along with traces, such as a collector's key: `NAME=VALUE,NAME=VALUE`, percent-encoded where a value holds
/// what would be read otherwise.
fn headers(variable: impl Fn(&str) -> Option<String>) -> Result<HeaderMap, String> {
    const OF_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
    const OF_ALL: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let mut headers = HeaderMap::new();
    // Those for traces alone are more, and count where both have a name.
    for name in [OF_ALL, OF_TRACES] {
        let value = variable(name).unwrap_or_default();
        let entries = value.split(',').map(str::trim);
        for (at, entry) in entries.enumerate().filter(|(_, entry)| !entry.is_empty()) {
            // Without the entry, which may hold a key.
            let wrong = |why: &str| {
                let at = at + 1;
                format!("`{name}`, entry {at}: {why}; use NAME=VALUE,NAME=VALUE")
            };
            let (header, value) = entry
                .split_once('=')
                .ok_or_else(|| wrong("it has no `=`"))?;
            let header = HeaderName::try_from(header.trim())
                .map_err(|_| wrong("what is before the `=` is not the name of a header"))?;
            let value: Vec<u8> = percent_encoding::percent_decode_str(value.trim()).collect();
            let mut value = HeaderValue::from_bytes(&value)
                .map_err(|_| wrong("the value holds a character that no header may have"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
    }
    Ok(headers)
}

/// Decides about spans that are the first of their trace: those that link to others, which are the work of a pipeline, are
/// kept with one of these; of the rest a share.
#[derive(Debug, Clone)]
struct Root(Sampler);

impl ShouldSample for Root {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self
            .0
            .should_sample(parent, trace, name, kind, attributes, links);
        if !links.is_empty() {
            let is_kept = links.iter().any(|link| link.span_context.is_sampled());
            result.decision = match is_kept {
                true => SamplingDecision::RecordAndSample,
                false => SamplingDecision::Drop,
            };
        }
        result
    }
}

/// Takes spans that have ended.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            otlp::dropped("queue_full", 1);
        }
    }

    /// Nothing is held back here; [`Traces::close`] waits for what is under way.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends spans until the process ends.
async fn send_on(
    mut spans: mpsc::Receiver<SpanData>,
    mut exporter: Exporter,
    closing: CancellationToken,
) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            count = spans.recv_many(&mut batch, BATCH) => if count == 0 {
                return;
            },
            () = closing.cancelled() => break,
        }
        let delay = tokio::time::sleep(DELAY);
        tokio::pin!(delay);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                count = spans.recv_many(&mut batch, room) => if count == 0 {
                    break;
                },
                () = &mut delay => break,
                () = closing.cancelled() => break,
            }
        }
        exporter.send(&batch, &closing).await;
    }
    // From here on whoever ends a span is told that the queue is gone.
    spans.close();
    loop {
        let mut batch = Vec::new();
        if spans.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        exporter.send(&batch, &closing).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_that_of_the_settings_or_else_of_the_environment() {
        let check = |setting: Option<&str>, env: &[(&str, &str)], expected: Option<&str>| {
            let settings = TelemetrySettings {
                otlp_endpoint: setting.map(ToOwned::to_owned),
                ..TelemetrySettings::default()
            };
            let variable = |name: &str| {
                let found = env.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let found = endpoint(&settings, variable).unwrap();
            assert_eq!(found.as_ref().map(Url::as_str), expected);
        };
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces/in");
        check(None, &[], None);
        check(Some(" "), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], None);
        check(None, &[all], Some("http://all:4318/v1/traces"));
        check(None, &[all, traces], Some("http://traces/in"));
        check(
            Some("https://own/base/"),
            &[all, traces],
            Some("https://own/base/v1/traces"),
        );
        check(
            Some("http://own/v1/traces"),
            &[],
            Some("http://own/v1/traces"),
        );
    }

    #[test]
    fn the_work_of_a_pipeline_is_kept_with_a_trace_that_it_links_to() {
        let check = |share: f64, flags: &[&str], expected: SamplingDecision| {
            let links: Vec<Link> = flags
                .iter()
                .map(|flag| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flag}"))
                .map(|parent| Link::with_context(va_connectors::trace::read(&parent).unwrap()))
                .collect();
            let trace = TraceId::from(7_u128);
            let root = Root(Sampler::TraceIdRatioBased(share));
            let result = root.should_sample(None, trace, "work", &SpanKind::Consumer, &[], &links);
            assert_eq!(result.decision, expected, "{share} {flags:?}");
        };
        check(0.0, &["00", "01"], SamplingDecision::RecordAndSample);
        check(1.0, &["00", "00"], SamplingDecision::Drop);
        check(1.0, &[], SamplingDecision::RecordAndSample);
        check(0.0, &[], SamplingDecision::Drop);
    }

    #[test]
    fn headers_are_those_of_the_environment() {
        let read = |all: &str, traces: &str| {
            headers(|name| match name {
                "OTEL_EXPORTER_OTLP_HEADERS" => Some(all.to_owned()),
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS" => Some(traces.to_owned()),
                _ => None,
            })
        };
        let found = read(" api-key = a%3Db%2C , x-team=all,", "X-Team=语音").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found["api-key"], "a=b,");
        assert_eq!(found["x-team"].as_bytes(), "语音".as_bytes());
        assert!(!format!("{found:?}").contains("a=b"));
        assert!(read("", "").unwrap().is_empty());
        for wrong in ["s3cret", "a b=s3cret", "key=s3cret%0A"] {
            let error = read("ok=1", wrong).unwrap_err();
            assert!(error.contains("_TRACES_HEADERS`, entry 1"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused_without_being_told() {
        for value in ["jaeger:4318", "grpc://ann:s3cret@jaeger", "//s3cret"] {
            let settings = TelemetrySettings {
                otlp_endpoint: Some(value.to_owned()),
                ..TelemetrySettings::default()
            };
            let error = endpoint(&settings, |_| None).unwrap_err();
            assert!(error.contains("telemetry.otlp_endpoint"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
