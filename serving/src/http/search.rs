//! `POST /api/v1/retrieval/hybrid_search`. When neither side can answer, what the same search found before does.

use axum::extract::State;
use axum::{Extension, Json};
use va_catalog::store::Principal;

use super::problem::Body;
use super::{App, Problem};
use crate::platform::now_ms;
use crate::rag::{Key, RememberedHits, of_search};
use crate::retrieval::{Degraded, Mode, SearchError, SearchReply, SearchRequest, search};

pub async fn hybrid_search(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(request): Body<SearchRequest>,
) -> Result<Json<SearchReply>, Problem> {
    let (platform, tenant) = (&app.platform, &principal.tenant);
    let viewer = principal.viewer();
    let found = search(platform, tenant, &viewer, &request).await;
    // Only a search by both sides tells how both are, and has nothing but them to fall back to.
    if request.mode != Mode::Hybrid {
        return Ok(Json(found?));
    }
    let collection = tenant.collection(request.collection.clone());
    let look = |degraded: &[Degraded]| {
        let [(part, faults), _] = of_search(degraded);
        platform
            .answers
            .alerts
            .look(platform, &collection, part, &faults);
    };
    let (earlier, key) = (
        &platform.answers.searches,
        Key::of_search(tenant, &viewer, &request),
    );
    match found {
        Ok(reply) => {
            look(&reply.degraded);
            if reply.degraded.is_empty() {
                let found = RememberedHits {
                    hits: reply.hits.clone(),
                    as_of: reply.as_of.clone(),
                    at_ms: now_ms(),
                };
                earlier.remember(key, found.bytes(), found);
            }
            Ok(Json(reply))
        }
        Err(SearchError::Unavailable(reason)) => {
            let mut failed = Degraded {
                retriever: "all",
                reason,
            };
            look(std::slice::from_ref(&failed));
            let Some(mut before) = earlier.recall(&key) else {
                return Err(SearchError::Unavailable(failed.reason).into());
            };
            // Who may read it may have changed since.
            let ids: Vec<_> = before.hits.iter().map(|hit| hit.document.id).collect();
            let withdrawn = platform
                .catalog
                .hidden_among(&viewer, &collection, &ids)
                .await?;
            before
                .hits
                .retain(|hit| !withdrawn.contains(&hit.document.id));
            let at = chrono::DateTime::from_timestamp_millis(before.at_ms)
                .map(|at| at.to_rfc3339())
                .unwrap_or_default();
            failed.reason = format!(
                "these hits were found by the same search at {at} and may have changed since; {}",
                failed.reason
            );
            Ok(Json(SearchReply {
                hits: before.hits,
                degraded: vec![failed],
                as_of: before.as_of,
                took_ms: 0.0,
                explain: None,
            }))
        }
        Err(error) => Err(error.into()),
    }
}
