//! `POST /v1/audio/transcriptions` and `POST /v1/audio/speech`: OpenAI's endpoints for voices, at providers that have them.

use axum::Extension;
use axum::body::Body;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use va_catalog::store::Principal;
use va_llm::{SpeakRequest, TranscribeRequest};

use super::read::{text, wrong};
use super::{caller, object, told};
use crate::http::{App, Problem};

/// As much as OpenAI takes.
const FILE_BYTES_MAX: usize = 25 << 20;
const FIELD_BYTES_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 32;
/// About an hour and a half of speech.
const INPUT_CHARS_MAX: usize = 100_000;

pub(super) async fn transcribe(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = caller(&app, &principal, request.headers());
    let parts = Multipart::from_request(request, &())
        .await
        .map_err(|rejection: MultipartRejection| Problem::invalid(rejection.body_text()))?;
    let request = form(parts).await?;
    let (reply, info) = app.platform.gateway.transcribe(&caller, &request).await?;
    let response = of_type(&reply.content_type, Body::from(reply.body));
    Ok(told(response, &info))
}

async fn form(mut parts: Multipart) -> Result<TranscribeRequest, Problem> {
    let mut request = TranscribeRequest::default();
    let mut has_file = false;
    while let Some(mut part) = parts
        .next_field()
        .await
        .map_err(|error| Problem::invalid(error.body_text()))?
    {
        let name = part.name().unwrap_or_default().to_owned();
        let is_file = name == "file";
        if is_file {
            request.file_name = part.file_name().unwrap_or("audio").to_owned();
            request.content_type = part.content_type().map(str::to_owned);
        }
        let most = if is_file {
            FILE_BYTES_MAX
        } else {
            FIELD_BYTES_MAX
        };
        let mut bytes = BytesMut::new();
        while let Some(piece) = part
            .chunk()
            .await
            .map_err(|error| Problem::invalid(error.body_text()))?
        {
            if bytes.len() + piece.len() > most {
                return Err(Problem::too_large(format!(
                    "the part `{name}` may have at most {most} bytes: send a shorter recording, or a compressed one"
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        if is_file {
            has_file = true;
            request.file = bytes.freeze();
            continue;
        }
        let value = std::str::from_utf8(&bytes)
            .map_err(|_| wrong(&name, "must be text"))?
            .to_owned();
        match name.as_str() {
            "model" => request.model = value,
            "stream" if value == "true" => {
                return Err(wrong("stream", "is not supported: leave it out"));
            }
            "stream" => {}
            _ if request.fields.len() >= FIELDS_MAX => {
                return Err(Problem::invalid(format!(
                    "the form has more than {FIELDS_MAX} fields"
                )));
            }
            _ => request.fields.push((name, value)),
        }
    }
    if !has_file || request.file.is_empty() {
        return Err(wrong("file", "is missing or empty"));
    }
    if request.model.is_empty() {
        return Err(wrong("model", "is missing"));
    }
    Ok(request)
}

pub(super) async fn speak(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut body = object(&body)?;
    let model = text(&mut body, "model")?.ok_or_else(|| wrong("model", "is missing"))?;
    let input = text(&mut body, "input")?
        .filter(|input| !input.trim().is_empty())
        .ok_or_else(|| wrong("input", "is missing or empty"))?;
    let chars = input.chars().count();
    if chars > INPUT_CHARS_MAX {
        return Err(wrong(
            "input",
            format!("has {chars} characters: send at most {INPUT_CHARS_MAX} at a time"),
        ));
    }
    body.retain(|_, value| !value.is_null());
    let request = SpeakRequest {
        model,
        input,
        extra: body,
    };
    let caller = caller(&app, &principal, &headers);
    let voice = app.platform.gateway.speak(&caller, &request).await?;
    let (info, kind) = (voice.info.clone(), voice.content_type.clone());
    // A voice that breaks off ends the connection in the middle, which is how a client can tell.
    let pieces = voice.inspect_err(|error| tracing::warn!(%error, "a voice broke off"));
    Ok(told(of_type(&kind, Body::from_stream(pieces)), &info))
}

fn of_type(kind: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_str(kind)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
