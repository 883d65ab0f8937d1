//! API keys of the caller's tenant.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::Permissions;
use va_catalog::store::{Budget, KeyId, KeyLimits, NewKey, Principal, Scope};

use super::auth::require_all;
use super::collections::Paging;
use super::problem::{Body, Params};
use super::users::note;
use super::{App, Problem};
use crate::identity::Origin;

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(paging): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let catalog = &app.platform.catalog;
    let keys = catalog.keys(&principal.tenant, &paging.page()).await?;
    Ok(Json(json!({"items": keys.items, "cursor": keys.next})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    #[serde(default)]
    scopes: BTreeSet<Scope>,
    /// Beside the scopes.
    #[serde(default)]
    permissions: Permissions,
    /// Models that it may call; all unless listed.
    models: Option<Vec<String>>,
    budget: Option<Budget>,
    /// UTC milliseconds; never unless given.
    expires_at: Option<i64>,
}

/// Makes a key; it is in this reply only. A key that a user makes is that user's.
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(create): Body<Create>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let wanted = create
        .scopes
        .iter()
        .map(|scope| scope.permissions())
        .fold(create.permissions, Permissions::union);
    require_all(&principal, wanted, "the key")?;
    let limits = limits(&principal, create.models, create.budget)?;
    let catalog = &app.platform.catalog;
    let new = NewKey {
        name: &create.name,
        scopes: create.scopes,
        permissions: create.permissions,
        user: principal.user(),
        limits,
        expires_at: create.expires_at,
    };
    let (id, secret) = catalog.create_key_with(&principal.tenant, &new).await?;
    note(
        &app,
        &principal,
        &origin,
        "key.create",
        id.as_str(),
        Some(&wanted.to_string()),
    )
    .await;
    let mut shown = json!(catalog.key(&principal.tenant, &id).await?);
    shown["key"] = json!(secret.expose());
    Ok((StatusCode::CREATED, Json(shown)))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = KeyId::from(id.as_str());
    let key = app.platform.catalog.key(&principal.tenant, &id).await?;
    Ok(Json(json!(key)))
}

/// From now on the key opens nothing. It stays listed.
pub async fn revoke(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = KeyId::from(id.as_str());
    app.platform
        .catalog
        .revoke_key(&principal.tenant, &id)
        .await?;
    note(&app, &principal, &origin, "key.revoke", id.as_str(), None).await;
    Ok(StatusCode::NO_CONTENT)
}

/// A key with limits makes no key with wider ones.
fn limits(
    principal: &Principal,
    models: Option<Vec<String>>,
    budget: Option<Budget>,
) -> Result<KeyLimits, Problem> {
    let own = &principal.limits;
    let models = match (&own.models, models) {
        (None, models) => models,
        (Some(own), None) => Some(own.clone()),
        (Some(own), Some(models)) => {
            if let Some(model) = models.iter().find(|model| !own.contains(model)) {
                return Err(Problem::new(
                    StatusCode::FORBIDDEN,
                    "forbidden",
                    format!("your own key may not call the model `{model}`"),
                ));
            }
            Some(models)
        }
    };
    if own.budget.is_some() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "a key with a budget makes no other keys: each would have a budget of its own",
        ));
    }
    Ok(KeyLimits { models, budget })
}
