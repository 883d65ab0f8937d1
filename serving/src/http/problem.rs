//! Errors as clients get them: RFC 9457 problem+json with a stable `code`, never a stack trace.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use va_catalog::InvalidName;
use va_catalog::store::CatalogError;
use va_connectors::log::LogError;
use va_connectors::objects::ObjectError;
use va_pipelines::runtime::RuntimeError;

use crate::backlog::BacklogFull;
use crate::ingest::{self, IngestError};
use crate::retrieval::SearchError;

/// When to ask again while the catalog is out of reach: each call waits for it some seconds itself.
const CATALOG_AGAIN: Duration = Duration::from_secs(2);

/// A problem reply.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    /// Stable; what programs look at.
    code: &'static str,
    /// For people.
    detail: String,
    extra: Option<(&'static str, Value)>,
    /// When it is worth to try again.
    retry_after: Option<Duration>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            extra: None,
            retry_after: None,
        }
    }

    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    /// What it says.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// The request is well formed, but what it holds is not acceptable.
    pub fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// Our own fault: logged here, once, and told without inner details.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        if crate::disk::is_full(&error.to_string()) {
            tracing::warn!(%error, "the disk is full");
            return Self::disk_full(format!(
                "the disk that holds the data directory is full: make room there, then try again ({error})"
            ));
        }
        tracing::error!(%error, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
        )
    }

    fn disk_full(detail: String) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", detail)
    }

    /// When it is worth to try again, where that is known.
    #[must_use]
    pub fn after(mut self, wait: impl Into<Option<Duration>>) -> Self {
        self.retry_after = wait.into();
        self
    }

    /// The body, also for where there is no reply to carry it: an event of a stream that has begun.
    pub fn body(self) -> Value {
        let mut body = json!({
            "type": format!("urn:va:problem:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        if let Some((field, value)) = self.extra {
            body[field] = value;
        }
        body
    }

    #[must_use]
    pub fn with(mut self, field: &'static str, value: Value) -> Self {
        self.extra = Some((field, value));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self.body())).into_response();
        if let Some(after) = retry_after {
            let seconds = HeaderValue::from(after.as_secs());
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // Part of the body may be unread, so the connection cannot be used again.
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::NotFound { .. } => Self::not_found(error.to_string()),
            CatalogError::Exists { .. } => {
                Self::new(StatusCode::CONFLICT, "exists", error.to_string())
            }
            CatalogError::Conflict { .. } => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
            CatalogError::Invalid(_) => Self::invalid(error.to_string()),
            CatalogError::QuotaExceeded {
                quota, limit, used, ..
            } => Self::new(StatusCode::FORBIDDEN, "quota_exceeded", error.to_string()).with(
                "quota",
                json!({"name": quota, "limit": limit, "used": used}),
            ),
            CatalogError::Locked(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "identity_locked",
                error.to_string(),
            ),
            error if error.is_retriable() => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "catalog_unavailable",
                error.to_string(),
            )
            .after(CATALOG_AGAIN),
            error if error.is_unstorable() => Self::invalid(error.to_string()),
            _ => Self::internal(error),
        }
    }
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::UnknownTopic(_) | LogError::UnknownPartition { .. } => {
                Self::not_found(error.to_string())
            }
            LogError::Config(message) => Self::new(StatusCode::CONFLICT, "conflict", message),
            other => Self::internal(other),
        }
    }
}

impl From<BacklogFull> for Problem {
    fn from(full: BacklogFull) -> Self {
        Self {
            retry_after: Some(full.retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "backlog_full",
                full.to_string(),
            )
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Catalog(error) => error.into(),
            IngestError::Log(error) => error.into(),
            IngestError::Objects(ObjectError::TooLarge { limit }) => {
                Self::too_large(ingest::too_large(limit))
            }
            IngestError::DiskFull(error) => Self::disk_full(error.to_string()),
            IngestError::Backlog(full) => full.into(),
            IngestError::Forbidden(detail) => Self::new(StatusCode::FORBIDDEN, "forbidden", detail),
            IngestError::Objects(error @ ObjectError::Upload(_)) => {
                Self::invalid(error.to_string())
            }
            other => Self::internal(other),
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Invalid(message) => Self::invalid(message),
            SearchError::Catalog(error) => error.into(),
            SearchError::Unavailable(message) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
        }
    }
}

impl From<RuntimeError> for Problem {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Log(error) => error.into(),
            RuntimeError::UnknownNode { .. } => Self::not_found(error.to_string()),
            RuntimeError::Running(_)
            | RuntimeError::NotRunning(_)
            | RuntimeError::Shuffle { .. } => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid_request", rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

/// A JSON body whose rejection is a problem.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Ok(Self(Json::from_request(request, state).await?.0))
    }
}

/// Query parameters whose rejection is a problem.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Ok(Self(Query::from_request_parts(parts, state).await?.0))
    }
}
