//! `POST /v1/embeddings`: vectors, also without any provider, by the embedding models of this process.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_llm::{EmbedRequest, InputType};

use super::read::{count, take, text, wrong};
use super::{caller, object, told};
use crate::http::{App, Problem};

/// As many as OpenAI takes.
const TEXTS_MAX: usize = 2_048;

pub(super) async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut body = object(&body)?;
    let texts = texts(take(&mut body, "input"))?;
    let base64 = match text(&mut body, "encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(wrong(
                "encoding_format",
                format!("`{other}` is neither float nor base64"),
            ));
        }
    };
    let input_type = match text(&mut body, "input_type")?.as_deref() {
        None | Some("passage" | "document" | "search_document") => InputType::Passage,
        Some("query" | "search_query") => InputType::Query,
        Some(other) => {
            return Err(wrong(
                "input_type",
                format!("`{other}` is neither query nor passage"),
            ));
        }
    };
    let request = EmbedRequest {
        model: text(&mut body, "model")?.unwrap_or_else(|| va_models::DEFAULT_EMBEDDER.to_owned()),
        texts,
        dimensions: count(&mut body, "dimensions")?,
        input_type,
        user: text(&mut body, "user")?,
    };
    let caller = caller(&app, &principal, &headers);
    let (reply, info) = app.platform.gateway.embed(&caller, &request).await?;
    let vectors: Vec<Value> = reply
        .vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let vector = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": vector})
        })
        .collect();
    let tokens = reply.usage.input;
    let reply = json!({
        "object": "list",
        "data": vectors,
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(told(Json(reply).into_response(), &info))
}

fn texts(input: Option<Value>) -> Result<Vec<String>, Problem> {
    let texts = match input {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(at, text)| match text {
                Value::String(text) => Ok(text),
                Value::Number(_) | Value::Array(_) => Err(wrong(
                    "input",
                    "token ids belong to one model's tokenizer and are not taken: send text",
                )),
                _ => Err(wrong(&format!("input[{at}]"), "must be a string")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong("input", "must be a string or a list of strings")),
    };
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return Err(wrong(
            "input",
            format!("holds {} texts: send 1 to {TEXTS_MAX}", texts.len()),
        ));
    }
    if let Some(at) = texts.iter().position(String::is_empty) {
        return Err(wrong(&format!("input[{at}]"), "is empty"));
    }
    Ok(texts)
}
