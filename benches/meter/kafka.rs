//! Kafka from outside the platform: makes the events, watches what any contender does with them, checks what came out,
//! and is a contender itself, the bare loop of rdkafka.
//!
//! Every contender is watched in the same way: by the offsets that its group has committed, which move with the
//! transaction that holds its output, and by a consumer that sees only what is committed. Who runs, and in which turn, is
//! the script's business.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Failure;

/// A broker that does not answer for so long is not measured.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a group's offsets.
const LOOK: Duration = Duration::from_millis(5);
/// Silence of a partition that is worth telling.
const GAP: Duration = Duration::from_millis(200);
/// So many of them at most.
const GAPS: usize = 10_000;
/// How long a contender may make no step.
const STUCK: Duration = Duration::from_secs(120);

/// Topics of so many partitions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topics {
    brokers: String,
    topics: Vec<String>,
    partitions: i32,
}

/// Events into a topic, as fast as they go.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    brokers: String,
    topic: String,
    events: u64,
    keys: u64,
}

/// How fast a group gets through a topic.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    brokers: String,
    topic: String,
    group: String,
    /// Events before the clock starts.
    warm: i64,
    /// Processes whose time on the processor is told, by name.
    #[serde(default)]
    pids: BTreeMap<String, u32>,
}

/// The bare loop, watched.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    watch: Watch,
    output: String,
    commit_ms: u64,
    compression: String,
    /// Whether each event is parsed, changed and written, instead of copied.
    json: bool,
}

/// What is done with the events.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Map,
    Count,
}

/// What came out of so many events of ids from 0.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    brokers: String,
    topic: String,
    work: Work,
    events: u64,
}

/// How long an event takes until it can be seen, at a steady rate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    brokers: String,
    input: String,
    output: String,
    work: Work,
    keys: u64,
    rate: u64,
    /// Seconds before the first event that counts.
    warm_s: f64,
    seconds: f64,
    #[serde(default)]
    pids: BTreeMap<String, u32>,
}

/// An order of a shop.
#[derive(Serialize, Deserialize)]
struct Event<'a> {
    id: u64,
    #[serde(borrow)]
    customer: Cow<'a, str>,
    amount: f64,
    quantity: i64,
    #[serde(borrow)]
    country: Cow<'a, str>,
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    note: Cow<'a, str>,
    created_us: i64,
    /// What the map adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
}

/// What the count writes.
#[derive(Deserialize)]
struct Counted<'a> {
    #[serde(borrow)]
    customer: Cow<'a, str>,
    orders: i64,
}

const COUNTRIES: [&str; 8] = ["CN", "DE", "US", "FR", "JP", "BR", "IN", "中国"];
const CHANNELS: [&str; 4] = ["web", "app", "phone", "store"];
const NOTES: [&str; 5] = [
    "",
    "gift wrap, please",
    "deliver to the neighbour",
    "请放在门口",
    "call \"before\" noon",
];

fn customer(key: u64) -> String {
    format!("customer-{key:07}")
}

/// The `id`th event; the same in every run but for its time.
fn event(id: u64, keys: u64, created_us: i64) -> Event<'static> {
    // SplitMix64 (Steele, Lea and Flood), so that an event can be made from its number alone.
    let mut random = id.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    random ^= random >> 31;
    let mut draw = |of: u64| {
        let drawn = random % of;
        random = random.rotate_right(13).wrapping_mul(0x2545_f491_4f6c_dd1d);
        drawn
    };
    Event {
        id,
        customer: customer(draw(keys)).into(),
        amount: (draw(99_900) + 100) as f64 / 100.0,
        quantity: draw(9) as i64 + 1,
        country: COUNTRIES[draw(8) as usize].into(),
        channel: CHANNELS[draw(4) as usize].into(),
        note: NOTES[draw(5) as usize].into(),
        created_us,
        total: None,
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config.set("topic.metadata.refresh.interval.ms", "10000");
    config
}

