//! Who is asking, and whether they may: every call but the public ones carries a credential, also on loopback.
//!
//! Accepted are `Authorization: Bearer` with an access token or an API key, and `x-api-key`, which clients of Anthropic's
//! API send. What comes of it, a [`Principal`], is the only source of the tenant.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{Principal, UserId};
use va_catalog::{Permission, Permissions};

use super::problem::Body;
use super::routes::{Access, AccessTable};
use super::{App, Problem, RequestId};
use crate::identity::{Origin, Refusal};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Of a request without a credential.
const PUBLIC_BODY_BYTES_MAX: usize = 64 << 10;

/// What the check needs.
#[derive(Clone)]
pub struct Guard {
    pub app: App,
    pub table: Arc<AccessTable>,
}

/// Lets a request pass when its route permits it, with its [`Principal`] in it.
pub async fn authorize(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let access = guard.table.of(path, request.method());
    if access == Access::Public {
        // Nobody has said who they are yet.
        DefaultBodyLimit::max(PUBLIC_BODY_BYTES_MAX).apply(&mut request);
        return next.run(request).await;
    }
    let principal = match identify(&guard.app, request.headers()).await {
        Ok(principal) => principal,
        Err(response) => return response,
    };
    if let Err(problem) = permit(&guard.app, &principal, access) {
        return problem.into_response();
    }
    request.extensions_mut().insert::<Principal>(principal);
    next.run(request).await
}

/// Whether the principal may call what needs this.
fn permit(app: &App, principal: &Principal, access: Access) -> Result<(), Problem> {
    let permission = match access {
        Access::Public | Access::SignedIn => return Ok(()),
        Access::Needs(permission) => permission,
        Access::Operator(_) if principal.tenant != app.platform.tenant => {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "operators_only",
                "this concerns the whole installation, so only its operators may do it",
            ));
        }
        Access::Operator(permission) => permission,
    };
    require(principal, permission)
}

/// For handlers that need more than their route says.
pub fn require(principal: &Principal, permission: Permission) -> Result<(), Problem> {
    if principal.permissions.contains(permission) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        format!("this needs the permission `{permission}`, which the credential does not have"),
    ))
}

/// Nobody hands out what they do not have.
pub fn require_all(principal: &Principal, wanted: Permissions, what: &str) -> Result<(), Problem> {
    let missing = wanted.minus(principal.permissions);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        format!("{what} permits more than you may yourself: {missing}"),
    ))
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<Principal, Response> {
    let Some(credential) = credential(headers) else {
        return Err(unauthorized(
            "send `Authorization: Bearer <API key or access token>`; the admin key is in `admin.key` of the data directory",
        ));
    };
    match app.platform.identity.identify(credential).await {
        Ok(principal) => Ok(principal),
        Err(Refusal::Catalog(error)) => Err(Problem::from(error).into_response()),
        Err(refusal) => Err(unauthorized(&refusal.to_string())),
    }
}

/// The bearer token, or the key in the other header.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, credential) = value.to_str().ok()?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| credential.trim())
    });
    bearer.or_else(|| Some(headers.get(API_KEY)?.to_str().ok()?.trim()))
}

fn unauthorized(detail: &str) -> Response {
    let mut response =
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Where the request comes from, out of the connection and not out of headers that anybody can write.
impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let address: Option<IpAddr> = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(address)| address.ip());
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        Ok(Self {
            address,
            request_id,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    permission: Permission,
    /// Another user of the tenant.
    user: Option<String>,
}

/// Whether the caller, or another user, has a permission.
pub async fn check(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(check): Body<Check>,
) -> Result<Json<Value>, Problem> {
    let (subject, permissions) = match &check.user {
        None => (principal.actor().to_owned(), principal.permissions),
        Some(user) => {
            require(&principal, Permission::UsersRead)?;
            let id = UserId::from(user.as_str());
            let catalog = &app.platform.catalog;
            // A user that is not there is told apart from one who may do nothing.
            catalog.user(&principal.tenant, &id).await?;
            let (_, permissions) = catalog.rights_of(&principal.tenant, &id).await?;
            (id.to_string(), permissions)
        }
    };
    Ok(Json(json!({
        "allowed": permissions.contains(check.permission),
        "permission": check.permission,
        "subject": subject,
        "tenant": principal.tenant,
    })))
}
