//! `embed`: adds a vector to every chunk row, with a local model.
//!
//! Vectors are kept in the operator's state under the hash of model and text, so that a replay, or a chunk that did not
//! change, is never computed again. Running the model is `va-models`' business.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use va_catalog::ChunkOp;
use va_catalog::chunk::{chunk_schema, strings, vector_field};
use va_connectors::flow::{FlowError, Names, Problem};
use va_models::{Embedder, Role};

use crate::operator::{Cx, Operator, OperatorSpec, Resources};
use crate::shape::expect_columns;

/// Adds the column `vector` to chunk rows. What stands above the chunk (`context`: titles, the header row of its table)
/// is embedded with it, so that it is found by them too.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbedSpec {
    /// The embedding model: a name from `va model list`, or a directory with a model and its tokenizer.
    #[serde(default = "crate::registry::chunk::default_model")]
    pub model: String,
}

impl OperatorSpec for EmbedSpec {
    const KIND: &'static str = "embed";
    const EXAMPLE: &'static str = include_str!("../examples/embed.yaml");

    fn output(&self, inputs: &[SchemaRef], _names: &dyn Names) -> Result<SchemaRef, Vec<Problem>> {
        expect_columns(&inputs[0], &chunk_schema(None))?;
        expect_columns(
            &inputs[0],
            &Schema::new(vec![Field::new("context", DataType::Utf8, true)]),
        )?;
        let dims = va_models::dims_of(&self.model).map_err(|error| {
            vec![Problem::new(&["model"], error.to_string()).hint("see `va model list`")]
        })?;
        Ok(with_vector(&inputs[0], dims))
    }

    fn build(
        self,
        _inputs: &[SchemaRef],
        resources: &Resources,
    ) -> Result<Box<dyn Operator>, FlowError> {
        let dims =
            va_models::dims_of(&self.model).map_err(|error| FlowError::fatal("embed", error))?;
        Ok(Box::new(EmbedTask {
            model: self.model,
            dims,
            resources: resources.clone(),
        }))
    }
}

fn with_vector(input: &Schema, dims: usize) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = input.fields().iter().cloned().collect();
    fields.push(Arc::new(vector_field(dims)));
    Arc::new(Schema::new(fields))
}

/// The model, loaded on first use and shared by all operators.
async fn load(resources: &Resources, model: &str) -> Result<Arc<dyn Embedder>, FlowError> {
    let (embedders, model) = (resources.embedders.clone(), model.to_owned());
    tokio::task::spawn_blocking(move || embedders.get(&model))
        .await
        .map_err(|error| FlowError::fatal("embed", error))?
        .map_err(|error| FlowError::fatal("embed", error))
}

struct EmbedTask {
    model: String,
    /// Length of the vectors, as planned.
    dims: usize,
    resources: Resources,
}

