//! `POST /api/v1/sql`: one read-only query, JSON rows back.

use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use futures::TryStreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use va_catalog::store::Principal;
use va_pipelines::fixture::batch_to_rows;

use super::problem::Body;
use super::{App, Problem};

/// Most rows in one reply; ask for fewer with LIMIT, or read more over the PostgreSQL wire.
const ROWS_MAX: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    query: String,
}

pub async fn query(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(query): Body<Query>,
) -> Result<Json<Value>, Problem> {
    let started = Instant::now();
    let wrong = |error: String| Problem::unprocessable("invalid_sql", error);
    let (schema, mut batches) = app
        .sql
        .query_as(&principal.tenant, &principal.viewer(), &query.query)
        .await
        .map_err(|error| wrong(error.to_string()))?;
    let columns: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": field.data_type().to_string()}))
        .collect();
    let mut rows: Vec<Value> = Vec::new();
    while let Some(batch) = batches
        .try_next()
        .await
        .map_err(|error| wrong(error.to_string()))?
    {
        for mut row in batch_to_rows(&batch).map_err(Problem::internal)? {
            let values = schema
                .fields()
                .iter()
                .map(|field| row.remove(field.name()).unwrap_or(Value::Null))
                .collect();
            rows.push(Value::Array(values));
        }
        if rows.len() > ROWS_MAX {
            return Err(Problem::unprocessable(
                "too_many_rows",
                format!(
                    "more than {ROWS_MAX} rows; add a LIMIT, or read them over the PostgreSQL wire"
                ),
            ));
        }
    }
    Ok(Json(
        json!({"columns": columns, "rows": rows, "took_ms": started.elapsed().as_secs_f64() * 1_000.0}),
    ))
}
