//! Reading one fixed version of a dataset: searches, lookups and scans, possibly without some of its rows.
//!
//! Tables and splits share it. What a version is, and how long it stays, is theirs to know.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, Float32Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, Schema, SchemaRef, UInt64Type};
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::scanner::{RowAddrMask, Scanner};
use lance::dataset::{ProjectionRequest, ROW_ID};
use lance::table::format::Fragment;
use va_catalog::chunk::{column, records, strings};
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, CollectionRef, Filter, InvalidName};

use crate::VectorError;
use crate::embedded::{IndexKind, LanceOptions};
use crate::filter::filter_sql;
use crate::ids::RowIds;
use crate::parts::Parts;
use crate::rows::{dims_of, slice_problem};
use crate::store::{ChunkStream, K_MAX, Metric, VectorHit};

/// Ids in one lookup; more are looked up in several.
const IDS_PER_QUERY: usize = 1000;

#[derive(Clone)]
pub(crate) struct Reader {
    pub collection: CollectionRef,
    pub dataset: Arc<Dataset>,
    /// What is known of its rows.
    pub ids: RowIds,
    /// What is kept of its indexes.
    pub parts: Arc<Parts>,
    pub options: Arc<LanceOptions>,
    /// Rows that are not to be seen; `None` when all are.
    pub mask: Option<RowAddrMask>,
}

