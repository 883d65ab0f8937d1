//! Logs and metrics of the process: JSON lines (or text) on stderr, a Prometheus registry. Spans go to [`Traces`], too.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, dynamic_filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};
use va_catalog::settings::{LogFormat, TelemetrySettings};

use crate::traces::{Traces, is_traced};

/// Sets up logging for the process, and has spans told to `traces`. `RUST_LOG` refines the configured level of the log.
pub fn init_logs(settings: &TelemetrySettings, traces: Option<&Traces>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        // Our own crates at the configured level, libraries only when something is wrong.
        let level = settings.level.as_str();
        let ours = [
            "va_catalog",
            "va_connectors",
            "va_endpoints",
            "va_fulltext",
            "va_models",
            "va_operators",
            "va_parse",
            "va_parse_worker",
            "va_pipelines",
            "va_serving",
            "va_sql",
            "va_vector",
        ];
        let ours: Vec<String> = ours.iter().map(|name| format!("{name}={level}")).collect();
        EnvFilter::new(format!("warn,{}", ours.join(",")))
    });
    type Part = Box<dyn Layer<Registry> + Send + Sync>;
    let lines = tracing_subscriber::fmt::layer::<Registry>().with_writer(std::io::stderr);
    let lines: Part = match settings.log_format {
        LogFormat::Json => Box::new(lines.event_format(JsonLines)),
        LogFormat::Text => Box::new(lines),
    };
    // Each looks at its own spans only, so that one which nobody wants costs no more than being asked for. Dynamic, so that
    // every filter is asked for each span: otherwise its verdict is what a thread was last asked about, and a library that
    // asks whether it may log, and then does not, leaves the wrong one behind.
    let has_id = dynamic_filter_fn(|metadata, _| {
        let is_named = metadata.fields().field(TRACE_ID).is_some();
        metadata.is_span() && *metadata.level() <= Level::INFO && is_named
    });
    let mut parts: Vec<Part> = vec![
        Box::new(lines.with_filter(filter)),
        Box::new(Layer::<Registry>::with_filter(
            TraceIds,
            has_id.with_max_level_hint(LevelFilter::INFO),
        )),
    ];
    if let Some(traces) = traces {
        let spans = tracing_opentelemetry::layer::<Registry>()
            .with_tracer(traces.tracer())
            .with_context_activation(false)
            .with_tracked_inactivity(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false);
        let wanted = dynamic_filter_fn(|metadata, _| is_traced(metadata))
            .with_max_level_hint(LevelFilter::INFO);
        parts.push(Box::new(spans.with_filter(wanted)));
    }
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(parts).try_init();
}

/// One JSON object a line: `timestamp, level, service, trace_id, message`, the target and the event's fields.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut spans = context.event_scope().into_iter().flatten();
        let trace_id = spans.find_map(|span| {
            let extensions = span.extensions();
            extensions.get::<TraceId>().map(|id| id.0.clone())
        });
        let metadata = event.metadata();
        let mut line = serde_json::Map::new();
        line.insert(
            "timestamp".into(),
            chrono::Utc::now()
                .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
                .into(),
        );
        line.insert(
            "level".into(),
            metadata.level().as_str().to_ascii_lowercase().into(),
        );
        line.insert("service".into(), "va".into());
        line.insert(
            "trace_id".into(),
            trace_id.map_or(serde_json::Value::Null, Into::into),
        );
        line.insert("message".into(), fields.message.into());
        line.insert("target".into(), metadata.target().into());
        for (name, value) in fields.rest {
            line.entry(name).or_insert(value);
        }
        writeln!(writer, "{}", serde_json::Value::Object(line))
    }
}

/// The field of a span that names its trace.
pub const TRACE_ID: &str = "trace_id";

/// The trace that a span belongs to, by its field [`TRACE_ID`].
struct TraceId(String);

/// Keeps the trace of spans for the log lines within them.
struct TraceIds;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TraceIds {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        keep(fields, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        keep(fields, id, &context);
    }
}

