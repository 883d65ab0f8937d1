//! `LanceStore` against real LanceDB tables in a temporary directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field};
use futures::TryStreamExt;
use tempfile::TempDir;
use va_catalog::chunk::{OneOrMany, batch_of};
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, TenantId,
    Version, chunk_schema,
};
use va_vector::{
    IndexKind, LanceOptions, LanceStore, Metric, VectorError, VectorStore, stored_schema,
};

const DIMS: usize = 8;

/// Pseudo-random numbers (SplitMix64), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vector(&mut self, dims: usize) -> Vec<f32> {
        (0..dims).map(|_| self.value()).collect()
    }
}

fn collection(tenant: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: TenantId::new(tenant).expect("a valid tenant"),
        collection: CollectionName::new(name).expect("a valid name"),
    }
}

fn document(collection: &CollectionRef, name: &str) -> DocumentId {
    DocumentId::of(collection, name)
}

/// Chunk `index` of `count` of a document.
fn chunk(
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
            title: (index % 2 == 0).then(|| format!("标题 {name}")),
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
fn rows(
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
fn with_op(rows: &RecordBatch, op: &str) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(vec![op; rows.num_rows()]));
    RecordBatch::try_new(rows.schema(), columns).expect("a batch")
}

/// A document of `count` chunks with random vectors.
fn sample(
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

async fn put(store: &LanceStore, collection: &CollectionRef, chunks: &[(ChunkRecord, Vec<f32>)]) {
    let documents: BTreeSet<DocumentId> = chunks.iter().map(|(c, _)| c.document.id).collect();
    let documents: Vec<DocumentId> = documents.into_iter().collect();
    let dims = chunks.first().map_or(DIMS, |(_, vector)| vector.len());
    store
        .apply(collection, &documents, &rows(collection, chunks, dims))
        .await
        .expect("applied");
}

async fn open(dir: &TempDir) -> LanceStore {
    LanceStore::open(dir.path()).await.expect("a store")
}

async fn open_with(dir: &TempDir, change: impl FnOnce(&mut LanceOptions)) -> LanceStore {
    let mut options = LanceOptions::default();
    change(&mut options);
    LanceStore::open_with(dir.path(), options)
        .await
        .expect("a store")
}

fn temp() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn filter(pairs: &[(&str, &[&str])]) -> Filter {
    let map: BTreeMap<String, OneOrMany> = pairs
        .iter()
        .map(|(key, values)| {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            ((*key).to_owned(), OneOrMany::Many(values))
        })
        .collect();
    Filter(map)
}

/// Texts of everything stored, sorted.
async fn texts(store: &LanceStore, collection: &CollectionRef) -> Vec<String> {
    let query = vec![1.0; DIMS];
    let hits = store
        .search(collection, &query, 1000, Metric::Cosine, &Filter::default())
        .await
        .expect("hits");
    let mut texts: Vec<String> = hits.into_iter().map(|hit| hit.chunk.text).collect();
    texts.sort();
    texts
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}

fn euclidean(a: &[f32], b: &[f32]) -> f32 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    squares.sqrt() as f32
}

