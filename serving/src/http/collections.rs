//! Collections: list, create, get, delete.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::{Collection, CollectionConfig, Page, Principal};
use va_catalog::{CollectionName, CollectionRef, Viewer};

use super::problem::{Body, Params};
use super::{App, Problem};
use crate::ingest;
use crate::verify::{Report, VerifyError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    limit: Option<u32>,
    cursor: Option<String>,
}

impl Paging {
    pub fn page(self) -> Page {
        Page {
            cursor: self.cursor,
            ..Page::first(self.limit.unwrap_or(100))
        }
    }
}

/// The collection of the path, in the caller's tenant.
pub fn scoped(principal: &Principal, name: &str) -> Result<CollectionRef, Problem> {
    Ok(principal.tenant.collection(CollectionName::new(name)?))
}

pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(paging): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let listing = app
        .platform
        .catalog
        .collections(&principal.tenant, &paging.page())
        .await?;
    let mut items = Vec::with_capacity(listing.items.len());
    for collection in listing.items {
        items.push(shown(&app, &principal, collection).await?);
    }
    Ok(Json(json!({"items": items, "cursor": listing.next})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCollection {
    name: CollectionName,
    model: Option<String>,
    /// No vectors: nothing is embedded, only keyword search finds the documents.
    #[serde(default)]
    keyword_only: bool,
    #[serde(default)]
    description: String,
}

pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(new): Body<NewCollection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    // The built-in `index` pipeline embeds every collection with the one model that it names.
    let model = va_models::DEFAULT_EMBEDDER;
    if new.keyword_only && new.model.is_some() {
        return Err(Problem::invalid(
            "`keyword_only` collections have no `model`: leave one of the two out",
        ));
    }
    if let Some(other) = new.model.filter(|wanted| wanted != model) {
        return Err(Problem::invalid(format!(
            "collections are embedded with `{model}`, not `{other}`; leave `model` out"
        )));
    }
    let dims = va_models::dims_of(model).map_err(Problem::internal)?;
    let config = CollectionConfig {
        model: (!new.keyword_only).then(|| model.to_owned()),
        dims: (!new.keyword_only).then_some(dims as u32),
        description: new.description,
        ..CollectionConfig::default()
    };
    let collection = principal.tenant.collection(new.name);
    let created = app
        .platform
        .catalog
        .create_collection(&collection, &config)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(shown(&app, &principal, created).await?),
    ))
}

pub async fn get(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let collection = app
        .platform
        .catalog
        .collection(&scoped(&principal, &name)?)
        .await?;
    Ok(Json(shown(&app, &principal, collection).await?))
}

/// Hidden at once; when this answers, its indexes are gone too.
pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let collection = scoped(&principal, &name)?;
    app.platform.catalog.delete_collection(&collection).await?;
    ingest::remove_collection(&app.platform, &collection).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether catalog and indexes agree.
pub async fn verify(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<Report>, Problem> {
    let collection = scoped(&principal, &name)?;
    // The report names and counts every document.
    if principal.viewer() != Viewer::Everything
        && app.platform.catalog.is_restricted(&collection).await?
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "this looks at every document of the collection, so it needs the permission `documents.manage`",
        ));
    }
    match crate::verify::verify(&app.platform, &collection).await {
        Ok(report) => Ok(Json(report)),
        Err(VerifyError::Catalog(error)) => Err(error.into()),
        Err(VerifyError::Index(message)) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            message,
        )),
    }
}

async fn shown(app: &App, principal: &Principal, collection: Collection) -> Result<Value, Problem> {
    let name = principal.tenant.collection(collection.name.clone());
    let viewer = principal.viewer();
    let counts = app
        .platform
        .catalog
        .collection_counts(&name, &viewer)
        .await?;
    Ok(json!({
        "name": collection.name,
        "model": collection.config.model,
        "dims": collection.config.dims,
        "keyword_only": collection.config.model.is_none(),
        "description": collection.config.description,
        "created_at": collection.created_at,
        "updated_at": collection.updated_at,
        "documents": counts.documents,
        "chunks": counts.chunks,
        "states": counts.by_state,
    }))
}
