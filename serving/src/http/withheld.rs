//! What a conversation says that its owner may not read any more.

use serde_json::json;
use va_catalog::store::{Principal, StoredMessage};
use va_catalog::{DocumentId, Viewer};

use super::{App, Problem};

/// Answers that quote what the caller may not read any more say nothing, and neither do they go to a model as history.
pub(super) async fn withhold(
    app: &App,
    principal: &Principal,
    messages: &mut [StoredMessage],
) -> Result<(), Problem> {
    let catalog = &app.platform.catalog;
    let viewer = principal.viewer();
    // Where nothing is for some only, nothing is looked up.
    if viewer == Viewer::Everything || !catalog.has_restricted(&principal.tenant).await? {
        return Ok(());
    }
    let hidden = catalog.hidden_documents(&viewer, &principal.tenant).await?;
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
