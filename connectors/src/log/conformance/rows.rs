//! What is appended comes back: round trip, offsets, keys, and the fetch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema};
use va_catalog::{Offset, Partition};

use super::{PATIENCE, create, fetch, ints, part, produce, read, values};
use crate::log::{FetchLimit, Log, LogError, Target, partition_of};

pub async fn rows_come_back_as_they_went(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let batch = rich_batch();
    let mut commit = log.begin();
    commit.append(&name, Target::Partition(Partition(0)), batch.clone());
    // A slice has to be stored as what it shows, not as what it points into.
    commit.append(&name, Target::Partition(Partition(0)), batch.slice(1, 2));
    assert_eq!(commit.finish().await.unwrap(), [Offset(0), Offset(4)]);

    let fetched = fetch(&log, &name, 0, 0).await;
    assert_eq!(fetched.batches.len(), 2);
    assert_eq!(fetched.batches[0].batch, batch);
    assert_eq!(fetched.batches[0].batch.schema(), batch.schema());
    assert_eq!(fetched.batches[1].batch, batch.slice(1, 2));
    assert_eq!(
        (fetched.next, fetched.high, fetched.skipped),
        (Offset(6), Offset(6), 0)
    );
    assert!(fetched.batches[0].appended_at_ms > 0);
}

pub async fn offsets_are_dense(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    let mut commit = log.begin();
    for (partition, rows) in [(0, 0..3), (1, 0..2), (0, 3..7), (0, 7..8)] {
        commit.append(&name, Target::Partition(Partition(partition)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(0), Offset(0), Offset(3), Offset(7)]);
    assert_eq!(produce(&log, &name, 1, 2..4).await, Offset(2));
    assert_eq!(read(&log, &name, 0, 0).await, (0..8).collect::<Vec<_>>());
    assert_eq!(read(&log, &name, 1, 0).await, [0, 1, 2, 3]);
}

pub async fn keys_choose_partitions(log: Arc<dyn Log>) {
    let name = create(&log, "t", 3).await;
    let mut expected: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for i in 0..30 {
        let key = format!("文档-{}", i % 10);
        let mut commit = log.begin();
        commit.append(&name, Target::Key(key.clone().into()), ints(i..i + 1));
        commit.finish().await.unwrap();
        let partition = partition_of(key.as_bytes(), 3);
        expected.entry(partition.0).or_default().push(i);
    }
    assert!(expected.len() > 1, "ten keys on one of three partitions");
    for (partition, rows) in expected {
        assert_eq!(read(&log, &name, partition, 0).await, rows);
    }
}

pub async fn an_empty_batch_is_ignored(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let mut commit = log.begin();
    for rows in [0..0, 0..2, 0..0] {
        commit.append(&name, Target::Partition(Partition(0)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!(bases, [Offset(0), Offset(0), Offset(2)]);
    assert_eq!(read(&log, &name, 0, 0).await, [0, 1]);
    assert!(log.begin().finish().await.unwrap().is_empty());
}

pub async fn fetch_wakes_on_commit(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    let mut waiting =
        std::pin::pin!(log.fetch(&place, Offset(0), FetchLimit::default(), PATIENCE * 2));
    assert!(futures::poll!(&mut waiting).is_pending());
    produce(&log, &name, 0, 0..2).await;
    let fetched = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the commit wakes it")
        .unwrap();
    assert_eq!(values(&fetched), [0, 1]);
}

pub async fn fetch_times_out(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..2).await;
    for wait in [Duration::ZERO, Duration::from_millis(30)] {
        let started = Instant::now();
        let fetched = log
            .fetch(&part(&name, 0), Offset(2), FetchLimit::default(), wait)
            .await
            .unwrap();
        assert!(started.elapsed() >= wait);
        assert!(fetched.batches.is_empty());
        assert_eq!((fetched.next, fetched.high), (Offset(2), Offset(2)));
    }
    let error = log
        .fetch(
            &part(&name, 1),
            Offset(0),
            FetchLimit::default(),
            Duration::ZERO,
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, LogError::UnknownPartition { partitions: 1, .. }),
        "{error}"
    );
}

pub async fn fetch_begins_inside_a_batch(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..10).await;
    produce(&log, &name, 0, 10..15).await;
    for from in 0..15 {
        let fetched = fetch(&log, &name, 0, from).await;
        assert_eq!(fetched.batches[0].base, Offset(from));
        let expected: Vec<i64> = (from as i64..15).collect();
        assert_eq!(values(&fetched), expected, "from {from}");
    }
}

pub async fn fetch_respects_limits(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    for i in 0..6 {
        produce(&log, &name, 0, i * 10..i * 10 + 10).await;
    }
    let limits = [
        (
            FetchLimit {
                rows: 25,
                bytes: usize::MAX,
            },
            2,
        ),
        // At least one batch, however small the limit.
        (
            FetchLimit {
                rows: 1,
                bytes: usize::MAX,
            },
            1,
        ),
        (
            FetchLimit {
                rows: usize::MAX,
                bytes: 1,
            },
            1,
        ),
        (FetchLimit::default(), 6),
    ];
    for (limit, batches) in limits {
        let fetched = log
            .fetch(&part(&name, 0), Offset(0), limit, PATIENCE)
            .await
            .unwrap();
        assert_eq!(fetched.batches.len(), batches, "{limit:?}");
        assert_eq!(fetched.next, Offset(10 * batches as u64), "{limit:?}");
        assert_eq!(fetched.high, Offset(60));
    }
}

pub async fn fetch_can_be_cancelled(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    for i in 0..5 {
        {
            let mut waiting =
                std::pin::pin!(log.fetch(&place, Offset(i), FetchLimit::default(), PATIENCE));
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        produce(&log, &name, 0, i as i64..i as i64 + 1).await;
        assert_eq!(read(&log, &name, 0, i).await, [i as i64]);
    }
}

/// Lists, structs, nulls at every level, Chinese text, and metadata in the schema.
fn rich_batch() -> RecordBatch {
    let text = StringArray::from(vec![
        Some("如何冻结行或列"),
        None,
        Some(""),
        Some("freeze rows"),
    ]);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None, Some(3)]),
        None,
        Some(vec![]),
        Some(vec![Some(4)]),
    ]);
    let fields = Fields::from(vec![
        Field::new("page", DataType::Int64, true),
        Field::new("title", DataType::Utf8, true),
    ]);
    let structs = StructArray::new(
        fields.clone(),
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4)])),
            Arc::new(StringArray::from(vec![
                Some("标题"),
                Some("b"),
                None,
                Some("d"),
            ])),
        ],
        Some(vec![true, true, false, true].into()),
    );
    let metadata = [("va.kind".to_owned(), "测试".to_owned())].into();
    let schema = Schema::new(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("list", lists.data_type().clone(), true),
        Field::new("struct", DataType::Struct(fields), true),
    ])
    .with_metadata(metadata);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![Arc::new(text), Arc::new(lists), Arc::new(structs)],
    )
    .unwrap()
}