fn keep<S: Subscriber + for<'a> LookupSpan<'a>>(fields: Fields, id: &Id, context: &Context<'_, S>) {
    let mut fields = fields.rest.into_iter();
    let found = fields.find_map(|(name, value)| match value {
        serde_json::Value::String(trace) if name == TRACE_ID => Some(trace),
        _ => None,
    });
    if let (Some(trace), Some(span)) = (found, context.span(id)) {
        span.extensions_mut().replace(TraceId(trace));
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(String, serde_json::Value)>,
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.push((field.name().to_owned(), text.into()));
        }
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.rest.push((field.name().to_owned(), value.into()));
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.rest.push((field.name().to_owned(), value.into()));
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.rest.push((field.name().to_owned(), value.into()));
    }

    fn record_f64(&mut self, field: &tracing::field::Field, value: f64) {
        self.rest.push((field.name().to_owned(), value.into()));
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.rest.push((field.name().to_owned(), value.into()));
    }
}

/// Installs the process's metrics registry; `None` when there is one already (tests).
pub fn init_metrics() -> Option<PrometheusHandle> {
    let seconds = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ];
    // A document waits for those before it: from parts of a second, alone, to the hours of a first import.
    let freshness = [
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0,
    ];
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)
        .ok()?
        .set_buckets_for_metric(
            Matcher::Full("va_document_freshness_seconds".into()),
            &freshness,
        )
        .ok()?;
    let handle = builder.install_recorder().ok()?;
    metrics::describe_counter!(
        "va_pipeline_rows_total",
        "Rows through a node of a pipeline, by outcome."
    );
    metrics::describe_counter!(
        "va_pipeline_conservation_violations_total",
        "Checkpoints at which rows were unaccounted for; must stay 0."
    );
    metrics::describe_counter!(
        "va_pipeline_failures_total",
        "Failures of a pipeline's task."
    );
    metrics::describe_counter!(
        "va_pipeline_busy_microseconds_total",
        "Time that a node spent working."
    );
    metrics::describe_gauge!(
        "va_pipeline_lag_rows",
        "Rows that the sources have not consumed yet."
    );
    metrics::describe_gauge!(
        "va_pipeline_queue_fill",
        "How full the queue between two nodes is, 0 to 1."
    );
    metrics::describe_histogram!("va_pipeline_checkpoint_seconds", "From barrier to commit.");
    metrics::describe_histogram!(
        "va_log_commit_phase_seconds",
        "Parts of a commit on Kafka: handing over, flushing, offsets, end of the transaction."
    );
    metrics::describe_histogram!(
        "va_search_seconds",
        "Hybrid search, until both lists are fused."
    );
    metrics::describe_counter!(
        "va_search_degraded_total",
        "Searches that one retriever did not answer."
    );
    metrics::describe_counter!(
        "va_http_requests_total",
        "HTTP requests by route, method and status."
    );
    metrics::describe_counter!(
        "va_trace_spans_exported_total",
        "Spans that the receiver of traces has taken."
    );
    metrics::describe_counter!(
        "va_trace_spans_dropped_total",
        "Spans that nobody will see, by reason; requests never wait for them."
    );
    metrics::describe_histogram!(
        "va_http_request_seconds",
        "HTTP requests by route and method."
    );
    metrics::describe_counter!(
        "va_documents_taken_total",
        "Documents handed in, by outcome."
    );
    metrics::describe_histogram!("va_parse_seconds", "Parsing of one document, by outcome.");
    metrics::describe_counter!(
        "va_parse_worker_restarts_total",
        "Parser processes that were lost, by cause."
    );
    metrics::describe_histogram!(
        "va_document_freshness_seconds",
        "From when a version of a document was taken to when it was searchable."
    );
    metrics::describe_gauge!(
        "va_document_oldest_pending_seconds",
        "Age of the oldest version that waits to become searchable; 0 when none does."
    );
    metrics::describe_counter!(
        "va_dead_letters_retried_total",
        "Dead letters whose source row was sent through the pipeline again."
    );
    metrics::describe_counter!(
        "va_objects_removed_total",
        "Stored objects that no document version needed any more."
    );
    metrics::describe_counter!(
        "va_embed_cache_total",
        "Chunks whose vector was known (hit) or computed (miss)."
    );
    metrics::describe_gauge!("va_cache_available", "Whether the cache answers, 0 or 1.");
    metrics::describe_counter!("va_cache_outages_total", "Times that the cache was lost.");
    metrics::describe_counter!(
        "va_cache_evicted_total",
        "Entries that left the cache in memory before their end, because it was full."
    );
    metrics::describe_counter!(
        "va_idempotent_requests_total",
        "Requests with an `Idempotency-Key`, by what became of them."
    );
    metrics::describe_counter!(
        "va_rate_limited_total",
        "Requests refused because the tenant had made too many in the minute."
    );
    Some(handle)
}