#[tokio::test]
async fn documents_are_replaced_deleted_and_replayed() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let mut random = Random(1);

    // What does not exist is empty, and reading does not make it.
    assert_eq!(store.count(&help).await.expect("a count"), 0);
    assert!(texts(&store, &help).await.is_empty());
    assert_eq!(store.schema(&help).await.expect("no schema"), None);
    assert!(
        store
            .scan(&help, None, None, None)
            .await
            .expect("no scan")
            .is_none()
    );
    let gone = document(&help, "a");
    store
        .apply(
            &help,
            &[gone],
            &with_op(
                &rows(&help, &sample(&help, &mut random, "a", 1, 1), DIMS),
                "delete",
            ),
        )
        .await
        .expect("deleting what is not there");
    assert_eq!(store.collections().await.expect("collections"), vec![]);

    let mut first = sample(&help, &mut random, "a", 1, 3);
    first.extend(sample(&help, &mut random, "b", 1, 1));
    put(&store, &help, &first).await;
    assert_eq!(
        texts(&store, &help).await,
        ["a v1 #0", "a v1 #1", "a v1 #2", "b v1 #0"]
    );

    // Replaced, with rows of other kinds around, which are not stored.
    let second = sample(&help, &mut random, "a", 2, 2);
    let chunks = rows(&help, &second, DIMS);
    let header = with_op(&chunks.slice(0, 1), "document");
    let batch = concat_batches(&chunks.schema(), [&header, &chunks]).expect("a batch");
    for _ in 0..3 {
        store.apply(&help, &[gone], &batch).await.expect("applied");
        assert_eq!(
            texts(&store, &help).await,
            ["a v2 #0", "a v2 #1", "b v1 #0"]
        );
        assert_eq!(store.count(&help).await.expect("a count"), 3);
    }

    // Everything comes back as it was written.
    let ids: Vec<ChunkId> = vec![second[1].0.id, first[0].0.id, first[3].0.id];
    let stored = store.chunks(&help, &ids).await.expect("chunks");
    assert_eq!(stored, vec![second[1].0.clone(), first[3].0.clone()]);

    // A document without rows is removed; one that is replaced and one that is new go together.
    let mut third = sample(&help, &mut random, "b", 2, 1);
    third.extend(sample(&help, &mut random, "c", 1, 1));
    let all = [gone, document(&help, "b"), document(&help, "c")];
    store
        .apply(&help, &all, &rows(&help, &third, DIMS))
        .await
        .expect("applied");
    assert_eq!(texts(&store, &help).await, ["b v2 #0", "c v1 #0"]);
    store
        .apply(
            &help,
            &all,
            &RecordBatch::new_empty(chunk_schema(Some(DIMS))),
        )
        .await
        .expect("applied");
    assert_eq!(store.count(&help).await.expect("a count"), 0);
    put(&store, &help, &first).await;
    assert_eq!(store.count(&help).await.expect("a count"), 4);

    store.drop_collection(&help).await.expect("dropped");
    store.drop_collection(&help).await.expect("dropped twice");
    assert_eq!(store.count(&help).await.expect("a count"), 0);
    assert_eq!(store.collections().await.expect("collections"), vec![]);
    put(&store, &help, &first).await;
    assert_eq!(store.count(&help).await.expect("a count"), 4);
}

#[tokio::test]
async fn names_tenants_and_reopening() {
    let dir = temp();
    let store = open(&dir).await;
    let mut random = Random(2);
    let all = [
        collection("a", "帮助-2026"),
        collection("a", "help"),
        collection("a", &"冻".repeat(128)),
        collection("甲方", "help"),
    ];
    for (i, collection) in all.iter().enumerate() {
        put(
            &store,
            collection,
            &sample(collection, &mut random, "x", 1, i as u32 + 1),
        )
        .await;
    }
    let expected: BTreeSet<_> = all.iter().cloned().collect();
    for store in [store, open(&dir).await] {
        let found = store.collections().await.expect("collections");
        assert_eq!(found, expected.iter().cloned().collect::<Vec<_>>());
        for (i, collection) in all.iter().enumerate() {
            assert_eq!(
                store.count(collection).await.expect("a count"),
                i as u64 + 1
            );
            let schema = store.schema(collection).await.expect("a schema");
            assert_eq!(schema, Some(stored_schema(DIMS)));
        }
        let other = collection("b", "help");
        assert_eq!(store.count(&other).await.expect("a count"), 0);
    }
    // A store that was opened on existing tables replaces what others wrote.
    let store = open(&dir).await;
    put(&store, &all[1], &sample(&all[1], &mut random, "x", 2, 1)).await;
    assert_eq!(texts(&store, &all[1]).await, ["x v2 #0"]);
    assert_eq!(store.count(&all[3]).await.expect("a count"), 4);

    // A row of another tenant is refused, whoever made the mistake.
    let strange = sample(&all[3], &mut random, "x", 3, 1);
    let error = store
        .apply(
            &all[1],
            &[strange[0].0.document.id],
            &rows(&all[3], &strange, DIMS),
        )
        .await
        .expect_err("another tenant");
    assert_eq!(
        error.to_string(),
        "a chunk row has tenant_id `甲方`, but is written to `a/help`"
    );
}

