//! [`Documents`] over HTTP.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::settings::LimitSettings;
use va_catalog::{ContentHash, DocumentId, Readers};

use super::meta_json;
use crate::cli::client::{Client, Failure, encode};
use crate::folder::{Checked, Documents, Large, Small, Standing, SyncError, Taken, Trouble};

/// A collection of the server.
pub struct RemoteDocuments<'a> {
    client: &'a Client,
    /// Path of the collection's documents.
    base: String,
    /// One that does not exist holds nothing; only asked, never written.
    exists: bool,
    /// Who may read what is handed over; `None`: it stays as it is.
    readers: Option<Readers>,
}

impl<'a> RemoteDocuments<'a> {
    pub fn new(
        client: &'a Client,
        collection: &str,
        exists: bool,
        readers: Option<Readers>,
    ) -> Self {
        Self {
            client,
            base: format!("/api/v1/collections/{}/documents", encode(collection)),
            exists,
            readers,
        }
    }

    /// Where one document is uploaded to.
    pub fn upload_path(&self, uri: &str, name: &str, meta: &Value) -> String {
        let mut path = format!(
            "{}?name={}&uri={}&meta={}",
            self.base,
            encode(name),
            encode(uri),
            encode(&meta.to_string())
        );
        if let Some(readers) = &self.readers {
            path.push_str("&readers=");
            path.push_str(&encode(&json!(readers).to_string()));
        }
        path
    }
}

impl From<Failure> for SyncError {
    fn from(failure: Failure) -> Self {
        Self(failure.message)
    }
}

#[derive(Deserialize)]
struct Items<T> {
    items: Vec<T>,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BulkOutcome {
    Taken(Taken),
    Refused { error: String },
}

#[derive(Deserialize)]
struct Named {
    id: DocumentId,
    uri: String,
}

#[async_trait]
impl Documents for RemoteDocuments<'_> {
    async fn check(&self, contents: &[(String, ContentHash)]) -> Result<Checked, SyncError> {
        if !self.exists {
            return Ok(Checked {
                upload_bytes_max: LimitSettings::default().upload_bytes_max,
                ..Checked::default()
            });
        }
        let items: Vec<Value> = contents
            .iter()
            .map(|(uri, hash)| json!({"uri": uri, "hash": hash}))
            .collect();
        let path = format!("{}/check", self.base);
        let body = json!({"items": items, "readers": self.readers});
        Ok(self.client.ask(&path, &body).await?)
    }

    async fn hand_over(&self, files: Vec<Small>) -> Result<Vec<Result<Taken, String>>, SyncError> {
        let items: Vec<Value> = files
            .iter()
            .map(|file| {
                json!({
                    "uri": file.uri, "name": file.name, "meta": file.meta, "readers": self.readers,
                })
            })
            .collect();
        let count = files.len();
        let boundary = format!("va-{}", uuid::Uuid::now_v7().simple());
        // In one piece: sent bit by bit, a few hundred files cost more for the bits than for the bytes.
        let head = |name: &str| {
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n")
        };
        let (head_of_file, end) = (head("file"), format!("\r\n--{boundary}--\r\n"));
        let mut body = head("items").into_bytes();
        serde_json::to_writer(&mut body, &items).map_err(SyncError::new)?;
        for file in files {
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(head_of_file.as_bytes());
            body.extend_from_slice(&file.bytes);
        }
        body.extend_from_slice(end.as_bytes());
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let path = format!("{}/bulk", self.base);
        let reply: Items<BulkOutcome> = self.client.send(&path, &content_type, body).await?;
        if reply.items.len() != count {
            return Err(SyncError(format!(
                "the server answered for {} of {count} files",
                reply.items.len()
            )));
        }
        Ok(reply
            .items
            .into_iter()
            .map(|outcome| match outcome {
                BulkOutcome::Taken(taken) => Ok(taken),
                BulkOutcome::Refused { error } => Err(error),
            })
            .collect())
    }

    async fn hand_over_large(&self, file: Large<'_>) -> Result<Taken, String> {
        let path = self.upload_path(file.uri, file.name, &meta_json(file.meta));
        let open = tokio::fs::File::open(file.path)
            .await
            .map_err(|error| format!("read: {error}"))?;
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(open));
        self.client
            .send(&path, "application/octet-stream", body)
            .await
            .map_err(|failure| failure.message)
    }

    async fn under(&self, prefix: &str) -> Result<Vec<(DocumentId, String)>, SyncError> {
        let mut found = Vec::new();
        let mut cursor = String::new();
        if !self.exists {
            return Ok(found);
        }
        loop {
            let path = format!(
                "{}/under?limit=1000&prefix={}{cursor}",
                self.base,
                encode(prefix)
            );
            let page: Items<Named> = self.client.get(&path).await?;
            found.extend(page.items.into_iter().map(|named| (named.id, named.uri)));
            match page.cursor {
                Some(next) => cursor = format!("&cursor={}", encode(&next)),
                None => return Ok(found),
            }
        }
    }

    async fn standing(&self, ids: &[DocumentId]) -> Result<Vec<Standing>, SyncError> {
        let path = format!("{}/states", self.base);
        let reply: Items<Standing> = self.client.ask(&path, &json!({"ids": ids})).await?;
        Ok(reply.items)
    }

    async fn remove(&self, ids: &[DocumentId]) -> Result<(), SyncError> {
        let path = format!("{}/delete", self.base);
        self.client.post(&path, &json!({"ids": ids})).await?;
        Ok(())
    }

    async fn trouble(&self) -> Result<Option<Trouble>, SyncError> {
        let pipeline: Value = self.client.get("/api/v1/pipelines/index").await?;
        let reason = pipeline["reason"].as_str().unwrap_or_default().to_owned();
        Ok(match pipeline["state"].as_str() {
            Some("failed") => Some(Trouble::Failed(reason)),
            Some("restarting") => Some(Trouble::Restarting(reason)),
            _ => None,
        })
    }
}
