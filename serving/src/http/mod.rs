//! The HTTP API: routes, and what every request goes through (credential, request id, metrics, problem replies).

mod auth;
mod bulk;
mod collections;
mod dead_letters;
mod documents;
mod operations;
mod pipelines;
mod problem;
mod rag;
mod search;
mod sql;
mod topics;
mod versions;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tracing::Instrument;
use va_sql::SqlEngine;

pub use problem::Problem;

use crate::platform::{Platform, Role};

/// What handlers work with.
#[derive(Clone)]
pub struct App {
    pub platform: Arc<Platform>,
    pub sql: Arc<SqlEngine>,
    pub metrics: Option<PrometheusHandle>,
}

/// Every route below `/api/v1`, as the OpenAPI document lists them (a test compares).
pub const API_ROUTES: &[&str] = &[
    "/api/v1/status",
    "/api/v1/collections",
    "/api/v1/collections/{collection}",
    "/api/v1/collections/{collection}/verify",
    "/api/v1/collections/{collection}/documents",
    "/api/v1/collections/{collection}/documents/bulk",
    "/api/v1/collections/{collection}/documents/check",
    "/api/v1/collections/{collection}/documents/delete",
    "/api/v1/collections/{collection}/documents/states",
    "/api/v1/collections/{collection}/documents/under",
    "/api/v1/collections/{collection}/documents/{id}",
    "/api/v1/collections/{collection}/documents/{id}/versions",
    "/api/v1/collections/{collection}/documents/{id}/versions/{version}",
    "/api/v1/collections/{collection}/documents/{id}/versions/{version}/content",
    "/api/v1/collections/{collection}/documents/{id}/diff",
    "/api/v1/collections/{collection}/documents/{id}/rollback",
    "/api/v1/retrieval/hybrid_search",
    "/api/v1/rag/query",
    "/api/v1/pipelines",
    "/api/v1/pipelines/{pipeline}",
    "/api/v1/pipelines/{pipeline}/start",
    "/api/v1/pipelines/{pipeline}/stop",
    "/api/v1/pipelines/{pipeline}/tap",
    "/api/v1/pipelines/{pipeline}/dlq",
    "/api/v1/pipelines/{pipeline}/dlq/retry",
    "/api/v1/pipelines/{pipeline}/dlq/{id}",
    "/api/v1/topics",
    "/api/v1/topics/{topic}",
    "/api/v1/topics/{topic}/records",
    "/api/v1/sql",
];

/// The whole API; of a worker only what supervisors and Prometheus ask for.
pub fn router(app: App) -> Router {
    let api = Router::new()
        .route("/api/v1/status", get(operations::status))
        .route(
            "/api/v1/collections",
            get(collections::list).post(collections::create),
        )
        .route(
            "/api/v1/collections/{collection}",
            get(collections::get).delete(collections::delete),
        )
        .route(
            "/api/v1/collections/{collection}/verify",
            get(collections::verify),
        )
        .route(
            "/api/v1/collections/{collection}/documents",
            get(documents::list).post(documents::upload),
        )
        .route(
            "/api/v1/collections/{collection}/documents/bulk",
            post(bulk::upload),
        )
        .route(
            "/api/v1/collections/{collection}/documents/check",
            post(bulk::check),
        )
        .route(
            "/api/v1/collections/{collection}/documents/delete",
            post(bulk::delete),
        )
        .route(
            "/api/v1/collections/{collection}/documents/states",
            post(bulk::states),
        )
        .route(
            "/api/v1/collections/{collection}/documents/under",
            get(bulk::under),
        )
        .route(
            "/api/v1/collections/{collection}/documents/{id}",
            get(documents::get).delete(documents::delete),
        )
        .route(
            "/api/v1/collections/{collection}/documents/{id}/versions",
            get(documents::versions),
        )
        .route(
            "/api/v1/retrieval/hybrid_search",
            post(search::hybrid_search),
        )
        .route("/api/v1/rag/query", post(rag::query))
        .route(
            "/api/v1/pipelines",
            get(pipelines::list).post(pipelines::create),
        )
        .route(
            "/api/v1/pipelines/{pipeline}",
            get(pipelines::get).delete(pipelines::delete),
        )
        .route("/api/v1/pipelines/{pipeline}/start", post(pipelines::start))
        .route("/api/v1/pipelines/{pipeline}/stop", post(pipelines::stop))
        .route("/api/v1/pipelines/{pipeline}/tap", get(pipelines::tap))
        .merge(dead_letters::routes())
        .merge(versions::routes())
        .route("/api/v1/topics", get(topics::list).post(topics::create))
        .route(
            "/api/v1/topics/{topic}",
            get(topics::get).delete(topics::delete),
        )
        .route(
            "/api/v1/topics/{topic}/records",
            get(topics::consume).post(topics::produce),
        )
        .route("/api/v1/sql", post(sql::query))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            auth::require_key,
        ));
    let open = Router::new()
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics));
    let open = if app.platform.role == Role::Worker {
        open
    } else {
        open.route("/openapi.json", get(operations::openapi))
            .merge(api)
    };
    open.fallback(operations::not_found)
        // Bodies are streamed and bounded by the handlers, which know the limit to name.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(middleware::from_fn(observe))
        .with_state(app)
}

/// Serves until the platform stops; open requests get a moment to end.
pub async fn serve(app: App, listener: TcpListener) -> std::io::Result<()> {
    let stopping = app.platform.stopping().clone();
    let router = router(app).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stopping.cancelled().await })
        .await
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Request id and trace in and out, a span around the handler, one count and one duration a request.
async fn observe(request: Request, next: Next) -> Response {
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
    let trace_id = request
        .headers()
        .get(&TRACEPARENT)
        .and_then(|parent| parent.to_str().ok())
        .and_then(trace_of)
        .unwrap_or_else(|| uuid::Uuid::now_v7().simple().to_string());
    let span = tracing::info_span!("request", %method, route, request_id = %id, %trace_id);
    let mut response = next.run(request).instrument(span).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("va_http_requests_total", "route" => route.clone(), "method" => method.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("va_http_request_seconds", "route" => route, "method" => method)
        .record(started.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Ok(parent) = HeaderValue::from_str(&format!("00-{trace_id}-{}-01", &trace_id[16..])) {
        response.headers_mut().insert(TRACEPARENT, parent);
    }
    response
}

/// The trace id of a W3C `traceparent` header.
fn trace_of(parent: &str) -> Option<String> {
    let id = parent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}