#[tokio::test]
async fn wrong_requests_say_what_is_wrong() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let mut random = Random(3);
    let chunks = sample(&help, &mut random, "a", 1, 2);
    put(&store, &help, &chunks).await;

    let search = async |query: &[f32], k| {
        store
            .search(&help, query, k, Metric::Cosine, &Filter::default())
            .await
            .expect_err("a wrong query")
            .to_string()
    };
    assert_eq!(
        search(&[1.0; 4], 5).await,
        "collection `default/help` holds vectors of 8 dimensions, got 4; \
         use the model it was indexed with, or re-index it with the new one"
    );
    assert_eq!(
        search(&[0.0; DIMS], 5).await,
        "the query vector is zero, so it has no direction"
    );
    let mut bad = [1.0; DIMS];
    bad[3] = f32::NAN;
    assert_eq!(
        search(&bad, 5).await,
        "the query vector has values that are not finite"
    );
    assert_eq!(
        search(&[1.0; DIMS], 1001).await,
        "k is 1001; a vector search returns at most 1000 hits"
    );

    let apply = async |chunks: &[(ChunkRecord, Vec<f32>)], documents: &[DocumentId]| {
        let dims = chunks[0].1.len();
        store
            .apply(&help, documents, &rows(&help, chunks, dims))
            .await
            .expect_err("wrong rows")
    };
    let id = chunks[0].0.document.id;
    let longer = vec![(chunks[0].0.clone(), vec![1.0; 16])];
    let error = apply(&longer, &[id]).await;
    assert!(
        matches!(
            error,
            VectorError::Dimensions {
                has: 8,
                got: 16,
                ..
            }
        ),
        "{error}"
    );
    assert!(!error.is_retryable());
    let error = apply(&chunks, &[]).await.to_string();
    assert!(
        error.ends_with("not among the documents being replaced"),
        "{error}"
    );
    let twice = [chunks[0].clone(), chunks[0].clone()];
    let error = apply(&twice, &[id]).await.to_string();
    assert!(error.ends_with("is there twice"), "{error}");
    let infinite = vec![(chunks[0].0.clone(), vec![f32::INFINITY; DIMS])];
    let error = apply(&infinite, &[id]).await.to_string();
    assert!(error.ends_with("has values that are not finite"), "{error}");
    let error = store
        .apply(
            &help,
            &[id],
            &batch_of(&help, &[chunks[0].0.clone()]).expect("a batch"),
        )
        .await
        .expect_err("no vectors")
        .to_string();
    assert!(error.contains("no `vector` column"), "{error}");
    let columns = ["texts".to_owned()];
    let error = store
        .scan(&help, Some(&columns), None, None)
        .await
        .err()
        .expect("no such column")
        .to_string();
    assert!(
        error.starts_with("no stored column `texts`; the columns are id, "),
        "{error}"
    );
    let error = store
        .scan(&help, None, Some("nonsense ="), None)
        .await
        .err();
    assert!(matches!(error, Some(VectorError::Invalid(_))));

    // Nothing of all this was stored.
    assert_eq!(texts(&store, &help).await, ["a v1 #0", "a v1 #1"]);
}

