//! Who is asking: every `/api` call carries an API key as bearer token, also on loopback.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use va_catalog::store::Principal;

use super::{App, Problem};

/// Checks the key and leaves its [`Principal`] in the request.
pub async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let key = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .strip_prefix("Bearer ")
                .or_else(|| value.strip_prefix("bearer "))
        });
    let checked = match key {
        Some(key) => app.platform.catalog.check_key(key.trim()).await,
        None => Ok(None),
    };
    match checked {
        Ok(Some(principal)) => {
            request.extensions_mut().insert::<Principal>(principal);
            next.run(request).await
        }
        Ok(None) => {
            let detail = if key.is_some() {
                "the key is not valid; the admin key is in `admin.key` of the data directory"
            } else {
                "send `Authorization: Bearer <API key>`; the admin key is in `admin.key` of the data directory"
            };
            let mut response =
                Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response();
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Err(error) => Problem::from(error).into_response(),
    }
}
