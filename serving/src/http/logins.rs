//! `/api/v1/auth`: register, log in, refresh, verify, log out, change the password; and the keys that sign tokens.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::TenantId;
use va_catalog::store::{Caller, Principal, SessionId, UserId};

use super::problem::Body;
use super::{App, Problem};
use crate::identity::{LoggedIn, LoginError, Note, Origin, PasswordError, Registering};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    email: String,
    password: String,
    tenant: Option<TenantId>,
    invite: Option<String>,
    name: Option<String>,
    phone: Option<String>,
}

pub async fn register(
    State(app): State<App>,
    origin: Origin,
    Body(register): Body<Register>,
) -> Result<Response, Problem> {
    let new = Registering {
        email: register.email,
        password: register.password,
        name: register.name,
        phone: register.phone,
        tenant: register.tenant,
        invite: register.invite,
    };
    let logged_in = app.platform.identity.register(&new, &origin).await?;
    Ok(tokens(StatusCode::CREATED, &app, logged_in))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    email: String,
    password: String,
    /// The default tenant unless named.
    tenant: Option<TenantId>,
}

pub async fn login(
    State(app): State<App>,
    origin: Origin,
    Body(login): Body<Login>,
) -> Result<Response, Problem> {
    let tenant = login.tenant.unwrap_or_else(TenantId::default_tenant);
    let identity = &app.platform.identity;
    let logged_in = identity
        .login(&tenant, &login.email, &login.password, &origin)
        .await?;
    Ok(tokens(StatusCode::OK, &app, logged_in))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    refresh_token: String,
}

pub async fn refresh(
    State(app): State<App>,
    origin: Origin,
    Body(refresh): Body<Refresh>,
) -> Result<Response, Problem> {
    let identity = &app.platform.identity;
    let logged_in = identity.refresh(&refresh.refresh_token, &origin).await?;
    Ok(tokens(StatusCode::OK, &app, logged_in))
}

/// Tokens are nobody's to keep but the client's.
pub fn tokens(status: StatusCode, app: &App, logged_in: LoggedIn) -> Response {
    let body = json!({
        "access_token": logged_in.access,
        "refresh_token": logged_in.refresh.expose(),
        "token_type": "Bearer",
        "expires_in": app.platform.identity.tokens.access_seconds(),
        "tenant": logged_in.session.tenant,
        "user": logged_in.user,
    });
    let mut response = (status, Json(body)).into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whose the credential of this call is, and what it may do.
pub async fn verify(Extension(principal): Extension<Principal>) -> Json<Value> {
    let (kind, roles) = match &principal.caller {
        Caller::Key { .. } => ("key", None),
        Caller::User { roles, .. } => ("user", Some(roles)),
    };
    Json(json!({
        "active": true,
        "kind": kind,
        "subject": principal.actor(),
        "user": principal.user(),
        "tenant": principal.tenant,
        "roles": roles,
        "permissions": principal.permissions,
        "models": principal.limits.models,
        "budget": principal.limits.budget,
    }))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Logout {
    /// Also every other session of the user.
    #[serde(default)]
    everywhere: bool,
}

pub async fn logout(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    body: axum::body::Bytes,
) -> Result<StatusCode, Problem> {
    let (user, session) = session(&principal)?;
    let logout = if body.iter().all(u8::is_ascii_whitespace) {
        Logout::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Problem::invalid(format!("the body: {error}")))?
    };
    let identity = &app.platform.identity;
    identity
        .logout(&principal.tenant, user, session, logout.everywhere, &origin)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Password {
    current: String,
    new: String,
}

pub async fn password(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(password): Body<Password>,
) -> Result<StatusCode, Problem> {
    let (user, session) = session(&principal)?;
    let pair = (password.current.as_str(), password.new.as_str());
    let identity = &app.platform.identity;
    identity
        .change_password(&principal.tenant, user, session, pair, &origin)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The public halves of the keys that sign access tokens.
pub async fn key_set(State(app): State<App>) -> Result<Response, Problem> {
    let keys = app.platform.identity.tokens.key_set().await?;
    let mut response = Json(keys).into_response();
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=60"),
    );
    Ok(response)
}

/// A new signing key.
pub async fn rotate(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
) -> Result<Json<Value>, Problem> {
    let identity = &app.platform.identity;
    let id = identity.tokens.rotate().await?;
    let note = Note {
        actor: principal.actor(),
        action: "platform.rotate",
        target: Some(&id),
        succeeded: true,
        detail: None,
    };
    identity.note(&principal.tenant, &origin, note).await;
    Ok(Json(json!({"kid": id})))
}

/// Of an API key there is no session.
pub fn session(principal: &Principal) -> Result<(&UserId, &SessionId), Problem> {
    match &principal.caller {
        Caller::User { id, session, .. } => Ok((id, session)),
        Caller::Key { .. } => Err(Problem::new(
            StatusCode::CONFLICT,
            "no_session",
            "this is for the user of an access token, and the credential is an API key; log in first",
        )),
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        let text = error.to_string();
        let unauthorized = |code| Self::new(StatusCode::UNAUTHORIZED, code, text.clone());
        let later = |code, after: Duration| {
            Self::new(StatusCode::TOO_MANY_REQUESTS, code, text.clone())
                // Rounded up, so that it is worth it.
                .after(Duration::from_secs(after.as_secs() + 1))
        };
        match error {
            LoginError::Credentials => unauthorized("invalid_credentials"),
            LoginError::Refresh => unauthorized("invalid_refresh_token"),
            LoginError::Reused => unauthorized("refresh_token_reused"),
            LoginError::Locked(after) => later("account_locked", after),
            LoginError::TooMany(after) => later("too_many_attempts", after),
            LoginError::Closed(_) => Self::new(StatusCode::FORBIDDEN, "registration_closed", text),
            LoginError::Password(PasswordError::Weak(_)) => {
                Self::unprocessable("weak_password", text)
            }
            LoginError::Password(PasswordError::Busy) => {
                later("too_many_attempts", Duration::from_secs(1))
            }
            LoginError::Password(error @ PasswordError::Failed(_)) => Self::internal(error),
            LoginError::Catalog(error) => error.into(),
        }
    }
}
