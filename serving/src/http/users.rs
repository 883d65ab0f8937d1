//! Users of the caller's tenant, and the caller's own profile.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use va_catalog::store::{NewUser, Owner, Page, Principal, UserChange, UserId, UserState};

use super::auth::require_all;
use super::collections::Paging;
use super::problem::{Body, Params};
use super::{App, Problem};
use crate::conversations::Profile as Preferred;
use crate::identity::{Note, Origin};

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(paging): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let catalog = &app.platform.catalog;
    let users = catalog.users(&principal.tenant, &paging.page()).await?;
    Ok(Json(json!({"items": users.items, "cursor": users.next})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    email: String,
    /// Without it the user cannot log in with one.
    password: Option<String>,
    name: Option<String>,
    phone: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(create): Body<Create>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    may_grant(&app, &principal, &create.roles).await?;
    let identity = &app.platform.identity;
    let hash = match &create.password {
        Some(password) => Some(identity.hash_new(password, &create.email).await?),
        None => None,
    };
    let new = NewUser {
        email: &create.email,
        name: create.name.as_deref(),
        phone: create.phone.as_deref(),
        password_hash: hash.as_deref(),
        roles: &create.roles,
        invite: None,
    };
    let user = app
        .platform
        .catalog
        .create_user(&principal.tenant, &new)
        .await?;
    let roles = create.roles.join(", ");
    note(
        &app,
        &principal,
        &origin,
        "user.create",
        user.id.as_str(),
        Some(&roles),
    )
    .await;
    Ok((StatusCode::CREATED, Json(json!(user))))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = UserId::from(id.as_str());
    let user = app.platform.catalog.user(&principal.tenant, &id).await?;
    Ok(Json(json!(user)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    name: Option<String>,
    phone: Option<String>,
    state: Option<UserState>,
    roles: Option<Vec<String>>,
    /// Ends a lockout.
    #[serde(default)]
    unlock: bool,
    /// A new one; every session of the user ends.
    password: Option<String>,
}

pub async fn update(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(id): Path<String>,
    Body(update): Body<Update>,
) -> Result<Json<Value>, Problem> {
    let id = UserId::from(id.as_str());
    let (catalog, identity) = (&app.platform.catalog, &app.platform.identity);
    let before = catalog.user(&principal.tenant, &id).await?;
    // Nobody takes over, demotes or locks out somebody who may do more.
    may_grant(&app, &principal, &before.roles).await?;
    if let Some(roles) = &update.roles {
        may_grant(&app, &principal, roles).await?;
    }
    let hash = match &update.password {
        Some(password) => Some(identity.hash_new(password, &before.email).await?),
        None => None,
    };
    let change = UserChange {
        name: update.name.as_deref(),
        phone: update.phone.as_deref(),
        state: update.state,
        roles: update.roles.as_deref(),
        preferences: None,
        unlock: update.unlock,
    };
    let mut user = catalog.update_user(&principal.tenant, &id, &change).await?;
    if let Some(hash) = hash {
        catalog
            .set_password(&principal.tenant, &id, &hash, None)
            .await?;
        user = catalog.user(&principal.tenant, &id).await?;
    }
    identity.look_again();
    let changed = [
        ("name", update.name.is_some()),
        ("phone", update.phone.is_some()),
        ("state", update.state.is_some()),
        ("roles", update.roles.is_some()),
        ("unlock", update.unlock),
        ("password", update.password.is_some()),
    ];
    let changed: Vec<&str> = changed
        .iter()
        .filter(|(_, is)| *is)
        .map(|(what, _)| *what)
        .collect();
    note(
        &app,
        &principal,
        &origin,
        "user.update",
        id.as_str(),
        Some(&changed.join(", ")),
    )
    .await;
    Ok(Json(json!(user)))
}

pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = UserId::from(id.as_str());
    let catalog = &app.platform.catalog;
    let before = catalog.user(&principal.tenant, &id).await?;
    may_grant(&app, &principal, &before.roles).await?;
    catalog.delete_user(&principal.tenant, &id).await?;
    app.platform.identity.look_again();
    note(&app, &principal, &origin, "user.delete", id.as_str(), None).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Entries of each list in an export.
const EXPORTED_MAX: u32 = 10_000;

/// Everything that is kept about a user.
pub async fn export(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = UserId::from(id.as_str());
    let exported = exported(&app, &principal, &id).await?;
    note(&app, &principal, &origin, "user.export", id.as_str(), None).await;
    Ok(Json(exported))
}

/// The same of the user behind the credential.
pub async fn export_me(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
) -> Result<Json<Value>, Problem> {
    let id = own(&principal)?;
    let exported = exported(&app, &principal, id).await?;
    note(&app, &principal, &origin, "user.export", id.as_str(), None).await;
    Ok(Json(exported))
}

async fn exported(app: &App, principal: &Principal, id: &UserId) -> Result<Value, Problem> {
    let (catalog, tenant) = (&app.platform.catalog, &principal.tenant);
    Ok(json!({
        "tenant": tenant,
        "user": catalog.user(tenant, id).await?,
        "sessions": catalog.sessions_of(tenant, id, EXPORTED_MAX).await?,
        "keys": catalog.keys_of(tenant, id, EXPORTED_MAX).await?,
        "audit": catalog.audit_of(tenant, id, EXPORTED_MAX).await?,
        "conversations": said(app, principal, id).await?,
    }))
}

/// Conversations of a user with their messages, newest first, until there are [`EXPORTED_MAX`] messages.
async fn said(app: &App, principal: &Principal, id: &UserId) -> Result<Vec<Value>, Problem> {
    let catalog = &app.platform.catalog;
    let owner = Owner {
        tenant: principal.tenant.clone(),
        id: id.as_str().to_owned(),
    };
    let mut said = Vec::new();
    let mut left = EXPORTED_MAX;
    let mut page = Page::first(100);
    loop {
        let listing = catalog.conversations(&owner, None, &page).await?;
        for conversation in listing.items {
            if left == 0 {
                return Ok(said);
            }
            let messages = catalog
                .last_messages(&owner, &conversation.id, left)
                .await?;
            left = left.saturating_sub(messages.len() as u32);
            let mut whole = json!(conversation);
            whole["messages"] = json!(messages);
            let summary = catalog
                .conversation_summary(&owner, &conversation.id)
                .await?;
            whole["summary"] = json!(summary.map(|summary| summary.text));
            said.push(whole);
        }
        match listing.next {
            Some(next) => page.cursor = Some(next),
            None => return Ok(said),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    roles: Vec<String>,
}

/// An invite into the caller's tenant; its secret is in this reply only.
pub async fn invite(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Body(invite): Body<Invite>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    may_grant(&app, &principal, &invite.roles).await?;
    let lasts_ms = app.platform.identity.invite_ms();
    let catalog = &app.platform.catalog;
    let (secret, expires_at) = catalog
        .create_invite(
            &principal.tenant,
            &invite.roles,
            principal.actor(),
            lasts_ms,
        )
        .await?;
    let roles = invite.roles.join(", ");
    note(&app, &principal, &origin, "user.invite", "", Some(&roles)).await;
    let reply = json!({
        "invite": secret.expose(), "tenant": principal.tenant, "roles": invite.roles, "expires_at": expires_at,
    });
    Ok((StatusCode::CREATED, Json(reply)))
}

/// The user behind the credential.
pub async fn me(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Json<Value>, Problem> {
    let id = own(&principal)?;
    let user = app.platform.catalog.user(&principal.tenant, id).await?;
    let mut shown = json!(user);
    shown["tenant"] = json!(principal.tenant);
    shown["permissions"] = json!(principal.permissions);
    Ok(Json(shown))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    name: Option<String>,
    phone: Option<String>,
}

pub async fn update_me(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(profile): Body<Profile>,
) -> Result<Json<Value>, Problem> {
    let change = UserChange {
        name: profile.name.as_deref(),
        phone: profile.phone.as_deref(),
        ..UserChange::default()
    };
    let id = own(&principal)?;
    let user = app
        .platform
        .catalog
        .update_user(&principal.tenant, id, &change)
        .await?;
    Ok(Json(json!(user)))
}

/// Replaces the preferences: any JSON object, up to 16 KiB. Those that shape answers have to make sense.
pub async fn preferences(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(preferences): Body<Map<String, Value>>,
) -> Result<Json<Value>, Problem> {
    Preferred::read(&preferences).map_err(Problem::invalid)?;
    let change = UserChange {
        preferences: Some(&preferences),
        ..UserChange::default()
    };
    let id = own(&principal)?;
    let user = app
        .platform
        .catalog
        .update_user(&principal.tenant, id, &change)
        .await?;
    Ok(Json(Value::Object(user.preferences)))
}

fn own(principal: &Principal) -> Result<&UserId, Problem> {
    principal.user().ok_or_else(|| {
        Problem::new(
            StatusCode::CONFLICT,
            "no_user",
            "the credential is an API key of the tenant, behind which there is no user; log in first",
        )
    })
}

/// Whether the caller may do everything that the roles permit.
async fn may_grant(app: &App, principal: &Principal, roles: &[String]) -> Result<(), Problem> {
    let catalog = &app.platform.catalog;
    let wanted = catalog.permissions_of(&principal.tenant, roles).await?;
    require_all(principal, wanted, &format!("`{}`", roles.join("`, `")))
}

/// Notes a change in the audit trail.
pub async fn note(
    app: &App,
    principal: &Principal,
    origin: &Origin,
    action: &str,
    target: &str,
    detail: Option<&str>,
) {
    let note = Note {
        actor: principal.actor(),
        action,
        target: (!target.is_empty()).then_some(target),
        succeeded: true,
        detail: detail.filter(|detail| !detail.is_empty()),
    };
    app.platform
        .identity
        .note(&principal.tenant, origin, note)
        .await;
}
