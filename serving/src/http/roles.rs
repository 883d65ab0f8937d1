//! Roles: what each permits, and a tenant's own.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::Permissions;
use va_catalog::store::{Principal, UserRole};

use super::auth::require_all;
use super::problem::Body;
use super::users::note;
use super::{App, Problem};
use crate::identity::Origin;

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Json<Value>, Problem> {
    let roles = app.platform.catalog.roles(&principal.tenant).await?;
    Ok(Json(json!({"items": roles, "cursor": null})))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let role = app.platform.catalog.role(&principal.tenant, &name).await?;
    Ok(Json(json!(role)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    #[serde(default)]
    description: String,
    permissions: Permissions,
}

pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(create): Body<Create>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let role = UserRole {
        name: create.name,
        description: create.description,
        permissions: create.permissions,
        built_in: false,
    };
    put(&app, &principal, &origin, &role, false).await?;
    Ok((StatusCode::CREATED, Json(json!(role))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    #[serde(default)]
    description: String,
    permissions: Permissions,
}

pub async fn replace(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(name): Path<String>,
    Body(replace): Body<Replace>,
) -> Result<Json<Value>, Problem> {
    let role = UserRole {
        name,
        description: replace.description,
        permissions: replace.permissions,
        built_in: false,
    };
    // What the role permitted so far must be the caller's to take away, too.
    let before = app
        .platform
        .catalog
        .role(&principal.tenant, &role.name)
        .await?;
    require_all(
        &principal,
        before.permissions,
        &format!("role `{}`", role.name),
    )?;
    put(&app, &principal, &origin, &role, true).await?;
    Ok(Json(json!(role)))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    app.platform
        .catalog
        .delete_role(&principal.tenant, &name)
        .await?;
    note(&app, &principal, &origin, "role.delete", &name, None).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn put(
    app: &App,
    principal: &Principal,
    origin: &Origin,
    role: &UserRole,
    replace: bool,
) -> Result<(), Problem> {
    require_all(
        principal,
        role.permissions,
        &format!("role `{}`", role.name),
    )?;
    let catalog = &app.platform.catalog;
    catalog.put_role(&principal.tenant, role, replace).await?;
    app.platform.identity.look_again();
    let action = if replace {
        "role.update"
    } else {
        "role.create"
    };
    let permissions = role.permissions.to_string();
    note(
        app,
        principal,
        origin,
        action,
        &role.name,
        Some(&permissions),
    )
    .await;
    Ok(())
}
