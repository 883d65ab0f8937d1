//! Rows and stores for the tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use tempfile::TempDir;
use va_catalog::chunk::{OneOrMany, batch_of};
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, TenantId,
    Version, chunk_schema,
};
use va_vector::{LanceOptions, LanceStore, Metric, VectorStore};

pub const DIMS: usize = 8;

/// Pseudo-random numbers (SplitMix64), the same in every run.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vector(&mut self, dims: usize) -> Vec<f32> {
        (0..dims).map(|_| self.value()).collect()
    }
}

pub fn collection(tenant: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: TenantId::new(tenant).expect("a valid tenant"),
        collection: CollectionName::new(name).expect("a valid name"),
    }
}

pub fn document(collection: &CollectionRef, name: &str) -> DocumentId {
    DocumentId::of(collection, name)
}

/// Chunk `index` of `count` of a document.
pub fn chunk(
    collection: &CollectionRef,
    name: &str,
    version: u32,
    index: u32,
    count: u32,
    tags: &[&str],
) -> ChunkRecord {
    let id = document(collection, name);
    ChunkRecord {
        id: ChunkId::of(collection, id, Version(version), index),
        document: DocumentRef {
            id,
            name: name.to_owned(),
            uri: format!("file:///{name}"),
            title: index.is_multiple_of(2).then(|| format!("标题 {name}")),
            version: Version(version),
        },
        index,
        count,
        title_path: vec!["表格".to_owned(), name.to_owned()],
        page: (index > 0).then_some(index),
        start: u64::from(index) * 10,
        end: u64::from(index) * 10 + 10,
        text: format!("{name} v{version} #{index}"),
        tokens: 10,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
    }
}

/// Rows as `embed` emits them.
pub fn rows(
    collection: &CollectionRef,
    chunks: &[(ChunkRecord, Vec<f32>)],
    dims: usize,
) -> RecordBatch {
    let records: Vec<ChunkRecord> = chunks.iter().map(|(record, _)| record.clone()).collect();
    let batch = batch_of(collection, &records).expect("a batch");
    let values: Vec<f32> = chunks
        .iter()
        .flat_map(|(_, vector)| vector.clone())
        .collect();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors = FixedSizeListArray::try_new(
        item,
        dims as i32,
        Arc::new(Float32Array::from(values)),
        None,
    )
    .expect("vectors");
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(vectors) as ArrayRef);
    RecordBatch::try_new(chunk_schema(Some(dims)), columns).expect("a batch")
}

/// The same rows with another `op`.
pub fn with_op(rows: &RecordBatch, op: &str) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(vec![op; rows.num_rows()]));
    RecordBatch::try_new(rows.schema(), columns).expect("a batch")
}

/// A document of `count` chunks with random vectors.
pub fn sample(
    collection: &CollectionRef,
    random: &mut Random,
    name: &str,
    version: u32,
    count: u32,
) -> Vec<(ChunkRecord, Vec<f32>)> {
    (0..count)
        .map(|index| {
            let record = chunk(collection, name, version, index, count, &["lang=zh"]);
            (record, random.vector(DIMS))
        })
        .collect()
}

pub async fn put(
    store: &LanceStore,
    collection: &CollectionRef,
    chunks: &[(ChunkRecord, Vec<f32>)],
) {
    let documents: BTreeSet<DocumentId> = chunks.iter().map(|(c, _)| c.document.id).collect();
    let documents: Vec<DocumentId> = documents.into_iter().collect();
    let dims = chunks.first().map_or(DIMS, |(_, vector)| vector.len());
    store
        .apply(collection, &documents, &rows(collection, chunks, dims))
        .await
        .expect("applied");
}

pub async fn open(dir: &TempDir) -> LanceStore {
    LanceStore::open(dir.path()).await.expect("a store")
}

pub async fn open_with(dir: &TempDir, change: impl FnOnce(&mut LanceOptions)) -> LanceStore {
    let mut options = LanceOptions::default();
    change(&mut options);
    LanceStore::open_with(dir.path(), options)
        .await
        .expect("a store")
}

pub fn temp() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

pub fn filter(pairs: &[(&str, &[&str])]) -> Filter {
    let map: BTreeMap<String, OneOrMany> = pairs
        .iter()
        .map(|(key, values)| {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            ((*key).to_owned(), OneOrMany::Many(values))
        })
        .collect();
    Filter::from(map)
}

/// Texts of everything stored, sorted.
pub async fn texts(store: &LanceStore, collection: &CollectionRef) -> Vec<String> {
    let query = vec![1.0; DIMS];
    let hits = store
        .search(collection, &query, 1000, Metric::Cosine, &Filter::default())
        .await
        .expect("hits");
    let mut texts: Vec<String> = hits.into_iter().map(|hit| hit.chunk.text).collect();
    texts.sort();
    texts
}

pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}

pub fn euclidean(a: &[f32], b: &[f32]) -> f32 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    squares.sqrt() as f32
}

/// The hits are those of comparing with every vector, best first, with the right scores.
pub async fn check_order(
    store: &LanceStore,
    collection: &CollectionRef,
    vectors: &HashMap<ChunkId, Vec<f32>>,
    random: &mut Random,
) {
    for (metric, score) in [
        (Metric::Cosine, cosine as fn(&[f32], &[f32]) -> f32),
        (Metric::L2, |a, b| -euclidean(a, b)),
    ] {
        for k in [1, 7, 1000] {
            let query = random.vector(DIMS);
            let mut expected: Vec<f32> = vectors.values().map(|v| score(&query, v)).collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            let hits = store
                .search(collection, &query, k, metric, &Filter::default())
                .await
                .expect("hits");
            assert_eq!(hits.len(), k.min(vectors.len()));
            for (hit, expected) in hits.iter().zip(&expected) {
                assert!(
                    (hit.score - expected).abs() < 1e-4,
                    "{metric:?} {k}: {} {expected}",
                    hit.score
                );
                let own = score(&query, &vectors[&hit.chunk.id]);
                assert!(
                    (hit.score - own).abs() < 1e-4,
                    "{metric:?} {k}: {} {own}",
                    hit.score
                );
            }
            assert!(hits.windows(2).all(|pair| pair[0].score >= pair[1].score));

            // By their ids alone the same: read, and then from memory.
            let snapshot = store.snapshot(collection).await.expect("a table");
            let snapshot = snapshot.expect("a table");
            let named: Vec<_> = hits.iter().map(|hit| (hit.chunk.id, hit.score)).collect();
            for _ in 0..2 {
                let all = Filter::default();
                let near = snapshot.nearest(&query, k, metric, &all).await;
                assert_eq!(near.expect("ids"), named, "{metric:?} {k}");
            }
            let ids: Vec<_> = named.iter().map(|(id, _)| *id).collect();
            let found = snapshot.find(&ids).await.expect("chunks");
            assert_eq!(found.len(), hits.len());
            assert!(hits.iter().all(|hit| found[&hit.chunk.id] == hit.chunk));
        }
    }
}