/// A consumer of all partitions from the beginning, of no group, that sees only what is committed.
fn reader(brokers: &str, topic: &str) -> Result<(BaseConsumer, Vec<i64>), Failure> {
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", "bench.reader")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .create()?;
    let highs = highs(&consumer, topic)?;
    let mut list = TopicPartitionList::new();
    for partition in 0..highs.len() {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    Ok((consumer, highs))
}

/// One past the last record of each partition.
fn highs(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i64>, Failure> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first();
    let partitions = found.map_or(0, |found| found.partitions().len());
    (0..partitions as i32)
        .map(|partition| Ok(consumer.fetch_watermarks(topic, partition, TIMEOUT)?.1))
        .collect()
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>, Failure> {
    Ok(client(brokers).create()?)
}

/// Makes topics.
pub async fn create(asked: &Topics) -> Result<Value, Failure> {
    let new: Vec<NewTopic<'_>> = asked
        .topics
        .iter()
        .map(|name| NewTopic::new(name, asked.partitions, TopicReplication::Fixed(1)))
        .collect();
    let made = admin(&asked.brokers)?
        .create_topics(&new, &AdminOptions::new())
        .await?;
    for topic in made {
        topic.map_err(|(name, code)| format!("create topic `{name}`: {code}"))?;
    }
    Ok(json!({}))
}

/// Removes topics, so that the disk does not fill up.
pub async fn remove(asked: &Topics) -> Result<Value, Failure> {
    let names: Vec<&str> = asked.topics.iter().map(String::as_str).collect();
    admin(&asked.brokers)?
        .delete_topics(&names, &AdminOptions::new())
        .await?;
    Ok(json!({}))
}

/// A producer as any service would have: idempotent, keys where Kafka's own clients put them.
fn plain_producer(brokers: &str, linger_ms: &str) -> Result<BaseProducer, Failure> {
    Ok(client(brokers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", linger_ms)
        .set("queue.buffering.max.messages", "1000000")
        .create()?)
}

fn send(producer: &BaseProducer, record: BaseRecord<'_, [u8], [u8]>) -> Result<(), KafkaError> {
    let mut record = record;
    while let Err((error, back)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        producer.poll(Duration::from_millis(10));
        record = back;
    }
    Ok(())
}

/// Plain records as another program writes them.
pub fn fill(asked: &Fill) -> Result<Value, Failure> {
    let producer = plain_producer(&asked.brokers, "20")?;
    let (mut text, mut bytes, mut total) = (Vec::new(), 0, 0.0);
    let started = Instant::now();
    for id in 0..asked.events {
        let event = event(id, asked.keys, now_us());
        text.clear();
        serde_json::to_writer(&mut text, &event)?;
        bytes += text.len();
        total += event.amount * event.quantity as f64;
        let record = BaseRecord::to(&asked.topic)
            .key(event.customer.as_bytes())
            .payload(text.as_slice());
        send(&producer, record)?;
        if id % 1_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(TIMEOUT)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "bytes_each": bytes as f64 / asked.events as f64, "total": total, "per_second": asked.events as f64 / seconds,
    }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "these threads do nothing else, and are to be on time"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Processor time that processes have used, in seconds.
fn processor(pids: &BTreeMap<String, u32>) -> Result<BTreeMap<String, f64>, Failure> {
    pids.iter()
        .map(|(name, pid)| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_err(|_| format!("the process of `{name}` has ended"))?;
            let after = stat.rsplit(')').next().unwrap_or_default();
            let fields: Vec<f64> = after
                .split_whitespace()
                .map(|field| field.parse().unwrap_or(0.0))
                .collect();
            // User and system time, in ticks of 10 ms.
            let ticks = fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0);
            Ok((name.clone(), ticks / 100.0))
        })
        .collect()
}

/// Waits until a group has committed everything of the topic. The clock runs from the commit that passes `warm` events
/// to the one that holds the last.
pub fn watch(asked: &Watch) -> Result<Value, Failure> {
    watch_while(asked, || Ok(()))
}

fn watch_while(asked: &Watch, check: impl Fn() -> Result<(), Failure>) -> Result<Value, Failure> {
    let consumer: BaseConsumer = client(&asked.brokers)
        .set("group.id", &asked.group)
        .set("enable.auto.commit", "false")
        // Tells what is committed, also while another transaction is under way.
        .set("isolation.level", "read_uncommitted")
        .create()?;
    let highs = highs(&consumer, &asked.topic)?;
    let all: i64 = highs.iter().sum();
    let mut list = TopicPartitionList::new();
    for partition in 0..highs.len() {
        list.add_partition(&asked.topic, partition as i32);
    }
    let mut begun: Option<(Instant, i64, BTreeMap<String, f64>)> = None;
    let (mut seen, mut moved) = (0, Instant::now());
    loop {
        check()?;
        let committed = consumer.committed_offsets(list.clone(), TIMEOUT)?;
        let now = Instant::now();
        let done: i64 = committed
            .elements()
            .iter()
            .map(|element| match element.offset() {
                Offset::Offset(offset) => offset,
                _ => 0,
            })
            .sum();
        if done > seen {
            (seen, moved) = (done, now);
        } else if moved.elapsed() > STUCK {
            return Err(format!("group `{}` stands at {seen} of {all} events", asked.group).into());
        }
        if begun.is_none() && done >= asked.warm.max(1) {
            begun = Some((now, done, processor(&asked.pids)?));
        }
        if done >= all {
            let (at, first, before) = begun.unwrap_or((now, done, BTreeMap::new()));
            let events = (all - first) as f64;
            let seconds = (now - at).as_secs_f64();
            if events == 0.0 {
                return Err("one commit held everything: more events are needed".into());
            }
            let used: BTreeMap<String, f64> = processor(&asked.pids)?
                .into_iter()
                .map(|(name, after)| {
                    let used = after - before.get(&name).unwrap_or(&0.0);
                    (name, used / events * 1e6)
                })
                .collect();
            return Ok(json!({
                "events": events, "seconds": seconds, "per_second": events / seconds, "cpu_us_per_event": used,
            }));
        }
        pause(LOOK);
    }
}

/// Consume, copy or change, produce, and commit the offsets with it: what rdkafka alone can do, in one thread beside the
/// library's own.
pub fn bare_loop(asked: &Loop) -> Result<Value, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| {
            let result = looped(asked, &stop);
            stop.store(true, Ordering::Relaxed);
            result
        });
        let watched = watch_while(&asked.watch, || {
            if stop.load(Ordering::Relaxed) {
                return Err("the loop has ended".into());
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        match looping.join() {
            Ok(result) => result.and(watched),
            Err(_) => Err("the loop panicked".into()),
        }
    })
}

fn looped(asked: &Loop, stop: &AtomicBool) -> Result<(), Failure> {
    let Watch {
        brokers,
        topic,
        group,
        ..
    } = &asked.watch;
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .create()?;
    consumer.subscribe(&[topic])?;
    let producer: BaseProducer = client(brokers)
        .set("transactional.id", group)
        .set("compression.type", &asked.compression)
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    producer.init_transactions(TIMEOUT)?;
    let interval = Duration::from_millis(asked.commit_ms);
    let mut text = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // By partition.
        let mut positions: BTreeMap<i32, i64> = BTreeMap::new();
        let mut deadline = None;
        let mut count = 0_u32;
        loop {
            count += 1;
            if count.is_multiple_of(64) && deadline.is_some_and(|at| Instant::now() >= at) {
                break;
            }
            let Some(message) = consumer.poll(Duration::from_millis(10)) else {
                break;
            };
            let message = message?;
            if deadline.is_none() {
                producer.begin_transaction()?;
                deadline = Some(Instant::now() + interval);
            }
            let payload = message.payload().unwrap_or_default();
            let mut record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&asked.output).partition(message.partition());
            record.key = message.key();
            record.payload = Some(if asked.json {
                let mut event: Event<'_> = serde_json::from_slice(payload)?;
                event.total = Some(event.amount * event.quantity as f64);
                text.clear();
                serde_json::to_writer(&mut text, &event)?;
                &text
            } else {
                payload
            });
            send(&producer, record)?;
            if count.is_multiple_of(1_024) {
                producer.poll(Duration::ZERO);
            }
            positions.insert(message.partition(), message.offset() + 1);
        }
        if deadline.is_none() {
            continue;
        }
        let mut list = TopicPartitionList::new();
        for (partition, next) in positions {
            list.add_partition_offset(topic, partition, Offset::Offset(next))?;
        }
        let metadata = consumer.group_metadata().ok_or("the group was left")?;
        producer.send_offsets_to_transaction(&list, &metadata, TIMEOUT)?;
        producer.commit_transaction(TIMEOUT)?;
    }
    Ok(())
}

