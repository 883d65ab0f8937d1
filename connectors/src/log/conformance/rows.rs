//! What is appended comes back: round trip, offsets, keys, and the fetch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema};
use va_catalog::{Offset, Partition};

use super::{
    PATIENCE, create, end, fetch, high, ints, part, produce, read, read_batches, row_offsets,
    values,
};
use crate::log::{FetchLimit, Log, LogError, Target, partition_of};

pub async fn rows_come_back_as_they_went(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let batch = rich_batch();
    let mut commit = log.begin();
    commit.append(&name, Target::Partition(Partition(0)), batch.clone());
    // A slice has to be stored as what it shows, not as what it points into.
    commit.append(&name, Target::Partition(Partition(0)), batch.slice(1, 2));
    let bases = commit.finish().await.unwrap();

    let (batches, next) = read_batches(&log, &name, 0, Offset(0)).await;
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[0].batch, batch);
    assert_eq!(batches[0].batch.schema(), batch.schema());
    assert_eq!(batches[1].batch, batch.slice(1, 2));
    assert_eq!(bases, [batches[0].base, batches[1].base]);
    assert_eq!(bases[0], Offset(0));
    assert_eq!(next.0, high(&log, &name, 0).await);
    assert!(batches[0].appended_at_ms > 0);
}

pub async fn offsets_grow(log: Arc<dyn Log>) {
    let name = create(&log, "t", 2).await;
    let mut commit = log.begin();
    for (partition, rows) in [(0, 0..3), (1, 0..2), (0, 3..7), (0, 7..8)] {
        commit.append(&name, Target::Partition(Partition(partition)), ints(rows));
    }
    let bases = commit.finish().await.unwrap();
    assert_eq!((bases[0], bases[1]), (Offset(0), Offset(0)));
    assert!(bases[2].0 >= 3 && bases[3].0 >= bases[2].0 + 4, "{bases:?}");
    let later = produce(&log, &name, 1, 2..4).await;
    assert!(later.0 >= 2);
    let (batches, next) = read_batches(&log, &name, 0, Offset(0)).await;
    let found: Vec<Offset> = batches.iter().map(|batch| batch.base).collect();
    assert_eq!(found, [bases[0], bases[2], bases[3]]);
    assert_eq!(next.0, high(&log, &name, 0).await);
    assert_eq!(read(&log, &name, 0, 0).await, (0..8).collect::<Vec<_>>());
    assert_eq!(read(&log, &name, 1, 0).await, [0, 1, 2, 3]);
    assert_eq!(read(&log, &name, 1, later.0).await, [2, 3]);
    // Lag is nothing at the end, something before, and less the further one has read.
    let distances: Vec<u64> = [bases[0], bases[2], bases[3], next]
        .map(|from| log.distance(from, next))
        .to_vec();
    assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
    assert_eq!(distances[3], 0);
    assert_eq!(log.distance(next, bases[0]), 0);
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
    assert_eq!(bases[1], Offset(0));
    assert_eq!(bases.len(), 3, "one for each append, the empty ones too");
    assert_eq!(bases[2].0, high(&log, &name, 0).await);
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
    let end = end(&log, &name, 0).await;
    for wait in [Duration::ZERO, Duration::from_millis(30)] {
        let started = Instant::now();
        let fetched = log
            .fetch(&part(&name, 0), end, FetchLimit::default(), wait)
            .await
            .unwrap();
        assert!(started.elapsed() >= wait);
        assert!(fetched.batches.is_empty());
        assert_eq!((fetched.next, fetched.high), (end, end));
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
    let offsets = row_offsets(&log, &name, 0).await;
    assert_eq!(offsets.len(), 15);
    for (row, from) in offsets.into_iter().enumerate() {
        let fetched = fetch(&log, &name, 0, from.0).await;
        assert_eq!(fetched.batches[0].base, from);
        let expected: Vec<i64> = (row as i64..15).collect();
        assert!(expected.starts_with(&values(&fetched)), "from {from}");
        assert_eq!(read(&log, &name, 0, from.0).await, expected, "from {from}");
    }
    // Behind the last row of a batch is before the first of the next, whatever lies between them.
    assert_eq!(read(&log, &name, 0, 10).await, (10..15).collect::<Vec<_>>());
}

pub async fn fetch_respects_limits(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    for i in 0..6 {
        produce(&log, &name, 0, i * 10..i * 10 + 10).await;
    }
    let everything = usize::MAX;
    let limits = [
        ((25, everything), 2),
        // At least one batch, however small the limit.
        ((1, everything), 1),
        ((everything, 1), 1),
        ((8_192, 4 << 20), 6),
    ];
    for ((rows, bytes), batches_max) in limits {
        let limit = FetchLimit { rows, bytes };
        let (mut next, mut seen, high) = (Offset(0), Vec::new(), high(&log, &name, 0).await);
        while next.0 < high {
            let fetched = log
                .fetch(&part(&name, 0), next, limit, PATIENCE)
                .await
                .unwrap();
            assert!(fetched.batches.len() <= batches_max, "{limit:?}");
            assert!(fetched.next > next, "{limit:?}");
            assert_eq!(fetched.high, Offset(high));
            seen.extend(values(&fetched));
            next = fetched.next;
        }
        assert_eq!(seen, (0..60).collect::<Vec<_>>(), "{limit:?}");
    }
}

pub async fn fetch_can_be_cancelled(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let place = part(&name, 0);
    for i in 0..5 {
        let from = end(&log, &name, 0).await;
        {
            let mut waiting =
                std::pin::pin!(log.fetch(&place, from, FetchLimit::default(), PATIENCE));
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        produce(&log, &name, 0, i..i + 1).await;
        assert_eq!(read(&log, &name, 0, from.0).await, [i]);
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
