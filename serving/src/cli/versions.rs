//! `va document versions|diff|rollback`.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print, time};

/// How often the state of a document is asked for.
const POLL: Duration = Duration::from_millis(250);

/// The versions of the document at `path`, newest first.
pub async fn versions(client: &Client, path: &str, json: bool) -> Outcome<()> {
    let list: Value = client.get(&format!("{path}/versions")).await?;
    if json {
        println!("{list}");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|version| {
            vec![
                cell(&version["version"]),
                cell(&version["state"]),
                cell(&version["chunks"]),
                cell(&version["size"]),
                time(&version["created_at"]),
                cell(&version["content_hash"]).chars().take(12).collect(),
                cell(&version["title"]),
                cell(&version["error"]),
            ]
        })
        .collect();
    print(
        &[
            "VERSION",
            "STATE",
            "CHUNKS",
            "BYTES",
            "TAKEN (UTC)",
            "CONTENT",
            "TITLE",
            "ERROR",
        ],
        &rows,
    );
    Ok(())
}

/// What changed in the text between two versions.
pub async fn diff(
    client: &Client,
    path: &str,
    from: Option<u32>,
    to: Option<u32>,
    json: bool,
) -> Outcome<()> {
    let query: Vec<String> = [("from", from), ("to", to)]
        .into_iter()
        .filter_map(|(field, version)| Some(format!("{field}={}", version?)))
        .collect();
    let difference: Value = client
        .get(&format!("{path}/diff?{}", query.join("&")))
        .await?;
    if json {
        println!("{difference}");
    } else if difference["diff"] == "" {
        eprintln!(
            "The texts of versions {} and {} are equal.",
            difference["from"], difference["to"]
        );
    } else {
        print!("{}", difference["diff"].as_str().unwrap_or_default());
    }
    Ok(())
}

/// Makes the content of an old version the newest one.
pub async fn rollback(
    client: &Client,
    path: &str,
    to: u32,
    no_wait: bool,
    json: bool,
) -> Outcome<()> {
    let mut reply = client
        .post(&format!("{path}/rollback"), &json!({"version": to}))
        .await?;
    let unchanged = reply["outcome"] == "unchanged";
    let mut polls = tokio::time::interval(POLL);
    while !no_wait && !matches!(reply["state"].as_str(), Some("READY" | "FAILED")) {
        polls.tick().await;
        let document: Value = client.get(path).await?;
        if document["version"] != reply["version"] {
            return Err(Failure::failed(format!(
                "version {} was overtaken by version {}",
                reply["version"], document["version"]
            )));
        }
        reply["state"] = document["state"].clone();
        reply["error"] = document["error"].clone();
    }
    if json {
        println!("{reply}");
    } else if unchanged {
        println!(
            "Version {} has the content of version {to} already.",
            reply["version"]
        );
    } else {
        println!(
            "Version {} has the content of version {to}: {}",
            reply["version"],
            cell(&reply["state"])
        );
    }
    if reply["state"] == "FAILED" {
        return Err(Failure::failed(cell(&reply["error"])));
    }
    Ok(())
}

/// The document as a path of the API.
pub fn path(collection: &str, id: &str) -> String {
    format!(
        "/api/v1/collections/{}/documents/{}",
        encode(collection),
        encode(id)
    )
}