/// Reads everything that is committed and says whether each event is in it exactly once.
pub fn check(asked: &Check) -> Result<Value, Failure> {
    let (consumer, highs) = reader(&asked.brokers, &asked.topic)?;
    let mut open = highs.len();
    let mut records = 0_u64;
    let mut times = vec![0_u8; asked.events as usize];
    let mut total = 0.0;
    let mut counts: HashMap<String, i64> = HashMap::new();
    let mut backwards = 0;
    while open > 0 {
        let message = match consumer.poll(TIMEOUT) {
            Some(Ok(message)) => message,
            Some(Err(KafkaError::PartitionEOF(_))) => {
                open -= 1;
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
            None => return Err("the output cannot be read".into()),
        };
        records += 1;
        let payload = message.payload().unwrap_or_default();
        match asked.work {
            Work::Map => {
                let event: Event<'_> = serde_json::from_slice(payload)?;
                total += event.total.unwrap_or(f64::NAN);
                let seen = times
                    .get_mut(event.id as usize)
                    .ok_or_else(|| format!("an event of id {}", event.id))?;
                *seen = seen.saturating_add(1);
            }
            Work::Count => {
                let counted: Counted<'_> = serde_json::from_slice(payload)?;
                let last = counts.entry(counted.customer.into_owned()).or_default();
                backwards += u64::from(counted.orders <= *last);
                *last = counted.orders;
            }
        }
    }
    Ok(match asked.work {
        Work::Map => json!({
            "records": records, "exact": times.iter().all(|times| *times == 1), "total": total,
        }),
        Work::Count => json!({
            "records": records, "keys": counts.len(),
            "exact": backwards == 0 && counts.values().sum::<i64>() as u64 == asked.events,
        }),
    })
}

/// Sends events at a steady rate and sees when what was made of them is committed.
///
/// An event's time is when it was due, so that a sender who is late does not flatter. Of a count, an event is seen with
/// the first count that holds it.
pub fn latency(asked: &Latency) -> Result<Value, Failure> {
    let sent: Mutex<Vec<Vec<i64>>> = Mutex::new(vec![Vec::new(); asked.keys as usize]);
    let (consumer, _) = reader(&asked.brokers, &asked.output)?;
    let events = (asked.rate as f64 * (asked.warm_s + asked.seconds)) as u64;
    let started = now_us();
    let counted_from = started + (asked.warm_s * 1e6) as i64;
    std::thread::scope(|scope| {
        let pacer = scope.spawn(|| pace(asked, events, started, &sent));
        let mut latencies: Vec<i64> = Vec::with_capacity(events as usize);
        let mut counts = vec![0_usize; asked.keys as usize];
        let mut seen = 0_u64;
        let mut before: Option<BTreeMap<String, f64>> = None;
        let mut moved = Instant::now();
        // When each partition was heard of last, and how long it had been silent until then.
        let mut heard: HashMap<i32, i64> = HashMap::new();
        let mut gaps: Vec<(i64, i64)> = Vec::new();
        while seen < events {
            if before.is_none() && now_us() >= counted_from {
                before = Some(processor(&asked.pids)?);
            }
            let message = match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => return Err(error.into()),
                None if moved.elapsed() > STUCK => {
                    return Err(format!("{seen} of {events} events have come out").into());
                }
                None => continue,
            };
            moved = Instant::now();
            let now = now_us();
            if let Some(last) = heard.insert(message.partition(), now)
                && now - last >= GAP.as_micros() as i64
                && gaps.len() < GAPS
            {
                gaps.push((last / 1_000, (now - last) / 1_000));
            }
            let payload = message.payload().unwrap_or_default();
            let mut take = |created: i64| {
                seen += 1;
                if created >= counted_from {
                    latencies.push(now - created);
                }
            };
            match asked.work {
                Work::Map => take(serde_json::from_slice::<Event<'_>>(payload)?.created_us),
                Work::Count => {
                    let counted: Counted<'_> = serde_json::from_slice(payload)?;
                    let number = counted.customer.trim_start_matches("customer-");
                    let key: usize = number.parse()?;
                    let (from, to) = (counts[key], counted.orders as usize);
                    let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                    let times = sent[key]
                        .get(from..to)
                        .ok_or_else(|| format!("`{number}` was counted from {from} to {to}"))?;
                    times.iter().copied().for_each(&mut take);
                    counts[key] = to;
                }
            }
        }
        let after = processor(&asked.pids)?;
        let late_us = pacer.join().map_err(|_| "the sender panicked")??;
        latencies.sort_unstable();
        let at = |share: f64| {
            let place = ((latencies.len() as f64 - 1.0) * share).max(0.0) as usize;
            latencies.get(place).map_or(f64::NAN, |us| *us as f64 / 1e3)
        };
        let before = before.unwrap_or_default();
        let used: BTreeMap<String, f64> = after
            .into_iter()
            .map(|(name, after)| {
                let used = after - before.get(&name).unwrap_or(&0.0);
                (name, used / (asked.seconds * asked.rate as f64) * 1e6)
            })
            .collect();
        Ok(json!({
            "events": latencies.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0),
            "sender_late_ms": late_us as f64 / 1e3, "cpu_us_per_event": used, "gaps_ms": gaps,
        }))
    })
}

/// Returns by how much it was late at most, in microseconds.
fn pace(
    asked: &Latency,
    events: u64,
    started: i64,
    sent: &Mutex<Vec<Vec<i64>>>,
) -> Result<i64, Failure> {
    let producer = plain_producer(&asked.brokers, "1")?;
    let mut text = Vec::new();
    let mut late = 0;
    for id in 0..events {
        let due = started + (id as f64 / asked.rate as f64 * 1e6) as i64;
        let mut now = now_us();
        while now < due {
            pause(Duration::from_micros((due - now).max(500) as u64));
            producer.poll(Duration::ZERO);
            now = now_us();
        }
        late = late.max(now - due);
        let event = event(id, asked.keys, due);
        text.clear();
        serde_json::to_writer(&mut text, &event)?;
        if asked.work == Work::Count {
            let key: usize = event.customer.trim_start_matches("customer-").parse()?;
            sent.lock().unwrap_or_else(PoisonError::into_inner)[key].push(due);
        }
        let record = BaseRecord::to(&asked.input)
            .key(event.customer.as_bytes())
            .payload(text.as_slice());
        send(&producer, record)?;
    }
    producer.flush(TIMEOUT)?;
    Ok(late)
}
