//! What is found: filters, order, scans, indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use futures::TryStreamExt;
use va_catalog::{ChunkId, DocumentId, Filter, Version, Viewer};
use va_vector::{
    IndexKind, LanceOptions, LanceStore, Metric, VectorSnapshot, VectorStore, stored_schema,
};

use crate::support::*;

#[tokio::test]
async fn who_may_not_read_a_chunk_gets_the_next_best() {
    let dir = temp();
    let store = open(&dir).await;
    let help = collection("default", "help");
    let mut random = Random(9);
    let query = random.vector(DIMS);
    let far: Vec<f32> = query.iter().map(|value| -value).collect();
    let ann = ["va.restricted", "va.reader=user:ann", "va.reader=role:pay"];
    let chunks = vec![
        (chunk(&help, "secret", 1, 0, 1, &ann), query.clone()),
        // What a user wrote as metadata before such keys were refused restricts nothing.
        (chunk(&help, "odd", 1, 0, 1, &["va.restricted=yes"]), far),
        (chunk(&help, "untagged", 1, 0, 1, &[]), random.vector(DIMS)),
    ];
    put(&store, &help, &chunks).await;
    let found = async |viewer: Viewer, k: usize| {
        let filter = Filter::default().seen_by(viewer);
        let hits = store
            .search(&help, &query, k, Metric::Cosine, &filter)
            .await;
        let hits = hits.expect("hits").into_iter();
        hits.map(|hit| hit.chunk.document.name).collect::<Vec<_>>()
    };
    let only = |readers: &[&str]| {
        Viewer::Only(
            readers
                .iter()
                .map(|r| r.parse().expect("a reader"))
                .collect(),
        )
    };
    assert_eq!(found(Viewer::Everything, 1).await, ["secret"]);
    assert_eq!(found(only(&["user:ann"]), 1).await, ["secret"]);
    assert_eq!(found(only(&["user:bob", "role:pay"]), 1).await, ["secret"]);
    // One hit is asked for, and one comes: the condition is part of the search.
    assert_eq!(found(only(&["user:bob"]), 1).await, ["untagged"]);
    assert_eq!(found(only(&[]), 10).await, ["untagged", "odd"]);
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

    let snapshot = store.snapshot(&help).await.expect("a snapshot");
    let keys = snapshot.expect("a table").chunk_keys().await;
    let ids: BTreeMap<ChunkId, (DocumentId, Version)> = keys
        .expect("keys")
        .into_iter()
        .map(|key| (key.id, (key.document, key.version)))
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

/// What a search by ids finds in an index part by part is what comparing with every vector finds, whatever has happened to
/// the rows since the index was made, and however little of it fits into memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_an_index_follow_changes() {
    const K: usize = 40;
    // Of eight numbers, in 16 bits each.
    const CLOSE: f32 = 3e-5;
    for cache_bytes in [LanceOptions::default().cache_bytes, 1 << 12] {
        let dir = temp();
        let options = |options: &mut LanceOptions| {
            options.index_rows_min = 1000;
            options.sync = false;
            options.cache_bytes = cache_bytes;
            // More than there are: nothing may be missed.
            options.nprobes = Some(1000);
        };
        let mut store = open_with(&dir, options).await;
        let help = collection("default", "help");
        let mut random = Random(9);
        let mut vectors = HashMap::new();
        let check = async |snapshot: &dyn VectorSnapshot,
                           vectors: &HashMap<ChunkId, Vec<f32>>,
                           random: &mut Random,
                           round: &str| {
            for _ in 0..10 {
                let query: Vec<f32> = random.vector(DIMS).iter().map(|x| x * 9.0).collect();
                let mut expected: Vec<(ChunkId, f32)> = vectors
                    .iter()
                    .map(|(id, vector)| (*id, cosine(&query, vector)))
                    .collect();
                expected.sort_by(|a, b| b.1.total_cmp(&a.1));
                expected.truncate(K);
                let all = Filter::default();
                let found = snapshot.nearest(&query, K, Metric::Cosine, &all).await;
                let found = found.expect("ids");
                assert_eq!(found.len(), expected.len(), "{round}");
                for ((id, score), (_, expected)) in found.iter().zip(&expected) {
                    let own = cosine(&query, &vectors[id]);
                    assert!((score - own).abs() < CLOSE, "{round}: {score} {own}");
                    assert!(
                        (score - expected).abs() < CLOSE,
                        "{round}: {score} {expected}"
                    );
                }
            }
        };
        let newest = async |store: &LanceStore| {
            let snapshot = store.snapshot(&help).await.expect("a table");
            snapshot.expect("a table")
        };
        for name in ["a", "b", "c"] {
            let chunks = sample(&help, &mut random, name, 1, 500);
            put(&store, &help, &chunks).await;
            vectors.extend(chunks.into_iter().map(|(record, v)| (record.id, v)));
        }
        store.optimize(&help).await.expect("optimized");
        let (before, then) = (newest(&store).await, vectors.clone());
        check(&*before, &vectors, &mut random, "indexed").await;

        // One document gets another version, one goes, one comes.
        let remove = |vectors: &mut HashMap<ChunkId, Vec<f32>>, name: &str| {
            vectors.retain(|id, _| (0..500).all(|i| *id != chunk(&help, name, 1, i, 500, &[]).id));
        };
        remove(&mut vectors, "b");
        remove(&mut vectors, "c");
        let changed = sample(&help, &mut random, "b", 2, 300);
        put(&store, &help, &changed).await;
        let gone = sample(&help, &mut random, "c", 1, 1);
        let gone = with_op(&rows(&help, &gone, DIMS), "delete");
        let name = document(&help, "c");
        store.apply(&help, &[name], &gone).await.expect("removed");
        let added = sample(&help, &mut random, "d", 1, 70);
        put(&store, &help, &added).await;
        vectors.extend(
            changed
                .into_iter()
                .chain(added)
                .map(|(record, v)| (record.id, v)),
        );
        check(
            &*newest(&store).await,
            &vectors,
            &mut random,
            "beside the index",
        )
        .await;
        check(&*before, &then, &mut random, "as it was before").await;
        for round in ["in the index", "compacted"] {
            store.optimize(&help).await.expect("optimized");
            check(&*newest(&store).await, &vectors, &mut random, round).await;
        }
        check(&*before, &then, &mut random, "as it was long before").await;
        drop(before);

        // Almost all are gone, so that the nearest partitions hold too few.
        let left: HashSet<ChunkId> = vectors.keys().take(K + 3).copied().collect();
        for (document, chunks) in [("a", 500), ("b", 300), ("d", 70)] {
            let version = if document == "b" { 2 } else { 1 };
            let kept: Vec<_> = (0..chunks)
                .map(|i| chunk(&help, document, version, i, chunks, &[]))
                .filter(|chunk| left.contains(&chunk.id))
                .map(|chunk| (chunk.clone(), vectors[&chunk.id].clone()))
                .collect();
            put(&store, &help, &kept).await;
        }
        vectors.retain(|id, _| left.contains(id));
        store = open_with(&dir, |changed| {
            options(changed);
            changed.nprobes = Some(1);
        })
        .await;
        let hits = newest(&store)
            .await
            .nearest(&random.vector(DIMS), K, Metric::Cosine, &Filter::default())
            .await
            .expect("ids");
        assert_eq!(hits.len(), K);
        assert!(hits.iter().all(|(id, _)| left.contains(id)));
    }
}

