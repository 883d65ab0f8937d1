//! Searching one fixed version of a table.
//!
//! A snapshot is one Lance version: later commits do not show in it. While one is alive, pruning
//! leaves its version alone, so that it stays readable for as long as it is held. Writing is `apply`'s business.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, Float32Array};
use arrow::datatypes::Float32Type;
use async_trait::async_trait;
use futures::TryStreamExt;
use lance::Dataset;
use va_catalog::chunk::{column, records};
use va_catalog::{ChunkKey, Filter};

use crate::VectorError;
use crate::embedded::{IndexKind, LanceOptions, without_vector};
use crate::filter::filter_sql;
use crate::rows::slice_problem;
use crate::store::{K_MAX, Metric, VectorHit, VectorSnapshot};
use crate::table::{OpenTable, Reading, arrow_schema};

pub(crate) struct LanceSnapshot {
    table: Arc<OpenTable>,
    dataset: Arc<Dataset>,
    options: Arc<LanceOptions>,
    /// Keeps the version from being pruned.
    _reading: Reading,
}

impl LanceSnapshot {
    pub fn new(table: Arc<OpenTable>, dataset: Arc<Dataset>, options: Arc<LanceOptions>) -> Self {
        Self {
            _reading: table.reading(dataset.version().version),
            table,
            dataset,
            options,
        }
    }
}

#[async_trait]
impl VectorSnapshot for LanceSnapshot {
    fn version(&self) -> u64 {
        self.dataset.version().version
    }

    async fn search(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError> {
        if k > K_MAX {
            return Err(VectorError::Invalid(format!(
                "k is {k}; a vector search returns at most {K_MAX} hits"
            )));
        }
        if let Some(problem) = slice_problem(query) {
            return Err(VectorError::Invalid(format!("the query vector {problem}")));
        }
        let condition = filter_sql(filter)?;
        let (table, dataset) = (&self.table, &self.dataset);
        table.check_dims(dataset, query.len())?;
        if k == 0 {
            return Ok(Vec::new());
        }

        let started = Instant::now();
        let schema = without_vector(&arrow_schema(dataset));
        let mut columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        columns.push("_distance");
        let mut scanner = table.scanner(dataset, &columns)?;
        let fail = |error: lance::Error| table.error("searching", error);
        scanner
            .nearest("vector", &Float32Array::from(query.to_vec()), k)
            .map_err(fail)?
            .distance_metric(metric.distance().into())
            .prefilter(true);
        if let Some(condition) = &condition {
            scanner.filter(condition).map_err(fail)?;
        }
        if let Some(nprobes) = self.options.nprobes {
            // Only a minimum: a filter that leaves few rows makes the search go on to more partitions.
            scanner.minimum_nprobes(nprobes);
        }
        if self.options.index_kind == IndexKind::IvfHnswSq {
            scanner.refine(2).ef((2 * k).max(128));
        }
        let batch = scanner.try_into_batch().await.map_err(fail)?;

        let chunks = records(&batch).map_err(|error| table.error("searching", error))?;
        let distances = column(&batch, "_distance")
            .ok()
            .and_then(|distances| distances.as_primitive_opt::<Float32Type>())
            .ok_or_else(|| table.error("searching", "the hits have no distance"))?;
        let mut hits: Vec<VectorHit> = chunks
            .into_iter()
            .zip(distances.values())
            .map(|(chunk, distance)| VectorHit {
                chunk,
                score: metric.score(*distance),
            })
            .collect();
        // Equal scores in one order, so that a search can be repeated.
        hits.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.chunk.id.cmp(&b.chunk.id))
        });
        metrics::histogram!("va_vector_search_seconds").record(started.elapsed().as_secs_f64());
        Ok(hits)
    }

    async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        let (table, dataset) = (&self.table, &self.dataset);
        let schema = without_vector(&arrow_schema(dataset));
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let mut batches = table
            .scanner(dataset, &columns)?
            .try_into_stream()
            .await
            .map_err(|error| table.error("reading chunks", error))?;
        let mut keys = Vec::new();
        while let Some(batch) = batches
            .try_next()
            .await
            .map_err(|error| table.error("reading chunks", error))?
        {
            let chunks = records(&batch).map_err(|error| table.error("reading chunks", error))?;
            keys.extend(chunks.iter().map(va_catalog::ChunkRecord::key));
        }
        Ok(keys)
    }
}
