//! Shared and embedded indexes find the same, with the same scores.

use std::collections::BTreeMap;

use va_catalog::chunk::OneOrMany;
use va_catalog::{ChunkId, DocumentId, Filter};
use va_fulltext::{TantivyIndex, TextIndex, TextSnapshot};
use va_vector::{LanceStore, Metric, VectorSnapshot, VectorStore};

use crate::world::*;

on_both!(the_same_documents_are_found_alike);

/// Texts of a small, varied world in two languages.
fn texts(n: usize, version: u32) -> Vec<String> {
    let words = [
        "freeze",
        "rows",
        "冻结行或列",
        "表格的打印区域",
        "columns of a sheet",
        "print",
        "删除工作表",
        "zebra",
    ];
    let text = |chunk: usize| {
        let picks = (0..n % 5 + 3)
            .map(|i| words[(n * 3 + i * (chunk + 1) + version as usize) % words.len()]);
        picks.collect::<Vec<_>>().join(" ")
    };
    (0..n % 3 + 1).map(text).collect()
}

fn close(one: &[(ChunkId, f32)], other: &[(ChunkId, f32)], what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    for ((id, score), (other_id, other_score)) in one.iter().zip(other) {
        assert!(
            (score - other_score).abs() < 1e-4,
            "{what}: {score} is not {other_score}"
        );
        assert_eq!(id, other_id, "{what}");
    }
}

async fn the_same_documents_are_found_alike(on: On) {
    let world = World::new(on).await;
    let help = &world.help;
    let process = world.process("one").await;
    let dir = tempfile::tempdir().expect("a folder");
    let vectors = LanceStore::open(dir.path().join("vectors"))
        .await
        .expect("a store");
    let index = TantivyIndex::open(dir.path().join("texts")).expect("an index");

    let name = |n: usize| format!("第{n}页.md");
    let mut checkpoints: Vec<Vec<_>> = Vec::new();
    for (documents, version) in [(0..30, 1), (30..60, 1), (10..20, 2), (55..90, 2), (0..5, 3)] {
        let document = |n: usize| document_of(help, &name(n), version, &texts(n, version));
        checkpoints.push(documents.map(document).collect());
    }
    checkpoints.push((20..25).map(|n| removal(help, &name(n), 1)).collect());
    for documents in &checkpoints {
        process.checkpoint(documents).await;
        let rows = together(documents);
        let ids = va_catalog::chunk::strings(&rows, "document_id").expect("ids");
        let ids: Vec<DocumentId> = ids
            .iter()
            .flatten()
            .map(|id| id.parse().expect("an id"))
            .collect();
        vectors.apply(help, &ids, &rows).await.expect("applied");
        index.apply(help, &ids, &rows).await.expect("applied");
        index
            .commit(help, &format!("{}", ids.len()))
            .await
            .expect("committed");
    }

    let view = process.view().await;
    assert_eq!(view.splits(), 5);
    let even = Filter::from(BTreeMap::from([(
        "even".to_owned(),
        OneOrMany::One("true".into()),
    )]));
    let embedded = index.snapshot(help).await.expect("read").expect("an index");
    assert_eq!(embedded.count(), view.count());
    assert_eq!(
        vectors.count(help).await.expect("a count"),
        view.vector_count()
    );
    for filter in [&Filter::default(), &even] {
        for query in [[1.0, 0.5, 0.25, 0.1], [0.1, 0.9, 0.2, 0.7]] {
            for (k, metric) in [(K, Metric::Cosine), (7, Metric::Cosine), (7, Metric::L2)] {
                let found = VectorSnapshot::search(&*view, &query, k, metric, filter).await;
                let expected = vectors.search(help, &query, k, metric, filter).await;
                let hits = found.as_ref().expect("hits").clone();
                let near = VectorSnapshot::nearest(&*view, &query, k, metric, filter).await;
                let named: Vec<_> = hits.iter().map(|hit| (hit.chunk.id, hit.score)).collect();
                assert_eq!(near.expect("ids"), named);
                let ids: Vec<ChunkId> = named.iter().map(|(id, _)| *id).collect();
                let by_vectors = VectorSnapshot::find(&*view, &ids).await.expect("chunks");
                let by_texts = TextSnapshot::find(&*view, &ids).await.expect("chunks");
                for hit in &hits {
                    assert_eq!(by_vectors[&hit.chunk.id], hit.chunk);
                    assert_eq!(by_texts[&hit.chunk.id], hit.chunk);
                }
                let list = |hits: Vec<va_vector::VectorHit>| -> Vec<_> {
                    hits.into_iter()
                        .map(|hit| (hit.chunk.id, hit.score))
                        .collect()
                };
                let (found, expected) = (list(found.expect("hits")), list(expected.expect("hits")));
                close(&found, &expected, "vectors");
            }
        }
        for query in [
            "冻结行",
            "print rows",
            "表格 zebra",
            "第3页.md",
            "\"freeze rows\"",
            "删除",
        ] {
            let found = TextSnapshot::search(&*view, query, K, filter)
                .await
                .expect("hits");
            let expected = embedded.search(query, K, filter).await.expect("hits");
            // What is dead counts in the statistics of both, but the embedded index may have merged some of it away.
            let ids = |hits: &[va_fulltext::TextHit]| -> std::collections::BTreeSet<ChunkId> {
                hits.iter().map(|hit| hit.chunk.id).collect()
            };
            assert_eq!(ids(&found), ids(&expected), "{query}");
        }
    }
}
