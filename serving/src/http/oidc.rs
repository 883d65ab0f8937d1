//! `/api/v1/auth/oidc`: to another provider and back.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::logins::tokens;
use super::problem::Params;
use super::{App, Problem};
use crate::identity::{LOGIN_SECONDS, OidcError, Origin, Returned};

const COOKIE: &str = "va_oidc";
/// An e-mail address is no longer.
const HINT_BYTES_MAX: usize = 254;

#[derive(Deserialize)]
pub struct Begin {
    /// Who probably logs in; the provider may use it.
    login_hint: Option<String>,
}

/// Sends the browser to the provider.
pub async fn begin(
    State(app): State<App>,
    Params(begin): Params<Begin>,
) -> Result<Response, Problem> {
    let identity = &app.platform.identity;
    let hint = begin.login_hint.filter(|hint| hint.len() <= HINT_BYTES_MAX);
    let (url, state) = identity.oidc_begin(hint.as_deref()).await?;
    let secure = identity.oidc.is_secure();
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&url)?);
    headers.insert(header::SET_COOKIE, cookie(&state, LOGIN_SECONDS, secure)?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[derive(Deserialize)]
pub struct Callback {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

/// Where the provider sends the browser back.
pub async fn callback(
    State(app): State<App>,
    origin: Origin,
    Params(callback): Params<Callback>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let returned = Returned {
        code: callback.code,
        state: callback.state,
        issuer: callback.iss,
        error: callback.error,
    };
    let identity = &app.platform.identity;
    let state = cookie_of(&headers).unwrap_or_default();
    let logged_in = identity.oidc_finish(state, &returned, &origin).await?;
    let mut response = tokens(StatusCode::OK, &app, logged_in);
    // It has done its work.
    let gone = cookie("", 0, identity.oidc.is_secure())?;
    response.headers_mut().insert(header::SET_COOKIE, gone);
    Ok(response)
}

fn cookie(state: &str, seconds: i64, secure: bool) -> Result<HeaderValue, Problem> {
    let secure = if secure { "; Secure" } else { "" };
    value(&format!(
        "{COOKIE}={state}; Path=/api/v1/auth/oidc; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
    ))
}

fn cookie_of(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn value(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(Problem::internal)
}

impl From<OidcError> for Problem {
    fn from(error: OidcError) -> Self {
        let text = error.to_string();
        match error {
            OidcError::Off => Self::new(StatusCode::NOT_FOUND, "oidc_off", text),
            OidcError::State => Self::new(StatusCode::BAD_REQUEST, "oidc_state", text),
            OidcError::Refused(_) => Self::new(StatusCode::FORBIDDEN, "oidc_refused", text),
            OidcError::Provider { .. } => Self::new(StatusCode::BAD_GATEWAY, "oidc_provider", text),
            OidcError::Token(_) => Self::new(StatusCode::UNAUTHORIZED, "oidc_token", text),
            OidcError::Stranger => Self::new(StatusCode::FORBIDDEN, "not_registered", text),
            OidcError::Login(error) => error.into(),
        }
    }
}