/// A load in steps, each of which extends the index: partitions grow in number, not in size, so that a search reads as few
/// vectors of the large table as of the small one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_grows_keeps_its_partitions() {
    use lance::index::DatasetIndexExt;
    let dir = temp();
    let store = open_with(&dir, |options| {
        options.index_rows_min = 400;
        options.sync = false;
    })
    .await;
    let help = collection("default", "help");
    let mut random = Random(11);
    let mut rows: u32 = 0;
    for step in 0..9 {
        let count = 400.max(rows / 4);
        rows += count;
        let chunks = sample(&help, &mut random, &format!("step {step}"), 1, count);
        put(&store, &help, &chunks).await;
        store.optimize(&help).await.expect("optimized");
        let table = std::fs::read_dir(dir.path()).expect("a directory");
        let mut tables = table.map(|entry| entry.expect("a table").path());
        let path = tables
            .find(|path| path.extension().is_some_and(|e| e == "lance"))
            .expect("a table");
        let dataset = lance::Dataset::open(path.to_str().expect("UTF-8"))
            .await
            .expect("a dataset");
        let statistics = dataset
            .index_statistics("vector_idx")
            .await
            .expect("an index");
        let statistics: serde_json::Value = serde_json::from_str(&statistics).expect("JSON");
        let partitions = statistics["indices"][0]["num_partitions"].as_u64();
        let enough = f64::from(rows).sqrt() / 1.5;
        assert!(
            partitions.is_some_and(|n| n as f64 >= enough),
            "{rows} rows in {partitions:?} partitions"
        );
        assert_eq!(statistics["num_unindexed_rows"], 0);
    }
}
