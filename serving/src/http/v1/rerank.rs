//! `POST /v1/rerank`: documents by how well they answer a query, as Jina, Cohere and llama.cpp have it.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::RerankRequest;

use super::read::{count, flag, list, text, wrong};
use super::{caller, new_id, object, told};
use crate::http::{App, Problem};

const DOCUMENTS_MAX: usize = 1_000;

pub(super) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut body = object(&body)?;
    let query = text(&mut body, "query")?
        .filter(|query| !query.is_empty())
        .ok_or_else(|| wrong("query", "is missing"))?;
    let documents = list(&mut body, "documents")?
        .into_iter()
        .enumerate()
        .map(|(at, document)| match &document {
            Value::String(text) => Ok(text.clone()),
            Value::Object(fields) => match fields.get("text") {
                Some(Value::String(text)) => Ok(text.clone()),
                _ => Err(wrong(&format!("documents[{at}].text"), "must be a string")),
            },
            _ => Err(wrong(&format!("documents[{at}]"), "must be a string")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if documents.is_empty() || documents.len() > DOCUMENTS_MAX {
        return Err(wrong(
            "documents",
            format!("holds {}: send 1 to {DOCUMENTS_MAX}", documents.len()),
        ));
    }
    let request = RerankRequest {
        model: text(&mut body, "model")?.unwrap_or_else(|| va_models::DEFAULT_EMBEDDER.to_owned()),
        query,
        documents,
        top_n: count(&mut body, "top_n")?,
    };
    let with_documents = flag(&mut body, "return_documents")?.unwrap_or_default();
    let caller = caller(&app, &principal, &headers);
    let (reply, info) = app.platform.gateway.rerank(&caller, &request).await?;
    let results: Vec<Value> = reply
        .ranked
        .iter()
        .map(|ranked| {
            let mut result = json!({"index": ranked.index, "relevance_score": ranked.score});
            if with_documents {
                result["document"] = json!({"text": request.documents[ranked.index]});
            }
            result
        })
        .collect();
    let tokens = reply.usage.input;
    let reply = json!({
        "id": new_id("rerank-"),
        "model": request.model,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(told(Json(reply).into_response(), &info))
}