#[tokio::test]
async fn filters_match_tags_and_nothing_else() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let hostile = [
        "x') OR true --",
        "it's",
        "''",
        r"back\slash",
        r"\' OR 1=1 --",
        "\"double\"",
        "`tick`",
        "100%_",
        "新\n行",
        "😀",
        "$1 ? :name",
        "",
    ];
    let mut chunks = Vec::new();
    let mut random = Random(4);
    for (i, value) in hostile.iter().enumerate() {
        let tags = [format!("v={value}"), format!("parity={}", i % 2)];
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let record = chunk(&help, &format!("d{i}"), 1, 0, 1, &tags);
        chunks.push((record, random.vector(DIMS)));
    }
    chunks.push((chunk(&help, "untagged", 1, 0, 1, &[]), random.vector(DIMS)));
    put(&store, &help, &chunks).await;

    let search = async |filter: Filter| {
        let query = vec![1.0; DIMS];
        let hits = store
            .search(&help, &query, 100, Metric::Cosine, &filter)
            .await
            .expect("hits");
        let mut names: Vec<String> = hits.into_iter().map(|h| h.chunk.document.name).collect();
        names.sort();
        names
    };
    for (i, value) in hostile.iter().enumerate() {
        let found = search(filter(&[("v", &[value])])).await;
        assert_eq!(found, [format!("d{i}")], "{value}");
        let other = filter(&[("v", &[value]), ("parity", &[["1", "0"][i % 2]])]);
        assert!(search(other).await.is_empty(), "{value}");
    }
    assert_eq!(
        search(filter(&[("v", &["it's", "😀", "absent"])])).await,
        ["d1", "d9"]
    );
    assert_eq!(
        search(filter(&[("parity", &["0", "1"])])).await.len(),
        hostile.len()
    );
    assert!(search(filter(&[("v", &[])])).await.is_empty());
    assert!(search(filter(&[("v", &["it"])])).await.is_empty());
    assert_eq!(search(Filter::default()).await.len(), hostile.len() + 1);

    // The filter comes before the search: the one match is found, however far away.
    let far = filter(&[("v", &["😀"])]);
    let query: Vec<f32> = chunks[9].1.iter().map(|value| -value).collect();
    let hits = store
        .search(&help, &query, 1, Metric::Cosine, &far)
        .await
        .expect("hits");
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].chunk.document.name, "d9");
    assert!((hits[0].score + 1.0).abs() < 1e-5, "{}", hits[0].score);
}

/// The hits are those of comparing with every vector, best first, with the right scores.
async fn check_order(
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
        }
    }
}

#[tokio::test]
async fn order_is_that_of_brute_force() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let mut random = Random(5);
    let mut vectors = HashMap::new();
    for name in ["a", "b", "c"] {
        let chunks = sample(&help, &mut random, name, 1, 100);
        put(&store, &help, &chunks).await;
        vectors.extend(
            chunks
                .into_iter()
                .map(|(record, vector)| (record.id, vector)),
        );
    }
    check_order(&store, &help, &vectors, &mut random).await;

    let ids: BTreeMap<ChunkId, (DocumentId, Version)> = store
        .chunk_ids(&help)
        .await
        .expect("ids")
        .into_iter()
        .map(|(id, document, version)| (id, (document, version)))
        .collect();
    assert_eq!(ids.len(), vectors.len());
    assert!(vectors.keys().all(|id| ids[id].1 == Version(1)));
    let documents: BTreeSet<DocumentId> = ids.values().map(|(document, _)| *document).collect();
    assert_eq!(documents.len(), 3);
}

