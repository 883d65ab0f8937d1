//! The HTTP API: what every request goes through (request id, metrics, credential, limits, repetition, problem replies).
//! The table of routes is `routes.rs`.

mod audit;
mod auth;
mod bulk;
mod collections;
mod connections;
mod conversations;
mod dead_letters;
mod deadline;
mod documents;
mod idempotency;
mod keys;
mod leftover;
mod limits;
mod logins;
mod oidc;
mod operations;
mod pipelines;
mod problem;
mod quotas;
mod rag;
mod readers;
mod roles;
mod routes;
mod search;
mod sql;
mod tenants;
mod topics;
mod users;
mod v1;
mod versions;
mod withheld;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::trace::SpanContext;
use tokio::net::TcpListener;
use tracing::{Instrument, Span};
use va_connectors::trace::{self, TRACEPARENT};
use va_sql::SqlEngine;

pub use problem::Problem;
pub use routes::{Access, Route, Routes};

use crate::platform::{Platform, Role};
use crate::telemetry::TRACE_ID;

/// What handlers work with.
#[derive(Clone)]
pub struct App {
    pub platform: Arc<Platform>,
    pub sql: Arc<SqlEngine>,
    pub metrics: Option<PrometheusHandle>,
}

/// The whole API; of a worker only what supervisors and Prometheus ask for.
pub fn router(app: App) -> Router {
    let mut routes = routes::operations();
    if app.platform.role != Role::Worker {
        routes = routes.merge(routes::api());
    }
    let (router, table) = routes.into_router();
    let limits = &app.platform.settings.server;
    let (patience, deadline) = (
        Duration::from_secs(limits.body_timeout_seconds),
        Duration::from_secs(limits.request_timeout_seconds),
    );
    let guard = auth::Guard {
        app: app.clone(),
        table: Arc::new(table),
    };
    router
        // The later a layer is added, the earlier a request meets it.
        .route_layer(middleware::from_fn_with_state(
            app.clone(),
            idempotency::once,
        ))
        .route_layer(middleware::from_fn_with_state(app.clone(), limits::admit))
        .route_layer(middleware::from_fn_with_state(guard, auth::authorize))
        .fallback(operations::not_found)
        .layer(middleware::from_fn_with_state(deadline, deadline::within))
        .layer(middleware::from_fn_with_state(
            patience,
            leftover::read_away,
        ))
        .layer(middleware::from_fn(v1::around))
        // Bodies are streamed and bounded by the handlers, which know the limit to name.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(middleware::from_fn(observe))
        .with_state(app)
}

/// Serves until the platform stops; open requests get a moment to end.
pub async fn serve(app: App, listener: TcpListener) {
    let stopping = app.platform.stopping().clone();
    let settings = app.platform.settings.server.clone();
    connections::serve(router(app), listener, &settings, stopping).await;
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that are traced only for a caller who traces.
const PROBES: [&str; 3] = ["/healthz", "/metrics", "/readyz"];

/// The id of the request, for handlers that note it.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Request id and trace in and out, a span around the handler, one count and one duration a request.
async fn observe(mut request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", |path| path.as_str())
        .to_owned();
    let method = request.method().to_string();
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| id.len() <= 128)
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), ToOwned::to_owned);
    let caller = request
        .headers()
        .get(TRACEPARENT)
        .and_then(|parent| parent.to_str().ok())
        .and_then(trace::read);
    request.extensions_mut().insert(RequestId(id.clone()));
    // Handlers that look at headers, as those of models do for their events, find the id that the client is told.
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    // Its name and fields are those of the semantic conventions for HTTP; `traces` takes it by its name.
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
        request_id = %id,
        trace_id = tracing::field::Empty,
    );
    // Supervisors ask every few seconds, which nobody wants to look at.
    let caller = match caller {
        None if PROBES.contains(&route.as_str()) => trace::read(&unsampled()),
        caller => caller,
    };
    let (trace_id, traceparent) = begin_trace(&span, caller, &method, &route);
    span.record(TRACE_ID, trace_id.as_str());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
    let status = status.to_string();
    metrics::counter!("va_http_requests_total", "route" => route.clone(), "method" => method.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("va_http_request_seconds", "route" => route, "method" => method)
        .record(started.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Ok(parent) = HeaderValue::from_str(&traceparent) {
        response.headers_mut().insert(TRACEPARENT, parent);
    }
    response
}

/// A `traceparent` of a trace that is not to be kept.
fn unsampled() -> String {
    let trace_id = uuid::Uuid::now_v7().simple().to_string();
    format!("00-{trace_id}-{}-00", &trace_id[16..])
}

/// The trace that a request belongs to, its caller's where there is one, and the `traceparent` of the reply, which names
/// our span of it. Where traces are not kept, both are for the log only.
fn begin_trace(
    span: &Span,
    caller: Option<SpanContext>,
    method: &str,
    route: &str,
) -> (String, String) {
    if let Some(caller) = &caller {
        trace::continue_from(span, caller.clone());
    }
    if let Some(own) = trace::of(span) {
        trace::rename(span, format!("{method} {route}"));
        return (own.trace_id().to_string(), trace::write(&own));
    }
    let trace_id = caller.map_or_else(
        || uuid::Uuid::now_v7().simple().to_string(),
        |caller| caller.trace_id().to_string(),
    );
    let traceparent = format!("00-{trace_id}-{}-01", &trace_id[16..]);
    (trace_id, traceparent)
}
