//! Withholds from a caller what conversations say that it may not read any more.

use va_catalog::store::{Principal, StoredMessage};

use super::{App, Problem};

/// [`crate::conversations::withhold`] for the caller of a request.
pub(super) async fn withhold(
    app: &App,
    principal: &Principal,
    messages: &mut [StoredMessage],
) -> Result<(), Problem> {
    let viewer = principal.viewer();
    crate::conversations::withhold(&app.platform, &principal.tenant, &viewer, messages).await?;
    Ok(())
}
