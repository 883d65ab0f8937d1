//! Tenants. Whoever may sees and changes their own; operators see all and make new ones.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{CatalogError, Principal, Scope};
use va_catalog::{Permission, TenantId};

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
    if operates(&app, &principal) {
        let tenants = catalog.tenants_all_tenants(&paging.page()).await?;
        return Ok(Json(
            json!({"items": tenants.items, "cursor": tenants.next}),
        ));
    }
    let own = catalog.tenant(&principal.tenant).await?;
    Ok(Json(json!({"items": [own], "cursor": null})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: TenantId,
    #[serde(default)]
    description: String,
}

/// Makes a tenant. Its admin key is in this reply only: with it, its first users are created or invited.
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(create): Body<Create>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let catalog = &app.platform.catalog;
    let tenant = catalog
        .create_tenant(&create.name, &create.description)
        .await?;
    let scopes = BTreeSet::from([Scope::Admin]);
    let (id, secret) = catalog
        .create_key(&tenant.name, "made with the tenant", &scopes)
        .await?;
    note(
        &app,
        &principal,
        &origin,
        "tenant.create",
        tenant.name.as_str(),
        None,
    )
    .await;
    let mut shown = json!(tenant);
    shown["key_id"] = json!(id);
    shown["key"] = json!(secret.expose());
    Ok((StatusCode::CREATED, Json(shown)))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = visible(&app, &principal, name)?;
    Ok(Json(json!(app.platform.catalog.tenant(&name).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    description: String,
}

pub async fn update(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(name): Path<String>,
    Body(update): Body<Update>,
) -> Result<Json<Value>, Problem> {
    let name = visible(&app, &principal, name)?;
    let tenant = app
        .platform
        .catalog
        .describe_tenant(&name, &update.description)
        .await?;
    note(
        &app,
        &principal,
        &origin,
        "tenant.update",
        name.as_str(),
        None,
    )
    .await;
    Ok(Json(json!(tenant)))
}

fn operates(app: &App, principal: &Principal) -> bool {
    principal.tenant == app.platform.tenant
        && principal.permissions.contains(Permission::PlatformManage)
}

/// The tenant of that name, when the caller may know of it; else it is as if there were none.
pub(super) fn visible(app: &App, principal: &Principal, name: String) -> Result<TenantId, Problem> {
    if name == "current" || name == principal.tenant.as_str() {
        return Ok(principal.tenant.id().clone());
    }
    if operates(app, principal) {
        return Ok(TenantId::new(name)?);
    }
    Err(CatalogError::NotFound {
        kind: "tenant",
        name,
    }
    .into())
}
