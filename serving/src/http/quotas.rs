//! How much a tenant may have: its members see it, the operators of the installation set it.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};
use va_catalog::TenantId;
use va_catalog::store::{Principal, Quota};

use super::problem::Body;
use super::tenants::visible;
use super::users::note;
use super::{App, Problem};
use crate::identity::Origin;

/// The limits of a tenant, and what it has of each.
pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = visible(&app, &principal, name)?;
    Ok(Json(shown(&app, &name).await?))
}

/// Sets limits; `null` is no limit, and what is not named stays.
pub async fn update(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    origin: Origin,
    Path(name): Path<String>,
    Body(changes): Body<BTreeMap<Quota, Option<u64>>>,
) -> Result<Json<Value>, Problem> {
    let name = visible(&app, &principal, name)?;
    app.platform.catalog.set_quotas(&name, &changes).await?;
    let detail: Vec<String> = changes
        .iter()
        .map(|(quota, limit)| match limit {
            Some(limit) => format!("{quota} {limit}"),
            None => format!("{quota} unlimited"),
        })
        .collect();
    note(
        &app,
        &principal,
        &origin,
        "tenant.quotas",
        name.as_str(),
        Some(&detail.join(", ")),
    )
    .await;
    Ok(Json(shown(&app, &name).await?))
}

async fn shown(app: &App, tenant: &TenantId) -> Result<Value, Problem> {
    let catalog = &app.platform.catalog;
    let limits = catalog.quotas(tenant).await?;
    let usage = catalog.usage(tenant).await?;
    let quotas: BTreeMap<Quota, Value> = usage
        .into_iter()
        .map(|(quota, used)| (quota, json!({"used": used, "limit": limits.get(&quota)})))
        .collect();
    Ok(json!({"tenant": tenant, "quotas": quotas}))
}