#[async_trait]
impl Operator for EmbedTask {
    async fn on_batch(
        &mut self,
        _input: usize,
        batch: RecordBatch,
        cx: &mut Cx,
    ) -> Result<(), FlowError> {
        let texts = texts_of(&batch)?;
        if texts.iter().all(Option::is_none) {
            // Removals, and collections without vectors: the model need not be loaded.
            let rows = batch.num_rows();
            let batch = add_vectors(&batch, &vec![None; rows], &HashMap::new(), self.dims)?;
            cx.passed(rows);
            return cx.emit(batch).await;
        }
        let embedder = load(&self.resources, &self.model).await?;
        let keys: Vec<Option<[u8; 32]>> = texts
            .iter()
            .map(|text| {
                text.as_ref()
                    .map(|text| cache_key(embedder.fingerprint(), text))
            })
            .collect();

        let mut vectors: HashMap<[u8; 32], Vec<f32>> = HashMap::new();
        let mut missing: Vec<([u8; 32], String)> = Vec::new();
        for (key, text) in keys.iter().zip(texts) {
            let (Some(key), Some(text)) = (key, text) else {
                continue;
            };
            if vectors.contains_key(key) || missing.iter().any(|(seen, _)| seen == key) {
                continue;
            }
            match cx
                .state()
                .get(key)
                .await?
                .and_then(|stored| decode(&stored, embedder.dims()))
            {
                Some(vector) => {
                    vectors.insert(*key, vector);
                }
                None => missing.push((*key, text)),
            }
        }
        let cached = vectors.len() as u64;
        metrics::counter!("va_embed_cache_total", "outcome" => "hit").increment(cached);
        metrics::counter!("va_embed_cache_total", "outcome" => "miss")
            .increment(missing.len() as u64);

        if !missing.is_empty() {
            let model = embedder.clone();
            let (missing, computed) = tokio::task::spawn_blocking(move || {
                let texts: Vec<&str> = missing.iter().map(|(_, text)| text.as_str()).collect();
                let computed = model.embed(&texts, Role::Passage);
                (missing, computed)
            })
            .await
            .map_err(|error| FlowError::fatal("embed", error))?;
            let computed = computed.map_err(|error| FlowError::retriable("embed", error))?;
            for ((key, _), vector) in missing.into_iter().zip(computed) {
                cx.state().put(key.to_vec(), encode(&vector));
                vectors.insert(key, vector);
            }
        }

        let rows = batch.num_rows();
        let batch = add_vectors(&batch, &keys, &vectors, embedder.dims())?;
        cx.passed(rows);
        cx.emit(batch).await
    }
}

/// What is embedded of each row: its context, if it has one, and its text; `None` on rows that are not chunks, and on
/// those of a collection without vectors.
fn texts_of(batch: &RecordBatch) -> Result<Vec<Option<String>>, FlowError> {
    let op = strings(batch, "op")?;
    let text = strings(batch, "text")?;
    let context = strings(batch, "context")?;
    (0..batch.num_rows())
        .map(|row| {
            let wanted = crate::parsed::yes_or_no(batch, "vectors", row)?.unwrap_or(true);
            let text = text.value(row);
            Ok(
                (wanted && op.value(row) == ChunkOp::Chunk.as_str()).then(|| {
                    if context.is_valid(row) {
                        format!("{}\n{text}", context.value(row))
                    } else {
                        text.to_owned()
                    }
                }),
            )
        })
        .collect()
}

fn cache_key(fingerprint: &str, text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fingerprint.as_bytes());
    hasher.update(&[0]);
    hasher.update(text.as_bytes());
    *hasher.finalize().as_bytes()
}

fn encode(vector: &[f32]) -> Bytes {
    vector
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// `None` when the stored vector has another length.
fn decode(stored: &[u8], dims: usize) -> Option<Vec<f32>> {
    let (values, rest) = stored.as_chunks::<4>();
    (values.len() == dims && rest.is_empty()).then(|| {
        values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    })
}

fn add_vectors(
    batch: &RecordBatch,
    keys: &[Option<[u8; 32]>],
    vectors: &HashMap<[u8; 32], Vec<f32>>,
    dims: usize,
) -> Result<RecordBatch, FlowError> {
    let mut values = Vec::with_capacity(keys.len() * dims);
    let mut valid = Vec::with_capacity(keys.len());
    for key in keys {
        let vector = key.as_ref().and_then(|key| vectors.get(key));
        valid.push(vector.is_some());
        match vector {
            Some(vector) => values.extend_from_slice(vector),
            None => values.resize(values.len() + dims, 0.0),
        }
    }
    let DataType::FixedSizeList(item, _) = vector_field(dims).data_type().clone() else {
        return Err(FlowError::fatal(
            "embed",
            "the vector column is not a fixed-size list",
        ));
    };
    let list = FixedSizeListArray::try_new(
        item,
        dims as i32,
        Arc::new(Float32Array::from(values)),
        Some(NullBuffer::from(valid)),
    )?;
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns.push(Arc::new(list) as Arc<dyn Array>);
    Ok(RecordBatch::try_new(
        with_vector(&batch.schema(), dims),
        columns,
    )?)
}
