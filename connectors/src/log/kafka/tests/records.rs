//! What is in the topics: records of others, records that the brokers removed, batches that need several records.

use std::sync::Arc;

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use va_catalog::Offset;

use super::super::KafkaOptions;
use super::{connect, options};
use crate::log::conformance::{PATIENCE, create, fetch, part, produce, read_all, values};
use crate::log::records::Records;
use crate::log::{FetchLimit, Log, LogError, Target, partition_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_program_is_named() {
    let Some(options) = options() else { return };
    let kafka = connect(options.clone()).await;
    let log = Arc::clone(&kafka) as Arc<dyn Log>;
    let name = create(&log, "t", 1).await;
    produce(&log, &name, 0, 0..3).await;
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = options.client().create().unwrap();
        let topic = format!("{}t", options.prefix);
        let record = BaseRecord::<(), str>::to(&topic).partition(0).payload("{}");
        producer.send(record).unwrap();
        producer.flush(PATIENCE).unwrap();
    })
    .await
    .unwrap();

    let mut next = Offset(0);
    let error = loop {
        match log
            .fetch(&part(&name, 0), next, FetchLimit::default(), PATIENCE)
            .await
        {
            Ok(fetched) => next = fetched.next,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Corrupt(_)), "{error}");
    let text = error.to_string();
    // Record 0, the end of its transaction, and then this one.
    assert!(text.contains("record 2 of `t-0`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_learns_what_was_removed() {
    let Some(options) = options() else { return };
    let kafka = connect(options).await;
    let log = Arc::clone(&kafka) as Arc<dyn Log>;
    let name = create(&log, "t", 1).await;
    for i in 0..3 {
        produce(&log, &name, 0, i * 5..i * 5 + 5).await;
    }
    let warm = fetch(&log, &name, 0, 0).await;
    assert_eq!(warm.batches[0].base, Offset(0));

    let mut list = TopicPartitionList::new();
    let topic = kafka.shared.kafka_topic(&name).unwrap();
    // The first two transactions: a record and its end each.
    list.add_partition_offset(&topic, 0, KafkaOffset::Offset(4))
        .unwrap();
    let removed = kafka
        .shared
        .admin
        .delete_records(&list, &AdminOptions::new())
        .await;
    assert_eq!(
        removed.unwrap().elements()[0].offset(),
        KafkaOffset::Offset(4)
    );

    let marks = log.watermarks(&part(&name, 0)).await.unwrap();
    assert_eq!(log.distance(Offset(0), marks.low), 4);
    let (mut next, mut skipped, mut rows) = (Offset(3), 0, Vec::new());
    while next < marks.high {
        let fetched = fetch(&log, &name, 0, next.0).await;
        assert!(fetched.next > next);
        skipped += fetched.skipped;
        rows.extend(values(&fetched));
        next = fetched.next;
    }
    assert_eq!((skipped, rows), (4, (10..15).collect()));
    assert_eq!(
        log.enforce_retention(i64::MAX).await.unwrap(),
        0,
        "the brokers do it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_becomes_several_records() {
    let Some(options) = options() else { return };
    let log = connect(KafkaOptions {
        record_bytes_max: 64 << 10,
        ..options
    })
    .await as Arc<dyn Log>;
    let name = create(&log, "t", 1).await;
    assert_eq!(produce(&log, &name, 0, 0..100_000).await, Offset(0));
    let rows = read_all(&log, &name, 0).await;
    assert_eq!(rows, (0..100_000).collect::<Vec<_>>());
}

/// A program that knows nothing of this platform writes, another one reads what a commit wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_programs_write_and_read_records() {
    let Some(options) = options() else { return };
    let kafka = connect(options.clone()).await;
    let log = Arc::clone(&kafka) as Arc<dyn Log>;
    let (input, output) = (create(&log, "in", 2).await, create(&log, "out", 2).await);
    let client = options.client();
    let topic = format!("{}in", options.prefix);
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = client
            .clone()
            .set("partitioner", "murmur2")
            .create()
            .unwrap();
        for i in 0..2_000 {
            let (key, value) = (format!("user-{}", i % 40), format!("{{\"i\":{i}}}"));
            let headers = OwnedHeaders::new().insert(Header {
                key: "traceparent",
                value: Some("00-1-2-01"),
            });
            let record = BaseRecord::to(&topic).key(&key).payload(&value);
            let record = if i % 100 == 0 {
                record.headers(headers)
            } else {
                record
            };
            producer.send(record).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    })
    .await
    .unwrap();

    let mut commit = log.begin();
    let mut found = 0;
    for partition in 0..2 {
        let place = part(&input, partition);
        let high = log.watermarks(&place).await.unwrap().high;
        let mut next = Offset(0);
        while next < high {
            let limit = FetchLimit {
                rows: 700,
                bytes: usize::MAX,
            };
            let fetched = log
                .fetch_records(&place, next, limit, PATIENCE)
                .await
                .unwrap();
            let records = Records::of(&fetched.batch).unwrap();
            for row in 0..fetched.batch.num_rows() {
                // Where their producer put the key is where ours puts it.
                assert_eq!(partition_of(records.key(row).unwrap(), 2).0, partition);
            }
            found += fetched.batch.num_rows();
            next = fetched.next;
            commit.append(&output, Target::Partition(place.partition), fetched.batch);
        }
    }
    assert_eq!(found, 2_000);
    commit.finish().await.unwrap();

    let (client, topic) = (
        options.group("another program"),
        format!("{}out", options.prefix),
    );
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client
            .clone()
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..2 {
            list.add_partition_offset(&topic, partition, KafkaOffset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        let (mut numbers, mut traced) = (Vec::new(), 0);
        while numbers.len() < 2_000 {
            let message = consumer.poll(PATIENCE).expect("a record in time").unwrap();
            let value: serde_json::Value =
                serde_json::from_slice(message.payload().unwrap()).unwrap();
            let number = value["i"].as_u64().unwrap();
            assert_eq!(
                message.key().unwrap(),
                format!("user-{}", number % 40).as_bytes()
            );
            traced += usize::from(
                message
                    .headers()
                    .is_some_and(|headers| headers.count() == 1),
            );
            numbers.push(number);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..2_000).collect::<Vec<_>>());
        assert_eq!(traced, 20);
    })
    .await
    .unwrap();
}
