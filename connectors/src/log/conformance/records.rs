//! Records of other programs: what is appended as single messages comes back as them, many to a batch, and a position
//! between any two of them can be committed.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use va_catalog::{Offset, Partition};

use super::{PATIENCE, assigned, create, end, fetch, group, ints, part, produce};
use crate::log::records::{Records, RecordsBuilder, by_partition};
use crate::log::{FetchLimit, FetchedRecords, Log, LogError, Target, partition_of};

type Shown = (
    Option<String>,
    Option<String>,
    Vec<(String, Option<String>)>,
);

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn shown(batch: &RecordBatch) -> Vec<Shown> {
    let records = Records::of(batch).unwrap();
    (0..batch.num_rows())
        .map(|row| {
            let headers = records
                .headers(row)
                .map(|(name, value)| (name.to_owned(), value.map(text)));
            (
                records.key(row).map(text),
                records.value(row).map(text),
                headers.collect(),
            )
        })
        .collect()
}

fn numbered(range: std::ops::Range<u32>) -> RecordBatch {
    let mut builder = RecordsBuilder::with_capacity(range.len(), 0);
    for i in range {
        let (key, value) = (format!("键-{}", i % 10), format!("{{\"i\":{i}}}"));
        builder.push(Some(key.as_bytes()), Some(value.as_bytes()), None, []);
    }
    builder.finish()
}

async fn append(log: &Arc<dyn Log>, topic: &va_catalog::TopicName, records: RecordBatch) -> Offset {
    let mut commit = log.begin();
    commit.append(topic, Target::Partition(Partition(0)), records);
    commit.finish().await.unwrap()[0]
}

async fn fetch_some(
    log: &Arc<dyn Log>,
    topic: &va_catalog::TopicName,
    partition: u32,
    from: Offset,
    rows: usize,
) -> FetchedRecords {
    let limit = FetchLimit {
        rows,
        bytes: usize::MAX,
    };
    let fetched = log
        .fetch_records(&part(topic, partition), from, limit, PATIENCE)
        .await
        .unwrap();
    assert_eq!(fetched.offsets.len(), fetched.batch.num_rows());
    assert!(fetched.offsets.is_sorted_by(|a, b| a < b));
    assert!(fetched.offsets.first().is_none_or(|first| *first >= from));
    assert!(
        fetched
            .offsets
            .last()
            .is_none_or(|last| *last < fetched.next)
    );
    assert!(fetched.next <= fetched.high);
    fetched
}

/// All records from `from` on, in fetches of at most about `rows`; and the offset of each.
async fn read(
    log: &Arc<dyn Log>,
    topic: &va_catalog::TopicName,
    partition: u32,
    from: Offset,
    rows: usize,
) -> (Vec<Shown>, Vec<Offset>, Offset) {
    let high = log.watermarks(&part(topic, partition)).await.unwrap().high;
    let (mut all, mut offsets, mut next) = (Vec::new(), Vec::new(), from);
    while next < high {
        let fetched = fetch_some(log, topic, partition, next, rows).await;
        assert!(fetched.next > next, "no progress at {next}");
        all.extend(shown(&fetched.batch));
        offsets.extend(fetched.offsets);
        next = fetched.next;
    }
    (all, offsets, next)
}

pub async fn records_come_back_as_they_went(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    let mut builder = RecordsBuilder::with_capacity(4, 0);
    let trace = [("traceparent", Some(&b"00-1-2-01"[..])), ("empty", None)];
    builder.push(Some(b"k"), Some("值".as_bytes()), Some(7), trace);
    builder.push(None, Some(b""), None, []);
    builder.push(Some(b""), None, None, [("traceparent", Some(&b"x"[..]))]);
    builder.push(None, None, None, []);
    let batch = builder.finish();
    let first = append(&log, &name, batch.clone()).await;
    let second = append(&log, &name, batch.slice(1, 2)).await;
    assert!(second.0 >= first.0 + 4);

    let (all, offsets, next) = read(&log, &name, 0, Offset(0), usize::MAX).await;
    let expected = [shown(&batch), shown(&batch.slice(1, 2))].concat();
    assert_eq!(all, expected);
    assert_eq!((offsets[0], offsets[4]), (first, second));
    assert_eq!(next, log.watermarks(&part(&name, 0)).await.unwrap().high);
    let fetched = fetch_some(&log, &name, 0, first, usize::MAX).await;
    let times = Records::of(&fetched.batch).unwrap().timestamps;
    assert_eq!(times.null_count(), 0);
    // The log's own, whatever was given.
    assert!(times.values().iter().all(|time| *time > 1_000_000_000_000));
}

