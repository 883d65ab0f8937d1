//! What is stored: replacing, deleting, names, tenants, refusals.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use va_catalog::chunk::batch_of;
use va_catalog::{ChunkId, ChunkRecord, DocumentId, Filter, chunk_schema};
use va_vector::{Metric, VectorError, VectorStore, stored_schema};

use crate::support::*;

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
