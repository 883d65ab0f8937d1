//! `POST /api/v1/retrieval/hybrid_search`.

use axum::extract::State;
use axum::{Extension, Json};
use va_catalog::store::Principal;

use super::problem::Body;
use super::{App, Problem};
use crate::retrieval::{SearchReply, SearchRequest, search};

pub async fn hybrid_search(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(request): Body<SearchRequest>,
) -> Result<Json<SearchReply>, Problem> {
    let viewer = principal.viewer();
    Ok(Json(
        search(&app.platform, &principal.tenant, &viewer, &request).await?,
    ))
}
