//! The audit trail of the caller's tenant, newest first.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};
use va_catalog::store::Principal;

use super::collections::Paging;
use super::problem::Params;
use super::{App, Problem};

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(paging): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let catalog = &app.platform.catalog;
    let events = catalog
        .audit_events(&principal.tenant, &paging.page())
        .await?;
    Ok(Json(json!({"items": events.items, "cursor": events.next})))
}
