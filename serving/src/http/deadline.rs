//! The longest time until a reply begins. Whoever waits longer is told so, and what was done for the request ends.
//!
//! Some routes are as long as what they are asked for; each of those has an end of its own, which stands beside it.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// Routes without this limit, as method and path.
const LONG: [(&str, &str); 31] = [
    // As long as a model takes: `llm.routing.timeout_ms` for each deployment that is asked.
    ("POST", "/api/v1/llm/chat"),
    ("POST", "/api/v1/llm/chat/stream"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/responses"),
    ("POST", "/api/v1/rag/query"),
    ("POST", "/api/v1/chat"),
    ("POST", "/api/v1/conversations/{conversation}/regenerate"),
    // The stream of an answer, which begins when there is something to tell.
    (
        "GET",
        "/api/v1/conversations/{conversation}/messages/{message}/events",
    ),
    // As long as the client sends, whose body must not stand still; `wait=ready` has a limit of its own.
    ("POST", "/api/v1/collections/{collection}/documents"),
    ("POST", "/api/v1/collections/{collection}/documents/bulk"),
    (
        "POST",
        "/api/v1/collections/{collection}/documents/{id}/rollback",
    ),
    ("POST", "/api/v1/topics/{topic}/records"),
    // Streams of what happens, until the client goes.
    ("GET", "/api/v1/topics/{topic}/records"),
    ("GET", "/api/v1/pipelines/{pipeline}/tap"),
    // The engine ends a query itself, and says what it was busy with.
    ("POST", "/api/v1/sql"),
    // Reads all that a collection holds.
    ("GET", "/api/v1/collections/{collection}/verify"),
    ("DELETE", "/api/v1/collections/{collection}"),
    // Parses both versions, within the limits of `parse`.
    (
        "GET",
        "/api/v1/collections/{collection}/documents/{id}/diff",
    ),
    // A pipeline ends with the checkpoint that is under way, and begins with what it left.
    ("POST", "/api/v1/pipelines"),
    ("DELETE", "/api/v1/pipelines/{pipeline}"),
    ("POST", "/api/v1/pipelines/{pipeline}/start"),
    ("POST", "/api/v1/pipelines/{pipeline}/stop"),
    // Reads a topic from one end to the other, a bounded number of letters in a call.
    ("GET", "/api/v1/pipelines/{pipeline}/dlq"),
    ("GET", "/api/v1/pipelines/{pipeline}/dlq/{id}"),
    ("POST", "/api/v1/pipelines/{pipeline}/dlq/retry"),
    // For people who want to know why something is slow: they should see it.
    ("GET", "/api/v1/status"),
    ("GET", "/metrics"),
];

/// Ends a request that has no reply in time.
pub(super) async fn within(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("", MatchedPath::as_str);
    if is_long(request.method().as_str(), path) {
        return next.run(request).await;
    }
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            format!(
                "there was no reply within {} s, so the request was ended; what it was to change may have been changed: \
                 look, then try again",
                limit.as_secs()
            ),
        )
        .into_response(),
    }
}

fn is_long(method: &str, path: &str) -> bool {
    LONG.contains(&(method, path))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::http::routes;

    #[test]
    fn each_long_route_is_there() {
        let table = routes::operations().merge(routes::api());
        for (method, path) in LONG {
            let found = table
                .iter()
                .any(|route| route.method.as_str() == method && route.path == path);
            assert!(found, "{method} {path} is no route");
        }
        assert!(!is_long("GET", "/api/v1/collections"));
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told() {
        let router: Router = Router::new()
            .route("/never", get(std::future::pending::<()>))
            .layer(from_fn_with_state(Duration::from_millis(1), within));
        let request = axum::http::Request::get("/never").body(Body::empty());
        let Ok(response) = TowerToHyperService::new(router)
            .call(request.expect("a request"))
            .await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await;
        let body = String::from_utf8_lossy(&body.expect("a body")).into_owned();
        assert!(body.contains("\"timeout\""), "{body}");
    }
}