#[tokio::test]
async fn scans_give_the_columns_that_were_asked_for() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let mut random = Random(6);
    put(&store, &help, &sample(&help, &mut random, "a", 1, 5)).await;
    put(&store, &help, &sample(&help, &mut random, "b", 1, 5)).await;

    let scan = async |columns: Option<&[&str]>, condition, limit| {
        let columns: Option<Vec<String>> =
            columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let stream = store
            .scan(&help, columns.as_deref(), condition, limit)
            .await
            .expect("a scan")
            .expect("a collection");
        let batches: Vec<RecordBatch> = stream.batches.try_collect().await.expect("batches");
        assert!(batches.iter().all(|batch| batch.schema() == stream.schema));
        concat_batches(&stream.schema, &batches).expect("one batch")
    };
    let all = scan(None, None, None).await;
    assert_eq!(all.num_rows(), 10);
    let stored = stored_schema(DIMS);
    assert_eq!(
        all.schema().fields()[..],
        stored.fields()[..stored.fields().len() - 1]
    );

    let some = scan(
        Some(&["vector", "end", "id"]),
        Some("name = 'b' AND `end` > 20"),
        None,
    )
    .await;
    assert_eq!(some.num_rows(), 3);
    let names: Vec<String> = some
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(names, ["vector", "end", "id"]);

    assert_eq!(scan(Some(&["text"]), None, Some(4)).await.num_rows(), 4);
    let none = scan(Some(&[]), Some("name = 'a'"), None).await;
    assert_eq!((none.num_columns(), none.num_rows()), (0, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_never_see_a_half_replaced_document() {
    let dir = temp();
    // Compaction runs in between, again and again.
    let store = Arc::new(
        open_with(&dir, |options| {
            options.fragments_max = 5;
            options.sync = false;
        })
        .await,
    );
    let help = collection("default", "help");
    let mut random = Random(7);
    put(&store, &help, &sample(&help, &mut random, "a", 1, 4)).await;
    put(
        &store,
        &help,
        &sample(&help, &mut random, "bystander", 1, 3),
    )
    .await;

    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for by_search in [true, false] {
        let (store, help, done) = (store.clone(), help.clone(), done.clone());
        readers.push(tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                rounds += 1;
                let found: Vec<(DocumentId, u32)> = if by_search {
                    let query = vec![0.5; DIMS];
                    store
                        .search(&help, &query, 100, Metric::L2, &Filter::default())
                        .await
                        .expect("hits")
                        .into_iter()
                        .map(|hit| (hit.chunk.document.id, hit.chunk.document.version.0))
                        .collect()
                } else {
                    let ids = store.chunk_ids(&help).await.expect("ids");
                    ids.into_iter()
                        .map(|(_, document, version)| (document, version.0))
                        .collect()
                };
                let (a, rest): (Vec<_>, Vec<_>) = found
                    .into_iter()
                    .partition(|(id, _)| *id == document(&help, "a"));
                let versions: BTreeSet<u32> = a.iter().map(|(_, version)| *version).collect();
                assert_eq!(
                    (versions.len(), a.len(), rest.len()),
                    (1, 4, 3),
                    "{versions:?}"
                );
                seen.extend(versions);
            }
            (rounds, seen.len())
        }));
    }
    let last = 60;
    for version in 2..=last {
        put(&store, &help, &sample(&help, &mut random, "a", version, 4)).await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        let (rounds, versions) = reader.await.expect("a reader");
        assert!(rounds >= 3 && versions >= 1);
    }
    store.settle(&help).await.expect("settled");
    assert_eq!(texts(&store, &help).await.len(), 7);
    assert_eq!(texts(&store, &help).await[0], format!("a v{last} #0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_stay_few_and_results_the_same() {
    let dir = temp();
    let store = open_with(&dir, |options| {
        options.fragments_max = 10;
        options.keep_versions = Duration::ZERO;
        options.sync = false;
    })
    .await;
    let help = collection("default", "help");
    let mut random = Random(8);
    let mut vectors = HashMap::new();
    let mut documents: HashMap<String, Vec<ChunkId>> = HashMap::new();
    for i in 0..200u32 {
        // Every fifth write replaces an older document.
        let name = format!("d{}", if i % 5 == 4 { i / 2 } else { i });
        let chunks = sample(&help, &mut random, &name, i + 1, 2);
        put(&store, &help, &chunks).await;
        for id in documents.remove(&name).unwrap_or_default() {
            vectors.remove(&id);
        }
        documents.insert(name, chunks.iter().map(|(record, _)| record.id).collect());
        vectors.extend(
            chunks
                .into_iter()
                .map(|(record, vector)| (record.id, vector)),
        );
        let fragments = store.fragments(&help).await.expect("fragments");
        assert!(fragments <= 60, "{fragments} fragments after {i} writes");
    }
    store.settle(&help).await.expect("settled");
    let fragments = store.fragments(&help).await.expect("fragments");
    assert!(fragments <= 22, "{fragments} fragments are left");
    assert_eq!(
        store.count(&help).await.expect("a count"),
        vectors.len() as u64
    );
    check_order(&store, &help, &vectors, &mut random).await;

    let report = store.optimize(&help).await.expect("optimized");
    assert_eq!(report.fragments_after, 1, "{report:?}");
    assert!(report.indexes.is_empty());
    check_order(&store, &help, &vectors, &mut random).await;
    check_order(&open(&dir).await, &help, &vectors, &mut random).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_find_neighbours_and_follow_changes() {
    for kind in [IndexKind::IvfFlat, IndexKind::IvfHnswSq] {
        let dir = temp();
        let store = open_with(&dir, |options| {
            options.index_rows_min = 1000;
            options.index_kind = kind;
            options.sync = false;
        })
        .await;
        let help = collection("default", "help");
        let mut random = Random(9);
        let mut vectors = HashMap::new();
        for name in ["a", "b", "c"] {
            let chunks = sample(&help, &mut random, name, 1, 500);
            put(&store, &help, &chunks).await;
            vectors.extend(
                chunks
                    .into_iter()
                    .map(|(record, vector)| (record.id, vector)),
            );
        }
        let report = store.optimize(&help).await.expect("optimized");
        assert_eq!(report.indexes, ["vector_idx", "document_id_idx", "id_idx"]);
        let report = store.optimize(&help).await.expect("optimized");
        assert!(report.indexes.is_empty(), "{report:?}");

        // Rows in the index are replaced, and new ones come beside it.
        let replaced = sample(&help, &mut random, "b", 2, 300);
        vectors.retain(|id, _| (0..500).all(|i| *id != chunk(&help, "b", 1, i, 500, &[]).id));
        put(&store, &help, &replaced).await;
        vectors.extend(
            replaced
                .into_iter()
                .map(|(record, vector)| (record.id, vector)),
        );
        for round in ["beside the index", "in the index", "compacted"] {
            assert_eq!(store.count(&help).await.expect("a count"), 1300, "{round}");
            let mut found = 0;
            for _ in 0..20 {
                let query = random.vector(DIMS);
                let mut expected: Vec<(f32, ChunkId)> = vectors
                    .iter()
                    .map(|(id, v)| (cosine(&query, v), *id))
                    .collect();
                expected.sort_by(|a, b| b.0.total_cmp(&a.0));
                let hits = store
                    .search(&help, &query, 10, Metric::Cosine, &Filter::default())
                    .await
                    .expect("hits");
                assert_eq!(hits.len(), 10);
                for hit in &hits {
                    let own = cosine(&query, &vectors[&hit.chunk.id]);
                    assert!(
                        (hit.score - own).abs() < 1e-4,
                        "{round}: {} {own}",
                        hit.score
                    );
                }
                let best: BTreeSet<ChunkId> = expected[..10].iter().map(|(_, id)| *id).collect();
                found += hits
                    .iter()
                    .filter(|hit| best.contains(&hit.chunk.id))
                    .count();
            }
            assert!(found >= 180, "{kind:?} {round}: {found} of 200 neighbours");
            // The other metric does not use the index and is exact.
            let query = random.vector(DIMS);
            let nearest = vectors
                .values()
                .map(|v| euclidean(&query, v))
                .fold(f32::MAX, f32::min);
            let hits = store
                .search(&help, &query, 1, Metric::L2, &Filter::default())
                .await
                .expect("hits");
            assert!((hits[0].score + nearest).abs() < 1e-4);
            // By id, through the id index.
            let ids: Vec<ChunkId> = vectors.keys().copied().take(20).collect();
            let chunks = store.chunks(&help, &ids).await.expect("chunks");
            assert_eq!(chunks.iter().map(|chunk| chunk.id).collect::<Vec<_>>(), ids);
            store.optimize(&help).await.expect("optimized");
        }
    }
}