pub async fn records_are_read_from_anywhere(log: Arc<dyn Log>) {
    let name = create(&log, "t", 1).await;
    for i in 0..3 {
        append(&log, &name, numbered(i * 40..i * 40 + 40)).await;
    }
    let expected = shown(&numbered(0..120));
    for rows in [1, 7, 64, usize::MAX] {
        let (all, offsets, next) = read(&log, &name, 0, Offset(0), rows).await;
        assert_eq!(all, expected, "{rows} at a time");
        for from in [1, 39, 40, 41, 119] {
            let rest = read(&log, &name, 0, offsets[from], rows).await;
            assert_eq!(rest.0, expected[from..], "from {from}, {rows} at a time");
            assert_eq!(rest.2, next);
        }
        let distances: Vec<u64> = offsets.iter().map(|at| log.distance(*at, next)).collect();
        assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
        assert_eq!(log.distance(next, next), 0);
    }
    // At the end there is nothing, and waiting for it ends.
    let at_end = end_of(&log, &name).await;
    let nothing = log
        .fetch_records(
            &part(&name, 0),
            at_end,
            FetchLimit::default(),
            Duration::from_millis(20),
        )
        .await
        .unwrap();
    assert_eq!((nothing.batch.num_rows(), nothing.next), (0, at_end));
}

async fn end_of(log: &Arc<dyn Log>, topic: &va_catalog::TopicName) -> Offset {
    read(log, topic, 0, Offset(0), usize::MAX).await.2
}

pub async fn record_keys_choose_partitions(log: Arc<dyn Log>) {
    let name = create(&log, "t", 3).await;
    let mut turn = 0;
    let mut commit = log.begin();
    for (partition, part) in by_partition(&numbered(0..100), 3, &mut turn).unwrap() {
        commit.append(&name, Target::Partition(partition), part);
    }
    commit.finish().await.unwrap();
    let mut found = 0;
    for partition in 0..3 {
        let (all, ..) = read(&log, &name, partition, Offset(0), usize::MAX).await;
        found += all.len();
        for (key, ..) in &all {
            let key = key.as_ref().unwrap();
            assert_eq!(partition_of(key.as_bytes(), 3).0, partition, "{key}");
        }
        let values: Vec<_> = all.iter().map(|(_, value, _)| value.clone()).collect();
        let of_key = shown(&numbered(0..100))
            .into_iter()
            .filter(|(key, ..)| partition_of(key.as_ref().unwrap().as_bytes(), 3).0 == partition)
            .map(|(_, value, _)| value);
        assert_eq!(values, of_key.collect::<Vec<_>>(), "in order");
    }
    assert_eq!(found, 100);
}

pub async fn records_and_batches_do_not_mix(log: Arc<dyn Log>) {
    let records = create(&log, "records", 1).await;
    append(&log, &records, numbered(0..3)).await;
    let limit = FetchLimit::default();
    let error = log
        .fetch(&part(&records, 0), Offset(0), limit, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, LogError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("`format`"), "{error}");

    let batches = create(&log, "batches", 1).await;
    produce(&log, &batches, 0, 0..3).await;
    let error = log
        .fetch_records(&part(&batches, 0), Offset(0), limit, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
    assert!(error.to_string().contains("without `format`"), "{error}");
    // Neither kind of topic is the worse for it.
    assert_eq!(read(&log, &records, 0, Offset(0), 10).await.0.len(), 3);
    assert_eq!(fetch(&log, &batches, 0, 0).await.batches.len(), 1);
}

pub async fn records_are_consumed_exactly_once(log: Arc<dyn Log>) {
    let input = create(&log, "in", 1).await;
    let output = create(&log, "out", 1).await;
    append(&log, &input, numbered(0..50)).await;
    append(&log, &input, numbered(50..80)).await;
    let readers = group("copies");
    let mut copied = 0;
    // Each member copies some and goes away in mid-batch; one of its commits is never finished.
    for round in 0.. {
        let member = log
            .join(&readers, std::slice::from_ref(&input))
            .await
            .unwrap();
        let from = assigned(member.as_ref(), 1).await[&part(&input, 0)];
        let high = log.watermarks(&part(&input, 0)).await.unwrap().high;
        if from == high {
            break;
        }
        let fetched = fetch_some(&log, &input, 0, from, 17).await;
        let take = fetched.batch.num_rows().min(17);
        let mut lost = member.begin();
        lost.append(
            &output,
            Target::Partition(Partition(0)),
            fetched.batch.slice(0, take),
        );
        lost.consumed(&part(&input, 0), fetched.next);
        drop(lost);
        let mut commit = member.begin();
        commit.append(
            &output,
            Target::Partition(Partition(0)),
            fetched.batch.slice(0, take),
        );
        commit.append(&output, Target::Partition(Partition(0)), ints(0..0));
        let next = fetched.offsets.get(take).copied().unwrap_or(fetched.next);
        commit.consumed(&part(&input, 0), next);
        commit.finish().await.unwrap();
        copied += take;
        assert!(round < 40, "no end");
    }
    assert_eq!(copied, 80);
    let (all, ..) = read(&log, &output, 0, Offset(0), usize::MAX).await;
    assert_eq!(all, shown(&numbered(0..80)));
    let committed = log.committed(&readers, &part(&input, 0)).await.unwrap();
    assert_eq!(committed, Some(end_of(&log, &input).await));
    // And the same for batches beside them: nothing of this changed them.
    let batches = create(&log, "batches", 1).await;
    produce(&log, &batches, 0, 0..4).await;
    assert!(end(&log, &batches, 0).await.0 >= 4);
}
