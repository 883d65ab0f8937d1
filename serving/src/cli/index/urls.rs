//! Pages of the web: downloaded and handed over, a few at a time. They have no folder, so nothing is ever removed.

use futures::StreamExt;

use super::meta_json;
use super::remote::RemoteDocuments;
use crate::cli::client::{Client, Outcome, encode};
use crate::folder::{Progress, SyncError, Taken, Tally, Wishes, wait_for};

/// Downloads at the same time.
const DOWNLOADS: usize = 4;

pub async fn index(
    client: &Client,
    documents: &RemoteDocuments<'_>,
    wishes: &Wishes,
    urls: &[String],
    progress: &dyn Progress,
    tally: &Tally,
) -> Result<(), SyncError> {
    tally.report().files += urls.len() as u64;
    let fetched: Vec<(String, Result<Taken, String>)> = futures::stream::iter(urls.to_vec())
        .map(|url| async move {
            let taken = fetch(client, documents, wishes, &url).await;
            (url, taken.map_err(|failure| failure.message))
        })
        .buffer_unordered(DOWNLOADS)
        .collect()
        .await;
    wait_for(documents, fetched, wishes, progress, tally).await
}

async fn fetch(
    client: &Client,
    documents: &RemoteDocuments<'_>,
    wishes: &Wishes,
    url: &str,
) -> Outcome<Taken> {
    let (bytes, content_type) = client.download(url).await?;
    let name = url.rsplit('/').find(|part| !part.is_empty()).unwrap_or(url);
    let mut path = documents.upload_path(url, name, &meta_json(&wishes.meta));
    if let Some(content_type) = content_type {
        path.push_str(&format!("&content_type={}", encode(&content_type)));
    }
    client.send(&path, "application/octet-stream", bytes).await
}
