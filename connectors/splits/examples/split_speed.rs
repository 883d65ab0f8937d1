//! How long a search takes over 1, 5, 10 and 20 splits, and in the embedded indexes, for the same chunks.
//!
//!     cargo run --release -p va-splits --example split_speed -- [CHUNKS] [DIMS]
//!
//! Vectors are random, texts are of words with a natural distribution of frequencies; both only need to cost what real ones
//! do. Prints medians in milliseconds.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use va_catalog::chunk::batch_of;
use va_catalog::store::{Catalog, CollectionConfig};
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, TenantId,
    Version, chunk_schema,
};
use va_connectors::objects::Objects;
use va_fulltext::{TantivyIndex, TextIndex, TextSnapshot};
use va_splits::{MergePolicy, SplitOptions, SplitStore};
use va_vector::{LanceStore, Metric, VectorSnapshot, VectorStore};

const SEARCHES: usize = 60;
const K: usize = 20;

type Failure = Box<dyn std::error::Error>;

/// Pseudo-random numbers (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Word n comes about 1/n as often as the first.
    fn word(&mut self) -> String {
        format!("w{}", (20_000f32.powf(self.share())) as u32)
    }

    fn vector(&mut self, dims: usize) -> Vec<f32> {
        (0..dims).map(|_| self.share() - 0.5).collect()
    }
}

/// Documents of ten chunks each, with a row of their own.
fn rows(
    collection: &CollectionRef,
    random: &mut Random,
    chunks: usize,
    dims: usize,
) -> Result<RecordBatch, Failure> {
    let (mut records, mut ops, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..chunks.div_ceil(10) {
        let uri = format!("{}-{n}.md", random.next());
        let id = DocumentId::of(collection, &uri);
        for index in 0..11 {
            ops.push(if index == 0 { "document" } else { "chunk" });
            let words: Vec<String> = (0..150).map(|_| random.word()).collect();
            records.push(ChunkRecord {
                id: ChunkId::of(collection, id, Version(1), index),
                document: DocumentRef {
                    id,
                    name: uri.clone(),
                    uri: uri.clone(),
                    title: None,
                    version: Version(1),
                },
                index,
                count: 10,
                title_path: vec![],
                page: None,
                start: 0,
                end: 1,
                text: words.join(" "),
                tokens: 150,
                tags: vec![],
            });
            values.extend(random.vector(dims));
        }
    }
    let batch = batch_of(collection, &records)?;
    let mut columns = batch.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(ops));
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values = Arc::new(Float32Array::from(values));
    let vectors = FixedSizeListArray::try_new(item, dims as i32, values, None)?;
    columns.push(Arc::new(vectors) as ArrayRef);
    Ok(RecordBatch::try_new(chunk_schema(Some(dims)), columns)?)
}

async fn measure(
    what: &str,
    dims: usize,
    texts: &dyn TextSnapshot,
    vectors: &dyn VectorSnapshot,
) -> Result<(), Failure> {
    let mut random = Random(7);
    let (mut text_ms, mut vector_ms) = (Vec::new(), Vec::new());
    for _ in 0..SEARCHES {
        let query = format!(
            "{} {} {} {}",
            random.word(),
            random.word(),
            random.word(),
            random.word()
        );
        let started = Instant::now();
        texts.search(&query, K, &Filter::default()).await?;
        text_ms.push(started.elapsed().as_secs_f64() * 1e3);
        let query = random.vector(dims);
        let started = Instant::now();
        vectors
            .search(&query, K, Metric::Cosine, &Filter::default())
            .await?;
        vector_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    println!(
        "{what:<10}  text {:>7.2} ms   vectors {:>7.2} ms",
        median(text_ms),
        median(vector_ms)
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let chunks: usize = args.next().map_or(Ok(20_000), |n| n.parse())?;
    let dims: usize = args.next().map_or(Ok(384), |n| n.parse())?;
    let collection = |n: usize| -> Result<CollectionRef, Failure> {
        Ok(CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new(format!("c{n}"))?,
        })
    };
    let dir = tempfile::tempdir()?;
    let catalog = Catalog::open(dir.path().join("catalog.db")).await?;
    let objects = Objects::local(&dir.path().join("objects"))?;
    let options = SplitOptions {
        merge: MergePolicy {
            fan_in: usize::MAX,
            ..MergePolicy::default()
        },
        ..SplitOptions::default()
    };
    let store =
        SplitStore::open(catalog.clone(), objects, dir.path().join("splits"), options).await?;
    let lance = LanceStore::open(dir.path().join("vectors")).await?;
    let tantivy = TantivyIndex::open(dir.path().join("texts"))?;
    println!("{chunks} chunks, {dims} dimensions, the best {K}");

    let one = collection(0)?;
    let mut random = Random(42);
    for _ in 0..10 {
        let rows = rows(&one, &mut random, chunks / 10, dims)?;
        let ids = va_catalog::chunk::strings(&rows, "document_id")?;
        let mut ids = ids
            .iter()
            .flatten()
            .map(str::parse)
            .collect::<Result<Vec<DocumentId>, _>>()?;
        ids.dedup();
        lance.apply(&one, &ids, &rows).await?;
        tantivy.apply(&one, &ids, &rows).await?;
    }
    tantivy.commit(&one, "x").await?;
    lance.optimize(&one).await?;
    let texts = tantivy.snapshot(&one).await?.ok_or("no index")?;
    let vectors = lance.snapshot(&one).await?.ok_or("no table")?;
    measure("embedded", dims, &*texts, &*vectors).await?;

    for splits in [1, 5, 10, 20] {
        let collection = collection(splits)?;
        catalog
            .create_collection(&collection, &CollectionConfig::default())
            .await?;
        let writer = store.writer();
        let mut random = Random(42);
        let mut slowest = 0.0f64;
        for _ in 0..splits {
            let rows = rows(&collection, &mut random, chunks / splits, dims)?;
            writer.apply_texts(&collection, rows.clone());
            writer.apply_vectors(&collection, rows);
            let started = Instant::now();
            writer.publish(&collection).await?;
            slowest = slowest.max(started.elapsed().as_secs_f64() * 1e3);
        }
        let started = Instant::now();
        let view = store.view(&collection).await?;
        let opened = started.elapsed().as_secs_f64() * 1e3;
        measure(&format!("{splits} splits"), dims, &*view, &*view).await?;
        println!("            slowest publish {slowest:.0} ms, opened in {opened:.1} ms");
    }
    Ok(())
}
