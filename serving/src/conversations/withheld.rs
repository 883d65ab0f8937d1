//! What a conversation says that its owner may not read any more.

use serde_json::json;
use va_catalog::store::{CatalogError, StoredMessage};
use va_catalog::{DocumentId, TenantScope, Viewer};

use crate::platform::Platform;

/// Whether some documents are for some only, and not all of them for this caller. Where it is false, nothing has to be
/// looked up and everything that was said may be kept.
pub async fn is_guarded(
    platform: &Platform,
    tenant: &TenantScope,
    viewer: &Viewer,
) -> Result<bool, CatalogError> {
    Ok(*viewer != Viewer::Everything && platform.catalog.has_restricted(tenant).await?)
}

/// Answers that quote what the caller may not read any more say nothing, and neither do they go to a model as history.
pub async fn withhold(
    platform: &Platform,
    tenant: &TenantScope,
    viewer: &Viewer,
    messages: &mut [StoredMessage],
) -> Result<(), CatalogError> {
    if !is_guarded(platform, tenant, viewer).await? {
        return Ok(());
    }
    let hidden = platform.catalog.hidden_documents(viewer, tenant).await?;
    for message in messages {
        let cited = message.citations.as_array().into_iter().flatten();
        let quotes = cited
            .filter_map(|citation| citation["document"]["id"].as_str()?.parse().ok())
            .any(|id: DocumentId| hidden.contains(&id));
        if quotes {
            message.content.clear();
            message.citations = json!([]);
            message.reason = Some(
                "it is made from documents that you may not read any more; ask again to get an answer from others"
                    .to_owned(),
            );
        }
    }
    Ok(())
}