impl Reader {
    /// [`VectorSnapshot::search`](crate::VectorSnapshot::search).
    pub async fn search(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<VectorHit>, VectorError> {
        let started = Instant::now();
        let schema = without_vector(&self.schema());
        let Some(scanner) = self.nearest(&names(&schema), query, k, metric, filter)? else {
            return Ok(Vec::new());
        };
        let fail = |error: lance::Error| self.error("searching", error);
        let batch = scanner.try_into_batch().await.map_err(fail)?;

        let chunks = records(&batch).map_err(|error| self.error("searching", error))?;
        let mut hits: Vec<VectorHit> = chunks
            .into_iter()
            .zip(self.numbers::<Float32Type>(&batch, "_distance")?)
            .map(|(chunk, distance)| VectorHit {
                chunk,
                score: metric.score(*distance),
            })
            .collect();
        sort(&mut hits);
        metrics::histogram!("va_vector_search_seconds").record(started.elapsed().as_secs_f64());
        Ok(hits)
    }

    /// The rows that [`Reader::search`] would find, by their numbers, with their scores. In no order.
    pub async fn best(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<(f32, u64)>, VectorError> {
        self.check(query, k)?;
        if filter.is_empty()
            && let Some(best) = self.parts.best(self, query, k, metric).await?
        {
            return Ok(best);
        }
        match self.nearest(&[], query, k, metric, filter)? {
            Some(scanner) => self.run(scanner, metric).await,
            None => Ok(Vec::new()),
        }
    }

    /// The same among the rows of some files, without an index.
    pub async fn best_in(
        &self,
        fragments: Vec<Fragment>,
        query: &[f32],
        k: usize,
        metric: Metric,
    ) -> Result<Vec<(f32, u64)>, VectorError> {
        let Some(mut scanner) = self.nearest(&[], query, k, metric, &Filter::default())? else {
            return Ok(Vec::new());
        };
        scanner.with_fragments(fragments).use_index(false);
        self.run(scanner, metric).await
    }

    async fn run(
        &self,
        mut scanner: Scanner,
        metric: Metric,
    ) -> Result<Vec<(f32, u64)>, VectorError> {
        scanner.with_row_id();
        let batch = scanner
            .try_into_batch()
            .await
            .map_err(|error| self.error("searching", error))?;
        let distances = self.numbers::<Float32Type>(&batch, "_distance")?.iter();
        let rows = self.numbers::<UInt64Type>(&batch, ROW_ID)?.iter();
        let scores = distances.map(|distance| metric.score(*distance));
        Ok(scores.zip(rows.copied()).collect())
    }

    /// The chunks in these rows, in their order.
    pub async fn take(&self, rows: &[u64]) -> Result<Vec<ChunkRecord>, VectorError> {
        let schema = without_vector(&self.schema());
        let columns = ProjectionRequest::from_columns(names(&schema), self.dataset.schema());
        let batch = self
            .dataset
            .take_rows(rows, columns)
            .await
            .map_err(|error| self.error("reading", error))?;
        records(&batch).map_err(|error| self.error("reading", error))
    }

    /// [`VectorSnapshot::nearest`](crate::VectorSnapshot::nearest).
    pub async fn nearest_ids(
        &self,
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Vec<(ChunkId, f32)>, VectorError> {
        let started = Instant::now();
        let (scores, rows): (Vec<f32>, Vec<u64>) = self
            .best(query, k, metric, filter)
            .await?
            .into_iter()
            .unzip();
        let mut hits: Vec<(ChunkId, f32)> =
            self.ids(&rows).await?.into_iter().zip(scores).collect();
        hits.sort_by(better);
        metrics::histogram!("va_vector_search_seconds").record(started.elapsed().as_secs_f64());
        Ok(hits)
    }

    /// The ids of the chunks in these rows, in their order.
    pub async fn ids(&self, rows: &[u64]) -> Result<Vec<ChunkId>, VectorError> {
        let mut ids: HashMap<u64, ChunkId> = HashMap::with_capacity(rows.len());
        let mut unknown = Vec::new();
        for row in rows {
            match self.ids.get(*row) {
                Some(id) => drop(ids.insert(*row, id)),
                None => unknown.push(*row),
            }
        }
        if !unknown.is_empty() {
            let fail =
                |error: Box<dyn std::error::Error + Send + Sync>| self.error("reading", error);
            let columns = ProjectionRequest::from_columns(["id"], self.dataset.schema());
            let batch = self
                .dataset
                .take_rows(&unknown, columns)
                .await
                .map_err(|error| fail(error.into()))?;
            let read = strings(&batch, "id").map_err(|error| fail(error.into()))?;
            for (row, id) in unknown.into_iter().zip(read.iter().flatten()) {
                let id = id
                    .parse()
                    .map_err(|error: InvalidName| fail(error.into()))?;
                self.ids.insert(row, id);
                ids.insert(row, id);
            }
            self.read_ahead();
        }
        let found: Vec<ChunkId> = rows
            .iter()
            .filter_map(|row| ids.get(row).copied())
            .collect();
        if found.len() != rows.len() {
            return Err(self.error("reading", "a row that was found cannot be read"));
        }
        Ok(found)
    }

    /// Has the ids of all rows read in the background, where they are few enough to be kept. A search that finds a row for the
    /// first time need not look it up then.
    fn read_ahead(&self) {
        let fragments = self.ids.begin(self.dataset.fragments());
        if fragments.is_empty() {
            return;
        }
        let reader = self.clone();
        tokio::spawn(async move {
            // Never closed.
            let _turn = reader.ids.turn.acquire().await;
            if let Err(error) = reader.read_ids(fragments).await {
                // Searches look up what they find, as before.
                tracing::warn!(collection = %reader.collection, %error, "the ids of rows were not read ahead");
            }
        });
    }

    async fn read_ids(&self, fragments: Vec<Fragment>) -> Result<(), VectorError> {
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            VectorError::storage(&self.collection, "reading ids", error)
        };
        let mut scanner = self.scanner(&["id"])?;
        scanner.with_fragments(fragments).with_row_id();
        let stream = scanner.try_into_stream().await;
        let mut batches = stream.map_err(|error| fail(error.into()))?;
        while let Some(batch) = batches
            .try_next()
            .await
            .map_err(|error| fail(error.into()))?
        {
            let rows = self.numbers::<UInt64Type>(&batch, ROW_ID)?;
            let read = strings(&batch, "id").map_err(|error| fail(error.into()))?;
            for (row, id) in rows.iter().zip(read.iter().flatten()) {
                let id = id.parse();
                let id = id.map_err(|error: InvalidName| fail(error.into()))?;
                self.ids.insert(*row, id);
            }
            // A batch is some thousand ids; others may have something to do.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// A scan of the `k` nearest rows; `None` for none. Besides the columns it has the distance.
    fn nearest(
        &self,
        columns: &[&str],
        query: &[f32],
        k: usize,
        metric: Metric,
        filter: &Filter,
    ) -> Result<Option<Scanner>, VectorError> {
        self.check(query, k)?;
        let condition = filter_sql(filter)?;
        if k == 0 {
            return Ok(None);
        }

        let mut columns = columns.to_vec();
        columns.push("_distance");
        let mut scanner = self.scanner(&columns)?;
        let fail = |error: lance::Error| self.error("searching", error);
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
        Ok(Some(scanner))
    }

    /// Whether the `k` nearest to this vector can be searched for.
    fn check(&self, query: &[f32], k: usize) -> Result<(), VectorError> {
        if k > K_MAX {
            return Err(VectorError::Invalid(format!(
                "k is {k}; a vector search returns at most {K_MAX} hits"
            )));
        }
        if let Some(problem) = slice_problem(query) {
            return Err(VectorError::Invalid(format!("the query vector {problem}")));
        }
        check_dims(&self.collection, &self.dataset, query.len())
    }

    /// A column of an answer that Lance adds.
    fn numbers<'a, T: ArrowPrimitiveType>(
        &self,
        batch: &'a RecordBatch,
        name: &str,
    ) -> Result<&'a [T::Native], VectorError> {
        column(batch, name)
            .ok()
            .and_then(|column| column.as_primitive_opt::<T>())
            .map(|column| &column.values()[..])
            .ok_or_else(|| self.error("searching", format!("the hits have no `{name}`")))
    }

    /// [`VectorSnapshot::chunk_keys`](crate::VectorSnapshot::chunk_keys).
    pub async fn chunk_keys(&self) -> Result<Vec<ChunkKey>, VectorError> {
        let schema = without_vector(&self.schema());
        let fail = |error: lance::Error| self.error("reading chunks", error);
        let scanner = self.scanner(&names(&schema))?;
        let mut batches = scanner.try_into_stream().await.map_err(fail)?;
        let mut keys = Vec::new();
        while let Some(batch) = batches.try_next().await.map_err(fail)? {
            let chunks = records(&batch).map_err(|error| self.error("reading chunks", error))?;
            keys.extend(chunks.iter().map(ChunkRecord::key));
        }
        Ok(keys)
    }

    /// Those of the chunks that are here.
    pub async fn find(
        &self,
        ids: &[ChunkId],
        found: &mut HashMap<ChunkId, ChunkRecord>,
    ) -> Result<(), VectorError> {
        let schema = without_vector(&self.schema());
        let fail = |error: lance::Error| self.error("reading", error);
        for ids in ids.chunks(IDS_PER_QUERY) {
            let list: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
            let mut scanner = self.scanner(&names(&schema))?;
            scanner
                .filter(&format!("id IN ({})", list.join(", ")))
                .map_err(fail)?;
            let batch = scanner.try_into_batch().await.map_err(fail)?;
            let chunks = records(&batch).map_err(|error| self.error("reading", error))?;
            found.extend(chunks.into_iter().map(|chunk| (chunk.id, chunk)));
        }
        Ok(())
    }

    /// [`VectorStore::scan`](crate::VectorStore::scan).
    pub async fn scan(
        &self,
        columns: Option<&[String]>,
        filter_sql: Option<&str>,
        limit: Option<usize>,
    ) -> Result<ChunkStream, VectorError> {
        let stored = self.schema();
        let schema = match columns {
            Some(columns) => project(&stored, columns)?,
            None => without_vector(&stored),
        };
        // Lance reads no row without a column; the batches are cut down below.
        let names = match schema.fields().is_empty() {
            true => vec!["id"],
            false => names(&schema),
        };
        let mut scanner = self.scanner(&names)?;
        let invalid = |error: lance::Error| {
            VectorError::Invalid(format!("cannot scan `{}`: {error}", self.collection))
        };
        if let Some(condition) = filter_sql {
            scanner.filter(condition).map_err(invalid)?;
        }
        if let Some(limit) = limit {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            scanner.limit(Some(limit), None).map_err(invalid)?;
        }
        let stream = scanner.try_into_stream().await.map_err(invalid)?;
        let declared = schema.clone();
        let collection = self.collection.clone();
        let batches = stream
            .map(move |batch| {
                let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
                    VectorError::storage(&collection, "scanning", error)
                };
                let batch = batch.map_err(|error| fail(Box::from(error)))?;
                as_declared(&declared, &batch).map_err(|error| fail(Box::from(error)))
            })
            .boxed();
        Ok(ChunkStream { schema, batches })
    }

    /// A scan of some columns, of the rows that are to be seen.
    pub fn scanner(&self, columns: &[&str]) -> Result<Scanner, VectorError> {
        let mut scanner = self.dataset.scan();
        scanner
            .project(columns)
            .map_err(|error| self.error("reading", error))?;
        if let Some(mask) = &self.mask {
            scanner.with_row_id_prefilter(mask.clone());
        }
        Ok(scanner)
    }

    /// The stored columns, without what Lance notes about them.
    pub fn schema(&self) -> SchemaRef {
        arrow_schema(&self.dataset)
    }

    pub fn error(
        &self,
        action: &'static str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> VectorError {
        VectorError::storage(&self.collection, action, error)
    }
}

/// Fails unless the vectors of a dataset have this length.
pub(crate) fn check_dims(
    collection: &CollectionRef,
    dataset: &Dataset,
    got: usize,
) -> Result<(), VectorError> {
    let field = dataset.schema().field("vector");
    let has = field.and_then(|field| dims_of(&field.data_type()));
    match has.unwrap_or_default() {
        has if has == got => Ok(()),
        has => Err(VectorError::Dimensions {
            collection: collection.clone(),
            has,
            got,
        }),
    }
}

/// The same order of chunks that are only named.
pub(crate) fn better(a: &(ChunkId, f32), b: &(ChunkId, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0))
}

/// Best first, equal scores in one order, so that a search can be repeated.
pub(crate) fn sort(hits: &mut [VectorHit]) {
    hits.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| a.chunk.id.cmp(&b.chunk.id))
    });
}

/// The stored columns, without what Lance notes about them.
pub(crate) fn arrow_schema(dataset: &Dataset) -> SchemaRef {
    Arc::new(Schema::new(Schema::from(dataset.schema()).fields))
}

fn names(schema: &Schema) -> Vec<&str> {
    schema.fields().iter().map(|f| f.name().as_str()).collect()
}

fn without_vector(schema: &Schema) -> SchemaRef {
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .filter(|field| field.name() != "vector")
        .cloned()
        .collect();
    Arc::new(Schema::new(fields))
}

fn project(schema: &Schema, columns: &[String]) -> Result<SchemaRef, VectorError> {
    let fields = columns
        .iter()
        .map(|name| {
            schema.field_with_name(name).cloned().map_err(|_| {
                VectorError::Invalid(format!(
                    "no stored column `{name}`; the columns are {}",
                    names(schema).join(", ")
                ))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Schema::new(fields)))
}

/// The columns of `schema`, in its order.
fn as_declared(
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| column(batch, field.name()).cloned())
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}
