//! `GET /v1/models`: what can be asked for, with the fields of both OpenAI's and Anthropic's list.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use va_llm::ModelInfo;

use crate::http::{App, Problem};

pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let started = app.platform.started_at_ms;
    let mut models: Vec<Value> = Vec::new();
    for model in app.platform.gateway.models() {
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            models.push(shown(name, &model, started));
        }
    }
    let first = models.first().map(|model| model["id"].clone());
    let last = models.last().map(|model| model["id"].clone());
    Json(
        json!({"object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last}),
    )
}

pub(super) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let models = app.platform.gateway.models();
    let found = models
        .iter()
        .find(|model| model.name == name || model.aliases.contains(&name));
    match found {
        Some(model) => Ok(Json(shown(&name, model, app.platform.started_at_ms))),
        None => {
            let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
            Err(Problem::new(
                axum::http::StatusCode::NOT_FOUND,
                "model_not_found",
                format!("there is no model `{name}`: there is {}", names.join(", ")),
            ))
        }
    }
}

fn shown(name: &str, model: &ModelInfo, started_ms: i64) -> Value {
    let at = chrono::DateTime::from_timestamp_millis(started_ms).unwrap_or_default();
    json!({
        "id": name,
        "object": "model",
        "created": started_ms / 1_000,
        "owned_by": model.provider,
        "type": "model",
        "display_name": name,
        "created_at": at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "use": model.used_for,
    })
}
