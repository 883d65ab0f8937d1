//! Measures how fast rows are stored and found: batches of 64 rows of 384 dimensions, then searches at 15,000 rows.
//!
//! `cargo run -p va-vector --example vector_speed -- [rows] [directory]`

#![expect(
    clippy::disallowed_methods,
    reason = "run by hand, one at a time: a fixed place is easy to look into"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use va_catalog::chunk::{OneOrMany, batch_of};
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, TenantId,
    Version, chunk_schema,
};
use va_vector::{LanceOptions, LanceStore, Metric, VectorStore};

const DIMS: usize = 384;
const BATCH: u32 = 64;
const SEARCHES: usize = 200;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let rows: u32 = args.next().map_or(Ok(15_000), |rows| rows.parse())?;
    let dir = args
        .next()
        .map_or_else(|| std::env::temp_dir().join("vector_speed"), Into::into);
    let help = CollectionRef {
        tenant: TenantId::default_tenant(),
        collection: CollectionName::new("speed")?,
    };
    let mut random = Random(42);

    for sync in [true, false] {
        let options = LanceOptions {
            sync,
            ..LanceOptions::default()
        };
        let store = LanceStore::open_with(&dir, options).await?;
        store.drop_collection(&help).await?;
        let started = Instant::now();
        let mut applying = Vec::new();
        for document in 0..rows.div_ceil(BATCH) {
            let (id, batch) = document_rows(&help, document, 1, &mut random)?;
            let begun = Instant::now();
            store.apply(&help, &[id], &batch).await?;
            applying.push(begun.elapsed());
        }
        let total = applying.iter().sum::<Duration>().as_secs_f64();
        println!(
            "new documents, sync {sync}: {:.0} rows/s, apply {} ({:.1} s in all)",
            f64::from(rows) / total,
            quantiles(&mut applying),
            started.elapsed().as_secs_f64()
        );
        let mut replacing = Vec::new();
        for document in 0..50 {
            let (id, batch) = document_rows(&help, document, 2, &mut random)?;
            let begun = Instant::now();
            store.apply(&help, &[id], &batch).await?;
            replacing.push(begun.elapsed());
        }
        println!(
            "replaced documents, sync {sync}: apply {}",
            quantiles(&mut replacing)
        );
        store.settle(&help).await?;
    }

    let store = LanceStore::open(&dir).await?;
    let fragments = store.fragments(&help).await?;
    println!("{} rows in {fragments} files", store.count(&help).await?);
    searches(&store, &help, &mut random).await?;
    let begun = Instant::now();
    let report = store.optimize(&help).await?;
    println!(
        "optimize: {:.1} s, {report:?}",
        begun.elapsed().as_secs_f64()
    );
    searches(&store, &help, &mut random).await?;
    Ok(())
}

async fn searches(
    store: &LanceStore,
    help: &CollectionRef,
    random: &mut Random,
) -> Result<(), AnyError> {
    let even = [("parity".to_owned(), OneOrMany::One("0".to_owned()))];
    let even = Filter::from(BTreeMap::from(even));
    for (what, k, filter) in [
        ("k = 20", 20, &Filter::default()),
        ("k = 20, half filtered out", 20, &even),
        ("k = 1000", 1000, &Filter::default()),
    ] {
        let mut times = Vec::new();
        for _ in 0..SEARCHES {
            let query = random.vector();
            let begun = Instant::now();
            store
                .search(help, &query, k, Metric::Cosine, filter)
                .await?;
            times.push(begun.elapsed());
        }
        println!("search {what}: {}", quantiles(&mut times));
    }
    Ok(())
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms", at(50), at(99))
}

fn document_rows(
    collection: &CollectionRef,
    number: u32,
    version: u32,
    random: &mut Random,
) -> Result<(DocumentId, RecordBatch), AnyError> {
    let name = format!("document-{number}.html");
    let id = DocumentId::of(collection, &name);
    let text = "冻结窗格：要在滚动时保持某些行或列可见，请使用“冻结窗格”。 ".repeat(12);
    let records: Vec<ChunkRecord> = (0..BATCH)
        .map(|index| ChunkRecord {
            id: ChunkId::of(collection, id, Version(version), index),
            document: DocumentRef {
                id,
                name: name.clone(),
                uri: format!("file:///{name}"),
                title: Some(name.clone()),
                version: Version(version),
            },
            index,
            count: BATCH,
            title_path: vec!["表格".into(), "冻结行或列".into()],
            page: Some(index),
            start: 0,
            end: text.len() as u64,
            text: text.clone(),
            tokens: 300,
            tags: vec![format!("name={name}"), format!("parity={}", index % 2)],
        })
        .collect();
    let batch = batch_of(collection, &records)?;
    let values: Vec<f32> = (0..BATCH).flat_map(|_| random.vector()).collect();
    let vectors = FixedSizeListArray::try_new(
        Arc::new(Field::new("item", DataType::Float32, true)),
        DIMS as i32,
        Arc::new(Float32Array::from(values)),
        None,
    )?;
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(vectors) as ArrayRef);
    Ok((id, RecordBatch::try_new(chunk_schema(Some(DIMS)), columns)?))
}

/// Pseudo-random numbers (SplitMix64), the same in every run.
struct Random(u64);

impl Random {
    fn vector(&mut self) -> Vec<f32> {
        (0..DIMS).map(|_| self.value()).collect()
    }

    /// Between -1 and 1.
    fn value(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
